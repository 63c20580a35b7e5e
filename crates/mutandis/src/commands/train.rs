//! `mutandis train`: editors that are trained once.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use mutandis_edit::primitives::editor::place;
use mutandis_edit::primitives::editor::training::{Order, Outcome, Record};
use mutandis_edit::{Context, Error, Fact, find};
use serde::Serialize;

use super::methods::training_settings;
use crate::session::Session;
use crate::stages::Stages;

/// Train the editor of a method for a model
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis train mend --data zsre_train.json
  mutandis train malmen --data facts.jsonl --set layers=[26,27,28] --set steps=500 --out malmen.safetensors
  mutandis edit \"The capital of France is\" --subject France --to Rome --method mend

Records have `prompt`, `target_new`, `rephrase_prompt` and `locality`, or MEND's `src`, `alt`,
`rephrase`, `loc` and `loc_ans`; the last ones are held out. What is interrupted goes on when the
same command is given again.")]
pub(crate) struct Args {
    /// The method
    #[arg(value_name = "ID")]
    method: String,
    /// Facts to learn from, each with another wording and an unrelated question
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// A setting of the training; `mutandis methods show ID` lists them
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Most records
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Where the editor goes [default: where `edit` finds it by itself]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Train anew, over an editor that is there
    #[arg(long)]
    force: bool,
    /// Seed of everything that is drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Serialize)]
struct Report {
    editor: String,
    method: String,
    records: usize,
    skipped: usize,
    #[serde(flatten)]
    outcome: Outcome,
    seconds: f64,
    peak_memory_bytes: u64,
}

/// Records that are named of those that cannot be used.
const NAMED: usize = 5;

pub(crate) fn run(args: Args, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let entry = find(&args.method)?;
    let settings = if entry.trainer_defaults().is_some() {
        training_settings(entry, &args.settings)?
    } else {
        serde_json::json!({})
    };
    let stages = Stages::new(&session.progress);
    let cache = session.env.cache()?;
    let cx = Context { cache: Some(cache.clone()), ..session.context(&stages) };
    let (facts, mut skipped) = Fact::read_usable(&args.data)?;
    let mut records = vec![];
    for fact in facts {
        let prompt = fact.prompt.clone();
        match Record::new(fact) {
            Ok(record) => records.push(record),
            Err(why) => skipped.push(format!("`{prompt}`: {why}")),
        }
    }
    if !skipped.is_empty() {
        let named = skipped.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join("; ");
        let more = if skipped.len() > NAMED { "; …" } else { "" };
        cx.progress.note(&format!("{} records are skipped: {named}{more}", skipped.len()));
    }
    records.truncate(args.limit.unwrap_or(usize::MAX));
    let data = blake3::hash(&std::fs::read(&args.data)?).to_hex().to_string();

    let model = session.load()?.model;
    let out = match args.out {
        Some(out) => out,
        None => place(&cache, &model, entry.id)?,
    };
    let order = Order { records: &records, data, seed: args.seed, out: &out };
    if out.exists() && !order.partial().exists() && !args.force {
        let what = format!("there is an editor in {}", out.display());
        return Err(Error::input_hint(what, "use it, or train anew with `--force`").into());
    }
    let started = Instant::now();
    let outcome = entry.train(&settings, &order, &model, &cx)?;
    let report = Report {
        editor: out.display().to_string(),
        method: entry.id.to_owned(),
        records: records.len(),
        skipped: skipped.len(),
        outcome,
        seconds: started.elapsed().as_secs_f64(),
        peak_memory_bytes: mutandis::memory::peak().unwrap_or(0),
    };
    session.output.print(&report, || {
        format!(
            "{}: {} records, {} steps, {}; {:.0} s\n  before  {}\n  now     {}\n{}",
            report.method,
            report.records,
            report.outcome.steps,
            report.outcome.ended,
            report.seconds,
            report.outcome.before,
            report.outcome.reached,
            report.editor
        )
    })?;
    Ok(ExitCode::SUCCESS)
}
