//! Rotary position embedding (RoFormer, arXiv 2104.09864), with the scalings in use.

use super::{Shared, for_rows};
use crate::architecture::{Rotary, RotaryPairs, RotaryScaling};

/// Cosines and sines of the positions of a pass.
#[derive(Debug)]
pub struct RotaryTable {
    width: usize,
    pairs: RotaryPairs,
    /// `[rows, width / 2]` each.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// Angular frequencies, one per pair of dimensions, in radians per token.
///
/// In f32 step by step, as the references compute and keep them: a frequency that is "better" by
/// one unit in the last place is a different model, and by position 6 it shows in the logits.
pub fn frequencies(rotary: &Rotary) -> Vec<f32> {
    let half = rotary.width / 2;
    (0..half)
        .map(|i| {
            let plain = 1.0 / (rotary.base as f32).powf((2 * i) as f32 / rotary.width as f32);
            match &rotary.scaling {
                RotaryScaling::None => plain,
                RotaryScaling::Linear { factor } => plain / *factor as f32,
                RotaryScaling::Divisors(divisors) => plain / divisors.get(i).map_or(1.0, |d| *d as f32),
                RotaryScaling::Llama3 {
                    factor,
                    low_frequency_factor,
                    high_frequency_factor,
                    original_context,
                } => {
                    let (factor, original) = (*factor as f32, *original_context as f32);
                    let (low, high) = (*low_frequency_factor as f32, *high_frequency_factor as f32);
                    let wavelength = std::f32::consts::TAU / plain;
                    if wavelength > original / low {
                        plain / factor
                    } else if wavelength < original / high {
                        plain
                    } else {
                        let blend = (original / wavelength - low) / (high - low);
                        (1.0 - blend) * plain / factor + blend * plain
                    }
                }
            }
        })
        .collect()
}

impl RotaryTable {
    /// Table for rows at the given positions.
    pub fn new(rotary: &Rotary, positions: &[usize]) -> Self {
        let frequencies = frequencies(rotary);
        let mut cos = Vec::with_capacity(positions.len() * frequencies.len());
        let mut sin = Vec::with_capacity(cos.capacity());
        for &position in positions {
            for &frequency in &frequencies {
                // The product is rounded to f32 as in the references; its cosine is not.
                let angle = f64::from(position as f32 * frequency);
                cos.push(angle.cos() as f32);
                sin.push(angle.sin() as f32);
            }
        }
        Self { width: rotary.width, pairs: rotary.pairs, cos, sin }
    }

    /// Rotates `x [rows, heads · head_width]` in place.
    pub fn rotate(&self, x: &mut [f32], head_width: usize) {
        self.turn(x, head_width, 1.0);
    }

    /// Gradient of [`Self::rotate`]: the rotation back.
    pub fn rotate_back(&self, dx: &mut [f32], head_width: usize) {
        self.turn(dx, head_width, -1.0);
    }

    fn turn(&self, x: &mut [f32], head_width: usize, direction: f32) {
        let half = self.width / 2;
        if half == 0 || self.cos.is_empty() {
            return;
        }
        let rows = self.cos.len() / half;
        let row_len = x.len() / rows;
        let shared = Shared::new(x);
        for_rows(rows, 4 * row_len, |range| {
            for r in range {
                let (cos, sin) = (&self.cos[r * half..][..half], &self.sin[r * half..][..half]);
                // SAFETY: each row is written by one task.
                let row = unsafe { shared.slice(r * row_len, row_len) };
                for head in row.chunks_exact_mut(head_width) {
                    match self.pairs {
                        RotaryPairs::Halves => {
                            let (a, b) = head[..2 * half].split_at_mut(half);
                            for i in 0..half {
                                let (x, y, s) = (a[i], b[i], direction * sin[i]);
                                a[i] = x * cos[i] - y * s;
                                b[i] = y * cos[i] + x * s;
                            }
                        }
                        RotaryPairs::Neighbours => {
                            for (i, pair) in head[..2 * half].chunks_exact_mut(2).enumerate() {
                                let (x, y, s) = (pair[0], pair[1], direction * sin[i]);
                                pair[0] = x * cos[i] - y * s;
                                pair[1] = y * cos[i] + x * s;
                            }
                        }
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, assert_gradient, random};

    fn rotary(pairs: RotaryPairs, width: usize) -> Rotary {
        Rotary { width, pairs, base: 100.0, scaling: RotaryScaling::None }
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        for pairs in [RotaryPairs::Halves, RotaryPairs::Neighbours] {
            // Two heads of width 8, of which 6 dimensions turn.
            let table = RotaryTable::new(&rotary(pairs, 6), &[3, 11]);
            let run = |x: &[f32]| {
                let mut y = x.to_vec();
                table.rotate(&mut y, 8);
                y
            };
            assert_gradient(&random(1, 32), 32, run, |_, dy| {
                let mut dx = dy.to_vec();
                table.rotate_back(&mut dx, 8);
                dx
            });
        }
    }

    #[test]
    fn products_depend_on_the_distance_alone() {
        for pairs in [RotaryPairs::Halves, RotaryPairs::Neighbours] {
            let (q, k) = (random(1, 8), random(2, 8));
            let dot_at = |i, j| {
                let (mut q, mut k) = (q.clone(), k.clone());
                RotaryTable::new(&rotary(pairs, 8), &[i]).rotate(&mut q, 8);
                RotaryTable::new(&rotary(pairs, 8), &[j]).rotate(&mut k, 8);
                q.iter().zip(&k).map(|(a, b)| a * b).sum::<f32>()
            };
            assert_close("rotated product", &[dot_at(12, 7)], &[dot_at(25, 20)], 2e-6);
        }
    }
}
