//! Causal attention of new tokens over cached and new keys and values.

mod backward;

pub use backward::{Gradients, backward};

use rayon::prelude::*;

use super::gemm::DEPTH_BLOCK;
use super::pack::LANES;
use super::tile::block;
use super::{Arithmetic, Isa, Shared, per_isa};

/// What all layers of one kind have in common.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_width: usize,
    /// Factor on q·k.
    pub scale: f32,
    /// Tokens that a query sees, itself included; all where `None`.
    pub window: Option<usize>,
    /// `c · tanh(score / c)`.
    pub soft_cap: Option<f32>,
}

impl Shape {
    fn sees(&self, query: usize, key: usize) -> bool {
        key <= query && self.window.is_none_or(|w| query - key < w)
    }
}

/// Keys and values of consecutive tokens at one layer.
///
/// Keys are stored transposed, `[kv·k, capacity]`, so that scores of neighbouring tokens come out
/// of one product; values by token, `[len, kv·k]`.
#[derive(Debug, Clone, Default)]
pub struct Segment {
    width: usize,
    len: usize,
    capacity: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Segment {
    /// An empty segment for keys and values of `width = kv·k`.
    pub fn new(width: usize) -> Self {
        Self { width, ..Self::default() }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends the rows of new tokens, `[t, width]` each.
    pub fn append(&mut self, keys: &[f32], values: &[f32]) {
        let t = keys.len() / self.width;
        self.reserve(self.len + t);
        turn(keys, self.width, t, self.width, self.capacity, &mut self.keys[self.len..]);
        self.values.extend_from_slice(values);
        self.len += t;
    }

    /// Forgets all tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.values.truncate(self.len * self.width);
    }

    /// The first `len` tokens, as a segment of their own.
    pub fn prefix(&self, len: usize) -> Self {
        let mut out = Self::new(self.width);
        out.reserve(len);
        for d in 0..self.width {
            out.keys[d * out.capacity..][..len].copy_from_slice(&self.keys[d * self.capacity..][..len]);
        }
        out.values.extend_from_slice(&self.values[..len * self.width]);
        out.len = len;
        out
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        4 * (self.keys.len() + self.values.len())
    }

    fn reserve(&mut self, tokens: usize) {
        if tokens <= self.capacity {
            return;
        }
        // The first rows come at once (a prompt), later ones one by one: then grow by half.
        let wanted = if self.len == 0 { tokens } else { tokens.max(self.capacity + self.capacity / 2) };
        let capacity = wanted.next_multiple_of(LANES);
        let mut keys = vec![0.0; self.width * capacity];
        for d in 0..self.width {
            keys[d * capacity..][..self.len].copy_from_slice(&self.keys[d * self.capacity..][..self.len]);
        }
        self.keys = keys;
        self.capacity = capacity;
    }

    /// Columns that scores of this segment take: its length, rounded up to whole lanes.
    fn columns(&self) -> usize {
        self.len.next_multiple_of(LANES)
    }
}

/// Transposes `[rows, columns]`, whose rows are `stride` apart, into rows that are `pitch` apart.
fn turn(from: &[f32], stride: usize, rows: usize, columns: usize, pitch: usize, to: &mut [f32]) {
    // By whole cache lines of the rows: the lines that they go to stay at hand meanwhile.
    for first in (0..columns).step_by(LANES) {
        let lanes = LANES.min(columns - first);
        for r in 0..rows {
            for (c, x) in (first..).zip(&from[r * stride + first..][..lanes]) {
                to[c * pitch + r] = *x;
            }
        }
    }
}

/// One sequence of a batch.
#[derive(Debug)]
pub struct View<'a> {
    /// Its rows of q, and of the result.
    pub rows: std::ops::Range<usize>,
    /// Position of its first row.
    pub position: usize,
    /// What it sees: segments in order of position; the last one ends with the rows themselves.
    pub segments: Vec<&'a Segment>,
}

