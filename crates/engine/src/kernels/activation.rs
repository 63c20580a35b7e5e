//! The MLP's non-linearity, with and without a gate.

use super::{Arithmetic, Isa, Shared, for_rows, per_isa};
use crate::architecture::Activation;

/// `out = act(gate) · up`, or `act(gate)` without `up`; all `[m, f]`.
pub fn forward(isa: Isa, act: Activation, gate: &[f32], up: Option<&[f32]>, f: usize, out: &mut [f32]) {
    assert_eq!(gate.len(), out.len());
    let shared = Shared::new(out);
    for_rows(gate.len() / f, 20 * f, |rows| {
        let range = rows.start * f..rows.end * f;
        // SAFETY: each row is written by one task.
        let out = unsafe { shared.slice(range.start, range.len()) };
        values(isa, act, &gate[range.clone()], out);
        if let Some(up) = up {
            for (o, u) in out.iter_mut().zip(&up[range]) {
                *o *= u;
            }
        }
    });
}

/// Gradients with respect to `gate` and `up`, given that of `key`.
pub fn backward(
    isa: Isa,
    act: Activation,
    gate: &[f32],
    up: Option<&[f32]>,
    dkey: &[f32],
    f: usize,
) -> (Vec<f32>, Option<Vec<f32>>) {
    let mut dgate = vec![0.0; gate.len()];
    let mut dup = up.map(|u| vec![0.0; u.len()]);
    let shared_gate = Shared::new(&mut dgate);
    let shared_up = dup.as_mut().map(|d| Shared::new(d));
    for_rows(gate.len() / f, 40 * f, |rows| {
        let range = rows.start * f..rows.end * f;
        let (gate, dkey) = (&gate[range.clone()], &dkey[range.clone()]);
        // SAFETY: each row is written by one task.
        let dgate = unsafe { shared_gate.slice(range.start, range.len()) };
        if let (Some(up), Some(shared_up)) = (up, &shared_up) {
            // SAFETY: as above.
            let dup = unsafe { shared_up.slice(range.start, range.len()) };
            values(isa, act, gate, dup);
            slopes(isa, act, gate, dgate);
            for (((du, dg), u), dk) in dup.iter_mut().zip(dgate).zip(&up[range]).zip(dkey) {
                *du *= dk;
                *dg *= u * dk;
            }
        } else {
            slopes(isa, act, gate, dgate);
            for (dg, dk) in dgate.iter_mut().zip(dkey) {
                *dg *= dk;
            }
        }
    });
    (dgate, dup)
}

fn values(isa: Isa, act: Activation, x: &[f32], out: &mut [f32]) {
    match act {
        Activation::Silu => silu(isa, x, out),
        Activation::GeluTanh => gelu_tanh(isa, x, out),
        Activation::Gelu => {
            for (o, &x) in out.iter_mut().zip(x) {
                *o = x * normal_cdf(x);
            }
        }
        Activation::Relu => {
            for (o, &x) in out.iter_mut().zip(x) {
                *o = x.max(0.0);
            }
        }
    }
}

fn slopes(isa: Isa, act: Activation, x: &[f32], out: &mut [f32]) {
    match act {
        Activation::Silu => silu_slope(isa, x, out),
        Activation::GeluTanh => gelu_tanh_slope(isa, x, out),
        Activation::Gelu => {
            const DENSITY_AT_0: f32 = 0.398_942_3;
            for (o, &x) in out.iter_mut().zip(x) {
                *o = normal_cdf(x) + x * DENSITY_AT_0 * (-0.5 * x * x).exp();
            }
        }
        Activation::Relu => {
            for (o, &x) in out.iter_mut().zip(x) {
                *o = if x > 0.0 { 1.0 } else { 0.0 };
            }
        }
    }
}

fn normal_cdf(x: f32) -> f32 {
    0.5 * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2))
}

per_isa! { fn silu(x: &[f32], out: &mut [f32]) = silu_body }
per_isa! { fn silu_slope(x: &[f32], out: &mut [f32]) = silu_slope_body }
per_isa! { fn gelu_tanh(x: &[f32], out: &mut [f32]) = gelu_tanh_body }
per_isa! { fn gelu_tanh_slope(x: &[f32], out: &mut [f32]) = gelu_tanh_slope_body }

/// `eˣ` to about one unit in the last place; saturates instead of overflowing.
///
/// `x = n·ln 2 + r` with `|r| ≤ ln 2 / 2`; `eʳ` by its Taylor polynomial of degree 7, whose
/// remainder there is below 1e-8.
#[inline(always)]
pub(super) fn exp<A: Arithmetic>(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    // Adding 1.5 · 2²³ rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let shifted = A::fma(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts, so that n·ln 2 is exact to the last bit of r.
    let r = A::fma(n, -0.693_145_75, x);
    let r = A::fma(n, -1.428_606_8e-6, r);
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = A::fma(p, r, c);
    }
    let power = f32::from_bits(((shifted.to_bits() as i32 - ROUND.to_bits() as i32 + 127) as u32) << 23);
    p * power
}

