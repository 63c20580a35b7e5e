//! `mutandis locate sweep`: settings for a model that has none.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use mutandis_bench::run::Mode;
use mutandis_bench::sweep::{Found, sweep};
use mutandis_bench::trials::trials;
use mutandis_edit::recipes::Recipe;
use mutandis_edit::{Entry, Error, Fact, find};
use serde::Serialize;
use serde_json::{Value, json};

use crate::commands::edit::writable;
use crate::commands::methods::settings;
use crate::session::Session;
use crate::stages::Stages;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis locate sweep
  mutandis locate sweep --model ./my-model --method r-rome --method memit
  mutandis locate sweep --method locft-bf --mode batch:100 --facts known.jsonl --limit 100
  mutandis locate sweep --facts known.jsonl --limit 8 --out my-model.toml

Facts that the model knows are made false, one or many at a time, with one setting after another
varied; the settings with the best harmonic mean of efficacy, paraphrase and locality, times the square of
efficacy, are kept. Facts of a file need `rephrase_prompt` and `locality` to be scored on all three.")]
pub(super) struct Args {
    /// For which method; may be given several times
    #[arg(long, default_value = mutandis_edit::DEFAULT, value_name = "ID")]
    method: Vec<String>,
    /// A setting that stays as it is
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Trial edits from a file [default: well-known facts that the model knows]
    #[arg(long, value_name = "FILE")]
    facts: Option<PathBuf>,
    /// `single`: each trial edit on the unedited model; `batch:N`: so many at once, as for methods
    /// that are to write many, and perplexity counts
    #[arg(long, value_name = "MODE", default_value = "single")]
    mode: Mode,
    /// Most trial edits
    #[arg(long, default_value_t = 12, value_name = "N")]
    limit: usize,
    /// Where the recipe goes [default: where `edit` finds it by itself]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Seed of everything that is drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Serialize)]
struct Report {
    recipe: String,
    facts: Vec<String>,
    methods: Vec<MethodReport>,
    seconds: f64,
    peak_memory_bytes: u64,
}

#[derive(Serialize)]
struct MethodReport {
    method: String,
    #[serde(flatten)]
    found: Found,
}

pub(super) fn run(args: Args, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let methods: Vec<(&Entry, Value)> = args
        .method
        .iter()
        .map(|id| {
            let entry = find(id)?;
            Ok((entry, settings(entry, &args.settings)?))
        })
        .collect::<anyhow::Result<_>>()?;
    if args.limit == 0 {
        return Err(Error::input_hint(
            "`--limit` is 0, expected 1 or more",
            "a dozen trial edits tell settings apart",
        )
        .into());
    }
    if let Some(out) = &args.out {
        // What is there is read and added to.
        writable(out, true)?;
    }
    let given = args.facts.as_deref().map(Fact::read).transpose()?;
    let model = session.load()?.model;
    let started = Instant::now();
    let out = match &args.out {
        Some(path) => path.clone(),
        None => Recipe::place(&session.env.cache()?, &model)?,
    };
    let facts: Vec<Fact> = match given {
        Some(facts) => facts.into_iter().take(args.limit).collect(),
        None => trials(&model, args.limit)?,
    };
    if facts.is_empty() {
        let hint = "give facts that it knows, with other targets, by `--facts FILE`";
        return Err(Error::input_hint(
            "the model knows none of the facts that trial edits are made of",
            hint,
        )
        .into());
    }
    let stages = Stages::new(&session.progress);
    let cx = session.context(&stages);
    // What was found before for other methods stays.
    let mut recipe = if out.exists() { Recipe::read(&out, &model)? } else { Recipe::new(&model) };
    let mut reports = vec![];
    for (entry, start) in methods {
        let found = sweep(&model, entry, &start, &facts, args.mode, args.seed, &cx)?;
        let how = json!({
            "trial_edits": facts.len(),
            "own_facts": args.facts.is_some(),
            "mode": args.mode.to_string(),
            "seed": args.seed,
            "efficacy": found.best.scores.get("edit"),
            "paraphrase": found.best.scores.get("rephrase"),
            "locality": found.best.scores.get("locality"),
            "tool": concat!("mutandis ", env!("CARGO_PKG_VERSION")),
        });
        recipe.set(entry.id, found.settings.clone(), without_nulls(how));
        // After each, so that an interruption loses one method's work at most.
        recipe.write(&out)?;
        reports.push(MethodReport { method: entry.id.to_owned(), found });
    }
    let report = Report {
        recipe: out.display().to_string(),
        facts: facts.iter().map(|f| format!("{} {}", f.prompt, f.target)).collect(),
        methods: reports,
        seconds: started.elapsed().as_secs_f64(),
        peak_memory_bytes: mutandis::memory::peak().unwrap_or(0),
    };
    session.output.print(&report, || report.text())?;
    Ok(ExitCode::SUCCESS)
}

/// TOML has no null.
fn without_nulls(mut value: Value) -> Value {
    if let Some(object) = value.as_object_mut() {
        object.retain(|_, v| !v.is_null());
    }
    value
}

impl Report {
    fn text(&self) -> String {
        let score = |s: Option<f64>| s.map_or("–".to_owned(), |s| format!("{:.0}", 100.0 * s));
        let mut lines = vec![];
        for MethodReport { method, found } in &self.methods {
            lines.push(format!("{method}, {} trial edits each", self.facts.len()));
            lines.push("  score  efficacy  paraphrase  locality  s/edit  tried".to_owned());
            for t in &found.trials {
                lines.push(format!(
                    "  {:>5.1}  {:>8}  {:>10}  {:>8}  {:>6.2}  {}",
                    100.0 * t.score,
                    score(t.scores.get("edit").copied()),
                    score(t.scores.get("rephrase").copied()),
                    score(t.scores.get("locality").copied()),
                    t.seconds,
                    t.change
                ));
            }
            lines.push(format!("  best: {}", found.settings));
        }
        lines.push(format!("recipe: {} ({:.0} s)", self.recipe, self.seconds));
        lines.join("\n")
    }
}
