//! `mutandis bench run` into a folder that is there: what counts as done, and what is never mixed.
#![allow(missing_docs, clippy::unwrap_used)]
#![cfg(unix)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use common::people::{people, record, results, stories};
use common::{Ran, Sandbox, tree};
use mutandis_bench::gate::Gate;
use mutandis_bench::plan::Plan;
use mutandis_bench::results::{CellInfo, FORMAT, Folder, ModelInfo, RunInfo};
use serde_json::{Value, json};

/// Two parts of two records by `ft-m`, one epoch.
const QUICK: [&str; 12] = [
    "--method",
    "ft-m",
    "--set",
    "epochs=1",
    "--set",
    "layers=[2]",
    "--mode",
    "batch:2",
    "--limit",
    "4",
    "--no-fluency",
    "--json",
];

fn quick<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let usual = ["bench", "run", "--model", model, "--data", "people.jsonl"];
    [&usual[..], &QUICK, more].concat()
}

#[test]
fn a_part_that_is_not_whole_is_made_again() {
    let sandbox = people();
    let model = stories();
    sandbox.run(&quick(&model, &[])).ok();
    let whole = results(&sandbox.path("results"));
    let (part, text) = whole.iter().find(|(path, _)| path.ends_with("00001.jsonl")).unwrap();
    let path = sandbox.path("results").join(part);
    let half = text.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for damaged in [&b""[..], &text[..half], &text[..half + 9], b"null\n"] {
        fs::write(&path, damaged).unwrap();
        sandbox.run(&["bench", "report", "results"]).fails_with(&["00001.jsonl", "run the benchmark again"]);
        let ran = sandbox.run(&quick(&model, &[])).ok();
        assert!(ran.stderr.contains("part 1 of") && ran.stderr.contains("made again"), "{}", ran.stderr);
        assert_eq!(results(&sandbox.path("results")), whole);
    }
    // What it cost may be lost: that is no reason to make it again.
    fs::remove_file(path.with_extension("cost.json")).unwrap();
    let ran = sandbox.run(&quick(&model, &[])).ok();
    assert!(
        !ran.stderr.contains("made again") && !path.with_extension("cost.json").exists(),
        "{}",
        ran.stderr
    );
    sandbox.run(&["bench", "report", "results", "--out", "report"]).ok();
    // What was measured beside the records belongs to a part, too.
    fs::remove_file(path.with_extension("model.json")).unwrap();
    sandbox.run(&["bench", "report", "results"]).fails_with(&["00001.model.json", "hint: "]);
    sandbox.run(&quick(&model, &[])).ok();
    assert_eq!(results(&sandbox.path("results")), whole);
}

#[test]
fn steps_and_torn_files_of_a_killed_run_do_not_stay() {
    let sandbox = people();
    let model = stories();
    let sequence = quick(&model, &["--mode", "sequential"]);
    let sequence: Vec<&str> = sequence.into_iter().filter(|word| *word != "batch:2").collect();
    let at = sequence.iter().position(|word| *word == "--mode").unwrap();
    let sequence = [&sequence[..at], &sequence[at + 1..]].concat();
    sandbox.run(&sequence).ok();
    let cells = sandbox.path("results/cells");
    let cell = fs::read_dir(cells).unwrap().next().unwrap().unwrap().path();
    fs::create_dir(cell.join("00000.steps")).unwrap();
    fs::write(cell.join("00000.steps/00000.json"), "{}").unwrap();
    let [old, new] = [".mutandis-old", ".mutandis-new"].map(|name| cell.join(name));
    for path in [&old, &new] {
        fs::write(path, "torn").unwrap();
    }
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    fs::File::options().write(true).open(&old).unwrap().set_modified(long_ago).unwrap();
    sandbox.run(&sequence).ok();
    assert!(!cell.join("00000.steps").exists() && !old.exists());
    assert!(new.exists(), "another run may be writing it");
}

