//! MEMIT-Merge: facts of one subject share one value.

use mutandis_engine::Model;

use crate::context::Context;
use crate::error::Result;
use crate::method::{Family, Job, Method};
use crate::patch::Patch;
use crate::primitives::least_squares::{self, Settings};
use crate::primitives::spread::Plan;

/// One search for all facts of a subject, then the same system as without merging.
pub(super) struct MemitMerge;

impl Method for MemitMerge {
    const ID: &'static str = "memit-merge";
    const FAMILY: Family = Family::Mastery;
    const PAPER: &'static str = "2502.07322";
    const SUMMARY: &'static str = "many facts at once, where several are about the same subject";
    const DOC: &'static str = describe!(
        "Facts of one subject have nearly the same key, which cannot be mapped to a value for each: one value is \
         searched that makes all of them true, and written once, by ΔW = R Kᵀ (λC + K Kᵀ)⁻¹ over several layers.",
        "When to use: for many facts of which several are about one subject.",
        "When not: where every subject occurs once; nothing is gained then.",
        "Cost: a second or less for each fact, searched side by side; the moments of the layers once for each model.",
        "DIFFERENCE from the released code: lookup tokens are found by characters; targets are joined as \
         tokens; prefixes are seeded; C has a ridge, as it is taken over little text (`ridge=0` for none). Facts \
         are of one subject where its name is the same but for upper and lower case."
    );
    const NEEDS_SUBJECT: bool = true;
    type Config = Settings;

    fn check(config: &Settings, model: &Model) -> Result<()> {
        config.check(model)
    }

    fn edit(config: &Settings, job: &Job<'_>, cx: &Context<'_>) -> Result<Patch> {
        let mut patch = job.patch::<Self>(config)?;
        least_squares::edit(config, &Plan { merge: true, ..Plan::default() }, job, cx, &mut patch)?;
        Ok(patch)
    }
}
