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
    with(&["--plot", "n.svg"]).fails_with(&["`n.svg` exists", "--force", "--plot"]);
    with(&["--plot", "n.svg", "--force"]).ok();

    // With another answer, and several wordings.
    let other = with(&["--json", "--answer", "boy", "--also", "One day, there was a little"]).ok().json();
    assert_eq!((&other["answer"], other["prompts"].as_array().unwrap().len()), (&"b".into(), 2));
    let text = with(&["--answer", "boy"]).ok().stdout;
    assert!(text.contains("attribution") && text.contains("neurons by layer"), "{text}");

    with(&["--steps", "0"]).fails_with(&["`steps` is 0", "hint: "]);
    with(&["--share", "2"]).fails_with(&["`share` is 2", "hint: "]);
    with(&["--answer", " "]).fails_with(&["`--answer` is blank", "hint: "]);
    with(&["--also="]).fails_with(&["a prompt of `--also` is blank", "hint: "]);
    sandbox.run(&["locate", "neurons", "", "--model", &model]).fails_with(&["the prompt is blank", "hint: "]);
    let long = "once upon a time ".repeat(300);
    with(&["--also", &long]).fails_with(&[
        "`once upon a time",
        "…` has ",
        "expected 1 to 511",
        "hint: shorten",
    ]);
    // A place that cannot be written to is told before a model is loaded.
    std::fs::create_dir(sandbox.path("folder")).unwrap();
    for (plot, parts) in [
        ("gone/n.svg", ["`gone` does not exist", "--plot"]),
        ("folder", ["is not a file name", "neurons.svg"]),
    ] {
        for force in [&[] as &[&str], &["--force"]] {
            let usual = ["locate", "neurons", "Lily had a", "--model", "no-model", "--plot", plot];
            sandbox.run(&[&usual[..], force].concat()).fails_with(&[&parts[..], &["hint: "]].concat());
        }
    }
}

#[test]
fn neurons_of_an_edited_model_are_its_own() {
    let sandbox = Sandbox::new();
    let (model, prompt) = (stories(), "Once upon a time, Lily had a");
    let edit = ["edit", prompt, "--subject", "Lily", "--to", "cat", "--model", &model, "--out", "lily.patch"];
    let quick = ["layer=2", "prefixes=[1,1]", "moment-tokens=600", "search.steps=40"];
    let quick: Vec<&str> = quick.iter().flat_map(|setting| ["--set", *setting]).collect();
    sandbox.run(&[&edit[..], &quick[..]].concat()).ok();
    let neurons = ["locate", "neurons", prompt, "--model", &model, "--json"];
    let before = sandbox.run(&neurons).ok().json();
    let after = sandbox.run(&[&neurons[..], &["--patch", "lily.patch"]].concat()).ok().json();
    let answer = |report: &serde_json::Value| report["answer"].as_str().unwrap().to_owned();
    assert!("cat".starts_with(&answer(&after)) && answer(&after) != answer(&before), "{before} {after}");
    assert_ne!(after["neurons"], before["neurons"]);
    sandbox.run(&[&neurons[..], &["--patch", "gone.patch"]].concat()).fails_with(&["`gone.patch`"]);
}
