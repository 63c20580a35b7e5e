//! `edit`, `methods`, `patch` and `stats` on a tiny model, as a user runs them.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::path::Path;

use common::{Ran, Sandbox, tree};
use serde_json::{Value, json};

const PROMPT: &str = "Once upon a time, Lily had a";
const PATCH: &str = "lily-cat.patch.safetensors";
/// Settings under which an edit is quick.
const QUICK: [&str; 6] = ["--set", "layer=2", "--set", "prefixes=[1,1]", "--set", "moment-tokens=600"];

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name).to_str().unwrap().to_owned()
}

fn stories() -> String {
    fixture("stories260K.gguf")
}

/// `edit` with any model.
fn edit_with(sandbox: &Sandbox, model: &str, rest: &[&str]) -> Ran {
    sandbox.run(&[&["edit", "--model", model], &QUICK[..], rest].concat())
}

fn edit(sandbox: &Sandbox, rest: &[&str]) -> Ran {
    edit_with(sandbox, &stories(), rest)
}

/// The usual edit, with a search long enough to reach it.
fn lily(sandbox: &Sandbox, rest: &[&str]) -> Ran {
    let usual = [PROMPT, "--subject", "Lily", "--to", "cat", "--set", "search.steps=40"];
    edit(sandbox, &[&usual[..], rest].concat())
}

fn ask(sandbox: &Sandbox, prompt: &str, rest: &[&str]) -> Value {
    let model = stories();
    sandbox.run(&[&["ask", prompt, "--model", &model, "--json"], rest].concat()).ok().json()
}

fn names(value: &Value) -> Vec<&str> {
    let mut names: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

/// The bytes of a patch's tensors, without what names the day.
fn tensors(sandbox: &Sandbox, name: &str) -> Vec<u8> {
    let bytes = std::fs::read(sandbox.path(name)).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header..].to_vec()
}

/// Nothing lies in the working folder but the cache, and nothing unfinished in that.
#[track_caller]
fn nothing_left(sandbox: &Sandbox, known: &[&str]) {
    let files: Vec<String> =
        tree(&sandbox.path(".")).into_iter().filter(|f| !f.starts_with(".cache/mutandis/")).collect();
    assert_eq!(files, known);
}

#[test]
fn an_edit_is_one_document_and_one_file_that_answers_with_the_target() {
    let sandbox = Sandbox::new();
    let before = ask(&sandbox, PROMPT, &[]);
    let ran = lily(&sandbox, &["--json", "--also", "Lily had a", "--keep", "Tom went to the"]).ok();
    let report = ran.json();
    assert_eq!(names(&report), ["also", "facts", "keep", "method", "patch", "peak_memory_bytes", "seconds"]);
    assert_eq!((&report["patch"], &report["method"]), (&json!(PATCH), &json!("r-rome")));
    let fact = &report["facts"][0];
    assert_eq!(report["facts"].as_array().unwrap().len(), 1);
    assert_eq!(names(fact), ["after", "before", "prompt", "subject", "target"]);
    assert_eq!(
        (&fact["prompt"], &fact["subject"], &fact["target"]),
        (&json!(PROMPT), &json!("Lily"), &json!("cat"))
    );
    for side in ["before", "after"] {
        assert_eq!(names(&fact[side]), ["answer", "probability"]);
        let p = fact[side]["probability"].as_f64().unwrap();
        assert!(p > 0.0 && p <= 1.0, "{p}");
    }
    assert_ne!(fact["before"]["answer"], "cat");
    assert_eq!(fact["after"]["answer"], "cat", "{report}");
    assert_eq!(
        (&report["also"][0]["prompt"], &report["keep"][0]["prompt"]),
        (&json!("Lily had a"), &json!("Tom went to the"))
    );
    assert_eq!((report["also"].as_array().unwrap().len(), report["keep"].as_array().unwrap().len()), (1, 1));
    assert_eq!(names(&report["seconds"]), ["edit", "evaluate", "load", "moments"]);
    for (name, seconds) in report["seconds"].as_object().unwrap() {
        assert!(seconds.as_f64().unwrap().is_sign_positive(), "{name}: {seconds}");
    }
    assert!(report["peak_memory_bytes"].as_u64().unwrap() > 1 << 20);
    nothing_left(&sandbox, &[PATCH]);

    let patched = ask(&sandbox, PROMPT, &["--patch", PATCH]);
    assert!(patched["text"].as_str().unwrap().starts_with(" cat"), "{patched}");
    assert_eq!(ask(&sandbox, PROMPT, &[])["top"], before["top"], "the base has changed");

    let shown = sandbox.run(&["patch", "show", PATCH, "--json"]).ok();
    assert_eq!(shown.json()["facts"][0]["target"], "cat");
    assert_eq!(shown.json()["weights"][0]["layer"], 2);
    assert_eq!(shown.json()["config"]["search"]["decay"], 0.001);
    let text = sandbox.run(&["patch", "show", PATCH]).ok().stdout;
    for part in ["Lily had a → cat", "searched 1 in ", "target at ", "condition ", "residual "] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    let verified = sandbox.run(&["patch", "verify", PATCH, "--model", &stories(), "--json"]).ok();
    assert_eq!(verified.json()["valid"], true);
}

