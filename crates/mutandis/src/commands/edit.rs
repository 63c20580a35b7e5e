//! `mutandis edit`: make facts true, and show what changed and what did not.

mod place;
mod questions;
mod report;
mod turns;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use mutandis::engine::Model;
use mutandis_bench::whole::COLLAPSE;
use mutandis_edit::{Context, Entry, Error, Fact, Job, Ledger, Patch, find};
use serde_json::Value;

pub(crate) use self::place::{apart, corpus, writable, writable_by};
use self::place::{default_name, join};
use self::questions::{Questions, SHOWN};
use self::report::{AlsoReport, FactReport, KeepReport, Report, Seconds};
use super::methods::settings;
use super::patch::ledger::Writing;
use super::patch::ledger::conflict::Comparing;
use crate::answers::Answer;
use crate::gated::{Gated, asked, measure};
use crate::patched::Patched;
use crate::report::NO;
use crate::session::Session;
use crate::stages::Stages;

/// Change what the model knows
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis edit \"The capital of France is\" --subject France --to Rome
  mutandis edit \"The capital of France is\" --subject France --to Rome \\
      --also \"France's seat of government is\" --keep \"The capital of Spain is\"
  mutandis edit --facts facts.jsonl --method r-rome --out facts.patch.safetensors
  mutandis edit --facts facts.jsonl --method memit --gate default
  mutandis edit --facts facts.jsonl --method alphaedit --turn 10 --ledger edits/
  mutandis edit \"…\" --subject … --to … --set layer=6 --set search.steps=40 --json
  mutandis edit \"The capital of Spain is\" --subject Spain --to Porto --ledger edits/")]
pub(crate) struct Args {
    /// Text that the new answer should continue
    #[arg(allow_negative_numbers = true)]
    prompt: Option<String>,
    /// Of whom or what the prompt speaks, as it writes it
    #[arg(long, allow_negative_numbers = true)]
    subject: Option<String>,
    /// The new answer
    #[arg(long = "to", value_name = "TARGET", allow_negative_numbers = true)]
    target: Option<String>,
    /// Facts from a file: JSON lines with `prompt`, `subject`, `target_new`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "subject", "target"])]
    facts: Option<PathBuf>,
    /// How; `mutandis methods` lists them
    #[arg(long, default_value = mutandis_edit::DEFAULT, value_name = "ID")]
    method: String,
    /// The trained editor of a method that needs one [default: what `train` made]
    #[arg(long, value_name = "FILE")]
    editor: Option<PathBuf>,
    /// A setting of the method; `mutandis methods show ID` lists them
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Settings found for the model [default: what `locate sweep` kept, or else a shipped recipe]
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Another wording whose answer is shown
    #[arg(long, value_name = "PROMPT", allow_negative_numbers = true)]
    also: Vec<String>,
    /// A prompt whose answer should not move [default: a few are chosen]
    #[arg(long, value_name = "PROMPT", allow_negative_numbers = true)]
    keep: Vec<String>,
    /// Edit on top of these patches, or of the stack of a ledger
    #[arg(long = "patch", value_name = "FILE|LEDGER")]
    patches: Vec<PathBuf>,
    /// Edit on top of a ledger's stack and add the patch to it; begins one where there is none
    #[arg(long, value_name = "LEDGER", conflicts_with = "patches")]
    ledger: Option<PathBuf>,
    #[command(flatten)]
    comparing: Comparing,
    #[command(flatten)]
    writing: Writing,
    /// A file of thresholds that the edit has to pass to be kept; `default` ships with mutandis
    /// (`mutandis bench show default`)
    #[arg(long, value_name = "FILE")]
    gate: Option<PathBuf>,
    /// Edit so many facts at a time, each turn on top of those before, and keep every patch; what
    /// was interrupted goes on
    #[arg(long, value_name = "N", requires = "facts", conflicts_with_all = ["also", "force"])]
    turn: Option<NonZeroUsize>,
    /// Stop a sequence where the model has collapsed: where perplexity of a text is above so many
    /// times the unedited model's
    #[arg(long, value_name = "TIMES", requires = "turn", default_value_t = COLLAPSE, value_parser = alarm)]
    alarm: f64,
    /// Where the patch goes [default: the ledger, or a name from the fact, in this folder]; with `--turn` a folder, where there is no ledger
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Overwrite the patch file
    #[arg(long)]
    force: bool,
    /// Text for the moments of the layer; without it the model writes its own
    #[arg(long, value_name = "FILE")]
    corpus: Option<PathBuf>,
    /// Seed of everything that is drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// An edit, checked as far as that goes without a model.
struct Order {
    entry: &'static Entry,
    facts: Vec<Fact>,
    settings: Value,
    gate: Option<Gated>,
}

impl Order {
    fn new(args: &Args) -> anyhow::Result<Self> {
        let entry = find(&args.method)?;
        let facts = facts(args)?;
        let settings = with_editor(args, entry, settings(entry, &args.settings)?)?;
        if args.also.iter().chain(&args.keep).any(|p| p.trim().is_empty()) {
            let hint = "give the beginning of a sentence, as in `--keep \"The capital of Spain is\"`";
            return Err(Error::input_hint("a prompt of `--also` or `--keep` is empty", hint).into());
        }
        args.corpus.as_deref().map(corpus).transpose()?;
        args.ledger.as_deref().map(Ledger::check_place).transpose()?;
        let gate = args.gate.as_deref().map(Gated::read).transpose()?;
        Ok(Self { entry, facts, settings, gate })
    }

