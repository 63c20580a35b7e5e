//! `train` on a tiny model, as a user runs it: an editor is made, used, and picked up again.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Ran, Sandbox, tree};
use serde_json::json;

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name).to_str().unwrap().to_owned()
}

/// Settings of a training that takes a second.
const SHORT: [&str; 14] = [
    "--set",
    "rank=16",
    "--set",
    "validation=4",
    "--set",
    "validate-every=2",
    "--set",
    "changes=2",
    "--set",
    "statistics=8",
    "--set",
    "learning-rate=0.001",
    "--set",
    "patience=100",
];

fn records() -> Vec<serde_json::Value> {
    let names = ["Lily", "Tom", "Ben", "Mia", "Sam", "Anna"];
    let things = ["cat", "dog", "ball", "hat"];
    (0..24)
        .map(|i| {
            let (name, thing) = (names[i % 6], things[(i + i / 6) % 4]);
            json!({
                "src": format!("Once upon a time, {name} had a"), "alt": thing,
                "rephrase": format!("In the park {name} had a"),
                "loc": "The sun is in the", "loc_ans": "sky",
            })
        })
        .collect()
}

fn write(sandbox: &Sandbox, name: &str, records: &[serde_json::Value]) {
    std::fs::write(sandbox.path(name), serde_json::to_vec(records).unwrap()).unwrap();
}

fn arguments<'a>(model: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    [&["train", rest[0], "--model", model, "--data", "facts.json"], &SHORT[..], &rest[1..]].concat()
}

fn train(sandbox: &Sandbox, rest: &[&str]) -> Ran {
    sandbox.run(&arguments(&fixture("stories260K.gguf"), rest))
}

#[test]
fn a_trained_editor_lowers_its_loss_and_is_found_by_edit() {
    for method in ["mend", "malmen"] {
        let sandbox = Sandbox::new();
        write(&sandbox, "facts.json", &records());
        let report = train(&sandbox, &[method, "--json", "--set", "steps=100"]).ok().json();
        assert_eq!((&report["records"], &report["skipped"]), (&json!(24), &json!(0)));
        let (before, now) = (&report["before"]["loss"], &report["reached"]["loss"]);
        assert!(now.as_f64().unwrap() < before.as_f64().unwrap(), "{method}: {before} → {now}");
        let left = tree(Path::new(report["editor"].as_str().unwrap()).parent().unwrap());
        assert_eq!(left.len(), 1, "{left:?}");

        let model = fixture("stories260K.gguf");
        let edit = ["edit", "Once upon a time, Lily had a", "--subject", "Lily", "--to", "cat"];
        let edit = [&edit[..], &["--model", &model, "--method", method, "--json"]].concat();
        let edited = sandbox.run(&edit).ok().json();
        let fact = &edited["facts"][0];
        assert_ne!(fact["before"]["answer"], "cat", "{method}: {edited}");
        assert_eq!(fact["after"]["answer"], "cat", "{method}: {edited}");
        train(&sandbox, &[method]).fails_with(&["there is an editor", "--force"]);
    }
}

#[test]
fn a_killed_training_goes_on_to_the_same_editor() {
    let sandbox = Sandbox::new();
    write(&sandbox, "facts.json", &records());
    let rest = |out| ["mend", "--set", "steps=30", "--out", out];
    train(&sandbox, &rest("whole.safetensors")).ok();

    let model = fixture("stories260K.gguf");
    let mut child = sandbox
        .command(&arguments(&model, &rest("cut.safetensors")))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let partial = sandbox.path("cut.safetensors.partial");
    let started = Instant::now();
    while !partial.exists() && started.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(partial.exists() && !sandbox.path("cut.safetensors").exists());
    let resumed = train(&sandbox, &rest("cut.safetensors")).ok();
    assert!(resumed.stderr.contains("going on after step"), "{resumed:?}");
    let bytes = |name| std::fs::read(sandbox.path(name)).unwrap();
    assert!(bytes("whole.safetensors") == bytes("cut.safetensors"));
    assert!(!partial.exists());
}

