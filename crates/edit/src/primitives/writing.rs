//! Text that a model writes, many sequences side by side, each with a seeded stream of its own.

use mutandis_engine::tokenizer::Tokenizer;
use mutandis_engine::{Cache, LogitRows, Model, Outcome, Pass, Read, Sampling, Sequence};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use rayon::prelude::*;

use crate::error::Result;

/// One sequence: its tokens so far, and what continues it.
pub(crate) struct Line {
    /// What stands there, the start included.
    pub(crate) ids: Vec<u32>,
    /// Tokens whose keys and values are in the cache.
    fed: usize,
    /// Tokens wanted, the start included.
    goal: usize,
    cache: Cache,
    rng: ChaCha8Rng,
}

impl Line {
    /// A sequence to be continued to `goal` tokens. `stream` numbers the lines of a seed: what a
    /// line becomes depends on seed and stream, and on no other line.
    pub(crate) fn new(model: &Model, start: Vec<u32>, goal: usize, seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self { ids: start, fed: 0, goal, cache: Cache::new(model.architecture()), rng }
    }
}

/// Writes all lines to their goals. Special tokens are never written, so every line gets there.
///
/// `visit` sees each pass: the line of each of its rows, and the rows read. Each token of a line
/// is read once; the last one only where `last`, as no token follows from it.
pub(crate) fn write(
    model: &Model,
    lines: &mut [Line],
    sampling: &Sampling,
    reads: &[Read],
    last: bool,
    mut visit: impl FnMut(&[usize], Vec<Vec<f32>>) -> Result<()>,
) -> Result<()> {
    let tokenizer = model.tokenizer()?;
    let vocabulary = model.architecture().vocabulary;
    let banned = unwritable(tokenizer, vocabulary);
    loop {
        let is_open = |line: &Line| line.ids.len() < line.goal;
        let mut active: Vec<(usize, &mut Line)> = lines
            .iter_mut()
            .enumerate()
            .filter(|(_, line)| line.fed < line.ids.len() && (last || is_open(line)))
            .collect();
        if active.is_empty() {
            return Ok(());
        }
        let of_rows: Vec<usize> =
            active.iter().flat_map(|(i, l)| std::iter::repeat_n(*i, l.ids.len() - l.fed)).collect();
        let logits = if active.iter().any(|(_, l)| is_open(l)) { LogitRows::Last } else { LogitRows::None };
        let sequences = active
            .iter_mut()
            .map(|(_, Line { ids, fed, cache, .. })| Sequence {
                tokens: &ids[*fed..],
                cache: Some(cache),
                ..Sequence::default()
            })
            .collect();
        let pass = Pass { sequences, reads: reads.to_vec(), logits, ..Pass::default() };
        let Outcome { mut logits, reads, .. } = model.forward(pass)?;
        for (_, line) in &mut active {
            line.fed = line.ids.len();
        }
        logits.par_chunks_exact_mut(vocabulary).zip(active).for_each(|(row, (_, line))| {
            if is_open(line) {
                for &id in &banned {
                    row[id] = f32::NEG_INFINITY;
                }
                line.ids.push(sampling.pick(row, &mut line.rng));
            }
        });
        visit(&of_rows, reads)?;
    }
}

/// Rows of the logits that stand for no text.
fn unwritable(tokenizer: &Tokenizer, vocabulary: usize) -> Vec<usize> {
    let spelt = tokenizer.vocabulary_len();
    let special = |id: usize| id >= spelt || tokenizer.is_special(id as u32);
    (0..vocabulary).filter(|&id| special(id)).collect()
}
