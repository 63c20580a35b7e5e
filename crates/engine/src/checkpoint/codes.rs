//! Rows of a [`Matrix`]: as f32, or as integer codes with a scale and an offset per group.

use std::borrow::Cow;

use half::f16;

use super::{Dtype, Matrix};

impl<'a> Matrix<'a> {
    /// Wraps a plain `[out, in]` f32 matrix.
    pub fn from_f32(out: usize, inn: usize, weights: &'a [f32]) -> Self {
        Self { out, inn, dtype: Dtype::F32, bytes: Cow::Borrowed(bytemuck::cast_slice(weights)) }
    }

    /// The stored bytes of row `o`.
    fn row(&self, o: usize) -> &[u8] {
        let len = self.row_bytes();
        &self.bytes[o * len..(o + 1) * len]
    }

    /// Row `o` of a block format as `scale · code + offset`, groups of 32 or (Q2_K, Q3_K, Q6_K)
    /// 16 inputs; `codes` has `in` elements, `scales` and `offsets` one per group. Computed in
    /// f32 this gives exactly the values of [`Dtype::decode`].
    ///
    /// # Panics
    /// On plain formats, which have no codes.
    pub(crate) fn decode_codes(&self, o: usize, codes: &mut [i8], scales: &mut [f32], offsets: &mut [f32]) {
        let row = self.row(o);
        let blocks = row.chunks_exact(self.dtype.block_bytes());
        let len = self.dtype.block_len();
        let per_block = scales.len() / (codes.len() / len).max(1);
        let targets = codes
            .chunks_exact_mut(len)
            .zip(scales.chunks_exact_mut(per_block).zip(offsets.chunks_exact_mut(per_block)));
        for (block, (codes, (scales, offsets))) in blocks.zip(targets) {
            decode_block(self.dtype, block, codes, scales, offsets);
        }
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// One block; layouts as in ggml's `block_q…` structs.
fn decode_block(dtype: Dtype, b: &[u8], codes: &mut [i8], scales: &mut [f32], offsets: &mut [f32]) {
    match dtype {
        Dtype::Q4_0 => {
            scales[0] = half_at(b, 0);
            offsets[0] = -8.0 * scales[0];
            nibbles(&b[2..18], codes);
        }
        Dtype::Q4_1 => {
            scales[0] = half_at(b, 0);
            offsets[0] = half_at(b, 2);
            nibbles(&b[4..20], codes);
        }
        Dtype::Q5_0 => {
            scales[0] = half_at(b, 0);
            offsets[0] = -16.0 * scales[0];
            nibbles(&b[6..22], codes);
            fifth_bits(&b[2..6], codes);
        }
        Dtype::Q5_1 => {
            scales[0] = half_at(b, 0);
            offsets[0] = half_at(b, 2);
            nibbles(&b[8..24], codes);
            fifth_bits(&b[4..8], codes);
        }
        Dtype::Q8_0 => {
            scales[0] = half_at(b, 0);
            offsets[0] = 0.0;
            for (c, q) in codes.iter_mut().zip(&b[2..34]) {
                *c = *q as i8;
            }
        }
        Dtype::Q4_K | Dtype::Q5_K => {
            let (d, least) = (half_at(b, 0), half_at(b, 2));
            for g in 0..8 {
                let (scale, min) = six_bit_pair(&b[4..16], g);
                scales[g] = d * f32::from(scale);
                offsets[g] = -(least * f32::from(min));
            }
            let (high, low) =
                if dtype == Dtype::Q5_K { (&b[16..48], &b[48..176]) } else { (&[][..], &b[16..144]) };
            for pair in 0..4 {
                for i in 0..32 {
                    let q = low[pair * 32 + i];
                    let h = high.get(i).copied().unwrap_or(0);
                    codes[pair * 64 + i] = ((q & 0xf) | (((h >> (2 * pair)) & 1) << 4)) as i8;
                    codes[pair * 64 + 32 + i] = ((q >> 4) | (((h >> (2 * pair + 1)) & 1) << 4)) as i8;
                }
            }
        }
        Dtype::Q2_K => {
            let (d, least) = (half_at(b, 80), half_at(b, 82));
            for g in 0..16 {
                scales[g] = d * f32::from(b[g] & 0xf);
                offsets[g] = -(least * f32::from(b[g] >> 4));
            }
            for half in 0..2 {
                for shift in 0..4 {
                    for i in 0..32 {
                        codes[half * 128 + shift * 32 + i] =
                            ((b[16 + half * 32 + i] >> (2 * shift)) & 3) as i8;
                    }
                }
            }
        }
        Dtype::Q3_K => {
            let d = half_at(b, 108);
            for g in 0..16 {
                // Six bits each: low four in the first eight bytes, high two in the last four.
                let low = if g < 8 { b[96 + g] & 0xf } else { b[96 + g - 8] >> 4 };
                let high = (b[104 + g % 4] >> (2 * (g / 4))) & 3;
                scales[g] = d * f32::from((low | (high << 4)) as i8 - 32);
                offsets[g] = 0.0;
            }
            for half in 0..2 {
                for shift in 0..4 {
                    for i in 0..32 {
                        let low = (b[32 + half * 32 + i] >> (2 * shift)) & 3;
                        let high = (b[i] >> (half * 4 + shift)) & 1;
                        codes[half * 128 + shift * 32 + i] = (low | (high << 2)) as i8 - 4;
                    }
                }
            }
        }
        Dtype::Q6_K => {
            let d = half_at(b, 208);
            for g in 0..16 {
                scales[g] = d * f32::from(b[192 + g] as i8);
                offsets[g] = 0.0;
            }
            for half in 0..2 {
                for i in 0..32 {
                    let (l0, l1) = (b[half * 64 + i], b[half * 64 + 32 + i]);
                    let h = b[128 + half * 32 + i];
                    let out = &mut codes[half * 128 + i..];
                    out[0] = ((l0 & 0xf) | ((h & 3) << 4)) as i8 - 32;
                    out[32] = ((l1 & 0xf) | (((h >> 2) & 3) << 4)) as i8 - 32;
                    out[64] = ((l0 >> 4) | (((h >> 4) & 3) << 4)) as i8 - 32;
                    out[96] = ((l1 >> 4) | ((h >> 6) << 4)) as i8 - 32;
                }
            }
        }
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => unreachable!("plain formats have no codes"),
    }
}

/// Low halves are the first 16 codes, high halves the last 16.
fn nibbles(packed: &[u8], codes: &mut [i8]) {
    for (i, q) in packed.iter().enumerate() {
        codes[i] = (q & 0xf) as i8;
        codes[i + 16] = (q >> 4) as i8;
    }
}

fn fifth_bits(bits: &[u8], codes: &mut [i8]) {
    let bits = u32::from_le_bytes([bits[0], bits[1], bits[2], bits[3]]);
    for (i, c) in codes.iter_mut().enumerate() {
        *c |= (((bits >> i) & 1) << 4) as i8;
    }
}

/// Scale and minimum of sub-block `g` from the twelve packed bytes of Q4_K and Q5_K.
fn six_bit_pair(packed: &[u8], g: usize) -> (u8, u8) {
    if g < 4 {
        (packed[g] & 63, packed[g + 4] & 63)
    } else {
        ((packed[g + 4] & 0xf) | ((packed[g - 4] >> 6) << 4), (packed[g + 4] >> 4) | ((packed[g] >> 6) << 4))
    }
}
