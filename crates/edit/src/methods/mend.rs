//! MEND: a trained network makes the change of a gradient.

use mutandis_engine::Model;

use crate::context::Context;
use crate::error::Result;
use crate::method::{Family, Job, Method};
use crate::patch::Patch;
use crate::primitives::editor::{self, Rule, Settings, Trainer, training};

/// Gradients made better by a trained network; [`Method::DOC`] describes it.
pub(super) struct Mend;

impl Method for Mend {
    const ID: &'static str = "mend";
    const FAMILY: Family = Family::Mastery;
    const PAPER: &'static str = "2110.11309";
    const SUMMARY: &'static str =
        "a network, trained once, turns a fact's gradient into its edit in milliseconds";
    const DOC: &'static str = describe!(
        "Takes inputs x and gradients δ of a few weights at the rows that predict the answer, normalises them, sends \
         them through a network that was trained for this model, and adds ΔW = −α Σ δ̃ x̃ᵀ.",
        "When to use: for one fact or a few at a time, when an edit must take no time at all.",
        "When not: before `mutandis train mend` has made an editor; for many facts at once, whose changes add up.",
        "Cost: one pass forth and one partly back for each fact; the training once for each model.",
        "DIFFERENCE from the released code: it descends from the start, by rates that are trained as logarithms; \
         statistics are taken once, before the training; rows before the answer are left out; all parts of the \
         editor have one optimizer."
    );
    type Config = Settings;
    const TRAINER: Option<Trainer> = Some(Trainer {
        rule: Rule::Sum,
        settings: || training::Settings { edits: 1, changes: 8, ..training::Settings::default() },
    });

    fn check(config: &Settings, _: &Model) -> Result<()> {
        config.check()
    }

    fn edit(config: &Settings, job: &Job<'_>, cx: &Context<'_>) -> Result<Patch> {
        let mut patch = job.patch::<Self>(config)?;
        editor::edit(config, job, cx, &mut patch)?;
        Ok(patch)
    }
}
