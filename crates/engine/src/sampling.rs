//! From a row of logits to the next token.

use std::cmp::Ordering;

use rand_core::RngCore;

use crate::error::{Error, Result};

/// How the next token is chosen. The default is greedy.
///
/// `top_k` is applied before `top_p`, and both after the temperature.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Sampling {
    /// Divides the logits; 0 chooses the likeliest token.
    pub temperature: f32,
    /// Only so many of the likeliest tokens; all where `None`.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together have this probability; all where `None`.
    pub top_p: Option<f32>,
}

impl Sampling {
    /// Draws from the model's own distribution.
    pub const PLAIN: Self = Self { temperature: 1.0, top_k: None, top_p: None };

    /// Checks the settings.
    ///
    /// # Errors
    /// Where the temperature is negative or not finite, `top_k` is 0, or `top_p` is not within
    /// (0, 1].
    pub fn validate(&self) -> Result<()> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(Error::input_hint(
                format!("the temperature is {}, expected 0 or more", self.temperature),
                "0 always takes the likeliest token, 1 draws from the model's own distribution",
            ));
        }
        if self.top_k == Some(0) {
            return Err(Error::input_hint(
                "`top_k` is 0, expected 1 or more",
                "leave it out to keep all tokens",
            ));
        }
        match self.top_p {
            Some(p) if !(p > 0.0 && p <= 1.0) => Err(Error::input_hint(
                format!("`top_p` is {p}, expected more than 0 and at most 1"),
                "leave it out to keep all tokens",
            )),
            _ => Ok(()),
        }
    }

    /// The next token for a row of logits `[v]`.
    ///
    /// Greedy choice draws nothing from `rng`, any other exactly one `u64`. Among equals the
    /// lowest id comes first. NaN counts as −∞; a row of nothing else gives token 0.
    pub fn pick(&self, logits: &[f32], rng: &mut impl RngCore) -> u32 {
        let best = likeliest(logits);
        let top = logits.get(best).copied().unwrap_or(0.0);
        let greedy = self.temperature.is_nan() || self.temperature <= 0.0;
        if greedy {
            return best as u32;
        }
        // 53 bits, in [0, 1).
        let draw = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        if !top.is_finite() {
            return best as u32;
        }
        let weight = |logit: f32| if logit.is_nan() { 0.0 } else { ((logit - top) / self.temperature).exp() };
        let chosen = match self.candidates(logits, weight) {
            None => {
                let weights: Vec<f32> = logits.iter().map(|&x| weight(x)).collect();
                walk(&weights, draw)
            }
            Some((ids, weights)) => walk(&weights, draw).map(|i| ids[i]),
        };
        chosen.unwrap_or(best) as u32
    }

    /// The tokens left by `top_k` and `top_p`, likeliest first, and their weights; nothing where
    /// all are left.
    fn candidates(&self, logits: &[f32], weight: impl Fn(f32) -> f32) -> Option<(Vec<usize>, Vec<f32>)> {
        let k = self.top_k.unwrap_or(usize::MAX).max(1);
        let p = self.top_p.filter(|p| *p < 1.0);
        if k >= logits.len() && p.is_none() {
            return None;
        }
        let order = |&a: &usize, &b: &usize| descending(logits[a], logits[b]).then(a.cmp(&b));
        let least = bound(logits, k);
        // What is no number is below every bound but the lowest.
        let mut ids: Vec<usize> =
            (0..logits.len()).filter(|&i| logits[i] >= least || least == f32::NEG_INFINITY).collect();
        if k < ids.len() {
            ids.select_nth_unstable_by(k, order);
            ids.truncate(k);
        }
        ids.sort_unstable_by(order);
        let mut weights: Vec<f32> = ids.iter().map(|&i| weight(logits[i])).collect();
        if let Some(p) = p {
            let goal = f64::from(p) * total(&weights);
            let mut sum = 0.0;
            let enough = weights.iter().position(|&w| {
                sum += f64::from(w);
                sum >= goal
            });
            weights.truncate(enough.map_or(weights.len(), |last| last + 1));
            ids.truncate(weights.len());
        }
        Some((ids, weights))
    }
}

/// Index of the largest value, the first among equals; 0 where there is none.
pub fn likeliest(logits: &[f32]) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (i, &x) in logits.iter().enumerate() {
        if x > best.1 {
            best = (i, x);
        }
    }
    best.0
}

/// A value that at least `k` of the logits reach: where no more than these are sorted, a row of a whole
/// vocabulary takes a tenth of the time.
fn bound(logits: &[f32], k: usize) -> f32 {
    const CHUNK: usize = 32;
    let chunks = logits.len() / CHUNK;
    if k > chunks {
        return f32::NEG_INFINITY;
    }
    // So many chunks hold at least one value that is no smaller.
    let mut largest: Vec<f32> = logits
        .as_chunks::<CHUNK>()
        .0
        .iter()
        .map(|chunk| chunk.iter().fold(f32::NEG_INFINITY, |most, x| if *x > most { *x } else { most }))
        .collect();
    *largest.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
}

/// Larger first, NaN last.
fn descending(a: f32, b: f32) -> Ordering {
    let key = |x: f32| if x.is_nan() { f32::NEG_INFINITY } else { x };
    key(b).total_cmp(&key(a))
}

fn total(weights: &[f32]) -> f64 {
    weights.iter().map(|&w| f64::from(w)).sum()
}

