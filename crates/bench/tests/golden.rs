//! Token accuracy against the peer's own functions, recorded in `../shared/golden/metrics.json`.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

use std::path::{Path, PathBuf};

use mutandis_bench::compat::likelihood::{known_share, target_perplexity};
use mutandis_bench::compat::vanilla::Vanilla;
use mutandis_bench::compat::{Asked, Forced, predict};
use mutandis_engine::{Model, Options};
use serde_json::Value;

fn folder(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable)
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..").join(default), PathBuf::from)
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The model and the values recorded for it; nothing where they are not here.
fn golden() -> Option<(Model, Value)> {
    let path = folder("MUTANDIS_TEST_MODELS", "models").join("SmolLM2-135M-Instruct.Q4_1.gguf");
    let golden = folder("MUTANDIS_SHARED", "shared").join("golden/metrics.json");
    if !path.exists() || !golden.exists() {
        eprintln!("skipped: `{}` or `{}` is absent", path.display(), golden.display());
        return None;
    }
    let model = Model::load(&path, Options::default()).unwrap();
    Some((model, serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap()))
}

fn text<'a>(probe: &'a Value, key: &str) -> &'a str {
    probe[key].as_str().unwrap()
}

fn forced(model: &Model, probes: &[Value]) -> Vec<Forced> {
    probes.iter().map(|p| Forced::new(model, text(p, "prompt"), text(p, "target")).unwrap()).collect()
}

/// Equal to six digits: the peer computes in f32, and sums in another order.
fn same(ours: Option<f64>, theirs: &Value) {
    let (ours, theirs) = (ours.unwrap(), theirs.as_f64().unwrap());
    assert!((ours - theirs).abs() <= 1e-4 * theirs.abs(), "{ours} is not {theirs}");
}

#[test]
fn token_accuracy_is_the_peers() {
    let Some((model, golden)) = golden() else { return };
    let probes = golden["single"].as_array().unwrap();
    let texts = forced(&model, probes);
    let asked: Vec<Asked<'_>> = texts.iter().map(|text| Asked { text, overlays: &[] }).collect();
    let together = predict(&model, &asked).unwrap();
    for ((probe, text), predicted) in probes.iter().zip(&texts).zip(&together) {
        assert_eq!(text.ids, ids(&probe["full_ids"]));
        assert_eq!(text.ids[..text.start], ids(&probe["prompt_ids"]));
        assert_eq!(*predicted, ids(&probe["locality_ids"][0]), "{}", probe["prompt"]);
        let wanted = probe["acc"][0].as_f64().unwrap();
        assert!((text.accuracy(predicted).unwrap() - wanted).abs() < 1e-6);
    }
    assert_eq!(probes.len(), 12);
    // The peer's batch, padded on the left, comes to the same: rotary positions are relative.
    let batch = &golden["batch_left_pad"];
    assert_eq!(together, serde_json::from_value::<Vec<Vec<u32>>>(batch["locality_ids"].clone()).unwrap());
    let accuracies: Vec<f64> = serde_json::from_value(batch["acc"].clone()).unwrap();
    assert_eq!(accuracies.len(), 12);
    for ((text, predicted), wanted) in texts.iter().zip(&together).zip(accuracies) {
        assert!((text.accuracy(predicted).unwrap() - wanted).abs() < 1e-6);
    }
}

#[test]
fn perplexities_are_the_peers_alone_and_in_a_batch() {
    let Some((model, golden)) = golden() else { return };
    let probes = golden["single"].as_array().unwrap();
    let texts = forced(&model, probes);
    for (probe, text) in probes.iter().zip(&texts) {
        same(target_perplexity(&model, &[], std::slice::from_ref(text)).unwrap(), &probe["ppl"]);
        let prompt = [text.ids[..text.start].to_vec()];
        let known = known_share(&model, &[], &prompt).unwrap().unwrap();
        assert!((known - probe["ood_acc"].as_f64().unwrap()).abs() < 1e-6, "{}: {known}", probe["prompt"]);
    }
    same(target_perplexity(&model, &[], &texts).unwrap(), &golden["batch_left_pad"]["ppl"]);
}

#[test]
fn vanilla_generation_is_the_peers() {
    let Some((model, golden)) = golden() else { return };
    for probe in golden["single"].as_array().unwrap() {
        let said = Vanilla::new(&model, &[], text(probe, "prompt"), text(probe, "target")).unwrap();
        assert_eq!(said.said, ids(&probe["vanilla_ids"][0]), "{}", probe["prompt"]);
        assert_eq!(said.accuracy(), probe["vanilla_acc"][0].as_f64());
    }
}

#[test]
fn f1_is_the_mean_over_ids() {
    // sklearn.metrics.f1_score([1, 2, 3, 2], [1, 2, 2, 4], average="macro")
    let said = Vanilla { target: vec![1, 2, 3, 2], said: vec![1, 2, 2, 4] };
    assert!((said.f1() - 0.375).abs() < 1e-12, "{}", said.f1());
    assert_eq!(said.accuracy(), Some(0.5));
}
