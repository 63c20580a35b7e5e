//! Frozen matrices in the order in which [`gemm`](super::gemm) reads them.
//!
//! A matrix `W [out, in]` is cut into panels of [`LANES`] consecutive outputs; a panel holds, for
//! each input in turn, its `LANES` weights. For the backward product `dx = dy · W` the roles of
//! inputs and outputs are exchanged ([`Packed::transposed`]).
//!
//! Storage is f32, bf16, or the checkpoint's own codes with one scale and offset per group.
//! Decoding gives exactly the values that [`Dtype::decode`] gives, so a product does not depend on
//! the storage by a single bit.

use half::bf16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::codes::{CodeWidth, Codes};
use super::{Shared, per_isa};
use crate::checkpoint::{Dtype, Matrix};

/// Outputs per panel: one AVX-512 register, two AVX2 ones.
pub const LANES: usize = 16;

/// A matrix packed for products with rows: `y [m, n] = x [m, depth] · B [depth, n]`.
#[derive(Debug)]
pub struct Packed {
    /// Length of the sums.
    pub depth: usize,
    /// Number of results per row.
    pub n: usize,
    store: Store,
}

#[derive(Debug)]
enum Store {
    /// `[panel][depth][LANES]`.
    F32(Vec<f32>),
    /// The same in bf16.
    Bf16(Vec<bf16>),
    /// Codes `[panel][depth][LANES]`, a nibble or a byte each.
    Codes(Codes),
}

/// How frozen weights are kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Storage {
    /// Four bytes a weight.
    F32,
    /// Two bytes a weight; rounds what is not bf16 already.
    Bf16,
    /// As the checkpoint has it, where it can be: block formats as codes and scales, bf16 as
    /// bf16, the rest as f32. Same values as `F32`, to the last bit.
    #[default]
    AsStored,
}

impl Packed {
    /// Packs `W` for `y = x · Wᵀ`: depth `in`, n `out`.
    pub fn new(matrix: &Matrix<'_>, storage: Storage) -> Self {
        Self::pack(matrix, storage, false)
    }

    /// Packs `W` for `dx = dy · W`: depth `out`, n `in`.
    pub fn transposed(matrix: &Matrix<'_>, storage: Storage) -> Self {
        Self::pack(matrix, storage, true)
    }

    /// Packs a plain `[out, in]` f32 matrix.
    pub fn from_f32(out: usize, inn: usize, weights: &[f32]) -> Self {
        assert_eq!(weights.len(), out * inn);
        Self::new(&Matrix::from_f32(out, inn, weights), Storage::F32)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match &self.store {
            Store::F32(v) => v.len() * 4,
            Store::Bf16(v) => v.len() * 2,
            Store::Codes(c) => c.codes.len() + 4 * (c.scales.len() + c.offsets.len()),
        }
    }

    /// Number of panels.
    pub fn panels(&self) -> usize {
        self.n.div_ceil(LANES)
    }

    fn pack(matrix: &Matrix<'_>, storage: Storage, transposed: bool) -> Self {
        let (depth, n) = if transposed { (matrix.out, matrix.inn) } else { (matrix.inn, matrix.out) };
        let store = match (storage, matrix.dtype) {
            (Storage::AsStored, dtype) if grouping(dtype).is_some() => {
                Store::Codes(pack_codes(matrix, transposed))
            }
            (Storage::Bf16, _) | (Storage::AsStored, Dtype::Bf16) => {
                Store::Bf16(pack_plain(matrix, transposed, bf16::from_f32))
            }
            _ => Store::F32(pack_plain(matrix, transposed, |x| x)),
        };
        Self { depth, n, store }
    }

