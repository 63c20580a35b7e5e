//! Moments and unfinished sums as files.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Moments;
use super::sums::Sums;
use crate::atomic;
use crate::error::{Error, Result};

/// Version of both forms of file, and of how keys are made: raised when either changes.
pub(super) const FORMAT: u32 = 1;

/// The key of the one entry of the metadata.
const ENTRY: &str = "mutandis.moments";

#[derive(Serialize, Deserialize)]
struct Header<T> {
    format: u32,
    /// blake3 of all tensors' bytes, in the order of their names.
    checksum: String,
    #[serde(flatten)]
    body: T,
}

/// What a moments file says besides the numbers.
#[derive(Serialize, Deserialize)]
struct Finished {
    base: String,
    layer: usize,
    f: usize,
    count: u64,
    error: f64,
    source: String,
}

/// What a file of unfinished sums says besides the numbers.
#[derive(Serialize, Deserialize)]
struct Unfinished {
    /// Identity of the whole measurement.
    key: String,
    /// Batches done.
    batches: usize,
    /// Keys seen, by half.
    counts: [u64; 2],
}

impl Moments {
    /// Writes the moments to a `.safetensors` file, replacing it whole or not at all.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let body = Finished {
            base: self.base.clone(),
            layer: self.layer,
            f: self.f,
            count: self.count,
            error: self.error,
            source: self.source.clone(),
        };
        let upper =
            ("upper".to_owned(), Dtype::F32, vec![self.upper.len()], bytemuck::cast_slice(&self.upper));
        write(path, body, vec![upper])
    }

    /// Reads a file written by [`Self::save`], and checks all that it says of itself.
    ///
    /// # Errors
    /// Where the file cannot be read, or is damaged.
    pub fn load(path: &Path) -> Result<Self> {
        let (bytes, body): (_, Finished) = read(path)?;
        let tensors = tensors(path, &bytes)?;
        let upper: Vec<f32> = numbers(path, &tensors, "upper", Dtype::F32)?;
        let expected = body.f.checked_mul(body.f + 1).map(|n| n / 2);
        if expected != Some(upper.len()) || body.f == 0 {
            return Err(corrupt(path, format!("{} numbers for keys of {}", upper.len(), body.f)));
        }
        if body.count == 0 || !upper.iter().all(|x| x.is_finite()) {
            return Err(corrupt(path, "it holds numbers that are not finite, or no keys"));
        }
        Ok(Self {
            base: body.base,
            layer: body.layer,
            f: body.f,
            count: body.count,
            upper,
            error: body.error,
            source: body.source,
            notes: vec![],
        })
    }
}

/// What a file of eigenvectors says besides the numbers.
#[derive(Serialize, Deserialize)]
struct Eigen {
    /// blake3 of the moments.
    of: String,
    f: usize,
}

/// Keeps all eigenvectors of moments, and their eigenvalues.
pub(in crate::primitives) fn save_eigen(
    path: &Path,
    of: &str,
    f: usize,
    basis: &[f64],
    values: &[f64],
) -> Result<()> {
    let tensors = vec![
        ("basis".to_owned(), Dtype::F64, vec![values.len(), f], bytemuck::cast_slice(basis)),
        ("values".to_owned(), Dtype::F64, vec![values.len()], bytemuck::cast_slice(values)),
    ];
    write(path, Eigen { of: of.to_owned(), f }, tensors)
}

/// Eigenvectors kept by [`save_eigen`] of the same moments: `(basis, values)`.
pub(in crate::primitives) fn load_eigen(path: &Path, of: &str, f: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let (bytes, kept): (_, Eigen) = read(path)?;
    if kept.of != of || kept.f != f {
        return Err(corrupt(path, "it is of other moments"));
    }
    let tensors = tensors(path, &bytes)?;
    Ok((numbers(path, &tensors, "basis", Dtype::F64)?, numbers(path, &tensors, "values", Dtype::F64)?))
}

/// Keeps the sums of a measurement that goes on: for each layer its two halves.
pub(super) fn save_partial(path: &Path, key: &str, batches: usize, sums: &[[Sums; 2]]) -> Result<()> {
    let uppers: Vec<(String, Vec<f64>)> = sums
        .iter()
        .enumerate()
        .flat_map(|(i, halves)| (0..2).map(move |h| (format!("{i:06}.{h}"), halves[h].upper())))
        .collect();
    let counts = sums.first().map_or([0, 0], |halves| [halves[0].count, halves[1].count]);
    let tensors = uppers
        .iter()
        .map(|(name, upper)| (name.clone(), Dtype::F64, vec![upper.len()], bytemuck::cast_slice(upper)))
        .collect();
    write(path, Unfinished { key: key.to_owned(), batches, counts }, tensors)
}

