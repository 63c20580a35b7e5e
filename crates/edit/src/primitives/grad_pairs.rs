//! Inputs of linear maps and the gradients of their outputs, at the rows that predict an answer:
//! what UltraEdit, StableEdit, MEND and MALMEN make a change of (methods.md §2.3).

use mutandis_engine::backward::Pair;
use mutandis_engine::{Model, Overlay, Wants, WeightId};

use super::answers::{Answers, Loss, Passed};
use crate::error::Result;

/// Of some examples.
pub(super) struct Collected {
    /// One per weight, in the order asked for; rows as in `owners`.
    pub(super) pairs: Vec<Pair>,
    /// The example that each row is of, as its place in what was asked for.
    pub(super) owners: Vec<usize>,
    /// One per example.
    pub(super) losses: Vec<Loss>,
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
    let (mut owners, mut losses) = (vec![], vec![]);
    let mut rest = which;
    while !rest.is_empty() {
        let (now, later) = answers.split(rest);
        rest = later;
        let Passed { losses: more, logits, tape } = answers.run(now, overlays, 1.0)?;
        let wants = Wants { logits, pairs: weights.to_vec(), ..Default::default() };
        let found = model.backward(&tape, &wants)?.pairs;
        let (mut rows, mut start) = (vec![], 0);
        for (i, &example) in now.iter().enumerate() {
            let example = answers.example(example);
            let mut own: Vec<usize> = example.targets.iter().map(|(row, _)| start + row).collect();
            own.dedup();
            owners.extend(std::iter::repeat_n(losses.len() + i, own.len()));
            rows.extend(own);
            start += example.tokens.len();
        }
        losses.extend(more);
        for (to, from) in pairs.iter_mut().zip(&found) {
            for (to, from) in [(&mut to.x, &from.x), (&mut to.dy, &from.dy)] {
                let width = from.len() / start;
                rows.iter().for_each(|r| to.extend_from_slice(&from[r * width..(r + 1) * width]));
            }
        }
    }
    Ok(Collected { pairs, owners, losses })
}
