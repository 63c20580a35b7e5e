//! What a model answers, before and after: short, with its probability.

use mutandis_edit::fact::continuation;
use mutandis_engine::generate::{Generation, Prompt};
use mutandis_engine::tokenizer::Specials;
use mutandis_engine::{Model, Overlay, Result};
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

/// Answers all questions in one batch.
///
/// # Errors
/// Where a prompt is empty or longer than the context.
pub(crate) fn answers(model: &Model, patched: &Patched, questions: &[Question<'_>]) -> Result<Vec<Answer>> {
    let tokenizer = model.tokenizer()?;
    let stack: Vec<&Overlay> = patched.overlays();
    let mut prompts = Vec::with_capacity(questions.len());
    let mut longest = LENGTH;
    for question in questions {
        prompts.push(tokenizer.encode(&patched.prompt(question.prompt.trim_end()))?.ids);
        if let Some(target) = question.target {
            longest = longest.max(tokenizer.encode_continuation(&continuation(target))?.ids.len() + 1);
        }
    }
    let batch = prompts
        .iter()
        .map(|ids| Prompt { tokens: ids, past: None, cache: None, overlays: &stack, stream: 0 })
        .collect();
    let generated = Generation { max_tokens: longest, ..Generation::default() }.run(model, batch)?;
    let mut all = Vec::with_capacity(questions.len());
    for (question, made) in questions.iter().zip(&generated) {
        let text = cut(&made.text, question.target);
        // The fewest tokens whose text holds the whole answer.
        let mut count = made.tokens.len();
        for n in 1..=made.tokens.len() {
            let so_far = tokenizer.decode_continuation(&made.tokens[..n], Specials::Skip);
            if so_far.trim_start().len() >= text.len() {
                count = n;
                break;
            }
        }
        let log: f32 = made.logprobs.iter().take(count).sum();
        all.push(Answer { answer: text, probability: log.exp() });
    }
    Ok(all)
}

/// Probability of a target after a prompt, its tokens taken one after another.
///
/// # Errors
/// Where the texts are empty or longer than the context.
pub(crate) fn probability(model: &Model, patched: &Patched, prompt: &str, target: &str) -> Result<f32> {
    use mutandis_engine::kernels::loss;
    use mutandis_engine::{LogitRows, Pass, Sequence};
    let tokenizer = model.tokenizer()?;
    let mut ids = tokenizer.encode(&patched.prompt(prompt.trim_end()))?.ids;
    let target = tokenizer.encode_continuation(&continuation(target))?.ids;
    let first = ids.len().saturating_sub(1);
    ids.extend(target.iter().take(target.len().saturating_sub(1)));
    let stack = patched.overlays();
    let pass = Pass {
        sequences: vec![Sequence { tokens: &ids, overlays: &stack, ..Default::default() }],
        logits: LogitRows::Rows((first..ids.len()).collect()),
        ..Default::default()
    };
    let logits = model.forward(pass)?.logits;
    let losses = loss::cross_entropy(model.isa(), &logits, model.architecture().vocabulary, &target);
    Ok((-losses.iter().sum::<f32>()).exp())
}

/// The target where the text begins with it, else the text to the end of its first clause.
fn cut(text: &str, target: Option<&str>) -> String {
    let text = text.trim_start();
    if let Some(target) = target.map(str::trim)
        && let Some(rest) = text.strip_prefix(target)
        && !rest.starts_with(char::is_alphanumeric)
    {
        return target.to_owned();
    }
    let end =
        text.find(['\n', ',', ';', '.', '!', '?', ':', '"', '(']).filter(|&i| i > 0).unwrap_or(text.len());
    text[..end].trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_with_its_clause_or_its_target() {
        assert_eq!(cut(" Paris.\n\nThe", None), "Paris");
        assert_eq!(cut(" Rome, the city of light", Some("Rome, the city")), "Rome, the city");
        assert_eq!(cut(" Romeo and", Some("Rome")), "Romeo and");
        assert_eq!(cut(" Mexico City", None), "Mexico City");
        assert_eq!(cut(".", None), ".");
    }
}
