//! The small network that turns an input and a gradient into better ones: residual blocks of low
//! rank, the identity before training (MEND, arXiv 2110.11309, §3.2; MALMEN, arXiv 2311.04661,
//! §4.1).
//!
//! One network serves all weights of one shape; each weight has a scale and a shift of its own.
//! A block is `y = x + a(sᵥ ⊙ (U (V x) + b) + tᵥ)`.

use faer::{Mat, MatRef};
use rand_chacha::ChaCha8Rng;
use rand_core::RngCore;

use crate::primitives::cholesky::add_product;

/// Its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    /// Width of a row.
    pub(super) width: usize,
    /// Rank of a block.
    pub(super) rank: usize,
    /// Blocks. All but the last are rectified, and the last where `rectify_last` says so.
    pub(super) blocks: usize,
    /// Weights that share it.
    pub(super) weights: usize,
    /// MALMEN rectifies every block, MEND all but the last.
    pub(super) rectify_last: bool,
}

impl Size {
    /// Numbers of one block: V `[rank, width]`, Uᵀ `[rank, width]`, b `[width]`, s and t
    /// `[weights, width]`.
    fn block(&self) -> usize {
        (2 * self.rank + 1 + 2 * self.weights) * self.width
    }

    /// Numbers of all blocks.
    pub(super) fn numbers(&self) -> usize {
        self.blocks * self.block()
    }

    /// Where the parts of a block begin: V, U, b, and s and t of a weight.
    fn parts(&self, block: usize, weight: usize) -> [usize; 5] {
        let from = block * self.block();
        let u = from + self.rank * self.width;
        let b = u + self.rank * self.width;
        let s = b + self.width;
        let t = s + self.weights * self.width;
        [from, u, b, s + weight * self.width, t + weight * self.width]
    }

    fn is_rectified(&self, block: usize) -> bool {
        self.rectify_last || block + 1 < self.blocks
    }
}

/// What a backward pass through one block needs.
struct Step {
    /// The block's input, `[n, width]`.
    x: Vec<f64>,
    /// V x, `[n, rank]`.
    inner: Vec<f64>,
    /// U V x + b, `[n, width]`.
    outer: Vec<f64>,
    /// Whether a rectified number passed, `[n, width]`.
    passed: Vec<bool>,
}

/// A forward pass, for the way back.
pub(super) struct Trace {
    weight: usize,
    steps: Vec<Step>,
}

/// The numbers before training: U, b and t zero, s one, V random with variance 1/width.
pub(super) fn identity(size: &Size, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let mut numbers = vec![0.0; size.numbers()];
    // Sums of uniform numbers are normal enough, and the same on every machine.
    let mut normal = || (0..12).map(|_| f64::from(rng.next_u32()) / 4_294_967_296.0).sum::<f64>() - 6.0;
    let deviation = 1.0 / (size.width as f64).sqrt();
    for block in 0..size.blocks {
        let [v, u, _, s, t] = size.parts(block, 0);
        numbers[v..u].iter_mut().for_each(|x| *x = (deviation * normal()) as f32);
        numbers[s..t].fill(1.0);
    }
    numbers
}

/// Sends rows `[n, width]` of one weight through the network.
pub(super) fn forward(size: &Size, numbers: &[f32], weight: usize, rows: Vec<f64>) -> (Vec<f64>, Trace) {
    let width = size.width;
    let mut x = rows;
    let mut steps = Vec::with_capacity(size.blocks);
    for block in 0..size.blocks {
        let [v, u, b, s, t] = size.parts(block, weight);
        let part = |from: usize| &numbers[from..from + width];
        let inner = times(&x, &numbers[v..u], size.rank, width);
        let mut outer = times_transposed(&inner, &numbers[u..b], size.rank, width);
        let mut y = x.clone();
        let mut passed = vec![true; x.len()];
        for (i, (outer, y)) in outer.iter_mut().zip(&mut y).enumerate() {
            let j = i % width;
            *outer += f64::from(part(b)[j]);
            let value = f64::from(part(s)[j]) * *outer + f64::from(part(t)[j]);
            // At 0 it passes, or the zeros that training starts from would never move.
            passed[i] = !size.is_rectified(block) || value >= 0.0;
            if passed[i] {
                *y += value;
            }
        }
        steps.push(Step { x: std::mem::replace(&mut x, y), inner, outer, passed });
    }
    (x, Trace { weight, steps })
}

