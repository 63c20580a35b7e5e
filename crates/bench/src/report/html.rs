//! The report as one page. Skeleton, style and script lie beside this file.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::Report;
use super::escape::{html as escape, marked, script};
use super::metric;
use super::plots::{Colours, Figure, costs, frontier, megabytes, sequences};
use super::protocol::{self, Protocol, Words};
use super::records;
use super::summary::{Summary, edits_in_words};
use super::table::{self, Block, Column, Entry, Group, Kind, Row, groups};
use super::whole::{self, Measured, MeasuredRow, Named, Whole, measured};
use crate::run::{Mode, counted};

/// The page.
pub(super) fn page(report: &Report<'_>) -> serde_json::Result<String> {
    let groups = groups(&report.cells);
    let colours = Colours::new(&report.cells);
    let page = Page { report, groups: &groups, colours: &colours };
    let data = script(&serde_json::to_string(&records::document(report))?);
    let sections = [
        ("table", "Scores", page.main()),
        ("frontier", "Frontier", page.frontiers()),
        ("retention", "Retention", page.retention()),
        ("kinds", "By kind", page.blocks(&table::kinds(&groups))),
        ("others", "Further scores", page.blocks(&table::others(&groups))),
        ("model", "The model as a whole", page.model()),
        ("cost", "Cost", page.cost()),
        ("records", "Single records", include_str!("page/records.html").to_owned()),
        ("cells", "What was run", page.cells()),
    ];
    let (mut links, mut main) = (String::new(), String::new());
    for (id, title, body) in sections.iter().filter(|(_, _, body)| !body.is_empty()) {
        put(&mut links, format_args!("<a href=\"#{id}\">{title}</a>\n"));
        put(&mut main, format_args!("<section id=\"{id}\">\n<h2>{title}</h2>\n{body}</section>\n"));
    }
    let title = format!("Knowledge editing: {}", report.run.model.name);
    Ok(fill(include_str!("page/page.html"), |name| match name {
        "title" => escape(&title),
        "style" => include_str!("page/style.css").to_owned(),
        "links" => links.clone(),
        "header" => page.header(),
        "main" => main.clone(),
        "data" => data.clone(),
        _ => include_str!("page/page.js").to_owned(),
    }))
}

/// Puts values where a skeleton names them, in one pass, so that no value is taken for skeleton.
fn fill(skeleton: &str, value: impl Fn(&str) -> String) -> String {
    let mut out = String::new();
    let mut rest = skeleton;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, behind) = after.split_once("}}").unwrap_or((after, ""));
        out.push_str(before);
        out.push_str(&value(name));
        rest = behind;
    }
    out + rest
}

/// Writing to a string cannot fail.
fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(text);
}

struct Page<'a> {
    report: &'a Report<'a>,
    groups: &'a [Group<'a>],
    colours: &'a Colours,
}

