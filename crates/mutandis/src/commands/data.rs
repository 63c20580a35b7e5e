//! `mutandis data`: what a data set holds.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use mutandis_bench::data::find::{Places, find};
use mutandis_bench::data::{Form, Note, Set, Task, escaped};
use serde::Serialize;

use crate::session::Session;

/// Look into data sets
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Tell what a data set holds, which of its records cannot be used, and why
    Check(CheckArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis data check wiki_counterfact_train_cf.json
  mutandis data check zsre --folder ./KnowEdit --all
  mutandis data check facts.jsonl --json

Exit code 1: some records cannot be used.")]
struct CheckArgs {
    /// The data set: KnowEdit's, CounterFact's, zsRE's, MQuAKE's and RippleEdits' files, or JSON
    /// lines with `prompt`, `subject` and `target_new`; the name of a known one, such as `zsre`, or
    /// `OWNER/NAME/FILE` of one in the hub's cache
    #[arg(value_name = "FILE|NAME")]
    data: String,
    /// Where data sets that are named are looked for, besides the hub's cache
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Name every record, not only the first few of each kind
    #[arg(long)]
    all: bool,
}

/// So many records of a kind are named where not all are.
const NAMED: usize = 3;

#[derive(Serialize)]
struct Report {
    file: String,
    form: Form,
    version: String,
    records: usize,
    /// Facts to be edited, in all records.
    facts: usize,
    /// Probes of each kind, in all records.
    probes: BTreeMap<String, usize>,
    skipped: Vec<Note>,
    oddities: BTreeMap<&'static str, Vec<Note>>,
}

impl Report {
    fn new(file: String, set: Set) -> Self {
        let mut probes: BTreeMap<String, usize> = BTreeMap::new();
        let mut count = |kind: &str, more: usize| {
            if more > 0 {
                *probes.entry(kind.to_owned()).or_default() += more;
            }
        };
        count("retained", set.retained.len());
        for record in &set.records {
            match &record.task {
                Task::Sentiment { positive, negative, .. } => {
                    count("approving", positive.len());
                    count("disapproving", negative.len());
                }
                Task::Facts { facts, generation, .. } => {
                    count("generation", generation.len());
                    for fact in facts {
                        count("rephrase", fact.rephrases.len());
                        fact.locality.iter().chain(&fact.portability).for_each(|probe| count(&probe.kind, 1));
                    }
                }
            }
        }
        Self {
            file,
            form: set.form,
            version: set.version,
            records: set.records.len(),
            facts: set.records.iter().map(|r| r.facts().len()).sum(),
            probes,
            skipped: set.skipped,
            oddities: set.oddities,
        }
    }

    fn text(&self, all: bool) -> String {
        let mut lines = vec![
            format!("file     {}", self.file),
            format!("form     {}", self.form.name()),
            format!("version  {} (git blob)", self.version),
            format!("records  {} of {} can be used", self.records, self.records + self.skipped.len()),
        ];
        if self.facts > 0 {
            lines.push(format!("facts    {}", self.facts));
        }
        for (kind, count) in &self.probes {
            lines.push(format!("probes   {count:>6}  {}", escaped(kind)));
        }
        let mut name = |label: &str, notes: &[Note]| {
            lines.push(format!("{label}: {}", notes.len()));
            let shown = if all { notes.len() } else { NAMED };
            lines.extend(notes.iter().take(shown).map(|n| format!("  record {}: {}", n.record, n.what)));
            if notes.len() > shown {
                lines.push(format!("  … and {} more (`--all` names them)", notes.len() - shown));
            }
        };
        if !self.skipped.is_empty() {
            name("cannot be used", &self.skipped);
        }
        self.oddities.iter().for_each(|(kind, notes)| name(kind, notes));
        lines.join("\n")
    }
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let Command::Check(args) = &args.command;
    let places = Places { folder: args.folder.clone(), hub_cache: session.env.hub_cache().ok() };
    places.check()?;
    let path = find(&args.data, &places)?;
    let report = Report::new(path.display().to_string(), Set::read(&path)?);
    session.output.print(&report, || report.text(args.all))?;
    Ok(if report.skipped.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(crate::report::NO) })
}
