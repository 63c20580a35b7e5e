//! Editors that are trained once: networks that make a change of weights of the inputs and
//! gradients that a fact gives (MEND, arXiv 2110.11309; MALMEN, arXiv 2311.04661).
//!
//! The gradient of the change's own loss goes back through the change in its factors: a dense
//! gradient of a weight is never formed.

mod network;
mod store;
#[cfg(test)]
mod tests;
pub mod training;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use faer::{Mat, MatRef};
use mutandis_engine::backward::Pair;
use mutandis_engine::{Model, WeightId};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::answers::{Answers, Example};
use super::cholesky::add_product;
use super::grad_pairs::{grad_pairs, written};
use super::normaliser::Running;
use super::solver::{Hold, System};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::method::Job;
use crate::patch::{EDITOR, Patch, SearchInfo, WeightChange};
use network::{Size, Trace};
pub use store::{About, about};

/// Settings of an edit with a trained editor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
pub struct Settings {
    /// The editor's file; where absent, where `mutandis train` puts it.
    pub editor: Option<PathBuf>,
    /// What the editor's change is multiplied by.
    pub scale: f32,
    /// Facts of one change; all at once where absent. Changes are added up.
    pub turn: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { editor: None, scale: 1.0, turn: None }
    }
}

/// How a method's editor is trained.
#[derive(Debug, Clone, Copy)]
pub struct Trainer {
    /// What a change is made of.
    pub rule: Rule,
    /// Settings of the training.
    pub settings: fn() -> training::Settings,
}

/// Where the editor of a method for a model is kept, unless a file is named.
///
/// # Errors
/// Where the model cannot be hashed.
pub fn place(cache: &Path, model: &Model, method: &str) -> Result<PathBuf> {
    let base = model.fingerprint()?;
    Ok(cache.join("editors").join(format!("{}-{method}.safetensors", &base[..16.min(base.len())])))
}

/// The file of the editor to be used: the one that is named, or else the usual one.
///
/// # Errors
/// Where neither is there.
pub(crate) fn file(named: Option<PathBuf>, model: &Model, method: &str, cx: &Context<'_>) -> Result<PathBuf> {
    let usual = cx.cache.as_deref().map(|cache| place(cache, model, method)).transpose()?;
    named.or(usual.filter(|path| path.exists())).ok_or_else(|| {
        Error::input_hint(
            format!("`{method}` needs an editor that was trained for this model"),
            format!("`mutandis train {method} --data FILE` trains one and keeps it where it is found; the setting \
                     `editor` names another"),
        )
    })
}

impl Settings {
    /// Checks what no type does.
    ///
    /// # Errors
    /// Names the setting that is out of range.
    pub fn check(&self) -> Result<()> {
        if !self.scale.is_finite() {
            let what = format!("`scale` is {}, expected a number", self.scale);
            return Err(Error::input_hint(what, "leave it out for 1"));
        }
        if self.turn == Some(0) {
            let hint = "leave it out: all facts at once";
            return Err(Error::input_hint("`turn` is 0, expected 1 or more", hint));
        }
        Ok(())
    }
}

