//! Files of numbers that say what they are: safetensors with one entry of metadata, which names a
//! version, a checksum of all numbers and what else the kind of file has to say.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::atomic;
use crate::error::{Error, Result};

/// Longest header that is looked into, in bytes.
const HEADER_LIMIT: u64 = 1 << 20;

/// A kind of file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    /// Key of the metadata's entry.
    pub(crate) entry: &'static str,
    /// Version of its layout.
    pub(crate) format: u32,
    /// Its name in errors.
    pub(crate) what: &'static str,
}

#[derive(Serialize, Deserialize)]
struct Header<T> {
    format: u32,
    /// blake3 of all tensors' bytes, in the order of their names.
    checksum: String,
    #[serde(flatten)]
    body: T,
}

/// A tensor to be written: name, kind of number, shape, bytes.
pub(crate) type Tensor<'a> = (String, Dtype, Vec<usize>, &'a [u8]);

/// A file whose checksum holds.
pub(crate) struct Checked<'a, T> {
    kind: Kind,
    path: &'a Path,
    bytes: Vec<u8>,
    /// What its header says.
    pub(crate) body: T,
}

impl Kind {
    /// Writes a file, replacing it whole or not at all; `tensors` in the order of their names.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub(crate) fn write<T: Serialize>(self, path: &Path, body: T, tensors: Vec<Tensor<'_>>) -> Result<()> {
        let mut hasher = blake3::Hasher::new();
        for (_, _, _, bytes) in &tensors {
            hasher.update_rayon(bytes);
        }
        let header = Header { format: self.format, checksum: hasher.finalize().to_hex().to_string(), body };
        let json = serde_json::to_string(&header).map_err(|e| self.corrupt(path, e.to_string()))?;
        let views: Vec<(String, TensorView<'_>)> = tensors
            .into_iter()
            .map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(dtype, shape, bytes)?)))
            .collect::<Result<_, safetensors::SafeTensorError>>()
            .map_err(|e| self.corrupt(path, e.to_string()))?;
        let whole = safetensors::serialize(views, Some(HashMap::from([(self.entry.to_owned(), json)])))
            .map_err(|e| self.corrupt(path, e.to_string()))?;
        let folder = atomic::folder_of(path);
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        atomic::write(path, |file| std::io::Write::write_all(file, &whole)).map_err(Error::io("write", path))
    }

    /// Reads a file of this kind.
    ///
    /// # Errors
    /// Where it cannot be read, is of another kind or version, or is damaged.
    pub(crate) fn read<T: DeserializeOwned>(self, path: &Path) -> Result<Checked<'_, T>> {
        let corrupt = |e: &dyn std::fmt::Display| self.corrupt(path, e.to_string());
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| corrupt(&e))?;
        let json = metadata.metadata().as_ref().and_then(|m| m.get(self.entry));
        let json = json.ok_or_else(|| self.corrupt(path, format!("its metadata has no `{}`", self.entry)))?;
        let value: serde_json::Value = serde_json::from_str(json).map_err(|e| corrupt(&e))?;
        if value.get("format").and_then(serde_json::Value::as_u64) != Some(u64::from(self.format)) {
            return Err(self.corrupt(path, format!("its format is not {}", self.format)));
        }
        let header: Header<T> = serde_json::from_value(value).map_err(|e| corrupt(&e))?;
        let mut hasher = blake3::Hasher::new();
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| corrupt(&e))?;
        let mut names = tensors.names();
        names.sort_unstable();
        for name in names {
            let view = tensors.tensor(name).map_err(|e| corrupt(&e))?;
            hasher.update_rayon(view.data());
        }
        if hasher.finalize().to_hex().as_str() != header.checksum {
            return Err(self.corrupt(path, "its numbers do not have the checksum that it names"));
        }
        drop(tensors);
        Ok(Checked { kind: self, path, bytes, body: header.body })
    }

    /// What the header of a file of this kind says, unverified; nothing where it is of another kind
    /// or version, or cannot be read.
    pub(crate) fn peek<T: DeserializeOwned>(self, path: &Path) -> Option<T> {
        let mut file = std::fs::File::open(path).ok()?;
        let (mut length, mut bytes) = ([0; 8], vec![]);
        file.read_exact(&mut length).ok()?;
        file.take(u64::from_le_bytes(length).min(HEADER_LIMIT)).read_to_end(&mut bytes).ok()?;
        // The crate reads no header without all that follows it.
        let header: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
        let json = header.get("__metadata__")?.get(self.entry)?.as_str()?;
        let header: Header<T> = serde_json::from_str(json).ok()?;
        (header.format == self.format).then_some(header.body)
    }

    /// That a file of this kind is not what it should be.
    pub(crate) fn corrupt(self, path: &Path, why: impl Into<String>) -> Error {
        Error::Corrupt { path: path.to_owned(), what: self.what, why: why.into() }
    }
}

impl<T> Checked<'_, T> {
    /// The numbers of a tensor.
    ///
    /// # Errors
    /// Where there is no such tensor, or it holds other numbers.
    pub(crate) fn numbers<N: bytemuck::Pod>(&self, name: &str, dtype: Dtype) -> Result<Vec<N>> {
        let tensors = SafeTensors::deserialize(&self.bytes).map_err(|e| self.corrupt(e.to_string()))?;
        let view = tensors.tensor(name).map_err(|e| self.corrupt(e.to_string()))?;
        if view.dtype() != dtype {
            return Err(self.corrupt(format!("tensor `{name}` is {:?}, expected {dtype:?}", view.dtype())));
        }
        // The file's bytes need not be aligned.
        let mut numbers = vec![N::zeroed(); view.data().len() / size_of::<N>()];
        bytemuck::cast_slice_mut(&mut numbers).copy_from_slice(view.data());
        Ok(numbers)
    }

    /// That the file is not what it should be.
    pub(crate) fn corrupt(&self, why: impl Into<String>) -> Error {
        self.kind.corrupt(self.path, why)
    }
}
