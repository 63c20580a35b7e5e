//! Generation: many prompts at once, each until its own end.
//!
//! Each step runs one token of every sequence that is not done, and the prompts of those that begin,
//! in one ragged pass. A sequence's tokens depend on its own prompt, patches, seed and stream alone: not
//! on its neighbours, and not on the number of threads.

use std::ops::ControlFlow;

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use rayon::prelude::*;

use crate::cache::{Cache, Past};
use crate::error::{Error, Result};
use crate::forward::{LogitRows, Pass, Sequence};
use crate::kernels::loss;
use crate::model::Model;
use crate::overlay::Overlay;
use crate::sampling::Sampling;
use crate::tokenizer::{Specials, StreamDecoder};

/// A text to be continued.
#[derive(Debug, Default)]
pub struct Prompt<'a> {
    /// Its tokens, without those held by `past` and `cache`; at least one.
    pub tokens: &'a [u32],
    /// Keys and values of the tokens before them.
    pub past: Option<&'a Past>,
    /// Keys and values that grow along; what is held already comes after `past`. At the end all tokens
    /// but the last are held.
    pub cache: Option<Kept<'a>>,
    /// Patches in force.
    pub overlays: &'a [&'a Overlay],
    /// Which stream of random numbers it draws from; prompts that share one draw the same.
    pub stream: u64,
    /// Tokens generated at most for this prompt, where that is fewer than for all; at least one.
    pub budget: Option<usize>,
    /// How it is continued, where not as the others are.
    pub how: Option<&'a Generation>,
}

/// Keys and values that a text goes on from.
#[derive(Debug)]
pub enum Kept<'a> {
    /// The caller wants them back.
    Lent(&'a mut Cache),
    /// They go when the text is done: others may need the room.
    Own(Cache),
}

/// How texts are continued. The default is greedy, 40 tokens at most.
#[derive(Debug, Clone)]
pub struct Generation {
    /// Tokens generated at most, for each sequence.
    pub max_tokens: usize,
    /// Sequences that run side by side at most; others wait, in their order, until one has ended. For
    /// all prompts together, whatever one's own `how` says.
    pub together: usize,
    /// How a token is chosen.
    pub sampling: Sampling,
    /// Seed of all streams.
    pub seed: u64,
    /// Strings that end a text; they are cut off. Found across tokens.
    pub stop: Vec<String>,
    /// Tokens that end a text; the tokenizer's own ends where `None`.
    pub stop_ids: Option<Vec<u32>>,
    /// Ends a text that it finds whole; asked after every token. Nothing is cut off.
    pub until: Option<fn(&str) -> bool>,
    /// Whether special tokens show in the text.
    pub specials: Specials,
}

impl Default for Generation {
    fn default() -> Self {
        Self {
            max_tokens: 40,
            together: usize::MAX,
            sampling: Sampling::default(),
            seed: 0,
            stop: vec![],
            stop_ids: None,
            until: None,
            specials: Specials::Skip,
        }
    }
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// The model ended the text.
    EndOfText,
    /// A stop string came, or `until` found the text whole.
    StopString,
    /// As many tokens as were asked for.
    Length,
    /// The model's context is full.
    Context,
    /// The caller asked to stop.
    Caller,
}

/// What was generated for one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// Tokens, without the one that ended the text; those that spell a stop string are here.
    pub tokens: Vec<u32>,
    /// Log-probability of each token in nats, by the model itself: before temperature, top-k and
    /// top-p.
    pub logprobs: Vec<f32>,
    /// Log-probability of the token that ended the text, where one did.
    pub end_logprob: Option<f32>,
    /// The text, cut before a stop string. Empty where the model has no tokenizer.
    pub text: String,
    /// Why it ended.
    pub stop: StopReason,
}

