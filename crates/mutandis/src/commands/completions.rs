//! `mutandis completions`: a shell's completion script.

use std::process::ExitCode;

use clap::CommandFactory;

use crate::{cli::Cli, output};

/// Print a script that completes the command in a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis completions bash > ~/.local/share/bash-completion/completions/mutandis
  mutandis completions zsh > \"${fpath[1]}/_mutandis\"
  mutandis completions fish > ~/.config/fish/completions/mutandis.fish")]
pub(crate) struct Args {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    shell: clap_complete::Shell,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "mutandis", &mut script);
    output::write(&script)?;
    Ok(ExitCode::SUCCESS)
}
