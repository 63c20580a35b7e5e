//! The factors of a sum of changes, in f64.

use faer::Mat;
use mutandis_engine::checkpoint::Place;

use super::check_rank;
use crate::error::Result;
use crate::patch::WeightChange;
use crate::primitives::singular::Singular;

/// Highest rank that a dense change is written with by default.
const MOST: usize = 64;

/// Share of a dense change's norm that is kept by default.
const KEPT: f64 = 0.999;

/// `ΔW = B · A` of a module.
pub(super) struct Factors {
    /// 0 where nothing changes.
    pub(super) rank: usize,
    /// `[rank, in]`.
    pub(super) a: Vec<f32>,
    /// `[out, rank]`.
    pub(super) b: Vec<f32>,
    /// ‖ΔW − B·A‖ / ‖ΔW‖.
    pub(super) lost: f64,
}

/// Factors of all changes that weights of one module make, each at its place; of the rank given, or
/// of the one that they need.
///
/// # Errors
/// Where the matrix cannot have the rank, or a decomposition does not converge.
pub(super) fn of(name: &str, parts: &[(Place, &WeightChange)], rank: Option<usize>) -> Result<Factors> {
    let Some((first, _)) = parts.first() else {
        return Ok(Factors { rank: 0, a: vec![], b: vec![], lost: 0.0 });
    };
    let (rows, inn) = (first.rows(), first.inn);
    if let Some(rank) = rank {
        check_rank(name, rank, rows, inn)?;
    }
    let found = match side_by_side(parts, rows, inn) {
        Some((left, right)) => Singular::of_product(left.as_ref(), right.as_ref())?,
        None => Singular::leading(whole(parts, rows, inn).as_ref(), rank.unwrap_or(MOST))?,
    };
    let is_low_rank = parts.iter().all(|(_, change)| change.rank().is_some());
    let held = found.values.iter().take_while(|s| **s > 0.0).count();
    let rank = rank.unwrap_or_else(|| if is_low_rank { held } else { enough(&found) }).min(held);
    let (norm, kept) = (found.squared(), found.values[..rank].iter().map(|s| s * s).sum::<f64>());
    let (b, right) = found.factors(rank);
    let a = (0..rank).flat_map(|i| right.iter().skip(i).step_by(rank)).copied().collect();
    // Where all is kept, not the rounding of two equal sums.
    let lost = if rank == held && found.rest == 0.0 || norm == 0.0 {
        0.0
    } else {
        ((norm - kept).max(0.0) / norm).sqrt()
    };
    Ok(Factors { rank, a, b, lost })
}

/// The rank that a dense change is written with: the one that it has, and where that is above
/// [`MOST`] the smallest that keeps enough.
fn enough(found: &Singular) -> usize {
    let norm = found.squared();
    // The numbers came as f32, each off by up to half a unit in its last place.
    let exact = found.rank_within(norm * f64::from(f32::EPSILON / 2.0).powi(2));
    exact.or_else(|| found.rank_within(norm * (1.0 - KEPT * KEPT))).unwrap_or(MOST)
}

/// All factors beside each other, `[out, r]` and `[in, r]`; `None` where a change is dense.
fn side_by_side(parts: &[(Place, &WeightChange)], rows: usize, inn: usize) -> Option<(Mat<f64>, Mat<f64>)> {
    let total = parts.iter().map(|(_, change)| change.rank()).sum::<Option<usize>>()?;
    let (mut l, mut r) = (Mat::zeros(rows, total), Mat::zeros(inn, total));
    let mut at = 0;
    for (place, change) in parts {
        let WeightChange::LowRank { rank, left, right } = change else { return None };
        for (row, numbers) in left.chunks_exact(*rank).enumerate() {
            numbers.iter().enumerate().for_each(|(j, x)| l[(place.row(row), at + j)] = f64::from(*x));
        }
        for (row, numbers) in right.chunks_exact(*rank).enumerate() {
            numbers.iter().enumerate().for_each(|(j, x)| r[(row, at + j)] = f64::from(*x));
        }
        at += rank;
    }
    Some((l, r))
}

/// The sum of all changes, `[out, in]`.
fn whole(parts: &[(Place, &WeightChange)], rows: usize, inn: usize) -> Mat<f64> {
    let mut sum = Mat::zeros(rows, inn);
    for (place, change) in parts {
        let [out, inn] = change.shape();
        let mut delta = vec![0.0f32; out * inn];
        change.add_to(&mut delta);
        for (row, numbers) in delta.chunks_exact(inn).enumerate() {
            numbers.iter().enumerate().for_each(|(j, x)| sum[(place.row(row), j)] += f64::from(*x));
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(values: Vec<f64>, rest: f64) -> Singular {
        Singular { u: Mat::zeros(0, 0), values, v: Mat::zeros(0, 0), rest }
    }

    #[test]
    fn a_dense_change_keeps_its_rank_or_enough_of_its_norm() {
        assert_eq!(enough(&with(vec![4.0, 1.0, 0.01, 1e-9], 0.0)), 3);
        // More than is at hand: (16 + 1) of (17 + 0.0101) is 99.97 % of the norm, 16 of it 97 %.
        assert_eq!(enough(&with(vec![4.0, 1.0, 0.1], 1e-4)), 2);
        assert_eq!(enough(&with(vec![1.0; MOST], 1e3)), MOST);
    }
}
