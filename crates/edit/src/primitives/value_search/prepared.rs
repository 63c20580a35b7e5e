//! Everything about the prompts of a batch that no step of a search changes, and one step.

use mutandis_engine::kernels::loss;
use mutandis_engine::{
    Action, Cache, Intervention, LogitRows, Model, Overlay, Pass, Past, Read, Sequence, Site, SiteKind,
    Start, Wants,
};

use super::{Goal, State, StepLoss};
use crate::error::{Error, Result};
use crate::primitives::request::{Prompt, Request};

/// Everything about the prompts that no step changes.
pub(super) struct Prepared<'a> {
    model: &'a Model,
    stack: &'a [&'a Overlay],
    requests: &'a [Request],
    /// Where the δ's are added: at the sites asked for, or at the input of the layer above where
    /// that is the same.
    entries: Vec<Site>,
    rows: Vec<Row>,
    /// Index of each fact's first row; its essence row, if any, comes last.
    first: Vec<usize>,
    /// Rows of each fact besides its prompts: the essence's, where its divergence weighs anything.
    essences: usize,
    initial: Vec<f32>,
    /// MLP keys and outputs at the lookup token of every prompt, essences left out.
    pub(super) keys: Vec<f32>,
    pub(super) outputs: Vec<f32>,
}

/// One prompt (with its target, less the last token), split at the lookup token.
struct Row {
    /// Tokens from the lookup token on.
    suffix: Vec<u32>,
    past: Past,
    /// Hidden states entering the layer of the entries, `[suffix, d]`.
    hidden: Vec<f32>,
    /// Number of last rows that predict a target token; 0 for the essence, whose one row counts.
    predicting: usize,
}

