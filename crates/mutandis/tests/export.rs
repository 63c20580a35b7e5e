//! `patch export` on tiny models, as a user runs it.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::path::Path;

use common::{Ran, Sandbox, tree};
use serde_json::{Value, json};

const PROMPT: &str = "Once upon a time, Lily had a";
const PATCH: &str = "lily-cat.patch.safetensors";

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name).to_str().unwrap().to_owned()
}

/// A sandbox with an edit in it, and the model beside it.
fn edited() -> Sandbox {
    let sandbox = Sandbox::new();
    std::fs::copy(fixture("stories260K.gguf"), sandbox.path("base.gguf")).unwrap();
    let quick = ["--set", "layer=2", "--set", "prefixes=[1,1]", "--set", "moment-tokens=600"];
    let fact = ["edit", PROMPT, "--subject", "Lily", "--to", "cat", "--model", "base.gguf"];
    sandbox.run(&[&fact[..], &quick, &["--set", "search.steps=40"]].concat()).ok();
    sandbox
}

fn export(sandbox: &Sandbox, rest: &[&str]) -> Ran {
    sandbox.run(&[&["patch", "export", PATCH, "--model", "base.gguf"], rest].concat())
}

fn answer(sandbox: &Sandbox, model: &str, rest: &[&str]) -> Value {
    let ran = sandbox.run(&[&["ask", PROMPT, "--model", model, "--json"], rest].concat()).ok();
    ran.json()["text"].clone()
}

/// Files of the working folder, without the cache.
fn files(sandbox: &Sandbox) -> Vec<String> {
    tree(&sandbox.path(".")).into_iter().filter(|f| !f.starts_with(".cache/mutandis/")).collect()
}

#[test]
fn an_exported_gguf_answers_without_the_patch() {
    let sandbox = edited();
    let base = std::fs::read(sandbox.path("base.gguf")).unwrap();
    let report = export(&sandbox, &["--to", "gguf", "--out", "edited.gguf", "--json"]).ok().json();
    assert_eq!((&report["to"], &report["out"]), (&json!("gguf"), &json!("edited.gguf")));
    assert_eq!(report["facts"], json!({"count": 1, "patched": 1, "exported": 1}));
    assert_eq!(report["tried"], json!([{"dtype": "own", "kept": 1, "of": 1, "extra_bytes": 0}]));
    let tensor = &report["tensors"][0];
    assert_eq!(report["tensors"].as_array().unwrap().len(), 1);
    assert_eq!(tensor["tensor"], "blk.2.ffn_down.weight");
    assert_eq!((&tensor["from"], &tensor["to"]), (&json!("F16"), &json!("F16")));
    assert_eq!(tensor["bytes_before"], tensor["bytes_after"]);
    assert!(tensor["cosine"].as_f64().unwrap() > 0.99 && tensor["lost"].as_f64().unwrap() < 0.05, "{tensor}");
    assert_eq!(report["bytes"].as_u64().unwrap(), base.len() as u64);

    let patched = answer(&sandbox, "base.gguf", &["--patch", PATCH]);
    assert!(patched.as_str().unwrap().starts_with(" cat"), "{patched}");
    assert_eq!(answer(&sandbox, "edited.gguf", &[]), patched);
    assert_ne!(answer(&sandbox, "base.gguf", &[]), patched);
    assert_eq!(std::fs::read(sandbox.path("base.gguf")).unwrap(), base, "the base has changed");
    assert_eq!(files(&sandbox), ["base.gguf", "edited.gguf", PATCH]);

    // 172 numbers of a row are no whole blocks of 32: a wider format takes their place.
    let text = export(&sandbox, &["--to", "gguf", "--out", "wide.gguf", "--dtype", "q8_0"]).ok().stdout;
    for part in ["blk.2.ffn_down.weight  F16 ", "1 of 1 answered by the export", "written  wide.gguf ("] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    let f32 = ["--to", "gguf", "--out", "wide.gguf", "--force", "--dtype", "f32", "--json"];
    let report = export(&sandbox, &f32).ok().json();
    assert_eq!(report["extra_bytes"], report["tensors"][0]["bytes_before"]);
    assert_eq!(answer(&sandbox, "wide.gguf", &[]), patched);
}

#[test]
fn an_export_that_cannot_be_is_refused_and_leaves_nothing() {
    let sandbox = edited();
    let to = |form: &'static str, out: &'static str| ["--to", form, "--out", out];
    export(&sandbox, &to("gguf", "base.gguf")).fails_with(&["`base.gguf` exists", "hint: ", "--force"]);
    export(&sandbox, &to("safetensors", "edited")).fails_with(&[
        "the model is a GGUF file",
        "hint: ",
        "--to gguf",
    ]);
    export(&sandbox, &to("gguf", "gone/edited.gguf")).fails_with(&["`gone` does not exist", "hint: "]);
    export(&sandbox, &to("safetensors", "gone/edited")).fails_with(&["`gone` does not exist", "hint: "]);
    export(&sandbox, &["--to", "gguf", "--out", "e.gguf", "--dtype", "q9"])
        .fails_with(&["expected `own` or"]);
    export(&sandbox, &["--to", "safetensors", "--out", "e", "--dtype", "q8_0"])
        .fails_with(&["safetensors has no Q8_0", "hint: "]);

    // A limit below the size of the file stands for a full disk.
    #[cfg(unix)]
    {
        let command = format!(
            "trap '' XFSZ; ulimit -f 100; exec '{}' patch export {PATCH} --model base.gguf --to gguf --out e.gguf",
            env!("CARGO_BIN_EXE_mutandis")
        );
        let mut shell = std::process::Command::new("/bin/sh");
        shell
            .args(["-c", &command])
            .env_clear()
            .env("HOME", sandbox.path("."))
            .current_dir(sandbox.path("."));
        Ran::from(shell.output().unwrap()).fails_with(&["no space left to write `e.gguf`", "\nhint: free"]);
    }

    // A prompt is no change of weights.
    let ice = ["edit", PROMPT, "--subject", "Lily", "--to", "dog", "--method", "ice", "--out", "ice.patch"];
    sandbox.run(&[&ice[..], &["--model", "base.gguf"]].concat()).ok();
    sandbox
        .run(&["patch", "export", "ice.patch", "--model", "base.gguf", "--to", "gguf", "--out", "e.gguf"])
        .fails_with(&["is a prompt, not a change of weights", "hint: "]);
    std::fs::remove_file(sandbox.path("ice.patch")).unwrap();

    // A base that changed, and one that moved.
    let mut bytes = std::fs::read(sandbox.path("base.gguf")).unwrap();
    let at = bytes.len() - 1000;
    bytes[at] ^= 1;
    std::fs::write(sandbox.path("base.gguf"), bytes).unwrap();
    export(&sandbox, &to("gguf", "e.gguf")).fails_with(&["was made for another base", "hint: "]);
    std::fs::remove_file(sandbox.path("base.gguf")).unwrap();
    export(&sandbox, &to("gguf", "e.gguf")).fails_with(&["base.gguf", "hint: "]);
    assert_eq!(files(&sandbox), [PATCH]);
}
