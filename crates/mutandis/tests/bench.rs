//! `mutandis bench`: runs that are killed, cut into shards, broken into, and reported.
#![allow(missing_docs, clippy::unwrap_used)]
#![cfg(unix)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::Sandbox;
use common::people::{PEOPLE, people, record, results, run, stories};
use mutandis_bench::results::FORMAT;
use serde_json::{Value, json};

#[test]
fn every_mode_is_scored_in_both_protocols() {
    let sandbox = people();
    let model = stories();
    for (mode, method, layers, turns) in [
        ("single", "r-rome", "layer=2", None),
        ("batch:2", "memit", "layers=[1,2]", None),
        ("sequential", "memit", "layers=[1,2]", Some(3)),
        ("sequential:2", "memit", "layers=[1,2]", Some(2)),
    ] {
        let more = ["--method", method, "--mode", mode, "--set", layers, "--limit", "3", "--json"];
        let report = sandbox.run(&run(&model, &more)).ok().json();
        let cell = &report["cells"][0];
        assert_eq!((&cell["records"], &cell["failed"]), (&json!(3), &json!(0)), "{cell}");
        assert_eq!(cell["method"], method);
        let skipped = cell["data"]["skipped"].as_array().unwrap();
        assert_eq!((skipped.len(), &skipped[0]["record"]), (1, &json!(2)));
        for protocol in ["compat", "strict"] {
            for score in ["edit", "rephrase", "portability", "portability/Reasoning", "locality", "fluency"] {
                let found = &cell["after"][protocol][score];
                let most = if score == "fluency" { 20.0 } else { 1.0 };
                assert!(
                    (0.0..=most).contains(&found["mean"].as_f64().unwrap()),
                    "{protocol} {score}: {found}"
                );
                assert_eq!(found["count"], 3, "{protocol} {score}");
            }
        }
        assert!(cell["after"]["strict"]["locality:kl"]["mean"].as_f64().unwrap() > 0.0);
        assert!(cell["perplexity"]["before"].as_f64().unwrap() > 1.0);
        assert_eq!(cell["retention"].as_array().map(Vec::len), turns, "{cell}");
        assert_eq!(cell["immediate"]["compat"]["edit"]["count"] == 3, turns.is_some());
    }
    // Only one protocol, and no texts.
    let more = ["--method", "r-rome", "--set", "layer=2", "--limit", "2", "--json", "--protocol", "strict"];
    let report =
        sandbox.run(&run(&model, &[&more[..], &["--no-fluency", "--out", "strict"]].concat())).ok().json();
    let after = &report["cells"][0]["after"];
    assert_eq!(after["compat"], json!({}));
    assert_eq!((after["strict"]["fluency"].is_null(), after["strict"]["edit"].is_null()), (true, false));
}

#[test]
fn a_model_that_collapses_in_a_sequence_is_told_when_it_does() {
    let sandbox = people();
    let model = stories();
    let opinion = |topic: &str| json!({"ent": topic, "pos": [" I like it."], "neg": [" It is bad."]});
    let opinions = json!([opinion("Tom"), opinion("Lily"), opinion("Max"), opinion("Ben")]);
    std::fs::write(sandbox.path("opinions.json"), opinions.to_string()).unwrap();
    for (data, out, with_success) in [("people.jsonl", "facts", true), ("opinions.json", "topics", false)] {
        let more = ["--mode", "sequential", "--limit", "3", "--no-fluency", "--json", "--out", out];
        let usual = [
            "bench",
            "run",
            "--model",
            &model,
            "--data",
            data,
            "--method",
            "ft-m",
            "--set",
            "learning-rate=1",
        ];
        let all = [&usual[..], &["--set", "layers=[2]"], &more[..]].concat();
        let ran = sandbox.run(&all).ok();
        let cell = &ran.json()["cells"][0];
        let points = cell["retention"].as_array().unwrap();
        assert_eq!(points.len(), 3, "{cell}");
        for point in points {
            assert!(point["perplexity"].is_f64(), "{point}");
            assert_eq!(point["compat"]["edit"].is_f64(), with_success, "{point}");
        }
        let edits = cell["collapsed"].as_u64().unwrap_or_else(|| panic!("{cell}"));
        let first = points.iter().find(|p| {
            p["perplexity"].as_f64().unwrap() > 4.0 * cell["perplexity"]["before"].as_f64().unwrap()
        });
        assert_eq!(first.unwrap()["edits"], edits);
        assert!(
            ran.stderr.contains(&format!("after {edits} edits the model has collapsed")),
            "{}",
            ran.stderr
        );
    }
}

