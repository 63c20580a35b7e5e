//! `locate neurons` on a tiny model, as a user runs it.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::path::Path;

use common::Sandbox;

fn stories() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/stories260K.gguf");
    path.to_str().unwrap().to_owned()
}

#[test]
fn neurons_are_listed_and_drawn() {
    let sandbox = Sandbox::new();
    let model = stories();
    let neurons = ["locate", "neurons", "Once upon a time, there was a little", "--model", &model];
    let with = |more: &[&str]| sandbox.run(&[&neurons[..], more].concat());
    let report = with(&["--json", "--plot", "n.svg"]).ok().json();
    assert_eq!(report["answer"], "g");
    let found = report["neurons"].as_array().unwrap();
    assert!(!found.is_empty());
    for n in found {
        assert!(n["layer"].as_u64().unwrap() < report["layers"].as_u64().unwrap());
        assert!(n["attribution"].as_f64().unwrap() > 0.0);
    }
    let drawing = std::fs::read_to_string(sandbox.path("n.svg")).unwrap();
    assert!(drawing.starts_with("<svg") && drawing.matches("<circle").count() == found.len());
    with(&["--plot", "n.svg"]).fails_with(&["is there already", "--force"]);
    with(&["--plot", "n.svg", "--force"]).ok();

    // With another answer, and several wordings.
    let other = with(&["--json", "--answer", "boy", "--also", "One day, there was a little"]).ok().json();
    assert_eq!((&other["answer"], other["prompts"].as_array().unwrap().len()), (&"b".into(), 2));
    let text = with(&["--answer", "boy"]).ok().stdout;
    assert!(text.contains("attribution") && text.contains("neurons by layer"), "{text}");

    with(&["--steps", "0"]).fails_with(&["`steps` is 0", "hint: "]);
    with(&["--share", "2"]).fails_with(&["`share` is 2", "hint: "]);
    with(&["--plot", "gone/n.svg"]).fails_with(&["gone"]);
    with(&["--answer", " "]).fails_with(&["`--answer` is blank", "hint: "]);
    sandbox.run(&["locate", "neurons", "", "--model", &model]).fails_with(&["the prompt is blank", "hint: "]);
}
