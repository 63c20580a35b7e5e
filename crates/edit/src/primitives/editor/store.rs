//! Editors as files.

use std::collections::BTreeMap;
use std::path::Path;

use mutandis_engine::{Model, WeightId};
use safetensors::tensor::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::network::Size;
use super::{Editor, Rule, Shared};
use crate::checked::{Checked, Kind, Tensor};
use crate::error::{Error, Result};
use crate::primitives::adam::Adam;
use crate::primitives::normaliser::Running;

const KIND: Kind = Kind { entry: "mutandis.editor", format: 1, what: "editor file" };

/// What a file says of an editor besides its numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// Method that it is for.
    pub method: String,
    /// Fingerprint of the model that it was trained for.
    pub base: String,
    /// Settings of the training.
    pub settings: Value,
    /// blake3 of the records.
    pub data: String,
    /// Seed.
    pub seed: u64,
    /// Steps taken.
    pub steps: usize,
    /// What it reached on records that were held out, if it was ever tried.
    pub reached: Option<super::training::Scores>,
    /// In an unfinished training, validations since the best.
    pub stale: usize,
}

#[derive(Serialize, Deserialize)]
struct Body {
    about: About,
    rule: Rule,
    rank: usize,
    blocks: usize,
    weights: Vec<(WeightId, [usize; 2])>,
    /// Steps that the optimizers have taken, in an unfinished training.
    optimizers: Vec<i32>,
}

/// Writes an editor; with its optimizers, where its training goes on.
///
/// # Errors
/// Where the file cannot be written.
pub(super) fn save(path: &Path, editor: &Editor, about: &About, optimizers: &[Adam]) -> Result<()> {
    let Some(size) = editor.shared.values().next().map(|s| s.size) else { return Ok(()) };
    let body = Body {
        about: about.clone(),
        rule: editor.rule,
        rank: size.rank,
        blocks: size.blocks,
        weights: editor.weights.clone(),
        optimizers: optimizers.iter().map(|a| a.steps).collect(),
    };
    let mut numbers: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for (shape, shared) in &editor.shared {
        numbers.insert(name(*shape, "network"), shared.numbers.clone());
        numbers.insert(name(*shape, "statistics"), shared.statistics.to_state());
    }
    numbers.insert("rates".into(), editor.rates.clone());
    numbers.insert("ridges".into(), editor.ridges.clone());
    for (i, adam) in optimizers.iter().enumerate() {
        numbers.insert(format!("optimizer.{i:03}"), adam.to_state());
    }
    let tensors: Vec<Tensor<'_>> = numbers
        .iter()
        .map(|(name, x)| (name.clone(), Dtype::F32, vec![x.len()], bytemuck::cast_slice(x)))
        .collect();
    KIND.write(path, body, tensors)
}

/// What a file says of the editor in it, unverified; nothing where it holds none.
pub fn about(path: &Path) -> Option<About> {
    KIND.peek::<Body>(path).map(|body| body.about)
}

/// Reads an editor, what is said of it, and its optimizers.
///
/// # Errors
/// Where the file cannot be read or is damaged.
pub(super) fn load(path: &Path) -> Result<(Editor, About, Vec<Adam>)> {
    let file = KIND.read::<Body>(path)?;
    let body = &file.body;
    let mut shared = BTreeMap::new();
    for &(_, shape) in &body.weights {
        let size = Size {
            width: shape[0].saturating_add(shape[1]),
            rank: body.rank,
            blocks: body.blocks,
            weights: body.weights.iter().filter(|(_, other)| *other == shape).count(),
            rectify_last: body.rule == Rule::LeastSquares,
        };
        let numbers = finite(&file, &name(shape, "network"), size.numbers())?;
        let state: Vec<f32> = file.numbers(&name(shape, "statistics"), Dtype::F32)?;
        let statistics = Running::from_state(&state, size.width, false)
            .ok_or_else(|| file.corrupt("its statistics have another width"))?;
        shared.insert(shape, Shared { size, numbers, statistics });
    }
    let count = body.weights.len();
    let (rates, ridges) = (finite(&file, "rates", count)?, finite(&file, "ridges", count)?);
    let mut editor = Editor { rule: body.rule, weights: body.weights.clone(), shared, rates, ridges };
    let lengths: Vec<usize> = editor.numbers_mut().iter().map(|n| n.len()).collect();
    let optimizers = body
        .optimizers
        .iter()
        .zip(lengths)
        .enumerate()
        .map(|(i, (steps, len))| {
            Ok(Adam::from_state(*steps, finite(&file, &format!("optimizer.{i:03}"), 2 * len)?))
        })
        .collect::<Result<_>>()?;
    Ok((editor, file.body.about, optimizers))
}

/// Reads a trained editor of a method for a model.
///
/// # Errors
/// As [`load`]; where it is for another method or model.
pub(super) fn load_for(path: &Path, method: &str, model: &Model) -> Result<Editor> {
    let (editor, about, _) = load(path)?;
    if about.method != method {
        return Err(Error::input_hint(
            format!("{} is an editor of `{}`, not of `{method}`", path.display(), about.method),
            format!("`--method {}` uses it", about.method),
        ));
    }
    if about.base != model.fingerprint()? {
        return Err(Error::input_hint(
            format!("{} was trained for another model", path.display()),
            format!(
                "an editor fits the weights that it was trained on; train one: `mutandis train {method}`"
            ),
        ));
    }
    editor.check(model)?;
    Ok(editor)
}

fn finite(file: &Checked<'_, Body>, name: &str, len: usize) -> Result<Vec<f32>> {
    let numbers: Vec<f32> = file.numbers(name, Dtype::F32)?;
    if numbers.len() != len || !numbers.iter().all(|x| x.is_finite()) {
        return Err(file
            .corrupt(format!("tensor `{name}` has {} numbers, expected {len} finite ones", numbers.len())));
    }
    Ok(numbers)
}

/// Name of a tensor.
fn name([out, inn]: [usize; 2], what: &str) -> String {
    format!("{out}x{inn}.{what}")
}
