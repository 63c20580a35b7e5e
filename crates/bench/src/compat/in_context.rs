//! EasyEdit's token accuracy of edits that are a prompt (IKE, ICE): its `icl_lm_eval` and
//! `compute_icl_edit_quality` (`../shared/reference/easyedit.md` §1.13).
//!
//! The text is what the edit puts before the probe, the probe, a blank and the target. Targets are
//! cut apart from the text, so that labels and text may differ:
//!
//! - for a model whose name has "llama" in it, the target is cut without the blank before it, and
//!   its first token dropped, which is taken for BOS. A tokenizer that adds none loses a true
//!   token, and a target of one token has no score: the peer has NaN. One that adds BOS but gives
//!   words after a blank other ids (Llama 3) misses the first;
//! - for all others the target is cut with a blank before and a line break behind it, and the last
//!   token dropped. Where BOS is added, one label is BOS, which nothing predicts; where the line
//!   break melts into the target, labels and predictions are shifted.
//!
//! Before the edit, another wording is still asked behind a "New Fact" line, so that its score is
//! no clean baseline; prompt, portability and locality are asked bare.
//!
//! DIFFERENCE: after the edit, what goes before a probe is the patch's own text. Where the peer's
//! NaN would spoil a mean, the probe is left out.

use mutandis_edit::Fact;
use mutandis_engine::tokenizer::Tokenizer;
use mutandis_engine::{Overlay, Result};

use super::{Asked, Forced, Kind, Scores, agreement, asked, predict, tally};
use crate::edited::Edited;

/// How a target's tokens are cut. The peer goes by the model's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Branch {
    /// The name has "llama" in it, in whatever case.
    Llama,
    /// Any other.
    Other,
}

impl Branch {
    /// That of a model, by its name.
    pub fn of(model: &str) -> Self {
        if model.to_lowercase().contains("llama") { Self::Llama } else { Self::Other }
    }

    /// A target behind a prompt; with the ids that count as right.
    fn cut(self, tokenizer: &Tokenizer, prompt: &str, target: &str) -> Result<(Forced, Vec<u32>)> {
        let ids = tokenizer.encode(&format!("{prompt} {target}"))?.ids;
        let mut labels = match self {
            Self::Llama => tokenizer.encode(target)?.ids,
            Self::Other => tokenizer.encode(&format!(" {target}\n"))?.ids,
        };
        // So many tokens from the end are looked at, but for the last.
        let start = (ids.len() + 1).saturating_sub(labels.len()).min(ids.len());
        match self {
            Self::Llama => drop(labels.drain(..labels.len().min(1))),
            Self::Other => drop(labels.pop()),
        }
        Ok((Forced { ids, start }, labels))
    }
}

/// Scores of a record under an edit that is a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct InContext {
    /// Of the unedited model.
    pub before: Scores,
    /// After the edit.
    pub after: Scores,
    /// After the edit, of each text in the order of [`super::Probes::texts`]; `None` where the peer
    /// has NaN.
    pub each: Vec<Option<f64>>,
}

/// Asks a record's probes before and after, in one go.
///
/// # Errors
/// Where the model has no tokenizer, or a text with what goes before it is longer than its context.
pub fn scores(edited: &Edited<'_>, branch: Branch, fact: &Fact) -> Result<InContext> {
    let tokenizer = edited.model.tokenizer()?;
    let (mut kinds, mut texts, mut labels) = (vec![], vec![], vec![]);
    for (kind, prompt, target) in asked(fact) {
        let bare = match kind {
            Kind::Rephrase => format!("New Fact: {} {}\nPrompt: {prompt}", fact.prompt, fact.target),
            _ => prompt.to_owned(),
        };
        let (before, _) = branch.cut(tokenizer, &bare, target)?;
        let (after, right) = branch.cut(tokenizer, &edited.prompt(prompt), target)?;
        kinds.push(kind);
        texts.extend([(before, &[] as &[&Overlay]), (after, edited.overlays)]);
        labels.push(right);
    }
    let texts: Vec<Asked<'_>> = texts.iter().map(|(text, overlays)| Asked { text, overlays }).collect();
    let predicted = predict(edited.model, &texts)?;
    let score = |i: usize, after: usize| match kinds[i] {
        Kind::Locality(_) => agreement(&predicted[2 * i + after], &predicted[2 * i]),
        _ => agreement(&predicted[2 * i + after], &labels[i]),
    };
    Ok(InContext {
        before: tally(&kinds, |i| score(i, 0)),
        after: tally(&kinds, |i| score(i, 1)),
        each: (0..kinds.len()).map(|i| score(i, 1)).collect(),
    })
}
