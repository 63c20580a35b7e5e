//! Settings for a model that has none: found by trial edits, one setting after another.
//!
//! Which settings a method has is asked of the registry; no method is named here. Each candidate
//! makes every trial edit, alone or many at a time, and is scored by the harmonic mean of efficacy,
//! paraphrase and locality (CounterFact's score, arXiv 2202.05262 §3.4, on token accuracy) times
//! the square of efficacy, and, of edits that share a model, times the share of its perplexity that
//! it was before; the best goes on to the next setting.

use std::collections::HashSet;
use std::fmt;

use mutandis_edit::method::merge;
use mutandis_edit::primitives::value_search::Values;
use mutandis_edit::{Context, Entry, Error, Fact, Result};
use mutandis_engine::{Architecture, Model};
use serde::Serialize;
use serde_json::{Value, json};

use crate::gate::text;
use crate::memory::Memory;
use crate::record::{Measures, Prepared, unedited};
use crate::results::{Scores, means};
use crate::run::{Cell, Mode};
use crate::whole::Whole;

/// One candidate, tried.
#[derive(Debug, Clone, Serialize)]
pub struct Trial {
    /// What was tried, besides what was settled before.
    pub change: Value,
    /// Scores over the trial edits.
    pub scores: Scores,
    /// Their harmonic mean, times the square of efficacy, and by how many times perplexity has
    /// grown as a divisor.
    pub score: f64,
    /// Perplexity after the edits over that before; of edits that share a model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// Seconds an edit.
    pub seconds: f64,
    /// Edits that failed.
    pub failed: usize,
}

/// What a sweep found.
#[derive(Debug, Clone, Serialize)]
pub struct Found {
    /// Settings that differ from the method's defaults.
    pub settings: Value,
    /// The best trial.
    pub best: Trial,
    /// Every trial, in order.
    pub trials: Vec<Trial>,
}

/// Relative strengths that are tried.
const STRENGTHS: [f64; 6] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3];
/// What a trained editor's change is multiplied by that is tried besides 1.
const SCALES: [f64; 3] = [0.3, 0.6, 2.0];
/// Shares of the keys' energy that are tried to keep out of reach.
const ENERGIES: [f64; 4] = [0.5, 0.8, 0.95, 0.99];
/// Weights of the subject's other statements that are tried.
const BESIDES: [f64; 2] = [0.1, 1.0];
/// Layers that a method of several layers writes at once.
const WINDOW: usize = 3;
/// What score a change of more layers has to be worth.
const WORTH: f64 = 0.01;
/// Prefixes of 5 and of 10 tokens that are tried, the first while all else is.
const PREFIXES: [[usize; 2]; 4] = [[1, 1], [0, 0], [3, 2], [10, 10]];

/// Learning rates of weights that are tried.
const RATES: [f64; 4] = [1e-4, 3e-4, 1e-3, 3e-3];
/// Epochs that are tried besides a method's own.
const EPOCHS: [usize; 2] = [50, 100];
/// Facts of one step of training that are tried, where facts are edited many at a time.
const BATCHES: [usize; 2] = [20, 5];
/// Steps along normalised gradients that are tried: once as published, and until targets lead.
const STEPS: [f64; 5] = [1e-6, 1e-5, 3e-5, 1e-4, 3e-4];
/// Weights of a layer that are tried.
const MODULES: [&[&str]; 4] =
    [&["mlp-out"], &["mlp-gate", "mlp-up"], &["query", "value"], &["attention-out"]];

