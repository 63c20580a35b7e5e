//! Sums of outer products Σ k kᵀ: f32 products of a few hundred rows, added up in f64.

use mutandis_engine::Isa;
use mutandis_engine::kernels::gemm;
use mutandis_engine::kernels::pack::Packed;
use rayon::prelude::*;

/// Columns per block; a multiple of the product's panels.
const BLOCK: usize = 192;

/// Rows multiplied in f32 before they are added to the f64 sums. Sums this short are within
/// 1e-6 of f64 (see the tests), and long enough that adding them up costs less than they do.
const ROWS: usize = 512;

/// A growing Σ k kᵀ of keys `[f]`.
pub(super) struct Sums {
    f: usize,
    /// Keys not yet added, `[≤ ROWS, f]`.
    waiting: Vec<f32>,
    /// For each block of columns, the rows down to the diagonal block's end: `[end, width]`.
    blocks: Vec<Vec<f64>>,
    /// Keys seen.
    pub(super) count: u64,
}

impl Sums {
    pub(super) fn new(f: usize) -> Self {
        let blocks = spans(f).map(|(from, to)| vec![0.0; to * (to - from)]).collect();
        Self { f, waiting: vec![], blocks, count: 0 }
    }

    /// Adds keys `[n, f]`.
    pub(super) fn push(&mut self, isa: Isa, mut keys: &[f32]) {
        self.count += (keys.len() / self.f) as u64;
        while !keys.is_empty() {
            let room = ROWS * self.f - self.waiting.len();
            let (now, later) = keys.split_at(room.min(keys.len()));
            self.waiting.extend_from_slice(now);
            keys = later;
            if self.waiting.len() == ROWS * self.f {
                self.settle(isa);
            }
        }
    }

    /// Adds what is waiting. What the sums are afterwards depends on when this is called, by
    /// rounding: call it at places that do not depend on chance.
    pub(super) fn settle(&mut self, isa: Isa) {
        let (f, rows) = (self.f, self.waiting.len() / self.f);
        if rows == 0 {
            return;
        }
        let mut columns = vec![0.0f32; f * rows];
        columns.par_chunks_mut(16 * rows).enumerate().for_each(|(block, out)| {
            for (r, key) in self.waiting.chunks_exact(f).enumerate() {
                for (i, column) in out.chunks_exact_mut(rows).enumerate() {
                    column[r] = key[block * 16 + i];
                }
            }
        });
        self.waiting.clear();
        let spans: Vec<_> = spans(f).collect();
        self.blocks.par_iter_mut().zip(spans).for_each(|(sum, (from, to))| {
            let right = Packed::from_f32(to - from, rows, &columns[from * rows..to * rows]);
            let product = gemm::multiply(isa, &columns[..to * rows], to, &right);
            for (s, p) in sum.iter_mut().zip(product) {
                *s += f64::from(p);
            }
        });
    }

    /// The upper triangle, row by row, `[f (f + 1) / 2]`. Settled sums only.
    pub(super) fn upper(&self) -> Vec<f64> {
        let mut upper = Vec::with_capacity(self.f * (self.f + 1) / 2);
        for i in 0..self.f {
            for (block, (from, to)) in self.blocks.iter().zip(spans(self.f)) {
                if i < to {
                    upper.extend_from_slice(
                        &block[i * (to - from) + i.saturating_sub(from)..(i + 1) * (to - from)],
                    );
                }
            }
        }
        upper
    }

    /// From an upper triangle of `count` keys.
    pub(super) fn restore(f: usize, upper: &[f64], count: u64) -> Self {
        let mut sums = Self::new(f);
        sums.count = count;
        let mut rest = upper;
        for i in 0..f {
            for (block, (from, to)) in sums.blocks.iter_mut().zip(spans(f)) {
                if i < to {
                    let row = &mut block[i * (to - from) + i.saturating_sub(from)..(i + 1) * (to - from)];
                    let (now, later) = rest.split_at(row.len());
                    row.copy_from_slice(now);
                    rest = later;
                }
            }
        }
        sums
    }
}

fn spans(f: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..f).step_by(BLOCK).map(move |from| (from, (from + BLOCK).min(f)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_core::{RngCore, SeedableRng};

    fn keys(n: usize, f: usize) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let uniform = |rng: &mut ChaCha8Rng| (rng.next_u32() >> 8) as f32 / (1 << 24) as f32 - 0.5;
        // Columns of very different sizes, some correlated, as real keys are.
        (0..n)
            .flat_map(|_| {
                let common = uniform(&mut rng);
                (0..f)
                    .map(|j| (uniform(&mut rng) + common) * 10f32.powi((j % 7) as i32 - 3))
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    fn naive(keys: &[f32], f: usize) -> Vec<f64> {
        let mut upper = vec![];
        for i in 0..f {
            for j in i..f {
                upper.push(keys.chunks_exact(f).map(|k| f64::from(k[i]) * f64::from(k[j])).sum());
            }
        }
        upper
    }

    #[test]
    fn sums_agree_with_f64_on_every_instruction_set() {
        for isa in Isa::available() {
            for (n, f) in [(1, 1), (700, 17), (1300, 200), (513, 400)] {
                let keys = keys(n, f);
                let mut sums = Sums::new(f);
                for part in keys.chunks(37 * f) {
                    sums.push(isa, part);
                }
                sums.settle(isa);
                assert_eq!(sums.count, n as u64);
                let (found, exact) = (sums.upper(), naive(&keys, f));
                let diagonal: Vec<f64> = (0..f).map(|i| exact[i * f - i * i.saturating_sub(1) / 2]).collect();
                let mut at = 0;
                for i in 0..f {
                    for j in i..f {
                        // Relative to the Cauchy–Schwarz bound: an element may be zero by chance.
                        let scale = (diagonal[i] * diagonal[j]).sqrt();
                        let error = (found[at] - exact[at]).abs() / scale;
                        assert!(error < 1e-6, "{isa:?} {n}×{f}: element ({i}, {j}) off by {error:e}");
                        at += 1;
                    }
                }
            }
        }
    }

    #[test]
    fn restored_sums_are_the_same_bits() {
        let (n, f) = (600, 230);
        let keys = keys(n, f);
        let mut sums = Sums::new(f);
        sums.push(Isa::PORTABLE, &keys);
        sums.settle(Isa::PORTABLE);
        let upper = sums.upper();
        let back = Sums::restore(f, &upper, sums.count);
        assert_eq!(upper, back.upper());
        assert_eq!(back.count, 600);
    }
}
