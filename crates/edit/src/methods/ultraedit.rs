//! UltraEdit: editing by gradients, normalised over all edits.

use mutandis_engine::Model;

use crate::context::Context;
use crate::error::Result;
use crate::method::{Family, Job, Method};
use crate::patch::Patch;
use crate::primitives::lifelong::{self, Normalise, Settings};

/// Training-free lifelong editing; [`Method::DOC`] describes it.
pub(super) struct UltraEdit;

impl Method for UltraEdit {
    const ID: &'static str = "ultraedit";
    const FAMILY: Family = Family::Mastery;
    const PAPER: &'static str = "2505.14679";
    const SUMMARY: &'static str =
        "one normalised gradient and one linear solve for a hundred facts; the fastest";
    const DOC: &'static str = describe!(
        "Takes the gradient of some weights at the rows that predict the answers, normalises it by statistics over \
         every edit so far, and solves (HᵀH + cI) ΔWᵀ = HᵀV with V = −η‖x̂‖²δ̂. The statistics are in the patch, and \
         the next edit on top of it goes on from them.",
        "When to use: for many facts, in turns of a hundred, where a second a fact is too long.",
        "When not: for one fact whose neighbours must stay.",
        "Cost: one pass forth and one partly back for each fact and round.",
        "DIFFERENCE from the released code: a row is one token's, as in the paper; the loss of a turn is the sum \
         of each fact's mean; `warm-up` and `rounds` are not in the paper, and off by default."
    );
    type Config = Settings;

    fn check(config: &Settings, model: &Model) -> Result<()> {
        config.check(model)
    }

    fn edit(config: &Settings, job: &Job<'_>, cx: &Context<'_>) -> Result<Patch> {
        let mut patch = job.patch::<Self>(config)?;
        lifelong::edit(config, Normalise::Diagonal, job, cx, &mut patch)?;
        Ok(patch)
    }
}
