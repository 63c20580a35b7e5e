//! Writing GGUF: new files, and copies of files with some tensors replaced.

use std::borrow::Cow;
use std::io::{self, Write};

use super::{Array, Dtype, Gguf, KINDS, Value};
use crate::error::{Error, Result};

/// A GGUF file to be written: metadata and tensors, in the order in which they are given.
///
/// Tensors' bytes may be borrowed from a mapped file, so that a copy costs no memory.
#[derive(Debug)]
pub struct GgufWriter<'a> {
    version: u32,
    alignment: usize,
    /// Entries one after another, as the file has them.
    metadata: Vec<u8>,
    metadata_count: u64,
    tensors: Vec<Entry<'a>>,
}

#[derive(Debug)]
struct Entry<'a> {
    name: String,
    dtype: Dtype,
    /// Outermost dimension first.
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

impl Default for GgufWriter<'_> {
    fn default() -> Self {
        Self { version: 3, alignment: 32, metadata: vec![], metadata_count: 0, tensors: vec![] }
    }
}

impl<'a> GgufWriter<'a> {
    /// An empty file of version 3, with tensors aligned to 32 bytes, the format's default.
    pub fn new() -> Self {
        Self::default()
    }

    /// A copy of a parsed file, whose `bytes` are given: metadata byte for byte.
    pub fn copy_of(gguf: &Gguf, bytes: &'a [u8]) -> Self {
        let entry = |t: &super::GgufTensor| Entry {
            name: t.name.clone(),
            dtype: t.dtype,
            shape: t.shape.clone(),
            bytes: Cow::Borrowed(&bytes[t.range.clone()]),
        };
        Self {
            version: gguf.version,
            alignment: gguf.alignment,
            metadata: bytes[gguf.metadata_range.clone()].to_vec(),
            metadata_count: gguf.metadata.len() as u64,
            tensors: gguf.tensors.iter().map(entry).collect(),
        }
    }

    /// Adds a metadata entry. A key must not be given twice.
    pub fn metadata(&mut self, key: &str, value: &Value) {
        put_str(&mut self.metadata, key);
        put_value(&mut self.metadata, value);
        self.metadata_count += 1;
    }

    /// Adds a tensor; `shape` has the outermost dimension first.
    ///
    /// # Errors
    /// [`Error::Input`] where there is one of that name, or the bytes are not as many as shape and
    /// number format need.
    pub fn tensor(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
        bytes: impl Into<Cow<'a, [u8]>>,
    ) -> Result<()> {
        if self.tensors.iter().any(|t| t.name == name) {
            return Err(Error::input(format!("tensor `{name}` is given twice")));
        }
        let entry = Entry { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes: bytes.into() };
        entry.check()?;
        self.tensors.push(entry);
        Ok(())
    }

    /// Puts other bytes in a tensor's place, in the same shape, perhaps in another number format.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`Error::Input`] where the bytes are not as many as needed.
    pub fn replace(&mut self, name: &str, dtype: Dtype, bytes: impl Into<Cow<'a, [u8]>>) -> Result<()> {
        let tensor = self.tensors.iter_mut().find(|t| t.name == name);
        let tensor = tensor.ok_or_else(|| Error::MissingTensor { name: name.to_owned() })?;
        (tensor.dtype, tensor.bytes) = (dtype, bytes.into());
        tensor.check()
    }

    /// Writes the file, front to back. Each tensor is padded to the alignment, the last one too, as
    /// llama.cpp expects.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        let mut header = b"GGUF".to_vec();
        header.extend(self.version.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend(self.metadata_count.to_le_bytes());
        header.extend(&self.metadata);
        let mut offset = 0u64;
        for t in &self.tensors {
            put_str(&mut header, &t.name);
            header.extend((t.shape.len() as u32).to_le_bytes());
            t.shape.iter().rev().for_each(|&n| header.extend((n as u64).to_le_bytes()));
            header.extend(kind_of(t.dtype).to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset += t.bytes.len().next_multiple_of(self.alignment) as u64;
        }
        self.padded(to, &header)?;
        self.tensors.iter().try_for_each(|t| self.padded(to, &t.bytes))
    }

    fn padded(&self, to: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
        to.write_all(bytes)?;
        to.write_all(&vec![0; bytes.len().next_multiple_of(self.alignment) - bytes.len()])
    }
}

impl Entry<'_> {
    fn check(&self) -> Result<()> {
        let (outer, row) = match self.shape.split_last() {
            Some((inner, outer)) => (outer, self.dtype.row_bytes(*inner)),
            None => (&[][..], None),
        };
        let expected = outer.iter().try_fold(row.unwrap_or(0), |n, &d| n.checked_mul(d));
        if row.is_some() && expected == Some(self.bytes.len()) {
            return Ok(());
        }
        Err(Error::input(format!(
            "tensor `{}` of shape {:?} cannot be {} bytes of {}",
            self.name,
            self.shape,
            self.bytes.len(),
            self.dtype.name()
        )))
    }
}

