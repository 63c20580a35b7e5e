//! Fine-tuning of a few weights on facts: what FT-L, FT-M, LoRA and LocFT-BF have in common.

use mutandis_engine::{Model, Role, WeightId};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::answers::Example;
use super::train::{Bounds, Budget, Lesson, Parameter, Training, train};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::fact::Fact;
use crate::method::{Job, Wanted};
use crate::patch::Patch;

/// Which weights are trained whole, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
pub struct Settings {
    /// Layers, from 0; the one two thirds of the way up where absent, as the published settings
    /// of 32-layer models have it.
    pub layers: Option<Vec<usize>>,
    /// Weights of each layer: `query`, `key`, `value`, `attention-out`, `mlp-gate`, `mlp-up`,
    /// `mlp-out`.
    #[schemars(with = "Vec<String>")]
    pub modules: Vec<Role>,
    /// The training.
    #[serde(flatten)]
    pub training: Training,
    /// How far each number may move (L∞); as far as it goes where absent.
    pub bound_each: Option<f32>,
    /// How far a weight may move (Frobenius norm); as far as it goes where absent.
    pub bound_norm: Option<f32>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            layers: None,
            modules: vec![Role::MlpOut],
            training: Training::default(),
            bound_each: None,
            bound_norm: None,
        }
    }
}

impl Settings {
    fn weights(&self, model: &Model) -> Result<Vec<Shaped>> {
        let late = vec![model.architecture().layers * 2 / 3];
        weights(model, self.layers.as_ref().unwrap_or(&late), &self.modules)
    }

    /// Checks what no type does.
    ///
    /// # Errors
    /// Names the setting that is out of range, or that the model has no weight for.
    pub fn check(&self, model: &Model) -> Result<()> {
        for (name, bound) in [("bound-each", self.bound_each), ("bound-norm", self.bound_norm)] {
            if bound.is_some_and(|b| !(b > 0.0 && b.is_finite())) {
                return Err(Error::input_hint(
                    format!("`{name}` is {}, expected a number above 0", bound.unwrap_or_default()),
                    "leave it out for no bound",
                ));
            }
        }
        self.training.check()?;
        self.weights(model).map(drop)
    }
}

/// A weight with its shape, `[out, in]`.
pub(super) type Shaped = (WeightId, [usize; 2]);

/// Trains whole weights on what `example` makes of each fact, and fills the patch.
///
/// # Errors
/// Where a fact or a setting does not fit the model, or the computation breaks down.
pub fn edit(
    settings: &Settings,
    example: fn(&Model, &Fact, bool) -> Result<Example>,
    job: &Job<'_>,
    cx: &Context<'_>,
    patch: &mut Patch,
) -> Result<()> {
    let bounds = Bounds { each: settings.bound_each, norm: settings.bound_norm };
    let parameters = settings
        .weights(job.model)?
        .into_iter()
        .map(|(id, shape)| Parameter::dense(id, shape, bounds))
        .collect();
    fit(parameters, &settings.training, None, example, job, cx, patch)
}

/// Which weights get low-rank changes, and how they are trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
pub struct LowRank {
    /// Layers, from 0; all where absent.
    pub layers: Option<Vec<usize>>,
    /// Weights of each layer.
    #[schemars(with = "Vec<String>")]
    pub modules: Vec<Role>,
    /// Rank of each change.
    pub rank: usize,
    /// Changes are scaled by this over the rank.
    pub alpha: f32,
    /// The training.
    #[serde(flatten)]
    pub training: Training,
}

impl Default for LowRank {
    /// As EasyEdit has it.
    fn default() -> Self {
        Self {
            layers: None,
            modules: vec![Role::Query, Role::Value],
            rank: 8,
            alpha: 32.0,
            training: Training { epochs: 70, learning_rate: 5e-3, ..Training::default() },
        }
    }
}

impl LowRank {
    fn weights(&self, model: &Model) -> Result<Vec<Shaped>> {
        let all: Vec<usize> = (0..model.architecture().layers).collect();
        weights(model, self.layers.as_ref().unwrap_or(&all), &self.modules)
    }

