//! Moments and unfinished sums as files.

use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;
use serde::{Deserialize, Serialize};

use super::Moments;
use super::sums::Sums;
use crate::checked::Kind;
use crate::error::Result;

/// Version of both forms of file, and of how keys are made: raised when either changes.
pub(super) const FORMAT: u32 = 1;

const KIND: Kind = Kind { entry: "mutandis.moments", format: FORMAT, what: "moments file" };

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
        KIND.write(path, body, vec![upper])
    }

    /// The finished moments over most tokens among a folder's files, of a layer's keys of a width.
    pub(super) fn best(folder: &Path, base: &str, layer: usize, f: usize) -> Option<PathBuf> {
        let paths = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
        let finished = paths.filter(|path| path.extension().is_some_and(|e| e == "safetensors"));
        let ours = finished.filter_map(|path| {
            let body = KIND.peek::<Finished>(&path)?;
            ((&*body.base, body.layer, body.f) == (base, layer, f)).then_some((body.count, path))
        });
        ours.max().map(|(_, path)| path)
    }

    /// Reads a file written by [`Self::save`], and checks all that it says of itself.
    ///
    /// # Errors
    /// Where the file cannot be read, or is damaged.
    pub fn load(path: &Path) -> Result<Self> {
        let file = KIND.read::<Finished>(path)?;
        let upper: Vec<f32> = file.numbers("upper", Dtype::F32)?;
        let body = &file.body;
        let expected = body.f.checked_mul(body.f + 1).map(|n| n / 2);
        if expected != Some(upper.len()) || body.f == 0 {
            return Err(file.corrupt(format!("{} numbers for keys of {}", upper.len(), body.f)));
        }
        if body.count == 0 || !upper.iter().all(|x| x.is_finite()) {
            return Err(file.corrupt("it holds numbers that are not finite, or no keys"));
        }
        Ok(Self {
            base: body.base.clone(),
            layer: body.layer,
            f: body.f,
            count: body.count,
            upper,
            error: body.error,
            source: body.source.clone(),
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
    KIND.write(path, Eigen { of: of.to_owned(), f }, tensors)
}

/// Eigenvectors kept by [`save_eigen`] of the same moments: `(basis, values)`.
pub(in crate::primitives) fn load_eigen(path: &Path, of: &str, f: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let file = KIND.read::<Eigen>(path)?;
    if file.body.of != of || file.body.f != f {
        return Err(file.corrupt("it is of other moments"));
    }
    Ok((file.numbers("basis", Dtype::F64)?, file.numbers("values", Dtype::F64)?))
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
    KIND.write(path, Unfinished { key: key.to_owned(), batches, counts }, tensors)
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
    let file = KIND.read::<Unfinished>(path)?;
    if file.body.key != key {
        return Err(file.corrupt("it belongs to another measurement"));
    }
    let half = |i: usize, h: usize| -> Result<Sums> {
        let upper: Vec<f64> = file.numbers(&format!("{i:06}.{h}"), Dtype::F64)?;
        if upper.len() != f * (f + 1) / 2 {
            return Err(file.corrupt(format!("{} numbers for keys of {f}", upper.len())));
        }
        Ok(Sums::restore(f, &upper, file.body.counts[h]))
    };
    let sums = (0..layers).map(|i| Ok([half(i, 0)?, half(i, 1)?])).collect::<Result<_>>()?;
    Ok(Some((file.body.batches, sums)))
}
