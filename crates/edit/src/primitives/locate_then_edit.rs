//! What rank-one methods share: from facts, one after another, to the values of [`value_search`],
//! the direction of each key, and a patch.
//!
//! A method says only which key and which output its constraint is about.

use mutandis_engine::{Delta, Model, Overlay, Role, Site, SiteKind, WeightId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::contexts::{self, ContextSpec};
use super::moments::{self, Factor, MomentSpec};
use super::rank_one::{mean_row, rank_one, unit};
use super::request::Request;
use super::value_search::{Found, Search, search};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::method::Job;
use crate::patch::{Patch, SearchInfo, SolveInfo, WeightChange};

/// Settings of a rank-one edit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Layer whose MLP down projection is written, from 0; a sixth of the way up where absent, as
    /// the published settings of 32-layer models have it.
    pub layer: Option<usize>,
    /// Number of prefixes of 5 and of 10 tokens that the prompt is searched behind, besides the
    /// bare prompt.
    pub prefixes: [usize; 2],
    /// The search for the value.
    pub search: Search,
    /// Weigh directions by the second moments of the layer's keys (the paper); without them, by
    /// nothing (as EasyEdit ships it).
    pub moments: bool,
    /// Tokens that the moments are taken over; a few times the key's width where absent.
    pub moment_tokens: Option<usize>,
    /// Added to the moments' diagonal, relative to its mean.
    pub ridge: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            layer: None,
            prefixes: [10, 10],
            search: Search::default(),
            moments: true,
            moment_tokens: None,
            ridge: moments::RIDGE,
        }
    }
}

/// Most prefixes of one length: what a search of one fact holds in memory grows with them.
const MOST_PREFIXES: usize = 200;

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
    settings.search.check()?;
    if let Some(count) = settings.prefixes.iter().find(|c| **c > MOST_PREFIXES) {
        return Err(Error::input_hint(
            format!("`prefixes` asks for {count}, expected at most {MOST_PREFIXES}"),
            "ten of each are published; more cost time and memory and gain little",
        ));
    }
    let model = job.model;
    let a = model.architecture();
    let layer = settings.layer.unwrap_or(a.layers / 6);
    model.linear_shape(Role::MlpOut, layer)?;
    let spec = ContextSpec {
        lengths: vec![(5, settings.prefixes[0]), (10, settings.prefixes[1])],
        seed: job.seed,
        ..ContextSpec::default()
    };
    let templates = contexts::sampled(model, &spec, cx)?;
    // All facts are checked before any is searched.
    let requests: Vec<Request> =
        job.facts.iter().map(|fact| Request::new(model, fact, &templates)).collect::<Result<_>>()?;
    let factor = direction(settings, model, layer, job.seed, cx)?;
    let id = WeightId { layer, role: Role::MlpOut };
    let mut before = Overlay::default();
    for request in &requests {
        let stack: Vec<&Overlay> =
            job.stack.iter().copied().chain((!before.is_empty()).then_some(&before)).collect();
        let site = Site::new(layer, SiteKind::MlpOut);
        let found = search(model, &stack, site, std::slice::from_ref(request), &settings.search, false, cx)?
            .remove(0);
        let (mean_key, mean_output) = (mean_row(&found.keys, a.mlp_width), mean_row(&found.outputs, a.width));
        let wide: Vec<f64> = mean_key.iter().map(|x| f64::from(*x)).collect();
        let (u, solve) = match &factor {
            None => (unit(&wide)?, SolveInfo { form: "identity".into(), ..SolveInfo::default() }),
            Some(factor) => {
                let info = SolveInfo {
                    jitter: factor.ridge + factor.jitter,
                    residual: 0.0,
                    form: "cholesky".into(),
                };
                (unit(&factor.solve(&wide))?, info)
            }
        };
        let (key, output) = constraint(&found, &mean_key, &mean_output);
        let residual: Vec<f64> = found
            .initial
            .iter()
            .zip(&found.delta)
            .zip(&output)
            .map(|((h, delta), out)| f64::from(*h) + f64::from(*delta) - f64::from(*out))
            .collect();
        let change = rank_one(&u, &key, &residual)?;
        before.push(id, Delta::low_rank(1, &change.left, &change.right)?);
        patch.push(model, id, WeightChange::LowRank { rank: 1, left: change.left, right: change.right })?;
        patch.solve.push(solve);
        let last = found.losses.last().copied();
        patch.search.push(SearchInfo {
            steps: found.losses.len(),
            loss: last.map_or(f32::NAN, |l| l.total),
            probability: last.map_or(f32::NAN, |l| l.probability),
        });
    }
    Ok(())
}

/// The factorised moments of the layer, where they are wanted.
fn direction(
    settings: &Settings,
    model: &Model,
    layer: usize,
    seed: u64,
    cx: &Context<'_>,
) -> Result<Option<Factor>> {
    if !settings.moments {
        return Ok(None);
    }
    let spec = MomentSpec { tokens: settings.moment_tokens, seed, ..MomentSpec::default() };
    let measured = moments::moments(model, &[layer], &spec, cx)?;
    measured.first().map(|m| moments::factor(m, settings.ridge)).transpose()
}
