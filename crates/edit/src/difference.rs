//! The difference of two checkpoints as a patch: what a merged adapter, a fine-tuning or an edit by
//! another program changed.

use std::collections::BTreeSet;

use faer::Mat;
use mutandis_engine::architecture::Part;
use mutandis_engine::checkpoint::{Checkpoint, Dtype, TensorView};
use mutandis_engine::{Architecture, Model, Role, WeightId};
use rayon::prelude::*;
use serde_json::json;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::patch::{Patch, WeightChange};
use crate::primitives::singular::Singular;

/// Highest rank that is looked for.
const MOST: usize = 128;

/// Most of a difference's norm that rounding may be where a low rank is looked for: of what is
/// nearly all rounding, a low rank would keep nothing.
const LEFT_OUT: f64 = 0.1;

/// What two checkpoints differ in.
#[derive(Debug)]
pub struct Difference {
    /// The linear maps that differ.
    pub patch: Patch,
    /// Tensors that differ and that no patch can change, by the edited checkpoint's names.
    pub skipped: Vec<String>,
}

/// What was changed in `edited`, as a patch of `base`. The containers may be different.
///
/// A difference is low-rank where a low rank explains it up to the rounding of `edited`'s storage,
/// and else kept whole. Where the two are stored in different number formats, a tensor that differs
/// by no more than both roundings, and not by a low rank, has not changed.
///
/// # Errors
/// Where the architectures differ, or nothing does; where a tensor differs that is no linear map,
/// unless `linear_only`.
pub fn between(base: &Model, edited: &Checkpoint, linear_only: bool, cx: &Context<'_>) -> Result<Difference> {
    same_sizes(base.architecture(), edited.architecture())?;
    let a = base.architecture();
    // A head that is the embedding is no map of its own.
    let own_head = !(a.tied && edited.architecture().tied);
    let (mut linear, mut others) = (vec![], vec![]);
    for role in Role::ALL {
        for layer in 0..if role.in_layer() { a.layers } else { 1 } {
            let is_linear = base.linear_shape(role, layer).is_ok() && (role != Role::Head || own_head);
            if is_linear {
                linear.push(WeightId { layer, role });
            } else if role != Role::Head {
                others.push((role, Part::Weight, layer));
            }
            others.push((role, Part::Bias, layer));
        }
    }
    let mut skipped = BTreeSet::new();
    for (role, part, layer) in others {
        if let Some(name) = differs(base.checkpoint(), edited, role, part, layer)? {
            skipped.insert(name);
        }
    }
    if let Some(first) = skipped.first().filter(|_| !linear_only) {
        return Err(Error::input_hint(
            format!(
                "{} tensors differ that are no linear maps, and no patch can change them: `{first}`{}",
                skipped.len(),
                if skipped.len() > 1 { " and others" } else { "" }
            ),
            "leave them as they are with `--linear-only`; the patch is not the whole difference then",
        ));
    }
    cx.progress.begin("comparing weights", linear.len());
    let mut changes = vec![];
    // A few at a time: each is a matrix of f64.
    let mut done = 0;
    for ids in linear.chunks(rayon::current_num_threads()) {
        cx.check()?;
        let found: Vec<Option<_>> =
            ids.par_iter().map(|id| changed(base.checkpoint(), edited, *id)).collect::<Result<_>>()?;
        changes.extend(found.into_iter().flatten());
        done += ids.len();
        cx.progress.step(done);
    }
    cx.progress.end();
    if changes.is_empty() {
        return Err(Error::input_hint(
            "no linear map differs between the two checkpoints",
            "give the base first and what it became second",
        ));
    }
    let settings = json!({"from": "difference", "edited": edited.fingerprint(), "skipped": skipped.len()});
    let mut patch = Patch::imported(base, settings)?;
    for (id, change) in changes {
        patch.push(base, id, change)?;
    }
    Ok(Difference { patch, skipped: skipped.into_iter().collect() })
}

/// Refuses models of which one is no edit of the other.
fn same_sizes(base: &Architecture, edited: &Architecture) -> Result<()> {
    let sizes =
        |a: &Architecture| [a.layers, a.width, a.mlp_width, a.heads, a.kv_heads, a.head_width, a.vocabulary];
    if base.family == edited.family && sizes(base) == sizes(edited) {
        return Ok(());
    }
    let named = |a: &Architecture| {
        format!(
            "{:?} of {} layers, width {}, MLP {}, vocabulary {}",
            a.family, a.layers, a.width, a.mlp_width, a.vocabulary
        )
    };
    Err(Error::input_hint(
        format!("the two are different architectures: {}; {}", named(base), named(edited)),
        "give a base and what was made of it",
    ))
}

