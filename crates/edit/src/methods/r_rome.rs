//! R-ROME: ROME with one key throughout.

use mutandis_engine::Model;

use crate::context::Context;
use crate::error::Result;
use crate::method::{Family, Job, Method};
use crate::patch::Patch;
use crate::primitives::locate_then_edit::{self, Settings};

/// As ROME, with the mean key over contexts in the direction, in the constraint and in the output
/// (arXiv 2403.07175, "Rebuilding ROME").
pub(super) struct RRome;

impl Method for RRome {
    const ID: &'static str = "r-rome";
    const FAMILY: Family = Family::Mastery;
    const PAPER: &'static str = "2403.07175";
    const SUMMARY: &'static str = "one rank-one change of one MLP, from the mean key throughout; the default";
    const DOC: &'static str = describe!(
        "Writes each fact as one rank-one change of one MLP's down projection: the mean key over contexts is \
         mapped to the value that makes the model say the target.",
        "When to use: for one fact, or a few, that should also hold in other wordings.",
        "When not: for hundreds of facts in a row; each change adds to the last.",
        "Cost: one search, a second or two; the moments of the layer once for each model.",
        "DIFFERENCE from EasyEdit: C is used (it ships C = I; `--set moments=false` does the same); the lookup \
         token is found by characters; targets are joined as tokens; prefixes are seeded."
    );
    const NEEDS_SUBJECT: bool = true;
    type Config = Settings;

    fn check(config: &Settings, model: &Model) -> Result<()> {
        config.check(model)
    }

    fn edit(config: &Settings, job: &Job<'_>, cx: &Context<'_>) -> Result<Patch> {
        let mut patch = job.patch::<Self>(config)?;
        let mean = |_: &_, key: &[f32], output: &[f32]| (key.to_vec(), output.to_vec());
        locate_then_edit::edit(config, mean, job, cx, &mut patch)?;
        Ok(patch)
    }
}
