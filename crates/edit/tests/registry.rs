//! What holds for every method of the registry, on a small real model.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use mutandis_edit::patch::{WeightChange, chain};
use mutandis_edit::{Context, Entry, Fact, Job, METHODS, Patch, find};
use mutandis_engine::{Model, Options, Role};
use proptest::prelude::*;
use serde_json::{Value, json};

use common::{facts, fixture, logits, model, quick, trains, writes_layers};

fn edit(method: &Entry, model: &Model, facts: &[Fact]) -> Patch {
    let job = Job { model, stack: &[], prior: &[], facts, seed: 7 };
    method.edit(&quick(method), &job, &Context::default()).unwrap()
}

#[test]
fn a_patch_changes_answers_and_its_removal_restores_them_bit_for_bit() {
    let model = model(2);
    let before = logits(&model, &[]);
    for method in METHODS {
        let patch = edit(method, &model, &facts());
        let overlay = patch.overlay(&model).unwrap();
        assert!(!overlay.is_empty() || patch.prefix.is_some(), "{} changes nothing", method.id);
        if !overlay.is_empty() {
            assert_ne!(logits(&model, &[&overlay]), before, "{}", method.id);
        }
        assert_eq!(logits(&model, &[]), before, "{} left a trace in the model", method.id);
    }
}

