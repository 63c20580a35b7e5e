//! One forward pass over a batch of sequences, opened at its sites.
//!
//! A batch is ragged: the rows of all sequences follow one another, without padding. A pass
//! starts from tokens or from hidden states kept at a layer, continues cached keys and values,
//! computes logits only for the rows that are asked for, and stops at the highest layer that is
//! read. What a change at layer `l`, position `p` cannot reach (layers below `l`, positions
//! before `p`) thus need not be computed twice.

use std::ops::Range;

use rayon::prelude::*;

use crate::architecture::{Mlp, ResidualForm};
use crate::cache::{Cache, Past};
use crate::error::{Error, Result};
use crate::kernels::attention::{self, Segment, Shape, View};
use crate::kernels::gemm::{Product, rows_times};
use crate::kernels::norm::NormWeights;
use crate::kernels::rotary::RotaryTable;
use crate::kernels::{activation, norm};
use crate::model::{Layer, Linear, Model};
use crate::overlay::{Overlay, add_overlays, overlay_runs, picked_runs};
use crate::rows::{Spare, add, gather};
use crate::site::{Action, Intervention, Read, Site, SiteKind};
use crate::validate::{self, Spans};

/// One sequence of a batch.
#[derive(Debug, Default)]
pub struct Sequence<'a> {
    /// Tokens whose rows this pass computes.
    pub tokens: &'a [u32],
    /// Keys and values of the tokens before them.
    pub past: Option<&'a Past>,
    /// Where the new keys and values are kept; what it holds already comes after `past`.
    pub cache: Option<&'a mut Cache>,
    /// Patches in force, for this sequence alone.
    pub overlays: &'a [&'a Overlay],
}

/// What the first layer of a pass reads.
#[derive(Debug, Default)]
pub enum Start {
    /// The embeddings of the tokens.
    #[default]
    Tokens,
    /// Hidden states entering a layer, `[rows, d]`, in the order of the sequences' tokens.
    Hidden {
        /// The layer.
        layer: usize,
        /// The rows.
        rows: Vec<f32>,
    },
}

/// Rows that need logits.
#[derive(Debug, Default, Clone)]
pub enum LogitRows {
    /// None: the pass stops at the highest layer that is read or cached.
    #[default]
    None,
    /// The last row of each sequence.
    Last,
    /// All.
    All,
    /// These.
    Rows(Vec<usize>),
}

/// A forward pass to be run.
#[derive(Debug, Default)]
pub struct Pass<'a> {
    /// The batch.
    pub sequences: Vec<Sequence<'a>>,
    /// Where it starts.
    pub start: Start,
    /// Changes on the way.
    pub interventions: Vec<Intervention>,
    /// What is read on the way.
    pub reads: Vec<Read>,
    /// Logits wanted.
    pub logits: LogitRows,
    /// Whether to keep what a backward pass needs.
    pub record: bool,
}

/// What a pass gives.
#[derive(Debug)]
pub struct Outcome<'a> {
    /// Logits of the rows asked for, `[rows, v]`.
    pub logits: Vec<f32>,
    /// One entry per read, `[rows, width]`.
    pub reads: Vec<Vec<f32>>,
    /// For the backward pass, where `record` was set.
    pub tape: Option<Tape<'a>>,
}

/// What a backward pass needs of its forward pass.
#[derive(Debug)]
pub struct Tape<'a> {
    pub(crate) batch: Vec<SequenceTape<'a>>,
    pub(crate) first_layer: usize,
    pub(crate) layers: Vec<LayerTape>,
    pub(crate) interventions: Vec<Intervention>,
    pub(crate) logit_rows: Vec<usize>,
    /// All rows leaving the last layer that was run.
    pub(crate) last_hidden: Vec<f32>,
    /// What the head read, for the rows that got logits.
    pub(crate) head_in: Vec<f32>,
    pub(crate) logits_scaled: Option<Vec<f32>>,
    pub(crate) tables: Tables,
}

