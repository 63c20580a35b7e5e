//! `mutandis patch card`: what a patch is, for people, with what makes it again.

mod markdown;

use std::path::PathBuf;
use std::process::ExitCode;

use mutandis::atomic;
use mutandis_bench::gate::{Measure, text};
use mutandis_bench::whole::Whole;
use mutandis_edit::{Entry, Error, Patch, find};
use serde_json::json;

use super::verify::{beneath, wordings};
use crate::answers::{Answer, Question, answers};
use crate::card::Card;
use crate::commands::edit::{apart, writable};
use crate::gated::{asked, measure};
use crate::patched::Patched;
use crate::session::Session;
use crate::stages::Stages;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis patch card france-rome.patch.safetensors --out france-rome.card.md
  mutandis patch card second.patch.safetensors --patch first.patch.safetensors
  mutandis patch card third.patch.safetensors --patch edits/
  mutandis reproduce france-rome.card.md")]
pub(super) struct Args {
    /// The patch file
    file: PathBuf,
    /// The patches that it was made on top of, the oldest first, or the ledger that it is in
    #[arg(long = "patch", value_name = "FILE|LEDGER")]
    patches: Vec<PathBuf>,
    /// Another wording of the first fact
    #[arg(long, value_name = "PROMPT", allow_negative_numbers = true)]
    also: Vec<String>,
    /// A prompt whose answer should not move [default: a few are chosen]
    #[arg(long, value_name = "PROMPT", allow_negative_numbers = true)]
    keep: Vec<String>,
    /// Where the card goes [default: stdout]
    #[arg(long, value_name = "CARD.md")]
    out: Option<PathBuf>,
    /// Overwrite the card
    #[arg(long, requires = "out")]
    force: bool,
}

/// What a card tells people.
struct Page<'a> {
    patch: &'a Patch,
    /// The method; none where the patch was imported.
    entry: Option<&'a Entry>,
    card: &'a Card,
    file: File,
    before: Vec<Answer>,
    after: Vec<Answer>,
    measures: Vec<Measure>,
}

/// The patch's file.
struct File {
    name: String,
    bytes: usize,
    hash: String,
}

pub(super) fn run(args: &Args, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    if let Some(out) = &args.out {
        writable(out, args.force)?;
        apart(session, session.model.as_deref(), out, args.patches.iter().chain([&args.file]))?;
    }
    one(&args.file)?;
    let bytes = Patch::bytes_of(&args.file)?;
    let patch = Patch::parse(&args.file, &bytes)?;
    // What knows no facts was not made by a method.
    let entry = if patch.facts.is_empty() { None } else { Some(find(&patch.method)?) };
    wordings(&patch.facts, &args.also)?;
    let name = |path: &std::path::Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let file =
        File { name: name(&args.file), bytes: bytes.len(), hash: blake3::hash(&bytes).to_hex().to_string() };

    let loaded = session.load()?;
    let model = &loaded.model;
    patch.check_base(model)?;
    let beneath = beneath(&patch, &args.patches, model)?;
    let stages = Stages::new(&session.progress);
    let cx = session.context(&stages);
    let whole = Whole::new(model, text(model)?, vec![], &cx)?;
    let asked = asked(&patch.facts, &args.also, &args.keep);
    let measures = measure(model, &asked, &whole, &beneath, &patch, &cx)?;
    let questions: Vec<Question<'_>> = patch
        .facts
        .iter()
        .map(|fact| Question { prompt: &fact.prompt, target: Some(&fact.target) })
        .collect();
    let before = answers(model, &beneath, &questions, session.interrupt)?;
    let mut edited: Vec<Patch> = beneath.patches.clone();
    edited.push(patch.clone());
    let after = answers(model, &Patched::of(edited, model)?, &questions, session.interrupt)?;

    let is_path = std::path::Path::new(&loaded.located.name).exists();
    let named = match is_path {
        // A path is of this machine.
        true => name(std::path::Path::new(&loaded.located.name)),
        false => loaded.located.name.clone(),
    };
    let said = after.iter().map(|answer| answer.answer.clone()).collect();
    let card = Card::new(&patch, named, &beneath.patches, said)?;
    let page = Page { patch: &patch, entry, card: &card, file, before, after, measures };
    let text = card.under(&page.markdown())?;
    match &args.out {
        Some(out) => {
            atomic::write(out, |file| file.write_all(text.as_bytes()))?;
            let document = json!({"card": out, "patch": card.patch, "measures": page.measures});
            session.output.print(&document, || format!("card: {}", out.display()))?;
        }
        None => {
            let document = json!({"text": text, "patch": card.patch, "measures": page.measures});
            session.output.print(&document, || text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses a ledger: a card is of one patch.
fn one(path: &std::path::Path) -> anyhow::Result<()> {
    if !path.is_dir() {
        return Ok(());
    }
    let folder = path.display();
    let what = format!("`{folder}` is a folder: a card is of one patch");
    let hint = format!(
        "give a file; `mutandis patch show {folder}` names those of a ledger, and `--patch {folder}` gives what lies beneath"
    );
    Err(Error::input_hint(what, hint).into())
}
