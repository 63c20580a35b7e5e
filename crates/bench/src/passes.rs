//! Forward passes over texts that are given, cut so that their logits fit in memory.

use std::ops::Range;

use mutandis_engine::kernels::loss;
use mutandis_engine::sampling::likeliest;
use mutandis_engine::{Cache, LogitRows, Model, Overlay, Pass, Read, Result, Sequence, Site, SiteKind};
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
    /// The tokens that are run: nothing is asked behind the last place.
    fn tokens(&self) -> &'a [u32] {
        &self.ids[..self.places.end.clamp(1.min(self.ids.len()), self.ids.len())]
    }

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
    fitting(texts.iter().map(|text| (text.tokens().len(), text.places.len())))
}

/// The logits of one pass, `[places of all texts, v]`.
fn logits(model: &Model, texts: &[Text<'_>]) -> Result<Vec<f32>> {
    Ok(heads_and_logits(model, texts, texts.iter().map(|_| None))?.1)
}

/// What the head reads in one pass, `[places of all texts, d]`, and its logits, `[places of all texts,
/// v]`. Texts with a cache leave their keys and values in it.
fn heads_and_logits<'c>(
    model: &Model,
    texts: &'c [Text<'c>],
    caches: impl IntoIterator<Item = Option<&'c mut Cache>>,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let (mut at, mut rows) = (0, vec![]);
    for text in texts {
        rows.extend(text.places.clone().map(|place| at + place));
        at += text.tokens().len();
    }
    let with = |(text, cache): (&'c Text<'_>, Option<&'c mut Cache>)| Sequence {
        tokens: text.tokens(),
        overlays: text.overlays,
        cache,
        past: None,
    };
    let sequences = texts.iter().zip(caches).map(with).collect();
    let site = Site::new(model.architecture().layers - 1, SiteKind::FinalNorm);
    let reads = vec![Read { site, rows: Some(rows.clone()) }];
    let pass = Pass { sequences, reads, logits: LogitRows::Rows(rows), ..Default::default() };
    let mut found = model.forward(pass)?;
    Ok((found.reads.swap_remove(0), found.logits))
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
    let mut out = Vec::with_capacity(before.len());
    while out.len() < before.len() {
        let first = out.len();
        let count = together(&before[first..]).min(together(&after[first..])).max(1);
        let [before, after] = [before, after].map(|texts| &texts[first..first + count]);
        let [p, q] = [before, after].map(|texts| logits(model, texts));
        let found = divergence(model, &p?, q?);
        out.extend(deal(before, found));
    }
    Ok(out)
}

/// `KL(p ‖ q)` in nats of each pair of rows of logits, `[places, v]`.
fn divergence(model: &Model, p: &[f32], mut q: Vec<f32>) -> Vec<f32> {
    let v = model.architecture().vocabulary;
    model.install(|| {
        loss::log_softmax(model.isa(), &mut q, v);
        loss::kl(model.isa(), p, &q, v)
    })
}

/// A text that is read once for all that is asked of it.
#[derive(Debug, Clone)]
pub(crate) struct Reading<'a> {
    /// The text, and the patches under which it is read.
    pub(crate) asked: Asked<'a>,
    /// What the head of the unedited model read at its labels ([`Seen::heads`]), where the two are
    /// compared; behind the bare prompt, whatever goes before it here.
    pub(crate) was: Option<&'a [f32]>,
    /// Where its keys and values stay, for what goes on from it.
    pub(crate) cache: Option<Cache>,
}

/// What was read at the labels of a text.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Seen {
    /// The likeliest token at each.
    pub(crate) predicted: Vec<u32>,
    /// What the head read at each, `[labels, d]`: the logits in a fraction of their room.
    pub(crate) heads: Vec<f32>,
    /// `KL(unedited ‖ edited)` in nats at each, where the two are compared. Where text before the
    /// prompt moves its border, at those of the answer that both have.
    pub(crate) divergences: Vec<f32>,
}

/// Reads texts by one pass of the edited model: predictions as [`crate::compat::predict`] has them, and
/// divergences as [`divergences`] has them of [`Text::pair`].
///
/// # Errors
/// As [`read`].
pub(crate) fn see(model: &Model, readings: &mut [Reading<'_>]) -> Result<Vec<Seen>> {
    let (d, v) = (model.architecture().width, model.architecture().vocabulary);
    let mut out = Vec::with_capacity(readings.len());
    let mut rest = readings;
    while !rest.is_empty() {
        let texts: Vec<Text<'_>> = rest.iter().map(|reading| Text::from(&reading.asked)).collect();
        let (now, later) = rest.split_at_mut(together(&texts));
        let texts = &texts[..now.len()];
        let before: Vec<Option<&[f32]>> = now.iter().map(|reading| reading.was).collect();
        let caches = now.iter_mut().map(|reading| reading.cache.as_mut());
        let (heads, q) = heads_and_logits(model, texts, caches)?;
        let predicted: Vec<u32> =
            model.install(|| q.par_chunks_exact(v).map(|row| likeliest(row) as u32).collect());
        let heads = deal(texts, heads.chunks_exact(d).collect());
        let mut seen: Vec<Seen> = deal(texts, predicted)
            .into_iter()
            .zip(heads)
            .map(|(predicted, heads)| Seen { predicted, heads: heads.concat(), ..Seen::default() })
            .collect();
        // Of the rows of a text those that both models have are its last.
        let (mut was, mut is, mut counts, mut end) = (vec![], vec![], vec![], 0);
        for (i, (text, before)) in texts.iter().zip(before).enumerate() {
            end += text.places.len();
            let Some(before) = before else { continue };
            let count = text.places.len().min(before.len() / d);
            was.extend_from_slice(&before[before.len() - count * d..]);
            is.extend_from_slice(&q[(end - count) * v..end * v]);
            counts.push((i, count));
        }
        drop(q);
        if !was.is_empty() {
            let mut found = divergence(model, &model.unembed(&was)?, is).into_iter();
            for (i, count) in counts {
                seen[i].divergences = found.by_ref().take(count).collect();
            }
        }
        out.extend(seen);
        rest = later;
    }
    Ok(out)
}