#[test]
fn files_of_the_users_own_stay() {
    let sandbox = people();
    let model = stories();
    sandbox.run(&quick(&model, &[])).ok();
    let cell = fs::read_dir(sandbox.path("results/cells")).unwrap().next().unwrap().unwrap().path();
    let own = ["results/uv.lock", "results/cells/Cargo.lock"].map(|name| sandbox.path(name));
    let (mine, claim) = (cell.join("notes.lock"), cell.join("00007.lock"));
    for path in own.iter().chain([&mine, &claim]) {
        fs::write(path, "").unwrap();
    }
    sandbox.run(&quick(&model, &[])).ok();
    assert!(own.iter().chain([&mine]).all(|path| path.exists()));
    assert!(!claim.exists(), "nobody makes that part");
}

#[test]
fn a_folder_is_of_the_model_that_was_there_first() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("new");
    let run = |fingerprint: &str| RunInfo {
        format: FORMAT,
        tool: "mutandis".to_owned(),
        model: ModelInfo {
            name: "m.gguf".to_owned(),
            fingerprint: fingerprint.to_owned(),
            family: "llama".to_owned(),
            layers: 2,
        },
    };
    // Both find nothing there; the one that comes second with its first cell writes none.
    let (first, second) = (Folder::open(&dir, &run("a1")).unwrap(), Folder::open(&dir, &run("b2")).unwrap());
    let sandbox = people();
    sandbox.run(&quick(&stories(), &[])).ok();
    let cell = fs::read_dir(sandbox.path("results/cells")).unwrap().next().unwrap().unwrap().path();
    let info: CellInfo = serde_json::from_slice(&fs::read(cell.join("cell.json")).unwrap()).unwrap();
    first.cell("one", &info).unwrap();
    let error = second.cell("two", &info).unwrap_err();
    assert!(error.to_string().contains("holds results of another model: `m.gguf` (a1)"), "{error}");
    assert!(dir.join("cells/one").is_dir() && !dir.join("cells/two").exists());
    for (text, what) in
        [("{\"format\": 2}", "it has no fingerprint of a model"), ("[]", "it has no `format`")]
    {
        fs::write(dir.join("run.json"), text).unwrap();
        let error = Folder::open(&dir, &run("a1")).unwrap_err();
        assert!(error.to_string().contains("is damaged") && error.to_string().contains(what), "{error}");
    }
}

#[test]
fn a_folder_in_place_of_a_part_is_told_before_the_work() {
    let sandbox = people();
    let model = stories();
    sandbox.run(&quick(&model, &[])).ok();
    let cell = fs::read_dir(sandbox.path("results/cells")).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(cell.join("00001.jsonl")).unwrap();
    fs::create_dir(cell.join("00001.jsonl")).unwrap();
    sandbox.run(&quick(&model, &[])).fails_with(&["00001.jsonl", "hint: make it readable, or take it out"]);
}

#[test]
fn results_of_another_version_are_not_added_to() {
    let sandbox = people();
    let model = stories();
    sandbox.run(&quick(&model, &[])).ok();
    let path = sandbox.path("results/run.json");
    let mut run: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    run["tool"] = json!("mutandis 9.9.9");
    fs::write(&path, run.to_string()).unwrap();
    sandbox.run(&quick(&model, &[])).fails_with(&["results of mutandis 9.9.9", "--out"]);
}

#[test]
fn what_is_measured_with_is_part_of_a_cell() {
    let sandbox = people();
    let model = stories();
    let cells = || fs::read_dir(sandbox.path("results/cells")).unwrap().count();
    sandbox.run(&quick(&model, &[])).ok();
    sandbox.run(&quick(&model, &["--weights", "f32"])).ok();
    assert_eq!(cells(), 1, "weights in f32 are those as they are stored");
    sandbox.run(&quick(&model, &["--weights", "bf16"])).ok();
    assert_eq!(cells(), 2, "weights in bf16 are others");
    sandbox.run(&quick(&model, &["--extra", "ppl"])).ok();
    assert_eq!(cells(), 3);
    let snippets = json!([{"relation_id": "P1", "target_id": "Q1", "samples": [{"text": "the sea"}]}]);
    fs::write(sandbox.path("snippets.json"), snippets.to_string()).unwrap();
    // Texts are compared with them, and `quick` writes none.
    let references = ["--references", "snippets.json"];
    sandbox.run(&quick(&model, &references)).fails_with(&["`references`", "measure `strict` with fluency"]);
    let with_texts: Vec<&str> = quick(&model, &[]).into_iter().filter(|arg| *arg != "--no-fluency").collect();
    sandbox.run(&with_texts).ok();
    assert_eq!(cells(), 4);
    sandbox.run(&[&with_texts[..], &references].concat()).ok();
    assert_eq!(cells(), 5);
}

