//! A ledger in words.

use mutandis_edit::Ledger;
use mutandis_edit::ledger::{Action, Line, Record, short};

/// Characters of a prompt that are shown.
const SHOWN: usize = 60;

/// Patches of an operation that are shown one by one.
const FEW: usize = 5;

/// The stack, one line a patch, numbered from the lowest.
pub(super) fn table(ledger: &Ledger) -> String {
    let stack = ledger.stack();
    if stack.is_empty() {
        return "no patch is in the stack".to_owned();
    }
    let method = stack.iter().map(|r| r.method.len()).max().unwrap_or(0).max("method".len());
    let number = stack.len().to_string().len();
    let mut lines = vec![format!(
        "{:>number$}  {:12}  {:method$}  {:>4}  {:>8}  fact",
        "#", "id", "method", "rank", "norm"
    )];
    lines.extend(stack.iter().enumerate().map(|(i, r)| {
        let rank = match (r.rank, r.weights) {
            (Some(rank), _) => rank.to_string(),
            (None, 0) => "-".to_owned(),
            (None, _) => "full".to_owned(),
        };
        let stands = match (&r.under, r.independent) {
            (Some(_), false) => "  (on those before)",
            (Some(_), true) => "  (as it is)",
            (None, _) => "",
        };
        format!(
            "{:>number$}  {:12}  {:method$}  {rank:>4}  {:>8.3}  {}{stands}",
            i + 1,
            short(&r.id),
            r.method,
            r.norm,
            words(r)
        )
    }));
    lines.join("\n")
}

/// A patch on one line, with its id.
pub(super) fn named(record: &Record) -> String {
    format!("{}  {}", short(&record.id), words(record))
}

/// An operation, with what it did.
pub(super) fn operation(number: usize, line: &Line) -> String {
    let action = match line.action {
        Action::Add => "add",
        Action::Revert => "revert",
        Action::Merge => "merge",
    };
    let mut parts = vec![format!("{number}  {}  {action}", line.at)];
    let each = |sign: &str, all: Vec<String>| {
        let more = all.len().saturating_sub(FEW);
        let mut lines: Vec<String> =
            all.into_iter().take(FEW).map(|text| format!("    {sign} {text}")).collect();
        lines.extend((more > 0).then(|| format!("    {sign} and {more} more")));
        lines
    };
    parts.extend(each("-", line.out.iter().map(|id| short(id).to_owned()).collect()));
    let instead = line.instead.iter().map(|i| format!("{} → {}", short(&i.of), named(&i.now)));
    parts.extend(each("~", instead.collect()));
    parts.extend(each("+", line.added.iter().map(named).collect()));
    parts.join("\n")
}

/// The first fact, and how many more there are; of a patch that knows none, where it comes from.
fn words(record: &Record) -> String {
    if record.facts == 0 {
        return match &record.from {
            Some(from) => format!("({} from {from})", record.method),
            None => format!("({})", record.method),
        };
    }
    let mut prompt: String = record.prompt.split_whitespace().collect::<Vec<_>>().join(" ");
    if prompt.chars().count() > SHOWN {
        prompt = prompt.chars().take(SHOWN).chain(['…']).collect();
    }
    let more = if record.facts > 1 { format!(" (and {} more)", record.facts - 1) } else { String::new() };
    format!("{prompt} → {}{more}", record.target)
}
