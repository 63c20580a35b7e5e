//! Gates, long sequences and their alarm on a tiny model, as a user runs them.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::path::Path;

use common::{Ran, Sandbox, tree};
use mutandis::edit::Patch;
use serde_json::{Value, json};

const PROMPT: &str = "Once upon a time, Lily had a";
const PATCH: &str = "lily-cat.patch.safetensors";

fn stories() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/stories260K.gguf");
    path.to_str().unwrap().to_owned()
}

/// An edit that is quick and reaches its target.
fn lily(sandbox: &Sandbox, rest: &[&str]) -> Ran {
    let model = stories();
    let usual = [PROMPT, "--subject", "Lily", "--to", "cat", "--model", &model];
    sandbox.run(&[&["edit"], &usual[..], &QUICK[..], rest].concat())
}

const QUICK: [&str; 8] =
    ["--set", "layer=2", "--set", "prefixes=[1,1]", "--set", "moment-tokens=600", "--set", "search.steps=40"];

fn gate(sandbox: &Sandbox, name: &str, text: &str) {
    std::fs::write(sandbox.path(name), text).unwrap();
}

/// It was done, and the answer is no.
#[track_caller]
fn says_no(ran: &Ran) {
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(!ran.stderr.contains("error") && !ran.stderr.contains("panicked"), "{ran:?}");
}

#[track_caller]
fn patches(sandbox: &Sandbox, folder: &str) -> Vec<String> {
    let all = tree(&sandbox.path(folder)).into_iter();
    all.filter(|f| !f.starts_with(".cache/") && f.contains("patch")).collect()
}

fn check<'a>(verdict: &'a Value, name: &str) -> &'a Value {
    verdict["checks"].as_array().unwrap().iter().find(|check| check["name"] == name).unwrap()
}

const LOOSE: &str = "efficacy = 1.0\nparaphrase = 0\nkept = 0\nkl = 50\nperplexity = 1000\nnorm = 100";

#[test]
fn an_edit_that_passes_its_gate_is_written_with_the_verdict() {
    let sandbox = Sandbox::new();
    gate(&sandbox, "gate.toml", LOOSE);
    let rest = ["--gate", "gate.toml", "--also", "Lily had a", "--keep", "Tom went to the", "--json"];
    let report = lily(&sandbox, &rest).ok().json();
    let verdict = &report["gate"];
    assert_eq!((&verdict["passed"], &report["patch"]), (&json!(true), &json!(PATCH)));
    let names: Vec<&str> =
        verdict["checks"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["efficacy", "paraphrase", "kept", "kl", "perplexity", "norm"]);
    assert_eq!(
        (&check(verdict, "efficacy")["measured"], &check(verdict, "efficacy")["at-least"]),
        (&json!(1.0), &json!(1.0))
    );
    for (name, count) in [("efficacy", 1), ("paraphrase", 1), ("kept", 1), ("kl", 1), ("norm", 1)] {
        assert_eq!(check(verdict, name)["count"], count, "{name}");
    }
    assert!(check(verdict, "kl")["measured"].as_f64().unwrap() > 0.0);
    // ‖ΔW‖ / ‖W‖, as the patch has it.
    let shown = sandbox.run(&["patch", "show", PATCH, "--json"]).ok().json();
    let norms = &shown["norms"][0];
    let ratio = norms["delta"].as_f64().unwrap() / norms["base"].as_f64().unwrap();
    let measured = check(verdict, "norm")["measured"].as_f64().unwrap();
    assert!((measured / ratio - 1.0).abs() < 1e-6, "{measured} is not {ratio}");

    // The file is held to the same gate, and gets the same numbers.
    let model = stories();
    let verify = ["patch", "verify", PATCH, "--model", &model];
    let rest = ["--gate", "gate.toml", "--also", "Lily had a", "--keep", "Tom went to the", "--json"];
    let again = sandbox.run(&[&verify[..], &rest[..]].concat()).ok().json();
    assert_eq!(&again["gate"], verdict);
    // Whatever the file says of the model's weights.
    let mut lies = Patch::load(&sandbox.path(PATCH)).unwrap();
    lies.norms[0].base = 1e9;
    lies.save(&sandbox.path("lies.p")).unwrap();
    lies.norms.clear();
    lies.save(&sandbox.path("silent.p")).unwrap();
    gate(&sandbox, "strict.toml", "norm = 0.0001");
    for file in ["lies.p", "silent.p"] {
        says_no(&sandbox.run(&["patch", "verify", file, "--model", &model, "--gate", "strict.toml"]));
    }
    let refused = sandbox.run(&[&verify[..], &["--gate", "strict.toml"]].concat());
    says_no(&refused);
    assert!(refused.stdout.contains("gate: 1 of 1 checks failed"), "{refused:?}");
    assert!(refused.stdout.contains("mlp-out of layer 2"), "{refused:?}");
}