#[derive(Debug)]
pub(crate) struct SequenceTape<'a> {
    pub(crate) rows: std::ops::Range<usize>,
    pub(crate) position: usize,
    pub(crate) past: Option<&'a Past>,
    pub(crate) overlays: &'a [&'a Overlay],
}

#[derive(Debug, Default)]
pub(crate) struct LayerTape {
    pub(crate) input: Vec<f32>,
    pub(crate) query_raw: Option<Vec<f32>>,
    pub(crate) key_raw: Option<Vec<f32>>,
    pub(crate) query: Vec<f32>,
    pub(crate) segments: Vec<Segment>,
    pub(crate) attention_in: Vec<f32>,
    pub(crate) context: Vec<f32>,
    pub(crate) attention_out: Option<Vec<f32>>,
    pub(crate) middle: Option<Vec<f32>>,
    pub(crate) mlp_in: Vec<f32>,
    pub(crate) gate: Option<Vec<f32>>,
    pub(crate) up: Vec<f32>,
    pub(crate) key: Vec<f32>,
    pub(crate) mlp_out: Option<Vec<f32>>,
}

/// Rotary tables of a pass: for whole-context layers and for windowed ones.
#[derive(Debug)]
pub(crate) struct Tables {
    whole: Option<RotaryTable>,
    local: Option<RotaryTable>,
}

impl Tables {
    fn new(model: &Model, positions: &[usize]) -> Self {
        let a = model.architecture();
        let table = |r: &Option<_>| r.as_ref().map(|r| RotaryTable::new(r, positions));
        Self { whole: table(&a.rotary), local: table(&a.local_rotary) }
    }

    pub(crate) fn at(&self, windowed: bool) -> Option<&RotaryTable> {
        if windowed && self.local.is_some() { self.local.as_ref() } else { self.whole.as_ref() }
    }
}

impl Pass<'_> {
    /// Index of a sequence's token among the rows of the pass.
    pub fn row(&self, sequence: usize, token: usize) -> usize {
        self.sequences[..sequence].iter().map(|s| s.tokens.len()).sum::<usize>() + token
    }

    fn rows(&self) -> usize {
        self.sequences.iter().map(|s| s.tokens.len()).sum()
    }
}

pub(crate) fn shape_of(model: &Model, layer: usize) -> Shape {
    let a = model.architecture();
    Shape {
        heads: a.heads,
        kv_heads: a.kv_heads,
        head_width: a.head_width,
        scale: a.attention_scale,
        window: a.windows.get(layer).copied().flatten(),
        soft_cap: a.attention_soft_cap,
    }
}

impl Model {
    /// Runs a forward pass.
    ///
    /// # Errors
    /// Where a sequence is empty or longer than the context, a token is beyond the vocabulary, a
    /// row, layer or changed weight does not exist, hidden states or a change have another size
    /// than what they are for, or a cache is of another model or lacks layers. No cache has grown
    /// then.
    pub fn forward<'a>(&self, pass: Pass<'a>) -> Result<Outcome<'a>> {
        self.install(|| Runner::new(self, pass)?.run())
    }

    /// Logits of rows that the head reads ([`SiteKind::FinalNorm`]), without patches: `[rows, d]` to
    /// `[rows, v]`, to the bit what the pass that they were read from gives.
    ///
    /// # Errors
    /// Where these are no whole rows.
    pub fn unembed(&self, rows: &[f32]) -> Result<Vec<f32>> {
        let d = self.architecture().width;
        if !rows.len().is_multiple_of(d) {
            return Err(Error::input(format!(
                "{} numbers are no rows of {d}, the model's width",
                rows.len()
            )));
        }
        Ok(self.install(|| {
            let mut logits = self.head_times(rows);
            self.cap(&mut logits);
            logits
        }))
    }

    /// What the head makes of its rows, without patches, before the soft cap.
    fn head_times(&self, rows: &[f32]) -> Vec<f32> {
        let (a, head) = (self.architecture(), &self.head);
        let m = rows.len() / a.width;
        let mut logits = vec![0.0; m * a.vocabulary];
        let product = Product { matrix: &head.forward, bias: head.bias.as_deref(), out: &mut logits };
        rows_times(self.isa(), rows, m, &mut [product], false);
        self.count(head, m);
        logits
    }

    fn cap(&self, logits: &mut [f32]) {
        if let Some(cap) = self.architecture().logit_soft_cap {
            for x in logits {
                *x = cap * (*x / cap).tanh();
            }
        }
    }
}

