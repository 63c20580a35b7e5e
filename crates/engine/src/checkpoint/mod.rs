//! Checkpoints: GGUF and safetensors, memory-mapped and validated, in one canonical form; and copies
//! of them with some tensors replaced (`encode`, `layout`, `rewrite`).
//!
//! Whatever the container and the family, a weight comes out as `[out, in]`, unfused, in Hugging
//! Face's order of rows. Which tensor that takes, and how it is packed, is data (`names`), chosen by
//! the declared architecture and never by a shape or a file's name. Nothing is decoded here but
//! vectors.

mod codes;
mod config;
mod config_keys;
mod declared;
mod dtype;
mod encode;
mod gguf;
mod gguf_config;
mod layout;
mod matrix;
mod names;
mod open;
mod place;
mod rewrite;
mod safetensors;
mod store;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::architecture::{Architecture, Part, Role};
use crate::error::{Error, Result};
use declared::{Bias, Declared};
pub use dtype::Dtype;
pub use encode::Inputs;
pub use gguf::{Array, Gguf, GgufTensor, GgufWriter, Value};
pub use layout::Layout;
use matrix::Packing;
pub use matrix::{Matrix, check_finite};
pub use names::Container;
use names::{Naming, Spec};
pub use place::{Place, gguf_architecture};
pub use rewrite::{Replacement, Replacements, Rewritten};
use store::Store;
pub use store::TensorView;

/// An opened checkpoint: a `.gguf` file, a `.safetensors` file, or a directory.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    container: Container,
    store: Store,
    /// The header; of the first piece, where split.
    gguf: Option<Gguf>,
    declared: Declared,
    naming: &'static Naming,
    prefix: &'static str,
    head: &'static str,
    /// Names of all tensors that a role uses, in the order of use.
    used: Vec<String>,
    unused: Vec<String>,
}

impl Checkpoint {
    /// Opens, maps and validates: every tensor that the architecture needs is there, in the shape
    /// and a number format that it needs.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Corrupt`], [`Error::Unsupported`], [`Error::MissingTensor`],
    /// [`Error::Shape`]; [`Error::Input`] where the path holds no checkpoint.
    pub fn open(path: &Path) -> Result<Self> {
        let opened = open::open(path)?;
        let family = opened.declared.architecture.family;
        let naming = names::naming(family, opened.container);
        let head = naming.heads.iter().find(|h| opened.store.contains(&format!("{h}.weight")));
        let mut checkpoint = Self {
            path: path.to_owned(),
            container: opened.container,
            prefix: prefix(naming, &opened.store)?,
            head: head.copied().unwrap_or(naming.heads[0]),
            store: opened.store,
            gguf: opened.gguf,
            declared: opened.declared,
            naming,
            used: Vec::new(),
            unused: Vec::new(),
        };
        checkpoint.settle()?;
        checkpoint.bind()?;
        checkpoint.sort_out_the_rest()?;
        Ok(checkpoint)
    }

    /// The declared architecture.
    pub fn architecture(&self) -> &Architecture {
        &self.declared.architecture
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The container.
    pub fn container(&self) -> Container {
        self.container
    }

    /// The header of a GGUF checkpoint, with its metadata; of the first piece, where split.
    pub fn gguf(&self) -> Option<&Gguf> {
        self.gguf.as_ref()
    }

    /// The files that hold weights, and their lengths in bytes.
    pub fn files(&self) -> impl Iterator<Item = (&Path, usize)> {
        self.store.files.iter().map(|f| (f.path.as_path(), f.bytes().len()))
    }

    /// Names of all stored tensors, in file order.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.store.slots.iter().map(|s| s.name.as_str())
    }

