//! Where a convention of names keeps a weight, whether or not a checkpoint that has it is open.

use super::matrix::Packing;
use super::names::{self, Container};
use crate::architecture::{Architecture, Family, Role};

/// Where checkpoints of a family keep a weight matrix: in which module, and in which of its rows.
/// Several weights share a module where it is fused.
#[derive(Debug, Clone)]
pub struct Place {
    /// The module's names, the usual one first; the others are those of checkpoints with another
    /// prefix, or none. Its weight is the tensor with `.weight` behind that name.
    pub names: Vec<String>,
    /// Whether the tensor is stored as `[in, out]`.
    pub transposed: bool,
    /// Columns of the weight, and of the module.
    pub inn: usize,
    packing: Packing,
}

/// What GGUF metadata calls a family: its `general.architecture`.
pub fn gguf_architecture(family: Family) -> &'static str {
    names::GGUF_ARCHITECTURES.iter().find(|(_, f)| *f == family).map_or("", |(name, _)| name)
}

impl Place {
    /// The place of a role's weight; `layer` is ignored for roles outside layers. `None` where the
    /// family has no such weight, or it is a vector.
    pub fn of(a: &Architecture, container: Container, role: Role, layer: usize) -> Option<Self> {
        let naming = names::naming(a.family, container);
        let spec = naming.specs.iter().find(|s| s.role == role)?;
        let (out, Some(inn)) = names::shape(a, role) else { return None };
        let mut modules: Vec<String> = match role {
            Role::Head => naming.heads.iter().map(|&head| head.to_owned()).collect(),
            _ => naming.prefixes.iter().map(|prefix| naming.module(prefix, "", spec, layer)).collect(),
        };
        modules.dedup();
        Some(Self {
            names: modules,
            transposed: spec.transposed,
            inn,
            packing: Packing::new(spec.rows, out, a),
        })
    }

    /// Rows of the module's weight, as `[out, in]`.
    pub fn rows(&self) -> usize {
        self.packing.stored_rows()
    }

    /// The module's row that holds row `row` of the weight.
    pub fn row(&self, row: usize) -> usize {
        self.packing.stored_row(row)
    }
}
