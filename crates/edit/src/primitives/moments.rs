//! Second moments of MLP keys, C = E[k kᵀ]: what an update should leave alone.
//!
//! Keys are read at every token, the first of each text included, as published: its key is an
//! outlier (attention sinks there), and an edit meets it whenever a subject comes first.
//!
//! Without a corpus the model writes the text itself, and the passes that write it also read the
//! keys: one pass for all layers. Batches depend on the settings alone, so a measurement that was
//! interrupted goes on where it stopped, and ends with the same bits.

mod factor;
mod source;
mod store;
mod sums;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mutandis_engine::{Model, Read, Sampling, Site, SiteKind};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub(super) use self::factor::symmetric;
pub use self::factor::{Factor, factor};
use self::source::{Described, Source};
pub(super) use self::store::{load_eigen, save_eigen};
use self::sums::Sums;
use crate::context::Context;
use crate::error::{Error, Result};

/// Tokens measured by default, per number of a key. With [`RIDGE`], twice as many change what an
/// update disturbs by a few hundredths; see ARCHITECTURE.
const TOKENS_PER_WIDTH: usize = 5;

/// The ridge that suits moments of as few tokens as are measured by default, relative to the mean
/// of C's diagonal. On real keys of SmolLM2 it disturbs the keys of other texts less than no ridge
/// does, be C from 5,000 tokens or 75,000: what differs between two texts is mostly C's small
/// eigenvalues, and the ridge is what keeps u from trusting them.
pub const RIDGE: f64 = 1.0;

/// Share of the time that may go into keeping unfinished sums.
const KEEPING: u32 = 20;

/// How moments are measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MomentSpec {
    /// Tokens to read; five times the width of a key where `None`. A shorter corpus gives fewer,
    /// and text that the model writes is rounded up to whole sequences.
    pub tokens: Option<usize>,
    /// Tokens of each sequence that the model writes.
    pub length: usize,
    /// Longest window of a corpus, in tokens.
    pub window: usize,
    /// Seed of the text that the model writes.
    pub seed: u64,
    /// Sampling of the text that the model writes.
    pub sampling: Sampling,
    /// What the sequences that the model writes begin with, in turn. Where `None`: what the
    /// tokenizer puts before every text (BOS), else words drawn from its vocabulary.
    pub starts: Option<Vec<String>>,
}

/// Fewest tokens that moments are taken over: fewer say nothing of a text.
const LEAST_TOKENS: usize = 64;

impl Default for MomentSpec {
    fn default() -> Self {
        Self { tokens: None, length: 128, window: 512, seed: 0, sampling: Sampling::PLAIN, starts: None }
    }
}

impl MomentSpec {
    /// Tokens to measure over.
    fn budget(&self, model: &Model) -> Result<usize> {
        match self.tokens {
            None => Ok(TOKENS_PER_WIDTH * model.architecture().mlp_width),
            Some(tokens @ LEAST_TOKENS..) => Ok(tokens),
            Some(tokens) => Err(Error::input_hint(
                format!("moments over {tokens} tokens, expected {LEAST_TOKENS} or more"),
                "leave the number out for five times the width of a key",
            )),
        }
    }
}

/// Second moments of the keys of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Fingerprint of the model.
    pub base: String,
    /// Layer, from 0.
    pub layer: usize,
    /// Width of a key.
    pub f: usize,
    /// Keys measured.
    pub count: u64,
    /// C = Σ k kᵀ / count, upper triangle row by row, `[f (f + 1) / 2]`.
    pub upper: Vec<f32>,
    /// Estimated relative error of C: ‖C₁ − C₂‖ / (2 ‖C‖), Frobenius, where C₁ and C₂ are
    /// measured on every other sequence. NaN-free: 1 where there is only one sequence.
    pub error: f64,
    /// What text it was, for people.
    pub source: String,
    /// What happened on the way that a user should know of.
    pub notes: Vec<String>,
}

impl Moments {
    /// Sum of the diagonal.
    pub fn trace(&self) -> f64 {
        let mut at = 0;
        (0..self.f)
            .map(|i| {
                let x = f64::from(self.upper[at]);
                at += self.f - i;
                x
            })
            .sum()
    }