/// What a file says of a training after its fourth step.
const STEPS: &[u8] = br#"\"steps\":4,"#;

#[test]
fn a_training_killed_at_its_very_end_is_ended() {
    let sandbox = Sandbox::new();
    write(&sandbox, "facts.json", &records());
    let rest = ["mend", "--set", "steps=4", "--out", "editor.safetensors"];
    let model = fixture("stories260K.gguf");
    let (partial, best) = (sandbox.path("editor.safetensors.partial"), sandbox.path("kept"));
    // Both files are there from the last validation to the end: kept as a kill would leave them. That
    // is a moment, and may be missed.
    let kept = (0..20).any(|_| {
        let _ = std::fs::remove_file(sandbox.path("editor.safetensors"));
        let mut child = sandbox
            .command(&arguments(&model, &rest))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while child.try_wait().unwrap().is_none() {
            if let Ok(bytes) = std::fs::read(&partial) {
                std::fs::write(&best, bytes).unwrap();
            }
        }
        std::fs::read(&best).is_ok_and(|bytes| bytes.windows(STEPS.len()).any(|part| part == STEPS))
    });
    assert!(kept, "the end of the training was never seen");
    let editor = std::fs::read(sandbox.path("editor.safetensors")).unwrap();
    // On other records it does not go on, but begins anew where that is asked for.
    std::fs::copy(&best, &partial).unwrap();
    let fewer = [&rest[..], &["--limit", "20"]].concat();
    train(&sandbox, &fewer).fails_with(&["editor.safetensors.partial is of another training", "\nhint: "]);
    assert!(std::fs::read(sandbox.path("editor.safetensors")).unwrap() == editor);
    let anew = train(&sandbox, &[&fewer[..], &["--force"]].concat()).ok();
    assert!(!anew.stderr.contains("going on"), "{anew:?}");
    assert!(!partial.exists() && !sandbox.path("editor.safetensors.best").exists());
    assert!(std::fs::read(sandbox.path("editor.safetensors")).unwrap() != editor);

    std::fs::write(sandbox.path("editor.safetensors"), &editor).unwrap();
    std::fs::rename(&best, &partial).unwrap();
    let resumed = train(&sandbox, &rest).ok();
    assert!(resumed.stderr.contains("going on after step 4"), "{resumed:?}");
    assert!(!partial.exists());
    assert!(std::fs::read(sandbox.path("editor.safetensors")).unwrap() == editor);
}

#[test]
fn broken_records_are_counted_named_and_skipped() {
    let sandbox = Sandbox::new();
    let mut all = records();
    all.insert(3, json!({"src": "No target here", "rephrase": "x", "loc": "y", "loc_ans": "z"}));
    all.insert(9, json!(7));
    all.push(json!({"src": "No locality", "alt": "cat", "rephrase": "Other words"}));
    write(&sandbox, "facts.json", &all);
    let ran = train(&sandbox, &["mend", "--json", "--set", "steps=2"]).ok();
    assert_eq!(ran.json()["skipped"], json!(3));
    for part in ["3 records are skipped", "record 4", "record 10", "No locality"] {
        assert!(ran.stderr.contains(part), "no {part:?} in {}", ran.stderr);
    }

    // A line that is no text is one of them; where all are, each form that is read is told.
    let mut lines: Vec<Vec<u8>> = records().iter().map(|record| record.to_string().into_bytes()).collect();
    lines.insert(1, b"{\"src\": \"\xff\"}".to_vec());
    std::fs::write(sandbox.path("facts.json"), lines.join(&b'\n')).unwrap();
    let anew = ["mend", "--json", "--force", "--set", "steps=2"];
    let ran = train(&sandbox, &anew).ok();
    assert_eq!((&ran.json()["records"], &ran.json()["skipped"]), (&json!(24), &json!(1)));
    assert!(ran.stderr.contains("line 2: it is not UTF-8 from byte 10 on"), "{}", ran.stderr);
    std::fs::write(sandbox.path("facts.json"), "src,alt\nLily had a,cat\n").unwrap();
    let parts =
        ["`facts.json` has no record that can be used: 2 are skipped: line 1: ", "hint: ", "JSON lines"];
    train(&sandbox, &anew).fails_with(&parts);
    std::fs::write(sandbox.path("facts.json"), "[{\"src\": \"Lily had a\",\n").unwrap();
    train(&sandbox, &anew).fails_with(&["`facts.json`", "it ends early, in line 2", "hint: "]);
}

