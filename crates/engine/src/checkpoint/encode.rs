//! Encoding numbers in a block format: the inverse of [`Dtype::decode`], as near as the format can.
//!
//! A block's scales are searched for (`scales`), then each number is rounded to the nearest code,
//! or so that what the row gives for known inputs is kept (`inputs`).

mod inputs;
mod scales;

use half::{bf16, f16};
use rayon::prelude::*;

use super::Dtype;
use super::codes::{decode_block, encode_codes};
pub use inputs::Inputs;

/// Blocks per task: their work is large against the cost of a task.
const BLOCKS_PER_TASK: usize = 64;

impl Dtype {
    /// Encodes whole blocks, in parallel, with scales that make the squared error small. Numbers
    /// beyond a format's range become infinite: [`Dtype::first_not_finite`] finds them.
    ///
    /// # Shapes
    /// `values.len()` is a multiple of [`Dtype::block_len`]; gives
    /// `values.len() / block_len · block_bytes` bytes.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        let mut bytes = vec![0; values.len() / self.block_len() * self.block_bytes()];
        self.each_block(values, &mut bytes, |x, block| encode_block(self, x, block));
        bytes
    }

    /// As [`Dtype::encode`], but a block of `old` that decodes to exactly the wanted values keeps
    /// its bytes, and others their scales, where they serve no worse: what an edit does not touch
    /// does not move.
    ///
    /// # Shapes
    /// `old` has the bytes of as many blocks as `values`.
    pub fn encode_over(self, values: &[f32], old: &[u8]) -> Vec<u8> {
        let mut bytes = old.to_vec();
        self.each_block(values, &mut bytes, |x, block| encode_block_over(self, x, block));
        bytes
    }

    /// Encodes a matrix of a block format so that its products with known inputs are kept, though
    /// single numbers be further off than need be. With `old`, rows that decode to exactly the
    /// wanted values keep their bytes, and blocks their scales as in [`Dtype::encode_over`].
    ///
    /// # Shapes
    /// `values [out, in]`, row-major; `inputs` of width `in`.
    ///
    /// # Panics
    /// On plain formats, which have no codes.
    pub fn encode_for(self, values: &[f32], inn: usize, old: Option<&[u8]>, inputs: &Inputs) -> Vec<u8> {
        let mut bytes = match old {
            Some(old) => self.encode_over(values, old),
            None => self.encode(values),
        };
        let row_bytes = inn / self.block_len() * self.block_bytes();
        bytes.par_chunks_mut(row_bytes).zip(values.par_chunks(inn)).for_each(|(bytes, x)| {
            let mut row = Row::decode(self, bytes);
            if !row.is(x) {
                inputs.round(x, |q, x| row.set(q, x));
                row.encode(bytes);
            }
        });
        bytes
    }

    fn each_block(self, values: &[f32], bytes: &mut [u8], encode: impl Fn(&[f32], &mut [u8]) + Sync) {
        let (len, size) = (self.block_len(), self.block_bytes());
        debug_assert_eq!(values.len() / len * size, bytes.len());
        let tasks =
            values.par_chunks(len * BLOCKS_PER_TASK).zip(bytes.par_chunks_mut(size * BLOCKS_PER_TASK));
        tasks.for_each(|(x, b)| {
            x.chunks_exact(len).zip(b.chunks_exact_mut(size)).for_each(|(x, b)| encode(x, b))
        });
    }

    /// Least and largest code of a block format, as [`decode_block`] gives them.
    pub(super) fn code_range(self) -> [i8; 2] {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q4_K => [0, 15],
            Self::Q5_0 | Self::Q5_1 | Self::Q5_K => [0, 31],
            // -128 is left out: some kernels negate codes.
            Self::Q8_0 => [-127, 127],
            Self::Q2_K => [0, 3],
            Self::Q3_K => [-4, 3],
            Self::Q6_K => [-32, 31],
            Self::F32 | Self::F16 | Self::Bf16 => unreachable!("plain formats have no codes"),
        }
    }
}

