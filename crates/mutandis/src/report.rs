//! How an error is told: `error:`, `caused by:`, `hint:`, on stderr.

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use clap::builder::styling::{AnsiColor, Effects, Style};
use mutandis::env::Env;
use mutandis::progress::harmless;

/// It was done, and the answer is no.
pub(crate) const NO: u8 = 1;

/// It could not be done.
pub(crate) const CANNOT: u8 = 2;

/// Tells an error with its causes and its hint; returns the exit code.
pub(crate) fn error(error: &anyhow::Error, env: &Env) -> ExitCode {
    let mut stderr = std::io::stderr().lock();
    let text = render(error, stderr.is_terminal() && !env.no_color());
    // Where stderr is closed too, the exit code has to say it all.
    let _ = stderr.write_all(text.as_bytes());
    ExitCode::from(CANNOT)
}

fn render(error: &anyhow::Error, colours: bool) -> String {
    let paint = |label: &str, style: Style| match colours {
        true => format!("{style}{label}{style:#}"),
        false => label.to_owned(),
    };
    let bold = |colour: AnsiColor| colour.on_default().effects(Effects::BOLD);
    let mut above = harmless(&error.to_string());
    let mut text = format!("{} {above}\n", paint("error:", bold(AnsiColor::Red)));
    for cause in error.chain().skip(1) {
        let cause = harmless(&cause.to_string());
        // Some messages end with their cause.
        if !above.ends_with(&cause) {
            text.push_str(&format!("  {} {cause}\n", paint("caused by:", bold(AnsiColor::Red))));
            above = cause;
        }
    }
    if let Some(hint) = mutandis::hint(error) {
        let hint = harmless(&hint);
        text.push_str(&format!("{} {hint}\n", paint("hint:", bold(AnsiColor::Cyan))));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> anyhow::Error {
        let io = std::io::Error::other("the disk is on fire");
        anyhow::Error::new(mutandis::engine::Error::io("read", "m.gguf")(io)).context("cannot open the model")
    }

    #[test]
    fn causes_and_hints_are_told_once() {
        let expected =
            "error: cannot open the model\n  caused by: cannot read `m.gguf`: the disk is on fire\n";
        assert_eq!(render(&sample(), false), expected);
        let error = mutandis::engine::Error::input_hint("the prompt is empty", "give some text");
        assert_eq!(render(&error.into(), false), "error: the prompt is empty\nhint: give some text\n");
    }

    #[test]
    fn colours_change_nothing_but_colours() {
        let coloured = render(&sample(), true);
        assert!(coloured.starts_with("\u{1b}["));
        let mut plain = String::new();
        let mut rest = coloured.as_str();
        while let Some((before, after)) = rest.split_once('\u{1b}') {
            plain.push_str(before);
            rest = after.split_once('m').map_or("", |(_, rest)| rest);
        }
        assert_eq!(plain + rest, render(&sample(), false));
    }
}
