//! The GGUF container, versions 2 and 3: header, metadata, tensor table.
//!
//! A file is not trusted: every count and length is checked against the bytes that are left
//! before anything is allocated for it.

mod write;

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::dtype::Dtype;
use crate::error::{Error, Result};
pub use write::GgufWriter;

/// A parsed GGUF header: everything but the tensors' bytes.
#[derive(Debug, Clone)]
pub struct Gguf {
    path: PathBuf,
    version: u32,
    alignment: usize,
    data_offset: usize,
    metadata: Vec<(String, Value)>,
    /// Where the entries of the metadata lie in the file.
    metadata_range: Range<usize>,
    keys: HashMap<String, usize>,
    tensors: Vec<GgufTensor>,
}

/// One line of the tensor table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Name.
    pub name: String,
    /// Number format.
    pub dtype: Dtype,
    /// Shape, outermost dimension first (the file stores it the other way round).
    pub shape: Vec<usize>,
    /// Its bytes, counted from the start of the file.
    pub range: Range<usize>,
}

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the names are the types' own")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Str(String),
    Array(Array),
}

/// A metadata array: all elements have one type.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the names are the types' own")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    Str(Vec<String>),
    Nested(Vec<Array>),
}

/// Arrays of arrays deeper than this are refused: none are known, and each level costs a stack
/// frame.
const MAX_NESTING: usize = 8;
const MAX_DIMENSIONS: u32 = 4;

/// ggml's numbers of the formats that are read and written.
const KINDS: [(u32, Dtype); 13] = [
    (0, Dtype::F32),
    (1, Dtype::F16),
    (2, Dtype::Q4_0),
    (3, Dtype::Q4_1),
    (6, Dtype::Q5_0),
    (7, Dtype::Q5_1),
    (8, Dtype::Q8_0),
    (10, Dtype::Q2_K),
    (11, Dtype::Q3_K),
    (12, Dtype::Q4_K),
    (13, Dtype::Q5_K),
    (14, Dtype::Q6_K),
    (30, Dtype::Bf16),
];
const MAX_ALIGNMENT: u64 = 1 << 16;

impl Gguf {
    /// Parses the header of a whole GGUF file; `path` is only for messages.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a file that breaks the format, [`Error::Unsupported`] for versions,
    /// byte orders and number formats that are not read.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let mut r = Reader { bytes, at: 0, path };
        let magic = r.take(4, "the magic")?;
        if magic != b"GGUF" {
            return Err(r.corrupt(format!("expected the magic `GGUF`, found `{}`", magic.escape_ascii())));
        }
        let version = r.u32("the version")?;
        match version {
            2 | 3 => {}
            _ if version.swap_bytes() <= 3 && version != 0 => {
                return Err(Error::Unsupported {
                    what: format!("`{}`: big-endian GGUF", path.display()),
                    known: Some("little-endian GGUF, versions 2 and 3".into()),
                });
            }
            _ => {
                return Err(Error::Unsupported {
                    what: format!("`{}`: GGUF version {version}", path.display()),
                    known: Some("2, 3".into()),
                });
            }
        }
        // A tensor's line takes at least a name's length, a count, one dimension, a type and an
        // offset; a metadata entry a key's length, a type and one byte.
        let tensor_count = r.count("tensors", 32)?;
        let metadata_count = r.count("metadata entries", 13)?;

