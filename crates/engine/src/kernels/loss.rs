//! Losses on rows of logits, with their gradients.

use super::{Arithmetic, Isa, Shared, for_rows, per_isa};

per_isa! {
    /// `ln Σ eˣ` of a row, in nats.
    pub fn log_sum_exp(row: &[f32]) -> f32 = log_sum_exp_body
}

#[inline(always)]
fn log_sum_exp_body<A: Arithmetic>(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks::<16>();
    let mut top = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        for j in 0..16 {
            top[j] = top[j].max(chunk[j]);
        }
    }
    let top = top.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let mut sums = [0.0f32; 16];
    for chunk in chunks {
        for j in 0..16 {
            sums[j] += super::activation::exp::<A>(chunk[j] - top);
        }
    }
    for (x, sum) in rest.iter().zip(&mut sums) {
        *sum += super::activation::exp::<A>(x - top);
    }
    top + sums.iter().map(|s| f64::from(*s)).sum::<f64>().ln() as f32
}

/// Log-probabilities of each row in place, in nats: `x − ln Σ eˣ`.
pub fn log_softmax(isa: Isa, logits: &mut [f32], v: usize) {
    let rows = logits.len() / v;
    let shared = Shared::new(logits);
    for_rows(rows, 20 * v, |rows| {
        for r in rows {
            // SAFETY: each row is written by one task.
            let row = unsafe { shared.slice(r * v, v) };
            let level = log_sum_exp(isa, row);
            for x in row {
                *x -= level;
            }
        }
    });
}

/// Cross-entropy `−ln p(target)` of each row, in nats.
///
/// # Shapes
/// `logits [m, v]`, `targets [m]`.
pub fn cross_entropy(isa: Isa, logits: &[f32], v: usize, targets: &[u32]) -> Vec<f32> {
    let mut losses = vec![0.0; targets.len()];
    let shared = Shared::new(&mut losses);
    for_rows(targets.len(), 20 * v, |rows| {
        for r in rows {
            let row = &logits[r * v..(r + 1) * v];
            // SAFETY: each row is written by one task.
            let out = unsafe { shared.slice(r, 1) };
            out[0] = log_sum_exp(isa, row) - row[targets[r] as usize];
        }
    });
    losses
}

/// Gradient of `Σ weightsᵣ · cross_entropyᵣ`, written over the logits: `w · (softmax − onehot)`.
pub fn cross_entropy_backward(isa: Isa, logits: &mut [f32], v: usize, targets: &[u32], weights: &[f32]) {
    let shared = Shared::new(logits);
    for_rows(targets.len(), 20 * v, |rows| {
        for r in rows {
            // SAFETY: each row is written by one task.
            let row = unsafe { shared.slice(r * v, v) };
            super::attention::softmax(isa, row);
            row[targets[r] as usize] -= 1.0;
            for x in row {
                *x *= weights[r];
            }
        }
    });
}

/// `KL(p ‖ q) = Σ p (ln p − ln q)` of each row in nats, `p` from `logits`, `q` given as
/// log-probabilities.
///
/// # Shapes
/// `logits [m, v]`, `log_q [m, v]`.
pub fn kl(isa: Isa, logits: &[f32], log_q: &[f32], v: usize) -> Vec<f32> {
    let m = logits.len() / v;
    let mut out = vec![0.0; m];
    let shared = Shared::new(&mut out);
    for_rows(m, 40 * v, |rows| {
        for r in rows {
            let row = &logits[r * v..(r + 1) * v];
            let level = log_sum_exp(isa, row);
            // SAFETY: each row is written by one task.
            let out = unsafe { shared.slice(r, 1) };
            out[0] = kl_row(isa, row, level, &log_q[r * v..(r + 1) * v]);
        }
    });
    out
}

