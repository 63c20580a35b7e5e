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

use mutandis_engine::tokenizer::Tokenizer;
use mutandis_engine::{Overlay, Result};

use super::{Asked, Forced, agreement, predict};
use crate::edited::Edited;
use crate::question::{self, Question};
use crate::results::{Role, Scores};

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
    /// After the edit, of each question; `None` where it has no answer, or the peer has NaN.
    pub each: Vec<Option<f64>>,
}

/// Asks a record's questions before and after, in one go. The first one is about the edited prompt.
///
/// # Errors
/// Where the model has no tokenizer, or a text with what goes before it is longer than its context.
pub fn scores(edited: &Edited<'_>, branch: Branch, questions: &[Question]) -> Result<InContext> {
    let tokenizer = edited.model.tokenizer()?;
    let (mut of, mut texts, mut labels) = (vec![], vec![], vec![]);
    let fact = questions.first().and_then(|q| Some(format!("{} {}", q.prompt, q.first_answer()?)));
    let fact = fact.unwrap_or_default();
    for (i, question) in questions.iter().enumerate() {
        let Question { role, prompt, .. } = question;
        let Some(target) = question.first_answer() else { continue };
        let bare = match role {
            Role::Rephrase => format!("New Fact: {fact}\nPrompt: {prompt}"),
            _ => prompt.to_owned(),
        };
        let (before, _) = branch.cut(tokenizer, &bare, target)?;
        let (after, right) = branch.cut(tokenizer, &edited.prompt(prompt), target)?;
        of.push(i);
        texts.extend([(before, &[] as &[&Overlay]), (after, edited.overlays)]);
        labels.push(right);
    }
    let texts: Vec<Asked<'_>> = texts.iter().map(|(text, overlays)| Asked { text, overlays }).collect();
    let predicted = predict(edited.model, &texts)?;
    let each = |after: usize| {
        let mut all = vec![None; questions.len()];
        for (text, &i) in of.iter().enumerate() {
            let said = &predicted[2 * text + after];
            all[i] = match questions[i].role {
                Role::Locality => agreement(said, &predicted[2 * text]),
                _ => agreement(said, &labels[text]),
            };
        }
        all
    };
    let (before, after) = (each(0), each(1));
    Ok(InContext {
        before: question::scores(questions, "", |i| before[i]),
        after: question::scores(questions, "", |i| after[i]),
        each: after,
    })
}