#[test]
fn text_is_for_people_and_a_patch_is_a_file_like_any_other() {
    let sandbox = Sandbox::new();
    let text = lily(&sandbox, &[]).ok().stdout;
    for part in
        [PROMPT, "before", "after   cat (", "neighbours: ", "patch: lily-cat.patch", "--patch lily-cat"]
    {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert!(text.contains(&format!("--model {}", stories())), "{text}");
    assert!(!text.contains("-0.0"), "{text}");
    let missed = lily(&sandbox, &["--set", "search.steps=1", "--out", "missed.patch"]).ok();
    assert!(missed.stderr.contains("1 of 1 facts are not answered as asked"), "{}", missed.stderr);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |name: &str| std::fs::metadata(sandbox.path(name)).unwrap().permissions().mode();
        std::fs::write(sandbox.path("plain"), "").unwrap();
        assert_eq!(mode(PATCH), mode("plain"));
    }
    // Without `--out` nothing is overwritten; with it only by force.
    assert_eq!(lily(&sandbox, &["--json"]).ok().json()["patch"], "lily-cat-2.patch.safetensors");
    lily(&sandbox, &["--out", PATCH]).fails_with(&[
        "`lily-cat.patch.safetensors` exists",
        "hint: ",
        "--force",
    ]);
    let other = lily(&sandbox, &["--seed", "1", "--out", PATCH, "--force", "--json"]).ok().json();
    assert_eq!(other["patch"], PATCH);
    // The first and the second came from the same seed, and the first is now another.
    let again = lily(&sandbox, &["--threads", "1", "--json"]).ok().json();
    let second = tensors(&sandbox, "lily-cat-2.patch.safetensors");
    assert_eq!(tensors(&sandbox, again["patch"].as_str().unwrap()), second);
    assert_ne!(tensors(&sandbox, PATCH), second);
}

#[test]
fn patches_stack_and_edits_stand_on_them() {
    let sandbox = Sandbox::new();
    lily(&sandbox, &[]).ok();
    let tom = ["One day, Tom went to the", "--subject", "Tom", "--to", "house", "--set", "search.steps=40"];
    let on_top =
        edit(&sandbox, &[&tom[..], &["--patch", PATCH, "--keep", PROMPT, "--json"]].concat()).ok().json();
    assert!(on_top["keep"][0]["before"]["answer"].as_str().unwrap().starts_with("cat"), "{on_top}");
    let second = on_top["patch"].as_str().unwrap().to_owned();
    let alone = edit(&sandbox, &[&tom[..], &["--json"]].concat()).ok().json();
    assert_ne!(tensors(&sandbox, &second), tensors(&sandbox, alone["patch"].as_str().unwrap()));
    let top = |patches: &[&str]| {
        let flags: Vec<&str> = patches.iter().flat_map(|p| ["--patch", p]).collect();
        ask(&sandbox, PROMPT, &flags)["top"].clone()
    };
    assert_ne!(top(&[PATCH, &second]), top(&[PATCH]));
    assert_ne!(top(&[PATCH, &second]), top(&[&second]));
    assert_ne!(top(&[PATCH, PATCH]), top(&[PATCH]));
}