#[test]
fn a_sequence_is_measured_on_the_way_as_at_its_end() {
    let sandbox = people();
    let model = stories();
    // By EasyEdit's functions for edits that are a prompt, and by those for weights.
    for more in [["--method", "ice", "--out", "prompt"], ["--method", "ft-m", "--out", "weights"]] {
        let usual = ["--mode", "sequential", "--limit", "4", "--no-fluency", "--json"];
        let usual =
            [&["bench", "run", "--model", &model, "--data", "people.jsonl"][..], &usual, &more].concat();
        let report = sandbox.run(&usual).ok().json();
        let cell = &report["cells"][0];
        let [on_the_way, at_the_end] =
            [&cell["retention"][3]["compat"]["edit"], &cell["after"]["compat"]["edit"]["mean"]];
        assert_eq!(on_the_way.as_f64().unwrap(), at_the_end.as_f64().unwrap(), "{cell}");
    }
    sandbox.run(&["bench", "report", "prompt"]).ok();
    let page = std::fs::read_to_string(sandbox.path("prompt/report.html")).unwrap();
    assert!(page.contains("ice †</text>"), "curves of other functions are marked");
}

#[test]
fn a_record_that_contradicts_another_of_its_batch_is_left_out_alone() {
    let sandbox = people();
    let people = std::fs::read_to_string(sandbox.path("people.jsonl")).unwrap();
    let people: Vec<&str> = people.lines().filter(|line| !line.contains("Bob")).collect();
    let people = people.join("\n");
    // Lily is to go to the store, and then to the sea.
    std::fs::write(sandbox.path("people.jsonl"), format!("{people}\n{}", record(("Lily", "sea")))).unwrap();
    for (mode, failed) in [("batch:10", 1), ("sequential:10", 1), ("batch:9", 0), ("single", 0)] {
        let more = ["--method", "ft-m", "--mode", mode, "--limit", "20", "--json", "--no-fluency"];
        let usual = ["bench", "run", "--model", &stories(), "--data", "people.jsonl", "--set", "epochs=1"];
        let report = sandbox.run(&[&usual[..], &more, &["--set", "layers=[2]"]].concat()).ok().json();
        let cell = &report["cells"][0];
        assert_eq!((&cell["records"], &cell["failed"]), (&json!(10), &json!(failed)), "{mode}: {cell}");
        assert_eq!(cell["after"]["compat"]["edit"]["count"], 10 - failed, "{mode}");
    }
    let failures: Vec<String> = results(&sandbox.path("results"))
        .into_iter()
        .filter(|(path, _)| path.ends_with(".jsonl"))
        .flat_map(|(_, text)| String::from_utf8(text).unwrap().lines().map(str::to_owned).collect::<Vec<_>>())
        .filter(|line| line.contains("\"error\""))
        .collect();
    assert_eq!(failures.len(), 2, "{failures:?}");
    assert!(
        failures
            .iter()
            .all(|f| f.contains("`store` and `sea`") && f.contains("record 2 and record 10 contradict")),
        "{failures:?}"
    );
}

/// Every mode at once: single edits, batches, and sequences, of two methods.
const PLAN: &str = r#"
data = "people.jsonl"
limit = 9
set = { layers = [1, 2], moment-tokens = 600, prefixes = [1, 1], search = { steps = 3 } }
method = "memit"
mode = ["batch:2", "single", "sequential", "sequential:4"]
"#;

