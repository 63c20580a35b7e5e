//! Names of cells and tasks: no two are the same, and they say what differs.

use std::collections::BTreeSet;

use super::*;

fn labels(results: &Results) -> Vec<String> {
    let (run, cells) = results.read();
    let mut all: Vec<String> = Report::new(&run, &cells).cells.iter().map(|c| c.label()).collect();
    all.sort();
    all
}

/// A cell of as many records as its info says, each right.
fn add(results: &Results, info: &CellInfo) -> String {
    let records: Vec<RecordResult> = info.records.iter().map(|&r| strict(r, &[("edit", 1.0)])).collect();
    results.small(info, &records)
}

fn rome(count: usize, seed: u64, settings: Value) -> CellInfo {
    CellInfo { seed, settings, ..info("rome", "zsre", Form::Facts, Mode::Batch(5), count) }
}

#[test]
fn cells_of_one_method_are_named_by_what_differs() {
    let results = Results::new();
    add(&results, &rome(1, 0, json!({"layers": [2], "search": {"steps": 5}})));
    add(&results, &rome(1, 1, json!({"layers": [2], "search": {"steps": 5}})));
    assert_eq!(labels(&results), ["rome, 5 at once (seed 0)", "rome, 5 at once (seed 1)"]);
    // Both what differs in the seed and what differs in the settings.
    add(&results, &rome(1, 1, json!({"layers": [2], "search": {"steps": 9}})));
    assert_eq!(
        labels(&results),
        [
            "rome, 5 at once (seed 0, search.steps=5)",
            "rome, 5 at once (seed 1, search.steps=5)",
            "rome, 5 at once (seed 1, search.steps=9)"
        ]
    );
}

#[test]
fn cells_are_named_by_records_and_protocols() {
    let results = Results::new();
    let protocols = BTreeMap::from([("strict".to_owned(), "free answers".to_owned())]);
    add(&results, &rome(2, 0, json!({})));
    add(&results, &CellInfo { protocols, ..rome(1, 0, json!({})) });
    assert_eq!(
        labels(&results),
        [
            "rome, 5 at once (1 record, no compat, with strict)",
            "rome, 5 at once (2 records, with compat, no strict)"
        ]
    );
}

#[test]
fn cells_that_nothing_else_tells_apart_have_their_hash() {
    let results = Results::new();
    let ids: Vec<String> = [None, Some("0a1b2c".to_owned())]
        .map(|text| add(&results, &CellInfo { text, ..rome(1, 0, json!({"a": "x"})) }))
        .to_vec();
    let mut expected: Vec<String> =
        ids.iter().map(|id| format!("rome, 5 at once ({})", &id[id.len() - 10..])).collect();
    expected.sort();
    assert_eq!(labels(&results), expected);
    // Settings that agree in all that there is room to show.
    let results = Results::new();
    for end in [1, 2] {
        add(&results, &rome(1, 0, json!({"text": format!("{}{end}", "long ".repeat(20))})));
    }
    let all = labels(&results);
    let bare = "rome, 5 at once ()".len();
    assert!(all[0] != all[1] && all.iter().all(|label| label.len() == bare + 10), "{all:?}");
}

#[test]
fn every_row_option_and_task_has_a_name_of_its_own() {
    let results = Results::new();
    for (seed, steps) in [(0, 5), (1, 5), (1, 9)] {
        for count in [1, 2] {
            add(&results, &rome(count, seed, json!({"steps": steps})));
        }
    }
    // Another file of the same name, and methods that are told apart by a sign.
    let mut other = rome(1, 0, json!({"steps": 5}));
    other.data.version = "ffff718b0b00".into();
    add(&results, &other);
    for method in ["a-b", "a_b"] {
        add(&results, &info(method, "zsre", Form::Facts, Mode::Single, 1));
    }
    let (run, cells) = results.read();
    let report = Report::new(&run, &cells);
    let tasks: Value = serde_json::from_str(&report.lm_eval().unwrap()).unwrap();
    for section in ["results", "configs", "versions", "n-shot", "n-samples", "higher_is_better"] {
        assert_eq!(tasks[section].as_object().unwrap().len(), 9, "{section}");
    }
    let in_tasks: BTreeSet<&str> = tasks["configs"]
        .as_object()
        .unwrap()
        .values()
        .map(|config| config["metadata"]["cell"].as_str().unwrap())
        .collect();
    assert_eq!(in_tasks.len(), 9, "every cell has a task");

    let data = browser(&report.html().unwrap());
    let options = data["cells"].as_array().unwrap().iter().map(|c| (c["label"].clone(), c["data"].clone()));
    let options: BTreeSet<String> = options.map(|(label, data)| format!("{label} {data}")).collect();
    assert_eq!(options.len(), 9, "{options:?}");

    let markdown = report.markdown();
    let cost = &markdown[markdown.find("## Cost").unwrap()..];
    let rows: BTreeSet<&str> = cost.lines().filter(|l| l.contains("zsre")).collect();
    assert_eq!(rows.len(), 9, "{cost}");
}