#[test]
fn many_facts_come_from_a_file_with_easyedits_names() {
    let sandbox = Sandbox::new();
    let lines = [
        json!({"prompt": PROMPT, "subject": "Lily", "target_new": "cat", "ground_truth": "dog",
               "rephrase_prompt": "Lily had a", "locality": {"n": {"prompt": "Ben saw a", "ground_truth": "b"}}}),
        json!({"prompt": "One day, Tom went to the", "subject": "Tom", "target_new": "house"}),
    ];
    std::fs::write(sandbox.path("f.jsonl"), lines.map(|l| l.to_string()).join("\n\n")).unwrap();
    let report = edit(&sandbox, &["--facts", "f.jsonl", "--json", "--set", "search.steps=6"]).ok().json();
    assert_eq!(report["facts"].as_array().unwrap().len(), 2);
    assert_eq!(report["facts"][1]["target"], "house");
    assert_eq!(report["also"][0]["prompt"], "Lily had a");
    assert_eq!(report["keep"][0]["prompt"], "Ben saw a");
    let shown = sandbox.run(&["patch", "show", PATCH, "--json"]).ok().json();
    let weights = shown["weights"].as_array().unwrap();
    assert_eq!(weights.len(), 1, "both facts are written by one change");
    assert_eq!(weights[0]["rank"], 2);

    // Strengths are told in both units.
    let set = "layers=[1,2] moment-tokens=600 lambda=.02 prefixes=[0,0] search.steps=2";
    let model = stories();
    let memit =
        ["edit", "--model", &model, "--facts", "f.jsonl", "--method", "memit", "--out", PATCH, "--force"];
    let set: Vec<&str> = set.split(' ').flat_map(|s| ["--set", s]).collect();
    sandbox.run(&[&memit[..], &set].concat()).ok();
    let shown = sandbox.run(&["patch", "show", PATCH]).ok().stdout;
    assert!(shown.contains("lambda 2.000e-2 relative (") && shown.contains(" absolute)"), "{shown}");
}

#[test]
fn a_patch_can_be_a_prompt() {
    let sandbox = Sandbox::new();
    let model = stories();
    let report = sandbox
        .run(&[
            "edit",
            PROMPT,
            "--subject",
            "Lily",
            "--to",
            "cat",
            "--method",
            "ice",
            "--model",
            &model,
            "--json",
        ])
        .ok()
        .json();
    assert_eq!((&report["method"], &report["seconds"]["moments"]), (&json!("ice"), &json!(0.0)));
    let answered = ask(&sandbox, PROMPT, &["--patch", PATCH]);
    assert!(answered["prompt"].as_str().unwrap().starts_with("Imagine that "), "{answered}");
    let set = ["edit", PROMPT, "--to", "cat", "--method", "ice", "--model", &model, "--set"];
    sandbox.run(&[&set[..], &["template=So {}. "]].concat()).ok();
    sandbox.run(&[&set[..], &["template=So"]].concat()).fails_with(&["has no `{}`", "hint: "]);
    // It needs no subject, but a wrong one is wrong all the same.
    let wrong = ["edit", PROMPT, "--subject", "Bob", "--to", "cat", "--method", "ice", "--model", &model];
    sandbox.run(&wrong).fails_with(&["`Bob` is not in the prompt", "hint: "]);
}

