//! FT-M: fine-tuning of one MLP on the answer.

use mutandis_engine::Model;

use crate::context::Context;
use crate::error::Result;
use crate::method::{Family, Job, Method};
use crate::patch::Patch;
use crate::primitives::answers::Example;
use crate::primitives::fine_tune::{self, Settings};

/// Fine-tuning with masked cross-entropy; [`Method::DOC`] describes it.
pub(super) struct FtM;

impl Method for FtM {
    const ID: &'static str = "ft-m";
    const FAMILY: Family = Family::Mastery;
    const PAPER: &'static str = "2401.01286";
    const SUMMARY: &'static str = "plain fine-tuning of one late MLP on the answer's tokens";
    const DOC: &'static str = describe!(
        "Trains one MLP's down projection by Adam until the target's tokens are predicted after the prompt; the \
         prompt itself is not learnt (masked cross-entropy).",
        "When to use: as the plain baseline, and for targets of several tokens that subject-based methods miss.",
        "When not: for many facts in a row; nothing holds what else the weight does.",
        "Cost: up to 25 steps a fact, of the layers above; the patch holds the whole weight's change.",
        "DIFFERENCE from EasyEdit: targets are joined as tokens; the batches of an epoch come in an order that is \
         drawn (the first as given)."
    );
    type Config = Settings;

    fn check(config: &Settings, model: &Model) -> Result<()> {
        config.check(model)
    }

    fn edit(config: &Settings, job: &Job<'_>, cx: &Context<'_>) -> Result<Patch> {
        let mut patch = job.patch::<Self>(config)?;
        fine_tune::edit(config, Example::answer, job, cx, &mut patch)?;
        Ok(patch)
    }
}
