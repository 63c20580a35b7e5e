//! Least squares over several layers, keys of ordinary text held by λC (MEMIT, arXiv 2210.07229,
//! eq. 14): `ΔW = R Kᵀ (λC + K Kᵀ)⁻¹`.

use mutandis_engine::Model;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::spread::{self, Layer, Plan};
use super::statistics::Statistics;
use super::strength::Strength;
use crate::context::Context;
use crate::error::Result;
use crate::method::Job;
use crate::patch::Patch;

/// Settings; `Default` holds the published ones of Llama-like models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
pub struct Settings {
    /// What all methods share that write several layers.
    #[serde(flatten)]
    pub spread: spread::Settings,
    /// Weight of C: how strongly keys of ordinary text are held. A number is relative to the
    /// model's own keys, `"15000 absolute"` is as published.
    pub lambda: Strength,
}

impl Default for Settings {
    fn default() -> Self {
        Self { spread: spread::Settings::default(), lambda: Strength::Absolute(15_000.0) }
    }
}

impl Settings {
    /// Checks what no type does.
    ///
    /// # Errors
    /// As [`spread::Settings::check`].
    pub fn check(&self, model: &Model) -> Result<()> {
        self.lambda.check("lambda", false)?;
        self.spread.check(model)
    }
}

/// Searches values for all facts, writes them, and fills the patch.
///
/// # Errors
/// As [`spread::edit`].
pub fn edit(
    settings: &Settings,
    plan: &Plan<'_>,
    job: &Job<'_>,
    cx: &Context<'_>,
    patch: &mut Patch,
) -> Result<()> {
    let solve = |layer: &Layer<'_>, statistics: &Statistics<'_>| {
        let lambda = settings.lambda.of_moments(statistics.moments(layer.index)?);
        let solution = layer.solve_held(settings.spread.ridge, statistics, [lambda.absolute, 0.0], 1.0)?;
        Ok(layer.report(solution, [("lambda", lambda)]))
    };
    spread::edit(&settings.spread, plan, &solve, job, cx, patch)
}
