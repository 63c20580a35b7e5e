//! The report as Markdown.

use std::fmt::Write;

use super::Report;
use super::escape::markdown as escape;
use super::metric;
use super::plots::megabytes;
use super::protocol;
use super::summary::Summary;
use super::table::{self, Block, Kind, groups};
use super::whole::{self, Measured, MeasuredRow, Named, Whole, measured};

/// The KnowEdit table; with what others have `published`, where that is wanted.
pub(super) fn main_table(report: &Report<'_>, published: bool) -> String {
    let mut out = String::new();
    for mut own in table::main(&groups(&report.cells)) {
        if !published {
            own.references.clear();
        }
        block(&mut out, report, &own);
    }
    out.push_str(INTERVALS);
    out
}

const INTERVALS: &str = "In brackets: 95 % intervals of the mean (1,000 bootstrap resamples of the records), and how many \
                         records a score is of where these are fewer than the row's. Bold: the best of the column after \
                         all edits, among rows over the same records; none where all are alike, or only half of the rows are over the same.\n";

/// The whole report.
pub(super) fn document(report: &Report<'_>) -> String {
    let model = &report.run.model;
    let mut out = format!("# Knowledge editing: {}\n\n", escape(&model.name));
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "{} layers, {}, fingerprint {}; measured with {}.\n",
        model.layers,
        escape(&model.family),
        escape(&model.fingerprint),
        escape(&report.run.tool)
    );
    for words in protocol::words(report) {
        let _ = writeln!(out, "- **{}**: {}", escape(&words.name), escape(&words.paragraph()));
    }
    let groups = groups(&report.cells);
    out.push_str("\n## The KnowEdit table\n\n");
    out.push_str(&main_table(report, true));
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
        let is_part = metric::parent(&c.name).is_some();
        let name = if is_part { c.name.clone() } else { metric::title(&c.name).to_lowercase() };
        format!("{}, {}", escape(&name), c.protocol.name())
    }));
    rule(out, &head, 2);
    for row in &block.rows {
        let method = match row.kind {
            Kind::Unedited => format!("*unedited*{}", row.mark()),
            _ => format!("{}{}", escape(&row.cell.method), row.mark()),
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
                let notes: Vec<String> =
                    e.range.iter().cloned().chain(e.fewer.map(|n| format!("n={n}"))).collect();
                if notes.is_empty() { value } else { format!("{value} ({})", notes.join("; ")) }
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
    if let Some(mark) = &block.mark {
        let _ = writeln!(out, "{}\n", escape(mark));
    }
    let (named, more) = table::left_out(block.skipped);
    if !named.is_empty() {
        let all: Vec<String> = named.into_iter().chain(more).map(|text| escape(&text)).collect();
        let _ = writeln!(out, "Left out: {}.\n", all.join("; "));
    }
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
            let success = point.compat.edit.map_or("–".into(), |x| metric::shown("edit", x));
            let edits = point.edits.to_string();
            line(out, &[escape(&cell.set), escape(&cell.label()), edits, success, perplexity]);
        }
    }
    out.push('\n');
    for cell in with {
        if let Some(edits) = cell.collapsed {
            let (data, label) = (escape(&cell.set), escape(&cell.label()));
            let _ = writeln!(out, "- **{label}** on {data}: the model had collapsed after {edits} edits.");
        }
    }
}

fn model_as_a_whole(out: &mut String, cells: &[Summary]) {
    let Measured { columns, rows } = measured(cells);
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n## The model as a whole\n\n{}\n", whole::ABOUT);
    let title = |Named { name, about }: &Named| match about.as_str() {
        "" => escape(name),
        about => format!("{} ({})", escape(name), escape(about)),
    };
    let head = ["data set", "method", "edited models"].map(str::to_owned);
    rule(out, &head.into_iter().chain(columns.iter().map(title)).collect::<Vec<_>>(), 3);
    for MeasuredRow { cell, models, changes } in rows {
        let change = |c: &Option<Whole>| {
            c.as_ref().map_or("–".into(), |w| {
                let range = w.range.as_ref().map_or(String::new(), |range| format!("{range}; "));
                format!("{} → {} ({range}{})", w.before, w.after, w.change)
            })
        };
        let names = [escape(&cell.set), escape(&cell.label()), models];
        line(out, &names.into_iter().chain(changes.iter().map(change)).collect::<Vec<_>>());
    }
}

fn costs(out: &mut String, cells: &[Summary]) {
    out.push_str("\n## Cost\n\n");
    let head = [
        "data set",
        "method",
        "edits",
        "s per edit",
        "s scoring",
        "s unedited model",
        "memory at most, editing",
        "memory at most",
    ];
    rule(out, &head.map(str::to_owned), 2);
    for (cell, cost) in cells.iter().filter_map(|c| Some((c, c.cost?))) {
        line(
            out,
            &[
                escape(&cell.set),
                escape(&cell.label()),
                cost.edits.to_string(),
                cost.seconds_per_edit.map_or("–".into(), metric::seconds),
                metric::seconds(cost.score_seconds),
                metric::seconds(cost.baseline_seconds),
                cost.edit_peak_memory_bytes.map_or("–".into(), megabytes),
                megabytes(cost.peak_memory_bytes),
            ],
        );
    }
}
