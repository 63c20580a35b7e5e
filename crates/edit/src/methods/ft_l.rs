//! FT-L: fine-tuning of one MLP at the prompt's last token.

use mutandis_engine::Model;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::method::{Family, Job, Method};
use crate::patch::Patch;
use crate::primitives::answers::Example;
use crate::primitives::fine_tune::{self, Settings};

/// Settings; the published ones but for the bound, which is the model's own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(super) struct Config(Settings);

/// Fine-tuning as the baseline of ROME has it; [`Method::DOC`] describes it.
pub(super) struct FtL;

impl Method for FtL {
    const ID: &'static str = "ft-l";
    const FAMILY: Family = Family::Mastery;
    const PAPER: &'static str = "2012.00363";
    const SUMMARY: &'static str =
        "fine-tuning of one MLP, every token of the answer at the prompt's end; a baseline";
    const DOC: &'static str = describe!(
        "Trains one MLP's down projection by Adam so that the prompt's last token predicts every token of the \
         target at once, within a bound for each number (`bound-each`, none by default).",
        "When to use: to compare with published results.",
        "When not: for targets of more than one token, which this loss cannot make true; masked cross-entropy can.",
        "Cost: up to 25 steps a fact, of the layers above.",
        "DIFFERENCE from EasyEdit: targets are joined as tokens; `end-of-text` is refused, as there is no place \
         for it."
    );
    type Config = Config;

    fn check(config: &Config, model: &Model) -> Result<()> {
        if config.0.training.end_of_text {
            return Err(Error::input_hint(
                "`end-of-text` cannot be learnt where all targets are predicted by one token",
                "use masked cross-entropy for it, as `mutandis methods` lists it",
            ));
        }
        config.0.check(model)
    }

    fn edit(config: &Config, job: &Job<'_>, cx: &Context<'_>) -> Result<Patch> {
        let mut patch = job.patch::<Self>(config)?;
        fine_tune::edit(&config.0, |model, fact, _| Example::at_last(model, fact), job, cx, &mut patch)?;
        Ok(patch)
    }
}