#[test]
fn lm_evals_layout_has_every_score() {
    let results = Results::knowedit();
    let (run, cells) = results.read();
    let report = Report::new(&run, &cells);
    let document: Value = serde_json::from_str(&report.lm_eval().unwrap()).unwrap();
    let task = "knowedit_wiki_recent_rome_single";
    let is_it = |c: &&mutandis_bench::report::Summary| c.data.name == "wiki_recent" && c.method == "rome";
    let at = report.cells.iter().find(is_it).unwrap();
    let found = &document["results"][task];
    assert_eq!(found["alias"], task);
    assert_eq!(found["edit_success,none"], json!(at.after.compat["edit"].mean));
    assert_eq!(found["edit_success_stderr,none"], json!(at.after.compat["edit"].stderr.unwrap()));
    assert_eq!(found["portability_reasoning,strict"], json!(at.after.strict["portability/Reasoning"].mean));
    assert_eq!(document["n-samples"][task], json!({"original": 20, "effective": 19}));
    assert_eq!(
        (&document["n-shot"][task], &document["higher_is_better"][task]["edit_success"]),
        (&json!(0), &json!(true))
    );
    // One more for the suite, and one for the perplexity.
    assert_eq!(document["results"].as_object().unwrap().len(), cells.len() + 2);
    assert!(document["results"].get("knowedit_zsre_memit_sequential").is_some());
}

#[test]
fn suites_and_perplexity_are_tasks_of_their_own() {
    let results = Results::new();
    let suite = SuiteInfo { questions: 250, measure: "acc_norm".into(), version: "77aa".into() };
    let general = BTreeMap::from([("piqa".to_owned(), suite)]);
    let info = CellInfo { general, ..info("rome", "zsre", Form::Facts, Mode::Single, 20) };
    let model = |piqa| ModelResult {
        measured: 1,
        perplexity: Some([20.0, 40.0]),
        general: BTreeMap::from([("piqa".into(), [0.6, piqa])]),
        ..ModelResult::default()
    };
    let records: Vec<RecordResult> = info.records.iter().map(|&r| strict(r, &[("edit", 0.9)])).collect();
    let id = results.add(&info, &records, &[model(0.5), model(0.4)], 2);
    let (.., tasks) = reported(&results);
    let name = "knowedit_zsre_rome_single_piqa";
    let found = &tasks["results"][name];
    let number = |key: &str| found[key].as_f64().unwrap();
    assert!((number("acc_norm,none") - 0.45).abs() < 1e-12, "{found}");
    assert!((number("unedited_acc_norm,none") - 0.6).abs() < 1e-12, "{found}");
    assert!(number("acc_norm_stderr,none") > 0.0, "two edited models differ");
    assert_eq!(tasks["n-samples"][name], json!({"original": 250, "effective": 250}));
    assert_eq!(tasks["higher_is_better"][name], json!({"acc_norm": true, "unedited_acc_norm": true}));
    let config = &tasks["configs"][name];
    assert_eq!(
        (&config["task"], &config["dataset_name"], &config["dataset_version"]),
        (&json!(name), &json!("piqa"), &json!("77aa"))
    );
    assert_eq!((&config["metadata"]["cell"], &config["metadata"]["edited_models"]), (&json!(id), &json!(2)));
    assert_eq!((&tasks["versions"][name], &tasks["n-shot"][name]), (&json!(2), &json!(0)));

    let name = "knowedit_zsre_rome_single_perplexity";
    let found = &tasks["results"][name];
    assert!((found["perplexity,none"].as_f64().unwrap() - 40.0).abs() < 1e-9, "{found}");
    assert_eq!(found["perplexity_stderr,none"], json!(0.0), "both are the same");
    assert_eq!(tasks["higher_is_better"][name]["perplexity"], json!(false));
    // Records that all score the same have no error, to the last digit.
    assert_eq!(tasks["results"]["knowedit_zsre_rome_single"]["edit_success_stderr,strict"], json!(0.0));
}

#[test]
fn no_score_is_lost_to_another_of_nearly_its_name() {
    let results = Results::new();
    let scores = [
        ("portability:f1", 0.1),
        ("portability/f1", 0.2),
        ("portability/Reasoning", 0.3),
        ("portability/reasoning", 0.4),
        ("portability/a b", 0.5),
        ("portability/a_b", 0.6),
    ];
    let cell = info("rome", "zsre", Form::Facts, Mode::Single, 1);
    results.small(&cell, &[strict(1, &scores)]);
    let (run, cells) = results.read();
    let document: Value = serde_json::from_str(&Report::new(&run, &cells).lm_eval().unwrap()).unwrap();
    let task = document["results"].as_object().unwrap().values().next().unwrap().as_object().unwrap();
    let told = task.iter().filter(|(key, _)| key.starts_with("portability") && !key.contains("stderr"));
    let mut values: Vec<f64> = told.map(|(_, value)| value.as_f64().unwrap()).collect();
    values.sort_by(f64::total_cmp);
    assert_eq!(values, scores.map(|(_, value)| value));
    assert_eq!(task["portability_f1,strict"], 0.1, "a measure keeps its name");
}
