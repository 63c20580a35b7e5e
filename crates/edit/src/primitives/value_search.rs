//! The search for a value: a vector δ, added at one site and token of a frozen model, that makes
//! it say the target (ROME, arXiv 2202.05262, eq. 4; methods.md §2.1, P-c).
//!
//! A δ at layer `l`, position `p` changes nothing below `l` nor before `p`: hidden states entering
//! the site and the keys and values of each prompt's prefix are computed once, and every step
//! runs the suffix through the upper layers only. Facts are searched together; one that is done
//! leaves the batch.

use mutandis_engine::kernels::loss;
use mutandis_engine::{
    Action, Cache, Intervention, LogitRows, Model, Overlay, Pass, Past, Read, Sequence, Site, SiteKind,
    Start, Wants,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::request::{Located, Request};
use crate::context::Context;
use crate::error::{Error, Result};

/// Settings of the search; `Default` holds ROME's as published for Llama-like models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Search {
    /// Adam's learning rate.
    pub learning_rate: f32,
    /// Most steps.
    pub steps: usize,
    /// Weight of ‖δ‖ / ‖h‖², h the site's value in the bare prompt.
    pub decay: f32,
    /// ‖δ‖ is kept below this many times ‖h‖.
    pub clamp: f32,
    /// Weight of the divergence from the unedited model at the subject itself.
    pub kl: f32,
    /// The search ends when the loss falls below this, in nats.
    pub stop_below: f32,
}

impl Default for Search {
    fn default() -> Self {
        Self { learning_rate: 0.5, steps: 25, decay: 1e-3, clamp: 4.0, kl: 0.0625, stop_below: 0.05 }
    }
}

impl Search {
    /// Checks that the settings can lead anywhere.
    ///
    /// # Errors
    /// Names the first setting that cannot, with what is expected.
    pub fn check(&self) -> Result<()> {
        let bad = |name: &str, value: f32, expected: &str| {
            Err(Error::input_hint(
                format!("`search.{name}` is {value}, expected {expected}"),
                "leave it out for the published value",
            ))
        };
        if self.steps == 0 || self.steps > 10_000 {
            return bad("steps", self.steps as f32, "1 to 10000");
        }
        if !(self.learning_rate > 0.0 && self.learning_rate <= 100.0) {
            return bad("learning-rate", self.learning_rate, "more than 0, at most 100");
        }
        if !(self.clamp > 0.0 && self.clamp.is_finite()) {
            return bad("clamp", self.clamp, "more than 0");
        }
        for (name, value) in [("decay", self.decay), ("kl", self.kl)] {
            if !(value >= 0.0 && value.is_finite()) {
                return bad(name, value, "0 or more");
            }
        }
        if self.stop_below.is_nan() {
            return bad("stop-below", self.stop_below, "a number");
        }
        Ok(())
    }
}

/// One step's loss and its parts, in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepLoss {
    /// Sum of the parts.
    pub total: f32,
    /// −ln p(target), mean over contexts and target tokens.
    pub nll: f32,
    /// Weighted divergence at the subject.
    pub kl: f32,
    /// Weighted decay.
    pub decay: f32,
    /// Mean over contexts of exp(−nll of the context).
    pub probability: f32,
}

/// What was found for a fact.
#[derive(Debug, Clone)]
pub struct Found {
    /// The site's value in the bare prompt, `[d]`.
    pub initial: Vec<f32>,
    /// δ `[d]`; the value searched for is `initial + δ`.
    pub delta: Vec<f32>,
    /// The MLP key at the lookup token in every context, `[contexts, f]`.
    pub keys: Vec<f32>,
    /// The MLP's output there, `[contexts, d]`.
    pub outputs: Vec<f32>,
    /// Losses of every step.
    pub losses: Vec<StepLoss>,
    /// δ after every step, where [`search`] was asked to keep them.
    pub trace: Vec<Vec<f32>>,
}