    /// Checks what no type does, for changes that have this rank at first.
    ///
    /// # Errors
    /// Names the setting that is out of range, or that the model has no weight for.
    pub fn check(&self, rank: usize, model: &Model) -> Result<()> {
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return Err(Error::input_hint(
                format!("`alpha` is {}, expected a number above 0", self.alpha),
                "two to four times the rank is common",
            ));
        }
        self.training.check()?;
        self.weights(model)?.into_iter().try_for_each(|(id, shape)| Parameter::fits(id, shape, rank))
    }
}

/// How low-rank changes share their rank (AdaLoRA).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shared {
    /// Rank of each change at first.
    pub from: usize,
    /// Weight of the singular vectors' being orthonormal, in the mean over all matrices of them.
    pub orthogonality: f32,
    /// Shares of the steps at the beginning with all ranks, and at the end with those that stay.
    pub shares: [f64; 2],
}

/// Trains low-rank changes on each fact's answer, and fills the patch.
///
/// # Errors
/// As [`edit`].
pub fn low_rank(
    settings: &LowRank,
    shared: Option<Shared>,
    job: &Job<'_>,
    cx: &Context<'_>,
    patch: &mut Patch,
) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(job.seed);
    let ids = settings.weights(job.model)?;
    let pull = shared.map_or(0.0, |s| s.orthogonality / (2 * ids.len()) as f32);
    let parameters = ids
        .into_iter()
        .map(|(id, shape)| match shared {
            None => Parameter::lora(id, shape, settings.rank, settings.alpha, &mut rng),
            Some(s) => Parameter::singular(id, shape, s.from, settings.alpha, pull, &mut rng),
        })
        .collect::<Result<Vec<_>>>()?;
    let budget = shared.map(|s| Budget { rank: settings.rank, shares: s.shares });
    fit(parameters, &settings.training, budget, Example::answer, job, cx, patch)
}

/// The weights of some layers, each with its shape.
pub(super) fn weights(model: &Model, layers: &[usize], modules: &[Role]) -> Result<Vec<Shaped>> {
    let mut ids: Vec<WeightId> =
        layers.iter().flat_map(|&layer| modules.iter().map(move |&role| WeightId { layer, role })).collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() {
        return Err(Error::input_hint(
            "there is no weight to train: `layers` or `modules` is empty",
            "name at least one of each, such as `layers=[20]` and `modules=[\"mlp-out\"]`",
        ));
    }
    ids.into_iter().map(|id| Ok((id, model.linear_shape(id.role, id.layer)?))).collect()
}

/// Trains and fills the patch with what was trained.
fn fit(
    mut parameters: Vec<Parameter>,
    training: &Training,
    budget: Option<Budget>,
    example: fn(&Model, &Fact, bool) -> Result<Example>,
    job: &Job<'_>,
    cx: &Context<'_>,
    patch: &mut Patch,
) -> Result<()> {
    let earlier = if training.rehearse { earlier(job) } else { vec![] };
    let examples = job
        .facts
        .iter()
        .chain(earlier)
        .map(|fact| example(job.model, fact, training.end_of_text))
        .collect::<Result<Vec<_>>>()?;
    let lesson = Lesson { examples: &examples, training, budget, seed: job.seed };
    let trained = train(job.model, job.stack, &mut parameters, &lesson, cx)?;
    patch.search = trained.search;
    patch.search.truncate(job.facts.len());
    for parameter in parameters.iter().filter(|p| !p.is_zero()) {
        patch.push(job.model, parameter.id, parameter.change())?;
    }
    Ok(())
}

/// The facts of the patches beneath, the newest patch first, but those that a newer fact overrules.
fn earlier<'a>(job: &Job<'a>) -> Vec<&'a Fact> {
    let mut wanted = Wanted::default();
    let own = job.facts.iter();
    let all = own.chain(job.prior.iter().rev().flat_map(|patch| &patch.facts));
    let standing: Vec<&Fact> = all.filter(|fact| wanted.add(fact).is_ok()).collect();
    standing.get(job.facts.len()..).unwrap_or_default().to_vec()
}
