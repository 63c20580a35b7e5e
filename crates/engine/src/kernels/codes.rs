//! Weights kept as the checkpoint's own codes: decoding, and products of few rows without it.
//!
//! The bodies are written with intrinsics, since the compiler's own vectorisation of these loops
//! (across steps, with shuffles) takes five times as long. Of few rows AVX2's serves AVX-512 too.
//! Every body does the same roundings: code times scale, plus offset, each rounded to f32.

use super::pack::LANES;
use super::{Arithmetic, Fused, Isa, Set};

/// Codes of a packed matrix, with scales and offsets.
#[derive(Debug)]
pub(super) struct Codes {
    pub(super) width: CodeWidth,
    /// `[panel][depth][LANES]`, packed as the width says.
    pub(super) codes: Vec<u8>,
    /// Steps of depth that share a scale (lanes differ), or 0: every step has its own scale,
    /// common to the lanes (the transposed order).
    pub(super) group: usize,
    /// `[panel][depth / group][LANES]`, or `[scale panel][depth]` where `group` is 0.
    pub(super) scales: Vec<f32>,
    /// As `scales`.
    pub(super) offsets: Vec<f32>,
    /// Transposed order: panels per scale panel (a group spans so many panels).
    pub(super) panels_per_group: usize,
}

/// How a code is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CodeWidth {
    /// Lane `j` in the low half of byte `j`, lane `j + 8` in its high half.
    Nibble,
    /// One signed byte a lane.
    Byte,
}

impl CodeWidth {
    pub(super) fn bytes_per_step(self) -> usize {
        match self {
            Self::Nibble => LANES / 2,
            Self::Byte => LANES,
        }
    }
}

/// Rows that [`Codes::few_rows`] takes at most: their sums and a step's weights fit the registers.
pub(super) const FEW: usize = 4;

impl Codes {
    /// Steps `from ..` of a panel as f32, as many as fit `out`.
    pub(super) fn decode(&self, isa: Isa, depth: usize, panel: usize, from: usize, out: &mut [f32]) {
        let steps = out.len() / LANES;
        let codes = self.codes_of(depth, panel, from, steps);
        let by_step = self.group == 0;
        let (scales, offsets) = if by_step {
            let start = panel / self.panels_per_group * depth + from;
            (&self.scales[start..start + steps], &self.offsets[start..start + steps])
        } else {
            debug_assert!(from.is_multiple_of(self.group) && steps.is_multiple_of(self.group));
            self.scales_of(depth, panel, from, steps)
        };
        #[cfg(target_arch = "x86_64")]
        {
            macro_rules! by {
                ($set:ident) => {
                    // SAFETY: the processor has these instructions (see [`Isa`]); `out`, `codes`, and
                    // the scales have the same number of steps by the slicing above.
                    unsafe {
                        match (self.width, by_step) {
                            (CodeWidth::Nibble, false) => {
                                $set::by_lane::<true>(codes, scales, offsets, self.group, out);
                            }
                            (CodeWidth::Byte, false) => {
                                $set::by_lane::<false>(codes, scales, offsets, self.group, out);
                            }
                            (CodeWidth::Nibble, true) => {
                                $set::by_step::<true>(codes, scales, offsets, out);
                            }
                            (CodeWidth::Byte, true) => {
                                $set::by_step::<false>(codes, scales, offsets, out);
                            }
                        }
                    }
                };
            }
            match isa.0 {
                Set::Avx512 => {
                    by!(avx512);
                    return;
                }
                Set::Avx2 => {
                    by!(avx2);
                    return;
                }
                Set::Portable => {}
            }
        }
        let _ = isa;
        for (k, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let code = |j: usize| match self.width {
                CodeWidth::Nibble => {
                    f32::from((codes[k * LANES / 2 + j % (LANES / 2)] >> (j / (LANES / 2) * 4)) & 0xf)
                }
                CodeWidth::Byte => f32::from(codes[k * LANES + j] as i8),
            };
            let first = if by_step { k } else { k / self.group * LANES };
            for j in 0..LANES {
                let at = if by_step { first } else { first + j };
                out[j] = scales[at] * code(j) + offsets[at];
            }
        }
    }

