//! Patches as LoRA adapters, and adapters as patches (LoRA: arXiv 2106.09685).
//!
//! An adapter holds `ΔW = B · A` by the names that other programs have for a model's modules: those
//! of transformers for `peft`, those of GGUF for llama.cpp. A patch speaks of canonical weights;
//! [`Place`] says which rows of which module they are.

mod factors;
mod gguf;
mod peft;

use std::collections::BTreeMap;
use std::path::Path;

use mutandis_engine::architecture::Family;
use mutandis_engine::checkpoint::{Container, Place};
use mutandis_engine::{Architecture, Model, Role, WeightId};
use rayon::prelude::*;
use serde_json::json;

use crate::atomic::folder_of;
use crate::error::{Error, Result};
use crate::patch::{Patch, WeightChange};
use factors::Factors;

/// An adapter: low-rank changes of modules.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// Whose names its modules have, and whose layout it is written in: `peft`'s folder for
    /// safetensors, llama.cpp's file for GGUF.
    pub container: Container,
    /// Family of the model.
    pub family: Family,
    /// Rank that every module is written with: the largest there is, or the one asked for.
    pub rank: usize,
    /// The modules that change, in the order of layers.
    pub modules: Vec<Module>,
}

/// The change of one module, `ΔW [out, in] = B · A`.
#[derive(Debug, Clone, PartialEq)]
pub struct Module {
    /// Name in the container's convention.
    pub name: String,
    /// Its own rank.
    pub rank: usize,
    /// `[rank, in]`, row-major.
    pub a: Vec<f32>,
    /// `[out, rank]`, row-major.
    pub b: Vec<f32>,
    /// ‖ΔW − B·A‖ / ‖ΔW‖, Frobenius: what the rank was too small for.
    pub lost: f64,
}

impl Adapter {
    /// The changes of patches, added up, as an adapter.
    ///
    /// Low-rank changes are exact, whatever their rank. Of dense ones, which are tried up to a rank
    /// of 64, as much is kept as makes 99.9 % of the norm, and all where that is exact. With a
    /// `rank` every module has that one.
    ///
    /// # Errors
    /// Where a patch belongs to another base, or is a prompt; where nothing changes, or the changed
    /// weight has no module of its own; where the rank is 0 or above that of a matrix.
    pub fn new(patches: &[Patch], model: &Model, container: Container, rank: Option<usize>) -> Result<Self> {
        for patch in patches {
            // Also checks base, shapes and numbers.
            patch.overlay(model)?;
            if patch.prefix.as_deref().is_some_and(|p| !p.is_empty()) {
                return Err(Error::input_hint(
                    format!("a patch of `{}` is a prompt, which no adapter can hold", patch.method),
                    "put its text before your prompts: `mutandis patch show` prints it; or make the edit with a method that changes weights",
                ));
            }
        }
        let a = model.architecture();
        let mut modules: Vec<(String, Vec<(Place, &WeightChange)>)> = vec![];
        let mut changes: Vec<_> = patches.iter().flat_map(|p| &p.weights).collect();
        changes.sort_by_key(|(id, _)| *id);
        for (id, change) in changes {
            let (name, place) = module(a, container, *id)?;
            match modules.iter_mut().find(|(known, _)| *known == name) {
                Some((_, parts)) => parts.push((place, change)),
                None => modules.push((name, vec![(place, change)])),
            }
        }
        let modules: Vec<Module> = modules
            .par_iter()
            .map(|(name, parts)| {
                let Factors { rank, a, b, lost } = factors::of(name, parts, rank)?;
                Ok(Module { name: name.clone(), rank, a, b, lost })
            })
            .collect::<Result<_>>()?;
        let modules: Vec<Module> = modules.into_iter().filter(|m| m.rank > 0).collect();
        let largest = modules.iter().map(|m| m.rank).max().ok_or_else(|| {
            Error::input_hint(
                "the patches change no weight, so there is nothing to put into an adapter",
                "give patches of a method that changes weights: `mutandis patch show` says what one changes",
            )
        })?;
        Ok(Self { container, family: a.family, rank: rank.unwrap_or(largest), modules })
    }

    /// Reads an adapter: a folder that `peft` wrote, which one of its two files stands for, or
    /// llama.cpp's GGUF file. Scales are multiplied in.
    ///
    /// # Errors
    /// Where it is no such adapter, is damaged, or holds what no change of weights can (DoRA,
    /// biases, embeddings, modules saved whole), by name.
    pub fn read(path: &Path, family: Family) -> Result<Self> {
        let is_part = path.file_name().is_some_and(|name| name == peft::CONFIG || name == peft::WEIGHTS);
        match path.is_dir() {
            true => peft::read(path, family),
            false if is_part => peft::read(folder_of(path), family),
            false => gguf::read(path, family),
        }
    }

