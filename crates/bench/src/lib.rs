//! What edits are worth: probes, metrics, and the runs that make and score them.
//!
//! Every number carries its protocol. `compat` is what EasyEdit's functions compute, so that
//! published tables compare. This crate names no method: it asks the registry.

pub mod compat;
pub mod data;
pub mod edited;
pub mod fluency;
pub mod perplexity;
pub mod report;
pub mod results;
pub mod run;
pub mod sweep;
pub mod trials;
pub mod words;
