//! The patches of a command line, ready to be laid over the model.

use std::path::PathBuf;

use mutandis::edit::Patch;
use mutandis::engine::{Model, Overlay};

/// What patches amount to when a model answers.
#[derive(Debug, Default)]
pub(crate) struct Patched {
    /// Weight changes, in the order of the patches.
    pub(crate) overlays: Vec<Overlay>,
    /// Text that goes before every prompt, where a patch is a prompt.
    pub(crate) prefix: Option<String>,
}

impl Patched {
    /// Reads and verifies patch files, in order, and checks that they were made for this model.
    pub(crate) fn load(paths: &[PathBuf], model: &Model) -> anyhow::Result<Self> {
        let patches = paths.iter().map(|p| Patch::load(p)).collect::<Result<Vec<_>, _>>()?;
        Self::new(&patches, model)
    }

    /// Puts patches in force, in order.
    pub(crate) fn new(patches: &[Patch], model: &Model) -> anyhow::Result<Self> {
        let overlays = patches.iter().map(|p| p.overlay(model)).collect::<Result<Vec<_>, _>>()?;
        let prefix: String = patches.iter().filter_map(|p| p.prefix.as_deref()).collect();
        Ok(Self { overlays, prefix: (!prefix.is_empty()).then_some(prefix) })
    }

    /// The weight changes, as passes take them.
    pub(crate) fn overlays(&self) -> Vec<&Overlay> {
        self.overlays.iter().collect()
    }

    /// A prompt with the text that goes before it.
    pub(crate) fn prompt(&self, text: &str) -> String {
        format!("{}{text}", self.prefix.as_deref().unwrap_or_default())
    }
}
