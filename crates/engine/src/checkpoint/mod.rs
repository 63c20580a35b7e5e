//! Reading checkpoints: GGUF and safetensors, memory-mapped and validated.

use std::borrow::Cow;
use std::path::Path;

use crate::architecture::{Architecture, Part, Role};
use crate::error::Result;

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the formats' own")]
#[allow(non_camel_case_types)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl Dtype {
    /// Elements per block (1 for plain types).
    pub fn block_len(self) -> usize {
        unimplemented!()
    }
    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        unimplemented!()
    }
    /// Decodes whole blocks. `out.len()` must be `bytes.len() / block_bytes · block_len`.
    pub fn decode(self, _bytes: &[u8], _out: &mut [f32]) {
        unimplemented!()
    }
}

/// A weight matrix as the engine sees it: always `[out, in]`, row-major, in the checkpoint's own
/// number format. Borrowed from the map where the file stores it so, owned where it had to be
/// transposed, split or permuted.
#[derive(Debug, Clone)]
pub struct Matrix<'a> {
    /// Rows.
    pub out: usize,
    /// Columns; a multiple of `dtype.block_len()`.
    pub inn: usize,
    /// Number format.
    pub dtype: Dtype,
    /// `out · inn / block_len · block_bytes` bytes.
    pub bytes: Cow<'a, [u8]>,
}

/// An opened checkpoint: a `.gguf` file, a `.safetensors` file, or a directory.
pub struct Checkpoint {}

impl Checkpoint {
    /// Opens, maps and validates.
    pub fn open(_path: &Path) -> Result<Self> {
        unimplemented!()
    }
    /// The declared architecture.
    pub fn architecture(&self) -> &Architecture {
        unimplemented!()
    }
    /// A weight matrix in canonical form; `layer` is ignored for roles outside layers.
    /// `Ok(None)` where the family has no such weight, or an optional one is absent.
    pub fn matrix(&self, _role: Role, _layer: usize) -> Result<Option<Matrix<'_>>> {
        unimplemented!()
    }
    /// A vector (norm scale or any bias) in canonical form: Gemma's `1 + w` already added.
    pub fn vector(&self, _role: Role, _part: Part, _layer: usize) -> Result<Option<Vec<f32>>> {
        unimplemented!()
    }
}