/// Sums kept by [`save_partial`] of the same measurement, with the number of batches in them;
/// nothing where there is no such file.
pub(super) fn load_partial(
    path: &Path,
    key: &str,
    layers: usize,
    f: usize,
) -> Result<Option<(usize, Vec<[Sums; 2]>)>> {
    if !path.exists() {
        return Ok(None);
    }
    let (bytes, body): (_, Unfinished) = read(path)?;
    if body.key != key {
        return Err(corrupt(path, "it belongs to another measurement"));
    }
    let tensors = tensors(path, &bytes)?;
    let half = |i: usize, h: usize| -> Result<Sums> {
        let upper: Vec<f64> = numbers(path, &tensors, &format!("{i:06}.{h}"), Dtype::F64)?;
        if upper.len() != f * (f + 1) / 2 {
            return Err(corrupt(path, format!("{} numbers for keys of {f}", upper.len())));
        }
        Ok(Sums::restore(f, &upper, body.counts[h]))
    };
    let sums = (0..layers).map(|i| Ok([half(i, 0)?, half(i, 1)?])).collect::<Result<_>>()?;
    Ok(Some((body.batches, sums)))
}

fn write<T: Serialize>(path: &Path, body: T, tensors: Vec<(String, Dtype, Vec<usize>, &[u8])>) -> Result<()> {
    let mut hasher = blake3::Hasher::new();
    for (_, _, _, bytes) in &tensors {
        hasher.update_rayon(bytes);
    }
    let header = Header { format: FORMAT, checksum: hasher.finalize().to_hex().to_string(), body };
    let json = serde_json::to_string(&header).map_err(|e| corrupt(path, e.to_string()))?;
    let views: Vec<(String, TensorView<'_>)> = tensors
        .into_iter()
        .map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(dtype, shape, bytes)?)))
        .collect::<Result<_, safetensors::SafeTensorError>>()
        .map_err(|e| corrupt(path, e.to_string()))?;
    let whole = safetensors::serialize(views, Some(HashMap::from([(ENTRY.to_owned(), json)])))
        .map_err(|e| corrupt(path, e.to_string()))?;
    let folder = atomic::folder_of(path);
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    atomic::write(path, |file| file.write_all(&whole)).map_err(Error::io("write", path))
}

/// The bytes of a file whose checksum holds, and what its header says.
fn read<T: DeserializeOwned>(path: &Path) -> Result<(Vec<u8>, T)> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| corrupt(path, e.to_string()))?;
    let json = metadata.metadata().as_ref().and_then(|m| m.get(ENTRY));
    let json = json.ok_or_else(|| corrupt(path, format!("its metadata has no `{ENTRY}`")))?;
    let value: serde_json::Value = serde_json::from_str(json).map_err(|e| corrupt(path, e.to_string()))?;
    if value.get("format").and_then(serde_json::Value::as_u64) != Some(u64::from(FORMAT)) {
        return Err(corrupt(path, format!("its format is not {FORMAT}")));
    }
    let header: Header<T> = serde_json::from_value(value).map_err(|e| corrupt(path, e.to_string()))?;
    let mut hasher = blake3::Hasher::new();
    let tensors = tensors(path, &bytes)?;
    let mut names = tensors.names();
    names.sort_unstable();
    for name in names {
        let view = tensors.tensor(name).map_err(|e| corrupt(path, e.to_string()))?;
        hasher.update_rayon(view.data());
    }
    if hasher.finalize().to_hex().as_str() != header.checksum {
        return Err(corrupt(path, "its numbers do not have the checksum that it names"));
    }
    drop(tensors);
    Ok((bytes, header.body))
}

fn tensors<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>> {
    SafeTensors::deserialize(bytes).map_err(|e| corrupt(path, e.to_string()))
}

fn numbers<T: bytemuck::Pod>(
    path: &Path,
    tensors: &SafeTensors<'_>,
    name: &str,
    dtype: Dtype,
) -> Result<Vec<T>> {
    let view = tensors.tensor(name).map_err(|e| corrupt(path, e.to_string()))?;
    if view.dtype() != dtype {
        return Err(corrupt(path, format!("tensor `{name}` is {:?}, expected {dtype:?}", view.dtype())));
    }
    // The file's bytes need not be aligned.
    let mut numbers = vec![T::zeroed(); view.data().len() / size_of::<T>()];
    bytemuck::cast_slice_mut(&mut numbers).copy_from_slice(view.data());
    Ok(numbers)
}

fn corrupt(path: &Path, why: impl Into<String>) -> Error {
    Error::Corrupt { path: path.to_owned(), what: "moments file", why: why.into() }
}
