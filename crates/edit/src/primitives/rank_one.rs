//! The equality-constrained update of one key (ROME, arXiv 2202.05262, eq. 2).
//!
//! `Ŵ = W + left · uᵀ` with `u = C⁻¹k / ‖C⁻¹k‖`: of all updates that map the key to its new value,
//! the one that moves the keys of ordinary text least.

use crate::error::{Error, Result};

/// A rank-one change.
#[derive(Debug, Clone, PartialEq)]
pub struct RankOne {
    /// `[d]`.
    pub left: Vec<f32>,
    /// `u [f]`, of length 1.
    pub right: Vec<f32>,
    /// `k · u` of the key that the constraint is about: small means a huge update.
    pub denominator: f64,
}

/// Scales a direction to length 1.
///
/// # Errors
/// Where it is zero or not finite.
pub fn unit(direction: &[f64]) -> Result<Vec<f64>> {
    let length = direction.iter().map(|x| x * x).sum::<f64>().sqrt();
    if !(length.is_finite() && length > 0.0) {
        return Err(Error::Numerical { what: format!("the key's direction has length {length}") });
    }
    Ok(direction.iter().map(|x| x / length).collect())
}

/// The change that maps `key` to its present value plus `residual`, along `u`.
///
/// # Shapes
/// `u [f]` of length 1, `key [f]`, `residual [d]`.
///
/// # Errors
/// Where the key is so nearly orthogonal to `u` that the change would not be finite.
pub fn rank_one(u: &[f64], key: &[f32], residual: &[f64]) -> Result<RankOne> {
    let denominator: f64 = key.iter().zip(u).map(|(k, u)| f64::from(*k) * u).sum();
    let left: Vec<f32> = residual.iter().map(|r| (r / denominator) as f32).collect();
    if left.iter().any(|x| !x.is_finite()) {
        return Err(Error::Numerical {
            what: format!("the key is orthogonal to its direction: k·u = {denominator:e}"),
        });
    }
    Ok(RankOne { left, right: u.iter().map(|x| *x as f32).collect(), denominator })
}

/// Mean of rows `[n, width]`.
pub fn mean_row(rows: &[f32], width: usize) -> Vec<f32> {
    let n = (rows.len() / width).max(1);
    let mut sum = vec![0.0f64; width];
    for row in rows.chunks_exact(width) {
        sum.iter_mut().zip(row).for_each(|(s, x)| *s += f64::from(*x));
    }
    sum.iter().map(|s| (s / n as f64) as f32).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_key_is_mapped_to_its_new_value() {
        let key = [0.3f32, -1.2, 0.7];
        let u = unit(&[0.1, -0.4, 0.9]).unwrap();
        let change = rank_one(&u, &key, &[2.0, -1.0]).unwrap();
        let along: f32 = key.iter().zip(&change.right).map(|(a, b)| a * b).sum();
        for (l, wanted) in change.left.iter().zip([2.0, -1.0]) {
            assert!((l * along - wanted).abs() < 1e-5);
        }
    }

    #[test]
    fn degenerate_directions_are_errors() {
        assert!(unit(&[0.0, 0.0]).is_err());
        assert!(unit(&[f64::NAN]).is_err());
        assert!(rank_one(&[0.0, 1.0], &[1.0, 0.0], &[1.0]).is_err());
    }
}
