//! ROME: rank-one model editing.

use mutandis_engine::Model;

use crate::context::Context;
use crate::error::Result;
use crate::method::{Family, Job, Method};
use crate::patch::Patch;
use crate::primitives::locate_then_edit::{self, Settings};
use crate::primitives::value_search::Found;

/// ROME as published; [`Method::DOC`] describes it.
pub(super) struct Rome;

impl Method for Rome {
    const ID: &'static str = "rome";
    const FAMILY: Family = Family::Mastery;
    const PAPER: &'static str = "2202.05262";
    const SUMMARY: &'static str = "one rank-one change of one MLP; the published form, flaw included";
    const DOC: &'static str = describe!(
        "Writes each fact as one rank-one change of one MLP's down projection (eq. 2 and 4 of the paper).",
        "When to use: to compare with published results.",
        "When not: for edits that are to be kept; the corrected form costs the same and does not collapse.",
        "Cost: one search, a second or two; the moments of the layer once for each model.",
        "Known flaw, kept as published (arXiv 2403.07175): the direction comes from the mean key over contexts, \
         the constraint from the bare prompt's key; where they disagree, the change is huge and the model breaks.",
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
        // The bare prompt's key and output, while the direction is the mean key's.
        let bare =
            |found: &Found, key: &[f32], _: &[f32]| (found.keys[..key.len()].to_vec(), found.initial.clone());
        locate_then_edit::edit(config, bare, job, cx, &mut patch)?;
        Ok(patch)
    }
}
