//! EMMET: ROME's equality for many facts at once.

use mutandis_engine::Model;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::{Result, check_number};
use crate::method::{Family, Job, Method};
use crate::patch::Patch;
use crate::primitives::spread::{self, Layer, Plan, Settings};
use crate::primitives::statistics::Statistics;
use crate::primitives::strength::Strength;

/// Settings; the published ones, with C scaled as for Llama.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct Config {
    #[serde(flatten)]
    spread: Settings,
    /// Scale of C, in which the slack is measured. A number is relative to the model's own keys,
    /// `"100000 absolute"` is as published.
    scale: Strength,
    /// ε: 0 maps every key exactly.
    slack: f64,
    /// Whether one fact alone has the slack too.
    slack_alone: bool,
}

impl Default for Config {
    fn default() -> Self {
        let spread = Settings::default();
        Self { spread, scale: Strength::Absolute(100_000.0), slack: 0.1, slack_alone: false }
    }
}

/// The equality-constrained batch update (eq. 12 of the paper).
pub(super) struct Emmet;

impl Method for Emmet {
    const ID: &'static str = "emmet";
    const FAMILY: Family = Family::Mastery;
    const PAPER: &'static str = "2403.14236";
    const SUMMARY: &'static str = "many facts at once, each mapped to its value exactly but for a slack";
    const DOC: &'static str = describe!(
        "Maps the keys of all facts to their values exactly, and moves other keys as little as that allows: \
         ΔW = R (Kᵀ C⁻¹ K + εI)⁻¹ Kᵀ C⁻¹. With one fact this is the rank-one edit; with many, a slack keeps the \
         system solvable.",
        "When to use: for up to a few hundred facts that should all hold exactly.",
        "When not: for thousands, or facts that share a subject: equality then takes huge changes.",
        "Cost: a second or less for each fact, searched side by side; the moments of the layer once for each model.",
        "DIFFERENCE from the released code: lookup tokens are found by characters; targets are joined as \
         tokens; prefixes are seeded; C has a ridge, as it is taken over little text (`ridge=0` for none). The slack holds with one fact only if it is asked to (`slack-alone`), as published."
    );
    const NEEDS_SUBJECT: bool = true;
    type Config = Config;

    fn check(config: &Config, model: &Model) -> Result<()> {
        config.scale.check("scale", false)?;
        check_number("slack", config.slack, true, "0.1 is published; 0 maps every key exactly")?;
        config.spread.check(model)
    }

    fn edit(config: &Config, job: &Job<'_>, cx: &Context<'_>) -> Result<Patch> {
        let mut patch = job.patch::<Self>(config)?;
        let slack = if job.facts.len() > 1 || config.slack_alone { config.slack } else { 0.0 };
        let solve = |layer: &Layer<'_>, statistics: &Statistics<'_>| {
            let scale = config.scale.of_moments(statistics.moments(layer.index)?);
            let solution = layer.solve_held(config.spread.ridge, statistics, [scale.absolute, 0.0], slack)?;
            Ok(layer.report(solution, [("scale", scale)]))
        };
        spread::edit(&config.spread, &Plan::default(), &solve, job, cx, &mut patch)?;
        Ok(patch)
    }
}
