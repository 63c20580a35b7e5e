//! Answers that are to be given, how far a model is from giving them, and what its loss pulls at.

use mutandis_engine::kernels::loss;
use mutandis_engine::{LogitRows, Model, Outcome, Overlay, Pass, Sequence, Tape};

use super::ascent::Ascent;
use super::request;
use crate::error::{Error, Result};
use crate::fact::Fact;
use crate::method::on_top;
use crate::patch::SearchInfo;

/// A text, and which tokens are to be predicted where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The text.
    pub tokens: Vec<u32>,
    /// Rows of it, each with a token that it should predict; a row may have several.
    pub targets: Vec<(usize, u32)>,
}

impl Example {
    /// Each token of the answer after those before it: the masked cross-entropy of FT-M.
    ///
    /// # Errors
    /// Where the target has no tokens or too many, or the text is longer than the context.
    pub fn answer(model: &Model, fact: &Fact, end_of_text: bool) -> Result<Self> {
        let (prompt, mut target) = tokens(model, fact)?;
        if end_of_text {
            let eos = model.tokenizer()?.eos_ids().first().ok_or_else(|| {
                Error::input_hint(
                    "the model has no end-of-text token, and `end-of-text` is to be learnt",
                    "set `end-of-text=false`",
                )
            })?;
            target.push(*eos);
        }
        let from = prompt.len() - 1;
        let targets = target.iter().enumerate().map(|(i, &id)| (from + i, id)).collect();
        let tokens = [&prompt[..], &target[..target.len() - 1]].concat();
        request::fits(model, &fact.prompt, tokens.len() + 1)?;
        Ok(Self { tokens, targets })
    }

    /// Every token of the answer at the prompt's last row: the loss of FT-L.
    ///
    /// # Errors
    /// As [`Self::answer`].
    pub fn at_last(model: &Model, fact: &Fact) -> Result<Self> {
        let (prompt, target) = tokens(model, fact)?;
        request::fits(model, &fact.prompt, prompt.len() + 1)?;
        let targets = target.iter().map(|&id| (prompt.len() - 1, id)).collect();
        Ok(Self { tokens: prompt, targets })
    }
}

/// Prompt and target as tokens, neither empty.
fn tokens(model: &Model, fact: &Fact) -> Result<(Vec<u32>, Vec<u32>)> {
    let tokenizer = model.tokenizer()?;
    let prompt = tokenizer.encode(fact.prompt.trim_end())?.ids;
    if prompt.is_empty() {
        return Err(Error::input(format!("the prompt `{}` has no tokens", fact.prompt)));
    }
    Ok((prompt, request::target(tokenizer, fact)?))
}

/// Loss of one example, in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// Of all its targets.
    pub sum: f32,
    /// Of one in the mean.
    pub mean: f32,
}

/// How far a row is from predicting its target.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Aim {
    /// −log of the target's probability.
    pub(super) loss: f32,
    /// By how much its logit exceeds all others; negative where it does not lead.
    pub(super) lead: f32,
}

/// Rows of a pass, at most: what its tape takes in memory.
const ROWS: usize = 2048;

/// Examples on a model, as far up as nothing in it changes.
pub(super) struct Answers<'a> {
    model: &'a Model,
    examples: &'a [Example],
    ascent: Ascent<'a>,
}

/// Some examples, run.
pub(super) struct Passed<'a> {
    /// One per example.
    pub(super) losses: Vec<Loss>,
    /// One per target of all examples.
    pub(super) aims: Vec<Aim>,
    /// Gradient of the logits.
    pub(super) logits: Vec<f32>,
    /// For the way back.
    pub(super) tape: Tape<'a>,
}

