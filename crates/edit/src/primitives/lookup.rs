//! At which character of a text a fact is written: that of its subject, but never one where models
//! park their attention.
//!
//! DIFFERENCE: published code writes at the subject's last token whatever it is. What stands at the
//! first token of a text belongs to no subject: its state is hundreds of times longer than any other
//! and nearly the same for all words, so that a change which its key meets, every text meets (arXiv
//! 2406.11263: the cause of ROME's collapse on single facts). The second token of a rare word can be
//! such a sink too. The token behind has seen the subject and is written instead.

use mutandis_engine::Model;
use mutandis_engine::tokenizer::Encoding;

use super::ascent::Ascent;
use super::request::fits;
use crate::error::{Error, Result};

/// A state so many times longer than the median of its text's is a sink's. Of 580 lookup tokens of
/// CounterFact on SmolLM2-135M and Gemma 3 270M the longest ordinary one has 2.9 times the median
/// (`Flynn` in `Raymond Flynn is a`), the shortest sink 3.8 (`IC` in `BRIC, which was named for`).
const SINK: f64 = 3.0;

/// A text and one of its characters, at whose token a fact is looked up.
#[derive(Debug, Clone)]
pub(super) struct Text {
    pub(super) text: String,
    pub(super) character: usize,
}

impl Text {
    /// With another character.
    pub(super) fn at(self, character: usize) -> Self {
        Self { character, ..self }
    }
}

/// The characters of texts, or, where one lies in a sink, the last one of the first token behind
/// it that is none.
///
/// # Errors
/// Where the model cannot be run; for a text, where it has no token to write at or is longer than
/// the context.
pub(super) fn characters(model: &Model, texts: &[&Text]) -> Result<Vec<Result<usize>>> {
    let tokenizer = model.tokenizer()?;
    let encodings = texts.iter().map(|t| tokenizer.encode(&t.text)).collect::<Result<Vec<_>, _>>()?;
    let context = model.architecture().context;
    let tokens = encodings.iter().map(|e| &e.ids[..e.ids.len().min(context)]).collect();
    // Sinks stand out from the second or third layer on.
    let ascent = Ascent::new(model, &[], tokens, (model.architecture().layers / 4).max(1))?;
    let width = model.architecture().width;
    let of_text = |(text, (encoding, hidden)): (&&Text, (&Encoding, &Vec<f32>))| {
        fits(model, &text.text, encoding.ids.len())?;
        let Some(at) = encoding.token_at_char(text.character) else { return Ok(text.character) };
        let lengths: Vec<f64> = hidden.chunks_exact(width).map(length).collect();
        let mut behind = at..lengths.len();
        match behind.find(|&i| !is_sink(&lengths, i)) {
            Some(i) if i > at => Ok(encoding.offsets[i].end - 1),
            None if at == 0 => Err(Error::input_hint(
                format!("`{}` is one token, the first of its text, where no fact can be written", text.text),
                "write a longer prompt, such as `The capital of France is`",
            )),
            _ => Ok(text.character),
        }
    };
    Ok(texts.iter().zip(encodings.iter().zip(ascent.hidden())).map(of_text).collect())
}

/// Whether a token of a text is the first or stands out by its length.
fn is_sink(lengths: &[f64], token: usize) -> bool {
    let mut others = lengths[1..].to_vec();
    others.sort_by(f64::total_cmp);
    token == 0 || lengths[token] > SINK * others[(others.len() - 1) / 2]
}

/// Euclidean length.
fn length(row: &[f32]) -> f64 {
    row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use mutandis_engine::Options;

    use super::*;

    fn looked_up(model: &str, text: &str, character: usize) -> Result<usize> {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
        let model = Model::load(&fixtures.join(model), Options::default()).unwrap();
        characters(&model, &[&Text { text: text.to_owned(), character }]).unwrap().remove(0)
    }

    #[test]
    fn a_sink_is_the_first_token_or_much_longer_than_the_median_of_the_others() {
        let lengths = [900.0, 250.0, 95.0, 80.0, 90.0];
        assert_eq!([0, 1, 2, 3, 4].map(|i| is_sink(&lengths, i)), [true, false, false, false, false]);
        let lengths = [900.0, 290.0, 95.0, 80.0, 90.0];
        assert!(is_sink(&lengths, 1));
        // Nothing tells whether the only one behind the first is long.
        assert_eq!([0, 1].map(|i| is_sink(&[900.0, 290.0], i)), [true, false]);
    }

    #[test]
    fn the_token_behind_the_first_is_looked_up_where_no_token_stands_before_the_text() {
        // In the fixture of GPT-2 each character is a token, in that of Llama one stands before.
        assert_eq!(looked_up("gpt2.gguf", "A cat", 0).unwrap(), 1);
        assert_eq!(looked_up("gpt2.gguf", "A cat", 4).unwrap(), 4);
        assert_eq!(looked_up("stories260K.gguf", "A cat", 0).unwrap(), 0);
    }

    #[test]
    fn a_text_of_one_token_and_one_that_is_too_long_are_named() {
        let error = looked_up("gpt2.gguf", "A", 0).unwrap_err();
        assert!(error.to_string().contains("`A` is one token"), "{error}");
        assert!(error.hint().unwrap().contains("longer prompt"));
        let error = looked_up("gpt2.gguf", &"A cat ".repeat(900), 0).unwrap_err();
        assert!(error.to_string().contains("the model's context is"), "{error}");
    }
}
