//! How the command answers: help, errors, exit codes, pipes.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::process::Stdio;

use common::{Ran, Sandbox};

#[test]
fn help_and_version_are_data_and_usage_errors_are_talk() {
    let sandbox = Sandbox::new();
    let help = sandbox.run(&["--help"]).ok().stdout;
    for word in ["model", "completions", "--offline", "MUTANDIS_CACHE", "HF_HUB_OFFLINE", "Exit codes"] {
        assert!(help.contains(word), "no {word:?} in {help}");
    }
    assert!(sandbox.run(&["--version"]).ok().stdout.starts_with("mutandis "));
    for wrong in
        [&["modle"] as &[&str], &["model", "get", "--threads", "0"], &["--weights", "f64", "model", "list"]]
    {
        let ran = sandbox.run(wrong);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran:?}");
        assert!(ran.stderr.starts_with("error: "), "{ran:?}");
    }
}

#[test]
fn errors_have_a_hint_and_no_colours_in_a_pipe() {
    let sandbox = Sandbox::new();
    let ran = sandbox.run(&["model", "show", "smolm2"]);
    assert!(!ran.stderr.contains('\u{1b}'));
    ran.fails_with(&[
        "error: `smolm2` is neither a file, a folder, a hub id nor a short name\n",
        "hint: short names: `smollm2`, `gemma3`",
    ]);
    sandbox
        .run(&["model", "show", "./gone"])
        .fails_with(&["error: `./gone` does not exist\n", "hint: give a folder"]);
    std::fs::create_dir(sandbox.path("empty")).unwrap();
    sandbox.run(&["model", "show", "empty"]).fails_with(&["holds neither a GGUF file nor safetensors"]);
    sandbox
        .run(&["model", "show"])
        .fails_with(&["`smollm2` is not on this machine", "hint: `mutandis model get smollm2` fetches it"]);
}

#[test]
fn a_list_and_a_local_model_are_shown_as_text_and_json() {
    let sandbox = Sandbox::new();
    let text = sandbox.run(&["model", "list"]).ok().stdout;
    assert!(text.lines().next().unwrap().starts_with("smollm2") && text.contains("not cached"), "{text}");
    let list = sandbox.run(&["model", "list", "--json"]).ok().json();
    assert_eq!(list["short_names"][1]["name"], "gemma3");
    assert_eq!(list["short_names"][1]["path"], serde_json::Value::Null);
    std::fs::write(sandbox.path("m.gguf"), "abc").unwrap();
    let shown = sandbox.run(&["model", "show", "--model", "m.gguf", "--json"]).tells_of_no_model().json();
    assert_eq!((&shown["source"]["kind"], &shown["bytes"]), (&"path".into(), &3.into()));
    // The published test vector of SHA-256 for "abc".
    let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(shown["files"][0]["sha256"], expected);
    assert!(sandbox.run(&["model", "show", "m.gguf"]).tells_of_no_model().stdout.contains(expected));
}

#[test]
fn a_reader_that_goes_away_is_no_failure_and_a_full_disk_is_one() {
    let sandbox = Sandbox::new();
    let mut child = sandbox
        .command(&["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    if let Ok(full) = std::fs::File::options().write(true).open("/dev/full") {
        let output = sandbox.command(&["model", "list"]).stdout(full).output().unwrap();
        Ran::from(output).fails_with(&["cannot write to standard output", "caused by: "]);
    }
}

#[test]
fn completions_name_the_commands_for_every_shell() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = sandbox.run(&["completions", shell]).ok().stdout;
        assert!(script.contains("completions") && script.contains("offline"), "{shell}");
    }
}

#[test]
fn a_data_set_is_checked_record_by_record() {
    let sandbox = Sandbox::new();
    let good = "{\"prompt\":\"Ann is from\",\"subject\":\"Ann\",\"target_new\":\"Peru\"}\n";
    std::fs::write(sandbox.path("good.jsonl"), good).unwrap();
    let text = sandbox.run(&["data", "check", "good.jsonl"]).ok().stdout;
    assert!(text.contains("facts with probes") && text.contains("1 of 1 can be used"), "{text}");
    std::fs::write(sandbox.path("some.jsonl"), format!("{good}{{\"prompt\":\"Bob is\"}}\n{good}")).unwrap();
    let ran = sandbox.run(&["data", "check", "some.jsonl", "--json"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["records"], 2);
    assert_eq!(report["skipped"][0]["record"], 2);
    assert_eq!(report["oddities"]["said twice"][0]["record"], 3);
    std::fs::write(sandbox.path("none.json"), "{").unwrap();
    sandbox
        .run(&["data", "check", "none.json"])
        .fails_with(&["`none.json` is no data set", "hint: expected"]);
}
