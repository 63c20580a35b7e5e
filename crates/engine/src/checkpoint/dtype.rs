//! Number formats: the layout of a block, and its exact decoding to `f32`.
//!
//! Every format is decoded with the operations, in the order, that ggml and the Python `gguf`
//! package use, so that the values agree to the bit. Bytes are little endian.

use rayon::prelude::*;

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the formats' own")]
#[allow(non_camel_case_types)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl Dtype {
    /// Every format.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// Elements per block (1 for plain types).
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// The name that GGUF and safetensors users know it by: `Q4_K`, `BF16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2_K => "Q2_K",
            Self::Q3_K => "Q3_K",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
        }
    }

    /// Bytes of one row of `elements`, or `None` where that is not a whole number of blocks or
    /// overflows.
    pub fn row_bytes(self, elements: usize) -> Option<usize> {
        elements
            .is_multiple_of(self.block_len())
            .then(|| (elements / self.block_len()).checked_mul(self.block_bytes()))
            .flatten()
    }

    /// Decodes whole blocks. `out.len()` must be `bytes.len() / block_bytes · block_len`; blocks
    /// beyond the shorter of the two are left alone.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        debug_assert_eq!(bytes.len() / self.block_bytes() * self.block_len(), out.len());
        match self {
            Self::F32 => blocks(bytes, out, |b: &[u8; 4], o: &mut [f32; 1]| o[0] = f32::from_le_bytes(*b)),
            Self::F16 => blocks(bytes, out, |b: &[u8; 2], o: &mut [f32; 1]| {
                o[0] = half_to_f32(u16::from_le_bytes(*b));
            }),
            Self::Bf16 => blocks(bytes, out, |b: &[u8; 2], o: &mut [f32; 1]| {
                o[0] = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            }),
            Self::Q4_0 => blocks(bytes, out, q4_0),
            Self::Q4_1 => blocks(bytes, out, q4_1),
            Self::Q5_0 => blocks(bytes, out, q5_0),
            Self::Q5_1 => blocks(bytes, out, q5_1),
            Self::Q8_0 => blocks(bytes, out, q8_0),
            Self::Q2_K => blocks(bytes, out, q2_k),
            Self::Q3_K => blocks(bytes, out, q3_k),
            Self::Q4_K => blocks(bytes, out, q4_k),
            Self::Q5_K => blocks(bytes, out, q5_k),
            Self::Q6_K => blocks(bytes, out, q6_k),
        }
    }

    /// Index of the first element that is NaN or infinite: of the element itself for plain types,
    /// of the first of its block for block formats, where only the scales can be so. Runs in
    /// parallel.
    pub fn first_not_finite(self, bytes: &[u8]) -> Option<usize> {
        let scales: &[usize] = match self {
            Self::F32 => return first_block::<4>(bytes, |b| !f32::from_le_bytes(*b).is_finite()),
            Self::Bf16 => {
                return first_block::<2>(bytes, |b| u16::from_le_bytes(*b) & 0x7F80 == 0x7F80);
            }
            Self::F16 => return first_block::<2>(bytes, |b| half_is_not_finite(*b)),
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => &[0],
            Self::Q4_1 | Self::Q5_1 | Self::Q4_K | Self::Q5_K => &[0, 2],
            Self::Q2_K => &[80, 82],
            Self::Q3_K => &[108],
            Self::Q6_K => &[208],
        };
        // A few hundred blocks per task: the scan is bound by memory, not by arithmetic.
        const BLOCKS_PER_TASK: usize = 4096;
        let size = self.block_bytes();
        bytes.par_chunks(size * BLOCKS_PER_TASK).enumerate().find_map_first(|(task, chunk)| {
            chunk
                .chunks_exact(size)
                .position(|b| scales.iter().any(|&s| half_is_not_finite([b[s], b[s + 1]])))
                .map(|i| (task * BLOCKS_PER_TASK + i) * self.block_len())
        })
    }
}

fn first_block<const N: usize>(bytes: &[u8], bad: impl Fn(&[u8; N]) -> bool + Sync) -> Option<usize> {
    const ELEMENTS_PER_TASK: usize = 1 << 16;
    let (elements, _) = bytes.as_chunks::<N>();
    elements.par_chunks(ELEMENTS_PER_TASK).enumerate().find_map_first(|(task, chunk)| {
        // Counting has no early exit, so it runs at the speed of memory; the search follows only
        // where there is something to find.
        if !chunk.iter().fold(false, |any, e| any | bad(e)) {
            return None;
        }
        chunk.iter().position(&bad).map(|i| task * ELEMENTS_PER_TASK + i)
    })
}

fn half_is_not_finite(bytes: [u8; 2]) -> bool {
    u16::from_le_bytes(bytes) & 0x7C00 == 0x7C00
}

