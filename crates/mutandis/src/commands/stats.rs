//! `mutandis stats`: second moments of a model's MLP keys.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use crate::stages::Stages;
use mutandis_edit::Context;
use mutandis_edit::primitives::moments::{MomentSpec, moments};
use serde::Serialize;

use crate::session::Session;

/// Measure the second moments of MLP keys that mastery methods need, and keep them
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis stats                          all layers, from text that the model writes
  mutandis stats --layer 5 --layer 6
  mutandis stats --corpus wiki.txt --tokens 50000 --json

What is interrupted goes on where it stopped.")]
pub(crate) struct Args {
    /// A layer, from 0; all where none is given
    #[arg(long = "layer", value_name = "N")]
    layers: Vec<usize>,
    /// Tokens to read [default: five times the key's width]
    #[arg(long)]
    tokens: Option<usize>,
    /// Text to read: plain, or `.jsonl` with a `text` field
    #[arg(long, value_name = "FILE")]
    corpus: Option<PathBuf>,
    /// Seed of the text that the model writes
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Serialize)]
struct Row {
    layer: usize,
    tokens: u64,
    width: usize,
    trace: f64,
    error: f64,
}

#[derive(Serialize)]
struct Report {
    layers: Vec<Row>,
    seconds: f64,
    peak_memory_bytes: u64,
}

pub(crate) fn run(args: Args, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let model = session.load()?.model;
    let layers =
        if args.layers.is_empty() { (0..model.architecture().layers).collect() } else { args.layers };
    let stages = Stages::new(&session.progress);
    let cx = Context { cache: Some(session.env.cache()?), corpus: args.corpus, ..session.context(&stages) };
    let spec = MomentSpec { tokens: args.tokens, seed: args.seed, ..MomentSpec::default() };
    let started = Instant::now();
    let measured = moments(&model, &layers, &spec, &cx)?;
    let rows = measured
        .iter()
        .map(|m| Row { layer: m.layer, tokens: m.count, width: m.f, trace: m.trace(), error: m.error })
        .collect();
    let report = Report {
        layers: rows,
        seconds: started.elapsed().as_secs_f64(),
        peak_memory_bytes: mutandis::memory::peak().unwrap_or(0),
    };
    session.output.print(&report, || {
        let mut lines = vec!["layer   tokens    trace of C   error (split halves)".to_owned()];
        for r in &report.layers {
            lines.push(format!(
                "{:>5}  {:>7}  {:>12.4}   {:.2} %",
                r.layer,
                r.tokens,
                r.trace,
                100.0 * r.error
            ));
        }
        lines.join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}
