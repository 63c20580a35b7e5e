//! The report as Markdown.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::Report;
use super::escape::markdown as escape;
use super::metric;
use super::plots::megabytes;
use super::summary::{Change, Summary};
use super::table::{self, Block, Kind, groups};

/// The KnowEdit table.
pub(super) fn main_table(report: &Report<'_>) -> String {
    let mut out = String::new();
    table::main(&groups(&report.cells)).iter().for_each(|b| block(&mut out, report, b));
    out.push_str(INTERVALS);
    out
}

const INTERVALS: &str = "In brackets: 95 % intervals of the mean (1,000 bootstrap resamples of the records). Bold: the \
                         best of the column after all edits.\n";

/// The whole report.
pub(super) fn document(report: &Report<'_>) -> String {
    let model = &report.run.model;
    let mut out = format!("# Knowledge editing: {}\n\n", escape(&model.name));
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "Model `{}` ({}, {} layers), measured with {}.\n",
        model.fingerprint,
        escape(&model.family),
        model.layers,
        escape(&report.run.tool)
    );
    for (name, words) in super::html::protocols(report) {
        let _ = writeln!(out, "- **{}**: {}", escape(&name), escape(&words));
    }
    let groups = groups(&report.cells);
    out.push_str("\n## The KnowEdit table\n\n");
    out.push_str(&main_table(report));
    for (title, blocks) in
        [("Further scores", table::others(&groups)), ("By kind of probe", table::kinds(&groups))]
    {
        if !blocks.is_empty() {
            let _ = writeln!(out, "\n## {title}\n");
            blocks.iter().for_each(|b| block(&mut out, report, b));
        }
    }
    sequences(&mut out, &report.cells);
    model_as_a_whole(&mut out, &report.cells);
    costs(&mut out, &report.cells);
    out
}

fn block(out: &mut String, report: &Report<'_>, block: &Block<'_>) {
    let _ = writeln!(out, "### {}\n\n{}\n", escape(&block.title), escape(&block.about));
    let mut head = vec!["method".to_owned(), "edits".into(), "records".into()];
    // A table of its own needs no columns that are there for other data sets.
    let used: Vec<usize> =
        (0..block.columns.len()).filter(|&i| block.rows.iter().any(|row| row.entries[i].is_some())).collect();
    head.extend(used.iter().map(|&i| &block.columns[i]).map(|c| {
        let name = if c.name.contains('/') { c.name.clone() } else { metric::title(&c.name).to_lowercase() };
        format!("{}, {}", escape(&name), c.protocol.name())
    }));
    rule(out, &head, 2);
    for row in &block.rows {
        let method = match row.kind {
            Kind::Unedited => "*unedited*".to_owned(),
            _ => escape(&row.cell.method),
        };
        let edits = if row.kind == Kind::Unedited { String::new() } else { escape(&row.edits()) };
        let mut records = vec![row.scored()];
        if row.kind != Kind::Unedited {
            records.extend(row.short());
        }
        let mut cells = vec![method, edits, records.join(", ")];
        cells.extend(used.iter().map(|&i| match &row.entries[i] {
            None => "–".to_owned(),
            Some(e) => {
                let value = if e.best { format!("**{}**", e.shown) } else { e.shown.clone() };
                e.range.as_ref().map_or(value.clone(), |range| format!("{value} ({range})"))
            }
        }));
        line(out, &cells);
    }
    for reference in &block.references {
        let mut cells = vec![format!("*{}*", reference.method), "*published*".into(), String::new()];
        cells.extend(
            used.iter().map(|&i| reference.entries[i].as_ref().map_or(String::new(), |v| format!("*{v}*"))),
        );
        line(out, &cells);
    }
    out.push('\n');
    if !block.references.is_empty() {
        let published = report.published;
        let _ = write!(out, "Published: {}, {}. {}", published.model, published.source, published.note);
        let _ = writeln!(out, "{}\n", block.note.map_or(String::new(), |n| format!(" {n}")));
    }
}

fn rule(out: &mut String, head: &[String], texts: usize) {
    line(out, head);
    let rules: Vec<String> =
        (0..head.len()).map(|i| if i < texts { "---".into() } else { "--:".into() }).collect();
    line(out, &rules);
}

fn line(out: &mut String, cells: &[String]) {
    let _ = writeln!(out, "| {} |", cells.join(" | "));
}

fn sequences(out: &mut String, cells: &[Summary]) {
    let with: Vec<&Summary> =
        cells.iter().filter(|c| !c.retention.is_empty() || c.collapsed.is_some()).collect();
    if with.is_empty() {
        return;
    }
    out.push_str("\n## Retention\n\n");
    rule(
        out,
        &["data set", "method", "edits made", "edit success so far, compat", "perplexity"].map(str::to_owned),
        2,
    );
    for cell in &with {
        for point in &cell.retention {
            let perplexity = point.perplexity.map_or("–".into(), metric::perplexity);
            let success = metric::shown("edit", point.edit);
            let edits = point.edits.to_string();
            line(out, &[escape(&cell.data.name), escape(&cell.label()), edits, success, perplexity]);
        }
    }
    out.push('\n');
    for cell in with {
        if let Some(edits) = cell.collapsed {
            let (data, label) = (escape(&cell.data.name), escape(&cell.label()));
            let _ = writeln!(out, "- **{label}** on {data}: the model had collapsed after {edits} edits.");
        }
    }
}

fn model_as_a_whole(out: &mut String, cells: &[Summary]) {
    let (measured, rows) = whole(cells);
    if rows.is_empty() {
        return;
    }
    out.push_str("\n## The model as a whole\n\n");
    let head =
        ["data set", "method"].map(str::to_owned).into_iter().chain(measured.iter().map(|m| escape(m)));
    rule(out, &head.collect::<Vec<_>>(), 2);
    for (cell, changes) in rows {
        let change = |c: &Option<Whole>| {
            c.as_ref().map_or("–".into(), |w| format!("{} → {} ({})", w.before, w.after, w.change))
        };
        let names = [escape(&cell.data.name), escape(&cell.label())];
        line(out, &names.into_iter().chain(changes.iter().map(change)).collect::<Vec<_>>());
    }
}

/// Something measured of a model as a whole, in words.
pub(super) struct Whole {
    pub(super) before: String,
    pub(super) after: String,
    pub(super) change: String,
    pub(super) worse: bool,
}

/// What was measured of models as a whole, and for each cell that measured any, how each has
/// changed.
pub(super) fn whole<'a>(cells: &'a [Summary]) -> (Vec<&'a str>, Vec<(&'a Summary, Vec<Option<Whole>>)>) {
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
    (names, rows)
}

fn costs(out: &mut String, cells: &[Summary]) {
    out.push_str("\n## Cost\n\n");
    let head =
        ["data set", "method", "edits", "s per edit", "s scoring", "s unedited model", "memory at most"];
    rule(out, &head.map(str::to_owned), 2);
    for (cell, cost) in cells.iter().filter_map(|c| Some((c, c.cost?))) {
        line(
            out,
            &[
                escape(&cell.data.name),
                escape(&cell.label()),
                cost.edits.to_string(),
                cost.seconds_per_edit.map_or("–".into(), metric::seconds),
                metric::seconds(cost.score_seconds),
                metric::seconds(cost.baseline_seconds),
                megabytes(cost.peak_memory_bytes),
            ],
        );
    }
}
