//! Drawings: lines with bands, points with whiskers, bars. Colours are the page's (classes `c0` to
//! `c7`), so that they follow its light and dark.

use std::fmt::Write;

use super::escape::html;
use super::metric::fixed;

/// Colours there are.
pub(super) const COLOURS: usize = 8;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 46.0;
const FONT: f64 = 13.0;
/// Directions in which a label may stand from its point: beside it and above or below it first.
const AROUND: [(f64, f64); 16] = [
    (1.0, 0.0),
    (-1.0, 0.0),
    (0.0, -1.0),
    (0.0, 1.0),
    (1.0, -1.0),
    (1.0, 1.0),
    (-1.0, -1.0),
    (-1.0, 1.0),
    (0.5, -1.0),
    (0.5, 1.0),
    (-0.5, -1.0),
    (-0.5, 1.0),
    (1.0, -0.5),
    (1.0, 0.5),
    (-1.0, -0.5),
    (-1.0, 0.5),
];
/// As far from its point a label may stand before it matters little how much farther.
const NEAR: f64 = 24.0;
/// Width of a letter on average, by the size of the font.
const LETTER: f64 = 0.56;

/// One side of a plot.
pub(super) struct Axis {
    label: String,
    low: f64,
    high: f64,
    /// What values cannot leave, and ticks do not.
    bounds: [f64; 2],
    log: bool,
}

impl Axis {
    /// For values within bounds, with a little space around them.
    pub(super) fn linear(label: &str, values: impl Iterator<Item = f64>, bounds: [f64; 2]) -> Self {
        let (low, high) = ends(values);
        // Values that are all the same should not fill the plot with their last digits.
        let pad = (0.06 * (high - low)).max(0.02 * (bounds[1] - bounds[0]).min(100.0));
        Self { label: label.into(), low: low - pad, high: high + pad, bounds, log: false }
    }

    /// For positive values over orders of magnitude.
    pub(super) fn log(label: &str, values: impl Iterator<Item = f64>) -> Self {
        // The perplexity of a broken model knows no bounds; a plot should.
        let (low, high) = ends(values.map(|v| v.clamp(1e-12, 1e12)));
        let bounds = [f64::MIN_POSITIVE, f64::INFINITY];
        Self { label: label.into(), low: low / 1.15, high: high * 1.15, bounds, log: true }
    }

    /// 0 at the lower end, 1 at the upper.
    fn place(&self, value: f64) -> f64 {
        let of = |v: f64| if self.log { v.max(f64::MIN_POSITIVE).ln() } else { v };
        let (low, high) = (of(self.low), of(self.high));
        if high > low { ((of(value) - low) / (high - low)).clamp(0.0, 1.0) } else { 0.5 }
    }

    fn ticks(&self) -> Vec<(f64, String)> {
        let inside = |v: &f64| *v >= self.low.max(self.bounds[0]) && *v <= self.high.min(self.bounds[1]);
        if self.log {
            let wide = (self.high / self.low).log10() > 2.5;
            let steps: &[f64] = if wide { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let powers = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
            // A handful at most, whatever the range.
            let skip = ((powers.end() - powers.start()) / 6).max(1) as usize;
            let all = powers.step_by(skip).flat_map(|p| steps.iter().map(move |s| s * 10f64.powi(p)));
            return all.filter(inside).map(|v| (v, number(v))).collect();
        }
        let raw = (self.high - self.low).max(f64::MIN_POSITIVE) / 6.0;
        let power = 10f64.powf(raw.log10().floor());
        let step = power * [1.0, 2.0, 5.0, 10.0].into_iter().find(|s| s * power >= raw).unwrap_or(10.0);
        let digits = (-step.log10().floor()).max(0.0) as usize;
        let (from, to) = ((self.low / step).ceil() as i64, (self.high / step).floor() as i64);
        let all = (from..=to).map(|i| i as f64 * step).filter(inside);
        all.map(|v| (v, fixed(v, digits))).collect()
    }
}

fn ends(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let finite = values.filter(|v| v.is_finite());
    let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
    if low <= high { (low, high) } else { (0.0, 1.0) }
}

fn number(value: f64) -> String {
    match value {
        v if v >= 1e9 => format!("{v:.0e}"),
        v if v >= 1e6 => fixed(v / 1e6, 0) + "M",
        v if v >= 1e4 => fixed(v / 1e3, 0) + "k",
        v if v >= 1.0 => fixed(v, 0),
        v => format!("{v}"),
    }
}

/// What a point looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Circle,
    Square,
    Triangle,
}

