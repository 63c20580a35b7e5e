//! AlphaEdit: changes within the null space of ordinary keys.

use mutandis_engine::Model;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::Result;
use crate::method::{Family, Job, Method};
use crate::patch::Patch;
use crate::primitives::solver::Hold;
use crate::primitives::spread::{self, Layer, Plan, Settings};
use crate::primitives::statistics::Statistics;
use crate::primitives::strength::Strength;
use crate::primitives::subspace::Cut;
use crate::primitives::value_search::Search;

/// Settings; the published ones of Llama 3 8B.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct Config {
    #[serde(flatten)]
    spread: Settings,
    /// Where the null space of C ends. A number is the share of the keys' energy that stays out
    /// of reach, `"0.02 absolute"` an eigenvalue, as published.
    null_space: Cut,
    /// Weight of the identity: how strongly the change is held small. A number is relative to the
    /// model's own keys, `"10 absolute"` is as published.
    lambda: Strength,
}

impl Default for Config {
    fn default() -> Self {
        let search = Search { learning_rate: 0.1, decay: 0.5, clamp: 0.75, ..Search::default() };
        let spread = Settings { search, past: 1.0, ..Settings::default() };
        Self { spread, null_space: Cut::Absolute(0.02), lambda: Strength::Absolute(10.0) }
    }
}

/// AlphaEdit as published (eq. 14); [`Method::DOC`] describes it.
pub(super) struct AlphaEdit;

impl Method for AlphaEdit {
    const ID: &'static str = "alphaedit";
    const FAMILY: Family = Family::Mastery;
    const PAPER: &'static str = "2410.02355";
    const SUMMARY: &'static str =
        "changes that stay within directions ordinary text does not use; for edits one after another";
    const DOC: &'static str = describe!(
        "Solves [P(K Kᵀ + Kₚ Kₚᵀ) + λI] X = P K Rᵀ, P being the projector on the null space of C: a change that \
         ordinary text hardly meets, and that leaves the keys Kₚ of earlier edits as they are. Those are taken from \
         the patches that the edit is made on top of.",
        "When to use: for many edits one after another, each on top of the last; `search.anchor` keeps them small.",
        "When not: where a null space is hardly there; `null-space` says how much of the keys' energy stays out of \
         reach.",
        "Cost: a second or less for each fact; moments and eigenvectors of the layers once for each model.",
        "DIFFERENCE from the released code: lookup tokens are found by characters; targets are joined as \
         tokens; prefixes are seeded; the system is solved in the coordinates of the null space. `ridge` has no part \
         in it: C's null space is what counts."
    );
    const NEEDS_SUBJECT: bool = true;
    type Config = Config;

    fn check(config: &Config, model: &Model) -> Result<()> {
        config.lambda.check("lambda", false)?;
        config.null_space.check("null-space")?;
        config.spread.check(model)
    }

    fn edit(config: &Config, job: &Job<'_>, cx: &Context<'_>) -> Result<Patch> {
        let mut patch = job.patch::<Self>(config)?;
        let solve = |layer: &Layer<'_>, statistics: &Statistics<'_>| {
            let moments = statistics.moments(layer.index)?;
            let lambda = config.lambda.of_ridge(moments);
            let space = statistics.eigenvectors(layer.index)?.below(config.null_space)?;
            let hold = Hold::Within { space: &space, moments: 0.0, ridge: lambda.absolute };
            let mut solution = layer.system(hold, 1.0).solve()?;
            solution.info.null_space = Some(space.dimension());
            if space.dimension() == layer.f {
                cx.progress.note(&format!(
                    "the null space of layer {} is all of it: nothing keeps the change off ordinary text",
                    layer.index
                ));
            }
            Ok(layer.report(solution, [("lambda", lambda), ("null-space", space.end())]))
        };
        spread::edit(&config.spread, &Plan::default(), &solve, job, cx, &mut patch)?;
        Ok(patch)
    }
}