/// Lets a trained editor make the change, and fills the patch.
///
/// # Errors
/// Where there is no editor, it is for another method or model, or a fact does not fit.
pub fn edit(settings: &Settings, job: &Job<'_>, cx: &Context<'_>, patch: &mut Patch) -> Result<()> {
    let model = job.model;
    let path = file(settings.editor.clone(), model, &patch.method, cx)?;
    let editor = store::load_for(&path, &patch.method, model)?;
    patch.source(EDITOR, &path)?;
    let ids: Vec<WeightId> = editor.weights.iter().map(|(id, _)| *id).collect();
    let lowest = ids.iter().map(|id| id.layer).min().unwrap_or(0);
    let facts = job.facts.iter().map(|fact| Example::answer(model, fact, false));
    let examples = facts.collect::<Result<Vec<_>>>()?;
    let answers = Answers::new(model, job.stack, &examples, lowest)?;
    let all: Vec<usize> = (0..examples.len()).collect();
    let mut changes: Vec<Option<WeightChange>> = vec![None; ids.len()];
    cx.progress.begin("writing facts", examples.len());
    for facts in all.chunks(settings.turn.unwrap_or(all.len())) {
        cx.check()?;
        let found = grad_pairs(model, &answers, facts, &ids, job.stack)?;
        for (i, sum) in changes.iter_mut().enumerate() {
            let more = editor.change(i, &found.pairs[i])?.scaled(settings.scale);
            *sum = Some(match sum.take() {
                Some(sum) => sum.plus(&more),
                None => more,
            });
        }
        cx.progress.step(facts.last().map_or(0, |i| i + 1));
    }
    cx.progress.end();
    patch.search = vec![SearchInfo { steps: 1, ..SearchInfo::default() }; examples.len()];
    let losses = answers.stand(&written(&ids, &changes)?, job.stack)?;
    patch.search.iter_mut().zip(&losses).for_each(|(info, loss)| info.see(loss));
    for (id, change) in ids.into_iter().zip(changes) {
        if let Some(change) = change {
            patch.push(model, id, change)?;
        }
    }
    Ok(())
}

/// What is said where the head is to be changed by what is seen at it.
pub(super) fn no_head() -> Error {
    Error::input_hint(
        "`modules` has `head`, expected weights of layers: the head is run at an answer's rows alone",
        "`ft-m` and `lora` train the head",
    )
}

/// What a change is made of, once inputs and gradients have been through the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// ΔW = −α Σ δ̃ x̃ᵀ (MEND, eq. 5). DIFFERENCE: published code adds with a rate that may turn
    /// negative; here it descends from the start, and the rate is trained as a logarithm.
    Sum,
    /// ΔW = Vᵀ (K Kᵀ + λI)⁻¹ K with vₜ = −η (xₜ·x̃ₜ) δ̃ₜ, rows of K the inputs as they are (MALMEN,
    /// eq. 4 and 6).
    LeastSquares,
}

/// How an editor is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Shape {
    /// Rule.
    pub(super) rule: Rule,
    /// Rank of the networks' blocks.
    pub(super) rank: usize,
    /// Blocks.
    pub(super) blocks: usize,
}

/// Networks, statistics and rates for some weights of one model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Editor {
    pub(super) rule: Rule,
    pub(super) weights: Vec<(WeightId, [usize; 2])>,
    pub(super) shared: BTreeMap<[usize; 2], Shared>,
    /// Logarithm of α or η, by weight.
    pub(super) rates: Vec<f32>,
    /// Logarithm of λ, by weight.
    pub(super) ridges: Vec<f32>,
}

/// What weights of one shape share.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shared {
    size: Size,
    numbers: Vec<f32>,
    /// Of inputs and gradients side by side.
    pub(super) statistics: Running,
}

/// Gradients of all that is trained.
#[derive(Debug, Clone)]
pub(super) struct Slopes {
    pub(super) shared: BTreeMap<[usize; 2], Vec<f64>>,
    pub(super) rates: Vec<f64>,
    pub(super) ridges: Vec<f64>,
}

/// What the way back through one change needs.
pub(super) struct Made {
    weight: usize,
    trace: Trace,
    /// Inputs `[n, in]`, as they are.
    inputs: Vec<f64>,
    /// x̃ and δ̃ side by side, `[n, in + out]`.
    better: Vec<f64>,
    /// The factor of the change on the side of its input, `[n, in]`.
    right: Vec<f64>,
}

/// Rows that go through a network at once where there is no way back.
const ROWS: usize = 256;