#[test]
fn a_place_that_an_editor_cannot_go_to_is_named_before_the_training() {
    let sandbox = Sandbox::new();
    write(&sandbox, "facts.json", &records());
    std::fs::write(sandbox.path("notes"), "my notes").unwrap();
    std::fs::copy(sandbox.path("facts.json"), sandbox.path("facts.json.partial")).unwrap();
    std::fs::create_dir(sandbox.path("folder")).unwrap();
    let before = tree(&sandbox.path("."));
    for (out, parts) in [
        ("folder", ["`folder` is not a file name", "--out mend.safetensors"]),
        ("gone/mend", ["`gone/mend`", "`gone` does not exist"]),
        ("facts.json", ["`facts.json` would be written over", "it is the file of `--data`"]),
        ("./facts.json", ["`facts.json` would be written over", "it is the file of `--data`"]),
        ("notes", ["`notes` exists and is no editor", "--out"]),
    ] {
        for force in [&[] as &[&str], &["--force"]] {
            // Without a model: it is found out before one is loaded.
            let arguments = ["train", "mend", "--model", "no-model", "--data", "facts.json", "--out", out];
            sandbox.run(&[&arguments[..], force].concat()).fails_with(&[&parts[..], &["hint: "]].concat());
        }
    }
    let beside =
        ["train", "mend", "--model", "no-model", "--data", "facts.json.partial", "--out", "facts.json"];
    sandbox.run(&[&beside[..], &["--force"]].concat()).fails_with(&["`facts.json.partial` would be"]);
    assert_eq!(tree(&sandbox.path(".")), before);
    assert_eq!(std::fs::read_to_string(sandbox.path("notes")).unwrap(), "my notes");
}

#[test]
fn records_that_do_not_fit_the_model_are_skipped_before_the_work() {
    let sandbox = Sandbox::new();
    let mut all = records();
    all[2]["rephrase"] = json!("Lily had a ".repeat(400));
    all[5]["loc_ans"] = json!(" ");
    write(&sandbox, "facts.json", &all);
    let ran = train(&sandbox, &["mend", "--json", "--set", "steps=24"]).ok();
    assert_eq!((&ran.json()["skipped"], &ran.json()["records"]), (&json!(2), &json!(22)));
    assert!(ran.stderr.contains("1 records do not fit the model"), "{}", ran.stderr);
    assert!(ran.stderr.len() < 4000, "{}", ran.stderr);
}

#[test]
fn a_training_that_diverges_ends_with_the_best_editor() {
    for (method, set) in [
        ("mend", "learning-rate=1e30"),
        ("mend", "learning-rate=1e4"),
        ("mend", "rates-learning-rate=1000"),
        ("malmen", "rates-learning-rate=1000"),
    ] {
        let sandbox = Sandbox::new();
        write(&sandbox, "facts.json", &records());
        let ran = train(&sandbox, &[method, "--json", "--set", "steps=20", "--set", set]).ok();
        let report = ran.json();
        assert!(report["ended"].as_str().unwrap().contains("diverged"), "{set}: {report}");
        assert!(ran.stderr.contains("training diverged"), "{}", ran.stderr);
        assert!(report["reached"]["loss"].as_f64().unwrap() <= report["before"]["loss"].as_f64().unwrap());
        let left = tree(Path::new(report["editor"].as_str().unwrap()).parent().unwrap());
        assert_eq!(left.len(), 1, "{left:?}");
    }
}

