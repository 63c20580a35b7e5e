//! KN: knowledge neurons, found and rewritten.

use std::collections::BTreeMap;

use mutandis_engine::{Model, Role, WeightId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::fact::{Change, Fact};
use crate::method::{Family, Job, Method};
use crate::patch::{Patch, SearchInfo, WeightChange};
use crate::primitives::contexts;
use crate::primitives::neurons::{self, Finding, Neuron};
use crate::primitives::request;

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct Config {
    /// Which neurons count.
    find: Finding,
    /// Numbers of prefixes of 5 and of 10 tokens, sampled from the model, behind which the prompt
    /// has to hang on a neuron too.
    prefixes: [usize; 2],
    /// Refine over the fact's own other wordings, where it has any. Benchmarks score on those.
    rephrases: bool,
    /// How much of the new answer's direction goes into a neuron's column.
    new: f64,
    /// How much of the old answer's direction is taken out of it.
    old: f64,
    /// Neurons of a fact, at most: those of the largest attribution.
    most: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { find: Finding::default(), prefixes: [0, 0], rephrases: false, new: 2.0, old: 2.0, most: 20 }
    }
}

/// Knowledge neurons; [`Method::DOC`] describes it.
pub(super) struct Kn;

impl Method for Kn {
    const ID: &'static str = "kn";
    const FAMILY: Family = Family::Mastery;
    const PAPER: &'static str = "2104.08696";
    const SUMMARY: &'static str =
        "finds the neurons that the old answer hangs on, and makes them write the new one";
    const DOC: &'static str = describe!(
        "Integrated gradients give the MLP neurons that the probability of the present answer hangs on at the \
         prompt's last token. Of their columns in the down projection the old answer's direction in the head is \
         taken out and the new one's put in; to erase, the columns become zero.",
        "When to use: to study where a fact is, and for facts to be forgotten; `mutandis locate neurons` shows them.",
        "When not: where the new answer must hold; a handful of columns seldom carries it.",
        "Cost: twenty steps of each layer for each prompt, at one token.",
        "DIFFERENCE from the paper: the answer is its first token; directions are scaled to the mean norm of a \
         column, so that 2 means the same on every model, and turned round for a neuron that is negative, as those of \
         gated MLPs can be."
    );
    type Config = Config;

    fn check(config: &Config, _: &Model) -> Result<()> {
        for (name, value) in [("new", config.new), ("old", config.old)] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(Error::input_hint(
                    format!("`{name}` is {value}, expected 0 or more"),
                    "2 is published",
                ));
            }
        }
        if config.most == 0 {
            return Err(Error::input_hint("`most` is 0, expected 1 or more", "20 by default"));
        }
        config.find.check()
    }

    fn edit(config: &Config, job: &Job<'_>, cx: &Context<'_>) -> Result<Patch> {
        let mut patch = job.patch::<Self>(config)?;
        let (model, d) = (job.model, job.model.architecture().width);
        let head = model.weight(Role::Head, 0)?;
        let mut columns: BTreeMap<usize, BTreeMap<usize, Column>> = BTreeMap::new();
        for fact in job.facts {
            let (old, neurons) = found(config, job, fact, cx)?;
            patch.search.push(SearchInfo { steps: neurons.len(), ..SearchInfo::default() });
            let direction = |token: u32| {
                let row = &head[token as usize * d..][..d];
                let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
                row.iter().map(move |x| x / norm)
            };
            let new = request::target(model.tokenizer()?, fact)?[0];
            if new == old && fact.change != Change::Erase {
                return Err(Error::input_hint(
                    format!(
                        "the old answer of `{}` and the new one, `{}`, begin with the same token, which is all that \
                         `kn` writes",
                        fact.prompt, fact.target
                    ),
                    "use another method, as `r-rome`",
                ));
            }
            let change: Vec<f32> = direction(new)
                .zip(direction(old))
                .map(|(new, old)| config.new as f32 * new - config.old as f32 * old)
                .collect();
            for neuron in neurons {
                let column = columns.entry(neuron.layer).or_default().entry(neuron.neuron).or_default();
                match fact.change {
                    Change::Erase => column.erase = true,
                    Change::Insert | Change::Modify => {
                        // What a negative neuron writes is its column turned round.
                        let sign = neuron.activation.signum() as f32;
                        column.add.resize(d, 0.0);
                        column.add.iter_mut().zip(&change).for_each(|(sum, x)| *sum += sign * x);
                    }
                }
            }
        }
        for (layer, columns) in columns {
            let id = WeightId { layer, role: Role::MlpOut };
            let mut weight = model.weight(id.role, layer)?;
            for (_, change) in job.prior.iter().flat_map(|p| &p.weights).filter(|(other, _)| *other == id) {
                change.add_to(&mut weight);
            }
            patch.push(model, id, change(&columns, &weight, d))?;
        }
        Ok(patch)
    }
}

/// What becomes of a neuron's column.
#[derive(Default)]
struct Column {
    /// It becomes zero.
    erase: bool,
    /// What is added, in units of the columns' mean norm; empty for nothing.
    add: Vec<f32>,
}

/// The token that is answered before the edit, and the neurons it hangs on.
fn found(config: &Config, job: &Job<'_>, fact: &Fact, cx: &Context<'_>) -> Result<(u32, Vec<Neuron>)> {
    let tokenizer = job.model.tokenizer()?;
    let templates = contexts::for_edits(job.model, config.prefixes, job.seed, cx)?;
    let mut texts: Vec<String> = templates.iter().map(|t| t.replace("{}", fact.prompt.trim_end())).collect();
    if config.rephrases {
        texts.extend(fact.rephrases.iter().map(|r| r.trim_end().to_owned()));
    }
    let prompts = texts
        .iter()
        .map(|text| {
            let ids = tokenizer.encode(text)?.ids;
            request::fits(job.model, text, ids.len() + 1)?;
            Ok(ids)
        })
        .collect::<Result<Vec<_>>>()?;
    let old = match &fact.ground_truth {
        Some(text) if !text.trim().is_empty() => {
            request::target(tokenizer, &Fact { target: text.clone(), ..fact.clone() })?[0]
        }
        _ => neurons::likeliest(job.model, job.stack, &prompts[0])?,
    };
    let mut neurons = neurons::find(job.model, job.stack, &prompts, old, &config.find, cx)?;
    neurons.truncate(config.most);
    if neurons.is_empty() {
        return Err(Error::input_hint(
            format!("no neuron counts for `{}` in enough wordings", fact.prompt),
            "lower `find.share` or `find.threshold`",
        ));
    }
    Ok((old, neurons))
}

/// The change of a down projection `[d, f]`: one rank for each column.
fn change(columns: &BTreeMap<usize, Column>, weight: &[f32], d: usize) -> WeightChange {
    let f = weight.len() / d;
    let norm = (weight.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / f as f64).sqrt() as f32;
    let rank = columns.len();
    let (mut left, mut right) = (vec![0.0; d * rank], vec![0.0; f * rank]);
    for (r, (&neuron, column)) in columns.iter().enumerate() {
        right[neuron * rank + r] = 1.0;
        for o in 0..d {
            let before = if column.erase { weight[o * f + neuron] } else { 0.0 };
            left[o * rank + r] = column.add.get(o).map_or(0.0, |x| norm * x) - before;
        }
    }
    WeightChange::LowRank { rank, left, right }
}
