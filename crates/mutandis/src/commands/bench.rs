//! `mutandis bench`: what methods are worth.

mod report;
mod run;
mod show;

use std::process::ExitCode;

use crate::session::Session;

/// Make many edits and score them
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Edit the records of data sets, one by one, in batches or in a row, and score them
    Run(Box<run::RunArgs>),
    /// Make a page, tables and files of what was run
    Report(report::ReportArgs),
    /// List the plans and the gate that ship, or print one to begin your own from
    Show(show::ShowArgs),
}

pub(crate) fn run(args: Args, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Run(args) => run::run(&args, session),
        Command::Report(args) => report::report(&args, session),
        Command::Show(args) => show::show(&args, session),
    }
}
