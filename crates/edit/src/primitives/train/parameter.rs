//! What is trained of one weight: a change of it, whole or of low rank.

use mutandis_engine::backward::Pair;
use mutandis_engine::{Delta, Model, WeightId};
use rand_chacha::ChaCha8Rng;
use rand_core::RngCore;

use super::{Optimizer, Training};
use crate::error::{Error, Result};
use crate::patch::WeightChange;
use crate::primitives::adam::Adam;

/// How far a change may go.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Bounds {
    /// Each number, at most (L∞).
    pub each: Option<f32>,
    /// All together (L2, Frobenius), at most.
    pub norm: Option<f32>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// ΔW itself.
    Dense(Bounds),
    /// `scale · left · rightᵀ`; the values are those of `left [out, rank]`, then of
    /// `right [in, rank]`.
    LowRank { rank: usize, scale: f32 },
}

/// A change of one weight `W [out, in]` that is trained.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// The weight.
    pub id: WeightId,
    /// The numbers that are trained.
    pub(super) values: Vec<f32>,
    shape: [usize; 2],
    kind: Kind,
    adam: Adam,
}

impl Parameter {
    /// A whole change, zero at first.
    pub fn dense(id: WeightId, shape: [usize; 2], bounds: Bounds) -> Self {
        Self::new(id, shape, vec![0.0; shape[0] * shape[1]], Kind::Dense(bounds))
    }

    /// LoRA (arXiv 2106.09685, §4.1): `ΔW = alpha / rank · B A`, B zero at first, A uniform within
    /// `±1/√in` (as `peft` draws it).
    ///
    /// # Errors
    /// Where the rank is 0 or above the weight's.
    pub fn lora(
        id: WeightId,
        shape: [usize; 2],
        rank: usize,
        alpha: f32,
        rng: &mut ChaCha8Rng,
    ) -> Result<Self> {
        let limit = 1.0 / (shape[1] as f32).sqrt();
        let mut draw = || (rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0;
        let right: Vec<f32> = (0..shape[1] * rank).map(|_| limit * draw()).collect();
        Self::low_rank(id, shape, &right, rank, alpha / rank.max(1) as f32)
    }

    /// A change of low rank, whose left factor is zero at first.
    ///
    /// # Shapes
    /// `right [in, rank]`, row-major.
    ///
    /// # Errors
    /// Where the rank is 0 or above the weight's.
    pub fn low_rank(id: WeightId, shape: [usize; 2], right: &[f32], rank: usize, scale: f32) -> Result<Self> {
        let most = shape[0].min(shape[1]);
        if rank == 0 || rank > most || right.len() != shape[1] * rank {
            return Err(Error::input_hint(
                format!(
                    "the rank is {rank}, and {} of layer {} is {} × {}: expected 1 to {most}",
                    id.role, id.layer, shape[0], shape[1]
                ),
                "lower the rank",
            ));
        }
        let values = [&vec![0.0; shape[0] * rank][..], right].concat();
        Ok(Self::new(id, shape, values, Kind::LowRank { rank, scale }))
    }

    fn new(id: WeightId, shape: [usize; 2], values: Vec<f32>, kind: Kind) -> Self {
        Self { id, shape, adam: Adam::new(values.len()), values, kind }
    }

    /// Checks that the model has such a weight.
    pub(super) fn check(&self, model: &Model) -> Result<()> {
        let shape = model.linear_shape(self.id.role, self.id.layer)?;
        if shape == self.shape {
            return Ok(());
        }
        Err(Error::input(format!("{:?} has shape {shape:?}, what is trained {:?}", self.id, self.shape)))
    }

    /// Whether it changes nothing as yet.
    pub fn is_zero(&self) -> bool {
        let decisive = match self.kind {
            Kind::Dense(_) => &self.values[..],
            Kind::LowRank { rank, .. } => &self.values[..self.shape[0] * rank],
        };
        decisive.iter().all(|x| *x == 0.0)
    }

    /// The change, ready to be multiplied.
    pub(super) fn delta(&self) -> Result<Delta> {
        self.change().delta()
    }

    /// The change, as a patch keeps it.
    pub fn change(&self) -> WeightChange {
        let [out, inn] = self.shape;
        match self.kind {
            Kind::Dense(_) => WeightChange::Dense { out, inn, delta: self.values.clone() },
            Kind::LowRank { rank, scale } => {
                let (left, right) = self.values.split_at(out * rank);
                let left = left.iter().map(|x| scale * x).collect();
                WeightChange::LowRank { rank, left, right: right.to_vec() }
            }
        }
    }

    /// Gradient of the values, of what a pass has at the weight.
    pub(super) fn gradient(&self, model: &Model, pair: &Pair) -> Vec<f32> {
        let [out, inn] = self.shape;
        let rows = pair.x.len() / inn;
        match self.kind {
            Kind::Dense(_) => pair.weight_gradient(model, rows),
            Kind::LowRank { rank, scale } => {
                let (left, right) = self.values.split_at(out * rank);
                let mut gradient = vec![0.0; self.values.len()];
                let (to_left, to_right) = gradient.split_at_mut(out * rank);
                for (x, dy) in pair.x.chunks_exact(inn).zip(pair.dy.chunks_exact(out)) {
                    // x·right and dy·left are all that the other factor's gradient needs of a row.
                    add_outer(to_left, dy, &times(x, right, rank), scale);
                    add_outer(to_right, x, &times(dy, left, rank), scale);
                }
                gradient
            }
        }
    }

    /// Takes a step, and comes back within the bounds.
    pub(super) fn step(&mut self, gradient: &[f32], training: &Training) {
        match training.optimizer {
            Optimizer::Adam => self.adam.step(&mut self.values, gradient, training.learning_rate),
            Optimizer::Sgd => {
                let rate = training.learning_rate;
                self.values.iter_mut().zip(gradient).for_each(|(x, g)| *x -= rate * g);
            }
        }
        let Kind::Dense(bounds) = self.kind else { return };
        if let Some(most) = bounds.each {
            self.values.iter_mut().for_each(|x| *x = x.clamp(-most, most));
        }
        if let Some(most) = bounds.norm {
            let norm = self.values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            if norm > f64::from(most) {
                let factor = (f64::from(most) / norm) as f32;
                self.values.iter_mut().for_each(|x| *x *= factor);
            }
        }
    }

    /// Forgets what the optimizer knows of earlier steps.
    pub(super) fn forget(&mut self) {
        self.adam = Adam::new(self.values.len());
    }
}

/// `x [n] · matrix [n, rank]`.
fn times(x: &[f32], matrix: &[f32], rank: usize) -> Vec<f32> {
    let mut sum = vec![0.0; rank];
    for (x, row) in x.iter().zip(matrix.chunks_exact(rank)) {
        sum.iter_mut().zip(row).for_each(|(s, w)| *s += x * w);
    }
    sum
}

/// `to [n, rank] += scale · x [n] · y [rank]ᵀ`.
fn add_outer(to: &mut [f32], x: &[f32], y: &[f32], scale: f32) {
    for (row, x) in to.chunks_exact_mut(y.len()).zip(x) {
        row.iter_mut().zip(y).for_each(|(t, y)| *t += scale * x * y);
    }
}
