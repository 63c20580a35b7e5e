//! Row norms.

use super::{Arithmetic, Isa, Shared, for_rows, per_isa};
use crate::architecture::Norm;

/// Scale and shift of a norm.
#[derive(Debug, Clone)]
pub struct NormWeights {
    /// Kind and ε.
    pub kind: Norm,
    /// `w [d]`.
    pub scale: Vec<f32>,
    /// `b [d]`, layer norm only.
    pub shift: Option<Vec<f32>>,
}

/// Norm of each row: `x [m, d]` to `out [m, d]`.
pub fn forward(isa: Isa, weights: &NormWeights, x: &[f32], out: &mut [f32]) {
    let d = weights.scale.len();
    assert_eq!(x.len(), out.len());
    let shared = Shared::new(out);
    for_rows(x.len() / d, 8 * d, |rows| {
        for r in rows {
            // SAFETY: each row is written by one task.
            let out = unsafe { shared.slice(r * d, d) };
            let x = &x[r * d..(r + 1) * d];
            match weights.kind {
                Norm::Rms { epsilon } => rms_row(isa, x, &weights.scale, epsilon, out),
                Norm::Layer { epsilon } => {
                    layer_row(isa, x, &weights.scale, weights.shift.as_deref(), epsilon, out)
                }
            }
        }
    });
}

/// Gradient with respect to `x`, given `dy [m, d]`.
pub fn backward(isa: Isa, weights: &NormWeights, x: &[f32], dy: &[f32]) -> Vec<f32> {
    let d = weights.scale.len();
    let mut dx = vec![0.0; x.len()];
    let shared = Shared::new(&mut dx);
    for_rows(x.len() / d, 16 * d, |rows| {
        for r in rows {
            // SAFETY: each row is written by one task.
            let dx = unsafe { shared.slice(r * d, d) };
            let (x, dy) = (&x[r * d..(r + 1) * d], &dy[r * d..(r + 1) * d]);
            match weights.kind {
                Norm::Rms { epsilon } => rms_row_backward(isa, x, &weights.scale, epsilon, dy, dx),
                Norm::Layer { epsilon } => layer_row_backward(isa, x, &weights.scale, epsilon, dy, dx),
            }
        }
    });
    dx
}

/// Sums in sixteen interleaved chains, added pairwise: fast and accurate.
#[inline(always)]
fn sum<A: Arithmetic>(len: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut acc = [0.0f32; 16];
    let whole = len / 16 * 16;
    let mut i = 0;
    while i < whole {
        for j in 0..16 {
            acc[j] += term(i + j);
        }
        i += 16;
    }
    for j in 0..len - whole {
        acc[j] += term(whole + j);
    }
    for width in [8, 4, 2, 1] {
        for j in 0..width {
            acc[j] += acc[j + width];
        }
    }
    acc[0]
}

per_isa! { fn rms_row(x: &[f32], scale: &[f32], epsilon: f32, out: &mut [f32]) = rms_row_body }
per_isa! { fn layer_row(x: &[f32], scale: &[f32], shift: Option<&[f32]>, epsilon: f32, out: &mut [f32]) = layer_row_body }
per_isa! { fn rms_row_backward(x: &[f32], scale: &[f32], epsilon: f32, dy: &[f32], dx: &mut [f32]) = rms_row_backward_body }
per_isa! { fn layer_row_backward(x: &[f32], scale: &[f32], epsilon: f32, dy: &[f32], dx: &mut [f32]) = layer_row_backward_body }

#[inline(always)]
fn rms_row_body<A: Arithmetic>(x: &[f32], scale: &[f32], epsilon: f32, out: &mut [f32]) {
    let d = x.len();
    let (scale, out) = (&scale[..d], &mut out[..d]);
    let inverse = 1.0 / (sum::<A>(d, |i| x[i] * x[i]) / d as f32 + epsilon).sqrt();
    for i in 0..d {
        out[i] = x[i] * inverse * scale[i];
    }
}

#[inline(always)]
fn layer_row_body<A: Arithmetic>(
    x: &[f32],
    scale: &[f32],
    shift: Option<&[f32]>,
    epsilon: f32,
    out: &mut [f32],
) {
    let d = x.len();
    let (scale, out) = (&scale[..d], &mut out[..d]);
    let mean = sum::<A>(d, |i| x[i]) / d as f32;
    let variance = sum::<A>(d, |i| (x[i] - mean) * (x[i] - mean)) / d as f32;
    let inverse = 1.0 / (variance + epsilon).sqrt();
    for i in 0..d {
        out[i] = (x[i] - mean) * inverse * scale[i];
    }
    if let Some(shift) = shift {
        for (o, b) in out.iter_mut().zip(shift) {
            *o += b;
        }
    }
}

/// With `r = 1/rms` and `g = dy · w`: `dx = r · (g − x · r² · mean(g · x))`.
#[inline(always)]
fn rms_row_backward_body<A: Arithmetic>(x: &[f32], scale: &[f32], epsilon: f32, dy: &[f32], dx: &mut [f32]) {
    let d = x.len();
    let (scale, dy, dx) = (&scale[..d], &dy[..d], &mut dx[..d]);
    let inverse = 1.0 / (sum::<A>(d, |i| x[i] * x[i]) / d as f32 + epsilon).sqrt();
    let along = sum::<A>(d, |i| dy[i] * scale[i] * x[i]) / d as f32 * inverse * inverse;
    for i in 0..d {
        dx[i] = inverse * (dy[i] * scale[i] - x[i] * along);
    }
}

/// With `x̂` the normalised row and `g = dy · w`: `dx = r · (g − mean(g) − x̂ · mean(g · x̂))`.
#[inline(always)]
fn layer_row_backward_body<A: Arithmetic>(
    x: &[f32],
    scale: &[f32],
    epsilon: f32,
    dy: &[f32],
    dx: &mut [f32],
) {
    let d = x.len();
    let (scale, dy, dx) = (&scale[..d], &dy[..d], &mut dx[..d]);
    let mean = sum::<A>(d, |i| x[i]) / d as f32;
    let variance = sum::<A>(d, |i| (x[i] - mean) * (x[i] - mean)) / d as f32;
    let inverse = 1.0 / (variance + epsilon).sqrt();
    let level = sum::<A>(d, |i| dy[i] * scale[i]) / d as f32;
    let along = sum::<A>(d, |i| dy[i] * scale[i] * (x[i] - mean)) / d as f32 * inverse * inverse;
    for i in 0..d {
        dx[i] = inverse * (dy[i] * scale[i] - level - (x[i] - mean) * along);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradient, random};

    #[test]
    fn gradients_agree_with_finite_differences() {
        for kind in [Norm::Rms { epsilon: 1e-5 }, Norm::Layer { epsilon: 1e-5 }] {
            let d = 37;
            let weights = NormWeights { kind, scale: random(1, d), shift: Some(random(2, d)) };
            for isa in Isa::available() {
                assert_gradient(
                    &random(3, 2 * d),
                    2 * d,
                    |x| {
                        let mut y = vec![0.0; x.len()];
                        forward(isa, &weights, x, &mut y);
                        y
                    },
                    |x, dy| backward(isa, &weights, x, dy),
                );
            }
        }
    }
}
