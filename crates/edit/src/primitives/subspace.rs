//! The null space of keys: directions that ordinary text hardly uses (AlphaEdit, arXiv
//! 2410.02355, §3).

use std::sync::Arc;

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::{Mat, MatRef, Par};

use super::moments::{Moments, symmetric};
use super::strength::Resolved;
use crate::error::{Error, Result, check_number};

/// The span of some eigenvectors of C.
#[derive(Debug, Clone)]
pub struct Subspace {
    /// All eigenvectors of C, one after another, `[f, f]`; spaces cut of one share them.
    basis: Arc<[f64]>,
    /// All eigenvalues of C, ascending.
    values: Arc<[f64]>,
    /// How many of both, from the first on, this space has.
    dimension: usize,
    f: usize,
}

/// Where the null space ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cut {
    /// Eigenvalues below this, in the units of C (as published).
    Absolute(f64),
    /// The leading eigenvectors that hold this share of tr(C) are left out.
    Energy(f64),
}

impl Cut {
    /// Checks the setting of this name.
    ///
    /// # Errors
    /// Where nothing can lie on one side of it.
    pub fn check(self, name: &str) -> Result<()> {
        match self {
            Self::Absolute(limit) => check_number(name, limit, false, "\"0.02 absolute\" is published"),
            Self::Energy(share) if (0.0..1.0).contains(&share) => Ok(()),
            Self::Energy(share) => Err(Error::input_hint(
                format!("`{name}` is {share}, expected 0 to below 1, or an absolute cut"),
                "0.98 keeps 98 % of the keys' energy out of reach",
            )),
        }
    }
}

/// All eigenvectors of C, ascending by eigenvalue: the space of which null spaces are cut.
///
/// # Errors
/// Where C is not finite or the decomposition does not converge.
pub fn whole(moments: &Moments) -> Result<Subspace> {
    let f = moments.f;
    let broken = |why: &str| Error::Numerical {
        what: format!("the moments of layer {} have no eigenvectors: {why}", moments.layer),
    };
    if !moments.upper.iter().all(|x| x.is_finite()) {
        return Err(broken("they are not finite"));
    }
    let (column, vectors) = eigenvectors(symmetric(moments, 0.0).as_ref())
        .ok_or_else(|| broken("the decomposition does not converge"))?;
    let mut order: Vec<usize> = (0..f).collect();
    order.sort_by(|&a, &b| column[a].total_cmp(&column[b]));
    let basis = order.iter().flat_map(|&j| vectors.col_as_slice(j).to_vec()).collect();
    // Of a sum of squares; below zero by rounding alone.
    let values = order.iter().map(|&j| column[j].max(0.0)).collect();
    Ok(Subspace { basis, values, dimension: f, f })
}

/// Eigenvalues of a symmetric matrix and its eigenvectors, as columns; only the lower half is read.
/// None where the decomposition does not converge.
pub(super) fn eigenvectors(matrix: MatRef<'_, f64>) -> Option<(Vec<f64>, Mat<f64>)> {
    let f = matrix.nrows();
    let (mut values, mut vectors) = (Diag::<f64>::zeros(f), Mat::<f64>::zeros(f, f));
    // Sequential: the result must not depend on the number of threads.
    let scratch = self_adjoint_evd_scratch::<f64>(f, ComputeEigenvectors::Yes, Par::Seq, Default::default());
    self_adjoint_evd(
        matrix,
        values.as_mut(),
        Some(vectors.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .ok()?;
    let column = values.column_vector();
    Some(((0..f).map(|i| column[i]).collect(), vectors))
}

impl Subspace {
    /// From its parts, as they were kept; `None` where they do not fit together.
    pub(crate) fn from_parts(f: usize, basis: Vec<f64>, values: Vec<f64>) -> Option<Self> {
        (f > 0 && basis.len() == f * values.len()).then(|| Self {
            basis: basis.into(),
            dimension: values.len(),
            values: values.into(),
            f,
        })
    }

    /// The part of a space with all eigenvectors that lies below a cut.
    ///
    /// # Errors
    /// Where the cut is out of range, or nothing lies below it.
    pub fn below(&self, cut: Cut) -> Result<Self> {
        cut.check("null-space")?;
        let total: f64 = self.values.iter().sum();
        let dimension = match cut {
            Cut::Absolute(limit) => self.values.partition_point(|v| *v < limit),
            Cut::Energy(share) => {
                let mut below = 0.0;
                // From the smallest on, as long as what is left over holds the share.
                let rest = |below: f64| total - below >= share * total;
                self.values
                    .iter()
                    .take_while(|v| {
                        below += **v;
                        rest(below)
                    })
                    .count()
            }
        };
        if dimension == 0 {
            let low = self.values.first().copied().unwrap_or_default();
            return Err(Error::input_hint(
                format!(
                    "the null space has dimension 0: the smallest eigenvalue of C is {low:.2e}, {:.1e} of its trace",
                    low / total
                ),
                "retain less energy, or raise the absolute cut, with `null-space`",
            ));
        }
        Ok(Self { dimension, ..self.clone() })
    }

    /// Where this space ends, in both forms: the share of tr(C) that is left out, and the smallest
    /// eigenvalue left out (the largest there is, where none is).
    pub fn end(&self) -> Resolved {
        let total: f64 = self.values.iter().sum();
        let out = &self.values[self.dimension..];
        let absolute = out.first().or(self.values.last()).copied().unwrap_or_default();
        Resolved { relative: out.iter().sum::<f64>() / total, absolute }
    }

    /// `U [f, dimension]`, orthonormal columns.
    pub fn basis(&self) -> MatRef<'_, f64> {
        MatRef::from_column_major_slice(self.vectors(), self.f, self.dimension)
    }

    /// One eigenvector after another, `[dimension, f]`.
    pub fn vectors(&self) -> &[f64] {
        &self.basis[..self.dimension * self.f]
    }

    /// Eigenvalues of C, ascending.
    pub fn values(&self) -> &[f64] {
        &self.values[..self.dimension]
    }

    /// Number of eigenvectors.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Width of a key.
    pub fn width(&self) -> usize {
        self.f
    }
}