/// The index at which the running sum of weights passes the draw, in [0, 1) of their total.
fn walk(weights: &[f32], draw: f64) -> Option<usize> {
    let goal = draw * total(weights);
    let mut sum = 0.0;
    let mut last = None;
    for (i, &w) in weights.iter().enumerate() {
        if w > 0.0 {
            sum += f64::from(w);
            last = Some(i);
            if sum > goal {
                break;
            }
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    fn counts(sampling: Sampling, logits: &[f32], draws: usize) -> Vec<usize> {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut counts = vec![0; logits.len()];
        for _ in 0..draws {
            counts[sampling.pick(logits, &mut rng) as usize] += 1;
        }
        counts
    }

    #[test]
    fn frequencies_are_the_softmax_at_the_temperature() {
        let logits = [1.0f32, -0.5, 2.0, 0.25, f32::NEG_INFINITY];
        for temperature in [0.5, 1.0, 2.0] {
            let found = counts(Sampling { temperature, ..Sampling::PLAIN }, &logits, 40_000);
            let weights = logits.map(|x| f64::from(x / temperature).exp());
            let sum: f64 = weights.iter().sum();
            for (n, w) in found.iter().zip(weights) {
                // Four standard deviations of a share of 40,000 draws are at most 0.01.
                assert!((*n as f64 / 40_000.0 - w / sum).abs() < 0.01, "{found:?} at {temperature}");
            }
        }
    }

    #[test]
    fn top_k_and_top_p_keep_the_likeliest() {
        // Probabilities 0.1, 0.4, 0.2, 0.3.
        let logits = [0.1f32, 0.4, 0.2, 0.3].map(f32::ln);
        let seen = |top_k, top_p| {
            counts(Sampling { temperature: 1.0, top_k, top_p }, &logits, 2_000)
                .iter()
                .map(|n| *n > 0)
                .collect::<Vec<_>>()
        };
        assert_eq!(seen(Some(1), None), [false, true, false, false]);
        assert_eq!(seen(Some(2), None), [false, true, false, true]);
        assert_eq!(seen(None, Some(0.65)), [false, true, false, true]);
        assert_eq!(seen(None, Some(0.75)), [false, true, true, true]);
        assert_eq!(seen(Some(2), Some(0.5)), [false, true, false, false]);
        assert_eq!(seen(Some(9), Some(1.0)), [true; 4]);
    }

    /// Rows as long as a vocabulary are not sorted whole, and the same tokens come out.
    #[test]
    fn of_a_long_row_the_same_tokens_are_left_as_by_sorting_all() {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        for round in 0..200 {
            let len = 1 + (rng.next_u64() % 3000) as usize;
            // Few different values, so that many are equal, and some that are no numbers.
            let values = [f32::NAN, f32::NEG_INFINITY, -0.0, 0.0, 0.5, 1.0, 1.5, 7.0];
            let kinds = if round % 2 == 0 { values.len() as u64 } else { 4 };
            let logits: Vec<f32> = (0..len).map(|_| values[(rng.next_u64() % kinds) as usize]).collect();
            let mut sorted: Vec<usize> = (0..len).collect();
            sorted.sort_by(|&a, &b| descending(logits[a], logits[b]).then(a.cmp(&b)));
            for k in [1, 5, 50, 95, len.div_ceil(2)] {
                let sampling = Sampling { temperature: 1.0, top_k: Some(k), top_p: None };
                let Some((ids, _)) = sampling.candidates(&logits, |_| 1.0) else { continue };
                assert_eq!(ids, sorted[..k.min(len)], "{k} of {len}");
            }
        }
    }

    #[test]
    fn among_equals_the_lowest_id_comes_first() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let logits = [0.0f32, 3.0, 3.0, 3.0];
        assert_eq!(Sampling::default().pick(&logits, &mut rng), 1);
        assert_eq!(counts(Sampling { top_k: Some(2), ..Sampling::PLAIN }, &logits, 500)[3], 0);
    }

    #[test]
    fn no_row_of_logits_can_break_it() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let rows: [&[f32]; 6] =
            [&[], &[nan, nan], &[nan, 1.0, nan], &[-inf, -inf], &[0.0, inf, inf], &[-inf, 2.0]];
        let expected = [0, 0, 1, 0, 1, 1];
        let settings = [
            Sampling::default(),
            Sampling::PLAIN,
            Sampling { temperature: 1e-30, top_k: Some(1), top_p: Some(1e-9) },
            Sampling { temperature: f32::MAX, top_k: Some(0), top_p: Some(0.5) },
            Sampling { temperature: nan, top_k: None, top_p: Some(nan) },
        ];
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for sampling in settings {
            for (row, expected) in rows.iter().zip(expected) {
                assert_eq!(sampling.pick(row, &mut rng), expected, "{sampling:?} on {row:?}");
            }
        }
        assert!(settings[1].validate().is_ok() && settings[3].validate().is_err());
        assert!(settings[4].validate().is_err());
    }

    #[test]
    fn one_draw_a_token_and_none_when_greedy() {
        let (mut a, mut b) = (ChaCha8Rng::seed_from_u64(5), ChaCha8Rng::seed_from_u64(5));
        Sampling::default().pick(&[1.0, 2.0], &mut a);
        assert_eq!(a, b);
        Sampling { top_k: Some(1), ..Sampling::PLAIN }.pick(&[1.0, 2.0], &mut a);
        b.next_u64();
        assert_eq!(a, b);
    }
}
