//! What edits do to a model as a whole, in words.

use std::collections::BTreeSet;

use super::metric;
use super::summary::{Ability, Change, Summary};
use crate::results::SuiteInfo;
use crate::run::Mode;

/// What the numbers are, in words.
pub(super) const ABOUT: &str = "What edits do to the rest, before → after: perplexity of a fixed text (lower is \
    better; geometric mean), and accuracy on suites of general ability, in percent, with the change in points. Means \
    over the edited models that were measured, with 95 % intervals where these are several (1,000 bootstrap resamples \
    of the models; what chance there is in a suite’s questions is not in them).";

/// Something measured of a model as a whole, in words.
pub(super) struct Whole {
    pub(super) before: String,
    pub(super) after: String,
    /// 95 % interval of `after`, where several models were measured.
    pub(super) range: Option<String>,
    pub(super) change: String,
    pub(super) worse: bool,
}

/// What was measured of models as a whole.
pub(super) struct Measured<'a> {
    /// What: the text's perplexity, and suites.
    pub(super) columns: Vec<Named>,
    /// How each has changed, for every cell that measured any of them.
    pub(super) rows: Vec<MeasuredRow<'a>>,
}

/// A name, with what it is of.
pub(super) struct Named {
    pub(super) name: String,
    pub(super) about: String,
}

/// A cell's changes, one for each column.
pub(super) struct MeasuredRow<'a> {
    pub(super) cell: &'a Summary,
    /// Of how many edited models they are.
    pub(super) models: String,
    pub(super) changes: Vec<Option<Whole>>,
}

/// A suite as a column: other questions, or another accuracy, are another one. Name, accuracy, number
/// and hash of questions.
type Key<'a> = (&'a str, &'a str, usize, &'a str);

fn key<'a>(name: &'a str, suite: Option<&'a SuiteInfo>) -> Key<'a> {
    suite.map_or((name, "", 0, ""), |s| (name, s.measure.as_str(), s.questions, s.version.as_str()))
}

pub(super) fn measured(cells: &[Summary]) -> Measured<'_> {
    let suites: BTreeSet<Key<'_>> = cells
        .iter()
        .flat_map(|c| c.general.iter().map(|(name, ability)| key(name, ability.suite.as_ref())))
        .collect();
    let perplexity = cells.iter().any(|c| c.perplexity.is_some());
    let row = |cell: &Summary| {
        let first = perplexity.then(|| cell.perplexity.map(of_perplexity));
        let rest = suites.iter().map(|suite| {
            let found = cell.general.get_key_value(suite.0);
            found.filter(|(name, a)| key(name, a.suite.as_ref()) == *suite).map(|(_, a)| of_suite(a))
        });
        first.into_iter().chain(rest).collect::<Vec<_>>()
    };
    let rows = cells.iter().map(|cell| MeasuredRow { cell, models: models(cell), changes: row(cell) });
    let first = perplexity.then(|| Named { name: "perplexity".into(), about: String::new() });
    Measured {
        columns: first.into_iter().chain(suites.iter().map(|suite| named(suite, &suites))).collect(),
        rows: rows.filter(|row| row.changes.iter().any(Option::is_some)).collect(),
    }
}

fn named(suite: &Key<'_>, all: &BTreeSet<Key<'_>>) -> Named {
    let (name, measure, questions, version) = *suite;
    let about = match (measure, questions) {
        ("", _) => String::new(),
        (_, 1) => format!("{measure}, 1 question"),
        _ => format!("{measure}, {questions} questions"),
    };
    let alike = all.iter().filter(|other| (other.0, other.1, other.2) == (name, measure, questions)).count();
    let version =
        if alike > 1 { format!(", version {}", super::table::short(version)) } else { String::new() };
    Named { name: name.into(), about: about + &version }
}

fn of_perplexity(c: Change) -> Whole {
    let change = metric::change(c.before, c.after);
    Whole {
        before: metric::perplexity(c.before),
        after: metric::perplexity(c.after),
        range: c.interval.map(|i| i.map(metric::perplexity).join("–")),
        worse: change.starts_with(['+', '×']),
        change,
    }
}

fn of_suite(Ability { change: c, .. }: &Ability) -> Whole {
    let points = metric::fixed(100.0 * (c.after - c.before), 1).replace('-', "−");
    let sign = if c.after > c.before && points != "0.0" { "+" } else { "" };
    Whole {
        before: metric::shown("accuracy", c.before),
        after: metric::shown("accuracy", c.after),
        range: c.interval.map(|i| metric::range("accuracy", i)),
        worse: points.starts_with('−'),
        change: format!("{sign}{points}"),
    }
}

/// Of how many edited models a cell's numbers are.
fn models(cell: &Summary) -> String {
    let all = cell.perplexity.iter().chain(cell.general.values().map(|a| &a.change));
    let measured = all.map(|change| change.measured).max().unwrap_or(0);
    let s = if measured == 1 { "" } else { "s" };
    match cell.mode {
        // The first edit of every part is measured, as each is a model of its own.
        Mode::Single => format!("{measured} of {} edits, each alone", cell.scored),
        Mode::Batch(_) => format!("{measured} batch{}", if measured == 1 { "" } else { "es" }),
        Mode::Sequential | Mode::Turns(_) => format!("{measured} sequence{s}"),
    }
}