#[test]
fn facts_that_do_not_fit_are_refused_and_leave_nothing() {
    let sandbox = Sandbox::new();
    let long = format!("{} Lily", "once upon a time ".repeat(300));
    for (arguments, parts) in [
        (&["", "--to", "cat"] as &[&str], &["the prompt is empty"] as &[&str]),
        (&[PROMPT, "--subject", "Lily", "--to", " "], &["the target of", "is empty"]),
        (&[PROMPT, "--subject", "Lily"], &["the new answer is missing", "--to"]),
        (&["--to", "cat"], &["the prompt is missing"]),
        (
            &[PROMPT, "--subject", "Lilly", "--to", "cat"],
            &["`Lilly` is not in the prompt", "did you mean `Lily`?"],
        ),
        (&[PROMPT, "--to", "cat", "--method", "rome"], &["names no subject", "--subject"]),
        (&[PROMPT, "--subject", "Bob", "--to", "cat", "--method", "rome"], &["`Bob` is not in the prompt"]),
        (
            &[PROMPT, "--subject", "Lily", "--to", &long],
            &["with its target is", "the model's context is 512"],
        ),
        (
            &[&long, "--subject", "Lily", "--to", "cat"],
            &["`once upon a time", "…` with its target is", "the model's context is 512"],
        ),
        (&["Once upon a time", "--subject", "time", "--to", ","], &["already answers `,`", "another target"]),
        (&[PROMPT, "--subject", "Lily", "--to", "cat", "--keep", " "], &["`--keep` is empty"]),
        (&[PROMPT, "--subject", "Lily", "--to", "cat", "--corpus", "gone.txt"], &["`gone.txt`"]),
        (&["--facts", "gone.jsonl"], &["`gone.jsonl`", "target_new"]),
        (&["--facts", "."], &["directory", "target_new"]),
    ] {
        edit(&sandbox, arguments).fails_with(&[parts, &["\nhint: "]].concat());
    }
    nothing_left(&sandbox, &[]);
    let good = json!({"prompt": PROMPT, "subject": "Lily", "target_new": "cat"}).to_string();
    for (bad, what) in [
        (String::new(), "line 1: it holds no facts"),
        (format!("{good}\n{{\"prompt\": 1"), "line 2: EOF"),
        (format!("{good}\n\n{{\"prompt\": \"a\"}}"), "line 3: `target_new` is missing"),
        (format!("{good}\n7"), "line 2: expected an object, found a number"),
    ] {
        std::fs::write(sandbox.path("bad.jsonl"), bad).unwrap();
        edit(&sandbox, &["--facts", "bad.jsonl"]).fails_with(&["`bad.jsonl`", what, "\nhint: "]);
    }
    nothing_left(&sandbox, &["bad.jsonl"]);
}

