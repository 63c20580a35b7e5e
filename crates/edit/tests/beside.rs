//! Holding what else is said of a subject, on a small real model.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

use mutandis_edit::patch::WeightChange;
use mutandis_edit::{Context, Fact, Job, METHODS, Patch};
use mutandis_engine::{Model, Options, Pass, Read, Sequence, Site, SiteKind};
use serde_json::{Value, json};

fn model() -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/stories260K.gguf");
    Model::load(&path, Options::default()).unwrap()
}

const LAYER: usize = 2;

/// Length of what a patch adds to the MLP's output at a text's last token.
fn written(model: &Model, text: &str, patch: &Patch) -> f32 {
    let ids = model.tokenizer().unwrap().encode(text).unwrap().ids;
    let reads = vec![Read { site: Site::new(LAYER, SiteKind::MlpKey), rows: Some(vec![ids.len() - 1]) }];
    let sequences = vec![Sequence { tokens: &ids, ..Default::default() }];
    let key = model.forward(Pass { sequences, reads, ..Default::default() }).unwrap().reads.remove(0);
    let mut sum = vec![0.0f32; model.architecture().width];
    for (_, change) in &patch.weights {
        let WeightChange::LowRank { rank, left, right } = change else { panic!("low rank") };
        for j in 0..*rank {
            let along: f32 = key.iter().enumerate().map(|(i, k)| k * right[i * rank + j]).sum();
            sum.iter_mut().enumerate().for_each(|(o, s)| *s += along * left[o * rank + j]);
        }
    }
    sum.iter().map(|x| x * x).sum::<f32>().sqrt()
}

/// Every method that knows the setting, with settings that suit so small a model.
fn methods(token: &str) -> Vec<(&'static mutandis_edit::Entry, Value)> {
    let with = |method: &'static mutandis_edit::Entry| {
        let defaults = method.defaults();
        let mut all = json!({
            "prefixes": [0, 0], "moment-tokens": 600, "token": token,
            "search": {"steps": 20, "clamp": 50.0, "stop-below": 0.0}
        });
        match defaults.get("layers") {
            Some(_) => all["layers"] = json!([LAYER]),
            None => all["layer"] = json!(LAYER),
        }
        for (name, value) in [("lambda", 0.1), ("scale", 0.1), ("null-space", 0.3)] {
            if defaults.get(name).is_some() {
                all[name] = json!(value);
            }
        }
        (method, all)
    };
    METHODS.iter().filter(|m| m.defaults().get("beside").is_some()).map(with).collect()
}

fn edit(model: &Model, method: &mutandis_edit::Entry, settings: &Value, beside: f64, fact: &Fact) -> Patch {
    let mut settings = settings.clone();
    settings["beside"] = json!(beside);
    let facts = std::slice::from_ref(fact);
    let job = Job { model, stack: &[], prior: &[], facts, seed: 3 };
    method.edit(&settings, &job, &Context::default()).unwrap()
}

#[test]
fn what_else_is_said_of_the_subject_stays() {
    let model = model();
    let fact = Fact::new("Once upon a time, Lily had a", "Lily", "cat").unwrap();
    for (token, own, others) in [
        ("subject", "Once upon a time, Lily", ["The age of Lily", "The name of Lily", "The owner of Lily"]),
        (
            "last",
            "Once upon a time, Lily had a",
            ["The age of Lily is", "The name of Lily is", "Lily is known for"],
        ),
    ] {
        let methods = methods(token);
        assert!(methods.len() > 6);
        for (method, settings) in methods {
            let (free, held) =
                (edit(&model, method, &settings, 0.0, &fact), edit(&model, method, &settings, 10.0, &fact));
            // Against what is written where the fact itself is.
            let relative = |patch: &Patch| {
                let sum: f32 = others.iter().map(|text| written(&model, text, patch)).sum();
                sum / written(&model, own, patch)
            };
            let (loose, tight) = (relative(&free), relative(&held));
            // A method with a large hold of its own (ENCORE) has less to gain.
            assert!(tight < 0.7 * loose, "{} {token}: {loose} to {tight}", method.id);
        }
    }
}