    /// The moments of both texts together; their error as if they were independent.
    ///
    /// # Errors
    /// Where they are of different models or layers.
    pub fn merge(&self, other: &Self) -> Result<Self> {
        if (&self.base, self.layer, self.f) != (&other.base, other.layer, other.f) {
            return Err(Error::input(format!(
                "moments of layer {} (keys of {}, model {}) do not merge with those of layer {} (keys of {}, model {})",
                self.layer, self.f, self.base, other.layer, other.f, other.base
            )));
        }
        let count = self.count + other.count;
        let (a, b) = (self.count as f64 / count as f64, other.count as f64 / count as f64);
        let mean = |(x, y): (&f32, &f32)| (a * f64::from(*x) + b * f64::from(*y)) as f32;
        Ok(Self {
            base: self.base.clone(),
            layer: self.layer,
            f: self.f,
            count,
            upper: self.upper.iter().zip(&other.upper).map(mean).collect(),
            error: (a * self.error).hypot(b * other.error),
            source: format!("{}; {}", self.source, other.source),
            notes: [&self.notes[..], &other.notes].concat(),
        })
    }

    fn new(base: &str, layer: usize, f: usize, halves: &[Sums; 2], source: &str) -> Self {
        let (a, b) = (halves[0].upper(), halves[1].upper());
        let (na, nb) = (halves[0].count as f64, halves[1].count as f64);
        let upper: Vec<f32> = a.iter().zip(&b).map(|(x, y)| ((x + y) / (na + nb)) as f32).collect();
        let (mut difference, mut size) = (0.0, 0.0);
        let mut at = 0;
        for i in 0..f {
            for j in i..f {
                let weight = if i == j { 1.0 } else { 2.0 };
                difference += weight * (a[at] / na - b[at] / nb).powi(2);
                size += weight * ((a[at] + b[at]) / (na + nb)).powi(2);
                at += 1;
            }
        }
        let error = if na > 0.0 && nb > 0.0 && size > 0.0 { (difference / size).sqrt() / 2.0 } else { 1.0 };
        Self {
            base: base.to_owned(),
            layer,
            f,
            count: halves[0].count + halves[1].count,
            upper,
            error,
            source: source.to_owned(),
            notes: vec![],
        }
    }
}

/// Moments of the keys of some layers, in the order of `layers`: from the context's cache, or
/// measured in one pass for all that are missing there.
///
/// The text is the context's corpus, or else the model's own. Time and memory grow with the
/// layers asked for (16 f² bytes each while measuring), so ask for those that are needed.
///
/// # Errors
/// Where a layer does not exist, the corpus cannot be read or is empty, the model has no
/// tokenizer, or the user stops the work (what is done by then is kept in the cache).
pub fn moments(model: &Model, layers: &[usize], spec: &MomentSpec, cx: &Context<'_>) -> Result<Vec<Moments>> {
    let a = model.architecture();
    if let Some(layer) = layers.iter().find(|l| **l >= a.layers) {
        return Err(Error::input_hint(
            format!("layer {layer} does not exist"),
            format!("layers are 0 to {}", a.layers - 1),
        ));
    }
    spec.sampling.validate()?;
    let base = model.fingerprint()?;
    let described = Described::new(model, spec, cx)?;
    let folder = cx.cache.as_ref().map(|c| c.join("moments"));
    let key = |of: serde_json::Value| {
        let whole = serde_json::json!({
            "format": store::FORMAT, "base": base, "source": described.identity, "of": of,
        });
        blake3::hash(whole.to_string().as_bytes()).to_hex()[..32].to_owned()
    };
    let file = |layer: usize| {
        folder.as_ref().map(|f| f.join(format!("{}.safetensors", key(serde_json::json!({ "layer": layer })))))
    };

    let mut notes = vec![];
    let mut found: Vec<Option<Moments>> = layers
        .iter()
        .map(|&layer| {
            let path = file(layer).filter(|p| p.exists())?;
            match usable(&path, base, layer, a.mlp_width) {
                Ok(moments) => Some(moments),
                Err(e) => {
                    notes.push(format!("moments of layer {layer} are measured anew: {e}"));
                    None
                }
            }
        })
        .collect();
    let mut missing: Vec<usize> =
        layers.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(l, _)| *l).collect();
    missing.sort_unstable();
    missing.dedup();
    if !missing.is_empty() {
        let partial = folder.as_ref().map(|f| {
            let key = key(serde_json::json!({ "layers": missing }));
            (f.join(format!("{key}.partial")), key)
        });
        let work = Work { model, layers: &missing, source: &described.source, partial, cx };
        let sums = work.run(&mut notes)?;
        for (layer, halves) in missing.iter().zip(sums) {
            let mut fresh = Moments::new(base, *layer, a.mlp_width, &halves, &described.name);
            drop(halves);
            if let Some(Err(e)) = file(*layer).map(|path| fresh.save(&path)) {
                notes.push(format!("moments of layer {layer} could not be kept: {e}"));
            }
            fresh.notes.clone_from(&notes);
            for (place, _) in found.iter_mut().zip(layers).filter(|(_, l)| *l == layer) {
                *place = Some(fresh.clone());
            }
        }
        if let Some((path, _)) = &work.partial {
            // Absent where the work was too short to keep anything on the way.
            let _ = std::fs::remove_file(path);
        }
    }
    for note in &notes {
        cx.progress.note(note);
    }
    Ok(found.into_iter().flatten().collect())
}