impl Editor {
    /// Before training: networks are the identity.
    ///
    /// # Errors
    /// Where a rank is 0 or above what a weight has.
    pub(super) fn new(shape: Shape, weights: Vec<(WeightId, [usize; 2])>, seed: u64) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut shared = BTreeMap::new();
        for &(_, of) in &weights {
            let width = of[0] + of[1];
            if shape.rank == 0 || shape.rank > width {
                return Err(Error::input_hint(
                    format!("`rank` is {}, expected 1 to {width}", shape.rank),
                    "set it lower with `--set rank=N`: it is at most the width of what the network reads",
                ));
            }
            let size = Size {
                width,
                rank: shape.rank,
                blocks: shape.blocks,
                weights: weights.iter().filter(|(_, other)| *other == of).count(),
                rectify_last: shape.rule == Rule::LeastSquares,
            };
            shared.entry(of).or_insert_with(|| Shared {
                size,
                numbers: network::identity(&size, &mut rng),
                statistics: Running::new(width, false),
            });
        }
        let count = weights.len();
        Ok(Self { rule: shape.rule, weights, shared, rates: vec![0.0; count], ridges: vec![0.0; count] })
    }

    /// Gradients of zero.
    pub(super) fn slopes(&self) -> Slopes {
        Slopes {
            shared: self.shared.iter().map(|(shape, s)| (*shape, vec![0.0; s.numbers.len()])).collect(),
            rates: vec![0.0; self.rates.len()],
            ridges: vec![0.0; self.ridges.len()],
        }
    }

    /// Adds rows to the statistics.
    pub(super) fn see(&mut self, pairs: &[Pair]) {
        for (pair, (_, shape)) in pairs.iter().zip(&self.weights) {
            let rows = side_by_side(pair, *shape);
            if let Some(shared) = self.shared.get_mut(shape) {
                shared.statistics.add(&rows);
            }
        }
    }

    /// Sets the rates so that before training a row moves by `step` times the energy of its
    /// normalised input against its normalised gradient, and λ to `ridge` times the inputs' mean
    /// energy: what UltraEdit does untrained.
    pub(super) fn start(&mut self, step: f64, ridge: f64) {
        for (i, (_, shape)) in self.weights.iter().enumerate() {
            let statistics = &self.shared[shape].statistics;
            let [_, inn] = *shape;
            // E[x·x̂] is the sum of the deviations, E[x̂·x̂] their number.
            let rate = step * inn as f64 / statistics.deviations()[..inn].iter().sum::<f64>();
            let energy = statistics.energy_of(0..inn);
            (self.rates[i], self.ridges[i]) = (rate.ln() as f32, (ridge * energy).ln() as f32);
        }
    }

    /// The network's place of a weight among those that share it.
    fn place(&self, weight: usize) -> usize {
        let shape = self.weights[weight].1;
        self.weights[..weight].iter().filter(|(_, other)| *other == shape).count()
    }

    /// Rows less their mean over their deviation, those left out whose input or gradient is zero:
    /// inputs as they are `[n, in]`, and both normalised `[n, in + out]`.
    fn normalised(&self, weight: usize, pair: &Pair) -> (Vec<f64>, Vec<f64>) {
        let shape = self.weights[weight].1;
        let statistics = &self.shared[&shape].statistics;
        let (mut inputs, mut rows) = (vec![], vec![]);
        for row in side_by_side(pair, shape).chunks_exact(shape[0] + shape[1]) {
            inputs.extend(row[..shape[1]].iter().map(|x| f64::from(*x)));
            rows.extend(statistics.normalised(row, true));
        }
        (inputs, rows)
    }

    /// The change of one weight.
    ///
    /// # Errors
    /// Where the least-squares system is singular.
    pub(super) fn change(&self, weight: usize, pair: &Pair) -> Result<WeightChange> {
        let shape = self.weights[weight].1;
        let Shared { size, numbers, .. } = &self.shared[&shape];
        let (inputs, rows) = self.normalised(weight, pair);
        let place = self.place(weight);
        let through = |rows: &[f64]| network::forward(size, numbers, place, rows.to_vec()).0;
        let better: Vec<f64> = rows.chunks(ROWS * size.width).flat_map(through).collect();
        let (left, right) = self.factors(weight, &inputs, &better)?;
        Ok(low_rank(shape, &left, &right))
    }

    /// As [`Self::change`], with what the way back needs.
    ///
    /// # Errors
    /// As [`Self::change`].
    pub(super) fn make(&self, weight: usize, pair: &Pair) -> Result<(WeightChange, Made)> {
        let shape = self.weights[weight].1;
        let Shared { size, numbers, .. } = &self.shared[&shape];
        let (inputs, rows) = self.normalised(weight, pair);
        let (better, trace) = network::forward(size, numbers, self.place(weight), rows);
        let (left, right) = self.factors(weight, &inputs, &better)?;
        let change = low_rank(shape, &left, &right);
        Ok((change, Made { weight, trace, inputs, better, right }))
    }

    /// The change as `leftᵀ · right`, `[n, out]` and `[n, in]`.
    fn factors(&self, weight: usize, inputs: &[f64], better: &[f64]) -> Result<(Vec<f64>, Vec<f64>)> {
        let [out, inn] = self.weights[weight].1;
        let rate = f64::from(self.rates[weight]).exp();
        let mut left = Vec::with_capacity(better.len() / (out + inn) * out);
        match self.rule {
            Rule::Sum => {
                let mut right = Vec::with_capacity(inputs.len());
                for row in better.chunks_exact(out + inn) {
                    right.extend_from_slice(&row[..inn]);
                    left.extend(row[inn..].iter().map(|x| -rate * x));
                }
                Ok((left, right))
            }
            Rule::LeastSquares => {
                for (x, row) in inputs.chunks_exact(inn).zip(better.chunks_exact(out + inn)) {
                    let along = dot(x, &row[..inn]);
                    left.extend(row[inn..].iter().map(|g| -rate * along * g));
                }
                let hold = Hold::Ridge(f64::from(self.ridges[weight]).exp());
                if inputs.is_empty() {
                    return Ok((left, vec![]));
                }
                let system = System { f: inn, keys: inputs, past: &[], past_weight: 0.0, hold, slack: 1.0 };
                Ok((left, system.solve()?.right))
            }
        }
    }

    /// Adds the gradients of all that is trained, given inputs `[m, in]` and gradients `[m, out]`
    /// of the changed weight in the pass that the loss is of.
    pub(super) fn back(&self, made: &Made, after: &Pair, slopes: &mut Slopes) {
        let shape = self.weights[made.weight].1;
        let [out, inn] = shape;
        let (n, m) = (made.inputs.len() / inn, after.x.len() / inn);
        let wide = |v: &[f32]| v.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
        let (x, dy) = (wide(&after.x), wide(&after.dy));
        // All matrices lie with one row of what they are of in each column.
        let (x, dy) = (columns(&x, inn, m), columns(&dy, out, m));
        let rate = f64::from(self.rates[made.weight]).exp();
        let of = |from: usize, to: usize| -> Vec<f64> {
            made.better.chunks_exact(inn + out).flat_map(|row| row[from..to].iter().copied()).collect()
        };
        let (better_x, better_dy) = (of(0, inn), of(inn, inn + out));
        let mut gradient = vec![0.0; made.better.len()];
        match self.rule {
            Rule::Sum => {
                // δ̃·dy and x̃·x, [n, m].
                let s = product(columns(&better_dy, out, n).transpose(), dy);
                let t = product(columns(&better_x, inn, n).transpose(), x);
                let to_x = product(x, s.transpose());
                let to_dy = product(dy, t.transpose());
                for (j, row) in gradient.chunks_exact_mut(inn + out).enumerate() {
                    let both = to_x.col_as_slice(j).iter().chain(to_dy.col_as_slice(j));
                    row.iter_mut().zip(both).for_each(|(g, x)| *g = -rate * x);
                }
                slopes.rates[made.weight] -= rate * elementwise(&s, &t);
            }
            Rule::LeastSquares => {
                // P = right · xᵀ [n, m], and the gradient of V = P · dy, [out, n] here.
                let right = columns(&made.right, inn, n);
                let p = product(right.transpose(), x);
                let to_v = product(dy, p.transpose());
                let keys = columns(&made.inputs, inn, n);
                let mut moved = 0.0;
                let mut values = vec![0.0; n * out];
                for (j, row) in gradient.chunks_exact_mut(inn + out).enumerate() {
                    let (x, better) = (&made.inputs[j * inn..(j + 1) * inn], &made.better[j * (inn + out)..]);
                    let along = dot(x, &better[..inn]);
                    let g = to_v.col_as_slice(j);
                    let against = dot(g, &better[inn..inn + out]);
                    let (to_x, to_dy) = row.split_at_mut(inn);
                    to_x.iter_mut().zip(x).for_each(|(t, x)| *t = -rate * against * x);
                    to_dy.iter_mut().zip(g).for_each(|(t, g)| *t = -rate * along * g);
                    moved -= rate * along * against;
                    let value = &mut values[j * out..(j + 1) * out];
                    value.iter_mut().zip(&better[inn..]).for_each(|(v, b)| *v = -rate * along * b);
                }
                slopes.rates[made.weight] += moved;
                // λ (K Kᵀ + λI)⁻¹ P is P − right Kᵀ P.
                let overlap = product(right.transpose(), keys);
                let shrunk = product(overlap.as_ref(), p.as_ref());
                let s = product(columns(&values, out, n).transpose(), dy);
                slopes.ridges[made.weight] -= elementwise(&s, &p) - elementwise(&s, &shrunk);
            }
        }
        let Shared { size, numbers, .. } = &self.shared[&shape];
        if let Some(sums) = slopes.shared.get_mut(&shape) {
            network::backward(size, numbers, &made.trace, gradient, sums);
        }
    }

    /// All numbers that are trained, each group with its gradient's: networks by shape, then rates
    /// and ridges.
    pub(super) fn numbers_mut(&mut self) -> Vec<&mut Vec<f32>> {
        let networks = self.shared.values_mut().map(|s| &mut s.numbers);
        networks.chain([&mut self.rates, &mut self.ridges]).collect()
    }

    /// Checks that it was made for a model.
    ///
    /// # Errors
    /// Where the model has no such weights.
    pub(super) fn check(&self, model: &Model) -> Result<()> {
        for (id, shape) in &self.weights {
            let found = model.linear_shape(id.role, id.layer)?;
            if found != *shape {
                return Err(Error::input(format!(
                    "the editor is for {id:?} of {shape:?}, the model's is {found:?}"
                )));
            }
        }
        Ok(())
    }
}

