//! An edited model as a whole: the perplexity of a text, and its general ability.

use std::sync::OnceLock;

use mutandis_edit::{Context, Result};
use mutandis_engine::Model;

use crate::baseline::Kept;
use crate::edited::Edited;
use crate::general::Suite;
use crate::perplexity::perplexity;
use crate::results::ModelResult;

/// Perplexity by this factor above the unedited model's means that the model has collapsed. Ours: models
/// that still write sentences stay below it, and those that do not are far above.
pub const COLLAPSE: f64 = 4.0;

/// Perplexity of a model whose predictions are no numbers: files hold finite ones.
const BROKEN: f64 = 1e99;

/// What is measured of an edited model as a whole.
#[derive(Debug, Clone, Default)]
pub struct Whole {
    /// Windows of a text whose perplexity is measured; none for none.
    pub text: Vec<Vec<u32>>,
    /// Suites of general ability.
    pub general: Vec<Suite>,
    before: OnceLock<Before>,
}

/// What the unedited model reaches.
#[derive(Debug, Clone, Default)]
struct Before {
    perplexity: Option<f64>,
    /// By suite, in order.
    accuracies: Vec<f64>,
}

impl Whole {
    /// Measures the unedited model. What it reaches is kept in the cache, where there is one.
    ///
    /// # Errors
    /// Where a text is longer than the model's context, or the model cannot be hashed.
    pub fn new(model: &Model, text: Vec<Vec<u32>>, general: Vec<Suite>, cx: &Context<'_>) -> Result<Self> {
        let whole = Self::later(text, general);
        whole.measure(model, cx)?;
        Ok(whole)
    }

    /// Of a model that is measured once there is an edited one to hold against it ([`Benchmark::run`]).
    ///
    /// [`Benchmark::run`]: crate::benchmark::Benchmark::run
    pub fn later(text: Vec<Vec<u32>>, general: Vec<Suite>) -> Self {
        Self { text, general, before: OnceLock::new() }
    }

    /// Measures the unedited model, where that is not done, by this run or another.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn measure(&self, model: &Model, cx: &Context<'_>) -> Result<()> {
        if self.before.get().is_some() {
            return Ok(());
        }
        let kept = Kept::new(cx.cache.as_deref(), "whole", model, "")?;
        let unedited = Edited::unedited(model);
        let perplexity = match &self.text[..] {
            [] => None,
            text => Some(kept.once("perplexity", &text, cx, || finite_perplexity(&unedited, text))?),
        };
        let of = |suite: &Suite| {
            kept.once(suite.name, &(suite.measure, &suite.questions), cx, || accuracy(suite, &unedited))
        };
        let accuracies = self.general.iter().map(of).collect::<Result<_>>()?;
        let _ = self.before.set(Before { perplexity, accuracies });
        Ok(())
    }

    /// What the unedited model reaches: nothing before it is measured.
    fn before(&self) -> &Before {
        const NOTHING: &Before = &Before { perplexity: None, accuracies: vec![] };
        self.before.get().unwrap_or(NOTHING)
    }

    /// By what part perplexity of the text is above the unedited model's; nothing where there is no
    /// text, or the edited model's predictions are no numbers.
    ///
    /// # Errors
    /// Where a window is longer than the model's context.
    pub fn rise(&self, by: &Edited<'_>) -> Result<Option<f64>> {
        let now = self.perplexity(by)?.filter(|now| *now < BROKEN);
        Ok(now.zip(self.before().perplexity).map(|(now, before)| now / before - 1.0))
    }

    /// By how much the accuracy on each suite is below the unedited model's, as a share: 0.1 is ten points.
    ///
    /// # Errors
    /// Where a question is longer than the model's context.
    pub fn drops(&self, by: &Edited<'_>) -> Result<Vec<(&Suite, f64)>> {
        let each =
            self.accuracies(by)?.into_iter().zip(&self.before().accuracies).map(|(now, before)| before - now);
        Ok(self.general.iter().zip(each).collect())
    }

    /// Whether a perplexity says that the model has collapsed.
    pub(crate) fn has_collapsed(&self, perplexity: f64) -> bool {
        self.before().perplexity.is_some_and(|before| perplexity > COLLAPSE * before)
    }

    /// Perplexity of the text; far above any model's where predictions are no numbers.
    pub(crate) fn perplexity(&self, by: &Edited<'_>) -> Result<Option<f64>> {
        (!self.text.is_empty()).then(|| finite_perplexity(by, &self.text)).transpose()
    }

    fn accuracies(&self, by: &Edited<'_>) -> Result<Vec<f64>> {
        self.general.iter().map(|suite| accuracy(suite, by)).collect()
    }

    /// Measures an edited model.
    pub(crate) fn of(&self, by: &Edited<'_>) -> Result<ModelResult> {
        let Before { perplexity, accuracies } = self.before();
        let pair = |before: Option<f64>, after: Option<f64>| Some([before?, after?]);
        let names = self.general.iter().map(|suite| suite.name.to_owned());
        let general = names.zip(accuracies.iter().zip(self.accuracies(by)?).map(|(a, b)| [*a, b])).collect();
        Ok(ModelResult {
            measured: 1,
            perplexity: pair(*perplexity, self.perplexity(by)?),
            general,
            ..ModelResult::default()
        })
    }
}

fn finite_perplexity(by: &Edited<'_>, text: &[Vec<u32>]) -> Result<f64> {
    let found = perplexity(by, text)?;
    // A model that has broken down may predict no numbers at all.
    Ok(if found.is_finite() { found } else { BROKEN })
}

fn accuracy(suite: &Suite, by: &Edited<'_>) -> Result<f64> {
    Ok(suite.accuracy(by)?.by(suite.measure))
}
