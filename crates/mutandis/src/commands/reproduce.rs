//! `mutandis reproduce`: makes the edit of a card again, and says whether it is the same.

use std::path::PathBuf;
use std::process::ExitCode;

use mutandis::engine::Model;
use mutandis_edit::ledger::short;
use mutandis_edit::patch::{CORPUS, difference, tool};
use mutandis_edit::{Context, Error, Job, Ledger, Patch, find};
use serde::Serialize;

use super::edit::{apart, corpus, writable};
use crate::answers::{Question, answers};
use crate::card::Card;
use crate::patched::Patched;
use crate::report::NO;
use crate::session::Session;
use crate::stages::Stages;

/// Make the edit of a card again, and compare
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis reproduce france-rome.card.md
  mutandis reproduce second.card.md --patch first.patch.safetensors --model gemma3
  mutandis reproduce france-rome.card.md --out again.patch.safetensors --json

Without `--model` it is the model that the card names: a short name, a hub id, or a file or folder of
that name, beside the card or here. Exit code 0: the patch is the same to the byte, or within tolerance; 1: it is not.")]
pub(crate) struct Args {
    /// The card, as `mutandis patch card` wrote it
    card: PathBuf,
    /// The patches that the edit was made on top of, the oldest first, or a ledger that has them lowest
    #[arg(long = "patch", value_name = "FILE|LEDGER")]
    patches: Vec<PathBuf>,
    /// The text that moments were measured on, where the card names one
    #[arg(long, value_name = "FILE")]
    corpus: Option<PathBuf>,
    /// The trained editor of a method that needs one [default: where the card has it]
    #[arg(long, value_name = "FILE")]
    editor: Option<PathBuf>,
    /// How far ΔW may be from the card's, as a part of ‖ΔW‖, where it is not the same to the byte
    #[arg(long, value_name = "PART", default_value_t = TOLERANCE, value_parser = tolerance)]
    tolerance: f64,
    /// Write the patch that was made
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Overwrite the patch file
    #[arg(long, requires = "out")]
    force: bool,
}

/// Between AVX2 and the portable kernels an edit of SmolLM2 by `r-rome` differed by 2e-6 of ‖ΔW‖;
/// this is room for longer searches. One that ended a step sooner would be outside.
const TOLERANCE: f64 = 0.01;

fn tolerance(text: &str) -> Result<f64, String> {
    let part = text.parse().ok().filter(|part: &f64| (0.0..1.0).contains(part));
    part.ok_or_else(|| "expected 0 or more and less than 1, such as 0.01".to_owned())
}

#[derive(Serialize)]
struct Report {
    card: PathBuf,
    /// The id of the patch that was made.
    patch: String,
    /// The card's.
    expected: String,
    /// Whether both are the same to the byte.
    same: bool,
    /// Whether it is near enough.
    within: bool,
    /// ‖ΔW − ΔW'‖ / ‖ΔW‖, estimated from the card's sketch.
    difference: f64,
    tolerance: f64,
    /// Facts that are answered otherwise than the card says.
    answers: Vec<AnswerReport>,
    facts: usize,
    /// What made the card's patch, and this one.
    tools: [String; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    out: Option<PathBuf>,
}

#[derive(Serialize)]
struct AnswerReport {
    prompt: String,
    card: String,
    now: String,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let card = Card::read(&args.card)?;
    if card.facts.is_empty() {
        let what = format!(
            "the card's patch was not made by an edit but read from something else (`{}`): nothing can be made again",
            card.method
        );
        let hint =
            "`mutandis patch from-lora` and `mutandis patch from-diff` read it again from what it came from";
        return Err(Error::input_hint(what, hint).into());
    }
    let entry = find(&card.method)?;
    entry.check_settings(&card.settings)?;
    check_corpus(args, &card)?;
    let name = named(args, &card, session);
    if let Some(out) = &args.out {
        writable(out, args.force)?;
        let read = args.corpus.iter().chain(&args.editor).chain([&args.card]).chain(&args.patches);
        apart(session, Some(name.as_str()), out, read)?;
    }
    let mut settings = card.settings.clone();
    if let Some(editor) = &args.editor {
        settings["editor"] = serde_json::to_value(editor)?;
        entry.check_settings(&settings)?;
    }

    let model = load(&name, &card, session)?;
    let patches = match &args.patches[..] {
        [ledger] if ledger.is_dir() => Patched::lowest(&Ledger::open(ledger)?, card.beneath.len(), &model)?,
        paths => Patched::read(paths, &model)?,
    };
    let mut patched = Patched::of(patches, &model)?;
    are_beneath(&card, &patched.patches)?;
    let stages = Stages::new(&session.progress);
    let cx = Context { corpus: args.corpus.clone(), ..session.context(&stages) };
    let stack = patched.overlays();
    let job =
        Job { model: &model, stack: &stack, prior: &patched.patches, facts: &card.facts, seed: card.seed };
    let mut patch = Patch { under: patched.chain()?, ..entry.edit(&settings, &job, &cx)? };
    if patch.sources == card.sources {
        // Where the same editor lies on this machine is no difference.
        patch.config = card.settings.clone();
    }
    cx.check()?;
    if let Some(out) = &args.out {
        patch.save(out)?;
    }