    /// Steps `from .. from + steps` of a panel as `[steps][LANES]` f32: the stored ones, or
    /// decoded into `scratch`.
    #[inline(always)]
    pub(super) fn panel<'a>(
        &'a self,
        isa: super::Isa,
        panel: usize,
        from: usize,
        steps: usize,
        scratch: &'a mut [f32],
    ) -> &'a [f32] {
        let start = (panel * self.depth + from) * LANES;
        match &self.store {
            Store::F32(values) => &values[start..start + steps * LANES],
            Store::Bf16(values) => {
                let out = &mut scratch[..steps * LANES];
                widen(isa, &values[start..start + steps * LANES], out);
                out
            }
            Store::Codes(codes) => {
                let out = &mut scratch[..steps * LANES];
                codes.decode(isa, self.depth, panel, from, out);
                out
            }
        }
    }

    /// The memory behind the same steps of a panel, scales and offsets left out.
    pub(super) fn stored(&self, panel: usize, from: usize, steps: usize) -> &[u8] {
        let start = (panel * self.depth + from) * LANES;
        match &self.store {
            Store::F32(values) => bytemuck::cast_slice(&values[start..start + steps * LANES]),
            Store::Bf16(values) => {
                bytemuck::cast_slice(values[start..start + steps * LANES].reinterpret_cast())
            }
            Store::Codes(codes) => {
                let bytes = codes.width.bytes_per_step();
                &codes.codes[(panel * self.depth + from) * bytes..][..steps * bytes]
            }
        }
    }

    /// Whether [`Self::few_rows`] can be used.
    pub(super) fn has_few_rows(&self, isa: super::Isa) -> bool {
        matches!(&self.store, Store::Codes(codes) if codes.has_few_rows(isa))
    }

    /// `sums [m, LANES] = x [m, depth] · panel` for at most [`FEW`](super::codes::FEW) rows,
    /// straight from the codes.
    pub(super) fn few_rows(&self, panel: usize, x: &[f32], m: usize, sums: &mut [f32]) {
        if let Store::Codes(codes) = &self.store {
            codes.few_rows(self.depth, panel, x, m, sums);
        }
    }
}

per_isa! { fn widen(src: &[bf16], out: &mut [f32]) = widen_body }

#[expect(clippy::extra_unused_type_parameters, reason = "`per_isa` names the arithmetic")]
#[inline(always)]
fn widen_body<A>(src: &[bf16], out: &mut [f32]) {
    for (o, s) in out.iter_mut().zip(src) {
        *o = f32::from_bits(u32::from(s.to_bits()) << 16);
    }
}

/// Steps that a task of the transposed order writes together: whole cache lines, even of nibbles.
const STEPS: usize = 16;

/// Group length and code width of a block format, where it is `scale · code + offset`.
fn grouping(dtype: Dtype) -> Option<(usize, CodeWidth)> {
    match dtype {
        Dtype::Q4_0 | Dtype::Q4_1 | Dtype::Q4_K => Some((32, CodeWidth::Nibble)),
        Dtype::Q5_0 | Dtype::Q5_1 | Dtype::Q8_0 | Dtype::Q5_K => Some((32, CodeWidth::Byte)),
        Dtype::Q2_K => Some((16, CodeWidth::Nibble)),
        Dtype::Q3_K | Dtype::Q6_K => Some((16, CodeWidth::Byte)),
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => None,
    }
}

fn pack_plain<T: Copy + Send + Sync>(
    matrix: &Matrix<'_>,
    transposed: bool,
    to: impl Fn(f32) -> T + Sync,
) -> Vec<T> {
    let (out, inn) = (matrix.out, matrix.inn);
    let (depth, n) = if transposed { (out, inn) } else { (inn, out) };
    let panels = n.div_ceil(LANES);
    let mut packed = vec![to(0.0); panels * depth * LANES];
    if transposed {
        // A source row holds one step of every panel; neighbouring steps are written together.
        let shared = Shared::new(&mut packed);
        (0..out.div_ceil(STEPS)).into_par_iter().for_each_init(
            || vec![0.0f32; STEPS * inn],
            |rows, task| {
                let first = task * STEPS;
                let rows = &mut rows[..STEPS.min(out - first) * inn];
                matrix.decode_rows(first, rows);
                for p in 0..panels {
                    let lanes = LANES.min(inn - p * LANES);
                    let steps = rows.len() / inn;
                    // SAFETY: these steps of every panel belong to this task alone.
                    let to_steps = unsafe { shared.slice((p * depth + first) * LANES, steps * LANES) };
                    for (step, row) in to_steps.chunks_exact_mut(LANES).zip(rows.chunks_exact(inn)) {
                        for (d, s) in step.iter_mut().zip(&row[p * LANES..][..lanes]) {
                            *d = to(*s);
                        }
                    }
                }
            },
        );
    } else {
        packed.par_chunks_mut(depth * LANES).enumerate().for_each_init(
            || vec![0.0f32; inn * LANES],
            |rows, (p, panel)| {
                let lanes = LANES.min(out - p * LANES);
                for j in 0..lanes {
                    matrix.decode_rows(p * LANES + j, &mut rows[j * inn..][..inn]);
                }
                rows[lanes * inn..].fill(0.0);
                for (k, step) in panel.chunks_exact_mut(LANES).enumerate() {
                    for j in 0..LANES {
                        step[j] = to(rows[j * inn + k]);
                    }
                }
            },
        );
    }
    packed
}

