//! Scores of what a user would see, and the field's own where the peer has none.

pub mod answer;
pub mod counterfact;
pub mod erasure;
pub mod sentiment;
