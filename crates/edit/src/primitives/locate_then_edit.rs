//! What rank-one methods share: from facts, one after another, to the values of [`value_search`],
//! the direction of each key, and a patch.
//!
//! A method says only which key and which output its constraint is about.

use std::sync::Arc;

use mutandis_engine::{Delta, Model, Overlay, Role, Site, SiteKind, WeightId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::moments::{self, Factor, MomentSpec};
use super::rank_one::{mean_row, rank_one, unit};
use super::request::Framing;
use super::statistics::Statistics;
use super::value_search::{Found, Goal, Search, values};
use crate::context::Context;
use crate::error::Result;
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
    /// How often the facts are gone through: in a second round those that do not hold (by the
    /// search's margin) once all are written. Fewer where nothing is left to do.
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
            rounds: 1,
        }
    }
}

/// The key and the present output that a method's constraint is about: `(key [f], output [d])`.
pub type Constraint = fn(found: &Found, mean_key: &[f32], mean_output: &[f32]) -> (Vec<f32>, Vec<f32>);

/// Edits the facts one after another, each on top of those before, and fills the patch.
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
    settings.search.check(settings.rounds)?;
    let model = job.model;
    let a = model.architecture();
    let layer = settings.layer.unwrap_or(a.layers / 6);
    model.linear_shape(Role::MlpOut, layer)?;
    // All facts are checked before any is searched.
    let requests = settings.framing.requests(job, cx)?;
    let factor = moments_of(settings, model, layer, job.seed, cx)?;
    let id = WeightId { layer, role: Role::MlpOut };
    let sites = [Site::new(layer, SiteKind::MlpOut)];
    let goal = Goal::new(&sites, &settings.search);
    let mut before = Overlay::default();
    for round in 0..settings.rounds {
        let mut changed = false;
        for request in &requests {
            let now = Job { stack: &on_top(job.stack, &before), ..*job };
            let mut found =
                values(&now, &settings.framing, &goal, std::slice::from_ref(request), cx)?.remove(0);
            if round == 0 {
                patch.search.push(found.info());
            } else {
                found = found.in_later_round();
                if found.is_nothing() {
                    continue;
                }
            }
            let mean_key = mean_row(&found.keys, a.mlp_width);
            let (key, now) = constraint(&found, &mean_key, &mean_row(&found.outputs, a.width));
            // A later round adds to what the first made of the constraint's key.
            let now = if round == 0 { now } else { found.initial.clone() };
            let (u, solve) = direction(&mean_key, factor.as_deref(), layer)?;
            let wanted = found.initial.iter().zip(&found.delta).map(|(h, x)| f64::from(*h) + f64::from(*x));
            let residual: Vec<f64> = wanted.zip(&now).map(|(z, out)| z - f64::from(*out)).collect();
            let change = rank_one(&u, &key, &residual)?;
            before.push(id, Delta::low_rank(1, &change.left, &change.right)?);
            let change = WeightChange::LowRank { rank: 1, left: change.left, right: change.right };
            patch.push(model, id, change)?;
            patch.solve.push(solve);
            changed = true;
        }
        if !changed {
            break;
        }
    }
    Ok(())
}

/// The direction of length 1 that the change is along, `C⁻¹k`.
fn direction(key: &[f32], factor: Option<&Factor>, layer: usize) -> Result<(Vec<f64>, SolveInfo)> {
    let wide: Vec<f64> = key.iter().map(|x| f64::from(*x)).collect();
    let Some(factor) = factor else {
        return Ok((unit(&wide)?, SolveInfo { form: "identity".into(), ..SolveInfo::default() }));
    };
    let info = SolveInfo {
        jitter: factor.ridge + factor.jitter(),
        form: "cholesky".into(),
        layer: Some(layer),
        ..SolveInfo::default()
    };
    Ok((unit(&factor.solve(&wide))?, info))
}

/// The factorised moments of the layer, where they are wanted.
fn moments_of(
    settings: &Settings,
    model: &Model,
    layer: usize,
    seed: u64,
    cx: &Context<'_>,
) -> Result<Option<Arc<Factor>>> {
    if !settings.moments {
        return Ok(None);
    }
    let spec = MomentSpec { tokens: settings.moment_tokens, seed, ..MomentSpec::default() };
    Statistics::new(model, &[layer], &spec, cx)?.factor(layer, settings.ridge).map(Some)
}