/// Finds settings of a method for a model. `start` are settings that stay as they are, `mode` is
/// how the trial edits are made.
///
/// # Errors
/// Where there are no trial edits, the method has nothing to sweep, no candidate can be run, or
/// the user interrupts.
pub fn sweep(
    model: &Model,
    method: &Entry,
    start: &Value,
    facts: &[Fact],
    mode: Mode,
    seed: u64,
    cx: &Context<'_>,
) -> Result<Found> {
    let defaults = method.defaults();
    let axes = axes(&defaults, mode, model.architecture());
    // The defaults alone are no sweep.
    if axes.len() < 2 {
        return Err(Error::input_hint(
            format!("`{}` has no settings that a sweep could find", method.id),
            "it works on every model as it is",
        ));
    }
    let each = |(i, fact): (usize, &Fact)| Prepared::of_facts(model, i + 1, std::slice::from_ref(fact), &[]);
    let records = facts.iter().enumerate().map(each).collect::<Result<Vec<Prepared<'_>>>>()?;
    let before = unedited(model, &records.iter().collect::<Vec<_>>(), &Measures::COMPAT, seed)?;
    let text = if mode == Mode::Single { vec![] } else { text(model)? };
    let whole = Whole::new(model, text, vec![], cx)?;
    // Progress is of candidates, not of what each edit does.
    let values = Some(Values::default());
    let quiet = Context { progress: Context::default().progress, values, ..cx.clone() };
    let count = axes.iter().map(Vec::len).sum();
    cx.progress.begin("trying settings", count);
    let mut trials: Vec<Trial> = vec![];
    let mut settings =
        if defaults.get("prefixes").is_some() { json!({ "prefixes": PREFIXES[0] }) } else { json!({}) };
    merge(&mut settings, start);
    let mut best: Option<(Trial, usize)> = None;
    let mut why = None;
    let mut tried = HashSet::new();
    for axis in axes {
        for change in axis {
            cx.check()?;
            let mut all = settings.clone();
            merge(&mut all, &change);
            merge(&mut all, start);
            if !tried.insert(all.to_string()) {
                continue;
            }
            let measures = &Measures::COMPAT;
            let memory = Memory::UNKNOWN;
            let cell = Cell { model, method, settings: &all, mode, seed, measures, whole: &whole, memory };
            let run = cell.run(&records, &before, None, &|_| {}, &quiet)?;
            let made = run.records.iter().filter(|record| record.error.is_none());
            let scores = means(made.clone().map(|record| &record.after.compat));
            let failed = facts.len() - made.count();
            why = why.or_else(|| run.records.iter().find_map(|record| record.error.clone()));
            let perplexity = run.model.perplexity.map(|[before, after]| after / before);
            let trial = Trial {
                score: score(&scores, failed, facts.len()) / perplexity.unwrap_or(1.0).max(1.0),
                scores,
                perplexity,
                seconds: run.cost.edit_seconds / facts.len() as f64,
                failed,
                change,
            };
            cx.progress.note(&format!("{} of {count}: {trial}", trials.len() + 1));
            let width = all["layers"].as_array().map_or(0, Vec::len);
            let worth = |(best, wide): &(Trial, usize)| {
                trial.score > best.score - if width < *wide { WORTH } else { 0.0 }
            };
            if best.as_ref().is_none_or(worth) {
                best = Some((trial.clone(), width));
            }
            trials.push(trial);
            cx.progress.step(trials.len());
        }
        if let Some((best, _)) = &best {
            merge(&mut settings, &best.change);
            merge(&mut settings, start);
        }
    }
    cx.progress.end();
    let (best, _) = best.ok_or_else(|| Error::input("nothing was tried"))?;
    if best.failed == facts.len() {
        let why = why.unwrap_or_default();
        return Err(Error::input_hint(
            format!("no trial edit of `{}` could be made: {why}", method.id),
            "give facts that can be edited by `--facts FILE`, or other settings by `--set`",
        ));
    }
    Ok(Found { settings, best, trials })
}

