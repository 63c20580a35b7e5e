//! Patches written into a copy of the checkpoint that they belong to.
//!
//! An edit is often smaller than a step of the format that its weight is stored in. [`Export`] says
//! what of it a format keeps, tensor by tensor, and gives the change as stored as an overlay, so that
//! a caller can ask the model before anything is written.

mod apart;
mod beneath;
mod folder;
mod inputs;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use mutandis_engine::checkpoint::{Checkpoint, Container, Dtype, Layout, Replacement, Replacements};
use mutandis_engine::{Delta, Model, Overlay, Role, WeightId};
use serde::Serialize;

use crate::atomic;
use crate::error::{Error, Result};
use crate::patch::Patch;
pub use apart::check_apart;
pub use beneath::check_beneath;
use inputs::Seen;

/// Least cosine between a change as stored and the change that was meant, where no fact can say whether
/// it was kept: what is off is then a seventh of what is stored (√(1 − 0.99²) = 0.14). Where the steps of
/// a format are larger than the change, hardly any likeness is left.
pub const ALIKE: f64 = 0.99;

/// What patches change of a model's stored tensors.
#[derive(Debug)]
pub struct Export<'a> {
    model: &'a Model,
    touched: Vec<Touched>,
}

/// What they change of one stored tensor.
#[derive(Debug)]
struct Touched {
    name: String,
    dtype: Dtype,
    /// Length of its rows.
    inn: usize,
    /// Several where it is fused.
    weights: Vec<(WeightId, Layout)>,
    /// In the order in which it is stored.
    change: Vec<f32>,
    /// What its rows are multiplied with when the facts are asked.
    inputs: Vec<f32>,
}

/// Tensors with the changes added, in number formats that were chosen.
#[derive(Debug)]
pub struct Stored {
    /// Per tensor, in order of name.
    pub tensors: Vec<StoredTensor>,
    /// Stored tensors less the base's: what a model with these tensors is, laid over the base.
    pub overlay: Overlay,
    replaced: Replacements,
}

/// A changed tensor as stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StoredTensor {
    /// Its name in the file.
    pub tensor: String,
    /// Number format in the base.
    pub from: &'static str,
    /// Number format as stored.
    pub to: &'static str,
    /// Bytes in the base.
    pub bytes_before: usize,
    /// Bytes as stored.
    pub bytes_after: usize,
    /// ‖ΔW‖, Frobenius, of the patches.
    pub change: f64,
    /// ‖stored - base‖ / ‖ΔW‖.
    pub norm: f64,
    /// Cosine between stored - base and ΔW. Low where much is rounded, which can be harmless.
    pub cosine: f64,
    /// ‖(stored - base - ΔW) X‖ / ‖ΔW X‖ over the inputs X of the facts' own texts: what is lost
    /// where the facts are asked. `None` where that was not measured: no facts are known, or the tensor
    /// is not stored by rows.
    pub lost: Option<f64>,
}

/// A written export.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Written {
    /// Bytes of the files that hold weights.
    pub bytes: u64,
    /// What of the base's folder was left out: other forms of its weights, which are unedited, folders
    /// (ending in `/`) and hidden files.
    pub left_out: Vec<String>,
    /// The number format that `config.json` names, where a tensor is stored wider: transformers loads
    /// all tensors in it, and rounds that one back, unless it is told another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loads_as: Option<&'static str>,
}

