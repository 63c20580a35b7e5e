//! A model as it stands after edits.

use mutandis_engine::{Model, Overlay};

/// A model with what was edited: changes laid over it, and text that goes before every prompt.
///
/// What reads a model reads this, so that it cannot tell which family an edit is from.
#[derive(Debug, Clone, Copy)]
pub struct Edited<'a> {
    /// The frozen base.
    pub model: &'a Model,
    /// Changes of weights in force.
    pub overlays: &'a [&'a Overlay],
    /// Goes before every prompt; empty where no edit is a prompt.
    pub prefix: &'a str,
}

impl<'a> Edited<'a> {
    /// The model as it came.
    pub fn unedited(model: &'a Model) -> Self {
        Self { model, overlays: &[], prefix: "" }
    }

    /// A prompt with the text that goes before it.
    pub fn prompt(&self, text: &str) -> String {
        format!("{}{text}", self.prefix)
    }
}
