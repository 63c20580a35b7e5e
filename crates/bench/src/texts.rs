//! Texts that a model writes, many side by side, each under its own edits.

use mutandis_engine::tokenizer::Specials;
use mutandis_engine::{Generation, Prompt, Result, Sampling};

use crate::edited::Edited;
use crate::strict::answer::is_whole;

/// A prompt to be gone on with.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// By whom. All asks of one call are of one base.
    pub by: Edited<'a>,
    /// The prompt, without what goes before every prompt.
    pub prompt: &'a str,
    /// How it is gone on with.
    pub way: Way,
    /// New tokens at most.
    pub budget: usize,
    /// Which stream of random numbers it draws from.
    pub stream: u64,
}

/// How texts are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Greedily, until an answer is whole.
    Answer,
    /// Greedily, until the model ends the text.
    Greedy,
    /// Drawn from those of the fifty likeliest tokens that together have nine tenths of their
    /// probability, until the model ends the text.
    Sampled,
    /// As the peer writes the texts of its fluency: drawn from the five likeliest, and on behind
    /// the end (easyedit.md §1.11).
    TopFive,
}

/// Texts that are written side by side: enough that a step reads the weights for many rows, few
/// enough that their caches stay small.
const TOGETHER: usize = 64;

impl Way {
    fn generation(self, seed: u64) -> Generation {
        let sampling = match self {
            Self::Answer | Self::Greedy => Sampling::default(),
            Self::Sampled => Sampling { temperature: 1.0, top_k: Some(50), top_p: Some(0.9) },
            Self::TopFive => Sampling { temperature: 1.0, top_k: Some(5), top_p: None },
        };
        let is_peers = self == Self::TopFive;
        Generation {
            max_tokens: usize::MAX,
            sampling,
            seed,
            until: (self == Self::Answer).then_some(is_whole as fn(&str) -> bool),
            stop_ids: is_peers.then(Vec::new),
            specials: if is_peers { Specials::Keep } else { Specials::Skip },
            ..Generation::default()
        }
    }
}

/// Goes on with every prompt; the texts without their prompts, in order. A budget of 0 writes
/// nothing.
///
/// # Errors
/// Where the model has no tokenizer, or a prompt is empty or longer than its context.
pub fn write(asks: &[Ask<'_>], seed: u64) -> Result<Vec<String>> {
    let ways = [Way::Answer, Way::Greedy, Way::Sampled, Way::TopFive].map(|way| (way, way.generation(seed)));
    let mut texts = vec![String::new(); asks.len()];
    // Those of one length of budget go together, as they end together.
    let mut order: Vec<usize> = (0..asks.len()).filter(|&i| asks[i].budget > 0).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(asks[i].budget));
    for batch in order.chunks(TOGETHER) {
        let mut batch = batch.to_vec();
        // Neighbours under the same edits share the product with what is laid over.
        batch.sort_unstable();
        let mut ids = Vec::with_capacity(batch.len());
        for &i in &batch {
            ids.push(asks[i].by.model.tokenizer()?.encode(&asks[i].by.prompt(asks[i].prompt))?.ids);
        }
        let Some(&first) = batch.first() else { continue };
        let prompts = batch
            .iter()
            .zip(&ids)
            .map(|(&i, tokens)| Prompt {
                tokens,
                overlays: asks[i].by.overlays,
                stream: asks[i].stream,
                budget: Some(asks[i].budget),
                how: ways.iter().find(|(way, _)| *way == asks[i].way).map(|(_, how)| how),
                ..Prompt::default()
            })
            .collect();
        let made = Generation::default().run(asks[first].by.model, prompts)?;
        for (i, made) in batch.iter().zip(made) {
            texts[*i] = made.text;
        }
    }
    Ok(texts)
}
