//! One error type for the crate.

use std::path::{Path, PathBuf};

use crate::atomic::is_full;

/// What editing can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine's.
    #[error(transparent)]
    Engine(#[from] mutandis_engine::Error),
    /// A file could not be read or written.
    #[error("cannot {action} `{path}`: {source}")]
    Io {
        /// What was tried: "read", "write".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what it says it is.
    #[error("`{path}` is not a valid {what}: {why}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// "patch", "moments file"…
        what: &'static str,
        /// What is wrong, with expected and found values.
        why: String,
    },
    /// A file is sound as far as can be told, and of a format that came after this version.
    #[error("the {what} `{path}` has format {found}, this mutandis reads format {reads}")]
    Newer {
        /// The file.
        path: PathBuf,
        /// "patch"…
        what: &'static str,
        /// The format that it has.
        found: u64,
        /// The newest that is read.
        reads: u32,
    },
    /// A fact, setting or file does not fit; nothing was done.
    #[error("{what}")]
    Input {
        /// What was wrong with it: the thing, expected, found.
        what: String,
        /// What to do instead.
        hint: Option<String>,
    },
    /// The computation broke down.
    #[error("{what}")]
    Numerical {
        /// What happened, with the numbers.
        what: String,
    },
    /// Stopped by the user.
    #[error("interrupted")]
    Interrupted,
}

/// What helps where a disk is full.
const FULL: &str =
    "free some space, or choose another place; what was finished is kept, and nothing is half written";

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An input error without a hint.
    pub fn input(what: impl Into<String>) -> Self {
        Self::Input { what: what.into(), hint: None }
    }

    /// An input error with a way out.
    pub fn input_hint(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Input { what: what.into(), hint: Some(hint.into()) }
    }

    /// A closure for `map_err` on I/O results: attaches the path and the attempt.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// Why a result cannot be written there, and what helps.
    pub fn unwritable(path: &Path, error: &std::io::Error) -> Self {
        if is_full(error) {
            return Self::input_hint(format!("no space left to write `{}`: {error}", path.display()), FULL);
        }
        Self::input_hint(
            format!("cannot write `{}`: {error}", path.display()),
            "choose a folder that exists and can be written to",
        )
    }

    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Engine(e) => e.hint(),
            Self::Input { hint, .. } => hint.clone(),
            Self::Corrupt { .. } => Some("the file is damaged or was changed by hand: make it again".into()),
            Self::Newer { .. } => Some("use a newer mutandis, as the one that wrote it".into()),
            Self::Numerical { .. } => Some("try a smaller learning rate, or another layer".into()),
            Self::Io { source, .. } => is_full(source).then(|| FULL.to_owned()),
            Self::Interrupted => None,
        }
    }
}

/// Checks the number that a setting of this name holds: finite, and 0 or more where it may be `zero`.
///
/// # Errors
/// Where it is not.
pub(crate) fn check_number(name: &str, value: f64, zero: bool, hint: &str) -> Result<()> {
    if value.is_finite() && (value > 0.0 || (zero && value == 0.0)) {
        return Ok(());
    }
    let expected = if zero { "0 or more" } else { "more than 0" };
    Err(Error::input_hint(format!("`{name}` is {value}, expected {expected}"), hint))
}
