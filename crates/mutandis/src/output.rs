//! Data on stdout.

use std::io::{self, Write};

use mutandis::Error;
use serde::Serialize;

/// Where results go: text for people, or one JSON document.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether JSON is asked for.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a result: `document` as JSON where that is asked for, else what `text` makes.
    ///
    /// # Errors
    /// [`Error::StdoutClosed`], which ends the command quietly, and [`Error::Stdout`].
    pub(crate) fn print<T: Serialize>(
        &self,
        document: &T,
        text: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        let mut text = if self.json { serde_json::to_string_pretty(document)? } else { text() };
        if !text.ends_with('\n') {
            text.push('\n');
        }
        Ok(write(text.as_bytes())?)
    }
}

/// Writes to stdout at once.
///
/// # Errors
/// As [`Output::print`].
pub(crate) fn write(bytes: &[u8]) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Error::StdoutClosed,
        _ => Error::Stdout(error),
    })
}
