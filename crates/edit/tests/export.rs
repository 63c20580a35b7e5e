//! Patches written into copies of checkpoints of every family, and read again.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::path::{Path, PathBuf};

use mutandis_edit::method::Family;
use mutandis_edit::patch::WeightChange;
use mutandis_edit::{Export, Patch};
use mutandis_engine::checkpoint::{Checkpoint, Container, Dtype};
use mutandis_engine::{LogitRows, Model, Options, Overlay, Pass, Role, Sequence, Storage, WeightId};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// Between W·x + ΔW·x and (W + ΔW)·x lie only roundings of f32, 6e-8 each, over a few layers of a
/// few dozen terms; relative to the largest logit.
const F32_TOLERANCE: f32 = 1e-5;

const ROLES: [Role; 7] =
    [Role::Query, Role::Key, Role::Value, Role::AttentionOut, Role::MlpGate, Role::MlpUp, Role::MlpOut];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// Every fixture that is a model: files and folders.
fn models() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(fixtures())
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| {
            p.is_dir() && p.join("config.json").exists() || p.extension().is_some_and(|e| e == "gguf")
        })
        .collect();
    found.sort();
    assert!(found.len() > 20, "{found:?}");
    found
}

fn load(path: &Path) -> Model {
    let options = Options { storage: Storage::F32, threads: Some(2), ..Options::default() };
    Model::load(path, options).unwrap()
}

fn logits(model: &Model, overlays: &[&Overlay]) -> Vec<f32> {
    let tokens = [5, 17, 3, 29, 11, 8, 40, 2];
    let sequences = vec![Sequence { tokens: &tokens, overlays, ..Sequence::default() }];
    model.forward(Pass { sequences, logits: LogitRows::All, ..Pass::default() }).unwrap().logits
}

/// The largest difference, relative to the largest logit.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    let scale = a.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / scale
}

/// Changes of every linear map of two layers, one of them of low rank, a tenth as large as weights.
fn patch(model: &Model, seed: u64) -> Patch {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut random = |count: usize, size: f32| -> Vec<f32> {
        (0..count).map(|_| size * (rng.next_u32() as f32 / u32::MAX as f32 - 0.5)).collect()
    };
    let mut patch = Patch::new(model, "random", Family::Mastery, serde_json::Value::Null, &[], seed).unwrap();
    for layer in [0, model.architecture().layers - 1] {
        for role in ROLES {
            let Ok([out, inn]) = model.linear_shape(role, layer) else { continue };
            let change = match role {
                Role::MlpOut => {
                    WeightChange::LowRank { rank: 2, left: random(out * 2, 0.2), right: random(inn * 2, 0.2) }
                }
                _ => WeightChange::Dense { out, inn, delta: random(out * inn, 0.05) },
            };
            patch.push(model, WeightId { layer, role }, change).unwrap();
        }
    }
    patch
}

fn touched(model: &Model, patch: &Patch) -> Vec<String> {
    let checkpoint = model.checkpoint();
    let name = |id: &WeightId| checkpoint.layout(id.role, id.layer).unwrap().unwrap().tensor;
    patch.weights.iter().map(|(id, _)| name(id)).collect()
}

/// Writes a copy in the base's own form; gives where it is.
fn written(model: &Model, stored: &mutandis_edit::export::Stored, folder: &Path) -> PathBuf {
    match model.checkpoint().container() {
        Container::Gguf => {
            let path = folder.join("edited.gguf");
            stored.write_gguf(model, &path).unwrap();
            path
        }
        Container::Safetensors => {
            let path = folder.join("edited");
            stored.write_safetensors(model, &path, false).unwrap();
            path
        }
    }
}

#[test]
fn every_family_exported_in_f32_answers_as_the_patch_does() {
    for path in models() {
        let model = load(&path);
        let patch = patch(&model, 1);
        let stored = Export::new(&model, std::slice::from_ref(&patch)).unwrap().store_as(Dtype::F32).unwrap();
        for tensor in &stored.tensors {
            // Adding to W and taking W away again rounds by the size of W.
            assert!((tensor.norm - 1.0).abs() < 1e-4 && tensor.cosine > 1.0 - 1e-6, "{tensor:?}");
        }
        let folder = tempfile::tempdir().unwrap();
        let copy = load(&written(&model, &stored, folder.path()));
        let overlay = patch.overlay(&model).unwrap();
        let (was, wanted, is) = (logits(&model, &[]), logits(&model, &[&overlay]), logits(&copy, &[]));
        let (moved, off) = (difference(&was, &wanted), difference(&wanted, &is));
        assert!(moved > 0.02, "{}: the patch does nothing, {moved}", path.display());
        assert!(off < F32_TOLERANCE, "{}: {off}", path.display());

        let names = touched(&model, &patch);
        for name in model.checkpoint().tensor_names() {
            let (Ok(old), Ok(new)) = (model.checkpoint().tensor(name), copy.checkpoint().tensor(name)) else {
                continue;
            };
            let same = old.dtype == new.dtype && old.bytes == new.bytes;
            assert_eq!(same, !names.contains(&name.to_owned()), "{}: {name}", path.display());
        }
    }
}

