//! Training of an editor on records of facts (MEND, algorithm 1; MALMEN, algorithm 1).
//!
//! For each step: inputs and gradients of some facts on the frozen model; the change that the
//! editor makes of them; the loss of the model so changed on the facts, their rephrasings and
//! unrelated prompts; and the way back from there into the editor's numbers.

mod record;
mod settings;

use std::path::{Path, PathBuf};

use mutandis_engine::backward::Pair;
use mutandis_engine::kernels::loss;
use mutandis_engine::{Model, Overlay, Role, Wants, WeightId};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::store::{self, About};
use super::{Editor, Made, Rule, Shape, Slopes, no_head};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::primitives::adam::Adam;
use crate::primitives::answers::{Answers, Example};
use crate::primitives::fine_tune::weights;
use crate::primitives::grad_pairs::grad_pairs;
use crate::primitives::train::shuffle;
pub use record::Record;
use record::fitting;
pub use settings::Settings;

/// Scores on records, each the mean over them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// The loss that is trained for.
    pub loss: f64,
    /// Tokens of the facts' answers that are predicted.
    pub edit: f64,
    /// Those of their rephrasings.
    pub rephrase: f64,
    /// Tokens of the unrelated answers at which the prediction is as before.
    pub locality: f64,
}

/// How a training went.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Steps taken, those of earlier sittings included.
    pub steps: usize,
    /// On the held-out records before training.
    pub before: Scores,
    /// Those of the editor that was kept.
    pub reached: Scores,
    /// Why it ended.
    pub ended: String,
    /// Records that do not fit the model, and were left out.
    pub unfit: usize,
}

/// What an editor is trained on, and where it is kept.
#[derive(Debug, Clone)]
pub struct Order<'a> {
    /// What is to be learnt.
    pub records: &'a [Record],
    /// blake3 of the records.
    pub data: String,
    /// Seed of all that is drawn.
    pub seed: u64,
    /// The editor's file. Beside it, in `….partial` and `….best`, is an unfinished training.
    pub out: &'a Path,
    /// Forget an unfinished training instead of going on with it.
    pub anew: bool,
}

/// What is trained.
pub(crate) struct Plan<'a> {
    pub(crate) method: &'a str,
    pub(crate) rule: Rule,
    pub(crate) settings: &'a Settings,
}

/// Trains an editor and writes it; what an earlier sitting left unfinished goes on.
///
/// # Errors
/// Where a setting or a record does not fit the model, a file cannot be written, or the user
/// interrupts: then the next call goes on from the last validation.
pub(crate) fn train(model: &Model, plan: &Plan<'_>, order: &Order<'_>, cx: &Context<'_>) -> Result<Outcome> {
    let settings = plan.settings;
    settings.check()?;
    let records = fitting(model, order.records, cx);
    if records.len() < settings.validation + settings.edits {
        return Err(Error::input_hint(
            format!(
                "there are {} records, expected {} for validation and at least {} more",
                records.len(),
                settings.validation,
                settings.edits
            ),
            "set `validation` lower, or give more records",
        ));
    }
    let count = model.architecture().layers;
    let late: Vec<usize> = (count.saturating_sub(3)..count).collect();
    let modules = settings.modules.clone().unwrap_or_else(|| mlp(model));
    let targets = weights(model, settings.layers.as_ref().unwrap_or(&late), &modules)?;
    if targets.iter().any(|(id, _)| id.role == Role::Head) {
        return Err(no_head());
    }
    let (training, held_out) = records.split_at(records.len() - settings.validation);
    let about = About {
        method: plan.method.to_owned(),
        base: model.fingerprint()?.to_owned(),
        settings: serde_json::to_value(settings).map_err(|e| Error::input(e.to_string()))?,
        data: order.data.clone(),
        seed: order.seed,
        steps: 0,
        reached: None,
        stale: 0,
    };
    let run = Run { model, plan, order, training, partial: order.partial(), best: order.best(), cx };
    let (mut state, before) = run.begin(about, targets, held_out)?;
    cx.progress.begin("training the editor", settings.steps);
    let ended = loop {
        if state.about.steps >= settings.steps {
            break format!("after {} steps", settings.steps);
        }
        if state.about.stale >= settings.patience {
            break format!("nothing better in {} validations", settings.patience);
        }
        cx.check()?;
        match run.forward(&mut state, held_out) {
            Ok(()) => cx.progress.step(state.about.steps),
            // All records fit, and the model was sound at first: the numbers have run away.
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(Error::Io { action, path, source }) => return Err(Error::Io { action, path, source }),
            Err(error) => {
                let step = state.about.steps;
                cx.progress.note(&format!(
                    "training diverged in step {step}: {error}; the best editor so far is kept (lower \
                     `learning-rate` or `rates-learning-rate`)"
                ));
                break format!("diverged in step {step}");
            }
        }
    };
    cx.progress.end();
    let reached = run.end(&state.about)?;
    let unfit = order.records.len() - records.len();
    Ok(Outcome { steps: state.about.steps, before, reached, ended, unfit })
}

