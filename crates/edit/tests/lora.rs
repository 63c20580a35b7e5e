//! Adapters: what `peft` says with its own, what is written for it and for llama.cpp, and what is
//! refused.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use mutandis_edit::lora::Adapter;
use mutandis_edit::patch::WeightChange;
use mutandis_edit::{Error, Patch};
use mutandis_engine::checkpoint::{Container, Gguf};
use mutandis_engine::{LogitRows, Model, Options, Overlay, Pass, Role, Sequence, WeightId};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};

const ADAPTERS: [&str; 3] = ["llama", "gpt2", "gpt_neox"];

/// Sums of f32 in another order, on logits of about 4: both sides round every layer.
const LOGITS: f32 = 1e-4;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

fn model(name: &str) -> Model {
    Model::load(&fixture(name), Options::default()).unwrap()
}

fn imported(adapter: &Path, model: &Model) -> Result<Patch, Error> {
    Adapter::read(adapter, model.architecture().family)?.patch(model)
}

fn logits(model: &Model, patches: &[Patch], tokens: &[u32]) -> Vec<f32> {
    let overlays: Vec<Overlay> = patches.iter().map(|p| p.overlay(model).unwrap()).collect();
    let overlays: Vec<&Overlay> = overlays.iter().collect();
    let sequences = vec![Sequence { tokens, overlays: &overlays, ..Sequence::default() }];
    model.forward(Pass { sequences, logits: LogitRows::All, ..Pass::default() }).unwrap().logits
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Shapes and numbers by name.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// What a file of f32 holds.
fn tensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let read = |t: &TensorView<'_>| {
        let numbers = t.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        (t.shape().to_vec(), numbers)
    };
    file.tensors()
        .iter()
        .filter(|(_, t)| t.dtype() == Dtype::F32)
        .map(|(n, t)| (n.clone(), read(t)))
        .collect()
}

struct Golden {
    ids: Vec<u32>,
    logits: Vec<f32>,
    base: Vec<f32>,
}

fn golden(name: &str) -> Golden {
    let bytes = std::fs::read(fixture("lora.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids = file.tensor(&format!("{name}.ids")).unwrap().data().to_vec();
    let ids = ids.as_chunks::<8>().0.iter().map(|b| u32::try_from(i64::from_le_bytes(*b)).unwrap()).collect();
    let all = tensors(&fixture("lora.safetensors"));
    let take = |what: &str| all[&format!("{name}.{what}")].1.clone();
    Golden { ids, logits: take("logits"), base: take("base") }
}

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| (f64::from(random.next_u32()) / f64::from(u32::MAX) - 0.5) as f32).collect()
}

fn low_rank(model: &Model, id: WeightId, rank: usize, seed: u64) -> WeightChange {
    let [out, inn] = model.linear_shape(id.role, id.layer).unwrap();
    WeightChange::LowRank { rank, left: random(out * rank, seed), right: random(inn * rank, seed + 1) }
}

fn whole(change: &WeightChange) -> Vec<f32> {
    let [out, inn] = change.shape();
    let mut delta = vec![0.0; out * inn];
    change.add_to(&mut delta);
    delta
}

/// A patch of these changes.
fn patch(model: &Model, changes: Vec<(WeightId, WeightChange)>) -> Patch {
    let mut patch = Patch::imported(model, json!({})).unwrap();
    changes.into_iter().for_each(|(id, change)| patch.push(model, id, change).unwrap());
    patch
}

const DOWN: WeightId = WeightId { layer: 1, role: Role::MlpOut };

fn told<T>(result: Result<T, Error>, parts: &[&str]) {
    let error = result.err().unwrap();
    let text = format!("{error}; {}", error.hint().unwrap_or_default());
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text:?}");
    }
}

#[test]
fn an_adapter_answers_as_it_does_in_peft() {
    for name in ADAPTERS {
        let (model, golden) = (model(name), golden(name));
        let patch = imported(&fixture("lora").join(name), &model).unwrap();
        assert!(apart(&golden.base, &golden.logits) > 1.0, "{name}: the adapter changes nothing");
        let far = apart(&logits(&model, &[patch], &golden.ids), &golden.logits);
        assert!(far < LOGITS, "{name}: off by {far}");
    }
}

