//! Products of rows with frozen, packed matrices.
//!
//! A product is cut into tasks, and those into blocks of [`DEPTH_BLOCK`] steps that stay in the cache
//! while `tile` works on them.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::codes::FEW;
use super::pack::{LANES, Packed};
use super::tile::{block, panels_per_unit, rows_per_tile};
use super::{Isa, Shared};

/// Steps summed in registers before they are added to the result. A multiple of every block
/// format's length, so that a block is decoded whole.
pub const DEPTH_BLOCK: usize = 384;

/// Rows of a task: their part of a depth block stays in the second-level cache while the
/// panels of a task pass by.
const ROW_BLOCK: usize = 192;

/// Panels worked on together, for the same reason: so often is a part of the left side read again.
const PANEL_BLOCK: usize = 12;

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
    // Tasks of nearly equal size: enough of them that a thread which is interrupted leaves the rest
    // to the others, each long enough to hide its start.
    let (unit, tile) = (panels_per_unit(isa), rows_per_tile(isa.0));
    let panels: usize = targets.iter().map(|t| t.0.panels()).sum();
    let row_blocks = m.div_ceil(ROW_BLOCK);
    let wanted = rayon::current_num_threads() * if row_blocks == 1 { 4 } else { 2 };
    let work: Vec<(usize, Range<usize>, Range<usize>)> = targets
        .iter()
        .enumerate()
        .flat_map(|(i, t)| {
            let (own, blocks) = (t.0.panels(), parts(m, tile, row_blocks));
            let chunks = parts(own, unit, (own * wanted).div_ceil(panels));
            chunks.flat_map(move |c| blocks.clone().map(move |rows| (i, c.clone(), rows)))
        })
        .collect();
    let run = |(i, panels, rows): (usize, Range<usize>, Range<usize>)| {
        let (matrix, bias, out) = &targets[i];
        let task = Task { isa, x, m, matrix, bias: *bias, out, add };
        SCRATCH.with_borrow_mut(|scratch| task.run(panels, rows, scratch));
    };
    if rayon::current_num_threads() == 1 || m * depth * panels * LANES < 60_000 {
        work.into_iter().for_each(run);
    } else {
        work.into_par_iter().with_max_len(1).for_each(run);
    }
}

/// `0..len` in `count` parts, or fewer, of nearly equal size; all but the last end at a multiple of
/// `unit`.
fn parts(len: usize, unit: usize, count: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let units = len.div_ceil(unit);
    let count = count.min(units);
    let edge = move |i: usize| (i * units / count * unit).min(len);
    (0..count).map(move |i| edge(i)..edge(i + 1))
}

/// `y = x · matrix`, the single, plain case of [`rows_times`].
pub fn multiply(isa: Isa, x: &[f32], m: usize, matrix: &Packed) -> Vec<f32> {
    let mut out = vec![0.0; m * matrix.n];
    rows_times(isa, x, m, &mut [Product { matrix, bias: None, out: &mut out }], false);
    out
}

struct Scratch {
    /// Three decoded panels.
    decoded: Vec<f32>,
    /// `[unit][rows][panels of a unit · LANES]`.
    sums: Vec<f32>,
}

thread_local! {
    /// Kept between products: a pass makes hundreds.
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        decoded: vec![0.0; 3 * DEPTH_BLOCK * LANES],
        sums: vec![0.0; ROW_BLOCK * PANEL_BLOCK * LANES],
    });
}

struct Task<'a> {
    isa: Isa,
    x: &'a [f32],
    m: usize,
    matrix: &'a Packed,
    bias: Option<&'a [f32]>,
    out: &'a Shared<f32>,
    add: bool,
}

impl Task<'_> {
    fn run(&self, panels: Range<usize>, rows: Range<usize>, scratch: &mut Scratch) {
        if self.m <= FEW && self.matrix.has_few_rows(self.isa) {
            let sums = &mut scratch.sums[..self.m * LANES];
            for panel in panels {
                self.matrix.few_rows(panel, self.x, self.m, sums);
                self.write(0..self.m, panel..panel + 1, 1, sums);
            }
            return;
        }
        for first in panels.clone().step_by(PANEL_BLOCK) {
            self.block(rows.clone(), first..(first + PANEL_BLOCK).min(panels.end), scratch);
        }
    }

    fn block(&self, rows: Range<usize>, panels: Range<usize>, scratch: &mut Scratch) {
        let (isa, m, depth) = (self.isa, rows.len(), self.matrix.depth);
        let unit = panels_per_unit(isa);
        let sums = &mut scratch.sums[..m * panels.len() * LANES];
        sums.fill(0.0);
        for from in (0..depth).step_by(DEPTH_BLOCK) {
            let steps = DEPTH_BLOCK.min(depth - from);
            let x = &self.x[rows.start * depth + from..];
            for (first, sums) in panels.clone().step_by(unit).zip(sums.chunks_mut(m * unit * LANES)) {
                let mut decoded = scratch.decoded.chunks_exact_mut(DEPTH_BLOCK * LANES);
                let mut panel = |p| {
                    let decoded = decoded.next().expect("three blocks");
                    self.matrix.panel(isa, first + p, from, steps, decoded)
                };
                let next = first + unit;
                let ahead = if next < panels.end { self.matrix.stored(next, from, steps) } else { &[] };
                match unit.min(panels.end - first) {
                    1 => block(isa, x, depth, m, &[panel(0)], LANES, steps, ahead, sums),
                    2 => block(isa, x, depth, m, &[panel(0), panel(1)], LANES, steps, ahead, sums),
                    _ => block(isa, x, depth, m, &[panel(0), panel(1), panel(2)], LANES, steps, ahead, sums),
                }
            }
        }
        self.write(rows, panels, unit, sums);
    }

    /// Finished sums `[unit][rows][panels of a unit · LANES]` to their columns of the result, row
    /// by row: neighbouring panels are one run of memory there.
    fn write(&self, rows: Range<usize>, panels: Range<usize>, unit: usize, sums: &[f32]) {
        let (m, n) = (rows.len(), self.matrix.n);
        for (r, row) in rows.enumerate() {
            for first in panels.clone().step_by(unit) {
                let columns = unit.min(panels.end - first) * LANES;
                let from = first * LANES;
                let sums = &sums[(first - panels.start) * m * LANES + r * columns..][..columns];
                // SAFETY: these columns belong to this task alone.
                let out = unsafe { self.out.slice(row * n + from, columns.min(n - from)) };
                self.write_columns(from, sums, out);
            }
        }
    }

    #[inline(always)]
    fn write_columns(&self, from: usize, sums: &[f32], out: &mut [f32]) {
        match (self.add, self.bias) {
            (false, None) => match (out.as_chunks_mut::<LANES>(), sums.as_chunks::<LANES>()) {
                // Whole panels, the usual case, without a call for each.
                ((out, []), (sums, [])) => out.iter_mut().zip(sums).for_each(|(o, s)| *o = *s),
                _ => out.copy_from_slice(&sums[..out.len()]),
            },
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
        for isa in Isa::available() {
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
        for isa in Isa::available() {
            let all = multiply(isa, &x, 40, &packed);
            for r in [0, 7, 39] {
                let one = multiply(isa, &x[r * depth..(r + 1) * depth], 1, &packed);
                assert_eq!(one, all[r * n..(r + 1) * n]);
            }
        }
    }
}
