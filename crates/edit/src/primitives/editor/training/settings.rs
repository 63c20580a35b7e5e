//! Settings of a training.

use mutandis_engine::Role;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How an editor is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// Layers, from 0; the last three where absent, as published.
    pub layers: Option<Vec<usize>>,
    /// Weights of each layer; all of its MLP where absent, as published.
    #[schemars(with = "Option<Vec<String>>")]
    pub modules: Option<Vec<Role>>,
    /// Rank of the networks' blocks.
    pub rank: usize,
    /// Blocks of each network.
    pub blocks: usize,
    /// How far a fact moves before training, as UltraEdit's `step`.
    pub step: f64,
    /// λ before training, relative to the mean energy of an input (MALMEN).
    pub ridge: f64,
    /// Facts of one change.
    pub edits: usize,
    /// Changes of one step of the optimizer.
    pub changes: usize,
    /// Adam's rate for networks.
    pub learning_rate: f32,
    /// Adam's rate for the logarithms of rates and ridges.
    pub rates_learning_rate: f32,
    /// Weight of the facts' loss.
    pub edit_weight: f32,
    /// Weight of the divergence on unrelated prompts.
    pub locality_weight: f32,
    /// Norm above which a gradient is shortened.
    pub clip: f64,
    /// Records that the statistics are taken of.
    pub statistics: usize,
    /// Records that are held out for validation.
    pub validation: usize,
    /// Steps between validations.
    pub validate_every: usize,
    /// Validations without a better one after which training ends.
    pub patience: usize,
    /// Most steps.
    pub steps: usize,
}

impl Default for Settings {
    /// What trains within an hour of a core, by short trials on SmolLM2-135M and zsRE.
    fn default() -> Self {
        Self {
            layers: None,
            modules: None,
            rank: 256,
            blocks: 2,
            step: 3e-4,
            ridge: 1.0,
            edits: 1,
            changes: 8,
            learning_rate: 5e-4,
            rates_learning_rate: 1e-2,
            edit_weight: 0.3,
            locality_weight: 1.0,
            clip: 1.0,
            statistics: 512,
            validation: 128,
            validate_every: 50,
            patience: 6,
            steps: 400,
        }
    }
}

/// Of what is counted, at most.
const MOST: usize = 1_000_000;
/// Blocks of a network, at most.
const MOST_BLOCKS: usize = 64;

impl Settings {
    /// Checks what no type does.
    ///
    /// # Errors
    /// Names the setting.
    pub(super) fn check(&self) -> Result<()> {
        let counts = [
            ("rank", self.rank),
            ("blocks", self.blocks),
            ("edits", self.edits),
            ("changes", self.changes),
            ("statistics", self.statistics),
            ("validation", self.validation),
            ("validate-every", self.validate_every),
            ("patience", self.patience),
            ("steps", self.steps),
        ];
        if let Some((name, count)) = counts.iter().find(|(_, count)| !(1..=MOST).contains(count)) {
            return Err(Error::input_hint(
                format!("`{name}` is {count}, expected 1 to {MOST}"),
                "leave it out for the default",
            ));
        }
        if self.blocks > MOST_BLOCKS {
            return Err(Error::input_hint(
                format!("`blocks` is {}, expected 1 to {MOST_BLOCKS}", self.blocks),
                "leave it out for the default",
            ));
        }
        let positive = [
            ("step", self.step),
            ("ridge", self.ridge),
            ("learning-rate", f64::from(self.learning_rate)),
            ("rates-learning-rate", f64::from(self.rates_learning_rate)),
            ("edit-weight", f64::from(self.edit_weight)),
            ("locality-weight", f64::from(self.locality_weight)),
            ("clip", self.clip),
        ];
        match positive.iter().find(|(_, x)| !(*x > 0.0 && x.is_finite())) {
            Some((name, x)) => Err(Error::input_hint(
                format!("`{name}` is {x}, expected a number above 0"),
                "leave it out for the default",
            )),
            None => Ok(()),
        }
    }
}
