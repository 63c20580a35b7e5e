//! Facts, patches, and the methods that turn the one into the other.
//!
//! A method is a pure function of model, facts, settings and seed; it never changes a model. A
//! patch is a value: it saves, loads, stacks, and is taken off again bit for bit. This crate knows
//! no metric, prints nothing, reads no environment variable and opens no socket.

pub mod atomic;
mod checked;
pub mod conflicts;
mod context;
pub mod diff;
pub mod difference;
mod error;
pub mod export;
pub mod fact;
pub mod ledger;
pub mod lora;
pub mod method;
pub mod methods;
pub mod patch;
pub mod primitives;
pub mod recipes;

pub use context::{Context, Progress};
pub use error::{Error, Result};
pub use export::Export;
pub use fact::{Change, Fact, Probe};
pub use ledger::Ledger;
pub use method::{Entry, Family, Job, Method, find};
pub use methods::{DEFAULT, METHODS};
pub use patch::Patch;