struct Runner<'m, 'p> {
    model: &'m Model,
    pass: Pass<'p>,
    spans: Spans,
    reads: Vec<Vec<f32>>,
    spare: Spare,
    last_layer: usize,
    logit_rows: Vec<usize>,
}

impl<'m, 'p> Runner<'m, 'p> {
    fn new(model: &'m Model, pass: Pass<'p>) -> Result<Self> {
        let a = model.architecture();
        let first = if let Start::Hidden { layer, .. } = &pass.start { *layer } else { 0 };
        let spans = validate::sequences(model, &pass, first)?;
        let rows = pass.rows();
        let logit_rows = match &pass.logits {
            LogitRows::None => vec![],
            LogitRows::Last => spans.iter().map(|(r, _)| r.end - 1).collect(),
            LogitRows::All => (0..rows).collect(),
            LogitRows::Rows(wanted) => wanted.clone(),
        };
        validate::sites(model, &pass, first, rows, &logit_rows)?;
        let whole = !logit_rows.is_empty()
            || pass.sequences.iter().any(|s| s.cache.is_some())
            || pass.reads.is_empty();
        let last_layer =
            if whole { a.layers - 1 } else { pass.reads.iter().map(|r| r.site.layer).max().unwrap_or(0) };
        let reads = vec![vec![]; pass.reads.len()];
        Ok(Self { model, pass, spans, reads, spare: Spare::default(), last_layer, logit_rows })
    }

