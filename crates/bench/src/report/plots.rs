//! What is drawn.

use std::collections::{BTreeMap, BTreeSet};

use super::metric;
use super::protocol::Protocol;
use super::summary::{Point, Spent, Statistic, Stretch, Summary};
use super::svg::{Axis, Bar, COLOURS, Plot, Shape, bars};
use super::table::{Group, MARK};
use super::variant;
use crate::run::Mode;

/// A colour for each method, the same all over the page.
pub(super) struct Colours(BTreeMap<String, usize>);

impl Colours {
    pub(super) fn new(cells: &[Summary]) -> Self {
        let methods: std::collections::BTreeSet<&String> = cells.iter().map(|c| &c.method).collect();
        Self(methods.into_iter().enumerate().map(|(i, method)| (method.clone(), i % COLOURS)).collect())
    }

    pub(super) fn of(&self, cell: &Summary) -> usize {
        self.0.get(&cell.method).copied().unwrap_or(0)
    }
}

fn shape(mode: Mode) -> Shape {
    match mode {
        Mode::Single => Shape::Circle,
        Mode::Batch(_) => Shape::Square,
        Mode::Sequential | Mode::Turns(_) => Shape::Triangle,
    }
}

/// Letters that a variant may have in a plot.
const LETTERS: usize = 20;

/// A name short enough to stand in a plot, where shapes tell the modes apart.
fn name(cell: &Summary) -> String {
    let size = match cell.mode {
        Mode::Batch(size) | Mode::Turns(size) => format!(" ×{size}"),
        Mode::Single | Mode::Sequential => String::new(),
    };
    // What is too long for a plot stands in the list of cells, under the hash.
    let variant = match cell.variant.as_str() {
        "" => String::new(),
        long if long.chars().count() > LETTERS => format!(" ({})", variant::hash(&cell.id)),
        short => format!(" ({short})"),
    };
    format!("{}{size}{variant}", cell.method)
}

/// The same in a plot of compat's scores, marked where these are by functions of their own.
fn name_in_compat(cell: &Summary) -> String {
    name(cell) + if cell.in_context().is_some() { MARK } else { "" }
}

const PERCENT: [f64; 2] = [0.0, 100.0];

fn ends(s: &Statistic) -> [f64; 2] {
    s.interval.unwrap_or([s.mean, s.mean]).map(|v| 100.0 * v)
}

/// Edit success against locality; the grey line joins what nothing else beats in both. As in the table,
/// scores over other records than most are over do not compete, nor do those by the peer's functions for
/// prompts, which are marked.
pub(super) fn frontier(group: &Group<'_>, protocol: Protocol, colours: &Colours) -> Option<String> {
    let score = |cell: &Summary, name: &str| protocol.of(&cell.after).get(name).copied();
    let of = |cell: &&'_ Summary| Some((score(cell, "locality")?, score(cell, "edit")?));
    let points: Vec<(&Summary, Statistic, Statistic)> =
        group.cells.iter().filter_map(|c| of(c).map(|(x, y)| (*c, x, y))).collect();
    if points.is_empty() {
        return None;
    }
    let axis = |label: &str, all: Vec<[f64; 2]>| Axis::linear(label, all.into_iter().flatten(), PERCENT);
    let mut plot = Plot::of_points(
        axis("locality, %", points.iter().map(|p| ends(&p.1)).collect()),
        axis("edit success, %", points.iter().map(|p| ends(&p.2)).collect()),
    );
    let at = |p: &(&Summary, Statistic, Statistic)| (100.0 * p.1.mean, 100.0 * p.2.mean);
    let is_other = |cell: &Summary| protocol == Protocol::Compat && cell.in_context().is_some();
    let over = |p: &(&Summary, Statistic, Statistic)| [p.1, p.2].map(|score| score.over);
    let those = |wanted| points.iter().filter(move |p| !is_other(p.0) && over(p) == wanted);
    let usual = points.iter().max_by_key(|p| (those(over(p)).count(), p.1.count.min(p.2.count))).map(over);
    let competing = || usual.into_iter().flat_map(those).map(at);
    let beaten = |p: (f64, f64)| competing().any(|q| q.0 >= p.0 && q.1 >= p.1 && q != p);
    let mut edge: Vec<(f64, f64)> = competing().filter(|p| !beaten(*p)).collect();
    edge.sort_by(|a, b| a.0.total_cmp(&b.0));
    if edge.len() > 1 {
        plot.line("edge", 0, &edge);
    }
    for p in &points {
        let whiskers = [p.1, p.2].map(|s| s.interval.map(|i| i.map(|v| 100.0 * v)));
        let words = format!(
            "{}, {}: edit success {}, locality {}",
            p.0.label(),
            protocol.name(),
            metric::shown("edit", p.2.mean),
            metric::shown("locality", p.1.mean)
        );
        plot.point(colours.of(p.0), shape(p.0.mode), at(p), whiskers, &words);
    }
    for p in &points {
        let label = if protocol == Protocol::Compat { name_in_compat(p.0) } else { name(p.0) };
        plot.label(colours.of(p.0), at(p), &label);
    }
    let title = format!("{}, {}: edit success against locality", group.title, protocol.name());
    Some(plot.finish(&title))
}

