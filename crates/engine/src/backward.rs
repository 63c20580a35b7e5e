//! The backward pass: from logits or sites down to the lowest thing that is wanted.
//!
//! Weights are frozen, so the pass carries gradients of activations only. The gradient of a
//! weight is `dyᵀ · x` of its [`Pair`]; methods that need more (MEND, LoRA, UltraEdit) start
//! from the pair itself.

use crate::architecture::{Mlp, ResidualForm, Role};
use crate::error::{Error, Result};
use crate::forward::{LayerTape, Tape, shape_of};
use crate::kernels::attention::{self, View};
use crate::kernels::gemm;
use crate::kernels::{activation, norm};
use crate::model::{Linear, Model};
use crate::overlay::{OverlayRun, WeightId, overlay_runs, picked_runs};
use crate::rows::{add, gather};
use crate::site::{Action, Read, Site, SiteKind};
use crate::validate;

/// Where gradients come from and which are wanted.
#[derive(Debug, Default)]
pub struct Wants {
    /// `∂loss/∂logits` of the rows that got logits, `[rows, v]`; empty for none.
    pub logits: Vec<f32>,
    /// Gradients that enter at sites: each the rows and their values.
    pub seeds: Vec<(Read, Vec<f32>)>,
    /// Sites whose gradient is wanted (after any intervention there: for an added vector it is
    /// that vector's gradient).
    pub sites: Vec<Read>,
    /// Linear maps whose input and output gradient are wanted.
    pub pairs: Vec<WeightId>,
}

/// Input of a linear map and gradient of its output, for the same rows: `∂W = dyᵀ · x`.
#[derive(Debug, Clone, Default)]
pub struct Pair {
    /// `[rows, in]`.
    pub x: Vec<f32>,
    /// `[rows, out]`.
    pub dy: Vec<f32>,
}

/// What a backward pass gives, in the order of the wants.
#[derive(Debug)]
pub struct Gradients {
    /// One entry per wanted site, `[rows, width]`.
    pub sites: Vec<Vec<f32>>,
    /// One entry per wanted linear map.
    pub pairs: Vec<Pair>,
}

impl Pair {
    /// `∂loss/∂W = dyᵀ · x`, `[out, in]`.
    ///
    /// # Shapes
    /// `rows` is the number of rows of both: those of the pass, for the head those that got logits.
    pub fn weight_gradient(&self, model: &Model, rows: usize) -> Vec<f32> {
        let (out, inn) = (self.dy.len() / rows.max(1), self.x.len() / rows.max(1));
        // Rows of dyᵀ times x: x packed with the batch as depth.
        let mut dyt = vec![0.0; self.dy.len()];
        for r in 0..rows {
            for o in 0..out {
                dyt[o * rows + r] = self.dy[r * out + o];
            }
        }
        let x = crate::checkpoint::Matrix::from_f32(rows, inn, &self.x);
        let packed = crate::kernels::pack::Packed::transposed(&x, crate::kernels::pack::Storage::F32);
        model.install(|| gemm::multiply(model.isa(), &dyt, out, &packed))
    }
}

impl Model {
    /// Runs the backward pass of a recorded forward pass.
    ///
    /// # Errors
    /// Where the gradient would have to pass an [`Action::With`], a wanted place or a seed is
    /// outside the recorded layers or rows, a seed has another size than its rows, the model has
    /// no such linear map, or the head's pair is wanted without a gradient of the logits.
    pub fn backward(&self, tape: &Tape<'_>, wants: &Wants) -> Result<Gradients> {
        self.install(|| Back::new(self, tape, wants)?.run())
    }
}

struct Back<'a, 't> {
    model: &'a Model,
    tape: &'a Tape<'t>,
    wants: &'a Wants,
    rows: usize,
    lowest: (usize, SiteKind),
    out: Gradients,
}

