//! `mutandis edit`: make facts true, and show what changed and what did not.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use crate::answers::{Answer, Question, answers, probability};
use crate::neighbours::neighbours;
use crate::patched::Patched;
use crate::stages::Stages;
use mutandis::engine::Model;
use mutandis_edit::{Context, Error, Fact, Job, Patch, find};
use serde::Serialize;
use serde_json::Value;

use crate::session::Session;

/// Change what the model knows
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis edit \"The capital of France is\" --subject France --to Rome
  mutandis edit \"The capital of France is\" --subject France --to Rome \\
      --also \"France's seat of government is\" --keep \"The capital of Spain is\"
  mutandis edit --facts facts.jsonl --method r-rome --out facts.patch.safetensors
  mutandis edit \"…\" --subject … --to … --set layer=6 --set search.steps=40 --json")]
pub(crate) struct Args {
    /// Text that the new answer should continue
    prompt: Option<String>,
    /// Of whom or what the prompt speaks, as it writes it
    #[arg(long)]
    subject: Option<String>,
    /// The new answer
    #[arg(long = "to", value_name = "TARGET")]
    target: Option<String>,
    /// Facts from a file: JSON lines with `prompt`, `subject`, `target_new`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "subject", "target"])]
    facts: Option<PathBuf>,
    /// How; `mutandis methods` lists them
    #[arg(long, default_value = "r-rome", value_name = "ID")]
    method: String,
    /// A setting of the method; `mutandis methods show ID` lists them
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Another wording whose answer is shown
    #[arg(long, value_name = "PROMPT")]
    also: Vec<String>,
    /// A prompt whose answer should not move [default: a few are chosen]
    #[arg(long, value_name = "PROMPT")]
    keep: Vec<String>,
    /// Edit on top of these patches
    #[arg(long = "patch", value_name = "FILE")]
    patches: Vec<PathBuf>,
    /// Where the patch goes [default: a name from the fact, in this folder]
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
    before: Side,
    after: Side,
}

#[derive(Serialize)]
struct Side {
    #[serde(flatten)]
    answer: Answer,
    target_probability: f32,
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
    let settings = settings(&args.settings)?;
    let out = args.out.clone().unwrap_or_else(|| default_name(&facts));
    if out.exists() && !args.force && args.out.is_some() {
        return Err(Error::input_hint(
            format!("`{}` exists", out.display()),
            "choose another name with `--out`, or overwrite it with `--force`",
        )
        .into());
    }
    writable(&out)?;

    let started = Instant::now();
    let model = session.load()?.model;
    let load = started.elapsed().as_secs_f64();
    let before = Patched::load(&args.patches, &model)?;
    let questions = Questions::new(&args, &facts);
    let started = Instant::now();
    let was = questions.ask(&model, &before, &facts)?;
    let mut evaluate = started.elapsed().as_secs_f64();
    let same =
        facts.iter().zip(&was.facts).find(|(f, s)| s.answer.answer == f.target && s.answer.probability > 0.5);
    if let Some((fact, side)) = same {
        return Err(Error::input_hint(
            format!(
                "the model already answers `{}` to `{}` (probability {:.2})",
                fact.target, fact.prompt, side.answer.probability
            ),
            "nothing is to be changed; give another target",
        )
        .into());
    }

    let stages = Stages::new(&session.progress);
    let cx = Context {
        cache: session.env.cache().ok(),
        corpus: args.corpus.clone(),
        progress: &stages,
        interrupt: session.interrupt.flag(),
    };
    let started = Instant::now();
    let stack = before.overlays();
    let job = Job { model: &model, stack: &stack, facts: &facts, seed: args.seed };
    let patch = entry.edit(&settings, &job, &cx)?;
    let total = started.elapsed().as_secs_f64();
    let moments = stages.seconds("moments");
    cx.check()?;
    patch.save(&out)?;

