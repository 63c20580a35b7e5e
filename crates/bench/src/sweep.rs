//! Settings for a model that has none: found by trial edits, one setting after another.
//!
//! Which settings a method has is asked of the registry; no method is named here. Each candidate
//! makes every trial edit alone and is scored by the harmonic mean of efficacy, paraphrase and
//! locality (CounterFact's score, arXiv 2202.05262 §3.4, on token accuracy); the best goes on to
//! the next setting.

use mutandis_edit::method::merge;
use mutandis_edit::{Context, Entry, Error, Fact, Result};
use mutandis_engine::Model;
use serde::Serialize;
use serde_json::{Value, json};

use crate::compat::Scores;
use crate::run::{Baseline, Mode, Run};

/// One candidate, tried.
#[derive(Debug, Clone, Serialize)]
pub struct Trial {
    /// What was tried, besides what was settled before.
    pub change: Value,
    /// Scores over the trial edits.
    pub scores: Scores,
    /// Their harmonic mean.
    pub score: f64,
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
const STRENGTHS: [f64; 6] = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0];
/// Shares of the keys' energy that are tried to keep out of reach.
const ENERGIES: [f64; 4] = [0.5, 0.8, 0.95, 0.99];
/// Multiples of ‖h‖ that are tried as the longest δ.
const CLAMPS: [f64; 4] = [0.75, 1.5, 2.5, 4.0];
/// Steps after the target is the likeliest answer at which the search may end; 0: it goes on.
const SETTLE: [usize; 3] = [0, 1, 3];
/// Layers that a method of several layers writes at once.
const WINDOW: usize = 3;

/// Finds settings of a method for a model. `start` are settings to begin with, and to keep unless
/// something better is found.
///
/// # Errors
/// Where there are no trial edits, the method has nothing to sweep, no candidate can be run, or
/// the user interrupts.
pub fn sweep(
    model: &Model,
    method: &Entry,
    start: &Value,
    facts: &[Fact],
    seed: u64,
    cx: &Context<'_>,
) -> Result<Found> {
    let axes = axes(&method.defaults(), model.architecture().layers);
    if axes.is_empty() {
        return Err(Error::input_hint(
            format!("`{}` has no settings that a sweep could find", method.id),
            "it works on every model as it is",
        ));
    }
    let baseline = Baseline::new(model, facts)?;
    // Progress is of candidates, not of what each edit does.
    let quiet = Context { progress: Context::default().progress, ..cx.clone() };
    cx.progress.begin("trying settings", axes.iter().map(Vec::len).sum());
    let (mut trials, mut settings): (Vec<Trial>, Value) = (vec![], start.clone());
    let mut best: Option<Trial> = None;
    for axis in axes {
        for change in axis {
            cx.check()?;
            let mut all = settings.clone();
            merge(&mut all, &change);
            let run = Run {
                model,
                method,
                settings: &all,
                facts,
                baseline: &baseline,
                mode: Mode::Single,
                seed,
                text: &[],
            };
            let outcome = run.run(&quiet)?;
            let trial = Trial {
                score: score(&outcome.mean, outcome.failed, facts.len()),
                scores: outcome.mean,
                seconds: outcome.edit_seconds / facts.len() as f64,
                failed: outcome.failed,
                change,
            };
            if best.as_ref().is_none_or(|b| trial.score > b.score) {
                best = Some(trial.clone());
            }
            trials.push(trial);
            cx.progress.step(trials.len());
        }
        if let Some(best) = &best {
            merge(&mut settings, &best.change);
        }
    }
    cx.progress.end();
    let best = best.ok_or_else(|| Error::input("nothing was tried"))?;
    if best.failed == facts.len() {
        return Err(Error::Numerical { what: format!("no trial edit of `{}` could be made", method.id) });
    }
    Ok(Found { settings, best, trials })
}

/// What is tried, one setting after another, each with its candidates.
fn axes(defaults: &Value, layers: usize) -> Vec<Vec<Value>> {
    let has = |path: &str| defaults.pointer(path).is_some();
    let mut axes = vec![];
    // Facts are recalled in the lower and middle layers of every model that was looked at.
    let upper = (2 * layers / 3).max(1);
    let step = (layers / 12).max(1);
    if has("/null-space") {
        axes.push(ENERGIES.map(|e| json!({ "null-space": e })).to_vec());
    }
    if has("/lambda") {
        axes.push(STRENGTHS.map(|s| json!({ "lambda": s })).to_vec());
    }
    if has("/scale") {
        axes.push(STRENGTHS.map(|s| json!({ "scale": s })).to_vec());
    }
    if has("/layers") {
        let windows = (0..upper).step_by(step).map(|from| (from, (from + WINDOW).min(layers)));
        axes.push(windows.map(|(from, to)| json!({ "layers": (from..to).collect::<Vec<_>>() })).collect());
    } else if has("/layer") {
        axes.push((0..upper).step_by(step).map(|layer| json!({ "layer": layer })).collect());
    }
    if has("/search") {
        axes.push(CLAMPS.map(|clamp| json!({ "search": { "clamp": clamp } })).to_vec());
        axes.push(SETTLE.map(|settle| json!({ "search": { "settle": settle } })).to_vec());
    }
    axes
}

/// Harmonic mean of what there is of efficacy, paraphrase and locality; failed edits count as 0.
fn score(mean: &Scores, failed: usize, count: usize) -> f64 {
    let done = 1.0 - failed as f64 / count.max(1) as f64;
    let parts: Vec<f64> = [mean.edit, mean.rephrase, mean.locality].into_iter().flatten().collect();
    // Of nothing at all a little is left, so that candidates can still be told apart.
    let inverse: f64 = parts.iter().map(|p| 1.0 / p.max(1e-3)).sum();
    if parts.is_empty() { 0.0 } else { done * parts.len() as f64 / inverse }
}
