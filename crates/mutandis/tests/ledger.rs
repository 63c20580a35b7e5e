//! `mutandis patch list|add|revert|log|merge|diff`, as users run them: killed, at once, on full
//! disks, and on the wrong files.
#![allow(missing_docs, clippy::unwrap_used)]
#![cfg(unix)]

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Ran, Sandbox, noise, tree};
use mutandis::edit::{Fact, Ledger, Patch, find};
use mutandis::engine::{Model, Options};
use serde_json::{Value, json};

const NAMES: [&str; 9] = ["Lily", "Tom", "Max", "Sam", "Mia", "Ben", "Sue", "Jack", "Anna"];

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name).to_str().unwrap().to_owned()
}

fn stories() -> String {
    fixture("stories260K.gguf")
}

/// A patch that is a prompt, as it takes no time, saved as `NUMBER.p`.
fn prompt(sandbox: &Sandbox, model: &Model, number: usize) -> String {
    let name = NAMES[number % 9];
    let fact = Fact::new(format!("On day {number}, {name} had a"), name, "cat").unwrap();
    let ice = find("ice").unwrap();
    let patch = Patch::new(model, ice.id, ice.family, ice.defaults(), &[fact], 0).unwrap();
    let patch = Patch { prefix: Some(format!("On day {number}, {name} had a cat. ")), ..patch };
    patch.save(&sandbox.path(&format!("{number}.p"))).unwrap();
    format!("{number}.p")
}

fn model() -> Model {
    Model::load(Path::new(&stories()), Options { threads: Some(1), ..Options::default() }).unwrap()
}

/// An edit on top of a ledger, quick on the small model.
fn edit(sandbox: &Sandbox, ledger: &str, name: &str, target: &str, more: &[&str]) -> Ran {
    let prompt = format!("One day, {name} went to the");
    let model = stories();
    let usual = ["edit", &prompt, "--subject", name, "--to", target, "--model", &model, "--ledger", ledger];
    let quick = ["--set", "layer=2", "--set", "prefixes=[1,1]", "--set", "moment-tokens=600"];
    sandbox.run(&[&usual[..], &quick, more].concat())
}

fn stack(sandbox: &Sandbox, ledger: &str) -> Vec<String> {
    let list = sandbox.run(&["patch", "list", ledger, "--json"]).ok().json();
    list["patches"].as_array().unwrap().iter().map(|p| p["id"].as_str().unwrap().to_owned()).collect()
}

fn logprobs(sandbox: &Sandbox, patch: &[&str]) -> Value {
    let model = stories();
    let asked = ["ask", "One day, Tom went to the", "--model", &model, "--json"];
    let patch: Vec<&str> = patch.iter().flat_map(|p| ["--patch", p]).collect();
    sandbox.run(&[&asked[..], &patch].concat()).ok().json()["top"].clone()
}

