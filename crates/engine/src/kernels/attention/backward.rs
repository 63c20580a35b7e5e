//! Backward of attention, as products: a tile of queries with all keys and values that it sees.

use rayon::prelude::*;

use super::{Arithmetic, Isa, LANES, Segment, Shape, Shared, TILE, View, block, per_isa, turn, weigh};

/// Gradients of the new rows: of q `[rows, h·k]`, and of k and v `[rows, kv·k]`.
#[derive(Debug)]
pub struct Gradients {
    /// With respect to q.
    pub queries: Vec<f32>,
    /// With respect to the new keys.
    pub keys: Vec<f32>,
    /// With respect to the new values.
    pub values: Vec<f32>,
}

/// Backward of [`forward`](super::forward). Keys and values from before the new rows are constants.
pub fn backward(isa: Isa, shape: &Shape, q: &[f32], views: &[View<'_>], dout: &[f32]) -> Gradients {
    let rows = q.len() / (shape.heads * shape.head_width);
    let kv_width = shape.kv_heads * shape.head_width;
    let mut grads = Gradients {
        queries: vec![0.0; q.len()],
        keys: vec![0.0; rows * kv_width],
        values: vec![0.0; rows * kv_width],
    };
    let (dq, dk, dv) =
        (Shared::new(&mut grads.queries), Shared::new(&mut grads.keys), Shared::new(&mut grads.values));
    let tasks: Vec<(&View<'_>, usize)> =
        views.iter().flat_map(|v| (0..shape.kv_heads).map(move |g| (v, g))).collect();
    tasks.into_par_iter().with_max_len(1).for_each(|(view, kv_head)| {
        let group = Group { isa, shape, view, kv_head };
        let turned: Vec<Turned> = view
            .segments
            .iter()
            .map(|s| Turned::new(s, kv_head * shape.head_width, shape.head_width))
            .collect();
        for from in (0..view.rows.len()).step_by(TILE) {
            group.tile(&turned, from, q, dout, [&dq, &dk, &dv]);
        }
    });
    grads
}

/// Keys and values of one head the other way round than a [`Segment`] has them.
struct Turned {
    /// `[tokens, k]`, k rounded up to whole lanes.
    keys: Vec<f32>,
    /// `[k, columns]`.
    values: Vec<f32>,
}

impl Turned {
    fn new(segment: &Segment, head: usize, k: usize) -> Self {
        let (padded, columns) = (k.next_multiple_of(LANES), segment.columns());
        let mut keys = vec![0.0; segment.len * padded];
        turn(&segment.keys[head * segment.capacity..], segment.capacity, k, segment.len, padded, &mut keys);
        let mut values = vec![0.0; k * columns];
        let own = segment.values.get(head..).unwrap_or_default();
        turn(own, segment.width, segment.len, k, columns, &mut values);
        Self { keys, values }
    }
}

/// The query heads that share one head of keys and values, in one sequence.
#[derive(Clone, Copy)]
struct Group<'a> {
    isa: Isa,
    shape: &'a Shape,
    view: &'a View<'a>,
    kv_head: usize,
}

impl Group<'_> {
    /// A tile of queries, the first of which is `from`: their gradients, and their part of those of
    /// the new keys and values.
    fn tile(self, turned: &[Turned], from: usize, q: &[f32], dout: &[f32], [dq, dk, dv]: [&Shared<f32>; 3]) {
        let Self { isa, shape, view, kv_head } = self;
        let k = shape.head_width;
        let (width, kv_width) = (shape.heads * k, shape.kv_heads * k);
        let padded = k.next_multiple_of(LANES);
        let group = shape.heads / shape.kv_heads;
        let rows = TILE.min(view.rows.len() - from);
        let m = rows * group;
        let columns = view.columns();
        // Row `r` of the tile: query `r / group`, head `r % group` of the group.
        let row_of =
            |r: usize| (view.rows.start + from + r / group) * width + (kv_head * group + r % group) * k;
        let gathered = |source: &[f32], factor: f32| {
            let mut out = vec![0.0; m * padded];
            for (r, row) in out.chunks_exact_mut(padded).enumerate() {
                row.iter_mut().zip(&source[row_of(r)..][..k]).for_each(|(o, x)| *o = factor * x);
            }
            out
        };
        let (queries, d) = (gathered(q, shape.scale), gathered(dout, 1.0));

        let mut weights = vec![0.0f32; m * columns];
        let mut slopes = vec![0.0f32; m * columns];
        let mut sums = vec![0.0f32; m.max(from + rows) * LANES];
        let last = view.position + from + rows - 1;
        let mut product = |x: &[f32], panel: &[f32], pitch: usize, out: &mut [f32]| {
            let sums = &mut sums[..m * LANES];
            sums.fill(0.0);
            block(isa, x, padded, m, &[panel], pitch, k, &[], sums);
            for (sums, out) in sums.chunks_exact(LANES).zip(out.chunks_mut(columns)) {
                out[..LANES].copy_from_slice(sums);
            }
        };
        for ((segment, at, start), turned) in view.placed().zip(turned) {
            for column in (0..segment.columns()).step_by(LANES).take_while(|c| start + c <= last) {
                let keys = &segment.keys[kv_head * k * segment.capacity + column..];
                product(&queries, keys, segment.capacity, &mut weights[at + column..]);
                product(&d, &turned.values[column..], segment.columns(), &mut slopes[at + column..]);
            }
        }
        for (r, (weights, slopes)) in
            weights.chunks_exact_mut(columns).zip(slopes.chunks_exact_mut(columns)).enumerate()
        {
            let capped = shape.soft_cap.map(|cap| (cap, weights.to_vec()));
            weigh(isa, shape, view, view.position + from + r / group, weights);
            through_softmax(isa, weights, slopes);
            if let Some((cap, raw)) = capped {
                for (slope, raw) in slopes.iter_mut().zip(&raw) {
                    let t = (raw / cap).tanh();
                    *slope *= 1.0 - t * t;
                }
            }
        }

        for first in (0..k).step_by(LANES) {
            let sums = &mut sums[..m * LANES];
            sums.fill(0.0);
            for ((segment, at, start), turned) in view.placed().zip(turned) {
                let seen = segment.len.min((last + 1).saturating_sub(start));
                if seen > 0 {
                    let keys = &turned.keys[first..];
                    block(isa, &slopes[at..], columns, m, &[keys], padded, seen, &[], sums);
                }
            }
            for (r, sums) in sums.chunks_exact(LANES).enumerate() {
                let lanes = LANES.min(k - first);
                // SAFETY: one task handles one head group of one sequence.
                let dq = unsafe { dq.slice(row_of(r) + first, lanes) };
                dq.iter_mut().zip(sums).for_each(|(dq, sum)| *dq = shape.scale * sum);
            }
        }

        // New rows are the last columns; those behind the tile do not see it.
        let new = columns - view.segments.last().map_or(0, |s| s.columns() - (s.len - view.rows.len()));
        let seen = from + rows;
        let mut over = vec![0.0f32; seen * m];
        for (of, by, to) in [(&slopes, &queries, dk), (&weights, &d, dv)] {
            turn(&of[new..], columns, m, seen, m, &mut over);
            for first in (0..k).step_by(LANES) {
                let sums = &mut sums[..seen * LANES];
                sums.fill(0.0);
                block(isa, &over, m, seen, &[&by[first..]], padded, m, &[], sums);
                for (j, sums) in sums.chunks_exact(LANES).enumerate() {
                    let target = (view.rows.start + j) * kv_width + kv_head * k + first;
                    // SAFETY: as above.
                    let to = unsafe { to.slice(target, LANES.min(k - first)) };
                    to.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum);
                }
            }
        }
    }
}

per_isa! {
    /// `dS = P · (dP − Σ P dP)` in the place of dP.
    fn through_softmax(weights: &[f32], slopes: &mut [f32]) = through_softmax_body
}

#[inline(always)]
fn through_softmax_body<A: Arithmetic>(weights: &[f32], slopes: &mut [f32]) {
    let mut sums = [0.0f32; LANES];
    let (w, s) = (weights.as_chunks::<LANES>().0, slopes.as_chunks_mut::<LANES>().0);
    for (w, s) in w.iter().zip(&*s) {
        for j in 0..LANES {
            sums[j] = A::fma(w[j], s[j], sums[j]);
        }
    }
    let level: f32 = sums.iter().sum();
    for (w, s) in w.iter().zip(s) {
        for j in 0..LANES {
            s[j] = w[j] * (s[j] - level);
        }
    }
}
