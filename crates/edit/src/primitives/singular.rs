//! Singular values and vectors in f64. Sequential throughout: results do not depend on the number
//! of threads.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::svd::{ComputeSvdVectors, svd, svd_scratch};
use faer::{Mat, MatRef, Par};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use super::cholesky::add_product;
use crate::error::{Error, Result};

/// `A [m, n] = U · diag(σ) · Vᵀ`, or the part of it with the largest σ.
#[derive(Debug)]
pub(crate) struct Singular {
    /// `[m, k]`, orthonormal columns.
    pub(crate) u: Mat<f64>,
    /// σ, descending.
    pub(crate) values: Vec<f64>,
    /// `[n, k]`, orthonormal columns.
    pub(crate) v: Mat<f64>,
    /// ‖A − U · diag(σ) · Vᵀ‖², Frobenius: 0 where all of A is there.
    pub(crate) rest: f64,
}

impl Singular {
    /// All of them, `k = min(m, n)`.
    ///
    /// # Errors
    /// Where the decomposition does not converge.
    pub(crate) fn of(a: MatRef<'_, f64>) -> Result<Self> {
        let (u, values, v) = decompose(a, ComputeSvdVectors::Thin)?;
        Ok(Self { u, values, v, rest: 0.0 })
    }

    /// Those of `left · rightᵀ`, `left [m, r]`, `right [n, r]`, without forming it. What is no more
    /// than the rounding of f64 is left out, so that factors that cancel leave nothing.
    ///
    /// # Errors
    /// Where a decomposition does not converge.
    pub(crate) fn of_product(left: MatRef<'_, f64>, right: MatRef<'_, f64>) -> Result<Self> {
        let (left, right) = (Self::of(left)?, Self::of(right)?);
        // left · rightᵀ = U_l · (Σ_l V_lᵀ V_r Σ_r) · U_rᵀ: only what is in brackets is left to do.
        let mut core = product(left.v.transpose(), right.v.as_ref());
        for j in 0..core.ncols() {
            for i in 0..core.nrows() {
                core[(i, j)] *= left.values[i] * right.values[j];
            }
        }
        let mut core = Self::of(core.as_ref())?;
        let largest = |s: &Self| s.values.first().copied().unwrap_or_default();
        let zero =
            largest(&left) * largest(&right) * f64::EPSILON * left.u.nrows().max(right.u.nrows()) as f64;
        core.values.retain(|s| *s > zero);
        Ok(Self {
            u: product(left.u.as_ref(), core.u.as_ref()),
            values: core.values,
            v: product(right.u.as_ref(), core.v.as_ref()),
            rest: 0.0,
        })
    }

    /// The `count` largest, by iterating on a random subspace (Halko, Martinsson and Tropp,
    /// arXiv 0909.4061, algorithm 4.4): of a large matrix a hundred times cheaper than all of them.
    /// Vectors are orthonormal and [`Singular::rest`] is exact, whatever the subspace.
    ///
    /// # Errors
    /// Where a decomposition does not converge.
    pub(crate) fn leading(a: MatRef<'_, f64>, count: usize) -> Result<Self> {
        /// Columns beyond those asked for, and rounds: what the authors found to be enough.
        const BEYOND: usize = 8;
        const ROUNDS: usize = 4;
        let wide = count + BEYOND;
        if 2 * wide >= a.nrows().min(a.ncols()) {
            return Ok(Self::of(a)?.cut(count));
        }
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let mut y = product(a, Mat::from_fn(a.ncols(), wide, |_, _| sign(&mut random)).as_ref());
        for _ in 0..ROUNDS {
            let z = product(a.transpose(), Self::of(y.as_ref())?.u.as_ref());
            y = product(a, Self::of(z.as_ref())?.u.as_ref());
        }
        let q = Self::of(y.as_ref())?.u;
        // A ≈ Q QᵀA = Q · (Aᵀ Q)ᵀ.
        let small = Self::of(product(a.transpose(), q.as_ref()).as_ref())?;
        let u = product(q.as_ref(), small.v.as_ref());
        let found: f64 = small.values.iter().map(|s| s * s).sum();
        let rest = (a.squared_norm_l2() - found).max(0.0);
        Ok(Self { u, values: small.values, v: small.u, rest }.cut(count))
    }

    /// ‖A‖², Frobenius.
    pub(crate) fn squared(&self) -> f64 {
        self.rest + self.values.iter().map(|s| s * s).sum::<f64>()
    }

    /// The smallest rank, 1 or more, that leaves out no more than `most` of ‖A‖²; `None` where all
    /// values at hand leave out more.
    pub(crate) fn rank_within(&self, most: f64) -> Option<usize> {
        let mut left = self.rest;
        if left > most {
            return None;
        }
        let tail = self.values.iter().skip(1).rev().take_while(|s| {
            left += **s * **s;
            left <= most
        });
        Some(self.values.len().saturating_sub(tail.count()))
    }

