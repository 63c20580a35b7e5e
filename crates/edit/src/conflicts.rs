//! What patches of one stack want of each other's facts: the same, the contrary, or something else
//! with nearly the same key.
//!
//! A long stack is not read for that. Beside it lies an index, which can be made again at any time:
//! hashes of each fact's words, and a sketch of its key, 64 numbers whose cosines are those of the
//! keys but for a few hundredths. Only what these point to is read and compared exactly.

mod index;
mod keys;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use mutandis_engine::{LogitRows, Model, Overlay, Pass, Sequence, kernels::loss};
use serde::Serialize;

use self::index::Index;
use self::keys::Metric;
use self::words::{Traits, share_a_word};
use crate::error::Result;
use crate::fact::Fact;
use crate::ledger::Writer;
use crate::patch::Patch;
use crate::primitives::answers::Example;

/// Cosine from which keys are close, unless another is asked for.
pub const CLOSE: f64 = 0.9;

/// So many patches that an index points to are read for one fact, the likeliest first.
const READ: usize = 64;

/// Facts whose targets' probabilities are measured in one pass.
const BATCH: usize = 16;

/// How two facts stand to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Of the same prompt, or of the same subject and relation, they want different answers.
    Contradiction,
    /// Each speaks of what the other answers, in the same words, and they do not agree: "The capital
    /// of France is → Rome" and "Rome is the capital of → Italy".
    Reverse,
    /// They want the same.
    Repeat,
    /// Their keys are close: what one writes, the other meets.
    Close,
}

/// One of two facts in conflict.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Side {
    /// Id of its patch.
    pub id: String,
    /// The fact.
    #[serde(flatten)]
    pub fact: Fact,
}

/// Two facts in conflict.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Conflict {
    /// How they stand to each other; where their keys are close besides, `cosine` is there.
    pub kind: Kind,
    /// The fact that is to join.
    pub new: Side,
    /// The fact that is there.
    pub old: Side,
    /// Cosine of their keys, where they are close.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cosine: Option<f64>,
    /// The layer where they are closest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
}

/// What was found before patches join a stack.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Conflicts {
    /// One for each pair of facts, the gravest first.
    pub found: Vec<Conflict>,
    /// How keys were compared, by layer: under which moments, or plainly where there are none.
    pub metrics: BTreeMap<usize, String>,
    /// Facts that no key is known of: they were compared by their words alone.
    pub without_key: usize,
}

/// Compares patches that are to join a stack with those that are there, and with each other. Keys
/// count as close from a cosine of `close`; `cache` is where moments are looked for.
///
/// # Errors
/// Where a patch of the stack that has to be looked into is missing or damaged.
pub fn conflicts(writer: &Writer, new: &[Patch], close: f64, cache: Option<&Path>) -> Result<Conflicts> {
    let ledger = writer.ledger();
    let ids = new.iter().map(Patch::id).collect::<Result<Vec<_>>>()?;
    let mut report = Conflicts::default();
    let mut pairs: BTreeMap<(usize, usize, String, usize), Conflict> = BTreeMap::new();
    let mut note = |kind: Kind, (i, n): (usize, usize), old: Side, at: usize, found: Option<(f64, usize)>| {
        let new = Side { id: ids[i].clone(), fact: new[i].facts[n].clone() };
        let entry = pairs.entry((i, n, old.id.clone(), at)).or_insert_with(|| Conflict {
            kind,
            new,
            old,
            cosine: None,
            layer: None,
        });
        entry.kind = entry.kind.min(kind);
        if let Some((cosine, layer)) = found
            && entry.cosine.is_none_or(|c| c < cosine)
        {
            (entry.cosine, entry.layer) = (Some(cosine), Some(layer));
        }
    };

    // By words.
    let index = Index::new(ledger);
    let mut known = Known(index.traits()?);
    let sides = Sides { index: &index, new, ids: &ids };
    for (i, patch) in new.iter().enumerate() {
        let own: Vec<Traits> = patch.facts.iter().map(Traits::of).collect();
        for (n, (fact, traits)) in patch.facts.iter().zip(&own).enumerate() {
            for (id, at, same) in known.like(traits) {
                let Some(old) = sides.side(id, at)? else { continue };
                let kind = match (same, Traits::of(&old.fact).target == traits.target) {
                    (true, true) => Kind::Repeat,
                    (true, false) => Kind::Contradiction,
                    (false, _) if share_a_word(fact, &old.fact) => Kind::Reverse,
                    (false, _) => continue,
                };
                note(kind, (i, n), old, at, None);
            }
        }
        known.0.extend(own.into_iter().enumerate().map(|(at, traits)| (index::key(&ids[i]), at, traits)));
    }

    // By keys.
    let layers: BTreeSet<usize> = new.iter().flat_map(|p| p.keys.keys().copied()).collect();
    for layer in layers {
        let width = new.iter().find_map(|p| keys::of(p, layer, 0).map(<[f32]>::len)).unwrap_or(0);
        let metric = Metric::find(cache, ledger, layer, width);
        let mut sketches = index.sketches(layer, &metric)?;
        for (i, patch) in new.iter().enumerate() {
            let own = sketches.of(patch, &metric);
            for (n, sketch) in own.iter().enumerate() {
                for (id, at) in sketches.near(sketch, close) {
                    let (Some(old), Some(key)) = (sides.patch(id)?, keys::of(patch, layer, n)) else {
                        continue;
                    };
                    let Some(other) = keys::of(&old, layer, at) else { continue };
                    let cosine = metric.cosine(key, other)?;
                    if let (true, Some(side)) = (cosine >= close, sides.side(id, at)?) {
                        note(Kind::Close, (i, n), side, at, Some((cosine, layer)));
                    }
                }
            }
            sketches.push(index::key(&ids[i]), own);
        }
        report.metrics.insert(layer, metric.name());
    }
    report.without_key = new.iter().filter(|p| p.keys.is_empty()).map(|p| p.facts.len()).sum();
    report.found = pairs.into_values().collect();
    report.found.sort_by_key(|c| c.kind);
    Ok(report)
}

