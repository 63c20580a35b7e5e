//! PMET: values of attention and MLP are searched together, the MLP's is written.

use mutandis_engine::{Model, SiteKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::{Result, check_number};
use crate::method::{Family, Job, Method};
use crate::patch::Patch;
use crate::primitives::least_squares;
use crate::primitives::spread::{Plan, Settings, Share};
use crate::primitives::strength::Strength;
use crate::primitives::value_search::{Ease, Search};

/// Settings; the published ones of GPT-J.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct Config {
    #[serde(flatten)]
    held: least_squares::Settings,
    /// Weight of the target's loss once the target is the likeliest answer.
    eased: f32,
    /// The search ends when by then the weighted divergence is at most this, in nats.
    stop_kl: f32,
}

impl Default for Config {
    fn default() -> Self {
        let search =
            Search { learning_rate: 0.2, steps: 30, decay: 0.5, clamp: 0.75, kl: 1.0, ..Search::default() };
        let spread = Settings { search, ..Settings::default() };
        let held = least_squares::Settings { spread, lambda: Strength::Absolute(6_000.0) };
        Self { held, eased: 0.1, stop_kl: 0.01 }
    }
}

/// PMET as published (eq. 10 to 12); [`Method::DOC`] describes it.
pub(super) struct Pmet;

impl Method for Pmet {
    const ID: &'static str = "pmet";
    const FAMILY: Family = Family::Mastery;
    const PAPER: &'static str = "2308.08742";
    const SUMMARY: &'static str =
        "as a batch edit of several layers, with attention's part left out of the weights";
    const DOC: &'static str = describe!(
        "Searches one value for the attention's output and one for the MLP's, together, and writes only the MLP's: \
         what attention contributes is not forced into the weights. ΔW = R Kᵀ (λC + K Kᵀ)⁻¹, each layer one over \
         the root of the layers left.",
        "When to use: for many facts at once, where other wordings matter most.",
        "When not: for hundreds of edits one after another.",
        "Cost: a second or two for each fact, searched side by side; the moments of the layers once for each model.",
        "DIFFERENCE from the released code: lookup tokens are found by characters; targets are joined as \
         tokens; prefixes are seeded; C has a ridge, as it is taken over little text (`ridge=0` for none). The loss is eased as soon as the target is the likeliest answer in every context, not in one."
    );
    const NEEDS_SUBJECT: bool = true;
    type Config = Config;

    fn check(config: &Config, model: &Model) -> Result<()> {
        check_number("eased", f64::from(config.eased), true, "0.1 is published")?;
        check_number("stop-kl", f64::from(config.stop_kl), true, "0.01 is published")?;
        config.held.check(model)
    }

    fn edit(config: &Config, job: &Job<'_>, cx: &Context<'_>) -> Result<Patch> {
        let mut patch = job.patch::<Self>(config)?;
        let sites = &[SiteKind::AttentionOut, SiteKind::MlpOut];
        let plan = Plan {
            sites,
            within: sites,
            share: Share::Root,
            ease: Some(Ease { weight: config.eased, stop_kl: config.stop_kl }),
            merge: false,
        };
        least_squares::edit(&config.held, &plan, job, cx, &mut patch)?;
        Ok(patch)
    }
}