#[test]
fn an_edit_that_fails_its_gate_is_not_written_and_says_why() {
    let sandbox = Sandbox::new();
    gate(&sandbox, "gate.toml", "efficacy = 1\nkept = 1\nnorm = 0.0001");
    // One step is not enough.
    let ran =
        lily(&sandbox, &["--gate", "gate.toml", "--set", "search.steps=1", "--keep", "Tom went to the"]);
    says_no(&ran);
    for part in [
        "gate: ",
        "! efficacy  0.000, at least 1 (1 fact)",
        "; wanted cat",
        "! norm",
        "mlp-out of layer 2",
        "no patch was written: the edit did not pass its gate",
    ] {
        assert!(ran.stdout.contains(part), "no {part:?} in {}", ran.stdout);
    }
    assert!(patches(&sandbox, ".").is_empty());
    let ran = lily(&sandbox, &["--gate", "gate.toml", "--json"]);
    says_no(&ran);
    let report = ran.json();
    assert_eq!((&report["patch"], &report["gate"]["passed"]), (&Value::Null, &json!(false)));
    let norm = check(&report["gate"], "norm");
    assert_eq!((&norm["passed"], &norm["worst"][0]["what"]), (&json!(false), &json!("mlp-out of layer 2")));
    assert!(patches(&sandbox, ".").is_empty());
    // What is there stays, by force or not.
    std::fs::write(sandbox.path(PATCH), "mine").unwrap();
    says_no(&lily(&sandbox, &["--gate", "gate.toml", "--out", PATCH, "--force"]));
    assert_eq!(std::fs::read(sandbox.path(PATCH)).unwrap(), b"mine");
}

#[test]
fn an_alias_of_the_target_is_as_good_as_the_target() {
    let sandbox = Sandbox::new();
    gate(&sandbox, "gate.toml", "efficacy = 1");
    let report = |alias: &str| {
        let fact = json!({"prompt": PROMPT, "subject": "Lily", "target_new": "cat", "aliases": [alias]});
        std::fs::write(sandbox.path("facts.jsonl"), fact.to_string()).unwrap();
        let (model, out) = (stories(), format!("{}.p", alias.len()));
        let usual = ["edit", "--facts", "facts.jsonl", "--out", &out, "--model", &model];
        // One step is not enough for the target.
        let rest = ["--gate", "gate.toml", "--set", "search.steps=1", "--json"];
        sandbox.run(&[&usual[..], &QUICK[..], &rest].concat()).json()
    };
    let refused = report("kitten");
    let worst = &check(&refused["gate"], "efficacy")["worst"][0];
    assert_eq!((&worst["wanted"], &refused["gate"]["passed"]), (&json!("cat"), &json!(false)));
    assert_eq!(report(worst["after"].as_str().unwrap())["gate"]["passed"], true);
}

#[test]
fn a_gate_that_cannot_be_is_refused_before_the_work() {
    let sandbox = Sandbox::new();
    for (text, parts) in [
        ("eficacy = 1", ["a gate has no key `eficacy`", "did you mean `efficacy`?"]),
        ("", ["it names no threshold", "efficacy"]),
        ("kept = 2", ["`kept` is 2", "a share of 0 to 1"]),
        ("paraphrase = 0.5", ["no fact has another wording", "--also"]),
        ("[general]\nsuites = ['piqua']\nfolder = '.'\ndrop = 0.1", ["no suite `piqua`", "`piqa`"]),
        ("[general]\nsuites = ['piqa']\nfolder = 'gone'\ndrop = 0.1", ["gone", "piqa"]),
    ] {
        gate(&sandbox, "gate.toml", text);
        // No model is there: it is not looked for.
        let usual = ["edit", PROMPT, "--subject", "Lily", "--to", "cat", "--model", "gone.gguf"];
        sandbox.run(&[&usual[..], &["--gate", "gate.toml"]].concat()).fails_with(&parts);
    }
    lily(&sandbox, &["--gate", "none.toml"]).fails_with(&["cannot read the gate `none.toml`", "`default`"]);
    lily(&sandbox, &["--alarm", "2"]).fails_with(&["--turn"]);
    assert!(patches(&sandbox, ".").is_empty());
}