/// A row of a block format: its codes can be set, its scales stay.
struct Row {
    dtype: Dtype,
    codes: Vec<i8>,
    scales: Vec<f32>,
    offsets: Vec<f32>,
}

impl Row {
    fn decode(dtype: Dtype, bytes: &[u8]) -> Self {
        let count = bytes.len() / dtype.block_bytes() * dtype.block_len();
        let groups = count / scales::group_len(dtype);
        let mut row =
            Self { dtype, codes: vec![0; count], scales: vec![0.0; groups], offsets: vec![0.0; groups] };
        let per_block = dtype.block_len() / scales::group_len(dtype);
        for (i, block) in bytes.chunks_exact(dtype.block_bytes()).enumerate() {
            let groups = i * per_block..(i + 1) * per_block;
            let codes = &mut row.codes[i * dtype.block_len()..][..dtype.block_len()];
            decode_block(dtype, block, codes, &mut row.scales[groups.clone()], &mut row.offsets[groups]);
        }
        row
    }

    fn encode(&self, bytes: &mut [u8]) {
        let blocks = bytes.chunks_exact_mut(self.dtype.block_bytes());
        for (block, codes) in blocks.zip(self.codes.chunks_exact(self.dtype.block_len())) {
            encode_codes(self.dtype, codes, block);
        }
    }

    fn number(&self, at: usize) -> f32 {
        let group = at / scales::group_len(self.dtype);
        self.scales[group] * f32::from(self.codes[at]) + self.offsets[group]
    }

    /// Sets the code that is nearest to `x`, and gives the number it stands for.
    fn set(&mut self, at: usize, x: f32) -> f32 {
        let group = at / scales::group_len(self.dtype);
        let (scale, offset) = (self.scales[group], self.offsets[group]);
        // Where there is one number only, any code stands for it.
        if scale != 0.0 {
            self.codes[at] = nearest(x, scale, offset, self.dtype.code_range());
        }
        self.number(at)
    }

    fn set_all(&mut self, x: &[f32]) {
        for (i, x) in x.iter().enumerate() {
            self.set(i, *x);
        }
    }

    fn is(&self, x: &[f32]) -> bool {
        x.iter().enumerate().all(|(i, x)| self.number(i).to_bits() == x.to_bits())
    }
}

/// A block becomes the encoding of `x`, if it is not already.
fn encode_block_over(dtype: Dtype, x: &[f32], block: &mut [u8]) {
    let was = block.to_vec();
    if squared_error(dtype, x, &was) == 0.0 {
        return;
    }
    block.fill(0);
    encode_block(dtype, x, block);
    if dtype.block_len() > 1 {
        let mut row = Row::decode(dtype, &was);
        row.set_all(x);
        let mut kept = was;
        row.encode(&mut kept);
        if squared_error(dtype, x, &kept) <= squared_error(dtype, x, block) {
            block.copy_from_slice(&kept);
        }
    }
}

fn squared_error(dtype: Dtype, x: &[f32], block: &[u8]) -> f64 {
    let mut stored = [0.0; 256];
    dtype.decode(block, &mut stored[..x.len()]);
    x.iter().zip(&stored).map(|(x, y)| f64::from(x - y).powi(2)).sum()
}

/// One block of zeros becomes the encoding of `x`.
fn encode_block(dtype: Dtype, x: &[f32], block: &mut [u8]) {
    match dtype {
        Dtype::F32 => block.copy_from_slice(&x[0].to_le_bytes()),
        Dtype::F16 => block.copy_from_slice(&f16::from_f32(x[0]).to_le_bytes()),
        Dtype::Bf16 => block.copy_from_slice(&bf16::from_f32(x[0]).to_le_bytes()),
        _ => {
            scales::choose(dtype, x, block);
            let mut row = Row::decode(dtype, block);
            row.set_all(x);
            row.encode(block);
        }
    }
}

