//! Perplexity of a fixed text: whether edits broke the model's language.

use mutandis_engine::kernels::loss;
use mutandis_engine::{LogitRows, Model, Pass, Result, Sequence};

use crate::edited::Edited;

/// A text of about a thousand tokens on many matters, ours, for when no other is given.
pub const TEXT: &str = include_str!("perplexity/text.txt");

/// Which part of a text is measured, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Window {
    /// Tokens of the text that are used, from its beginning.
    pub tokens: usize,
    /// Length of the windows it is cut into; each is predicted from its own first token on.
    pub length: usize,
}

impl Default for Window {
    fn default() -> Self {
        Self { tokens: 10_240, length: 256 }
    }
}

/// Token ids of the windows of a text; at least one, none shorter than two tokens.
///
/// # Errors
/// Where the model has no tokenizer, or the text is too short.
pub fn windows(model: &Model, text: &str, window: Window) -> Result<Vec<Vec<u32>>> {
    // What could be more than is used is not tokenised: no token is longer than this.
    const LONGEST: usize = 64;
    let end = text.char_indices().nth(window.tokens.saturating_mul(LONGEST)).map_or(text.len(), |(i, _)| i);
    let mut ids = model.tokenizer()?.encode(&text[..end])?.ids;
    ids.truncate(window.tokens);
    let windows: Vec<Vec<u32>> =
        ids.chunks(window.length.max(2)).filter(|w| w.len() > 1).map(<[u32]>::to_vec).collect();
    if windows.is_empty() {
        return Err(mutandis_engine::Error::input("the text for perplexity has fewer than two tokens"));
    }
    Ok(windows)
}

/// exp of the mean −ln p over all tokens but the first of each window. Text that goes before every
/// prompt goes before every window, and is not measured.
///
/// # Errors
/// Where a window, with what goes before it, is longer than the model's context.
pub fn perplexity(by: &Edited<'_>, windows: &[Vec<u32>]) -> Result<f64> {
    let Edited { model, overlays, prefix } = *by;
    let v = model.architecture().vocabulary;
    let (mut ahead, bos) = match prefix {
        "" => (vec![], None),
        prefix => (model.tokenizer()?.encode(prefix)?.ids, model.tokenizer()?.bos()),
    };
    // A text begins once, and no window begins that did not before.
    let begins = |ids: &[u32]| usize::from(bos.is_some() && ids.first().copied() == bos);
    ahead.drain(..begins(&ahead));
    // Of a longer one, what is nearest.
    let longest = windows.iter().map(Vec::len).max().unwrap_or(0);
    let room = model.architecture().context.saturating_sub(longest);
    ahead.drain(..ahead.len().saturating_sub(room));
    let (mut sum, mut count) = (0.0, 0usize);
    // Logits of a few hundred rows are a hundred megabytes.
    for ids in windows {
        let (begin, rest) = ids.split_at(begins(ids));
        let tokens = [begin, &ahead, rest].concat();
        let rows = (tokens.len() - ids.len()..tokens.len() - 1).collect();
        let sequences = vec![Sequence { tokens: &tokens, overlays, ..Default::default() }];
        let pass = Pass { sequences, logits: LogitRows::Rows(rows), ..Default::default() };
        let logits = model.forward(pass)?.logits;
        let losses = model.install(|| loss::cross_entropy(model.isa(), &logits, v, &ids[1..]));
        sum += losses.iter().map(|x| f64::from(*x)).sum::<f64>();
        count += losses.len();
    }
    Ok((sum / count as f64).exp())
}