/// How likely a model with some changes finds each fact's target, token by token. `prefix` goes
/// before every prompt, where a patch is one.
///
/// # Errors
/// Where a fact does not fit the model's context.
pub fn likelihoods(model: &Model, overlays: &[&Overlay], prefix: &str, facts: &[Fact]) -> Result<Vec<f32>> {
    let v = model.architecture().vocabulary;
    let mut all = Vec::with_capacity(facts.len());
    for batch in facts.chunks(BATCH) {
        let with = batch.iter().map(|f| Fact { prompt: format!("{prefix}{}", f.prompt), ..f.clone() });
        let examples = with.map(|fact| Example::answer(model, &fact, false)).collect::<Result<Vec<_>>>()?;
        let (mut start, mut rows, mut targets, mut sequences) = (0, vec![], vec![], vec![]);
        for example in &examples {
            rows.extend(example.targets.iter().map(|(row, _)| start + row));
            targets.extend(example.targets.iter().map(|(_, id)| *id));
            sequences.push(Sequence { tokens: &example.tokens, overlays, ..Default::default() });
            start += example.tokens.len();
        }
        let pass = Pass { sequences, logits: LogitRows::Rows(rows), ..Default::default() };
        let logits = model.forward(pass)?.logits;
        let losses = model.install(|| loss::cross_entropy(model.isa(), &logits, v, &targets));
        let mut rest = losses.as_slice();
        for example in &examples {
            let (own, later) = rest.split_at(example.targets.len());
            all.push((-own.iter().sum::<f32>()).exp());
            rest = later;
        }
    }
    Ok(all)
}

/// Facts by their words: patch, number in it, words.
struct Known(Vec<(u128, usize, Traits)>);

impl Known {
    /// Facts of the same prompt or relation, and (`false`) those that speak of this one's target, or
    /// answer with its subject, without agreeing. Of very many the last are taken.
    fn like(&self, own: &Traits) -> Vec<(u128, usize, bool)> {
        let how = |other: &Traits| {
            let is_same = own.prompt == other.prompt || own.relation == other.relation;
            // What is both says the same the other way round.
            let is_reverse = (own.target == other.subject) != (own.subject == other.target);
            (is_same || is_reverse).then_some(is_same)
        };
        let all = self.0.iter().rev().filter_map(|(id, at, other)| Some((*id, *at, how(other)?)));
        all.take(READ).collect()
    }
}

/// Patches that an index points to: in the stack, or among those that are to join.
struct Sides<'a> {
    index: &'a Index<'a>,
    new: &'a [Patch],
    ids: &'a [String],
}

impl Sides<'_> {
    fn patch(&self, id: u128) -> Result<Option<Patch>> {
        match self.ids.iter().position(|own| index::key(own) == id) {
            Some(i) => Ok(self.new.get(i).cloned()),
            None => self.index.patch(id),
        }
    }

    fn side(&self, id: u128, at: usize) -> Result<Option<Side>> {
        let Some(patch) = self.patch(id)? else { return Ok(None) };
        let Some(fact) = patch.facts.get(at).cloned() else { return Ok(None) };
        Ok(Some(Side { id: patch.id()?, fact }))
    }
}
