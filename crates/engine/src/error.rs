//! One error type for the crate: every variant carries data, and most carry a way out.

use std::path::PathBuf;

/// What the engine can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read, mapped or written.
    #[error("cannot {action} `{path}`: {source}")]
    Io {
        /// What was tried: "read", "map", "write".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A checkpoint is damaged or hostile: what it says of itself does not hold.
    #[error("`{path}` is not a valid {format} file: {what}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// "GGUF", "safetensors", "config.json"…
        format: &'static str,
        /// What is wrong, with expected and found values.
        what: String,
    },
    /// The file is sound but asks for something this version does not do.
    #[error("{what} is not supported{}", .known.as_ref().map(|k| format!(" (supported: {k})")).unwrap_or_default())]
    Unsupported {
        /// The thing, named.
        what: String,
        /// What is supported in its place.
        known: Option<String>,
    },
    /// A tensor that the architecture needs is absent.
    #[error("tensor `{name}` is missing from the checkpoint")]
    MissingTensor {
        /// Name in the checkpoint's own convention.
        name: String,
    },
    /// A tensor has another shape than the architecture declares.
    #[error("tensor `{name}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Name in the checkpoint's own convention.
        name: String,
        /// Shape expected from the architecture, outermost dimension first.
        expected: Vec<usize>,
        /// Shape found.
        found: Vec<usize>,
    },
    /// A weight is NaN or infinite.
    #[error("tensor `{name}` holds a value that is not finite, at element {index}")]
    NotFinite {
        /// Name in the checkpoint's own convention.
        name: String,
        /// Flat index of the first such element.
        index: usize,
    },
    /// The tokenizer cannot be built, or does not belong to the model.
    #[error("tokenizer: {what}")]
    Tokenizer {
        /// What is wrong.
        what: String,
    },
    /// A chat template is absent or fails to render.
    #[error("chat template: {what}")]
    ChatTemplate {
        /// What is wrong.
        what: String,
    },
    /// The caller asked for something that cannot be done with this input.
    #[error("{what}")]
    Input {
        /// What was wrong with it: the thing, expected, found.
        what: String,
        /// What to do instead.
        hint: Option<String>,
    },
}

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

    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Input { hint, .. } => hint.clone(),
            Self::Corrupt { .. } => Some("the file may be cut short or damaged: fetch it again".into()),
            Self::MissingTensor { .. } | Self::Shape { .. } => Some(
                "the declared architecture and the tensors disagree: check config.json, or the GGUF's metadata".into(),
            ),
            Self::NotFinite { .. } => Some("the checkpoint is damaged, or was saved from a diverged model".into()),
            Self::ChatTemplate { .. } => Some("leave out `--chat` to continue the text as it stands".into()),
            Self::Unsupported { .. } => {
                Some("use a model of a supported kind, or convert this one to GGUF or safetensors in one".into())
            }
            Self::Tokenizer { .. } => {
                Some("put the model's own `tokenizer.json` beside its weights, or take a GGUF, which holds its own".into())
            }
            Self::Io { .. } => None,
        }
    }
}
