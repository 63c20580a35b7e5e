//! Running statistics of what goes into a linear map and of the gradient of what comes out, over
//! every edit that was ever made: the "lifelong normalisation" of UltraEdit (arXiv 2505.14679,
//! §3.2) and StableEdit (arXiv 2605.11836).

use faer::{Mat, MatRef};

use super::cholesky::add_product;
use super::subspace::eigenvectors;
use crate::error::{Error, Result};

/// Added to a deviation before something is divided by it.
const EPSILON: f64 = 1e-7;
/// Least eigenvalue of a covariance, relative to their mean, that whitening divides by.
const FLOOR: f64 = 1e-6;

/// Mean and covariance of rows, updated in batches.
#[derive(Debug, Clone, PartialEq)]
pub struct Running {
    /// Rows seen.
    count: f64,
    /// `[width]`.
    mean: Vec<f64>,
    /// Sums of products of differences from the mean: the diagonal `[width]`, or the lower half
    /// row by row.
    squares: Vec<f64>,
    whole: bool,
}

impl Running {
    /// Of no rows yet. With `whole`, the covariances of all pairs are kept, else variances alone.
    pub fn new(width: usize, whole: bool) -> Self {
        let squares = if whole { width * (width + 1) / 2 } else { width };
        Self { count: 0.0, mean: vec![0.0; width], squares: vec![0.0; squares], whole }
    }

    /// Whether no row was seen.
    pub fn is_empty(&self) -> bool {
        self.count == 0.0
    }

    /// Width of a row.
    pub fn width(&self) -> usize {
        self.mean.len()
    }

    /// Adds a batch of rows `[n, width]` (Chan, Golub & LeVeque 1979, eq. 2.1).
    pub fn add(&mut self, rows: &[f32]) {
        let width = self.width();
        let n = (rows.len() / width) as f64;
        if n == 0.0 {
            return;
        }
        let mut mean = vec![0.0; width];
        for row in rows.chunks_exact(width) {
            mean.iter_mut().zip(row).for_each(|(m, x)| *m += f64::from(*x));
        }
        mean.iter_mut().for_each(|m| *m /= n);
        let total = self.count + n;
        let apart: Vec<f64> = mean.iter().zip(&self.mean).map(|(new, old)| new - old).collect();
        let between = self.count * n / total;
        if self.whole {
            let centred: Vec<f64> = rows
                .chunks_exact(width)
                .flat_map(|row| row.iter().zip(&mean).map(|(x, m)| f64::from(*x) - m))
                .collect();
            let centred = MatRef::from_column_major_slice(&centred, width, rows.len() / width);
            let mut products = Mat::<f64>::zeros(width, width);
            add_product(products.as_mut(), centred, centred.transpose(), 1.0);
            let mut at = 0;
            for i in 0..width {
                for j in 0..=i {
                    self.squares[at] += products[(i, j)] + between * apart[i] * apart[j];
                    at += 1;
                }
            }
        } else {
            for row in rows.chunks_exact(width) {
                for ((s, x), m) in self.squares.iter_mut().zip(row).zip(&mean) {
                    *s += (f64::from(*x) - m).powi(2);
                }
            }
            self.squares.iter_mut().zip(&apart).for_each(|(s, d)| *s += between * d * d);
        }
        self.mean.iter_mut().zip(&apart).for_each(|(m, d)| *m += d * n / total);
        self.count = total;
    }

    /// Mean of a row's squared norm.
    pub fn energy(&self) -> f64 {
        self.energy_of(0..self.width())
    }

    /// Mean of the squared norm of a part of a row.
    pub fn energy_of(&self, part: std::ops::Range<usize>) -> f64 {
        let squares: f64 = part.clone().map(|i| self.squares[self.diagonal(i)]).sum();
        squares / self.count.max(1.0) + self.mean[part].iter().map(|m| m * m).sum::<f64>()
    }

    /// Biased deviation of each number of a row.
    pub fn deviations(&self) -> Vec<f64> {
        (0..self.width()).map(|i| (self.squares[self.diagonal(i)] / self.count.max(1.0)).sqrt()).collect()
    }

    fn diagonal(&self, i: usize) -> usize {
        if self.whole { i * (i + 3) / 2 } else { i }
    }

    /// Variances are sums over `count − less`, as long as there is more than that.
    fn divisor(&self, less: f64) -> f64 {
        if self.count > less { self.count - less } else { 1.0 }
    }

    /// A row less the mean, over the deviations. `unbiased` divides by one row less; of a single
    /// row, which has no deviation, nothing is divided.
    pub fn normalised(&self, row: &[f32], unbiased: bool) -> Vec<f64> {
        let divisor = self.divisor(if unbiased { 1.0 } else { 0.0 });
        let each = row.iter().zip(&self.mean).enumerate();
        each.map(|(i, (x, m))| {
            let deviation = (self.squares[self.diagonal(i)] / divisor).sqrt();
            (f64::from(*x) - m) / if self.count > 1.0 { deviation + EPSILON } else { 1.0 }
        })
        .collect()
    }