/// What is tried, one setting after another, each with its candidates.
fn axes(defaults: &Value, mode: Mode, architecture: &Architecture) -> Vec<Vec<Value>> {
    let layers = architecture.layers;
    let has = |name: &str| defaults.get(name).is_some();
    // Facts are recalled in the lower and middle layers of every model that was looked at; weights
    // that are trained may lie anywhere, and few are better than many.
    let (upper, window) = match () {
        () if architecture.sandwich_norm && !has("epochs") && !has("step") => (layers, 1),
        () if has("epochs") => (layers, 1),
        () if has("step") => (layers, (layers / 5).max(1)),
        () => ((2 * layers / 3).max(1), WINDOW),
    };
    let places = |window: usize| -> Vec<Value> {
        let place = |from: usize| match () {
            () if has("layers") => {
                Some(json!({ "layers": (from..(from + window).min(layers)).collect::<Vec<_>>() }))
            }
            () if has("layer") => Some(json!({ "layer": from })),
            () => None,
        };
        (0..upper).step_by((layers / 12).max(1)).filter_map(place).collect()
    };
    let strengths: Vec<Vec<Value>> = [
        ("null-space", &ENERGIES[..]),
        ("lambda", &STRENGTHS),
        ("scale", if has("editor") { &SCALES } else { &STRENGTHS }),
        ("learning-rate", &RATES),
    ]
    .into_iter()
    .filter(|(name, _)| has(name))
    .map(|(name, tried)| tried.iter().map(|x| json!({ name: x })).collect())
    .collect();

    let steps = |thorough: bool| -> Vec<Value> {
        let more = if thorough {
            json!({ "rounds": 10, "reach": 16.0, "margin": 1.0, "warm-up": 64 })
        } else {
            json!({})
        };
        let with = |step: &f64| {
            let mut all = more.clone();
            all["step"] = json!(step);
            all
        };
        if has("step") { STEPS.iter().map(with).collect() } else { vec![] }
    };

    // The defaults first. Strengths come twice: so that anything is written at all, and for the
    // place found.
    let mut axes = vec![vec![json!({})]];
    axes.extend(strengths.clone());
    axes.push([steps(false), steps(true)].concat());
    if has("search") {
        let way = |(i, search): (usize, &fn() -> Value)| {
            let mut all = json!({ "search": search() });
            if i > 0 && has("rounds") {
                all["rounds"] = json!(ROUNDS);
            }
            all
        };
        axes.push(SEARCHES.iter().enumerate().map(way).collect());
    }
    if has("beside") {
        axes.push(BESIDES.iter().map(|x| json!({ "beside": x })).collect());
    }
    axes.push(places(window));
    if has("step") {
        axes.push(places((2 * window / 3).max(1)));
    }
    if has("token") {
        let last = |mut place: Value| {
            place["token"] = json!("last");
            place
        };
        axes.push(places(window).into_iter().map(last).collect());
    }
    axes.extend(strengths);
    axes.push(steps(true));
    if has("batch") && mode != Mode::Single {
        let with = |batch: usize, rate: &f64| json!({ "batch": batch, "learning-rate": rate });
        axes.push(BATCHES.iter().flat_map(|batch| RATES[1..].iter().map(|r| with(*batch, r))).collect());
    }
    if has("epochs") {
        axes.push(EPOCHS.iter().map(|x| json!({ "epochs": x })).collect());
    }
    if has("modules") {
        axes.push(MODULES.iter().map(|x| json!({ "modules": x })).collect());
    }
    if has("prefixes") {
        axes.push(PREFIXES[1..].iter().map(|p| json!({ "prefixes": p })).collect());
    }
    axes.retain(|axis| !axis.is_empty());
    axes
}

/// Rounds of searching and writing, where the search goes on until the target leads.
const ROUNDS: usize = 3;

/// Ways to search for a value: as published; and until the target leads in every context by a
/// margin, however long that takes, and no further.
const SEARCHES: [fn() -> Value; 6] = [
    || json!({}),
    || thorough(1.0, 0.5, 0),
    || thorough(1.0, 0.5, 4),
    || thorough(3.0, 0.5, 4),
    || thorough(3.0, 1.0, 4),
    // Where a norm stands behind the MLP, its outputs are small.
    || thorough(1.0, 0.02, 4),
];

fn thorough(margin: f64, rate: f64, shorten: usize) -> Value {
    json!({
        "steps": 50,
        "learning-rate": rate,
        "clamp": 20.0,
        "settle": 1,
        "margin": margin,
        "shorten": shorten,
        "stop-below": 0.0,
    })
}

impl fmt::Display for Trial {
    /// One line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent =
            |name: &str| self.scores.get(name).map_or("–".to_owned(), |x| format!("{:.0} %", 100.0 * x));
        write!(
            f,
            "score {:.1} (efficacy {}, paraphrase {}, locality {}{}), {:.2} s an edit: {}",
            100.0 * self.score,
            percent("edit"),
            percent("rephrase"),
            percent("locality"),
            self.perplexity.map_or_else(String::new, |p| format!(", perplexity ×{p:.2}")),
            self.seconds,
            self.change
        )
    }
}

/// Harmonic mean of what there is of efficacy, paraphrase and locality, times the square of
/// efficacy, failed edits counted as 0: a change that does not hold is worth little, however
/// little it disturbs.
fn score(mean: &Scores, failed: usize, count: usize) -> f64 {
    let done = 1.0 - failed as f64 / count.max(1) as f64;
    let parts: Vec<f64> =
        ["edit", "rephrase", "locality"].iter().filter_map(|name| mean.get(*name).copied()).collect();
    // Of nothing at all a little is left, so that candidates can still be told apart.
    let inverse: f64 = parts.iter().map(|p| 1.0 / p.max(1e-3)).sum();
    let holds = mean.get("edit").copied().unwrap_or(1.0);
    if parts.is_empty() { 0.0 } else { done * holds * holds * parts.len() as f64 / inverse }
}
