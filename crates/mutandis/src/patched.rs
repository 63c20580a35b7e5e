//! The patches of a command line, ready to be laid over the model.

use std::path::PathBuf;

use mutandis::edit::patch::{Laid, chain};
use mutandis::edit::{Ledger, Patch};
use mutandis::engine::{Model, Overlay};

/// What patches amount to when a model answers.
#[derive(Debug, Default)]
pub(crate) struct Patched {
    /// The patches, in order.
    pub(crate) patches: Vec<Patch>,
    /// Their weight changes.
    laid: Laid,
    /// Text that goes before every prompt, where a patch is a prompt.
    pub(crate) prefix: Option<String>,
}

impl Patched {
    /// Reads and verifies patch files and ledgers, in order, and checks that they were made for this
    /// model.
    pub(crate) fn load(paths: &[PathBuf], model: &Model) -> anyhow::Result<Self> {
        Self::of(Self::read(paths, model)?, model)
    }

    /// The patches of files and ledgers, in order, read and verified but not laid over the model.
    pub(crate) fn read(paths: &[PathBuf], model: &Model) -> anyhow::Result<Vec<Patch>> {
        // All files are read before any is used: a damaged one is told before a foreign one.
        let mut patches = vec![];
        for path in paths {
            if path.is_dir() {
                patches.extend(Self::lowest(&Ledger::open(path)?, usize::MAX, model)?);
            } else {
                patches.push(Patch::load(path)?);
            }
        }
        Ok(patches)
    }

    /// The lowest patches of a ledger, read and verified.
    pub(crate) fn lowest(ledger: &Ledger, count: usize, model: &Model) -> anyhow::Result<Vec<Patch>> {
        ledger.check_model(model)?;
        Ok(ledger.stack().iter().take(count).map(|record| ledger.load(record)).collect::<Result<_, _>>()?)
    }

    /// Patches in order, each checked that it was made for this model.
    pub(crate) fn of(patches: Vec<Patch>, model: &Model) -> anyhow::Result<Self> {
        let mut patched = Self::default();
        patched.push(patches, model)?;
        Ok(patched)
    }

    /// A change of weights that is no patch, or not the whole of one.
    pub(crate) fn with(change: Overlay) -> Self {
        Self { laid: change.into(), ..Self::default() }
    }

    /// Puts more patches in force, on top of the others.
    pub(crate) fn push(&mut self, patches: Vec<Patch>, model: &Model) -> anyhow::Result<()> {
        for prefix in patches.iter().filter_map(|p| p.prefix.as_deref()).filter(|p| !p.is_empty()) {
            self.prefix.get_or_insert_default().push_str(prefix);
        }
        self.patches.extend(patches);
        Ok(self.laid.lay(model, &self.patches)?)
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
        self.laid.overlays()
    }

    /// A prompt with the text that goes before it.
    pub(crate) fn prompt(&self, text: &str) -> String {
        format!("{}{text}", self.prefix.as_deref().unwrap_or_default())
    }
}
