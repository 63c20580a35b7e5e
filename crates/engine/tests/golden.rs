//! The engine against the reference values in `../shared/golden`.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

use std::path::{Path, PathBuf};

use mutandis_engine::{
    Architecture, Cache, Isa, LogitRows, Model, Options, Pass, Read, Sequence, Site, SiteKind, Storage,
};
use safetensors::SafeTensors;

/// Logits in f32 by PyTorch: both sides round, and golden values are themselves about this far
/// from f64.
const LOGITS: f32 = 1e-4;

fn folder(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable)
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..").join(default), PathBuf::from)
}

fn model(file: &str, options: Options) -> Option<Model> {
    let path = folder("MUTANDIS_TEST_MODELS", "models").join(file);
    let shared = folder("MUTANDIS_SHARED", "shared");
    if !path.exists() || !shared.exists() {
        eprintln!("skipped: `{}` or `{}` is absent", path.display(), shared.display());
        return None;
    }
    Some(Model::load(&path, options).unwrap())
}

fn f32s(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    file.tensor(name)
        .unwrap()
        .data()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

fn ids(file: &SafeTensors<'_>, name: &str) -> Vec<u32> {
    file.tensor(name)
        .unwrap()
        .data()
        .chunks_exact(8)
        .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32)
        .collect()
}

fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn last_logits(model: &Model, ids: &[u32]) -> Vec<f32> {
    let pass = Pass {
        sequences: vec![Sequence { tokens: ids, ..Default::default() }],
        logits: LogitRows::Last,
        ..Default::default()
    };
    model.forward(pass).unwrap().logits
}

