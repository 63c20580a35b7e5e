//! The patches of a command line, ready to be laid over the model.

use std::path::PathBuf;

use mutandis::engine::{Error, Model, Overlay};

/// What patches amount to when a model answers.
#[derive(Debug, Default)]
pub(crate) struct Patched {
    /// Weight changes, in the order of the patches.
    pub(crate) overlays: Vec<Overlay>,
    /// Text that goes before every prompt, where a patch is a prompt.
    pub(crate) prefix: Option<String>,
}

impl Patched {
    /// Reads the patches and checks that they were made for this model.
    pub(crate) fn load(paths: &[PathBuf], _model: &Model) -> anyhow::Result<Self> {
        match paths.first() {
            None => Ok(Self::default()),
            Some(path) => {
                Err(Error::input(format!("cannot read `{}`: patches are not read yet", path.display()))
                    .into())
            }
        }
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
