//! Editing by normalised gradients, turn after turn: UltraEdit (arXiv 2505.14679) and StableEdit
//! (arXiv 2605.11836).
//!
//! No value is searched for and no network trained. One backward pass over a turn's facts gives
//! inputs `x` and gradients `δ` of a few weights at the rows that predict the answers; what each
//! row should change by is `v = −η ‖x̂‖² δ̂`, hats for what is normalised by statistics over all
//! edits so far, and `ΔWᵀ = (HᵀH + c·I)⁻¹ Hᵀ V` with the inputs as they are writes it.

mod turn;
mod warm_up;

use std::collections::BTreeMap;

use faer::Mat;
use mutandis_engine::backward::Pair;
use mutandis_engine::{Model, Role, WeightId};
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::answers::{Answers, Example};
use super::editor::no_head;
use super::fine_tune::{Shaped, weights};
use super::grad_pairs::{grad_pairs, written};
use super::normaliser::Running;
use super::solver::{Hold, System};
use super::strength::Strength;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::method::{Job, on_top};
use crate::patch::{Patch, SearchInfo, SolveInfo, WeightChange};
use turn::{Row, Turn, inner};
use warm_up::warm_up;

/// Settings; `Default` holds those of UltraEdit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
pub struct Settings {
    /// Layers, from 0; those from three fifths to four fifths of the way up where absent.
    pub layers: Option<Vec<usize>>,
    /// Weights of each layer; `mlp-gate` and `mlp-up` where absent, or `mlp-out` where a model has no
    /// gate.
    #[schemars(with = "Option<Vec<String>>")]
    pub modules: Option<Vec<Role>>,
    /// η: how far a row goes against its gradient.
    pub step: f64,
    /// Weight of the identity. A number is relative to the mean energy of an input, `"1 absolute"`
    /// is as published.
    pub ridge: Strength,
    /// Facts of one turn: their gradients are of one model, and they are written at once.
    pub turn: usize,
    /// Texts that the model writes, of which gradients towards other tokens are taken for the
    /// statistics before the first turn; 0 as published, but needed where facts are few.
    pub warm_up: usize,
    /// Rounds of gradients and writing in each turn, until every target leads by `margin`. 1 as
    /// published; from the second on, tokens that lead are held, and the others go as far as takes
    /// them there by their gradients.
    pub rounds: usize,
    /// By how much, in nats, a round after the first moves a token at most.
    pub reach: f64,
    /// By how much, in nats, a target has to lead every other token for its fact to hold.
    pub margin: f32,
    /// Teach the model to end its answer after the target.
    pub end_of_text: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            layers: None,
            modules: None,
            step: 1e-6,
            ridge: Strength::Absolute(1.0),
            turn: 100,
            warm_up: 0,
            rounds: 1,
            reach: 4.0,
            margin: 0.0,
            end_of_text: false,
        }
    }
}

/// How gradients are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Normalise {
    /// Each number by its own deviation, the unbiased one.
    Diagonal,
    /// By the root of the whole covariance as soon as there are rows enough, before by the biased
    /// deviations.
    Whiten,
}

impl Settings {
    fn modules(&self, model: &Model) -> Vec<Role> {
        self.modules.clone().unwrap_or_else(|| into_mlp(model))
    }

    fn weights(&self, model: &Model) -> Result<Vec<Shaped>> {
        let count = model.architecture().layers;
        let late: Vec<usize> = (count * 3 / 5..(count * 4 / 5).max(count * 3 / 5 + 1)).collect();
        weights(model, self.layers.as_ref().unwrap_or(&late), &self.modules(model))
    }

    /// Checks what no type does.
    ///
    /// # Errors
    /// Names the setting that is out of range, or that the model has no weight for.
    pub fn check(&self, model: &Model) -> Result<()> {
        let wrong = |what: String, hint: &str| Err(Error::input_hint(what, hint));
        if !(self.step > 0.0 && self.step.is_finite()) {
            return wrong(format!("`step` is {}, expected a number above 0", self.step), "1e-6 is published");
        }
        if !(self.ridge.number() > 0.0 && self.ridge.number().is_finite()) {
            let found = self.ridge.number();
            return wrong(
                format!("`ridge` is {found}, expected more than 0"),
                "`\"1 absolute\"` is published",
            );
        }
        if self.turn == 0 {
            return wrong("`turn` is 0, expected 1 or more".into(), "100 is published");
        }
        if !(1..=100).contains(&self.rounds) {
            return wrong(format!("`rounds` is {}, expected 1 to 100", self.rounds), "1 is published");
        }
        if !(self.reach > 0.0 && self.reach.is_finite()) {
            return wrong(format!("`reach` is {}, expected more than 0", self.reach), "4 is a good number");
        }
        if self.warm_up > MOST_TEXTS {
            let found = self.warm_up;
            return wrong(format!("`warm-up` is {found}, expected at most {MOST_TEXTS}"), "32 are plenty");
        }
        if !(0.0..=MOST_MARGIN).contains(&self.margin) {
            let found = self.margin;
            return wrong(format!("`margin` is {found}, expected 0 to {MOST_MARGIN}"), "1 is a clear lead");
        }
        if self.modules(model).contains(&Role::Head) {
            return Err(no_head());
        }
        self.weights(model).map(drop)
    }
}

