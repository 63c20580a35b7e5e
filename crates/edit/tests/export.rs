//! Patches written into copies of checkpoints of every family, and read again.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::path::{Path, PathBuf};

use mutandis_edit::export::{ALIKE, check_apart, check_beneath};
use mutandis_edit::method::Family;
use mutandis_edit::patch::{WeightChange, chain};
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
    let base = sharded();
    std::fs::write(base.path().join("pytorch_model.bin"), "old").unwrap();
    std::fs::write(base.path().join(".gitattributes"), "").unwrap();
    std::fs::create_dir(base.path().join("onnx")).unwrap();
    let model = load(base.path());
    let patch = of_first_shard(&model, 5);
    let stored = Export::new(&model, &[patch]).unwrap().store(None).unwrap();
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("edited");
    let written = stored.write_safetensors(&model, &folder, false).unwrap();
    assert_eq!(written.left_out, [".gitattributes", "onnx/", "pytorch_model.bin"]);
    assert_eq!(written.loads_as, None);
    for entry in std::fs::read_dir(base.path()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let read = |folder: &Path| std::fs::read(folder.join(&name)).ok();
        let is_left_out = written.left_out.iter().any(|left| left.trim_end_matches('/') == name);
        assert_eq!(folder.join(&name).exists(), !is_left_out, "{name}");
        if !is_left_out {
            let expected_same = name != FIRST;
            assert_eq!(read(base.path()) == read(&folder), expected_same, "{name}");
        }
    }
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1);

    // The header of a rewritten shard is the base's, byte for byte: nothing changed its format.
    let header = |folder: &Path| {
        let bytes = std::fs::read(folder.join(FIRST)).unwrap();
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
    let file = out.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    let error = stored.write_safetensors(&model, &file, true).unwrap_err();
    assert!(error.to_string().contains("is a file, expected a folder"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
}

const FIRST: &str = "model-00001-of-00002.safetensors";

/// A copy of a model in two shards, with a file of a tokenizer.
fn sharded() -> tempfile::TempDir {
    let base = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixtures().join("llama3_rope_old")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, base.path().join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(base.path().join("tokenizer_config.json"), "{}").unwrap();
    base
}

/// A patch of weights that lie in the first shard.
fn of_first_shard(model: &Model, seed: u64) -> Patch {
    let mut patch = patch(model, seed);
    let is_first = |id: &WeightId| {
        let name = model.checkpoint().layout(id.role, id.layer).unwrap().unwrap().tensor;
        model.checkpoint().tensor(&name).unwrap().path.ends_with(FIRST)
    };
    patch.weights.retain(|(id, _)| is_first(id));
    assert!(!patch.weights.is_empty());
    patch
}

#[test]
fn a_folder_with_anything_but_an_export_is_not_replaced() {
    let base = sharded();
    let model = load(base.path());
    let stored = Export::new(&model, &[of_first_shard(&model, 11)]).unwrap().store(None).unwrap();
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("edited");
    stored.write_safetensors(&model, &folder, false).unwrap();
    let refused = |name: &str| {
        let error = stored.write_safetensors(&model, &folder, true).unwrap_err();
        let text = format!("{error}; {}", error.hint().unwrap());
        assert!(text.contains(&format!("holds `{name}`")) && text.contains("--force"), "{text}");
    };
    for name in ["notes.md", ".gitignore", "model-00003-of-00003.safetensors"] {
        std::fs::write(folder.join(name), "mine").unwrap();
        refused(name);
        assert_eq!(std::fs::read(folder.join(name)).unwrap(), b"mine");
        std::fs::remove_file(folder.join(name)).unwrap();
    }
    std::fs::create_dir(folder.join("checkpoints")).unwrap();
    refused("checkpoints/");
    std::fs::remove_dir(folder.join("checkpoints")).unwrap();
    // A file that an export writes, and that was changed by hand since.
    std::fs::write(folder.join("tokenizer_config.json"), "[]").unwrap();
    refused("tokenizer_config.json");
    std::fs::write(folder.join("tokenizer_config.json"), "{}").unwrap();
    stored.write_safetensors(&model, &folder, true).unwrap();

    #[cfg(unix)]
    {
        // A link stays one, and leads to the new export.
        let link = out.path().join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        stored.write_safetensors(&model, &link, true).unwrap();
        assert!(link.is_symlink() && Checkpoint::open(&folder).is_ok());
    }
}

#[test]
fn an_export_shares_nothing_with_its_base() {
    let base = sharded();
    let model = load(base.path());
    let stored = Export::new(&model, &[of_first_shard(&model, 12)]).unwrap().store(None).unwrap();
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("edited");
    stored.write_safetensors(&model, &folder, false).unwrap();
    let untouched = "model-00002-of-00002.safetensors";
    let was = std::fs::read(base.path().join(untouched)).unwrap();
    // Written in place, as a program with a mapped file does.
    let mut file = std::fs::OpenOptions::new().write(true).open(folder.join(untouched)).unwrap();
    std::io::Write::write_all(&mut file, &[0; 64]).unwrap();
    assert_eq!(std::fs::read(base.path().join(untouched)).unwrap(), was);
}

#[test]
fn a_wider_export_tells_its_size_and_what_reads_it_narrower() {
    let base = sharded();
    let model = load(base.path());
    let stored = Export::new(&model, &[of_first_shard(&model, 13)]).unwrap().store(Some(Dtype::F32)).unwrap();
    assert!(stored.extra_bytes() > 0);
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("edited");
    let written = stored.write_safetensors(&model, &folder, false).unwrap();
    assert_eq!(written.loads_as, Some("BF16"));
    let index = |folder: &Path| -> serde_json::Value {
        let text = std::fs::read(folder.join("model.safetensors.index.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    let (was, is) = (index(base.path()), index(&folder));
    let total = |index: &serde_json::Value| index["metadata"]["total_size"].as_i64().unwrap();
    assert_eq!(total(&is), total(&was) + stored.extra_bytes());
    let copy = Checkpoint::open(&folder).unwrap();
    let bytes: usize = copy.tensor_names().map(|name| copy.tensor(name).unwrap().bytes.len()).sum();
    assert_eq!(total(&is), bytes as i64);
    assert_eq!(is["weight_map"], was["weight_map"]);
    // Its own index does not make it look like something else.
    stored.write_safetensors(&model, &folder, true).unwrap();
}

#[test]
fn the_model_itself_is_never_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::copy(fixtures().join("llama.gguf"), &path).unwrap();
    let model = load(&path);
    let was = std::fs::read(&path).unwrap();
    let stored = Export::new(&model, &[patch(&model, 14)]).unwrap().store(None).unwrap();
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    let mut names = vec![path.clone(), folder.path().join("sub/../model.gguf")];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&path, folder.path().join("link.gguf")).unwrap();
        names.push(folder.path().join("link.gguf"));
    }
    for name in names {
        let error = stored.write_gguf(&model, &name).unwrap_err();
        assert!(error.to_string().contains("a file of the model itself"), "{error}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), was);
    assert!(check_apart(model.checkpoint(), &folder.path().join("other.gguf")).is_ok());

    let base = sharded();
    let model = load(base.path());
    let names = [FIRST, "config.json", "tokenizer_config.json", "model.safetensors.index.json", ""];
    for name in names {
        assert!(check_apart(model.checkpoint(), &base.path().join(name)).is_err(), "{name}");
    }
    std::fs::write(base.path().join("a.patch.safetensors"), "").unwrap();
    assert!(check_apart(model.checkpoint(), &base.path().join("a.patch.safetensors")).is_ok());
}

#[test]
fn without_facts_nothing_is_said_to_be_kept() {
    let model = load(&fixtures().join("llama3_rope_old"));
    // Far below a step of BF16.
    let mut small = of_first_shard(&model, 15);
    for (_, change) in &mut small.weights {
        *change = change.clone().scaled(1e-4);
    }
    let export = Export::new(&model, std::slice::from_ref(&small)).unwrap();
    let names = export.tensors_of(&small).unwrap().into_iter().collect();
    let (own, wide) = (export.store(None).unwrap(), export.store(Some(Dtype::F32)).unwrap());
    assert!(own.tensors.iter().chain(&wide.tensors).all(|tensor| tensor.lost.is_none()));
    let (lost, kept) = (own.alike(&names).unwrap(), wide.alike(&names).unwrap());
    assert!(lost < 0.9 && kept > ALIKE, "{lost} {kept}");
    assert_eq!(own.alike(&Default::default()), None);
    assert!(export.is_narrower_than(Dtype::F32) && !export.is_narrower_than(Dtype::F16));
}

#[test]
fn a_patch_has_those_before_it_that_it_was_computed_on() {
    let model = load(&fixtures().join("llama"));
    let [a, b] = [16, 17].map(|seed| patch(&model, seed));
    let on_a = Patch { under: Some(chain(None, &a.id().unwrap())), ..patch(&model, 18) };
    let list = |patches: &[&Patch]| patches.iter().map(|patch| (*patch).clone()).collect::<Vec<_>>();
    for whole in [&[&a, &on_a][..], &[&a, &b, &on_a], &[&b, &a], &[]] {
        check_beneath(&list(whole)).unwrap();
    }
    for broken in [&[&on_a][..], &[&b, &on_a], &[&on_a, &a], &[&b, &a, &on_a]] {
        let error = check_beneath(&list(broken)).unwrap_err();
        assert!(error.to_string().contains("on top of other patches"), "{error}");
        assert!(error.hint().unwrap().contains("--independent"));
    }
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
