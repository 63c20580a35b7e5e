//! Rounding that keeps what a weight's rows give for known inputs.
//!
//! An edit is often smaller than half a step of a block format: rounded number by number it would
//! vanish. Here each number is rounded so that it makes up for the errors of those before it, in
//! what the row's product with the inputs comes to. With inputs x and errors e so far,
//! r = Σ eᵢ xᵢ; the rest of the row could best answer it by e_q = -x_qᵀ (λ I + G_q)⁻¹ r, where
//! G_q = Σ_{i ≥ q} xᵢ xᵢᵀ, and the number q is rounded from there. This is the rounding of GPTQ
//! (arXiv 2210.17323, eq. 2) with the Hessian of few inputs, which needs no matrix larger than
//! their number squared.

/// λ relative to the median squared length of an input: how much plain error counts beside that of
/// products. It is small, as a few numbers that are a step off make up for a whole row.
const PLAIN: f64 = 1e-4;

/// Inputs of a linear map, made ready to round its rows by.
#[derive(Debug)]
pub struct Inputs {
    /// Number of inputs.
    count: usize,
    lambda: f64,
    /// Numbers of a row, those that weigh least in the inputs first: the last ones have the most
    /// to make up for, and can.
    order: Vec<usize>,
    /// x_q, `[in, count]`.
    columns: Vec<f64>,
    /// (λ I + G_q)⁻¹ x_q, `[in, count]`.
    gains: Vec<f64>,
}

impl Inputs {
    /// `rows [n, in]`: what the map has been seen to read. Takes n² numbers of memory and
    /// in · n² steps.
    pub fn new(rows: &[f32], inn: usize) -> Self {
        let count = rows.len() / inn.max(1);
        let columns: Vec<f64> =
            (0..inn).flat_map(|q| (0..count).map(move |j| f64::from(rows[j * inn + q]))).collect();
        let energy = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>();
        let column = |q: usize| &columns[q * count..][..count];
        let weights: Vec<f64> = (0..inn).map(|q| energy(column(q))).collect();
        let mut order: Vec<usize> = (0..inn).collect();
        order.sort_by(|&a, &b| weights[a].total_cmp(&weights[b]));
        let mut lengths: Vec<f64> = rows
            .chunks_exact(inn.max(1))
            .map(|row| row.iter().map(|x| f64::from(*x).powi(2)).sum())
            .collect();
        lengths.sort_by(f64::total_cmp);
        let lambda = (PLAIN * lengths.get(count / 2).copied().unwrap_or(0.0)).max(f64::MIN_POSITIVE.sqrt());

        // The inverse for the last number alone, then with one more at a time (Sherman-Morrison).
        let mut inverse = vec![0.0; count * count];
        inverse.iter_mut().step_by(count + 1).for_each(|x| *x = 1.0 / lambda);
        let mut gains = vec![0.0; inn * count];
        let mut u = vec![0.0; count];
        for &q in order.iter().rev() {
            let x = column(q);
            for (u, row) in u.iter_mut().zip(inverse.chunks_exact(count.max(1))) {
                *u = dot(row, x);
            }
            let d = 1.0 + dot(&u, x);
            for (row, a) in inverse.chunks_exact_mut(count.max(1)).zip(&u) {
                row.iter_mut().zip(&u).for_each(|(m, b)| *m -= a * b / d);
            }
            gains[q * count..][..count].iter_mut().zip(&u).for_each(|(g, u)| *g = u / d);
        }
        Self { count, lambda, order, columns, gains }
    }

    /// Rounds a row: `round(q, x)` gives the number that can stand at q and is nearest to x.
    pub(super) fn round(&self, row: &[f32], mut round: impl FnMut(usize, f32) -> f32) {
        let mut residual = vec![0.0; self.count];
        let mut errors = vec![0.0; row.len()];
        let mut set = |q: usize, error: f64| f64::from(round(q, row[q] + error as f32)) - f64::from(row[q]);
        for &q in &self.order {
            let (x, gain) = (self.of(&self.columns, q), self.of(&self.gains, q));
            errors[q] = set(q, -dot(gain, &residual));
            residual.iter_mut().zip(x).for_each(|(r, x)| *r += errors[q] * x);
        }
        // Once more, each number alone and the weightiest first: what the steps of those were too large
        // for, the lighter ones can make up.
        for &q in self.order.iter().rev() {
            let x = self.of(&self.columns, q);
            let was = errors[q];
            let slope = dot(x, &residual) + self.lambda * was;
            errors[q] = set(q, was - slope / (dot(x, x) + self.lambda));
            residual.iter_mut().zip(x).for_each(|(r, x)| *r += (errors[q] - was) * x);
        }
    }

    fn of<'a>(&self, values: &'a [f64], q: usize) -> &'a [f64] {
        &values[q * self.count..][..self.count]
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
