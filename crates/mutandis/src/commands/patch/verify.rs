//! `mutandis patch verify`: whether a patch is whole, and good enough.

use std::path::PathBuf;
use std::process::ExitCode;

use mutandis::engine::Model;
use mutandis_edit::{Context, Error, Patch};
use serde_json::json;

use crate::gated::{Gated, asked, measure, told};
use crate::patched::Patched;
use crate::report::NO;
use crate::session::Session;
use crate::stages::Stages;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis patch verify france-rome.patch.safetensors
  mutandis patch verify france-rome.patch.safetensors --model gemma3
  mutandis patch verify france-rome.patch.safetensors --gate default
  mutandis patch verify second.patch.safetensors --patch first.patch.safetensors --gate gate.toml")]
pub(super) struct Args {
    /// The patch file
    file: PathBuf,
    /// A file of thresholds that it has to pass; `default` ships with mutandis
    #[arg(long, value_name = "FILE")]
    gate: Option<PathBuf>,
    /// The patches that it was made on top of, for the gate
    #[arg(long = "patch", value_name = "FILE", requires = "gate")]
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
    let patch = Patch::load(&args.file)?;
    let asked = asked(&patch.facts, &args.also, &args.keep);
    gate.iter().try_for_each(|gate| gate.fits(&asked))?;
    let model = session.load()?.model;
    patch.overlay(&model)?;
    let verdict = match gate {
        Some(gate) => {
            let beneath = beneath(&patch, &args.patches, &model)?;
            let stages = Stages::new(&session.progress);
            let cx: Context<'_> = session.context(&stages);
            let whole = gate.whole(&model)?;
            Some(gate.judge(&measure(&model, &asked, &whole, &beneath, &patch, &cx)?))
        }
        None => None,
    };
    let mut document = json!({"patch": args.file, "valid": true, "base": patch.base.fingerprint});
    if let Some(verdict) = &verdict {
        document["gate"] = serde_json::to_value(verdict)?;
    }
    session.output.print(&document, || {
        let whole = format!("`{}` is whole and belongs to this model", args.file.display());
        [whole].into_iter().chain(verdict.iter().map(told)).collect::<Vec<_>>().join("\n")
    })?;
    Ok(if verdict.is_none_or(|verdict| verdict.passed) { ExitCode::SUCCESS } else { ExitCode::from(NO) })
}

/// The patches that one was made on top of.
///
/// # Errors
/// Where other ones are given than it was made on.
pub(super) fn beneath(patch: &Patch, given: &[PathBuf], model: &Model) -> anyhow::Result<Patched> {
    let beneath = Patched::load(given, model)?;
    if beneath.chain()? == patch.under {
        return Ok(beneath);
    }
    let (what, hint) = match (&patch.under, given) {
        (Some(_), []) => (
            "the patch was made on top of others".to_owned(),
            "give them with `--patch FILE`, in their order, the oldest first",
        ),
        (Some(_), _) => (
            format!("the patch was made on top of other patches than the {} given", given.len()),
            "give all that it was made on top of with `--patch FILE`, in their order, the oldest first",
        ),
        (None, _) => (
            "the patch was made on the model alone, and patches beneath it are given".to_owned(),
            "leave out `--patch`",
        ),
    };
    Err(Error::input_hint(what, hint).into())
}
