//! Runs: many edits made and scored, alone, at once, or one after another.

use std::time::Instant;

use mutandis_edit::patch::Stack;
use mutandis_edit::primitives::value_search::Values;
use mutandis_edit::{Context, Entry, Error, Fact, Job, Patch, Result};
use mutandis_engine::{Model, Overlay};
use serde::{Deserialize, Serialize};

use crate::compat::{Asked, Probes, Scores, predict};
use crate::perplexity::perplexity;

/// How edits follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Each on the unedited model, scored alone.
    Single,
    /// So many in one patch, each patch on the unedited model.
    Batch(usize),
    /// Each on top of those before; all scored at the end.
    Sequential,
}

/// What is run.
pub struct Run<'a> {
    /// The model.
    pub model: &'a Model,
    /// The method.
    pub method: &'a Entry,
    /// Changes of its settings.
    pub settings: &'a serde_json::Value,
    /// The records.
    pub facts: &'a [Fact],
    /// What the unedited model says of them.
    pub baseline: &'a Baseline,
    /// How edits follow one another.
    pub mode: Mode,
    /// Seed.
    pub seed: u64,
    /// Windows of a text whose perplexity is measured; none for none.
    pub text: &'a [Vec<u32>],
}

/// What the records ask, and what the unedited model predicts: the same for every run on them.
#[derive(Debug)]
pub struct Baseline {
    probes: Vec<Probes>,
    /// Predictions by record and text, where they are needed.
    before: Vec<Vec<Vec<u32>>>,
    /// Seconds that this took.
    seconds: f64,
}

impl Baseline {
    /// Tokenises the records and runs the unedited model on what should not change.
    ///
    /// # Errors
    /// Where a text is empty or longer than the model's context.
    pub fn new(model: &Model, facts: &[Fact]) -> Result<Self> {
        let started = Instant::now();
        let probes: Vec<Probes> = facts.iter().map(|f| Probes::new(model, f)).collect::<Result<_, _>>()?;
        let kept = |p: &Probes, i: &usize| p.is_locality(*i);
        let asked: Vec<Asked<'_>> = probes
            .iter()
            .flat_map(|p| (0..p.texts.len()).filter(move |i| kept(p, i)).map(|i| &p.texts[i]))
            .map(|text| Asked { text, overlays: &[] })
            .collect();
        let mut found = predict(model, &asked)?.into_iter();
        let mut of =
            |p: &Probes, i: usize| if kept(p, &i) { found.next().unwrap_or_default() } else { vec![] };
        let before = probes.iter().map(|p| (0..p.texts.len()).map(|i| of(p, i)).collect()).collect();
        Ok(Self { probes, before, seconds: started.elapsed().as_secs_f64() })
    }
}

/// One record's result.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// Index in the facts.
    pub index: usize,
    /// Its scores; `None` where the edit failed.
    pub scores: Option<Scores>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a run gives.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Protocol of the scores.
    pub protocol: &'static str,
    /// How edits followed one another.
    pub mode: Mode,
    /// Means over the records.
    pub mean: Scores,
    /// Every record.
    pub records: Vec<Record>,
    /// Records whose edit failed; not in the means.
    pub failed: usize,
    /// Seconds of editing, statistics of the model included, over all edits.
    pub edit_seconds: f64,
    /// Seconds of scoring.
    pub score_seconds: f64,
    /// Perplexity of the text, unedited and (batch: under the last patch; sequence: at the end)
    /// edited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<[f64; 2]>,
}

/// Independent edits whose probes are evaluated in one go.
const TOGETHER: usize = 16;

