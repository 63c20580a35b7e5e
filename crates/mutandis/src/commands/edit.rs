//! `mutandis edit`: make facts true, and show what changed and what did not.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use super::methods::settings;
use super::patch::ledger::conflict::{Comparing, Report as Conflicts};
use super::patch::ledger::{Writing, writer};
use crate::answers::{Answer, Question, answers};
use crate::neighbours::neighbours;
use crate::patched::Patched;
use crate::stages::Stages;
use mutandis::engine::Model;
use mutandis::interrupt::Interrupt;
use mutandis_edit::{Context, Error, Fact, Job, Ledger, Patch, find};
use serde::Serialize;

use crate::session::Session;

/// Change what the model knows
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis edit \"The capital of France is\" --subject France --to Rome
  mutandis edit \"The capital of France is\" --subject France --to Rome \\
      --also \"France's seat of government is\" --keep \"The capital of Spain is\"
  mutandis edit --facts facts.jsonl --method r-rome --out facts.patch.safetensors
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
    #[arg(long, default_value = "r-rome", value_name = "ID")]
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
    /// Where the patch goes [default: the ledger, or a name from the fact, in this folder]
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

#[derive(Serialize)]
struct Report {
    patch: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ledger: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    conflicts: Option<Conflicts>,
    method: String,
    facts: Vec<FactReport>,
    also: Vec<AlsoReport>,
    keep: Vec<KeepReport>,
    seconds: Seconds,
    peak_memory_bytes: u64,
}

#[derive(Serialize)]
struct FactReport {
    prompt: String,
    subject: String,
    target: String,
    before: Answer,
    after: Answer,
}

#[derive(Serialize)]
struct AlsoReport {
    prompt: String,
    before: Answer,
    after: Answer,
}

#[derive(Serialize)]
struct KeepReport {
    prompt: String,
    before: Answer,
    after: Answer,
    moved: bool,
}

#[derive(Serialize)]
struct Seconds {
    load: f64,
    moments: f64,
    edit: f64,
    evaluate: f64,
}

/// Facts whose answers are shown one by one; of more the rest is only counted.
const SHOWN: usize = 20;

