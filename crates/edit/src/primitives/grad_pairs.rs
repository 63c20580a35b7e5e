//! Inputs of linear maps and the gradients of their outputs, at the rows that predict an answer:
//! what UltraEdit, StableEdit, MEND and MALMEN make a change of (methods.md §2.3).

use mutandis_engine::backward::Pair;
use mutandis_engine::{Model, Overlay, Wants, WeightId};

use super::answers::{Aim, Answers, Passed};
use crate::error::Result;
use crate::patch::WeightChange;

/// Of some examples.
pub(super) struct Collected {
    /// One per weight, in the order asked for; rows as in `owners`.
    pub(super) pairs: Vec<Pair>,
    /// The example that each row is of, as its place in what was asked for.
    pub(super) owners: Vec<usize>,
    /// How far each row is from its target; of several targets, from the farthest.
    pub(super) aims: Vec<Aim>,
}

impl Collected {
    /// Mean loss, in nats, of the rows of all examples.
    pub(super) fn loss(&self) -> f64 {
        self.aims.iter().map(|aim| f64::from(aim.loss)).sum::<f64>() / self.aims.len().max(1) as f64
    }
}

/// Collects pairs of weights over examples, the loss being the sum of each one's mean.
///
/// # Errors
/// Where the model cannot be run, or has no such weight.
pub(super) fn grad_pairs(
    model: &Model,
    answers: &Answers<'_>,
    which: &[usize],
    weights: &[WeightId],
    overlays: &[&Overlay],
) -> Result<Collected> {
    let mut pairs = vec![Pair::default(); weights.len()];
    let (mut owners, mut aims, mut seen) = (vec![], vec![], 0);
    let mut rest = which;
    while !rest.is_empty() {
        let (now, later) = answers.split(rest);
        rest = later;
        let Passed { aims: each, logits, tape, .. } = answers.run(now, overlays, 1.0)?;
        let wants = Wants { logits, pairs: weights.to_vec(), ..Default::default() };
        let found = model.backward(&tape, &wants)?.pairs;
        let (mut rows, mut start) = (vec![], 0);
        let mut each = each.into_iter();
        for (i, &example) in now.iter().enumerate() {
            let example = answers.example(example);
            let mut own: Vec<usize> = example.targets.iter().map(|(row, _)| start + row).collect();
            let of_rows = own.iter().zip(each.by_ref());
            aims.extend(farthest(of_rows));
            own.dedup();
            owners.extend(std::iter::repeat_n(seen + i, own.len()));
            rows.extend(own);
            start += example.tokens.len();
        }
        seen += now.len();
        for (to, from) in pairs.iter_mut().zip(&found) {
            for (to, from) in [(&mut to.x, &from.x), (&mut to.dy, &from.dy)] {
                let width = from.len() / start;
                rows.iter().for_each(|r| to.extend_from_slice(&from[r * width..(r + 1) * width]));
            }
        }
    }
    Ok(Collected { pairs, owners, aims })
}

/// What was written so far of each weight.
///
/// # Errors
/// Where a number is not finite.
pub(super) fn written(ids: &[WeightId], changes: &[Option<WeightChange>]) -> Result<Overlay> {
    let mut written = Overlay::default();
    for (id, change) in ids.iter().zip(changes) {
        if let Some(change) = change {
            written.push(*id, change.delta()?);
        }
    }
    Ok(written)
}

/// Of each run of targets of one row the one that leads least.
fn farthest<'a>(targets: impl Iterator<Item = (&'a usize, Aim)>) -> Vec<Aim> {
    let mut rows: Vec<(usize, Aim)> = vec![];
    for (&row, aim) in targets {
        match rows.last_mut() {
            Some((last, kept)) if *last == row => {
                if aim.lead < kept.lead {
                    *kept = aim;
                }
            }
            _ => rows.push((row, aim)),
        }
    }
    rows.into_iter().map(|(_, aim)| aim).collect()
}
