//! Statistics of a model's keys as methods use them: moments, their factors, their null spaces;
//! each measured or computed once for a model, in the context's memo and cache.

use std::sync::Arc;

use mutandis_engine::Model;

use super::moments::{self, Factor, MomentSpec, Moments, load_eigen, save_eigen};
use super::subspace::{self, Subspace};
use crate::context::Context;
use crate::error::{Error, Result};

/// Moments of some layers of a model, and what follows from them.
pub struct Statistics<'a> {
    layers: Vec<(usize, Arc<Moments>)>,
    /// Names the measurement in the memo.
    key: String,
    cx: &'a Context<'a>,
}

impl<'a> Statistics<'a> {
    /// Moments of the layers, from the memo, the cache, or measured.
    ///
    /// # Errors
    /// As [`moments::moments`].
    pub fn new(model: &Model, layers: &[usize], spec: &MomentSpec, cx: &'a Context<'a>) -> Result<Self> {
        let key = format!("{} {:?} {spec:?}", model.fingerprint()?, cx.corpus);
        let whole = cx.memo.get(format!("moments {layers:?} {key}"), || {
            let measured = moments::moments(model, layers, spec, cx)?;
            Ok(layers.iter().copied().zip(measured.into_iter().map(Arc::new)).collect::<Vec<_>>())
        })?;
        Ok(Self { layers: whole.to_vec(), key, cx })
    }

    /// Moments of a layer.
    ///
    /// # Errors
    /// Where the layer is none of those measured.
    pub fn moments(&self, layer: usize) -> Result<&Moments> {
        let found = self.layers.iter().find(|(l, _)| *l == layer);
        found.map(|(_, m)| &**m).ok_or_else(|| Error::input(format!("layer {layer} was not measured")))
    }

    /// Factor of C and a ridge relative to tr(C)/f.
    ///
    /// # Errors
    /// As [`moments::factor`].
    pub fn factor(&self, layer: usize, ridge: f64) -> Result<Arc<Factor>> {
        let moments = self.moments(layer)?;
        let key = format!("factor {layer} {ridge} {}", self.key);
        self.cx.memo.get(key, || moments::factor(moments, ridge))
    }

    /// All eigenvectors of C.
    ///
    /// # Errors
    /// As [`subspace::whole`].
    pub fn eigenvectors(&self, layer: usize) -> Result<Arc<Subspace>> {
        let moments = self.moments(layer)?;
        self.cx.memo.get(format!("eigenvectors {layer} {}", self.key), || {
            let of = blake3::hash(bytemuck::cast_slice(&moments.upper)).to_hex().to_string();
            let path = self
                .cx
                .cache
                .as_ref()
                .map(|c| c.join("moments").join(format!("{}.eigen.safetensors", &of[..32])));
            // A damaged file is as good as none: it is made again.
            let kept = path.as_deref().and_then(|p| load_eigen(p, &of, moments.f).ok());
            if let Some(space) = kept.and_then(|(b, v)| Subspace::from_parts(moments.f, b, v)) {
                return Ok(space);
            }
            let space = subspace::whole(moments)?;
            if let Some(path) = path {
                let kept = save_eigen(&path, &of, moments.f, space.vectors(), space.values());
                if let Err(e) = kept {
                    self.cx.progress.note(&format!("eigenvectors of layer {layer} could not be kept: {e}"));
                }
            }
            Ok(space)
        })
    }
}