fn check_logits(model: &Model, golden: &str) {
    let bytes = std::fs::read(folder("MUTANDIS_SHARED", "shared").join("golden").join(golden)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let columns: Option<Vec<u32>> = file.tensor("columns").ok().map(|_| ids(&file, "columns"));
    let pick = |row: &[f32]| -> Vec<f32> {
        match &columns {
            None => row.to_vec(),
            Some(columns) => columns.iter().map(|&c| row[c as usize]).collect(),
        }
    };
    let mut checked = 0;
    for name in file.names() {
        if let Some(i) = name.strip_prefix("ids.") {
            let ids = ids(&file, name);
            let found = last_logits(model, &ids);
            let difference = worst(&pick(&found), &f32s(&file, &format!("last_logits.{i}")));
            assert!(difference < LOGITS, "prompt {i}: last logits differ by {difference:e}");
            if i == "0" || i == "1" {
                let pass = Pass {
                    sequences: vec![Sequence { tokens: &ids, ..Default::default() }],
                    logits: LogitRows::All,
                    ..Default::default()
                };
                let all = model.forward(pass).unwrap().logits;
                let v = model.architecture().vocabulary;
                let found: Vec<f32> = all.chunks_exact(v).flat_map(pick).collect();
                let difference = worst(&found, &f32s(&file, &format!("full_logits.{i}")));
                assert!(difference < LOGITS, "prompt {i}: full logits differ by {difference:e}");
            }
            checked += 1;
        }
    }
    assert_eq!(checked, 15);
}

fn check_activations(model: &Model, prefix: &str) {
    let golden = folder("MUTANDIS_SHARED", "shared").join("golden");
    let logits = std::fs::read(golden.join(format!("{prefix}.logits.safetensors"))).unwrap();
    let ids = ids(&SafeTensors::deserialize(&logits).unwrap(), "ids.0");
    let bytes = std::fs::read(golden.join(format!("{prefix}.activations.safetensors"))).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let layers = model.architecture().layers;
    let mut wanted = vec![("embed".to_owned(), Site::new(0, SiteKind::Input))];
    for l in 0..layers {
        wanted.push((format!("attn_out.{l}"), Site::new(l, SiteKind::AttentionOut)));
        wanted.push((format!("mlp_out.{l}"), Site::new(l, SiteKind::MlpOut)));
        wanted.push((format!("down_in.{l}"), Site::new(l, SiteKind::MlpKey)));
        wanted.push((format!("layer_out.{l}"), Site::new(l, SiteKind::Residual)));
    }
    wanted.push(("final_norm".to_owned(), Site::new(layers - 1, SiteKind::FinalNorm)));
    let pass = Pass {
        sequences: vec![Sequence { tokens: &ids, ..Default::default() }],
        reads: wanted.iter().map(|(_, site)| Read { site: *site, rows: None }).collect(),
        ..Default::default()
    };
    let outcome = model.forward(pass).unwrap();
    for ((name, _), found) in wanted.iter().zip(&outcome.reads) {
        let expected = f32s(&file, name);
        let size = expected.iter().fold(0.0f32, |a, b| a.max(b.abs()));
        let difference = worst(found, &expected);
        // Relative to the largest activation of the site: SmolLM2's residual stream reaches 1e4.
        assert!(difference <= 2e-5 * size.max(1.0), "{name} differs by {difference:e} of {size:e}");
    }
}

#[test]
fn smollm2_gives_the_golden_logits_and_activations() {
    for isa in Isa::available() {
        let options = Options { isa: Some(isa), storage: Storage::AsStored, ..Default::default() };
        let Some(model) = model("SmolLM2-135M-Instruct.Q4_1.gguf", options) else { return };
        check_logits(&model, "smollm2.logits.safetensors");
        check_activations(&model, "smollm2");
    }
}

#[test]
fn gemma3_gives_the_golden_logits_and_activations() {
    let Some(model) = model("gemma-3-270m-q4_k_m.gguf", Options::default()) else { return };
    check_logits(&model, "gemma3.logits.safetensors");
    check_activations(&model, "gemma3");
}

#[test]
fn storage_and_threads_do_not_change_a_bit() {
    let file = "SmolLM2-135M-Instruct.Q4_1.gguf";
    let ids: Vec<u32> = (0..40).map(|i| 500 + 37 * i).collect();
    let Some(reference) = model(file, Options { threads: Some(1), ..Default::default() }) else { return };
    let expected = last_logits(&reference, &ids);
    drop(reference);
    for (threads, storage) in [(2, Storage::F32), (4, Storage::AsStored)] {
        let model = model(file, Options { threads: Some(threads), storage, ..Default::default() }).unwrap();
        assert_eq!(last_logits(&model, &ids), expected, "{threads} threads, {storage:?}");
    }
}

#[test]
fn decoding_from_a_cache_gives_the_logits_of_the_whole_text() {
    let Some(model) = model("SmolLM2-135M-Instruct.Q4_1.gguf", Options::default()) else { return };
    let architecture: &Architecture = model.architecture();
    let ids: Vec<u32> = (0..20).map(|i| 900 + 41 * i).collect();
    let mut cache = Cache::new(architecture);
    let step = |cache: &mut Cache, tokens: &[u32]| {
        let pass = Pass {
            sequences: vec![Sequence { tokens, cache: Some(cache), ..Default::default() }],
            logits: LogitRows::Last,
            ..Default::default()
        };
        model.forward(pass).unwrap().logits
    };
    step(&mut cache, &ids[..11]);
    for i in 11..19 {
        step(&mut cache, &ids[i..=i]);
    }
    let past = cache.past(15, 0);
    let difference = worst(&step(&mut cache, &ids[19..]), &last_logits(&model, &ids));
    assert!(difference < 5e-5, "cached decoding differs by {difference:e}");
    let pass = Pass {
        sequences: vec![Sequence { tokens: &ids[15..], past: Some(&past), ..Default::default() }],
        logits: LogitRows::Last,
        ..Default::default()
    };
    let difference = worst(&model.forward(pass).unwrap().logits, &last_logits(&model, &ids));
    assert!(difference < 5e-5, "a shared prefix differs by {difference:e}");
}