#[test]
fn what_is_written_has_the_names_and_shapes_of_pefts_own() {
    for (name, rank) in ADAPTERS.into_iter().zip([4, 3, 2]) {
        let (model, golden) = (model(name), golden(name));
        let own = fixture("lora").join(name);
        let patch = imported(&own, &model).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("adapter");
        let adapter = Adapter::new(&[patch], &model, Container::Safetensors, None).unwrap();
        adapter.write(&out).unwrap();

        // Fused modules came from one pair of factors, and go back into one of the same rank.
        assert_eq!(adapter.rank, rank, "{name}");
        assert!(adapter.modules.iter().all(|m| m.lost == 0.0));
        let bytes = std::fs::read(own.join("adapter_model.safetensors")).unwrap();
        let theirs = SafeTensors::deserialize(&bytes).unwrap();
        let ours = tensors(&out.join("adapter_model.safetensors"));
        assert_eq!(ours.len(), theirs.len(), "{name}");
        for (key, tensor) in theirs.tensors() {
            let (shape, _) = &ours[&key];
            let wanted = match tensor.shape() {
                [_, inn] if key.ends_with("lora_A.weight") => vec![rank, *inn],
                [out, _] => vec![*out, rank],
                other => panic!("{other:?}"),
            };
            assert_eq!(*shape, wanted, "{name} {key}");
        }
        let config: Value =
            serde_json::from_slice(&std::fs::read(out.join("adapter_config.json")).unwrap()).unwrap();
        assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(rank), &json!(rank)));
        assert_eq!(config["fan_in_fan_out"], json!(name == "gpt2"));
        assert_eq!(config["target_modules"].as_array().unwrap().len(), adapter.modules.len());

        let again = imported(&out, &model).unwrap();
        let far = apart(&logits(&model, &[again], &golden.ids), &golden.logits);
        assert!(far < LOGITS, "{name}: off by {far}");
        adapter.write(&folder.path().join("second")).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let read = |at: &Path| std::fs::read(at.join(file)).unwrap();
            assert_eq!(read(&out), read(&folder.path().join("second")), "{name} {file}");
        }
    }
}

#[test]
fn an_adapter_for_llama_cpp_has_its_names_and_its_order_of_rows() {
    for name in ADAPTERS {
        let (from, to) = (model(name), model(&format!("{name}.gguf")));
        let golden = golden(name);
        let patch = imported(&fixture("lora").join(name), &from).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("adapter.gguf");
        Adapter::new(std::slice::from_ref(&patch), &from, Container::Gguf, None)
            .unwrap()
            .write(&out)
            .unwrap();
        let far = apart(&logits(&to, &[imported(&out, &to).unwrap()], &golden.ids), &golden.logits);
        assert!(far < LOGITS, "{name}: off by {far}");

        let bytes = std::fs::read(&out).unwrap();
        let file = Gguf::parse(&bytes, &out).unwrap();
        let architecture = if name == "gpt_neox" { "gptneox" } else { name };
        assert_eq!(file.str("general.architecture").unwrap(), Some(architecture));
        assert_eq!(file.str("general.type").unwrap(), Some("adapter"));
        assert_eq!(file.str("adapter.type").unwrap(), Some("lora"));
        assert!(file.f32("adapter.lora.alpha").unwrap().unwrap() > 1.0);
        if name != "llama" {
            assert!(file.tensors().iter().any(|t| t.name == "blk.0.attn_qkv.weight.lora_b"));
            continue;
        }
        // The converter of llama.cpp interleaves the halves of each head of q and k.
        let numbers = |what: &str| {
            let tensor = file.tensors().iter().find(|t| t.name == what).unwrap();
            let data = bytes[tensor.range.clone()].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
            (tensor.shape.clone(), data.collect::<Vec<f32>>())
        };
        let ((a_shape, a), (b_shape, b)) =
            (numbers("blk.1.attn_q.weight.lora_a"), numbers("blk.1.attn_q.weight.lora_b"));
        let (rank, inn, rows) = (a_shape[0], a_shape[1], b_shape[0]);
        let id = WeightId { layer: 1, role: Role::Query };
        let delta = whole(&patch.weights.iter().find(|(known, _)| *known == id).unwrap().1);
        let k = from.architecture().head_width;
        for row in 0..rows {
            let (head, i) = (row / k, row % k);
            let stored = head * k + if i < k / 2 { 2 * i } else { 2 * (i - k / 2) + 1 };
            for column in 0..inn {
                let product: f32 = (0..rank).map(|j| b[stored * rank + j] * a[j * inn + column]).sum();
                assert!((product - delta[row * inn + column]).abs() < 1e-5, "{row} {column}");
            }
        }
    }
}

