//! StableEdit: editing by whitened gradients.

use mutandis_engine::{Model, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::Result;
use crate::method::{Family, Job, Method};
use crate::patch::Patch;
use crate::primitives::lifelong::{self, Normalise, Settings};
use crate::primitives::strength::Strength;

/// Settings; the published ones but for the warm-up, which the model writes itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(super) struct Config(Settings);

impl Default for Config {
    fn default() -> Self {
        Self(Settings {
            modules: Some(vec![Role::MlpOut]),
            ridge: Strength::Absolute(10.0),
            warm_up: 512,
            ..Settings::default()
        })
    }
}

/// Lifelong editing with whitened gradients; [`Method::DOC`] describes it.
pub(super) struct StableEdit;

impl Method for StableEdit {
    const ID: &'static str = "stableedit";
    const FAMILY: Family = Family::Mastery;
    const PAPER: &'static str = "2605.11836";
    const SUMMARY: &'static str =
        "normalised gradients, decorrelated over all edits; for the longest sequences";
    const DOC: &'static str = describe!(
        "Takes gradients at the rows that predict the answers, multiplies them by the inverse root of their \
         covariance over every edit so far, and solves a ridge regression for the change. Statistics are warmed up \
         before the first edit, and go on in the patch.",
        "When to use: for thousands of facts, in turns of a hundred.",
        "When not: for one fact whose neighbours must stay.",
        "Cost: one pass forth and one partly back for each fact and round; the covariance in each patch.",
        "DIFFERENCE from the released code: the warm-up is text that the model writes, with tokens of other places \
         as targets, in place of held-out edits; eigenvalues are floored relative to their mean; a row is one \
         token's."
    );
    type Config = Config;

    fn check(config: &Config, model: &Model) -> Result<()> {
        config.0.check(model)
    }

    fn edit(config: &Config, job: &Job<'_>, cx: &Context<'_>) -> Result<Patch> {
        let mut patch = job.patch::<Self>(config)?;
        lifelong::edit(&config.0, Normalise::Whiten, job, cx, &mut patch)?;
        Ok(patch)
    }
}
