//! Change what a language model knows, and nothing else: the facade over the workspace's crates,
//! and what the `mutandis` command stands on.
//!
//! [`engine`] opens a model and [`edit`] changes what it knows; neither prints, reads an
//! environment variable or opens a socket. That is done here, in the open: [`mod@env`] is the one
//! table of environment variables, [`models`] finds a model by name and fetches it, [`judge`] asks
//! another model over the network, [`progress`] is the one place that talks to stderr.

pub mod atomic;
pub mod env;
mod error;
pub mod interrupt;
pub mod judge;
pub mod memory;
pub mod models;
pub mod progress;

pub use error::{Error, Result, hint};
pub use mutandis_edit as edit;
pub use mutandis_engine as engine;