#[test]
fn the_help_names_all_that_has_a_name() {
    let sandbox = people();
    let model = stories();
    let help = sandbox.run(&["bench", "run", "--help"]).ok().stdout;
    let unknown = [
        (&["--data", "nowhere"][..], "one of `"),
        (&["--data", "people.jsonl", "--folder", ".", "--general", "nothing"], "there are `"),
    ];
    for (flags, before) in unknown {
        let ran = sandbox.run(&[&["bench", "run", "--model", &model], flags].concat());
        assert_eq!(ran.code, Some(2), "{ran:?}");
        let (_, names) = ran.stderr.split_once(before).expect("the names are told");
        let names: Vec<&str> = names.split('`').step_by(2).collect();
        assert!(names.len() > 5, "{names:?}");
        for name in names {
            assert!(help.contains(name), "no {name} in the help");
        }
    }
}

#[test]
fn questions_of_a_suite_that_cannot_be_used_are_told() {
    let sandbox = people();
    let model = stories();
    let question = |label: &str| {
        json!({"article": "Tom is here.", "options": ["He is glad.", "He is sad."], "answers": label})
            .to_string()
    };
    fs::create_dir(sandbox.path("glue_eval")).unwrap();
    let lines = ["A", "Z", "B"].map(question).join("\n");
    fs::write(sandbox.path("glue_eval/dialogue.jsonl"), lines).unwrap();
    let suite = ["--folder", ".", "--general", "dialogue"];
    let told = "1 question of dialogue left out: record 2: ";
    let ran = sandbox.run(&quick(&model, &suite)).ok();
    assert!(ran.stderr.contains(told), "{}", ran.stderr);
    // When all is done, nothing is measured again, and that is told all the same.
    let again = sandbox.run(&quick(&model, &suite)).ok();
    assert!(again.stderr.contains(told), "{}", again.stderr);
    assert_eq!(ran.json()["cells"], again.json()["cells"]);
}

#[test]
fn the_unedited_model_is_measured_once_for_all_runs() {
    let sandbox = people();
    let model = stories();
    fs::create_dir(sandbox.path("glue_eval")).unwrap();
    let question =
        json!({"article": "Tom is here.", "options": ["He is glad.", "He is sad."], "answers": "A"});
    fs::write(sandbox.path("glue_eval/dialogue.jsonl"), question.to_string()).unwrap();
    let run = |out: &str| {
        let more = ["--folder", ".", "--general", "dialogue", "--general", "dialogue", "--out", out];
        sandbox.run(&quick(&model, &more)).ok();
        results(&sandbox.path(out))
    };
    let first = run("first");
    let kept = || -> Vec<PathBuf> {
        let all = tree(&sandbox.path(".cache/mutandis")).into_iter();
        let all = all.filter(|f| f.starts_with("answers/") || f.starts_with("whole/"));
        all.map(|f| sandbox.path(".cache/mutandis").join(f)).collect()
    };
    let files = kept();
    // Of four records what was said, of three what the head read where nothing should change; a text,
    // and a suite that is named twice.
    assert_eq!(files.len(), 4 + 3 + 2, "{files:?}");
    let read = || files.iter().map(|f| fs::read(f).unwrap()).collect::<Vec<_>>();
    let whole = read();
    // A line that ends is still what was kept, and shows that it was not written again.
    let marked = |(file, text): (&PathBuf, &Vec<u8>)| {
        let end = if file.extension().unwrap() == "json" { "\n" } else { "" };
        [text, end.as_bytes()].concat()
    };
    let marked: Vec<Vec<u8>> = files.iter().zip(&whole).map(marked).collect();
    for (file, text) in files.iter().zip(&marked) {
        fs::write(file, text).unwrap();
    }
    assert_eq!(run("second"), first);
    assert!(read() == marked);
    // What is damaged is found again.
    for (file, text) in files.iter().zip(&whole) {
        let mut text = text.clone();
        // A bit of a number, or the end of the text.
        if file.extension().unwrap() == "json" {
            text.truncate(text.len() - 1)
        } else {
            text[2] ^= 1
        }
        fs::write(file, text).unwrap();
    }
    assert_eq!(run("third"), first);
    assert!(read() == whole);
    fs::write(sandbox.path("own.txt"), "Lily had a red ball. She went home.").unwrap();
    sandbox.run(&quick(&model, &["--text", "own.txt", "--out", "other"])).ok();
    assert_eq!(kept().len(), files.len() + 1);
}

