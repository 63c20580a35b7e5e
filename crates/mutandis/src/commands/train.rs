//! `mutandis train`: editors that are trained once.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use mutandis_edit::primitives::editor::training::{Order, Outcome, Record};
use mutandis_edit::primitives::editor::{about, place};
use mutandis_edit::{Context, Error, Fact, find};
use serde::Serialize;

use super::edit::writable_by;
use super::methods::training_settings;
use crate::answers::shown;
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
same command is given again, without `--force`.")]
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
    /// Most records; the first of those that can be used
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Where the editor goes [default: where `edit` finds it by itself]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Train anew, over an editor that is there, and forget what was interrupted
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

/// What a file of records holds.
const RECORD: &str = "records are read from JSON lines or one JSON array: `prompt`, `target_new`, `rephrase_prompt` \
                      and `locality`, or `src`, `alt`, `rephrase`, `loc` and `loc_ans`";

/// What an editor is trained on.
struct Lessons {
    records: Vec<Record>,
    /// blake3 of the records, as a training that goes on has to have the same.
    hash: String,
    /// What is wrong with those that cannot be used.
    skipped: Vec<String>,
}

impl Lessons {
    /// Reads as many records as are wanted, of those that can be used.
    fn read(args: &Args) -> anyhow::Result<Self> {
        if args.limit == Some(0) {
            let hint = "leave it out for all records";
            return Err(Error::input_hint("`--limit` is 0, expected 1 or more", hint).into());
        }
        let (facts, mut skipped) = Fact::read_usable(&args.data)?;
        let mut records = vec![];
        for fact in facts {
            let prompt = shown(&fact.prompt);
            match Record::new(fact) {
                Ok(record) => records.push(record),
                Err(why) => skipped.push(format!("`{prompt}`: {why}")),
            }
        }
        if records.is_empty() {
            let what = format!(
                "`{}` has no record that can be used: {} are skipped: {}",
                args.data.display(),
                skipped.len(),
                named(&skipped)
            );
            return Err(Error::input_hint(what, RECORD).into());
        }
        records.truncate(args.limit.unwrap_or(usize::MAX));
        Ok(Self { hash: hash(&records)?, records, skipped })
    }

    /// What is trained into a file.
    fn order<'a>(&'a self, args: &Args, out: &'a Path) -> Order<'a> {
        Order { records: &self.records, data: self.hash.clone(), seed: args.seed, out, anew: args.force }
    }
}

/// blake3 of records: of what is learnt, and not of how a file has it or of what else is there.
fn hash(records: &[Record]) -> anyhow::Result<String> {
    let mut hasher = blake3::Hasher::new();
    for record in records {
        serde_json::to_writer(&mut hasher, &(&record.fact, &record.rephrase, &record.locality))?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// The first few records that are skipped, and why.
fn named(skipped: &[String]) -> String {
    let more = if skipped.len() > NAMED { "; …" } else { "" };
    skipped.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join("; ") + more
}

/// Refuses to write over the data, over what is no editor, and, unasked, over an editor.
fn vacant(order: &Order<'_>, args: &Args) -> anyhow::Result<()> {
    let (out, partial) = (order.out, order.partial());
    let is_data = |path: &Path| match (path.canonicalize(), args.data.canonicalize()) {
        (Ok(path), Ok(data)) => path == data,
        _ => false,
    };
    let refused =
        |what: String, hint: &str| -> anyhow::Result<()> { Err(Error::input_hint(what, hint).into()) };
    if is_data(out) || is_data(&partial) || is_data(&order.best()) {
        let what = format!("`{}` would be written over: it is the file of `--data`", args.data.display());
        return refused(what, "choose another name with `--out`");
    }
    for path in [out, &partial, &order.best()] {
        if path.exists() && about(path).is_none() {
            let what = format!("`{}` exists and is no editor", path.display());
            return refused(what, "choose another name with `--out`, or remove it first");
        }
    }
    if out.exists() && !partial.exists() && !args.force {
        let what = format!("there is an editor in `{}`", out.display());
        return refused(what, "use it, or train anew with `--force`");
    }
    Ok(())
}

pub(crate) fn run(args: Args, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let entry = find(&args.method)?;
    let settings = training_settings(entry, &args.settings)?;
    let stages = Stages::new(&session.progress);
    let cache = session.env.cache()?;
    let cx = Context { cache: Some(cache.clone()), ..session.context(&stages) };
    let lessons = Lessons::read(&args)?;
    if let Some(out) = &args.out {
        // What is there already is looked at more closely.
        writable_by("--out", "mend.safetensors", out, true)?;
        vacant(&lessons.order(&args, out), &args)?;
    }
    let skipped = &lessons.skipped;
    if !skipped.is_empty() {
        cx.progress.note(&format!("{} records are skipped: {}", skipped.len(), named(skipped)));
    }

    let model = session.load()?.model;
    let out = match &args.out {
        Some(out) => out.clone(),
        None => place(&cache, &model, entry.id)?,
    };
    let order = lessons.order(&args, &out);
    vacant(&order, &args)?;
    let started = Instant::now();
    let outcome = entry.train(&settings, &order, &model, &cx)?;
    let report = Report {
        editor: out.display().to_string(),
        method: entry.id.to_owned(),
        records: lessons.records.len() - outcome.unfit,
        skipped: lessons.skipped.len() + outcome.unfit,
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
