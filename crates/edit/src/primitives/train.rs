//! Training of weights by gradient descent, on top of a frozen model.
//!
//! What is trained is a change of some weights, whole or of low rank; the model is never written.
//! Below the lowest of them nothing changes, so the hidden states entering its layer are computed
//! once (methods.md §4b row 10); the backward pass ends there.

mod budget;
mod kept;
mod parameter;

use mutandis_engine::{Model, Overlay, Tape, Wants};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::answers::{Answers, Example, Loss, Passed};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::method::on_top;
use crate::patch::SearchInfo;
pub use budget::Budget;
use budget::Importance;
use kept::Kept;
pub use parameter::{Bounds, Parameter};

/// How weights are trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
pub struct Training {
    /// How often each fact is gone through.
    pub epochs: usize,
    /// Step size.
    pub learning_rate: f32,
    /// What a step is made of the gradient by.
    pub optimizer: Optimizer,
    /// Facts of one step, at most.
    pub batch: usize,
    /// In which order facts are gone through.
    pub schedule: Schedule,
    /// Loss, in nats, below which a batch takes no step, and training ends when the mean of an
    /// epoch lies there.
    pub stop_below: f32,
    /// Teach the model to end its answer after the target.
    pub end_of_text: bool,
    /// Learn the facts of the patches beneath again along with the new ones, so that they are not
    /// forgotten; where both answer one prompt, the newest stands.
    pub rehearse: bool,
    /// Weight of the divergence, in nats a token, from what the model predicted before along texts
    /// that it writes itself; 0 holds nothing.
    pub kl: f32,
}

impl Default for Training {
    fn default() -> Self {
        Self {
            epochs: 25,
            learning_rate: 5e-4,
            optimizer: Optimizer::Adam,
            batch: 1,
            schedule: Schedule::BreadthFirst,
            stop_below: 0.01,
            end_of_text: false,
            rehearse: false,
            kl: 0.0,
        }
    }
}

/// What makes a step of a gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Optimizer {
    /// Adam (arXiv 1412.6980).
    Adam,
    /// The gradient times the learning rate.
    Sgd,
}

/// In which order facts are gone through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Each batch until it is learnt, then the next, with an optimizer of its own.
    DepthFirst,
    /// All batches once an epoch, in an order that is drawn anew each time.
    BreadthFirst,
}

impl Training {
    /// Checks what no type does.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String, hint: &str| Err(Error::input_hint(what, hint));
        if !(self.learning_rate.is_finite() && self.learning_rate > 0.0) {
            return wrong(
                format!("`learning-rate` is {}, expected a number above 0", self.learning_rate),
                "1e-5 to 1e-2 are common",
            );
        }
        if !(1..=MOST_EPOCHS).contains(&self.epochs) {
            let found = self.epochs;
            return wrong(format!("`epochs` is {found}, expected 1 to {MOST_EPOCHS}"), "25 are common");
        }
        if self.batch == 0 {
            return wrong("`batch` is 0, expected 1 or more".into(), "1 takes a step for each fact");
        }
        if !(self.stop_below.is_finite() && self.stop_below >= 0.0) {
            return wrong(
                format!("`stop-below` is {}, expected 0 or more", self.stop_below),
                "0 trains for all epochs",
            );
        }
        if self.rehearse && self.schedule == Schedule::DepthFirst {
            return wrong(
                "`rehearse` is true and `schedule` is depth-first: the last facts would be learnt at the cost of the others".into(),
                "give `schedule=breadth-first`, or leave out `rehearse`",
            );
        }
        if !(self.kl.is_finite() && self.kl >= 0.0) {
            return wrong(format!("`kl` is {}, expected 0 or more", self.kl), "0 holds nothing, 1 much");
        }
        Ok(())
    }
}

/// Epochs, at most: more than anyone waits for.
const MOST_EPOCHS: usize = 1_000_000;

/// What is to be learnt.
#[derive(Debug, Clone, Copy)]
pub struct Lesson<'a> {
    /// Texts with what they are to predict.
    pub examples: &'a [Example],
    /// How.
    pub training: &'a Training,
    /// How many singular values may stay, where the parameters have such.
    pub budget: Option<Budget>,
    /// Seed of all that is drawn.
    pub seed: u64,
}

/// How training went.
#[derive(Debug, Clone, PartialEq)]
pub struct Trained {
    /// One per example, as it is at the end.
    pub search: Vec<SearchInfo>,
    /// Loss of every epoch, each batch as it was before its step; of depth-first training those
    /// of all batches, one batch after another.
    pub losses: Vec<f32>,
}

