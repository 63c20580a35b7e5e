//! Changes of weights, added up.

use std::collections::BTreeMap;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use mutandis_engine::{Delta, Model, Overlay, WeightId};

use super::{Norms, Patch};
use crate::error::{Error, Result};
use crate::primitives::cholesky::add_product;

/// A change of a weight matrix `W [out, in]`.
#[derive(Debug, Clone, PartialEq)]
pub enum WeightChange {
    /// `ΔW = left · rightᵀ`, `left [out, rank]`, `right [in, rank]`.
    LowRank {
        /// Rank.
        rank: usize,
        /// Row-major.
        left: Vec<f32>,
        /// Row-major.
        right: Vec<f32>,
    },
    /// `ΔW [out, in]`, row-major.
    Dense {
        /// Rows.
        out: usize,
        /// Columns.
        inn: usize,
        /// Row-major.
        delta: Vec<f32>,
    },
}

/// Many patches as one overlay: their changes added up, weight by weight. What a long stack
/// answers with costs no more than one patch, at the price of rounding.
#[derive(Debug, Default)]
pub struct Stack {
    sums: BTreeMap<WeightId, ([usize; 2], Vec<f32>)>,
}

impl Stack {
    /// Adds the changes of one more patch.
    ///
    /// # Errors
    /// Where the patch belongs to another base, or a change has another shape than its weight.
    pub fn push(&mut self, model: &Model, patch: &Patch) -> Result<()> {
        patch.check_base(model)?;
        for (id, change) in &patch.weights {
            Patch::check_shape(model, *id, change)?;
        }
        self.add(patch)
    }

    /// The same without a model at hand.
    ///
    /// # Errors
    /// Where changes of one weight have different shapes.
    pub(crate) fn add(&mut self, patch: &Patch) -> Result<()> {
        for (id, change) in &patch.weights {
            let shape = change.shape();
            let (kept, sum) = self.sums.entry(*id).or_insert_with(|| (shape, vec![0.0; shape[0] * shape[1]]));
            if *kept != shape {
                return Err(Error::input(format!("changes of {id} have shapes {kept:?} and {shape:?}")));
            }
            change.add_to(sum);
        }
        Ok(())
    }

    /// The sum of the changes of each weight, row-major.
    pub(crate) fn sums(&self) -> impl Iterator<Item = (WeightId, &[f32])> {
        self.sums.iter().map(|(id, (_, sum))| (*id, sum.as_slice()))
    }

    /// The sums, ready to be laid over the model.
    ///
    /// # Errors
    /// Where a sum is not finite.
    pub fn overlay(&self) -> Result<Overlay> {
        let mut overlay = Overlay::default();
        for (id, ([out, inn], sum)) in &self.sums {
            overlay.push(*id, Delta::dense(*out, *inn, sum)?);
        }
        Ok(overlay)
    }
}

/// How far weights are from the base under all of these patches: their changes added up, against the
/// model's own weights, whatever the patches say of them.
///
/// # Errors
/// Where the model has no such weight.
pub fn norms<'a>(model: &Model, patches: impl IntoIterator<Item = &'a Patch>) -> Result<Vec<Norms>> {
    let mut sums: BTreeMap<WeightId, WeightChange> = BTreeMap::new();
    for (id, change) in patches.into_iter().flat_map(|patch| &patch.weights) {
        let sum = match sums.remove(id) {
            Some(sum) => sum.plus(change),
            None => change.clone(),
        };
        sums.insert(*id, sum);
    }
    let each = sums
        .into_iter()
        .map(|(weight, sum)| Ok(Norms { weight, delta: sum.norm(), base: norm_of(model, weight)? }));
    each.collect()
}

/// ‖W‖ of a weight of the model, Frobenius.
pub(super) fn norm_of(model: &Model, id: WeightId) -> Result<f64> {
    let weight = model.weight(id.role, id.layer)?;
    Ok(weight.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt())
}

