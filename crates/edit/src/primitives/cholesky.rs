//! Cholesky factors in f64, with a jitter where none exists, and that said.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::{factor, solve};
use faer::linalg::triangular_solve::solve_upper_triangular_in_place;
use faer::{Mat, MatMut, MatRef, Par};

use crate::error::{Error, Result};

/// First and last jitter tried, relative to the mean of the diagonal.
const JITTER: (f64, f64) = (1e-12, 1.0);

/// `L Lᵀ = A + jitter · tr(A)/n · I`, for a symmetric `A [n, n]`.
///
/// Sequential throughout: results do not depend on the number of threads.
#[derive(Debug)]
pub struct Cholesky {
    lower: Mat<f64>,
    /// What had to be added to the diagonal so that a factor exists, relative to the mean of the
    /// diagonal; 0 as a rule.
    pub jitter: f64,
}

impl Cholesky {
    /// Factors a matrix, of which the lower half is read. `what` names it in errors. Where no
    /// factor exists a jitter is added, ten times as much at each trial.
    ///
    /// # Errors
    /// Where the matrix is not finite, has no positive diagonal, or has no factor even with its
    /// diagonal doubled.
    pub fn new(a: &Mat<f64>, what: &str) -> Result<Self> {
        let n = a.nrows();
        let mean = (0..n).map(|i| a[(i, i)]).sum::<f64>() / n.max(1) as f64;
        let finite = (0..n).all(|j| a.col_as_slice(j)[j..].iter().all(|x| x.is_finite()));
        if !(finite && mean > 0.0) {
            return Err(Error::Numerical {
                what: format!("{what} are not usable: the mean of their diagonal is {mean:e}"),
            });
        }
        let mut jitter = 0.0;
        loop {
            let mut lower = a.clone();
            for i in 0..n {
                lower[(i, i)] += jitter * mean;
            }
            let scratch = factor::cholesky_in_place_scratch::<f64>(n, Par::Seq, Default::default());
            let done = factor::cholesky_in_place(
                lower.as_mut(),
                Default::default(),
                Par::Seq,
                MemStack::new(&mut MemBuffer::new(scratch)),
                Default::default(),
            );
            // A pivot that is all rounding would pass for a number.
            let sound = |i: usize| lower[(i, i)].powi(2) > n as f64 * f64::EPSILON * a[(i, i)];
            if done.is_ok() && (0..n).all(sound) {
                return Ok(Self { lower, jitter });
            }
            jitter = if jitter == 0.0 { JITTER.0 } else { jitter * 10.0 };
            if jitter > JITTER.1 * 1.5 {
                return Err(Error::Numerical {
                    what: format!(
                        "{what} are not positive definite, even with {} of their mean on the diagonal",
                        JITTER.1
                    ),
                });
            }
        }
    }

    /// `A⁻¹ B` in place of `B [n, columns]`.
    pub(crate) fn solve(&self, b: MatMut<'_, f64>) {
        let scratch = solve::solve_in_place_scratch::<f64>(self.lower.nrows(), b.ncols(), Par::Seq);
        solve::solve_in_place(self.lower.as_ref(), b, Par::Seq, MemStack::new(&mut MemBuffer::new(scratch)));
    }

    /// `A⁻¹ B` for `n` columns one after another, `[columns, n]`.
    ///
    /// # Panics
    /// Where `columns` does not divide into columns of the matrix's height.
    pub fn solve_columns(&self, columns: &[f64], count: usize) -> Vec<f64> {
        let n = self.lower.nrows();
        assert_eq!(columns.len(), count * n, "right side");
        let mut x = columns.to_vec();
        self.solve(MatMut::from_column_major_slice_mut(&mut x, n, count));
        x
    }

    /// `P L⁻¹` for the rows of `P [count, n]`.
    ///
    /// # Panics
    /// Where `rows` does not divide into rows of the matrix's height.
    pub(crate) fn against(&self, rows: &[f64], count: usize) -> Vec<f64> {
        let n = self.lower.nrows();
        assert_eq!(rows.len(), count * n, "left side");
        let mut x = rows.to_vec();
        let columns = MatMut::from_column_major_slice_mut(&mut x, n, count);
        solve_upper_triangular_in_place(self.lower.transpose(), columns, Par::Seq);
        x
    }

    /// An estimate of the condition number from below: (largest / smallest diagonal of L)².
    pub fn condition(&self) -> f64 {
        let diagonal = (0..self.lower.nrows()).map(|i| self.lower[(i, i)]);
        let (low, high) = diagonal.fold((f64::INFINITY, 0.0), |(l, h): (f64, f64), x| (l.min(x), h.max(x)));
        (high / low).powi(2)
    }
}

/// `alpha · lhs · rhs`, added to `to`; sequential.
pub(crate) fn add_product(to: MatMut<'_, f64>, lhs: MatRef<'_, f64>, rhs: MatRef<'_, f64>, alpha: f64) {
    faer::linalg::matmul::matmul(to, faer::Accum::Add, lhs, rhs, alpha, Par::Seq);
}
