//! EasyEdit's `PPL` and `OOD_PPL`: perplexity of targets, and the share of a prompt's tokens that
//! the model was nearly sure of.

use mutandis_engine::kernels::loss;
use mutandis_engine::{LogitRows, Model, Overlay, Pass, Result, Sequence};

use super::Forced;

/// A token counts as known where its loss is below −ln 0.8.
const KNOWN: f32 = 0.223_143_55;

/// exp of the mean −ln p over the targets' tokens of a batch: one number, as the peer has it.
///
/// Its quirks are kept. Texts are padded on the left with the end-of-text token, which is attended
/// to like any other; yet the prompt is masked by counting from the left, so that of every text but
/// the longest some of the prompt's own tokens are scored too. One text has none of this.
/// `None` where nothing is scored: the peer has NaN.
///
/// # Errors
/// Where the model has no tokenizer, or a text is longer than its context.
pub fn target_perplexity(model: &Model, overlays: &[&Overlay], texts: &[Forced]) -> Result<Option<f64>> {
    let pad = model.tokenizer()?.eos_ids().first().copied().unwrap_or(0);
    let longest = texts.iter().map(|t| t.ids.len()).max().unwrap_or(0);
    let (mut sum, mut count) = (0.0, 0usize);
    for text in texts {
        let mut ids = vec![pad; longest - text.ids.len()];
        ids.extend(&text.ids);
        let scored: Vec<usize> = (text.start.max(1)..longest).filter(|&i| ids[i] != pad).collect();
        let losses = losses(model, overlays, &ids, &scored)?;
        sum += losses.iter().map(|x| f64::from(*x)).sum::<f64>();
        count += losses.len();
    }
    Ok((count > 0).then(|| (sum / count as f64).exp()))
}

/// Share of the prompts' tokens, but the first of each, whose loss is below −ln 0.8. Positions that
/// are missing to the longest prompt count as known, as the peer has it. `None` for prompts of one
/// token.
///
/// # Errors
/// Where a prompt is longer than the model's context.
pub fn known_share(model: &Model, overlays: &[&Overlay], prompts: &[Vec<u32>]) -> Result<Option<f64>> {
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let mut known = 0;
    for ids in prompts {
        let scored: Vec<usize> = (1..ids.len()).collect();
        let losses = losses(model, overlays, ids, &scored)?;
        known += losses.iter().filter(|x| **x < KNOWN).count() + longest - ids.len();
    }
    let all = prompts.len() * longest.saturating_sub(1);
    Ok((all > 0).then(|| known as f64 / all as f64))
}

/// −ln p of the tokens at some places of a text, none of them the first.
fn losses(model: &Model, overlays: &[&Overlay], ids: &[u32], scored: &[usize]) -> Result<Vec<f32>> {
    if scored.is_empty() {
        return Ok(vec![]);
    }
    let pass = Pass {
        sequences: vec![Sequence { tokens: ids, overlays, ..Default::default() }],
        logits: LogitRows::Rows(scored.iter().map(|i| i - 1).collect()),
        ..Default::default()
    };
    let logits = model.forward(pass)?.logits;
    let wanted: Vec<u32> = scored.iter().map(|&i| ids[i]).collect();
    let v = model.architecture().vocabulary;
    Ok(model.install(|| loss::cross_entropy(model.isa(), &logits, v, &wanted)))
}
