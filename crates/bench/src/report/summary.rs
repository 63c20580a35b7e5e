//! What a cell comes to.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::Serialize;
use serde_json::Value;

use super::bootstrap;
use crate::results::{Both, CellResult, DataInfo, ModelResult, RecordResult, Retention, Scores, SuiteInfo};
use crate::run::Mode;

/// A mean over records.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Statistic {
    /// Over the records that have the score; in its own unit (shares of 0 to 1, bits).
    pub mean: f64,
    /// 95 % interval of the mean, from 1,000 resamples of the records (percentile bootstrap);
    /// null for a single record.
    pub interval: Option<[f64; 2]>,
    /// Standard error of the mean, from the same resamples.
    pub stderr: Option<f64>,
    /// Records that have the score.
    pub count: usize,
    /// Tells which records these are: means over the same ones compete.
    #[serde(skip)]
    pub(super) over: u64,
}

/// Means by score name.
pub type Statistics = BTreeMap<String, Statistic>;

/// Means of the two protocols.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Protocols {
    /// As EasyEdit's functions compute it.
    pub compat: Statistics,
    /// What a user sees.
    pub strict: Statistics,
}

impl Protocols {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.compat.is_empty() && self.strict.is_empty()
    }
}

/// A number of the model before and after the edits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Change {
    /// Of the unedited model.
    pub before: f64,
    /// Of the edited ones: their mean.
    pub after: f64,
    /// 95 % interval of that mean, by resampling the edited models; null for a single one.
    pub interval: Option<[f64; 2]>,
    /// Its standard error, from the same resamples.
    pub stderr: Option<f64>,
    /// How many edited models were measured: of edits each alone, the first of each part.
    pub measured: usize,
}

/// Accuracy on a suite of general ability.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ability {
    /// Before and after.
    #[serde(flatten)]
    pub change: Change,
    /// How many questions it is of, and which accuracy; nothing where the cell does not say.
    #[serde(flatten)]
    pub suite: Option<SuiteInfo>,
}

/// What editing cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spent {
    /// Edits made, without those that failed.
    pub edits: usize,
    /// Seconds of editing, statistics of the model included, by edits made; null without any.
    pub seconds_per_edit: Option<f64>,
    /// Seconds of editing.
    pub edit_seconds: f64,
    /// Seconds of scoring.
    pub score_seconds: f64,
    /// Seconds of asking the unedited model.
    pub baseline_seconds: f64,
    /// Memory of the process at most, in bytes.
    pub peak_memory_bytes: u64,
    /// The same while edits were made; null where it is not known.
    pub edit_peak_memory_bytes: Option<u64>,
}

/// Edit success of a stretch of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Stretch {
    /// First edit of the stretch, from 1.
    pub from: usize,
    /// Last one.
    pub to: usize,
    /// As the peer computes it.
    pub compat: Success,
}

/// Edit success of the edits of a stretch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Success {
    /// Right after each edit.
    pub immediate: Option<Statistic>,
    /// After all edits.
    pub after: Option<Statistic>,
}

/// A point of the retention curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// Edits made so far.
    pub edits: usize,
    /// As the peer computes it.
    pub compat: EditSuccess,
    /// Perplexity of the text, where one is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
}

/// Edit success at a point.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct EditSuccess {
    /// Mean over all edits made so far; none of what is no fact, or where none was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edit: Option<f64>,
}

/// A cell, summed up.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The cell's id.
    pub id: String,
    /// Method.
    pub method: String,
    /// How edits follow one another.
    pub mode: Mode,
    /// What tells the cell from others of the same method, mode and data set; mostly empty.
    pub variant: String,
    /// Data set.
    pub data: DataInfo,
    /// Seed.
    pub seed: u64,
    /// Settings of the method.
    pub settings: Value,
    /// What is measured, and how; in words, by protocol.
    pub protocols: BTreeMap<String, String>,
    /// The data set's name, with its version where there are several.
    #[serde(skip)]
    pub(super) set: String,
    /// Records that are to be edited.
    pub records: usize,
    /// Records whose edit was made and scored: those that the means are over.
    pub scored: usize,
    /// Records whose edit failed; they are in no mean.
    pub failed: usize,
    /// Parts that are done.
    pub done: usize,
    /// All parts.
    pub parts: usize,
    /// Scores of the unedited model, over the records scored.
    pub before: Protocols,
    /// Scores after the edits.
    pub after: Protocols,
    /// In a sequence, scores right after each record's own edit.
    #[serde(skip_serializing_if = "Protocols::is_empty")]
    pub immediate: Protocols,
    /// In a sequence, edit success by when the edit was made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stretches: Vec<Stretch>,
    /// In a sequence, how earlier edits hold as more are made; means over the parts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub retention: Vec<Point>,
    /// Perplexity of the text; geometric mean over the edited models that were measured.
    pub perplexity: Option<Change>,
    /// Accuracy on suites of general ability; means over the edited models that were measured.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub general: BTreeMap<String, Ability>,
    /// After how many edits the model was found to have collapsed; the least of the parts.
    pub collapsed: Option<usize>,
    /// What it cost; null where that is not known.
    pub cost: Option<Spent>,
}

