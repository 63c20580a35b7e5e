//! Adam (arXiv 1412.6980, algorithm 1), with PyTorch's constants.

const BETA: [f32; 2] = [0.9, 0.999];
const EPSILON: f32 = 1e-8;

/// State of one vector of parameters.
#[derive(Debug, Clone)]
pub(super) struct Adam {
    first: Vec<f32>,
    second: Vec<f32>,
    /// Steps taken.
    pub(super) steps: i32,
}

impl Adam {
    /// Before the first step.
    pub(super) fn new(len: usize) -> Self {
        Self { first: vec![0.0; len], second: vec![0.0; len], steps: 0 }
    }

    /// Its moments, the first ones first.
    pub(super) fn to_state(&self) -> Vec<f32> {
        [&self.first[..], &self.second].concat()
    }

    /// From what [`Self::to_state`] gave.
    pub(super) fn from_state(steps: i32, mut state: Vec<f32>) -> Self {
        let second = state.split_off(state.len() / 2);
        Self { first: state, second, steps }
    }

    /// Takes one step against a gradient.
    pub(super) fn step(&mut self, values: &mut [f32], gradient: &[f32], rate: f32) {
        self.steps += 1;
        let correct = BETA.map(|b| 1.0 - b.powi(self.steps));
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((x, g), (first, second)) in values.iter_mut().zip(gradient).zip(moments) {
            *first = BETA[0] * *first + (1.0 - BETA[0]) * g;
            *second = BETA[1] * *second + (1.0 - BETA[1]) * g * g;
            *x -= rate * (*first / correct[0]) / ((*second / correct[1]).sqrt() + EPSILON);
        }
    }
}
