//! What rank-one methods share: from facts, one after another, to the values of
//! [`value_search`](super::value_search), the direction of each key, and a patch.
//!
//! A method says only which key and which output its constraint is about.

use mutandis_engine::{Model, Role, Site, SiteKind, WeightId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::beside;
use super::moments::{self, MomentSpec};
use super::post::Post;
use super::rank_one::{RankOne, mean_row, rank_one, unit};
use super::request::{Framing, Request};
use super::solver::{Hold, Solution, System};
use super::statistics::Statistics;
use super::value_search::{Found, Goal, Search, Steps, accepted, values};
use crate::context::Context;
use crate::error::{Result, check_number};
use crate::fact::Fact;
use crate::method::{Job, on_top};
use crate::patch::{Patch, SolveInfo, WeightChange};

/// Settings of a rank-one edit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
pub struct Settings {
    /// Layer whose MLP down projection is written, from 0; a sixth of the way up where absent, as
    /// the published settings of 32-layer models have it.
    pub layer: Option<usize>,
    /// The texts that it is searched in.
    #[serde(flatten)]
    pub framing: Framing,
    /// The search for the value.
    pub search: Search,
    /// Weigh directions by the second moments of the layer's keys (the paper); without them, by
    /// nothing (as EasyEdit ships it).
    pub moments: bool,
    /// Tokens that the moments are taken over; a few times the key's width where absent.
    pub moment_tokens: Option<usize>,
    /// Added to the moments' diagonal, relative to its mean.
    pub ridge: f64,
    /// Steps taken on the change that a round makes.
    ///
    /// DIFFERENCE: published code takes them on the change of each fact; facts of one run are one
    /// change here.
    pub post: Post,
    /// How often the facts are gone through: in a second round those that do not hold (by the
    /// search's margin) once all are written. Fewer where nothing is left to do. One fact alone is
    /// searched for by the steps of all rounds together.
    pub rounds: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            layer: None,
            framing: Framing::behind([10, 10]),
            search: Search::default(),
            moments: true,
            moment_tokens: None,
            ridge: moments::RIDGE,
            post: Post::default(),
            rounds: 1,
        }
    }
}

impl Settings {
    fn layer(&self, model: &Model) -> usize {
        self.layer.unwrap_or(model.architecture().layers / 6)
    }

    /// Checks what no type does.
    ///
    /// # Errors
    /// Names the setting that is out of range, or that the model has no weight for.
    pub fn check(&self, model: &Model) -> Result<()> {
        self.search.check(self.rounds)?;
        self.framing.check()?;
        self.post.check()?;
        check_number("ridge", self.ridge, true, "1 is the default")?;
        model.linear_shape(Role::MlpOut, self.layer(model))?;
        Ok(())
    }
}

/// The key and the present output that a method's constraint is about: `(key [f], output [d])`.
pub type Constraint = fn(found: &Found, mean_key: &[f32], mean_output: &[f32]) -> (Vec<f32>, Vec<f32>);

/// Edits the facts one after another, each on top of those before, and fills the patch.
///
/// DIFFERENCE: the values of all facts are searched for side by side, before any is written, which
/// keeps a processor busy; published code searches each on top of those before. Each is written on
/// top of those before as published, and a later round searches on top of all.
///
/// # Errors
/// Where a fact does not fit the model, or the computation breaks down.
pub fn edit(
    settings: &Settings,
    constraint: Constraint,
    job: &Job<'_>,
    cx: &Context<'_>,
    patch: &mut Patch,
) -> Result<()> {
    let model = job.model;
    let a = model.architecture();
    let layer = settings.layer(model);
    // All facts are checked before any is searched.
    let mut requests = settings.framing.requests(job, cx)?;
    let statistics = statistics(settings, model, layer, job.seed, cx)?;
    let held: Vec<Vec<f64>> =
        job.facts.iter().map(|fact| held(settings, job, layer, fact, &requests)).collect::<Result<_>>()?;
    let id = WeightId { layer, role: Role::MlpOut };
    let sites = [Site::new(layer, SiteKind::MlpOut)];
    let mut steps = Steps::new(&settings.search, settings.rounds, job.facts.len());
    for round in 0..settings.rounds {
        let Some(most) = steps.next() else { break };
        let goal = Goal { steps: most, ..Goal::new(&sites, &settings.search) };
        let before = patch.overlay(model)?;
        let now = Job { stack: &on_top(job.stack, &before), ..*job };
        let mut all = values(&now, &settings.framing, &goal, &requests, cx)?;
        steps.used(&all);
        if round == 0 {
            let keys = all.iter().flat_map(|found| mean_row(&found.keys, a.mlp_width));
            patch.keys.insert(layer, keys.collect());
            patch.search = all.iter().map(Found::info).collect();
        } else if all.iter().all(Found::is_nothing) {
            break;
        } else {
            all = all.into_iter().zip(&mut requests).map(|(f, request)| f.in_later_round(request)).collect();
        }
        let mut written = Columns { f: a.mlp_width, d: a.width, all: vec![] };
        cx.progress.begin("writing facts", all.len());
        for i in accepted(&all, &settings.search, cx)? {
            let (found, held) = (&all[i], &held[i]);
            if round > 0 && found.is_nothing() {
                continue;
            }
            // The search has not seen what this round wrote before.
            let shift = |key: &[f32]| written.output(key);
            let mean_key = mean_row(&found.keys, a.mlp_width);
            let initial = plus(&found.initial, &shift(&found.keys[..a.mlp_width]));
            let (key, output) = constraint(found, &mean_key, &mean_row(&found.outputs, a.width));
            // A later round adds to what the first made of the constraint's key.
            let output = if round == 0 { plus(&output, &shift(&key)) } else { initial.clone() };
            let (u, solve) = direction(settings, &mean_key, held, statistics.as_ref(), layer)?;
            let wanted = initial.iter().zip(&found.delta).map(|(h, x)| h + f64::from(*x));
            let residual: Vec<f64> = wanted.zip(&output).map(|(z, out)| z - out).collect();
            written.all.push(rank_one(&u, &key, &residual)?);
            patch.solve.push(solve);
            cx.progress.step(i + 1);
        }
        if let Some(change) = written.change() {
            let change = settings.post.apply(model, job.prior, &patch.weights, id, change)?;
            patch.push(model, id, change)?;
        }
        cx.progress.end();
    }
    Ok(())
}