#[test]
fn what_ships_is_listed_and_printed() {
    let sandbox = Sandbox::new();
    let list = sandbox.run(&["bench", "show"]).ok().stdout;
    let all = sandbox.run(&["bench", "show", "--json"]).ok().json();
    let names: Vec<&str> =
        all.as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["knowedit.toml", "edits.toml", "default"]);
    for (name, line) in names.iter().zip(list.lines()) {
        assert!(line.starts_with(name) && line.ends_with('.'), "{line}");
        fs::write(sandbox.path("printed.toml"), sandbox.run(&["bench", "show", name]).ok().stdout).unwrap();
        let printed = sandbox.path("printed.toml");
        if *name == "default" {
            assert_eq!(Gate::read(&printed).unwrap(), Gate::read(Path::new(name)).unwrap());
        } else {
            assert_eq!(Plan::read(&printed).unwrap(), Plan::read(Path::new(name)).unwrap());
        }
    }
    sandbox
        .run(&["bench", "show", "knowledit.toml"])
        .fails_with(&["`knowledit.toml`", "did you mean `knowedit.toml`?"]);
}

#[test]
fn a_method_without_its_editor_is_left_out_and_the_others_run() {
    let sandbox = people();
    let model = stories();
    let plan = "data = 'people.jsonl'\nlimit = 2\nfluency = false\nseed = [0, 0]\nmethod = ['mend', 'ice']";
    fs::write(sandbox.path("plan.toml"), plan).unwrap();
    let ran = sandbox.run(&["bench", "run", "plan.toml", "--model", &model, "--out", "some", "--json"]).ok();
    let report = ran.json();
    let methods: Vec<&Value> =
        report["cells"].as_array().unwrap().iter().map(|cell| &cell["method"]).collect();
    assert_eq!(methods, [&json!("ice")]);
    for part in ["mend on people is left out", "`mutandis train mend --data FILE`"] {
        assert!(ran.stderr.contains(part), "no {part:?} in {}", ran.stderr);
    }
    // Its part keeps its number, and what is listed twice counts once: the shard of a machine with an editor would make it.
    for (shard, cells) in [("0/2", 0), ("1/2", 1)] {
        let out = format!("shard-{}", &shard[..1]);
        let run = ["bench", "run", "plan.toml", "--model", &model, "--json", "--out", &out, "--shard", shard];
        let report = sandbox.run(&run).ok().json();
        assert_eq!(report["cells"].as_array().unwrap().len(), cells, "{shard}");
    }
}