/// By how much, in nats, a mean loss has to be worse than before to be no noise.
const WORSE: f64 = 0.5;
/// Texts of a warm-up where there has to be one.
const FEW_TEXTS: usize = 32;
/// Texts of a warm-up, at most.
const MOST_TEXTS: usize = 4096;
/// A margin at most, in nats: what the others have left of a token that leads by more than 16 is
/// lost in the rounding of its probability, and with it how far there is to go.
const MOST_MARGIN: f32 = 10.0;

/// What UltraEdit writes: of gated MLPs both maps into it, as published for Llama and Mistral, and
/// of others the map out of it, as for GPT-J.
fn into_mlp(model: &Model) -> Vec<Role> {
    let gated = model.linear_shape(Role::MlpGate, 0).is_ok();
    if gated { vec![Role::MlpGate, Role::MlpUp] } else { vec![Role::MlpOut] }
}

/// Edits in turns, and fills the patch.
///
/// # Errors
/// Where a fact or a setting does not fit the model, or the computation breaks down.
pub fn edit(
    settings: &Settings,
    normalise: Normalise,
    job: &Job<'_>,
    cx: &Context<'_>,
    patch: &mut Patch,
) -> Result<()> {
    let model = job.model;
    let targets = settings.weights(model)?;
    let ids: Vec<WeightId> = targets.iter().map(|(id, _)| *id).collect();
    let lowest = ids.iter().map(|id| id.layer).min().unwrap_or(0);
    let mut statistics = Statistics::new(&targets, normalise, job.prior, &patch.method);
    let examples = job
        .facts
        .iter()
        .map(|fact| Example::answer(model, fact, settings.end_of_text))
        .collect::<Result<Vec<_>>>()?;
    // DIFFERENCE: of one row nothing is left when its own mean is taken from it.
    let rows: usize = examples.iter().take(settings.turn).map(|e| e.targets.len()).sum();
    let texts = if rows < 2 { settings.warm_up.max(FEW_TEXTS) } else { settings.warm_up };
    if statistics.lack() && texts > 0 {
        warm_up(&mut statistics, model, &ids, texts, job.seed, cx)?;
    }
    let answers = Answers::new(model, job.stack, &examples, lowest)?;
    patch.search = vec![SearchInfo::default(); examples.len()];
    let mut changes: Vec<Option<WeightChange>> = vec![None; ids.len()];
    let all: Vec<usize> = (0..examples.len()).collect();
    cx.progress.begin("writing facts", examples.len());
    // Of the facts of each turn before it, in nats.
    let mut before = 0.0;
    for (at, facts) in all.chunks(settings.turn).enumerate() {
        let mut roots = Roots::new();
        let mut turn = Turn::new(facts.len(), settings.margin);
        for round in 0..settings.rounds {
            cx.check()?;
            let written = written(&ids, &changes)?;
            let overlays = on_top(job.stack, &written);
            // Places in the turn of the facts that are looked at: those that want something, and
            // when none does, all of them again.
            let mut due = turn.wanting();
            if due.is_empty() {
                due = (0..facts.len()).collect();
            }
            let which: Vec<usize> = due.iter().map(|at| facts[*at]).collect();
            let found = grad_pairs(model, &answers, &which, &ids, &overlays)?;
            if found.aims.iter().any(|aim| !(aim.lead.is_finite() && aim.loss.is_finite())) {
                let what = format!("predictions are no numbers in round {}: `step` is too large", round + 1);
                return Err(Error::Numerical { what });
            }
            if round == 0 {
                before += found.loss() * facts.len() as f64 / examples.len() as f64;
                statistics.add(&found.pairs);
                roots = statistics.roots()?;
            }
            turn.see(&found, &due, &statistics.shapes);
            let aimed = (round > 0).then_some(settings.reach);
            let wanting = turn.wanting();
            if aimed.is_some() && wanting.is_empty() {
                if due.len() == facts.len() {
                    break;
                }
                continue;
            }
            // The first round moves all, later ones those that want something.
            let moved = if aimed.is_some() { wanting } else { due };
            moved.iter().for_each(|at| patch.search[facts[*at]].steps += 1);
            let solved = statistics.solve(settings, &roots, &turn, aimed, model)?;
            for (i, (more, info)) in solved.into_iter().enumerate() {
                if at == 0 && round == 0 {
                    patch.solve.push(SolveInfo { layer: Some(ids[i].layer), ..info });
                }
                changes[i] = Some(match changes[i].take() {
                    Some(sum) => sum.plus(&more),
                    None => more,
                });
            }
        }
        cx.progress.step(facts.last().map_or(0, |i| i + 1));
    }
    cx.progress.end();
    let losses = answers.stand(&written(&ids, &changes)?, job.stack)?;
    patch.search.iter_mut().zip(&losses).for_each(|(info, loss)| info.see(loss));
    let after = losses.iter().map(|loss| f64::from(loss.mean)).sum::<f64>() / losses.len() as f64;
    if after > before + WORSE {
        cx.progress.note(&format!(
            "the facts are farther from being answered than they were: a mean loss of {after:.3}, {before:.3} before \
             (a lower `step` may do)"
        ));
    }
    for (id, change) in ids.iter().zip(changes) {
        if let Some(change) = change {
            patch.push(model, *id, change)?;
        }
    }
    patch.state = statistics.to_state();
    Ok(())
}