/// `[d]` in f64, plus what was written since.
fn plus(output: &[f32], shift: &[f64]) -> Vec<f64> {
    output.iter().zip(shift).map(|(x, s)| f64::from(*x) + s).collect()
}

/// Rank-one changes of one weight, in the order in which they were made.
struct Columns {
    f: usize,
    d: usize,
    all: Vec<RankOne>,
}

impl Columns {
    /// What the changes add to the output of a key, `[d]`.
    fn output(&self, key: &[f32]) -> Vec<f64> {
        let mut sum = vec![0.0; self.d];
        for change in &self.all {
            let along: f64 = key.iter().zip(&change.right).map(|(k, u)| f64::from(*k) * f64::from(*u)).sum();
            sum.iter_mut().zip(&change.left).for_each(|(s, l)| *s += along * f64::from(*l));
        }
        sum
    }

    /// All as one change of that rank.
    fn change(&self) -> Option<WeightChange> {
        let rank = self.all.len();
        let columns = |width: usize, of: fn(&RankOne) -> &[f32]| -> Vec<f32> {
            (0..width).flat_map(|i| self.all.iter().map(move |change| of(change)[i])).collect()
        };
        let (left, right) = (columns(self.d, |c| &c.left), columns(self.f, |c| &c.right));
        (rank > 0).then_some(WeightChange::LowRank { rank, left, right })
    }
}

/// The direction of length 1 that the change is along, `B⁻¹k`: B is C with its ridge, and the
/// moments of the keys that are `held [m, f]` times their weight.
fn direction(
    settings: &Settings,
    key: &[f32],
    held: &[f64],
    statistics: Option<&Statistics<'_>>,
    layer: usize,
) -> Result<(Vec<f64>, SolveInfo)> {
    let keys: Vec<f64> = key.iter().map(|x| f64::from(*x)).collect();
    let past_weight = settings.framing.beside;
    let solve = |hold: Hold<'_>| {
        System { f: key.len(), keys: &keys, past: held, past_weight, hold, slack: 0.0 }.solve()
    };
    let Solution { right, info } = match statistics {
        Some(statistics) => {
            let (moments, factor) = (statistics.moments(layer)?, statistics.factor(layer, settings.ridge)?);
            solve(Hold::Moments { weight: 1.0, moments, factor: &factor })?
        }
        None => solve(Hold::Ridge(1.0))?,
    };
    Ok((unit(&right)?, SolveInfo { layer: Some(layer), ..info }))
}

/// Keys of other statements about a fact's subject, where they have a weight, `[m, f]`. They do
/// not change from one edit to the next: nothing is written below them.
fn held(
    settings: &Settings,
    job: &Job<'_>,
    layer: usize,
    fact: &Fact,
    requests: &[Request],
) -> Result<Vec<f64>> {
    if settings.framing.beside == 0.0 {
        return Ok(vec![]);
    }
    let about = beside::statements(job.model, std::slice::from_ref(fact), settings.framing.token, requests)?;
    beside::keys(job.model, job.stack, &about, layer)
}

/// The moments of the layer, where they are wanted.
fn statistics<'a>(
    settings: &Settings,
    model: &Model,
    layer: usize,
    seed: u64,
    cx: &'a Context<'a>,
) -> Result<Option<Statistics<'a>>> {
    if !settings.moments {
        return Ok(None);
    }
    let spec = MomentSpec { tokens: settings.moment_tokens, seed, ..MomentSpec::default() };
    Statistics::new(model, &[layer], &spec, cx).map(Some)
}