#[test]
fn in_its_own_formats_an_export_is_what_its_overlay_says() {
    for path in models() {
        let model = load(&path);
        let stored = Export::new(&model, &[patch(&model, 2)]).unwrap().store(None).unwrap();
        assert!(stored.tensors.iter().all(|t| t.from == t.to), "{}", path.display());
        assert_eq!(stored.extra_bytes(), 0);
        let folder = tempfile::tempdir().unwrap();
        let copy = load(&written(&model, &stored, folder.path()));
        let off = difference(&logits(&model, &[&stored.overlay]), &logits(&copy, &[]));
        assert!(off < F32_TOLERANCE, "{}: {off}", path.display());
    }
}

#[test]
fn patches_are_added_up() {
    let model = load(&fixtures().join("gpt_neox"));
    let (a, b) = (patch(&model, 3), patch(&model, 4));
    let stored = Export::new(&model, &[a.clone(), b.clone()]).unwrap().store_as(Dtype::F32).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let copy = load(&written(&model, &stored, folder.path()));
    let (a, b) = (a.overlay(&model).unwrap(), b.overlay(&model).unwrap());
    let off = difference(&logits(&model, &[&a, &b]), &logits(&copy, &[]));
    assert!(off < F32_TOLERANCE, "{off}");
}

#[test]
fn a_folder_keeps_its_files_and_only_touched_shards_are_rewritten() {
    let base = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixtures().join("llama3_rope_old")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, base.path().join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(base.path().join("tokenizer_config.json"), "{}").unwrap();
    std::fs::write(base.path().join("pytorch_model.bin"), "old").unwrap();
    let model = load(base.path());
    let mut patch = patch(&model, 5);
    let is_first = |id: &WeightId| {
        let name = model.checkpoint().layout(id.role, id.layer).unwrap().unwrap().tensor;
        model.checkpoint().tensor(&name).unwrap().path.ends_with("model-00001-of-00002.safetensors")
    };
    patch.weights.retain(|(id, _)| is_first(id));
    assert!(!patch.weights.is_empty());
    let stored = Export::new(&model, &[patch]).unwrap().store(None).unwrap();
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("edited");
    let written = stored.write_safetensors(&model, &folder, false).unwrap();
    assert_eq!(written.left_out, ["pytorch_model.bin"]);
    for entry in std::fs::read_dir(base.path()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let read = |folder: &Path| std::fs::read(folder.join(&name)).ok();
        let expected_same = !["model-00001-of-00002.safetensors", "pytorch_model.bin"].contains(&&*name);
        assert_eq!(read(base.path()) == read(&folder), expected_same, "{name}");
    }
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1);

    // The header of a rewritten shard is the base's, byte for byte: nothing changed its format.
    let header = |folder: &Path| {
        let bytes = std::fs::read(folder.join("model-00001-of-00002.safetensors")).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[..8 + length].to_vec()
    };
    assert_eq!(header(base.path()), header(&folder));

    // What is there is only replaced when that is asked for, and never the base.
    let error = stored.write_safetensors(&model, &folder, false).unwrap_err();
    assert!(error.to_string().contains("exists"), "{error}");
    stored.write_safetensors(&model, &folder, true).unwrap();
    assert!(Checkpoint::open(&folder).is_ok());
    let error = stored.write_safetensors(&model, base.path(), true).unwrap_err();
    assert!(error.to_string().contains("holds the model itself"), "{error}");
    let error = stored.write_safetensors(&model, &out.path().join("gone/edited"), false).unwrap_err();
    assert!(error.to_string().contains("gone"), "{error}");
    let plain = out.path().join("plain");
    std::fs::create_dir(&plain).unwrap();
    let error = stored.write_safetensors(&model, &plain, true).unwrap_err();
    assert!(error.to_string().contains("is no checkpoint"), "{error}");
}

#[test]
fn what_a_file_cannot_hold_is_refused() {
    let model = load(&fixtures().join("llama"));
    let mut prompt = patch(&model, 6);
    prompt.prefix = Some("It is so. ".into());
    let error = Export::new(&model, &[prompt]).unwrap_err();
    assert!(error.to_string().contains("is a prompt"), "{error}");
    assert!(error.hint().is_some());

    let mut none = patch(&model, 7);
    none.weights.clear();
    assert!(Export::new(&model, &[none]).unwrap_err().to_string().contains("change no weight"));

    let mut head = patch(&model, 8);
    let [out, inn] = model.linear_shape(Role::Head, 0).unwrap();
    let change = WeightChange::Dense { out, inn, delta: vec![0.1; out * inn] };
    head.push(&model, WeightId { layer: 0, role: Role::Head }, change).unwrap();
    assert!(Export::new(&model, &[head]).unwrap_err().to_string().contains("is the embedding"));

    let mut large = patch(&model, 9);
    large.weights[0].1 = large.weights[0].1.clone().scaled(1e9);
    let error = Export::new(&model, &[large]).unwrap().store_as(Dtype::F16).unwrap_err();
    assert!(error.to_string().contains("too large for F16"), "{error}");

    let other = load(&fixtures().join("qwen3"));
    assert!(Export::new(&model, &[patch(&other, 10)]).unwrap_err().to_string().contains("another base"));
}