/// Σ^(−1/2) of gradients, by the shape of their weights.
type Roots = BTreeMap<[usize; 2], Mat<f64>>;

/// Statistics of weights, those of one shape together.
struct Statistics {
    /// By shape: of inputs, and of gradients.
    by_shape: BTreeMap<[usize; 2], (Running, Running)>,
    shapes: Vec<[usize; 2]>,
    normalise: Normalise,
}

impl Statistics {
    /// Each shape goes on from the last patch of the same method that has it.
    fn new(weights: &[(WeightId, [usize; 2])], normalise: Normalise, prior: &[Patch], method: &str) -> Self {
        let shapes = weights.iter().map(|(_, shape)| *shape).collect();
        let mut statistics = Self { by_shape: BTreeMap::new(), shapes, normalise }.emptied();
        for patch in prior.iter().rev().filter(|p| p.method == method) {
            statistics.take(&patch.state);
        }
        statistics
    }

    /// Of the same weights, before anything was seen.
    fn emptied(&self) -> Self {
        let whole = self.normalise == Normalise::Whiten;
        let none =
            |&[out, inn]: &[usize; 2]| ([out, inn], (Running::new(inn, false), Running::new(out, whole)));
        Self { by_shape: self.shapes.iter().map(none).collect(), shapes: self.shapes.clone(), ..*self }
    }

    /// Takes what a state has of the shapes that lack statistics.
    fn take(&mut self, state: &BTreeMap<String, Vec<f32>>) {
        let whole = self.normalise == Normalise::Whiten;
        for (&[out, inn], own) in self.by_shape.iter_mut().filter(|(_, (inputs, _))| inputs.is_empty()) {
            let of = |what: &str, width: usize, whole: bool| {
                Running::from_state(state.get(&name([out, inn], what))?, width, whole)
            };
            if let Some(kept) = of("inputs", inn, false).zip(of("gradients", out, whole)) {
                *own = kept;
            }
        }
    }

    /// Whether nothing was seen yet of some shape.
    fn lack(&self) -> bool {
        self.by_shape.values().any(|(inputs, _)| inputs.is_empty())
    }

    fn add(&mut self, pairs: &[Pair]) {
        for (pair, shape) in pairs.iter().zip(&self.shapes) {
            if let Some((inputs, gradients)) = self.by_shape.get_mut(shape) {
                inputs.add(&pair.x);
                gradients.add(&pair.dy);
            }
        }
    }

    /// What gradients of each shape are whitened by, where they are; it changes with the
    /// statistics alone.
    fn roots(&self) -> Result<Roots> {
        let mut roots = Roots::new();
        if self.normalise == Normalise::Whiten {
            for (shape, (_, gradients)) in &self.by_shape {
                if let Some(root) = gradients.whitening()? {
                    roots.insert(*shape, root);
                }
            }
        }
        Ok(roots)
    }