#[test]
fn a_patch_on_top_is_measured_on_top_and_spares_the_facts_beneath() {
    let sandbox = Sandbox::new();
    let model = stories();
    lily(&sandbox, &[]).ok();
    gate(&sandbox, "gate.toml", "kept = 0\nnorm = 100");
    let tom = ["edit", "One day, Tom went to the", "--subject", "Tom", "--to", "house", "--model", &model];
    let rest =
        ["--patch", PATCH, "--gate", "gate.toml", "--keep", "A bird saw a", "--out", "tom.p", "--json"];
    let report = sandbox.run(&[&tom[..], &QUICK[..], &rest[..]].concat()).ok().json();
    // The prompt that was given, and the fact beneath.
    assert_eq!(check(&report["gate"], "kept")["count"], 2);
    let norms = |name: &str| {
        let shown = sandbox.run(&["patch", "show", name, "--json"]).ok().json();
        let norms = &shown["norms"][0];
        norms["delta"].as_f64().unwrap() / norms["base"].as_f64().unwrap()
    };
    let both = check(&report["gate"], "norm")["measured"].as_f64().unwrap();
    assert!(both > norms("tom.p") && both <= norms("tom.p") + norms(PATCH), "{both}");

    let verify = ["patch", "verify", "tom.p", "--model", &model, "--keep", "A bird saw a", "--json"];
    let with = |rest: &[&str]| sandbox.run(&[&verify[..], &["--gate", "gate.toml"], rest].concat());
    assert_eq!(with(&["--patch", PATCH]).ok().json()["gate"], report["gate"]);
    with(&[]).fails_with(&["made on top of others", "--patch"]);
    with(&["--patch", "tom.p"]).fails_with(&["on top of other patches than the 1 given", "--patch"]);
    let alone = ["patch", "verify", PATCH, "--model", &model, "--gate", "gate.toml", "--patch", PATCH];
    sandbox.run(&alone).fails_with(&["made on the model alone", "leave out"]);
}

fn facts(sandbox: &Sandbox, count: usize) {
    let all =
        [("Lily", "cat"), ("Tom", "house"), ("Ben", "dog"), ("Mia", "hat"), ("Sam", "tree"), ("Anna", "bed")];
    let lines = all.iter().take(count).map(|(name, target)| {
        let prompt = format!("Once upon a time, {name} had a");
        json!({"prompt": prompt, "subject": name, "target_new": target}).to_string()
    });
    std::fs::write(sandbox.path("facts.jsonl"), lines.collect::<Vec<_>>().join("\n")).unwrap();
}

fn sequence(sandbox: &Sandbox, rest: &[&str]) -> Ran {
    let model = stories();
    let usual = ["edit", "--facts", "facts.jsonl", "--out", "edits", "--model", &model];
    sandbox.run(&[&usual[..], &QUICK[..], rest].concat())
}

fn file(turn: usize) -> String {
    format!("facts-{turn:04}.patch.safetensors")
}

/// A patch's tensors, and what it was made on top of.
fn content(sandbox: &Sandbox, name: &str) -> (Vec<u8>, Value) {
    let bytes = std::fs::read(sandbox.path(name)).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let shown = sandbox.run(&["patch", "show", name, "--json"]).ok().json();
    (bytes[8 + header..].to_vec(), shown["under"].clone())
}

