//! Runs: the records of a part edited alone, at once, or one after another, and scored.

mod sequence;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::time::Instant;

use mutandis_edit::method::Wanted;
use mutandis_edit::{Context, Entry, Error, Fact, Job, Patch, Result};
use mutandis_engine::{Model, Overlay};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::compat;
use crate::edited::Edited;
use crate::memory::{Memory, Watch};
use crate::record::{Measures, Prepared, Said, Under};
use crate::results::{Both, Cost, ModelResult, RecordResult};
use crate::score::{Scored, score, unedited_scores};
use crate::steps::Steps;
use crate::whole::Whole;

/// How edits follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Each on the unedited model, scored alone.
    Single,
    /// So many records in one patch, each patch on the unedited model.
    Batch(usize),
    /// Each on top of those before; scored right after its own edit, and at the end.
    Sequential,
    /// So many records in one patch, each patch on top of those before; scored as in a sequence.
    Turns(usize),
}

impl Mode {
    /// Records of one turn, where edits follow one another.
    pub fn turn(self) -> Option<usize> {
        match self {
            Self::Single | Self::Batch(_) => None,
            Self::Sequential => Some(1),
            Self::Turns(n) => Some(n.max(1)),
        }
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = |n: &str, what: &str, example: &str| match n.parse() {
            Ok(n) if n > 0 => Ok(n),
            _ => Err(format!("`{n}` is no size of a {what}; write as in `{example}`")),
        };
        match text.split_once(':') {
            None if text == "single" => Ok(Self::Single),
            None if text == "sequential" => Ok(Self::Sequential),
            Some(("batch", n)) => Ok(Self::Batch(size(n, "batch", "batch:200")?)),
            Some(("sequential", n)) => Ok(Self::Turns(size(n, "turn", "sequential:100")?)),
            _ => Err(format!(
                "`{text}` is no mode; expected `single`, `batch:N`, `sequential` or `sequential:N`"
            )),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Single => f.write_str("single"),
            Self::Batch(n) => write!(f, "batch:{n}"),
            Self::Sequential => f.write_str("sequential"),
            Self::Turns(n) => write!(f, "sequential:{n}"),
        }
    }
}

/// Records of a part whose edits are independent: what is searched and scored side by side, and
/// what is lost at most where a run is ended from outside.
const TOGETHER: usize = 16;

/// What is run: a method on records, in a mode.
#[derive(Debug, Clone, Copy)]
pub struct Cell<'a> {
    /// The model.
    pub model: &'a Model,
    /// The method.
    pub method: &'a Entry,
    /// Changes of its settings.
    pub settings: &'a Value,
    /// How edits follow one another.
    pub mode: Mode,
    /// Seed.
    pub seed: u64,
    /// What is measured of every record.
    pub measures: &'a Measures,
    /// What is measured of the edited model.
    pub whole: &'a Whole,
    /// Memory of the process.
    pub memory: Memory,
}

/// A part that has been run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Its records, in order.
    pub records: Vec<RecordResult>,
    /// The edited model.
    pub model: ModelResult,
    /// What it cost.
    pub cost: Cost,
}

/// An edit that was made.
struct Made {
    overlay: Overlay,
    prefix: String,
}

impl Made {
    fn new(model: &Model, patch: &Patch) -> Result<Self> {
        Ok(Self { overlay: patch.overlay(model)?, prefix: patch.prefix.clone().unwrap_or_default() })
    }
}