#[test]
fn edits_join_a_ledger_and_leave_it_as_if_they_had_never_been() {
    let sandbox = Sandbox::new();
    let first = edit(&sandbox, "a", "Lily", "sea", &["--json"]).ok().json();
    assert!(Path::new(&sandbox.path(first["patch"].as_str().unwrap())).exists());
    for ledger in ["a", "b"] {
        edit(&sandbox, ledger, "Tom", "house", &["--method", "rome"]).ok();
        edit(&sandbox, ledger, "Max", "zoo", &[]).ok();
    }
    let text = sandbox.run(&["patch", "list", "a"]).ok().stdout;
    for part in ["fact", "One day, Lily went to the → sea", "rome", "(on those before)"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    let model = stories();
    let ran = sandbox.run(&["patch", "revert", "a", "1", "--model", &model]).ok();
    assert!(ran.stderr.contains("computed anew") && ran.stdout.contains("taken out"), "{ran:?}");
    assert_eq!(stack(&sandbox, "a"), stack(&sandbox, "b"));
    assert_eq!(logprobs(&sandbox, &["a"]), logprobs(&sandbox, &["b"]));
    assert_ne!(logprobs(&sandbox, &["a"]), logprobs(&sandbox, &[]));
    let same = sandbox.run(&["patch", "diff", "a", "b", "--json"]).ok().json();
    assert_eq!(same["same"], true, "{same}");
    // All out again: the unedited model.
    let fact = ["patch", "revert", "a", "--fact", "Tom went", "--model", &model, "--json"];
    let out = sandbox.run(&fact).ok().json();
    assert_eq!((out["out"].as_array().unwrap().len(), out["patches"].as_u64()), (1, Some(1)), "{out}");
    let id = stack(&sandbox, "a")[0].clone();
    sandbox.run(&["patch", "revert", "a", &id[..8]]).ok();
    assert_eq!(logprobs(&sandbox, &["a"]), logprobs(&sandbox, &[]));
    let log = sandbox.run(&["patch", "log", "a"]).ok().stdout;
    assert_eq!((log.matches("add").count(), log.matches("revert").count()), (3, 3), "{log}");
}

#[test]
fn conflicts_are_told_before_a_patch_joins_and_measured() {
    let sandbox = Sandbox::new();
    edit(&sandbox, "a", "Tom", "house", &[]).ok();
    let edited = edit(&sandbox, "a", "Tom", "sea", &["--json"]).ok().json();
    let found = &edited["conflicts"]["found"];
    assert_eq!((found.as_array().unwrap().len(), &found[0]["kind"]), (1, &json!("contradiction")), "{found}");
    assert!(found[0]["cosine"].as_f64().unwrap() > 0.99, "the same prompt has the same key: {found}");
    assert_eq!(edited["conflicts"]["metrics"]["2"], "moments");
    let measured = edited["conflicts"]["interference"].as_array().unwrap();
    let of = |target: &str| measured.iter().find(|m| m["target"] == target).unwrap();
    let moved = |target: &str| of(target)["after"].as_f64().unwrap() - of(target)["before"].as_f64().unwrap();
    assert!(moved("sea") > 0.0 && moved("house") < 0.0, "{measured:?}");

    // The same by files, without the model and with it.
    let file = |number: usize| {
        let ledger = Ledger::open(&sandbox.path("a")).unwrap();
        ledger.place(&ledger.stack()[number].id).to_str().unwrap().to_owned()
    };
    sandbox.run(&["patch", "add", "b", &file(0)]).ok();
    let added = sandbox.run(&["patch", "add", "b", &file(1), "--no-measure", "--json"]).ok().json();
    assert_eq!(added["conflicts"]["found"][0]["kind"], "contradiction", "{added}");
    assert_eq!(added["conflicts"]["interference"], json!([]));
    sandbox.run(&["patch", "add", "c", &file(0)]).ok();
    let text = sandbox.run(&["patch", "add", "c", &file(1), "--model", &stories()]).ok().stdout;
    for part in ["conflict: ", "contradicts", "under the moments", "% → "] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    // What is not in the cache is compared plainly, and that is said.
    std::fs::remove_dir_all(sandbox.path(".cache")).unwrap();
    sandbox.run(&["patch", "add", "d", &file(0)]).ok();
    let ran = sandbox.run(&["patch", "add", "d", &file(1)]).ok();
    assert!(ran.stdout.contains("plain: no moments are known"), "{ran:?}");
    assert!(ran.stderr.contains("is not measured"), "{ran:?}");
    // Others are in no conflict.
    let other = edit(&sandbox, "a", "Anna", "zoo", &["--json", "--close", "1"]).ok().json();
    assert_eq!(other["conflicts"]["found"], json!([]), "{other}");
}

#[test]
fn two_ledgers_are_merged_and_contradictions_stop_it() {
    let sandbox = Sandbox::new();
    let model = stories();
    edit(&sandbox, "a", "Lily", "sea", &[]).ok();
    std::process::Command::new("cp").args(["-r", "a", "b"]).current_dir(sandbox.path(".")).status().unwrap();
    edit(&sandbox, "a", "Tom", "house", &[]).ok();
    edit(&sandbox, "b", "Tom", "zoo", &[]).ok();
    let before = stack(&sandbox, "a");
    let stopped = sandbox.run(&["patch", "merge", "a", "b", "--model", &model]);
    assert_eq!(stopped.code, Some(1), "{stopped:?}");
    assert!(stopped.stdout.contains("contradicts") && stopped.stdout.contains("--force"), "{stopped:?}");
    assert_eq!(stack(&sandbox, "a"), before);
    sandbox.run(&["patch", "revert", "b", "2"]).ok();
    edit(&sandbox, "b", "Max", "river", &[]).ok();
    sandbox.run(&["patch", "revert", "b", "1", "--model", &model]).ok();
    let merged = sandbox.run(&["patch", "merge", "a", "b", "--model", &model, "--json"]).ok().json();
    assert_eq!(merged["out"].as_array().unwrap().len(), 1, "{merged}");
    assert_eq!(merged["patches"], 2);
    let diff = sandbox.run(&["patch", "diff", "a", "b"]).ok().stdout;
    assert!(diff.contains("- One day, Tom went to the → house") && diff.contains("of layer 2"), "{diff}");
    sandbox.run(&["patch", "merge", "a", "b"]).ok();
    assert!(sandbox.run(&["patch", "merge", "a", "b"]).ok().stdout.contains("nothing new"));
}

/// The stack and the whole of a ledger as commands tell them, where it can be read at all.
fn state(sandbox: &Sandbox) -> Vec<String> {
    if !sandbox.path("a/journal.jsonl").exists() { vec![] } else { stack(sandbox, "a") }
}

/// Whether a stack is what an operation comes to.
type Expected = Box<dyn Fn(&[String]) -> bool>;

#[test]
fn a_process_that_is_killed_leaves_the_state_before_or_after() {
    let sandbox = Sandbox::new();
    let base = model();
    let files: Vec<String> = (0..60).map(|i| prompt(&sandbox, &base, i)).collect();
    let numbers = noise(5, 400);
    let mut numbers = numbers.iter().map(|x| usize::from(*x));
    let mut next = move || numbers.next().unwrap();
    // Another ledger to merge from, with patches of its own.
    let others: Vec<&str> = files[50..].iter().map(String::as_str).collect();
    sandbox.run(&[&["patch", "add", "other", "--no-measure"], &others[..]].concat()).ok();
    let whole = Instant::now();
    sandbox.run(&["patch", "list", "other"]).ok();
    // How long a process may live; brought to where one half ends and the other does not.
    let mut span = whole.elapsed().max(Duration::from_millis(4)) * 2;
    let (mut before, mut after, mut taken) = (0, 0, 0);
    for _ in 0..40 {
        let was = state(&sandbox);
        let (arguments, now): (Vec<String>, Expected) = match next() % 3 {
            0 | 1 if taken < 48 => {
                let batch = files[taken..taken + 2].to_vec();
                taken += 2;
                let count = was.len() + 2;
                (
                    [vec!["add".to_owned(), "a".to_owned(), "--no-measure".to_owned()], batch].concat(),
                    Box::new(move |is: &[String]| is.len() == count),
                )
            }
            2 if was.len() > 2 => {
                let number = next() % was.len();
                let mut left = was.clone();
                left.remove(number);
                let arguments = ["revert", "a", &(number + 1).to_string()].map(str::to_owned).to_vec();
                (arguments, Box::new(move |is: &[String]| is == left))
            }
            _ if !was.is_empty() => {
                let arguments = ["merge", "a", "other", "--force"].map(str::to_owned).to_vec();
                let count = was.len();
                (arguments, Box::new(move |is: &[String]| is.len() == count + 10 || is.len() == count))
            }
            _ => continue,
        };
        let arguments: Vec<&str> =
            ["patch"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
        let mut child =
            sandbox.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(span * u32::try_from(next()).unwrap() / 256);
        child.kill().unwrap();
        child.wait().unwrap();
        let is = state(&sandbox);
        assert!(is == was || now(&is), "{arguments:?}: {was:?} became {is:?}");
        if is != was {
            (after, span) = (after + 1, span * 4 / 5);
        } else if arguments[1] != "merge" {
            (before, span) = (before + 1, span * 5 / 4);
        }
        if !is.is_empty() {
            let ledger = Ledger::open(&sandbox.path("a")).unwrap();
            assert!(ledger.stack().iter().all(|record| ledger.load(record).is_ok()));
        }
    }
    assert!(before > 3 && after > 3, "killed too early or too late to tell: {before} before, {after} after");
    // The next writer clears up what was left lying about. Patches that are whole stay, whether or not
    // the journal names them: it might have been cut off by something else.
    sandbox.run(&["patch", "add", "a", "--no-measure", &files[49]]).ok();
    for lying in tree(&sandbox.path("a/patches")) {
        assert!(Patch::load(&sandbox.path("a/patches").join(&lying)).is_ok(), "{lying}");
    }
    assert_eq!(tree(&sandbox.path("a")).iter().filter(|f| f.contains(".mutandis-")).count(), 0);
}

#[test]
fn of_two_writers_one_waits_or_is_told() {
    let sandbox = Sandbox::new();
    let base = model();
    let files: Vec<String> = (0..9).map(|i| prompt(&sandbox, &base, i)).collect();
    sandbox.run(&["patch", "add", "a", &files[8]]).ok();
    let add = |file: &str, more: &[&str]| {
        let arguments = [&["patch", "add", "a", file, "--no-measure"], more].concat();
        sandbox.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let children: Vec<_> = files[..7].iter().map(|file| add(file, &[])).collect();
    children.into_iter().for_each(|child| drop(Ran::from(child.wait_with_output().unwrap()).ok()));
    assert_eq!(stack(&sandbox, "a").len(), 8);

    let lock = File::options().write(true).open(sandbox.path("a/lock")).unwrap();
    lock.lock().unwrap();
    let told = Ran::from(add(&files[7], &["--no-wait"]).wait_with_output().unwrap());
    told.fails_with(&["another process is writing to the ledger `a`", "hint: ", "--no-wait"]);
    // Readers wait for nobody.
    assert_eq!(stack(&sandbox, "a").len(), 8);
    let mut waiting = add(&files[7], &[]);
    let mut line = String::new();
    BufReader::new(waiting.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("waiting for it"), "{line}");
    assert!(waiting.try_wait().unwrap().is_none());
    drop(lock);
    assert!(waiting.wait().unwrap().success());
    assert_eq!(stack(&sandbox, "a").len(), 9);
}

/// Runs a command with a limit on the size of files, which stands for a full disk.
fn limited(sandbox: &Sandbox, blocks: usize, arguments: &str) -> Ran {
    let command =
        format!("trap '' XFSZ; ulimit -f {blocks}; exec '{}' {arguments}", env!("CARGO_BIN_EXE_mutandis"));
    let mut shell = std::process::Command::new("/bin/sh");
    shell.args(["-c", &command]).env_clear().env("HOME", sandbox.path(".")).current_dir(sandbox.path("."));
    Ran::from(shell.output().unwrap())
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fills_is_told_and_nothing_is_lost() {
    let sandbox = Sandbox::new();
    let base = model();
    let files: Vec<String> = (0..40).map(|i| prompt(&sandbox, &base, i)).collect();
    // No room for a patch: its file is what fails.
    sandbox.run(&["patch", "add", "a", &files[0]]).ok();
    let before = tree(&sandbox.path("a/patches"));
    limited(&sandbox, 1, &format!("patch add a {} --no-measure", files[1])).fails_with(&[
        "cannot write",
        ".patch.safetensors`",
        "hint: free some space",
    ]);
    assert_eq!((stack(&sandbox, "a").len(), tree(&sandbox.path("a/patches"))), (1, before));
    // Room for a patch, and none for the journal's next line.
    let most: Vec<&str> = files[1..30].iter().map(String::as_str).collect();
    sandbox.run(&[&["patch", "add", "a", "--no-measure"], &most[..]].concat()).ok();
    let journal = std::fs::read(sandbox.path("a/journal.jsonl")).unwrap();
    let blocks = journal.len() / 512 + 1;
    let ran = (30..34).map(|i| limited(&sandbox, blocks, &format!("patch add a {} --no-measure", files[i])));
    let failed: Vec<Ran> = ran.filter(|ran| ran.code != Some(0)).collect();
    assert!(failed.len() >= 2, "the limit was never met");
    failed.into_iter().for_each(|ran| drop(ran.fails_with(&["`a/journal.jsonl`", "hint: free some space"])));
    let ledger = Ledger::open(&sandbox.path("a")).unwrap();
    assert!(ledger.stack().len() < 34 && ledger.stack().iter().all(|r| ledger.load(r).is_ok()));
    assert_eq!(tree(&sandbox.path("a/patches")).len(), ledger.stack().len(), "a file was left");
    sandbox.run(&["patch", "add", "a", "--no-measure", &files[39]]).ok();
}

#[test]
fn what_cannot_be_done_says_why_and_changes_nothing() {
    let sandbox = Sandbox::new();
    let base = model();
    let other = Model::load(Path::new(&fixture("llama.gguf")), Options::default()).unwrap();
    let file = prompt(&sandbox, &base, 0);
    sandbox.run(&["patch", "add", "a", &file]).ok();
    let foreign = prompt(&sandbox, &other, 1);
    let fails = |arguments: &[&str], parts: &[&str]| drop(sandbox.run(arguments).fails_with(parts));
    let journal = || std::fs::read(sandbox.path("a/journal.jsonl")).unwrap();
    let before = journal();
    fails(&["patch", "add", "a", &foreign], &["another base", "hint: "]);
    fails(&["patch", "add", "a", &file], &["in the stack already", "hint: "]);
    fails(&["patch", "add", "a", "gone.p"], &["`gone.p`", "hint: "]);
    fails(&["patch", "add", ".", &file], &["is not empty", "hint: "]);
    fails(&["patch", "revert", "a", "7"], &["`7`", "it has 1", "patch list"]);
    fails(&["patch", "revert", "a", "zz"], &["`zz`", "patch list"]);
    fails(&["patch", "revert", "a", "--fact", "no such"], &["`no such`", "patch list"]);
    fails(&["patch", "revert", "a", "--fact", " "], &["is blank", "patch list"]);
    // A ledger that would begin with it is none.
    let on_others = Patch { under: Some("0".repeat(64)), ..Patch::load(&sandbox.path(&file)).unwrap() };
    on_others.save(&sandbox.path("on-others.p")).unwrap();
    fails(&["patch", "add", "new", "on-others.p"], &["on top of other patches", "--independent"]);
    assert!(!sandbox.path("new").exists());
    // Found out before the work: the model is not even looked for.
    let edit = ["edit", "x", "--to", "y", "--model", "gone.gguf", "--ledger"];
    fails(&[&edit[..], &["."]].concat(), &["`.` is no ledger", "is not empty", "hint: "]);
    fails(&[&edit[..], &[&file]].concat(), &["is a file, expected the folder of a ledger"]);
    fails(&["patch", "list", "gone"], &["`gone` is no ledger", "patch add"]);
    fails(&["patch", "merge", "a", "gone"], &["`gone` is no ledger", "hint: "]);
    fails(&["patch", "add", "a", &file, "--close", "2"], &["--close"]);
    let (model, llama) = (stories(), fixture("llama.gguf"));
    let ask = |model: &str, parts: &[&str]| fails(&["ask", "x", "--patch", "a", "--model", model], parts);
    ask(&llama, &["the ledger `a`", "another base", "--model"]);
    fails(&["ask", "x", "--patch", ".", "--model", &model], &["is no ledger", "hint: "]);
    assert_eq!(journal(), before);
    // A patch inside that was tampered with is refused when it is used, and can be taken out.
    let record = Ledger::open(&sandbox.path("a")).unwrap().stack()[0].clone();
    let inside = Ledger::open(&sandbox.path("a")).unwrap().place(&record.id);
    Patch { seed: 9, ..Patch::load(&inside).unwrap() }.save(&inside).unwrap();
    ask(&model, &["holds another patch", "hint: "]);
    let bytes = std::fs::read(&inside).unwrap();
    std::fs::write(&inside, &bytes[..bytes.len() - 1]).unwrap();
    ask(&model, &["is not a valid patch", "hint: restore it", "patch revert"]);
    sandbox.run(&["patch", "revert", "a", "1"]).ok();
    // A copy elsewhere is the same ledger.
    std::fs::rename(sandbox.path("a"), sandbox.path("moved")).unwrap();
    assert!(stack(&sandbox, "moved").is_empty());
}

#[test]
fn a_ledger_is_verified_and_shown_whole() {
    let sandbox = Sandbox::new();
    let base = model();
    let patches: Vec<Patch> = (0..3).map(|i| tiny(&base, i)).collect();
    for (i, patch) in patches.iter().enumerate() {
        patch.save(&sandbox.path(&format!("{i}.p"))).unwrap();
    }
    sandbox.run(&["patch", "add", "a", "0.p", "1.p", "2.p", "--no-measure"]).ok();
    let model = stories();
    let verify = |rest: &[&str]| sandbox.run(&[&["patch", "verify", "a", "--model", &model], rest].concat());
    assert!(verify(&[]).ok().stdout.contains("`a` is whole and belongs to this model: 3 patches"));
    // The gate is held against the whole of it, and against the model's weights, not what files say:
    // there ‖W‖ is 1 for all.
    std::fs::write(sandbox.path("gate.toml"), "efficacy = 0\nkept = 0\nnorm = 1e9").unwrap();
    let report = verify(&["--gate", "gate.toml", "--keep", "A bird saw a", "--json"]).ok().json();
    assert_eq!((&report["patches"], &report["gate"]["passed"]), (&json!(3), &json!(true)));
    let checks = report["gate"]["checks"].as_array().unwrap();
    let check = |name: &str| checks.iter().find(|check| check["name"] == name).unwrap();
    assert_eq!((&check("efficacy")["count"], &check("norm")["count"]), (&json!(3), &json!(1)));
    let (id, sum) = (patches[0].weights[0].0, patches[0].weights[0].1.clone());
    let sum = patches[1..].iter().fold(sum, |sum, patch| sum.plus(&patch.weights[0].1));
    let weight = base.weight(id.role, id.layer).unwrap();
    let ratio = sum.norm() / weight.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let measured = check("norm")["measured"].as_f64().unwrap();
    assert!((measured / ratio - 1.0).abs() < 1e-6, "{measured} is not {ratio}");
    verify(&["--gate", "gate.toml", "--patch", "0.p"]).fails_with(&["is a ledger", "leave out `--patch`"]);

    let shown = sandbox.run(&["patch", "show", "a", "--json"]).ok().json();
    assert_eq!(shown["patches"].as_array().unwrap().len(), 3);
    assert_eq!(shown["patches"][1]["id"], json!(patches[1].id().unwrap()));
    let text = sandbox.run(&["patch", "show", "a"]).ok().stdout;
    for part in ["On day 0, Lily went to the → zoo", "On day 2, ", "file     a/patches/"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    sandbox
        .run(&["patch", "card", "a", "--model", &model])
        .fails_with(&["a card is of one patch", "--patch a"]);

    // What is wrong is told of all.
    let place = |i: usize| {
        let ledger = Ledger::open(&sandbox.path("a")).unwrap();
        ledger.place(&ledger.stack()[i].id)
    };
    std::fs::remove_file(place(2)).unwrap();
    verify(&[]).fails_with(&["is gone", "patch revert"]);
    std::fs::write(place(0), "x").unwrap();
    verify(&[]).fails_with(&["2 patches of the ledger are not sound, 1, 3; ", "hint: restore it"]);
}

#[test]
fn a_patch_that_does_not_fit_the_model_does_not_join() {
    use mutandis::edit::patch::WeightChange;
    let sandbox = Sandbox::new();
    let base = model();
    tiny(&base, 0).save(&sandbox.path("0.p")).unwrap();
    sandbox.run(&["patch", "add", "a", "0.p"]).ok();
    // In conflict with the first, so that the model is looked at.
    let mut bad = tiny(&base, 0);
    bad.facts[0].target = "sea".into();
    bad.weights[0].1 = WeightChange::Dense { out: 1, inn: 2, delta: vec![1.0, 2.0] };
    bad.save(&sandbox.path("bad.p")).unwrap();
    sandbox
        .run(&["patch", "add", "a", "bad.p", "--model", &stories()])
        .fails_with(&["the patch changes `mlp-out` of layer 2 with shape [1, 2], the model has ["]);
    assert_eq!(stack(&sandbox, "a").len(), 1);
    // Of patches that begin a ledger together, too.
    tiny(&base, 1).save(&sandbox.path("1.p")).unwrap();
    let mut other = tiny(&base, 1);
    other.facts[0].target = "sea".into();
    other.save(&sandbox.path("other.p")).unwrap();
    let added = sandbox.run(&["patch", "add", "new", "1.p", "other.p", "--model", &stories()]).ok().stdout;
    assert!(added.contains("contradicts") && added.contains("added 2"), "{added}");
}

/// A change of rank one with a key, as quick to make as it is to read.
fn tiny(model: &Model, number: usize) -> Patch {
    use mutandis::edit::patch::{Norms, WeightChange};
    use mutandis::engine::{WeightId, architecture::Role};
    let name = NAMES[number % 9];
    let fact = Fact::new(format!("On day {number}, {name} went to the"), name, "zoo").unwrap();
    let rome = find("rome").unwrap();
    let mut patch = Patch::new(model, rome.id, rome.family, rome.defaults(), &[fact], 0).unwrap();
    let id = WeightId { layer: 2, role: Role::MlpOut };
    let [out, inn] = model.linear_shape(id.role, id.layer).unwrap();
    let bytes = noise(number as u64, out + 2 * inn);
    let numbers: Vec<f32> = bytes.iter().map(|b| f32::from(*b) / 256.0 - 0.5).collect();
    let (left, rest) = numbers.split_at(out);
    let (right, key) = rest.split_at(inn);
    let change = WeightChange::LowRank { rank: 1, left: left.to_vec(), right: right.to_vec() };
    // `push` would measure the weight anew each time.
    patch.norms.push(Norms { weight: id, delta: change.norm(), base: 1.0 });
    patch.weights.push((id, change));
    patch.keys.insert(2, key.to_vec());
    patch
}

/// Seconds of processors that ended processes took.
fn children() -> f64 {
    // SAFETY: the structure is plain numbers, and the call fills it.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
        usage
    };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// The largest time that a command on a stack of 10,000 patches may take, in seconds: half of what
/// people take for at once.
const AT_ONCE: f64 = 0.05;

#[test]
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what it measures is told")]
#[ignore = "a check of release builds on a machine with nothing else to do: it takes a minute, and times"]
fn ten_thousand_patches_are_listed_added_and_reverted_at_once() {
    let sandbox = Sandbox::new();
    let path = std::env::var("MUTANDIS_TEST_MODELS").unwrap_or_else(|_| "../../../models".into());
    let path = Path::new(&path).join("SmolLM2-135M-Instruct.Q4_1.gguf");
    let base = if path.exists() {
        Model::load(&path, Options::default()).unwrap()
    } else {
        eprintln!("there is no `{}`: timed on the little model", path.display());
        model()
    };
    let count = 10_000;
    let first = tiny(&base, 0);
    let mut writer =
        mutandis::edit::ledger::Writer::open(&sandbox.path("a"), Some(&first.base), &mut || panic!())
            .unwrap();
    let started = Instant::now();
    let patches: Vec<Patch> = (0..count).map(|i| tiny(&base, i)).collect();
    let made = started.elapsed();
    // As they come: some at once, most one by one, as the last thousand are here.
    writer.add(&patches[..9_000], false).unwrap();
    patches[9_000..].iter().for_each(|patch| drop(writer.add(std::slice::from_ref(patch), false).unwrap()));
    drop(writer);
    println!(
        "made in {:.1} s, added in {:.1} s",
        made.as_secs_f64(),
        (started.elapsed() - made).as_secs_f64()
    );
    let bytes = std::fs::metadata(Ledger::open(&sandbox.path("a")).unwrap().place(&patches[0].id().unwrap()));
    println!("{} bytes a patch", bytes.unwrap().len());
    for i in 0..7 {
        tiny(&base, count + i).save(&sandbox.path(&format!("{i}.p"))).unwrap();
    }
    let timed = |arguments: &[&str]| {
        let (started, before) = (Instant::now(), children());
        sandbox.run(arguments).ok();
        let times = (started.elapsed().as_secs_f64(), children() - before);
        println!("{}: {:.3} s, {:.3} s of processors", arguments.join(" "), times.0, times.1);
        times.0
    };
    // The first makes the index.
    timed(&["patch", "add", "a", "0.p"]);
    let nothing = (0..5).map(|_| timed(&["--version"])).fold(f64::INFINITY, f64::min);
    println!("a process that does nothing: {nothing:.3} s");
    let best = |what: &str, commands: Vec<Vec<String>>| {
        let times = commands.iter().map(|c| timed(&c.iter().map(String::as_str).collect::<Vec<_>>()));
        let times: Vec<f64> = times.collect();
        let best = times.iter().copied().fold(f64::INFINITY, f64::min);
        println!("{what}: {best:.3} s at best of {times:.3?}");
        best
    };
    let each = |of: &dyn Fn(usize) -> Vec<String>| (1..7).map(of).collect::<Vec<_>>();
    let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<String>>();
    let all = [
        best("list", each(&|_| words(&["patch", "list", "a"]))),
        best("list --json", each(&|_| words(&["patch", "list", "a", "--json"]))),
        best("add", each(&|i| words(&["patch", "add", "a", &format!("{i}.p")]))),
        best("revert", each(&|i| words(&["patch", "revert", "a", &(i * 1000).to_string()]))),
    ];
    assert!(all.iter().all(|seconds| *seconds <= AT_ONCE), "{all:.3?}");
}