#[test]
fn methods_and_settings_are_checked_by_name_and_kind() {
    let sandbox = Sandbox::new();
    lily(&sandbox, &["--method", "romee"]).fails_with(&["no method `romee`", "did you mean `rome`?"]);
    sandbox.run(&["methods", "show", "rrome"]).fails_with(&["no method `rrome`", "hint: did you mean"]);
    for (set, parts) in [
        ("layr=2", ["no setting `layr`", "did you mean `layer`?"]),
        ("steps=2", ["no setting `steps`", "did you mean `search.steps`?"]),
        ("xyz=2", ["no setting `xyz`", "hint: settings: layer, "]),
        ("layer", ["`--set layer` has no `=`", "KEY=VALUE"]),
        ("layer=2.5", ["`layer` of `r-rome` is `2.5`", "expected a whole number"]),
        ("layer=-1", ["is `-1`", "expected a whole number"]),
        ("prefixes=[1]", ["`prefixes`", "expected a list of 2"]),
        ("moments=no", ["`moments`", "expected `true` or `false`"]),
        ("search.kl=much", ["`search.kl`", "its default is 0.0625"]),
        ("layer=9", ["layer 9", "hint: layers are 0 to 4"]),
        ("ridge=-1", ["`ridge` is -1", "expected 0 or more"]),
    ] {
        lily(&sandbox, &["--set", set]).fails_with(&parts);
    }
    // Without a model: they are looked at before one is loaded.
    for (method, set, parts) in [
        ("ft-l", "learning-rate=abc", ["`learning-rate` of `ft-l` is `abc`", "expected a number"]),
        ("ft-l", "optimizer=foo", ["setting `optimizer` of `ft-l` is `foo`", "`adam` or `sgd`"]),
        ("ft-m", "modules=[\"foo\"]", ["setting `modules` of `ft-m` is `[\"foo\"]`", "`mlp-out`"]),
        ("stableedit", "ridge=much", ["setting `ridge` of `stableedit` is `much`", "15000 absolute"]),
        ("rome", "token=first", ["setting `token` of `rome` is `first`", "`subject` or `last`"]),
    ] {
        let arguments =
            ["edit", PROMPT, "--to", "cat", "--model", "no-model", "--method", method, "--set", set];
        sandbox.run(&arguments).fails_with(&[&parts[..], &["\nhint: "]].concat());
    }
    for (method, parts) in [
        ("ft-l", ["learning-rate = 0.0005\n      Step size", "optimizer = \"adam\"\n      What a step"]),
        ("locft-bf", ["batch = 100\n      Facts of one step", "bound-norm = null\n      How far a weight"]),
        ("stableedit", ["warm-up = 512\n      Texts that the model", "turn = 100\n      Facts of one turn"]),
    ] {
        let shown = sandbox.run(&["methods", "show", method]).ok().stdout;
        parts.iter().for_each(|part| assert!(shown.contains(part), "no {part:?} in {shown}"));
    }
    nothing_left(&sandbox, &[]);
    let shown = sandbox.run(&["methods", "show", "rome"]).ok().stdout;
    assert!(shown.contains("search.decay = 0.001\n") && shown.contains("search.steps = 25\n"), "{shown}");
    let json = sandbox.run(&["methods", "show", "rome", "--json"]).ok().json();
    assert_eq!((&json["settings"]["search"]["decay"], &json["family"]), (&json!(0.001), &json!("mastery")));
    let all = sandbox.run(&["methods", "--json"]).ok().json();
    let ids: Vec<&str> = all.as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert!(["r-rome", "rome", "ice"].iter().all(|id| ids.contains(id)), "{ids:?}");
}

#[test]
fn damaged_patches_and_those_of_other_bases_are_refused() {
    let sandbox = Sandbox::new();
    lily(&sandbox, &[]).ok();
    let other = fixture("llama.gguf");
    sandbox
        .run(&["patch", "verify", PATCH, "--model", &other])
        .fails_with(&["another base", "hint: give the model"]);
    let bytes = std::fs::read(sandbox.path(PATCH)).unwrap();
    let model = stories();
    for (at, cut) in [(0, 0), (0, 5), (0, 1000), (0, bytes.len() - 1), (3, 0), (60, 0), (bytes.len() - 5, 0)]
    {
        let mut bad = bytes.clone();
        if at == 0 {
            bad.truncate(cut)
        } else {
            bad[at] ^= 4
        }
        std::fs::write(sandbox.path("bad.p"), bad).unwrap();
        let parts = ["`bad.p` is not a valid patch", "\nhint: "];
        sandbox.run(&["patch", "verify", "bad.p", "--model", &model]).fails_with(&parts);
        sandbox.run(&["ask", PROMPT, "--patch", "bad.p", "--model", &model]).fails_with(&parts);
        lily(&sandbox, &["--patch", "bad.p"]).fails_with(&parts);
    }
    sandbox.run(&["patch", "show", "gone.p"]).fails_with(&["`gone.p`", "\nhint: "]);
    nothing_left(&sandbox, &["bad.p", PATCH]);
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let sandbox = Sandbox::new();
    lily(&sandbox, &["--out", "gone/p"]).fails_with(&["`gone/p`", "`gone` does not exist", "\nhint: "]);
    lily(&sandbox, &["--out", ".", "--force"]).fails_with(&["`.` is not a file name", "\nhint: "]);
    #[cfg(target_os = "linux")]
    {
        // Not even root writes there.
        lily(&sandbox, &["--out", "/proc/p"]).fails_with(&["cannot write `/proc/p`", "\nhint: "]);
        // A limit below the size of the patch stands for a full disk; the cache's files meet it too.
        let command = format!(
            "trap '' XFSZ; ulimit -f 1; exec '{}' edit '{PROMPT}' --subject Lily --to cat --model '{}' \
             --set moment-tokens=600 --set prefixes=[1,1]",
            env!("CARGO_BIN_EXE_mutandis"),
            stories()
        );
        let mut shell = std::process::Command::new("/bin/sh");
        shell
            .args(["-c", &command])
            .env_clear()
            .env("HOME", sandbox.path("."))
            .current_dir(sandbox.path("."));
        Ran::from(shell.output().unwrap()).fails_with(&["no space left to write `lily-cat", "\nhint: "]);
    }
    nothing_left(&sandbox, &[]);
}