/// One token, as it is chosen.
#[derive(Debug)]
pub struct Step<'a> {
    /// Index of the prompt.
    pub sequence: usize,
    /// How many tokens of this sequence came before.
    pub index: usize,
    /// The token; may be one that ends the text.
    pub token: u32,
    /// Its log-probability, in nats.
    pub logprob: f32,
    /// The logits it was chosen from, before temperature, `[v]`.
    pub logits: &'a [f32],
    /// Text that is certain now: whole characters, and nothing that may become a stop string.
    /// The pieces joined are the sequence's text.
    pub text: &'a str,
    /// Why the sequence ends here, if it does.
    pub stop: Option<StopReason>,
}

impl Generation {
    /// Continues the prompts; results in their order.
    ///
    /// # Errors
    /// Where a prompt is empty or longer than the context, a setting makes no sense, or stop
    /// strings are given for a model without a tokenizer.
    pub fn run(&self, model: &Model, prompts: Vec<Prompt<'_>>) -> Result<Vec<Generated>> {
        self.run_with(model, prompts, |_| ControlFlow::Continue(()))
    }

    /// Continues the prompts and shows every token as it is chosen, step by step, in the order of
    /// the prompts. `Break` ends all sequences after this step; what was held back of their text,
    /// because it could have become a stop string, is then shown in the result alone.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_with(
        &self,
        model: &Model,
        prompts: Vec<Prompt<'_>>,
        mut on_step: impl FnMut(Step<'_>) -> ControlFlow<()> + Send,
    ) -> Result<Vec<Generated>> {
        for how in prompts.iter().filter_map(|prompt| prompt.how).chain([self]) {
            how.validate(model)?;
        }
        model.install(|| self.decode(model, prompts, &mut on_step))
    }

    fn validate(&self, model: &Model) -> Result<()> {
        self.sampling.validate()?;
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::input_hint("a stop string is empty", "give at least one character"));
        }
        if !self.stop.is_empty() {
            model.tokenizer()?;
        }
        Ok(())
    }

    fn decode(
        &self,
        model: &Model,
        prompts: Vec<Prompt<'_>>,
        on_step: &mut impl FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Generated>> {
        let v = model.architecture().vocabulary;
        let mut done: Vec<Option<Generated>> = prompts.iter().map(|_| None).collect();
        let mut waiting = prompts.into_iter().enumerate().map(|(i, p)| Active::new(self, model, i, p));
        if self.max_tokens == 0 {
            return Ok(waiting.map(|a| a.writer.finish(StopReason::Length)).collect());
        }
        let together = self.together.max(1);
        let mut active: Vec<Active<'_>> = waiting.by_ref().take(together).collect();
        while !active.is_empty() {
            let logits = self.step(model, &mut active)?;
            let rows = active.par_iter_mut().zip(logits.par_chunks_exact(v)).with_max_len(1);
            let chosen: Vec<(u32, f32)> = rows
                .map(|(a, row)| {
                    let token = a.how.sampling.pick(row, &mut a.rng);
                    (token, row[token as usize] - loss::log_sum_exp(model.isa(), row))
                })
                .collect();
            let mut remaining = Vec::with_capacity(active.len());
            let mut stopped = false;
            for ((mut a, (token, logprob)), row) in active.into_iter().zip(chosen).zip(logits.chunks_exact(v))
            {
                let index = a.writer.tokens.len();
                let is_full = a.held() >= model.architecture().context;
                let (text, stop) = a.writer.push(a.how, token, logprob, is_full);
                let step =
                    Step { sequence: a.sequence, index, token, logprob, logits: row, text: &text, stop };
                stopped |= on_step(step).is_break();
                a.next = token;
                match stop {
                    Some(stop) => done[a.sequence] = Some(a.writer.finish(stop)),
                    None => remaining.push(a),
                }
            }
            if stopped {
                for a in remaining.drain(..).chain(waiting.by_ref()) {
                    done[a.sequence] = Some(a.writer.finish(StopReason::Caller));
                }
            }
            remaining.extend(waiting.by_ref().take(together - remaining.len()));
            active = remaining;
        }
        Ok(done.into_iter().flatten().collect())
    }

    /// Runs the tokens that are new; logits of the last of each sequence, `[sequences, v]`.
    fn step(&self, model: &Model, active: &mut [Active<'_>]) -> Result<Vec<f32>> {
        let sequences = active
            .iter_mut()
            .map(|a| Sequence {
                tokens: a.prompt.take().unwrap_or(std::slice::from_ref(&a.next)),
                past: a.past,
                cache: Some(a.cache.get()),
                overlays: a.overlays,
            })
            .collect();
        Ok(model.forward(Pass { sequences, logits: LogitRows::Last, ..Default::default() })?.logits)
    }
}

/// Log-probabilities of the token that follows a text, in nats, `[v]`.
///
/// # Errors
/// Where the text is empty, longer than the context, or has a token beyond the vocabulary.
pub fn next_token_distribution(model: &Model, tokens: &[u32], overlays: &[&Overlay]) -> Result<Vec<f32>> {
    let pass = Pass {
        sequences: vec![Sequence { tokens, overlays, ..Default::default() }],
        logits: LogitRows::Last,
        ..Default::default()
    };
    let mut logits = model.forward(pass)?.logits;
    loss::log_softmax(model.isa(), &mut logits, model.architecture().vocabulary);
    Ok(logits)
}

/// The `count` highest of a row of logits or log-probabilities, highest first; of equal ones the
/// lowest id first.
///
/// # Shapes
/// `row [v]`.
pub fn ranked(row: &[f32], count: usize) -> Vec<u32> {
    let order = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then_with(|| a.cmp(b));
    let mut ids: Vec<u32> = (0..row.len() as u32).collect();
    if count > 0 && count < ids.len() {
        ids.select_nth_unstable_by(count - 1, order);
    }
    ids.truncate(count);
    ids.sort_unstable_by(order);
    ids
}

/// A sequence that is not done.
struct Active<'a> {
    sequence: usize,
    how: &'a Generation,
    /// Tokens of the prompt, until they have been run.
    prompt: Option<&'a [u32]>,
    /// The token chosen last.
    next: u32,
    past: Option<&'a Past>,
    cache: Kept<'a>,
    overlays: &'a [&'a Overlay],
    rng: ChaCha8Rng,
    writer: Writer<'a>,
}