/// Trains parameters in place until the examples are predicted.
///
/// An epoch with a loss more than twice what it was at first, an end with a larger one than at
/// first, or one that is no number, is taken for divergence: the parameters go back to where the
/// loss was smallest, and the user is told.
///
/// # Errors
/// Where a setting is out of range, a parameter is not one of the model's, the loss is not finite
/// before any step, or the user interrupts.
pub fn train(
    model: &Model,
    stack: &[&Overlay],
    parameters: &mut [Parameter],
    lesson: &Lesson<'_>,
    cx: &Context<'_>,
) -> Result<Trained> {
    let Lesson { examples, training, budget, seed } = *lesson;
    training.check()?;
    let Some(first) = parameters.iter().map(|p| p.id.layer).min() else {
        return Err(Error::input("nothing is to be trained"));
    };
    for parameter in parameters.iter() {
        parameter.check(model)?;
    }
    let held = if training.kl > 0.0 { kept::texts(model, seed, cx)? } else { vec![] };
    let kept = match &held[..] {
        [] => None,
        texts => Some(Kept::new(model, stack, texts, first, training.kl)?),
    };
    let steps = training.epochs * examples.len().div_ceil(training.batch);
    let importance = budget.map(|budget| Importance::new(budget, parameters, steps));
    let mut run = Run {
        model,
        importance,
        stack,
        kept,
        steps: 0,
        answers: Answers::new(model, stack, examples, first)?,
        training,
        search: vec![SearchInfo::default(); examples.len()],
        losses: vec![],
        cx,
        told: 0,
    };
    cx.progress.begin("training", training.epochs * examples.len());
    let mut order: Vec<usize> = (0..examples.len()).collect();
    match training.schedule {
        Schedule::DepthFirst => {
            let before = values(parameters);
            let at_first = run.look(parameters, &order)?;
            for batch in order.chunks(training.batch) {
                parameters.iter_mut().for_each(Parameter::forget);
                run.epochs(parameters, |_| batch.to_vec())?;
            }
            // What each batch has learnt may be at the cost of all others.
            let last = run.look(parameters, &order)?;
            if is_above(last, at_first) {
                run.go_back(parameters, before, [last, at_first, at_first]);
                run.look(parameters, &order)?;
            }
        }
        Schedule::BreadthFirst => {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            run.epochs(parameters, |epoch| {
                if epoch > 0 {
                    shuffle(&mut order, &mut rng);
                }
                order.clone()
            })?;
        }
    }
    cx.progress.end();
    Ok(Trained { search: run.search, losses: run.losses })
}

/// Fisher–Yates.
pub(super) fn shuffle(order: &mut [usize], rng: &mut ChaCha8Rng) {
    for i in (1..order.len()).rev() {
        let j = rng.next_u64() % (i as u64 + 1);
        order.swap(i, j as usize);
    }
}

struct Run<'a> {
    model: &'a Model,
    stack: &'a [&'a Overlay],
    answers: Answers<'a>,
    kept: Option<Kept<'a>>,
    importance: Option<Importance>,
    /// Steps taken.
    steps: usize,
    training: &'a Training,
    search: Vec<SearchInfo>,
    losses: Vec<f32>,
    cx: &'a Context<'a>,
    told: usize,
}

