//! A patch in a few numbers, by which two are compared where only one of them is at hand.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use super::{Patch, WeightChange};

/// Numbers of a sketch. The estimate of a norm from so many is right to about a tenth
/// (√(2 / 64), halved by the root).
pub const SKETCH: usize = 64;

impl Patch {
    /// Random projections of all changes of weights: `s_i = Σ_W u_iᵀ ΔW v_i`, with signs u and v
    /// drawn from a fixed seed for every weight. The mean square of s is an unbiased estimate of
    /// ‖ΔW‖², and that of the difference of two sketches of ‖ΔW − ΔW'‖².
    pub fn sketch(&self) -> Vec<f64> {
        let mut sums = vec![0.0; SKETCH];
        for (id, change) in &self.weights {
            let name = blake3::hash(format!("{} {}", id.layer, id.role).as_bytes());
            let mut signs = ChaCha8Rng::from_seed(*name.as_bytes());
            let [out, inn] = change.shape();
            for sum in &mut sums {
                let (u, v) = (draw(&mut signs, out), draw(&mut signs, inn));
                *sum += change.between(&u, &v);
            }
        }
        sums
    }
}

/// Estimate of ‖ΔW − ΔW'‖ / ‖ΔW‖ from sketches: 0 where both are nothing.
pub fn difference(of: &[f64], other: &[f64]) -> f64 {
    let square = |x: f64| x * x;
    let apart: f64 = of.iter().zip(other).map(|(a, b)| square(a - b)).sum();
    let whole: f64 = of.iter().copied().map(square).sum();
    if apart == 0.0 { 0.0 } else { (apart / whole).sqrt() }
}

/// Signs, as numbers.
fn draw(rng: &mut ChaCha8Rng, count: usize) -> Vec<f64> {
    let mut signs = Vec::with_capacity(count);
    while signs.len() < count {
        let bits = rng.next_u64();
        signs.extend((0..64.min(count - signs.len())).map(|i| if bits >> i & 1 == 0 { 1.0 } else { -1.0 }));
    }
    signs
}

impl WeightChange {
    /// `uᵀ ΔW v`; `u [out]`, `v [in]`.
    fn between(&self, u: &[f64], v: &[f64]) -> f64 {
        let dot = |row: &[f32], v: &[f64]| row.iter().zip(v).map(|(x, v)| f64::from(*x) * v).sum::<f64>();
        match self {
            Self::Dense { inn, delta, .. } => {
                delta.chunks_exact(*inn).zip(u).map(|(row, u)| u * dot(row, v)).sum()
            }
            Self::LowRank { rank, left, right } => {
                // [rank] = uᵀ · [·, rank]
                let onto = |m: &[f32], u: &[f64]| {
                    let mut sums = vec![0.0; *rank];
                    for (row, u) in m.chunks_exact(*rank).zip(u) {
                        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += u * f64::from(*x));
                    }
                    sums
                };
                onto(left, u).iter().zip(onto(right, v)).map(|(a, b)| a * b).sum()
            }
        }
    }
}
