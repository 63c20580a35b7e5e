//! How likely a model finds each of several ways in which one text can go on.
//!
//! What the ways share is run once; each way then goes on from its keys and values. The last token
//! of a way is only predicted, never run.

use mutandis_engine::kernels::loss;
use mutandis_engine::{Cache, Error, LogitRows, Model, Overlay, Pass, Past, Result, Sequence};

use crate::edited::Edited;
use crate::passes::fitting;

/// A text and the ways in which it can go on, as token ids.
#[derive(Debug, Clone)]
pub struct Fork<'a> {
    /// What all ways share; at least one token.
    shared: Vec<u32>,
    /// The rest of each; at least one token.
    ways: Vec<Vec<u32>>,
    /// Patches in force.
    overlays: &'a [&'a Overlay],
}

impl<'a> Fork<'a> {
    /// Tokenises the text with each way behind it, a blank between. Where a tokenizer merges across
    /// that border, the tokens that differ belong to the ways: of all of them, so that they stay
    /// comparable.
    ///
    /// # Errors
    /// Where the model has no tokenizer, or the text or a way is empty.
    pub fn new<W: AsRef<str>>(edited: &Edited<'a>, text: &str, ways: &[W]) -> Result<Self> {
        let tokenizer = edited.model.tokenizer()?;
        let text = edited.prompt(text);
        let mut shared = tokenizer.encode(&text)?.ids;
        let mut all = Vec::with_capacity(ways.len());
        for way in ways {
            let ids = tokenizer.encode(&format!("{text} {}", way.as_ref()))?.ids;
            shared.truncate(shared.iter().zip(&ids).take_while(|(a, b)| a == b).count());
            all.push(ids);
        }
        for ids in &mut all {
            ids.drain(..shared.len());
        }
        if shared.is_empty() || all.iter().any(Vec::is_empty) {
            return Err(Error::input_hint(
                format!("`{text}` and what follows it cannot be told apart by their tokens"),
                "give a longer text, and ways to go on that are not empty",
            ));
        }
        Ok(Self { shared, ways: all, overlays: edited.overlays })
    }

    /// Rows of logits that it takes: one for the first tokens of all ways, one for each other token.
    fn logits(&self) -> usize {
        1 + self.ways.iter().map(|way| way.len() - 1).sum::<usize>()
    }

    /// Rows that are run.
    fn rows(&self) -> usize {
        self.shared.len() + self.logits() - 1
    }
}

/// ln p of every token of every way, in nats: by fork, way, token.
///
/// # Errors
/// Where a text is longer than the model's context.
pub fn log_probabilities(model: &Model, forks: &[Fork<'_>]) -> Result<Vec<Vec<Vec<f32>>>> {
    let mut out = Vec::with_capacity(forks.len());
    let mut rest = forks;
    while !rest.is_empty() {
        let count = fitting(rest.iter().map(|fork| (fork.rows(), fork.logits())));
        let (now, later) = rest.split_at(count);
        rest = later;
        out.extend(together(model, now)?);
    }
    Ok(out)
}

fn together(model: &Model, forks: &[Fork<'_>]) -> Result<Vec<Vec<Vec<f32>>>> {
    let v = model.architecture().vocabulary;
    let isa = model.isa();
    // Where every way is one token, nothing goes on from what is shared.
    let longer = |way: &&Vec<u32>| way.len() > 1;
    let cache =
        |fork: &Fork<'_>| fork.ways.iter().any(|w| longer(&w)).then(|| Cache::new(model.architecture()));
    let mut caches: Vec<Option<Cache>> = forks.iter().map(cache).collect();
    let stems = forks.iter().zip(&mut caches).map(|(fork, cache)| Sequence {
        tokens: &fork.shared,
        cache: cache.as_mut(),
        overlays: fork.overlays,
        ..Default::default()
    });
    let pass = Pass { sequences: stems.collect(), logits: LogitRows::Last, ..Default::default() };
    let logits = model.forward(pass)?.logits;
    let first = |(fork, row): (&Fork<'_>, &[f32])| {
        let level = loss::log_sum_exp(isa, row);
        fork.ways.iter().map(|way| vec![row[way[0] as usize] - level]).collect()
    };
    let mut out: Vec<Vec<Vec<f32>>> = forks.iter().zip(logits.chunks_exact(v)).map(first).collect();

    let past = |cache: Option<Cache>| cache.map(|cache| cache.past(cache.len(), 0));
    let pasts: Vec<Option<Past>> = caches.into_iter().map(past).collect();
    let (mut sequences, mut targets) = (vec![], vec![]);
    for (fork, past) in forks.iter().zip(&pasts) {
        for way in fork.ways.iter().filter(longer) {
            let tokens = &way[..way.len() - 1];
            sequences.push(Sequence { tokens, past: past.as_ref(), overlays: fork.overlays, cache: None });
            targets.extend_from_slice(&way[1..]);
        }
    }
    if sequences.is_empty() {
        return Ok(out);
    }
    let logits = model.forward(Pass { sequences, logits: LogitRows::All, ..Default::default() })?.logits;
    let losses = model.install(|| loss::cross_entropy(isa, &logits, v, &targets));
    let mut rest = losses.iter().map(|loss| -loss);
    for (fork, found) in forks.iter().zip(&mut out) {
        for (way, found) in fork.ways.iter().zip(found) {
            found.extend(rest.by_ref().take(way.len() - 1));
        }
    }
    Ok(out)
}
