//! `mutandis bench`: many edits, made, scored and reported.

mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mutandis_bench::compat::Scores;
use mutandis_bench::perplexity::{Window, windows};
use mutandis_bench::run::{Baseline, Mode, Outcome, Run};
use mutandis_edit::{Context, Error, Fact, find};
use serde::Serialize;

use super::methods::settings;
use crate::session::Session;
use crate::stages::Stages;

/// Make many edits and score them
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Edit the records of a data set, one by one, in batches or in a row, and score them
    Run(RunArgs),
    /// Write what a benchmark has found as a page, as Markdown and as JSON
    Report(report::ReportArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis bench run --data wiki_counterfact_train_cf.json --limit 50
  mutandis bench run --data facts.jsonl --method memit --mode batch:200 --json
  mutandis bench run --data facts.jsonl --method alphaedit --mode sequential --text wiki.valid.txt

Scores are EasyEdit's (`compat`): the share of the target's tokens that are the likeliest, each with
the true tokens before it.")]
struct RunArgs {
    /// Records: JSON lines or an array, with EasyEdit's or KnowEdit's field names
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// How; `mutandis methods` lists them
    #[arg(long, default_value = "r-rome", value_name = "ID")]
    method: String,
    /// A setting of the method; `mutandis methods show ID` lists them
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Settings found for the model [default: what `locate sweep` kept, or else a shipped recipe]
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// `single`: each edit on the unedited model; `batch:N`: so many at once; `sequential`: each on
    /// top of those before, scored at the end
    #[arg(long, default_value = "single", value_parser = mode)]
    mode: Mode,
    /// Use the first so many records whose subject is in the prompt
    #[arg(long, default_value_t = 20, value_name = "N")]
    limit: usize,
    /// A text whose perplexity is measured before and after
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Write the scores of every record to this file, as JSON
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Seed of everything that is drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn mode(text: &str) -> Result<Mode, String> {
    match text.split_once(':') {
        None if text == "single" => Ok(Mode::Single),
        None if text == "sequential" => Ok(Mode::Sequential),
        Some(("batch", n)) => match n.parse() {
            Ok(n) if n > 0 => Ok(Mode::Batch(n)),
            _ => Err(format!("`{n}` is no size of a batch; write as in `batch:200`")),
        },
        _ => Err("expected `single`, `batch:N` or `sequential`".into()),
    }
}

#[derive(Serialize)]
struct Report {
    data: String,
    method: String,
    records: usize,
    /// Records before the last one used whose subject is not in the prompt.
    skipped: usize,
    failed: usize,
    protocol: &'static str,
    mode: Mode,
    #[serde(flatten)]
    mean: Scores,
    perplexity: Option<[f64; 2]>,
    seconds_per_edit: f64,
    seconds: Seconds,
    peak_memory_bytes: u64,
}

#[derive(Serialize)]
struct Seconds {
    edit: f64,
    score: f64,
}

pub(crate) fn run(args: Args, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Run(args) => edit_and_score(args, session),
        Command::Report(args) => report::report(&args, session),
    }
}

fn edit_and_score(args: RunArgs, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let entry = find(&args.method)?;
    let settings = settings(entry, &args.settings)?;
    let all = Fact::read(&args.data)?;
    let mut skipped = 0;
    let mut facts = vec![];
    for fact in all {
        if facts.len() == args.limit {
            break;
        }
        if fact.subject_range().is_ok() { facts.push(fact) } else { skipped += 1 }
    }
    let text = args.text.as_deref().map(read).transpose()?;
    let model = session.load()?.model;
    let stages = Stages::new(&session.progress);
    let cx = Context { recipe: session.recipe(args.recipe.as_deref(), &model)?, ..session.context(&stages) };
    let text = text.map(|t| windows(&model, &t, Window::default())).transpose()?.unwrap_or_default();
    let baseline = Baseline::new(&model, &facts)?;
    let plan = Run {
        model: &model,
        method: entry,
        settings: &settings,
        facts: &facts,
        baseline: &baseline,
        mode: args.mode,
        seed: args.seed,
        text: &text,
    };
    let outcome = plan.run(&cx)?;
    if let Some(path) = &args.out {
        let json = serde_json::to_vec_pretty(&outcome)?;
        mutandis_edit::atomic::write(path, |file| file.write_all(&json)).map_err(Error::io("write", path))?;
    }
    let report = Report::new(&args, facts.len(), skipped, &outcome);
    session.output.print(&report, || report.text(&outcome))?;
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path);
    Ok(text.map_err(|e| {
        let hint = "give a text file, or leave out `--text`: no perplexity is measured then";
        Error::input_hint(format!("cannot read the text `{}`: {e}", path.display()), hint)
    })?)
}

impl Report {
    fn new(args: &RunArgs, records: usize, skipped: usize, outcome: &Outcome) -> Self {
        Self {
            data: args.data.display().to_string(),
            method: args.method.clone(),
            records,
            skipped,
            failed: outcome.failed,
            protocol: outcome.protocol,
            mode: outcome.mode,
            mean: outcome.mean,
            perplexity: outcome.perplexity,
            seconds_per_edit: outcome.edit_seconds / records.max(1) as f64,
            seconds: Seconds { edit: outcome.edit_seconds, score: outcome.score_seconds },
            peak_memory_bytes: mutandis::memory::peak().unwrap_or(0),
        }
    }

    fn text(&self, outcome: &Outcome) -> String {
        let score = |s: Option<f64>| s.map_or("–".to_owned(), |s| format!("{:.2}", 100.0 * s));
        let mut lines = vec![
            format!("{} on {} records of {} ({})", self.method, self.records, self.data, self.protocol),
            format!("  edit success  {}", score(self.mean.edit)),
            format!("  rephrase      {}", score(self.mean.rephrase)),
            format!("  portability   {}", score(self.mean.portability)),
            format!("  locality      {}", score(self.mean.locality)),
        ];
        if let Some([before, after]) = self.perplexity {
            let change = 100.0 * (after / before - 1.0);
            lines.push(format!("  perplexity    {before:.2} → {after:.2} ({change:+.1} %)"));
        }
        if self.skipped > 0 {
            lines.push(format!("{} records have a subject that is not in the prompt; skipped", self.skipped));
        }
        if self.failed > 0 {
            let first = outcome.records.iter().find_map(|r| r.error.as_deref()).unwrap_or_default();
            lines.push(format!("{} edits failed; the first: {first}", self.failed));
        }
        lines.push(format!(
            "{:.2} s an edit, {:.1} s scoring, {} MB of memory at most",
            self.seconds_per_edit,
            self.seconds.score,
            self.peak_memory_bytes / 1_000_000
        ));
        lines.join("\n")
    }
}
