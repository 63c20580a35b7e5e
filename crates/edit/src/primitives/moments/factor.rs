//! Cholesky factors of moments.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::{factor, solve};
use faer::{Mat, MatMut, Par};

use super::Moments;
use crate::error::{Error, Result};

/// First and last jitter tried, relative to the mean of the diagonal.
const JITTER: (f64, f64) = (1e-12, 1.0);

/// A factored `A = C + ridge · tr(C)/f · I`.
#[derive(Debug)]
pub struct Factor {
    lower: Mat<f64>,
    /// The ridge asked for, relative to the mean of C's diagonal.
    pub ridge: f64,
    /// What had to be added to the diagonal besides, relative to the mean of C's diagonal, so
    /// that a factor exists; 0 as a rule.
    pub jitter: f64,
}

/// Factors the moments plus a ridge, in f64.
///
/// `ridge` is relative to the mean of C's diagonal, tr(C)/f. Where no factor exists, a jitter is
/// added, ten times as much at each trial, and reported in [`Factor::jitter`].
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
    let mut jitter = 0.0;
    loop {
        let mut lower = Mat::<f64>::zeros(f, f);
        let mut rest = &moments.upper[..];
        for i in 0..f {
            let (row, later) = rest.split_at(f - i);
            rest = later;
            for (down, x) in lower.col_as_slice_mut(i)[i..].iter_mut().zip(row) {
                *down = f64::from(*x);
            }
            lower[(i, i)] += (ridge + jitter) * mean;
        }
        // Sequential: the result must not depend on the number of threads.
        let scratch = factor::cholesky_in_place_scratch::<f64>(f, Par::Seq, Default::default());
        let done = factor::cholesky_in_place(
            lower.as_mut(),
            Default::default(),
            Par::Seq,
            MemStack::new(&mut MemBuffer::new(scratch)),
            Default::default(),
        );
        let sound = done.is_ok() && (0..f).all(|i| lower[(i, i)].is_finite() && lower[(i, i)] > 0.0);
        if sound {
            return Ok(Factor { lower, ridge, jitter });
        }
        jitter = if jitter == 0.0 { JITTER.0 } else { jitter * 10.0 };
        if jitter > JITTER.1 * 1.5 {
            return Err(Error::Numerical {
                what: format!(
                    "the moments of layer {} are not positive definite, even with {} of their mean on the diagonal",
                    moments.layer, JITTER.1
                ),
            });
        }
    }
}

impl Factor {
    /// `A⁻¹ k`, `[f]`.
    ///
    /// # Panics
    /// Where `k` has another length than the moments.
    pub fn solve(&self, k: &[f64]) -> Vec<f64> {
        self.solve_columns(k, 1)
    }

    /// `A⁻¹ K` for `n` columns one after another, `[n, f]`.
    ///
    /// # Panics
    /// Where `columns` has not `n · f` numbers.
    pub fn solve_columns(&self, columns: &[f64], n: usize) -> Vec<f64> {
        let f = self.lower.nrows();
        assert_eq!(columns.len(), n * f, "right side");
        let mut x = columns.to_vec();
        let scratch = solve::solve_in_place_scratch::<f64>(f, n, Par::Seq);
        solve::solve_in_place(
            self.lower.as_ref(),
            MatMut::from_column_major_slice_mut(&mut x, f, n),
            Par::Seq,
            MemStack::new(&mut MemBuffer::new(scratch)),
        );
        x
    }
}