    /// Σ^(−1/2) `[width, width]`, for [`Self::whitened`]; none as long as there are fewer rows than
    /// a covariance has dimensions, and one.
    ///
    /// # Errors
    /// Where the decomposition does not converge, or only variances are kept.
    pub fn whitening(&self) -> Result<Option<Mat<f64>>> {
        let width = self.width();
        if self.count <= width as f64 + 1.0 {
            return Ok(None);
        }
        if !self.whole {
            return Err(Error::Numerical { what: "variances alone do not whiten".into() });
        }
        let mut covariance = Mat::<f64>::zeros(width, width);
        let mut at = 0;
        for i in 0..width {
            for j in 0..=i {
                covariance[(i, j)] = self.squares[at] / self.count;
                at += 1;
            }
        }
        let (values, vectors) = eigenvectors(covariance.as_ref())
            .filter(|(values, _)| values.iter().all(|v| v.is_finite()))
            .ok_or_else(|| Error::Numerical { what: "gradients have no principal axes".into() })?;
        let least = FLOOR * values.iter().sum::<f64>() / width as f64;
        let scaled = Mat::from_fn(width, width, |i, j| {
            vectors[(i, j)] / values[j].max(least).max(f64::MIN_POSITIVE).sqrt()
        });
        let mut root = Mat::<f64>::zeros(width, width);
        add_product(root.as_mut(), scaled.as_ref(), vectors.transpose(), 1.0);
        Ok(Some(root))
    }

    /// A row less the mean, times Σ^(−1/2).
    pub fn whitened(&self, row: &[f32], root: &Mat<f64>) -> Vec<f64> {
        let centred: Vec<f64> = row.iter().zip(&self.mean).map(|(x, m)| f64::from(*x) - m).collect();
        (0..self.width())
            .map(|j| root.col_as_slice(j).iter().zip(&centred).map(|(a, b)| a * b).sum())
            .collect()
    }

    /// As numbers that a patch keeps.
    pub fn to_state(&self) -> Vec<f32> {
        // The count in two halves, as an f32 holds no more than 2^24.
        let high = (self.count / 4096.0).floor();
        let count = [high as f32, (self.count - 4096.0 * high) as f32];
        let all = self.mean.iter().chain(&self.squares).map(|x| *x as f32);
        count.into_iter().chain(all).collect()
    }

    /// From what a patch keeps; none where it has another size.
    pub fn from_state(state: &[f32], width: usize, whole: bool) -> Option<Self> {
        let mut running = Self::new(width, whole);
        let (count, rest) = state.split_first_chunk::<2>()?;
        let (mean, squares) = rest.split_at_checked(width)?;
        if squares.len() != running.squares.len() {
            return None;
        }
        running.count = 4096.0 * f64::from(count[0]) + f64::from(count[1]);
        running.mean = mean.iter().map(|x| f64::from(*x)).collect();
        running.squares = squares.iter().map(|x| f64::from(*x)).collect();
        Some(running)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use rand_chacha::ChaCha8Rng;
    use rand_core::{RngCore, SeedableRng};

    use super::*;

    const WIDTH: usize = 7;

    /// Rows whose columns go together, `[n, WIDTH]`.
    fn rows(n: usize) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut draw = || (rng.next_u32() >> 8) as f32 / (1 << 24) as f32;
        (0..n)
            .flat_map(|_| {
                let common = draw();
                (0..WIDTH).map(|i| 3.0 + i as f32 * common + draw()).collect::<Vec<_>>()
            })
            .collect()
    }

    #[test]
    fn batches_add_up_to_the_whole() {
        let all = rows(50);
        for whole in [false, true] {
            let mut once = Running::new(WIDTH, whole);
            once.add(&all);
            let mut parts = Running::new(WIDTH, whole);
            for part in [&all[..WIDTH], &all[WIDTH..20 * WIDTH], &all[20 * WIDTH..]] {
                parts.add(part);
            }
            let (a, b) = (once.normalised(&all[..WIDTH], true), parts.normalised(&all[..WIDTH], true));
            assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-9), "{a:?} {b:?}");
            assert!((once.energy() - parts.energy()).abs() < 1e-9);
            let kept = Running::from_state(&once.to_state(), WIDTH, whole).unwrap();
            let again = kept.normalised(&all[..WIDTH], true);
            assert!(a.iter().zip(&again).all(|(a, b)| (a - b).abs() < 1e-5), "{a:?} {again:?}");
            assert!(Running::from_state(&once.to_state()[1..], WIDTH, whole).is_none());
        }
    }

    #[test]
    fn normalised_rows_have_mean_zero_and_deviation_one() {
        let all = rows(40);
        let mut running = Running::new(WIDTH, false);
        running.add(&all);
        for i in 0..WIDTH {
            let column: Vec<f64> =
                all.chunks_exact(WIDTH).map(|row| running.normalised(row, true)[i]).collect();
            let sum: f64 = column.iter().sum();
            let squares: f64 = column.iter().map(|x| x * x).sum();
            assert!(sum.abs() < 1e-6 && (squares / 39.0 - 1.0).abs() < 1e-5, "{sum} {squares}");
        }
        let energy: f64 = all.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 40.0;
        assert!((running.energy() / energy - 1.0).abs() < 1e-9);
        // One row has no deviation: no division by zero.
        let mut single = Running::new(WIDTH, false);
        single.add(&all[..WIDTH]);
        assert!(single.normalised(&all[WIDTH..2 * WIDTH], true).iter().all(|x| x.is_finite()));
    }

    #[test]
    fn whitened_rows_have_the_identity_for_covariance() {
        let all = rows(60);
        let mut running = Running::new(WIDTH, true);
        running.add(&all[..8 * WIDTH]);
        assert!(running.whitening().unwrap().is_none());
        running.add(&all[8 * WIDTH..]);
        let root = running.whitening().unwrap().unwrap();
        let white: Vec<Vec<f64>> = all.chunks_exact(WIDTH).map(|row| running.whitened(row, &root)).collect();
        for i in 0..WIDTH {
            for j in 0..WIDTH {
                let c = white.iter().map(|r| r[i] * r[j]).sum::<f64>() / 60.0;
                assert!((c - f64::from(u8::from(i == j))).abs() < 1e-6, "{i} {j} {c}");
            }
        }
        let mut alone = Running::new(WIDTH, false);
        alone.add(&all);
        assert!(alone.whitening().is_err());
    }
}
