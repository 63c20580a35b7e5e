//! Statistics of gradients before the first edit, from text that the model writes; once for a
//! model.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use mutandis_engine::{Model, WeightId};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::json;

use super::Statistics;
use crate::atomic;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::primitives::answers::{Answers, Example};
use crate::primitives::contexts::{self, ContextSpec};
use crate::primitives::grad_pairs::grad_pairs;

/// Length of a text in tokens, and how many of its last ones are taken for targets.
const TEXT: (usize, usize) = (16, 4);
/// Version of what is kept: raised when the texts or the form change.
const FORMAT: u32 = 1;

/// Fills statistics of shapes that have none with gradients of the unedited model, from the
/// context's memo or cache, or measured.
///
/// # Errors
/// Where the model has no tokenizer or cannot be run, or the user stops the work.
pub(super) fn warm_up(
    statistics: &mut Statistics,
    model: &Model,
    ids: &[WeightId],
    count: usize,
    seed: u64,
    cx: &Context<'_>,
) -> Result<()> {
    let identity = json!({
        "format": FORMAT, "base": model.fingerprint()?, "weights": ids, "texts": count, "seed": seed,
        "form": format!("{:?}", statistics.normalise),
    });
    let key = blake3::hash(identity.to_string().as_bytes()).to_hex()[..32].to_owned();
    let path = cx.cache.as_ref().map(|c| c.join("gradients").join(format!("{key}.safetensors")));
    let state = cx.memo.get(format!("gradients {key}"), || {
        let mut measured = statistics.emptied();
        if let Some(state) = path.as_deref().and_then(load) {
            measured.take(&state);
            if !measured.lack() {
                return Ok(state);
            }
            measured = statistics.emptied();
        }
        measure(&mut measured, model, ids, count, seed, cx)?;
        let state = measured.to_state();
        if let Some(path) = &path
            && let Err(e) = save(path, &state)
        {
            cx.progress.note(&format!("statistics of gradients could not be kept: {e}"));
        }
        Ok(state)
    })?;
    statistics.take(&state);
    Ok(())
}

/// Texts of the model's own, and tokens of other places of theirs as targets: what an edit is like,
/// an answer that the model does not give.
fn measure(
    statistics: &mut Statistics,
    model: &Model,
    ids: &[WeightId],
    count: usize,
    seed: u64,
    cx: &Context<'_>,
) -> Result<()> {
    let spec = ContextSpec { lengths: vec![(TEXT.0, count)], seed, ..ContextSpec::default() };
    let tokenizer = model.tokenizer()?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut examples = vec![];
    // The first has no text of its own.
    for template in contexts::sampled(model, &spec, cx)?.iter().skip(1) {
        let tokens = tokenizer.encode(template.trim_end_matches("{}").trim_end())?.ids;
        if tokens.len() < TEXT.1 + 2 {
            continue;
        }
        let from = tokens.len() - TEXT.1;
        let targets = (from..tokens.len()).map(|row| {
            let other = rng.next_u64() % tokens.len() as u64;
            (row, tokens[other as usize])
        });
        examples.push(Example { targets: targets.collect(), tokens });
    }
    let lowest = ids.iter().map(|id| id.layer).min().unwrap_or(0);
    let answers = Answers::new(model, &[], &examples, lowest)?;
    let all: Vec<usize> = (0..examples.len()).collect();
    cx.progress.begin("measuring gradients", all.len());
    for (i, some) in all.chunks(64).enumerate() {
        cx.check()?;
        statistics.add(&grad_pairs(model, &answers, some, ids, &[])?.pairs);
        cx.progress.step(i * 64 + some.len());
    }
    cx.progress.end();
    Ok(())
}

/// A kept state; none where the file is not sound.
fn load(path: &Path) -> Option<BTreeMap<String, Vec<f32>>> {
    let bytes = std::fs::read(path).ok()?;
    let tensors = SafeTensors::deserialize(&bytes).ok()?;
    let each = tensors.tensors().into_iter().map(|(name, tensor)| {
        let values: Vec<f32> =
            tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let sound = tensor.dtype() == Dtype::F32 && values.iter().all(|x| x.is_finite());
        sound.then_some((name, values))
    });
    each.collect()
}

fn save(path: &Path, state: &BTreeMap<String, Vec<f32>>) -> Result<()> {
    let wrong = |e: safetensors::SafeTensorError| Error::input(format!("{e:?}"));
    let views: Result<Vec<_>> = state
        .iter()
        .map(|(name, values)| {
            let bytes = bytemuck::cast_slice(values);
            Ok((name, TensorView::new(Dtype::F32, vec![values.len()], bytes).map_err(wrong)?))
        })
        .collect();
    let bytes = safetensors::serialize(views?, None::<HashMap<String, String>>).map_err(wrong)?;
    let folder = atomic::folder_of(path);
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    atomic::write(path, |file| file.write_all(&bytes)).map_err(Error::io("write", path))
}
