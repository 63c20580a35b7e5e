//! `patch export --to lora`, `patch from-lora` and `patch from-diff`, as a user runs them.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Ran, Sandbox, tree};
use serde_json::{Value, json};

const PROMPT: &str = "Once upon a time, Lily had a";
const PATCH: &str = "lily-cat.patch.safetensors";
const FILES: [&str; 2] = ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"];

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name).to_str().unwrap().to_owned()
}

/// A sandbox with an edit of the small trained model.
fn edited() -> Sandbox {
    let sandbox = Sandbox::new();
    let model = fixture("stories260K.gguf");
    let edit = ["edit", PROMPT, "--subject", "Lily", "--to", "cat", "--model", &model, "--out", PATCH];
    let quick = [
        "--set",
        "layer=2",
        "--set",
        "prefixes=[1,1]",
        "--set",
        "moment-tokens=600",
        "--set",
        "search.steps=40",
    ];
    sandbox.run(&[&edit[..], &quick].concat()).ok();
    sandbox
}

fn patch(sandbox: &Sandbox, rest: &[&str]) -> Ran {
    let model = fixture("stories260K.gguf");
    sandbox.run(&[&["patch"], rest, &["--model", &model]].concat())
}

/// What is answered with a patch, and how likely the first token is.
fn asked(sandbox: &Sandbox, patch: &str) -> Value {
    let model = fixture("stories260K.gguf");
    let asked = ["ask", PROMPT, "--model", &model, "--patch", patch, "--max-tokens", "4", "--json"];
    sandbox.run(&asked).ok().json()
}

fn left(sandbox: &Sandbox) -> Vec<String> {
    tree(&sandbox.path(".")).into_iter().filter(|f| !f.starts_with(".cache/") && f != PATCH).collect()
}

#[test]
fn an_edit_goes_into_an_adapter_and_comes_back() {
    let sandbox = edited();
    for (out, form, module) in
        [("adapter", "peft", "model.layers.2.mlp.down_proj"), ("adapter.gguf", "gguf", "blk.2.ffn_down")]
    {
        let report = patch(&sandbox, &["export", PATCH, "--to", "lora", "--out", out, "--json"]).ok().json();
        assert_eq!(
            (&report["form"], &report["rank"], &report["alpha"]),
            (&json!(form), &json!(1), &json!(1))
        );
        assert_eq!(report["modules"][0]["name"], module);
        assert!(report["modules"][0]["lost"].as_f64().unwrap() < 1e-7, "{report}");

        let back = format!("{form}.patch.safetensors");
        let report = patch(&sandbox, &["from-lora", out, "--out", &back, "--json"]).ok().json();
        assert_eq!(report["weights"][0]["role"], "mlp-out");
        let (ours, theirs) = (asked(&sandbox, PATCH), asked(&sandbox, &back));
        assert!(ours["text"].as_str().unwrap().trim().starts_with("cat"), "{ours}");
        assert_eq!(ours["tokens"], theirs["tokens"]);
        for (a, b) in ours["top"].as_array().unwrap().iter().zip(theirs["top"].as_array().unwrap()) {
            let apart = a["logprob"].as_f64().unwrap() - b["logprob"].as_f64().unwrap();
            // The factors are rounded to f32 once more.
            assert!(a["id"] == b["id"] && apart.abs() < 1e-4, "{a} {b}");
        }
        // It has no facts, and serves all the same: shown, and edited on top of.
        assert!(patch(&sandbox, &["show", &back]).ok().stdout.contains("method   import"));
        let model = fixture("stories260K.gguf");
        let more =
            ["edit", "One day, Tom went to the", "--subject", "Tom", "--to", "house", "--method", "ft-m"];
        let rest = [
            "--patch",
            &back,
            "--model",
            &model,
            "--set",
            "epochs=2",
            "--out",
            "more.patch.safetensors",
            "--force",
        ];
        assert!(sandbox.run(&[&more[..], &rest].concat()).code.is_some_and(|code| code < 2));
    }
    let text = patch(&sandbox, &["export", PATCH, "--to", "lora", "--out", "two", "--rank", "2"]).ok().stdout;
    assert!(
        text.contains("model.layers.2.mlp.down_proj  rank 1, exact") && text.contains("rank and alpha 2"),
        "{text}"
    );
}

#[test]
fn what_is_there_is_not_overwritten_unasked() {
    let sandbox = edited();
    let export = |out: &str, rest: &[&str]| {
        patch(&sandbox, &[&["export", PATCH, "--to", "lora", "--out", out], rest].concat())
    };
    export("adapter", &[]).ok();
    std::fs::write(sandbox.path("adapter/README.md"), "mine").unwrap();
    let before = FILES.map(|file| std::fs::read(sandbox.path(file)).unwrap());
    export("adapter", &[]).fails_with(&["`adapter` exists", "--force"]);
    export("adapter", &["--rank", "3", "--force"]).ok();
    assert_ne!(before, FILES.map(|file| std::fs::read(sandbox.path(file)).unwrap()));
    assert_eq!(std::fs::read_to_string(sandbox.path("adapter/README.md")).unwrap(), "mine");
    std::fs::create_dir(sandbox.path("tuned")).unwrap();
    std::fs::write(sandbox.path("tuned/config.json"), "{}").unwrap();
    export("tuned", &["--force"]).fails_with(&["`tuned` holds a model", "hint: "]);
    std::fs::remove_dir_all(sandbox.path("tuned")).unwrap();
    export("a.gguf", &[]).ok();
    export("a.gguf", &[]).fails_with(&["`a.gguf` exists", "--force"]);
    export("a.gguf", &["--form", "peft", "--force"]).fails_with(&["is a file, expected a folder"]);
    export("nowhere/adapter", &[]).fails_with(&["the folder `nowhere` does not exist"]);
    export("other", &["--rank", "100000"]).fails_with(&["cannot have the rank 100000", "hint"]);
    patch(&sandbox, &["from-lora", "adapter", "--out", PATCH]).fails_with(&["exists", "--force"]);
    patch(&sandbox, &["from-lora", "absent", "--out", "new.patch.safetensors"]).fails_with(&["absent"]);
    let known = ["a.gguf", "adapter/README.md", FILES[0], FILES[1]];
    assert_eq!(left(&sandbox), known);
}