    /// `A` of that rank as `left · rightᵀ`, `left [m, rank]`, `right [n, rank]`, row-major: √σ is
    /// in both.
    pub(crate) fn factors(&self, rank: usize) -> (Vec<f32>, Vec<f32>) {
        let rows = |m: &Mat<f64>| {
            let row = |i: usize| (0..rank).map(move |j| (m[(i, j)] * self.values[j].sqrt()) as f32);
            (0..m.nrows()).flat_map(row).collect()
        };
        (rows(&self.u), rows(&self.v))
    }

    /// The first `count` of them.
    fn cut(mut self, count: usize) -> Self {
        let dropped = self.values.split_off(count.min(self.values.len()));
        self.rest += dropped.iter().map(|s| s * s).sum::<f64>();
        self
    }
}

/// Singular values alone, descending.
///
/// # Errors
/// Where the decomposition does not converge.
pub(crate) fn values(a: MatRef<'_, f64>) -> Result<Vec<f64>> {
    Ok(decompose(a, ComputeSvdVectors::No)?.1)
}

fn decompose(a: MatRef<'_, f64>, vectors: ComputeSvdVectors) -> Result<(Mat<f64>, Vec<f64>, Mat<f64>)> {
    let (m, n) = (a.nrows(), a.ncols());
    let size = m.min(n);
    let with = !matches!(vectors, ComputeSvdVectors::No);
    let (mut u, mut v) = (Mat::zeros(m, size), Mat::zeros(n, size));
    let mut values = Diag::<f64>::zeros(size);
    let scratch = svd_scratch::<f64>(m, n, vectors, vectors, Par::Seq, Default::default());
    svd(
        a,
        values.as_mut(),
        with.then_some(u.as_mut()),
        with.then_some(v.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .map_err(|_| Error::Numerical { what: "a change of weights has no singular values".into() })?;
    let column = values.column_vector();
    Ok((u, (0..size).map(|i| column[i]).collect(), v))
}

fn product(lhs: MatRef<'_, f64>, rhs: MatRef<'_, f64>) -> Mat<f64> {
    let mut to = Mat::zeros(lhs.nrows(), rhs.ncols());
    add_product(to.as_mut(), lhs, rhs, 1.0);
    to
}

fn sign(random: &mut ChaCha8Rng) -> f64 {
    if random.next_u32() & 1 == 0 { 1.0 } else { -1.0 }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn random(rows: usize, columns: usize, seed: u64) -> Mat<f64> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        Mat::from_fn(rows, columns, |_, _| f64::from(random.next_u32()) / f64::from(u32::MAX) - 0.5)
    }

    fn put_together(s: &Singular) -> Mat<f64> {
        let k = s.values.len();
        let scaled = Mat::from_fn(s.u.nrows(), k, |i, j| s.u[(i, j)] * s.values[j]);
        product(scaled.as_ref(), s.v.get(.., ..k).transpose())
    }

    /// Rounding of f64 sums of a few hundred terms of order one.
    const ROUNDING: f64 = 1e-11;

    #[test]
    fn a_product_is_decomposed_without_being_formed() {
        // More columns than rows on one side: a stack of patches can be of a higher rank than fits.
        for (m, n, r) in [(30, 20, 4), (6, 20, 9)] {
            let (left, right) = (random(m, r, 1), random(n, r, 2));
            let whole = product(left.as_ref(), right.transpose());
            let s = Singular::of_product(left.as_ref(), right.as_ref()).unwrap();
            assert!((put_together(&s) - &whole).norm_l2() < ROUNDING);
            let direct = values(whole.as_ref()).unwrap();
            assert_eq!(s.values.len(), r.min(m));
            for (a, b) in s.values.iter().zip(&direct) {
                assert!((a - b).abs() < ROUNDING, "{a} {b}");
            }
        }
        let (left, right) = (random(30, 1, 1), random(20, 1, 2));
        let twice = |m: &Mat<f64>, sign: f64| {
            Mat::from_fn(m.nrows(), 2, |i, j| m[(i, 0)] * if j == 0 { 1.0 } else { sign })
        };
        let none = Singular::of_product(twice(&left, -1.0).as_ref(), twice(&right, 1.0).as_ref()).unwrap();
        assert!(none.values.is_empty());
    }

    #[test]
    fn the_largest_of_a_large_matrix_are_found_and_what_is_lost_is_told() {
        // Rank 5 with noise beneath: 200 × 120 is large enough for the random subspace.
        let strong = product(random(200, 5, 3).as_ref(), random(120, 5, 4).transpose());
        let a = strong + random(200, 120, 5) * 1e-3;
        let (some, all) = (Singular::leading(a.as_ref(), 5).unwrap(), Singular::of(a.as_ref()).unwrap());
        for (found, right) in some.values.iter().zip(&all.values) {
            assert!((found / right - 1.0).abs() < 1e-9, "{found} {right}");
        }
        let apart = (put_together(&some) - &a).norm_l2();
        assert!((apart / some.rest.sqrt() - 1.0).abs() < 1e-6, "{apart} {}", some.rest.sqrt());
        let least: f64 = all.values[5..].iter().map(|s| s * s).sum::<f64>().sqrt();
        assert!(apart < least * 1.001, "{apart} {least}");
    }
}
