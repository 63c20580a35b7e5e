//! Runs: the records of a part edited alone, at once, or one after another, and scored.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::time::Instant;

use mutandis_edit::method::Wanted;
use mutandis_edit::patch::Stack;
use mutandis_edit::{Context, Entry, Error, Fact, Job, Patch, Result};
use mutandis_engine::{Model, Overlay};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::compat;
use crate::edited::Edited;
use crate::general::Suite;
use crate::memory::{Memory, Watch};
use crate::perplexity::perplexity;
use crate::question::mean;
use crate::record::{Measures, Prepared, Said, Under, ask};
use crate::results::{Both, Cost, ModelResult, RecordResult, Retention};
use crate::score::{Scored, score, unedited_scores};
use crate::steps::{Step, Steps};

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

/// Points of a retention curve.
const POINTS: usize = 10;

/// Perplexity by this factor above the unedited model's means that the model has collapsed. Ours: models
/// that still write sentences stay below it, and those that do not are far above.
pub const COLLAPSE: f64 = 4.0;

/// Perplexity of a model whose predictions are no numbers: files hold finite ones.
const BROKEN: f64 = 1e99;

/// What is measured of an edited model as a whole.
#[derive(Debug, Clone, Default)]
pub struct Whole {
    /// Windows of a text whose perplexity is measured; none for none.
    pub text: Vec<Vec<u32>>,
    /// Suites of general ability.
    pub general: Vec<Suite>,
    /// Perplexity and accuracies of the unedited model.
    pub before: (Option<f64>, Vec<f64>),
}

impl Whole {
    /// Measures the unedited model.
    ///
    /// # Errors
    /// Where a text is longer than the model's context.
    pub fn new(model: &Model, text: Vec<Vec<u32>>, general: Vec<Suite>) -> Result<Self> {
        let mut whole = Self { text, general, before: (None, vec![]) };
        let unedited = Edited::unedited(model);
        whole.before = (whole.perplexity(&unedited)?, whole.accuracies(&unedited)?);
        Ok(whole)
    }

    /// By what part perplexity of the text is above the unedited model's; nothing where there is no
    /// text, or the edited model's predictions are no numbers.
    ///
    /// # Errors
    /// Where a window is longer than the model's context.
    pub fn rise(&self, by: &Edited<'_>) -> Result<Option<f64>> {
        let now = self.perplexity(by)?.filter(|now| *now < BROKEN);
        Ok(now.zip(self.before.0).map(|(now, before)| now / before - 1.0))
    }

    /// By how much the accuracy on each suite is below the unedited model's, as a share: 0.1 is ten points.
    ///
    /// # Errors
    /// Where a question is longer than the model's context.
    pub fn drops(&self, by: &Edited<'_>) -> Result<Vec<(&Suite, f64)>> {
        let each = self.accuracies(by)?.into_iter().zip(&self.before.1).map(|(now, before)| before - now);
        Ok(self.general.iter().zip(each).collect())
    }

    fn perplexity(&self, by: &Edited<'_>) -> Result<Option<f64>> {
        let found = (!self.text.is_empty()).then(|| perplexity(by, &self.text));
        // A model that has broken down may predict no numbers at all.
        Ok(found.transpose()?.map(|p| if p.is_finite() { p } else { BROKEN }))
    }

    fn accuracies(&self, by: &Edited<'_>) -> Result<Vec<f64>> {
        self.general.iter().map(|suite| Ok(suite.accuracy(by)?.by(suite.measure))).collect()
    }