fn pack_codes(matrix: &Matrix<'_>, transposed: bool) -> Codes {
    let (group, width) = grouping(matrix.dtype).expect("the caller asked");
    let (out, inn) = (matrix.out, matrix.inn);
    let groups = inn / group;
    let step_bytes = width.bytes_per_step();
    if transposed {
        let panels = inn.div_ceil(LANES);
        let panels_per_group = group / LANES;
        let mut codes = vec![0u8; panels * out * step_bytes];
        let mut scales = vec![0.0f32; groups * out];
        let mut offsets = vec![0.0f32; groups * out];
        let (c, s, z) = (Shared::new(&mut codes), Shared::new(&mut scales), Shared::new(&mut offsets));
        (0..out.div_ceil(STEPS)).into_par_iter().for_each_init(
            || (vec![0i8; STEPS * inn], vec![0.0f32; groups], vec![0.0f32; groups]),
            |(rows, row_scales, row_offsets), task| {
                let first = task * STEPS;
                let rows = &mut rows[..STEPS.min(out - first) * inn];
                for (o, row) in rows.chunks_exact_mut(inn).enumerate() {
                    matrix.decode_codes(first + o, row, row_scales, row_offsets);
                    for g in 0..groups {
                        // SAFETY: element `first + o` of each scale row belongs to this task alone.
                        unsafe {
                            s.slice(g * out + first + o, 1)[0] = row_scales[g];
                            z.slice(g * out + first + o, 1)[0] = row_offsets[g];
                        }
                    }
                }
                let steps = rows.len() / inn;
                for p in 0..panels {
                    // SAFETY: these steps of every panel belong to this task alone.
                    let to = unsafe { c.slice((p * out + first) * step_bytes, steps * step_bytes) };
                    for (step, row) in to.chunks_exact_mut(step_bytes).zip(rows.chunks_exact(inn)) {
                        let lanes = &row[p * LANES..][..LANES];
                        put_codes(width, step, |j| lanes[j]);
                    }
                }
            },
        );
        return Codes { width, codes, group: 0, scales, offsets, panels_per_group };
    }
    let panels = out.div_ceil(LANES);
    let mut codes = vec![0u8; panels * inn * step_bytes];
    let mut scales = vec![0.0f32; panels * groups * LANES];
    let mut offsets = vec![0.0f32; panels * groups * LANES];
    codes
        .par_chunks_mut(inn * step_bytes)
        .zip(scales.par_chunks_mut(groups * LANES))
        .zip(offsets.par_chunks_mut(groups * LANES))
        .enumerate()
        .for_each_init(
            || (vec![0i8; inn * LANES], vec![0.0f32; groups], vec![0.0f32; groups]),
            |(rows, row_scales, row_offsets), (p, ((codes, scales), offsets))| {
                let lanes = LANES.min(out - p * LANES);
                for j in 0..lanes {
                    let row = &mut rows[j * inn..][..inn];
                    matrix.decode_codes(p * LANES + j, row, row_scales, row_offsets);
                    for g in 0..groups {
                        scales[g * LANES + j] = row_scales[g];
                        offsets[g * LANES + j] = row_offsets[g];
                    }
                }
                rows[lanes * inn..].fill(0);
                for (k, step) in codes.chunks_exact_mut(step_bytes).enumerate() {
                    put_codes(width, step, |j| rows[j * inn + k]);
                }
            },
        );
    Codes { width, codes, group, scales, offsets, panels_per_group: 1 }
}

#[inline(always)]
fn put_codes(width: CodeWidth, step: &mut [u8], code: impl Fn(usize) -> i8) {
    match width {
        CodeWidth::Nibble => {
            for j in 0..LANES / 2 {
                step[j] = (code(j) as u8 & 0xf) | ((code(j + LANES / 2) as u8) << 4);
            }
        }
        CodeWidth::Byte => {
            for j in 0..LANES {
                step[j] = code(j) as u8;
            }
        }
    }
}