/// Matrices of a model's MLPs: not all families have a gate.
fn mlp(model: &Model) -> Vec<Role> {
    let all = [Role::MlpGate, Role::MlpUp, Role::MlpOut];
    all.into_iter().filter(|role| model.linear_shape(*role, 0).is_ok()).collect()
}

impl Order<'_> {
    /// Where an unfinished training is kept.
    pub fn partial(&self) -> PathBuf {
        self.beside(".partial")
    }

    /// Where its best editor is kept.
    pub fn best(&self) -> PathBuf {
        self.beside(".best")
    }

    fn beside(&self, ending: &str) -> PathBuf {
        let mut name = self.out.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    }
}

struct Run<'a> {
    model: &'a Model,
    plan: &'a Plan<'a>,
    order: &'a Order<'a>,
    training: &'a [&'a Record],
    partial: PathBuf,
    best: PathBuf,
    cx: &'a Context<'a>,
}

/// Where a training is.
struct State {
    editor: Editor,
    optimizers: Vec<Adam>,
    about: About,
    best: f64,
}

impl Run<'_> {
    /// From where an earlier sitting stopped, or from the start; and the scores before training.
    fn begin(
        &self,
        about: About,
        targets: Vec<(WeightId, [usize; 2])>,
        held_out: &[&Record],
    ) -> Result<(State, Scores)> {
        let settings = self.plan.settings;
        let shape = Shape { rule: self.plan.rule, rank: settings.rank, blocks: settings.blocks };
        let mut editor = Editor::new(shape, targets, self.order.seed)?;
        self.take_statistics(&mut editor)?;
        editor.start(settings.step, settings.ridge);
        let before = self.score(&editor, held_out)?;
        if !before.loss.is_finite() {
            return Err(Error::input_hint(
                format!("before training the loss is {}: its change breaks the model", before.loss),
                format!("set `step` lower than {:e}", settings.step),
            ));
        }
        self.cx.progress.note(&format!("before training: {before}"));
        if self.order.anew {
            for path in [&self.partial, &self.best] {
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(Error::io("remove", path)(error));
                    }
                    _ => {}
                }
            }
        }
        if self.partial.exists() {
            let (editor, kept, optimizers) = store::load(&self.partial)?;
            self.same(&self.partial, &kept, &about)?;
            self.cx.progress.note(&format!("going on after step {}", kept.steps));
            let best = kept.reached.map_or(f64::INFINITY, |s| s.loss);
            return Ok((State { editor, optimizers, about: kept, best }, before));
        }
        let optimizers = editor.numbers_mut().iter().map(|n| Adam::new(n.len())).collect();
        let about = About { reached: Some(before), ..about };
        store::save(&self.best, &editor, &about, &[])?;
        Ok((State { editor, optimizers, about, best: before.loss }, before))
    }

    /// Statistics over the first records, then frozen.
    ///
    /// DIFFERENCE: published code goes on updating them while it trains, so that the function that
    /// is trained changes under its optimizer.
    fn take_statistics(&self, editor: &mut Editor) -> Result<()> {
        let records = &self.training[..self.plan.settings.statistics.min(self.training.len())];
        let facts = records.iter().map(|r| Example::answer(self.model, &r.fact, false));
        let examples = facts.collect::<Result<Vec<_>>>()?;
        let ids: Vec<WeightId> = editor.weights.iter().map(|(id, _)| *id).collect();
        let lowest = ids.iter().map(|id| id.layer).min().unwrap_or(0);
        let answers = Answers::new(self.model, &[], &examples, lowest)?;
        let all: Vec<usize> = (0..examples.len()).collect();
        self.cx.progress.begin("taking statistics", all.len());
        for some in all.chunks(64) {
            self.cx.check()?;
            editor.see(&grad_pairs(self.model, &answers, some, &ids, &[])?.pairs);
            self.cx.progress.step(some.last().map_or(0, |i| i + 1));
        }
        self.cx.progress.end();
        // As they will be read, so that a training that is resumed sees the same.
        for (shape, shared) in &mut editor.shared {
            let state = shared.statistics.to_state();
            if let Some(read) = super::Running::from_state(&state, shape[0] + shape[1], false) {
                shared.statistics = read;
            }
        }
        Ok(())
    }

    /// Records of a step: each epoch goes through all, in an order drawn for it.
    fn records(&self, step: usize) -> Vec<&Record> {
        let (n, each) = (self.training.len(), self.plan.settings.edits * self.plan.settings.changes);
        let mut order: Vec<usize> = vec![];
        let mut drawn = usize::MAX;
        (step * each..(step + 1) * each)
            .map(|i| {
                if i / n != drawn {
                    drawn = i / n;
                    order = (0..n).collect();
                    let mut rng = ChaCha8Rng::seed_from_u64(self.order.seed);
                    rng.set_stream(1 + drawn as u64);
                    shuffle(&mut order, &mut rng);
                }
                self.training[order[i % n]]
            })
            .collect()
    }

    /// A step, and a validation where one is due.
    fn forward(&self, state: &mut State, held_out: &[&Record]) -> Result<()> {
        let settings = self.plan.settings;
        self.step(state)?;
        if state.about.steps.is_multiple_of(settings.validate_every) || state.about.steps == settings.steps {
            self.validate(state, held_out)?;
        }
        Ok(())
    }

    fn step(&self, state: &mut State) -> Result<()> {
        let settings = self.plan.settings;
        let records = self.records(state.about.steps);
        state.about.steps += 1;
        let (scores, slopes) = self.evaluate(&state.editor, &records, true)?;
        if !scores.loss.is_finite() {
            return Err(Error::Numerical { what: format!("the loss is {}", scores.loss) });
        }
        let groups = slopes.shared.into_values().chain([slopes.rates, slopes.ridges]);
        let groups: Vec<Vec<f64>> = groups.collect();
        let norm = groups.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
        if !norm.is_finite() {
            return Err(Error::Numerical { what: format!("the gradient's norm is {norm}") });
        }
        let factor = if norm > settings.clip { settings.clip / norm } else { 1.0 };
        let networks = state.editor.shared.len();
        let numbers = state.editor.numbers_mut();
        for (i, ((numbers, group), adam)) in
            numbers.into_iter().zip(&groups).zip(&mut state.optimizers).enumerate()
        {
            let gradient: Vec<f32> = group.iter().map(|g| (factor * g) as f32).collect();
            let rate = if i < networks { settings.learning_rate } else { settings.rates_learning_rate };
            adam.step(numbers, &gradient, rate);
        }
        Ok(())
    }

    /// Scores the editor, keeps it where it is the best so far, and the training in any case.
    fn validate(&self, state: &mut State, held_out: &[&Record]) -> Result<()> {
        let scores = self.score(&state.editor, held_out)?;
        if !scores.loss.is_finite() {
            return Err(Error::Numerical {
                what: format!("the loss on held-out records is {}", scores.loss),
            });
        }
        self.cx.progress.note(&format!("step {}: {scores}", state.about.steps));
        if scores.loss < state.best {
            state.best = scores.loss;
            (state.about.reached, state.about.stale) = (Some(scores), 0);
            store::save(&self.best, &state.editor, &state.about, &[])?;
        } else {
            state.about.stale += 1;
        }
        store::save(&self.partial, &state.editor, &state.about, &state.optimizers)
    }

    /// Puts the best editor in its place, and forgets the training; what it reached. A sitting that
    /// was killed between the two left the editor in its place already.
    fn end(&self, about: &About) -> Result<Scores> {
        let place = self.order.out;
        let best = if self.best.exists() { &self.best } else { place };
        let (_, kept, _) = store::load(best)?;
        self.same(best, &kept, about)?;
        if best != place {
            std::fs::rename(best, place).map_err(Error::io("write", place))?;
        }
        if self.partial.exists() {
            std::fs::remove_file(&self.partial).map_err(Error::io("remove", &self.partial))?;
        }
        Ok(kept.reached.unwrap_or_default())
    }

    /// Checks that what a file holds is of one training with the other.
    fn same(&self, file: &Path, kept: &About, about: &About) -> Result<()> {
        let plan = |about: &About| About { steps: 0, reached: None, stale: 0, ..about.clone() };
        if plan(kept) == plan(about) {
            return Ok(());
        }
        let hint = "give its settings, data, model and seed to go on, or remove";
        Err(Error::input_hint(
            format!("{} is of another training", file.display()),
            format!("{hint} {} to begin anew", self.partial.display()),
        ))
    }

    /// Mean scores over records.
    fn score(&self, editor: &Editor, records: &[&Record]) -> Result<Scores> {
        let each = self.plan.settings.edits * self.plan.settings.changes;
        let mut sum = Scores::default();
        for some in records.chunks(each) {
            self.cx.check()?;
            let weight = some.len() as f64 / records.len() as f64;
            let (scores, _) = self.evaluate(editor, some, false)?;
            sum.loss += weight * scores.loss;
            sum.edit += weight * scores.edit;
            sum.rephrase += weight * scores.rephrase;
            sum.locality += weight * scores.locality;
        }
        Ok(sum)
    }

    /// Scores of the model as the editor changes it for each few of some records, and, where they
    /// are wanted, the gradients of the loss.
    fn evaluate(&self, editor: &Editor, records: &[&Record], gradients: bool) -> Result<(Scores, Slopes)> {
        let settings = self.plan.settings;
        let model = self.model;
        let (isa, v) = (model.isa(), model.architecture().vocabulary);
        let ids: Vec<WeightId> = editor.weights.iter().map(|(id, _)| *id).collect();
        let lowest = ids.iter().map(|id| id.layer).min().unwrap_or(0);
        // Of each record its fact, its rephrasing and what must stay.
        let mut examples = Vec::with_capacity(3 * records.len());
        for record in records {
            examples.extend(record.examples(model)?);
        }
        let answers = Answers::new(model, &[], &examples, lowest)?;
        let facts: Vec<usize> = (0..records.len()).map(|i| 3 * i).collect();
        let found = grad_pairs(model, &answers, &facts, &ids, &[])?;
        // A change for each group of facts.
        let groups: Vec<usize> = (0..records.len()).map(|i| i / settings.edits).collect();
        let count = groups.last().map_or(0, |g| g + 1);
        let mut overlays: Vec<Overlay> = (0..count).map(|_| Overlay::default()).collect();
        let mut made: Vec<Vec<Made>> = vec![];
        for (group, overlay) in overlays.iter_mut().enumerate() {
            let mut all = vec![];
            for (w, (id, shape)) in editor.weights.iter().enumerate() {
                let own = |row: usize| groups[found.owners[row]] == group;
                let (change, one) = editor.make(w, &rows(&found.pairs[w], *shape, own))?;
                overlay.push(*id, change.delta()?);
                all.push(one);
            }
            made.push(all);
        }
        let stacks: Vec<[&Overlay; 1]> = overlays.iter().map(|o| [o]).collect();

        let kept: Vec<(usize, &[&Overlay])> = facts.iter().map(|i| (i + 2, &[][..])).collect();
        let mut before = answers.forward(&kept, false)?.logits;
        model.install(|| loss::log_softmax(isa, &mut before, v));
        let all: Vec<(usize, &[&Overlay])> =
            (0..examples.len()).map(|i| (i, &stacks[groups[i / 3]][..])).collect();
        let outcome = answers.forward(&all, gradients)?;
        let mut logits = outcome.logits;
        model.install(|| loss::log_softmax(isa, &mut logits, v));

        // The loss, and its gradient in the place of the log-probabilities. What a row should be:
        // a token, by a weight, or what it was.
        let share = 1.0 / records.len() as f64;
        let mut starts = vec![0];
        let mut aims = vec![];
        let mut was = before.chunks_exact(v);
        for (i, example) in examples.iter().enumerate() {
            starts.push(starts[i] + example.tokens.len());
            let each = share / example.targets.len() as f64;
            for &(_, id) in &example.targets {
                let aim =
                    if i % 3 < 2 { Aim::Token(id as usize) } else { Aim::Kept(was.next().unwrap_or(&[])) };
                aims.push((i % 3, each, aim));
            }
        }
        // Fact and rephrasing in equal parts.
        let (edit, locality) = (f64::from(settings.edit_weight), f64::from(settings.locality_weight));
        let weights = [edit / 2.0, edit / 2.0, locality];
        let found: Vec<(f64, bool)> = model.install(|| {
            let rows = logits.par_chunks_exact_mut(v).zip(&aims);
            rows.map(|(row, (kind, each, aim))| aim.score(row, each * weights[*kind])).collect()
        });
        let mut scores = Scores::default();
        for ((loss, hit), (kind, each, _)) in found.iter().zip(&aims) {
            scores.loss += loss;
            let score = [&mut scores.edit, &mut scores.rephrase, &mut scores.locality];
            if *hit {
                *score[*kind] += each;
            }
        }
        let mut slopes = editor.slopes();
        if gradients && scores.loss.is_finite() {
            let tape =
                outcome.tape.ok_or_else(|| Error::Numerical { what: "the pass kept no tape".into() })?;
            let pairs = model.backward(&tape, &Wants { logits, pairs: ids, ..Default::default() })?.pairs;
            for (group, all) in made.iter().enumerate() {
                for (w, (one, (_, shape))) in all.iter().zip(&editor.weights).enumerate() {
                    let own = |row: usize| {
                        let example = starts.partition_point(|s| *s <= row) - 1;
                        groups[example / 3] == group
                    };
                    editor.back(one, &rows(&pairs[w], *shape, own), &mut slopes);
                }
            }
        }
        Ok((scores, slopes))
    }
}