#[test]
fn a_dense_change_is_cut_to_a_rank_and_what_is_lost_is_told() {
    let model = model("llama");
    let [out, inn] = model.linear_shape(DOWN.role, DOWN.layer).unwrap();
    // Strengths 1, 1/4, 1/16…: 99.9 % of the norm are in the first few.
    let parts: Vec<Vec<f32>> = (0..8)
        .map(|i| {
            let part =
                WeightChange::LowRank { rank: 1, left: random(out, 10 + i), right: random(inn, 30 + i) };
            whole(&part.scaled(0.25f32.powi(i as i32)))
        })
        .collect();
    let delta: Vec<f32> = (0..out * inn).map(|at| parts.iter().map(|p| p[at]).sum()).collect();
    let norm = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let edit = patch(&model, vec![(DOWN, WeightChange::Dense { out, inn, delta: delta.clone() })]);
    let lost = |rank| {
        let adapter =
            Adapter::new(std::slice::from_ref(&edit), &model, Container::Safetensors, rank).unwrap();
        let back = whole(&adapter.patch(&model).unwrap().weights[0].1);
        let apart: Vec<f32> = back.iter().zip(&delta).map(|(a, b)| a - b).collect();
        let lost = norm(&apart) / norm(&delta);
        // Rounding of the factors to f32.
        assert!((lost - adapter.modules[0].lost).abs() < 1e-6, "{lost} {}", adapter.modules[0].lost);
        (adapter.rank, lost)
    };
    // Eight ranks are all there is, and few enough: nothing is lost.
    let (rank, least) = lost(None);
    assert!(rank == 8 && least < 1e-6, "{rank} {least}");
    let ((two, more), (five, less)) = (lost(Some(2)), lost(Some(5)));
    assert!((two, five) == (2, 5) && 1e-3 < more && more < 0.2 && less < more / 10.0, "{more} {less}");
}

#[test]
fn patches_are_added_up_exactly() {
    let model = model("gpt2");
    let value = WeightId { layer: 0, role: Role::Value };
    let (one, two) = (low_rank(&model, DOWN, 2, 1), low_rank(&model, DOWN, 1, 5));
    let patches = [
        patch(&model, vec![(DOWN, one.clone()), (value, low_rank(&model, value, 1, 9))]),
        patch(&model, vec![(DOWN, two.clone())]),
    ];
    let tokens: Vec<u32> = (3..14).collect();
    let adapter = Adapter::new(&patches, &model, Container::Safetensors, None).unwrap();
    let ranks: Vec<(&str, usize)> = adapter.modules.iter().map(|m| (m.name.as_str(), m.rank)).collect();
    assert_eq!(ranks, [("transformer.h.0.attn.c_attn", 1), ("transformer.h.1.mlp.c_proj", 3)]);
    let far = apart(
        &logits(&model, &[adapter.patch(&model).unwrap()], &tokens),
        &logits(&model, &patches, &tokens),
    );
    assert!(far < LOGITS, "{far}");

    // An edit and its opposite leave nothing.
    let opposite = patch(&model, vec![(DOWN, one.clone().scaled(-1.0))]);
    let edit = patch(&model, vec![(DOWN, one)]);
    told(Adapter::new(&[edit, opposite], &model, Container::Safetensors, None), &["change no weight"]);
}