impl Kept<'_> {
    fn get(&mut self) -> &mut Cache {
        match self {
            Self::Lent(cache) => cache,
            Self::Own(cache) => cache,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Lent(cache) => cache.len(),
            Self::Own(cache) => cache.len(),
        }
    }
}

impl<'a> Active<'a> {
    fn new(all: &'a Generation, model: &'a Model, sequence: usize, prompt: Prompt<'a>) -> Self {
        let generation = prompt.how.unwrap_or(all);
        let mut rng = ChaCha8Rng::seed_from_u64(generation.seed);
        rng.set_stream(prompt.stream);
        let tokenizer = model.tokenizer().ok();
        let stop_ids = match &generation.stop_ids {
            Some(ids) => ids.clone(),
            None => tokenizer.map(|t| t.eos_ids().to_vec()).unwrap_or_default(),
        };
        Self {
            sequence,
            how: generation,
            prompt: Some(prompt.tokens),
            next: 0,
            past: prompt.past,
            cache: prompt.cache.unwrap_or_else(|| Kept::Own(Cache::new(model.architecture()))),
            overlays: prompt.overlays,
            rng,
            writer: Writer {
                max_tokens: prompt.budget.unwrap_or(usize::MAX).clamp(1, generation.max_tokens.max(1)),
                decoder: tokenizer.map(|t| t.stream(generation.specials)),
                stop_ids,
                tokens: vec![],
                logprobs: vec![],
                end_logprob: None,
                text: String::new(),
                shown: 0,
            },
        }
    }

    /// Tokens that the context holds so far.
    fn held(&self) -> usize {
        self.past.map_or(0, Past::len) + self.cache.len()
    }
}

/// What a sequence has written so far.
struct Writer<'a> {
    max_tokens: usize,
    decoder: Option<StreamDecoder<'a>>,
    stop_ids: Vec<u32>,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    end_logprob: Option<f32>,
    text: String,
    /// Bytes of the text that have been shown.
    shown: usize,
}