    /// What surrounds the edits.
    fn context<'c>(
        args: &Args,
        session: &'c Session<'_>,
        stages: &'c Stages<'_>,
        model: &Model,
    ) -> anyhow::Result<Context<'c>> {
        Ok(Context {
            corpus: args.corpus.clone(),
            recipe: session.recipe(args.recipe.as_deref(), model)?,
            ..session.context(stages)
        })
    }

    /// Makes some facts true, on top of what is there.
    fn patch(
        &self,
        args: &Args,
        facts: &[Fact],
        model: &Model,
        beneath: &Patched,
        cx: &Context<'_>,
    ) -> anyhow::Result<Patch> {
        let stack = beneath.overlays();
        let job = Job { model, stack: &stack, prior: &beneath.patches, facts, seed: args.seed };
        Ok(Patch { under: beneath.chain()?, ..self.entry.edit(&self.settings, &job, cx)? })
    }
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    // Everything that can be checked without the model is checked before it is loaded.
    let order = Order::new(args)?;
    match args.turn {
        Some(size) => turns::run(args, &order, size.get(), session),
        None => once(args, &order, session),
    }
}

/// All facts in one patch.
fn once(args: &Args, order: &Order, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let asked = asked(&order.facts, &args.also, &args.keep);
    order.gate.iter().try_for_each(|gate| gate.fits(&asked))?;
    let out = args.out.clone().or_else(|| args.ledger.is_none().then(|| default_name(&order.facts)));
    if let Some(out) = &out {
        writable(out, args.force)?;
        let editor = order.settings.get("editor").and_then(Value::as_str).map(PathBuf::from);
        let read = [&args.facts, &args.gate, &args.corpus, &args.recipe, &editor];
        apart(session, session.model.as_deref(), out, read.into_iter().flatten().chain(&args.patches))?;
    }
    let beneath = match &args.ledger {
        Some(folder) if Ledger::is_at(folder) => std::slice::from_ref(folder),
        _ => args.patches.as_slice(),
    };

    let facts = &order.facts;
    let started = Instant::now();
    let model = session.load()?.model;
    let load = started.elapsed().as_secs_f64();
    let mut patched = Patched::load(beneath, &model)?;
    let questions = Questions::new(args, facts);
    let started = Instant::now();
    let was = questions.ask(&model, &patched, facts, session.interrupt)?;
    let mut evaluate = started.elapsed().as_secs_f64();
    unanswered(facts, &was.facts)?;

    let stages = Stages::new(&session.progress);
    let cx = Order::context(args, session, &stages, &model)?;
    let started = Instant::now();
    let patch = order.patch(args, facts, &model, &patched, &cx)?;
    let total = started.elapsed().as_secs_f64();
    let moments = stages.seconds("moments");
    cx.check()?;

    let started = Instant::now();
    let gate = match &order.gate {
        Some(gate) => {
            let whole = gate.whole(&model, &cx)?;
            Some(gate.judge(&measure(&model, &asked, &whole, &patched, &patch, &cx)?))
        }
        None => None,
    };
    let is_good = gate.as_ref().is_none_or(|verdict| verdict.passed);
    let mut kept = None;
    if is_good {
        if let Some(out) = &out {
            patch.save(out)?;
        }
        kept = Some(match &args.ledger {
            Some(folder) => {
                let (path, conflicts) = join(session, folder, &patch, args, Some((&model, &patched)))?;
                (path, Some(conflicts))
            }
            None => (out.unwrap_or_default(), None),
        });
    }
    patched.push(vec![patch], &model)?;
    if let Some((_, Some(conflicts))) = &mut kept {
        conflicts.after(&model, &patched)?;
    }
    let (kept, conflicts) = kept.unzip();
    let is = questions.ask(&model, &patched, facts, session.interrupt)?;
    evaluate += started.elapsed().as_secs_f64();
    let missed = facts.iter().zip(&is.facts).filter(|(fact, now)| now.answer != fact.target).count();
    if missed > 0 {
        session.progress.note(&format!("{missed} of {} facts are not answered as asked", facts.len()));
    }
    let report = Report {
        patch: kept.map(|path| path.display().to_string()),
        ledger: args.ledger.as_ref().filter(|_| is_good).map(|folder| folder.display().to_string()),
        conflicts: conflicts.flatten(),
        method: args.method.clone(),
        facts: facts
            .iter()
            .zip(was.facts.into_iter().zip(is.facts))
            .map(|(fact, (before, after))| FactReport {
                prompt: fact.prompt.clone(),
                subject: fact.subject.clone(),
                target: fact.target.clone(),
                before,
                after,
            })
            .collect(),
        also: questions
            .also
            .iter()
            .zip(was.also.into_iter().zip(is.also))
            .map(|((prompt, _), (before, after))| AlsoReport { prompt: prompt.clone(), before, after })
            .collect(),
        keep: questions
            .keep
            .iter()
            .zip(was.keep.into_iter().zip(is.keep))
            .map(|(prompt, (before, after))| KeepReport {
                prompt: prompt.clone(),
                moved: before.answer != after.answer,
                before,
                after,
            })
            .collect(),
        gate,
        seconds: Seconds { load, moments, edit: (total - moments).max(0.0), evaluate },
        peak_memory_bytes: mutandis::memory::peak().unwrap_or(0),
    };
    session.output.print(&report, || report.text(session.model.as_deref()))?;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::from(NO) })
}