    /// A tensor as it is stored.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], or [`Error::Unsupported`] where its number format is not read.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        self.store.view(name)
    }

    /// Names of the tensors that the model uses, in the order of use.
    pub fn used(&self) -> &[String] {
        &self.used
    }

    /// Tensors that nothing uses and that are not known to be harmless, in file order.
    pub fn unused(&self) -> Vec<String> {
        self.unused.clone()
    }

    /// The stored tensor that holds a weight or bias; `None` where the model has no such.
    /// Fused tensors serve several roles.
    pub fn tensor_name(&self, role: Role, part: Part, layer: usize) -> Option<String> {
        let role = self.resolve(role);
        let name = self.name(self.spec(role)?, part, layer);
        (part == Part::Weight || self.has_bias(role, &name)).then_some(name)
    }

    /// A weight matrix in canonical form; `layer` is ignored for roles outside layers.
    /// `Ok(None)` where the family has no such weight, or the role's weight is a vector.
    /// The head of a tied model is its embedding.
    ///
    /// # Errors
    /// [`Error::Input`] for a layer that the model does not have.
    pub fn matrix(&self, role: Role, layer: usize) -> Result<Option<Matrix<'_>>> {
        let Some(layout) = self.layout(role, layer)? else { return Ok(None) };
        let view = self.store.view(&layout.tensor)?;
        let (out, inn) = (layout.packing.out, layout.inn);
        let bytes = if layout.transposed {
            layout.packing.transpose(view.bytes, inn, view.dtype.block_bytes()).into()
        } else {
            layout.packing.gather(view.bytes, inn / view.dtype.block_len() * view.dtype.block_bytes())
        };
        Ok(Some(Matrix { out, inn, dtype: view.dtype, bytes }))
    }

    /// A vector (norm scale or any bias) in canonical form: Gemma's `1 + w` already added.
    /// `Ok(None)` where the model has no such vector, or the part is a matrix.
    ///
    /// # Errors
    /// [`Error::NotFinite`]; [`Error::Input`] for a layer that the model does not have.
    pub fn vector(&self, role: Role, part: Part, layer: usize) -> Result<Option<Vec<f32>>> {
        let (out, columns) = names::shape(self.architecture(), role);
        if part == Part::Weight && columns.is_some() {
            return Ok(None);
        }
        let Some(spec) = self.spec(role) else {
            return Ok(None);
        };
        self.check_layer(role, layer)?;
        let name = self.name(spec, part, layer);
        if part == Part::Bias && !self.has_bias(role, &name) {
            return Ok(None);
        }
        let view = self.store.view(&name)?;
        let packing = self.packing(spec, out);
        let mut stored = vec![0.0; packing.stored_rows()];
        view.dtype.decode(view.bytes, &mut stored);
        let offset = if part == Part::Weight { self.naming.norm_offset } else { 0.0 };
        let values: Vec<f32> = (0..out).map(|row| stored[packing.stored_row(row)] + offset).collect();
        check_finite(&name, &values)?;
        Ok(Some(values))
    }

    /// Checks every tensor that the model uses for NaN and infinity, in parallel: one pass over
    /// plain weights, and over the scales of block formats.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with the first tensor, in the order of use, that has one.
    pub fn check_finite(&self) -> Result<()> {
        let bad = self.used.par_iter().find_map_first(|name| {
            let view = match self.store.view(name) {
                Ok(view) => view,
                Err(error) => return Some(error),
            };
            let index = view.dtype.first_not_finite(view.bytes)?;
            Some(Error::NotFinite { name: name.clone(), index })
        });
        bad.map_or(Ok(()), Err)
    }

    /// Identity of the weights: BLAKE3, in hex, of the bytes of all files that hold them, with
    /// their lengths, and for several files their names, in the order of names. A single file may
    /// be renamed without becoming another model.
    pub fn fingerprint(&self) -> String {
        let mut files: Vec<_> = self
            .store
            .files
            .iter()
            .map(|f| (f.path.file_name().unwrap_or_default().to_string_lossy(), f.bytes()))
            .collect();
        files.sort();
        let named = files.len() > 1;
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"mutandis weights 1");
        for (name, bytes) in files {
            let name = if named { name.as_bytes() } else { b"" };
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name);
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update_rayon(bytes);
        }
        hasher.finalize().to_hex().to_string()
    }

    /// What the tensors decide beyond the declaration.
    fn settle(&mut self) -> Result<()> {
        let embedding = self.spec(Role::Embedding).map(|s| self.name(s, Part::Weight, 0)).unwrap_or_default();
        let stored_head = format!("{}.weight", self.head);
        let tied = match self.store.slot(&stored_head) {
            Some(_) if self.declared.architecture.tied => {
                // As transformers 5 does: a head that differs from the embedding stands.
                let (a, b) = (self.store.view(&embedding)?, self.store.view(&stored_head)?);
                a.dtype == b.dtype && a.shape == b.shape && a.bytes == b.bytes
            }
            _ => self.declared.architecture.tied,
        };
        self.declared.architecture.tied = tied;
        Ok(())
    }

    /// Finds every tensor that the model needs, and checks its shape and number format.
    fn bind(&mut self) -> Result<()> {
        let a = self.architecture();
        let mut used = Vec::new();
        for spec in self.naming.specs {
            if spec.role == Role::Head && a.tied && self.declared.bias(Role::Head) == Bias::Never {
                continue;
            }
            let (out, inn) = names::shape(a, spec.role);
            let rows = self.packing(spec, out).stored_rows();
            let expected = match inn {
                Some(inn) if spec.transposed => vec![inn, rows],
                Some(inn) => vec![rows, inn],
                None => vec![rows],
            };
            let layers = if spec.role.in_layer() { a.layers } else { 1 };
            for layer in 0..layers {
                let name = self.name(spec, Part::Weight, layer);
                if spec.role != Role::Head || !a.tied {
                    let view = self.expect(&name, &expected)?;
                    if spec.transposed && view.dtype.block_len() > 1 {
                        return Err(Error::Unsupported {
                            what: format!("tensor `{name}`: a transposed matrix in {}", view.dtype.name()),
                            known: Some("F32, F16, BF16".into()),
                        });
                    }
                    used.push(name);
                }
                let bias = self.name(spec, Part::Bias, layer);
                if self.has_bias(spec.role, &bias) {
                    self.expect(&bias, &[rows])?;
                    used.push(bias);
                }
            }
        }
        let mut seen = HashSet::new();
        used.retain(|name| seen.insert(name.clone()));
        self.used = used;
        Ok(())
    }

    fn expect(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>> {
        let view = self.store.view(name)?;
        if view.shape != shape {
            return Err(Error::Shape {
                name: name.to_owned(),
                expected: shape.to_vec(),
                found: view.shape.to_vec(),
            });
        }
        Ok(view)
    }

    /// Lists what is left over, and refuses layers beyond the declared ones.
    fn sort_out_the_rest(&mut self) -> Result<()> {
        let used: HashSet<&str> = self.used.iter().map(String::as_str).collect();
        let stem = format!("{}{}", self.prefix, self.naming.layer);
        let layers = self.architecture().layers;
        let tied_head = format!("{}.weight", self.head);
        let mut unused = Vec::new();
        for slot in &self.store.slots {
            if used.contains(slot.name.as_str()) {
                continue;
            }
            let digits = slot.name.strip_prefix(&stem).and_then(|rest| rest.split('.').next());
            if let Some(layer) = digits.and_then(|d| d.parse::<usize>().ok())
                && layer >= layers
            {
                return Err(Error::Corrupt {
                    path: self.store.files[slot.file].path.clone(),
                    format: match self.container {
                        Container::Gguf => "GGUF",
                        Container::Safetensors => "safetensors",
                    },
                    what: format!(
                        "tensor `{}` belongs to layer {layer}, but {layers} layers are declared",
                        slot.name
                    ),
                });
            }
            let is_copy_of_embedding = self.architecture().tied && slot.name == tied_head;
            if !is_copy_of_embedding && !names::is_ignorable(&slot.name) {
                unused.push(slot.name.clone());
            }
        }
        self.unused = unused;
        Ok(())
    }

    fn spec(&self, role: Role) -> Option<&'static Spec> {
        self.naming.specs.iter().find(|s| s.role == role)
    }

    /// The role whose weight stands for this one's.
    fn resolve(&self, role: Role) -> Role {
        if role == Role::Head && self.architecture().tied { Role::Embedding } else { role }
    }

    fn has_bias(&self, role: Role, name: &str) -> bool {
        match self.declared.bias(role) {
            Bias::Never => false,
            Bias::Always => true,
            Bias::IfPresent => self.store.contains(name),
        }
    }

    fn name(&self, spec: &Spec, part: Part, layer: usize) -> String {
        let ending = match part {
            Part::Weight => "weight",
            Part::Bias => "bias",
        };
        format!("{}.{ending}", self.naming.module(self.prefix, self.head, spec, layer))
    }

    fn packing(&self, spec: &Spec, out: usize) -> Packing {
        Packing::new(spec.rows, out, self.architecture())
    }

    fn check_layer(&self, role: Role, layer: usize) -> Result<()> {
        let layers = self.architecture().layers;
        if role.in_layer() && layer >= layers {
            return Err(Error::input_hint(
                format!("the model has no layer {layer}"),
                format!("it has {layers} layers, 0 to {}", layers - 1),
            ));
        }
        Ok(())
    }
}

/// The prefix under which the embedding is found.
fn prefix(naming: &'static Naming, store: &Store) -> Result<&'static str> {
    let embedding = naming.specs.iter().find(|s| s.role == Role::Embedding).map_or("", |s| s.name);
    let found = naming.prefixes.iter().find(|p| store.contains(&format!("{p}{embedding}.weight")));
    found
        .copied()
        .ok_or_else(|| Error::MissingTensor { name: format!("{}{embedding}.weight", naming.prefixes[0]) })
}