/// A drawing with what it shows.
pub(super) struct Figure {
    pub(super) caption: String,
    pub(super) svg: String,
}

/// What sequences have measured on the way.
pub(super) fn sequences(group: &Group<'_>, colours: &Colours) -> Vec<Figure> {
    let cells: Vec<&Summary> = group.cells.iter().copied().filter(|c| !c.retention.is_empty()).collect();
    let curves = |of: fn(&Point) -> Option<f64>| -> Vec<Curve<'_>> {
        let points =
            |c: &Summary| c.retention.iter().filter_map(|r| Some((r.edits as f64, of(r)?))).collect();
        cells.iter().map(|c| (*c, points(c))).filter(|(_, points): &Curve<'_>| !points.is_empty()).collect()
    };
    let mut out = vec![];
    let success = curves(|r| Some(100.0 * r.compat.edit?));
    if !success.is_empty() {
        let values = success.iter().flat_map(|(_, points)| points.iter().map(|p| p.1));
        let y = Axis::linear("edit success so far, %, compat", values, PERCENT);
        let caption = "Mean edit success of all edits made so far (compat)";
        out.push(Figure {
            caption: caption.into(),
            svg: lines(&success, y, colours, caption, name_in_compat),
        });
    }
    let perplexity = curves(|r| r.perplexity);
    if !perplexity.is_empty() {
        let values = perplexity.iter().flat_map(|(_, points)| points.iter().map(|p| p.1));
        let caption = "Perplexity of the text, on a logarithmic scale";
        out.push(Figure {
            caption: caption.into(),
            svg: lines(&perplexity, Axis::log("perplexity", values), colours, caption, name),
        });
    }
    out.extend(stretches(group, colours));
    out
}

type Curve<'a> = (&'a Summary, Vec<(f64, f64)>);