        let mut metadata = Vec::new();
        let metadata_start = r.at;
        let mut keys = HashMap::new();
        for i in 0..metadata_count {
            let key = r.string(&format!("the key of metadata entry {i}"))?;
            let kind = r.u32(&format!("the type of `{key}`"))?;
            let value = r.value(kind, &key)?;
            if keys.insert(key.clone(), metadata.len()).is_some() {
                return Err(r.corrupt(format!("metadata key `{key}` is present twice")));
            }
            metadata.push((key, value));
        }
        let mut gguf = Self {
            path: path.to_owned(),
            version,
            alignment: 32,
            data_offset: 0,
            metadata,
            metadata_range: metadata_start..r.at,
            keys,
            tensors: Vec::new(),
        };
        if let Some(alignment) = gguf.u64("general.alignment")? {
            if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
                return Err(r.corrupt(format!(
                    "`general.alignment` is {alignment}, expected a power of two up to {MAX_ALIGNMENT}"
                )));
            }
            gguf.alignment = alignment as usize;
        }
        let mut seen = HashMap::new();
        for i in 0..tensor_count {
            let tensor = r.tensor(i)?;
            if seen.insert(tensor.name.clone(), i).is_some() {
                return Err(r.corrupt(format!("tensor `{}` is present twice", tensor.name)));
            }
            gguf.tensors.push(tensor);
        }
        gguf.data_offset = r.at.next_multiple_of(gguf.alignment);
        gguf.place(&r)?;
        Ok(gguf)
    }

    /// Turns the offsets of the table, which count from the data section, into places in the file.
    fn place(&mut self, r: &Reader<'_>) -> Result<()> {
        for t in &mut self.tensors {
            let name = &t.name;
            if !t.range.start.is_multiple_of(self.alignment) {
                let what = format!(
                    "tensor `{name}` begins at offset {}, not a multiple of {}",
                    t.range.start, self.alignment
                );
                return Err(r.corrupt(what));
            }
            let (start, end) =
                (t.range.start.checked_add(self.data_offset), t.range.end.checked_add(self.data_offset));
            match (start, end) {
                (Some(start), Some(end)) if end <= r.bytes.len() => t.range = start..end,
                _ => {
                    return Err(r.corrupt(format!(
                        "tensor `{name}` needs {} bytes at offset {}, but the file ends at {}",
                        t.range.len(),
                        t.range.start.saturating_add(self.data_offset),
                        r.bytes.len()
                    )));
                }
            }
        }
        let mut order: Vec<&GgufTensor> = self.tensors.iter().collect();
        order.sort_by_key(|t| t.range.start);
        match order.windows(2).find(|pair| pair[0].range.end > pair[1].range.start) {
            Some(pair) => {
                Err(r.corrupt(format!("tensors `{}` and `{}` overlap", pair[0].name, pair[1].name)))
            }
            None => Ok(()),
        }
    }

    /// Format version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Alignment of every tensor, in bytes.
    pub fn alignment(&self) -> usize {
        self.alignment
    }

    /// Where the tensors' bytes begin in the file.
    pub fn data_offset(&self) -> usize {
        self.data_offset
    }

    /// The tensor table, in file order.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// Metadata, in file order.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.metadata.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).map(|&i| &self.metadata[i].1)
    }

    /// A string. `Ok(None)` where the key is absent; as with all typed getters, another type is
    /// [`Error::Corrupt`].
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |v| match v {
            Value::Str(s) => Some(s.as_str()),
            _ => None,
        })
    }

    /// An integer of any width, not negative.
    pub fn u64(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a non-negative integer", Value::as_u64)
    }

    /// An integer of any width that fits `u32`.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "an integer below 2^32", |v| v.as_u64().and_then(|v| v.try_into().ok()))
    }

    /// A floating-point number of either width, rounded to `f32`.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a floating-point number", |v| match v {
            Value::F32(x) => Some(*x),
            Value::F64(x) => Some(*x as f32),
            _ => None,
        })
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a boolean", |v| match v {
            Value::Bool(x) => Some(*x),
            _ => None,
        })
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>> {
        self.typed(key, "an array of strings", |v| match v {
            Value::Array(Array::Str(x)) => Some(x.as_slice()),
            _ => None,
        })
    }

    /// An array of floating-point numbers.
    pub fn f32s(&self, key: &str) -> Result<Option<Cow<'_, [f32]>>> {
        self.typed(key, "an array of floating-point numbers", |v| match v {
            Value::Array(Array::F32(x)) => Some(Cow::Borrowed(x.as_slice())),
            Value::Array(Array::F64(x)) => Some(x.iter().map(|&x| x as f32).collect()),
            _ => None,
        })
    }

    /// An array of integers of any width that all fit `i32`.
    pub fn i32s(&self, key: &str) -> Result<Option<Cow<'_, [i32]>>> {
        self.typed(key, "an array of 32-bit integers", |v| match v {
            Value::Array(Array::I32(x)) => Some(Cow::Borrowed(x.as_slice())),
            Value::Array(Array::U8(x)) => Some(x.iter().map(|&x| x.into()).collect()),
            Value::Array(Array::I8(x)) => Some(x.iter().map(|&x| x.into()).collect()),
            Value::Array(Array::U16(x)) => Some(x.iter().map(|&x| x.into()).collect()),
            Value::Array(Array::I16(x)) => Some(x.iter().map(|&x| x.into()).collect()),
            Value::Array(Array::U32(x)) => narrow(x),
            Value::Array(Array::U64(x)) => narrow(x),
            Value::Array(Array::I64(x)) => narrow(x),
            _ => None,
        })
    }

    /// An error that blames this file.
    pub(super) fn corrupt(&self, what: String) -> Error {
        Error::Corrupt { path: self.path.clone(), format: "GGUF", what }
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match read(value) {
            Some(v) => Ok(Some(v)),
            None => {
                Err(self.corrupt(format!("metadata `{key}` is {}, expected {expected}", value.describe())))
            }
        }
    }
}