    fn run(mut self) -> Result<Outcome<'p>> {
        let model = self.model;
        let a = model.architecture();
        let (first, mut x) = match std::mem::take(&mut self.pass.start) {
            Start::Tokens => (0, self.embed()?),
            Start::Hidden { layer, rows } => (layer, rows),
        };
        let positions: Vec<usize> =
            self.spans.iter().flat_map(|(rows, p)| (0..rows.len()).map(move |i| p + i)).collect();
        let tables = Tables::new(model, &positions);
        let mut tape = vec![];
        for l in first..=self.last_layer {
            let record = self.layer(l, &mut x, &tables)?;
            if self.pass.record {
                tape.push(record);
            }
        }
        let (mut logits, mut head_in, mut logits_scaled) = (vec![], vec![], None);
        if self.last_layer == a.layers - 1 {
            let wants_final = self.pass.reads.iter().any(|r| r.site.kind == SiteKind::FinalNorm);
            if !self.logit_rows.is_empty() || wants_final {
                (logits, head_in, logits_scaled) = self.head(&x, wants_final);
            }
        }
        let tape = self.pass.record.then(|| Tape {
            batch: self
                .spans
                .iter()
                .zip(&self.pass.sequences)
                .map(|((rows, position), s)| SequenceTape {
                    rows: rows.clone(),
                    position: *position,
                    past: s.past,
                    overlays: s.overlays,
                })
                .collect(),
            first_layer: first,
            layers: tape,
            interventions: std::mem::take(&mut self.pass.interventions),
            logit_rows: std::mem::take(&mut self.logit_rows),
            last_hidden: x,
            head_in,
            logits_scaled,
            tables,
        });
        Ok(Outcome { logits, reads: self.reads, tape })
    }

    fn embed(&self) -> Result<Vec<f32>> {
        let a = self.model.architecture();
        let mut x = self.model.embed(self.pass.sequences.iter().flat_map(|s| s.tokens.iter().copied()))?;
        if let Some(table) = &self.model.positions {
            for (rows, position) in &self.spans {
                for (i, r) in rows.clone().enumerate() {
                    let p = &table[(position + i) * a.width..][..a.width];
                    for (x, p) in x[r * a.width..][..a.width].iter_mut().zip(p) {
                        *x += p;
                    }
                }
            }
        }
        Ok(x)
    }

    /// Whether anything after `kind` of the last layer is still needed.
    fn done_after(&self, l: usize, kind: SiteKind) -> bool {
        l == self.last_layer
            && self.logit_rows.is_empty()
            && !self.pass.record
            && !self.pass.reads.is_empty()
            && self.pass.sequences.iter().all(|s| s.cache.is_none())
            && self.pass.reads.iter().all(|r| r.site.layer < l || r.site.kind <= kind)
    }

    /// One layer; `x` becomes its output.
    fn layer(&mut self, l: usize, x: &mut Vec<f32>, tables: &Tables) -> Result<LayerTape> {
        let model = self.model;
        let a = model.architecture();
        let layer = &model.layers[l];
        let mut tape = LayerTape::default();
        self.visit(l, SiteKind::Input, a.width, x);
        if self.pass.record {
            tape.input.clone_from(x);
        }

        let mut h = self.norm(&layer.attention_norm, x);
        // One norm may serve both: a change of what attention reads leaves the MLP's input alone.
        let shared = layer.mlp_norm.is_none().then(|| h.clone());
        self.visit(l, SiteKind::AttentionIn, a.width, &mut h);
        let [mut q, mut k, mut v] = self.project([&layer.query, &layer.key, &layer.value], &h);
        self.visit(l, SiteKind::Query, a.query_width(), &mut q);
        self.visit(l, SiteKind::Key, a.kv_width(), &mut k);
        self.visit(l, SiteKind::Value, a.kv_width(), &mut v);
        if let (Some(qn), Some(kn)) = (&layer.query_norm, &layer.key_norm) {
            let (q_normed, k_normed) = (self.norm(qn, &q), self.norm(kn, &k));
            tape.query_raw = self.done_with(std::mem::replace(&mut q, q_normed));
            tape.key_raw = self.done_with(std::mem::replace(&mut k, k_normed));
        }
        let shape = shape_of(model, l);
        if let Some(table) = tables.at(shape.window.is_some()) {
            table.rotate(&mut q, a.head_width);
            table.rotate(&mut k, a.head_width);
        }
        let mut context = self.attend(l, &shape, &q, &k, &v, &mut tape.segments);
        self.visit(l, SiteKind::AttentionKey, a.query_width(), &mut context);
        let [mut attended] = self.project([&layer.attention_out], &context);
        self.visit(l, SiteKind::AttentionOut, a.width, &mut attended);
        self.spare.give(k);
        self.spare.give(v);
        tape.query = self.done_with(q).unwrap_or_default();
        tape.context = self.done_with(context).unwrap_or_default();
        if let Some(post) = &layer.attention_post_norm {
            let normed = self.norm(post, &attended);
            tape.attention_out = self.done_with(std::mem::replace(&mut attended, normed));
        }
        if self.done_after(l, SiteKind::AttentionOut) {
            return Ok(tape);
        }
        if a.residual == ResidualForm::Sequential {
            add(x, &attended);
            tape.middle = self.pass.record.then(|| x.clone());
        }
        let mut mlp_in = match (&layer.mlp_norm, shared) {
            (Some(n), _) => self.norm(n, x),
            (None, shared) => shared.expect("kept where the MLP has no norm of its own"),
        };
        tape.attention_in = self.done_with(h).unwrap_or_default();
        self.visit(l, SiteKind::MlpIn, a.width, &mut mlp_in);
        let mut mlp = match self.mlp(l, layer, &mlp_in, &mut tape) {
            Some(mlp) => mlp,
            None => return Ok(tape),
        };
        tape.mlp_in = self.done_with(mlp_in).unwrap_or_default();
        self.visit(l, SiteKind::MlpOut, a.width, &mut mlp);
        if let Some(post) = &layer.mlp_post_norm {
            let normed = self.norm(post, &mlp);
            tape.mlp_out = self.done_with(std::mem::replace(&mut mlp, normed));
        }
        if a.residual != ResidualForm::Sequential {
            add(x, &attended);
        }
        add(x, &mlp);
        self.spare.give(attended);
        self.spare.give(mlp);
        self.visit(l, SiteKind::Residual, a.width, x);
        Ok(tape)
    }

    /// The MLP's output, or nothing where no later site is needed.
    fn mlp(&mut self, l: usize, layer: &Layer, mlp_in: &[f32], tape: &mut LayerTape) -> Option<Vec<f32>> {
        let a = self.model.architecture();
        let isa = self.model.isa();
        let f = a.mlp_width;
        let mut key = match (a.mlp, &layer.gate) {
            (Mlp::Gated(act), Some(gate)) => {
                let [g, u] = self.project([gate, &layer.up], mlp_in);
                let mut key = self.spare.take(g.len());
                activation::forward(isa, act, &g, Some(&u), f, &mut key);
                tape.gate = self.done_with(g);
                tape.up = self.done_with(u).unwrap_or_default();
                key
            }
            (Mlp::Gated(act) | Mlp::Plain(act), _) => {
                let [u] = self.project([&layer.up], mlp_in);
                let mut key = self.spare.take(u.len());
                activation::forward(isa, act, &u, None, f, &mut key);
                tape.up = self.done_with(u).unwrap_or_default();
                key
            }
        };
        self.visit(l, SiteKind::MlpKey, f, &mut key);
        if self.done_after(l, SiteKind::MlpKey) {
            return None;
        }
        let [out] = self.project([&layer.mlp_out], &key);
        tape.key = self.done_with(key).unwrap_or_default();
        Some(out)
    }

    fn attend(
        &mut self,
        l: usize,
        shape: &Shape,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        kept: &mut Vec<Segment>,
    ) -> Vec<f32> {
        let width = self.model.architecture().kv_width();
        let keep = |(rows, _): &(Range<usize>, usize), s: &mut Sequence<'_>| {
            let (k, v) = (&k[rows.start * width..rows.end * width], &v[rows.start * width..rows.end * width]);
            let mut own = Segment::new(width);
            match &mut s.cache {
                Some(cache) => cache.layers[l].append(k, v),
                None => own.append(k, v),
            }
            own
        };
        let batch = self.spans.iter().zip(&mut self.pass.sequences);
        let fresh: Vec<Segment> = if self.spans.len() > 1 && k.len() > 20_000 {
            batch.collect::<Vec<_>>().into_par_iter().map(|(span, s)| keep(span, s)).collect()
        } else {
            batch.map(|(span, s)| keep(span, s)).collect()
        };
        let views: Vec<View<'_>> = self
            .spans
            .iter()
            .zip(&self.pass.sequences)
            .zip(&fresh)
            .map(|(((rows, position), s), own)| {
                let own = s.cache.as_ref().map_or(own, |c| &c.layers[l]);
                let past = s.past.filter(|p| !p.is_empty()).map(|p| &p.layers[l]);
                View {
                    rows: rows.clone(),
                    position: *position,
                    segments: past.into_iter().chain([own]).collect(),
                }
            })
            .collect();
        let mut out = self.spare.take(q.len());
        attention::forward(self.model.isa(), shape, q, &views, &mut out);
        if self.pass.record {
            // With a cache the tape keeps a copy of it: the cache goes on growing.
            *kept = fresh
                .into_iter()
                .zip(&self.pass.sequences)
                .map(|(own, s)| s.cache.as_ref().map_or(own, |c| c.layers[l].clone()))
                .collect();
        }
        out
    }

    /// Several linear maps of the same input, with the patches of each sequence.
    fn project<const N: usize>(&mut self, linears: [&Linear; N], x: &[f32]) -> [Vec<f32>; N] {
        let m = self.pass.rows();
        let mut outs = linears.map(|l| self.spare.take(m * l.forward.n));
        let mut products: Vec<Product<'_>> = linears
            .iter()
            .zip(&mut outs)
            .map(|(l, out)| Product { matrix: &l.forward, bias: l.bias.as_deref(), out })
            .collect();
        rows_times(self.model.isa(), x, m, &mut products, false);
        linears.iter().for_each(|linear| self.model.count(linear, m));
        let batch =
            self.spans.iter().zip(&self.pass.sequences).map(|((rows, _), s)| (rows.clone(), s.overlays));
        let runs = overlay_runs(batch);
        for (linear, out) in linears.iter().zip(&mut outs) {
            add_overlays(self.model, linear, &runs, x, out);
        }
        outs
    }

    /// Final norm and head of the rows that need them: logits, what the head read, and the logits
    /// before a soft cap; the latter two only for a backward pass.
    fn head(&mut self, x: &[f32], wants_final: bool) -> (Vec<f32>, Vec<f32>, Option<Vec<f32>>) {
        let model = self.model;
        let a = model.architecture();
        let h = if wants_final || self.pass.interventions.iter().any(|i| i.site.kind == SiteKind::FinalNorm) {
            let mut all = self.norm(&model.final_norm, x);
            self.visit(a.layers - 1, SiteKind::FinalNorm, a.width, &mut all);
            gather(&all, &self.logit_rows, a.width)
        } else {
            self.norm(&model.final_norm, &gather(x, &self.logit_rows, a.width))
        };
        let mut logits = model.head_times(&h);
        let head = &model.head;
        let batch =
            self.spans.iter().zip(&self.pass.sequences).map(|((rows, _), s)| (rows.clone(), s.overlays));
        let runs = picked_runs(&overlay_runs(batch), &self.logit_rows);
        add_overlays(model, head, &runs, &h, &mut logits);
        let mut before = None;
        if a.logit_soft_cap.is_some() {
            before = self.pass.record.then(|| logits.clone());
            model.cap(&mut logits);
        }
        (logits, if self.pass.record { h } else { vec![] }, before)
    }

    fn norm(&mut self, weights: &NormWeights, x: &[f32]) -> Vec<f32> {
        let mut out = self.spare.take(x.len());
        norm::forward(self.model.isa(), weights, x, &mut out);
        out
    }

    /// What is kept for a backward pass; else the next layer gets the buffer.
    fn done_with(&mut self, buffer: Vec<f32>) -> Option<Vec<f32>> {
        if self.pass.record {
            return Some(buffer);
        }
        self.spare.give(buffer);
        None
    }

    /// Applies the interventions at a site, then its reads.
    fn visit(&mut self, layer: usize, kind: SiteKind, width: usize, rows: &mut [f32]) {
        let site = Site { layer, kind };
        for i in self.pass.interventions.iter().filter(|i| i.site == site) {
            for (n, &r) in i.rows.iter().enumerate() {
                let row = &mut rows[r * width..(r + 1) * width];
                match &i.action {
                    Action::Replace(v) => row.copy_from_slice(&v[n * width..(n + 1) * width]),
                    Action::Add(v) => {
                        for (x, d) in row.iter_mut().zip(&v[n * width..(n + 1) * width]) {
                            *x += d;
                        }
                    }
                    Action::Scale(s) => row.iter_mut().for_each(|x| *x *= s),
                    Action::With(f) => f(row),
                }
            }
        }
        for (read, into) in self.pass.reads.iter().zip(&mut self.reads) {
            if read.site == site {
                match &read.rows {
                    None => into.extend_from_slice(rows),
                    Some(wanted) => {
                        for &r in wanted {
                            into.extend_from_slice(&rows[r * width..(r + 1) * width]);
                        }
                    }
                }
            }
        }
    }
}
