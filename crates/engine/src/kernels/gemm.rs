//! Products of rows with frozen, packed matrices.
//!
//! One micro-kernel: `M` rows times `P` panels of [`LANES`] columns, over blocks of
//! [`DEPTH_BLOCK`] steps that stay in the cache, in sums of [`CHAIN`] steps that stay in registers.

use rayon::prelude::*;

use super::pack::{LANES, Packed};
use super::{Isa, Shared};

/// Steps summed in registers before they are added to the result. A multiple of every block
/// format's length, so that a block is decoded whole.
pub const DEPTH_BLOCK: usize = 256;

/// Steps summed in one chain of roundings. Short chains are what makes the logits as close to f64
/// as they are; 64 costs a twentieth of the speed.
const CHAIN: usize = 64;

/// Rows worked on while their results stay in the cache.
const ROW_BLOCK: usize = 192;

/// One of several products with the same left side; see [`rows_times`].
pub struct Product<'a> {
    /// Right side `[depth, n]`.
    pub matrix: &'a Packed,
    /// Added to each row, `[n]`.
    pub bias: Option<&'a [f32]>,
    /// Result `[m, n]`.
    pub out: &'a mut [f32],
}

/// `out = x · matrix + bias`, or `out += x · matrix + bias` where `add`, for several matrices in
/// one parallel loop.
///
/// # Shapes
/// `x [m, depth]`, each `out [m, n]`; all matrices have the same depth.
pub fn rows_times(isa: Isa, x: &[f32], m: usize, products: &mut [Product<'_>], add: bool) {
    if m == 0 || products.is_empty() {
        return;
    }
    let depth = products[0].matrix.depth;
    assert_eq!(x.len(), m * depth, "left side");
    let targets: Vec<_> = products
        .iter_mut()
        .map(|p| {
            assert_eq!(p.matrix.depth, depth, "depth of the right side");
            assert_eq!(p.out.len(), m * p.matrix.n, "result");
            (p.matrix, p.bias, Shared::new(p.out))
        })
        .collect();
    let panels: usize = targets.iter().map(|t| t.0.panels()).sum();
    // Enough tasks to balance, each long enough to hide its start.
    let step = panels_per_task(isa);
    let tasks = rayon::current_num_threads() * 4;
    let chunk = panels.div_ceil(tasks).next_multiple_of(step);
    let work: Vec<(usize, std::ops::Range<usize>)> = targets
        .iter()
        .enumerate()
        .flat_map(|(i, t)| {
            let panels = t.0.panels();
            (0..panels.div_ceil(chunk)).map(move |c| (i, c * chunk..((c + 1) * chunk).min(panels)))
        })
        .collect();
    let run = |(i, range): (usize, std::ops::Range<usize>)| {
        let (matrix, bias, out) = &targets[i];
        let mut scratch = Scratch::new();
        let mut at = range.start;
        while at < range.end {
            let count = step.min(range.end - at);
            for rows in (0..m).step_by(ROW_BLOCK) {
                let rows = rows..(rows + ROW_BLOCK).min(m);
                let task =
                    Task { x, depth, rows, matrix, bias: *bias, out, first_panel: at, panels: count, add };
                task.run(isa, &mut scratch);
            }
            at += count;
        }
    };
    if rayon::current_num_threads() == 1 || m * depth * panels * LANES < 60_000 {
        work.into_iter().for_each(run);
    } else {
        work.into_par_iter().with_max_len(1).for_each(run);
    }
}

/// `y = x · matrix`, the single, plain case of [`rows_times`].
pub fn multiply(isa: Isa, x: &[f32], m: usize, matrix: &Packed) -> Vec<f32> {
    let mut out = vec![0.0; m * matrix.n];
    rows_times(isa, x, m, &mut [Product { matrix, bias: None, out: &mut out }], false);
    out
}

fn panels_per_task(isa: Isa) -> usize {
    if isa == Isa::Avx512 { 3 } else { 1 }
}

struct Scratch {
    decoded: Vec<f32>,
    sums: Vec<f32>,
}

impl Scratch {
    fn new() -> Self {
        Self { decoded: vec![0.0; 3 * DEPTH_BLOCK * LANES], sums: vec![0.0; ROW_BLOCK * 3 * LANES] }
    }
}

struct Task<'a> {
    x: &'a [f32],
    depth: usize,
    rows: std::ops::Range<usize>,
    matrix: &'a Packed,
    bias: Option<&'a [f32]>,
    out: &'a Shared<f32>,
    first_panel: usize,
    panels: usize,
    add: bool,
}