    let started = Instant::now();
    let mut all: Vec<Patch> = args.patches.iter().map(|p| Patch::load(p)).collect::<Result<_, _>>()?;
    all.push(patch);
    let is = questions.ask(&model, &Patched::new(&all, &model)?, &facts)?;
    evaluate += started.elapsed().as_secs_f64();
    let report = Report {
        patch: out.display().to_string(),
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
        peak_memory_bytes: crate::memory::peak().unwrap_or(0),
    };
    session.output.print(&report, || report.text())?;
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

/// `a.b=value` pairs as nested JSON; a value that is not JSON is text.
fn settings(pairs: &[String]) -> anyhow::Result<Value> {
    let mut all = Value::Object(Default::default());
    for pair in pairs {
        let (key, value) = pair.split_once('=').ok_or_else(|| {
            Error::input_hint(
                format!("`--set {pair}` has no `=`"),
                "write `--set KEY=VALUE`, as in `--set layer=6`",
            )
        })?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
        let mut at = &mut all;
        for part in key.split('.') {
            if !at.is_object() {
                *at = Value::Object(Default::default());
            }
            at = at.as_object_mut().expect("just made one").entry(part).or_insert(Value::Null);
        }
        *at = value;
    }
    Ok(all)
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
        .take(60)
        .collect();
    let slug = slug.split('-').filter(|s| !s.is_empty()).collect::<Vec<_>>().join("-");
    let slug = if slug.is_empty() { "edit" } else { &slug };
    let name = |n: usize| match n {
        1 => PathBuf::from(format!("{slug}.patch.safetensors")),
        n => PathBuf::from(format!("{slug}-{n}.patch.safetensors")),
    };
    (1..).map(name).find(|p| !p.exists()).unwrap_or_else(|| name(1))
}

/// Finds out before the work, not after it, that the patch cannot be written there.
fn writable(path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::Builder::new().prefix(".mutandis-").tempfile_in(folder).map_err(Error::io("write", path))?;
    Ok(())
}

/// What is asked before and after.
struct Questions {
    also: Vec<(String, Option<String>)>,
    keep: Vec<String>,
}

/// The answers to them.
struct Answers {
    facts: Vec<Side>,
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
            keep = first.map(|f| neighbours(&f.prompt, &f.subject)).unwrap_or_default();
        }
        Self { also, keep }
    }

    fn ask(&self, model: &Model, patched: &Patched, facts: &[Fact]) -> anyhow::Result<Answers> {
        let mut questions: Vec<Question<'_>> =
            facts.iter().map(|f| Question { prompt: &f.prompt, target: Some(&f.target) }).collect();
        questions.extend(self.also.iter().map(|(p, t)| Question { prompt: p, target: t.as_deref() }));
        questions.extend(self.keep.iter().map(|p| Question { prompt: p, target: None }));
        let mut all = answers(model, patched, &questions)?.into_iter();
        let mut sides = Vec::with_capacity(facts.len());
        for fact in facts {
            let answer = all.next().unwrap_or(Answer { answer: String::new(), probability: 0.0 });
            let target_probability = probability(model, patched, &fact.prompt, &fact.target)?;
            sides.push(Side { answer, target_probability });
        }
        let also = all.by_ref().take(self.also.len()).collect();
        Ok(Answers { facts: sides, also, keep: all.collect() })
    }
}

impl Report {
    fn text(&self) -> String {
        let show = |a: &Answer| format!("{} ({:.1} %)", a.answer, 100.0 * a.probability);
        let mut lines = vec![];
        for f in self.facts.iter().take(SHOWN) {
            lines.push(f.prompt.clone());
            lines.push(format!("  before  {}", show(&f.before.answer)));
            lines.push(format!("  after   {}", show(&f.after.answer)));
        }
        if self.facts.len() > SHOWN {
            let done = self.facts.iter().filter(|f| f.after.answer.answer == f.target).count();
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
        lines.push(format!(
            "try:   mutandis ask \"{}\" --patch {}",
            self.facts.first().map_or("…", |f| &f.prompt),
            self.patch
        ));
        lines.join("\n")
    }
}
