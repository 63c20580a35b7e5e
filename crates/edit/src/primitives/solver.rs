//! The normal equation behind locate-then-edit methods (methods.md §4a), solved for factors.
//!
//! A change `ΔW [d, f]` that maps keys `K [f, n]` to residuals `R [d, n]` and moves other keys
//! little minimises
//!
//! > ‖ΔW K − R‖² + s · ( a·tr(ΔW C ΔWᵀ) + b·‖ΔW Kₚ‖² + c·‖ΔW‖² )
//!
//! so that with `B = a·C + b·Kₚ Kₚᵀ + c·I`
//!
//! > ΔW = R · Xᵀ,  X = (K Kᵀ + s·B)⁻¹ K = B⁻¹K (Kᵀ B⁻¹ K + s·I)⁻¹
//!
//! `s = 1` is the least squares of MEMIT and AlphaEdit, `s → 0` the equality of ROME, and what
//! lies between EMMET's slack. X does not depend on R: the change has rank n, and its factors are
//! R and X.
//!
//! The first form of X is *dense*, a system as wide as a key. The second is as wide as there are
//! facts: *push-through* where B is diagonal, *Woodbury* where a kept factor of C gives B⁻¹.

use faer::{Mat, MatRef};

use super::cholesky::{Cholesky, add_product};
use super::moments::{Factor, Moments, symmetric};
use super::subspace::Subspace;
use crate::error::{Error, Result};
use crate::patch::SolveInfo;

/// B without past keys: what other keys are held by.
#[derive(Debug, Clone, Copy)]
pub enum Hold<'a> {
    /// `c·I`.
    Ridge(f64),
    /// `a · (C + ridge · tr(C)/f · I)`, with the factor of what stands in brackets.
    Moments {
        /// a.
        weight: f64,
        /// C.
        moments: &'a Moments,
        /// Factor of C and its ridge.
        factor: &'a Factor,
    },
    /// `a·C + c·I` within a subspace of keys, out of which the change does not lead: ΔW = ΔW P.
    Within {
        /// The subspace.
        space: &'a Subspace,
        /// a.
        moments: f64,
        /// c.
        ridge: f64,
    },
}

/// One system: keys, and what is held.
#[derive(Debug, Clone, Copy)]
pub struct System<'a> {
    /// Width of a key.
    pub f: usize,
    /// K, one key after another, `[n, f]`.
    pub keys: &'a [f64],
    /// Kₚ: keys of earlier edits, `[m, f]`.
    pub past: &'a [f64],
    /// b.
    pub past_weight: f64,
    /// The rest of B.
    pub hold: Hold<'a>,
    /// s, 0 or more.
    pub slack: f64,
}

/// How a system is solved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As wide as a key.
    Dense,
    /// As wide as there are keys, B diagonal.
    PushThrough,
    /// As wide as there are keys, B⁻¹ from a kept factor.
    Woodbury,
}

impl Form {
    fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::PushThrough => "push-through",
            Self::Woodbury => "woodbury",
        }
    }
}

/// What came out.
#[derive(Debug, Clone)]
pub struct Solution {
    /// X, one column after another, `[n, f]`: ΔW = R · Xᵀ.
    pub right: Vec<f64>,
    /// Compromises made, and how exact it is.
    pub info: SolveInfo,
}

impl Solution {
    /// X as the right factor of a change, `[f, n]`, row-major.
    pub fn right_factor(&self, f: usize) -> Vec<f32> {
        let n = self.right.len() / f;
        let mut factor = vec![0.0f32; f * n];
        for (j, column) in self.right.chunks_exact(f).enumerate() {
            column.iter().enumerate().for_each(|(i, x)| factor[i * n + j] = *x as f32);
        }
        factor
    }
}