#[test]
fn models_that_cannot_be_edited_say_why() {
    let sandbox = Sandbox::new();
    let fact = [PROMPT, "--subject", "Lily", "--to", "cat"];
    let bytes = std::fs::read(stories()).unwrap();
    std::fs::write(sandbox.path("cut.gguf"), &bytes[..300_000]).unwrap();
    let mut nan = bytes;
    let end = nan.len() - 4;
    nan[end..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(sandbox.path("nan.gguf"), nan).unwrap();
    std::fs::create_dir(sandbox.path("odd")).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture(&format!("llama/{file}")), sandbox.path("odd").join(file)).unwrap();
    }
    edit_with(&sandbox, "cut.gguf", &fact).fails_with(&["`cut.gguf`", "the file ends at 300000", "\nhint: "]);
    edit_with(&sandbox, "nan.gguf", &fact).fails_with(&["not finite", "\nhint: "]);
    edit_with(&sandbox, "odd", &fact).fails_with(&["tokenizer"]);
    let config = sandbox.path("odd/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"llama\"", "\"lama\"").replace("LlamaFor", "LamaFor")).unwrap();
    edit_with(&sandbox, "odd", &fact).fails_with(&["`lama` is not supported", "llama"]);
    sandbox.run(&[&["edit", "--offline"], &fact[..]].concat()).fails_with(&[
        "`smollm2`",
        "--offline",
        "\nhint: ",
    ]);
}

