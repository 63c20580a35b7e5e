//! What edits are worth: probes, metrics, and the runs that make and score them.
//!
//! Every number carries its protocol. `compat` is what EasyEdit's functions compute, so that
//! published tables compare. This crate names no method: it asks the registry.

pub mod compat;
pub mod data;
mod draw;
pub mod edited;
pub mod fluency;
pub mod fork;
pub mod general;
mod greedy;
mod passes;
pub mod perplexity;
pub mod results;
pub mod run;
pub mod sanitation;
pub mod sentiment;
pub mod strict;
pub mod sweep;
pub mod trials;
pub mod words;