impl Writer<'_> {
    /// Takes a token; gives the text that is certain now, and why the sequence ends, if it does.
    fn push(
        &mut self,
        generation: &Generation,
        token: u32,
        logprob: f32,
        is_full: bool,
    ) -> (String, Option<StopReason>) {
        let mut stop = None;
        let before = self.text.len();
        if self.stop_ids.contains(&token) {
            stop = Some(StopReason::EndOfText);
            self.end_logprob = Some(logprob);
        } else {
            self.tokens.push(token);
            self.logprobs.push(logprob);
            if let Some(decoder) = &mut self.decoder {
                self.text.push_str(&decoder.push(token));
            }
            if self.tokens.len() == self.max_tokens {
                stop = Some(StopReason::Length);
            } else if is_full {
                stop = Some(StopReason::Context);
            }
        }
        if stop.is_some()
            && let Some(decoder) = self.decoder.take()
        {
            self.text.push_str(&decoder.finish());
        }
        if let Some(at) = find_stop(&self.text, before, &generation.stop) {
            self.text.truncate(at);
            stop = Some(StopReason::StopString);
        }
        if stop.is_none() && generation.until.is_some_and(|whole| whole(&self.text)) {
            stop = Some(StopReason::StopString);
        }
        let end = if stop.is_some() { self.text.len() } else { certain(&self.text, &generation.stop) };
        let fresh = self.text.get(self.shown..end).unwrap_or_default().to_owned();
        self.shown += fresh.len();
        (fresh, stop)
    }

    fn finish(self, stop: StopReason) -> Generated {
        let Self { tokens, logprobs, end_logprob, text, .. } = self;
        Generated { tokens, logprobs, end_logprob, text, stop }
    }
}

/// Where the first stop string begins that ends beyond `before`, in bytes.
fn find_stop(text: &str, before: usize, stops: &[String]) -> Option<usize> {
    let find = |stop: &String| {
        let mut from = before.saturating_sub(stop.len() - 1);
        while !text.is_char_boundary(from) {
            from -= 1;
        }
        text[from..].find(stop.as_str()).map(|at| from + at)
    };
    stops.iter().filter_map(find).min()
}

/// How many bytes of a text cannot belong to a stop string that is still coming.
fn certain(text: &str, stops: &[String]) -> usize {
    let held = |stop: &String| {
        let starts = stop.char_indices().map(|(at, _)| at).skip(1);
        starts.filter(|&at| text.ends_with(&stop[..at])).max().unwrap_or(0)
    };
    text.len() - stops.iter().map(held).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops(list: &[&str]) -> Vec<String> {
        list.iter().map(|&s| s.to_owned()).collect()
    }

    #[test]
    fn the_earliest_stop_string_is_found_wherever_a_token_cut_it() {
        let s = stops(&["Ende", "é\n", "d"]);
        assert_eq!(find_stop("das Ende", 0, &s), Some(0));
        assert_eq!(find_stop("x Ende", 5, &s), Some(2));
        assert_eq!(find_stop("caf\u{e9}\n", 5, &s), Some(3));
        assert_eq!(find_stop("caf\u{e9}", 0, &s), None);
    }

    #[test]
    fn ranks_are_from_the_highest_down() {
        assert_eq!(ranked(&[1.0, 5.0, 5.0, -2.0], 3), [1, 2, 0]);
        assert_eq!(ranked(&[1.0, 5.0], 9), [1, 0]);
        assert!(ranked(&[1.0], 0).is_empty());
    }

    #[test]
    fn what_may_become_a_stop_string_is_held_back() {
        let s = stops(&["\n\n", "###"]);
        assert_eq!(certain("abc\n", &s), 3);
        assert_eq!(certain("abc##", &s), 3);
        assert_eq!(certain("abc# ", &s), 5);
        assert_eq!(certain("é", &stops(&["éé"])), 0);
        assert_eq!(certain("abc", &[]), 3);
    }
}