    /// The change of each weight that takes rows against their gradients, and leaves the others
    /// where they are: all rows by the same step, or, `aimed`, those that want it by what they want
    /// and at most so many nats.
    fn solve(
        &self,
        settings: &Settings,
        roots: &Roots,
        turn: &Turn,
        aimed: Option<f64>,
        model: &Model,
    ) -> Result<Vec<(WeightChange, SolveInfo)>> {
        let (moved, held): (Vec<&Row>, Vec<&Row>) =
            turn.rows().partition(|row| aimed.is_none() || row.want(settings.margin) > 0.0);
        let inputs = |rows: &[&Row], weight: usize| -> Vec<f64> {
            rows.iter().flat_map(|row| &row.pairs[weight].x).map(|x| f64::from(*x)).collect()
        };
        let count = self.shapes.len();
        let each = || (0..count).into_par_iter();
        let keys: Vec<Vec<f64>> = (0..count).map(|weight| inputs(&moved, weight)).collect();
        // Weights with the same input and ridge, as gate and up, have one system.
        let alike = |i: usize, j: usize| self.shapes[i] == self.shapes[j] && keys[i] == keys[j];
        let first: Vec<usize> = (0..count).map(|i| (0..i).find(|j| alike(*j, i)).unwrap_or(i)).collect();
        let system = |weight: usize| -> Result<Option<(Vec<f32>, SolveInfo)>> {
            if first[weight] != weight {
                return Ok(None);
            }
            let [_, f] = self.shapes[weight];
            let past = inputs(&held, weight);
            let ridge = settings.ridge.of_energy(self.by_shape[&self.shapes[weight]].0.energy());
            let hold = Hold::Ridge(ridge.absolute);
            let system = System { f, keys: &keys[weight], past: &past, past_weight: 1.0, hold, slack: 1.0 };
            let solution = system.solve()?;
            let right = solution.right_factor(f);
            let mut info = solution.info;
            info.strengths = [("ridge".to_owned(), ridge)].into();
            Ok(Some((right, info)))
        };
        let solved: Vec<_> = model.install(|| each().map(system).collect::<Result<_>>())?;
        let against = |weight: usize| -> Vec<Vec<f64>> {
            moved.iter().map(|row| self.against(roots, &row.pairs[weight], weight)).collect()
        };
        let against: Vec<Vec<Vec<f64>>> = model.install(|| each().map(against).collect());
        let steps: Vec<f64> = moved
            .iter()
            .enumerate()
            .map(|(j, row)| match aimed {
                None => settings.step,
                Some(reach) => {
                    let of = against.iter().zip(&row.pairs).map(|(to, pair)| inner(&pair.dy, &to[j]));
                    row.step(of.sum(), settings.margin, reach)
                }
            })
            .collect();
        let change = |weight: usize| {
            let (right, info) = solved[first[weight]].as_ref().expect("the first has its own");
            let ([out, f], n) = (self.shapes[weight], moved.len());
            let mut left = vec![0.0f32; out * n];
            for (j, (to, step)) in against[weight].iter().zip(&steps).enumerate() {
                to.iter().enumerate().for_each(|(o, g)| left[o * n + j] = (-step * g) as f32);
            }
            (WeightChange::LowRank { rank: right.len() / f, left, right: right.clone() }, info.clone())
        };
        Ok(model.install(|| each().map(change).collect()))
    }

    /// `‖x̂‖² δ̂` of a row.
    fn against(&self, roots: &Roots, pair: &Pair, weight: usize) -> Vec<f64> {
        let shape = self.shapes[weight];
        let (inputs, gradients) = &self.by_shape[&shape];
        let unbiased = self.normalise == Normalise::Diagonal;
        let energy: f64 = inputs.normalised(&pair.x, unbiased).iter().map(|x| x * x).sum();
        let mut direction = match roots.get(&shape) {
            Some(root) => gradients.whitened(&pair.dy, root),
            None => gradients.normalised(&pair.dy, unbiased),
        };
        direction.iter_mut().for_each(|g| *g *= energy);
        direction
    }

    fn to_state(&self) -> BTreeMap<String, Vec<f32>> {
        let each = self.by_shape.iter().flat_map(|(shape, (inputs, gradients))| {
            [(name(*shape, "inputs"), inputs.to_state()), (name(*shape, "gradients"), gradients.to_state())]
        });
        each.collect()
    }
}

/// Name of a state.
fn name([out, inn]: [usize; 2], what: &str) -> String {
    format!("{out}x{inn}.{what}")
}
