//! EasyEdit's "vanilla" generation, which it scores GRACE by: as many tokens as the target has,
//! compared with the target encoded without the blank before it.
//!
//! A tokenizer whose words begin with a blank has other ids for the two, so that right answers score
//! nothing. That is the peer's number all the same.

use std::collections::BTreeSet;

use mutandis_engine::{Generation, Model, Overlay, Prompt, Result};

use super::agreement;

/// What the model says after a prompt, and what it is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vanilla {
    /// Ids of the target by itself.
    pub target: Vec<u32>,
    /// The last so many ids of the prompt with its greedy continuation. Where the model ends the
    /// text early, some are the prompt's.
    pub said: Vec<u32>,
}

impl Vanilla {
    /// Lets the model continue the prompt.
    ///
    /// # Errors
    /// Where the model has no tokenizer, or the text does not fit its context.
    pub fn new(model: &Model, overlays: &[&Overlay], prompt: &str, target: &str) -> Result<Self> {
        let tokenizer = model.tokenizer()?;
        let target = tokenizer.encode_continuation(target)?.ids;
        let mut ids = tokenizer.encode(prompt)?.ids;
        if !target.is_empty() {
            // The token that ends a text belongs to it, and nothing comes behind.
            let (max_tokens, stop_ids) = (target.len(), Some(vec![]));
            let generation = Generation { max_tokens, stop_ids, ..Generation::default() };
            let asked = Prompt { tokens: &ids, overlays, ..Prompt::default() };
            let made: Vec<u32> =
                generation.run(model, vec![asked])?.into_iter().flat_map(|g| g.tokens).collect();
            let ends = |id: &u32| tokenizer.eos_ids().contains(id);
            ids.extend(&made[..made.iter().position(ends).map_or(made.len(), |i| i + 1)]);
        }
        let said = ids.split_off(ids.len().saturating_sub(target.len()));
        Ok(Self { target, said })
    }

    /// Share of equal ids; `None` for an empty target.
    pub fn accuracy(&self) -> Option<f64> {
        agreement(&self.said, &self.target)
    }

    /// Macro F1 over the ids that occur in either (scikit-learn's `f1_score` of two sequences).
    pub fn f1(&self) -> f64 {
        let pairs = || self.target.iter().zip(&self.said);
        let ids: BTreeSet<u32> = pairs().flat_map(|(t, s)| [*t, *s]).collect();
        let of = |id: u32| {
            let both = pairs().filter(|(t, s)| **t == id && **s == id).count();
            let either = pairs().map(|(t, s)| usize::from(*t == id) + usize::from(*s == id)).sum::<usize>();
            2.0 * both as f64 / either as f64
        };
        let count = ids.len().max(1) as f64;
        ids.into_iter().map(of).sum::<f64>() / count
    }
}
