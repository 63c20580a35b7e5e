//! A checkpoint's file with some tensors replaced and everything else byte for byte.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use super::names::Container;
use super::{Checkpoint, Dtype, Gguf, GgufWriter, safetensors};
use crate::error::{Error, Result};

/// What comes in a tensor's place, in the same shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replacement {
    /// Number format.
    pub dtype: Dtype,
    /// All its bytes.
    pub bytes: Vec<u8>,
}

/// Replacements by the name of the tensor.
pub type Replacements = BTreeMap<String, Replacement>;

/// A file ready to be written; what is not replaced is read from the checkpoint's own.
#[derive(Debug)]
pub struct Rewritten<'a>(Form<'a>);

#[derive(Debug)]
enum Form<'a> {
    Gguf(GgufWriter<'a>),
    Safetensors { header: Vec<u8>, tensors: Vec<&'a [u8]> },
}

impl Rewritten<'_> {
    /// Writes the file, front to back.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        match &self.0 {
            Form::Gguf(writer) => writer.write(to),
            Form::Safetensors { header, tensors } => {
                to.write_all(header)?;
                tensors.iter().try_for_each(|bytes| to.write_all(bytes))
            }
        }
    }
}

impl Checkpoint {
    /// One of the checkpoint's files with those of its tensors replaced that are among `replaced`;
    /// metadata, names, shapes and order stay. `None` where it holds none of them.
    ///
    /// # Errors
    /// [`Error::Input`] where `path` is none of [`Checkpoint::files`], or a replacement has not as
    /// many bytes as it needs, or a format that the container does not have.
    pub fn rewritten<'a>(&'a self, path: &Path, replaced: &'a Replacements) -> Result<Option<Rewritten<'a>>> {
        let file = self.store.files.iter().position(|f| f.path == path);
        let file =
            file.ok_or_else(|| Error::input(format!("`{}` is no file of the model", path.display())))?;
        let slots: Vec<_> = self.store.slots.iter().filter(|s| s.file == file).collect();
        if !slots.iter().any(|s| replaced.contains_key(&s.name)) {
            return Ok(None);
        }
        let bytes = self.store.files[file].bytes();
        let form = match self.container {
            Container::Gguf => {
                let mut writer = GgufWriter::copy_of(&Gguf::parse(bytes, path)?, bytes);
                for slot in slots {
                    if let Some(new) = replaced.get(&slot.name) {
                        writer.replace(&slot.name, new.dtype, &new.bytes[..])?;
                    }
                }
                Form::Gguf(writer)
            }
            Container::Safetensors => {
                let header = safetensors::rewritten_header(bytes, path, &slots, replaced)?;
                let own = |name: &str| replaced.get(name).map(|new| new.bytes.as_slice());
                let tensors = slots.iter().map(|s| own(&s.name).unwrap_or(&bytes[s.range.clone()]));
                Form::Safetensors { header, tensors: tensors.collect() }
            }
        };
        Ok(Some(Rewritten(form)))
    }
}