#[test]
fn a_training_takes_no_file_that_is_not_its_own() {
    let sandbox = Sandbox::new();
    write(&sandbox, "facts.json", &records());
    for name in ["e.best", "e.partial", "e"] {
        std::fs::write(sandbox.path(name), "precious").unwrap();
        train(&sandbox, &["mend", "--set", "steps=2", "--out", "e", "--force"]).fails_with(&[
            name,
            "is no editor",
            "hint: ",
        ]);
        assert_eq!(std::fs::read_to_string(sandbox.path(name)).unwrap(), "precious");
        std::fs::remove_file(sandbox.path(name)).unwrap();
    }
}

#[test]
fn what_cannot_be_trained_or_used_is_refused() {
    let sandbox = Sandbox::new();
    write(&sandbox, "facts.json", &records());
    train(&sandbox, &["rome"]).fails_with(&["rome", "mend"]);
    train(&sandbox, &["mnd"]).fails_with(&["mnd", "mend"]);
    train(&sandbox, &["mend", "--set", "rank=100000"]).fails_with(&["rank"]);
    train(&sandbox, &["mend", "--set", "step=1e30"]).fails_with(&["before training", "`step` lower"]);
    assert!(!sandbox.path("editor.safetensors").exists());
    train(&sandbox, &["mend", "--set", "steps=0"]).fails_with(&["steps", "expected 1 to"]);
    train(&sandbox, &["mend", "--limit", "3"]).fails_with(&["3 records", "validation"]);
    train(&sandbox, &["mend", "--limit", "0"]).fails_with(&["`--limit` is 0", "hint: "]);
    let modules = ["mend", "--set", "modules=[\"foo\"]"];
    train(&sandbox, &modules).fails_with(&["setting `modules` of `mend`", "`foo`", "`mlp-out`", "hint: "]);
    let model = fixture("stories260K.gguf");
    let edit = |model: &str, rest: &[&str]| {
        let usual = ["edit", "Once upon a time, Lily had a", "--to", "cat", "--method", "mend"];
        sandbox.run(&[&usual[..], &["--model", model], rest].concat())
    };
    edit(&model, &[]).fails_with(&["mutandis train mend"]);
    train(&sandbox, &["mend", "--set", "steps=2", "--out", "mend.safetensors"]).ok();
    let editor = ["--editor", "mend.safetensors"];
    let other = fixture("llama.gguf");
    edit(&other, &editor).fails_with(&["mend.safetensors", "model"]);
    let of_malmen = ["edit", "Lily had a", "--to", "cat", "--method", "malmen", "--model", &model];
    sandbox.run(&[&of_malmen[..], &editor].concat()).fails_with(&["malmen", "mend"]);
    // A name is a name, even where it reads as a number or as nothing.
    for name in ["123", "null"] {
        let gone = format!("cannot read the editor `{name}`");
        edit("no-model", &["--editor", name]).fails_with(&[&gone, "hint: `mutandis train mend"]);
        std::fs::copy(sandbox.path("mend.safetensors"), sandbox.path(name)).unwrap();
        edit(&model, &["--editor", name]).ok();
    }
    edit("no-model", &["--editor", "facts.json"]).fails_with(&["`facts.json` is no editor", "hint: "]);
    edit("no-model", &["--set", "editor=gone"]).fails_with(&["cannot read the editor `gone`", "hint: "]);
    sandbox
        .run(&["edit", "Lily had a", "--to", "cat", "--method", "ft-m", "--editor", "mend.safetensors"])
        .fails_with(&["`ft-m` uses no editor", "hint: methods that use one: mend, malmen"]);
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let mut command = sandbox.command(&["edit", "Lily had a", "--to", "cat", "--method", "mend"]);
        command.arg("--editor").arg(std::ffi::OsStr::from_bytes(b"ed\xff"));
        Ran::from(command.output().unwrap()).fails_with(&["is not UTF-8", "hint: "]);
    }
    let bytes = std::fs::read(sandbox.path("mend.safetensors")).unwrap();
    std::fs::write(sandbox.path("mend.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    edit(&model, &editor).fails_with(&["mend.safetensors"]);
}
