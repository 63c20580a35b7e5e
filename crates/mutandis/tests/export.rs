//! `patch export` on tiny models, as a user runs it.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::path::Path;

use common::{Ran, Sandbox, tree};
use mutandis::edit::Patch;
use mutandis::edit::patch::{WeightChange, chain};
use mutandis::engine::{Model, Options, Role, WeightId};
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

/// A patch that knows no facts and adds a number to every weight of an MLP, saved by its name.
fn imported(sandbox: &Sandbox, model: &str, name: &str, size: f32, under: Option<String>) -> Patch {
    let options = Options { threads: Some(1), ..Options::default() };
    let model = Model::load(&sandbox.path(model), options).unwrap();
    let id = WeightId { layer: 1, role: Role::MlpOut };
    let [out, inn] = model.linear_shape(id.role, id.layer).unwrap();
    let mut patch = Patch::imported(&model, json!({"from": name})).unwrap();
    let change = WeightChange::LowRank { rank: 1, left: vec![size; out], right: vec![1.0; inn] };
    patch.push(&model, id, change).unwrap();
    let patch = Patch { under, ..patch };
    patch.save(&sandbox.path(name)).unwrap();
    patch
}

/// The small model alone.
fn unedited() -> Sandbox {
    let sandbox = Sandbox::new();
    std::fs::copy(fixture("stories260K.gguf"), sandbox.path("base.gguf")).unwrap();
    sandbox
}

fn copy_of(sandbox: &Sandbox, model: &str) {
    std::fs::create_dir(sandbox.path(model)).unwrap();
    for entry in std::fs::read_dir(fixture(model)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, sandbox.path(model).join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn a_change_that_no_fact_tells_of_is_stored_wide_enough() {
    let sandbox = unedited();
    // Far below a step of F16.
    imported(&sandbox, "base.gguf", "small.p", 1e-6, None);
    let to_gguf = ["patch", "export", "small.p", "--model", "base.gguf", "--to", "gguf", "--out", "e.gguf"];
    let run = |rest: &[&str]| sandbox.run(&[&to_gguf[..], rest].concat()).ok();
    let ran = run(&["--json"]);
    let report = ran.json();
    assert!(ran.stderr.contains("no true fact tells of the change of 1 tensors"), "{ran:?}");
    assert_eq!(report["facts"], json!({"count": 0, "patched": 0, "exported": 0}));
    let tried = report["tried"].as_array().unwrap();
    assert_eq!((tried.len(), &tried[0]["dtype"], &tried[1]["dtype"]), (2, &json!("own"), &json!("F32")));
    let cosine = |i: usize| tried[i]["cosine"].as_f64().unwrap();
    assert!(cosine(0) < 0.9 && cosine(1) > 0.99, "{report}");
    let tensor = &report["tensors"][0];
    assert_eq!((&tensor["to"], &tensor["lost"]), (&json!("F32"), &Value::Null));

    let own = run(&["--dtype", "own", "--force"]);
    assert!(own.stderr.contains("by a cosine of only 0."), "{own:?}");
    for part in ["was not measured", "facts    none are known", "tried    own, cosine of the change 0."] {
        assert!(own.stdout.contains(part), "no {part:?} in {}", own.stdout);
    }
}

#[test]
fn a_patch_on_top_of_others_is_exported_with_them() {
    let sandbox = unedited();
    let a = imported(&sandbox, "base.gguf", "a.p", 0.01, None);
    imported(&sandbox, "base.gguf", "b.p", 0.02, Some(chain(None, &a.id().unwrap())));
    sandbox.run(&["patch", "add", "edits", "a.p", "b.p", "--model", "base.gguf"]).ok();
    let export = |patches: &[&str], form: &str, out: &str, rest: &[&str]| {
        let to = ["--to", form, "--out", out, "--model", "base.gguf"];
        sandbox.run(&[&["patch", "export"], patches, &to, rest].concat())
    };
    for (form, whole, files, alone) in
        [("gguf", "1.gguf", "2.gguf", "3.gguf"), ("lora", "4.gguf", "5.gguf", "6.gguf")]
    {
        for broken in [&["b.p"][..], &["b.p", "a.p"]] {
            export(broken, form, alone, &[]).fails_with(&["on top of other patches", "--independent"]);
        }
        export(&["edits"], form, whole, &[]).ok();
        export(&["a.p", "b.p"], form, files, &[]).ok();
        export(&["b.p"], form, alone, &["--independent"]).ok();
        let read = |name: &str| std::fs::read(sandbox.path(name)).unwrap();
        assert!(read(whole) == read(files) && read(whole) != read(alone), "{form}");
    }
    std::fs::create_dir(sandbox.path("empty")).unwrap();
    export(&["empty"], "gguf", "7.gguf", &[]).fails_with(&["is no ledger"]);
}

#[test]
fn nothing_is_written_over_the_model_itself() {
    let sandbox = unedited();
    imported(&sandbox, "base.gguf", "a.p", 0.01, None);
    let base = std::fs::read(sandbox.path("base.gguf")).unwrap();
    let onto = ["--model", "base.gguf", "--out", "base.gguf", "--force"];
    let edit = ["edit", PROMPT, "--subject", "Lily", "--to", "cat"];
    for command in
        [&["patch", "export", "a.p", "--to", "gguf"][..], &["patch", "export", "a.p", "--to", "lora"], &edit]
    {
        sandbox.run(&[command, &onto].concat()).fails_with(&["a file of the model itself", "hint: "]);
    }
    assert_eq!(std::fs::read(sandbox.path("base.gguf")).unwrap(), base);
    assert_eq!(files(&sandbox), ["a.p", "base.gguf"]);
}

#[test]
fn an_exported_folder_replaces_only_an_export() {
    let sandbox = Sandbox::new();
    let model = "llama3_rope_old";
    copy_of(&sandbox, model);
    // Far below a step of BF16, which `config.json` names.
    imported(&sandbox, model, "small.p", 1e-6, None);
    let to = ["patch", "export", "small.p", "--model", model, "--to", "safetensors", "--out"];
    let export = |out: &str, rest: &[&str]| sandbox.run(&[&to[..], &[out], rest].concat());
    let ran = export("edited", &["--json"]).ok();
    assert_eq!(ran.json()["loads_as"], "BF16");
    assert!(ran.stderr.contains("unless it loads the folder with `dtype=torch.float32`"), "{ran:?}");
    export("edited", &[]).fails_with(&["`edited` exists", "--force"]);
    let own = export("edited", &["--force", "--dtype", "own"]).ok();
    assert!(!own.stderr.contains("torch.float32"), "{own:?}");

    // A folder of the user's that is a checkpoint as well.
    std::fs::create_dir(sandbox.path("edited/notes")).unwrap();
    std::fs::write(sandbox.path("edited/notes/today.md"), "mine").unwrap();
    export("edited", &["--force"]).fails_with(&["`edited` holds `notes/`", "hint: "]);
    assert_eq!(std::fs::read_to_string(sandbox.path("edited/notes/today.md")).unwrap(), "mine");
    export(model, &["--force"]).fails_with(&["holds the model itself", "hint: "]);
    assert!(sandbox.path(model).join("config.json").exists());
}