fn lines(
    curves: &[Curve<'_>],
    y: Axis,
    colours: &Colours,
    what: &str,
    name: fn(&Summary) -> String,
) -> String {
    let names: Vec<String> = curves.iter().map(|(cell, _)| name(cell)).collect();
    let across = curves.iter().flat_map(|(_, points)| points.iter().map(|p| p.0));
    let x = Axis::linear("edits made", across, [0.0, f64::INFINITY]);
    let mut plot = Plot::of_lines(x, y, names.iter().map(String::as_str));
    for ((cell, points), name) in curves.iter().zip(&names) {
        let colour = colours.of(cell);
        plot.line("line", colour, points);
        for point in points {
            let words = format!("{name}, {} edits: {}", point.0, metric::perplexity(point.1));
            plot.point(colour, Shape::Circle, *point, [None, None], &words);
        }
        if let Some(last) = points.last() {
            plot.end(colour, *last, name);
        }
    }
    plot.finish(what)
}

/// Edit success by when the edit was made, with its interval.
fn stretches(group: &Group<'_>, colours: &Colours) -> Option<Figure> {
    let of = |s: &Stretch| Some(((s.from + s.to) as f64 / 2.0, s.compat.after?));
    let curves: Vec<(&Summary, Vec<(f64, Statistic)>)> = group
        .cells
        .iter()
        .map(|c| (*c, c.stretches.iter().filter_map(of).collect::<Vec<_>>()))
        .filter(|(_, points)| points.len() > 1)
        .collect();
    if curves.is_empty() {
        return None;
    }
    let all = || curves.iter().flat_map(|(_, points)| points);
    let names: Vec<String> = curves.iter().map(|(cell, _)| name_in_compat(cell)).collect();
    let mut plot = Plot::of_lines(
        Axis::linear("number of the edit", all().map(|p| p.0), [0.0, f64::INFINITY]),
        Axis::linear("edit success at the end, %, compat", all().flat_map(|p| ends(&p.1)), PERCENT),
        names.iter().map(String::as_str),
    );
    for ((cell, points), name) in curves.iter().zip(&names) {
        let colour = colours.of(cell);
        let band: Vec<(f64, f64, f64)> = points
            .iter()
            .map(|(x, s)| {
                let [low, high] = ends(s);
                (*x, low, high)
            })
            .collect();
        plot.band(colour, &band);
        let line: Vec<(f64, f64)> = points.iter().map(|(x, s)| (*x, 100.0 * s.mean)).collect();
        plot.line("line", colour, &line);
        if let Some(last) = line.last() {
            plot.end(colour, *last, name);
        }
    }
    let caption = "Edit success after all edits, by when the edit was made, with 95 % intervals (compat)";
    Some(Figure { caption: caption.into(), svg: plot.finish(caption) })
}

/// Seconds and memory by method and mode, over the data sets that all have, so that bars compare.
pub(super) fn costs(cells: &[Summary], colours: &Colours) -> Vec<Figure> {
    let mut by_label: BTreeMap<String, BTreeMap<&str, (&Summary, Spent)>> = BTreeMap::new();
    for cell in cells {
        if let Some(cost) = cell.cost.filter(|cost| cost.edits > 0) {
            by_label.entry(cell.label()).or_default().insert(&cell.set, (cell, cost));
        }
    }
    let Shared { over, words } = shared(by_label.values().map(|of| of.keys().copied().collect()).collect());
    // The same weight for each data set, however many of its records are done.
    let bar = |(label, of): (&String, &BTreeMap<&str, (&Summary, Spent)>)| {
        let those = || of.iter().filter(|(set, _)| over.contains(*set)).map(|(_, (_, cost))| cost);
        let seconds = those().map(|cost| cost.edit_seconds / cost.edits as f64).sum::<f64>();
        // Of editing where that is known of all; what scoring takes is the same for all methods.
        let editing = those().map(|cost| cost.edit_peak_memory_bytes).collect::<Option<Vec<u64>>>();
        let memory =
            [editing.and_then(|all| all.into_iter().max()), those().map(|cost| cost.peak_memory_bytes).max()];
        let colour = of.values().next().map_or(0, |(cell, _)| colours.of(cell));
        (label.clone(), colour, seconds / those().count() as f64, memory)
    };
    let all: Vec<_> = by_label.iter().map(bar).collect();
    if all.is_empty() {
        return vec![];
    }
    let seconds = all.iter().map(|(name, colour, seconds, _)| {
        let shown = format!("{} s", metric::seconds(*seconds));
        Bar { colour: *colour, name: name.clone(), value: *seconds, shown }
    });
    let of_editing = all.iter().all(|(.., memory)| memory[0].is_some());
    let memory = all.iter().map(|(name, colour, _, [editing, most])| {
        let bytes = if of_editing { editing } else { most }.unwrap_or(0);
        Bar { colour: *colour, name: name.clone(), value: bytes as f64, shown: megabytes(bytes) }
    });
    let while_what = if of_editing { "while editing" } else { "scoring included" };
    let figures = [
        (format!("Seconds per edit, statistics of the model included, {words}"), seconds.collect()),
        (format!("Memory of the process at most, {while_what}, {words}"), memory.collect::<Vec<Bar>>()),
    ];
    figures.into_iter().map(|(caption, rows)| Figure { svg: bars(&caption, &rows), caption }).collect()
}

/// Data sets that bars are over.
struct Shared<'a> {
    over: BTreeSet<&'a str>,
    words: String,
}

/// The data sets that every bar has, with what is said of them; where they share none, each has its own.
fn shared(of_bars: Vec<BTreeSet<&str>>) -> Shared<'_> {
    let all: BTreeSet<&str> = of_bars.iter().flatten().copied().collect();
    let common = of_bars.into_iter().reduce(|a, b| &a & &b).unwrap_or_default();
    match common.len() {
        0 => Shared { over: all, words: "each over its own data sets".to_owned() },
        n if n == all.len() => Shared { over: all, words: "over all data sets".to_owned() },
        _ => {
            let names = common.iter().copied().collect::<Vec<_>>().join(", ");
            Shared { over: common, words: format!("over {names}, which all have") }
        }
    }
}

pub(super) fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes / 1_000_000)
}