    /// Writes it, whole or not at all. Alpha is the rank, so that its scale is 1.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        match self.container {
            Container::Safetensors => peft::write(self, path),
            Container::Gguf => gguf::write(self, path),
        }
    }

    /// The adapter as a patch of a model.
    ///
    /// # Errors
    /// Where the model has no such module, its shape is another, or a rank is above the matrix's; where
    /// it changes nothing.
    pub fn patch(&self, model: &Model) -> Result<Patch> {
        let known = places(model, self.container);
        let from = match self.container {
            Container::Safetensors => "peft",
            Container::Gguf => "gguf-adapter",
        };
        let settings = json!({"from": from, "rank": self.rank, "modules": self.modules.len()});
        let mut patch = Patch::imported(model, settings)?;
        for m in &self.modules {
            let weights = known.get(m.name.as_str()).ok_or_else(|| unknown(&m.name, &known))?;
            for (id, place) in weights {
                m.check(place)?;
                let rows = model.linear_shape(id.role, id.layer)?[0];
                let left: Vec<f32> = (0..rows).flat_map(|row| m.row(place.row(row))).copied().collect();
                if left.iter().all(|x| *x == 0.0) {
                    continue;
                }
                let right = (0..place.inn).flat_map(|j| (0..m.rank).map(move |i| m.a[i * place.inn + j]));
                patch.push(
                    model,
                    *id,
                    WeightChange::LowRank { rank: m.rank, left, right: right.collect() },
                )?;
            }
        }
        if patch.norms.iter().all(|norms| norms.delta == 0.0) {
            return Err(Error::input_hint(
                format!(
                    "the adapter changes nothing: B · A is 0 in all of its {} modules",
                    self.modules.len()
                ),
                "it was saved before it was trained: give one that was",
            ));
        }
        Ok(patch)
    }
}

impl Module {
    /// A row of B.
    fn row(&self, row: usize) -> &[f32] {
        &self.b[row * self.rank..(row + 1) * self.rank]
    }

    /// B with columns of zeros up to a rank, `[out, rank]`.
    fn padded_b(&self, rank: usize) -> Vec<f32> {
        let zeros = vec![0.0; rank - self.rank];
        self.b.chunks_exact(self.rank).flat_map(|row| [row, &zeros].concat()).collect()
    }

    /// A with rows of zeros up to a rank, `[rank, in]`.
    fn padded_a(&self, rank: usize) -> Vec<f32> {
        let mut a = self.a.clone();
        a.resize(self.a.len() / self.rank * rank, 0.0);
        a
    }

    /// That it fits the module.
    fn check(&self, place: &Place) -> Result<()> {
        let (rows, inn, rank) = (place.rows(), place.inn, self.rank);
        if self.a.len() != rank * inn || self.b.len() != rows * rank {
            return Err(Error::input_hint(
                format!(
                    "the adapter's `{}` is [{}, {}], the model's is [{rows}, {inn}]",
                    self.name,
                    self.b.len() / rank,
                    self.a.len() / rank
                ),
                "give the model that the adapter was trained on with `--model`",
            ));
        }
        check_rank(&self.name, rank, rows, inn)
    }
}

/// Multiplies the scale that an α gives into B; `setting` is what it is called.
fn scale(module: &str, setting: &str, alpha: f64, by: f64, b: &mut [f32]) -> Result<()> {
    b.iter_mut().for_each(|x| *x = (f64::from(*x) * by) as f32);
    if b.iter().all(|x| x.is_finite()) {
        return Ok(());
    }
    Err(Error::input_hint(
        format!("`{setting}` is {alpha:e}: multiplied by it, the factors of `{module}` overflow"),
        "adapters have an α of about their rank: give one whose α is as it was trained",
    ))
}

/// Refuses a rank that a matrix cannot have.
fn check_rank(name: &str, rank: usize, rows: usize, inn: usize) -> Result<()> {
    let most = rows.min(inn);
    if (1..=most).contains(&rank) {
        return Ok(());
    }
    Err(Error::input_hint(
        format!("`{name}` is [{rows}, {inn}] and cannot have the rank {rank}"),
        format!("1 to {most} can be"),
    ))
}

/// The module that holds a weight, by its usual name.
fn module(a: &Architecture, container: Container, id: WeightId) -> Result<(String, Place)> {
    if container == Container::Gguf && id.role == Role::Head && a.tied {
        return Err(Error::input_hint(
            "a GGUF of this model has no head of its own, so llama.cpp cannot change it by an adapter",
            "write the adapter for `peft`, or make the edit in another weight",
        ));
    }
    let place = Place::of(a, container, id.role, id.layer);
    place.and_then(|place| Some((place.names.first()?.clone(), place))).ok_or_else(|| {
        Error::input(format!(
            "`{}` of layer {} has no module that an adapter could change",
            id.role, id.layer
        ))
    })
}

/// The linear maps of a model by all the names that their modules have.
fn places(model: &Model, container: Container) -> BTreeMap<String, Vec<(WeightId, Place)>> {
    let a = model.architecture();
    let mut places: BTreeMap<String, Vec<(WeightId, Place)>> = BTreeMap::new();
    for role in Role::ALL {
        for layer in 0..if role.in_layer() { a.layers } else { 1 } {
            let Some(place) = Place::of(a, container, role, layer) else { continue };
            if model.linear_shape(role, layer).is_err() {
                continue;
            }
            for name in &place.names {
                places.entry(name.clone()).or_default().push((WeightId { layer, role }, place.clone()));
            }
        }
    }
    places
}

fn unknown(name: &str, known: &BTreeMap<String, Vec<(WeightId, Place)>>) -> Error {
    let nearest = crate::fact::nearest(name, known.keys().map(String::as_str));
    Error::input_hint(
        format!("the adapter changes `{name}`, which is no linear map of this model"),
        match nearest {
            Some(near) => format!("the nearest is `{near}`; give the model that the adapter was trained on with `--model`"),
            None => "give the model that the adapter was trained on with `--model`; embeddings, norms and experts are not read".into(),
        },
    )
}