impl Run<'_> {
    /// Makes and scores the edits. An edit that fails is counted and told; an interruption ends
    /// the run.
    ///
    /// # Errors
    /// Where there is nothing to run, the model cannot be run on a probe, or the user interrupts.
    pub fn run(&self, cx: &Context<'_>) -> Result<Outcome> {
        if self.facts.is_empty() {
            return Err(Error::input_hint("there are no records to run", "raise `--limit`"));
        }
        let Baseline { probes, before, seconds } = self.baseline;
        let mut out = Outcome {
            protocol: "compat",
            mode: self.mode,
            mean: Scores::default(),
            records: vec![],
            failed: 0,
            edit_seconds: 0.0,
            score_seconds: *seconds,
            perplexity: None,
        };
        let edited = match self.mode {
            Mode::Single => {
                // The facts are searched together, and then written each alone.
                let values = cx.values.clone().or_else(|| Some(Values::ahead(self.facts)));
                let cx = Context { values, ..cx.clone() };
                self.batches(1, probes, before, &mut out, &cx)?
            }
            Mode::Batch(n) => self.batches(n.max(1), probes, before, &mut out, cx)?,
            Mode::Sequential => self.sequence(probes, before, &mut out, cx)?,
        };
        let started = Instant::now();
        if !self.text.is_empty() {
            let plain = perplexity(self.model, &[], self.text)?;
            let stack: Vec<&Overlay> = edited.iter().collect();
            out.perplexity = Some([plain, perplexity(self.model, &stack, self.text)?]);
        }
        out.score_seconds += started.elapsed().as_secs_f64();
        out.records.sort_by_key(|r| r.index);
        let scores: Vec<Scores> = out.records.iter().filter_map(|r| r.scores).collect();
        out.failed = out.records.len() - scores.len();
        out.mean = Scores::mean(&scores);
        Ok(out)
    }

    /// One patch for each `size` records, each on the unedited model; the last one's overlay.
    fn batches(
        &self,
        size: usize,
        probes: &[Probes],
        before: &[Vec<Vec<u32>>],
        out: &mut Outcome,
        cx: &Context<'_>,
    ) -> Result<Option<Overlay>> {
        let ranges: Vec<std::ops::Range<usize>> = (0..self.facts.len())
            .step_by(size)
            .map(|from| from..(from + size).min(self.facts.len()))
            .collect();
        let mut last = None;
        for group in ranges.chunks(TOGETHER) {
            let mut made = vec![];
            for range in group {
                let started = Instant::now();
                let patch = self.edit(&[], &[], range.clone(), out, cx)?;
                out.edit_seconds += started.elapsed().as_secs_f64();
                if let Some(patch) = patch {
                    made.push((range.clone(), patch.overlay(self.model)?));
                }
            }
            let started = Instant::now();
            let stacks: Vec<[&Overlay; 1]> = made.iter().map(|(_, overlay)| [overlay]).collect();
            let under: Vec<(usize, &[&Overlay])> = made
                .iter()
                .zip(&stacks)
                .flat_map(|((range, _), stack)| range.clone().map(move |i| (i, &stack[..])))
                .collect();
            self.score(&under, probes, before, out)?;
            out.score_seconds += started.elapsed().as_secs_f64();
            last = made.pop().map(|(_, overlay)| overlay);
            cx.progress.step(group.last().map_or(0, |r| r.end));
        }
        Ok(last)
    }

    /// Each record on top of those before; all scored at the end.
    fn sequence(
        &self,
        probes: &[Probes],
        before: &[Vec<Vec<u32>>],
        out: &mut Outcome,
        cx: &Context<'_>,
    ) -> Result<Option<Overlay>> {
        let (mut stack, mut prior, mut edited) = (Stack::default(), vec![], vec![]);
        let mut overlay: Option<Overlay> = None;
        let started = Instant::now();
        for i in 0..self.facts.len() {
            let overlays: Vec<&Overlay> = overlay.iter().collect();
            if let Some(patch) = self.edit(&overlays, &prior, i..i + 1, out, cx)? {
                stack.push(self.model, &patch)?;
                prior.push(patch);
                edited.push(i);
                overlay = Some(stack.overlay()?);
            }
            cx.progress.step(i + 1);
        }
        out.edit_seconds += started.elapsed().as_secs_f64();
        let started = Instant::now();
        let overlays: Vec<&Overlay> = overlay.iter().collect();
        let under: Vec<(usize, &[&Overlay])> = edited.iter().map(|&i| (i, &overlays[..])).collect();
        self.score(&under, probes, before, out)?;
        out.score_seconds += started.elapsed().as_secs_f64();
        Ok(overlay)
    }

    /// The patch of some records; `None` where the edit failed, which is noted.
    fn edit(
        &self,
        stack: &[&Overlay],
        prior: &[Patch],
        range: std::ops::Range<usize>,
        out: &mut Outcome,
        cx: &Context<'_>,
    ) -> Result<Option<Patch>> {
        let facts = &self.facts[range.clone()];
        let job = Job { model: self.model, stack, prior, facts, seed: self.seed };
        match self.method.edit(self.settings, &job, cx) {
            Ok(patch) => Ok(Some(patch)),
            Err(Error::Interrupted) => Err(Error::Interrupted),
            Err(error) => {
                let failed = |index| Record { index, scores: None, error: Some(error.to_string()) };
                out.records.extend(range.map(failed));
                Ok(None)
            }
        }
    }

    /// Scores records, each under its patches.
    fn score(
        &self,
        under: &[(usize, &[&Overlay])],
        probes: &[Probes],
        before: &[Vec<Vec<u32>>],
        out: &mut Outcome,
    ) -> Result<()> {
        let asked: Vec<Asked<'_>> = under
            .iter()
            .flat_map(|&(i, overlays)| probes[i].texts.iter().map(move |text| Asked { text, overlays }))
            .collect();
        let mut after = predict(self.model, &asked)?.into_iter();
        for &(index, _) in under {
            let own: Vec<Vec<u32>> = after.by_ref().take(probes[index].texts.len()).collect();
            let scores = Some(probes[index].scores(&before[index], &own));
            out.records.push(Record { index, scores, error: None });
        }
        Ok(())
    }
}
