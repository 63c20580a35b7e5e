//! Cholesky factors of moments.

use faer::Mat;

use super::Moments;
use crate::error::{Error, Result};
use crate::primitives::cholesky::Cholesky;

/// A factored `A = C + ridge · tr(C)/f · I`.
#[derive(Debug)]
pub struct Factor {
    pub(crate) cholesky: Cholesky,
    /// The ridge asked for, relative to the mean of C's diagonal.
    pub ridge: f64,
    /// tr(C)/f.
    pub mean: f64,
}

/// Factors the moments plus a ridge, in f64.
///
/// `ridge` is relative to the mean of C's diagonal, tr(C)/f. Where no factor exists, a jitter is
/// added, ten times as much at each trial, and reported by [`Factor::jitter`].
///
/// # Errors
/// Where C is not finite, is zero, or has no factor even with its diagonal doubled; where `ridge`
/// is negative or not finite.
pub fn factor(moments: &Moments, ridge: f64) -> Result<Factor> {
    let f = moments.f;
    if !(ridge.is_finite() && ridge >= 0.0) {
        return Err(Error::input(format!("the ridge is {ridge}, expected 0 or more")));
    }
    let mean = moments.trace() / f as f64;
    if !(mean > 0.0 && moments.upper.iter().all(|x| x.is_finite())) {
        return Err(Error::Numerical {
            what: format!(
                "the moments of layer {} are not usable: the mean of their diagonal is {mean:e}",
                moments.layer
            ),
        });
    }
    let what = format!("the moments of layer {}", moments.layer);
    let cholesky = Cholesky::new(&symmetric(moments, ridge * mean), &what)?;
    Ok(Factor { cholesky, ridge, mean })
}

/// `C + on_diagonal · I`, its lower half.
pub(in crate::primitives) fn symmetric(moments: &Moments, on_diagonal: f64) -> Mat<f64> {
    let f = moments.f;
    let mut lower = Mat::<f64>::zeros(f, f);
    let mut rest = &moments.upper[..];
    for i in 0..f {
        let (row, later) = rest.split_at(f - i);
        rest = later;
        for (down, x) in lower.col_as_slice_mut(i)[i..].iter_mut().zip(row) {
            *down = f64::from(*x);
        }
        lower[(i, i)] += on_diagonal;
    }
    lower
}

impl Factor {
    /// What had to be added to the diagonal besides, relative to A's mean; 0 as a rule.
    pub fn jitter(&self) -> f64 {
        self.cholesky.jitter
    }

    /// `A⁻¹ k`, `[f]`.
    ///
    /// # Panics
    /// Where `k` has another length than the moments.
    pub fn solve(&self, k: &[f64]) -> Vec<f64> {
        self.cholesky.solve_columns(k, 1)
    }

    /// `P L⁻¹` for the rows of `P [n, f]`, where `L Lᵀ = A`, `[n, f]`: the product of two of its rows
    /// is that of P's under A⁻¹.
    ///
    /// # Panics
    /// Where `rows` has not `n · f` numbers.
    pub fn against(&self, rows: &[f64], n: usize) -> Vec<f64> {
        self.cholesky.against(rows, n)
    }

    /// `A⁻¹ K` for `n` columns one after another, `[n, f]`.
    ///
    /// # Panics
    /// Where `columns` has not `n · f` numbers.
    pub fn solve_columns(&self, columns: &[f64], n: usize) -> Vec<f64> {
        self.cholesky.solve_columns(columns, n)
    }
}
