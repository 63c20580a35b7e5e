//! LocFT-BF: localised fine-tuning, breadth first.

use mutandis_engine::Model;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::Result;
use crate::method::{Family, Job, Method};
use crate::patch::Patch;
use crate::primitives::answers::Example;
use crate::primitives::fine_tune::{self, Settings};
use crate::primitives::train::Training;

/// Settings; the published ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(super) struct Config(Settings);

impl Default for Config {
    fn default() -> Self {
        let training = Training { batch: 100, end_of_text: true, ..Training::default() };
        Self(Settings { training, ..Settings::default() })
    }
}

/// Localised breadth-first fine-tuning; [`Method::DOC`] describes it.
pub(super) struct LocFtBf;

impl Method for LocFtBf {
    const ID: &'static str = "locft-bf";
    const FAMILY: Family = Family::Mastery;
    const PAPER: &'static str = "2509.22072";
    const SUMMARY: &'static str =
        "fine-tuning of one late weight over all facts in turn; learns when to stop";
    const DOC: &'static str = describe!(
        "Trains one weight on all facts, epoch by epoch in shuffled batches, as any other fine-tuning is done: no \
         fact is learnt to the end before the next is seen. The end of the answer is learnt too.",
        "When to use: for hundreds of facts at once, and where the edited model is to write its answers freely.",
        "When not: for one fact whose neighbours must stay.",
        "Cost: up to 25 passes over the facts, of the layers above; the patch holds the whole weight's change.",
        "DIFFERENCE from the released code: a batch's loss is the mean over facts of the mean over their tokens."
    );
    type Config = Config;

    fn check(config: &Config, model: &Model) -> Result<()> {
        config.0.check(model)
    }

    fn edit(config: &Config, job: &Job<'_>, cx: &Context<'_>) -> Result<Patch> {
        let mut patch = job.patch::<Self>(config)?;
        fine_tune::edit(&config.0, Example::answer, job, cx, &mut patch)?;
        Ok(patch)
    }
}
