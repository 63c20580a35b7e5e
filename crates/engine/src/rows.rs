//! Buffers of rows: kept for the next layer, picked, added.

use rayon::prelude::*;

/// Buffers that a layer is done with, for the next one: fresh memory has to be zeroed, and, where
/// the system takes it back in between, fetched page by page.
#[derive(Debug, Default)]
pub(crate) struct Spare(Vec<Vec<f32>>);

impl Spare {
    /// A buffer of `len` elements of any content.
    pub(crate) fn take(&mut self, len: usize) -> Vec<f32> {
        let fits = |v: &Vec<f32>| v.capacity() >= len;
        let best = (0..self.0.len()).filter(|&i| fits(&self.0[i])).min_by_key(|&i| self.0[i].capacity());
        match best {
            Some(i) => {
                let mut buffer = self.0.swap_remove(i);
                buffer.resize(len, 0.0);
                buffer
            }
            None => vec![0.0; len],
        }
    }

    /// Keeps a buffer for later.
    pub(crate) fn give(&mut self, buffer: Vec<f32>) {
        if buffer.capacity() > 0 {
            self.0.push(buffer);
        }
    }
}

/// Rows picked out of many.
pub(crate) fn gather(from: &[f32], rows: &[usize], width: usize) -> Vec<f32> {
    rows.iter().flat_map(|&r| &from[r * width..(r + 1) * width]).copied().collect()
}

/// `x += y`.
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    /// Elements below which waking another thread costs more than it saves.
    const CHUNK: usize = 1 << 15;
    let add = |x: &mut [f32], y: &[f32]| x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    if x.len() <= CHUNK {
        return add(x, y);
    }
    x.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK)).for_each(|(x, y)| add(x, y));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    #[test]
    fn buffers_come_back_in_the_size_that_is_asked_for() {
        let mut spare = Spare::default();
        spare.give(vec![1.0; 100]);
        spare.give(vec![2.0; 10]);
        let small = spare.take(8);
        assert_eq!((small.len(), small[0]), (8, 2.0), "the smallest that fits");
        spare.give(small);
        assert_eq!(spare.take(10)[8..], [0.0, 0.0], "what was cut off is not read again");
        assert_eq!(spare.take(1000), vec![0.0; 1000]);
    }

    #[test]
    fn long_rows_are_added_whole() {
        let (mut x, y) = (random(1, 100_001), random(2, 100_001));
        let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        add(&mut x, &y);
        assert_eq!(x, expected);
    }
}