impl<'a> Export<'a> {
    /// The changes of all patches, added up.
    ///
    /// # Errors
    /// Where a patch belongs to another base, is a prompt, or changes what a file of its own cannot
    /// hold; where none changes a weight.
    pub fn new(model: &'a Model, patches: &[Patch]) -> Result<Self> {
        let checkpoint = model.checkpoint();
        let mut touched: BTreeMap<String, Touched> = BTreeMap::new();
        for patch in patches {
            patch.check_base(model)?;
            if patch.prefix.as_ref().is_some_and(|p| !p.is_empty()) {
                return Err(Error::input_hint(
                    format!("the patch by `{}` is a prompt, not a change of weights", patch.method),
                    "put the text that `mutandis patch show` prints before every prompt, or make the edit by \
                     a method that changes weights",
                ));
            }
            for (id, change) in &patch.weights {
                if id.role == Role::Head && model.architecture().tied {
                    return Err(Error::input_hint(
                        "the patch changes the head, which is the embedding in this model: a file cannot \
                         change the one without the other",
                        "make the edit on another weight",
                    ));
                }
                let layout = layout(checkpoint, *id)?;
                let [out, inn] = model.linear_shape(id.role, id.layer)?;
                if change.shape() != [out, inn] {
                    return Err(Error::input(format!(
                        "the patch changes {id:?} with shape {:?}, the model has {:?}",
                        change.shape(),
                        [out, inn]
                    )));
                }
                let tensor = match touched.entry(layout.tensor.clone()) {
                    std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
                    std::collections::btree_map::Entry::Vacant(new) => {
                        let stored = checkpoint.tensor(&layout.tensor)?;
                        new.insert(Touched {
                            name: layout.tensor.clone(),
                            dtype: stored.dtype,
                            inn: stored.shape.last().copied().unwrap_or(1),
                            weights: vec![],
                            change: vec![0.0; stored.shape.iter().product()],
                            inputs: vec![],
                        })
                    }
                };
                let mut whole = vec![0.0; out * inn];
                change.add_to(&mut whole);
                layout.add(&whole, &mut tensor.change);
                if tensor.weights.iter().all(|(known, _)| known != id) {
                    tensor.weights.push((*id, layout));
                }
            }
        }
        if touched.is_empty() {
            return Err(Error::input_hint(
                "the patches change no weight",
                "give patches whose `mutandis patch show` lists changes",
            ));
        }
        let mut export = Self { model, touched: touched.into_values().collect() };
        let seen = Seen::new(model, patches, &export.touched)?;
        for (tensor, inputs) in export.touched.iter_mut().zip(seen.inputs) {
            tensor.inputs = inputs;
        }
        Ok(export)
    }

    /// Names of the tensors that a patch changes.
    ///
    /// # Errors
    /// Where the model has no such weight.
    pub fn tensors_of(&self, patch: &Patch) -> Result<Vec<String>> {
        let checkpoint = self.model.checkpoint();
        patch.weights.iter().map(|(id, _)| Ok(layout(checkpoint, *id)?.tensor)).collect()
    }

    /// Whether [`Self::store`] makes a tensor wider for this format.
    pub fn is_narrower_than(&self, least: Dtype) -> bool {
        self.touched.iter().any(|touched| bits(least) > bits(touched.dtype))
    }

    /// The tensors with their changes, in their own format or, where that is narrower, in `least`.
    /// Rows that do not fit whole blocks of it are stored as F16.
    ///
    /// # Errors
    /// [`Error::Input`] where a number is too large for the format.
    pub fn store(&self, least: Option<Dtype>) -> Result<Stored> {
        self.stored(|touched| match least {
            Some(least) if bits(least) > bits(touched.dtype) => least,
            _ => touched.dtype,
        })
    }

    /// The tensors with their changes, all in one format; those with rows that do not fit whole blocks
    /// of it as F16.
    ///
    /// # Errors
    /// As [`Self::store`].
    pub fn store_as(&self, dtype: Dtype) -> Result<Stored> {
        self.stored(|_| dtype)
    }

    fn stored(&self, dtype: impl Fn(&Touched) -> Dtype) -> Result<Stored> {
        let mut stored =
            Stored { tensors: vec![], overlay: Overlay::default(), replaced: Replacements::new() };
        for touched in &self.touched {
            let dtype = Some(dtype(touched)).filter(|d| d.row_bytes(touched.inn).is_some());
            let (tensor, replacement, moved) =
                self.model.install(|| touched.store(self.model.checkpoint(), dtype.unwrap_or(Dtype::F16)))?;
            for (id, layout) in &touched.weights {
                let [out, inn] = self.model.linear_shape(id.role, id.layer)?;
                stored.overlay.push(*id, Delta::dense(out, inn, &layout.pick(&moved))?);
            }
            stored.tensors.push(tensor);
            stored.replaced.insert(touched.name.clone(), replacement);
        }
        Ok(stored)
    }
}