impl<'a, 't> Back<'a, 't> {
    fn new(model: &'a Model, tape: &'a Tape<'t>, wants: &'a Wants) -> Result<Self> {
        let rows = tape.batch.last().map_or(0, |s| s.rows.end);
        validate::wants(model, tape, wants, rows)?;
        let places =
            wants.sites.iter().map(|r| (r.site.layer, r.site.kind)).chain(
                wants.pairs.iter().filter(|p| p.role != Role::Head).map(|p| (p.layer, site_of(p.role))),
            );
        let lowest = places.min().unwrap_or((usize::MAX, SiteKind::FinalNorm));
        let out = Gradients {
            sites: vec![vec![]; wants.sites.len()],
            pairs: vec![Pair::default(); wants.pairs.len()],
        };
        Ok(Self { model, tape, wants, rows, lowest, out })
    }

    fn run(mut self) -> Result<Gradients> {
        let a = self.model.architecture();
        let mut dx = vec![0.0; self.rows * a.width];
        self.head(&mut dx)?;
        for (i, tape) in self.tape.layers.iter().enumerate().rev() {
            let l = self.tape.first_layer + i;
            if l < self.lowest.0 || self.lowest.0 == usize::MAX {
                break;
            }
            self.layer(l, tape, &mut dx)?;
        }
        Ok(self.out)
    }

    /// Head and final norm: `dx` becomes the gradient of what leaves the last layer.
    fn head(&mut self, dx: &mut [f32]) -> Result<()> {
        let model = self.model;
        let a = model.architecture();
        let rows = &self.tape.logit_rows;
        let dh = if self.wants.logits.is_empty() { None } else { Some(self.head_input()?) };
        let last = Site::new(a.layers - 1, SiteKind::FinalNorm);
        if self.touched(last) {
            let mut all = vec![0.0; self.rows * a.width];
            if let Some(dh) = dh {
                scatter(&dh, rows, a.width, &mut all);
            }
            self.visit(last, &mut all)?;
            // The tape holds the rows that leave the last layer run, which may be another.
            if self.tape.first_layer + self.tape.layers.len() == a.layers {
                add(dx, &norm::backward(model.isa(), &model.final_norm, &self.tape.last_hidden, &all));
            }
        } else if let Some(dh) = dh {
            let x = gather(&self.tape.last_hidden, rows, a.width);
            scatter(&norm::backward(model.isa(), &model.final_norm, &x, &dh), rows, a.width, dx);
        }
        Ok(())
    }

    /// Gradient of what the head read, for the rows that got logits.
    fn head_input(&mut self) -> Result<Vec<f32>> {
        let model = self.model;
        let a = model.architecture();
        let rows = &self.tape.logit_rows;
        let mut dlogits = std::borrow::Cow::Borrowed(&self.wants.logits);
        if let (Some(cap), Some(raw)) = (a.logit_soft_cap, &self.tape.logits_scaled) {
            for (d, x) in dlogits.to_mut().iter_mut().zip(raw) {
                let t = (x / cap).tanh();
                *d *= 1.0 - t * t;
            }
        }
        self.pair(&model.head, &self.tape.head_in, &dlogits);
        let batch = self.tape.batch.iter().map(|s| (s.rows.clone(), s.overlays));
        let runs = picked_runs(&overlay_runs(batch), rows);
        through(model, &model.head, &dlogits, rows.len(), &runs)
    }

    /// Whether nothing below `kind` of this layer is wanted.
    fn done_above(&self, l: usize, kind: SiteKind) -> bool {
        self.lowest >= (l, kind)
    }