/// The name of a tensor that is not the same in both; `None` where it is, or neither has it.
fn differs(
    base: &Checkpoint,
    edited: &Checkpoint,
    role: Role,
    part: Part,
    layer: usize,
) -> Result<Option<String>> {
    let (before, after) = (base.tensor_name(role, part, layer), edited.tensor_name(role, part, layer));
    let (before, after) = match (before, after) {
        (None, None) => return Ok(None),
        (Some(before), Some(after)) => (base.tensor(&before)?, edited.tensor(&after)?),
        (Some(name), None) | (None, Some(name)) => return Ok(Some(name)),
    };
    if base.container() == edited.container() && same_bytes(&before, &after) {
        return Ok(None);
    }
    let canonical = |of: &Checkpoint| match of.vector(role, part, layer)? {
        Some(vector) => Ok(vector),
        None => Ok::<_, Error>(of.matrix(role, layer)?.map(|m| m.to_f32()).unwrap_or_default()),
    };
    let (old, new) = (canonical(base)?, canonical(edited)?);
    let delta: Vec<f32> = new.iter().zip(&old).map(|(n, o)| n - o).collect();
    let most = explained(before.dtype, &old, after.dtype, &new);
    Ok((norm(&delta) > most).then(|| after.name.to_owned()))
}

/// The change of a linear map; `None` where it is the same.
fn changed(base: &Checkpoint, edited: &Checkpoint, id: WeightId) -> Result<Option<(WeightId, WeightChange)>> {
    let (Some(before), Some(after)) = (base.matrix(id.role, id.layer)?, edited.matrix(id.role, id.layer)?)
    else {
        return Ok(None);
    };
    if before.dtype == after.dtype && before.bytes == after.bytes {
        return Ok(None);
    }
    after.check_finite(&edited.tensor_name(id.role, Part::Weight, id.layer).unwrap_or_default())?;
    let (old, new) = (before.to_f32(), after.to_f32());
    let delta: Vec<f32> = new.iter().zip(&old).map(|(n, o)| n - o).collect();
    let size = norm(&delta);
    let found =
        |most: f64| if most <= LEFT_OUT * size { low_rank(&delta, after.inn, most) } else { Ok(None) };
    // Noise between two formats is of full rank: what is not has been edited, however little.
    if let Some(change) = found(rounding(after.dtype, &new))? {
        return Ok(Some((id, change)));
    }
    let between = explained(before.dtype, &old, after.dtype, &new);
    if size <= between {
        return Ok(None);
    }
    let change = found(between)?.unwrap_or(WeightChange::Dense {
        out: after.out,
        inn: after.inn,
        delta: delta.clone(),
    });
    Ok(Some((id, change)))
}

/// How far two tensors can be apart without anything having changed: not at all in one format.
fn explained(before: Dtype, old: &[f32], after: Dtype, new: &[f32]) -> f64 {
    if before == after { 0.0 } else { rounding(before, old) + rounding(after, new) }
}

/// The smallest rank that leaves out no more than `most` of ‖Δ‖, where it takes less room than Δ.
fn low_rank(delta: &[f32], inn: usize, most: f64) -> Result<Option<WeightChange>> {
    let out = delta.len() / inn;
    let whole = Mat::from_fn(out, inn, |i, j| f64::from(delta[i * inn + j]));
    let found = Singular::leading(whole.as_ref(), MOST)?;
    let rank = found.rank_within(most * most).filter(|rank| rank * (out + inn) < out * inn);
    Ok(rank.map(|rank| {
        let (left, right) = found.factors(rank);
        WeightChange::LowRank { rank, left, right }
    }))
}

/// The largest norm that rounding to a format can give numbers that it holds: half a step each.
fn rounding(dtype: Dtype, values: &[f32]) -> f64 {
    let relative = |bits: i32| norm(values) * f64::from(-bits).exp2();
    // A block's steps divide its range; the last bit that a scale loses is little beside them.
    let in_blocks = |length: usize, steps: f64| {
        let half = |block: &[f32]| {
            let (low, high) = block.iter().fold((0.0f32, 0.0f32), |(l, h), x| (l.min(*x), h.max(*x)));
            f64::from(high - low) / steps / 2.0
        };
        values.chunks(length).map(|b| half(b).powi(2) * b.len() as f64).sum::<f64>().sqrt()
    };
    match dtype {
        Dtype::F32 => relative(24),
        Dtype::F16 => relative(11),
        Dtype::Bf16 => relative(8),
        Dtype::Q8_0 => in_blocks(32, 127.0),
        Dtype::Q4_0 | Dtype::Q4_1 | Dtype::Q4_K => in_blocks(32, 15.0),
        Dtype::Q5_0 | Dtype::Q5_1 | Dtype::Q5_K => in_blocks(32, 31.0),
        Dtype::Q2_K => in_blocks(16, 3.0),
        Dtype::Q3_K => in_blocks(16, 7.0),
        Dtype::Q6_K => in_blocks(16, 63.0),
    }
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

fn same_bytes(a: &TensorView<'_>, b: &TensorView<'_>) -> bool {
    a.dtype == b.dtype && a.shape == b.shape && a.bytes == b.bytes
}