/// The file of the best moments that a cache has of a layer's keys of width `f`: those over most
/// tokens.
pub fn kept(cache: &Path, base: &str, layer: usize, f: usize) -> Option<PathBuf> {
    Moments::best(&cache.join("moments"), base, layer, f)
}

/// A kept file, if it is sound and is what its name promises.
fn usable(path: &Path, base: &str, layer: usize, f: usize) -> Result<Moments> {
    let moments = Moments::load(path)?;
    if (&*moments.base, moments.layer, moments.f) != (base, layer, f) {
        return Err(Error::Corrupt {
            path: path.to_owned(),
            what: "moments file",
            why: format!(
                "it is of layer {} of model {}, expected layer {layer} of model {base}",
                moments.layer, moments.base
            ),
        });
    }
    Ok(moments)
}

/// A measurement of some layers.
struct Work<'a> {
    model: &'a Model,
    layers: &'a [usize],
    source: &'a Source,
    /// Where unfinished sums are kept, and what identifies them.
    partial: Option<(PathBuf, String)>,
    cx: &'a Context<'a>,
}

impl Work<'_> {
    /// For each layer the sums of the sequences with even and odd numbers.
    fn run(&self, notes: &mut Vec<String>) -> Result<Vec<[Sums; 2]>> {
        let f = self.model.architecture().mlp_width;
        let fresh = || self.layers.iter().map(|_| [Sums::new(f), Sums::new(f)]).collect();
        let kept =
            self.partial.as_ref().map(|(path, key)| store::load_partial(path, key, self.layers.len(), f));
        let (first, mut sums) = match kept {
            Some(Ok(Some((batches, sums)))) if batches <= self.source.batches() => (batches, sums),
            Some(Err(e)) => {
                notes.push(format!("unfinished moments are measured from the start: {e}"));
                (0, fresh())
            }
            _ => (0, fresh()),
        };
        let batches = self.source.batches();
        self.cx.progress.begin("moments of keys", self.source.tokens_before(batches));
        let done = self.batches(first..batches, &mut sums, notes);
        self.cx.progress.end();
        done.map(|()| sums)
    }

    fn batches(
        &self,
        range: std::ops::Range<usize>,
        sums: &mut [[Sums; 2]],
        notes: &mut Vec<String>,
    ) -> Result<()> {
        let isa = self.model.isa();
        let f = self.model.architecture().mlp_width;
        let reads: Vec<Read> =
            self.layers.iter().map(|&l| Read { site: Site::new(l, SiteKind::MlpKey), rows: None }).collect();
        let (mut kept_at, mut cost) = (Instant::now(), Duration::ZERO);
        let last = range.end;
        for batch in range {
            let mut tokens = self.source.tokens_before(batch);
            self.cx.progress.step(tokens);
            self.model.install(|| -> Result<()> {
                self.source.run(self.model, batch, &reads, self.cx, |rows, keys| {
                    sums.par_iter_mut().zip(keys).for_each(|(halves, keys)| {
                        let mut parts = [vec![], vec![]];
                        for (row, key) in rows.iter().zip(keys.chunks_exact(f)) {
                            parts[row % 2].extend_from_slice(key);
                        }
                        drop(keys);
                        for (half, part) in halves.iter_mut().zip(&parts) {
                            half.push(isa, part);
                        }
                    });
                    tokens += rows.len();
                    self.cx.progress.step(tokens);
                })?;
                sums.par_iter_mut().flatten().for_each(|half| half.settle(isa));
                Ok(())
            })?;
            let due = kept_at.elapsed() >= cost * KEEPING;
            if let Some((path, key)) = self.partial.as_ref().filter(|_| due && batch + 1 < last) {
                let begun = Instant::now();
                if let Err(e) = store::save_partial(path, key, batch + 1, sums) {
                    notes.push(format!("unfinished moments could not be kept: {e}"));
                }
                (kept_at, cost) = (Instant::now(), begun.elapsed());
            }
        }
        Ok(())
    }
}
