//! Token accuracy against the peer's own functions, recorded in `../shared/golden/metrics.json`.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

use std::path::{Path, PathBuf};

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

#[test]
fn token_accuracy_is_the_peers() {
    let path = folder("MUTANDIS_TEST_MODELS", "models").join("SmolLM2-135M-Instruct.Q4_1.gguf");
    let golden = folder("MUTANDIS_SHARED", "shared").join("golden/metrics.json");
    if !path.exists() || !golden.exists() {
        eprintln!("skipped: `{}` or `{}` is absent", path.display(), golden.display());
        return;
    }
    let model = Model::load(&path, Options::default()).unwrap();
    let golden: Value = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    let probes = golden["single"].as_array().unwrap();
    let text = |p: &Value, key: &str| p[key].as_str().unwrap().to_owned();
    let texts: Vec<Forced> =
        probes.iter().map(|p| Forced::new(&model, &text(p, "prompt"), &text(p, "target")).unwrap()).collect();
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
}