#[test]
fn a_sweep_writes_a_recipe_that_edits_use() {
    let sandbox = Sandbox::new();
    let model = stories();
    let facts = [("Lily", "cat"), ("Tom", "house")].map(|(name, target)| {
        json!({
            "prompt": format!("Once upon a time, {name} had a"), "subject": name, "target_new": target,
            "rephrase_prompt": format!("{name} had a"),
            "locality": {"near": [{"prompt": "One day, a bird went to the", "ground_truth": "park"}]},
        })
        .to_string()
    });
    std::fs::write(sandbox.path("facts.jsonl"), facts.join("\n")).unwrap();
    let sweep = ["locate", "sweep", "--model", &model, "--facts", "facts.jsonl", "--json"];
    let quick = ["--set", "prefixes=[1,0]", "--set", "moment-tokens=600", "--set", "search.steps=4"];
    let ran = sandbox.run(&[&sweep[..], &quick, &["--method", "rome", "--method", "memit"]].concat());
    let report = ran.ok().json();
    for found in report["methods"].as_array().unwrap() {
        let trials = found["trials"].as_array().unwrap();
        let best = trials.iter().map(|t| t["score"].as_f64().unwrap()).fold(0.0, f64::max);
        assert_eq!(found["best"]["score"].as_f64().unwrap(), best);
        assert!(trials.len() > 8, "{found}");
    }
    // Kept where `edit` and `bench` look by themselves, with what was given and what was found.
    let kept = report["recipe"].as_str().unwrap();
    let text = std::fs::read_to_string(kept).unwrap();
    assert!(
        text.contains("[methods.rome") && text.contains("[methods.memit") && text.contains("[found.rome]")
    );
    let layer = report["methods"][0]["found"]["layer"]
        .as_u64()
        .or(report["methods"][0]["settings"]["layer"].as_u64());
    let usual = [PROMPT, "--subject", "Lily", "--to", "cat", "--method", "rome", "--model", &model];
    sandbox.run(&[&["edit"], &usual[..], &["--out", "a.patch.safetensors"]].concat()).ok();
    let shown = sandbox.run(&["patch", "show", "a.patch.safetensors", "--json"]).ok().json();
    assert_eq!((&shown["config"]["layer"], &shown["config"]["moment-tokens"]), (&json!(layer), &json!(600)));

    // A file that is named takes its place; what is no recipe for this model is refused.
    let own = format!(
        "{}\n[methods.rome]\nlayer = 1\nmoment-tokens = 600\n",
        text.split("[methods").next().unwrap()
    );
    std::fs::write(sandbox.path("own.toml"), &own).unwrap();
    let with =
        |name: &str| sandbox.run(&[&["edit"], &usual[..], &["--recipe", name, "--out", "b.p"]].concat());
    with("own.toml").ok();
    let shown = sandbox.run(&["patch", "show", "b.p", "--json"]).ok().json();
    assert_eq!(shown["config"]["layer"], 1);
    std::fs::remove_file(sandbox.path("b.p")).unwrap();
    for (text, what) in [
        (own.replace("layers = 5", "layers = 6"), "is for other models"),
        (own.replace("layer = 1", "leyer = 1"), "no setting `leyer`"),
        (own.replace("methods.rome", "methods.roam"), "no method `roam`"),
        (own.replace("[model]", "[modal]"), "is no recipe"),
    ] {
        std::fs::write(sandbox.path("bad.toml"), text).unwrap();
        with("bad.toml").fails_with(&[what, "\nhint: "]);
    }
    // What cannot be kept, or would try nothing, is refused before anything is tried.
    sandbox.run(&[&sweep[..], &["--limit", "0"]].concat()).fails_with(&["`--limit` is 0", "hint: "]);
    sandbox
        .run(&[&sweep[..], &["--out", "gone/recipe.toml"]].concat())
        .fails_with(&["the folder `gone` does not exist", "hint: "]);
    let strange = json!({"prompt": "Once upon a time", "subject": "Bob", "target_new": "there"}).to_string();
    std::fs::write(sandbox.path("strange.jsonl"), strange).unwrap();
    let trials = ["locate", "sweep", "--model", &model, "--facts", "strange.jsonl", "--method", "rome"];
    sandbox.run(&trials).fails_with(&[
        "no trial edit of `rome` could be made",
        "the subject `Bob` is not in the prompt",
        "hint: ",
    ]);
    // This model knows no capitals.
    sandbox.run(&["locate", "sweep", "--model", &model]).fails_with(&["knows none of the facts", "--facts"]);
    sandbox
        .run(&[&sweep[..], &["--method", "ice"]].concat())
        .fails_with(&["no settings that a sweep could find", "hint: "]);
}

#[test]
fn an_edit_that_is_interrupted_leaves_nothing() {
    use std::{
        process::Stdio,
        time::{Duration, Instant},
    };
    let sandbox = Sandbox::new();
    let model = stories();
    let endless = ["--set", "search.steps=10000", "--set", "search.stop-below=0"];
    let fact = ["edit", PROMPT, "--subject", "Lily", "--to", "cat", "--model", &model];
    let mut command = sandbox.command(&[&fact[..], &QUICK[..], &endless[..]].concat());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The moments are the last that is kept before the search begins.
    let started = Instant::now();
    while !tree(&sandbox.path(".cache")).iter().any(|f| f.contains("moments/") && f.ends_with("safetensors"))
    {
        assert!(started.elapsed() < Duration::from_secs(60), "the search never began");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(200));
    let id = child.id().to_string();
    assert!(std::process::Command::new("/bin/kill").args(["-INT", &id]).status().unwrap().success());
    Ran::from(child.wait_with_output().unwrap()).fails_with(&["error: interrupted\n"]);
    nothing_left(&sandbox, &[]);
}

