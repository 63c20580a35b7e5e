//! `mutandis patch verify`: whether patches are whole, and good enough.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mutandis::engine::Model;
use mutandis_bench::gate::{Asked, Verdict};
use mutandis_edit::{Context, Error, Fact, Ledger, Patch};
use serde_json::{Value, json};

use crate::gated::{Gated, asked, measure, measure_all, standing, told};
use crate::patched::Patched;
use crate::report::NO;
use crate::session::Session;
use crate::stages::Stages;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis patch verify france-rome.patch.safetensors
  mutandis patch verify france-rome.patch.safetensors --model gemma3
  mutandis patch verify france-rome.patch.safetensors --gate default
  mutandis patch verify second.patch.safetensors --patch first.patch.safetensors --gate gate.toml
  mutandis patch verify edits/ --gate default

Of a ledger every file of the stack is checked, and the gate is held against the whole stack.")]
pub(super) struct Args {
    /// The patch file, or a ledger
    #[arg(value_name = "FILE|LEDGER")]
    file: PathBuf,
    /// A file of thresholds that it has to pass; `default` ships with mutandis
    /// (`mutandis bench show default`)
    #[arg(long, value_name = "FILE")]
    gate: Option<PathBuf>,
    /// The patches that it was made on top of, for the gate: files, or the ledger that it is in
    #[arg(long = "patch", value_name = "FILE|LEDGER", requires = "gate")]
    patches: Vec<PathBuf>,
    /// Another wording of the first fact, for the gate
    #[arg(long, value_name = "PROMPT", requires = "gate", allow_negative_numbers = true)]
    also: Vec<String>,
    /// A prompt whose answer should not move, for the gate [default: a few are chosen]
    #[arg(long, value_name = "PROMPT", requires = "gate", allow_negative_numbers = true)]
    keep: Vec<String>,
}

pub(super) fn run(args: &Args, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let gate = args.gate.as_deref().map(Gated::read).transpose()?;
    if args.file.is_dir() {
        return stack(args, gate.as_ref(), session);
    }
    let patch = Patch::load(&args.file)?;
    let asked = questions(&patch.facts, args, gate.as_ref())?;
    let model = session.load()?.model;
    patch.check(&model)?;
    let verdict = match &gate {
        Some(gate) => {
            let beneath = beneath(&patch, &args.patches, &model)?;
            let stages = Stages::new(&session.progress);
            let cx: Context<'_> = session.context(&stages);
            let whole = gate.whole(&model, &cx)?;
            Some(gate.judge(&measure(&model, &asked, &whole, &beneath, &patch, &cx)?))
        }
        None => None,
    };
    let document = json!({"patch": args.file, "valid": true, "base": patch.base.fingerprint});
    let whole = format!("`{}` is whole and belongs to this model", args.file.display());
    tell(document, whole, verdict.as_ref(), session)
}

/// A ledger: every file of the stack, and the whole of it by the gate.
fn stack(args: &Args, gate: Option<&Gated>, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    if !args.patches.is_empty() {
        let what = format!("`{}` is a ledger, and patches beneath it are given", args.file.display());
        return Err(Error::input_hint(what, "leave out `--patch`: a ledger stands on the model alone").into());
    }
    let ledger = Ledger::open(&args.file)?;
    let patches = sound(&ledger)?;
    let asked = questions(&standing(&patches), args, gate)?;
    let model = session.load()?.model;
    ledger.check_model(&model)?;
    patches.iter().try_for_each(|patch| patch.check(&model))?;
    let count = patches.len();
    let verdict = match gate {
        Some(gate) => {
            let all = Patched::of(patches, &model)?;
            let stages = Stages::new(&session.progress);
            let cx: Context<'_> = session.context(&stages);
            let whole = gate.whole(&model, &cx)?;
            Some(gate.judge(&measure_all(&model, &asked, &whole, &all, &cx)?))
        }
        None => None,
    };
    let base = &ledger.base().fingerprint;
    let document = json!({"ledger": args.file, "patches": count, "valid": true, "base": base});
    let patches = if count == 1 { "patch" } else { "patches" };
    let whole = format!("`{}` is whole and belongs to this model: {count} {patches}", args.file.display());
    tell(document, whole, verdict.as_ref(), session)
}

