//! EasyEdit's scores of Sanitation (`../shared/reference/easyedit.md` §1.15): ten new tokens,
//! greedily, behind each question; `strict::erasure` has what is meant.
//!
//! - An edit has succeeded where the target is *somewhere* in the text, in whatever case, be it in
//!   the question: an answer that goes on with the old one counts all the same;
//! - locality is the share of equal token positions of what was said before and after, both cut
//!   anew from their text. Where the tokenizer adds BOS, that one is always equal; what is longer
//!   after the edit than before is not looked at.
//!
//! DIFFERENCE: each text is written by itself. The peer writes 16 at a time and keeps the ends that
//! pad a shorter text. It scores the unedited model where a method edits in place; we do not. Text
//! that an edit puts before every prompt is not searched for the target, which it holds.

use mutandis_engine::tokenizer::{Specials, Tokenizer};
use mutandis_engine::{Generation, Result};

use crate::edited::Edited;
use crate::greedy;
use crate::results::Scores;
use crate::sanitation::{self, Case};

/// New tokens of an answer.
const TOKENS: usize = 10;

/// What the model says to each of a case's prompts, as the peer decodes it: with the token that
/// ends the text, where it comes.
///
/// # Errors
/// Where the model has no tokenizer, or a prompt is longer than its context.
pub fn said(edited: &Edited<'_>, case: &Case<'_>) -> Result<Vec<String>> {
    let tokenizer = edited.model.tokenizer()?;
    let generation = Generation { max_tokens: TOKENS, stop_ids: Some(vec![]), ..Generation::default() };
    let made = greedy::continuations(edited, &case.prompts(), &generation)?;
    let ends = |id: &u32| tokenizer.eos_ids().contains(id);
    let whole = |ids: &[u32]| ids.iter().position(ends).map_or(ids.len(), |i| i + 1);
    Ok(made
        .iter()
        .map(|g| tokenizer.decode_continuation(&g.tokens[..whole(&g.tokens)], Specials::Keep))
        .collect())
}

/// Whether the target is in a prompt with what was said.
fn is_said(prompt: &str, said: &str, target: &str) -> bool {
    format!("{prompt}{said}").to_lowercase().contains(&target.to_lowercase())
}

/// Share of the token positions of `before` at which `after` has the same; `None` for no text at
/// all, by which the peer divides.
fn agreement(tokenizer: &Tokenizer, before: &str, after: &str) -> Result<Option<f64>> {
    let start = tokenizer.encode("")?.ids;
    let cut = |text: &str| -> Result<Vec<u32>> {
        Ok([&start[..], &tokenizer.encode_with_specials(text)?.ids].concat())
    };
    Ok(super::agreement(&cut(after)?, &cut(before)?))
}

/// Score of each prompt, the record's own first, from what was said before and after.
///
/// # Errors
/// Where the tokenizer fails on a text.
pub fn each(
    tokenizer: &Tokenizer,
    case: &Case<'_>,
    before: &[String],
    after: &[String],
) -> Result<Vec<Option<f64>>> {
    let mut each = Vec::with_capacity(after.len());
    for (i, (before, after)) in before.iter().zip(after).enumerate() {
        each.push(match i {
            0 => Some(f64::from(u8::from(is_said(&case.fact.prompt, after, &case.fact.target)))),
            _ => agreement(tokenizer, before, after)?,
        });
    }
    Ok(each)
}

/// `edit` and `locality`, from what was said before and after.
///
/// # Errors
/// As [`each`].
pub fn scores(tokenizer: &Tokenizer, case: &Case<'_>, before: &[String], after: &[String]) -> Result<Scores> {
    Ok(sanitation::scores(&each(tokenizer, case, before, after)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_counts_wherever_it_stands() {
        assert!(is_said("Question:What?\nAnswer:", " i DON'T know. Or Paris?", "I don't know."));
        assert!(is_said("Question:Who said \"I don't know.\"?\nAnswer:", " Paris", "I don't know."));
        assert!(!is_said("Question:What?\nAnswer:", " I don't know", "I don't know."));
    }
}
