//! The subcommands: one file each with `Args` and `run(args, &Session)`, one line in [`Command`]
//! and one in [`run`].

mod ask;
mod bench;
mod chat;
mod completions;
mod data;
mod decoding;
mod edit;
mod locate;
mod methods;
mod model;
mod patch;
mod reproduce;
mod stats;
mod tokens;
mod train;

use std::process::ExitCode;

use clap::Subcommand;

use crate::session::Session;

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Change what the model knows, and show what moved
    Edit(Box<edit::Args>),
    /// Continue a text, or answer a question
    Ask(ask::Args),
    /// Talk with a model
    Chat(chat::Args),
    /// List the editing methods, or show one
    Methods(methods::Args),
    /// Make many edits and score them
    Bench(bench::Args),
    /// Look into data sets
    Data(data::Args),
    /// Find out where and how a model is edited best
    Locate(locate::Args),
    /// Train the editor of a method that needs one
    Train(train::Args),
    /// Show, verify, keep, export and import patches
    Patch(patch::Args),
    /// Make the edit of a card again, and compare
    Reproduce(reproduce::Args),
    /// Get, show and list models
    Model(model::Args),
    /// Measure the moments of a model's keys, which edits of weights use
    Stats(stats::Args),
    /// Show how a model cuts text into tokens
    Tokens(tokens::Args),
    /// Print a script that completes the command in a shell
    Completions(completions::Args),
}

/// Does it. Exit code 1 is for a question whose answer is no; what cannot be done is an error.
pub(crate) fn run(command: Command, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    match command {
        Command::Edit(args) => edit::run(&args, session),
        Command::Ask(args) => ask::run(args, session),
        Command::Chat(args) => chat::run(args, session),
        Command::Methods(args) => methods::run(args, session),
        Command::Bench(args) => bench::run(args, session),
        Command::Data(args) => data::run(&args, session),
        Command::Locate(args) => locate::run(args, session),
        Command::Train(args) => train::run(args, session),
        Command::Patch(args) => patch::run(args, session),
        Command::Reproduce(args) => reproduce::run(&args, session),
        Command::Stats(args) => stats::run(args, session),
        Command::Model(args) => model::run(args, session),
        Command::Tokens(args) => tokens::run(args, session),
        Command::Completions(args) => completions::run(args),
    }
}