/// Inputs and gradients as rows `[n, in + out]`; those left out where either is zero.
fn side_by_side(pair: &Pair, [out, inn]: [usize; 2]) -> Vec<f32> {
    let is_zero = |row: &[f32]| row.iter().all(|x| *x == 0.0);
    let rows = pair.x.chunks_exact(inn).zip(pair.dy.chunks_exact(out));
    rows.filter(|(x, dy)| !is_zero(x) && !is_zero(dy)).flat_map(|(x, dy)| [x, dy].concat()).collect()
}

/// `leftᵀ · right`, `[n, out]` and `[n, in]`, as a change; of no rows, one that changes nothing.
fn low_rank([out, inn]: [usize; 2], left: &[f64], right: &[f64]) -> WeightChange {
    let rank = left.len() / out;
    if rank == 0 {
        return WeightChange::LowRank { rank: 1, left: vec![0.0; out], right: vec![0.0; inn] };
    }
    let turned = |rows: &[f64], width: usize| -> Vec<f32> {
        (0..width).flat_map(|i| rows.chunks_exact(width).map(move |row| row[i] as f32)).collect()
    };
    WeightChange::LowRank { rank, left: turned(left, out), right: turned(right, inn) }
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

fn columns(rows: &[f64], width: usize, n: usize) -> MatRef<'_, f64> {
    MatRef::from_column_major_slice(rows, width, n)
}

fn product(x: MatRef<'_, f64>, y: MatRef<'_, f64>) -> Mat<f64> {
    let mut out = Mat::zeros(x.nrows(), y.ncols());
    add_product(out.as_mut(), x, y, 1.0);
    out
}

/// Σ xᵢⱼ yᵢⱼ.
fn elementwise(x: &Mat<f64>, y: &Mat<f64>) -> f64 {
    (0..x.ncols()).map(|j| dot(x.col_as_slice(j), y.col_as_slice(j))).sum()
}