impl Summary {
    /// Sums up a cell.
    pub(super) fn new(cell: &CellResult) -> Self {
        let scored: Vec<&RecordResult> = cell.records.iter().filter(|r| r.error.is_none()).collect();
        let over = |of: fn(&RecordResult) -> Option<&Both>| {
            Protocols::over(scored.iter().filter_map(|r| Some((r.record, of(r)?))))
        };
        let info = &cell.info;
        Self {
            id: cell.id.clone(),
            method: info.method.clone(),
            mode: info.mode,
            variant: String::new(),
            data: info.data.clone(),
            seed: info.seed,
            settings: info.settings.clone(),
            protocols: info.protocols.clone(),
            set: info.data.name.clone(),
            records: info.records.len(),
            scored: scored.len(),
            failed: cell.records.len() - scored.len(),
            done: cell.done,
            parts: info.parts,
            before: over(|r| Some(&r.before)),
            after: over(|r| Some(&r.after)),
            immediate: over(|r| r.immediate.as_ref()),
            stretches: if info.mode.turn().is_some() { stretches(&cell.records) } else { vec![] },
            retention: retention(cell),
            perplexity: perplexity(cell),
            general: general(cell),
            collapsed: cell.models.iter().filter_map(|m| m.collapsed).min(),
            cost: cost(cell),
        }
    }

    /// How the peer's own functions for edits that are a prompt measure, where compat is by these:
    /// its `before` is no clean baseline then.
    pub(super) fn in_context(&self) -> Option<&str> {
        self.protocols.get("compat, in context").map(String::as_str)
    }

    /// Method, mode, and what else tells it from others.
    pub fn label(&self) -> String {
        match (self.mode, self.variant.as_str()) {
            (Mode::Single, "") => self.method.clone(),
            (Mode::Single, variant) => format!("{} ({variant})", self.method),
            _ => format!("{}, {}", self.method, edits_in_words(self)),
        }
    }
}

/// How the edits were made, and what else tells the cell from others.
pub(super) fn edits_in_words(cell: &Summary) -> String {
    let mode = match cell.mode {
        Mode::Single => "each alone".into(),
        Mode::Batch(size) => format!("{size} at once"),
        Mode::Sequential => "in sequence".to_owned(),
        Mode::Turns(size) => format!("in sequence, {size} at once"),
    };
    if cell.variant.is_empty() { mode } else { format!("{mode} ({})", cell.variant) }
}

impl Protocols {
    /// Over records, by their numbers.
    fn over<'a>(records: impl Iterator<Item = (usize, &'a Both)> + Clone) -> Self {
        let mut strict = means(records.clone().map(|(number, both)| (number, &both.strict)));
        strict.extend(harmonic(records.clone()).map(|score| ("score".to_owned(), score)));
        Self { compat: means(records.map(|(number, both)| (number, &both.compat))), strict }
    }
}

fn means<'a>(records: impl Iterator<Item = (usize, &'a Scores)> + Clone) -> Statistics {
    let names: BTreeSet<&String> = records.clone().flat_map(|(_, scores)| scores.keys()).collect();
    let of = |name: &String| {
        let having = records.clone().filter_map(|(number, scores)| Some((number, *scores.get(name)?)));
        let (numbers, values): (Vec<usize>, Vec<f64>) = having.unzip();
        statistic(&numbers, |drawn| mean(drawn.iter().map(|&i| values[i])))
    };
    names.into_iter().filter_map(|name| Some((name.clone(), of(name)?))).collect()
}

/// CounterFact's score: the harmonic mean of the means of efficacy, generalization and specificity
/// (Meng et al. 2022, §4.1), over the records that have all three.
fn harmonic<'a>(records: impl Iterator<Item = (usize, &'a Both)>) -> Option<Statistic> {
    let of = |(number, both): (usize, &Both)| {
        let [a, b, c] =
            ["efficacy", "generalization", "specificity"].map(|name| both.strict.get(name).copied());
        Some((number, [a?, b?, c?]))
    };
    let (numbers, all): (Vec<usize>, Vec<[f64; 3]>) = records.filter_map(of).unzip();
    statistic(&numbers, |drawn| {
        let means: Vec<f64> = (0..3).map(|k| mean(drawn.iter().map(|&i| all[i][k]))).collect();
        // Where one of them is 0, so is the score.
        if means.contains(&0.0) { 0.0 } else { 3.0 / means.iter().map(|m| 1.0 / m).sum::<f64>() }
    })
}