impl Run<'_> {
    /// Goes through examples until they are learnt.
    fn epochs(
        &mut self,
        parameters: &mut [Parameter],
        mut order: impl FnMut(usize) -> Vec<usize>,
    ) -> Result<()> {
        let all = order(0);
        let at_first = self.look(parameters, &all)?;
        if !at_first.is_finite() {
            return Err(Error::Numerical { what: format!("the loss is {at_first} before any step") });
        }
        // Where the loss was smallest: the loss, the numbers and what was known of the examples.
        let mut best: (f32, Vec<Vec<f32>>, Vec<SearchInfo>) =
            (at_first, values(parameters), self.search.clone());
        let mut last = at_first;
        for epoch in 0..self.training.epochs {
            let order = if epoch == 0 { all.clone() } else { order(epoch) };
            let before = values(parameters);
            last = self.epoch(parameters, &order)?;
            // A step may go too far and come back.
            if is_above(last, 2.0 * at_first) {
                break;
            }
            self.losses.push(last);
            if last < best.0 {
                best = (last, before, self.search.clone());
            }
            if last < self.training.stop_below {
                break;
            }
        }
        // One batch below the limit has taken no step since.
        let is_seen = last < self.training.stop_below && all.len() <= self.training.batch;
        if !is_above(last, 2.0 * at_first) && !is_seen {
            last = self.look(parameters, &all)?;
        }
        // A nat above where it has been is no noise either.
        if is_above(last, at_first.min(best.0 + 1.0)) {
            let (least, values, search) = best;
            self.search = search;
            self.go_back(parameters, values, [last, at_first, least]);
        }
        Ok(())
    }

    /// Puts numbers back to where the loss was smallest, and says so: the loss now, at first, there.
    fn go_back(&self, parameters: &mut [Parameter], values: Vec<Vec<f32>>, losses: [f32; 3]) {
        parameters.iter_mut().zip(values).for_each(|(p, v)| p.values = v);
        let [last, at_first, least] = losses;
        self.cx.progress.note(&format!(
            "training diverged: the loss came to {last:.3}, {at_first:.3} at first; what was there at \
             {least:.3} is kept (a lower `learning-rate` may do)"
        ));
    }

    /// The mean loss of examples as they are now.
    fn look(&mut self, parameters: &[Parameter], all: &[usize]) -> Result<f32> {
        self.cx.check()?;
        let Some(overlay) = overlay(parameters) else { return Ok(f32::NAN) };
        let losses = self.answers.losses(all, &on_top(self.stack, &overlay))?;
        for (&i, each) in all.iter().zip(&losses) {
            self.search[i].see(each);
        }
        Ok((losses.iter().map(|l| f64::from(l.mean)).sum::<f64>() / all.len() as f64) as f32)
    }

    /// One step for each batch; the mean loss of all, each before its step.
    fn epoch(&mut self, parameters: &mut [Parameter], order: &[usize]) -> Result<f32> {
        let mut sum = 0.0f64;
        for batch in order.chunks(self.training.batch) {
            self.cx.check()?;
            let Slope { losses, gradients } = self.slope(parameters, batch)?;
            for (&i, each) in batch.iter().zip(&losses) {
                let info = &mut self.search[i];
                info.steps += usize::from(gradients.is_some());
                info.see(each);
                sum += f64::from(each.mean);
            }
            if losses.iter().any(|l| !l.mean.is_finite()) {
                return Ok(f32::NAN);
            }
            self.steps += 1;
            if let Some(gradients) = gradients {
                if let Some(importance) = &mut self.importance {
                    importance.see(parameters, &gradients);
                }
                for (parameter, gradient) in parameters.iter_mut().zip(&gradients) {
                    parameter.step(gradient, self.training);
                }
                if let Some(importance) = &self.importance {
                    importance.prune(parameters, self.steps);
                }
            }
            self.told += batch.len();
            self.cx.progress.step(self.told);
        }
        Ok((sum / order.len() as f64) as f32)
    }

    /// Losses of a batch, and the gradients of their mean and of what is kept; none where the mean
    /// is below where training ends.
    fn slope(&self, parameters: &[Parameter], batch: &[usize]) -> Result<Slope> {
        let (model, answers, enough) = (self.model, &self.answers, self.training.stop_below);
        let Some(overlay) = overlay(parameters) else {
            let nan = Loss { sum: f32::NAN, mean: f32::NAN };
            return Ok(Slope { losses: vec![nan; batch.len()], gradients: None });
        };
        let overlays = on_top(self.stack, &overlay);
        let mut losses: Vec<Loss> = Vec::with_capacity(batch.len());
        let mut gradients: Option<Vec<Vec<f32>>> = None;
        let mean = |losses: &[Loss]| losses.iter().map(|l| l.mean).sum::<f32>() / batch.len() as f32;
        let mut rest = batch;
        while !rest.is_empty() {
            let (now, later) = answers.split(rest);
            rest = later;
            let Passed { losses: more, logits, tape, .. } =
                answers.run(now, &overlays, 1.0 / batch.len() as f32)?;
            losses.extend(more);
            let whole = now.len() == batch.len();
            if !mean(&losses).is_finite() || (whole && mean(&losses) < enough) {
                return Ok(Slope { losses, gradients: None });
            }
            let each = gradients_of(model, parameters, &tape, logits)?;
            match &mut gradients {
                None => gradients = Some(each),
                Some(sums) => add(sums, each),
            }
        }
        if mean(&losses) < enough {
            return Ok(Slope { losses, gradients: None });
        }
        if let (Some(kept), Some(sums)) = (&self.kept, &mut gradients) {
            add(sums, kept.slope(parameters, &overlays, self.steps)?);
        }
        Ok(Slope { losses, gradients })
    }
}

/// Whether a loss is one of training that has diverged: above a limit, and not only by noise.
fn is_above(mean: f32, limit: f32) -> bool {
    !mean.is_finite() || mean > limit.max(1.0)
}

/// The numbers that are trained.
fn values(parameters: &[Parameter]) -> Vec<Vec<f32>> {
    parameters.iter().map(|p| p.values.clone()).collect()
}

/// All changes; nothing where one is not finite, as the loss is not either then.
fn overlay(parameters: &[Parameter]) -> Option<Overlay> {
    let mut overlay = Overlay::default();
    for parameter in parameters.iter().filter(|p| !p.is_zero()) {
        overlay.push(parameter.id, parameter.delta().ok()?);
    }
    Some(overlay)
}

/// What a step is made of.
struct Slope {
    /// One per example of the batch.
    losses: Vec<Loss>,
    /// Of the mean loss with respect to the values of each parameter; none where no step is to be
    /// taken.
    gradients: Option<Vec<Vec<f32>>>,
}

/// The gradients of each parameter's values, of what a pass has at its logits.
fn gradients_of(
    model: &Model,
    parameters: &[Parameter],
    tape: &Tape<'_>,
    logits: Vec<f32>,
) -> Result<Vec<Vec<f32>>> {
    let pairs = parameters.iter().map(|p| p.id).collect();
    let found = model.backward(tape, &Wants { logits, pairs, ..Default::default() })?;
    Ok(parameters.iter().zip(&found.pairs).map(|(p, pair)| p.gradient(model, pair)).collect())
}

/// Adds gradients, parameter by parameter.
fn add(sums: &mut [Vec<f32>], more: Vec<Vec<f32>>) {
    for (sum, more) in sums.iter_mut().zip(more) {
        sum.iter_mut().zip(more).for_each(|(s, x)| *s += x);
    }
}
