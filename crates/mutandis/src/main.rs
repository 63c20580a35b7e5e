//! The command: reads the arguments and the environment, runs one subcommand, tells how it ended.

mod answers;
mod card;
mod cli;
mod commands;
mod gated;
mod neighbours;
mod output;
mod patched;
mod report;
mod session;
mod shell;
mod stages;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use mutandis::{Error, env::Env, interrupt::Interrupt};

/// 128 + SIGINT: what shells report for a program that Ctrl-C ended.
const ENDED_BY_INTERRUPT: i32 = 130;

fn main() -> ExitCode {
    mutandis::memory::keep_freed();
    mutandis::memory::survive_size_limits();
    let env = Env::capture();
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => {
            // Help and version come this way too. A pipe that is closed is nothing to report.
            let _ = answer.print();
            return if answer.use_stderr() { ExitCode::from(report::CANNOT) } else { ExitCode::SUCCESS };
        }
    };
    let interrupt = Interrupt::new();
    match run(cli, &env, &interrupt) {
        Ok(code) => code,
        Err(error) if matches!(error.downcast_ref(), Some(Error::StdoutClosed)) => ExitCode::SUCCESS,
        Err(error) => report::error(&error, &env),
    }
}

fn run(cli: cli::Cli, env: &Env, interrupt: &Interrupt) -> anyhow::Result<ExitCode> {
    let session = session::Session::new(cli.global, env, interrupt)?;
    let (on_signal, progress) = (interrupt.clone(), session.progress.clone());
    ctrlc::set_handler(move || {
        // The first asks the work to stop and clean up; the second does not wait for it.
        if on_signal.raise() {
            std::process::exit(ENDED_BY_INTERRUPT);
        }
        let progress = progress.clone();
        // Most work has ended by then, and needs no words.
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(1));
            progress.note("stopping where nothing is lost by it; Ctrl-C again stops at once");
        });
    })?;
    commands::run(cli.command, &session)
}