impl WeightChange {
    /// `ΔW [out, in]`, row-major, added to `to`.
    pub fn add_to(&self, to: &mut [f32]) {
        match self {
            Self::Dense { delta, .. } => to.iter_mut().zip(delta).for_each(|(t, x)| *t += x),
            Self::LowRank { rank, left, right } => {
                let [out, inn] = self.shape();
                let l = MatRef::from_row_major_slice(left, out, *rank);
                let r = MatRef::from_row_major_slice(right, inn, *rank);
                let to = MatMut::from_row_major_slice_mut(to, out, inn);
                matmul(to, Accum::Add, l, r.transpose(), 1.0, Par::Seq);
            }
        }
    }

    /// Both together: factors side by side as long as they take less room than `ΔW` whole.
    ///
    /// # Shapes
    /// Both are changes of one weight.
    #[must_use]
    pub fn plus(self, other: &Self) -> Self {
        let [out, inn] = self.shape();
        if let (Self::LowRank { rank: a, left: l, right: r }, Self::LowRank { rank: b, left: m, right: s }) =
            (&self, other)
            && (a + b) * (out + inn) < out * inn
        {
            let beside = |x: &[f32], y: &[f32]| {
                x.chunks_exact(*a).zip(y.chunks_exact(*b)).flat_map(|(x, y)| [x, y].concat()).collect()
            };
            return Self::LowRank { rank: a + b, left: beside(l, m), right: beside(r, s) };
        }
        let mut delta = self.whole();
        other.add_to(&mut delta);
        Self::Dense { out, inn, delta }
    }

    /// `ΔW [out, in]`, row-major.
    fn whole(self) -> Vec<f32> {
        if let Self::Dense { delta, .. } = self {
            return delta;
        }
        let [out, inn] = self.shape();
        let mut delta = vec![0.0; out * inn];
        self.add_to(&mut delta);
        delta
    }

    /// Whole, where its factors take more room than that.
    pub(super) fn smaller(self) -> Self {
        let [out, inn] = self.shape();
        match &self {
            Self::LowRank { rank, .. } if rank * (out + inn) >= out * inn => {
                Self::Dense { out, inn, delta: self.whole() }
            }
            _ => self,
        }
    }

    /// That many times as large.
    pub fn scaled(mut self, factor: f32) -> Self {
        let numbers = match &mut self {
            Self::LowRank { left, .. } => left,
            Self::Dense { delta, .. } => delta,
        };
        numbers.iter_mut().for_each(|x| *x *= factor);
        self
    }

    /// Rank of its factors; `None` where it is dense.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Self::LowRank { rank, .. } => Some(*rank),
            Self::Dense { .. } => None,
        }
    }

    /// `[out, in]` of `ΔW`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::LowRank { rank, left, right } => [left.len() / rank, right.len() / rank],
            Self::Dense { out, inn, .. } => [*out, *inn],
        }
    }

    /// Ready to be multiplied.
    pub(crate) fn delta(&self) -> Result<Delta> {
        Ok(match self {
            Self::LowRank { rank, left, right } => Delta::low_rank(*rank, left, right)?,
            Self::Dense { out, inn, delta } => Delta::dense(*out, *inn, delta)?,
        })
    }

    /// ‖ΔW‖, Frobenius. For factors by their Gram matrices: ‖LRᵀ‖² = tr(LᵀL · RᵀR).
    pub fn norm(&self) -> f64 {
        match self {
            Self::Dense { delta, .. } => delta.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt(),
            Self::LowRank { rank, left, right } => {
                let gram = |m: &[f32]| {
                    let wide: Vec<f64> = m.iter().map(|x| f64::from(*x)).collect();
                    let m = MatRef::from_row_major_slice(&wide, wide.len() / rank, *rank);
                    let mut gram = Mat::<f64>::zeros(*rank, *rank);
                    add_product(gram.as_mut(), m.transpose(), m, 1.0);
                    gram
                };
                let (l, r) = (gram(left), gram(right));
                let columns = 0..*rank;
                let total: f64 = columns
                    .map(|j| l.col_as_slice(j).iter().zip(r.col_as_slice(j)).map(|(a, b)| a * b).sum::<f64>())
                    .sum();
                total.max(0.0).sqrt()
            }
        }
    }
}
