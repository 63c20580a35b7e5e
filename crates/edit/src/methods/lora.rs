//! LoRA: fine-tuning by low-rank changes.

use mutandis_engine::Model;

use crate::context::Context;
use crate::error::Result;
use crate::method::{Family, Job, Method};
use crate::patch::Patch;
use crate::primitives::fine_tune::{self, LowRank};

/// Low-rank adaptation; [`Method::DOC`] describes it.
pub(super) struct Lora;

impl Method for Lora {
    const ID: &'static str = "lora";
    const FAMILY: Family = Family::Association;
    const PAPER: &'static str = "2106.09685";
    const SUMMARY: &'static str =
        "low-rank changes of the query and value projections, trained on the answer";
    const DOC: &'static str = describe!(
        "Trains ΔW = α/r · B A of rank r for weights of every layer by Adam, until the target's tokens are \
         predicted after the prompt.",
        "When to use: for a patch that other tools read as an adapter, and to compare with published results.",
        "When not: for facts whose neighbours must stay; nothing holds them.",
        "Cost: up to 70 passes through the whole model for each fact.",
        "DIFFERENCE from EasyEdit: no dropout, so that a run can be repeated; a seeded start."
    );
    type Config = LowRank;

    fn check(config: &LowRank, model: &Model) -> Result<()> {
        config.check(config.rank, model)
    }

    fn edit(config: &LowRank, job: &Job<'_>, cx: &Context<'_>) -> Result<Patch> {
        let mut patch = job.patch::<Self>(config)?;
        fine_tune::low_rank(config, None, job, cx, &mut patch)?;
        Ok(patch)
    }
}
