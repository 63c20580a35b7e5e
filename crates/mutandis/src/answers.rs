//! What a model answers, before and after: short, with its probability.

use mutandis::interrupt::Interrupt;
use mutandis_edit::fact::continuation;
use mutandis_engine::generate::{Generation, Prompt, StopReason};
use mutandis_engine::tokenizer::Specials;
use mutandis_engine::{Error, Model, Overlay, Result};
use serde::Serialize;

use crate::patched::Patched;

/// Tokens that an answer is read from.
const LENGTH: usize = 8;

/// A short answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Answer {
    /// What the model says, greedily: to the end of the clause, or the target where it says that.
    pub(crate) answer: String,
    /// Probability of exactly these tokens, one after another.
    pub(crate) probability: f32,
}

/// A prompt, and the answer that is looked for.
#[derive(Debug, Clone)]
pub(crate) struct Question<'a> {
    /// The prompt.
    pub(crate) prompt: &'a str,
    /// Ends the answer where the model says it; no clause is cut short in it.
    pub(crate) target: Option<&'a str>,
}

/// Characters of a prompt that a message shows.
const SHOWN: usize = 60;

/// Questions that are answered side by side: more cost memory for their caches and gain nothing.
const BATCH: usize = 32;

/// Answers all questions.
///
/// # Errors
/// Where a prompt is empty or longer than the context, or the user stops the work.
pub(crate) fn answers(
    model: &Model,
    patched: &Patched,
    questions: &[Question<'_>],
    interrupt: &Interrupt,
) -> anyhow::Result<Vec<Answer>> {
    let mut all = Vec::with_capacity(questions.len());
    for batch in questions.chunks(BATCH) {
        interrupt.check()?;
        all.extend(together(model, patched, batch)?);
    }
    interrupt.check()?;
    Ok(all)
}

/// A prompt as messages show it: its beginning, where it is long.
pub(crate) fn shown(prompt: &str) -> String {
    let shown: String = prompt.chars().take(SHOWN).collect();
    let more = if shown.len() < prompt.len() { "…" } else { "" };
    shown + more
}

/// Answers questions in one batch.
fn together(model: &Model, patched: &Patched, questions: &[Question<'_>]) -> Result<Vec<Answer>> {
    let tokenizer = model.tokenizer()?;
    let stack: Vec<&Overlay> = patched.overlays();
    let mut prompts = Vec::with_capacity(questions.len());
    let mut longest = LENGTH;
    for question in questions {
        let prompt = tokenizer.encode(&patched.prompt(question.prompt.trim_end()))?.ids;
        if let Some(target) = question.target {
            let wanted = tokenizer.encode_continuation(&continuation(target))?.ids.len();
            let context = model.architecture().context;
            if prompt.len() + wanted > context {
                return Err(Error::input_hint(
                    format!(
                        "`{}` with its target is {} tokens long, the model's context is {context}",
                        shown(question.prompt),
                        prompt.len() + wanted
                    ),
                    "shorten the prompt or the target",
                ));
            }
            longest = longest.max(wanted + 1);
        }
        prompts.push(prompt);
    }
    let batch =
        prompts.iter().map(|ids| Prompt { tokens: ids, overlays: &stack, ..Prompt::default() }).collect();
    let generated = Generation { max_tokens: longest, ..Generation::default() }.run(model, batch)?;
    let mut all = Vec::with_capacity(questions.len());
    for (question, made) in questions.iter().zip(&generated) {
        let text = cut(&made.text, question.target, made.stop == StopReason::Length);
        // The fewest tokens whose text holds the whole answer.
        let mut count = made.tokens.len();
        for n in 1..=made.tokens.len() {
            let so_far = tokenizer.decode_continuation(&made.tokens[..n], Specials::Skip);
            if so_far.trim_start().len() >= text.len() {
                count = n;
                break;
            }
        }
        let mut log: f32 = made.logprobs.iter().take(count).sum();
        if text.is_empty() {
            // The answer is that there is none.
            log += made.end_logprob.unwrap_or_default();
        }
        all.push(Answer { answer: text, probability: log.exp() });
    }
    Ok(all)
}

/// The target where the text begins with it, else the text to the end of its first clause, or of
/// its last whole word where it `goes_on`.
fn cut(text: &str, target: Option<&str>, goes_on: bool) -> String {
    let text = text.trim_start();
    if let Some(target) = target.map(str::trim)
        && let Some(rest) = text.strip_prefix(target)
        && !rest.starts_with(char::is_alphanumeric)
    {
        return target.to_owned();
    }
    let clause = text.find(['\n', ',', ';', '.', '!', '?', ':', '"', '(']).filter(|&i| i > 0);
    // Where tokens ran out before the clause did, the last word may be half a word.
    let word = || text.rfind(char::is_whitespace).filter(|_| goes_on);
    let end = clause.or_else(word).unwrap_or(text.len());
    text[..end].trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_with_its_clause_or_its_target() {
        assert_eq!(cut(" Paris.\n\nThe", None, true), "Paris");
        assert_eq!(cut(" Rome, the city of light", Some("Rome, the city"), true), "Rome, the city");
        assert_eq!(cut(" Romeo and", Some("Rome"), false), "Romeo and");
        assert_eq!(cut(" Mexico City", None, false), "Mexico City");
        assert_eq!(cut(" the other anima", None, true), "the other");
        assert_eq!(cut(" anima", None, true), "anima");
        assert_eq!(cut(".", None, false), ".");
    }
}
