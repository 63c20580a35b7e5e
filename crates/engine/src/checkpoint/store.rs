//! Mapped files, and where in them each tensor lies: what both containers come down to.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::dtype::Dtype;
use crate::error::{Error, Result};

/// A tensor as it lies in its file.
#[derive(Debug, Clone)]
pub struct TensorView<'a> {
    /// Name in the checkpoint's own convention.
    pub name: &'a str,
    /// Number format.
    pub dtype: Dtype,
    /// Shape, outermost dimension first (GGUF files store it the other way round).
    pub shape: &'a [usize],
    /// The bytes, `product(shape) / block_len · block_bytes` of them.
    pub bytes: &'a [u8],
    /// The file that holds it.
    pub path: &'a Path,
    /// Where in the file the first byte lies.
    pub offset: usize,
}

/// The number format that a file declares for a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stored {
    /// One that can be decoded.
    Known(Dtype),
    /// One that cannot, by its name: an error only if the tensor is needed.
    Other(String),
}

/// One tensor's place.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) stored: Stored,
    pub(super) shape: Vec<usize>,
    /// Index into the store's files.
    pub(super) file: usize,
    pub(super) range: Range<usize>,
}

/// A file in memory.
#[derive(Debug)]
pub(super) struct Mapped {
    pub(super) path: PathBuf,
    /// `None` for an empty file, which cannot be mapped.
    map: Option<Mmap>,
}

impl Mapped {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let length = file.metadata().map_err(Error::io("read", path))?;
        if !length.is_file() {
            return Err(Error::input(format!("`{}` is not a regular file", path.display())));
        }
        let map = if length.len() == 0 {
            None
        } else {
            // SAFETY: the map is read-only and private to this process; as with every reader of
            // mapped files, another process that cuts the file short while it is open can stop us
            // with a signal, but cannot make us write anywhere.
            Some(unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?)
        };
        Ok(Self { path: path.to_owned(), map })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

/// All tensors of a checkpoint, over all its files, in file order.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) files: Vec<Mapped>,
    pub(super) slots: Vec<Slot>,
    index: HashMap<String, usize>,
}

impl Store {
    /// Joins the tensors of all files.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where two files hold a tensor of the same name.
    pub(super) fn new(files: Vec<Mapped>, slots: Vec<Slot>, format: &'static str) -> Result<Self> {
        let mut index = HashMap::with_capacity(slots.len());
        for (i, slot) in slots.iter().enumerate() {
            if index.insert(slot.name.clone(), i).is_some() {
                return Err(Error::Corrupt {
                    path: files[slot.file].path.clone(),
                    format,
                    what: format!("tensor `{}` is present twice", slot.name),
                });
            }
        }
        Ok(Self { files, slots, index })
    }

    pub(super) fn slot(&self, name: &str) -> Option<&Slot> {
        self.index.get(name).map(|&i| &self.slots[i])
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], or [`Error::Unsupported`] where its number format cannot be read.
    pub(super) fn view(&self, name: &str) -> Result<TensorView<'_>> {
        let slot = self.slot(name).ok_or_else(|| Error::MissingTensor { name: name.to_owned() })?;
        match &slot.stored {
            Stored::Known(dtype) => Ok(TensorView {
                name: &slot.name,
                dtype: *dtype,
                shape: &slot.shape,
                bytes: &self.files[slot.file].bytes()[slot.range.clone()],
                path: &self.files[slot.file].path,
                offset: slot.range.start,
            }),
            Stored::Other(format) => Err(Error::Unsupported {
                what: format!("tensor `{name}`: number format `{format}`"),
                known: Some(
                    "F32, F16, BF16 in safetensors; the same and Q4_0 to Q8_0, Q2_K to Q6_K in GGUF".into(),
                ),
            }),
        }
    }
}