    /// Whether there is a [`Self::few_rows`] for these codes on this processor.
    pub(super) fn has_few_rows(&self, isa: Isa) -> bool {
        cfg!(target_arch = "x86_64")
            && isa != Isa::PORTABLE
            && self.group != 0
            && Fused::CHAIN.is_multiple_of(self.group)
    }

    /// `sums [m, LANES] = x [m, depth] · panel` for at most [`FEW`] rows, weights decoded in
    /// registers. To be called where [`Self::has_few_rows`] holds.
    pub(super) fn few_rows(&self, depth: usize, panel: usize, x: &[f32], m: usize, sums: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        {
            let group = self.group;
            let codes = self.codes_of(depth, panel, 0, depth);
            let (scales, offsets) = self.scales_of(depth, panel, 0, depth);
            let (x, sums) = (&x[..m * depth], &mut sums[..m * LANES]);
            assert!(Fused::CHAIN.is_multiple_of(group) && depth.is_multiple_of(group));
            macro_rules! rows {
                ($rows:literal) => {
                    match self.width {
                        // SAFETY: the processor has AVX2 (`has_few_rows` excludes `PORTABLE`; see
                        // `per_isa`). The slices have the lengths that follow from `m`, `depth`
                        // and `group`, which divides `depth` and the chain.
                        CodeWidth::Nibble => unsafe {
                            avx2::few_rows::<true, $rows>(codes, scales, offsets, group, x, depth, sums);
                        },
                        // SAFETY: as above.
                        CodeWidth::Byte => unsafe {
                            avx2::few_rows::<false, $rows>(codes, scales, offsets, group, x, depth, sums);
                        },
                    }
                };
            }
            match m {
                1 => rows!(1),
                2 => rows!(2),
                3 => rows!(3),
                FEW => rows!(4),
                _ => unreachable!("the caller checks the number of rows"),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("{depth} {panel} {m} {} {}", x.len(), sums.len());
    }

    fn codes_of(&self, depth: usize, panel: usize, from: usize, steps: usize) -> &[u8] {
        let bytes = self.width.bytes_per_step();
        &self.codes[(panel * depth + from) * bytes..][..steps * bytes]
    }

    fn scales_of(&self, depth: usize, panel: usize, from: usize, steps: usize) -> (&[f32], &[f32]) {
        let start = (panel * (depth / self.group) + from / self.group) * LANES;
        let len = steps / self.group * LANES;
        (&self.scales[start..start + len], &self.offsets[start..start + len])
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::LANES;

    /// The codes of one step as f32.
    ///
    /// # Safety
    /// `codes` has the step's 8 (`NIBBLE`) or 16 bytes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
    unsafe fn step<const NIBBLE: bool>(codes: *const u8) -> __m512 {
        // SAFETY: the caller's promise; neither load needs an alignment.
        unsafe {
            if NIBBLE {
                let twice = _mm_set1_epi64x(codes.cast::<i64>().read_unaligned());
                let halves = _mm512_set_epi32(4, 4, 4, 4, 4, 4, 4, 4, 0, 0, 0, 0, 0, 0, 0, 0);
                let numbers = _mm512_set_ps(
                    15.0, 14.0, 13.0, 12.0, 11.0, 10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0,
                );
                // Of an index into sixteen numbers only the low half of a byte counts.
                let at = _mm512_srlv_epi32(_mm512_cvtepu8_epi32(twice), halves);
                _mm512_permutexvar_ps(at, numbers)
            } else {
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(codes.cast())))
            }
        }
    }

    /// # Safety
    /// `out [steps, LANES]`, with codes of as many steps and scales and offsets of as many groups.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
    pub(super) unsafe fn by_lane<const NIBBLE: bool>(
        codes: &[u8],
        scales: &[f32],
        offsets: &[f32],
        group: usize,
        out: &mut [f32],
    ) {
        let bytes = if NIBBLE { LANES / 2 } else { LANES };
        for g in 0..scales.len() / LANES {
            // SAFETY: group `g` of every slice is in bounds, by the caller's promise.
            unsafe {
                let s = _mm512_loadu_ps(scales.as_ptr().add(g * LANES));
                let z = _mm512_loadu_ps(offsets.as_ptr().add(g * LANES));
                for k in g * group..(g + 1) * group {
                    let c = step::<NIBBLE>(codes.as_ptr().add(k * bytes));
                    let to = out.as_mut_ptr().add(k * LANES);
                    _mm512_storeu_ps(to, _mm512_add_ps(_mm512_mul_ps(s, c), z));
                }
            }
        }
    }

    /// # Safety
    /// `out [steps, LANES]`, with codes, scales and offsets of as many steps.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
    pub(super) unsafe fn by_step<const NIBBLE: bool>(
        codes: &[u8],
        scales: &[f32],
        offsets: &[f32],
        out: &mut [f32],
    ) {
        let bytes = if NIBBLE { LANES / 2 } else { LANES };
        for (k, (s, z)) in scales.iter().zip(offsets).enumerate() {
            // SAFETY: step `k` of every slice is in bounds, by the caller's promise.
            unsafe {
                let c = step::<NIBBLE>(codes.as_ptr().add(k * bytes));
                let w = _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(*s), c), _mm512_set1_ps(*z));
                _mm512_storeu_ps(out.as_mut_ptr().add(k * LANES), w);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Arithmetic, Fused, LANES};

    /// The codes of one step as f32.
    ///
    /// # Safety
    /// `codes` has the step's 8 (`NIBBLE`) or 16 bytes.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn step<const NIBBLE: bool>(codes: *const u8) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            if NIBBLE {
                let pairs = _mm256_cvtepu8_epi32(_mm_loadl_epi64(codes.cast()));
                let low = _mm256_and_si256(pairs, _mm256_set1_epi32(15));
                let high = _mm256_srli_epi32::<4>(pairs);
                [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
            } else {
                let low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(codes.cast()));
                let high = _mm256_cvtepi8_epi32(_mm_loadl_epi64(codes.add(8).cast()));
                [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
            }
        }
    }

    /// Two registers' worth of values.
    ///
    /// # Safety
    /// `from` has [`LANES`] elements.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn lanes(from: *const f32) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    /// # Safety
    /// `out [steps, LANES]`, with codes of as many steps and scales and offsets of as many groups.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn by_lane<const NIBBLE: bool>(
        codes: &[u8],
        scales: &[f32],
        offsets: &[f32],
        group: usize,
        out: &mut [f32],
    ) {
        let bytes = if NIBBLE { LANES / 2 } else { LANES };
        for g in 0..scales.len() / LANES {
            // SAFETY: group `g` of every slice is in bounds, by the caller's promise.
            unsafe {
                let (s, z) = (lanes(scales.as_ptr().add(g * LANES)), lanes(offsets.as_ptr().add(g * LANES)));
                for k in g * group..(g + 1) * group {
                    let c = step::<NIBBLE>(codes.as_ptr().add(k * bytes));
                    let to = out.as_mut_ptr().add(k * LANES);
                    _mm256_storeu_ps(to, _mm256_add_ps(_mm256_mul_ps(s[0], c[0]), z[0]));
                    _mm256_storeu_ps(to.add(8), _mm256_add_ps(_mm256_mul_ps(s[1], c[1]), z[1]));
                }
            }
        }
    }

    /// # Safety
    /// `out [steps, LANES]`, with codes, scales and offsets of as many steps.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn by_step<const NIBBLE: bool>(
        codes: &[u8],
        scales: &[f32],
        offsets: &[f32],
        out: &mut [f32],
    ) {
        let bytes = if NIBBLE { LANES / 2 } else { LANES };
        for (k, (s, z)) in scales.iter().zip(offsets).enumerate() {
            // SAFETY: step `k` of every slice is in bounds, by the caller's promise.
            unsafe {
                let (s, z) = (_mm256_set1_ps(*s), _mm256_set1_ps(*z));
                let c = step::<NIBBLE>(codes.as_ptr().add(k * bytes));
                let to = out.as_mut_ptr().add(k * LANES);
                _mm256_storeu_ps(to, _mm256_add_ps(_mm256_mul_ps(s, c[0]), z));
                _mm256_storeu_ps(to.add(8), _mm256_add_ps(_mm256_mul_ps(s, c[1]), z));
            }
        }
    }

    /// # Safety
    /// `x [M, depth]`, `sums [M, LANES]`, codes of `depth` steps, scales and offsets of
    /// `depth / group` groups; `group` divides [`Fused`]'s chain and `depth`.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn few_rows<const NIBBLE: bool, const M: usize>(
        codes: &[u8],
        scales: &[f32],
        offsets: &[f32],
        group: usize,
        x: &[f32],
        depth: usize,
        sums: &mut [f32],
    ) {
        let bytes = if NIBBLE { LANES / 2 } else { LANES };
        sums.fill(0.0);
        for from in (0..depth).step_by(Fused::CHAIN) {
            let mut acc = [[_mm256_setzero_ps(); 2]; M];
            for start in (from..(from + Fused::CHAIN).min(depth)).step_by(group) {
                // SAFETY: the group at `start` is in bounds of every slice, by the caller's
                // promise.
                unsafe {
                    let at = start / group * LANES;
                    let (s, z) = (lanes(scales.as_ptr().add(at)), lanes(offsets.as_ptr().add(at)));
                    for k in start..start + group {
                        let c = step::<NIBBLE>(codes.as_ptr().add(k * bytes));
                        let w = [
                            _mm256_add_ps(_mm256_mul_ps(s[0], c[0]), z[0]),
                            _mm256_add_ps(_mm256_mul_ps(s[1], c[1]), z[1]),
                        ];
                        for i in 0..M {
                            let a = _mm256_set1_ps(*x.as_ptr().add(i * depth + k));
                            acc[i][0] = _mm256_fmadd_ps(a, w[0], acc[i][0]);
                            acc[i][1] = _mm256_fmadd_ps(a, w[1], acc[i][1]);
                        }
                    }
                }
            }
            for (sums, acc) in sums.as_chunks_mut::<LANES>().0.iter_mut().zip(acc) {
                // SAFETY: `LANES` elements are two registers.
                unsafe {
                    let before = lanes(sums.as_ptr());
                    _mm256_storeu_ps(sums.as_mut_ptr(), _mm256_add_ps(before[0], acc[0]));
                    _mm256_storeu_ps(sums.as_mut_ptr().add(8), _mm256_add_ps(before[1], acc[1]));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use rand_chacha::ChaCha8Rng;
    use rand_core::{RngCore, SeedableRng};

    use crate::checkpoint::{Dtype, Matrix};
    use crate::kernels::Isa;
    use crate::kernels::gemm::multiply;
    use crate::kernels::pack::{Packed, Storage};
    use crate::testing::random;

    /// Random blocks with finite scales.
    fn blocks(dtype: Dtype, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count * dtype.block_bytes()];
        ChaCha8Rng::seed_from_u64(7).fill_bytes(&mut bytes);
        let high_bytes: &[usize] = match dtype {
            Dtype::Q2_K => &[81, 83],
            Dtype::Q3_K => &[109],
            Dtype::Q6_K => &[209],
            _ => &[1, 3],
        };
        for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
            for &at in high_bytes {
                // Below 2: the exponent's highest bit is off.
                block[at] &= 0xBF;
            }
        }
        bytes
    }

    #[test]
    fn products_with_codes_are_those_with_decoded_weights_to_the_bit() {
        // Ends in the middle of a chain, of a depth block, and of a panel.
        for dtype in Dtype::ALL.into_iter().filter(|d| d.block_len() > 1) {
            let (out, inn) = (70, if dtype.block_len() == 32 { 352 } else { 512 });
            let bytes = Cow::Owned(blocks(dtype, out * inn / dtype.block_len()));
            let matrix = Matrix { out, inn, dtype, bytes };
            for isa in Isa::available() {
                for m in [1, 2, 3, 4, 5, 19] {
                    let product = |storage, transposed| {
                        let packed = if transposed {
                            Packed::transposed(&matrix, storage)
                        } else {
                            Packed::new(&matrix, storage)
                        };
                        multiply(isa, &random(m as u64, m * packed.depth), m, &packed)
                    };
                    for transposed in [false, true] {
                        let (codes, plain) =
                            (product(Storage::AsStored, transposed), product(Storage::F32, transposed));
                        assert!(codes.iter().all(|x| x.is_finite()));
                        assert_eq!(codes, plain, "{dtype:?} {isa:?} {m} rows, transposed {transposed}");
                    }
                }
            }
        }
    }
}
