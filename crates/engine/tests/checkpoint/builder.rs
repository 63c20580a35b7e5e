//! Builds small GGUF and safetensors files, byte by byte, right and wrong.

use std::path::Path;

use serde_json::{Map, Value, json};

/// Distinct values, exact in every plain format: `salt` tells tensors apart.
pub(crate) fn values(n: usize, salt: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37 + salt * 101) % 251) as f32 / 64.0 - 1.5).collect()
}

pub(crate) fn le(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub(crate) fn bf16(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect()
}

pub(crate) fn string(s: &str) -> Vec<u8> {
    let mut out = (s.len() as u64).to_le_bytes().to_vec();
    out.extend(s.as_bytes());
    out
}

pub(crate) struct Tensor {
    pub(crate) name: String,
    /// Innermost first, as in the file.
    pub(crate) dims: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) bytes: Vec<u8>,
    /// Instead of the place that it is given.
    pub(crate) offset: Option<u64>,
}

/// A GGUF file in the making.
pub(crate) struct GgufBuilder {
    pub(crate) version: u32,
    pub(crate) alignment: usize,
    pub(crate) metadata: Vec<Vec<u8>>,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) tensor_count: Option<u64>,
    pub(crate) metadata_count: Option<u64>,
}

impl GgufBuilder {
    pub(crate) fn new() -> Self {
        Self {
            version: 3,
            alignment: 32,
            metadata: vec![],
            tensors: vec![],
            tensor_count: None,
            metadata_count: None,
        }
    }

    pub(crate) fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        let mut entry = string(key);
        entry.extend(kind.to_le_bytes());
        entry.extend(value);
        self.metadata.push(entry);
        self
    }

    pub(crate) fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub(crate) fn str(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, &string(value))
    }

    /// An F32 tensor; shape outermost first.
    pub(crate) fn tensor(self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
        let dims = shape.iter().rev().map(|&d| d as u64).collect();
        self.with(Tensor { name: name.into(), dims, kind: 0, bytes: le(values), offset: None })
    }

    pub(crate) fn with(mut self, tensor: Tensor) -> Self {
        self.tensors.push(tensor);
        self
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.metadata_count.unwrap_or(self.metadata.len() as u64).to_le_bytes());
        for entry in &self.metadata {
            out.extend(entry);
        }
        let mut data: Vec<u8> = Vec::new();
        for t in &self.tensors {
            data.resize(data.len().next_multiple_of(self.alignment), 0);
            out.extend(string(&t.name));
            out.extend((t.dims.len() as u32).to_le_bytes());
            for d in &t.dims {
                out.extend(d.to_le_bytes());
            }
            out.extend(t.kind.to_le_bytes());
            out.extend(t.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&t.bytes);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(data);
        out
    }
}

/// The bytes of a safetensors file: name, format, shape, bytes.
pub(crate) fn safetensors(tensors: &[(String, &str, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
    let mut header = Map::new();
    let mut data: Vec<u8> = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend(bytes);
        header.insert(
            name.clone(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]}),
        );
    }
    let mut out = raw_safetensors(&Value::Object(header).to_string());
    out.extend(data);
    out
}

/// A length and a header, without data.
pub(crate) fn raw_safetensors(header: &str) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out
}

/// Writes `config.json` and `model.safetensors`.
pub(crate) fn write_model(directory: &Path, config: &Value, weights: &[u8]) {
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    std::fs::write(directory.join("model.safetensors"), weights).unwrap();
}
