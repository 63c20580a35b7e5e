//! What cannot be done as asked: refused by name before the work, or done as far as it goes, and that
//! said.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;
use std::sync::Mutex;

use mutandis_edit::patch::{SolveInfo, WeightChange};
use mutandis_edit::primitives::post::Post;
use mutandis_edit::{Context, Entry, Fact, Job, METHODS, Patch, Progress, Result, find};
use mutandis_engine::{Model, Options, Role, WeightId};
use serde_json::{Value, json};

fn model() -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/stories260K.gguf");
    Model::load(&path, Options::default()).unwrap()
}

/// Hears notes, and whether a search was begun.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Progress for Heard {
    fn begin(&self, stage: &str, _: usize) {
        self.0.lock().unwrap().push(stage.to_owned());
    }
    fn step(&self, _: usize) {}
    fn end(&self) {}
    fn note(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

impl Heard {
    fn has(&self, part: &str) -> bool {
        self.0.lock().unwrap().iter().any(|heard| heard.contains(part))
    }
}

/// Methods that search for values.
fn searching() -> impl Iterator<Item = &'static Entry> {
    METHODS.iter().filter(|m| m.defaults().get("search").is_some())
}

fn edit(method: &Entry, facts: &[Fact], settings: &Value, heard: &Heard) -> Result<Patch> {
    let mut all = json!({"prefixes": [0, 1], "moment-tokens": 600});
    match method.defaults().get("layers") {
        Some(_) => all["layers"] = json!([1, 2]),
        None => all["layer"] = json!(2),
    }
    mutandis_edit::method::merge(&mut all, settings);
    let model = model();
    let job = Job { model: &model, stack: &[], prior: &[], facts, seed: 7 };
    method.edit(&all, &job, &Context { progress: heard, ..Context::default() })
}

/// Facts about Lily, each on a day of its own.
fn days(count: usize) -> Vec<Fact> {
    let targets = ["cat", "dog", "car", "ball", "hat"];
    (0..count)
        .map(|i| Fact::new(format!("On day {i}, Lily had a"), "Lily", targets[i % targets.len()]).unwrap())
        .collect()
}

#[test]
fn settings_are_refused_by_name_before_anything_is_searched() {
    for method in searching() {
        for (name, bad) in [
            ("ridge", json!(-1.0)),
            ("past", json!(-1.0)),
            ("lambda", json!(-1.0)),
            ("lambda", json!("nan absolute")),
            ("scale", json!(0.0)),
            ("norm", json!(-1.0)),
            ("slack", json!(-0.5)),
            ("eased", json!(-1.0)),
            ("stop-kl", json!(-1.0)),
            ("null-space", json!(1.0)),
            ("null-space", json!("inf absolute")),
            ("search.stop-below", json!(1e60)),
            ("post.rect", json!(1.5)),
        ] {
            let nested = name.split_once('.');
            let settings = nested.map_or(json!({name: bad}), |(outer, inner)| json!({outer: {inner: bad}}));
            if method.check_settings(&settings).is_err() {
                continue;
            }
            let heard = Heard::default();
            let error = edit(method, &days(1), &settings, &heard).unwrap_err();
            assert!(error.to_string().contains(&format!("`{name}` is ")), "{}: {error}", method.id);
            assert!(error.hint().is_some(), "{}: {error}", method.id);
            assert!(!heard.has("searching"), "{}: `{name}` is looked at too late", method.id);
        }
    }
}

#[test]
fn a_value_that_the_anchor_refuses_is_not_written() {
    for method in searching() {
        let settings = json!({"search": {"steps": 2, "anchor": 1e-6}});
        let error = edit(method, &days(2), &settings, &Heard::default()).unwrap_err();
        assert!(error.to_string().contains("no value could be written"), "{}: {error}", method.id);
    }
}

#[test]
fn prompts_that_differ_in_blanks_alone_are_one_prompt() {
    let facts = [("Once upon a time, Lily had a", "cat"), ("Once  upon a time,\u{a0}Lily had a ", "dog")]
        .map(|(prompt, target)| Fact::new(prompt, "Lily", target).unwrap());
    let error = edit(find("memit").unwrap(), &facts, &json!({}), &Heard::default()).unwrap_err();
    assert!(error.to_string().contains("fact 1 and fact 2 contradict each other"), "{error}");
}

#[test]
fn a_null_space_that_is_everything_is_told_of_with_both_forms_of_its_end() {
    let method = find("alphaedit").unwrap();
    for (cut, whole) in [(json!(0.0), true), (json!("1e9 absolute"), true), (json!(0.9), false)] {
        let heard = Heard::default();
        let settings = json!({"null-space": cut, "search": {"steps": 2}});
        let patch = edit(method, &days(2), &settings, &heard).unwrap();
        assert_eq!(heard.has("is all of it"), whole, "{cut}");
        for solve in &patch.solve {
            let end = solve.strengths["null-space"];
            assert_eq!(end.relative == 0.0, whole, "{end:?}");
            assert!(end.absolute > 0.0);
        }
    }
}

