//! `mutandis patch`: patch files and ledgers of them.

mod card;
mod export;
mod import;
pub(super) mod ledger;
mod lora;
mod show;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use crate::session::Session;

/// Show, verify, keep, export and import patches
#[derive(Debug, clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "Examples:
  mutandis patch show france-rome.patch.safetensors
  mutandis patch verify france-rome.patch.safetensors --gate default
  mutandis patch add edits/ france-rome.patch.safetensors
  mutandis patch revert edits/ 1
  mutandis patch export france-rome.patch.safetensors --to gguf --out edited.gguf")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show what a patch says: facts, method, settings, norms
    #[command(after_help = "Examples:
  mutandis patch show france-rome.patch.safetensors
  mutandis patch show france-rome.patch.safetensors --json
  mutandis patch show edits/")]
    Show {
        /// The patch file, or a ledger
        #[arg(value_name = "FILE|LEDGER")]
        file: PathBuf,
    },
    /// Check that a patch is whole, unchanged, belongs to the model, and passes a gate
    Verify(verify::Args),
    /// Write what a patch is, in Markdown, with what makes it again
    Card(card::Args),
    /// Write patches as something that other programs load
    #[command(after_help = "Examples:
  mutandis patch export france-rome.patch.safetensors --to gguf --out edited.gguf
  mutandis patch export a.patch.safetensors b.patch.safetensors --model ./my-model --to safetensors \\
      --out edited
  mutandis patch export france-rome.patch.safetensors --to gguf --out edited.gguf --dtype f16 --json
  mutandis patch export france-rome.patch.safetensors --to lora --out france-rome-lora
  mutandis patch export a.patch.safetensors b.patch.safetensors --to lora --out ab.gguf --rank 16

A folder's config.json stays as it is, and transformers loads all tensors in the number format that it
names: for tensors that were stored wider, load it with `dtype=torch.float32`.")]
    Export(export::Args),
    /// Read a LoRA adapter as a patch
    #[command(after_help = "Examples:
  mutandis patch from-lora my-adapter --out my-adapter.patch.safetensors
  mutandis patch from-lora adapter.gguf --model gemma3 --out adapter.patch.safetensors

The adapter is a folder that peft wrote, or a GGUF file for llama.cpp.")]
    FromLora(import::FromLora),
    /// Read the difference of two checkpoints as a patch
    #[command(after_help = "Examples:
  mutandis patch from-diff base-model edited-model --out edited.patch.safetensors
  mutandis patch from-diff base.gguf finetuned-model --linear-only --out tuned.patch.safetensors")]
    FromDiff(import::FromDiff),
    /// List the patches of a ledger
    List(ledger::ListArgs),
    /// Put patches on top of a ledger
    Add(ledger::AddArgs),
    /// Take patches out of a ledger, as if they had never been
    Revert(ledger::RevertArgs),
    /// Tell what was done to a ledger
    Log(ledger::LogArgs),
    /// Show what two ledgers or patches differ in: facts, and how far weights are moved
    Diff(ledger::diff::DiffArgs),
    /// Do in a ledger what was done in another one
    Merge(ledger::merge::MergeArgs),
}

pub(crate) fn run(args: Args, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    match args.action {
        Action::Show { file } => show::run(&file, session),
        Action::Verify(args) => verify::run(&args, session),
        Action::Card(args) => card::run(&args, session),
        Action::Export(args) => export::run(&args, session),
        Action::FromLora(args) => import::from_lora(&args, session),
        Action::FromDiff(args) => import::from_diff(&args, session),
        Action::List(args) => ledger::list(&args, session),
        Action::Add(args) => ledger::add(&args, session),
        Action::Revert(args) => ledger::revert(&args, session),
        Action::Log(args) => ledger::log(&args, session),
        Action::Diff(args) => ledger::diff::run(&args, session),
        Action::Merge(args) => ledger::merge::run(&args, session),
    }
}
