//! What the unit tests of this crate share.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// Standard normal numbers from a seed (sum of twelve uniforms: close enough to normal).
pub(crate) fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| (0..12).map(|_| rng.next_u32() as f32 / u32::MAX as f32).sum::<f32>() - 6.0).collect()
}

/// Fails with the largest difference and where it is.
pub(crate) fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    let (at, worst) = found
        .iter()
        .zip(expected)
        .map(|(a, b)| if a.is_nan() { f32::INFINITY } else { (a - b).abs() / b.abs().max(1.0) })
        .enumerate()
        .fold((0, 0.0f32), |best, (i, d)| if d > best.1 { (i, d) } else { best });
    assert!(
        worst <= tolerance,
        "{what}: largest difference {worst:e} at {at} (found {}, expected {}), tolerance {tolerance:e}",
        found[at],
        expected[at]
    );
}

/// Checks `backward(x, dy)` against central differences of `⟨forward(x), dy⟩` in every coordinate.
///
/// The step 1e-2 balances truncation (h²) against rounding of f32 (ε/h): both near 1e-4.
pub(crate) fn assert_gradient(
    x: &[f32],
    out_len: usize,
    forward: impl Fn(&[f32]) -> Vec<f32>,
    backward: impl Fn(&[f32], &[f32]) -> Vec<f32>,
) {
    const STEP: f32 = 1e-2;
    let dy = random(99, out_len);
    let dx = backward(x, &dy);
    let value =
        |x: &[f32]| -> f64 { forward(x).iter().zip(&dy).map(|(y, g)| f64::from(*y) * f64::from(*g)).sum() };
    let numeric: Vec<f32> = (0..x.len())
        .map(|i| {
            let mut moved = x.to_vec();
            moved[i] = x[i] + STEP;
            let above = value(&moved);
            moved[i] = x[i] - STEP;
            ((above - value(&moved)) / f64::from(2.0 * STEP)) as f32
        })
        .collect();
    assert_close("gradient", &dx, &numeric, 3e-3);
}