fn kind_of(dtype: Dtype) -> u32 {
    KINDS.iter().find(|(_, d)| *d == dtype).map_or(0, |(kind, _)| *kind)
}

fn put_str(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u64).to_le_bytes());
    to.extend(text.as_bytes());
}

fn put_value(to: &mut Vec<u8>, value: &Value) {
    let kind: u32 = match value {
        Value::U8(_) => 0,
        Value::I8(_) => 1,
        Value::U16(_) => 2,
        Value::I16(_) => 3,
        Value::U32(_) => 4,
        Value::I32(_) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::Str(_) => 8,
        Value::Array(_) => 9,
        Value::U64(_) => 10,
        Value::I64(_) => 11,
        Value::F64(_) => 12,
    };
    to.extend(kind.to_le_bytes());
    match value {
        Value::U8(x) => to.push(*x),
        Value::I8(x) => to.extend(x.to_le_bytes()),
        Value::U16(x) => to.extend(x.to_le_bytes()),
        Value::I16(x) => to.extend(x.to_le_bytes()),
        Value::U32(x) => to.extend(x.to_le_bytes()),
        Value::I32(x) => to.extend(x.to_le_bytes()),
        Value::F32(x) => to.extend(x.to_le_bytes()),
        Value::Bool(x) => to.push(u8::from(*x)),
        Value::Str(x) => put_str(to, x),
        Value::Array(x) => put_array(to, x),
        Value::U64(x) => to.extend(x.to_le_bytes()),
        Value::I64(x) => to.extend(x.to_le_bytes()),
        Value::F64(x) => to.extend(x.to_le_bytes()),
    }
}

fn put_array(to: &mut Vec<u8>, array: &Array) {
    match array {
        Array::U8(x) => elements(to, 0, x, |to, x| to.push(*x)),
        Array::I8(x) => elements(to, 1, x, |to, x| to.extend(x.to_le_bytes())),
        Array::U16(x) => elements(to, 2, x, |to, x| to.extend(x.to_le_bytes())),
        Array::I16(x) => elements(to, 3, x, |to, x| to.extend(x.to_le_bytes())),
        Array::U32(x) => elements(to, 4, x, |to, x| to.extend(x.to_le_bytes())),
        Array::I32(x) => elements(to, 5, x, |to, x| to.extend(x.to_le_bytes())),
        Array::F32(x) => elements(to, 6, x, |to, x| to.extend(x.to_le_bytes())),
        Array::Bool(x) => elements(to, 7, x, |to, x| to.push(u8::from(*x))),
        Array::Str(x) => elements(to, 8, x, |to, x| put_str(to, x)),
        Array::Nested(x) => elements(to, 9, x, put_array),
        Array::U64(x) => elements(to, 10, x, |to, x| to.extend(x.to_le_bytes())),
        Array::I64(x) => elements(to, 11, x, |to, x| to.extend(x.to_le_bytes())),
        Array::F64(x) => elements(to, 12, x, |to, x| to.extend(x.to_le_bytes())),
    }
}

