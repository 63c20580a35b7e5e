//! `mutandis patch`: patch files and ledgers of them.

pub(super) mod ledger;
mod show;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use crate::session::Session;

/// Show and verify patches, and keep them in ledgers
#[derive(Debug, clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "Examples:
  mutandis patch show france-rome.patch.safetensors
  mutandis patch verify france-rome.patch.safetensors --model gemma3
  mutandis patch add edits/ france-rome.patch.safetensors
  mutandis patch revert edits/ 1")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show what a patch says: facts, method, settings, norms
    #[command(after_help = "Examples:
  mutandis patch show france-rome.patch.safetensors
  mutandis patch show france-rome.patch.safetensors --json")]
    Show {
        /// The patch file
        file: PathBuf,
    },
    /// Check that a patch is whole, unchanged, and belongs to the model
    #[command(after_help = "Examples:
  mutandis patch verify france-rome.patch.safetensors
  mutandis patch verify france-rome.patch.safetensors --model gemma3")]
    Verify {
        /// The patch file
        file: PathBuf,
    },
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
        Action::Verify { file } => verify::run(&file, session),
        Action::List(args) => ledger::list(&args, session),
        Action::Add(args) => ledger::add(&args, session),
        Action::Revert(args) => ledger::revert(&args, session),
        Action::Log(args) => ledger::log(&args, session),
        Action::Diff(args) => ledger::diff::run(&args, session),
        Action::Merge(args) => ledger::merge::run(&args, session),
    }
}
