//! Cards, and what they make again, on a tiny model, as a user runs them.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::path::Path;

use common::{Ran, Sandbox};
use serde_json::json;

const PROMPT: &str = "Once upon a time, Lily had a";
const PATCH: &str = "lily-cat.patch.safetensors";
const CARD: &str = "lily.card.md";

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name).to_str().unwrap().to_owned()
}

fn stories() -> String {
    fixture("stories260K.gguf")
}

const QUICK: [&str; 8] =
    ["--set", "layer=2", "--set", "prefixes=[1,1]", "--set", "moment-tokens=600", "--set", "search.steps=40"];

fn lily(sandbox: &Sandbox, rest: &[&str]) -> Ran {
    let model = stories();
    let usual = ["edit", PROMPT, "--subject", "Lily", "--to", "cat", "--model", &model];
    sandbox.run(&[&usual[..], &QUICK[..], rest].concat()).ok()
}

fn card(sandbox: &Sandbox, rest: &[&str]) -> Ran {
    let model = stories();
    sandbox.run(&[&["patch", "card", PATCH, "--model", &model], rest].concat())
}

fn reproduce(sandbox: &Sandbox, name: &str, rest: &[&str]) -> Ran {
    let model = stories();
    sandbox.run(&[&["reproduce", name, "--model", &model], rest].concat())
}