impl Cell<'_> {
    /// Which records each part takes. Parts do not depend on one another.
    pub fn parts(mode: Mode, records: usize) -> Vec<Range<usize>> {
        let size = match mode {
            Mode::Single => TOGETHER,
            Mode::Batch(n) => n,
            Mode::Sequential | Mode::Turns(_) => records,
        };
        (0..records).step_by(size.max(1)).map(|from| from..(from + size).min(records)).collect()
    }

    /// Makes and scores the edits of a part; `before` is what the unedited model says to its
    /// records. An edit that fails is told in its record. Steps of a sequence are kept in `steps`,
    /// and go on from there; `heard` hears of how many of its records are edited.
    ///
    /// # Errors
    /// Where the model cannot be run on a question, a step cannot be written, or the user
    /// interrupts.
    pub fn run(
        &self,
        records: &[Prepared<'_>],
        before: &[Said],
        steps: Option<&Steps>,
        heard: &dyn Fn(usize),
        cx: &Context<'_>,
    ) -> Result<Part> {
        // Facts that are written each alone are searched together.
        let alone = if self.mode == Mode::Single { records } else { &[] };
        let facts: Vec<Fact> = alone.iter().flat_map(|r| r.facts.clone()).collect();
        let values = cx.values.clone().unwrap_or_default().looking_ahead(&facts);
        let cx = &Context { values: Some(values.clone()), ..cx.clone() };
        let mut part = match self.mode {
            Mode::Single => self.independent(1, records, before, cx)?,
            Mode::Batch(n) => self.independent(n.max(1), records, before, cx)?,
            Mode::Sequential => self.sequence(1, records, before, steps, heard, cx)?,
            Mode::Turns(n) => self.sequence(n.max(1), records, before, steps, heard, cx)?,
        };
        // A method costs what it would alone.
        part.cost.edit_seconds += values.spared_seconds();
        Ok(part)
    }

    /// One patch for each `size` records, each on the unedited model.
    fn independent(
        &self,
        size: usize,
        records: &[Prepared<'_>],
        before: &[Said],
        cx: &Context<'_>,
    ) -> Result<Part> {
        let mut part = Part::default();
        let mut watch = Watch::new(self.memory);
        let started = Instant::now();
        let against = contradictory(records, size);
        let edit = |(i, group): (usize, &[Prepared<'_>])| -> Result<Result<Made, String>> {
            let facts = facts_of(group, &against[i * size..]);
            Ok(match self.edit(&[], &[], &facts, cx)? {
                Ok(patch) => Ok(Made::new(self.model, &patch)?),
                Err(why) => Err(why),
            })
        };
        let made: Vec<Result<Made, String>> =
            watch.editing(|| records.chunks(size).enumerate().map(edit).collect::<Result<_>>())?;
        cx.check()?;
        part.cost.edit_seconds = started.elapsed().as_secs_f64();
        let started = Instant::now();
        let stacks: Vec<Vec<&Overlay>> =
            made.iter().map(|m| m.iter().flat_map(|m| laid(&m.overlay)).collect()).collect();
        let by = |group: usize| {
            let made = made[group].as_ref().ok()?;
            Some(Edited { model: self.model, overlays: &stacks[group], prefix: &made.prefix })
        };
        let asked: Vec<Option<Under<'_>>> = records
            .iter()
            .enumerate()
            .map(|(i, record)| against[i].is_none().then_some((record, by(i / size)?)))
            .collect();
        let found = self.scores(&asked, before, cx)?;
        for (i, ((record, said), found)) in records.iter().zip(before).zip(found).enumerate() {
            let error = against[i].clone().or_else(|| made[i / size].as_ref().err().cloned());
            part.records.push(result((record, said), error, found, None));
        }
        // The whole model under one edit; of single ones the first that was made.
        if let Some(by) = (0..made.len()).find_map(by) {
            part.model = self.whole(&by, cx)?;
        }
        part.cost.edits = edited(&part.records);
        part.cost.score_seconds = started.elapsed().as_secs_f64();
        watch.end(&mut part.cost);
        Ok(part)
    }

    /// The patch of some facts; why it could not be made, where it could not.
    fn edit(
        &self,
        stack: &[&Overlay],
        prior: &[Patch],
        facts: &[Fact],
        cx: &Context<'_>,
    ) -> Result<Result<Patch, String>> {
        cx.check()?;
        let job = Job { model: self.model, stack, prior, facts, seed: self.seed };
        match self.method.edit(self.settings, &job, cx) {
            Ok(patch) => Ok(Ok(patch)),
            Err(Error::Interrupted) => Err(Error::Interrupted),
            Err(error) => Ok(Err(in_words(&error))),
        }
    }

    /// Scores of those records that were edited; why one cannot be scored, where it cannot.
    fn scores(
        &self,
        asked: &[Option<Under<'_>>],
        before: &[Said],
        cx: &Context<'_>,
    ) -> Result<Vec<Option<Result<Scored, String>>>> {
        let under: Vec<Under<'_>> = asked.iter().copied().flatten().collect();
        let made: Vec<&Said> = asked.iter().zip(before).filter_map(|(a, b)| a.map(|_| b)).collect();
        let in_place = compat::sentiment::is_in_place(self.method);
        let score =
            |under: &[Under<'_>], before: &[&Said]| score(under, before, self.measures, in_place, self.seed);
        let found: Vec<Result<Scored, String>> = match score(&under, &made) {
            Ok(found) => found.into_iter().map(Ok).collect(),
            // One that cannot be asked, such as behind a long text, does not spoil the others.
            Err(_) => {
                let alone = |(under, said): (&Under<'_>, &&Said)| {
                    cx.check()?;
                    let found = score(&[*under], &[*said]);
                    Ok(found.map(|mut one| one.pop().unwrap_or_default()).map_err(|e| in_words(&e)))
                };
                under.iter().zip(&made).map(alone).collect::<Result<_>>()?
            }
        };
        let mut found = found.into_iter();
        Ok(asked.iter().map(|asked| asked.and_then(|_| found.next())).collect())
    }

    /// The edited model as a whole; nothing where it cannot be measured.
    fn whole(&self, by: &Edited<'_>, cx: &Context<'_>) -> Result<ModelResult> {
        Ok(told(self.whole.of(by), cx)?.unwrap_or_default())
    }
}

/// What was measured; where it could not be, that is told, and nothing of it kept.
fn told<T>(found: Result<T>, cx: &Context<'_>) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Error::Interrupted) => Err(Error::Interrupted),
        Err(error) => {
            cx.progress.note(&format!("the edited model could not be measured: {}", in_words(&error)));
            Ok(None)
        }
    }
}

/// An error with its hint.
pub(crate) fn in_words(error: &Error) -> String {
    match error.hint() {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    }
}

/// How many there are of something whose plural takes an `s`: `1 edit`, `2 edits`.
pub fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// How many records were edited and scored.
fn edited(records: &[RecordResult]) -> usize {
    records.iter().filter(|record| record.error.is_none()).count()
}

/// Of each record the error where a record before it, of the `size` that are edited at once, wants
/// another answer to one of its prompts; such a record is left out, and the others are edited.
fn contradictory(records: &[Prepared<'_>], size: usize) -> Vec<Option<String>> {
    let group = |group: &[Prepared<'_>]| {
        let mut wanted = Wanted::default();
        let of = |record: &Prepared<'_>| {
            let called = |_| format!("record {}", record.number);
            wanted.add_all(&record.facts, called).err().map(|e| e.to_string())
        };
        group.iter().map(of).collect::<Vec<_>>()
    };
    records.chunks(size).flat_map(group).collect()
}

/// The facts of records that are not left out.
fn facts_of(records: &[Prepared<'_>], against: &[Option<String>]) -> Vec<Fact> {
    let kept = records.iter().zip(against).filter(|(_, against)| against.is_none());
    kept.flat_map(|(record, _)| record.facts.clone()).collect()
}

/// What is laid over a model: nothing where nothing is changed.
fn laid(overlay: &Overlay) -> Vec<&Overlay> {
    if overlay.is_empty() { vec![] } else { vec![overlay] }
}

/// A record's result. One whose edit failed, or that could not be scored, keeps what the unedited
/// model scores.
fn result(
    (record, said): (&Prepared<'_>, &Said),
    error: Option<String>,
    found: Option<Result<Scored, String>>,
    immediate: Option<Both>,
) -> RecordResult {
    let (scored, error) = match found {
        Some(Ok(scored)) if error.is_none() => (scored, None),
        Some(Err(why)) => (Scored::default(), error.or(Some(why))),
        _ => (Scored::default(), error),
    };
    let Scored { mut before, mut after, mut probes } = scored;
    if error.is_some() {
        before = unedited_scores(record, said);
    }
    [&mut before, &mut after].into_iter().chain(probes.iter_mut().map(|p| &mut p.scores)).for_each(finite);
    RecordResult {
        record: record.number,
        edits: record.facts.iter().map(|f| [f.prompt.clone(), f.target.clone()]).collect(),
        error,
        before,
        after,
        immediate,
        probes,
    }
}

/// Of a model whose predictions are no numbers some scores are none; files hold numbers.
fn finite(both: &mut Both) {
    for scores in [&mut both.compat, &mut both.strict] {
        scores.retain(|_, score| score.is_finite());
    }
}