    /// Measures an edited model.
    fn of(&self, by: &Edited<'_>) -> Result<ModelResult> {
        let (perplexity, accuracies) = &self.before;
        let pair = |before: Option<f64>, after: Option<f64>| Some([before?, after?]);
        let names = self.general.iter().map(|suite| suite.name.to_owned());
        let general = names.zip(accuracies.iter().zip(self.accuracies(by)?).map(|(a, b)| [*a, b])).collect();
        Ok(ModelResult {
            measured: 1,
            perplexity: pair(*perplexity, self.perplexity(by)?),
            general,
            ..ModelResult::default()
        })
    }
}

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

    /// One patch for each `size` records, each on top of those before: scored right after their own
    /// edit, and all at the end.
    fn sequence(
        &self,
        size: usize,
        records: &[Prepared<'_>],
        before: &[Said],
        steps: Option<&Steps>,
        heard: &dyn Fn(usize),
        cx: &Context<'_>,
    ) -> Result<Part> {
        let mut part = Part::default();
        let mut watch = Watch::new(self.memory);
        let (mut stack, mut prior, mut prefix) = (Stack::default(), vec![], String::new());
        let mut taken: Vec<Step> = vec![];
        let mut overlay = Overlay::default();
        let turns = records.len().div_ceil(size);
        let every = turns.div_ceil(POINTS).max(1);
        let against = contradictory(records, size);
        for (i, turn) in records.chunks(size).enumerate() {
            let (from, to) = (i * size, i * size + turn.len());
            let kept = steps.map(|s| s.read(i)).transpose()?.flatten();
            let is_new = kept.is_none();
            let (mut step, patch) = match kept {
                Some(kept) => kept,
                None => {
                    let facts = facts_of(turn, &against[from..]);
                    let started = Instant::now();
                    let made = watch.editing(|| self.edit(&laid(&overlay), &prior, &facts, cx))?;
                    let edit_seconds = started.elapsed().as_secs_f64();
                    (Step { edit_seconds, error: made.as_ref().err().cloned(), ..Step::default() }, made.ok())
                }
            };
            if let Some(patch) = &patch {
                stack.push(self.model, patch)?;
                prefix.push_str(patch.prefix.as_deref().unwrap_or_default());
                overlay = stack.overlay()?;
            }
            if is_new {
                let started = Instant::now();
                let overlays = laid(&overlay);
                let by = Edited { model: self.model, overlays: &overlays, prefix: &prefix };
                if patch.is_some() {
                    // Texts to be gone on with are written at the end alone.
                    let measures = Measures { fluency: false, ..self.measures.clone() };
                    let asked: Vec<_> = turn
                        .iter()
                        .zip(&against[from..])
                        .map(|(record, against)| against.is_none().then_some((record, by)))
                        .collect();
                    let own = Cell { measures: &measures, ..*self }.scores(&asked, &before[from..to], cx)?;
                    for scored in own {
                        let Scored { mut after, probes, .. } = match scored {
                            Some(Ok(scored)) => scored,
                            _ => {
                                step.immediate.push(None);
                                step.said.push(vec![]);
                                continue;
                            }
                        };
                        finite(&mut after);
                        step.immediate.push(Some(after));
                        step.said.push(probes.into_iter().map(|probe| probe.after).collect());
                    }
                }
                if (i + 1) % every == 0 || i + 1 == turns {
                    let errors: Vec<_> = taken.iter().chain([&step]).map(|step| &step.error).collect();
                    let made = |j: usize| against[j].is_none() && errors[j / size].is_none();
                    let edited = (0..to).filter(|j| made(*j)).map(|j| &records[j]);
                    step.retention = told(self.retention(edited, to, &by), cx)?.flatten();
                }
                step.score_seconds = started.elapsed().as_secs_f64();
                if let Some(steps) = steps {
                    steps.write(i, &step, patch.as_ref())?;
                }
            }
            if part.model.collapsed.is_none() && step.retention.is_some_and(|point| self.is_broken(&point)) {
                part.model.collapsed = Some(to);
                cx.progress.note(&format!(
                    "after {to} edits the model has collapsed: perplexity has grown more than {COLLAPSE}-fold"
                ));
            }
            prior.extend(patch);
            taken.push(step);
            heard(to);
        }
        let started = Instant::now();
        let overlays = laid(&overlay);
        let by = Edited { model: self.model, overlays: &overlays, prefix: &prefix };
        let made = |(i, record): (usize, _)| {
            (against[i].is_none() && taken[i / size].error.is_none()).then_some((record, by))
        };
        let asked: Vec<Option<Under<'_>>> = records.iter().enumerate().map(made).collect();
        let mut found = self.scores(&asked, before, cx)?.into_iter();
        let collapsed = part.model.collapsed;
        part.model = ModelResult { collapsed, ..self.whole(&by, cx)? };
        part.cost.score_seconds = started.elapsed().as_secs_f64();
        let mut against = against.into_iter();
        let mut said = before.iter();
        for (turn, step) in records.chunks(size).zip(taken) {
            part.cost.edit_seconds += step.edit_seconds;
            part.cost.score_seconds += step.score_seconds;
            part.model.retention.extend(step.retention);
            let mut immediate = step.immediate.into_iter().zip(step.said);
            for (record, said) in turn.iter().zip(&mut said) {
                let (immediate, right_after) = immediate.next().unwrap_or_default();
                let error = against.next().flatten().or_else(|| step.error.clone());
                let mut result = result((record, said), error, found.next().flatten(), immediate);
                // Texts that are gone on with come last, and are written at the end alone.
                for (probe, said) in result.probes.iter_mut().zip(right_after) {
                    probe.immediate = Some(said);
                }
                part.records.push(result);
            }
        }
        part.cost.edits = edited(&part.records);
        watch.end(&mut part.cost);
        Ok(part)
    }

    /// Whether perplexity says that the model has collapsed.
    fn is_broken(&self, point: &Retention) -> bool {
        let limit = self.whole.before.0.map(|p| COLLAPSE * p);
        point.perplexity.zip(limit).is_some_and(|(now, limit)| now > limit)
    }

    /// A point of the retention curve after so many edits: edit success, as the peer computes it,
    /// over all records edited so far, and the perplexity of the text. What is no fact has no such
    /// success.
    fn retention<'r, 's: 'r>(
        &self,
        edited: impl Iterator<Item = &'r Prepared<'s>>,
        edits: usize,
        by: &Edited<'_>,
    ) -> Result<Option<Retention>> {
        let only: Vec<Prepared<'_>> = edited.map(Prepared::only_edits).collect();
        let under: Vec<Under<'_>> = only.iter().map(|record| (record, *by)).collect();
        let said = ask(&under, &Measures::COMPAT, self.seed)?;
        let own = only.iter().zip(&said).filter_map(|(record, said)| record.edit_success(said));
        let (edit, perplexity) = (mean(own), self.whole.perplexity(by)?);
        let is_measured = edit.is_some() || perplexity.is_some();
        Ok(is_measured.then_some(Retention { edits, edit, perplexity }))
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