/// Adds the gradient of the numbers to `sums`, given that of the rows that came out.
pub(super) fn backward(size: &Size, numbers: &[f32], trace: &Trace, gradient: Vec<f64>, sums: &mut [f64]) {
    let width = size.width;
    let mut dy = gradient;
    for (block, step) in trace.steps.iter().enumerate().rev() {
        let [v, u, b, s, t] = size.parts(block, trace.weight);
        let mut douter = vec![0.0; dy.len()];
        for (i, (d, to)) in dy.iter().zip(&mut douter).enumerate().filter(|(i, _)| step.passed[*i]) {
            let j = i % width;
            sums[s + j] += d * step.outer[i];
            sums[t + j] += d;
            *to = d * f64::from(numbers[s + j]);
            sums[b + j] += *to;
        }
        let dinner = times(&douter, &numbers[u..b], size.rank, width);
        add_outer(&mut sums[u..b], &step.inner, &douter, size.rank, width);
        add_outer(&mut sums[v..u], &dinner, &step.x, size.rank, width);
        let back = times_transposed(&dinner, &numbers[v..u], size.rank, width);
        dy.iter_mut().zip(back).for_each(|(d, x)| *d += x);
    }
}

/// `x [n, width] · mᵀ`, for `m [rank, width]`: `[n, rank]`.
fn times(x: &[f64], m: &[f32], rank: usize, width: usize) -> Vec<f64> {
    let n = x.len() / width;
    let m: Vec<f64> = m.iter().map(|x| f64::from(*x)).collect();
    let mut out = Mat::<f64>::zeros(rank, n);
    let (m, x) =
        (MatRef::from_row_major_slice(&m, rank, width), MatRef::from_column_major_slice(x, width, n));
    add_product(out.as_mut(), m, x, 1.0);
    (0..n).flat_map(|j| out.col_as_slice(j).to_vec()).collect()
}

/// `x [n, rank] · m`, for `m [rank, width]`: `[n, width]`.
fn times_transposed(x: &[f64], m: &[f32], rank: usize, width: usize) -> Vec<f64> {
    let n = x.len() / rank;
    let m: Vec<f64> = m.iter().map(|x| f64::from(*x)).collect();
    let mut out = Mat::<f64>::zeros(width, n);
    let (m, x) =
        (MatRef::from_column_major_slice(&m, width, rank), MatRef::from_column_major_slice(x, rank, n));
    add_product(out.as_mut(), m, x, 1.0);
    (0..n).flat_map(|j| out.col_as_slice(j).to_vec()).collect()
}

/// `to [rank, width] += xᵀ y`, for `x [n, rank]` and `y [n, width]`.
fn add_outer(to: &mut [f64], x: &[f64], y: &[f64], rank: usize, width: usize) {
    let n = x.len() / rank;
    let (x, y) = (MatRef::from_column_major_slice(x, rank, n), MatRef::from_column_major_slice(y, width, n));
    let to = faer::MatMut::from_column_major_slice_mut(to, width, rank);
    add_product(to, y, x.transpose(), 1.0);
}

#[cfg(test)]
mod tests {
    use rand_core::SeedableRng;

    use super::*;

    const SIZE: Size = Size { width: 7, rank: 3, blocks: 2, weights: 2, rectify_last: false };

    fn random(rng: &mut ChaCha8Rng, n: usize) -> Vec<f64> {
        (0..n).map(|_| f64::from(rng.next_u32()) / 2_147_483_648.0 - 1.0).collect()
    }

    #[test]
    fn it_starts_as_the_identity() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let numbers = identity(&SIZE, &mut rng);
        let rows = random(&mut rng, 5 * SIZE.width);
        assert_eq!(forward(&SIZE, &numbers, 1, rows.clone()).0, rows);
    }

    /// Each number's gradient against central differences. Numbers are f32, so that steps are
    /// powers of two; 1e-6 is what a step of 2⁻¹⁰ leaves of the third derivative.
    #[test]
    fn gradients_are_those_of_differences() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        for rectify_last in [false, true] {
            let size = Size { rectify_last, ..SIZE };
            let numbers: Vec<f32> = random(&mut rng, size.numbers()).iter().map(|x| *x as f32).collect();
            let rows = random(&mut rng, 4 * size.width);
            let weights = random(&mut rng, rows.len());
            let loss = |numbers: &[f32]| -> f64 {
                let out = forward(&size, numbers, 1, rows.clone()).0;
                out.iter().zip(&weights).map(|(y, w)| w * y).sum()
            };
            let mut sums = vec![0.0; numbers.len()];
            let (_, trace) = forward(&size, &numbers, 1, rows.clone());
            backward(&size, &numbers, &trace, weights.clone(), &mut sums);
            let step = 2.0f32.powi(-12);
            for (i, sum) in sums.iter().enumerate() {
                let at = |x: f32| {
                    let mut moved = numbers.clone();
                    moved[i] = x;
                    (loss(&moved), f64::from(x))
                };
                let ((high, to), (low, from)) = (at(numbers[i] + step), at(numbers[i] - step));
                let expected = (high - low) / (to - from);
                assert!((sum - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{i}: {sum} {expected}");
            }
        }
    }
}