#[test]
fn a_sequence_stands_on_itself_and_goes_on_where_it_was_ended() {
    let sandbox = Sandbox::new();
    facts(&sandbox, 5);
    let whole = sequence(&sandbox, &["--turn", "2", "--alarm", "1e9", "--json"]).ok().json();
    let turns = whole["turns"].as_array().unwrap();
    assert_eq!((turns.len(), &whole["edited"], &whole["stopped"]), (3, &json!(5), &Value::Null));
    assert_eq!(turns.iter().map(|t| t["facts"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 2, 1]);
    assert!(turns.iter().all(|t| t["perplexity"].as_f64().unwrap() > 0.0), "{whole}");
    assert_eq!(patches(&sandbox, "edits"), [file(1), file(2), file(3)]);
    let made: Vec<_> = (1..4).map(|turn| content(&sandbox, &format!("edits/{}", file(turn)))).collect();
    assert!(made[0].1.is_null() && made[1].1.is_string() && made[1].1 != made[2].1, "{:?}", made[1].1);

    // Each turn is what `edit --patch` makes of its facts.
    let text = std::fs::read_to_string(sandbox.path("facts.jsonl")).unwrap();
    let last = text.lines().last().unwrap();
    std::fs::write(sandbox.path("last.jsonl"), last).unwrap();
    let model = stories();
    let (one, two) = (format!("edits/{}", file(1)), format!("edits/{}", file(2)));
    let by_hand = [
        "edit",
        "--facts",
        "last.jsonl",
        "--out",
        "last.p",
        "--model",
        &model,
        "--patch",
        &one,
        "--patch",
        &two,
    ];
    sandbox.run(&[&by_hand[..], &QUICK[..]].concat()).ok();
    assert_eq!(content(&sandbox, "last.p"), made[2]);

    // What is missing is made again, and only that.
    std::fs::remove_file(sandbox.path("edits").join(file(3))).unwrap();
    let before = std::fs::metadata(sandbox.path(&two)).unwrap().modified().unwrap();
    let on = sequence(&sandbox, &["--turn", "2", "--alarm", "1e9", "--json"]).ok().json();
    assert_eq!(content(&sandbox, &format!("edits/{}", file(3))), made[2]);
    assert_eq!(std::fs::metadata(sandbox.path(&two)).unwrap().modified().unwrap(), before);
    assert!(on["turns"][1].get("answered").is_none() && on["turns"][2].get("answered").is_some(), "{on}");
    assert_eq!(on["answered"], whole["answered"]);

    // Another sequence does not go on in its folder; a damaged file is named.
    for rest in [&["--turn", "1"][..], &["--turn", "2", "--seed", "1"], &["--turn", "2", "--set", "ridge=2"]]
    {
        sequence(&sandbox, rest).fails_with(&["is of another sequence: its ", "an empty folder"]);
    }
    std::fs::write(sandbox.path(&two), "x").unwrap();
    sequence(&sandbox, &["--turn", "2"]).fails_with(&["facts-0002", "is not a valid patch", "hint: "]);
}

#[test]
fn a_sequence_goes_on_top_of_a_ledger_as_into_a_folder() {
    let sandbox = Sandbox::new();
    facts(&sandbox, 5);
    let model = stories();
    let files = sequence(&sandbox, &["--turn", "2", "--alarm", "1e9", "--json"]).ok().json();
    let usual = ["edit", "--facts", "facts.jsonl", "--model", &model, "--alarm", "1e9", "--json"];
    let run = |ledger: &str, more: &[&str]| {
        sandbox.run(&[&usual[..], &QUICK[..], &["--ledger", ledger], more].concat())
    };
    let ids = |ledger: &str| -> Vec<String> {
        let listed = sandbox.run(&["patch", "list", ledger, "--json"]).ok().json();
        let patches = listed["patches"].as_array().unwrap().iter();
        patches.map(|patch| patch["id"].as_str().unwrap().to_owned()).collect()
    };
    let into = run("ledger", &["--turn", "2"]).ok().json();
    assert_eq!((&into["answered"], &into["ledger"]), (&files["answered"], &json!("ledger")));
    let kept: Vec<_> =
        into["turns"].as_array().unwrap().iter().map(|t| t["patch"].as_str().unwrap()).collect();
    for (turn, path) in kept.iter().enumerate() {
        assert_eq!(content(&sandbox, path), content(&sandbox, &format!("edits/{}", file(turn + 1))));
    }
    let whole = ids("ledger");
    assert_eq!(whole.len(), 3);

    // What is missing is made again, and only that; what is there already is not doubled.
    sandbox.run(&["patch", "revert", "ledger", "3"]).ok();
    let on = run("ledger", &["--turn", "2"]).ok().json();
    assert!(on["turns"][1].get("answered").is_none() && on["turns"][2].get("answered").is_some(), "{on}");
    assert_eq!(ids("ledger"), whole);
    run("ledger", &["--turn", "2"]).ok();
    assert_eq!(ids("ledger"), whole);

    // The same facts are not stacked on themselves.
    for rest in [&["--turn", "1"][..], &["--turn", "2", "--seed", "1"], &["--turn", "2", "--set", "ridge=2"]]
    {
        run("ledger", rest).fails_with(&[
            "has facts of this file",
            "is of another sequence: its ",
            "patch revert",
        ]);
    }
    assert_eq!(ids("ledger"), whole);
    run("facts.jsonl", &["--turn", "2"]).fails_with(&["is a file, expected the folder of a ledger"]);

    // On top of what is of another sequence.
    std::fs::write(sandbox.path("one.jsonl"), concat!(
        r#"{"prompt": "Once upon a time, Zoe had a", "subject": "Zoe", "target_new": "boat"}"#, "\n",
    ))
    .unwrap();
    let one = ["edit", "--facts", "one.jsonl", "--model", &model, "--ledger", "other"];
    sandbox.run(&[&one[..], &QUICK[..]].concat()).ok();
    run("other", &["--turn", "3"]).ok();
    assert_eq!(ids("other").len(), 3);
    run("ledger", &["--turn", "2", "--out", "both"]).fails_with(&["both `--ledger` and `--out`"]);
}

#[test]
fn a_sequence_that_does_harm_stops_and_keeps_what_was_good() {
    let sandbox = Sandbox::new();
    facts(&sandbox, 6);
    // The alarm is set so that some turns pass: between what the second and the last one do.
    let free = sequence(&sandbox, &["--turn", "1", "--alarm", "1e9", "--json"]).ok().json();
    let times: Vec<f64> =
        free["turns"].as_array().unwrap().iter().map(|t| t["perplexity"].as_f64().unwrap()).collect();
    let worst = times.iter().copied().fold(0.0, f64::max);
    let first = times.iter().position(|t| *t == worst).unwrap();
    assert!(first > 0 && worst > 1.0, "{times:?}");
    let before = times[..first].iter().copied().fold(1.0, f64::max);
    let alarm = ((before + worst) / 2.0).to_string();
    for turn in 1..=6 {
        std::fs::remove_file(sandbox.path("edits").join(file(turn))).unwrap();
    }
    let ran = sequence(&sandbox, &["--turn", "1", "--alarm", &alarm, "--json"]);
    says_no(&ran);
    let report = ran.json();
    assert_eq!(report["stopped"]["turn"], json!(first + 1), "{times:?}: {report}");
    let why = report["stopped"]["why"].as_str().unwrap();
    assert!(why.contains("collapsed") && why.contains("perplexity"), "{why}");
    assert_eq!(patches(&sandbox, "edits"), (1..=first).map(file).collect::<Vec<_>>());
    // Running it again comes to the same end; text says so, too.
    let again = sequence(&sandbox, &["--turn", "1", "--alarm", &alarm]);
    says_no(&again);
    for part in [format!("stopped at turn {}: ", first + 1), format!("kept: the {first} turns before it")] {
        assert!(again.stdout.contains(&part), "no {part:?} in {}", again.stdout);
    }

    // A gate is held against every turn.
    gate(&sandbox, "gate.toml", "norm = 0.0001");
    let model = stories();
    let usual = ["edit", "--facts", "facts.jsonl", "--turn", "1", "--out", "gated", "--model", &model];
    let ran = sandbox.run(&[&usual[..], &QUICK[..], &["--gate", "gate.toml", "--json"]].concat());
    says_no(&ran);
    let report = ran.json();
    assert_eq!((&report["stopped"]["turn"], &report["edited"]), (&json!(1), &json!(0)));
    assert_eq!(report["stopped"]["gate"]["checks"][0]["name"], "norm");
    assert!(patches(&sandbox, "gated").is_empty());
}

#[test]
fn a_sequence_that_cannot_be_is_refused_before_the_work() {
    let sandbox = Sandbox::new();
    facts(&sandbox, 2);
    let gone = ["edit", "--facts", "facts.jsonl", "--model", "gone.gguf"];
    let run = |rest: &[&str]| sandbox.run(&[&gone[..], rest].concat());
    run(&["--turn", "1"]).fails_with(&["--out"]);
    run(&["--turn", "0", "--out", "edits"]).fails_with(&["--turn"]);
    run(&["--turn", "1", "--out", "edits", "--alarm", "1"]).fails_with(&["a number above 1"]);
    run(&["--turn", "1", "--out", "facts.jsonl"])
        .fails_with(&["cannot make the folder `facts.jsonl`", "--out"]);
    let strange = json!({"prompt": "Once upon a time", "subject": "Bob", "target_new": "there"}).to_string();
    std::fs::write(sandbox.path("facts.jsonl"), strange).unwrap();
    run(&["--turn", "1", "--out", "edits"]).fails_with(&["`Bob` is not in the prompt", "hint: "]);
    assert!(!sandbox.path("edits").exists());
}
