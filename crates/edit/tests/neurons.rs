//! Knowledge neurons: attributions against differences, and what an edit makes of them.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

use mutandis_edit::fact::Change;
use mutandis_edit::primitives::neurons::{Finding, attribute, find, likeliest};
use mutandis_edit::{Context, Fact, Job};
use mutandis_engine::{
    Action, Intervention, LogitRows, Model, Options, Overlay, Pass, Read, Sequence, Site, SiteKind,
};
use serde_json::json;

const PROMPT: &str = "Once upon a time, there was a little";

fn model() -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/stories260K.gguf");
    Model::load(&path, Options::default()).unwrap()
}

fn ids(model: &Model, text: &str) -> Vec<u32> {
    model.tokenizer().unwrap().encode(text).unwrap().ids
}

/// Probability of an answer with a layer's neurons at the last token set to these.
fn probability(
    model: &Model,
    tokens: &[u32],
    answer: u32,
    set: Option<(usize, Vec<f32>)>,
    over: &[&Overlay],
) -> f64 {
    let last = tokens.len() - 1;
    let change = |(layer, values)| Intervention {
        site: Site::new(layer, SiteKind::MlpKey),
        rows: vec![last],
        action: Action::Replace(values),
    };
    let pass = Pass {
        sequences: vec![Sequence { tokens, overlays: over, ..Default::default() }],
        interventions: set.map(change).into_iter().collect(),
        logits: LogitRows::Rows(vec![last]),
        ..Default::default()
    };
    let logits = model.forward(pass).unwrap().logits;
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - most).exp()).sum();
    f64::from(logits[answer as usize] - most).exp() / sum
}

fn neurons(model: &Model, tokens: &[u32], layer: usize) -> Vec<f32> {
    let pass = Pass {
        sequences: vec![Sequence { tokens, ..Default::default() }],
        reads: vec![Read { site: Site::new(layer, SiteKind::MlpKey), rows: Some(vec![tokens.len() - 1]) }],
        ..Default::default()
    };
    model.forward(pass).unwrap().reads.pop().unwrap()
}

#[test]
fn attributions_are_sums_of_slopes_along_the_way() {
    let model = model();
    let tokens = ids(&model, PROMPT);
    let answer = likeliest(&model, &[], &tokens).unwrap();
    let steps = 20;
    let found = attribute(&model, &[], &tokens, answer, steps, &Context::default(), 0).unwrap();
    for (layer, one) in found.iter().enumerate() {
        let (values, whole) = (&one.values, neurons(&model, &tokens, layer));
        assert_eq!(one.activations.len(), whole.len());
        assert!(one.activations.iter().zip(&whole).all(|(a, b)| (a - b).abs() <= 1e-4 * b.abs().max(1e-2)));
        for neuron in [0, 17, whole.len() - 1] {
            let slope = |s: usize| {
                let at = |by: f32| {
                    let mut set: Vec<f32> = whole.iter().map(|x| x * s as f32 / steps as f32).collect();
                    set[neuron] += by;
                    probability(&model, &tokens, answer, Some((layer, set)), &[])
                };
                let step = 1e-2f32;
                (at(step) - at(-step)) / (2.0 * f64::from(step))
            };
            let expected = (1..=steps).map(slope).sum::<f64>() * f64::from(whole[neuron]) / steps as f64;
            // Differences of probabilities in f32.
            assert!(
                (values[neuron] - expected).abs() < 2e-4,
                "{layer} {neuron}: {} {expected}",
                values[neuron]
            );
        }
        // Completeness (arXiv 1703.01365, prop. 1): what all add up to is what silencing the layer takes.
        let silent = probability(&model, &tokens, answer, Some((layer, vec![0.0; whole.len()])), &[]);
        let (sum, change) =
            (values.iter().sum::<f64>(), probability(&model, &tokens, answer, None, &[]) - silent);
        // Twenty steps of a curve.
        assert!((sum - change).abs() < 0.05, "layer {layer}: {sum} {change}");
    }
}

#[test]
fn neurons_that_only_one_wording_hangs_on_are_left_out() {
    let model = model();
    let prompts = [PROMPT, "One day, there was a little", "In a house there lived a little"];
    let prompts: Vec<Vec<u32>> = prompts.iter().map(|p| ids(&model, p)).collect();
    let answer = likeliest(&model, &[], &prompts[0]).unwrap();
    let with = |share: f64| {
        let finding = Finding { share, ..Finding::default() };
        find(&model, &[], &prompts, answer, &finding, &Context::default()).unwrap()
    };
    let (any, all) = (with(0.1), with(1.0));
    assert!(!all.is_empty() && all.len() < any.len(), "{} of {}", all.len(), any.len());
    assert!(all.iter().all(|n| n.share == 1.0));
    assert!(any.windows(2).all(|w| w[0].attribution >= w[1].attribution));
    for bad in [Finding { steps: 0, ..Finding::default() }, Finding { share: 0.0, ..Finding::default() }] {
        assert!(find(&model, &[], &prompts, answer, &bad, &Context::default()).is_err());
    }
}

#[test]
fn an_edit_favours_the_new_answer_and_erasing_silences_the_old() {
    let model = model();
    let tokens = ids(&model, PROMPT);
    let old = likeliest(&model, &[], &tokens).unwrap();
    let mut fact = Fact::new(PROMPT, "", "cat").unwrap();
    let new = model.tokenizer().unwrap().encode_continuation(" cat").unwrap().ids[0];
    let edited = |fact: &Fact| {
        let facts = [fact.clone()];
        let job = Job { model: &model, stack: &[], prior: &[], facts: &facts, seed: 0 };
        let method = mutandis_edit::find("kn").unwrap();
        method.edit(&json!({}), &job, &Context::default()).unwrap().overlay(&model).unwrap()
    };
    let p = |token: u32, over: &[&Overlay]| probability(&model, &tokens, token, None, over);
    let changed = edited(&fact);
    assert!(p(new, &[&changed]) > p(new, &[]) && p(old, &[&changed]) < p(old, &[]));
    fact.change = Change::Erase;
    let erased = edited(&fact);
    assert!(p(old, &[&erased]) < p(old, &[]), "{} {}", p(old, &[&erased]), p(old, &[]));
}