#[test]
fn systems_that_were_singular_are_told_of() {
    // Exact values for keys that are all but the same.
    let same: Vec<Fact> = [" ", "  ", "   "]
        .map(|blank| Fact::new(format!("Lily had{blank}a"), "Lily", "cat").unwrap())
        .to_vec();
    let heard = Heard::default();
    let settings = json!({"slack": 0.0, "prefixes": [0, 0], "layers": [2], "search": {"steps": 2}});
    let patch = edit(find("emmet").unwrap(), &same, &settings, &heard).unwrap();
    assert!(patch.solve.iter().any(|s| s.jitter > 0.0), "{:?}", patch.solve);
    assert!(heard.has("1 of 1 systems were singular"));
}

#[test]
fn what_does_not_fit_in_memory_is_searched_without_prefixes_or_refused() {
    let settings = json!({"search": {"steps": 1}});
    let merging = find("memit-merge").unwrap();
    let heard = Heard::default();
    let patch = edit(merging, &days(250), &settings, &heard).unwrap();
    assert_eq!(patch.search.len(), 250);
    assert!(heard.has("1 of 1 values are searched without prefixes"));
    let heard = Heard::default();
    edit(merging, &days(20), &settings, &heard).unwrap();
    assert!(!heard.has("without prefixes"));
    let error = edit(merging, &days(1000), &settings, &Heard::default()).unwrap_err();
    assert!(error.to_string().contains("the search for `Lily` runs over"), "{error}");
    assert!(error.hint().unwrap().contains("on top"));
}

#[test]
fn a_thousand_facts_of_one_subject_are_one_small_change_of_each_layer() {
    for id in ["rome", "memit", "alphaedit"] {
        let method = find(id).unwrap();
        let settings = json!({"prefixes": [0, 0], "search": {"steps": 1}});
        let patch = edit(method, &days(1000), &settings, &Heard::default()).unwrap();
        for (_, change) in &patch.weights {
            let WeightChange::Dense { delta, .. } = change else { panic!("{id}: factors of rank 1000") };
            assert!(delta.iter().all(|x| x.is_finite()), "{id}");
        }
    }
}

#[test]
fn rounds_add_up_to_one_change_of_each_weight() {
    let facts = [Fact::new("Once upon a time, Lily had a", "Lily", "cat").unwrap()];
    for method in searching() {
        let search = json!({"steps": 4, "settle": 1, "margin": 0.5, "clamp": 50.0, "stop-below": 0.0});
        let settings = json!({"rounds": 12, "prefixes": [0, 0], "search": search});
        let patch = edit(method, &facts, &settings, &Heard::default()).unwrap();
        let mut written: Vec<WeightId> = patch.weights.iter().map(|(id, _)| *id).collect();
        written.dedup();
        assert_eq!((written.len(), patch.norms.len()), (patch.weights.len(), written.len()), "{}", method.id);
        for ((_, change), norms) in patch.weights.iter().zip(&patch.norms) {
            assert_eq!(change.norm(), norms.delta, "{}", method.id);
        }
    }
}

#[test]
fn post_steps_see_what_the_same_edit_has_changed_before() {
    let model = model();
    let id = WeightId { layer: 1, role: Role::MlpOut };
    let [out, inn] = model.linear_shape(id.role, id.layer).unwrap();
    // Two changes along one direction, each below the weight's largest singular value, not both.
    let base = model.weight(id.role, id.layer).unwrap();
    let norm = base.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32;
    let left: Vec<f32> = (0..out).map(|i| if i == 3 { 0.9 * norm } else { 0.0 }).collect();
    let right: Vec<f32> = (0..inn).map(|i| if i == 5 { 1.0 } else { 0.0 }).collect();
    let change = || WeightChange::LowRank { rank: 1, left: left.clone(), right: right.clone() };
    let post = Post { rect: 0.0, prune: 1.2 };
    let size = |own: &[(WeightId, WeightChange)]| {
        post.apply(&model, &[], own, id, change()).unwrap().norm() / f64::from(norm)
    };
    let (alone, second) = (size(&[]), size(&[(id, change())]));
    assert!(second < alone, "{second} after a change of the same size, {alone} without");
    assert_eq!(alone, size(&[(WeightId { layer: 2, ..id }, change())]));
}

#[test]
fn a_patch_with_a_number_that_is_not_finite_is_not_written() {
    let method = find("ice").unwrap();
    let model = model();
    let job = Job { model: &model, stack: &[], prior: &[], facts: &days(1), seed: 7 };
    let mut patch = method.edit(&json!({}), &job, &Context::default()).unwrap();
    patch.to_bytes().unwrap();
    patch.solve.push(SolveInfo { residual: f64::NAN, ..SolveInfo::default() });
    assert!(patch.to_bytes().unwrap_err().to_string().contains("not finite"));
}
