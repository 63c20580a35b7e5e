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
pub(super) fn decode_block(
    dtype: Dtype,
    b: &[u8],
    codes: &mut [i8],
    scales: &mut [f32],
    offsets: &mut [f32],
) {
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

/// Writes the codes of a block, and leaves its scales: [`decode_block`] gives them back.
pub(super) fn encode_codes(dtype: Dtype, codes: &[i8], b: &mut [u8]) {
    // Every code is within its format's range, so that none spills into its neighbour.
    let bits = |i: usize, above: i8| (codes[i] + above) as u8;
    match dtype {
        Dtype::Q4_0 => put_nibbles(codes, &mut b[2..18]),
        Dtype::Q4_1 => put_nibbles(codes, &mut b[4..20]),
        Dtype::Q5_0 => {
            put_nibbles(codes, &mut b[6..22]);
            put_fifth_bits(codes, &mut b[2..6]);
        }
        Dtype::Q5_1 => {
            put_nibbles(codes, &mut b[8..24]);
            put_fifth_bits(codes, &mut b[4..8]);
        }
        Dtype::Q8_0 => b[2..34].iter_mut().zip(codes).for_each(|(q, c)| *q = *c as u8),
        Dtype::Q4_K | Dtype::Q5_K => {
            let low = if dtype == Dtype::Q5_K { 48 } else { 16 };
            for pair in 0..4 {
                if dtype == Dtype::Q5_K && pair == 0 {
                    b[16..48].fill(0);
                }
                for i in 0..32 {
                    let (c, d) = (bits(pair * 64 + i, 0), bits(pair * 64 + 32 + i, 0));
                    b[low + pair * 32 + i] = (c & 0xf) | ((d & 0xf) << 4);
                    if dtype == Dtype::Q5_K {
                        b[16 + i] |= ((c >> 4) << (2 * pair)) | ((d >> 4) << (2 * pair + 1));
                    }
                }
            }
        }
        Dtype::Q2_K => {
            b[16..80].fill(0);
            for half in 0..2 {
                for shift in 0..4 {
                    for i in 0..32 {
                        b[16 + half * 32 + i] |= bits(half * 128 + shift * 32 + i, 0) << (2 * shift);
                    }
                }
            }
        }
        Dtype::Q3_K => {
            b[..96].fill(0);
            for half in 0..2 {
                for shift in 0..4 {
                    for i in 0..32 {
                        let c = bits(half * 128 + shift * 32 + i, 4);
                        b[32 + half * 32 + i] |= (c & 3) << (2 * shift);
                        b[i] |= (c >> 2) << (half * 4 + shift);
                    }
                }
            }
        }
        Dtype::Q6_K => {
            for half in 0..2 {
                for i in 0..32 {
                    let c: [u8; 4] = std::array::from_fn(|n| bits(half * 128 + n * 32 + i, 32));
                    b[half * 64 + i] = (c[0] & 0xf) | ((c[2] & 0xf) << 4);
                    b[half * 64 + 32 + i] = (c[1] & 0xf) | ((c[3] & 0xf) << 4);
                    b[128 + half * 32 + i] =
                        (c[0] >> 4) | ((c[1] >> 4) << 2) | ((c[2] >> 4) << 4) | ((c[3] >> 4) << 6);
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

fn put_nibbles(codes: &[i8], packed: &mut [u8]) {
    for (i, q) in packed.iter_mut().enumerate() {
        *q = (codes[i] as u8 & 0xf) | ((codes[i + 16] as u8 & 0xf) << 4);
    }
}

fn put_fifth_bits(codes: &[i8], bits: &mut [u8]) {
    let all = codes.iter().enumerate().fold(0u32, |all, (i, c)| all | ((*c as u32 >> 4) & 1) << i);
    bits.copy_from_slice(&all.to_le_bytes());
}

/// Scale and minimum of sub-block `g` from the twelve packed bytes of Q4_K and Q5_K.
fn six_bit_pair(packed: &[u8], g: usize) -> (u8, u8) {
    if g < 4 {
        (packed[g] & 63, packed[g + 4] & 63)
    } else {
        ((packed[g + 4] & 0xf) | ((packed[g - 4] >> 6) << 4), (packed[g + 4] >> 4) | ((packed[g] >> 6) << 4))
    }
}