/// Searches the values of many facts at once.
///
/// `site` is `MlpOut` (ROME) or `Residual` (MEMIT) of a layer. Each fact has its own δ, Adam
/// state and stop.
///
/// # Errors
/// Where the model cannot be run on the requests, the loss is not finite, or the user interrupts.
pub fn search(
    model: &Model,
    stack: &[&Overlay],
    site: Site,
    requests: &[Request],
    settings: &Search,
    keep_trace: bool,
    cx: &Context<'_>,
) -> Result<Vec<Found>> {
    settings.check()?;
    let d = model.architecture().width;
    cx.progress.begin("preparing the search", 0);
    let prepared = Prepared::new(model, stack, site, requests)?;
    let mut facts: Vec<State> =
        requests.iter().enumerate().map(|(i, _)| State::new(prepared.initial(i, d), d)).collect();
    cx.progress.end();
    cx.progress.begin("searching values", settings.steps);
    for step in 0..settings.steps {
        cx.check()?;
        let active: Vec<usize> = (0..facts.len()).filter(|&i| !facts[i].done).collect();
        if active.is_empty() {
            break;
        }
        let last = step + 1 == settings.steps;
        if let Some(gradients) = prepared.evaluate(&mut facts, &active, settings, last)? {
            for (&f, gradient) in
                active.iter().zip(gradients).filter(|(f, _)| !facts[**f].done).collect::<Vec<_>>()
            {
                facts[f].update(&gradient, settings);
                if keep_trace {
                    let delta = facts[f].delta.clone();
                    facts[f].trace.push(delta);
                }
            }
        }
        cx.progress.step(step + 1);
    }
    cx.progress.end();
    Ok(facts
        .into_iter()
        .enumerate()
        .map(|(i, f)| Found {
            initial: f.initial,
            delta: f.delta,
            keys: prepared.of(i, &prepared.keys),
            outputs: prepared.of(i, &prepared.outputs),
            losses: f.losses,
            trace: f.trace,
        })
        .collect())
}

/// δ of one fact, and what its optimiser remembers.
struct State {
    initial: Vec<f32>,
    delta: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
    steps: i32,
    log_reference: Option<Vec<f32>>,
    losses: Vec<StepLoss>,
    trace: Vec<Vec<f32>>,
    done: bool,
}

impl State {
    fn new(initial: Vec<f32>, d: usize) -> Self {
        Self {
            initial,
            delta: vec![0.0; d],
            first: vec![0.0; d],
            second: vec![0.0; d],
            steps: 0,
            log_reference: None,
            losses: vec![],
            trace: vec![],
            done: false,
        }
    }

    /// Adam (arXiv 1412.6980, algorithm 1) with PyTorch's constants, then the clamp.
    fn update(&mut self, gradient: &[f32], settings: &Search) {
        const BETA: [f32; 2] = [0.9, 0.999];
        const EPSILON: f32 = 1e-8;
        self.steps += 1;
        let correct = BETA.map(|b| 1.0 - b.powi(self.steps));
        for (i, g) in gradient.iter().enumerate() {
            self.first[i] = BETA[0] * self.first[i] + (1.0 - BETA[0]) * g;
            self.second[i] = BETA[1] * self.second[i] + (1.0 - BETA[1]) * g * g;
            let (m, v) = (self.first[i] / correct[0], self.second[i] / correct[1]);
            self.delta[i] -= settings.learning_rate * m / (v.sqrt() + EPSILON);
        }
        let (size, limit) = (norm(&self.delta), settings.clamp * norm(&self.initial));
        if size > limit {
            let factor = limit / size;
            self.delta.iter_mut().for_each(|x| *x *= factor);
        }
    }
}

/// Everything about the prompts that no step changes.
struct Prepared<'a> {
    model: &'a Model,
    stack: &'a [&'a Overlay],
    requests: &'a [Request],
    /// Where δ is added: at `site`, or at the input of the layer above where that is the same.
    entry: Site,
    rows: Vec<Row>,
    /// Index of each fact's first row; its essence row comes last.
    first: Vec<usize>,
    initial: Vec<f32>,
    /// MLP keys and outputs at the lookup token of every prompt, essences left out.
    keys: Vec<f32>,
    outputs: Vec<f32>,
}

