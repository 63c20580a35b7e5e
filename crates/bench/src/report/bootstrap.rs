//! Intervals by resampling.

/// How often the records are drawn anew.
const RESAMPLES: usize = 1_000;

/// A 95 % interval and the standard error of a statistic of `count` records, by the percentile
/// bootstrap (Efron 1979): records are drawn with replacement, `of` says what the statistic is on
/// those drawn, by index. The seed is fixed: the same records give the same interval to the byte.
///
/// `None` for fewer than two records, of which nothing can be said.
pub(super) fn interval(count: usize, of: impl Fn(&[usize]) -> f64) -> Option<([f64; 2], f64)> {
    if count < 2 {
        return None;
    }
    let mut random = SplitMix64(0);
    let mut drawn = vec![0; count];
    let mut found: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            drawn.iter_mut().for_each(|i| *i = random.below(count));
            of(&drawn)
        })
        .collect();
    found.sort_by(f64::total_cmp);
    if found[0] == found[RESAMPLES - 1] {
        // Nothing varies; a sum of a thousand equal numbers is no multiple of one to the last digit.
        return Some(([found[0]; 2], 0.0));
    }
    let mean = found.iter().sum::<f64>() / RESAMPLES as f64;
    let variance = found.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (RESAMPLES - 1) as f64;
    Some(([quantile(&found, 0.025), quantile(&found, 0.975)], variance.sqrt()))
}

/// Of sorted numbers, with a straight line between neighbours.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (low, part) = (at.floor() as usize, at.fract());
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] + part * (sorted[high] - sorted[low])
}

/// SplitMix64 (Steele, Lea, Flood 2014): a report draws some hundred million numbers, for which a
/// cipher is too slow.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform over `0..count`, up to a bias of count / 2⁶⁴.
    fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.next()) * count as u128) >> 64) as usize
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_the_published_one() {
        // First outputs for seed 1234567, as printed in the reference implementation's test vectors.
        let mut random = SplitMix64(1_234_567);
        assert_eq!([random.next(), random.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn an_interval_is_as_wide_as_theory_says() {
        // 400 records, 300 of them right: σ/√n = √(0.75·0.25/400) = 0.02165.
        let scores: Vec<f64> = (0..400).map(|i| f64::from(i % 4 != 0)).collect();
        let mean = |drawn: &[usize]| drawn.iter().map(|&i| scores[i]).sum::<f64>() / drawn.len() as f64;
        let ([low, high], error) = interval(400, mean).unwrap();
        // 1,000 resamples know σ/√n to 2.2 %, and each end to 0.0018, on steps of 1/400.
        assert!((error / 0.021_65 - 1.0).abs() < 3.0 * 0.022, "{error}");
        assert!((low - (0.75 - 1.96 * 0.021_65)).abs() < 3.0 * 0.0018 + 0.0025, "{low}");
        assert!((high - (0.75 + 1.96 * 0.021_65)).abs() < 3.0 * 0.0018 + 0.0025, "{high}");
        assert_eq!(interval(400, mean), Some(([low, high], error)));
    }

    #[test]
    fn nothing_is_said_of_one_record() {
        assert_eq!(interval(1, |_| 1.0), None);
        assert_eq!(interval(2, |_| 0.5), Some(([0.5, 0.5], 0.0)));
    }

    #[test]
    fn equal_records_have_no_error_at_all() {
        let scores = [0.1; 7];
        let mean = |drawn: &[usize]| drawn.iter().map(|&i| scores[i]).sum::<f64>() / drawn.len() as f64;
        let all: Vec<usize> = (0..7).collect();
        assert_eq!(interval(7, mean), Some(([mean(&all); 2], 0.0)));
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        assert_eq!([0.0, 0.25, 0.5, 1.0].map(|q| quantile(&[1.0, 3.0, 4.0], q)), [1.0, 2.0, 3.0, 4.0]);
    }
}