/// A rectangle: left, top, right, bottom.
type Area = [f64; 4];

fn overlap(a: &Area, b: &Area) -> f64 {
    (a[2].min(b[2]) - a[0].max(b[0])).max(0.0) * (a[3].min(b[3]) - a[1].max(b[1])).max(0.0)
}

/// A plot that is being drawn.
pub(super) struct Plot {
    x: Axis,
    y: Axis,
    /// Where the frame ends; names of lines stand to the right of it.
    right: f64,
    body: String,
    labels: Vec<(f64, f64, usize, String)>,
    ends: Vec<(f64, f64, usize, String)>,
    /// Points, which no label may cover, and whiskers, which it should not.
    points: Vec<Area>,
    whiskers: Vec<Area>,
}

impl Plot {
    /// For points, with their names beside them.
    pub(super) fn of_points(x: Axis, y: Axis) -> Self {
        Self::new(x, y, WIDTH - 14.0)
    }

    /// For lines, with their names to the right.
    pub(super) fn of_lines<'a>(x: Axis, y: Axis, names: impl Iterator<Item = &'a str>) -> Self {
        let widest = names.map(width).fold(0.0, f64::max);
        Self::new(x, y, (WIDTH - widest - 14.0).max(0.5 * WIDTH))
    }

    fn new(x: Axis, y: Axis, right: f64) -> Self {
        let (body, labels, ends) = (String::new(), vec![], vec![]);
        Self { x, y, right, body, labels, ends, points: vec![], whiskers: vec![] }
    }

    fn at(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let across = LEFT + self.x.place(x) * (self.right - LEFT);
        (across, HEIGHT - BOTTOM - self.y.place(y) * (HEIGHT - BOTTOM - TOP))
    }

    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.body.write_fmt(text);
        self.body.push('\n');
    }

    fn path(&self, points: impl Iterator<Item = (f64, f64)>) -> String {
        let points = points.map(|p| self.at(p)).map(|(x, y)| format!("{x:.1},{y:.1}"));
        points.collect::<Vec<_>>().join(" ")
    }

    /// An interval along x: `(x, low, high)`.
    pub(super) fn band(&mut self, colour: usize, points: &[(f64, f64, f64)]) {
        let edge = points.iter().map(|p| (p.0, p.2)).chain(points.iter().rev().map(|p| (p.0, p.1)));
        let path = self.path(edge);
        self.put(format_args!(r#"<polygon class="band c{colour}" points="{path}"/>"#));
    }

    /// A line; `kind` is a class: `line`, or `edge` for a thin grey one.
    pub(super) fn line(&mut self, kind: &str, colour: usize, points: &[(f64, f64)]) {
        let path = self.path(points.iter().copied());
        self.put(format_args!(r#"<polyline class="{kind} c{colour}" points="{path}"/>"#));
    }

    /// A point with whiskers along x and y, and words that show when it is pointed at.
    pub(super) fn point(
        &mut self,
        colour: usize,
        shape: Shape,
        at: (f64, f64),
        whiskers: [Option<[f64; 2]>; 2],
        words: &str,
    ) {
        let (x, y) = self.at(at);
        if let Some([low, high]) = whiskers[0] {
            let ends = [self.at((low, at.1)).0, self.at((high, at.1)).0];
            self.whisker(colour, [ends[0], y, ends[1], y]);
        }
        if let Some([low, high]) = whiskers[1] {
            let ends = [self.at((at.0, low)).1, self.at((at.0, high)).1];
            self.whisker(colour, [x, ends[1], x, ends[0]]);
        }
        let words = html(words);
        let mark = match shape {
            Shape::Circle => format!(r#"<circle class="mark c{colour}" cx="{x:.1}" cy="{y:.1}" r="5">"#),
            Shape::Square => {
                let (x, y) = (x - 4.5, y - 4.5);
                format!(r#"<rect class="mark c{colour}" x="{x:.1}" y="{y:.1}" width="9" height="9">"#)
            }
            Shape::Triangle => {
                let corners = [(x, y - 6.0), (x + 5.5, y + 4.0), (x - 5.5, y + 4.0)];
                let corners = corners.map(|(x, y)| format!("{x:.1},{y:.1}")).join(" ");
                format!(r#"<polygon class="mark c{colour}" points="{corners}">"#)
            }
        };
        let end = match shape {
            Shape::Circle => "circle",
            Shape::Square => "rect",
            Shape::Triangle => "polygon",
        };
        self.put(format_args!("{mark}<title>{words}</title></{end}>"));
        self.points.push([x - 6.0, y - 6.0, x + 6.0, y + 6.0]);
    }

    fn whisker(&mut self, colour: usize, [x1, y1, x2, y2]: Area) {
        self.put(format_args!(
            r#"<line class="whisker c{colour}" x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}"/>"#
        ));
        self.whiskers.push([x1 - 1.0, y1 - 1.0, x2 + 1.0, y2 + 1.0]);
    }

    /// A name beside a point; where exactly is found at the end, when all points are known.
    pub(super) fn label(&mut self, colour: usize, at: (f64, f64), text: &str) {
        let (x, y) = self.at(at);
        self.labels.push((x, y, colour, text.to_owned()));
    }

    /// A name at the right end of a line.
    pub(super) fn end(&mut self, colour: usize, at: (f64, f64), text: &str) {
        let (x, y) = self.at(at);
        self.ends.push((x, y, colour, text.to_owned()));
    }

    /// The drawing; `what` is read out to those who cannot see it.
    pub(super) fn finish(mut self, what: &str) -> String {
        self.place_labels();
        self.place_ends();
        let mut svg =
            format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n", html(what));
        let (bottom, right) = (HEIGHT - BOTTOM, self.right);
        for (value, text) in self.x.ticks() {
            let x = self.at((value, self.y.low)).0;
            let below = bottom + 18.0;
            let _ = writeln!(svg, r#"<line class="grid" x1="{x:.1}" y1="{TOP}" x2="{x:.1}" y2="{bottom}"/>"#);
            let _ = writeln!(
                svg,
                r#"<text class="tick" x="{x:.1}" y="{below}" text-anchor="middle">{text}</text>"#
            );
        }
        for (value, text) in self.y.ticks() {
            let y = self.at((self.x.low, value)).1;
            let (beside, base) = (LEFT - 8.0, y + 4.5);
            let _ =
                writeln!(svg, r#"<line class="grid" x1="{LEFT}" y1="{y:.1}" x2="{right:.1}" y2="{y:.1}"/>"#);
            let _ = writeln!(
                svg,
                r#"<text class="tick" x="{beside}" y="{base:.1}" text-anchor="end">{text}</text>"#
            );
        }
        let (middle, base) = ((LEFT + right) / 2.0, HEIGHT - 8.0);
        let _ = writeln!(
            svg,
            r#"<text class="axis" x="{middle:.1}" y="{base}" text-anchor="middle">{}</text>"#,
            html(&self.x.label)
        );
        let centre = (TOP + bottom) / 2.0;
        let _ = writeln!(
            svg,
            r#"<text class="axis" transform="translate(12 {centre}) rotate(-90)" text-anchor="middle">{}</text>"#,
            html(&self.y.label)
        );
        svg.push_str(&self.body);
        svg.push_str("</svg>\n");
        svg
    }

    /// Each label goes where it covers least, near its point first, and nearer to that than to another.
    fn place_labels(&mut self) {
        let mut taken: Vec<Area> = vec![];
        let points: Vec<(f64, f64)> = self.labels.iter().map(|label| (label.0, label.1)).collect();
        for (x, y, colour, text) in std::mem::take(&mut self.labels) {
            let (w, h) = (width(&text), FONT);
            let mut best: Option<(f64, Area)> = None;
            for distance in [4.0, 14.0, 26.0, 40.0, 56.0, 74.0] {
                for (dx, dy) in AROUND {
                    let left = x + dx * (5.0 + distance) - w * (1.0 - dx) / 2.0;
                    let top = y + dy * (5.0 + distance) - h * (1.0 - dy) / 2.0;
                    let area = [left, top, left + w, top + h];
                    if left < LEFT || area[2] > self.right || top < TOP - 8.0 || area[3] > HEIGHT - BOTTOM {
                        continue;
                    }
                    let covered = |areas: &[Area]| areas.iter().map(|a| overlap(&area, a)).sum::<f64>();
                    let own = gap(&area, (x, y)).min(NEAR);
                    let astray = points.iter().map(|p| own - gap(&area, *p)).fold(0.0, f64::max);
                    let cost = 20.0 * covered(&taken)
                        + 3.0 * astray
                        + 10.0 * covered(&self.points)
                        + 0.1 * covered(&self.whiskers)
                        + distance;
                    if best.is_none_or(|(least, _)| cost < least) {
                        best = Some((cost, area));
                    }
                }
            }
            let area = best.map_or([x, y, x + w, y + h], |(_, area)| area);
            // From afar, a thin line says which point is meant.
            if gap(&area, (x, y)) > 9.5 {
                let (nx, ny) = (x.clamp(area[0], area[2]), y.clamp(area[1], area[3]));
                self.put(format_args!(
                    r#"<line class="leader c{colour}" x1="{x:.1}" y1="{y:.1}" x2="{nx:.1}" y2="{ny:.1}"/>"#
                ));
            }
            let (left, base) = (area[0], area[3] - 2.5);
            self.put(format_args!(
                r#"<text class="name" x="{left:.1}" y="{base:.1}">{}</text>"#,
                html(&text)
            ));
            taken.push(area);
        }
    }

    /// Names of lines stand under one another, each as near to its line's end as the others let it.
    fn place_ends(&mut self) {
        const SPACE: f64 = FONT + 2.0;
        let mut ends = std::mem::take(&mut self.ends);
        ends.sort_by(|a, b| a.1.total_cmp(&b.1).then_with(|| a.3.cmp(&b.3)));
        let mut lowest = TOP - SPACE;
        let mut places: Vec<f64> = ends
            .iter()
            .map(|end| {
                lowest = end.1.max(lowest + SPACE);
                lowest
            })
            .collect();
        // What went below the frame comes up again, pushing those above.
        let mut floor = HEIGHT - BOTTOM + SPACE;
        for place in places.iter_mut().rev() {
            *place = place.min(floor - SPACE);
            floor = *place;
        }
        for ((x, y, colour, text), place) in ends.into_iter().zip(places) {
            let (from, to, base) = (x + 2.0, self.right + 8.0, place + 4.5);
            self.put(format_args!(
                r#"<line class="leader c{colour}" x1="{from:.1}" y1="{y:.1}" x2="{to:.1}" y2="{place:.1}"/>"#
            ));
            let left = to + 3.0;
            let fitted = fitted(&text, WIDTH - left);
            self.put(format_args!(
                r#"<text class="name" x="{left:.1}" y="{base:.1}"{fitted}>{}</text>"#,
                html(&text)
            ));
        }
    }
}

/// From a point to an area.
fn gap(area: &Area, (x, y): (f64, f64)) -> f64 {
    (x.clamp(area[0], area[2]) - x).hypot(y.clamp(area[1], area[3]) - y)
}

fn width(text: &str) -> f64 {
    text.chars().map(|c| if c > '\u{2e80}' { FONT } else { LETTER * FONT }).sum()
}

/// For an element of a text that has so much room: letters are smaller where it is longer, as what is
/// outside of a drawing is not seen.
fn fitted(text: &str, room: f64) -> String {
    let size = FONT * room / width(text);
    if size >= FONT {
        return String::new();
    }
    // Wide pages have letters of this size everywhere.
    format!(r#" font-size="{:.1}""#, size.min(11.0))
}

/// A bar with its name before it and its value behind it.
pub(super) struct Bar {
    pub(super) colour: usize,
    pub(super) name: String,
    pub(super) value: f64,
    pub(super) shown: String,
}

/// Bars under one another, from 0.
pub(super) fn bars(what: &str, bars: &[Bar]) -> String {
    const ROW: f64 = 26.0;
    let names = bars.iter().map(|b| width(&b.name)).fold(0.0, f64::max).min(0.5 * WIDTH) + 10.0;
    let values = bars.iter().map(|b| width(&b.shown)).fold(0.0, f64::max) + 10.0;
    let most = bars.iter().map(|b| b.value).fold(f64::MIN_POSITIVE, f64::max);
    let height = ROW * bars.len() as f64;
    let mut svg =
        format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">\n", html(what));
    for (i, bar) in bars.iter().enumerate() {
        let (top, base) = (ROW * i as f64 + 5.0, ROW * i as f64 + 17.5);
        let length = (bar.value / most).max(0.0) * (WIDTH - names - values);
        let (before, behind, colour) = (names - 8.0, names + length + 6.0, bar.colour);
        let (name, shown) = (html(&bar.name), html(&bar.shown));
        let fitted = fitted(&bar.name, names - 10.0);
        let _ = writeln!(
            svg,
            r#"<text class="name" x="{before:.1}" y="{base:.1}" text-anchor="end"{fitted}>{name}</text>"#
        );
        let _ = writeln!(
            svg,
            r#"<rect class="bar c{colour}" x="{names:.1}" y="{top:.1}" width="{length:.1}" height="16"/>"#
        );
        let _ = writeln!(svg, r#"<text class="tick" x="{behind:.1}" y="{base:.1}">{shown}</text>"#);
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERCENT: [f64; 2] = [0.0, 100.0];

    fn axis(label: &str, low: f64, high: f64) -> Axis {
        Axis::linear(label, [low, high].into_iter(), PERCENT)
    }

    #[test]
    fn a_plot_as_text() {
        let mut plot =
            Plot::of_lines(axis("x <y>", 0.0, 50.0), axis("y", 40.0, 100.0), ["a & b"].into_iter());
        plot.band(1, &[(0.0, 40.0, 60.0), (50.0, 80.0, 100.0)]);
        plot.line("line", 1, &[(0.0, 50.0), (50.0, 90.0)]);
        plot.point(2, Shape::Square, (25.0, 70.0), [Some([20.0, 30.0]), None], "<q>");
        plot.end(1, (50.0, 90.0), "a & b");
        assert_eq!(plot.finish("what \"is\" drawn"), include_str!("svg/plot.svg"));
    }

    #[test]
    fn bars_as_text() {
        let bar = |colour, name: &str, value: f64| Bar {
            colour,
            name: name.into(),
            value,
            shown: format!("{value} s"),
        };
        assert_eq!(bars("cost", &[bar(0, "one", 4.0), bar(1, "<two>", 1.0)]), include_str!("svg/bars.svg"));
    }

    #[test]
    fn long_names_stay_within_the_drawing() {
        let name = "memit, in sequence, 100 at once (seed 0, search.steps=25)";
        let bar = |name: &str| Bar { colour: 0, name: name.into(), value: 1.0, shown: "1 s".into() };
        let size = |drawing: &str| -> f64 {
            let sizes: Vec<&str> = drawing.split(" font-size=\"").skip(1).collect();
            assert_eq!(sizes.len(), 1, "{drawing}");
            sizes[0].split('"').next().and_then(|size| size.parse().ok()).unwrap_or(f64::MAX)
        };
        let fits = |size: f64, room: f64| size <= 11.0 && width(name) * size / FONT <= room + 2.0;
        assert!(fits(size(&bars("cost", &[bar(name), bar("rome")])), 230.0));
        let mut plot = Plot::of_lines(axis("x", 0.0, 1.0), axis("y", 0.0, 100.0), [name].into_iter());
        plot.end(0, (1.0, 50.0), name);
        assert!(fits(size(&plot.finish("")), 219.0));
    }

    #[test]
    fn ticks_are_round_and_within_bounds() {
        let texts = |axis: &Axis| axis.ticks().into_iter().map(|t| t.1).collect::<Vec<_>>();
        assert_eq!(texts(&axis("", 0.0, 100.0)), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!(texts(&axis("", 97.2, 100.0)), ["96", "98", "100"]);
        assert_eq!(
            texts(&Axis::linear("", [0.001, 0.004].into_iter(), [0.0, 0.01])),
            ["0.001", "0.002", "0.003", "0.004"]
        );
        assert_eq!(texts(&Axis::log("", [24.0, 190_000.0].into_iter())), ["100", "1000", "10k", "100k"]);
        assert_eq!(texts(&Axis::log("", [24.0, 60.0].into_iter())), ["50"]);
        // Nothing to see is drawn all the same.
        assert!(!texts(&Axis::linear("", [f64::NAN].into_iter(), PERCENT)).is_empty());
    }

    fn texts(svg: &str) -> Vec<Area> {
        let number = |line: &str, name: &str| {
            let rest = line.split_once(&format!(" {name}=\"")).map_or("", |(_, rest)| rest);
            rest.split('"').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(f64::NAN)
        };
        let lines = svg.lines().filter(|l| l.starts_with("<text class=\"name\""));
        lines
            .map(|line| {
                let text =
                    line.split_once('>').and_then(|(_, rest)| rest.split_once('<')).map_or("", |(t, _)| t);
                let (x, y) = (number(line, "x"), number(line, "y"));
                [x, y - FONT + 2.5, x + width(text), y + 2.5]
            })
            .collect()
    }

    fn assert_apart(all: &[Area]) {
        for (i, a) in all.iter().enumerate() {
            assert!(a[0] >= 0.0 && a[1] >= 0.0 && a[2] <= WIDTH && a[3] <= HEIGHT, "{a:?} sticks out");
            for b in &all[..i] {
                assert!(overlap(a, b) < 1.0, "{a:?} covers {b:?}");
            }
        }
    }

    #[test]
    fn names_of_crowded_points_do_not_cover_one_another() {
        let mut plot = Plot::of_points(axis("x", 0.0, 100.0), axis("y", 0.0, 100.0));
        let points: Vec<(f64, f64)> =
            (0..12).map(|i| (30.0 + f64::from(i * i % 23), 90.0 + f64::from(i % 5) * 2.0)).collect();
        points.iter().for_each(|p| plot.point(0, Shape::Circle, *p, [None, None], ""));
        points.iter().for_each(|p| plot.label(0, *p, "some method"));
        let found = texts(&plot.finish(""));
        assert_eq!(found.len(), 12);
        assert_apart(&found);
    }

    #[test]
    fn names_of_lines_that_end_together_stand_under_one_another() {
        let mut plot = Plot::of_lines(axis("x", 0.0, 1.0), axis("y", 0.0, 100.0), ["method"].into_iter());
        (0..8).for_each(|i| plot.end(i, (1.0, 0.1 * i as f64), "method"));
        (0..8).for_each(|i| plot.end(i, (1.0, 100.0), "method"));
        let found = texts(&plot.finish(""));
        assert_eq!(found.len(), 16);
        assert_apart(&found);
    }
}
