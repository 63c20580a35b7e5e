//! How fast many facts are edited, and how fast this machine multiplies matrices (`bench/speed.py`).

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use mutandis_bench::compat::{Asked, Probes, predict};
use mutandis_bench::question::questions;
use mutandis_bench::results::{Scores, means};
use mutandis_edit::{Context, Fact, Job, Progress, find};
use mutandis_engine::kernels::gemm;
use mutandis_engine::kernels::pack::Packed;
use mutandis_engine::{Model, Overlay};
use serde::Deserialize;
use serde_json::{Value, json};

/// One run of a method over facts.
#[derive(Deserialize)]
pub(super) struct Edits {
    method: String,
    settings: Value,
    /// A data set, of which so many records are edited, each prompt once.
    data: PathBuf,
    count: usize,
    cache: PathBuf,
}

/// Seconds of every stage.
#[derive(Default)]
struct Stages(Mutex<Times>);

#[derive(Default)]
struct Times {
    now: Option<(String, Instant)>,
    seconds: BTreeMap<String, f64>,
}

impl Progress for Stages {
    fn begin(&self, stage: &str, _: usize) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).now = Some((stage.to_owned(), Instant::now()));
    }

    fn step(&self, _: usize) {}

    fn end(&self) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((stage, started)) = times.now.take() {
            *times.seconds.entry(stage).or_default() += started.elapsed().as_secs_f64();
        }
    }
}

impl Edits {
    fn facts(&self) -> anyhow::Result<Vec<Fact>> {
        let (mut facts, _) = Fact::read_usable(&self.data)?;
        let mut seen = HashSet::new();
        facts.retain(|fact| fact.subject_range().is_ok() && seen.insert(fact.prompt.clone()));
        facts.truncate(self.count);
        Ok(facts)
    }
}

/// Seconds, operations and scores of one run, statistics of the model computed beforehand.
pub(super) fn edits(model: &Model, ask: &Edits) -> anyhow::Result<Value> {
    let facts = ask.facts()?;
    let stages = Stages::default();
    let cx = Context { cache: Some(ask.cache.clone()), ..Context::default() };
    let job = |facts| Job { model, stack: &[], prior: &[], facts, seed: 0 };
    // One fact, searched a step long, brings moments, their factors and null spaces, and contexts.
    let mut few = ask.settings.clone();
    few["rounds"] = json!(1);
    few["search"]["steps"] = json!(1);
    let entry = find(&ask.method)?;
    entry.edit(&few, &job(&facts[..1]), &cx)?;
    let (before, started) = (model.operations(), Instant::now());
    let patch = entry.edit(&ask.settings, &job(&facts), &Context { progress: &stages, ..cx })?;
    let seconds = started.elapsed().as_secs_f64();
    let stages = stages.0.into_inner().unwrap_or_else(PoisonError::into_inner).seconds;
    let steps: usize = patch.search.iter().map(|s| s.steps).sum();
    let operations = model.operations() - before;
    let scores = scores(model, &facts, &patch.overlay(model)?)?;
    Ok(json!({
        "facts": facts.len(), "seconds": seconds, "operations": operations, "stages": stages, "steps": steps,
        "edit": scores.get("edit"), "rephrase": scores.get("rephrase"), "locality": scores.get("locality"),
    }))
}

/// As EasyEdit scores edits.
fn scores(model: &Model, facts: &[Fact], edited: &Overlay) -> anyhow::Result<Scores> {
    let all = facts.iter().map(|fact| {
        let probes = Probes::new(model, questions(std::slice::from_ref(fact), &[]))?;
        let answers = |overlays: &[&Overlay]| {
            let asked: Vec<_> = probes.texts.iter().map(|text| Asked { text, overlays }).collect();
            predict(model, &asked)
        };
        anyhow::Ok(probes.scores(&answers(&[])?, &answers(&[edited])?))
    });
    Ok(means(all.collect::<Result<Vec<_>, _>>()?.iter()))
}

/// Operations a second of products of 1024 × 1024 matrices, in f32, on the model's threads: the
/// best of so many.
pub(super) fn peak(model: &Model, times: usize) -> Value {
    const N: usize = 1024;
    let numbers = |seed: usize| (0..N * N).map(|i| ((i * 31 + seed) % 97) as f32 / 97.0 - 0.5).collect();
    let (x, w): (Vec<f32>, Vec<f32>) = (numbers(1), numbers(2));
    let packed = Packed::from_f32(N, N, &w);
    let best = model.install(|| {
        (0..times.max(1))
            .map(|_| {
                let started = Instant::now();
                std::hint::black_box(gemm::multiply(model.isa(), &x, N, &packed));
                started.elapsed().as_secs_f64()
            })
            .fold(f64::INFINITY, f64::min)
    });
    json!({"operations_per_second": 2.0 * (N * N * N) as f64 / best})
}