#[test]
fn what_is_longer_than_the_context_is_left_out_and_the_rest_is_run() {
    let sandbox = people();
    let model = stories();
    let long = "One day, the dog ran. ".repeat(300);
    let mut prompt = record(("Tom", "house"));
    prompt["prompt"] = json!(format!("{long} Tom went to the"));
    let mut probe = record(("Lily", "store"));
    probe["locality"]["near"][0]["prompt"] = json!(long);
    // Where the old answer is told, it is asked about too.
    probe["ground_truth"] = json!("river");
    probe["rephrase_prompt"] = json!(format!("{long} Lily ran to the"));
    // An alias is compared with what is said, and not asked about.
    let mut alias = record(("Max", "sea"));
    alias["portability"]["Reasoning"][0]["ground_truth"] = json!([["sea", long]]);
    let lines = [prompt, probe, alias].map(|record| record.to_string());
    fs::write(sandbox.path("people.jsonl"), lines.join("\n")).unwrap();
    let ran = sandbox.run(&quick(&model, &[])).ok();
    let cell = &ran.json()["cells"][0];
    assert_eq!((&cell["scored"], &cell["failed"]), (&json!(2), &json!(0)), "{cell}");
    for part in ["record 1: its texts are longer than the model's context of 512", "2 questions of people"] {
        assert!(ran.stderr.contains(part), "no {part:?} in {}", ran.stderr);
    }
    let unasked = cell["data"]["unasked"].as_array().unwrap();
    assert!(unasked.iter().all(|told| told["record"] == 2) && unasked.len() == 2, "{unasked:?}");

    // A question to be kept, or another record's answer, spoils no record of Sanitation.
    let forget = |what: &str, answer: &str| json!({"question": what, "subject": what, "ground_truth": answer, "target_new": "I don't know."});
    let set = json!({"K_F": [forget("Tom", "A dog"), forget("Lily", &long)],
        "K_R": [{"question": long, "ground_truth": "A cat"}, {"question": "Max", "ground_truth": "A cow"}]});
    fs::write(sandbox.path("forget.json"), set.to_string()).unwrap();
    let more = ["--data", "forget.json", "--out", "forget"];
    let report = sandbox.run(&quick(&model, &more)).ok().json();
    let cells = report["cells"].as_array().unwrap();
    let cell = cells.iter().find(|cell| cell["data"]["name"] == "forget").unwrap();
    assert_eq!((&cell["scored"], &cell["failed"]), (&json!(1), &json!(0)), "{cell}");
    assert_eq!(cell["after"]["strict"]["locality"]["count"], 1, "{cell}");
    assert_eq!(cell["data"]["unasked"][0]["record"], 1, "{cell}");
}

#[test]
fn a_fact_that_is_to_be_forgotten_is_measured_by_what_is_still_held() {
    let sandbox = people();
    let model = stories();
    let erased = |(name, place): (&str, &str), old: &str| {
        let mut record = record((name, place));
        record["change"] = json!("erase");
        record["ground_truth"] = json!(old);
        record.to_string()
    };
    let lines = [erased(("Tom", "house"), "big river"), erased(("Lily", "store"), "sea")];
    fs::write(sandbox.path("people.jsonl"), lines.join("\n")).unwrap();
    let cell = sandbox.run(&quick(&model, &[])).ok().json()["cells"][0].clone();
    for name in ["extraction-strength", "truth-ratio", "truth-ratio:share"] {
        for side in ["before", "after"] {
            assert_eq!(cell[side]["strict"][name]["count"], 2, "{side} {name}: {cell}");
        }
    }
}

#[test]
fn text_before_prompts_is_before_the_text_of_perplexity_too() {
    let sandbox = people();
    let model = stories();
    let run =
        ["bench", "run", "--model", &model, "--data", "people.jsonl", "--method", "ice", "--limit", "2"];
    let cell = sandbox.run(&[&run[..], &["--no-fluency", "--json"]].concat()).ok().json()["cells"][0].clone();
    let side = |side: &str| cell["perplexity"][side].as_f64().unwrap();
    assert!((side("after") - side("before")).abs() > 0.01, "{cell}");
}