#[test]
fn a_run_that_is_killed_again_and_again_ends_as_if_it_never_was() {
    let sandbox = people();
    let model = stories();
    std::fs::write(sandbox.path("plan.toml"), PLAN).unwrap();
    let to =
        |out: &'static str| ["bench", "run", "plan.toml", "--model", &model, "--out", out].map(str::to_owned);
    let started = Instant::now();
    let whole = to("whole");
    sandbox.run(&whole.each_ref().map(String::as_str)).ok();
    let whole_run = started.elapsed();
    let expected = results(&sandbox.path("whole"));
    assert!(expected.keys().filter(|path| path.ends_with(".jsonl")).count() == 8, "{:?}", expected.keys());

    // Kills at ten moments of its course; what is kept makes each try shorter.
    let torn = to("torn");
    let torn = torn.each_ref().map(String::as_str);
    for i in 1..=10u32 {
        let mut child = sandbox.command(&torn).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole_run * i / 12 / if i > 5 { 3 } else { 1 });
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let ran = sandbox.run(&torn).ok();
    assert_eq!(results(&sandbox.path("torn")), expected, "{ran:?}");
    // Now all is there, and nothing is made again.
    let before = results(&sandbox.path("torn"));
    let started = Instant::now();
    sandbox.run(&torn).ok();
    assert!(started.elapsed() < whole_run.max(Duration::from_secs(2)));
    assert_eq!(results(&sandbox.path("torn")), before);
}

#[test]
fn shards_merged_are_the_whole() {
    let sandbox = people();
    let model = stories();
    std::fs::write(sandbox.path("plan.toml"), PLAN).unwrap();
    let run = |out: &str, more: &[&str]| {
        let usual = ["bench", "run", "plan.toml", "--model", &model, "--out", out];
        sandbox.run(&[&usual[..], more].concat()).ok();
    };
    run("whole", &[]);
    let expected = results(&sandbox.path("whole"));
    let mut merged = BTreeMap::new();
    for shard in ["0/3", "1/3", "2/3"] {
        let out = format!("shard-{}", &shard[..1]);
        run(&out, &["--shard", shard]);
        let own = results(&sandbox.path(&out));
        assert!(own.len() < expected.len(), "{shard} made everything");
        merged.extend(own);
    }
    assert_eq!(merged, expected);
}

#[test]
fn reports_are_written_and_end_as_they_began() {
    let sandbox = people();
    let model = stories();
    sandbox.run(&run(&model, &["--method", "r-rome", "--set", "layer=2", "--limit", "2"])).ok();
    let table = sandbox.run(&["bench", "report", "results"]).ok().stdout;
    assert!(table.contains("r-rome") && table.contains("people"), "{table}");
    let read = |name: &str| std::fs::read(sandbox.path("results").join(name)).unwrap();
    let names = ["report.html", "report.md", "report.json", "lm-eval.json"];
    let first = names.map(read);
    sandbox.run(&["bench", "report", "results"]).ok();
    assert_eq!(names.map(read), first);
}

#[test]
fn edits_that_fail_are_told_with_the_way_out_and_counted() {
    let sandbox = people();
    let usual =
        ["bench", "run", "--model", &stories(), "--data", "people.jsonl", "--limit", "2"].map(str::to_owned);
    let usual: Vec<&str> = usual.iter().map(String::as_str).collect();
    // Without an editor the method cannot begin; others that are asked for do.
    let way_out = "`mutandis train mend --data FILE`";
    sandbox.run(&[&usual[..], &["--method", "mend"]].concat()).fails_with(&[way_out]);
    let both = ["--method", "mend", "--method", "ft-m", "--protocol", "compat", "--no-fluency", "--json"];
    let ran = sandbox.run(&[&usual[..], &both].concat()).ok();
    assert_eq!(ran.json()["cells"].as_array().map(Vec::len), Some(1));
    assert!(ran.stderr.contains("mend on people is left out") && ran.stderr.contains(way_out), "{ran:?}");

    // Where every edit fails, the answer is no; where one is made, it is yes.
    let absent = |name: &str| json!({"prompt": "Once upon a time", "subject": name, "target_new": "there"});
    std::fs::write(sandbox.path("absent.json"), json!([absent("Bob"), absent("Joe")]).to_string()).unwrap();
    let model = stories();
    let more = ["--data", "absent.json", "--method", "rome", "--set", "layer=2", "--out", "absent", "--json"];
    let ran = sandbox.run(&[&["bench", "run", "--model", &model][..], &more].concat());
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let cell = &ran.json()["cells"][0];
    assert_eq!((&cell["failed"], &cell["scored"]), (&json!(2), &json!(0)));
    for part in ["2 edits by rome on absent failed", "the subject `Bob` is not in the prompt"] {
        assert!(ran.stderr.contains(part), "no {part:?} in {}", ran.stderr);
    }
}

