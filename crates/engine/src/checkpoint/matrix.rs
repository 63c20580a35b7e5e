//! The canonical form of a weight, and the rearrangements that lead to it.

use std::borrow::Cow;

use rayon::prelude::*;

use super::dtype::Dtype;
use super::names::Rows;
use crate::architecture::Architecture;
use crate::error::{Error, Result};

/// A weight matrix as the engine sees it: always `[out, in]`, row-major, in the checkpoint's own
/// number format. Borrowed from the map where the file stores it so, owned where it had to be
/// transposed, split or permuted.
#[derive(Debug, Clone)]
pub struct Matrix<'a> {
    /// Rows.
    pub out: usize,
    /// Columns; a multiple of `dtype.block_len()`.
    pub inn: usize,
    /// Number format.
    pub dtype: Dtype,
    /// `out · inn / block_len · block_bytes` bytes.
    pub bytes: Cow<'a, [u8]>,
}

impl Matrix<'_> {
    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.inn / self.dtype.block_len() * self.dtype.block_bytes()
    }

    /// Decodes rows `first ..` as many as fit `out`, whose length is a multiple of `inn`.
    ///
    /// # Panics
    /// Where the rows asked for lie beyond the matrix.
    pub fn decode_rows(&self, first: usize, out: &mut [f32]) {
        let (row, n) = (self.row_bytes(), out.len() / self.inn);
        self.dtype.decode(&self.bytes[first * row..(first + n) * row], out);
    }

    /// The whole matrix in `f32`, `[out, in]`, decoded in parallel.
    pub fn to_f32(&self) -> Vec<f32> {
        /// Elements per task: large against the cost of a task, small against a cache.
        const TASK: usize = 1 << 16;
        let mut out = vec![0.0; self.out * self.inn];
        let rows = (TASK / self.inn).max(1);
        out.par_chunks_mut(rows * self.inn)
            .enumerate()
            .for_each(|(i, chunk)| self.decode_rows(i * rows, chunk));
        out
    }

    /// Checks that no weight is NaN or infinite, in parallel; `name` is for the message. Block
    /// formats are judged by their scales, which costs little more than reading the file.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with the first element, or the first element of its block.
    pub fn check_finite(&self, name: &str) -> Result<()> {
        match self.dtype.first_not_finite(&self.bytes) {
            Some(index) => Err(Error::NotFinite { name: name.to_owned(), index }),
            None => Ok(()),
        }
    }
}

/// Checks that all values are finite; `name` is for the message.
///
/// # Errors
/// [`Error::NotFinite`] with the index of the first that is not.
pub fn check_finite(name: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(Error::NotFinite { name: name.to_owned(), index }),
        None => Ok(()),
    }
}

/// How the rows of a fused or permuted tensor map to those of one weight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packing {
    /// Which rows, in what order.
    pub(super) rows: Rows,
    /// Rows of the weight.
    pub(super) out: usize,
    /// Width of a head, for the orders that go by heads.
    pub(super) head_width: usize,
    /// Rotated dimensions of a head.
    pub(super) rotary_width: usize,
}

impl Packing {
    /// How a weight of `out` rows lies in a tensor.
    pub(super) fn new(rows: Rows, out: usize, a: &Architecture) -> Self {
        let rotary_width = a.rotary.as_ref().map_or(a.head_width, |r| r.width);
        Self { rows, out, head_width: a.head_width, rotary_width }
    }

    /// Rows of the stored tensor.
    pub(super) fn stored_rows(&self) -> usize {
        match self.rows {
            Rows::All | Rows::Neighbours => self.out,
            Rows::Third(_) | Rows::ThirdOfHead(_) => self.out * 3,
        }
    }

    /// Whether the rows lie together and in order.
    fn is_contiguous(&self) -> bool {
        matches!(self.rows, Rows::All | Rows::Third(_))
    }

    /// The stored row that holds row `row` of the weight.
    pub(super) fn stored_row(&self, row: usize) -> usize {
        let (head, i) = (row / self.head_width, row % self.head_width);
        match self.rows {
            Rows::All => row,
            Rows::Third(which) => which * self.out + row,
            Rows::ThirdOfHead(which) => (3 * head + which) * self.head_width + i,
            // Stored as neighbours (0, h), (1, h + 1)… of each head's rotated part: row i of the
            // first half is at 2i, row i of the second at 2i + 1.
            Rows::Neighbours => {
                let half = self.rotary_width / 2;
                let at = match i {
                    _ if i < half => 2 * i,
                    _ if i < 2 * half => 2 * (i - half) + 1,
                    _ => i,
                };
                head * self.head_width + at
            }
        }
    }