#[test]
fn a_subject_is_asked_for_only_by_methods_that_need_it() {
    let sandbox = people();
    let model = stories();
    // One record of the file, the second, has a subject that is not in its prompt.
    let numbers = |method: &str| -> Vec<u64> {
        let plan = "data = 'people.jsonl'\nlimit = 3\nfluency = false";
        let set = "set = { layer = 2, moment-tokens = 600, prefixes = [1, 1], search = { steps = 2 } }";
        let runs = match method {
            "both" => format!("[[run]]\nmethod = 'r-rome'\n{set}\n[[run]]\nmethod = 'ice'"),
            "r-rome" => format!("method = 'r-rome'\n{set}"),
            other => format!("method = '{other}'"),
        };
        fs::write(sandbox.path("plan.toml"), format!("{plan}\n{runs}")).unwrap();
        let ran = sandbox.run(&["bench", "run", "plan.toml", "--model", &model, "--out", method]).ok();
        let skipped = ran.stderr.contains("Bob");
        assert_eq!(skipped, method != "ice", "{}", ran.stderr);
        let lines = results(&sandbox.path(method));
        let parts = lines.iter().filter(|(path, _)| path.ends_with(".jsonl"));
        let lines: String = parts.map(|(_, lines)| String::from_utf8(lines.clone()).unwrap()).collect();
        let each = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        each.inspect(|record| assert_eq!(record.get("error"), None))
            .map(|record| record["record"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(numbers("r-rome"), [1, 3, 4]);
    assert_eq!(numbers("ice"), [1, 2, 3]);
    // Methods of one plan are compared on the same records.
    assert_eq!(numbers("both"), [1, 3, 4, 1, 3, 4]);
}

/// The only cell of a folder of results.
fn cell(sandbox: &Sandbox, folder: &str) -> std::path::PathBuf {
    fs::read_dir(sandbox.path(folder).join("cells")).unwrap().next().unwrap().unwrap().path()
}

#[test]
fn a_part_that_another_run_is_making_is_waited_for() {
    let sandbox = people();
    let model = stories();
    sandbox.run(&quick(&model, &["--out", "whole"])).ok();
    sandbox.run(&quick(&model, &[])).ok();
    let cell = cell(&sandbox, "results");
    for ending in ["jsonl", "model.json", "cost.json"] {
        fs::remove_file(cell.join("00000").with_extension(ending)).unwrap();
    }
    // As the other run holds it; nobody holds the other one.
    let held = fs::File::create(cell.join("00000.lock")).unwrap();
    held.lock().unwrap();
    fs::write(cell.join("00001.lock"), "").unwrap();
    let mut waiting = sandbox.command(&quick(&model, &[]));
    let waiting = waiting.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!cell.join("00000.jsonl").exists(), "it is another's to make");
    // The other one was killed: it is let go of, and the file stays.
    drop(held);
    let ran = Ran::from(waiting.wait_with_output().unwrap()).ok();
    assert!(ran.stderr.contains("waiting for another run, which is making 1 part"), "{}", ran.stderr);
    assert_eq!(results(&sandbox.path("results")), results(&sandbox.path("whole")));
}

#[test]
fn runs_side_by_side_into_one_folder_share_the_work() {
    let sandbox = people();
    let model = stories();
    for mode in ["batch:1", "sequential"] {
        let more = ["--mode", mode, "--limit", "6"];
        let words: Vec<&str> = quick(&model, &[]);
        let at = words.iter().position(|word| *word == "--mode").unwrap();
        let words: Vec<&str> = [&words[..at], &words[at + 4..], &more].concat();
        sandbox.run(&[&words[..], &["--out", "whole"]].concat()).ok();
        let start = || {
            let mut command = sandbox.command(&words);
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let all = [start(), start(), start()];
        for one in all {
            Ran::from(one.wait_with_output().unwrap()).ok();
        }
        assert_eq!(results(&sandbox.path("results")), results(&sandbox.path("whole")), "{mode}");
    }
}

#[test]
fn what_a_method_cannot_edit_by_is_refused_before_anything_is_run() {
    let sandbox = people();
    let model = stories();
    for (method, setting, parts) in [
        ("rome", "layer=999", ["`rome`", "999"]),
        ("ft-m", "epochs=0", ["`ft-m`: `epochs` is 0", "25 are common"]),
        ("ft-m", "layers=[]", ["`ft-m`", "`layers`"]),
        ("lora", "rank=5000", ["`lora`: the rank is 5000", "lower the rank"]),
        ("memit", "layers=[3,2]", ["`memit`: `layers` is [3, 2]", "ascending"]),
        ("ultraedit", "layers=[77]", ["`ultraedit`", "77"]),
        ("kn", "most=0", ["`kn`: `most` is 0", "20"]),
        ("ice", "template=Fact", ["`ice`: the template `Fact`", "`{}`"]),
    ] {
        let words = ["bench", "run", "--model", &model, "--data", "people.jsonl", "--method", method];
        sandbox.run(&[&words[..], &["--set", setting]].concat()).fails_with(&parts);
        assert!(!sandbox.path("results").exists(), "{method}");
    }
}

#[test]
fn a_disk_that_fills_costs_nothing_that_is_done() {
    let sandbox = people();
    let model = stories();
    sandbox.run(&quick(&model, &["--out", "whole"])).ok();
    let whole = results(&sandbox.path("whole"));
    let most = whole.values().map(Vec::len).max().unwrap();
    // No file may be longer than that, in blocks of 512 bytes: at first nothing fits, then all but one.
    for blocks in [0, most / 512 - 1] {
        let limited = sandbox.command(&quick(&model, &[]));
        let mut shell = std::process::Command::new("sh");
        shell.arg("-c").arg(format!("ulimit -f {blocks}; exec \"$0\" \"$@\""));
        shell.arg(limited.get_program()).args(limited.get_args()).current_dir(sandbox.path("."));
        shell.env_clear().envs(limited.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Ran::from(shell.output().unwrap()).fails_with(&["File too large", "hint: free some space"]);
        let left = results(&sandbox.path("results"));
        assert!(left.iter().all(|(path, bytes)| whole.get(path) == Some(bytes)), "half a file is there");
    }
    sandbox.run(&quick(&model, &[])).ok();
    assert_eq!(results(&sandbox.path("results")), whole);
}

#[test]
fn texts_whose_fluency_is_measured_are_kept_as_they_were_written() {
    let sandbox = people();
    let model = stories();
    let words: Vec<&str> = quick(&model, &[]).into_iter().filter(|word| *word != "--no-fluency").collect();
    sandbox.run(&words).ok();
    let text = fs::read_to_string(cell(&sandbox, "results").join("00000.jsonl")).unwrap();
    for line in text.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let written: Vec<&Value> =
            record["probes"].as_array().unwrap().iter().filter(|p| p["role"] == "generation").collect();
        let kinds: Vec<&Value> = written.iter().map(|p| &p["kind"]).collect();
        assert_eq!(kinds, ["compat", "nucleus", "greedy"]);
        let prompt = record["edits"][0][0].as_str().unwrap();
        for (text, protocol, score) in [
            (written[0], "compat", "fluency"),
            (written[1], "strict", "fluency"),
            (written[2], "strict", "fluency:greedy"),
        ] {
            assert_eq!(text["prompt"], prompt);
            for side in ["before", "after"] {
                let own = mutandis_bench::fluency::fluency(text[side].as_str().unwrap());
                assert_eq!(record[side][protocol][score], json!(own), "{side} {protocol} {score}");
            }
        }
        assert!(written[0]["after"].as_str().unwrap().starts_with(prompt), "the peer scores the prompt too");
    }
}

#[test]
fn answers_right_after_an_edit_are_kept_beside_those_at_the_end() {
    let sandbox = people();
    let model = stories();
    let words = quick(&model, &[]);
    let at = words.iter().position(|word| *word == "--mode").unwrap();
    let words = [&words[..at + 1], &["sequential"], &words[at + 2..]].concat();
    sandbox.run(&words).ok();
    let text = fs::read_to_string(cell(&sandbox, "results").join("00000.jsonl")).unwrap();
    let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let probes = || records.iter().flat_map(|record| record["probes"].as_array().unwrap());
    assert!(probes().all(|probe| probe["immediate"].is_string()));
    // After the last edit no other has come.
    let last = records.last().unwrap()["probes"].as_array().unwrap();
    assert!(last.iter().all(|probe| probe["immediate"] == probe["after"]));
}
