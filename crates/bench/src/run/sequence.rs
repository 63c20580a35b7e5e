//! Edits one after another: each turn on top of those before, looked at right after it and at the end.

use std::time::Instant;

use mutandis_edit::patch::Stack;
use mutandis_edit::{Context, Fact, Patch, Result};
use mutandis_engine::{Model, Overlay};

use super::{Cell, Part, contradictory, edited, facts_of, finite, laid, result, told};
use crate::compat::in_context;
use crate::edited::Edited;
use crate::memory::Watch;
use crate::question::mean;
use crate::record::{Measures, Prepared, Said, Under, ask};
use crate::results::{ModelResult, Retention, Role};
use crate::score::Scored;
use crate::steps::{Immediate, Step, Steps};
use crate::whole::COLLAPSE;

/// Points of a retention curve.
const POINTS: usize = 10;

/// What the turns so far have made of a model.
#[derive(Default)]
struct SoFar {
    stack: Stack,
    patches: Vec<Patch>,
    overlay: Overlay,
    prefix: String,
    /// Of each record whether it was edited.
    is_edited: Vec<bool>,
}

impl SoFar {
    /// Takes a turn in: its patch, unless the edit failed, and which of its records were left out.
    fn take(&mut self, model: &Model, patch: Option<Patch>, against: &[Option<String>]) -> Result<()> {
        self.is_edited.extend(against.iter().map(|against| patch.is_some() && against.is_none()));
        let Some(patch) = patch else { return Ok(()) };
        self.stack.push(model, &patch)?;
        self.prefix.push_str(patch.prefix.as_deref().unwrap_or_default());
        self.overlay = self.stack.overlay()?;
        self.patches.push(patch);
        Ok(())
    }
}

/// Records that are edited at once.
#[derive(Clone, Copy)]
struct Turn<'a, 'r> {
    records: &'a [Prepared<'r>],
    /// What the unedited model says to them.
    before: &'a [Said],
    /// Why one is left out.
    against: &'a [Option<String>],
}