#[test]
fn a_full_disk_leaves_what_was_there_and_nothing_else() {
    let sandbox = edited();
    patch(&sandbox, &["export", PATCH, "--to", "lora", "--out", "adapter"]).ok();
    let before = FILES.map(|file| std::fs::read(sandbox.path(file)).unwrap());
    for out in ["adapter --force", "new", "new.gguf"] {
        // A limit below the size of the adapter stands for a full disk.
        let script = format!(
            "trap '' XFSZ; ulimit -f 1; exec '{}' patch export {PATCH} --to lora --rank 8 --out {out} --model '{}'",
            env!("CARGO_BIN_EXE_mutandis"),
            fixture("stories260K.gguf")
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]).env_clear().envs(sandbox.variables.iter().cloned());
        Ran::from(command.current_dir(sandbox.path(".")).output().unwrap())
            .fails_with(&["no space left to write"]);
        assert_eq!(left(&sandbox), FILES);
        assert_eq!(before, FILES.map(|file| std::fs::read(sandbox.path(file)).unwrap()));
    }
}

#[test]
fn the_difference_of_two_checkpoints_is_a_patch() {
    let sandbox = Sandbox::new();
    // The same numbers, stored coarser: nothing was edited.
    let (base, coarse) = (fixture("llama"), fixture("llama_q8_0.gguf"));
    let out = ["--out", "d.patch.safetensors"];
    sandbox
        .run(&[&["patch", "from-diff", &base, &coarse], &out[..]].concat())
        .fails_with(&["no linear map differs"]);
    sandbox
        .run(&[&["patch", "from-diff", &base, &fixture("qwen2")], &out[..]].concat())
        .fails_with(&["different architectures"]);
    assert!(left(&sandbox).is_empty());
    // Two models of one architecture.
    std::fs::create_dir(sandbox.path("edited")).unwrap();
    std::fs::copy(Path::new(&base).join("config.json"), sandbox.path("edited/config.json")).unwrap();
    let mut bytes = std::fs::read(Path::new(&base).join("model.safetensors")).unwrap();
    let header = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let entries: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let mut change = |name: &str| {
        let start = usize::try_from(entries[name]["data_offsets"][0].as_u64().unwrap()).unwrap();
        // 3.5, far from anything in it.
        bytes[8 + header + start..][..4].copy_from_slice(&3.5f32.to_le_bytes());
    };
    change("model.layers.1.mlp.down_proj.weight");
    change("model.norm.weight");
    std::fs::write(sandbox.path("edited/model.safetensors"), bytes).unwrap();
    let diff =
        |rest: &[&str]| sandbox.run(&[&["patch", "from-diff", &base, "edited"], &out[..], rest].concat());
    diff(&[]).fails_with(&["`model.norm.weight`", "--linear-only"]);
    let report = diff(&["--linear-only", "--json"]).ok().json();
    assert_eq!(report["skipped"], json!(["model.norm.weight"]));
    assert_eq!(
        report["weights"][0],
        json!({"layer": 1, "role": "mlp-out", "form": "low-rank", "rank": 1, "shape": [32, 64]})
    );
    let text = diff(&["--linear-only", "--force"]).ok().stdout;
    assert!(text.contains("1 weights change by low rank, 1 at most\nskipped  model.norm.weight"), "{text}");
    // Numbers that are no weights, and change what is computed from them.
    let config = std::fs::read_to_string(sandbox.path("edited/config.json")).unwrap();
    let other = config.replace("\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": 1e-06");
    assert_ne!(config, other);
    std::fs::write(sandbox.path("edited/config.json"), other).unwrap();
    let told = "`rms_norm_eps` is 0.00001 in the base and 0.000001 in what it became";
    diff(&["--force"]).fails_with(&["compute differently", told, "--linear-only"]);
    let ran = diff(&["--linear-only", "--json", "--force"]).ok();
    assert_eq!(ran.json()["skipped"], json!(["model.norm.weight", told]));
    assert!(ran.stderr.contains(told), "{ran:?}");
}

#[test]
fn an_adapter_and_a_patch_leave_the_model_as_it_is() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("model")).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(Path::new(&fixture("llama")).join(file), sandbox.path("model").join(file)).unwrap();
    }
    let adapter = fixture("lora/llama/adapter_model.safetensors");
    let run = |rest: &[&str]| sandbox.run(&[&["patch"], rest, &["--model", "model"]].concat());
    run(&["from-lora", &adapter, "--out", "a.p"]).ok();
    for file in ["config.json", "model.safetensors"] {
        let out = format!("model/{file}");
        run(&["from-lora", &adapter, "--out", &out, "--force"]).fails_with(&["a file of the model itself"]);
        let base = fixture("llama");
        let diff = ["patch", "from-diff", &base, "model", "--out", &out, "--force"];
        sandbox.run(&diff).fails_with(&["a file of the model itself"]);
    }
    let to_lora = ["export", "a.p", "--to", "lora", "--out", "model", "--force"];
    run(&to_lora).fails_with(&["the folder of the model itself", "hint: "]);
    assert_eq!(left(&sandbox), ["a.p", "model/config.json", "model/model.safetensors"]);
}
