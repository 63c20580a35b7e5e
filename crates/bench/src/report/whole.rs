//! What edits do to a model as a whole, in words.

use std::collections::BTreeSet;

use super::metric;
use super::summary::{Change, Summary};

/// Something measured of a model as a whole, in words.
pub(super) struct Whole {
    pub(super) before: String,
    pub(super) after: String,
    pub(super) change: String,
    pub(super) worse: bool,
}

/// What was measured of models as a whole.
pub(super) struct Measured<'a> {
    /// What: the text's perplexity, and suites.
    pub(super) names: Vec<&'a str>,
    /// How each has changed, for every cell that measured any of them.
    pub(super) rows: Vec<(&'a Summary, Vec<Option<Whole>>)>,
}

pub(super) fn measured<'a>(cells: &'a [Summary]) -> Measured<'a> {
    let suites: BTreeSet<&str> = cells.iter().flat_map(|c| c.general.keys().map(String::as_str)).collect();
    let perplexity = cells.iter().any(|c| c.perplexity.is_some());
    let of_perplexity = |c: Change| Whole {
        before: metric::perplexity(c.before),
        after: metric::perplexity(c.after),
        change: metric::change(c.before, c.after),
        worse: c.after > c.before,
    };
    let of_suite = |c: &Change| {
        let points = metric::fixed(100.0 * (c.after - c.before), 1).replace('-', "−");
        let sign = if c.after > c.before && points != "0.0" { "+" } else { "" };
        Whole {
            before: metric::shown("accuracy", c.before),
            after: metric::shown("accuracy", c.after),
            worse: points.starts_with('−'),
            change: format!("{sign}{points}"),
        }
    };
    let row = |cell: &'a Summary| {
        let Summary { perplexity: measured, general, .. } = cell;
        let first = perplexity.then(|| measured.map(of_perplexity));
        let rest = suites.iter().map(|name| general.get(*name).map(of_suite));
        (cell, first.into_iter().chain(rest).collect::<Vec<_>>())
    };
    let rows = cells.iter().map(row).filter(|(_, all)| all.iter().any(Option::is_some)).collect();
    let names = perplexity.then_some("perplexity").into_iter().chain(suites.iter().copied()).collect();
    Measured { names, rows }
}
