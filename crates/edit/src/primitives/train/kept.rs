//! What training is to leave alone: the model's predictions along texts of its own.

use mutandis_engine::kernels::loss;
use mutandis_engine::{Model, Overlay};

use super::{Parameter, gradients_of};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::primitives::answers::{Answers, Example};
use crate::primitives::contexts::{self, ContextSpec};

/// Texts that are held, and tokens of each.
const TEXTS: (usize, usize) = (8, 24);

/// Texts that the model writes, each predicting at every row; no targets are named, as what should
/// be predicted is a distribution.
///
/// # Errors
/// Where the model has no tokenizer or cannot write so much, or the user stops the work.
pub(super) fn texts(model: &Model, seed: u64, cx: &Context<'_>) -> Result<Vec<Example>> {
    let (count, length) = TEXTS;
    let spec = ContextSpec { lengths: vec![(length, count)], seed, ..ContextSpec::default() };
    let tokenizer = model.tokenizer()?;
    let mut all = vec![];
    // The first template has no text of its own.
    for template in contexts::sampled(model, &spec, cx)?.iter().skip(1) {
        let tokens = tokenizer.encode(template.trim_end_matches("{}").trim_end())?.ids;
        let targets = (0..tokens.len()).map(|row| (row, 0)).collect();
        all.push(Example { tokens, targets });
    }
    all.retain(|text| !text.tokens.is_empty());
    Ok(all)
}

/// Texts and what was predicted along them before training.
pub(super) struct Kept<'a> {
    model: &'a Model,
    answers: Answers<'a>,
    /// Log-probabilities `[t, v]` of each text.
    before: Vec<Vec<f32>>,
    weight: f32,
}

impl<'a> Kept<'a> {
    /// Of texts, by the model with the changes underneath.
    ///
    /// # Errors
    /// Where the model cannot be run on them.
    pub(super) fn new(
        model: &'a Model,
        stack: &'a [&'a Overlay],
        texts: &'a [Example],
        lowest: usize,
        weight: f32,
    ) -> Result<Self> {
        let answers = Answers::new(model, stack, texts, lowest)?;
        let (isa, v) = (model.isa(), model.architecture().vocabulary);
        let mut before = vec![];
        for i in 0..texts.len() {
            let mut logits = answers.forward(&[(i, stack)], false)?.logits;
            model.install(|| loss::log_softmax(isa, &mut logits, v));
            before.push(logits);
        }
        Ok(Self { model, answers, before, weight })
    }

    /// The gradient, by each parameter's values, of `weight` times the mean divergence
    /// `KL(now ‖ before)` along one text; texts come in turn, one a step.
    ///
    /// # Errors
    /// Where the model cannot be run.
    pub(super) fn slope(
        &self,
        parameters: &[Parameter],
        overlays: &[&Overlay],
        step: usize,
    ) -> Result<Vec<Vec<f32>>> {
        let i = step % self.before.len();
        let (isa, v) = (self.model.isa(), self.model.architecture().vocabulary);
        let outcome = self.answers.forward(&[(i, overlays)], true)?;
        let mut logits = outcome.logits;
        let rows = logits.len() / v;
        let weights = vec![self.weight / rows as f32; rows];
        self.model.install(|| loss::kl_backward(isa, &mut logits, &self.before[i], v, &weights));
        let tape = outcome.tape.ok_or_else(|| Error::Numerical { what: "the pass kept no tape".into() })?;
        gradients_of(self.model, parameters, &tape, logits)
    }
}
