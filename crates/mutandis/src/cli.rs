//! The arguments: global options here, each subcommand's own in its file under `commands/`.

use std::num::NonZeroUsize;

use clap::{
    Args, Parser, ValueEnum,
    builder::styling::{AnsiColor, Effects, Styles},
};
use mutandis::env::{READ_BY_LIBRARIES, TABLE};

use crate::commands::Command;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().effects(Effects::BOLD))
    .usage(AnsiColor::Green.on_default().effects(Effects::BOLD))
    .literal(AnsiColor::Cyan.on_default().effects(Effects::BOLD))
    .placeholder(AnsiColor::Cyan.on_default())
    .error(AnsiColor::Red.on_default().effects(Effects::BOLD))
    .valid(AnsiColor::Cyan.on_default())
    .invalid(AnsiColor::Yellow.on_default());

const EXAMPLES: &str = "Examples:
  mutandis model list
  mutandis model get gemma3
  mutandis model show --model ./my-model --json";

/// Change what a language model knows, and nothing else
#[derive(Debug, Parser)]
#[command(
    name = "mutandis",
    version,
    styles = STYLES,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = EXAMPLES,
    after_long_help = environment_help(),
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that every subcommand takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The model: a folder, a `.gguf` or `.safetensors` file, a hub id, or a short name [default: smollm2]
    #[arg(long, global = true, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// Print one JSON document on stdout instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// No progress and no notes on stderr
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Never use the network
    #[arg(long, global = true)]
    pub(crate) offline: bool,
    /// Number of threads [default: one per core]
    #[arg(long, global = true, value_name = "N", value_parser = threads)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// How frozen weights are kept in memory
    #[arg(long, global = true, value_enum, value_name = "KIND", default_value_t = Weights::Auto)]
    pub(crate) weights: Weights,
}

fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let most = mutandis::engine::THREADS_LIMIT;
    let count = text.parse().ok().filter(|n: &NonZeroUsize| n.get() <= most);
    count.ok_or_else(|| format!("expected 1 to {most}; leave it out for one per core"))
}

/// How frozen weights are kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Weights {
    /// Single precision
    F32,
    /// Half the memory, for checkpoints that came as bf16
    Bf16,
    /// The checkpoint's own quantised blocks
    Quantized,
    /// What is fastest without changing greedy answers
    Auto,
}

/// The table of environment variables, as the end of `mutandis --help`.
fn environment_help() -> String {
    let mut text = format!("{EXAMPLES}\n\nEnvironment:\n");
    for variable in TABLE.iter().chain(READ_BY_LIBRARIES) {
        text.push_str(&format!("  {:<22} {}\n", variable.name, variable.help));
    }
    text.push_str("\nExit codes: 0 done; 1 done, and the answer is no; 2 could not be done");
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        super::Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            if command.has_subcommands() {
                command.get_subcommands().for_each(|sub| check(sub, &path));
            } else {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(
                    help.contains(&format!("{path} ")) || help.ends_with(&path),
                    "{path}: no example in {help:?}"
                );
            }
        }
        super::Cli::command().get_subcommands().for_each(|sub| check(sub, "mutandis"));
    }
}