impl<'a> Prepared<'a> {
    pub(super) fn new(
        model: &'a Model,
        stack: &'a [&'a Overlay],
        sites: &[Site],
        with_essence: bool,
        requests: &'a [Request],
    ) -> Result<Self> {
        let a = model.architecture();
        let layer = sites.first().map_or(0, |s| s.layer);
        if layer >= a.layers {
            return Err(Error::input_hint(
                format!("layer {layer} does not exist"),
                format!("layers are 0 to {}", a.layers - 1),
            ));
        }
        if sites.is_empty() || sites.iter().any(|s| s.layer != layer) {
            return Err(Error::input(format!("a search is at sites of one layer, not {sites:?}")));
        }
        // Without a norm behind the MLP, adding to its output is adding to the residual stream.
        let is_above =
            |s: &Site| s.kind == SiteKind::Residual || (s.kind == SiteKind::MlpOut && !a.sandwich_norm);
        let entries = if layer + 1 < a.layers && sites.iter().all(is_above) && sites.len() == 1 {
            vec![Site::new(layer + 1, SiteKind::Input)]
        } else {
            sites.to_vec()
        };

        let (mut tokens, mut lookups, mut predicting, mut first) = (vec![], vec![], vec![], vec![]);
        for request in requests {
            first.push(tokens.len());
            for Prompt { at, target } in &request.prompts {
                tokens.push([&at.ids[..], &target[..target.len() - 1]].concat());
                lookups.push(at.lookup);
                predicting.push(target.len());
            }
            if with_essence {
                tokens.push(request.essence.ids.clone());
                lookups.push(request.essence.lookup);
                predicting.push(0);
            }
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
        let mut reads: Vec<Read> =
            sites.iter().map(|&site| Read { site, rows: Some(bare.clone()) }).collect();
        reads.push(Read { site: Site::new(layer, SiteKind::MlpKey), rows: Some(prompts.clone()) });
        reads.push(Read { site: Site::new(layer, SiteKind::MlpOut), rows: Some(prompts) });
        let start = entries[0].layer;
        let into = if start == layer { SiteKind::Input } else { SiteKind::Residual };
        let into = Site::new(layer, into);
        reads.push(Read { site: into, rows: None });
        let mut reads = model.forward(Pass { sequences, reads, ..Default::default() })?.reads;
        let all = reads.pop().unwrap_or_default();
        let outputs = reads.pop().unwrap_or_default();
        let keys = reads.pop().unwrap_or_default();
        // From site by site to fact by fact.
        let initial: Vec<f32> = (0..requests.len())
            .flat_map(|i| reads.iter().flat_map(move |r| r[i * a.width..(i + 1) * a.width].iter().copied()))
            .collect();
        let rows = tokens
            .iter()
            .zip(lookups)
            .zip(caches)
            .zip(predicting)
            .zip(starts)
            .map(|((((t, l), cache), predicting), from)| {
                // Layers below the entry are not run again.
                let past = cache.past(l, start);
                let suffix = t[l..].to_vec();
                let hidden = all[from * a.width..(from + suffix.len()) * a.width].to_vec();
                Row { suffix, past, hidden, predicting }
            })
            .collect();
        let essences = usize::from(with_essence);
        Ok(Self { model, stack, requests, entries, rows, first, essences, initial, keys, outputs })
    }

    /// The sites' values of a fact; `width` numbers in all.
    pub(super) fn initial(&self, fact: usize, width: usize) -> Vec<f32> {
        self.initial[fact * width..(fact + 1) * width].to_vec()
    }

    /// The part of `keys` or `outputs` that belongs to a fact.
    pub(super) fn of(&self, fact: usize, values: &[f32]) -> Vec<f32> {
        let prompts: usize = self.requests.iter().map(|r| r.prompts.len()).sum();
        let width = values.len() / prompts.max(1);
        let from = (self.first[fact] - fact * self.essences) * width;
        values[from..from + self.requests[fact].prompts.len() * width].to_vec()
    }

    fn rows_of(&self, fact: usize) -> std::ops::Range<usize> {
        self.first[fact]..self.first[fact] + self.requests[fact].prompts.len() + self.essences
    }

    /// Losses of all active facts at their δ; those that are small enough, or the `last`, are done.
    /// Gradients of the others, in the order of `active`, unless all are done.
    pub(super) fn evaluate(
        &self,
        facts: &mut [State],
        active: &[usize],
        goal: &Goal<'_>,
        last: bool,
    ) -> Result<Option<Vec<Vec<f32>>>> {
        let settings = goal.search;
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
                layer: self.entries[0].layer,
                rows: rows.iter().flat_map(|r| &r.hidden).copied().collect(),
            },
            interventions: (0..self.entries.len())
                .map(|i| Intervention {
                    site: self.entries[i],
                    rows: starts.clone(),
                    action: Action::Add(
                        owners.iter().flat_map(|&f| &facts[f].delta[i * d..(i + 1) * d]).copied().collect(),
                    ),
                })
                .collect(),
            logits: LogitRows::Rows(logit_rows),
            record: true,
            ..Default::default()
        };
        let mut outcome = self.model.forward(pass)?;

        // Losses, and the gradient of the logits in their place.
        let mut at = 0;
        for &f in active {
            let prompts = &self.requests[f].prompts;
            let targets: Vec<u32> = prompts.iter().flat_map(|p| p.target.iter().copied()).collect();
            let part = &mut outcome.logits[at * v..(at + targets.len() + self.essences) * v];
            let (answers, essence) = part.split_at_mut(targets.len() * v);
            let state = &mut facts[f];
            let each = self.model.install(|| loss::cross_entropy(isa, answers, v, &targets));
            let mut rest = &each[..];
            let per_prompt: Vec<f32> = prompts
                .iter()
                .map(|p| {
                    let (own, later) = rest.split_at(p.target.len());
                    rest = later;
                    own.iter().sum::<f32>() / own.len() as f32
                })
                .collect();
            let contexts = prompts.len() as f32;
            let plain = per_prompt.iter().sum::<f32>() / contexts;
            let probability = per_prompt.iter().map(|n| (-n).exp()).sum::<f32>() / contexts;
            let is_likeliest = |(row, &id): (&[f32], &u32)| {
                let own = row[id as usize];
                row.iter().enumerate().all(|(i, x)| *x + settings.margin <= own || i == id as usize)
            };
            // A look at every logit, so only where it matters.
            let everywhere = (settings.settle > 0 || settings.shorten > 0 || goal.ease.is_some())
                && answers.chunks_exact(v).zip(&targets).all(is_likeliest);
            let settled = state.settles(everywhere, settings.settle);
            let weight = goal.ease.filter(|_| everywhere).map_or(1.0, |e| e.weight);
            let nll = weight * plain;
            let decay = settings.decay * state.size();
            let reference = state.log_reference.get_or_insert_with(|| {
                let mut log_q = essence.to_vec();
                loss::log_softmax(isa, &mut log_q, v);
                log_q
            });
            let kl = settings.kl * loss::kl(isa, essence, reference, v).first().copied().unwrap_or(0.0);
            let total = nll + kl + decay;
            if !total.is_finite() {
                return Err(Error::Numerical {
                    what: format!("the loss is {total} at step {}", state.losses.len()),
                });
            }
            state.losses.push(StepLoss { total, nll, kl, decay, probability });
            let eased = everywhere && goal.ease.is_some_and(|e| kl <= e.stop_kl);
            if total < settings.stop_below || settled || eased || last {
                state.done = true;
                part.fill(0.0);
            } else {
                let each = |p: &Prompt| {
                    std::iter::repeat_n(weight / (contexts * p.target.len() as f32), p.target.len())
                };
                let weights: Vec<f32> = prompts.iter().flat_map(each).collect();
                self.model.install(|| {
                    loss::cross_entropy_backward(isa, answers, v, &targets, &weights);
                    loss::kl_backward(isa, essence, reference, v, &vec![settings.kl; self.essences]);
                });
            }
            at += targets.len() + self.essences;
        }
        if active.iter().all(|&f| facts[f].done) {
            return Ok(None);
        }
        let tape =
            outcome.tape.as_ref().ok_or_else(|| Error::Numerical { what: "the pass kept no tape".into() })?;
        let site = |&site: &Site| Read { site, rows: Some(starts.clone()) };
        let wants = Wants {
            logits: outcome.logits,
            sites: self.entries.iter().map(site).collect(),
            ..Default::default()
        };
        let gradients = self.model.backward(tape, &wants)?.sites;
        let mut row = 0;
        let mut sums = Vec::with_capacity(active.len());
        for &f in active {
            let count = self.requests[f].prompts.len() + self.essences;
            let mut sum = vec![0.0f32; gradients.len() * d];
            for (sum, gradient) in sum.chunks_exact_mut(d).zip(&gradients) {
                for g in gradient[row * d..(row + count) * d].chunks_exact(d) {
                    sum.iter_mut().zip(g).for_each(|(s, g)| *s += g);
                }
            }
            facts[f].add_decay(settings.decay, &mut sum);
            sums.push(sum);
            row += count;
        }
        Ok(Some(sums))
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
