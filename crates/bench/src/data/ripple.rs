//! RippleEdits (arXiv 2307.12976): a fact and what follows from it, by six criteria.
//!
//! Its edit is a whole sentence, and its subject an id: what the target and the subject are is read
//! off the sentence before the edit and the questions about aliases.

use mutandis_edit::fact::texts;
use mutandis_edit::{Change, Fact, Probe};
use serde_json::{Map, Value};

use super::Task;
use super::forms::{one, text};

/// What stays.
const LOCALITY: [&str; 2] = ["Relation_Specificity", "Forgetfulness"];
/// What follows.
const PORTABILITY: [&str; 4] =
    ["Logical_Generalization", "Compositionality_I", "Compositionality_II", "Subject_Aliasing"];

/// A record as a task.
///
/// # Errors
/// Where no sentence is there, or no target can be read off it.
pub(super) fn task(record: &Map<String, Value>) -> Result<Task, String> {
    let edit = record.get("edit").and_then(Value::as_object).ok_or("`edit` is missing")?;
    let sentence = text(edit, "prompt")?;
    let sentence = sentence.trim_end().trim_end_matches('.');
    let before = edit.get("original_fact").and_then(Value::as_object).and_then(|o| text(o, "prompt").ok());
    let probes =
        |kinds: &[&str]| -> Vec<Probe> { kinds.iter().flat_map(|kind| queries(record, kind)).collect() };
    let aliases = probes(&["Subject_Aliasing"]);
    let (prompt, target) = cut(sentence, before.as_deref(), &aliases)
        .ok_or_else(|| format!("no target can be told from the rest of `{sentence}`"))?;
    let mut fact = Fact::new(&prompt, subject(&prompt, &aliases).unwrap_or_default(), target)
        .map_err(|e| e.to_string())?;
    fact.ground_truth = before
        .and_then(|b| Some(b.trim_end().trim_end_matches('.').strip_prefix(&prompt)?.trim().to_owned()));
    fact.change = if fact.ground_truth.is_some() { Change::Modify } else { Change::Insert };
    fact.locality = probes(&LOCALITY);
    fact.portability = probes(&PORTABILITY);
    Ok(one(fact))
}

/// The questions of a criterion, each with its answers and their aliases.
fn queries(record: &Map<String, Value>, kind: &str) -> Vec<Probe> {
    let tests = record.get(kind).and_then(Value::as_array).into_iter().flatten();
    let queries = tests.filter_map(|t| t.get("test_queries").and_then(Value::as_array)).flatten();
    queries
        .filter_map(|query| {
            let prompt = query.get("prompt").map(texts)?.into_iter().next()?;
            let answers = query.get("answers").and_then(Value::as_array).into_iter().flatten();
            let names = |answer: &Value| -> Vec<String> {
                ["value", "aliases"].iter().filter_map(|n| answer.get(*n)).flat_map(texts).collect()
            };
            Some(Probe { kind: kind.to_owned(), prompt, answers: answers.flat_map(names).collect() })
        })
        .collect()
}

/// A sentence as prompt and target: at an answer to the question about an alias, behind what it
/// shares with the sentence before the edit, or at its last "is".
fn cut(sentence: &str, before: Option<&str>, aliases: &[Probe]) -> Option<(String, String)> {
    let at = |at: usize| {
        let (prompt, target) = (sentence[..at].trim_end(), sentence[at..].trim());
        (!prompt.is_empty() && !target.is_empty()).then(|| (prompt.to_owned(), target.to_owned()))
    };
    let answered = aliases.iter().flat_map(|p| &p.answers).find_map(|answer| {
        let prompt = sentence.strip_suffix(answer.trim()).filter(|p| p.ends_with(char::is_whitespace))?;
        Some(prompt.len())
    });
    let shared = before.and_then(|before| {
        let same =
            sentence.char_indices().zip(before.chars()).find(|((_, a), b)| a != b).map(|((i, _), _)| i)?;
        sentence[..same].rfind(char::is_whitespace)
    });
    let last_is = || sentence.rfind(" is ").map(|i| i + 4);
    at(answered.or(shared).or_else(last_is)?)
}

/// The subject: what stands in the prompt where the question about an alias has the alias.
fn subject(prompt: &str, aliases: &[Probe]) -> Option<String> {
    aliases.iter().find_map(|probe| {
        let same = |a: &mut dyn Iterator<Item = char>, b: &mut dyn Iterator<Item = char>| {
            a.zip(b).take_while(|(a, b)| a == b).count()
        };
        let (one, other): (Vec<char>, Vec<char>) =
            (prompt.chars().collect(), probe.prompt.trim_end().chars().collect());
        let mut ahead = same(&mut one.iter().copied(), &mut other.iter().copied());
        let longest = one.len().min(other.len()) - ahead;
        let mut behind = same(&mut one.iter().rev().copied(), &mut other.iter().rev().copied()).min(longest);
        // A name does not begin or end within a word.
        while ahead > 0 && one[ahead - 1].is_alphanumeric() {
            ahead -= 1;
        }
        while behind > 0 && one[one.len() - behind].is_alphanumeric() {
            behind -= 1;
        }
        let name: String = one.get(ahead..one.len() - behind)?.iter().collect();
        let name = name.trim();
        (!name.is_empty()).then(|| name.to_owned())
    })
}
