//! `bench report`, as a user runs it on a folder of results.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::path::PathBuf;

use common::Sandbox;
use mutandis_bench::results::CellInfo;
use serde_json::json;

/// A folder of one cell: two records, one of which failed. The folder of the cell.
fn results(sandbox: &Sandbox) -> PathBuf {
    std::fs::create_dir_all(sandbox.path("results")).unwrap();
    let model = json!({"name": "tiny", "fingerprint": "00ff", "family": "llama", "layers": 5});
    let run = json!({"format": 2, "tool": "mutandis 0.1.0", "model": model});
    std::fs::write(sandbox.path("results/run.json"), run.to_string()).unwrap();
    let info = json!({
        "method": "rome", "settings": {}, "mode": "single", "seed": 0, "records": [1, 2], "parts": 1,
        "data": {"name": "zsre", "form": "facts", "version": "85eb718b0b", "skipped": []},
        "protocols": {"compat": "token accuracy"},
    });
    let info = serde_json::from_value::<CellInfo>(info).unwrap();
    let cell = sandbox.path(&format!("results/cells/{}", info.id("00ff").unwrap()));
    std::fs::create_dir_all(&cell).unwrap();
    std::fs::write(cell.join("cell.json"), serde_json::to_string(&info).unwrap()).unwrap();
    let cost = json!({
        "edits": 1, "edit_seconds": 1.5, "score_seconds": 0.5, "baseline_seconds": 0.5, "peak_memory_bytes": 1_000_000,
    });
    std::fs::write(cell.join("00000.cost.json"), cost.to_string()).unwrap();
    std::fs::write(cell.join("00000.model.json"), json!({"measured": 0}).to_string()).unwrap();
    let scores = json!({"compat": {"edit": 0.5}, "strict": {}});
    let lines = [
        json!({"record": 1, "edits": [["A is", "B"]], "before": {}, "after": scores, "probes": []}),
        json!({"record": 2, "edits": [["C is", "D"]], "error": "no", "before": {}, "after": {}, "probes": []}),
    ];
    std::fs::write(cell.join("00000.jsonl"), lines.map(|l| l.to_string()).join("\n")).unwrap();
    cell
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
    let cell = results(&sandbox);
    let part = cell.join("00000.jsonl");
    let whole = std::fs::read_to_string(&part).unwrap();
    std::fs::write(&part, whole.lines().next().unwrap()).unwrap();
    let again = "hint: run the benchmark again with the same command: only this part is made anew";
    report("results").fails_with(&["00000.jsonl` is damaged: it has 1 of its 2 records", again]);
    std::fs::write(&part, "{\"record\": 1,").unwrap();
    report("results").fails_with(&["00000.jsonl` is damaged at line 1", again]);
    std::fs::write(&part, whole).unwrap();
    std::fs::remove_file(cell.join("00000.cost.json")).unwrap();
    let ran = sandbox.run(&["bench", "report", "results", "--json"]).ok();
    assert_eq!(ran.json()["cells"][0]["cost"], serde_json::Value::Null, "it is not known");
    std::fs::remove_file(cell.join("00000.model.json")).unwrap();
    report("results").fails_with(&["00000.model.json` is missing", again]);
    std::fs::remove_file(cell.join("cell.json")).unwrap();
    report("results").fails_with(&["cell.json` is missing", "hint: "]);
    std::fs::rename(&cell, sandbox.path("results/cells/other")).unwrap();
    results(&sandbox);
    std::fs::copy(cell.join("cell.json"), sandbox.path("results/cells/other/cell.json")).unwrap();
    report("results").fails_with(&["was made for another model or changed by hand", "hint: "]);
    std::fs::remove_dir_all(sandbox.path("results/cells/other")).unwrap();
    std::fs::remove_file(&part).unwrap();
    report("results").fails_with(&["holds no results yet", "hint: "]);
    results(&sandbox);
    std::fs::write(sandbox.path("file"), "").unwrap();
    sandbox
        .run(&["bench", "report", "results", "--out", "file"])
        .fails_with(&["cannot write `file`", "hint: "]);
}
