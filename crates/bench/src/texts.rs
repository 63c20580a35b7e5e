//! Texts that a model writes, many side by side, each under its own edits; what is read of them on the
//! way.

use mutandis_engine::tokenizer::Specials;
use mutandis_engine::{Cache, Generation, Kept, Prompt, Result, Sampling};

use crate::compat::{Asked, Forced};
use crate::edited::Edited;
use crate::passes::{Reading, Seen, see};
use crate::strict::answer::is_whole;

/// A prompt to be gone on with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask<'a> {
    /// By whom. All asks of one call are of one base.
    pub(crate) by: Edited<'a>,
    /// The prompt, without what goes before every prompt.
    pub(crate) prompt: &'a str,
    /// How it is gone on with.
    pub(crate) way: Way,
    /// New tokens at most.
    pub(crate) budget: usize,
    /// Which stream of random numbers it draws from.
    pub(crate) stream: u64,
    /// The prompt with a given answer behind it, where that is to be predicted as well: the prompt is
    /// then read once for both.
    pub(crate) given: Option<Given<'a>>,
}

/// An answer that is given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Given<'a> {
    /// Behind the prompt, with what goes before that.
    pub(crate) text: &'a Forced,
    /// What the head of the unedited model read of it, where the two are compared
    /// ([`Seen::heads`]).
    pub(crate) was: Option<&'a [f32]>,
}

/// What came of an ask.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Written {
    /// The text without its prompt.
    pub(crate) text: String,
    /// What was read at the answer that was given.
    pub(crate) seen: Option<Seen>,
}

/// How texts are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
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

/// Texts whose prompts are read together. Those that wait take the place of those that have ended, so
/// that there are seldom few side by side.
const READ: usize = 2 * TOGETHER;

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

