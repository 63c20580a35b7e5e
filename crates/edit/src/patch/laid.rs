//! Patches laid over a model, one on top of another.

use mutandis_engine::{Model, Overlay};

use super::{Patch, Stack};
use crate::error::Result;

/// So many patches are laid over a model one by one; of more the sum is.
const FEW: usize = 16;

/// A list of patches as passes take them. What it gives depends on the list alone, bit for bit, and
/// not on how it came about: one overlay each for a few, their sum for more.
#[derive(Debug, Default)]
pub struct Laid {
    overlays: Vec<Overlay>,
    sum: Stack,
    /// Patches that are in the overlays.
    laid: usize,
    /// Patches that are in the sum.
    summed: usize,
}

impl Laid {
    /// Brings it to a list of patches that begins with those of the list before.
    ///
    /// # Errors
    /// Where a patch belongs to another base.
    pub fn lay(&mut self, model: &Model, patches: &[Patch]) -> Result<()> {
        if patches.len() == self.laid {
            return Ok(());
        }
        if patches.len() <= FEW {
            for patch in patches.iter().skip(self.laid) {
                self.overlays.push(patch.overlay(model)?);
            }
        } else {
            for patch in patches.iter().skip(self.summed) {
                self.sum.push(model, patch)?;
            }
            self.summed = patches.len();
            self.overlays = vec![self.sum.overlay()?];
        }
        self.laid = patches.len();
        Ok(())
    }

    /// The changes, as passes take them.
    pub fn overlays(&self) -> Vec<&Overlay> {
        self.overlays.iter().collect()
    }
}

impl From<Overlay> for Laid {
    /// A change that no list of patches stands for; nothing is laid on top of it.
    fn from(change: Overlay) -> Self {
        Self { overlays: vec![change], ..Self::default() }
    }
}
