//! Talk on stderr: progress bars for people, one-line notes for people and logs.

use std::{
    borrow::Cow,
    io::{IsTerminal, Write},
    time::Duration,
};

use indicatif::{
    HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle,
};
use mutandis_bench::data::escaped;

/// Where progress is shown. Clones share the screen.
#[derive(Debug, Clone)]
pub struct Progress {
    bars: MultiProgress,
    show_bars: bool,
    show_notes: bool,
}

impl Progress {
    /// Bars where stderr is a terminal, notes everywhere; neither when `quiet`.
    pub fn stderr(quiet: bool) -> Self {
        let show_bars = !quiet && std::io::stderr().is_terminal();
        let target = if show_bars { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { bars: MultiProgress::with_draw_target(target), show_bars, show_notes: !quiet }
    }

    /// Says nothing.
    pub fn hidden() -> Self {
        Self::stderr(true)
    }

    /// A bar in bytes, with the speed and the time left. `total` of 0 means unknown.
    pub fn bytes(&self, label: impl Into<Cow<'static, str>>, total: u64) -> Bar {
        if total == 0 {
            return self.bar(label, None, "{spinner} {msg}  {bytes}  {binary_bytes_per_sec}");
        }
        let template = "{msg}  {bar:28}  {bytes} of {total_bytes}, {binary_bytes_per_sec}, {eta} left";
        self.bar(label, Some(total), template)
    }

    /// A bar in steps, with the time left once a step is done. `total` of 0 means unknown.
    pub fn steps(&self, label: impl Into<Cow<'static, str>>, total: u64) -> Bar {
        if total == 0 {
            return self.bar(label, None, "{spinner} {msg}");
        }
        self.bar(label, Some(total), "{msg}  {bar:28}  {pos} of {len}{left}")
    }

    /// One line on stderr, lower case, without a full stop. A closed stderr is no reason to fail.
    pub fn note(&self, text: &str) {
        let text = &harmless(text);
        if self.show_bars {
            let _ = self.bars.println(text);
        } else if self.show_notes {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    fn bar(&self, label: impl Into<Cow<'static, str>>, total: Option<u64>, template: &str) -> Bar {
        let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
        let style =
            if total.is_some() { ProgressStyle::default_bar() } else { ProgressStyle::default_spinner() };
        let style = style.template(template).expect("the template is a constant of this file");
        let style = style.with_key("left", left);
        let bar = self.bars.add(bar.with_style(style.progress_chars("━╸ ")));
        bar.set_message(label);
        if self.show_bars {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Bar(bar)
    }
}

/// A text for a terminal, which obeys some characters: of control characters only line breaks stay as
/// they are. Records of data sets hold whatever they hold.
pub fn harmless(text: &str) -> String {
    text.split('\n').map(escaped).collect::<Vec<_>>().join("\n")
}

/// The time left, where there is anything to reckon it by.
fn left(state: &ProgressState, out: &mut dyn std::fmt::Write) {
    if state.pos() > 0 && !state.eta().is_zero() {
        let _ = write!(out, ", {:#} left", HumanDuration(state.eta()));
    }
}

/// One piece of work on the screen; it disappears when dropped.
#[derive(Debug)]
pub struct Bar(ProgressBar);

impl Bar {
    /// Moves on by `n` bytes or steps.
    pub fn advance(&self, n: u64) {
        self.0.inc(n);
    }

    /// Moves to `n` bytes or steps from the beginning.
    pub fn set(&self, n: u64) {
        self.0.set_position(n);
    }

    /// How far it is, in bytes or steps.
    pub fn position(&self) -> u64 {
        self.0.position()
    }

    /// Says that the work begins at `n`, so that what an earlier run did does not count as speed.
    pub fn resume_at(&self, n: u64) {
        self.0.set_position(n);
        self.0.reset_eta();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_told_nothing_that_it_obeys() {
        assert_eq!(harmless("two\nlines, naïve"), "two\nlines, naïve");
        assert_eq!(harmless("\u{1b}[31mred\u{7}\r"), "\\u{1b}[31mred\\u{7}\\r");
    }
}
