//! Knowledge neurons (arXiv 2104.08696): which MLP neurons an answer hangs on, by integrated
//! gradients.

use std::collections::BTreeMap;

use mutandis_engine::kernels::loss;
use mutandis_engine::{
    Action, Cache, Intervention, LogitRows, Model, Overlay, Pass, Read, Sequence, Site, SiteKind, Start,
    Wants,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::{Error, Result};

/// Which neurons count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Finding {
    /// Steps from a neuron that is silent to one as it is.
    pub steps: usize,
    /// A neuron counts for a prompt if its attribution exceeds this share of the largest.
    pub threshold: f64,
    /// A neuron is kept if it counts for this share of the prompts.
    pub share: f64,
}

impl Default for Finding {
    fn default() -> Self {
        Self { steps: 20, threshold: 0.2, share: 0.4 }
    }
}

impl Finding {
    /// Checks what no type does.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self) -> Result<()> {
        if !(1..=1000).contains(&self.steps) {
            return Err(Error::input_hint(
                format!("`steps` is {}, expected 1 to 1000", self.steps),
                "20 are published; fewer are cruder",
            ));
        }
        for (name, value) in [("threshold", self.threshold), ("share", self.share)] {
            if !(value > 0.0 && value <= 1.0) {
                return Err(Error::input_hint(
                    format!("`{name}` is {value}, expected more than 0, at most 1"),
                    "0.2 and 0.4 are published",
                ));
            }
        }
        Ok(())
    }
}

/// A neuron: an input of a layer's down projection.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Neuron {
    /// Layer, from 0.
    pub layer: usize,
    /// Which of the layer's, from 0.
    pub neuron: usize,
    /// Integrated gradient of the answer's probability, mean over the prompts.
    pub attribution: f64,
    /// What the neuron is, mean over the prompts. Of a gated MLP it may be negative.
    pub activation: f64,
    /// Share of the prompts for which it counts.
    pub share: f64,
}

/// The neurons that an answer hangs on, after the prompts given, by attribution.
///
/// # Errors
/// Where a setting is out of range, a prompt has no tokens, or the user stops the work.
pub fn find(
    model: &Model,
    stack: &[&Overlay],
    prompts: &[Vec<u32>],
    answer: u32,
    finding: &Finding,
    cx: &Context<'_>,
) -> Result<Vec<Neuron>> {
    finding.check()?;
    let layers = model.architecture().layers;
    cx.progress.begin("attributing", prompts.len() * layers);
    let mut all: BTreeMap<(usize, usize), (usize, f64, f64)> = BTreeMap::new();
    for (i, prompt) in prompts.iter().enumerate() {
        let found = attribute(model, stack, prompt, answer, finding.steps, cx, i * layers)?;
        let largest = found.iter().flat_map(|l| &l.values).copied().fold(0.0f64, f64::max);
        for (layer, Attributed { values, activations }) in found.iter().enumerate() {
            for (neuron, (&value, &activation)) in values.iter().zip(activations).enumerate() {
                let (count, sum, activations) = all.entry((layer, neuron)).or_default();
                *count += usize::from(value > 0.0 && value >= finding.threshold * largest);
                *sum += value;
                *activations += f64::from(activation);
            }
        }
    }
    cx.progress.end();
    let n = prompts.len().max(1) as f64;
    let mut kept: Vec<Neuron> = all
        .into_iter()
        .map(|((layer, neuron), (count, sum, activations))| Neuron {
            layer,
            neuron,
            attribution: sum / n,
            activation: activations / n,
            share: count as f64 / n,
        })
        .filter(|neuron| neuron.share > 0.0 && neuron.share >= finding.share)
        .collect();
    kept.sort_by(|a, b| b.attribution.total_cmp(&a.attribution));
    Ok(kept)
}

/// The neurons of one layer after one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Attributed {
    /// Integrated gradients, `[f]`.
    pub values: Vec<f64>,
    /// What the neurons are, `[f]`.
    pub activations: Vec<f32>,
}

