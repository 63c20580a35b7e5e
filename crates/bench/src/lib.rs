//! What edits are worth: probes, metrics, and the runs that make and score them.
//!
//! Every number carries its protocol. `compat` is what EasyEdit's functions compute, so that
//! published tables compare; `strict` is what a user sees. This crate names no method: it asks the
//! registry.

pub mod baseline;
pub mod benchmark;
pub mod compat;
pub mod data;
mod draw;
pub mod edited;
pub mod fluency;
pub mod fork;
pub mod gate;
pub mod general;
mod greedy;
pub mod judge;
pub mod memory;
mod passes;
pub mod perplexity;
pub mod plan;
pub mod question;
pub mod record;
pub mod report;
pub mod results;
pub mod run;
pub mod sanitation;
pub mod score;
pub mod sentiment;
pub mod steps;
pub mod strict;
pub mod sweep;
mod texts;
pub mod trials;
pub mod whole;
pub mod words;