fn narrow<'a, T: Copy>(values: &[T]) -> Option<Cow<'a, [i32]>>
where
    i32: TryFrom<T>,
{
    values.iter().map(|&x| i32::try_from(x).ok()).collect()
}

impl Value {
    /// The value as a non-negative integer, whatever its width.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(x) => Some(x.into()),
            Self::U16(x) => Some(x.into()),
            Self::U32(x) => Some(x.into()),
            Self::U64(x) => Some(x),
            Self::I8(x) => x.try_into().ok(),
            Self::I16(x) => x.try_into().ok(),
            Self::I32(x) => x.try_into().ok(),
            Self::I64(x) => x.try_into().ok(),
            _ => None,
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Str(_) => "a string".into(),
            Self::Array(_) => "an array".into(),
            other => format!("{other:?}"),
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    path: &'a Path,
}

impl<'a> Reader<'a> {
    fn corrupt(&self, what: String) -> Error {
        Error::Corrupt { path: self.path.to_owned(), format: "GGUF", what }
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        if n > self.left() {
            return Err(self.corrupt(format!(
                "the file ends inside {what}: {n} bytes expected at {}, {} left",
                self.at,
                self.left()
            )));
        }
        let out = &self.bytes[self.at..self.at + n];
        self.at += n;
        Ok(out)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of things that take at least `least` bytes each.
    fn count(&mut self, what: &str, least: usize) -> Result<usize> {
        let n = self.u64(&format!("the number of {what}"))?;
        let fits = self.left() / least;
        match usize::try_from(n) {
            Ok(n) if n <= fits => Ok(n),
            _ => Err(self
                .corrupt(format!("it declares {n} {what}, but at most {fits} fit the bytes that are left"))),
        }
    }

    fn string(&mut self, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let bytes = self.take(length, what)?;
        match std::str::from_utf8(bytes) {
            Ok(s) => Ok(s.to_owned()),
            Err(e) => Err(self.corrupt(format!("{what} is not UTF-8: {e}"))),
        }
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<Value> {
        Ok(match kind {
            0 => Value::U8(self.array::<1>(key)?[0]),
            1 => Value::I8(i8::from_le_bytes(self.array(key)?)),
            2 => Value::U16(u16::from_le_bytes(self.array(key)?)),
            3 => Value::I16(i16::from_le_bytes(self.array(key)?)),
            4 => Value::U32(self.u32(key)?),
            5 => Value::I32(i32::from_le_bytes(self.array(key)?)),
            6 => Value::F32(f32::from_le_bytes(self.array(key)?)),
            7 => match self.array::<1>(key)?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                x => {
                    return Err(self.corrupt(format!("boolean `{key}` has the value {x}, expected 0 or 1")));
                }
            },
            8 => Value::Str(self.string(&format!("`{key}`"))?),
            9 => Value::Array(self.values(key, 1)?),
            10 => Value::U64(self.u64(key)?),
            11 => Value::I64(i64::from_le_bytes(self.array(key)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(key)?)),
            _ => return Err(self.corrupt(format!("metadata `{key}` has the unknown type {kind}"))),
        })
    }

    fn values(&mut self, key: &str, depth: usize) -> Result<Array> {
        if depth > MAX_NESTING {
            return Err(self.corrupt(format!("metadata `{key}` nests arrays deeper than {MAX_NESTING}")));
        }
        let kind = self.u32(key)?;
        let what = format!("elements of `{key}`");
        Ok(match kind {
            0 => Array::U8(self.numbers(&what, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(&what, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(&what, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(&what, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(&what, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(&what, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(&what, f32::from_le_bytes)?),
            7 => Array::Bool(self.numbers(&what, |[b]: [u8; 1]| b != 0)?),
            8 => {
                let n = self.count(&what, 8)?;
                let mut out = Vec::with_capacity(n);
                for _ in 0..n {
                    out.push(self.string(&what)?);
                }
                Array::Str(out)
            }
            9 => {
                let n = self.count(&what, 12)?;
                let mut out = Vec::new();
                for _ in 0..n {
                    out.push(self.values(key, depth + 1)?);
                }
                Array::Nested(out)
            }
            10 => Array::U64(self.numbers(&what, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(&what, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(&what, f64::from_le_bytes)?),
            _ => {
                return Err(
                    self.corrupt(format!("metadata array `{key}` has the unknown element type {kind}"))
                );
            }
        })
    }

    fn numbers<T, const N: usize>(&mut self, what: &str, read: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        let n = self.count(what, N)?;
        let bytes = self.take(n * N, what)?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|b| read(*b)).collect())
    }

    /// One line of the table; its range still counts from the data section.
    fn tensor(&mut self, i: usize) -> Result<GgufTensor> {
        let name = self.string(&format!("the name of tensor {i}"))?;
        let what = format!("the description of tensor `{name}`");
        let dimensions = self.u32(&what)?;
        if dimensions == 0 || dimensions > MAX_DIMENSIONS {
            return Err(self.corrupt(format!(
                "tensor `{name}` has {dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}"
            )));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let n = self.u64(&what)?;
            match usize::try_from(n) {
                Ok(n) if n > 0 => shape.push(n),
                _ => return Err(self.corrupt(format!("tensor `{name}` has a dimension of {n}"))),
            }
        }
        let kind = self.u32(&what)?;
        let offset = self.u64(&what)?;
        let dtype = self.dtype(kind, &name)?;
        let Some(row) = dtype.row_bytes(shape[0]) else {
            return Err(self.corrupt(format!(
                "tensor `{name}` has rows of {} elements, not a multiple of the {} in a {} block",
                shape[0],
                dtype.block_len(),
                dtype.name()
            )));
        };
        let size = shape[1..].iter().try_fold(row, |n, &d| n.checked_mul(d));
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let end = size.and_then(|n| usize::try_from(offset).ok()?.checked_add(n));
        let (Some(end), Some(_)) = (end, elements) else {
            return Err(
                self.corrupt(format!("tensor `{name}` of shape {shape:?} at offset {offset} overflows"))
            );
        };
        shape.reverse();
        Ok(GgufTensor { name, dtype, shape, range: offset as usize..end })
    }

    fn dtype(&self, kind: u32, name: &str) -> Result<Dtype> {
        /// ggml's number formats that are known, and not decoded here.
        const OTHERS: [(u32, &str); 26] = [
            (9, "Q8_1"),
            (15, "Q8_K"),
            (16, "IQ2_XXS"),
            (17, "IQ2_XS"),
            (18, "IQ3_XXS"),
            (19, "IQ1_S"),
            (20, "IQ4_NL"),
            (21, "IQ3_S"),
            (22, "IQ2_S"),
            (23, "IQ4_XS"),
            (24, "I8"),
            (25, "I16"),
            (26, "I32"),
            (27, "I64"),
            (28, "F64"),
            (29, "IQ1_M"),
            (31, "Q4_0_4_4"),
            (32, "Q4_0_4_8"),
            (33, "Q4_0_8_8"),
            (34, "TQ1_0"),
            (35, "TQ2_0"),
            (36, "IQ4_NL_4_4"),
            (37, "IQ4_NL_4_8"),
            (38, "IQ4_NL_8_8"),
            (39, "MXFP4"),
            (40, "NVFP4"),
        ];
        if let Some((_, dtype)) = KINDS.iter().find(|(id, _)| *id == kind) {
            return Ok(*dtype);
        }
        Err(match OTHERS.iter().find(|(id, _)| *id == kind) {
            Some((_, format)) => Error::Unsupported {
                what: format!("tensor `{name}`: number format `{format}`"),
                known: Some(Dtype::ALL.map(Dtype::name).join(", ")),
            },
            None => self.corrupt(format!("tensor `{name}` has the unknown number format {kind}")),
        })
    }
}