/// Something over records, or others that have numbers, with how sure it is; nothing over none.
fn statistic(numbers: &[usize], of: impl Fn(&[usize]) -> f64) -> Option<Statistic> {
    if numbers.is_empty() {
        return None;
    }
    let count = numbers.len();
    let all: Vec<usize> = (0..count).collect();
    let (interval, stderr) = bootstrap::interval(count, &of).unzip();
    let mut over = DefaultHasher::new();
    numbers.hash(&mut over);
    Some(Statistic { mean: of(&all), interval, stderr, count, over: over.finish() })
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

/// So many points a curve over a sequence has at most.
const STRETCHES: usize = 10;

/// Fewer records than that say nothing of a stretch.
const STRETCH: usize = 10;

fn stretches(records: &[RecordResult]) -> Vec<Stretch> {
    let size = records.len().div_ceil(STRETCHES).max(STRETCH);
    let success = |records: &[RecordResult], of: fn(&RecordResult) -> Option<&Both>| {
        let scored = records.iter().filter(|r| r.error.is_none());
        let success = scored.filter_map(|r| Some((r.record, *of(r)?.compat.get("edit")?)));
        let (numbers, values): (Vec<usize>, Vec<f64>) = success.unzip();
        statistic(&numbers, |drawn| mean(drawn.iter().map(|&i| values[i])))
    };
    let of = |(i, records): (usize, &[RecordResult])| Stretch {
        from: i * size + 1,
        to: i * size + records.len(),
        compat: Success {
            immediate: success(records, |r| r.immediate.as_ref()),
            after: success(records, |r| Some(&r.after)),
        },
    };
    records.chunks(size).enumerate().map(of).collect()
}

/// Means over what several parts have measured; geometric ones where `log`.
fn change(cell: &CellResult, log: bool, of: impl Fn(&ModelResult) -> Option<[f64; 2]>) -> Option<Change> {
    let found: Vec<([f64; 2], usize)> =
        cell.models.iter().filter_map(|m| Some((of(m)?, m.measured))).collect();
    let side = |k: usize| {
        let values = found.iter().map(|(pair, _)| if log { pair[k].ln() } else { pair[k] });
        values.collect::<Vec<f64>>()
    };
    let back = |value: f64| if log { value.exp() } else { value };
    let (before, after) = (side(0), side(1));
    let numbers: Vec<usize> = (0..after.len()).collect();
    let Statistic { mean: now, interval, stderr, .. } =
        statistic(&numbers, |drawn| back(mean(drawn.iter().map(|&i| after[i]))))?;
    Some(Change {
        before: back(mean(before.iter().copied())),
        after: now,
        interval,
        stderr,
        measured: found.iter().map(|(_, measured)| measured).sum(),
    })
}

fn perplexity(cell: &CellResult) -> Option<Change> {
    change(cell, true, |m| m.perplexity)
}

fn general(cell: &CellResult) -> BTreeMap<String, Ability> {
    let names: BTreeSet<&String> = cell.models.iter().flat_map(|m| m.general.keys()).collect();
    let of = |name: &String| {
        let change = change(cell, false, |m| m.general.get(name).copied())?;
        Some(Ability { change, suite: cell.info.general.get(name).cloned() })
    };
    names.into_iter().filter_map(|name| Some((name.clone(), of(name)?))).collect()
}

fn retention(cell: &CellResult) -> Vec<Point> {
    let mut by_edits: BTreeMap<usize, Vec<&Retention>> = BTreeMap::new();
    for point in cell.models.iter().flat_map(|m| &m.retention) {
        by_edits.entry(point.edits).or_default().push(point);
    }
    let of = |(edits, points): (usize, Vec<&Retention>)| {
        let mean_of = |values: Vec<f64>| (!values.is_empty()).then(|| mean(values.into_iter()));
        let perplexity = mean_of(points.iter().filter_map(|p| p.perplexity).map(f64::ln).collect());
        let edit = mean_of(points.iter().filter_map(|p| p.edit).collect());
        Point { edits, compat: EditSuccess { edit }, perplexity: perplexity.map(f64::exp) }
    };
    by_edits.into_iter().map(of).collect()
}

fn cost(cell: &CellResult) -> Option<Spent> {
    let sum = |of: fn(&crate::results::Cost) -> f64| cell.costs.iter().map(of).sum::<f64>();
    let edits = cell.costs.iter().fold(0usize, |sum, c| sum.saturating_add(c.edits));
    let edit_seconds = sum(|c| c.edit_seconds);
    Some(Spent {
        edits,
        seconds_per_edit: (edits > 0).then(|| edit_seconds / edits as f64),
        edit_seconds,
        score_seconds: sum(|c| c.score_seconds),
        baseline_seconds: sum(|c| c.baseline_seconds),
        peak_memory_bytes: cell.costs.iter().map(|c| c.peak_memory_bytes).max()?,
        edit_peak_memory_bytes: cell.costs.iter().map(|c| c.edit_peak_memory_bytes).max().filter(|b| *b > 0),
    })
}