    /// The weight's rows out of a stored `[stored_rows, inn]` matrix. Rows are whole blocks, so
    /// moving them is exact in every number format.
    pub(super) fn gather<'a>(&self, bytes: &'a [u8], row_bytes: usize) -> Cow<'a, [u8]> {
        if self.is_contiguous() {
            let first = self.stored_row(0) * row_bytes;
            return Cow::Borrowed(&bytes[first..first + self.out * row_bytes]);
        }
        let mut out = Vec::with_capacity(self.out * row_bytes);
        for row in 0..self.out {
            out.extend_from_slice(&bytes[self.stored_row(row) * row_bytes..][..row_bytes]);
        }
        Cow::Owned(out)
    }

    /// The weight out of a stored `[inn, stored_rows]` matrix of elements of `size` bytes.
    pub(super) fn transpose(&self, bytes: &[u8], inn: usize, size: usize) -> Vec<u8> {
        match size {
            2 => self.transpose_elements::<2>(bytes, inn),
            _ => self.transpose_elements::<4>(bytes, inn),
        }
    }

    fn transpose_elements<const SIZE: usize>(&self, bytes: &[u8], inn: usize) -> Vec<u8> {
        /// Rows written at a time: they share the cache lines that are read.
        const BAND: usize = 32;
        let stride = self.stored_rows();
        let (from, _) = bytes.as_chunks::<SIZE>();
        let mut out = vec![0u8; self.out * inn * SIZE];
        out.par_chunks_mut(BAND * inn * SIZE).enumerate().for_each(|(band, chunk)| {
            let (to, _) = chunk.as_chunks_mut::<SIZE>();
            for column in 0..inn {
                for (i, row) in to.chunks_exact_mut(inn).enumerate() {
                    row[column] = from[column * stride + self.stored_row(band * BAND + i)];
                }
            }
        });
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn packing(rows: Rows, out: usize) -> Packing {
        Packing { rows, out, head_width: 4, rotary_width: 4 }
    }

    #[test]
    fn neighbouring_pairs_become_halves() {
        // One head, as llama.cpp's converter writes it: 0 2 1 3 of the original order.
        let stored = [10u8, 12, 11, 13, 20, 22, 21, 23];
        let out = packing(Rows::Neighbours, 8).gather(&stored, 1);
        assert_eq!(&out[..], [10, 11, 12, 13, 20, 21, 22, 23]);
        // Only the rotated part of a head is permuted.
        let partial = Packing { rotary_width: 2, head_width: 5, ..packing(Rows::Neighbours, 5) };
        assert_eq!(&partial.gather(&[0, 1, 2, 3, 4], 1)[..], [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_third_of_each_head_is_gathered() {
        let stored: Vec<u8> = (0..24).collect();
        assert_eq!(&packing(Rows::ThirdOfHead(1), 8).gather(&stored, 1)[..], [4, 5, 6, 7, 16, 17, 18, 19]);
        assert!(matches!(packing(Rows::Third(2), 8).gather(&stored, 1), Cow::Borrowed([16, .., 23])));
    }

    #[test]
    fn a_transposed_third_is_cut_out_of_the_columns() {
        // Stored [in 3, out 3·2], value = 10 · in + out.
        let stored: Vec<u8> =
            (0..3u16).flat_map(|i| (0..6u16).flat_map(move |o| (10 * i + o).to_le_bytes())).collect();
        let out = packing(Rows::Third(1), 2).transpose(&stored, 3, 2);
        let out: Vec<u16> = out.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
        assert_eq!(out, [2, 12, 22, 3, 13, 23]);
    }

    #[test]
    fn values_that_are_not_finite_are_named() {
        let error = check_finite("x.weight", &[1.0, f32::NAN]).unwrap_err().to_string();
        assert_eq!(error, "tensor `x.weight` holds a value that is not finite, at element 1");
    }
}