    /// One layer: `dx` enters as the gradient of its output, and leaves as that of its input.
    fn layer(&mut self, l: usize, tape: &LayerTape, dx: &mut Vec<f32>) -> Result<()> {
        let model = self.model;
        let a = model.architecture();
        let isa = model.isa();
        let layer = &model.layers[l];
        self.visit(Site::new(l, SiteKind::Residual), dx)?;
        if self.done_above(l, SiteKind::Residual) {
            return Ok(());
        }

        let mut dmlp = match (&layer.mlp_post_norm, &tape.mlp_out) {
            (Some(post), Some(x)) => norm::backward(isa, post, x, dx),
            _ => dx.clone(),
        };
        self.visit(Site::new(l, SiteKind::MlpOut), &mut dmlp)?;
        self.pair(&layer.mlp_out, &tape.key, &dmlp);
        if self.done_above(l, SiteKind::MlpOut) {
            return Ok(());
        }
        let mut dkey = self.through(&layer.mlp_out, &dmlp)?;
        self.visit(Site::new(l, SiteKind::MlpKey), &mut dkey)?;
        if self.done_above(l, SiteKind::MlpKey) {
            return Ok(());
        }
        let (Mlp::Gated(act) | Mlp::Plain(act)) = a.mlp;
        let f = a.mlp_width;
        let mut dmlp_in = match (&layer.gate, &tape.gate) {
            (Some(gate), Some(g)) => {
                let (dg, du) = activation::backward(isa, act, g, Some(&tape.up), &dkey, f);
                let du = du.expect("an up projection was given");
                self.pair(gate, &tape.mlp_in, &dg);
                self.pair(&layer.up, &tape.mlp_in, &du);
                let mut d = self.through(gate, &dg)?;
                add(&mut d, &self.through(&layer.up, &du)?);
                d
            }
            _ => {
                let (du, _) = activation::backward(isa, act, &tape.up, None, &dkey, f);
                self.pair(&layer.up, &tape.mlp_in, &du);
                self.through(&layer.up, &du)?
            }
        };
        self.visit(Site::new(l, SiteKind::MlpIn), &mut dmlp_in)?;
        if self.done_above(l, SiteKind::MlpIn) {
            return Ok(());
        }

        let mut dattended = dx.clone();
        let mut dshared = None;
        match (&layer.mlp_norm, &tape.middle) {
            (Some(n), Some(middle)) if a.residual == ResidualForm::Sequential => {
                add(dx, &norm::backward(isa, n, middle, &dmlp_in));
                dattended.clone_from(dx);
            }
            (Some(n), _) => add(dx, &norm::backward(isa, n, &tape.input, &dmlp_in)),
            (None, _) => dshared = Some(dmlp_in),
        }
        if let (Some(post), Some(x)) = (&layer.attention_post_norm, &tape.attention_out) {
            dattended = norm::backward(isa, post, x, &dattended);
        }
        self.visit(Site::new(l, SiteKind::AttentionOut), &mut dattended)?;
        self.pair(&layer.attention_out, &tape.context, &dattended);
        if self.done_above(l, SiteKind::AttentionOut) {
            return Ok(());
        }
        let mut dcontext = self.through(&layer.attention_out, &dattended)?;
        self.visit(Site::new(l, SiteKind::AttentionKey), &mut dcontext)?;
        let shape = shape_of(model, l);
        let views: Vec<View<'_>> = self
            .tape
            .batch
            .iter()
            .zip(&tape.segments)
            .map(|(s, own)| {
                let past = s.past.filter(|p| !p.is_empty()).map(|p| &p.layers[l]);
                View {
                    rows: s.rows.clone(),
                    position: s.position,
                    segments: past.into_iter().chain([own]).collect(),
                }
            })
            .collect();
        let mut d = attention::backward(isa, &shape, &tape.query, &views, &dcontext);
        if let Some(table) = self.tape.tables.at(shape.window.is_some()) {
            table.rotate_back(&mut d.queries, a.head_width);
            table.rotate_back(&mut d.keys, a.head_width);
        }
        if let (Some(qn), Some(kn)) = (&layer.query_norm, &layer.key_norm) {
            let (q, k) = (tape.query_raw.as_ref(), tape.key_raw.as_ref());
            d.queries = norm::backward(isa, qn, q.expect("kept with the norm"), &d.queries);
            d.keys = norm::backward(isa, kn, k.expect("kept with the norm"), &d.keys);
        }
        self.visit(Site::new(l, SiteKind::Value), &mut d.values)?;
        self.visit(Site::new(l, SiteKind::Key), &mut d.keys)?;
        self.visit(Site::new(l, SiteKind::Query), &mut d.queries)?;
        let mut dh = vec![0.0; dx.len()];
        for (linear, dy) in [(&layer.query, &d.queries), (&layer.key, &d.keys), (&layer.value, &d.values)] {
            self.pair(linear, &tape.attention_in, dy);
            add(&mut dh, &self.through(linear, dy)?);
        }
        self.visit(Site::new(l, SiteKind::AttentionIn), &mut dh)?;
        if let Some(d) = dshared {
            add(&mut dh, &d);
        }
        add(dx, &norm::backward(isa, &layer.attention_norm, &tape.input, &dh));
        self.visit(Site::new(l, SiteKind::Input), dx)
    }

