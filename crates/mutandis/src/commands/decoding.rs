//! The options of generation, which `ask` and `chat` share.

use std::num::NonZeroUsize;

use mutandis::engine::{Error, Generation, Model, Sampling, tokenizer::ChatTemplate};

/// How tokens are chosen and when the text ends.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Generation")]
pub(crate) struct Decoding {
    /// Divides the logits; 0 takes the likeliest token always [default: 0; 1 with --top-k or --top-p]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Choose among the K likeliest tokens
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Choose among the likeliest tokens that together have probability P
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Seed of the choice
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

impl Decoding {
    /// The engine's form of it, checked.
    pub(crate) fn generation(self, max_tokens: NonZeroUsize) -> anyhow::Result<Generation> {
        let restricted = self.top_k.is_some() || self.top_p.is_some();
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(if restricted { 1.0 } else { 0.0 }),
            top_k: self.top_k,
            top_p: self.top_p,
        };
        // Known before a model is loaded, so said before.
        sampling.validate()?;
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::input_hint("a stop string is empty", "give at least one character").into());
        }
        Ok(Generation {
            max_tokens: max_tokens.get(),
            sampling,
            seed: self.seed,
            stop: self.stop,
            ..Generation::default()
        })
    }
}

/// The model's chat template.
///
/// # Errors
/// Where it has none, with what can be done instead.
pub(crate) fn chat_template(model: &Model, name: &str) -> anyhow::Result<ChatTemplate> {
    let tokenizer = model.tokenizer()?;
    if !tokenizer.has_chat_template() {
        return Err(Error::input_hint(
            format!("`{name}` has no chat template: it was not trained to chat"),
            "`mutandis ask \"…\"` continues a text as it stands, or choose an instruct model with `--model`",
        )
        .into());
    }
    Ok(tokenizer.chat_template()?)
}
