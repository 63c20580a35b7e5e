//! Forward passes over texts that are given, cut so that their logits fit in memory.

use std::ops::Range;

use mutandis_engine::kernels::loss;
use mutandis_engine::sampling::likeliest;
use mutandis_engine::{LogitRows, Model, Overlay, Pass, Result, Sequence};
use rayon::prelude::*;

use crate::compat::{Asked, Forced};

/// A text whose logits are wanted at some places.
#[derive(Debug, Clone)]
pub(crate) struct Text<'a> {
    /// Its tokens.
    pub(crate) ids: &'a [u32],
    /// Patches in force.
    pub(crate) overlays: &'a [&'a Overlay],
    /// Tokens behind which logits are wanted: those of place `i` say what follows token `i`.
    pub(crate) places: Range<usize>,
}

impl<'a> From<&Asked<'a>> for Text<'a> {
    /// Wants what predicts the labels. Nothing comes before the first token of a text.
    fn from(Asked { text, overlays }: &Asked<'a>) -> Self {
        let last = text.ids.len().saturating_sub(1);
        Self { ids: &text.ids, overlays, places: text.start.saturating_sub(1).min(last)..last }
    }
}

impl<'a> Text<'a> {
    /// A text as the unedited model reads it, and as the edited one does, at the same places of the
    /// answer. Where text before the prompt moves its border, what both have of it counts.
    pub(crate) fn pair(plain: &'a Forced, shown: &'a Forced, overlays: &'a [&'a Overlay]) -> [Self; 2] {
        let count = plain.labels().len().min(shown.labels().len()).min(plain.ids.len().saturating_sub(1));
        [(plain, &[][..]), (shown, overlays)].map(|(text, overlays)| {
            let last = text.ids.len().saturating_sub(1);
            Self { ids: &text.ids, overlays, places: last.saturating_sub(count)..last }
        })
    }
}

/// Rows, and rows with logits, of one pass: what it takes in memory.
const PASS: (usize, usize) = (2048, 384);

/// How many of the first of these go into one pass, each told by its rows and its rows with logits;
/// at least one, where there is any.
pub(crate) fn fitting(sizes: impl Iterator<Item = (usize, usize)>) -> usize {
    let (mut rows, mut wanted) = (0, 0);
    let mut sizes = sizes.peekable();
    let any = usize::from(sizes.peek().is_some());
    let fits = |(own_rows, own_wanted): &(usize, usize)| {
        rows += own_rows;
        wanted += own_wanted;
        rows <= PASS.0 && wanted <= PASS.1
    };
    sizes.take_while(fits).count().max(any)
}

fn together(texts: &[Text<'_>]) -> usize {
    fitting(texts.iter().map(|text| (text.ids.len(), text.places.len())))
}

/// The logits of one pass, `[places of all texts, v]`.
fn logits(model: &Model, texts: &[Text<'_>]) -> Result<Vec<f32>> {
    let (mut at, mut rows) = (0, vec![]);
    for text in texts {
        rows.extend(text.places.clone().map(|place| at + place));
        at += text.ids.len();
    }
    let sequences = texts
        .iter()
        .map(|t| Sequence { tokens: t.ids, overlays: t.overlays, ..Default::default() })
        .collect();
    let pass = Pass { sequences, logits: LogitRows::Rows(rows), ..Default::default() };
    Ok(model.forward(pass)?.logits)
}

/// Deals what was found at all places out to the texts.
fn deal<T>(texts: &[Text<'_>], found: Vec<T>) -> Vec<Vec<T>> {
    let mut found = found.into_iter();
    texts.iter().map(|text| found.by_ref().take(text.places.len()).collect()).collect()
}

/// What `of` makes of each row of logits, `[v]`, given the text's index and the place.
///
/// # Errors
/// Where a text is empty or longer than the model's context.
pub(crate) fn read<T: Send>(
    model: &Model,
    texts: &[Text<'_>],
    of: impl Fn(usize, usize, &[f32]) -> T + Sync,
) -> Result<Vec<Vec<T>>> {
    let v = model.architecture().vocabulary;
    let mut out = Vec::with_capacity(texts.len());
    while out.len() < texts.len() {
        let first = out.len();
        let now = &texts[first..first + together(&texts[first..])];
        let places: Vec<(usize, usize)> =
            now.iter().enumerate().flat_map(|(i, t)| t.places.clone().map(move |p| (first + i, p))).collect();
        let logits = logits(model, now)?;
        let found = model.install(|| {
            logits
                .par_chunks_exact(v)
                .zip(&places)
                .map(|(row, &(text, place))| of(text, place, row))
                .collect()
        });
        out.extend(deal(now, found));
    }
    Ok(out)
}

/// At each of the labels, the likeliest token and the label's own log-probability in nats, both
/// given the true tokens before it.
///
/// # Errors
/// As [`read`].
pub(crate) fn labels(model: &Model, asked: &[Asked<'_>]) -> Result<Vec<Vec<(u32, f64)>>> {
    let texts: Vec<Text<'_>> = asked.iter().map(Text::from).collect();
    read(model, &texts, |text, place, row| {
        let label = texts[text].ids[place + 1];
        (likeliest(row) as u32, log_probability(model, row, label))
    })
}

/// ln p of a token by a row of logits, in nats.
pub(crate) fn log_probability(model: &Model, row: &[f32], token: u32) -> f64 {
    f64::from(row[token as usize] - loss::log_sum_exp(model.isa(), row))
}

/// `KL(before ‖ after)` in nats at each place of pairs of texts, which have as many places.
///
/// # Errors
/// As [`read`].
pub(crate) fn divergences(model: &Model, before: &[Text<'_>], after: &[Text<'_>]) -> Result<Vec<Vec<f32>>> {
    let v = model.architecture().vocabulary;
    let mut out = Vec::with_capacity(before.len());
    while out.len() < before.len() {
        let first = out.len();
        let count = together(&before[first..]).min(together(&after[first..])).max(1);
        let [before, after] = [before, after].map(|texts| &texts[first..first + count]);
        let (p, mut q) = (logits(model, before)?, logits(model, after)?);
        let found = model.install(|| {
            loss::log_softmax(model.isa(), &mut q, v);
            loss::kl(model.isa(), &p, &q, v)
        });
        out.extend(deal(before, found));
    }
    Ok(out)
}