impl Page<'_> {
    fn header(&self) -> String {
        let (run, cells) = (self.report.run, &self.report.cells);
        let mut out = String::new();
        put(
            &mut out,
            format_args!(
                "<h1>{}</h1>\n<p class=\"lead\">{} layers, {}, fingerprint <code title=\"{}\">{}</code>; measured with {}.</p>\n",
                escape(&run.model.name),
                run.model.layers,
                escape(&run.model.family),
                escape(&run.model.fingerprint),
                escape(&table::short(&run.model.fingerprint)),
                escape(&run.tool)
            ),
        );
        self.protocols(&mut out);
        let mut notes = vec![];
        let short: Vec<&Summary> = cells.iter().filter(|c| c.done < c.parts).collect();
        if !short.is_empty() {
            notes.push(format!(
                "Not finished, and reported as far as they are: {} of {} cells.",
                short.len(),
                cells.len()
            ));
        }
        for cell in cells {
            if let Some(edits) = cell.collapsed {
                let what =
                    format!("{} on {}: the model had collapsed after {edits} edits.", cell.label(), cell.set);
                notes.push(escape(&what));
            }
        }
        let failed: usize = cells.iter().map(|c| c.failed).sum();
        if failed > 0 {
            let edits = counted(failed, "edit");
            notes.push(format!(
                "{edits} failed with an error. No mean counts them: see the column “records”."
            ));
        }
        if !notes.is_empty() {
            put(
                &mut out,
                format_args!("<ul class=\"notes\">\n<li>{}</li>\n</ul>\n", notes.join("</li>\n<li>")),
            );
        }
        out
    }

    /// What the protocols are, and, folded, what exactly they measure.
    fn protocols(&self, out: &mut String) {
        let words = protocol::words(self.report);
        let list = |out: &mut String, of: &dyn Fn(&Words) -> String| {
            out.push_str("<dl class=\"protocols\">\n");
            for (words, said) in
                words.iter().map(|words| (words, of(words))).filter(|(_, said)| !said.is_empty())
            {
                put(out, format_args!("<div><dt>{}</dt>{said}</div>\n", escape(&words.name)));
            }
            out.push_str("</dl>\n");
        };
        let entry = |said: &str| format!("<dd>{}</dd>", marked(said));
        list(out, &|words| words.lead.map(entry).unwrap_or_default());
        if words.iter().any(|words| !words.said.is_empty()) {
            out.push_str("<details>\n<summary>How each number is measured</summary>\n");
            list(out, &|words| words.said.iter().map(|said| entry(said)).collect());
            out.push_str("</details>\n");
        }
    }

    /// The KnowEdit table.
    fn main(&self) -> String {
        let blocks = table::main(self.groups);
        let Some(first) = blocks.first() else { return String::new() };
        let published = self.report.published;
        let mut out = String::from(
            "<p>Means over the records scored, with 95 % intervals below them (1,000 bootstrap resamples of the \
             records; where all score the same it has no width, which is not certainty). \
             n: of how many records a score is, where these are fewer than the row’s. <mark>Marked</mark>: the best of a \
             column after all edits, among rows over the same records; none where all are alike, or only half of the rows are over the same. A method’s name leads to its records.</p>\n",
        );
        let referenced = blocks.iter().any(|b| !b.references.is_empty());
        if referenced {
            put(
                &mut out,
                format_args!(
                    "<p><label><input type=\"checkbox\" id=\"published\" checked> Show published numbers</label> \
                     <span class=\"muted\">in italics, for {}: {}. {}</span></p>\n",
                    escape(&published.model),
                    escape(&published.source),
                    escape(&published.note)
                ),
            );
        }
        out.push_str("<div class=\"scroll tall\"><table class=\"scores\" id=\"main-table\">\n");
        head(&mut out, &first.columns);
        for block in &blocks {
            let width = 2 + block.columns.len();
            put(
                &mut out,
                format_args!(
                    "<tbody>\n<tr class=\"block\"><th colspan=\"{width}\" scope=\"rowgroup\"><span>{} <small>{}</small></span></th></tr>\n",
                    escape(&block.title),
                    escape(&block.about)
                ),
            );
            block.rows.iter().for_each(|row| self.row(&mut out, &block.columns, row));
            out.push_str("</tbody>\n");
            self.references(&mut out, block);
        }
        out.push_str("</table></div>\n");
        mark(&mut out, &blocks);
        left_out(&mut out, &blocks);
        out
    }

    fn references(&self, out: &mut String, block: &Block<'_>) {
        if block.references.is_empty() {
            return;
        }
        let width = 2 + block.columns.len();
        let note = block.note.map_or(String::new(), |n| format!(" {}", marked(n)));
        put(
            out,
            format_args!(
                "<tbody class=\"reference\">\n<tr><th colspan=\"{width}\"><span>Published, {}.{note}</span></th></tr>\n",
                escape(&self.report.published.model)
            ),
        );
        for reference in &block.references {
            put(out, format_args!("<tr><th scope=\"row\">{}</th><td></td>", escape(&reference.method)));
            for (i, entry) in reference.entries.iter().enumerate() {
                let value = entry.as_deref().unwrap_or("");
                put(out, format_args!("<td class=\"num{}\">{value}</td>", edge(&block.columns, i)));
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody>\n");
    }

    fn row(&self, out: &mut String, columns: &[Column], row: &Row<'_>) {
        match row.kind {
            Kind::Unedited => put(
                out,
                format_args!("<tr class=\"unedited\"><th scope=\"row\">unedited model{}</th>", row.mark()),
            ),
            Kind::After | Kind::Immediate => put(
                out,
                format_args!(
                    "<tr><th scope=\"row\">{}{}<small>{}</small></th>",
                    self.link(row.cell),
                    row.mark(),
                    escape(&row.edits())
                ),
            ),
        }
        let short = if row.kind == Kind::Unedited { vec![] } else { row.short() };
        let short = short.iter().map(|s| format!("<em>{s}</em>")).collect::<String>();
        put(out, format_args!("<td class=\"num\">{}{short}</td>", row.scored()));
        for (i, entry) in row.entries.iter().enumerate() {
            put(out, format_args!("{}", number(entry.as_ref(), edge(columns, i))));
        }
        out.push_str("</tr>\n");
    }

    /// A method's name, which leads to its records, with its mark in the plots.
    fn link(&self, cell: &Summary) -> String {
        let mark = match cell.mode {
            Mode::Single => "●",
            Mode::Batch(_) => "■",
            Mode::Sequential | Mode::Turns(_) => "▲",
        };
        format!(
            "<a href=\"#records\" data-cell=\"{}\"><span class=\"dot c{}\" aria-hidden=\"true\">{mark}</span>{}</a>",
            escape(&cell.id),
            self.colours.of(cell),
            escape(&cell.method)
        )
    }

    /// Tables with columns of their own.
    fn blocks(&self, blocks: &[Block<'_>]) -> String {
        let mut out = String::new();
        for block in blocks {
            put(
                &mut out,
                format_args!(
                    "<h3>{}</h3>\n<div class=\"scroll\"><table class=\"scores\">\n",
                    escape(&block.title)
                ),
            );
            head(&mut out, &block.columns);
            out.push_str("<tbody>\n");
            block.rows.iter().for_each(|row| self.row(&mut out, &block.columns, row));
            out.push_str("</tbody>\n</table></div>\n");
            mark(&mut out, std::slice::from_ref(block));
        }
        out
    }

    fn frontiers(&self) -> String {
        let drawn: Vec<(&str, Vec<Figure>)> = self
            .groups
            .iter()
            .map(|group| {
                let of = |protocol: Protocol| {
                    let svg = frontier(group, protocol, self.colours)?;
                    Some(Figure { caption: protocol.name().into(), svg })
                };
                (group.title.as_str(), Protocol::ALL.into_iter().filter_map(of).collect::<Vec<_>>())
            })
            .filter(|(_, figures)| !figures.is_empty())
            .collect();
        if drawn.is_empty() {
            return String::new();
        }
        let mut out = String::from(
            "<p>Up is a fact that holds, right is what stayed as it was. Whiskers are 95 % intervals. The grey \
             line joins what nothing beats in both. ● each alone, ■ at once (×size), ▲ in sequence.</p>\n",
        );
        out.push_str(&panels(&drawn));
        out
    }

    fn retention(&self) -> String {
        let drawn: Vec<(&str, Vec<Figure>)> = self
            .groups
            .iter()
            .map(|group| (group.title.as_str(), sequences(group, self.colours)))
            .filter(|(_, figures)| !figures.is_empty())
            .collect();
        if drawn.is_empty() { String::new() } else { panels(&drawn) }
    }

    fn model(&self) -> String {
        let Measured { columns, rows } = measured(&self.report.cells);
        if rows.is_empty() {
            return String::new();
        }
        let mut out = String::new();
        put(
            &mut out,
            format_args!(
                "<p>{}</p>\n<div class=\"scroll\"><table>\n<thead><tr><th>Data set</th><th>Method</th>\
                 <th>Edited models</th>",
                escape(whole::ABOUT)
            ),
        );
        for Named { name, about } in columns {
            let (name, about) = (escape(&name), escape(&about));
            put(&mut out, format_args!("<th class=\"num\">{name}<small>{about}</small></th>"));
        }
        out.push_str("</tr></thead>\n<tbody>\n");
        for MeasuredRow { cell, models, changes } in rows {
            self.names(&mut out, cell);
            put(&mut out, format_args!("<td>{models}</td>"));
            changes.iter().for_each(|change| whole_number(&mut out, change.as_ref()));
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody></table></div>\n");
        out
    }

    /// The start of a row of a table over all data sets.
    fn names(&self, out: &mut String, cell: &Summary) {
        put(
            out,
            format_args!(
                "<tr><td>{}</td><th scope=\"row\">{}<small>{}</small></th>",
                escape(&cell.set),
                self.link(cell),
                escape(&edits_in_words(cell))
            ),
        );
    }

    fn cost(&self) -> String {
        let figures = costs(&self.report.cells, self.colours);
        if figures.is_empty() {
            return String::new();
        }
        let mut out = panel(&figures);
        out.push_str(
            "<details><summary>By data set</summary>\n<div class=\"scroll\"><table>\n<thead><tr><th>Data set</th>\
             <th>Method</th><th class=\"num\">Edits</th><th class=\"num\">s per edit</th><th class=\"num\">s scoring</th>\
             <th class=\"num\">s unedited model</th><th class=\"num\">Memory at most, editing</th>\
             <th class=\"num\">Memory at most</th></tr></thead>\n<tbody>\n",
        );
        for (cell, cost) in self.report.cells.iter().filter_map(|c| Some((c, c.cost?))) {
            self.names(&mut out, cell);
            let numbers = [
                cost.edits.to_string(),
                cost.seconds_per_edit.map_or("–".into(), metric::seconds),
                metric::seconds(cost.score_seconds),
                metric::seconds(cost.baseline_seconds),
                cost.edit_peak_memory_bytes.map_or("–".into(), megabytes),
                megabytes(cost.peak_memory_bytes),
            ];
            let cells = numbers.map(|n| format!("<td class=\"num\">{n}</td>")).concat();
            put(&mut out, format_args!("{cells}</tr>\n"));
        }
        out.push_str("</tbody></table></div></details>\n");
        out
    }

    fn cells(&self) -> String {
        let mut out = String::from("<div class=\"cells\">\n");
        for cell in &self.report.cells {
            let settings = serde_json::to_string_pretty(&cell.settings).unwrap_or_default();
            put(
                &mut out,
                format_args!(
                    "<details><summary>{} <span class=\"muted\">on {}, {} records, seed {}</span></summary>\n\
                     <p>{}: {}, git blob <code>{}</code>, {} records left out; cell <code>{}</code>, {} of {} parts.</p>\n\
                     <pre>{}</pre></details>\n",
                    escape(&cell.label()),
                    escape(&cell.set),
                    cell.records,
                    cell.seed,
                    escape(&cell.data.name),
                    escape(cell.data.form.name()),
                    escape(&cell.data.version),
                    cell.data.skipped.len(),
                    escape(&cell.id),
                    cell.done,
                    cell.parts,
                    escape(&settings)
                ),
            );
        }
        out.push_str("</div>\n");
        out
    }
}

/// What the mark behind a method's name means.
fn mark(out: &mut String, blocks: &[Block<'_>]) {
    let words: BTreeSet<&String> = blocks.iter().filter_map(|b| b.mark.as_ref()).collect();
    for words in words {
        put(out, format_args!("<p class=\"muted\">{}.</p>\n", marked(words)));
    }
}

/// Which records were left out, by data set, in a fold.
fn left_out(out: &mut String, blocks: &[Block<'_>]) {
    if blocks.iter().all(|b| b.skipped.is_empty()) {
        return;
    }
    out.push_str("<details><summary>Records left out</summary>\n");
    for block in blocks.iter().filter(|b| !b.skipped.is_empty()) {
        let (named, more) = table::left_out(block.skipped);
        let count = block.skipped.len();
        put(out, format_args!("<h3>{} <small>{count}</small></h3>\n<ul>\n", escape(&block.title)));
        for text in named.iter().chain(&more) {
            put(out, format_args!("<li>{}</li>\n", escape(text)));
        }
        out.push_str("</ul>\n");
    }
    out.push_str("</details>\n");
}

/// Figures by data set, one data set at a time where there is a script.
fn panels(drawn: &[(&str, Vec<Figure>)]) -> String {
    let mut out = String::from("<div class=\"panels\">\n");
    for (title, figures) in drawn {
        put(
            &mut out,
            format_args!("<div class=\"panel\" data-title=\"{0}\">\n<h3>{0}</h3>\n", escape(title)),
        );
        out.push_str(&panel(figures));
        out.push_str("</div>\n");
    }
    out.push_str("</div>\n");
    out
}

fn panel(figures: &[Figure]) -> String {
    let mut out = String::from("<div class=\"figures\">\n");
    for figure in figures {
        let caption = escape(&figure.caption);
        put(&mut out, format_args!("<figure><figcaption>{caption}</figcaption>\n{}</figure>\n", figure.svg));
    }
    out.push_str("</div>\n");
    out
}

/// Protocols over the names of scores.
fn head(out: &mut String, columns: &[Column]) {
    out.push_str("<thead>\n<tr><th rowspan=\"2\">Method</th><th rowspan=\"2\" class=\"num\">Records</th>");
    for protocol in Protocol::ALL {
        let count = columns.iter().filter(|c| c.protocol == protocol).count();
        if count > 0 {
            put(
                out,
                format_args!(
                    "<th class=\"protocol first\" colspan=\"{count}\"><span>{}</span></th>",
                    protocol.name()
                ),
            );
        }
    }
    out.push_str("</tr>\n<tr>");
    for (i, Column { name, .. }) in columns.iter().enumerate() {
        let over = metric::parent(name).map(|over| metric::title(over).to_lowercase());
        let over = over.map_or(String::new(), |over| format!("<small>{}</small>", escape(&over)));
        let title = escape(&metric::title(name));
        let unit = metric::unit_in_words(name);
        put(
            out,
            format_args!("<th class=\"num{}\">{over}{title}<small>{unit}</small></th>", edge(columns, i)),
        );
    }
    out.push_str("</tr>\n</thead>\n");
}

/// A line to the left of a protocol's first column.
fn edge(columns: &[Column], i: usize) -> &'static str {
    let first = i == 0 || columns[i - 1].protocol != columns[i].protocol;
    if first { " first" } else { "" }
}

fn number(entry: Option<&Entry>, edge: &str) -> String {
    let Some(entry) = entry else {
        return format!("<td class=\"num{edge}\"><span class=\"muted\">–</span></td>");
    };
    let range = entry.range.as_ref().map_or(String::new(), |range| format!("<small>{range}</small>"));
    let fewer = entry.fewer.map_or(String::new(), |n| format!("<small>(n={n})</small>"));
    let value = if entry.best { format!("<mark>{}</mark>", entry.shown) } else { entry.shown.clone() };
    format!("<td class=\"num{edge}\">{value}{range}{fewer}</td>")
}

/// A number of models as a whole, before and after.
fn whole_number(out: &mut String, change: Option<&Whole>) {
    let Some(Whole { before, after, range, change, worse }) = change else {
        out.push_str("<td class=\"num\"><span class=\"muted\">–</span></td>");
        return;
    };
    let range = range.as_ref().map_or(String::new(), |range| format!("<small>{range}</small>"));
    let class = if *worse { " class=\"worse\"" } else { "" };
    put(
        out,
        format_args!(
            "<td class=\"num\"><span class=\"muted\">{before} →</span> {after}{range}<small{class}>{change}</small></td>"
        ),
    );
}
