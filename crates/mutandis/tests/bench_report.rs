//! `bench report`, as a user runs it on a folder of results.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use common::Sandbox;
use serde_json::json;

/// A folder of one cell: two records, one of which failed.
fn results(sandbox: &Sandbox) {
    let cell = sandbox.path("results/cells/c1");
    std::fs::create_dir_all(&cell).unwrap();
    let model = json!({"name": "tiny", "fingerprint": "00ff", "family": "llama", "layers": 5});
    let run = json!({"format": 1, "tool": "mutandis 0.1.0", "model": model});
    std::fs::write(sandbox.path("results/run.json"), run.to_string()).unwrap();
    let info = json!({
        "method": "rome", "settings": {}, "mode": "single", "seed": 0, "records": [1, 2], "parts": 1,
        "data": {"name": "zsre", "form": "facts", "version": "85eb718b0b", "skipped": 0},
        "protocols": {"compat": "token accuracy"},
    });
    std::fs::write(cell.join("cell.json"), info.to_string()).unwrap();
    let scores = json!({"compat": {"edit": 0.5}, "strict": {}});
    let lines = [
        json!({"record": 1, "edits": [["A is", "B"]], "before": {}, "after": scores, "probes": []}),
        json!({"record": 2, "edits": [["C is", "D"]], "error": "no", "before": {}, "after": {}, "probes": []}),
    ];
    std::fs::write(cell.join("00000.jsonl"), lines.map(|l| l.to_string()).join("\n")).unwrap();
}

#[test]
fn a_report_is_four_files_and_a_table() {
    let sandbox = Sandbox::new();
    results(&sandbox);
    let ran = sandbox.run(&["bench", "report", "results"]).ok();
    assert!(ran.stdout.contains("| rome | each alone | 1 of 2, 1 failed | 50.0 |"), "{}", ran.stdout);
    assert!(ran.stdout.contains("*96.77*"), "published numbers: {}", ran.stdout);
    let read = |name: &str| std::fs::read_to_string(sandbox.path(name)).unwrap();
    assert!(read("results/report.html").starts_with("<!doctype html>"));
    assert!(read("results/report.md").contains(ran.stdout.trim_end()));
    let names = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(
        names(&read("results/lm-eval.json"))["results"]["knowedit_zsre_rome_single"]["edit_success,none"],
        0.5
    );

    // Again, elsewhere: the same, and what was reported before is no result.
    let document = sandbox.run(&["bench", "report", "results", "--out", "a/b", "--json"]).ok().json();
    assert_eq!(document, names(&read("a/b/report.json")));
    assert_eq!(document["cells"][0]["after"]["compat"]["edit"]["mean"], 0.5);
    for name in ["report.html", "report.md", "report.json", "lm-eval.json"] {
        assert_eq!(read(&format!("results/{name}")), read(&format!("a/b/{name}")), "{name}");
    }
}

#[test]
fn what_cannot_be_reported_is_told() {
    let sandbox = Sandbox::new();
    let report = |folder: &str| sandbox.run(&["bench", "report", folder]);
    report("gone").fails_with(&["`gone` is no folder of results", "it does not exist", "hint: "]);
    results(&sandbox);
    let part = sandbox.path("results/cells/c1/00000.jsonl");
    std::fs::write(&part, "{\"record\": 1,").unwrap();
    report("results").fails_with(&["00000.jsonl` is damaged at line 1", "hint: delete the file"]);
    std::fs::remove_file(&part).unwrap();
    report("results").fails_with(&["holds no results yet", "hint: "]);
    results(&sandbox);
    std::fs::write(sandbox.path("file"), "").unwrap();
    sandbox.run(&["bench", "report", "results", "--out", "file"]).fails_with(&["cannot create `file`"]);
}
