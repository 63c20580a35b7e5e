//! What may be done to a change of weights once it is solved for (methods.md §2.2): steps that any
//! method can take. They end the change's low rank.

use faer::Mat;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use mutandis_engine::{Model, WeightId};

use super::singular::{Singular, values};
use crate::error::{Error, Result};
use crate::patch::{Patch, WeightChange};

/// Which steps are taken, in this order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Post {
    /// Share of the entries that are kept, those largest relative to the weight they change; the
    /// others become 0 (RECT, arXiv 2401.04700; published: 0.4). 0: all are kept.
    pub rect: f64,
    /// Base of the logarithm by which singular values of all that edits changed so far are drawn
    /// down where they exceed the unedited weight's largest (PRUNE, arXiv 2405.16821; published:
    /// 1.2). 0: they stay.
    pub prune: f64,
}

impl Post {
    /// Checks the settings.
    ///
    /// # Errors
    /// Names the first that is out of range.
    pub fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.rect) {
            let what = format!("`post.rect` is {}, expected 0 (off) to 1", self.rect);
            return Err(Error::input_hint(what, "0.4 is published"));
        }
        if self.prune != 0.0 && !(self.prune > 1.0 && self.prune.is_finite()) {
            let what = format!("`post.prune` is {}, expected 0 (off) or more than 1", self.prune);
            return Err(Error::input_hint(what, "1.2 is published"));
        }
        Ok(())
    }

    /// Takes the steps on a change of one weight. `prior` are the edits in force, oldest first, and
    /// `own` is what this edit has changed before.
    ///
    /// # Errors
    /// Where the weight does not exist or has no singular values.
    pub fn apply(
        &self,
        model: &Model,
        prior: &[Patch],
        own: &[(WeightId, WeightChange)],
        id: WeightId,
        change: WeightChange,
    ) -> Result<WeightChange> {
        if self.rect == 0.0 && self.prune == 0.0 {
            return Ok(change);
        }
        let [out, inn] = model.linear_shape(id.role, id.layer)?;
        let base = model.weight(id.role, id.layer)?;
        let mut before = vec![0.0f32; out * inn];
        let of_weight = prior.iter().flat_map(|p| &p.weights).chain(own).filter(|(weight, _)| *weight == id);
        of_weight.for_each(|(_, change)| change.add_to(&mut before));
        let mut delta = vec![0.0f32; out * inn];
        change.add_to(&mut delta);
        if self.rect > 0.0 {
            let now: Vec<f32> = base.iter().zip(&before).map(|(w, d)| w + d).collect();
            keep_largest(&mut delta, &now, self.rect);
        }
        if self.prune > 0.0 {
            let sum: Vec<f32> = before.iter().zip(&delta).map(|(b, d)| b + d).collect();
            let limit = values(wide(&base, inn).as_ref())?.first().copied().unwrap_or(0.0);
            let drawn = draw_down(&sum, inn, limit, self.prune)?;
            delta = drawn.iter().zip(&before).map(|(d, b)| d - b).collect();
        }
        Ok(WeightChange::Dense { out, inn, delta })
    }
}

/// RECT: zeroes all entries but the share with the largest |ΔW / W|.
pub fn keep_largest(delta: &mut [f32], weight: &[f32], share: f64) {
    let ratio: Vec<f32> = delta.iter().zip(weight).map(|(d, w)| (d / w).abs()).collect();
    let keep = ((share * delta.len() as f64).round() as usize).min(delta.len());
    if keep == delta.len() {
        return;
    }
    // Ties and 0/0 by position, so that exactly so many are kept.
    let mut order: Vec<usize> = (0..delta.len()).collect();
    let key = |i: &usize| if ratio[*i].is_nan() { -1.0 } else { ratio[*i] };
    order.select_nth_unstable_by(keep, |a, b| key(b).total_cmp(&key(a)).then(a.cmp(b)));
    order[keep..].iter().for_each(|&i| delta[i] = 0.0);
}

/// PRUNE: singular values σ of `delta` above `limit` become `log_b σ − log_b limit + limit`.
///
/// DIFFERENCE: where that is more than σ, as just above a limit below 1/ln b (5.5 for the published
/// base, which weights of small models do not reach), σ stays.
///
/// # Errors
/// Where the decomposition does not converge.
pub fn draw_down(delta: &[f32], inn: usize, limit: f64, base: f64) -> Result<Vec<f32>> {
    let Singular { u, values, v, .. } = Singular::of(wide(delta, inn).as_ref())?;
    let out = delta.len() / inn;
    let mut drawn = delta.to_vec();
    for (i, &value) in values.iter().enumerate().take_while(|(_, v)| **v > limit) {
        let less = (value - ((value.ln() - limit.ln()) / base.ln() + limit)).max(0.0);
        for row in 0..out {
            for column in 0..inn {
                drawn[row * inn + column] -= (less * u[(row, i)] * v[(column, i)]) as f32;
            }
        }
    }
    Ok(drawn)
}

/// A row-major matrix in f64.
fn wide(matrix: &[f32], inn: usize) -> Mat<f64> {
    Mat::from_fn(matrix.len() / inn, inn, |i, j| f64::from(matrix[i * inn + j]))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_largest_relative_changes_are_kept() {
        let mut delta = [1.0, -0.5, 0.2, 4.0];
        keep_largest(&mut delta, &[10.0, 0.1, 1.0, 100.0], 0.5);
        assert_eq!(delta, [0.0, -0.5, 0.2, 0.0]);
        let mut zero = [0.0, 1.0, 2.0];
        keep_largest(&mut zero, &[0.0, 0.0, 1.0], 1.0 / 3.0);
        assert_eq!(zero, [0.0, 1.0, 0.0]);
    }

    #[test]
    fn large_singular_values_are_drawn_down_by_their_logarithm() {
        // diag(8, 1/2) with its columns turned by a rotation.
        let (c, s) = (0.6f32, 0.8f32);
        let delta = [8.0 * c, -8.0 * s, 0.5 * s, 0.5 * c];
        let drawn = draw_down(&delta, 2, 2.0, 2.0).unwrap();
        // log₂ 8 − log₂ 2 + 2 = 4.
        for (x, wanted) in drawn.iter().zip([4.0 * c, -4.0 * s, 0.5 * s, 0.5 * c]) {
            assert!((x - wanted).abs() < 1e-6, "{drawn:?}");
        }
        // log₁.₂ 2.5 − log₁.₂ 2 + 2 = 3.2: no value grows.
        assert_eq!(draw_down(&[2.5, 0.0, 0.0, 0.5], 2, 2.0, 1.2).unwrap(), [2.5, 0.0, 0.0, 0.5]);
    }
}