#[test]
fn what_no_adapter_can_hold_is_refused() {
    let model = model("llama");
    let edit = patch(&model, vec![(DOWN, low_rank(&model, DOWN, 2, 1))]);
    let make =
        |patch: &Patch, container, rank| Adapter::new(std::slice::from_ref(patch), &model, container, rank);
    told(make(&edit, Container::Safetensors, Some(0)), &["rank 0", "1 to "]);
    told(make(&edit, Container::Safetensors, Some(10_000)), &["cannot have the rank 10000", "down_proj"]);
    let prompt = Patch { prefix: Some("New fact: ".into()), weights: vec![], ..edit.clone() };
    told(make(&prompt, Container::Gguf, None), &["is a prompt", "mutandis patch show"]);
    let mut foreign = edit.clone();
    foreign.base.fingerprint = "0".repeat(64);
    told(make(&foreign, Container::Gguf, None), &["another base"]);
    let head = WeightId { layer: 0, role: Role::Head };
    let tied = patch(&model, vec![(head, low_rank(&model, head, 1, 1))]);
    told(make(&tied, Container::Gguf, None), &["no head of its own"]);
    let adapter = make(&tied, Container::Safetensors, None).unwrap();
    assert_eq!(adapter.modules[0].name, "lm_head");
}

/// A copy of `llama`'s adapter with another config and other tensors.
fn tampered(config: &dyn Fn(&mut Value), change: &dyn Fn(&mut Tensors)) -> Result<Patch, Error> {
    let own = fixture("lora/llama");
    let folder = tempfile::tempdir().unwrap();
    let mut document: Value =
        serde_json::from_slice(&std::fs::read(own.join("adapter_config.json")).unwrap()).unwrap();
    config(&mut document);
    std::fs::write(folder.path().join("adapter_config.json"), document.to_string()).unwrap();
    let mut all = tensors(&own.join("adapter_model.safetensors"));
    change(&mut all);
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> =
        all.into_iter().map(|(n, (s, x))| (n, s, x.iter().flat_map(|x| x.to_le_bytes()).collect())).collect();
    let views = bytes.iter().map(|(n, s, b)| (n, TensorView::new(Dtype::F32, s.clone(), b).unwrap()));
    let bytes = safetensors::serialize(views, None::<HashMap<String, String>>).unwrap();
    std::fs::write(folder.path().join("adapter_model.safetensors"), bytes).unwrap();
    imported(folder.path(), &model("llama"))
}

const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_";

#[test]
fn an_adapter_that_is_more_than_low_rank_is_refused_by_name() {
    assert!(tampered(&|_| (), &|_| ()).is_ok());
    for (field, value) in [
        ("use_dora", json!(true)),
        ("bias", json!("lora_only")),
        ("modules_to_save", json!(["lm_head"])),
        ("target_parameters", json!(["experts"])),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("peft_type", json!("LOHA")),
    ] {
        told(tampered(&|config| config[field] = value.clone(), &|_| ()), &[value.as_str().unwrap_or(field)]);
    }
    told(
        tampered(&|config| config["alpha_pattern"] = json!({"layers.[01].q_proj": 2}), &|_| ()),
        &["`alpha_pattern`", "layers.[01].q_proj"],
    );
    for name in ["base_model.model.model.embed_tokens.lora_embedding_A", "base_model.model.lm_head.weight"] {
        let add = |all: &mut Tensors| drop(all.insert(name.to_owned(), (vec![2, 2], vec![0.5; 4])));
        told(tampered(&|_| (), &add), &[name, "from-diff"]);
    }
}

