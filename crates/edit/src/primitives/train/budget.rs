//! Which singular values low-rank changes may keep (AdaLoRA, arXiv 2303.10512, §3).

use super::Parameter;

/// Smoothing of importance and of its uncertainty, as published.
const BETA: [f32; 2] = [0.85, 0.85];

/// How many singular values are kept, in the mean over weights, as training goes on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// At the end.
    pub rank: usize,
    /// Shares of all steps, at the beginning with all values and at the end with those kept.
    pub shares: [f64; 2],
}

impl Budget {
    /// Singular values in the mean over weights after a step of so many (eq. 12: a cubic falls from
    /// `from` to the end's).
    pub(super) fn at(&self, step: usize, steps: usize, from: usize) -> f64 {
        let [first, last] = self.shares.map(|share| share * steps as f64);
        let left = 1.0 - (step as f64 - first) / (steps as f64 - first - last).max(1.0);
        let (from, to) = (from as f64, self.rank as f64);
        to + (from - to) * left.clamp(0.0, 1.0).powi(3)
    }
}

/// Importance of every number, smoothed over steps.
pub(super) struct Importance {
    budget: Budget,
    /// By parameter: importance, and its uncertainty (eq. 9 and 10).
    state: Vec<[Vec<f32>; 2]>,
    steps: usize,
}

impl Importance {
    /// Before the first of so many steps.
    pub(super) fn new(budget: Budget, parameters: &[Parameter], steps: usize) -> Self {
        let zeros = |p: &Parameter| vec![0.0; p.values.len()];
        Self { budget, state: parameters.iter().map(|p| [zeros(p), zeros(p)]).collect(), steps }
    }

    /// Takes in what a number's gradient says of it, before its step: |w · ∂L/∂w| (eq. 8).
    pub(super) fn see(&mut self, parameters: &[Parameter], gradients: &[Vec<f32>]) {
        for ((parameter, gradient), [mean, apart]) in parameters.iter().zip(gradients).zip(&mut self.state) {
            let numbers = parameter.values.iter().zip(gradient).zip(mean).zip(apart);
            for (((w, g), mean), apart) in numbers {
                let now = (w * g).abs();
                *mean = BETA[0] * *mean + (1.0 - BETA[0]) * now;
                *apart = BETA[1] * *apart + (1.0 - BETA[1]) * (now - *mean).abs();
            }
        }
    }

    /// Sets the least important singular values of all weights to zero, as many as the budget has at a
    /// step (eq. 3 and 6). They may come back: their vectors stay.
    pub(super) fn prune(&self, parameters: &mut [Parameter], step: usize) {
        let from: usize = parameters.iter().map(Parameter::singular_values).sum();
        let weights = parameters.len().max(1);
        let kept = self.budget.at(step, self.steps, from / weights) * weights as f64;
        self.keep(parameters, kept.round() as usize);
    }

    /// Keeps the most important singular values alone.
    fn keep(&self, parameters: &mut [Parameter], kept: usize) {
        let mut scores: Vec<(f32, usize, usize)> = vec![];
        for (i, (parameter, [mean, apart])) in parameters.iter().zip(&self.state).enumerate() {
            let number = |at: usize| mean[at] * apart[at];
            let own = parameter.triplets(&number).into_iter().enumerate();
            scores.extend(own.map(|(r, score)| (score, i, r)));
        }
        // The important first; equal ones in their own order.
        scores.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (_, parameter, value) in scores.into_iter().skip(kept) {
            parameters[parameter].silence(value);
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use std::path::Path;

    use mutandis_engine::{Role, WeightId};
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;
    use safetensors::SafeTensors;

    use super::*;

    /// Against `fixtures/adalora.py`. The scores there lie several percent apart, and f32 is enough.
    #[test]
    fn the_singular_values_that_peft_keeps_are_kept() {
        const RANK: usize = 3;
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/adalora.safetensors");
        let bytes = std::fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let numbers = |name: String| -> Vec<f32> {
            let data = file.tensor(&name).unwrap().data().to_vec();
            data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut parameter = |layer| {
            let id = WeightId { layer, role: Role::MlpOut };
            let mut parameter = Parameter::singular(id, [5, 4], RANK, 1.0, 0.0, &mut rng).unwrap();
            parameter.values = numbers(format!("values.{layer}"));
            parameter
        };
        let parameters = [parameter(0), parameter(1)];
        let mut importance = Importance::new(Budget { rank: 1, shares: [0.0; 2] }, &parameters, 4);
        for step in 0..4 {
            let gradients = [0, 1].map(|w| numbers(format!("gradients.{step}.{w}")));
            importance.see(&parameters, &gradients);
        }
        for kept in 1..6 {
            let mut pruned = parameters.clone();
            importance.keep(&mut pruned, kept);
            let of = |p: &Parameter| p.values[p.values.len() - RANK..].to_vec();
            let found: Vec<f32> = pruned.iter().flat_map(of).map(|v| f32::from(u8::from(v != 0.0))).collect();
            assert_eq!(found, numbers(format!("kept.{kept}")), "{kept} of 6");
        }
    }

    #[test]
    fn a_budget_falls_from_all_to_what_is_kept() {
        let budget = Budget { rank: 4, shares: [0.1, 0.5] };
        let all: Vec<f64> = (0..=100).map(|step| budget.at(step, 100, 12)).collect();
        assert!(all[..=10].iter().all(|b| *b == 12.0) && all[50..].iter().all(|b| *b == 4.0));
        assert!(all.windows(2).all(|pair| pair[1] <= pair[0]));
        // Half way the cubic has an eighth left.
        assert!((all[30] - (4.0 + 8.0 / 8.0)).abs() < 1e-9, "{}", all[30]);
    }
}