pub(crate) fn run(args: Args, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    // Everything that can be checked without the model is checked before it is loaded.
    let entry = find(&args.method)?;
    let facts = facts(&args)?;
    let editor = args.editor.iter().map(|path| format!("editor={}", path.display()));
    let settings = settings(entry, &args.settings.iter().cloned().chain(editor).collect::<Vec<_>>())?;
    if args.also.iter().chain(&args.keep).any(|p| p.trim().is_empty()) {
        let hint = "give the beginning of a sentence, as in `--keep \"The capital of Spain is\"`";
        return Err(Error::input_hint("a prompt of `--also` or `--keep` is empty", hint).into());
    }
    if let Some(corpus) = &args.corpus {
        readable(corpus)?;
    }
    let out = args.out.clone().or_else(|| args.ledger.is_none().then(|| default_name(&facts)));
    if let Some(out) = &out {
        writable(out, args.force)?;
    }
    let stack = match &args.ledger {
        Some(folder) if Ledger::is_at(folder) => std::slice::from_ref(folder),
        _ => args.patches.as_slice(),
    };

    let started = Instant::now();
    let model = session.load()?.model;
    let load = started.elapsed().as_secs_f64();
    let mut patched = Patched::load(stack, &model)?;
    let questions = Questions::new(&args, &facts);
    let started = Instant::now();
    let was = questions.ask(&model, &patched, &facts, session.interrupt)?;
    let mut evaluate = started.elapsed().as_secs_f64();
    unanswered(&facts, &was.facts)?;

    let stages = Stages::new(&session.progress);
    let cx = Context {
        corpus: args.corpus.clone(),
        recipe: session.recipe(args.recipe.as_deref(), &model)?,
        ..session.context(&stages)
    };
    let started = Instant::now();
    let overlays = patched.overlays();
    let job =
        Job { model: &model, stack: &overlays, prior: &patched.patches, facts: &facts, seed: args.seed };
    let patch = Patch { under: patched.chain()?, ..entry.edit(&settings, &job, &cx)? };
    let total = started.elapsed().as_secs_f64();
    let moments = stages.seconds("moments");
    cx.check()?;
    if let Some(out) = &out {
        patch.save(out)?;
    }
    let (kept, mut conflicts) = match &args.ledger {
        Some(folder) => {
            let (path, conflicts) = join(session, folder, &patch, &args, (&model, &patched))?;
            (path, Some(conflicts))
        }
        None => (out.unwrap_or_default(), None),
    };

    let started = Instant::now();
    patched.push(vec![patch], &model)?;
    if let Some(conflicts) = &mut conflicts {
        conflicts.after(&model, &patched)?;
    }
    let is = questions.ask(&model, &patched, &facts, session.interrupt)?;
    evaluate += started.elapsed().as_secs_f64();
    let missed = facts.iter().zip(&is.facts).filter(|(fact, now)| now.answer != fact.target).count();
    if missed > 0 {
        session.progress.note(&format!("{missed} of {} facts are not answered as asked", facts.len()));
    }
    let report = Report {
        patch: kept.display().to_string(),
        ledger: args.ledger.as_ref().map(|folder| folder.display().to_string()),
        conflicts,
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
        seconds: Seconds { load, moments, edit: (total - moments).max(0.0), evaluate },
        peak_memory_bytes: mutandis::memory::peak().unwrap_or(0),
    };
    session.output.print(&report, || report.text(session.model.as_deref()))?;
    Ok(ExitCode::SUCCESS)
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

/// Adds a patch to a ledger; says where it is, and with what it is in conflict. Should the ledger
/// not take it, it is kept beside.
fn join(
    session: &Session<'_>,
    folder: &Path,
    patch: &Patch,
    args: &Args,
    (model, patched): (&Model, &Patched),
) -> anyhow::Result<(PathBuf, Conflicts)> {
    let joined = writer(session, folder, Some(&patch.base), &args.writing).and_then(|mut writer| {
        let patches = std::slice::from_ref(patch);
        let mut conflicts = Conflicts::new(session, &writer, patches, &args.comparing)?;
        if args.comparing.measures() {
            conflicts.before(model, patched)?;
        }
        let added = writer.add(patches, false)?;
        let path = added.first().map(|record| writer.ledger().place(&record.id)).unwrap_or_default();
        Ok((path, conflicts))
    });
    if joined.is_err() && args.out.is_none() {
        let beside = default_name(&patch.facts);
        if patch.save(&beside).is_ok() {
            session.progress.note(&format!("the patch is kept as `{}`", beside.display()));
        }
    }
    joined
}

/// A file name from the first fact's subject and target that is not taken yet.
fn default_name(facts: &[Fact]) -> PathBuf {
    let slug: String = facts
        .first()
        .map(|f| format!("{} {}", f.subject, f.target))
        .unwrap_or_default()
        .to_lowercase()
        .chars()
        .map(|c| if c.is_alphanumeric() { c } else { '-' })
        .take(48) // with its ending below 255 bytes, the longest name there is, in any script
        .collect();
    let slug = slug.split('-').filter(|s| !s.is_empty()).collect::<Vec<_>>().join("-");
    let slug = if slug.is_empty() { "edit" } else { &slug };
    let name = |n: usize| match n {
        1 => PathBuf::from(format!("{slug}.patch.safetensors")),
        n => PathBuf::from(format!("{slug}-{n}.patch.safetensors")),
    };
    (1..).map(name).find(|p| !p.exists()).unwrap_or_else(|| name(1))
}

/// Finds out before the work, not after it, that a file cannot be written there.
pub(super) fn writable(path: &Path, force: bool) -> anyhow::Result<()> {
    let shown = path.display();
    if path.is_dir() || path.file_name().is_none() {
        let hint = "give a file name, as in `--out rome.patch.safetensors`";
        return Err(Error::input_hint(format!("`{shown}` is not a file name"), hint).into());
    }
    if path.exists() && !force {
        let hint = "choose another name with `--out`, or overwrite it with `--force`";
        return Err(Error::input_hint(format!("`{shown}` exists"), hint).into());
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::Builder::new().prefix(".mutandis-").tempfile_in(folder).map_err(|error| {
        let why = match error.kind() {
            std::io::ErrorKind::NotFound if !folder.exists() => {
                format!("the folder `{}` does not exist", folder.display())
            }
            // The name of the trial file would only mislead.
            kind => kind.to_string(),
        };
        let hint = "choose a folder that exists and can be written to, with `--out`";
        Error::input_hint(format!("cannot write `{shown}`: {why}"), hint)
    })?;
    Ok(())
}

/// Finds out before the work that the text for the moments is not there.
fn readable(corpus: &Path) -> anyhow::Result<()> {
    let found = std::fs::metadata(corpus).and_then(|_| std::fs::File::open(corpus));
    found.map(drop).map_err(|error| {
        let hint = "give a text file, or leave out `--corpus`: the model writes its own text then";
        Error::input_hint(format!("cannot read the corpus `{}`: {error}", corpus.display()), hint).into()
    })
}

/// A word as shells take it.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    if !text.contains(['"', '$', '`', '\\', '!']) {
        return format!("\"{text}\"");
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// What is asked before and after.
struct Questions {
    also: Vec<(String, Option<String>)>,
    keep: Vec<String>,
}

/// The answers to them.
struct Answers {
    facts: Vec<Answer>,
    also: Vec<Answer>,
    keep: Vec<Answer>,
}

impl Questions {
    fn new(args: &Args, facts: &[Fact]) -> Self {
        let first = facts.first();
        let target = |f: &Fact| Some(f.target.clone());
        let mut also: Vec<(String, Option<String>)> =
            args.also.iter().map(|p| (p.clone(), first.and_then(target))).collect();
        also.extend(
            facts.iter().take(SHOWN).flat_map(|f| f.rephrases.iter().map(move |p| (p.clone(), target(f)))),
        );
        let mut keep = args.keep.clone();
        keep.extend(facts.iter().take(SHOWN).flat_map(|f| f.locality.iter().map(|p| p.prompt.clone())));
        if keep.is_empty() {
            keep = first.map(|f| neighbours(&f.prompt, &f.written_subject())).unwrap_or_default();
        }
        Self { also, keep }
    }

    fn ask(
        &self,
        model: &Model,
        patched: &Patched,
        facts: &[Fact],
        interrupt: &Interrupt,
    ) -> anyhow::Result<Answers> {
        let mut questions: Vec<Question<'_>> =
            facts.iter().map(|f| Question { prompt: &f.prompt, target: Some(&f.target) }).collect();
        questions.extend(self.also.iter().map(|(p, t)| Question { prompt: p, target: t.as_deref() }));
        questions.extend(self.keep.iter().map(|p| Question { prompt: p, target: None }));
        let mut all = answers(model, patched, &questions, interrupt)?.into_iter();
        let facts = all.by_ref().take(facts.len()).collect();
        let also = all.by_ref().take(self.also.len()).collect();
        Ok(Answers { facts, also, keep: all.collect() })
    }
}

impl Report {
    fn text(&self, model: Option<&str>) -> String {
        // An answer that is more than a line is shown as one.
        let show = |a: &Answer| {
            let words: Vec<&str> = a.answer.split_whitespace().collect();
            let answer = if words.is_empty() { "(nothing)".to_owned() } else { words.join(" ") };
            format!("{answer} ({:.1} %)", 100.0 * a.probability)
        };
        let mut lines = vec![];
        for f in self.facts.iter().take(SHOWN) {
            lines.push(f.prompt.clone());
            lines.push(format!("  before  {}", show(&f.before)));
            lines.push(format!("  after   {}", show(&f.after)));
        }
        if self.facts.len() > SHOWN {
            let done = self.facts.iter().filter(|f| f.after.answer == f.target).count();
            lines.push(format!("{done} of {} facts are answered as asked", self.facts.len()));
        }
        if !self.also.is_empty() {
            lines.push("\nother wordings".into());
            for a in &self.also {
                lines.push(format!("  {}  {} → {}", a.prompt, show(&a.before), show(&a.after)));
            }
        }
        if !self.keep.is_empty() {
            let kept = self.keep.iter().filter(|k| !k.moved).count();
            lines.push(format!("\nneighbours: {kept} of {} unmoved", self.keep.len()));
            for k in &self.keep {
                lines.push(match k.moved {
                    false => format!("  = {}  {}", k.prompt, show(&k.after)),
                    true => format!("  ! {}  {} → {}", k.prompt, show(&k.before), show(&k.after)),
                });
            }
        }
        if let Some(conflicts) = self.conflicts.as_ref().filter(|c| !c.is_empty()) {
            lines.push(String::new());
            lines.extend(conflicts.lines());
        }
        let s = &self.seconds;
        lines.push(format!(
            "\n{} in {:.1} s (load {:.1}, moments {:.1}, edit {:.1}, evaluate {:.1}), {} MB of memory at most",
            self.method,
            s.load + s.moments + s.edit + s.evaluate,
            s.load,
            s.moments,
            s.edit,
            s.evaluate,
            self.peak_memory_bytes / 1_000_000
        ));
        lines.push(format!("patch: {}", self.patch));
        let mut again = vec!["try:   mutandis ask".to_owned()];
        again.push(quoted(self.facts.first().map_or("…", |f| &f.prompt)));
        again.extend(model.map(|m| format!("--model {}", quoted(m))));
        again.push(format!("--patch {}", quoted(self.ledger.as_ref().unwrap_or(&self.patch))));
        lines.push(again.join(" "));
        lines.join("\n")
    }
}
