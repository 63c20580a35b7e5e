//! The backward pass: from logits or sites down to the lowest thing that is wanted.
//!
//! Weights are frozen, so the pass carries gradients of activations only. The gradient of a
//! weight is `dyᵀ · x` of its [`Pair`]; methods that need more (MEND, LoRA, UltraEdit) start
//! from the pair itself.

use crate::architecture::{Mlp, ResidualForm, Role};
use crate::error::{Error, Result};
use crate::forward::{LayerTape, Tape, add, overlay_runs, shape_of};
use crate::kernels::attention::{self, View};
use crate::kernels::gemm::{self, Product, rows_times};
use crate::kernels::{activation, norm};
use crate::model::{Linear, Model};
use crate::overlay::WeightId;
use crate::site::{Action, Read, Site, SiteKind};

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
    /// `rows` is the number of rows of both.
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
    /// Where the gradient would have to pass an [`Action::With`], a wanted place is outside the
    /// recorded layers, or a seed has another size than its rows.
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
        let last = tape.first_layer + tape.layers.len();
        let places =
            wants.sites.iter().map(|r| (r.site.layer, r.site.kind)).chain(
                wants.pairs.iter().filter(|p| p.role != Role::Head).map(|p| (p.layer, site_of(p.role))),
            );
        let lowest = places.clone().min().unwrap_or((usize::MAX, SiteKind::FinalNorm));
        if let Some((layer, _)) = places.clone().find(|(l, _)| !(tape.first_layer..last).contains(l)) {
            return Err(Error::input(format!(
                "a gradient at layer {layer} is outside the recorded layers {} to {}",
                tape.first_layer,
                last.saturating_sub(1)
            )));
        }
        for (read, values) in &wants.seeds {
            let n = read.rows.as_ref().map_or(rows, Vec::len);
            let expected = n * read.site.kind.width(model.architecture());
            if values.len() != expected {
                return Err(Error::input(format!(
                    "a seed has {} numbers, expected {expected}",
                    values.len()
                )));
            }
        }
        let expected = tape.logit_rows.len() * model.architecture().vocabulary;
        if !wants.logits.is_empty() && wants.logits.len() != expected {
            return Err(Error::input(format!(
                "the gradient of the logits has {} numbers, expected {expected}",
                wants.logits.len()
            )));
        }
        let out = Gradients {
            sites: vec![vec![]; wants.sites.len()],
            pairs: vec![Pair::default(); wants.pairs.len()],
        };
        Ok(Self { model, tape, wants, rows, lowest, out })
    }

    fn run(mut self) -> Result<Gradients> {
        let a = self.model.architecture();
        let mut dx = vec![0.0; self.rows * a.width];
        if !self.wants.logits.is_empty() {
            self.head(&mut dx)?;
        }
        for (i, tape) in self.tape.layers.iter().enumerate().rev() {
            let l = self.tape.first_layer + i;
            if l < self.lowest.0 || self.lowest.0 == usize::MAX {
                break;
            }
            self.layer(l, tape, &mut dx)?;
        }
        Ok(self.out)
    }

    fn head(&mut self, dx: &mut [f32]) -> Result<()> {
        let model = self.model;
        let a = model.architecture();
        let m = self.tape.logit_rows.len();
        let mut dlogits = std::borrow::Cow::Borrowed(&self.wants.logits);
        if let (Some(cap), Some(raw)) = (a.logit_soft_cap, &self.tape.logits_scaled) {
            for (d, x) in dlogits.to_mut().iter_mut().zip(raw) {
                let t = (x / cap).tanh();
                *d *= 1.0 - t * t;
            }
        }
        let normed = || norm::forward(model.isa(), &model.final_norm, &self.tape.last_hidden);
        for (want, pair) in self.wants.pairs.iter().zip(&mut self.out.pairs) {
            if want.role == Role::Head {
                *pair = Pair { x: normed(), dy: dlogits.to_vec() };
            }
        }
        let packed = model.backward_of(&model.head)?;
        let mut dh = vec![0.0; m * a.width];
        rows_times(
            model.isa(),
            &dlogits,
            m,
            &mut [Product { matrix: packed, bias: None, out: &mut dh }],
            false,
        );
        let last = Site::new(a.layers - 1, SiteKind::FinalNorm);
        if self.touched(last) {
            let mut all = vec![0.0; self.rows * a.width];
            scatter(&dh, &self.tape.logit_rows, a.width, &mut all);
            self.visit(last, &mut all)?;
            dh = self
                .tape
                .logit_rows
                .iter()
                .flat_map(|&r| all[r * a.width..(r + 1) * a.width].to_vec())
                .collect();
        }
        let d = norm::backward(model.isa(), &model.final_norm, &self.tape.last_hidden, &dh);
        scatter(&d, &self.tape.logit_rows, a.width, dx);
        Ok(())
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
        let mut dinput_norm = None;
        match (&layer.mlp_norm, &tape.middle) {
            (Some(n), Some(middle)) if a.residual == ResidualForm::Sequential => {
                add(dx, &norm::backward(isa, n, middle, &dmlp_in));
                dattended.clone_from(dx);
            }
            (Some(n), _) => add(dx, &norm::backward(isa, n, &tape.input, &dmlp_in)),
            (None, _) => dinput_norm = Some(dmlp_in),
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
        let mut dh = dinput_norm.unwrap_or_else(|| vec![0.0; dx.len()]);
        for (linear, dy) in [(&layer.query, &d.queries), (&layer.key, &d.keys), (&layer.value, &d.values)] {
            self.pair(linear, &tape.attention_in, dy);
            add(&mut dh, &self.through(linear, dy)?);
        }
        self.visit(Site::new(l, SiteKind::AttentionIn), &mut dh)?;
        add(dx, &norm::backward(isa, &layer.attention_norm, &tape.input, &dh));
        self.visit(Site::new(l, SiteKind::Input), dx)
    }

    /// `dy · W`, with the patches of each sequence.
    fn through(&self, linear: &Linear, dy: &[f32]) -> Result<Vec<f32>> {
        let packed = self.model.backward_of(linear)?;
        let mut dx = gemm::multiply(self.model.isa(), dy, self.rows, packed);
        let (out, inn) = (linear.forward.n, linear.forward.depth);
        let id = WeightId { layer: linear.layer, role: linear.role };
        for run in overlay_runs(self.tape.batch.iter().map(|s| (s.rows.clone(), s.overlays))) {
            for delta in run.overlays.iter().flat_map(|o| o.at(id)) {
                let r = &run.rows;
                delta.add_backward(
                    self.model.isa(),
                    &dy[r.start * out..r.end * out],
                    r.len(),
                    &mut dx[r.start * inn..r.end * inn],
                );
            }
        }
        Ok(dx)
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