impl System<'_> {
    /// Solves in the form that costs least.
    ///
    /// # Errors
    /// As [`Self::solve_as`].
    pub fn solve(&self) -> Result<Solution> {
        let narrow = match self.hold {
            Hold::Moments { .. } => Form::Woodbury,
            Hold::Ridge(_) | Hold::Within { .. } => Form::PushThrough,
        };
        let columns = (self.keys.len() + self.past.len()) / self.f.max(1);
        // The dense form has no system of B alone, so it cannot do without slack.
        let dense = columns >= self.width() && self.slack > 0.0;
        self.solve_as(if dense { Form::Dense } else { narrow })
    }

    /// Solves in a given form; all give the same up to rounding.
    ///
    /// # Errors
    /// Where a size does not fit, a number is not finite, a weight is negative or holds nothing,
    /// the form does not suit what is held, or the system is singular beyond repair.
    pub fn solve_as(&self, form: Form) -> Result<Solution> {
        self.check(form)?;
        let (n, f) = (self.keys.len() / self.f, self.f);
        let width = self.width();
        // From here on keys are coordinates: of the subspace, or their own.
        let keys = self.coordinates(self.keys);
        let past = self.coordinates(self.past);
        let k = MatRef::from_column_major_slice(&keys, width, n);
        let p = MatRef::from_column_major_slice(&past, width, past.len() / width);
        let (x, mut info) = match form {
            Form::Dense => self.dense(k, p)?,
            Form::PushThrough | Form::Woodbury => self.narrow(k, p)?,
        };
        info.form = form.name().to_owned();
        let right = match self.hold {
            Hold::Within { space, .. } => {
                let mut right = Mat::<f64>::zeros(f, n);
                add_product(right.as_mut(), space.basis(), x.as_ref(), 1.0);
                right
            }
            _ => x,
        };
        let right: Vec<f64> = (0..n).flat_map(|j| right.col_as_slice(j).iter().copied()).collect();
        if right.iter().any(|x| !x.is_finite()) {
            return Err(Error::Numerical {
                what: "the solution of the normal equation is not finite".into(),
            });
        }
        Ok(Solution { right, info })
    }

    fn width(&self) -> usize {
        if let Hold::Within { space, .. } = self.hold { space.dimension() } else { self.f }
    }

    fn coordinates(&self, keys: &[f64]) -> Vec<f64> {
        let Hold::Within { space, .. } = self.hold else { return keys.to_vec() };
        let count = keys.len() / self.f;
        let mut inside = Mat::<f64>::zeros(space.dimension(), count);
        let keys = MatRef::from_column_major_slice(keys, self.f, count);
        add_product(inside.as_mut(), space.basis().transpose(), keys, 1.0);
        (0..count).flat_map(|j| inside.col_as_slice(j).to_vec()).collect()
    }

    /// B's diagonal, where it has nothing else.
    fn diagonal(&self) -> Option<Vec<f64>> {
        match self.hold {
            Hold::Ridge(c) => Some(vec![c; self.f]),
            Hold::Within { space, moments, ridge } => {
                Some(space.values().iter().map(|value| moments * value + ridge).collect())
            }
            Hold::Moments { .. } => None,
        }
    }

    /// `X = (K Kᵀ + s·B)⁻¹ K`.
    fn dense(&self, k: MatRef<'_, f64>, p: MatRef<'_, f64>) -> Result<(Mat<f64>, SolveInfo)> {
        let s = self.slack;
        let mut a = match (self.diagonal(), self.hold) {
            (Some(diagonal), _) => {
                Mat::from_fn(k.nrows(), k.nrows(), |i, j| if i == j { s * diagonal[i] } else { 0.0 })
            }
            (None, Hold::Moments { weight, moments, factor }) => {
                let added = (factor.ridge + factor.jitter() * (1.0 + factor.ridge)) * factor.mean;
                let mut c = symmetric(moments, added);
                c *= faer::Scale(s * weight);
                // Only the lower half is there.
                for j in 0..c.ncols() {
                    for i in 0..j {
                        c[(i, j)] = c[(j, i)];
                    }
                }
                c
            }
            (None, _) => unreachable!("all else is diagonal"),
        };
        add_product(a.as_mut(), k, k.transpose(), 1.0);
        add_product(a.as_mut(), p, p.transpose(), s * self.past_weight);
        let cholesky = Cholesky::new(&a, "the dense normal equations")?;
        let mut x = k.to_owned();
        cholesky.solve(x.as_mut());
        let info = info(&cholesky, a.as_ref(), x.as_ref(), k);
        Ok((x, info))
    }

    /// `X = Y (Kᵀ Y + s·I)⁻¹`, `Y = B⁻¹ K`.
    fn narrow(&self, k: MatRef<'_, f64>, p: MatRef<'_, f64>) -> Result<(Mat<f64>, SolveInfo)> {
        let n = k.ncols();
        let mut y = self.held_inverse(k);
        let mut jitter: f64 = 0.0;
        if p.ncols() > 0 && self.past_weight > 0.0 {
            // B⁻¹ by Woodbury, of B without past keys.
            let z = self.held_inverse(p);
            let mut inner = Mat::<f64>::identity(p.ncols(), p.ncols());
            inner *= faer::Scale(1.0 / self.past_weight);
            add_product(inner.as_mut(), p.transpose(), z.as_ref(), 1.0);
            let cholesky = Cholesky::new(&inner, "the equations of earlier keys")?;
            jitter = cholesky.jitter;
            let mut onto = Mat::<f64>::zeros(p.ncols(), n);
            add_product(onto.as_mut(), z.transpose(), k, 1.0);
            cholesky.solve(onto.as_mut());
            add_product(y.as_mut(), z.as_ref(), onto.as_ref(), -1.0);
        }
        let mut g = Mat::<f64>::identity(n, n);
        g *= faer::Scale(self.slack);
        add_product(g.as_mut(), k.transpose(), y.as_ref(), 1.0);
        let cholesky = Cholesky::new(&g, "the normal equations of the facts")?;
        let mut x = y.transpose().to_owned();
        cholesky.solve(x.as_mut());
        let mut info = info(&cholesky, g.as_ref(), x.as_ref(), y.transpose());
        info.jitter = info.jitter.max(jitter);
        Ok((x.transpose().to_owned(), info))
    }

    /// B₀⁻¹ of columns, B₀ being B without past keys.
    fn held_inverse(&self, columns: MatRef<'_, f64>) -> Mat<f64> {
        let mut out = columns.to_owned();
        if let Some(diagonal) = self.diagonal() {
            for j in 0..out.ncols() {
                out.col_as_slice_mut(j).iter_mut().zip(&diagonal).for_each(|(x, b)| *x /= b);
            }
        } else if let Hold::Moments { weight, factor, .. } = self.hold {
            factor.cholesky.solve(out.as_mut());
            out *= faer::Scale(1.0 / weight);
        }
        out
    }

    fn check(&self, form: Form) -> Result<()> {
        let of = |what: &str, found: String, expected: &str| {
            Err(Error::input(format!("the solver's {what} is {found}, expected {expected}")))
        };
        let fits = |keys: &[f64]| self.f > 0 && keys.len().is_multiple_of(self.f);
        if self.keys.is_empty() || !fits(self.keys) || !fits(self.past) {
            let found = format!("{} and {}", self.keys.len(), self.past.len());
            return of("number of keys' elements", found, &format!("multiples of {}", self.f));
        }
        if let Some(x) = self.keys.iter().chain(self.past).find(|x| !x.is_finite()) {
            return Err(Error::Numerical { what: format!("a key holds {x}") });
        }
        if let Some(i) = self.keys.chunks_exact(self.f).position(|k| k.iter().all(|x| *x == 0.0)) {
            let what =
                format!("key {} of {} is zero: no change can reach it", i + 1, self.keys.len() / self.f);
            return Err(Error::Numerical { what });
        }
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let held = match self.hold {
            Hold::Ridge(c) => positive(c),
            Hold::Moments { weight, factor, moments } => {
                if moments.f != self.f {
                    return of("width of moments", moments.f.to_string(), &self.f.to_string());
                }
                positive(weight) && factor.ridge >= 0.0
            }
            Hold::Within { space, moments, ridge } => {
                if space.width() != self.f {
                    return of("width of the subspace", space.width().to_string(), &self.f.to_string());
                }
                moments >= 0.0 && moments.is_finite() && positive(ridge)
            }
        };
        if !held {
            return of("weight of what is held", format!("{:?}", Weights(self.hold)), "more than 0, finite");
        }
        for (name, value) in [("slack", self.slack), ("weight of earlier keys", self.past_weight)] {
            if !(value >= 0.0 && value.is_finite()) {
                return of(name, value.to_string(), "0 or more, finite");
            }
        }
        match (form, self.hold) {
            (Form::Dense, _) if self.slack == 0.0 => of("slack", "0".into(), "more than 0 in the dense form"),
            (Form::PushThrough, Hold::Moments { .. }) => {
                of("form", "push-through".into(), "Woodbury or dense")
            }
            (Form::Woodbury, Hold::Ridge(_) | Hold::Within { .. }) => {
                of("form", "Woodbury".into(), "push-through or dense")
            }
            _ => Ok(()),
        }
    }
}

/// The weights of a [`Hold`], for messages.
struct Weights<'a>(Hold<'a>);

impl std::fmt::Debug for Weights<'_> {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Hold::Ridge(c) => write!(to, "{c} (ridge)"),
            Hold::Moments { weight, .. } => write!(to, "{weight} (moments)"),
            Hold::Within { moments, ridge, .. } => write!(to, "{moments} (moments) and {ridge} (ridge)"),
        }
    }
}

/// How exact `A X = B` is.
fn info(cholesky: &Cholesky, a: MatRef<'_, f64>, x: MatRef<'_, f64>, b: MatRef<'_, f64>) -> SolveInfo {
    let mut rest = b.to_owned();
    add_product(rest.as_mut(), a, x, -1.0);
    // Of nothing to be solved for nothing is left: a key may lie outside the subspace.
    let size = b.norm_l2();
    let residual = if size > 0.0 { rest.norm_l2() / size } else { 0.0 };
    SolveInfo { jitter: cholesky.jitter, residual, condition: cholesky.condition(), ..SolveInfo::default() }
}
