//! Changes of weights that are laid over a frozen model for the length of a pass.
//!
//! The base is never written: taking an overlay off restores every answer bit for bit.

use std::collections::BTreeMap;

use crate::architecture::Role;
use crate::checkpoint::Matrix;
use crate::error::{Error, Result};
use crate::kernels::Isa;
use crate::kernels::gemm::{self, Product};
use crate::kernels::pack::{Packed, Storage};
use crate::model::{Linear, Model};

/// A linear map of the model: the weight of a role at a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct WeightId {
    /// Layer, from 0; 0 for roles outside layers.
    pub layer: usize,
    /// Role.
    pub role: Role,
}

impl std::fmt::Display for WeightId {
    /// For people: `` `mlp-out` of layer 3 ``.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}`", self.role)?;
        if self.role.in_layer() { write!(f, " of layer {}", self.layer) } else { Ok(()) }
    }
}

/// A change of one weight matrix `W [out, in]`, ready to be multiplied.
#[derive(Debug)]
pub struct Delta {
    forward: Vec<Packed>,
    backward: Vec<Packed>,
    out: usize,
    inn: usize,
}

impl Delta {
    /// `ΔW = left · rightᵀ`.
    ///
    /// # Shapes
    /// `left [out, rank]`, `right [in, rank]`, row-major.
    ///
    /// # Errors
    /// Where a length is not a multiple of the rank, or a number is not finite.
    pub fn low_rank(rank: usize, left: &[f32], right: &[f32]) -> Result<Self> {
        if rank == 0 || !left.len().is_multiple_of(rank) || !right.len().is_multiple_of(rank) {
            return Err(Error::input(format!(
                "low-rank factors of {} and {} numbers do not have rank {rank}",
                left.len(),
                right.len()
            )));
        }
        finite(left)?;
        finite(right)?;
        let (out, inn) = (left.len() / rank, right.len() / rank);
        // y += (x · right) · leftᵀ; dx += (dy · left) · rightᵀ.
        let (l, r) = (Matrix::from_f32(out, rank, left), Matrix::from_f32(inn, rank, right));
        Ok(Self {
            forward: vec![Packed::transposed(&r, Storage::F32), Packed::new(&l, Storage::F32)],
            backward: vec![Packed::transposed(&l, Storage::F32), Packed::new(&r, Storage::F32)],
            out,
            inn,
        })
    }

    /// A full `ΔW [out, in]`, row-major.
    ///
    /// # Errors
    /// Where the length is not `out · in`, or a number is not finite.
    pub fn dense(out: usize, inn: usize, delta: &[f32]) -> Result<Self> {
        if out.checked_mul(inn) != Some(delta.len()) {
            return Err(Error::input(format!(
                "a dense delta has {} numbers, expected {out} · {inn}",
                delta.len()
            )));
        }
        finite(delta)?;
        let m = Matrix::from_f32(out, inn, delta);
        Ok(Self {
            forward: vec![Packed::new(&m, Storage::F32)],
            backward: vec![Packed::transposed(&m, Storage::F32)],
            out,
            inn,
        })
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.out, self.inn]
    }

    pub(crate) fn add_forward(&self, isa: Isa, x: &[f32], m: usize, y: &mut [f32]) {
        Self::add(isa, &self.forward, x, m, y);
    }

    pub(crate) fn add_backward(&self, isa: Isa, dy: &[f32], m: usize, dx: &mut [f32]) {
        Self::add(isa, &self.backward, dy, m, dx);
    }

    fn add(isa: Isa, chain: &[Packed], x: &[f32], m: usize, y: &mut [f32]) {
        let (last, first) = chain.split_last().expect("one or two factors");
        let inner = first.first().map(|f| gemm::multiply(isa, x, m, f));
        let x = inner.as_deref().unwrap_or(x);
        gemm::rows_times(isa, x, m, &mut [Product { matrix: last, bias: None, out: y }], true);
    }
}

fn finite(values: &[f32]) -> Result<()> {
    match values.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(at) => Err(Error::input_hint(
            format!("a weight delta is not finite at element {at}"),
            "the edit diverged: lower its learning rate or raise its regularisation",
        )),
    }
}

/// The weight changes of one patch.
#[derive(Debug, Default)]
pub struct Overlay {
    deltas: BTreeMap<WeightId, Vec<Delta>>,
}

impl Overlay {
    /// Adds a change; several changes of one weight add up.
    pub fn push(&mut self, id: WeightId, delta: Delta) {
        self.deltas.entry(id).or_default().push(delta);
    }

    /// The changes of one weight.
    pub fn at(&self, id: WeightId) -> &[Delta] {
        self.deltas.get(&id).map_or(&[], Vec::as_slice)
    }

    /// All changes, in order of layer and role.
    pub fn iter(&self) -> impl Iterator<Item = (WeightId, &Delta)> {
        self.deltas.iter().flat_map(|(id, ds)| ds.iter().map(move |d| (*id, d)))
    }

    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.deltas.is_empty()
    }
}

/// Neighbouring sequences that carry the same patches, as one run of rows.
pub(crate) struct OverlayRun<'a> {
    pub(crate) rows: std::ops::Range<usize>,
    pub(crate) overlays: &'a [&'a Overlay],
}

pub(crate) fn overlay_runs<'a>(
    batch: impl Iterator<Item = (std::ops::Range<usize>, &'a [&'a Overlay])>,
) -> Vec<OverlayRun<'a>> {
    let mut runs: Vec<OverlayRun<'a>> = vec![];
    for (rows, overlays) in batch {
        if overlays.is_empty() {
            continue;
        }
        let same = |r: &OverlayRun<'_>| {
            r.rows.end == rows.start
                && r.overlays.len() == overlays.len()
                && r.overlays.iter().zip(overlays).all(|(a, b)| std::ptr::eq(*a, *b))
        };
        match runs.last_mut().filter(|r| same(r)) {
            Some(run) => run.rows.end = rows.end,
            None => runs.push(OverlayRun { rows, overlays }),
        }
    }
    runs
}

/// The runs among picked rows: their ranges count the picked rows, in the order of `picked`.
pub(crate) fn picked_runs<'a>(runs: &[OverlayRun<'a>], picked: &[usize]) -> Vec<OverlayRun<'a>> {
    let mut out: Vec<(usize, OverlayRun<'a>)> = vec![];
    for (n, &row) in picked.iter().enumerate() {
        let from = runs.partition_point(|r| r.rows.end <= row);
        let Some(run) = runs.get(from).filter(|r| r.rows.contains(&row)) else { continue };
        match out.last_mut().filter(|(i, last)| *i == from && last.rows.end == n) {
            Some((_, last)) => last.rows.end = n + 1,
            None => out.push((from, OverlayRun { rows: n..n + 1, overlays: run.overlays })),
        }
    }
    out.into_iter().map(|(_, run)| run).collect()
}

/// Adds what the patches change in the result of a linear map.
pub(crate) fn add_overlays(
    model: &Model,
    linear: &Linear,
    runs: &[OverlayRun<'_>],
    x: &[f32],
    out: &mut [f32],
) {
    let id = WeightId { layer: linear.layer, role: linear.role };
    let (inn, n) = (linear.forward.depth, linear.forward.n);
    for OverlayRun { rows: r, overlays } in runs {
        for delta in overlays.iter().flat_map(|o| o.at(id)) {
            let (x, out) = (&x[r.start * inn..r.end * inn], &mut out[r.start * n..r.end * n]);
            delta.add_forward(model.isa(), x, r.len(), out);
        }
    }
}