/// The code whose number `scale · code + offset` is nearest to `x`.
pub(super) fn nearest(x: f32, scale: f32, offset: f32, [least, most]: [i8; 2]) -> i8 {
    if scale == 0.0 {
        return 0;
    }
    let code = ((x - offset) / scale).round().clamp(f32::from(least), f32::from(most));
    // Within the range of i8; NaN, of a block that cannot be encoded, becomes 0.
    code as i8
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rand_chacha::ChaCha8Rng;
    use rand_core::{RngCore, SeedableRng};

    use super::*;

    /// Numbers like weights: nearly normal, each block of its own size and centre, some outliers.
    fn weights(count: usize, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut uniform = || f64::from(rng.next_u32()) / f64::from(u32::MAX);
        let (mut size, mut centre) = (1.0, 0.0);
        (0..count)
            .map(|i| {
                if i % 256 == 0 {
                    size = 0.01 + 0.1 * uniform();
                    centre = 0.3 * size * (uniform() - 0.5);
                }
                let normal = (0..12).map(|_| uniform()).sum::<f64>() - 6.0;
                let outlier = if uniform() < 0.01 { 4.0 } else { 1.0 };
                (centre + size * normal * outlier) as f32
            })
            .collect()
    }

    fn decoded(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
        let mut out = vec![0.0; bytes.len() / dtype.block_bytes() * dtype.block_len()];
        dtype.decode(bytes, &mut out);
        out
    }

    fn distance(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    }

    #[test]
    fn no_block_is_worse_than_its_format_allows() {
        let x = weights(64 * 256, 1);
        for dtype in Dtype::ALL {
            let y = decoded(dtype, &dtype.encode(&x));
            for (x, y) in x.chunks_exact(256).zip(y.chunks_exact(256)) {
                let most = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                // Half a step where `levels` steps cover the block's range, both signs, and room for
                // the rounding of scales (six, four and eight bits in K formats).
                let levels = match dtype {
                    Dtype::F32 => 16_777_216.0,
                    Dtype::F16 => 2048.0,
                    Dtype::Bf16 => 256.0,
                    Dtype::Q8_0 => 127.0,
                    Dtype::Q6_K => 30.0,
                    Dtype::Q5_0 | Dtype::Q5_1 | Dtype::Q5_K => 14.0,
                    Dtype::Q4_0 | Dtype::Q4_1 | Dtype::Q4_K => 6.5,
                    Dtype::Q3_K => 3.0,
                    Dtype::Q2_K => 1.2,
                };
                let mean = (distance(x, y) / 256.0).sqrt() as f32;
                assert!(mean <= 0.5 * most / levels, "{}: {mean} of {most}", dtype.name());
            }
        }
    }

    #[test]
    fn a_block_that_does_not_change_keeps_its_bytes() {
        for dtype in Dtype::ALL {
            let old = dtype.encode(&weights(4 * 256, 2));
            let mut values = decoded(dtype, &old);
            assert_eq!(dtype.encode_over(&values, &old), old, "{}", dtype.name());
            values[300] += 0.05;
            let new = dtype.encode_over(&values, &old);
            let changed = 300 / dtype.block_len();
            for (i, (a, b)) in
                old.chunks_exact(dtype.block_bytes()).zip(new.chunks_exact(dtype.block_bytes())).enumerate()
            {
                assert_eq!(a == b, i != changed, "{} block {i}", dtype.name());
            }
        }
    }

    /// A change too small for the format, of rank one, as edits are.
    #[test]
    fn a_change_below_a_step_is_kept_for_known_inputs() {
        const OUT: usize = 8;
        const INN: usize = 512;
        // One code's step times one input's number is the least that can be made up for.
        const KEPT: f64 = 0.1;
        let inputs = weights(3 * INN, 5);
        let (left, right) = (weights(OUT, 6), &inputs[..INN]);
        let norm: f32 = right.iter().map(|x| x * x).sum();
        for dtype in Dtype::ALL.into_iter().filter(|d| d.block_len() > 1) {
            let old = dtype.encode(&weights(OUT * INN, 7));
            let base = decoded(dtype, &old);
            let change: Vec<f32> = (0..OUT * INN).map(|i| left[i / INN] * right[i % INN] / norm).collect();
            let wanted: Vec<f32> = base.iter().zip(&change).map(|(a, b)| a + b).collect();
            // What of the change's product with the first input is lost, over all rows.
            let lost = |bytes: &[u8]| {
                let stored = decoded(dtype, bytes);
                let products: Vec<f32> = (0..OUT)
                    .map(|o| (0..INN).map(|i| (stored[o * INN + i] - base[o * INN + i]) * right[i]).sum())
                    .collect();
                (distance(&products, &left) / distance(&left, &[0.0; OUT])).sqrt()
            };
            let kept = dtype.encode_for(&wanted, INN, Some(&old), &Inputs::new(&inputs, INN));
            assert!(lost(&kept) < KEPT, "{}: {}", dtype.name(), lost(&kept));
            let anew = dtype.encode_for(&wanted, INN, None, &Inputs::new(&inputs, INN));
            assert!(lost(&anew) < KEPT, "{}: {}", dtype.name(), lost(&anew));
            if dtype.block_bytes() * 8 <= 5 * dtype.block_len() {
                let nearest = lost(&dtype.encode_over(&wanted, &old));
                assert!(nearest > 0.5, "{}: {nearest}", dtype.name());
            }
            assert_eq!(dtype.encode_for(&base, INN, Some(&old), &Inputs::new(&inputs, INN)), old);
        }
    }

    #[test]
    fn numbers_on_the_grid_of_a_format_with_one_scale_stay_there() {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::Q4_0, Dtype::Q5_0, Dtype::Q8_0] {
            let once = decoded(dtype, &dtype.encode(&weights(16 * 256, 3)));
            assert_eq!(decoded(dtype, &dtype.encode(&once)), once, "{}", dtype.name());
        }
    }

    #[test]
    fn blocks_of_one_number_and_of_none_are_exact_or_near() {
        for dtype in Dtype::ALL {
            assert_eq!(decoded(dtype, &dtype.encode(&[0.0; 256])), [0.0; 256], "{}", dtype.name());
            for number in [0.25f32, -0.25] {
                for y in decoded(dtype, &dtype.encode(&[number; 256])) {
                    assert!((y - number).abs() < 0.01 * number.abs(), "{}: {number} → {y}", dtype.name());
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_found() {
        let mut x = weights(512, 4);
        x[300] = 1e9;
        for dtype in Dtype::ALL {
            let found = dtype.first_not_finite(&dtype.encode(&x));
            let fits = matches!(dtype, Dtype::F32 | Dtype::Bf16);
            assert_eq!(
                found,
                (!fits).then_some(300 / dtype.block_len() * dtype.block_len()),
                "{}",
                dtype.name()
            );
        }
    }

    /// Squared errors of ggml's own quantisation of the same numbers, by `fixtures/encodings.py`.
    #[test]
    fn no_format_is_worse_than_ggml() {
        let bytes = include_bytes!("../../../../fixtures/encodings.safetensors");
        let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            let tensor = file.tensor(name).unwrap();
            tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        let x = floats("values");
        for dtype in Dtype::ALL {
            let theirs = file.tensor(dtype.name()).unwrap();
            let theirs = distance(&x, &decoded(dtype, theirs.data()));
            let ours = distance(&x, &decoded(dtype, &dtype.encode(&x)));
            assert!(ours <= theirs, "{}: {ours:e}, ggml {theirs:e}", dtype.name());
        }
    }
}