impl Touched {
    /// What is stored, and how far that is from the base.
    fn store(&self, checkpoint: &Checkpoint, dtype: Dtype) -> Result<(StoredTensor, Replacement, Vec<f32>)> {
        let base = checkpoint.tensor(&self.name)?;
        let mut was = vec![0.0; self.change.len()];
        base.dtype.decode(base.bytes, &mut was);
        let wanted: Vec<f32> = was.iter().zip(&self.change).map(|(w, d)| w + d).collect();
        let old = (dtype == base.dtype).then_some(base.bytes);
        let bytes = match old {
            _ if dtype.block_len() > 1 && !self.inputs.is_empty() => {
                let inputs = mutandis_engine::checkpoint::Inputs::new(&self.inputs, self.inn);
                dtype.encode_for(&wanted, self.inn, old, &inputs)
            }
            Some(old) => dtype.encode_over(&wanted, old),
            None => dtype.encode(&wanted),
        };
        if let Some(at) = dtype.first_not_finite(&bytes) {
            return Err(Error::input_hint(
                format!("a number of `{}` is too large for {}, at element {at}", self.name, dtype.name()),
                "store it wider, with `--dtype f32`",
            ));
        }
        let mut moved = vec![0.0; wanted.len()];
        dtype.decode(&bytes, &mut moved);
        moved.iter_mut().zip(&was).for_each(|(m, w)| *m -= w);
        let (change, norm) = (length(&self.change), length(&moved));
        let product: f64 = moved.iter().zip(&self.change).map(|(m, d)| f64::from(*m) * f64::from(*d)).sum();
        let tensor = StoredTensor {
            tensor: self.name.clone(),
            from: base.dtype.name(),
            to: dtype.name(),
            bytes_before: base.bytes.len(),
            bytes_after: bytes.len(),
            change,
            norm: ratio(norm, change),
            cosine: ratio(product, change * norm),
            lost: self.lost(&moved),
        };
        Ok((tensor, Replacement { dtype, bytes }, moved))
    }

    /// [`StoredTensor::lost`].
    fn lost(&self, moved: &[f32]) -> Option<f64> {
        if self.inputs.is_empty() {
            return None;
        }
        let (mut lost, mut whole) = (0.0, 0.0);
        for x in self.inputs.chunks_exact(self.inn) {
            for (moved, change) in moved.chunks_exact(self.inn).zip(self.change.chunks_exact(self.inn)) {
                let (mut is, mut should) = (0.0f64, 0.0f64);
                for (x, (m, d)) in x.iter().zip(moved.iter().zip(change)) {
                    is += f64::from(x * m);
                    should += f64::from(x * d);
                }
                lost += (is - should).powi(2);
                whole += should.powi(2);
            }
        }
        Some(ratio(lost.sqrt(), whole.sqrt()))
    }
}

impl Stored {
    /// Bytes that the tensors take more than in the base; fewer where negative.
    pub fn extra_bytes(&self) -> i64 {
        self.tensors.iter().map(|t| t.bytes_after as i64 - t.bytes_before as i64).sum()
    }

    /// The least cosine between what is stored of a change and the change, over the tensors of these
    /// names; `None` where there are none.
    pub fn alike(&self, names: &BTreeSet<String>) -> Option<f64> {
        // Where changes cancel out, there is nothing to be like.
        let named = self.tensors.iter().filter(|t| t.change > 0.0 && names.contains(&t.tensor));
        named.map(|t| t.cosine).reduce(f64::min)
    }