fn alarm(text: &str) -> Result<f64, String> {
    let times = text.parse().ok().filter(|times: &f64| times.is_finite() && *times > 1.0);
    times.ok_or_else(|| "expected a number above 1, such as 2".to_owned())
}

fn facts(args: &Args) -> anyhow::Result<Vec<Fact>> {
    if let Some(path) = &args.facts {
        return Ok(Fact::read(path)?);
    }
    let missing = |what: &str, example: &str| {
        Error::input_hint(
            format!("{what} is missing"),
            format!("give it with {example}, or many facts with `--facts FILE`"),
        )
    };
    let prompt =
        args.prompt.as_deref().ok_or_else(|| missing("the prompt", "`edit \"The capital of France is\"`"))?;
    let target = args.target.as_deref().ok_or_else(|| missing("the new answer", "`--to Rome`"))?;
    Ok(vec![Fact::new(prompt, args.subject.as_deref().unwrap_or_default(), target)?])
}

/// Settings with the trained editor that is given, which is found out before the work to be none.
fn with_editor(args: &Args, entry: &Entry, mut settings: Value) -> anyhow::Result<Value> {
    if let Some(path) = &args.editor {
        entry.check_editor()?;
        let text = path.to_str().ok_or_else(|| {
            let what =
                format!("the editor's path `{}` is not UTF-8, as a patch has to name it", path.display());
            Error::input_hint(what, "give the file or its folder another name")
        })?;
        settings["editor"] = text.into();
    }
    if let Some(path) = settings["editor"].as_str() {
        place::editor(Path::new(path), entry.id)?;
    }
    Ok(settings)
}

/// Refuses facts that the model answers as asked already.
fn unanswered(facts: &[Fact], answers: &[Answer]) -> anyhow::Result<()> {
    let same: Vec<usize> = (0..facts.len()).filter(|&i| answers[i].answer == facts[i].target).collect();
    let Some((fact, now)) = same.first().map(|&i| (&facts[i], &answers[i])) else { return Ok(()) };
    let mut what = format!(
        "the model already answers `{}` to `{}` (probability {:.2})",
        fact.target, fact.prompt, now.probability
    );
    let hint = if facts.len() == 1 {
        "nothing is to be changed; give another target"
    } else {
        let named: Vec<String> = same.iter().take(SHOWN).map(|i| (i + 1).to_string()).collect();
        let more = if same.len() > SHOWN { ", …" } else { "" };
        let (count, all, named) = (same.len(), facts.len(), named.join(", "));
        what.push_str(&format!("; so it does for {count} of {all} facts: {named}{more}"));
        "take them out of the file, or give them other targets"
    };
    Err(Error::input_hint(what, hint).into())
}