/// Goes on with every prompt, in order. A budget of 0 writes nothing, and reads nothing.
///
/// # Errors
/// Where the model has no tokenizer, or a prompt is empty or longer than its context.
pub(crate) fn write(asks: &[Ask<'_>], seed: u64) -> Result<Vec<Written>> {
    let ways = [Way::Answer, Way::Greedy, Way::Sampled, Way::TopFive].map(|way| (way, way.generation(seed)));
    let mut all = vec![Written::default(); asks.len()];
    // The longest begin first. Otherwise neighbours stay such: under the same edits they share the
    // product with what is laid over.
    let mut order: Vec<usize> = (0..asks.len()).filter(|&i| asks[i].budget > 0).collect();
    order.sort_by_key(|&i| asks[i].way == Way::Answer);
    for batch in order.chunks(READ) {
        let Some(&first) = batch.first() else { continue };
        let model = asks[first].by.model;
        let mut ids = Vec::with_capacity(batch.len());
        for &i in batch {
            ids.push(model.tokenizer()?.encode(&asks[i].by.prompt(asks[i].prompt))?.ids);
        }
        let (mut readings, mut of) = (vec![], vec![]);
        for (place, &i) in batch.iter().enumerate() {
            let Some(Given { text, was }) = asks[i].given else { continue };
            // A tokenizer may merge the prompt's end with the answer.
            let begins = !ids[place].is_empty() && text.ids.starts_with(&ids[place]);
            let cache = begins.then(|| Cache::new(model.architecture()));
            readings.push(Reading { asked: Asked { text, overlays: asks[i].by.overlays }, was, cache });
            of.push(place);
        }
        let mut caches: Vec<Option<Cache>> = vec![None; batch.len()];
        for ((place, seen), reading) in of.into_iter().zip(see(model, &mut readings)?).zip(readings) {
            all[batch[place]].seen = Some(seen);
            caches[place] = reading.cache;
        }
        let prompts = batch
            .iter()
            .zip(&ids)
            .zip(caches)
            .map(|((&i, tokens), mut cache)| {
                // Its last token is run again: what follows it was not kept.
                let held = if cache.is_some() { tokens.len() - 1 } else { 0 };
                if let Some(cache) = &mut cache {
                    cache.truncate(held);
                }
                Prompt {
                    tokens: &tokens[held..],
                    cache: cache.map(Kept::Own),
                    overlays: asks[i].by.overlays,
                    stream: asks[i].stream,
                    budget: Some(asks[i].budget),
                    how: ways.iter().find(|(way, _)| *way == asks[i].way).map(|(_, how)| how),
                    ..Prompt::default()
                }
            })
            .collect();
        let made = Generation { together: TOGETHER, ..Generation::default() }.run(model, prompts)?;
        for (i, made) in batch.iter().zip(made) {
            all[*i].text = made.text;
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use std::path::Path;

    use mutandis_engine::{Delta, Model, Options, Overlay, Role, WeightId};

    use super::*;
    use crate::compat::predict;
    use crate::passes::{Text, divergences};

    /// What is read along the way is what is read alone, to the last bit, and what is written behind
    /// it what is written without it.
    #[test]
    fn a_prompt_is_read_once_for_its_answer_and_for_what_is_written() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/stories260K.gguf");
        let model = Model::load(&path, Options::default()).unwrap();
        let numbers = |n: usize, by: f32| (0..n).map(|i| (i as f32 * by).sin()).collect::<Vec<_>>();
        let (d, f) = (model.architecture().width, model.architecture().mlp_width);
        let mut overlay = Overlay::default();
        let id = WeightId { layer: 2, role: Role::MlpOut };
        overlay.push(id, Delta::low_rank(1, &numbers(d, 7.1), &numbers(f, 3.3)).unwrap());
        let overlays = [&overlay];
        for prefix in ["", "Tom has a big red dog. "] {
            let by = Edited { model: &model, overlays: &overlays, prefix };
            let asked = [
                ("One day, Tom went to the", "big park with his mom"),
                ("Lily saw a", "cat"),
                // Here the tokenizer merges the border.
                ("The little girl liked to pl", "ay with her dog"),
                ("Once upon a time, there was a little", "boy named Max who"),
            ];
            let forced = |of: &dyn Fn(&str) -> String| -> Vec<Forced> {
                let cut = |(prompt, answer): &(&str, &str)| {
                    let tokenizer = model.tokenizer().unwrap();
                    let joined = format!("{}{answer}", of(prompt));
                    let start = tokenizer.encode(&of(prompt)).unwrap().ids.len();
                    match prompt.ends_with("pl") {
                        true => Forced { ids: tokenizer.encode(&joined).unwrap().ids, start },
                        false => Forced::new(&model, &of(prompt), answer).unwrap(),
                    }
                };
                asked.iter().map(cut).collect()
            };
            let (plain, shown) = (forced(&|p| p.to_owned()), forced(&|p| by.prompt(p)));
            let unedited = |text| Reading { asked: Asked { text, overlays: &[] }, was: None, cache: None };
            let was = see(&model, &mut plain.iter().map(unedited).collect::<Vec<_>>()).unwrap();
            let ask = |i: usize, way: Way, given: bool| Ask {
                by,
                prompt: asked[i].0,
                way,
                budget: 7 + i,
                stream: 3,
                given: given.then(|| Given { text: &shown[i], was: (i != 1).then(|| &was[i].heads[..]) }),
            };
            let each = |given: bool| -> Vec<Ask<'_>> {
                let ways = [Way::Answer, Way::Sampled];
                ways.into_iter()
                    .flat_map(|way| (0..4).map(move |i| (i, way)))
                    .map(|(i, w)| ask(i, w, given))
                    .collect()
            };
            let (with, without) = (write(&each(true), 5).unwrap(), write(&each(false), 5).unwrap());
            for (i, (with, without)) in with.iter().zip(&without).enumerate() {
                assert_eq!(with.text, without.text, "{i}");
                assert!(!with.text.is_empty() && without.seen.is_none());
                let Seen { predicted, divergences: found, .. } = with.seen.clone().unwrap();
                let i = i % 4;
                let asked = Asked { text: &shown[i], overlays: &overlays };
                assert_eq!(vec![predicted], predict(&model, &[asked]).unwrap());
                let [was, is] = Text::pair(&plain[i], &shown[i], &overlays);
                let alone = divergences(&model, &[was], &[is]).unwrap().remove(0);
                assert_eq!(found, if i == 1 { vec![] } else { alone });
                assert!(i == 1 || found.iter().any(|kl| *kl > 0.0), "{i}: the change changes nothing");
            }
        }
    }
}