impl<'a> Answers<'a> {
    /// Brings examples to where the lowest layer begins that may change.
    ///
    /// # Errors
    /// Where the model cannot be run on them.
    pub(super) fn new(
        model: &'a Model,
        stack: &'a [&'a Overlay],
        examples: &'a [Example],
        layer: usize,
    ) -> Result<Self> {
        let prompts = examples.iter().map(|e| &e.tokens[..]).collect();
        Ok(Self { model, examples, ascent: Ascent::new(model, stack, prompts, layer)? })
    }

    /// One example.
    pub(super) fn example(&self, index: usize) -> &'a Example {
        &self.examples[index]
    }

    /// The first of some examples that fit a pass, one at least, and the others.
    pub(super) fn split<'e>(&self, examples: &'e [usize]) -> (&'e [usize], &'e [usize]) {
        let mut rows = 0;
        let fits = |i: &&usize| {
            rows += self.examples[**i].tokens.len();
            rows <= ROWS
        };
        let count = examples.iter().take_while(fits).count();
        examples.split_at(count.max(1).min(examples.len()))
    }

    /// Runs examples, each with its own changes, and gives the logits of the rows that predict
    /// something: of a row that predicts several tokens once for each.
    ///
    /// # Errors
    /// Where the model cannot be run.
    pub(super) fn forward<'p>(
        &'p self,
        examples: &[(usize, &'p [&'p Overlay])],
        record: bool,
    ) -> Result<Outcome<'p>> {
        let (mut start, mut logit_rows, mut sequences) = (0, vec![], vec![]);
        for &(i, overlays) in examples {
            let example = &self.examples[i];
            logit_rows.extend(example.targets.iter().map(|(row, _)| start + row));
            sequences.push(Sequence { tokens: &example.tokens, overlays, ..Default::default() });
            start += example.tokens.len();
        }
        let which: Vec<usize> = examples.iter().map(|(i, _)| *i).collect();
        let pass = Pass {
            sequences,
            start: self.ascent.start(&which),
            logits: LogitRows::Rows(logit_rows),
            record,
            ..Default::default()
        };
        Ok(self.model.forward(pass)?)
    }

    /// Runs examples with all changes in `overlays`. Their loss is `weight` times the sum of their
    /// mean losses.
    ///
    /// # Errors
    /// Where the model cannot be run.
    pub(super) fn run<'p>(
        &'p self,
        examples: &[usize],
        overlays: &'p [&'p Overlay],
        weight: f32,
    ) -> Result<Passed<'p>> {
        let (isa, v) = (self.model.isa(), self.model.architecture().vocabulary);
        let (mut targets, mut weights) = (vec![], vec![]);
        for &i in examples {
            let own = &self.examples[i].targets;
            targets.extend(own.iter().map(|(_, id)| *id));
            weights.extend(std::iter::repeat_n(weight / own.len() as f32, own.len()));
        }
        let each: Vec<(usize, &[&Overlay])> = examples.iter().map(|&i| (i, overlays)).collect();
        let outcome = self.forward(&each, true)?;
        let mut logits = outcome.logits;
        let leads: Vec<f32> = logits.chunks_exact(v).zip(&targets).map(|(row, &id)| lead(row, id)).collect();
        let each = self.model.install(|| {
            let each = loss::cross_entropy(isa, &logits, v, &targets);
            loss::cross_entropy_backward(isa, &mut logits, v, &targets, &weights);
            each
        });
        let losses = self.by_example(examples, &each);
        let aims = each.iter().zip(leads).map(|(&loss, lead)| Aim { loss, lead }).collect();
        let tape = outcome.tape.ok_or_else(|| Error::Numerical { what: "the pass kept no tape".into() })?;
        Ok(Passed { losses, aims, logits, tape })
    }

    /// Losses of examples with all changes in `overlays`, without a way back.
    ///
    /// # Errors
    /// Where the model cannot be run.
    pub(super) fn losses(&self, which: &[usize], overlays: &[&Overlay]) -> Result<Vec<Loss>> {
        let (isa, v) = (self.model.isa(), self.model.architecture().vocabulary);
        let mut all = Vec::with_capacity(which.len());
        let mut rest = which;
        while !rest.is_empty() {
            let (now, later) = self.split(rest);
            rest = later;
            let passed: Vec<(usize, &[&Overlay])> = now.iter().map(|&i| (i, overlays)).collect();
            let logits = self.forward(&passed, false)?.logits;
            let targets: Vec<u32> =
                now.iter().flat_map(|&i| self.examples[i].targets.iter().map(|(_, id)| *id)).collect();
            let each = self.model.install(|| loss::cross_entropy(isa, &logits, v, &targets));
            all.extend(self.by_example(now, &each));
        }
        Ok(all)
    }

    /// How all examples stand once an edit is written on top of a stack.
    ///
    /// # Errors
    /// Where the model cannot be run, or has broken down.
    pub(super) fn stand(&self, written: &Overlay, stack: &[&Overlay]) -> Result<Vec<Loss>> {
        let all: Vec<usize> = (0..self.examples.len()).collect();
        let losses = self.losses(&all, &on_top(stack, written))?;
        if losses.iter().any(|loss| !loss.mean.is_finite()) {
            let what = "predictions are no numbers once the edit is written: it goes too far";
            return Err(Error::Numerical { what: what.into() });
        }
        Ok(losses)
    }

    /// Losses of targets, added up for each example.
    fn by_example(&self, examples: &[usize], each: &[f32]) -> Vec<Loss> {
        let mut at = 0;
        let loss = |&i: &usize| {
            let own = at..at + self.examples[i].targets.len();
            at = own.end;
            let sum: f32 = each[own.clone()].iter().sum();
            Loss { sum, mean: sum / own.len() as f32 }
        };
        examples.iter().map(loss).collect()
    }
}

impl SearchInfo {
    /// Takes down how its fact stands.
    pub(super) fn see(&mut self, loss: &Loss) {
        (self.loss, self.probability) = (loss.mean, (-loss.sum).exp());
    }
}

/// By how much a token's logit exceeds all others.
fn lead(logits: &[f32], id: u32) -> f32 {
    let id = id as usize;
    let others = logits[..id].iter().chain(&logits[id + 1..]);
    logits[id] - others.copied().fold(f32::NEG_INFINITY, f32::max)
}