/// All patches of a ledger.
///
/// # Errors
/// Where one is missing, damaged or was changed; of several all are named.
fn sound(ledger: &Ledger) -> anyhow::Result<Vec<Patch>> {
    let (mut patches, mut bad) = (vec![], vec![]);
    for (i, record) in ledger.stack().iter().enumerate() {
        match ledger.load(record) {
            Ok(patch) => patches.push(patch),
            Err(error) => bad.push((i + 1, error)),
        }
    }
    if bad.len() < 2 {
        return bad.pop().map_or(Ok(patches), |(_, error)| Err(error.into()));
    }
    let numbers: Vec<String> = bad.iter().map(|(number, _)| number.to_string()).collect();
    let (_, first) = bad.swap_remove(0);
    let what =
        format!("{} patches of the ledger are not sound, {}; {first}", numbers.len(), numbers.join(", "));
    Err(Error::input_hint(what, first.hint().unwrap_or_default()).into())
}

/// What the gate asks, where there is one; refused before the work where it does not fit.
fn questions(facts: &[Fact], args: &Args, gate: Option<&Gated>) -> anyhow::Result<Asked> {
    wordings(facts, &args.also)?;
    let asked = asked(facts, &args.also, &args.keep);
    gate.map_or(Ok(()), |gate| gate.fits(&asked))?;
    Ok(asked)
}

/// Refuses other wordings of a fact where there is none.
pub(super) fn wordings(facts: &[Fact], also: &[String]) -> anyhow::Result<()> {
    if facts.is_empty() && !also.is_empty() {
        let what = "another wording of a fact is given, and no fact is known of the edit";
        let hint = "leave out `--also`; `--keep` asks what should not move";
        return Err(Error::input_hint(what, hint).into());
    }
    Ok(())
}

fn tell(
    mut document: Value,
    whole: String,
    verdict: Option<&Verdict>,
    session: &Session<'_>,
) -> anyhow::Result<ExitCode> {
    if let Some(verdict) = verdict {
        document["gate"] = serde_json::to_value(verdict)?;
    }
    session
        .output
        .print(&document, || [whole].into_iter().chain(verdict.map(told)).collect::<Vec<_>>().join("\n"))?;
    let passed = verdict.is_none_or(|verdict| verdict.passed);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(NO) })
}

/// The patches that one was made on top of: those given, or of a ledger as many of the lowest.
///
/// # Errors
/// Where other ones are given than it was made on.
pub(super) fn beneath(patch: &Patch, given: &[PathBuf], model: &Model) -> anyhow::Result<Patched> {
    let patches = match given {
        [path] if path.is_dir() => below(patch, path, model)?,
        _ => Patched::read(given, model)?,
    };
    let beneath = Patched::of(patches, model)?;
    if beneath.chain()? == patch.under {
        return Ok(beneath);
    }
    let (what, hint) = match (&patch.under, given) {
        (Some(_), []) => (
            "the patch was made on top of others".to_owned(),
            "give them with `--patch FILE`, in their order, the oldest first, or the ledger that it is in",
        ),
        (Some(_), _) => (
            format!("the patch was made on top of other patches than the {} given", beneath.patches.len()),
            "give all that it was made on top of with `--patch FILE`, in their order, the oldest first",
        ),
        (None, _) => (
            "the patch was made on the model alone, and patches beneath it are given".to_owned(),
            "leave out `--patch`",
        ),
    };
    Err(Error::input_hint(what, hint).into())
}

/// What a ledger has beneath a patch that is in it, or was made on top of it; all where it is neither.
fn below(patch: &Patch, folder: &Path, model: &Model) -> anyhow::Result<Vec<Patch>> {
    let ledger = Ledger::open(folder)?;
    let id = patch.id()?;
    let depth = match &patch.under {
        Some(under) => ledger.depth(under),
        None => ledger.stack().iter().any(|record| record.id == id).then_some(0),
    };
    Patched::lowest(&ledger, depth.unwrap_or(ledger.stack().len()), model)
}
