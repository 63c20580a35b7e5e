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
    /// `scale · left · diag(λ) · rightᵀ`; the values are those of `left [out, rank]`, of
    /// `right [in, rank]`, then λ. Columns are pulled towards being orthonormal by `pull`.
    Singular { rank: usize, scale: f32, pull: f32 },
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
        Self::fits(id, shape, rank)?;
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
        Self::fits(id, shape, rank)?;
        if right.len() != shape[1] * rank {
            let what =
                format!("the right factor has {} numbers, expected {} × {rank}", right.len(), shape[1]);
            return Err(Error::input(what));
        }
        let values = [&vec![0.0; shape[0] * rank][..], right].concat();
        Ok(Self::new(id, shape, values, Kind::LowRank { rank, scale }))
    }

    /// AdaLoRA's form of a change (arXiv 2303.10512, eq. 2): `ΔW = alpha / rank · P diag(λ) Qᵀ`, λ zero
    /// at first, P and Q normal with a deviation of 0.02 (as `peft` draws them). `pull` weighs
    /// ‖PᵀP − I‖ + ‖QᵀQ − I‖ in the loss (eq. 4; DIFFERENCE as in `peft`: norms, not their squares).
    ///
    /// # Errors
    /// Where the rank is 0 or above the weight's.
    pub fn singular(
        id: WeightId,
        shape: [usize; 2],
        rank: usize,
        alpha: f32,
        pull: f32,
        rng: &mut ChaCha8Rng,
    ) -> Result<Self> {
        Self::fits(id, shape, rank)?;
        let [out, inn] = shape;
        // Box–Muller.
        let mut uniform = || ((rng.next_u32() >> 8) as f32 + 0.5) / (1 << 24) as f32;
        let mut draw = || (-2.0 * uniform().ln()).sqrt() * (std::f32::consts::TAU * uniform()).cos();
        let mut values: Vec<f32> = (0..(out + inn) * rank).map(|_| 0.02 * draw()).collect();
        values.resize(values.len() + rank, 0.0);
        let scale = alpha / rank as f32;
        Ok(Self::new(id, shape, values, Kind::Singular { rank, scale, pull }))
    }

    /// Checks a rank against a weight.
    ///
    /// # Errors
    /// Where it is 0 or above the weight's.
    pub(crate) fn fits(id: WeightId, shape: [usize; 2], rank: usize) -> Result<()> {
        let most = shape[0].min(shape[1]);
        if (1..=most).contains(&rank) {
            return Ok(());
        }
        Err(Error::input_hint(
            format!(
                "the rank is {rank}, and {} of layer {} is {} × {}: expected 1 to {most}",
                id.role, id.layer, shape[0], shape[1]
            ),
            "lower the rank (of `adalora` also `initial-rank`)",
        ))
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
            Kind::Singular { rank, .. } => &self.values[self.values.len() - rank..],
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
            Kind::Singular { rank, scale, .. } => {
                let (left, rest) = self.values.split_at(out * rank);
                let (right, values) = rest.split_at(inn * rank);
                // Values of zero need no place in a patch.
                let kept: Vec<usize> = (0..rank).filter(|r| values[*r] != 0.0).collect();
                let columns = |matrix: &[f32], factor: &dyn Fn(usize) -> f32| -> Vec<f32> {
                    let rows = matrix.chunks_exact(rank);
                    rows.flat_map(|row| kept.iter().map(|&r| factor(r) * row[r])).collect()
                };
                let left = columns(left, &|r| scale * values[r]);
                WeightChange::LowRank { rank: kept.len(), left, right: columns(right, &|_| 1.0) }
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
            Kind::Singular { rank, scale, pull } => {
                let (left, rest) = self.values.split_at(out * rank);
                let (right, values) = rest.split_at(inn * rank);
                let mut gradient = vec![0.0; self.values.len()];
                let (to_left, rest) = gradient.split_at_mut(out * rank);
                let (to_right, to_values) = rest.split_at_mut(inn * rank);
                for (x, dy) in pair.x.chunks_exact(inn).zip(pair.dy.chunks_exact(out)) {
                    let (along, against) = (times(x, right, rank), times(dy, left, rank));
                    let by_values = |z: &[f32]| z.iter().zip(values).map(|(z, v)| z * v).collect::<Vec<_>>();
                    add_outer(to_left, dy, &by_values(&along), scale);
                    add_outer(to_right, x, &by_values(&against), scale);
                    for ((to, a), b) in to_values.iter_mut().zip(&along).zip(&against) {
                        *to += scale * a * b;
                    }
                }
                orthogonal(to_left, left, rank, pull);
                orthogonal(to_right, right, rank, pull);
                gradient
            }
        }
    }

    /// Of each singular value with its two vectors, what `number` says of them: its own, and the mean
    /// over each vector (AdaLoRA, eq. 7). None where there are no singular values.
    pub(super) fn triplets(&self, number: &dyn Fn(usize) -> f32) -> Vec<f32> {
        let Kind::Singular { rank, .. } = self.kind else { return vec![] };
        let [out, inn] = self.shape;
        let mean = |from: usize, rows: usize, r: usize| {
            (0..rows).map(|row| number(from + row * rank + r)).sum::<f32>() / rows as f32
        };
        let values = (out + inn) * rank;
        (0..rank).map(|r| number(values + r) + mean(0, out, r) + mean(out * rank, inn, r)).collect()
    }

    /// How many singular values it has; none of a change in another form.
    pub(super) fn singular_values(&self) -> usize {
        match self.kind {
            Kind::Singular { rank, .. } => rank,
            Kind::Dense(_) | Kind::LowRank { .. } => 0,
        }
    }

    /// Sets one singular value to zero.
    pub(super) fn silence(&mut self, value: usize) {
        if let Kind::Singular { rank, .. } = self.kind {
            let at = self.values.len() - rank + value;
            self.values[at] = 0.0;
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

/// Adds the gradient of `pull · ‖MᵀM − I‖` (Frobenius) by `matrix [n, rank]`.
fn orthogonal(to: &mut [f32], matrix: &[f32], rank: usize, pull: f32) {
    let mut gram = vec![0.0f32; rank * rank];
    for row in matrix.chunks_exact(rank) {
        add_outer(&mut gram, row, row, 1.0);
    }
    (0..rank).for_each(|r| gram[r * rank + r] -= 1.0);
    let norm = gram.iter().map(|x| x * x).sum::<f32>().sqrt();
    if norm > 0.0 {
        for (to, row) in to.chunks_exact_mut(rank).zip(matrix.chunks_exact(rank)) {
            let along = times(row, &gram, rank);
            to.iter_mut().zip(along).for_each(|(t, x)| *t += 2.0 * pull / norm * x);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]
    use mutandis_engine::{Options, Role};
    use rand_core::SeedableRng;

    use super::*;

    /// Σ dy·(ΔW x) over rows, ΔW as its kind defines it, and what pulls at the vectors; in f64.
    fn value(kind: Kind, [out, inn]: [usize; 2], values: &[f64], pair: &Pair) -> f64 {
        let delta = |o: usize, i: usize| match kind {
            Kind::Dense(_) => values[o * inn + i],
            Kind::LowRank { rank, scale } | Kind::Singular { rank, scale, .. } => {
                let (left, rest) = values.split_at(out * rank);
                let value = |r: usize| rest.get(inn * rank + r).copied().unwrap_or(1.0);
                let sum = (0..rank).map(|r| left[o * rank + r] * value(r) * rest[i * rank + r]);
                f64::from(scale) * sum.sum::<f64>()
            }
        };
        let rows = pair.x.chunks_exact(inn).zip(pair.dy.chunks_exact(out));
        let mut sum: f64 = rows
            .flat_map(|(x, dy)| (0..out).flat_map(move |o| (0..inn).map(move |i| (o, i, dy[o], x[i]))))
            .map(|(o, i, dy, x)| delta(o, i) * f64::from(dy) * f64::from(x))
            .sum();
        let Kind::Singular { rank, pull, .. } = kind else { return sum };
        for (from, n) in [(0, out), (out * rank, inn)] {
            let matrix = &values[from..from + n * rank];
            let mut squares = 0.0f64;
            for i in 0..rank {
                for j in 0..rank {
                    let dot = matrix.chunks_exact(rank).map(|r| r[i] * r[j]);
                    squares += (dot.sum::<f64>() - f64::from(u8::from(i == j))).powi(2);
                }
            }
            sum += f64::from(pull) * squares.sqrt();
        }
        sum
    }

    /// The gradients of all that is trained of a weight; those of the weight itself are held against
    /// goldens in f64 where backward passes are tested.
    #[test]
    fn gradients_are_those_of_differences() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/stories260K.gguf");
        let model = Model::load(path.as_ref(), Options::default()).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let id = WeightId { layer: 0, role: Role::Query };
        let all = [
            Parameter::dense(id, [6, 5], Bounds::default()),
            Parameter::lora(id, [6, 5], 3, 4.0, &mut rng).unwrap(),
            Parameter::singular(id, [6, 5], 3, 4.0, 0.3, &mut rng).unwrap(),
        ];
        for mut one in all {
            let mut draw = || (rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0;
            one.values.iter_mut().for_each(|x| *x = draw());
            let pair = Pair { x: (0..20).map(|_| draw()).collect(), dy: (0..24).map(|_| draw()).collect() };
            let gradient = one.gradient(&model, &pair);
            let values: Vec<f64> = one.values.iter().map(|x| f64::from(*x)).collect();
            for (i, found) in gradient.iter().enumerate() {
                let moved = |by: f64| {
                    let mut other = values.clone();
                    other[i] += by;
                    value(one.kind, one.shape, &other, &pair)
                };
                let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                // The gradient is a sum of a few dozen products of size 1 in f32.
                assert!((slope - f64::from(*found)).abs() < 2e-5, "{:?} {i}: {slope}, {found}", one.kind);
            }
        }
    }
}
