//! MEMIT: many facts at once, spread over several layers.

use mutandis_engine::Model;

use crate::context::Context;
use crate::error::Result;
use crate::method::{Family, Job, Method};
use crate::patch::Patch;
use crate::primitives::least_squares::{self, Settings};
use crate::primitives::spread::Plan;

/// MEMIT as published (eq. 14 and 20); [`Method::DOC`] describes it.
pub(super) struct Memit;

impl Method for Memit {
    const ID: &'static str = "memit";
    const FAMILY: Family = Family::Mastery;
    const PAPER: &'static str = "2210.07229";
    const SUMMARY: &'static str = "many facts at once, as one least-squares change of several layers";
    const DOC: &'static str = describe!(
        "Finds the value that each fact's subject should have at the last of several layers, and writes it as one \
         least-squares change of each layer's down projection: ΔW = R Kᵀ (λC + K Kᵀ)⁻¹, each layer an even share \
         of what is still missing.",
        "When to use: for many facts at once, up to thousands.",
        "When not: for hundreds of edits one after another; `past=1` then holds the keys of those before.",
        "Cost: a second or less for each fact, searched side by side; the moments of the layers once for each model.",
        "DIFFERENCE from the released code: lookup tokens are found by characters; targets are joined as \
         tokens; prefixes are seeded; C has a ridge, as it is taken over little text (`ridge=0` for none)."
    );
    const NEEDS_SUBJECT: bool = true;
    type Config = Settings;

    fn check(config: &Settings, model: &Model) -> Result<()> {
        config.check(model)
    }

    fn edit(config: &Settings, job: &Job<'_>, cx: &Context<'_>) -> Result<Patch> {
        let mut patch = job.patch::<Self>(config)?;
        least_squares::edit(config, &Plan::default(), job, cx, &mut patch)?;
        Ok(patch)
    }
}