/// Gradient of `Σ weightsᵣ · KLᵣ`, written over the logits: `w · p · (ln p − ln q − KL)`.
pub fn kl_backward(isa: Isa, logits: &mut [f32], log_q: &[f32], v: usize, weights: &[f32]) {
    let m = logits.len() / v;
    let shared = Shared::new(logits);
    for_rows(m, 40 * v, |rows| {
        for r in rows {
            // SAFETY: each row is written by one task.
            let row = unsafe { shared.slice(r * v, v) };
            let log_q = &log_q[r * v..(r + 1) * v];
            let level = log_sum_exp(isa, row);
            let kl = kl_row(isa, row, level, log_q);
            kl_row_backward(isa, row, level, log_q, kl, weights[r]);
        }
    });
}

per_isa! { fn kl_row(row: &[f32], level: f32, log_q: &[f32]) -> f32 = kl_row_body }
per_isa! { fn kl_row_backward(row: &mut [f32], level: f32, log_q: &[f32], kl: f32, weight: f32) = kl_row_backward_body }

#[inline(always)]
fn kl_row_body<A: Arithmetic>(row: &[f32], level: f32, log_q: &[f32]) -> f32 {
    let mut acc = [0.0f32; 16];
    let (a, a_rest) = row.as_chunks::<16>();
    let (b, b_rest) = log_q[..row.len()].as_chunks::<16>();
    for (x, q) in a.iter().zip(b) {
        for j in 0..16 {
            let log_p = x[j] - level;
            acc[j] += super::activation::exp::<A>(log_p) * (log_p - q[j]);
        }
    }
    for ((x, q), s) in a_rest.iter().zip(b_rest).zip(&mut acc) {
        let log_p = x - level;
        *s += super::activation::exp::<A>(log_p) * (log_p - q);
    }
    acc.iter().map(|s| f64::from(*s)).sum::<f64>() as f32
}

#[inline(always)]
fn kl_row_backward_body<A: Arithmetic>(row: &mut [f32], level: f32, log_q: &[f32], kl: f32, weight: f32) {
    for (x, q) in row.iter_mut().zip(log_q) {
        let log_p = *x - level;
        *x = weight * super::activation::exp::<A>(log_p) * (log_p - q - kl);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, assert_gradient, random};

    const V: usize = 37;
    const TARGETS: [u32; 3] = [4, 0, 36];

    #[test]
    fn values_agree_with_f64() {
        let (x, y) = (random(1, 3 * V), random(2, 3 * V));
        for isa in Isa::available() {
            let mut log_q = y.clone();
            log_softmax(isa, &mut log_q, V);
            let exact = |row: &[f32], i: usize| {
                let total: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
                f64::from(row[i]) - total.ln()
            };
            for r in 0..3 {
                let (a, b) = (&x[r * V..(r + 1) * V], &y[r * V..(r + 1) * V]);
                let nll = -exact(a, TARGETS[r] as usize) as f32;
                let kl_exact: f64 = (0..V).map(|i| exact(a, i).exp() * (exact(a, i) - exact(b, i))).sum();
                assert_close("nll", &cross_entropy(isa, &x, V, &TARGETS)[r..=r], &[nll], 1e-6);
                assert_close("kl", &kl(isa, &x, &log_q, V)[r..=r], &[kl_exact as f32], 2e-6);
            }
        }
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let x = random(1, 3 * V);
        for isa in Isa::available() {
            let mut log_q = random(2, 3 * V);
            log_softmax(isa, &mut log_q, V);
            assert_gradient(
                &x,
                3,
                |x| cross_entropy(isa, x, V, &TARGETS),
                |x, d| {
                    let mut dx = x.to_vec();
                    cross_entropy_backward(isa, &mut dx, V, &TARGETS, d);
                    dx
                },
            );
            assert_gradient(
                &x,
                3,
                |x| kl(isa, x, &log_q, V),
                |x, d| {
                    let mut dx = x.to_vec();
                    kl_backward(isa, &mut dx, &log_q, V, d);
                    dx
                },
            );
        }
    }
}