/// One prompt (with its target, less the last token), split at the lookup token.
struct Row {
    /// Tokens from the lookup token on.
    suffix: Vec<u32>,
    past: Past,
    /// Hidden states entering `entry.layer`, `[suffix, d]`.
    hidden: Vec<f32>,
    /// Number of last rows that predict a target token; 0 for the essence, whose one row counts.
    predicting: usize,
}

impl<'a> Prepared<'a> {
    fn new(model: &'a Model, stack: &'a [&'a Overlay], site: Site, requests: &'a [Request]) -> Result<Self> {
        let a = model.architecture();
        if site.layer >= a.layers {
            return Err(Error::input_hint(
                format!("layer {} does not exist", site.layer),
                format!("layers are 0 to {}", a.layers - 1),
            ));
        }
        // Without a norm behind the MLP, adding to its output is adding to the residual stream.
        let above = site.kind == SiteKind::Residual || (site.kind == SiteKind::MlpOut && !a.sandwich_norm);
        let entry = if above && site.layer + 1 < a.layers {
            Site::new(site.layer + 1, SiteKind::Input)
        } else {
            site
        };

        let (mut tokens, mut lookups, mut predicting, mut first) = (vec![], vec![], vec![], vec![]);
        for request in requests {
            first.push(tokens.len());
            for prompt in &request.prompts {
                let target = &request.target;
                tokens.push([&prompt.ids[..], &target[..target.len() - 1]].concat());
                lookups.push(prompt.lookup);
                predicting.push(target.len());
            }
            let Located { ids, lookup } = &request.essence;
            tokens.push(ids.clone());
            lookups.push(*lookup);
            predicting.push(0);
        }
        let caches = prefixes(model, stack, &tokens, &lookups)?;
        let pasts: Vec<Past> = caches.iter().map(|c| c.past(c.len(), 0)).collect();
        // The suffixes up to the entry: hidden states for every step, and at the lookup token
        // (their first row) the site's value and the key.
        let sequences: Vec<Sequence<'_>> = tokens
            .iter()
            .zip(&lookups)
            .zip(&pasts)
            .map(|((t, &l), past)| Sequence {
                tokens: &t[l..],
                past: Some(past),
                overlays: stack,
                ..Default::default()
            })
            .collect();
        let starts = starts(sequences.iter().map(|s| s.tokens.len()));
        let bare: Vec<usize> = first.iter().map(|&i| starts[i]).collect();
        let prompts: Vec<usize> =
            predicting.iter().zip(&starts).filter(|(p, _)| **p > 0).map(|(_, &s)| s).collect();
        let mut reads = vec![
            Read { site, rows: Some(bare) },
            Read { site: Site::new(site.layer, SiteKind::MlpKey), rows: Some(prompts.clone()) },
            Read { site: Site::new(site.layer, SiteKind::MlpOut), rows: Some(prompts) },
        ];
        let from_site = entry.kind != SiteKind::Input;
        let into = if from_site {
            Site::new(site.layer, SiteKind::Input)
        } else {
            Site::new(site.layer, SiteKind::Residual)
        };
        reads.push(Read { site: into, rows: None });
        let mut reads = model.forward(Pass { sequences, reads, ..Default::default() })?.reads;
        let all = reads.pop().unwrap_or_default();
        let outputs = reads.pop().unwrap_or_default();
        let keys = reads.pop().unwrap_or_default();
        let initial = reads.pop().unwrap_or_default();
        let rows = tokens
            .iter()
            .zip(lookups)
            .zip(caches)
            .zip(predicting)
            .zip(starts)
            .map(|((((t, l), cache), predicting), start)| {
                // Layers below the entry are not run again.
                let past = cache.past(l, entry.layer);
                let suffix = t[l..].to_vec();
                let hidden = all[start * a.width..(start + suffix.len()) * a.width].to_vec();
                Row { suffix, past, hidden, predicting }
            })
            .collect();
        Ok(Self { model, stack, requests, entry, rows, first, initial, keys, outputs })
    }

    fn initial(&self, fact: usize, d: usize) -> Vec<f32> {
        self.initial[fact * d..(fact + 1) * d].to_vec()
    }

    /// The part of `keys` or `outputs` that belongs to a fact.
    fn of(&self, fact: usize, values: &[f32]) -> Vec<f32> {
        let prompts: usize = self.requests.iter().map(|r| r.prompts.len()).sum();
        let width = values.len() / prompts.max(1);
        // Each fact before this one has one essence row among its rows.
        let from = (self.first[fact] - fact) * width;
        values[from..from + self.requests[fact].prompts.len() * width].to_vec()
    }

    fn rows_of(&self, fact: usize) -> std::ops::Range<usize> {
        self.first[fact]..self.first[fact] + self.requests[fact].prompts.len() + 1
    }

    /// Losses of all active facts at their δ; those that are small enough, or the `last`, are done.
    /// Gradients of the others, in the order of `active`, unless all are done.
    fn evaluate(
        &self,
        facts: &mut [State],
        active: &[usize],
        settings: &Search,
        last: bool,
    ) -> Result<Option<Vec<Vec<f32>>>> {
        let (d, v) = (self.model.architecture().width, self.model.architecture().vocabulary);
        let isa = self.model.isa();
        let rows: Vec<&Row> = active.iter().flat_map(|&f| &self.rows[self.rows_of(f)]).collect();
        let owners: Vec<usize> = active.iter().flat_map(|&f| self.rows_of(f).map(move |_| f)).collect();
        let starts = starts(rows.iter().map(|r| r.suffix.len()));
        let logit_rows: Vec<usize> = rows
            .iter()
            .zip(&starts)
            .flat_map(|(r, s)| s + r.suffix.len() - r.predicting.max(1)..s + r.suffix.len())
            .collect();
        let pass = Pass {
            sequences: rows
                .iter()
                .map(|r| Sequence {
                    tokens: &r.suffix,
                    past: Some(&r.past),
                    overlays: self.stack,
                    ..Default::default()
                })
                .collect(),
            start: Start::Hidden {
                layer: self.entry.layer,
                rows: rows.iter().flat_map(|r| &r.hidden).copied().collect(),
            },
            interventions: vec![Intervention {
                site: self.entry,
                rows: starts.clone(),
                action: Action::Add(owners.iter().flat_map(|&f| &facts[f].delta).copied().collect()),
            }],
            logits: LogitRows::Rows(logit_rows),
            record: true,
            ..Default::default()
        };
        let mut outcome = self.model.forward(pass)?;

        // Losses, and the gradient of the logits in their place.
        let mut at = 0;
        for &f in active {
            let request = &self.requests[f];
            let (contexts, t) = (request.prompts.len(), request.target.len());
            let part = &mut outcome.logits[at * v..(at + contexts * t + 1) * v];
            let (answers, essence) = part.split_at_mut(contexts * t * v);
            let targets: Vec<u32> = (0..contexts).flat_map(|_| request.target.iter().copied()).collect();
            let state = &mut facts[f];
            let each = self.model.install(|| loss::cross_entropy(isa, answers, v, &targets));
            let per_context: Vec<f32> =
                each.chunks_exact(t).map(|c| c.iter().sum::<f32>() / t as f32).collect();
            let nll = per_context.iter().sum::<f32>() / contexts as f32;
            let probability = per_context.iter().map(|n| (-n).exp()).sum::<f32>() / contexts as f32;
            let reference = state.log_reference.get_or_insert_with(|| {
                let mut log_q = essence.to_vec();
                loss::log_softmax(isa, &mut log_q, v);
                log_q
            });
            let kl = settings.kl * loss::kl(isa, essence, reference, v)[0];
            let decay = settings.decay * norm(&state.delta) / norm(&state.initial).powi(2);
            let total = nll + kl + decay;
            if !total.is_finite() {
                return Err(Error::Numerical {
                    what: format!("the loss is {total} at step {}", state.losses.len()),
                });
            }
            state.losses.push(StepLoss { total, nll, kl, decay, probability });
            if total < settings.stop_below || last {
                state.done = true;
                part.fill(0.0);
            } else {
                let weights = vec![1.0 / (contexts * t) as f32; contexts * t];
                self.model.install(|| {
                    loss::cross_entropy_backward(isa, answers, v, &targets, &weights);
                    loss::kl_backward(isa, essence, reference, v, &[settings.kl]);
                });
            }
            at += contexts * t + 1;
        }
        if active.iter().all(|&f| facts[f].done) {
            return Ok(None);
        }
        let tape =
            outcome.tape.as_ref().ok_or_else(|| Error::Numerical { what: "the pass kept no tape".into() })?;
        let wants = Wants {
            logits: outcome.logits,
            sites: vec![Read { site: self.entry, rows: Some(starts) }],
            ..Default::default()
        };
        let gradient = self.model.backward(tape, &wants)?.sites.pop().unwrap_or_default();
        let mut row = 0;
        let mut sums = Vec::with_capacity(active.len());
        for &f in active {
            let count = self.requests[f].prompts.len() + 1;
            let state = &facts[f];
            let mut sum = vec![0.0f32; d];
            for g in gradient[row * d..(row + count) * d].chunks_exact(d) {
                sum.iter_mut().zip(g).for_each(|(s, g)| *s += g);
            }
            let size = norm(&state.delta);
            if size > 0.0 {
                let factor = settings.decay / (size * norm(&state.initial).powi(2));
                sum.iter_mut().zip(&state.delta).for_each(|(s, x)| *s += factor * x);
            }
            sums.push(sum);
            row += count;
        }
        Ok(Some(sums))
    }
}

/// The loss of one fact as a function of δ, prepared once: for checks and measurements.
pub struct Objective<'a> {
    prepared: Prepared<'a>,
    state: State,
}

