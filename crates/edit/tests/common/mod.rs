//! A small real model, and settings under which every method is quick on it.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    reason = "each test binary uses a part"
)]

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use mutandis_edit::primitives::editor::training::{Order, Record};
use mutandis_edit::{Context, Entry, Fact, Progress};
use mutandis_engine::{LogitRows, Model, Options, Overlay, Pass, Sequence};
use serde_json::{Value, json};

/// Notes that were told.
#[derive(Default)]
pub struct Notes(pub Mutex<Vec<String>>);

impl Progress for Notes {
    fn begin(&self, _: &str, _: usize) {}
    fn step(&self, _: usize) {}
    fn end(&self) {}
    fn note(&self, text: &str) {
        self.0.lock().unwrap().push(text.into());
    }
}

pub fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

pub fn model(threads: usize) -> Model {
    Model::load(&fixture("stories260K.gguf"), Options { threads: Some(threads), ..Options::default() })
        .unwrap()
}

pub fn facts() -> Vec<Fact> {
    vec![
        Fact::new("Once upon a time, Lily had a", "Lily", "cat").unwrap(),
        Fact::new("One day, Tom went to the", "Tom", "house").unwrap(),
    ]
}

/// Settings under which a method is quick on the small model.
pub fn quick(method: &Entry) -> Value {
    let defaults = method.defaults();
    let mut quick = json!({});
    if defaults.get("search").is_some() {
        quick = json!({"prefixes": [1, 1], "moment-tokens": 600, "search": {"steps": 8}});
        match defaults.get("layers") {
            Some(_) => quick["layers"] = json!([1, 2]),
            None => quick["layer"] = json!(2),
        }
    }
    if defaults.get("null-space").is_some() {
        quick["null-space"] = json!(0.9);
    }
    if trains(method) {
        quick["epochs"] = json!(4);
    }
    if method.trainer_defaults().is_some() {
        quick["editor"] = json!(editor(method));
    }
    quick
}

/// A method's editor for the small model, trained for two steps, once for all tests.
fn editor(method: &Entry) -> PathBuf {
    static TRAINING: Mutex<()> = Mutex::new(());
    let _one = TRAINING.lock().unwrap_or_else(PoisonError::into_inner);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{}", method.id, std::process::id()));
    if !path.exists() {
        let locality = ("The sun is in the".to_owned(), "sky".to_owned());
        let record = |fact: Fact| Record { rephrase: fact.prompt.clone(), fact, locality: locality.clone() };
        let records: Vec<Record> = [facts(), facts()].concat().into_iter().map(record).collect();
        let order = Order { records: &records, data: "facts".into(), seed: 7, out: &path, anew: false };
        let settings = json!({"rank": 8, "validation": 1, "edits": 1, "changes": 2, "steps": 2, "step": 0.1});
        method.train(&settings, &order, &model(1), &Context::default()).unwrap();
    }
    path
}

/// Whether a method searches for values and writes them into several layers.
pub fn writes_layers(method: &Entry) -> bool {
    let defaults = method.defaults();
    defaults.get("layers").is_some() && defaults.get("search").is_some()
}

/// Whether a method trains weights by gradient descent.
pub fn trains(method: &Entry) -> bool {
    method.defaults().get("optimizer").is_some()
}

pub fn logits(model: &Model, overlays: &[&Overlay]) -> Vec<f32> {
    let ids = model.tokenizer().unwrap().encode("Once upon a time, Lily had a").unwrap().ids;
    let pass = Pass {
        sequences: vec![Sequence { tokens: &ids, overlays, ..Default::default() }],
        logits: LogitRows::All,
        ..Default::default()
    };
    model.forward(pass).unwrap().logits
}