fn elements<T>(to: &mut Vec<u8>, kind: u32, values: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    to.extend(kind.to_le_bytes());
    to.extend((values.len() as u64).to_le_bytes());
    values.iter().for_each(|x| put(to, x));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::*;

    fn written(writer: &GgufWriter<'_>) -> Vec<u8> {
        let mut bytes = vec![];
        writer.write(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_copy_of_every_fixture_is_the_fixture() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
        let mut seen = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "gguf") {
                let bytes = std::fs::read(&path).unwrap();
                let gguf = Gguf::parse(&bytes, &path).unwrap();
                assert!(written(&GgufWriter::copy_of(&gguf, &bytes)) == bytes, "{}", path.display());
                seen += 1;
            }
        }
        assert!(seen > 5, "{seen}");
    }

    #[test]
    fn every_kind_of_metadata_comes_back() {
        let values = [
            Value::U8(200),
            Value::I8(-3),
            Value::U16(60_000),
            Value::I16(-300),
            Value::U32(4_000_000_000),
            Value::I32(-70_000),
            Value::F32(0.1),
            Value::Bool(true),
            Value::Str("naïve".into()),
            Value::U64(1 << 40),
            Value::I64(-(1 << 40)),
            Value::F64(0.1),
            Value::Array(Array::U8(vec![1, 2])),
            Value::Array(Array::I8(vec![-1, 2])),
            Value::Array(Array::U16(vec![1, 60_000])),
            Value::Array(Array::I16(vec![-1, 300])),
            Value::Array(Array::U32(vec![1, 4_000_000_000])),
            Value::Array(Array::I32(vec![-1, 70_000])),
            Value::Array(Array::F32(vec![0.5, -0.1])),
            Value::Array(Array::Bool(vec![true, false])),
            Value::Array(Array::Str(vec!["a".into(), String::new()])),
            Value::Array(Array::U64(vec![1 << 40])),
            Value::Array(Array::I64(vec![-(1 << 40)])),
            Value::Array(Array::F64(vec![0.1])),
            Value::Array(Array::Nested(vec![Array::U8(vec![1]), Array::Str(vec!["b".into()])])),
        ];
        let mut writer = GgufWriter::new();
        for (i, value) in values.iter().enumerate() {
            writer.metadata(&format!("key.{i}"), value);
        }
        let bytes = written(&writer);
        let gguf = Gguf::parse(&bytes, Path::new("new.gguf")).unwrap();
        for (i, value) in values.iter().enumerate() {
            assert_eq!(gguf.get(&format!("key.{i}")), Some(value));
        }
    }

    #[test]
    fn tensors_come_back_aligned_and_can_change_their_format() {
        let (one, two): (Vec<u8>, Vec<u8>) = ((0..24).collect(), (100..168).collect());
        let mut writer = GgufWriter::new();
        writer.metadata("general.architecture", &Value::Str("llama".into()));
        writer.tensor("one", Dtype::F32, &[2, 3], &one[..]).unwrap();
        writer.tensor("two", Dtype::Q8_0, &[2, 32], &two[..]).unwrap();
        let bytes = written(&writer);
        let gguf = Gguf::parse(&bytes, Path::new("new.gguf")).unwrap();
        assert_eq!(gguf.tensors()[0].shape, [2, 3]);
        assert_eq!(bytes[gguf.tensors()[0].range.clone()], one);
        assert_eq!(bytes[gguf.tensors()[1].range.clone()], two);

        let mut copy = GgufWriter::copy_of(&gguf, &bytes);
        copy.replace("one", Dtype::F16, vec![7; 12]).unwrap();
        let changed = written(&copy);
        let gguf = Gguf::parse(&changed, Path::new("changed.gguf")).unwrap();
        assert_eq!(gguf.tensors()[0].dtype, Dtype::F16);
        assert_eq!(changed[gguf.tensors()[0].range.clone()], [7; 12]);
        assert_eq!(changed[gguf.tensors()[1].range.clone()], two);
        assert_eq!(gguf.str("general.architecture").unwrap(), Some("llama"));
    }

    #[test]
    fn bytes_that_do_not_fit_are_refused() {
        let mut writer = GgufWriter::new();
        let error = writer.tensor("one", Dtype::F32, &[2, 3], vec![0; 20]).unwrap_err().to_string();
        assert_eq!(error, "tensor `one` of shape [2, 3] cannot be 20 bytes of F32");
        let error = writer.tensor("one", Dtype::Q4_K, &[2, 32], vec![0; 36]).unwrap_err().to_string();
        assert_eq!(error, "tensor `one` of shape [2, 32] cannot be 36 bytes of Q4_K");
        writer.tensor("one", Dtype::F32, &[1], vec![0; 4]).unwrap();
        let error = writer.tensor("one", Dtype::F32, &[1], vec![0; 4]).unwrap_err().to_string();
        assert_eq!(error, "tensor `one` is given twice");
        assert!(matches!(writer.replace("two", Dtype::F32, vec![]), Err(Error::MissingTensor { .. })));
    }
}
