//! AdaLoRA: low-rank changes that share their rank.

use mutandis_engine::Model;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::method::{Family, Job, Method};
use crate::patch::Patch;
use crate::primitives::fine_tune::{self, LowRank, Shared};

/// Low-rank adaptation with a budget; [`Method::DOC`] describes it.
pub(super) struct AdaLora;

/// Settings: `rank` is what each change keeps, in the mean over all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct Config {
    /// Rank of each change at first.
    initial_rank: usize,
    /// Weight in the loss of how far singular vectors are from orthonormal.
    orthogonality: f32,
    /// Share of the steps at the beginning in which every change has its initial rank.
    first: f64,
    /// Share of the steps at the end in which no more is given up.
    last: f64,
    /// Which weights, and the training.
    #[serde(flatten)]
    low_rank: LowRank,
}

impl Default for Config {
    /// Ranks and weights as `peft` has them, the training as EasyEdit has it.
    fn default() -> Self {
        Self { initial_rank: 12, orthogonality: 0.5, first: 0.1, last: 0.5, low_rank: LowRank::default() }
    }
}

impl Method for AdaLora {
    const ID: &'static str = "adalora";
    const FAMILY: Family = Family::Association;
    const PAPER: &'static str = "2303.10512";
    const SUMMARY: &'static str = "low-rank changes whose ranks go where they matter, trained on the answer";
    const DOC: &'static str = describe!(
        "Trains ΔW = α/r · P diag(λ) Qᵀ for weights of every layer by Adam, with P and Q pulled towards orthonormal \
         columns; singular values that matter least over all weights are set to zero, more of them as training goes \
         on.",
        "When to use: to compare with published results, and where a smaller adapter is worth longer training.",
        "When not: for facts whose neighbours must stay; nothing holds them.",
        "Cost: up to 70 passes through the whole model for each fact.",
        "DIFFERENCE from EasyEdit: ranks are given up as in the paper, which its loop never does; no dropout, so \
         that a run can be repeated; a seeded start. Training that is done early keeps the ranks it has then."
    );
    type Config = Config;

    fn check(config: &Config, model: &Model) -> Result<()> {
        let wrong = |what: String, hint: &str| Err(Error::input_hint(what, hint));
        let (from, to) = (config.initial_rank, config.low_rank.rank);
        if to == 0 || to > from {
            let what = format!("the rank is {to}, expected 1 to `initial-rank` ({from})");
            return wrong(what, "two thirds of it are common");
        }
        if !(config.orthogonality.is_finite() && config.orthogonality >= 0.0) {
            let what = format!("`orthogonality` is {}, expected 0 or more", config.orthogonality);
            return wrong(what, "0.5 is common");
        }
        let shares = [config.first, config.last];
        if !(shares.iter().all(|s| *s >= 0.0) && shares[0] + shares[1] < 1.0) {
            let what =
                format!("`first` is {}, `last` {}: expected shares of less than 1", shares[0], shares[1]);
            return wrong(what, "0.1 and 0.5 leave four tenths of the steps to give ranks up in");
        }
        config.low_rank.check(from, model)
    }

    fn edit(config: &Config, job: &Job<'_>, cx: &Context<'_>) -> Result<Patch> {
        let shares = [config.first, config.last];
        let shared = Shared { from: config.initial_rank, orthogonality: config.orthogonality, shares };
        let mut patch = job.patch::<Self>(config)?;
        fine_tune::low_rank(&config.low_rank, Some(shared), job, cx, &mut patch)?;
        Ok(patch)
    }
}