#[inline(always)]
fn sigmoid<A: Arithmetic>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<A>(-x))
}

#[inline(always)]
fn silu_body<A: Arithmetic>(x: &[f32], out: &mut [f32]) {
    for (o, &x) in out.iter_mut().zip(x) {
        *o = x * sigmoid::<A>(x);
    }
}

#[inline(always)]
fn silu_slope_body<A: Arithmetic>(x: &[f32], out: &mut [f32]) {
    for (o, &x) in out.iter_mut().zip(x) {
        let s = sigmoid::<A>(x);
        *o = s + x * s * (1.0 - s);
    }
}

/// √(2/π) and the cubic term of the tanh form.
const ROOT: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

/// `½x(1 + tanh u) = x·σ(2u)`, `u = √(2/π)(x + 0.044715x³)`.
#[inline(always)]
fn gelu_tanh_body<A: Arithmetic>(x: &[f32], out: &mut [f32]) {
    for (o, &x) in out.iter_mut().zip(x) {
        *o = x * sigmoid::<A>(2.0 * ROOT * (x + CUBIC * x * x * x));
    }
}

#[inline(always)]
fn gelu_tanh_slope_body<A: Arithmetic>(x: &[f32], out: &mut [f32]) {
    for (o, &x) in out.iter_mut().zip(x) {
        let s = sigmoid::<A>(2.0 * ROOT * (x + CUBIC * x * x * x));
        *o = s + x * s * (1.0 - s) * 2.0 * ROOT * (1.0 + 3.0 * CUBIC * x * x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, assert_gradient, random};

    const ALL: [Activation; 4] = [Activation::Silu, Activation::GeluTanh, Activation::Gelu, Activation::Relu];

    fn run(isa: Isa, act: Activation, gate: &[f32], up: Option<&[f32]>, f: usize) -> Vec<f32> {
        let mut out = vec![0.0; gate.len()];
        forward(isa, act, gate, up, f, &mut out);
        out
    }

    #[test]
    fn exponential_is_accurate_and_saturates() {
        per_isa! { fn exps(x: &[f32], out: &mut [f32]) = exps_body }
        #[inline(always)]
        fn exps_body<A: Arithmetic>(x: &[f32], out: &mut [f32]) {
            for (o, &x) in out.iter_mut().zip(x) {
                *o = exp::<A>(x);
            }
        }
        let x: Vec<f32> = (-8600..8700).map(|i| i as f32 / 100.0).collect();
        for isa in Isa::available() {
            let mut out = vec![0.0; x.len()];
            exps(isa, &x, &mut out);
            for (x, y) in x.iter().zip(&out) {
                let exact = f64::from(*x).exp();
                assert!(((f64::from(*y) - exact) / exact).abs() < 3e-7, "exp({x}) = {y}");
            }
            let mut ends = [0.0; 2];
            exps(isa, &[-1e30, 1e30], &mut ends);
            assert!(ends[0] >= 0.0 && ends[0] < 1e-37 && ends[1].is_finite());
        }
    }

    #[test]
    fn values_agree_with_their_definitions() {
        let x: Vec<f32> = random(1, 500).iter().map(|x| 3.0 * x).collect();
        let exact = |act, x: f32| {
            let x = f64::from(x);
            (match act {
                Activation::Silu => x / (1.0 + (-x).exp()),
                Activation::GeluTanh => {
                    0.5 * x
                        * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
                }
                Activation::Gelu => 0.5 * x * (1.0 + libm::erf(x / 2f64.sqrt())),
                Activation::Relu => x.max(0.0),
            }) as f32
        };
        for act in ALL {
            for isa in Isa::available() {
                let expected: Vec<f32> = x.iter().map(|&x| exact(act, x)).collect();
                assert_close("activation", &run(isa, act, &x, None, 500), &expected, 1e-6);
            }
        }
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        // Relu's kink at 0 has no derivative; random normals stay off it by more than the step.
        for act in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
            for isa in Isa::available() {
                let (gate, up) = (random(1, 40), random(2, 40));
                assert_gradient(
                    &gate,
                    40,
                    |g| run(isa, act, g, Some(&up), 20),
                    |g, dk| backward(isa, act, g, Some(&up), dk, 20).0,
                );
                assert_gradient(
                    &up,
                    40,
                    |u| run(isa, act, &gate, Some(u), 20),
                    |u, dk| backward(isa, act, &gate, Some(u), dk, 20).1.expect("an up projection was given"),
                );
                assert_gradient(
                    &gate,
                    40,
                    |g| run(isa, act, g, None, 20),
                    |g, dk| backward(isa, act, g, None, dk, 20).0,
                );
            }
        }
    }
}