impl Task<'_> {
    fn run(&self, isa: Isa, scratch: &mut Scratch) {
        let m = self.rows.len();
        let columns = self.panels * LANES;
        let sums = &mut scratch.sums[..m * columns];
        sums.fill(0.0);
        for from in (0..self.depth).step_by(DEPTH_BLOCK) {
            let steps = DEPTH_BLOCK.min(self.depth - from);
            let x = &self.x[self.rows.start * self.depth + from..];
            let mut decoded = scratch.decoded.chunks_exact_mut(DEPTH_BLOCK * LANES);
            let mut panel = |p| {
                self.matrix.panel(
                    isa,
                    self.first_panel + p,
                    from,
                    steps,
                    decoded.next().expect("three blocks"),
                )
            };
            match self.panels {
                1 => block1(isa, x, self.depth, m, &[panel(0)], LANES, steps, sums),
                2 => block2(isa, x, self.depth, m, &[panel(0), panel(1)], LANES, steps, sums),
                _ => block3(isa, x, self.depth, m, &[panel(0), panel(1), panel(2)], LANES, steps, sums),
            }
        }
        let n = self.matrix.n;
        let from = self.first_panel * LANES;
        let width = columns.min(n - from);
        for (r, sums) in self.rows.clone().zip(sums.chunks_exact(columns)) {
            // SAFETY: these columns belong to this task alone.
            let out = unsafe { self.out.slice(r * n + from, width) };
            match (self.add, self.bias) {
                (false, None) => out.copy_from_slice(&sums[..width]),
                (false, Some(bias)) => {
                    for ((o, s), b) in out.iter_mut().zip(sums).zip(&bias[from..]) {
                        *o = s + b;
                    }
                }
                (true, bias) => {
                    for (j, (o, s)) in out.iter_mut().zip(sums).enumerate() {
                        *o += s + bias.map_or(0.0, |b| b[from + j]);
                    }
                }
            }
        }
    }
}

use super::{Apart, Arithmetic, Fused};

macro_rules! block {
    ($name:ident, $panels:literal) => {
        /// Adds `x [m, steps] · panels [steps, P·LANES]` to `sums [m, P·LANES]`. Rows of `x` are
        /// `stride` apart, steps of a panel `pitch`.
        pub(super) fn $name(
            isa: Isa,
            x: &[f32],
            stride: usize,
            m: usize,
            panels: &[&[f32]; $panels],
            pitch: usize,
            steps: usize,
            sums: &mut [f32],
        ) {
            assert!(steps > 0 && panels.iter().all(|p| p.len() >= (steps - 1) * pitch + LANES));
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
                fn avx512(
                    x: &[f32],
                    stride: usize,
                    m: usize,
                    panels: &[&[f32]; $panels],
                    pitch: usize,
                    steps: usize,
                    sums: &mut [f32],
                ) {
                    block_body::<Fused, 8, $panels>(x, stride, m, panels, pitch, steps, sums);
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2(
                    x: &[f32],
                    stride: usize,
                    m: usize,
                    panels: &[&[f32]; $panels],
                    pitch: usize,
                    steps: usize,
                    sums: &mut [f32],
                ) {
                    block_body::<Fused, 6, $panels>(x, stride, m, panels, pitch, steps, sums);
                }
                match isa {
                    // SAFETY: the processor has the instructions (see `per_isa`).
                    Isa::Avx512 => return unsafe { avx512(x, stride, m, panels, pitch, steps, sums) },
                    // SAFETY: as above.
                    Isa::Avx2 => return unsafe { avx2(x, stride, m, panels, pitch, steps, sums) },
                    Isa::Portable => {}
                }
            }
            let _ = isa;
            block_body::<Apart, 2, $panels>(x, stride, m, panels, pitch, steps, sums);
        }
    };
}
block!(block1, 1);
block!(block2, 2);
block!(block3, 3);