/// Some rows of a pair.
fn rows(pair: &Pair, [out, inn]: [usize; 2], own: impl Fn(usize) -> bool) -> Pair {
    let pick = |rows: &[f32], width: usize| -> Vec<f32> {
        let picked = rows.chunks_exact(width).enumerate().filter(|(i, _)| own(*i));
        picked.flat_map(|(_, row)| row.iter().copied()).collect()
    };
    Pair { x: pick(&pair.x, inn), dy: pick(&pair.dy, out) }
}

/// What should be predicted at a row.
enum Aim<'a> {
    /// A token.
    Token(usize),
    /// What was predicted before: log-probabilities.
    Kept(&'a [f32]),
}

impl Aim<'_> {
    /// The loss times `weight` of a row of log-probabilities, and whether its likeliest token is as
    /// it should be; the loss's gradient by the logits takes the row's place.
    fn score(&self, row: &mut [f32], weight: f64) -> (f64, bool) {
        let (likeliest, scale) = (argmax(row), weight as f32);
        match *self {
            Self::Token(id) => {
                let loss = -weight * f64::from(row[id]);
                row.iter_mut().for_each(|x| *x = scale * x.exp());
                row[id] -= scale;
                (loss, likeliest == id)
            }
            Self::Kept(was) => {
                let mut divergence = 0.0f64;
                for (x, q) in row.iter_mut().zip(was) {
                    let p = q.exp();
                    divergence += f64::from(p * (q - *x));
                    *x = scale * (x.exp() - p);
                }
                (weight * divergence, likeliest == argmax(was))
            }
        }
    }
}

fn argmax(row: &[f32]) -> usize {
    row.iter()
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (i, x)| if *x > best.1 { (i, *x) } else { best })
        .0
}

impl std::fmt::Display for Scores {
    /// One line.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "loss {:.4}, edit {:.1} %, rephrase {:.1} %, locality {:.1} %",
            self.loss,
            100.0 * self.edit,
            100.0 * self.rephrase,
            100.0 * self.locality
        )
    }
}
