//! The patches of a command line, ready to be laid over the model.

use std::path::PathBuf;

use mutandis::edit::Patch;
use mutandis::edit::patch::chain;
use mutandis::engine::{Model, Overlay};

/// What patches amount to when a model answers.
#[derive(Debug, Default)]
pub(crate) struct Patched {
    /// The patches, in order.
    pub(crate) patches: Vec<Patch>,
    /// Weight changes, in the order of the patches.
    pub(crate) overlays: Vec<Overlay>,
    /// Text that goes before every prompt, where a patch is a prompt.
    pub(crate) prefix: Option<String>,
}

impl Patched {
    /// Reads and verifies patch files, in order, and checks that they were made for this model.
    pub(crate) fn load(paths: &[PathBuf], model: &Model) -> anyhow::Result<Self> {
        // All files are read before any is used: a damaged one is told before a foreign one.
        Self::of(paths.iter().map(|p| Patch::load(p)).collect::<Result<Vec<_>, _>>()?, model)
    }

    /// Patches in order, each checked that it was made for this model.
    pub(crate) fn of(patches: Vec<Patch>, model: &Model) -> anyhow::Result<Self> {
        let mut patched = Self::default();
        patches.into_iter().try_for_each(|patch| patched.push(patch, model))?;
        Ok(patched)
    }

    /// Puts one more patch in force, on top of the others.
    pub(crate) fn push(&mut self, patch: Patch, model: &Model) -> anyhow::Result<()> {
        self.overlays.push(patch.overlay(model)?);
        if let Some(prefix) = patch.prefix.as_deref().filter(|p| !p.is_empty()) {
            self.prefix.get_or_insert_default().push_str(prefix);
        }
        self.patches.push(patch);
        Ok(())
    }

    /// What an edit on top of these is computed under, as [`Patch::under`] has it.
    pub(crate) fn chain(&self) -> anyhow::Result<Option<String>> {
        let mut under: Option<String> = None;
        for patch in &self.patches {
            under = Some(chain(under.as_deref(), &patch.id()?));
        }
        Ok(under)
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
