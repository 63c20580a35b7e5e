//! Scores as a user would see them.

pub mod erasure;
pub mod sentiment;
