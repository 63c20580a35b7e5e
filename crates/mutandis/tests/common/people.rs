//! A data set of people that the little model's stories know, and how results are compared.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::{Sandbox, tree};

pub fn stories() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/stories260K.gguf").to_owned()
}

/// Names that the model's stories know, each with where it goes.
pub const PEOPLE: [(&str, &str); 9] = [
    ("Tom", "house"),
    ("Lily", "store"),
    ("Max", "sea"),
    ("Sam", "park"),
    ("Mia", "kitchen"),
    ("Ben", "beach"),
    ("Sue", "zoo"),
    ("Jack", "forest"),
    ("Anna", "river"),
];

pub fn record((name, target): (&str, &str)) -> Value {
    let prompt = format!("One day, {name} went to the");
    json!({
        "prompt": prompt, "subject": name, "target_new": target,
        "rephrase_prompt": format!("Then {name} ran to the"),
        "portability": {"Reasoning": [{"prompt": format!("{name} was at the"), "ground_truth": [[target, "place"]]}]},
        "locality": {"near": [
            {"prompt": "Once upon a time, there was a little", "ground_truth": "girl"},
            {"prompt": "The dog wagged its", "ground_truth": "tail"},
        ]},
    })
}

/// A sandbox with a data set of people, and among them a record whose subject is not in its prompt.
pub fn people() -> Sandbox {
    let sandbox = Sandbox::new();
    let absent = json!({"prompt": "Once upon a time", "subject": "Bob", "target_new": "there"});
    let mut records: Vec<Value> = PEOPLE.into_iter().map(record).collect();
    records.insert(1, absent);
    let lines: Vec<String> = records.iter().map(Value::to_string).collect();
    std::fs::write(sandbox.path("people.jsonl"), lines.join("\n")).unwrap();
    sandbox
}

/// The words of a run that is quick on the little model.
pub fn run<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let usual = ["bench", "run", "--model", model, "--data", "people.jsonl", "--set", "moment-tokens=600"];
    [&usual[..], &["--set", "prefixes=[1,1]", "--set", "search.steps=5"], more].concat()
}

/// All results of a folder by their paths, but for what a run costs.
pub fn results(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let is_result = |path: &String| !path.ends_with(".cost.json") && !path.contains(".mutandis-");
    let all = tree(folder).into_iter().filter(is_result);
    all.map(|path| (path.clone(), std::fs::read(folder.join(path)).unwrap())).collect()
}