impl View<'_> {
    /// Columns that a row of scores takes.
    fn columns(&self) -> usize {
        self.segments.iter().map(|s| s.columns()).sum()
    }

    /// Its segments, each with its first column in a row of scores and the position of its first token.
    fn placed(&self) -> impl Iterator<Item = (&Segment, usize, usize)> {
        self.segments.iter().scan((0, 0), |(at, start), &segment| {
            let placed = (segment, *at, *start);
            *at += segment.columns();
            *start += segment.len;
            Some(placed)
        })
    }
}

/// Query rows handled by one task.
const TILE: usize = 32;

/// Attention of the rows of `q [rows, h·k]`: `out` of the same shape.
pub fn forward(isa: Isa, shape: &Shape, q: &[f32], views: &[View<'_>], out: &mut [f32]) {
    assert_eq!(q.len(), out.len());
    let shared = Shared::new(out);
    let tasks: Vec<(&View<'_>, usize, usize)> = views
        .iter()
        .flat_map(|v| {
            (0..v.rows.len().div_ceil(TILE))
                .flat_map(move |t| (0..shape.kv_heads).map(move |g| (v, g, t * TILE)))
        })
        .collect();
    let run = |(view, kv_head, from): (&View<'_>, usize, usize)| {
        forward_tile(isa, shape, q, view, kv_head, from, &shared)
    };
    let work: usize =
        views.iter().map(|v| v.rows.len() * v.segments.iter().map(|s| s.len).sum::<usize>()).sum();
    if rayon::current_num_threads() == 1 || work * shape.heads * shape.head_width < 60_000 {
        tasks.into_iter().for_each(run);
    } else {
        tasks.into_par_iter().with_max_len(1).for_each(run);
    }
}

fn forward_tile(
    isa: Isa,
    shape: &Shape,
    q: &[f32],
    view: &View<'_>,
    kv_head: usize,
    from: usize,
    out: &Shared<f32>,
) {
    let (k, width) = (shape.head_width, shape.heads * shape.head_width);
    let group = shape.heads / shape.kv_heads;
    let rows = TILE.min(view.rows.len() - from);
    let m = rows * group;
    let columns = view.columns();
    // Row `i · group + g` of the tile: query `i`, head `g` of the group.
    let row_of = |i: usize, g: usize| (view.rows.start + from + i) * width + (kv_head * group + g) * k;
    let mut queries = Vec::with_capacity(m * k);
    for i in 0..rows {
        for g in 0..group {
            queries.extend(q[row_of(i, g)..][..k].iter().map(|x| x * shape.scale));
        }
    }
    let mut scores = vec![0.0f32; m * columns];
    let mut sums = vec![0.0f32; m * LANES];
    let last = view.position + from + rows - 1;
    for (segment, at, start) in view.placed() {
        for column in (0..segment.columns()).step_by(LANES) {
            if start + column > last {
                break;
            }
            sums.fill(0.0);
            let keys = &segment.keys[kv_head * k * segment.capacity + column..];
            block(isa, &queries, k, m, &[keys], segment.capacity, k, &[], &mut sums);
            for (r, s) in sums.chunks_exact(LANES).enumerate() {
                scores[r * columns + at + column..][..LANES].copy_from_slice(s);
            }
        }
    }
    for i in 0..rows {
        for g in 0..group {
            let row = &mut scores[(i * group + g) * columns..][..columns];
            weigh(isa, shape, view, view.position + from + i, row);
        }
    }
    // The values of one segment after another; sums stay in the result's tile.
    let mut mixed = vec![0.0f32; m * k.next_multiple_of(LANES)];
    let panels = k.div_ceil(LANES);
    for (segment, at, start) in view.placed() {
        let used = segment.len.min((last + 1).saturating_sub(start));
        for p in 0..panels {
            let tile = &mut mixed[p * m * LANES..][..m * LANES];
            let lanes = LANES.min(k - p * LANES);
            let column = kv_head * k + p * LANES;
            for step in (0..used).step_by(DEPTH_BLOCK) {
                let steps = DEPTH_BLOCK.min(used - step);
                let weights = &scores[at + step..];
                let values = &segment.values[step * segment.width + column..];
                if lanes == LANES && values.len() >= (steps - 1) * segment.width + LANES {
                    block(isa, weights, columns, m, &[values], segment.width, steps, &[], tile);
                } else {
                    // A head narrower than a register: copied out, padded with zeros.
                    let mut padded = vec![0.0f32; steps * LANES];
                    for (s, lane) in padded.chunks_exact_mut(LANES).enumerate() {
                        lane[..lanes].copy_from_slice(&values[s * segment.width..][..lanes]);
                    }
                    block(isa, weights, columns, m, &[&padded], LANES, steps, &[], tile);
                }
            }
        }
    }
    for i in 0..rows {
        for g in 0..group {
            // SAFETY: one task writes one head group of these rows.
            let out = unsafe { out.slice(row_of(i, g), k) };
            for (p, lanes) in out.chunks_mut(LANES).enumerate() {
                lanes.copy_from_slice(&mixed[(p * m + i * group + g) * LANES..][..lanes.len()]);
            }
        }
    }
}

/// Scores of one query to attention weights, in place; columns it does not see become 0.
fn weigh(isa: Isa, shape: &Shape, view: &View<'_>, query: usize, row: &mut [f32]) {
    if let Some(cap) = shape.soft_cap {
        for s in row.iter_mut() {
            *s = cap * (*s / cap).tanh();
        }
    }
    for (segment, at, start) in view.placed() {
        let part = &mut row[at..at + segment.columns()];
        for (j, s) in part.iter_mut().enumerate() {
            if j >= segment.len || !shape.sees(query, start + j) {
                *s = f32::NEG_INFINITY;
            }
        }
    }
    softmax(isa, row);
}

per_isa! {
    /// Softmax of a row in place; −∞ becomes 0.
    pub fn softmax(row: &mut [f32]) = softmax_body
}

#[inline(always)]
fn softmax_body<A: Arithmetic>(row: &mut [f32]) {
    let mut top = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = row.as_chunks::<16>();
    for chunk in chunks {
        for j in 0..16 {
            top[j] = top[j].max(chunk[j]);
        }
    }
    let top = top.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let mut sums = [0.0f32; 16];
    let (chunks, rest) = row.as_chunks_mut::<16>();
    for chunk in chunks {
        for j in 0..16 {
            let x = chunk[j];
            let e = super::activation::exp::<A>(x - top);
            chunk[j] = if x == f32::NEG_INFINITY { 0.0 } else { e };
            sums[j] += chunk[j];
        }
    }
    for (x, sum) in rest.iter_mut().zip(&mut sums) {
        *x = if *x == f32::NEG_INFINITY { 0.0 } else { super::activation::exp::<A>(*x - top) };
        *sum += *x;
    }
    let inverse = 1.0 / sums.iter().sum::<f32>();
    for x in row.iter_mut() {
        *x *= inverse;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, assert_gradient, random};

    const SHAPE: Shape =
        Shape { heads: 6, kv_heads: 2, head_width: 20, scale: 0.3, window: None, soft_cap: None };
    const PAST: usize = 19;
    const NEW: usize = 5;

    /// More queries than a tile holds.
    const MANY: usize = TILE + 7;

    fn segments(shape: &Shape, keys: &[f32], values: &[f32]) -> (Segment, Segment) {
        let width = shape.kv_heads * shape.head_width;
        let mut past = Segment::new(width);
        past.append(&random(50, PAST * width), &random(51, PAST * width));
        let mut own = Segment::new(width);
        own.append(keys, values);
        (past, own)
    }

    fn run(isa: Isa, shape: &Shape, q: &[f32], keys: &[f32], values: &[f32]) -> Vec<f32> {
        let (past, own) = segments(shape, keys, values);
        let mut out = vec![0.0; q.len()];
        forward(
            isa,
            shape,
            q,
            &[View { rows: 0..own.len(), position: PAST, segments: vec![&past, &own] }],
            &mut out,
        );
        out
    }

    /// The definition, in f64, head by head.
    fn exact(shape: &Shape, q: &[f32], keys: &[f32], values: &[f32]) -> Vec<f32> {
        let width = shape.kv_heads * shape.head_width;
        let all = |past: u64, new: &[f32]| -> Vec<f32> { [&random(past, PAST * width)[..], new].concat() };
        let (keys, values) = (all(50, keys), all(51, values));
        let k = shape.head_width;
        let mut out = vec![];
        for i in 0..NEW {
            for h in 0..shape.heads {
                let column = h / (shape.heads / shape.kv_heads) * k;
                let query = &q[(i * shape.heads + h) * k..][..k];
                let weights: Vec<f64> = (0..PAST + NEW)
                    .map(|j| {
                        if !shape.sees(PAST + i, j) {
                            return 0.0;
                        }
                        let key = &keys[j * width + column..][..k];
                        let s: f64 = query.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                        let s = s * f64::from(shape.scale);
                        shape.soft_cap.map_or(s, |c| f64::from(c) * (s / f64::from(c)).tanh()).exp()
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                for d in 0..k {
                    let sum: f64 =
                        (0..PAST + NEW).map(|j| weights[j] * f64::from(values[j * width + column + d])).sum();
                    out.push((sum / total) as f32);
                }
            }
        }
        out
    }

    fn shapes() -> [Shape; 3] {
        [SHAPE, Shape { window: Some(7), ..SHAPE }, Shape { soft_cap: Some(2.0), ..SHAPE }]
    }

    #[test]
    fn agrees_with_its_definition_over_two_segments() {
        let width = SHAPE.kv_heads * SHAPE.head_width;
        let q = random(1, NEW * SHAPE.heads * SHAPE.head_width);
        let (keys, values) = (random(2, NEW * width), random(3, NEW * width));
        for shape in shapes() {
            for isa in Isa::available() {
                let found = run(isa, &shape, &q, &keys, &values);
                assert_close("attention", &found, &exact(&shape, &q, &keys, &values), 2e-6);
            }
        }
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        // So many that a wider shape would take a while.
        let narrow = |shape| Shape { heads: 2, kv_heads: 1, head_width: 5, ..shape };
        let cases = shapes().map(|shape| (NEW, shape)).into_iter();
        for (new, shape) in cases.chain(shapes().map(|shape| (MANY, narrow(shape)))) {
            let width = shape.kv_heads * shape.head_width;
            let q = random(1, new * shape.heads * shape.head_width);
            let (keys, values) = (random(2, new * width), random(3, new * width));
            for isa in Isa::available() {
                let grads = |q: &[f32], keys: &[f32], values: &[f32], d: &[f32]| {
                    let (past, own) = segments(&shape, keys, values);
                    let view = View { rows: 0..new, position: PAST, segments: vec![&past, &own] };
                    backward(isa, &shape, q, &[view], d)
                };
                let len = q.len();
                assert_gradient(
                    &q,
                    len,
                    |q| run(isa, &shape, q, &keys, &values),
                    |q, d| grads(q, &keys, &values, d).queries,
                );
                assert_gradient(
                    &keys,
                    len,
                    |k| run(isa, &shape, &q, k, &values),
                    |k, d| grads(&q, k, &values, d).keys,
                );
                assert_gradient(
                    &values,
                    len,
                    |v| run(isa, &shape, &q, &keys, v),
                    |v, d| grads(&q, &keys, v, d).values,
                );
            }
        }
    }

    #[test]
    fn a_cache_that_grows_answers_as_one_that_was_filled_at_once() {
        let width = 24;
        let (keys, values) = (random(1, 70 * width), random(2, 70 * width));
        let mut grown = Segment::new(width);
        for t in 0..70 {
            grown.append(&keys[t * width..(t + 1) * width], &values[t * width..(t + 1) * width]);
        }
        let mut whole = Segment::new(width);
        whole.append(&keys, &values);
        let shape = Shape { heads: 3, kv_heads: 1, head_width: 24, scale: 0.2, window: None, soft_cap: None };
        let q = random(3, 72);
        let at = |s: &Segment, position| {
            let mut out = vec![0.0; q.len()];
            let view = View { rows: 0..1, position, segments: vec![s] };
            forward(Isa::detect(), &shape, &q, &[view], &mut out);
            out
        };
        assert_eq!(at(&grown, 69), at(&whole, 69));
        grown.truncate(40);
        assert_eq!(at(&grown, 39), at(&whole.prefix(40), 39));
    }
}
