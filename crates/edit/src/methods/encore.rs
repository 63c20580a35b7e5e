//! ENCORE: early stopping and bounded norms for edits one after another.

use mutandis_engine::Model;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::Result;
use crate::method::{Family, Job, Method};
use crate::patch::Patch;
use crate::primitives::spread::{self, Layer, Plan, Settings};
use crate::primitives::statistics::Statistics;
use crate::primitives::strength::Strength;
use crate::primitives::value_search::Search;

/// Settings; the published ones of Llama-like models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct Config {
    #[serde(flatten)]
    spread: Settings,
    /// Weight of C: how strongly keys of ordinary text are held. A number is relative to the
    /// model's own keys, `"15000 absolute"` is as published.
    lambda: Strength,
    /// Weight of the identity: how strongly the change is held small. A number is relative to the
    /// model's own keys, `"10 absolute"` is as published.
    norm: Strength,
}

impl Default for Config {
    fn default() -> Self {
        let search = Search { settle: 4, ..Search::default() };
        let spread = Settings { search, past: 1.0, ..Settings::default() };
        Self { spread, lambda: Strength::Absolute(15_000.0), norm: Strength::Absolute(10.0) }
    }
}

/// ENCORE as published (§5 of the paper); [`Method::DOC`] describes it.
pub(super) struct Encore;

impl Method for Encore {
    const ID: &'static str = "encore";
    const FAMILY: Family = Family::Mastery;
    const PAPER: &'static str = "2502.01636";
    const SUMMARY: &'static str =
        "batch edits one after another: stops early, holds the change's norm and the edits before";
    const DOC: &'static str = describe!(
        "As a batch edit of several layers, with three additions for long sequences: the search ends a few steps \
         after the target has become the likeliest answer in every context; the norm of the change is held by a \
         term λₙI; the keys of earlier edits, taken from the patches underneath, are held too.",
        "When to use: for many edits one after another.",
        "When not: for a single edit, which it makes weaker than need be.",
        "Cost: half of a batch edit's, as the search ends early; the moments of the layers once for each model.",
        "DIFFERENCE from the released code: lookup tokens are found by characters; targets are joined as \
         tokens; prefixes are seeded; C has a ridge, as it is taken over little text (`ridge=0` for none)."
    );
    const NEEDS_SUBJECT: bool = true;
    type Config = Config;

    fn check(config: &Config, model: &Model) -> Result<()> {
        config.lambda.check("lambda", false)?;
        config.norm.check("norm", true)?;
        config.spread.check(model)
    }

    fn edit(config: &Config, job: &Job<'_>, cx: &Context<'_>) -> Result<Patch> {
        let mut patch = job.patch::<Self>(config)?;
        let solve = |layer: &Layer<'_>, statistics: &Statistics<'_>| {
            let moments = statistics.moments(layer.index)?;
            let (lambda, norm) = (config.lambda.of_moments(moments), config.norm.of_ridge(moments));
            let held = [lambda.absolute, norm.absolute];
            let solution = layer.solve_held(config.spread.ridge, statistics, held, 1.0)?;
            Ok(layer.report(solution, [("lambda", lambda), ("norm", norm)]))
        };
        spread::edit(&config.spread, &Plan::default(), &solve, job, cx, &mut patch)?;
        Ok(patch)
    }
}