impl<'a> Objective<'a> {
    /// Does all that no δ changes, the unedited distribution at the subject included.
    ///
    /// # Errors
    /// As [`search`]; where `request` is not one request.
    pub fn new(
        model: &'a Model,
        stack: &'a [&'a Overlay],
        site: Site,
        request: &'a [Request],
    ) -> Result<Self> {
        if request.len() != 1 {
            return Err(Error::input(format!("an objective is about one fact, not {}", request.len())));
        }
        let prepared = Prepared::new(model, stack, site, request)?;
        let d = model.architecture().width;
        let mut states = [State::new(prepared.initial(0, d), d)];
        prepared.evaluate(&mut states, &[0], &Search::default(), true)?;
        let [state] = states;
        Ok(Self { prepared, state })
    }

    /// The site's value in the bare prompt, `[d]`.
    pub fn initial(&self) -> &[f32] {
        &self.state.initial
    }

    /// Loss at `delta [d]`, and its gradient.
    ///
    /// # Errors
    /// As [`search`].
    pub fn at(&mut self, delta: &[f32], settings: &Search) -> Result<(StepLoss, Vec<f32>)> {
        self.state.delta.copy_from_slice(delta);
        self.state.done = false;
        // The gradient is wanted however small the loss is.
        let settings = Search { stop_below: f32::NEG_INFINITY, ..settings.clone() };
        let state = std::slice::from_mut(&mut self.state);
        let gradient = self.prepared.evaluate(state, &[0], &settings, false)?;
        let gradient = gradient.and_then(|mut g| g.pop()).unwrap_or_default();
        let loss = self.state.losses.last().copied();
        loss.map(|l| (l, gradient)).ok_or_else(|| Error::Numerical { what: "nothing was evaluated".into() })
    }
}

/// Keys and values of everything before the lookup tokens.
fn prefixes(model: &Model, stack: &[&Overlay], tokens: &[Vec<u32>], lookups: &[usize]) -> Result<Vec<Cache>> {
    let mut caches: Vec<Cache> = tokens.iter().map(|_| Cache::new(model.architecture())).collect();
    let sequences: Vec<Sequence<'_>> = tokens
        .iter()
        .zip(lookups)
        .zip(&mut caches)
        .filter(|((_, l), _)| **l > 0)
        .map(|((t, &l), cache)| Sequence {
            tokens: &t[..l],
            cache: Some(cache),
            overlays: stack,
            ..Default::default()
        })
        .collect();
    if !sequences.is_empty() {
        model.forward(Pass { sequences, ..Default::default() })?;
    }
    Ok(caches)
}

/// Index of the first row of each sequence.
fn starts(lengths: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut at = 0;
    lengths
        .map(|len| {
            at += len;
            at - len
        })
        .collect()
}

fn norm(x: &[f32]) -> f32 {
    x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32
}
