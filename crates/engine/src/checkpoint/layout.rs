//! Where a weight's numbers lie in the tensor that stores them: the way back from the canonical
//! form into a file.

use super::Checkpoint;
use super::matrix::Packing;
use super::names;
use crate::architecture::{Part, Role};
use crate::error::Result;

/// The place of a weight matrix `[out, in]` in its tensor.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Name of the tensor; fused ones hold several weights.
    pub tensor: String,
    pub(super) packing: Packing,
    pub(super) inn: usize,
    pub(super) transposed: bool,
}

impl Layout {
    /// Adds a change of the weight, `[out, in]`, to the tensor, in the order in which it is stored.
    ///
    /// # Panics
    /// Where either has not as many numbers as the checkpoint declares.
    pub fn add(&self, change: &[f32], tensor: &mut [f32]) {
        for (row, change) in change.chunks_exact(self.inn).enumerate() {
            for (column, x) in change.iter().enumerate() {
                tensor[self.place(row, column)] += x;
            }
        }
    }

    /// The weight, `[out, in]`, out of the tensor.
    ///
    /// # Panics
    /// As [`Self::add`].
    pub fn pick(&self, tensor: &[f32]) -> Vec<f32> {
        let rows = 0..self.packing.out;
        rows.flat_map(|row| (0..self.inn).map(move |column| tensor[self.place(row, column)])).collect()
    }

    /// Whether the tensor's rows are rows of the weight, and not its columns.
    pub fn by_rows(&self) -> bool {
        !self.transposed
    }

    fn place(&self, row: usize, column: usize) -> usize {
        let row = self.packing.stored_row(row);
        if self.transposed { column * self.packing.stored_rows() + row } else { row * self.inn + column }
    }
}

impl Checkpoint {
    /// Where a weight matrix is stored; `layer` is ignored for roles outside layers. `Ok(None)` as
    /// for [`Checkpoint::matrix`], which decodes to what [`Layout::pick`] picks. The head of a tied
    /// model is its embedding.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for a layer that the model does not have.
    pub fn layout(&self, role: Role, layer: usize) -> Result<Option<Layout>> {
        let role = self.resolve(role);
        let (out, Some(inn)) = names::shape(self.architecture(), role) else {
            return Ok(None);
        };
        let Some(spec) = self.spec(role) else {
            return Ok(None);
        };
        self.check_layer(role, layer)?;
        Ok(Some(Layout {
            tensor: self.name(spec, Part::Weight, layer),
            packing: self.packing(spec, out),
            inn,
            transposed: spec.transposed,
        }))
    }
}
