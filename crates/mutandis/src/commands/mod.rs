//! The subcommands: one file each with `Args` and `run(args, &Session)`, one line in [`Command`]
//! and one in [`run`].

mod ask;
mod chat;
mod completions;
mod decoding;
mod model;
mod tokens;

use std::process::ExitCode;

use clap::Subcommand;

use crate::session::Session;

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Continue a text, or answer a question
    Ask(ask::Args),
    /// Talk with a model
    Chat(chat::Args),
    /// Get, show and list models
    Model(model::Args),
    /// Show how a model cuts text into tokens
    Tokens(tokens::Args),
    /// Print a script that completes the command in a shell
    Completions(completions::Args),
}

/// Does it. Exit code 1 is for a question whose answer is no; what cannot be done is an error.
pub(crate) fn run(command: Command, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    match command {
        Command::Ask(args) => ask::run(args, session),
        Command::Chat(args) => chat::run(args, session),
        Command::Model(args) => model::run(args, session),
        Command::Tokens(args) => tokens::run(args, session),
        Command::Completions(args) => completions::run(args),
    }
}