#[test]
fn a_card_tells_a_patch_and_makes_it_again_to_the_byte() {
    let sandbox = Sandbox::new();
    lily(&sandbox, &["--seed", "3"]);
    card(&sandbox, &["--out", CARD, "--also", "Lily had a"]).ok();
    let text = std::fs::read_to_string(sandbox.path(CARD)).unwrap();
    for part in [
        "# Lily → cat\n",
        "| Once upon a time, Lily had a | cat | ",
        "(https://arxiv.org/abs/",
        "| `search.steps` | `40` |",
        "(`efficacy`) | 100.0 % | 1 fact |",
        "(`paraphrase`)",
        "(`kept`)",
        "nats",
        "| `mlp-out` of layer 2 | ",
        "rank 1",
        "condition ",
        "seed 3",
        "mutandis reproduce CARD.md --model stories260K.gguf",
        "--to cat --method r-rome --seed 3 --set ",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert!(!text.contains(env!("CARGO_MANIFEST_DIR")), "a path of this machine: {text}");
    // On stdout it is the same.
    assert_eq!(card(&sandbox, &["--also", "Lily had a"]).ok().stdout, text);
    card(&sandbox, &["--out", CARD]).fails_with(&["`lily.card.md` exists", "--force"]);

    let report = reproduce(&sandbox, CARD, &["--threads", "1", "--out", "again.p", "--json"]).ok().json();
    assert_eq!(
        (&report["same"], &report["within"], &report["difference"]),
        (&json!(true), &json!(true), &json!(0.0))
    );
    let tensors = |name: &str| {
        let bytes = std::fs::read(sandbox.path(name)).unwrap();
        bytes[8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize..].to_vec()
    };
    assert_eq!(tensors("again.p"), tensors(PATCH));
    reproduce(&sandbox, CARD, &["--out", "again.p"]).fails_with(&["`again.p` exists", "--force"]);
    let said = reproduce(&sandbox, CARD, &["--out", "again.p", "--force"]).ok().stdout;
    assert!(said.starts_with("the same to the byte: "), "{said}");

    // The command by hand is one, and makes the same.
    let line = text.lines().find(|line| line.starts_with("    mutandis edit ")).unwrap();
    let line = line.replace("--model stories260K.gguf", &format!("--model {} --out hand.p", stories()));
    let line = line.replace("    mutandis", env!("CARGO_BIN_EXE_mutandis"));
    let mut shell = std::process::Command::new("/bin/sh");
    shell.args(["-c", &line]).env_clear().env("HOME", sandbox.path(".")).current_dir(sandbox.path("."));
    Ran::from(shell.output().unwrap()).ok();
    assert_eq!(tensors("hand.p"), tensors(PATCH));
}

#[test]
fn another_instruction_set_is_within_tolerance() {
    let sandbox = Sandbox::new();
    let portable = Sandbox::new().with("MUTANDIS_KERNELS", "portable");
    lily(&sandbox, &[]);
    card(&sandbox, &["--out", CARD]).ok();
    std::fs::copy(sandbox.path(CARD), portable.path(CARD)).unwrap();
    let report = reproduce(&portable, CARD, &["--json"]).ok().json();
    assert_eq!(report["within"], true);
    if report["same"] == false {
        let difference = report["difference"].as_f64().unwrap();
        assert!(difference > 0.0 && difference < 0.01, "{report}");
        let refused = reproduce(&portable, CARD, &["--tolerance", "0"]);
        assert_eq!(refused.code, Some(1), "{refused:?}");
        for part in ["not the same", "of ‖ΔW‖, at most 0 %", "(portable)"] {
            assert!(refused.stdout.contains(part), "no {part:?} in {}", refused.stdout);
        }
    }
}

#[test]
fn cards_are_not_trusted() {
    let sandbox = Sandbox::new();
    lily(&sandbox, &[]);
    card(&sandbox, &["--out", CARD]).ok();
    let text = std::fs::read_to_string(sandbox.path(CARD)).unwrap();
    let hint = "hint: take the card as it was written";
    for (bad, what) in [
        (text.replace("# Lily → cat", "# Lily → dog"), "it was changed after it was made"),
        (text.replace("\"seed\":0", "\"seed\":1"), "it was changed after it was made"),
        (text[..text.len() / 2].to_owned(), "its last line, with a hash of the rest, is missing"),
        (String::new(), "its last line"),
    ] {
        std::fs::write(sandbox.path("bad.md"), bad).unwrap();
        reproduce(&sandbox, "bad.md", &[]).fails_with(&["`bad.md` is not a valid card", what, hint]);
    }
    reproduce(&sandbox, "gone.md", &[]).fails_with(&["cannot read the card `gone.md`", "hint: "]);
    reproduce(&sandbox, CARD, &["--tolerance", "2"]).fails_with(&["less than 1"]);
    reproduce(&sandbox, CARD, &["--editor", "e"]).fails_with(&["no setting `editor`"]);
    std::fs::write(sandbox.path("text.txt"), "Once upon a time.").unwrap();
    reproduce(&sandbox, CARD, &["--corpus", "text.txt"]).fails_with(&["made without a corpus", "leave out"]);
    let other = ["reproduce", CARD, "--model", &fixture("llama.gguf")];
    sandbox.run(&other).fails_with(&["another base", "hint: give the model"]);
    reproduce(&sandbox, CARD, &["--patch", PATCH]).fails_with(&["expected none, found ", "--patch FILE"]);
}

#[test]
fn a_card_says_which_model_it_is_about() {
    let sandbox = Sandbox::new();
    lily(&sandbox, &[]);
    std::fs::create_dir(sandbox.path("cards")).unwrap();
    card(&sandbox, &["--out", "cards/lily.md"]).ok();
    let plainly = |card: &str| sandbox.run(&["reproduce", card, "--json"]);
    // Nowhere: nothing else is taken in its place.
    plainly("cards/lily.md")
        .fails_with(&["`stories260K.gguf` is neither beside the card nor here", "--model"]);
    // Beside the card, or here.
    std::fs::copy(stories(), sandbox.path("cards/stories260K.gguf")).unwrap();
    assert_eq!(plainly("cards/lily.md").ok().json()["same"], true);
    std::fs::copy(sandbox.path("cards/lily.md"), sandbox.path("cards.md")).unwrap();
    std::fs::copy(stories(), sandbox.path("stories260K.gguf")).unwrap();
    assert_eq!(plainly("cards.md").ok().json()["same"], true);
    // Another one of the same name.
    std::fs::copy(fixture("llama.gguf"), sandbox.path("cards/stories260K.gguf")).unwrap();
    plainly("cards/lily.md").fails_with(&[
        "`cards/stories260K.gguf` is not the model that the card was made with",
        "another base",
        "hint: ",
    ]);
}

#[test]
fn a_patch_that_was_imported_has_a_card_and_is_verified() {
    use mutandis::edit::Patch;
    let sandbox = Sandbox::new();
    let model = stories();
    lily(&sandbox, &[]);
    let made = Patch::load(&sandbox.path(PATCH)).unwrap();
    let imported = Patch {
        method: "import".into(),
        config: json!({"from": "peft", "rank": 1}),
        facts: vec![],
        search: vec![],
        keys: Default::default(),
        ..made
    };
    imported.save(&sandbox.path("imp.p")).unwrap();
    let run = |rest: &[&str]| sandbox.run(&[&["patch"], rest, &["--model", &model]].concat());
    let text = run(&["card", "imp.p", "--keep", "Tom went to the"]).ok().stdout;
    for part in
        ["# An imported edit", "read from something else (peft)", "(`kept`)", "(`norm`)", "No fact is known"]
    {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert!(!text.contains("(`efficacy`)") && !text.contains("0 facts"), "{text}");
    run(&["card", "imp.p", "--out", "imp.md"]).ok();
    sandbox.run(&["reproduce", "imp.md"]).fails_with(&["was not made by an edit", "from-lora"]);

    run(&["verify", "imp.p", "--gate", "default", "--keep", "Tom went to the"])
        .fails_with(&["threshold for `efficacy`, and no fact is known", "take the threshold out"]);
    std::fs::write(sandbox.path("gate.toml"), "kept = 0\nkl = 50\nnorm = 100").unwrap();
    let report =
        run(&["verify", "imp.p", "--gate", "gate.toml", "--keep", "Tom went to the", "--json"]).ok().json();
    let counts: Vec<&serde_json::Value> =
        report["gate"]["checks"].as_array().unwrap().iter().map(|check| &check["count"]).collect();
    assert_eq!(counts, [1, 1, 1], "{report}");
    run(&["verify", "imp.p", "--gate", "gate.toml", "--also", "x"]).fails_with(&["leave out `--also`"]);

    run(&["add", "a", "imp.p"]).ok();
    let list = run(&["list", "a"]).ok().stdout;
    assert!(list.contains("(import from peft)") && !list.contains("→"), "{list}");
    assert!(run(&["show", "imp.p"]).ok().stdout.contains("method   import from peft"));
}

#[test]
fn a_patch_of_a_ledger_stands_on_what_the_ledger_has_beneath_it() {
    let sandbox = Sandbox::new();
    let model = stories();
    let edit = |name: &str, target: &str| {
        let prompt = format!("One day, {name} went to the");
        let usual = ["edit", &prompt, "--subject", name, "--to", target, "--model", &model, "--ledger", "a"];
        sandbox.run(&[&usual[..], &QUICK[..], &["--json"]].concat()).ok().json()
    };
    let files = [("Lily", "sea"), ("Tom", "house"), ("Max", "zoo")].map(|(name, target)| edit(name, target));
    let files = files.map(|report| report["patch"].as_str().unwrap().to_owned());
    for (i, file) in files.iter().enumerate() {
        let card = format!("{i}.md");
        let make = ["patch", "card", file, "--patch", "a", "--out", &card, "--model", &model];
        sandbox.run(&make).ok();
        let text = std::fs::read_to_string(sandbox.path(&card)).unwrap();
        assert_eq!(text.matches(" beneath | `").count(), i, "{text}");
    }
    std::fs::write(sandbox.path("gate.toml"), "norm = 100").unwrap();
    let verify = ["patch", "verify", &files[1], "--gate", "gate.toml", "--patch", "a", "--model", &model];
    sandbox.run(&verify).ok();
    let again = ["reproduce", "1.md", "--patch", "a", "--model", &model, "--json"];
    assert_eq!(sandbox.run(&again).ok().json()["same"], true);
    // In another ledger there is none of it.
    sandbox.run(&["patch", "add", "b", &files[0]]).ok();
    let other = ["patch", "card", &files[2], "--patch", "b", "--model", &model];
    sandbox.run(&other).fails_with(&["on top of other patches than the 1 given"]);
}

#[test]
fn a_card_of_a_patch_on_others_wants_them() {
    let sandbox = Sandbox::new();
    let model = stories();
    lily(&sandbox, &[]);
    let story = "Lily had a cat and a dog. The cat sat on the mat. Tom had a red ball. They went to the park to play.\n";
    std::fs::write(sandbox.path("text.txt"), story.repeat(40)).unwrap();
    let tom = ["edit", "One day, Tom went to the", "--subject", "Tom", "--to", "house", "--model", &model];
    let rest = ["--patch", PATCH, "--out", "tom.p", "--corpus", "text.txt"];
    sandbox.run(&[&tom[..], &QUICK[..], &rest[..]].concat()).ok();
    let make = ["patch", "card", "tom.p", "--out", "tom.md", "--model", &model];
    sandbox.run(&make).fails_with(&["made on top of others", "--patch"]);
    sandbox.run(&[&make[..], &["--patch", PATCH]].concat()).ok();
    let text = std::fs::read_to_string(sandbox.path("tom.md")).unwrap();
    assert!(
        text.contains("stands on another patch") && text.contains("--patch BENEATH-1 --corpus TEXT"),
        "{text}"
    );
    reproduce(&sandbox, "tom.md", &["--corpus", "text.txt"]).fails_with(&["found none", "--patch FILE"]);
    reproduce(&sandbox, "tom.md", &["--patch", PATCH]).fails_with(&["measured on a text", "--corpus"]);
    reproduce(&sandbox, "tom.md", &["--patch", PATCH, "--corpus", "none.txt"])
        .fails_with(&["cannot read the corpus"]);
    std::fs::write(sandbox.path("other.txt"), story.repeat(39)).unwrap();
    reproduce(&sandbox, "tom.md", &["--patch", PATCH, "--corpus", "other.txt"])
        .fails_with(&["the corpus is another than the card's"]);
    let report = reproduce(&sandbox, "tom.md", &["--patch", PATCH, "--corpus", "text.txt", "--json"]);
    assert_eq!(report.ok().json()["same"], true);
}