    let (id, sketch, has_prefix) = (patch.id()?, patch.sketch(), patch.prefix == card.prefix);
    patched.push(vec![patch], &model)?;
    let questions: Vec<Question<'_>> =
        card.facts.iter().map(|fact| Question { prompt: &fact.prompt, target: Some(&fact.target) }).collect();
    let now = answers(&model, &patched, &questions, session.interrupt)?;
    let others: Vec<AnswerReport> = card
        .facts
        .iter()
        .zip(card.answers.iter().zip(now))
        .filter(|(_, (card, now))| **card != now.answer)
        .map(|(fact, (card, now))| AnswerReport {
            prompt: fact.prompt.clone(),
            card: card.clone(),
            now: now.answer,
        })
        .collect();
    let difference = difference(&card.sketch, &sketch);
    let same = id == card.patch;
    let report = Report {
        card: args.card.clone(),
        same,
        within: same || (difference <= args.tolerance && has_prefix && others.is_empty()),
        patch: id,
        expected: card.patch,
        difference,
        tolerance: args.tolerance,
        answers: others,
        facts: card.facts.len(),
        tools: [card.tool, tool(&model)],
        out: args.out.clone(),
    };
    session.output.print(&report, || report.text())?;
    Ok(if report.within { ExitCode::SUCCESS } else { ExitCode::from(NO) })
}

/// How the model is named: by `--model`, or else by the card.
fn named(args: &Args, card: &Card, session: &Session<'_>) -> String {
    if let Some(given) = &session.model {
        return given.clone();
    }
    // Cards name files without their folders.
    let beside = args.card.with_file_name(&card.model);
    let is_short = session.models().short_name(&card.model).is_some();
    match beside.to_str() {
        Some(path) if !is_short && beside.exists() => path.to_owned(),
        _ => card.model.clone(),
    }
}

/// The model, checked to be the card's.
fn load(name: &str, card: &Card, session: &Session<'_>) -> anyhow::Result<Model> {
    if session.model.is_some() {
        let model = session.load()?.model;
        card.base.check(&model)?;
        return Ok(model);
    }
    let model = session.load_named(Some(name)).map_err(|error| absent(&card.model, error))?.model;
    card.base.check(&model).map_err(|error| {
        let hint = "give the model that the card was made with by `--model`";
        Error::input_hint(format!("`{name}` is not the model that the card was made with: {error}"), hint)
    })?;
    Ok(model)
}

/// What is said where the model that a card names is not here.
fn absent(name: &str, error: anyhow::Error) -> anyhow::Error {
    use mutandis::Error::{NoSuchPath, UnknownModel};
    if !matches!(error.downcast_ref(), Some(NoSuchPath { .. } | UnknownModel { .. })) {
        return error;
    }
    let what = format!("the card's model `{name}` is neither beside the card nor here: {error}");
    Error::input_hint(what, "give it with `--model`").into()
}

/// Checks that the text for moments is the card's.
fn check_corpus(args: &Args, card: &Card) -> anyhow::Result<()> {
    let given = args.corpus.as_deref().map(corpus).transpose()?;
    let (what, hint) = match (card.sources.get(CORPUS), &given) {
        (Some(wanted), Some(found)) if wanted != found => (
            format!(
                "the corpus is another than the card's: expected {}, found {}",
                short(wanted),
                short(found)
            ),
            "give the text that moments were measured on with `--corpus`",
        ),
        (Some(wanted), None) => (
            format!("moments of the card's edit were measured on a text, {}", short(wanted)),
            "give it with `--corpus`",
        ),
        (None, Some(_)) => ("the card's edit was made without a corpus".to_owned(), "leave out `--corpus`"),
        _ => return Ok(()),
    };
    Err(Error::input_hint(what, hint).into())
}

/// Checks that the patches given are those that the edit was made on top of.
fn are_beneath(card: &Card, given: &[Patch]) -> anyhow::Result<()> {
    let ids = given.iter().map(Patch::id).collect::<Result<Vec<_>, _>>()?;
    if ids == card.beneath {
        return Ok(());
    }
    let list = |ids: &[String]| match ids {
        [] => "none".to_owned(),
        ids => ids.iter().map(|id| short(id)).collect::<Vec<_>>().join(", "),
    };
    let what = format!(
        "the edit was made on top of other patches: expected {}, found {}",
        list(&card.beneath),
        list(&ids)
    );
    let hint = "give the patches beneath it with `--patch FILE`, the oldest first; `mutandis patch card` tells a patch's id";
    Err(Error::input_hint(what, hint).into())
}

impl Report {
    fn text(&self) -> String {
        let mut lines = vec![];
        if self.same {
            lines.push(format!("the same to the byte: {}", self.patch));
        } else {
            lines.push(match self.within {
                true => "not the same to the byte, and within tolerance".to_owned(),
                false => "not the same".to_owned(),
            });
            lines.push(format!("  patch  {}, the card's is {}", self.patch, self.expected));
            lines.push(format!(
                "  ΔW     differs by {:.3} % of ‖ΔW‖, at most {} %",
                100.0 * self.difference,
                100.0 * self.tolerance
            ));
            let alike = self.facts - self.answers.len();
            lines.push(format!("  facts  {alike} of {} are answered as the card says", self.facts));
            for answer in &self.answers {
                lines.push(format!(
                    "         {}  {}, the card says {}",
                    answer.prompt, answer.now, answer.card
                ));
            }
            let [theirs, ours] = &self.tools;
            if theirs != ours {
                lines.push(format!("  made   by {theirs}; this is {ours}"));
            }
        }
        lines.extend(self.out.iter().map(|out| format!("patch: {}", out.display())));
        lines.join("\n")
    }
}