/// The settings of every cell of a folder, by the cell's name.
fn settings(folder: &Path) -> Vec<(String, Value)> {
    let cells = results(folder).into_iter().filter(|(path, _)| path.ends_with("cell.json"));
    let mut all: Vec<(String, Value)> = cells
        .map(|(_, text)| {
            let mut cell: Value = serde_json::from_slice(&text).unwrap();
            (cell["method"].as_str().unwrap().to_owned(), cell["settings"].take())
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[test]
fn settings_of_the_command_are_laid_over_those_of_every_run() {
    let sandbox = people();
    let model = stories();
    let plan = r#"
        data = "people.jsonl"
        limit = 1
        protocol = "compat"
        fluency = false
        [[run]]
        method = "r-rome"
        set = { layer = 2, moment-tokens = 600, prefixes = [1, 1], search = { steps = 3 } }
        [[run]]
        method = "rome"
        set = { layer = 1, moment-tokens = 600, prefixes = [1, 1], search = { steps = 4 } }
    "#;
    std::fs::write(sandbox.path("plan.toml"), plan).unwrap();
    let usual = ["bench", "run", "plan.toml", "--model", &model];
    // Of a setting that is given twice the last counts.
    let more = ["--set", "search.clamp=2", "--set", "search.clamp=3"];
    sandbox.run(&[&usual[..], &more].concat()).ok();
    let found = settings(&sandbox.path("results"));
    let told = |(method, s): &(String, Value)| {
        let number = |value: &Value| value.as_f64().unwrap();
        (method.clone(), [&s["layer"], &s["search"]["steps"], &s["search"]["clamp"]].map(number))
    };
    let expected = [("r-rome", [2.0, 3.0, 3.0]), ("rome", [1.0, 4.0, 3.0])];
    let expected = expected.map(|(method, numbers)| (method.to_owned(), numbers));
    assert_eq!(found.iter().map(told).collect::<Vec<_>>(), expected);
    // Every method of every run has to know it, `all` and those beside it too.
    let refused = ["no setting `layr`", "did you mean"];
    sandbox.run(&[&usual[..], &["--set", "layr=3"]].concat()).fails_with(&refused);
    let all = ["--method", "all", "--method", "rome", "--set", "clamp=3"];
    let ran = sandbox.run(&[&usual[..], &all].concat()).fails_with(&["`search.clamp`"]);
    assert!(ran.stderr.contains("`r-rome` has no setting `clamp`"), "{}", ran.stderr);
}

#[test]
fn a_data_set_is_the_same_however_its_path_is_written() {
    let sandbox = people();
    std::fs::copy(sandbox.path("people.jsonl"), sandbox.path("people")).unwrap();
    let (model, absolute) = (stories(), sandbox.path("people.jsonl"));
    let names = ["people.jsonl", "./people.jsonl", "people", "./people", absolute.to_str().unwrap()];
    for data in names {
        let usual = ["bench", "run", "--model", &model, "--data", data, "--limit", "1", "--json"];
        let more = ["--method", "ft-m", "--set", "layers=[2]", "--set", "epochs=1", "--protocol", "compat"];
        let report = sandbox.run(&[&usual[..], &more, &["--no-fluency"]].concat()).ok().json();
        assert_eq!(report["cells"][0]["data"]["name"], "people", "{data}");
    }
    assert_eq!(std::fs::read_dir(sandbox.path("results/cells")).unwrap().count(), 1);
}

#[test]
fn a_shard_with_nothing_to_do_says_so_and_is_no_failure() {
    let sandbox = people();
    let model = stories();
    let shard = |shard: &str, more: &[&str]| {
        let usual = ["--method", "memit", "--set", "layers=[1,2]", "--limit", "2", "--mode", "batch:2"];
        let usual = [&usual[..], &["--protocol", "compat", "--no-fluency", "--shard", shard], more].concat();
        sandbox.run(&run(&model, &usual)).ok()
    };
    let nothing = "shard 2/3 has nothing to do: the run has 1 part";
    let ran = shard("2/3", &[]);
    assert!(ran.stderr.contains(nothing) && ran.stdout.is_empty(), "{ran:?}");
    assert_eq!(shard("2/3", &["--json"]).json()["cells"], json!([]));
    // What others have made into the folder is told all the same.
    assert!(!shard("0/3", &[]).stderr.contains("nothing to do"));
    let ran = shard("2/3", &["--json"]);
    assert!(ran.stderr.contains(nothing), "{ran:?}");
    assert_eq!(ran.json()["cells"].as_array().map(Vec::len), Some(1));
}

#[test]
fn records_that_were_left_out_are_named_once_with_why() {
    let sandbox = people();
    let people = std::fs::read_to_string(sandbox.path("people.jsonl")).unwrap();
    std::fs::write(sandbox.path("people.jsonl"), format!("not json\n{people}")).unwrap();
    let model = stories();
    let more = ["--method", "rome", "--method", "r-rome", "--set", "layer=2", "--limit", "2"];
    let quick = ["--protocol", "compat", "--no-fluency"];
    let ran = sandbox.run(&run(&model, &[&more[..], &quick].concat())).ok();
    let note = "2 records of people left out: record 1: line 1: expected ident (column 2); record 3: ";
    assert_eq!(ran.stderr.matches(note).count(), 1, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("`Bob`") && ran.stderr.contains("`mutandis data check FILE --all`"),
        "{ran:?}"
    );
}

#[test]
fn what_is_asked_for_in_vain_is_told_before_a_model_is_loaded() {
    let sandbox = people();
    std::fs::write(sandbox.path("seed.toml"), "seed = -1\ndata = 'people.jsonl'\nmethod = 'rome'").unwrap();
    let usual = ["bench", "run", "--model", "gone.gguf"];
    let fails = |more: &[&str], parts: &[&str]| {
        sandbox.run(&[&usual[..], more].concat()).fails_with(parts);
    };
    let judge = ["--judge", "http://127.0.0.1:1/v1", "--judge-model", "wise", "--protocol", "compat"];
    let data = ["--data", "people.jsonl"];
    fails(&[&data[..], &judge].concat(), &["no free answers to judge", "hint: ", "`strict`"]);
    fails(&[&data[..], &["--general-limit", "5"]].concat(), &["no suite", "`--general`"]);
    fails(&[&data[..], &["--folder", "gone"]].concat(), &["the folder `gone` does not exist", "hint: "]);
    fails(&[&data[..], &["--references", "gone.json"]].concat(), &["`gone.json`", "hint: "]);
    fails(
        &["seed.toml"],
        &["the plan `seed.toml`: `seed` of the plan is -1: expected a whole number from 0"],
    );
}

#[test]
fn data_sets_are_checked_by_name_too() {
    let sandbox = Sandbox::new();
    let hub = sandbox.path("hub");
    let sandbox = sandbox.with("HF_HUB_CACHE", hub.to_str().unwrap());
    let cached = "hub/datasets--zjunlp--KnowEdit/snapshots/main/benchmark/WikiBio/wikibio-test-all.json";
    for path in ["data/ZsRE-test-all.json", cached] {
        std::fs::create_dir_all(sandbox.path(path).parent().unwrap()).unwrap();
        std::fs::write(sandbox.path(path), json!([record(PEOPLE[0])]).to_string()).unwrap();
    }
    let text = sandbox.run(&["data", "check", "ZSRE", "--folder", "data"]).ok().stdout;
    assert!(text.contains("data/ZsRE-test-all.json") && text.contains("1 of 1 can be used"), "{text}");
    let found = sandbox.run(&["data", "check", "wikibio", "--json"]).ok().json();
    assert_eq!(found["file"], sandbox.path(cached).to_str().unwrap());
    sandbox
        .run(&["data", "check", "gone.jsonl"])
        .fails_with(&["the data set `gone.jsonl` is not found", "hint: "]);
    sandbox.run(&["data", "check", "zrse"]).fails_with(&["`zrse` is not found", "did you mean `zsre`?"]);
    sandbox.run(&["data", "check", "zsre", "--folder", "gone"]).fails_with(&["`gone` does not exist"]);
}

#[test]
fn what_cannot_be_run_is_told_before_anything_is() {
    let sandbox = people();
    let model = stories();
    std::fs::create_dir(sandbox.path("used")).unwrap();
    std::fs::write(sandbox.path("used/notes.txt"), "mine").unwrap();
    for (name, text) in [
        ("unknown.toml", "method = 'rmoe'\ndata = 'people.jsonl'"),
        ("key.toml", "metod = 'rome'\ndata = 'people.jsonl'"),
        ("torn.toml", "method = "),
        ("broken.jsonl", "{\"prompt\": \n not json"),
        ("empty.jsonl", ""),
        ("empty.txt", ""),
    ] {
        std::fs::write(sandbox.path(name), text).unwrap();
    }
    let usual = ["bench", "run", "--model", &model];
    let fails = |more: &[&str], parts: &[&str]| {
        sandbox.run(&[&usual[..], more].concat()).fails_with(parts);
    };
    fails(&["unknown.toml"], &["`rmoe`", "did you mean `rome`?"]);
    fails(&["key.toml"], &["`key.toml`", "`metod`", "did you mean `method`?"]);
    fails(&["torn.toml"], &["`torn.toml`", "hint: "]);
    fails(&["gone.toml"], &["`gone.toml`", "hint: "]);
    fails(&[], &["no data set", "--data"]);
    fails(&["--data", "broken.jsonl"], &["`broken.jsonl`", "hint: "]);
    fails(&["--data", "empty.jsonl"], &["`empty.jsonl`", "begins with nothing"]);
    fails(&["--data", "zrse"], &["`zrse`", "zsre"]);
    fails(&["--data", "people.jsonl", "--mode", "batch:0"], &["`0` is no size", "--mode"]);
    fails(&["--data", "people.jsonl", "--mode", "often"], &["`single`", "--mode"]);
    fails(&["--data", "people.jsonl", "--limit", "0"], &["`limit` is 0", "hint: "]);
    fails(&["--data", "people.jsonl", "--text", "gone.txt"], &["`gone.txt`", "hint: "]);
    fails(&["--data", "people.jsonl", "--text", "empty.txt"], &["`empty.txt`", "two tokens", "`--text`"]);
    fails(&["--data", "people.jsonl", "--shard", "3/3"], &["no shard 3 of 3"]);
    fails(&["--data", "people.jsonl", "--set", "layr=3"], &["`layr`", "did you mean"]);
    fails(&["--data", "people.jsonl", "--out", "used"], &["`used` is not empty", "--out"]);
    fails(&["--data", "people.jsonl", "--general", "piqa"], &["`piqa`", "--folder"]);
    // An error of the plan's names it, one of the flags does not.
    std::fs::write(sandbox.path("odd.toml"), "data = 'people.jsonl'\n[[run]]\nmethod = 'rmoe'").unwrap();
    fails(&["odd.toml"], &["the plan `odd.toml`: `[[run]]` 1: there is no method `rmoe`", "`rome`"]);
    fails(&["odd.toml", "--method", "kn", "--mode", "batch:0"], &["error: invalid value 'batch:0'"]);
    fails(&["odd.toml", "--method", "romme"], &["error: `[[run]]` 1: there is no method `romme`"]);
    assert_eq!(std::fs::read_dir(sandbox.path("used")).unwrap().count(), 1);
    assert!(!sandbox.path("results").exists());

    // A folder of another model's results is not written to, nor one of a newer version.
    let run_info = |fingerprint: &str, format: u32| {
        json!({"format": format, "tool": "mutandis", "model":
            {"name": "other", "fingerprint": fingerprint, "family": "llama", "layers": 2}})
        .to_string()
    };
    for (name, info, part) in [
        ("other", run_info("0000aaaa", FORMAT), "another model: `other` (0000aaaa)"),
        ("newer", run_info("0000aaaa", 99), "format 99"),
    ] {
        std::fs::create_dir(sandbox.path(name)).unwrap();
        std::fs::write(sandbox.path(name).join("run.json"), info).unwrap();
        fails(&["--data", "people.jsonl", "--out", name], &[part, "--out"]);
    }
    sandbox.run(&["bench", "report", "used"]).fails_with(&["`used`", "run.json"]);
}

#[test]
fn every_form_of_record_is_edited_and_scored() {
    let sandbox = Sandbox::new();
    let model = stories();
    let opinion =
        |topic: &str| json!({"ent": topic, "pos": [" I like it. ", " It is fun."], "neg": [" It is bad. "]});
    let question = |what: &str, answer: &str| {
        json!({"question": format!("What does {what} like?"), "subject": what, "ground_truth": answer,
            "target_new": "I don't know."})
    };
    let rewrite = |subject: &str, new: &str, old: &str| {
        json!({"prompt": "One day, {} went to the", "subject": subject, "relation_id": "P1",
            "target_new": {"str": new, "id": "Q1"}, "target_true": {"str": old, "id": "Q2"}})
    };
    let files = [
        ("opinions.json", json!([opinion("Tom"), opinion("Lily"), opinion("Max")])),
        (
            "forget.json",
            json!({"K_F": [question("Tom", "Cheese"), question("Lily", "Birds")],
                "K_R": [question("Max", "Milk"), question("Ben", "Tea")]}),
        ),
        (
            "counter.json",
            json!([{"requested_rewrite": rewrite("Tom", "sea", "park"), "paraphrase_prompts": ["Then Tom ran to the"],
                "neighborhood_prompts": ["One day, Ben went to the"], "attribute_prompts": ["Max went to the"],
                "generation_prompts": ["Tom was", "Tom was", "Tom had"]}]),
        ),
        (
            "hops.json",
            json!([{"requested_rewrite": [rewrite("Tom", "sea", "park"), rewrite("Lily", "zoo", "park")],
                "questions": ["Where did Tom and Lily go?"], "new_answer": "sea", "new_answer_alias": ["the sea"]}]),
        ),
    ];
    let mut plan = "method = ['ice', 'ft-m']\nset = {}\ndata = [".to_owned();
    for (name, content) in &files {
        std::fs::write(sandbox.path(name), content.to_string()).unwrap();
        plan += &format!("'{name}', ");
    }
    std::fs::write(sandbox.path("plan.toml"), plan + "]\n").unwrap();
    let report = sandbox.run(&["bench", "run", "plan.toml", "--model", &model, "--json"]).ok().json();
    let cells = report["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 8);
    let has = |cell: &Value, protocol: &str, names: &[&str]| {
        let scores = &cell["after"][protocol];
        for name in names {
            let count = scores[name]["count"].as_u64().unwrap_or(0);
            assert_eq!(count, cell["records"].as_u64().unwrap(), "{protocol} {name}: {scores}");
        }
    };
    for cell in cells {
        assert_eq!(cell["failed"], 0, "{cell}");
        has(cell, "strict", &["edit", "fluency"]);
        let (compat, strict): (&[&str], &[&str]) = match cell["data"]["name"].as_str().unwrap() {
            "opinions" => (&["edit", "locality:kl"], &["locality", "locality:kl"]),
            "forget" => {
                (&["edit", "locality", "fluency"], &["locality", "extraction-strength", "truth-ratio"])
            }
            "counter" => (
                &["edit", "rephrase", "locality"],
                &["efficacy", "generalization", "specificity", "score"][..3],
            ),
            _ => (&["edit", "portability/multi-hop"], &["portability", "edit:f1"]),
        };
        has(cell, "compat", compat);
        has(cell, "strict", strict);
    }
}