    /// `dy · W`, with the patches of each sequence.
    fn through(&self, linear: &Linear, dy: &[f32]) -> Result<Vec<f32>> {
        let runs = overlay_runs(self.tape.batch.iter().map(|s| (s.rows.clone(), s.overlays)));
        through(self.model, linear, dy, self.rows, &runs)
    }

    fn pair(&mut self, linear: &Linear, x: &[f32], dy: &[f32]) {
        for (want, pair) in self.wants.pairs.iter().zip(&mut self.out.pairs) {
            if want.role == linear.role && want.layer == linear.layer {
                *pair = Pair { x: x.to_vec(), dy: dy.to_vec() };
            }
        }
    }

    fn touched(&self, site: Site) -> bool {
        self.tape.interventions.iter().any(|i| i.site == site)
            || self.wants.sites.iter().any(|r| r.site == site)
            || self.wants.seeds.iter().any(|(r, _)| r.site == site)
    }

    /// Adds seeds, hands out the gradient of a site, then takes it back through interventions.
    fn visit(&mut self, site: Site, d: &mut [f32]) -> Result<()> {
        let width = site.kind.width(self.model.architecture());
        for (read, values) in self.wants.seeds.iter().filter(|(r, _)| r.site == site) {
            match &read.rows {
                None => add(d, values),
                Some(rows) => scatter(values, rows, width, d),
            }
        }
        for (want, into) in self.wants.sites.iter().zip(&mut self.out.sites).filter(|(w, _)| w.site == site) {
            match &want.rows {
                None => into.extend_from_slice(d),
                Some(rows) => {
                    for &r in rows {
                        into.extend_from_slice(&d[r * width..(r + 1) * width]);
                    }
                }
            }
        }
        for i in self.tape.interventions.iter().rev().filter(|i| i.site == site) {
            for &r in &i.rows {
                let row = &mut d[r * width..(r + 1) * width];
                match &i.action {
                    Action::Replace(_) => row.fill(0.0),
                    Action::Add(_) => {}
                    Action::Scale(s) => row.iter_mut().for_each(|x| *x *= s),
                    Action::With(_) => {
                        return Err(Error::input(format!(
                            "the function applied at {site:?} has no gradient"
                        )));
                    }
                }
            }
        }
        Ok(())
    }
}

/// `dy · W` of `m` rows, with the patches of their runs.
fn through(
    model: &Model,
    linear: &Linear,
    dy: &[f32],
    m: usize,
    runs: &[OverlayRun<'_>],
) -> Result<Vec<f32>> {
    let packed = model.backward_of(linear)?;
    let mut dx = gemm::multiply(model.isa(), dy, m, packed);
    model.count(linear, m);
    let (out, inn) = (linear.forward.n, linear.forward.depth);
    let id = WeightId { layer: linear.layer, role: linear.role };
    for OverlayRun { rows: r, overlays } in runs {
        for delta in overlays.iter().flat_map(|o| o.at(id)) {
            let (dy, dx) = (&dy[r.start * out..r.end * out], &mut dx[r.start * inn..r.end * inn]);
            delta.add_backward(model.isa(), dy, r.len(), dx);
        }
    }
    Ok(dx)
}

/// The site at which the output gradient of a role's linear map is known.
fn site_of(role: Role) -> SiteKind {
    match role {
        Role::MlpOut => SiteKind::MlpOut,
        Role::MlpGate | Role::MlpUp => SiteKind::MlpIn,
        Role::AttentionOut => SiteKind::AttentionOut,
        Role::Query | Role::Key | Role::Value => SiteKind::AttentionIn,
        _ => SiteKind::Input,
    }
}

/// Adds compact rows to their places.
fn scatter(from: &[f32], rows: &[usize], width: usize, to: &mut [f32]) {
    for (n, &r) in rows.iter().enumerate() {
        add(&mut to[r * width..(r + 1) * width], &from[n * width..(n + 1) * width]);
    }
}