#[test]
fn a_file_of_an_adapter_stands_for_its_folder() {
    let model = model("llama");
    let folder = fixture("lora/llama");
    let weights = |path: &Path| imported(path, &model).unwrap().weights;
    for file in ["adapter_model.safetensors", "adapter_config.json"] {
        assert_eq!(weights(&folder.join(file)), weights(&folder), "{file}");
    }
}

#[test]
fn an_adapter_that_changes_nothing_is_refused() {
    for part in ["lora_A", "lora_B"] {
        let zeros = |all: &mut Tensors| {
            let parts = all.iter_mut().filter(|(name, _)| name.contains(part));
            parts.for_each(|(_, (_, numbers))| numbers.fill(0.0));
        };
        told(tampered(&|_| (), &zeros), &["changes nothing", "before it was trained"]);
    }
}

#[test]
fn an_alpha_that_is_too_large_is_named() {
    told(tampered(&|config| config["lora_alpha"] = json!(1e60), &|_| ()), &["`lora_alpha` is 1e60", "_proj"]);
    let own = |config: &mut Value| config["alpha_pattern"]["layers.0.self_attn.q_proj"] = json!(1e60);
    told(tampered(&own, &|_| ()), &["`alpha_pattern` is 1e60", "q_proj"]);
    // No number of JSON at all.
    let folder = tempfile::tempdir().unwrap();
    let own = fixture("lora/llama");
    std::fs::copy(own.join("adapter_model.safetensors"), folder.path().join("adapter_model.safetensors"))
        .unwrap();
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(own.join("adapter_config.json")).unwrap()).unwrap();
    config["lora_alpha"] = json!(12345);
    let text = config.to_string().replace("12345", "1e999");
    std::fs::write(folder.path().join("adapter_config.json"), text).unwrap();
    told(imported(folder.path(), &model("llama")), &["out of range", "`lora_alpha`"]);
}

#[test]
fn a_damaged_adapter_is_refused() {
    let key = |part: &str| format!("{Q}{part}.weight");
    told(tampered(&|config| config["r"] = json!(5), &|_| ()), &["says rank 5"]);
    told(tampered(&|config| drop(config.as_object_mut().unwrap().remove("r")), &|_| ()), &["`r`"]);
    told(tampered(&|_| (), &|all| drop(all.remove(&key("B")))), &["only one of"]);
    told(
        tampered(&|_| (), &|all| all.get_mut(&key("A")).unwrap().1[3] = f32::NAN),
        &["q_proj", "not finite"],
    );
    let swap = |all: &mut Tensors| {
        let factors = all.remove(&key("A")).unwrap();
        all.insert(key("A").replace("q_proj", "r_proj"), factors);
        let factors = all.remove(&key("B")).unwrap();
        all.insert(key("B").replace("q_proj", "r_proj"), factors);
    };
    told(tampered(&|_| (), &swap), &["model.layers.0.self_attn.r_proj", "the nearest is"]);
    // A rank above the matrix's.
    let wide = |all: &mut Tensors| {
        for (part, at) in [("A", 0), ("B", 1)] {
            let (shape, numbers) = all.get_mut(&key(part)).unwrap();
            shape[at] = 500;
            *numbers = vec![0.5; shape.iter().product()];
        }
    };
    told(
        tampered(&|config| config["rank_pattern"]["layers.0.self_attn.q_proj"] = json!(500), &wide),
        &["cannot have the rank 500"],
    );
    // Of another model.
    told(imported(&fixture("lora/llama"), &model("qwen2")), &["`model.layers", "--model"]);
    told(imported(&fixture("lora/llama"), &model("gpt2")), &["no linear map of this model"]);
    // No adapter at all.
    told(imported(&fixture("llama"), &model("llama")), &["adapter_config.json", "is missing"]);
    told(imported(&fixture("llama.gguf"), &model("llama")), &["expected `adapter` `lora`"]);
    let folder = tempfile::tempdir().unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(fixture("lora/llama").join(file), folder.path().join(file)).unwrap();
    }
    let path = folder.path().join("adapter_model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 7]).unwrap();
    told(imported(folder.path(), &model("llama")), &["is not a valid adapter"]);
}
