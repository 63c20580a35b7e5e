//! Greedy continuations of a record's prompts, side by side.

use mutandis_engine::{Generated, Generation, Prompt, Result};

use crate::edited::Edited;

/// Goes on with each prompt, in one generation; results in their order.
///
/// # Errors
/// Where the model has no tokenizer, or a prompt is empty or longer than its context.
pub(crate) fn continuations(
    edited: &Edited<'_>,
    prompts: &[&str],
    generation: &Generation,
) -> Result<Vec<Generated>> {
    let tokenizer = edited.model.tokenizer()?;
    let ids = prompts
        .iter()
        .map(|prompt| Ok(tokenizer.encode(&edited.prompt(prompt))?.ids))
        .collect::<Result<Vec<_>>>()?;
    let prompts =
        ids.iter().map(|tokens| Prompt { tokens, overlays: edited.overlays, ..Prompt::default() }).collect();
    generation.run(edited.model, prompts)
}