/// Integrated gradients of all MLP neurons at the prompt's last token, layer by layer: with `w`
/// what a neuron is, `w/m · Σₛ ∂p/∂w` at `s/m · w`, the layers above as they come (eq. 3).
///
/// # Errors
/// As [`find`].
pub fn attribute(
    model: &Model,
    stack: &[&Overlay],
    prompt: &[u32],
    answer: u32,
    steps: usize,
    cx: &Context<'_>,
    told: usize,
) -> Result<Vec<Attributed>> {
    let a = model.architecture();
    let Some((&last, before)) = prompt.split_last() else {
        return Err(Error::input("a prompt has no tokens"));
    };
    // All but the last token is run once; of it the layers below each one's neurons too.
    let mut cache = Cache::new(a);
    if !before.is_empty() {
        let sequence =
            Sequence { tokens: before, cache: Some(&mut cache), overlays: stack, ..Default::default() };
        model.forward(Pass { sequences: vec![sequence], ..Default::default() })?;
    }
    let past = cache.past(before.len(), 0);
    let of = |kind: SiteKind| (0..a.layers).map(move |l| Read { site: Site::new(l, kind), rows: None });
    let tokens = [last];
    let pass = Pass {
        sequences: vec![Sequence {
            tokens: &tokens,
            past: Some(&past),
            overlays: stack,
            ..Default::default()
        }],
        reads: of(SiteKind::Input).chain(of(SiteKind::MlpKey)).collect(),
        ..Default::default()
    };
    let reads = model.forward(pass)?.reads;
    let (inputs, neurons) = reads.split_at(a.layers);
    let mut out = Vec::with_capacity(a.layers);
    for layer in 0..a.layers {
        cx.check()?;
        let (site, own) = (Site::new(layer, SiteKind::MlpKey), &neurons[layer]);
        let past = cache.past(before.len(), layer);
        let scaled = (1..=steps).flat_map(|s| own.iter().map(move |x| x * s as f32 / steps as f32));
        let pass = Pass {
            sequences: (0..steps)
                .map(|_| Sequence {
                    tokens: &tokens,
                    past: Some(&past),
                    overlays: stack,
                    ..Default::default()
                })
                .collect(),
            start: Start::Hidden { layer, rows: inputs[layer].repeat(steps) },
            interventions: vec![Intervention {
                site,
                rows: (0..steps).collect(),
                action: Action::Replace(scaled.collect()),
            }],
            logits: LogitRows::All,
            record: true,
            ..Default::default()
        };
        let outcome = model.forward(pass)?;
        let (isa, v, mut logits) = (model.isa(), a.vocabulary, outcome.logits);
        let targets = vec![answer; steps];
        model.install(|| {
            // ∂p = p · ∂ln p = −p · ∂loss.
            let losses = loss::cross_entropy(isa, &logits, v, &targets);
            let weights: Vec<f32> = losses.iter().map(|l| -(-l).exp()).collect();
            loss::cross_entropy_backward(isa, &mut logits, v, &targets, &weights);
        });
        let tape = outcome.tape.ok_or_else(|| Error::Numerical { what: "the pass kept no tape".into() })?;
        let wants = Wants { logits, sites: vec![Read { site, rows: None }], ..Default::default() };
        let gradients = model.backward(&tape, &wants)?.sites.pop().unwrap_or_default();
        let mut sum = vec![0.0f64; own.len()];
        for row in gradients.chunks_exact(own.len()) {
            sum.iter_mut().zip(row).for_each(|(s, g)| *s += f64::from(*g));
        }
        let values = sum.iter().zip(own).map(|(s, w)| s * f64::from(*w) / steps as f64).collect();
        out.push(Attributed { values, activations: own.clone() });
        cx.progress.step(told + layer + 1);
    }
    Ok(out)
}

/// The token that a model is likeliest to go on with.
///
/// # Errors
/// Where the prompt has no tokens or the model cannot be run on it.
pub fn likeliest(model: &Model, stack: &[&Overlay], prompt: &[u32]) -> Result<u32> {
    let Some(last) = prompt.len().checked_sub(1) else {
        return Err(Error::input("a prompt has no tokens"));
    };
    let sequence = Sequence { tokens: prompt, overlays: stack, ..Default::default() };
    let pass = Pass { sequences: vec![sequence], logits: LogitRows::Rows(vec![last]), ..Default::default() };
    let logits = model.forward(pass)?.logits;
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    Ok(best.map_or(0, |(id, _)| id as u32))
}
