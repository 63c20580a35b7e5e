//! `mutandis patch`: patch files, one file a subcommand.

mod export;
mod show;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use crate::session::Session;

/// Show, verify and export patches
#[derive(Debug, clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "Examples:
  mutandis patch show france-rome.patch.safetensors
  mutandis patch verify france-rome.patch.safetensors --model gemma3
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
    /// Write patches into a copy of the model, for other programs
    #[command(after_help = "Examples:
  mutandis patch export france-rome.patch.safetensors --to gguf --out edited.gguf
  mutandis patch export a.patch.safetensors b.patch.safetensors --model ./my-model --to safetensors \\
      --out edited
  mutandis patch export france-rome.patch.safetensors --to gguf --out edited.gguf --dtype f16 --json")]
    Export(export::Args),
}

pub(crate) fn run(args: Args, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    match args.action {
        Action::Show { file } => show::run(&file, session),
        Action::Verify { file } => verify::run(&file, session),
        Action::Export(args) => export::run(&args, session),
    }
}
