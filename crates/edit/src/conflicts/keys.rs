//! How close two keys are: their cosine in the metric C⁻¹, in which an edit disturbs another key by
//! just that share (ROME, arXiv 2202.05262, eq. 2: ΔW k' ∝ kᵀC⁻¹k'); plain where no moments are
//! known.

use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use crate::error::Result;
use crate::ledger::Ledger;
use crate::patch::Patch;
use crate::primitives::moments::{self, Factor, Moments, RIDGE};

/// Numbers of a sketch.
pub(super) const SIZE: usize = 64;

/// Seed of the directions that sketches are made along.
const SEED: u64 = 0x6d75_7461_6e64_6973;

/// How keys of a layer are compared.
pub(super) struct Metric {
    /// Its moments, where some are known.
    of: Option<PathBuf>,
    layer: usize,
    width: usize,
    factor: std::cell::OnceCell<Option<Factor>>,
}

/// The key of a patch's fact at a layer, `[f]`, where it has one for each fact.
pub(super) fn of(patch: &Patch, layer: usize, fact: usize) -> Option<&[f32]> {
    let keys = patch.keys.get(&layer)?;
    let count = patch.facts.len();
    if count == 0 || keys.is_empty() || !keys.len().is_multiple_of(count) {
        return None;
    }
    keys.chunks_exact(keys.len() / count).nth(fact)
}

impl Metric {
    /// The best moments that a cache has of a layer's keys: those over most tokens.
    pub(super) fn find(cache: Option<&Path>, ledger: &Ledger, layer: usize, width: usize) -> Self {
        let of = cache.and_then(|cache| moments::kept(cache, &ledger.base().fingerprint, layer, width));
        Self { of, layer, width, factor: std::cell::OnceCell::new() }
    }

    /// For people.
    pub(super) fn name(&self) -> String {
        if self.of.is_some() { "moments".into() } else { "plain".into() }
    }

    /// For files.
    pub(super) fn id(&self) -> String {
        let stem = self.of.as_ref().and_then(|path| path.file_stem()).and_then(|stem| stem.to_str());
        stem.map_or_else(|| "plain".to_owned(), |stem| stem.chars().take(32).collect())
    }

    /// Width of a key.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// The directions of sketches, `[SIZE, f]`: of plain ones random signs P; under moments
    /// P L⁻¹, where L Lᵀ is C with its ridge, so that P's cosines are those of L⁻¹k.
    ///
    /// # Errors
    /// Where the moments cannot be read or factored.
    pub(super) fn directions(&self) -> Result<Vec<f32>> {
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        let signs = (0..SIZE * self.width).map(|_| if rng.next_u32() & 1 == 0 { 1.0 } else { -1.0 });
        let signs: Vec<f64> = signs.collect();
        let rows = match self.factor()? {
            Some(factor) => factor.against(&signs, SIZE),
            None => signs,
        };
        Ok(rows.iter().map(|x| *x as f32).collect())
    }

    /// Cosine of two keys.
    ///
    /// # Errors
    /// As [`Self::directions`].
    pub(super) fn cosine(&self, a: &[f32], b: &[f32]) -> Result<f64> {
        let wide = |key: &[f32]| -> Vec<f64> { key.iter().map(|x| f64::from(*x)).collect() };
        let (a, b) = (wide(a), wide(b));
        if a.len() != self.width || b.len() != self.width {
            return Ok(0.0);
        }
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let (u, v) = match self.factor()? {
            Some(factor) => (factor.solve(&a), factor.solve(&b)),
            None => (a.clone(), b.clone()),
        };
        let size = (dot(&a, &u) * dot(&b, &v)).sqrt();
        Ok(if size > 0.0 { dot(&a, &v) / size } else { 0.0 })
    }

    fn factor(&self) -> Result<Option<&Factor>> {
        if self.factor.get().is_none() {
            let made = match &self.of {
                Some(path) => Some(moments::factor(&Moments::load(path)?, RIDGE)?),
                None => None,
            };
            let _ = self.factor.set(made);
        }
        Ok(self.factor.get().and_then(Option::as_ref))
    }

    /// The layer.
    pub(super) fn layer(&self) -> usize {
        self.layer
    }
}