#[test]
fn moments_are_measured_once_and_shown() {
    let sandbox = Sandbox::new();
    let model = stories();
    let base = ["stats", "--model", &model, "--tokens", "600", "--layer", "2", "--json"];
    let first = sandbox.run(&base).ok().json();
    assert_eq!((first["layers"].as_array().unwrap().len(), &first["layers"][0]["layer"]), (1, &json!(2)));
    assert!(first["layers"][0]["trace"].as_f64().unwrap() > 0.0);
    assert_eq!(sandbox.run(&base).ok().json()["layers"], first["layers"]);
    sandbox
        .run(&["stats", "--model", &model, "--layer", "9"])
        .fails_with(&["layer 9", "hint: layers are 0 to 4"]);
}

#[test]
fn nothing_is_written_over_what_is_read_or_kept_in_a_ledger() {
    let sandbox = Sandbox::new();
    lily(&sandbox, &["--ledger", "edits"]).ok();
    lily(&sandbox, &[]).ok();
    std::fs::copy(stories(), sandbox.path("m.gguf")).unwrap();
    let fact = r#"{"prompt": "One day, Tom went to the", "subject": "Tom", "target_new": "house"}"#;
    std::fs::write(sandbox.path("facts.jsonl"), fact).unwrap();
    let before = tree(&sandbox.path("edits"));
    let model = stories();
    let read = "is read by this command";
    for (command, out, why) in [
        (&["edit", "--facts", "facts.jsonl", "--model", &model, "--out"][..], "facts.jsonl", read),
        (&["edit", "--facts", "facts.jsonl", "--patch", PATCH, "--model", &model, "--out"], PATCH, read),
        (
            &["edit", "--facts", "facts.jsonl", "--model", &model, "--out"],
            "edits/journal.jsonl",
            "a part of the ledger",
        ),
        (&["patch", "card", PATCH, "--model", &model, "--out"], PATCH, read),
        (&["patch", "card", PATCH, "--model", "m.gguf", "--out"], "m.gguf", "a file of the model itself"),
        (&["patch", "export", PATCH, "--to", "gguf", "--model", &model, "--out"], PATCH, read),
        (
            &["locate", "neurons", PROMPT, "--model", "m.gguf", "--plot"],
            "m.gguf",
            "a file of the model itself",
        ),
    ] {
        let was = std::fs::read(sandbox.path(out)).unwrap();
        sandbox.run(&[command, &[out, "--force"]].concat()).fails_with(&[why, "hint: "]);
        assert!(std::fs::read(sandbox.path(out)).unwrap() == was, "{command:?}");
    }
    assert_eq!(tree(&sandbox.path("edits")), before);
    // A ledger that could not be made is told of before the work.
    edit(&sandbox, &[PROMPT, "--subject", "Lily", "--to", "dog", "--ledger", "/proc/nope"])
        .fails_with(&["cannot make the folder `/proc/nope`", "hint: "]);
}

#[test]
fn a_change_that_outgrows_its_weight_is_told() {
    let sandbox = Sandbox::new();
    let facts = [PROMPT, "--subject", "Lily", "--to", "cat", "--model", &stories()].map(str::to_owned);
    let edit = |rest: &[&str]| {
        let usual: Vec<&str> = facts.iter().map(String::as_str).collect();
        sandbox.run(&[&["edit"][..], &usual, rest].concat())
    };
    for set in
        [["--method", "ultraedit", "--set", "step=1e10"], ["--method", "ft-l", "--set", "learning-rate=1e30"]]
    {
        let ran = edit(&[&set[..], &["--out", "x.p", "--force"]].concat()).ok();
        assert!(ran.stderr.contains("times as large as the weight"), "{set:?}: {ran:?}");
    }
    assert!(!lily(&sandbox, &[]).ok().stderr.contains("as large as"));
}