    /// Writes a copy of the base's GGUF file with these tensors, and reads it again before it gets its
    /// name.
    ///
    /// # Errors
    /// Where the base is no single GGUF file, or `path` is that file; where it cannot be written.
    pub fn write_gguf(&self, model: &Model, path: &Path) -> Result<Written> {
        let checkpoint = model.checkpoint();
        check_apart(checkpoint, path)?;
        let mut files = checkpoint.files();
        let (Some((file, _)), None) = (files.next(), files.next()) else {
            return Err(Error::input_hint(
                format!("`{}` is split over several files", checkpoint.path().display()),
                "put its pieces together first, with `llama-gguf-split --merge`",
            ));
        };
        let Some(rewritten) = checkpoint.rewritten(file, &self.replaced)? else {
            return Err(Error::input(format!("`{}` holds none of the changed tensors", file.display())));
        };
        let failed = |e: std::io::Error| Error::unwritable(path, &e);
        let mut builder = tempfile::Builder::new();
        let beside = builder.prefix(atomic::PREFIX).tempdir_in(atomic::folder_of(path)).map_err(failed)?;
        let copy = beside.path().join(path.file_name().unwrap_or_default());
        atomic::write(&copy, |to| rewritten.write(to)).map_err(failed)?;
        self.verify(checkpoint, &copy)?;
        atomic::promote(&copy, path).map_err(failed)?;
        Ok(Written { bytes: file_length(path)?, ..Written::default() })
    }

    /// Writes a copy of the base's folder with these tensors in its safetensors files, and reads it
    /// again. Files of weights that hold none of them are copies.
    ///
    /// # Errors
    /// As [`check_folder`]; where `folder` cannot be written.
    pub fn write_safetensors(&self, model: &Model, folder: &Path, force: bool) -> Result<Written> {
        folder::write(model.checkpoint(), &self.replaced, folder, force, |written| {
            self.verify(model.checkpoint(), written)
        })
    }

    /// Checks that a written checkpoint opens, and holds these tensors and the base's others.
    fn verify(&self, base: &Checkpoint, written: &Path) -> Result<()> {
        let copy = Checkpoint::open(written)?;
        for name in base.tensor_names() {
            let wrong = |what: &str| Error::Corrupt {
                path: written.to_owned(),
                what: "export",
                why: format!("tensor `{name}` {what}"),
            };
            if copy.tensor_names().all(|n| n != name) {
                return Err(wrong("is missing"));
            }
            // A format that is not read cannot be compared, nor was it changed.
            let (Ok(was), Ok(is)) = (base.tensor(name), copy.tensor(name)) else { continue };
            let (dtype, bytes) = match self.replaced.get(name) {
                Some(new) => (new.dtype, new.bytes.as_slice()),
                None => (was.dtype, was.bytes),
            };
            if is.dtype != dtype || is.shape != was.shape || is.bytes != bytes {
                return Err(wrong("is not what was written"));
            }
        }
        Ok(())
    }
}

/// Checks that patches can be exported in a form from this model, before anything is computed.
///
/// # Errors
/// Where the base is of another form, with what can be done.
pub fn check_form(model: &Model, form: Container) -> Result<()> {
    let (is, other) = match model.checkpoint().container() {
        container if container == form => return Ok(()),
        Container::Gguf => ("a GGUF file", "gguf"),
        Container::Safetensors => ("in safetensors", "safetensors"),
    };
    Err(Error::input_hint(
        format!("the model is {is}: an export keeps the form of its base"),
        format!("export with `--to {other}`, or make the edit on the other form of the model"),
    ))
}

/// Checks that a copy of the model's folder can be made at a place, before anything is computed.
///
/// # Errors
/// Where `folder` exists and is not to be replaced (`force`), or holds anything but an earlier export;
/// where it holds the model.
pub fn check_folder(model: &Model, folder: &Path, force: bool) -> Result<()> {
    folder::check(model.checkpoint(), folder, force)
}

fn layout(checkpoint: &Checkpoint, id: WeightId) -> Result<Layout> {
    checkpoint
        .layout(id.role, id.layer)?
        .ok_or_else(|| Error::input(format!("the model has no weight `{}` at layer {}", id.role, id.layer)))
}

/// Bits per number.
fn bits(dtype: Dtype) -> usize {
    8 * dtype.block_bytes() / dtype.block_len()
}

fn length(values: &[f32]) -> f64 {
    values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

fn file_length(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).map_err(Error::io("read", path))?.len())
}