/// IEEE half to single, exact for every bit pattern, without a branch or a table.
#[inline(always)]
fn half_to_f32(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let magnitude = (bits & 0x7FFF) << 13;
    // Read as a single, the magnitude is 2^112 too small, subnormals included.
    let scaled = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    let special = if magnitude >= 0x0F80_0000 { 0x7F80_0000 } else { 0 };
    f32::from_bits(scaled | special | ((bits & 0x8000) << 16))
}

#[inline(always)]
fn half_at(block: &[u8], at: usize) -> f32 {
    half_to_f32(u16::from_le_bytes([block[at], block[at + 1]]))
}

#[inline(always)]
fn blocks<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let (bytes, _) = bytes.as_chunks::<BYTES>();
    let (out, _) = out.as_chunks_mut::<LEN>();
    for (b, o) in bytes.iter().zip(out) {
        decode(b, o);
    }
}

#[inline(always)]
fn q4_0(b: &[u8; 18], o: &mut [f32; 32]) {
    let d = half_at(b, 0);
    for i in 0..16 {
        let q = b[2 + i];
        o[i] = d * (i32::from(q & 15) - 8) as f32;
        o[i + 16] = d * (i32::from(q >> 4) - 8) as f32;
    }
}

#[inline(always)]
fn q4_1(b: &[u8; 20], o: &mut [f32; 32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    for i in 0..16 {
        let q = b[4 + i];
        o[i] = d * f32::from(q & 15) + m;
        o[i + 16] = d * f32::from(q >> 4) + m;
    }
}

/// The low four bits of 32 values from 16 bytes, the fifth from the bits of a word.
#[inline(always)]
fn five_bits(high: [u8; 4], low: &[u8; 16]) -> [u8; 32] {
    let high = u32::from_le_bytes(high);
    std::array::from_fn(|i| {
        let nibble = if i < 16 { low[i] & 15 } else { low[i - 16] >> 4 };
        nibble | (((high >> i) & 1) << 4) as u8
    })
}

#[inline(always)]
fn q5_0(b: &[u8; 22], o: &mut [f32; 32]) {
    let d = half_at(b, 0);
    let q = five_bits(part(b, 2), &part(b, 6));
    for i in 0..32 {
        o[i] = d * (i32::from(q[i]) - 16) as f32;
    }
}

#[inline(always)]
fn q5_1(b: &[u8; 24], o: &mut [f32; 32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    let q = five_bits(part(b, 4), &part(b, 8));
    for i in 0..32 {
        o[i] = d * f32::from(q[i]) + m;
    }
}

#[inline(always)]
fn q8_0(b: &[u8; 34], o: &mut [f32; 32]) {
    let d = half_at(b, 0);
    for i in 0..32 {
        o[i] = f32::from(b[2 + i] as i8) * d;
    }
}

/// `scales[16]`, two bits × 256, `d`, `dmin`.
#[inline(always)]
fn q2_k(b: &[u8; 84], o: &mut [f32; 256]) {
    let (d, dmin) = (half_at(b, 80), half_at(b, 82));
    for half in 0..2 {
        let q: [u8; 32] = part(b, 16 + 32 * half);
        for plane in 0..4 {
            for side in 0..2 {
                let group = half * 8 + plane * 2 + side;
                let scale = d * f32::from(b[group] & 15);
                let min = dmin * f32::from(b[group] >> 4);
                for i in 0..16 {
                    let v = (q[16 * side + i] >> (2 * plane)) & 3;
                    o[group * 16 + i] = scale * f32::from(v) - min;
                }
            }
        }
    }
}

/// High bits × 256, two low bits × 256, sixteen scales of six bits, `d`.
#[inline(always)]
fn q3_k(b: &[u8; 110], o: &mut [f32; 256]) {
    let d = half_at(b, 108);
    let high: [u8; 32] = part(b, 0);
    let packed: [u8; 12] = part(b, 96);
    for half in 0..2 {
        let q: [u8; 32] = part(b, 32 + 32 * half);
        for plane in 0..4 {
            for side in 0..2 {
                let group = half * 8 + plane * 2 + side;
                let low = (packed[group % 8] >> (4 * (group / 8))) & 15;
                let top = (packed[8 + group % 4] >> (2 * (group / 4))) & 3;
                let scale = d * (i32::from(low | (top << 4)) - 32) as f32;
                for i in 0..16 {
                    let at = 16 * side + i;
                    let v = (q[at] >> (2 * plane)) & 3;
                    // The offset of four applies where the high bit is *not* set.
                    let missing = !(high[at] >> (half * 4 + plane)) & 1;
                    o[group * 16 + i] = scale * (i32::from(v) - (i32::from(missing) << 2)) as f32;
                }
            }
        }
    }
}

/// Eight pairs (scale, min) of six bits each, packed in twelve bytes.
#[inline(always)]
fn six_bit_pairs(packed: &[u8; 12]) -> [(f32, f32); 8] {
    std::array::from_fn(|i| {
        let (scale, min) = if i < 4 {
            (packed[i] & 63, packed[i + 4] & 63)
        } else {
            let low = packed[i + 4];
            ((low & 15) | ((packed[i - 4] >> 6) << 4), (low >> 4) | ((packed[i] >> 6) << 4))
        };
        (f32::from(scale), f32::from(min))
    })
}

/// `d`, `dmin`, scales, four bits × 256.
#[inline(always)]
fn q4_k(b: &[u8; 144], o: &mut [f32; 256]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    let pairs = six_bit_pairs(&part(b, 4));
    for chunk in 0..4 {
        let q: [u8; 32] = part(b, 16 + 32 * chunk);
        for side in 0..2 {
            let (scale, min) = pairs[2 * chunk + side];
            let (scale, min) = (d * scale, dmin * min);
            let out = &mut o[64 * chunk + 32 * side..][..32];
            for i in 0..32 {
                out[i] = scale * f32::from((q[i] >> (4 * side)) & 15) - min;
            }
        }
    }
}

/// `d`, `dmin`, scales, fifth bits × 256, four low bits × 256.
#[inline(always)]
fn q5_k(b: &[u8; 176], o: &mut [f32; 256]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    let pairs = six_bit_pairs(&part(b, 4));
    let high: [u8; 32] = part(b, 16);
    for chunk in 0..4 {
        let q: [u8; 32] = part(b, 48 + 32 * chunk);
        for side in 0..2 {
            let group = 2 * chunk + side;
            let (scale, min) = (d * pairs[group].0, dmin * pairs[group].1);
            let out = &mut o[32 * group..][..32];
            for i in 0..32 {
                let v = ((q[i] >> (4 * side)) & 15) | (((high[i] >> group) & 1) << 4);
                out[i] = scale * f32::from(v) - min;
            }
        }
    }
}

/// Four low bits × 256, two high bits × 256, sixteen signed scales, `d`.
#[inline(always)]
fn q6_k(b: &[u8; 210], o: &mut [f32; 256]) {
    let d = half_at(b, 208);
    for half in 0..2 {
        let low: [u8; 64] = part(b, 64 * half);
        let high: [u8; 32] = part(b, 128 + 32 * half);
        for plane in 0..4 {
            for side in 0..2 {
                let group = half * 8 + plane * 2 + side;
                let scale = d * f32::from(b[192 + group] as i8);
                for i in 0..16 {
                    let at = 16 * side + i;
                    let nibble = (low[32 * (plane % 2) + at] >> (4 * (plane / 2))) & 15;
                    let v = nibble | (((high[at] >> (2 * plane)) & 3) << 4);
                    o[group * 16 + i] = scale * (i32::from(v) - 32) as f32;
                }
            }
        }
    }
}

#[inline(always)]
fn part<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&block[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_half_converts_as_the_half_crate_does() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (half_to_f32(bits), half::f16::from_bits(bits).to_f32());
            if theirs.is_nan() {
                assert!(ours.is_nan(), "{bits:#x}");
            } else {
                assert_eq!(ours.to_bits(), theirs.to_bits(), "{bits:#x}");
            }
        }
    }

    /// Expected values: `gguf.quants.dequantize` of random blocks, made by `fixtures/quants.py`.
    #[test]
    fn every_format_decodes_to_the_bit_as_gguf_py() {
        let bytes = include_bytes!("../../../../fixtures/quants.safetensors");
        let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
        for dtype in Dtype::ALL {
            let raw = file.tensor(&format!("{}.raw", dtype.name())).unwrap();
            let expected = file.tensor(&format!("{}.f32", dtype.name())).unwrap();
            let mut out = vec![f32::NAN; raw.data().len() / dtype.block_bytes() * dtype.block_len()];
            dtype.decode(raw.data(), &mut out);
            let expected: Vec<u32> =
                expected.data().as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
            assert_eq!(expected.len(), out.len(), "{}", dtype.name());
            for (i, (e, o)) in expected.iter().zip(&out).enumerate() {
                assert_eq!(
                    *e,
                    o.to_bits(),
                    "{} element {i}: expected {}, got {o}",
                    dtype.name(),
                    f32::from_bits(*e)
                );
            }
        }
    }

    #[test]
    fn a_scale_that_is_not_finite_is_found_in_every_format() {
        for dtype in Dtype::ALL {
            let mut bytes = vec![0u8; dtype.block_bytes() * 10_000];
            assert_eq!(dtype.first_not_finite(&bytes), None, "{}", dtype.name());
            let block = 7_654;
            // All bits set in one block: NaN wherever a scale lies.
            bytes[block * dtype.block_bytes()..][..dtype.block_bytes()].fill(0xFF);
            assert_eq!(dtype.first_not_finite(&bytes), Some(block * dtype.block_len()), "{}", dtype.name());
        }
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(Dtype::Q4_K.row_bytes(512), Some(288));
        assert_eq!(Dtype::Q4_K.row_bytes(500), None);
        assert_eq!(Dtype::F32.row_bytes(usize::MAX / 2), None);
    }
}
