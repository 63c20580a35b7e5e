//! MALMEN: a trained network, and least squares over all facts at once.

use mutandis_engine::Model;

use crate::context::Context;
use crate::error::Result;
use crate::method::{Family, Job, Method};
use crate::patch::Patch;
use crate::primitives::editor::{self, Rule, Settings, Trainer, training};

/// Many gradients made better by a trained network, and one solve; [`Method::DOC`] describes it.
pub(super) struct Malmen;

impl Method for Malmen {
    const ID: &'static str = "malmen";
    const FAMILY: Family = Family::Mastery;
    const PAPER: &'static str = "2311.04661";
    const SUMMARY: &'static str =
        "a trained network says how each fact should move, one solve writes them all";
    const DOC: &'static str = describe!(
        "Takes inputs x and gradients δ of a few weights at the rows that predict the answers, sends them through a \
         network that was trained for this model, and solves ΔWᵀ = (KKᵀ + λI)⁻¹ K Vᵀ with v = −η (x·x̃) δ̃: what \
         each row should change by, written so that facts do not stand in each other's way.",
        "When to use: for hundreds of facts at once, when an edit must take no time at all.",
        "When not: before `mutandis train malmen` has made an editor.",
        "Cost: one pass forth and one partly back for each fact, and one solve; the training once for each model.",
        "DIFFERENCE from the released code: a block is rectified after its scale and shift; statistics are taken \
         once, before the training; rates are trained as logarithms; all parts of the editor have one optimizer."
    );
    type Config = Settings;
    const TRAINER: Option<Trainer> = Some(Trainer {
        rule: Rule::LeastSquares,
        settings: || training::Settings { edits: 8, changes: 2, ..training::Settings::default() },
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
