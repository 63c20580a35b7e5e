//! Seeded draws. Each record has a stream of its own, so that what it is asked does not depend on
//! which other records are run.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// The random numbers of one record.
pub(crate) struct Draw(ChaCha8Rng);

impl Draw {
    /// Those of a record, by its number in the file.
    pub(crate) fn new(seed: u64, record: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(record as u64);
        Self(rng)
    }

    /// A number below `n`; 0 where `n` is.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.0.next_u64() % n.max(1) as u64) as usize
    }

    /// So many of the items, each at most once, in their own order; all where there are fewer.
    pub(crate) fn sample<'a, T>(&mut self, items: &'a [T], count: usize) -> Vec<&'a T> {
        let mut left: Vec<usize> = (0..items.len()).collect();
        let count = count.min(left.len());
        for i in 0..count {
            let j = i + self.below(left.len() - i);
            left.swap(i, j);
        }
        left.truncate(count);
        left.sort_unstable();
        left.into_iter().map(|i| &items[i]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_every_item_alike_and_none_twice() {
        let items: Vec<usize> = (0..20).collect();
        let mut counts = [0usize; 20];
        for record in 0..2000 {
            let drawn = Draw::new(3, record).sample(&items, 5);
            assert!(drawn.windows(2).all(|w| w[0] < w[1]) && drawn.len() == 5, "{drawn:?}");
            drawn.into_iter().for_each(|i| counts[*i] += 1);
        }
        // 500 each are expected, with a deviation of 19.
        assert!(counts.iter().all(|n| n.abs_diff(500) < 100), "{counts:?}");
        assert_eq!(Draw::new(3, 7).sample(&items, 5), Draw::new(3, 7).sample(&items, 5));
        assert_ne!(Draw::new(3, 7).sample(&items, 5), Draw::new(4, 7).sample(&items, 5));
        assert_eq!(Draw::new(0, 0).sample(&items, 99).len(), 20);
    }
}