#[test]
fn a_patch_survives_its_file() {
    let model = model(2);
    let folder = tempfile::tempdir().unwrap();
    for method in METHODS {
        let patch = edit(method, &model, &facts());
        let path = folder.path().join("p.patch.safetensors");
        patch.save(&path).unwrap();
        // Not `assert_eq`: a patch is a long read.
        assert!(Patch::load(&path).unwrap() == patch, "{}", method.id);
        let bytes = std::fs::read(&path).unwrap();
        assert!((0..8).all(|_| patch.to_bytes().unwrap() == bytes), "{}: bytes vary", method.id);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file was left");
}

#[test]
fn a_patch_is_named_by_its_content_and_not_by_when_it_was_made() {
    let model = model(1);
    for method in METHODS {
        let patch = edit(method, &model, &facts());
        let id = patch.id().unwrap();
        let later = Patch { created: "2099-01-01T00:00:00Z".into(), tool: "another".into(), ..patch.clone() };
        assert_eq!(later.id().unwrap(), id, "{}", method.id);
        assert_eq!(Patch::from_bytes(&later.to_bytes().unwrap()).unwrap().id().unwrap(), id, "{}", method.id);
        let above = Patch { under: Some(chain(None, &id)), ..patch.clone() };
        assert_ne!(above.id().unwrap(), id, "{}", method.id);
        if let Some((first, _)) = patch.weights.first() {
            let mut other = patch.clone();
            let shape = model.linear_shape(first.role, first.layer).unwrap();
            let more =
                WeightChange::LowRank { rank: 1, left: vec![1.0; shape[0]], right: vec![1.0; shape[1]] };
            other.push(&model, *first, more).unwrap();
            assert_ne!(other.id().unwrap(), id, "{}", method.id);
        }
    }
    // Order matters, and where one name ends and the next begins.
    assert_ne!(chain(Some("a"), "b"), chain(Some("b"), "a"));
    assert_ne!(chain(Some("ab"), "c"), chain(Some("a"), "bc"));
}

#[test]
fn a_seed_gives_the_same_patch_on_any_number_of_threads() {
    let (one, four) = (model(1), model(4));
    for method in METHODS {
        let (a, b) = (edit(method, &one, &facts()), edit(method, &four, &facts()));
        assert_eq!((a.weights, a.prefix, a.config), (b.weights, b.prefix, b.config), "{}", method.id);
    }
}

#[test]
fn methods_are_named_documented_and_refuse_nothing_to_do() {
    let model = model(2);
    let mut ids = std::collections::HashSet::new();
    for method in METHODS {
        assert!(ids.insert(method.id), "{} is listed twice", method.id);
        assert!(method.id.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'));
        assert!(method.doc.contains("When to use") && method.doc.contains("Cost"), "{}", method.id);
        let schema = serde_json::to_value(method.schema()).unwrap();
        documented(&method.defaults(), &schema, &schema, method.id);
        if let Some((defaults, schema)) = method.trainer_defaults().zip(method.trainer_schema()) {
            let schema = serde_json::to_value(schema).unwrap();
            documented(&defaults, &schema, &schema, method.id);
        }
        let job = Job { model: &model, stack: &[], prior: &[], facts: &[], seed: 0 };
        let error = method.edit(&json!({}), &job, &Context::default()).unwrap_err();
        assert_eq!(error.to_string(), "there is no fact to edit");
        let unknown = Job { facts: &facts(), ..job };
        let error = method.edit(&json!({"no-such": 1}), &unknown, &Context::default()).unwrap_err();
        assert!(error.to_string().contains("no-such"), "{error}");
    }
    assert!(find("romee").unwrap_err().hint().unwrap().contains("rome"));
}

/// Every setting that there is, and no other, has a description in a part of the schema.
fn documented(defaults: &Value, part: &Value, schema: &Value, id: &str) {
    for (key, default) in defaults.as_object().unwrap() {
        let property = &part["properties"][key];
        let text = property["description"].as_str().unwrap_or_default();
        assert!(!text.is_empty(), "setting `{key}` of `{id}` is not documented");
        if default.is_object() {
            let name = property["$ref"].as_str().and_then(|at| at.strip_prefix("#/$defs/")).unwrap();
            documented(default, &schema["$defs"][name], schema, id);
        }
    }
    let known = part["properties"].as_object().unwrap();
    assert_eq!(known.len(), defaults.as_object().unwrap().len(), "{id} has other settings in its schema");
}

#[test]
fn a_setting_of_another_kind_is_named() {
    for (method, settings, parts) in [
        ("ft-l", json!({"learning-rate": "abc"}), ["`learning-rate` of `ft-l` is `abc`", "f32"]),
        ("locft-bf", json!({"optimizer": "foo"}), ["`optimizer` of `locft-bf` is `foo`", "`adam` or `sgd`"]),
        ("lora", json!({"rank": 4, "modules": ["foo"]}), ["`modules` of `lora` is `[\"foo\"]`", "`mlp-out`"]),
        ("rome", json!({"search": {"steps": 3, "kl": []}}), ["`search.kl` of `rome` is `[]`", "f32"]),
        ("rome", json!({"search": 5}), ["`search` of `rome` is `5`", "struct"]),
        ("memit", json!({"lambda": "much"}), ["`lambda` of `memit` is `much`", "15000 absolute"]),
    ] {
        let error = find(method).unwrap().check_settings(&settings).unwrap_err();
        assert!(parts.iter().all(|part| error.to_string().contains(part)), "{error}");
        assert!(error.hint().unwrap().contains("methods show"), "{error}");
    }
    let mend = find("mend").unwrap();
    let error = mend.check_training(&json!({"modules": ["foo"]})).unwrap_err().to_string();
    assert!(error.contains("`modules` of `mend` is") && error.contains("`mlp-out`"), "{error}");
    assert!(mend.check_training(&json!({"rank": 8, "layers": [1]})).is_ok());
    let error = find("rome").unwrap().check_training(&json!({})).unwrap_err();
    assert_eq!(error.to_string(), "`rome` uses no editor");
    assert!(error.hint().unwrap().contains("mend, malmen"), "{:?}", error.hint());
}

#[test]
fn a_weight_that_a_model_lacks_is_told_with_those_it_has() {
    let model = Model::load(&fixture("gpt2.gguf"), Options::default()).unwrap();
    for role in [Role::MlpGate, Role::Embedding, Role::MlpNorm] {
        let error = model.linear_shape(role, 1).unwrap_err();
        assert!(error.to_string().contains(&format!("`{role}` at layer 1")), "{error}");
        let hint = error.hint().unwrap();
        assert!(hint.contains("`query`, `key`, `value`, `attention-out`, `mlp-up`, `mlp-out`"), "{hint}");
        assert!(!hint.contains("head") && !hint.contains("gate"), "{hint}");
    }
    let hint = model.linear_shape(Role::MlpOut, 99).unwrap_err().hint().unwrap();
    assert!(hint.contains("layers are 0 to "), "{hint}");
}

#[test]
fn bad_facts_are_named_and_leave_nothing() {
    let model = model(2);
    for (prompt, subject, expected) in [
        ("Once upon a time", "Bob", "the subject `Bob` is not in the prompt"),
        ("Once upon a time", "", "names no subject"),
    ] {
        let facts = [Fact::new(prompt, subject, "cat").unwrap()];
        let job = Job { model: &model, stack: &[], prior: &[], facts: &facts, seed: 0 };
        // What has no settings of a search needs no subject.
        let needs = |m: &&Entry| !subject.is_empty() || m.defaults().get("search").is_some();
        for method in METHODS.iter().filter(needs) {
            let error = method.edit(&quick(method), &job, &Context::default()).unwrap_err();
            assert!(error.to_string().contains(expected), "{}: {error}", method.id);
        }
    }
    let facts = facts();
    let job = Job { model: &model, stack: &[], prior: &[], facts: &facts, seed: 0 };
    let error = find("rome").unwrap().edit(&json!({"layer": 99}), &job, &Context::default()).unwrap_err();
    assert!(error.to_string().contains("layer 99"), "{error}");
    let interrupted = Context::default();
    interrupted.interrupt.store(true, std::sync::atomic::Ordering::Relaxed);
    let error = find("rome").unwrap().edit(&json!({}), &job, &interrupted).unwrap_err();
    assert_eq!(error.to_string(), "interrupted");
}

#[test]
fn bad_batches_and_settings_are_named() {
    let model = model(2);
    let fails = |method: &str, facts: &[Fact], settings: Value, expected: &str| {
        let method = find(method).unwrap();
        let mut all = quick(method);
        all.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        let job = Job { model: &model, stack: &[], prior: &[], facts, seed: 0 };
        let error = method.edit(&all, &job, &Context::default()).unwrap_err();
        assert!(error.to_string().contains(expected), "{}: {error}", method.id);
    };
    let mut torn = facts();
    torn.push(Fact::new("Once upon a time, Lily had a ", "Lily", "dog").unwrap());
    for method in METHODS {
        fails(method.id, &torn, json!({}), "fact 1 and fact 3 contradict each other");
        fails(method.id, &facts(), json!({"leyer": 1}), "has no setting `leyer`");
    }
    for method in METHODS.iter().filter(|m| writes_layers(m)) {
        for (settings, expected) in [
            (json!({"layers": [1, 99]}), "layer 99"),
            (json!({"layers": [2, 1]}), "ascending"),
            (json!({"layers": []}), "one or more"),
            (json!({"prefixes": [0, 1000]}), "1000"),
            (json!({"search": {"steps": 0}}), "steps"),
            (json!({"search": {"anchor": -1.0}}), "anchor"),
            (json!({"search": {"shorten": 99}}), "shorten"),
            (json!({"search": {"margin": -1.0}}), "margin"),
            (json!({"rounds": 0}), "`rounds` is 0"),
            (json!({"rounds": 2, "search": {"settle": 0}}), "search.settle"),
            (json!({"token": "first"}), "first"),
            (json!({"beside": -1.0}), "`beside` is -1"),
            (json!({"post": {"rect": 1.5}}), "post.rect"),
            (json!({"post": {"prune": 0.5}}), "post.prune"),
        ] {
            fails(method.id, &facts(), settings, expected);
        }
    }
    for method in METHODS.iter().filter(|m| trains(m)) {
        for (settings, expected) in [
            (json!({"layers": [1, 99]}), "layer 99"),
            (json!({"layers": []}), "no weight to train"),
            (json!({"modules": []}), "no weight to train"),
            (json!({"modules": ["mlp"]}), "mlp"),
            (json!({"learning-rate": 0.0}), "`learning-rate` is 0"),
            (json!({"learning-rate": -1.0}), "`learning-rate` is -1"),
            (json!({"batch": 0}), "`batch` is 0"),
            (json!({"epochs": 0}), "`epochs` is 0"),
            (json!({"stop-below": -1.0}), "`stop-below` is -1"),
            (json!({"optimizer": "adamw"}), "adamw"),
        ] {
            fails(method.id, &facts(), settings, expected);
        }
        match method.defaults().get("rank") {
            Some(_) => {
                fails(method.id, &facts(), json!({"rank": 0}), "the rank is 0");
                fails(method.id, &facts(), json!({"rank": 1000}), "the rank is 1000");
                fails(method.id, &facts(), json!({"alpha": 0.0}), "`alpha` is 0");
            }
            None => {
                fails(method.id, &facts(), json!({"bound-each": 0.0}), "`bound-each` is 0");
                fails(method.id, &facts(), json!({"bound-norm": -1.0}), "`bound-norm` is -1");
            }
        }
    }
    for method in METHODS.iter().filter(|m| m.defaults().get("warm-up").is_some()) {
        for (settings, expected) in [
            (json!({"layers": [99]}), "layer 99"),
            (json!({"layers": []}), "no weight to train"),
            (json!({"step": 0.0}), "`step` is 0"),
            (json!({"ridge": 0.0}), "`ridge` is 0"),
            (json!({"turn": 0}), "`turn` is 0"),
            (json!({"rounds": 0}), "`rounds` is 0"),
            (json!({"margin": -1.0}), "`margin` is -1"),
            (json!({"warm-up": 100_000}), "`warm-up` is 100000"),
        ] {
            fails(method.id, &facts(), settings, expected);
        }
    }
    for method in METHODS.iter().filter(|m| m.trainer_defaults().is_some()) {
        fails(method.id, &facts(), json!({"turn": 0}), "`turn` is 0");
        fails(method.id, &facts(), json!({"editor": "no-such-file"}), "no-such-file");
    }
    fails("ft-l", &facts(), json!({"end-of-text": true}), "`end-of-text` cannot be learnt");
    fails("alphaedit", &facts(), json!({"null-space": "1e-30 absolute"}), "dimension 0");
    fails("memit", &facts(), json!({"lambda": "much"}), "much");
}

#[test]
fn hard_batches_are_edited_without_a_number_going_astray() {
    let model = model(2);
    let long = "cat ".repeat(150);
    let mut hard: Vec<Fact> = (0..12)
        .map(|i| Fact::new(format!("Lily number {i} had a"), "Lily", format!("cat{i}")).unwrap())
        .collect();
    hard.push(Fact::new("Tom went home and had a", "Tom", long.trim()).unwrap());
    let small = json!({"search": {"steps": 2}, "prefixes": [0, 1]});
    for method in METHODS.iter().filter(|m| writes_layers(m)) {
        let mut all = quick(method);
        all.as_object_mut().unwrap().extend(small.as_object().unwrap().clone());
        let job = Job { model: &model, stack: &[], prior: &[], facts: &hard, seed: 0 };
        let patch = method.edit(&all, &job, &Context::default()).unwrap();
        let overlay = patch.overlay(&model).unwrap();
        assert!(logits(&model, &[&overlay]).iter().all(|x| x.is_finite()), "{}", method.id);
        assert_eq!(patch.search.len(), hard.len(), "{}", method.id);
    }
}

#[test]
fn post_steps_are_taken_by_every_method_that_searches_for_values() {
    let model = model(2);
    for method in METHODS.iter().filter(|m| m.defaults().get("search").is_some()) {
        let with = |post: Value| {
            let mut all = quick(method);
            all["post"] = post;
            let job = Job { model: &model, stack: &[], prior: &[], facts: &facts(), seed: 7 };
            method.edit(&all, &job, &Context::default()).unwrap()
        };
        let rect = with(json!({"rect": 0.4}));
        for (_, change) in &rect.weights {
            let WeightChange::Dense { delta, .. } = change else { panic!("{}", method.id) };
            let kept = delta.iter().filter(|x| **x != 0.0).count() as f64 / delta.len() as f64;
            assert!((kept - 0.4).abs() < 0.01, "{}: {kept}", method.id);
        }
        // No change becomes larger.
        let (plain, pruned) = (with(json!({})), with(json!({"prune": 1.2})));
        for ((_, a), (_, b)) in plain.weights.iter().zip(&pruned.weights) {
            assert!(b.norm() <= (1.0 + 1e-3) * a.norm(), "{}: {} of {}", method.id, b.norm(), a.norm());
        }
    }
}

#[test]
fn a_patch_is_refused_by_another_base() {
    let patch = edit(find("ice").unwrap(), &model(1), &facts());
    let other = Model::load(&fixture("llama.gguf"), Options::default()).unwrap();
    let error = patch.overlay(&other).unwrap_err();
    assert!(error.to_string().contains("another base"), "{error}");
    assert!(error.hint().unwrap().contains("--model"));
}

#[test]
fn patches_stack() {
    let model = model(2);
    let rome = find("rome").unwrap();
    let facts = facts();
    let first = edit(rome, &model, &facts[..1]).overlay(&model).unwrap();
    let stack = [&first];
    let job = Job { model: &model, stack: &stack, prior: &[], facts: &facts[1..], seed: 7 };
    let on_top = rome.edit(&quick(rome), &job, &Context::default()).unwrap();
    let alone = edit(rome, &model, &facts[1..]);
    assert_ne!(on_top.weights, alone.weights, "the second edit did not see the first");
}

fn patch_bytes() -> Vec<u8> {
    let model = model(2);
    edit(find("rome").unwrap(), &model, &facts()[..1]).to_bytes().unwrap()
}

#[test]
fn a_damaged_patch_is_refused() {
    let bytes = patch_bytes();
    assert!(Patch::from_bytes(&bytes).is_ok());
    for len in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        assert!(Patch::from_bytes(&bytes[..len]).is_err(), "{len} bytes");
    }
    // Every byte counts: header, document, digest, numbers.
    for at in (0..bytes.len()).step_by(37) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x10;
        assert!(Patch::from_bytes(&flipped).is_err(), "byte {at}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn any_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Patch::from_bytes(&bytes);
        let mut framed = (bytes.len() as u64).to_le_bytes().to_vec();
        framed.extend(&bytes);
        let _ = Patch::from_bytes(&framed);
    }
}