impl Cell<'_> {
    /// One patch for each `size` records, each on top of those before: scored right after their own
    /// edit, and all at the end.
    pub(super) fn sequence(
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
        let against = contradictory(records, size);
        let turns = records.len().div_ceil(size);
        let every = turns.div_ceil(POINTS).max(1);
        let mut so_far = SoFar::default();
        let mut taken: Vec<Step> = vec![];
        let slices = records.chunks(size).zip(before.chunks(size)).zip(against.chunks(size));
        for (i, ((records_of, before), against)) in slices.enumerate() {
            let turn = Turn { records: records_of, before, against };
            let kept = steps.map(|steps| steps.read(i)).transpose()?.flatten();
            let is_new = kept.is_none();
            let (mut step, patch) = match kept {
                Some(kept) => kept,
                None => watch.editing(|| self.step(&so_far, &facts_of(records_of, against), cx))?,
            };
            so_far.take(self.model, patch, against)?;
            let edits = so_far.is_edited.len();
            if is_new {
                let started = Instant::now();
                let overlays = laid(&so_far.overlay);
                let by = Edited { model: self.model, overlays: &overlays, prefix: &so_far.prefix };
                if step.error.is_none() {
                    step.immediate = self.right_after(turn, by, cx)?;
                }
                if (i + 1) % every == 0 || i + 1 == turns {
                    let edited = records.iter().zip(&so_far.is_edited).filter(|(_, is)| **is);
                    let point = self.retention(edited.map(|(record, _)| record), edits, &by);
                    step.retention = told(point, cx)?.flatten();
                }
                step.score_seconds = started.elapsed().as_secs_f64();
                if let Some(steps) = steps {
                    steps.write(i, &step, so_far.patches.last().filter(|_| step.error.is_none()))?;
                }
            }
            let perplexity = step.retention.and_then(|point| point.perplexity);
            if part.model.collapsed.is_none() && perplexity.is_some_and(|p| self.whole.has_collapsed(p)) {
                part.model.collapsed = Some(edits);
                cx.progress.note(&format!(
                    "after {edits} edits the model has collapsed: perplexity has grown more than {COLLAPSE}-fold"
                ));
            }
            taken.push(step);
            heard(edits);
        }
        let started = Instant::now();
        let overlays = laid(&so_far.overlay);
        let by = Edited { model: self.model, overlays: &overlays, prefix: &so_far.prefix };
        let asked: Vec<Option<Under<'_>>> =
            records.iter().zip(&so_far.is_edited).map(|(record, is)| is.then_some((record, by))).collect();
        let mut found = self.scores(&asked, before, cx)?.into_iter();
        let collapsed = part.model.collapsed;
        part.model = ModelResult { collapsed, ..self.whole(&by, cx)? };
        part.cost.score_seconds = started.elapsed().as_secs_f64();
        let mut all = records.iter().zip(before).zip(against);
        for step in taken {
            part.cost.edit_seconds += step.edit_seconds;
            part.cost.score_seconds += step.score_seconds;
            part.model.retention.extend(step.retention);
            let mut immediate = step.immediate.into_iter();
            for (own, against) in all.by_ref().take(size) {
                let error = against.or_else(|| step.error.clone());
                let (scores, said) = immediate.next().flatten().map(|own| (own.scores, own.said)).unzip();
                let mut result = result(own, error, found.next().flatten(), scores);
                // Texts that are gone on with come last, and are written at the end alone.
                for (probe, said) in result.probes.iter_mut().zip(said.into_iter().flatten()) {
                    probe.immediate = Some(said);
                }
                part.records.push(result);
            }
        }
        part.cost.edits = edited(&part.records);
        watch.end(&mut part.cost);
        Ok(part)
    }

    /// Edits the model further, by the facts of one turn.
    fn step(&self, so_far: &SoFar, facts: &[Fact], cx: &Context<'_>) -> Result<(Step, Option<Patch>)> {
        let started = Instant::now();
        let made = self.edit(&laid(&so_far.overlay), &so_far.patches, facts, cx)?;
        let edit_seconds = started.elapsed().as_secs_f64();
        Ok((Step { edit_seconds, error: made.as_ref().err().cloned(), ..Step::default() }, made.ok()))
    }

    /// Scores of a turn's records right after its edit. Texts to be gone on with are written at the end
    /// alone.
    fn right_after(
        &self,
        Turn { records, before, against }: Turn<'_, '_>,
        by: Edited<'_>,
        cx: &Context<'_>,
    ) -> Result<Vec<Option<Immediate>>> {
        let measures = Measures { fluency: false, ..self.measures.clone() };
        let asked: Vec<Option<Under<'_>>> = records
            .iter()
            .zip(against)
            .map(|(record, against)| against.is_none().then_some((record, by)))
            .collect();
        let scored = Cell { measures: &measures, ..*self }.scores(&asked, before, cx)?;
        let immediate = |Scored { after: mut scores, probes, .. }: Scored| {
            finite(&mut scores);
            Immediate { scores, said: probes.into_iter().map(|probe| probe.after).collect() }
        };
        Ok(scored.into_iter().map(|scored| scored?.ok().map(immediate)).collect())
    }

    /// A point of the retention curve after so many edits: edit success, as the peer computes it (of
    /// edits that are a prompt by its functions for these), over all records edited so far, and the
    /// perplexity of the text. What is no fact has no such success.
    fn retention<'r, 's: 'r>(
        &self,
        edited: impl Iterator<Item = &'r Prepared<'s>>,
        edits: usize,
        by: &Edited<'_>,
    ) -> Result<Option<Retention>> {
        let only: Vec<Prepared<'_>> = edited.map(Prepared::only_edits).collect();
        let own: Vec<Option<f64>> = if by.prefix.is_empty() {
            let under: Vec<Under<'_>> = only.iter().map(|record| (record, *by)).collect();
            let said = ask(&under, &Measures::COMPAT, self.seed)?;
            only.iter().zip(&said).map(|(record, said)| record.edit_success(said)).collect()
        } else {
            let branch = self.measures.branch;
            let scores = |record: &Prepared<'_>| in_context::scores(by, branch, record.questions());
            let success = |record| Ok(scores(record)?.after.get(Role::Edit.name()).copied());
            only.iter().map(success).collect::<Result<_>>()?
        };
        let (edit, perplexity) = (mean(own.into_iter().flatten()), self.whole.perplexity(by)?);
        let is_measured = edit.is_some() || perplexity.is_some();
        Ok(is_measured.then_some(Retention { edits, edit, perplexity }))
    }
}
