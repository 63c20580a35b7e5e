//! `mutandis locate`: where and how a model is edited best, and what a fact hangs on.

mod neurons;
mod picture;
mod sweep;

use std::process::ExitCode;

use crate::session::Session;

/// Find out what a fact hangs on, and how a model is edited best
#[derive(Debug, clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Find layers and strengths by trial edits, and keep them as a recipe that edits use
    Sweep(sweep::Args),
    /// Find the MLP neurons that an answer hangs on
    Neurons(neurons::Args),
}

pub(crate) fn run(args: Args, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Sweep(args) => sweep::run(args, session),
        Command::Neurons(args) => neurons::run(args, session),
    }
}