/// Full tiles of `M` rows, then the remainder in tiles as large as they come.
#[inline(always)]
fn block_body<A: Arithmetic, const M: usize, const P: usize>(
    x: &[f32],
    stride: usize,
    m: usize,
    panels: &[&[f32]; P],
    pitch: usize,
    steps: usize,
    sums: &mut [f32],
) {
    let mut at = 0;
    while at + M <= m {
        tile::<A, M, P>(&x[at * stride..], stride, panels, pitch, steps, &mut sums[at * P * LANES..]);
        at += M;
    }
    let (x, sums) = (x.get(at * stride..).unwrap_or(&[]), &mut sums[at * P * LANES..]);
    match m - at {
        0 => {}
        1 => tile::<A, 1, P>(x, stride, panels, pitch, steps, sums),
        2 => tile::<A, 2, P>(x, stride, panels, pitch, steps, sums),
        3 => tile::<A, 3, P>(x, stride, panels, pitch, steps, sums),
        4 => tile::<A, 4, P>(x, stride, panels, pitch, steps, sums),
        5 => tile::<A, 5, P>(x, stride, panels, pitch, steps, sums),
        6 => tile::<A, 6, P>(x, stride, panels, pitch, steps, sums),
        _ => tile::<A, 7, P>(x, stride, panels, pitch, steps, sums),
    }
}

#[inline(always)]
fn tile<A: Arithmetic, const M: usize, const P: usize>(
    x: &[f32],
    stride: usize,
    panels: &[&[f32]; P],
    pitch: usize,
    steps: usize,
    sums: &mut [f32],
) {
    let mut rows: [&[f32]; M] = [&[]; M];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = &x[i * stride..i * stride + steps];
    }
    for from in (0..steps).step_by(CHAIN) {
        let to = (from + CHAIN).min(steps);
        let mut acc = [[[0.0f32; LANES]; P]; M];
        for k in from..to {
            for i in 0..M {
                // SAFETY: `k < steps`, the length of every row by the slicing above; the check
                // would cost a third of the speed.
                let a = unsafe { *rows[i].get_unchecked(k) };
                for p in 0..P {
                    // SAFETY: every panel has `(steps − 1) · pitch + LANES` elements (asserted by
                    // the callers of `block_body`).
                    let b = unsafe { &*panels[p].as_ptr().add(k * pitch).cast::<[f32; LANES]>() };
                    for j in 0..LANES {
                        acc[i][p][j] = A::fma(a, b[j], acc[i][p][j]);
                    }
                }
            }
        }
        for i in 0..M {
            for p in 0..P {
                let out = &mut sums[(i * P + p) * LANES..][..LANES];
                for j in 0..LANES {
                    out[j] += acc[i][p][j];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Matrix;
    use crate::kernels::pack::Storage;
    use crate::testing::{assert_close, random};

    fn check(isa: Isa, m: usize, depth: usize, n: usize) {
        let x = random(1, m * depth);
        let w = random(2, n * depth);
        let bias = random(3, n);
        let packed = Packed::from_f32(n, depth, &w);
        let mut out = random(4, m * n);
        let before = out.clone();
        rows_times(isa, &x, m, &mut [Product { matrix: &packed, bias: Some(&bias), out: &mut out }], true);
        let exact: Vec<f32> = (0..m * n)
            .map(|i| {
                let (r, c) = (i / n, i % n);
                let dot: f64 =
                    (0..depth).map(|k| f64::from(x[r * depth + k]) * f64::from(w[c * depth + k])).sum();
                (dot + f64::from(bias[c]) + f64::from(before[i])) as f32
            })
            .collect();
        // Sums of size √depth, rounded at every step: the worst of 20,000 elements.
        assert_close("product", &out, &exact, 2e-6 * (depth as f32).sqrt());

        let dy = random(5, m * n);
        let back = Packed::transposed(&Matrix::from_f32(n, depth, &w), Storage::F32);
        let dx = multiply(isa, &dy, m, &back);
        let exact: Vec<f32> = (0..m * depth)
            .map(|i| {
                let (r, c) = (i / depth, i % depth);
                (0..n).map(|o| f64::from(dy[r * n + o]) * f64::from(w[o * depth + c])).sum::<f64>() as f32
            })
            .collect();
        assert_close("transposed product", &dx, &exact, 2e-6 * (n as f32).sqrt());
    }

    #[test]
    fn products_agree_with_f64_on_every_instruction_set() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            for (m, depth, n) in
                [(1, 1, 1), (1, 576, 49), (5, 300, 33), (13, 64, 16), (200, 257, 100), (7, 1536, 65)]
            {
                check(isa, m, depth, n);
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() {
        let (depth, n) = (600, 70);
        let w = random(1, n * depth);
        let packed = Packed::from_f32(n, depth, &w);
        let x = random(2, 40 * depth);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            let all = multiply(isa, &x, 40, &packed);
            for r in [0, 7, 39] {
                let one = multiply(isa, &x[r * depth..(r + 1) * depth], 1, &packed);
                assert_eq!(one, all[r * n..(r + 1) * n]);
            }
        }
    }
}
