//! EasyEdit's scores of ConvSent (`../shared/reference/easyedit.md` §1.14), defect by defect, so
//! that its published tables compare. `strict::sentiment` has what is meant.
//!
//! A text is the question, a blank, the token that ends a text, a blank, and the answer; at most
//! 128 tokens, padded on the right to the longest of its group with that same token. Then
//!
//! - all texts are scored from the *last* separator of the group on, as the peer's rows share one
//!   mask: of a text with a short question, the beginning of the answer is left out;
//! - a token's log-probability is read from the logits *behind* that token, not before it;
//! - pads are scored too, as the token with id 0, and so is the separator;
//! - a method that changes the weights in place leaves the peer no unedited model: the model is
//!   compared with itself, so that nothing has moved and the topic is always kept.
//!
//! A text whose question leaves no room for the separator ends the peer's run; a record that has
//! one has no scores here.
//!
//! DIFFERENCE: pads are attended to by pads behind them, as tokens are; the peer masks them. Its
//! `</s>` is Llama 2's, and other models are refused; here every model's own token serves. Text
//! before every prompt, which the peer's function does not know, goes before the question.

use mutandis_edit::Entry;
use mutandis_edit::method::Family;
use mutandis_engine::{Model, Result};

use crate::edited::Edited;
use crate::passes::{self, Text};
use crate::question::mean;
use crate::results::Scores;
use crate::sentiment::{Case, Likelihoods, Opinion};

/// Length of a text in tokens at most, without what goes before every prompt.
const LIMIT: usize = 128;

/// A group of texts, padded to one length.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    /// Tokens of each.
    texts: Vec<Vec<u32>>,
    /// How many are scored, counted from the end.
    scored: usize,
    /// The token that separates, ends and pads.
    separator: u32,
}

impl Group {
    /// Cuts opinions, with text before their questions. `None` where a separator is cut off, or
    /// the tokenizer knows no end of a text.
    fn new(model: &Model, prefix: &str, opinions: &[Opinion]) -> Result<Option<Self>> {
        let tokenizer = model.tokenizer()?;
        let Some(&separator) = tokenizer.eos_ids().first() else { return Ok(None) };
        let mut texts = Vec::with_capacity(opinions.len());
        let (mut at, mut longest) = (0, 0);
        for Opinion { question, answer, .. } in opinions {
            let plain = tokenizer.encode(&format!("{question} "))?.ids;
            let Some(room) = LIMIT.checked_sub(plain.len() + 1) else { return Ok(None) };
            let mut answer = tokenizer.encode_continuation(&format!(" {answer}"))?.ids;
            answer.truncate(room);
            at = at.max(plain.len());
            longest = longest.max(plain.len() + 1 + answer.len());
            let mut text = if prefix.is_empty() {
                plain
            } else {
                tokenizer.encode(&format!("{prefix}{question} "))?.ids
            };
            text.push(separator);
            text.extend(answer);
            texts.push(text);
        }
        let width = texts.iter().map(Vec::len).max().unwrap_or(0);
        texts.iter_mut().for_each(|text| text.resize(width, separator));
        Ok(Some(Self { texts, scored: longest - at, separator }))
    }

    fn asked<'a>(&'a self, edited: &Edited<'a>) -> Vec<Text<'a>> {
        let of = |ids: &'a Vec<u32>| Text {
            ids,
            overlays: edited.overlays,
            places: ids.len().saturating_sub(self.scored)..ids.len(),
        };
        self.texts.iter().map(of).collect()
    }

    /// What is scored at a place.
    fn label(&self, text: usize, place: usize) -> u32 {
        let id = self.texts[text][place];
        if id == self.separator { 0 } else { id }
    }
}

/// How likely the answers about the topic are, by one model. `None` where the peer's run ends.
///
/// # Errors
/// Where the model has no tokenizer, or a text with what goes before it is longer than its context.
pub fn likelihoods(edited: &Edited<'_>, case: &Case) -> Result<Option<Likelihoods>> {
    let model = edited.model;
    let Some(group) = Group::new(model, edited.prefix, &case.own)? else { return Ok(None) };
    let found = passes::read(model, &group.asked(edited), |text, place, row| {
        passes::log_probability(model, row, group.label(text, place))
    })?;
    let each = case.own.iter().zip(found).flat_map(|(o, values)| values.into_iter().map(|x| (o.wanted, x)));
    Ok(Likelihoods::mean(each))
}

/// The peer's `dd`: mean `KL(unedited ‖ edited)` in nats over the scored places of the other
/// topic's texts. With text before every prompt, places are counted from the end.
fn divergence(edited: &Edited<'_>, case: &Case) -> Result<Option<f64>> {
    let unedited = Edited::unedited(edited.model);
    let Some(before) = Group::new(edited.model, "", &case.other)? else { return Ok(None) };
    let Some(after) = Group::new(edited.model, edited.prefix, &case.other)? else { return Ok(None) };
    let found = passes::divergences(edited.model, &before.asked(&unedited), &after.asked(edited))?;
    Ok(mean(found.into_iter().flatten().map(f64::from)))
}

/// Whether the peer's method overwrites the weights of the model that it is given: what adds layers,
/// or writes by an editor into a copy, leaves it as it was (easyedit.md §1.14, defect d).
pub fn is_in_place(method: &Entry) -> bool {
    method.family == Family::Mastery && !method.has_editor()
}

/// The peer's `es` as `edit` and its `dd` as `locality:kl`, in nats, lower being better. `before`
/// are the unedited model's likelihoods; `in_place` says that the peer's method overwrites the
/// weights. A record on which the peer's run ends has no scores.
///
/// DIFFERENCE: fluency is that of the edited model for every method; the peer's is the unedited
/// model's where weights are not overwritten.
///
/// # Errors
/// As [`likelihoods`].
pub fn scores(
    edited: &Edited<'_>,
    case: &Case,
    before: Option<&Likelihoods>,
    in_place: bool,
) -> Result<Scores> {
    let mut scores = Scores::new();
    if let (Some(after), Some(before)) = (likelihoods(edited, case)?, before) {
        scores.insert("edit".into(), after.success(if in_place { &after } else { before }));
    }
    let moved = if in_place { Some(0.0) } else { divergence(edited, case)? };
    scores.extend(moved.map(|x| ("locality:kl".to_owned(), x)));
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_edits_in_place_by_what_neither_adds_layers_nor_has_an_editor() {
        let in_place = |id: &str| is_in_place(mutandis_edit::method::find(id).expect("a method"));
        let found = ["rome", "ft-m", "kn", "lora", "adalora", "mend", "malmen", "ice"].map(in_place);
        assert_eq!(found, [true, true, true, false, false, false, false, false]);
    }
}
