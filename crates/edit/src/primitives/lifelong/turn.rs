//! The facts of one turn, as they were when a pass last looked at them.

use mutandis_engine::backward::Pair;

use crate::primitives::answers::Aim;
use crate::primitives::grad_pairs::Collected;

/// By how much, in nats, a token that wants more is taken past the margin: a step that ends at the
/// margin falls short of it half of the time.
const BEYOND: f64 = 0.5;

/// A row that predicts a token of an answer.
#[derive(Debug)]
pub(super) struct Row {
    /// Its input and gradient, `[in]` and `[out]`, at each weight.
    pub(super) pairs: Vec<Pair>,
    aim: Aim,
    /// Tokens of the answer: the loss is their mean.
    tokens: usize,
}

/// Rows of some facts.
#[derive(Debug)]
pub(super) struct Turn {
    facts: Vec<Vec<Row>>,
    margin: f32,
}

impl Turn {
    /// Of facts that were not looked at yet.
    pub(super) fn new(facts: usize, margin: f32) -> Self {
        Self { facts: (0..facts).map(|_| vec![]).collect(), margin }
    }

    /// Takes down what facts were found to be like; `at` are their places in the turn.
    pub(super) fn see(&mut self, found: &Collected, at: &[usize], shapes: &[[usize; 2]]) {
        at.iter().for_each(|i| self.facts[*i].clear());
        for (row, (owner, aim)) in found.owners.iter().zip(&found.aims).enumerate() {
            let pairs = found.pairs.iter().zip(shapes).map(|(pair, &[out, inn])| Pair {
                x: pair.x[row * inn..(row + 1) * inn].to_vec(),
                dy: pair.dy[row * out..(row + 1) * out].to_vec(),
            });
            self.facts[at[*owner]].push(Row { pairs: pairs.collect(), aim: *aim, tokens: 0 });
        }
        for fact in &mut self.facts {
            let tokens = fact.len();
            fact.iter_mut().for_each(|row| row.tokens = tokens);
        }
    }

    /// Places of facts of which a token does not lead as it should.
    pub(super) fn wanting(&self) -> Vec<usize> {
        let wants = |i: &usize| self.facts[*i].iter().any(|row| row.want(self.margin) > 0.0);
        (0..self.facts.len()).filter(wants).collect()
    }

    /// All rows.
    pub(super) fn rows(&self) -> impl Iterator<Item = &Row> {
        self.facts.iter().flatten()
    }
}

impl Row {
    /// By how much its token has to gain on the others, in nats; 0 where it leads by the margin.
    pub(super) fn want(&self, margin: f32) -> f64 {
        if self.aim.lead > margin { 0.0 } else { f64::from(margin - self.aim.lead) + BEYOND }
    }

    /// How far to go for what it wants, where a step of 1 changes the mean loss by `slope` to first
    /// order. What it wants is in log-odds, of which the slope is that of the loss over 1 − p.
    pub(super) fn step(&self, slope: f64, margin: f32, reach: f64) -> f64 {
        let others = -f64::from(-self.aim.loss).exp_m1();
        let gain = slope * self.tokens as f64 / others.max(f64::MIN_POSITIVE);
        // Where the normalised gradient does not lead downhill, a row has to wait.
        if gain > 0.0 { self.want(margin).min(reach) / gain } else { 0.0 }
    }
}

/// Inner product.
pub(super) fn inner(a: &[f32], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * b).sum()
}
