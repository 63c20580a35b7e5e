//! Reports of synthetic results: what is read, what is counted, and what a page may not do.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

#[path = "report/names.rs"]
mod names;
#[path = "report/numbers.rs"]
mod numbers;
#[path = "report/reading.rs"]
mod reading;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mutandis_bench::data::Form;
use mutandis_bench::report::Report;
use mutandis_bench::results::{
    Both, CellInfo, CellResult, Cost, DataInfo, FORMAT, ModelInfo, ModelResult, ProbeResult, RecordResult,
    Retention, Role, RunInfo, Scores, Skipped, SuiteInfo, read,
};
use mutandis_bench::run::{Cell, Mode};
use serde::Serialize;
use serde_json::{Value, json};

/// Numbers that differ from call to call and are the same for a seed (Knuth's MMIX generator).
struct Random(u64);

impl Random {
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f64 / (1u64 << 24) as f64
    }
}

const FINGERPRINT: &str = "0123456789abcdef";

const HOSTILE: &str = "<img src=x onerror=alert(1)> | </script><!-- {{data}} `x`";

/// A folder of results, written as the runner writes one.
struct Results(tempfile::TempDir);

impl Results {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = ModelInfo {
            name: "SmolLM2 <b>135M</b>".into(),
            fingerprint: FINGERPRINT.into(),
            family: "llama".into(),
            layers: 30,
        };
        write(
            &dir.path().join("run.json"),
            &RunInfo { format: FORMAT, tool: "mutandis 0.1.0".into(), model },
        );
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn read(&self) -> (RunInfo, Vec<CellResult>) {
        read(self.path()).unwrap()
    }

    fn error(&self) -> String {
        let error = read(self.path()).unwrap_err();
        let hint = error.hint().unwrap_or_default();
        assert!(!hint.is_empty(), "{error} has no hint");
        error.to_string()
    }

    fn cell(&self, id: &str) -> PathBuf {
        self.path().join("cells").join(id)
    }

    /// A cell of which so many parts are `done`, each with the next of the models; its id.
    fn add(&self, info: &CellInfo, records: &[RecordResult], models: &[ModelResult], done: usize) -> String {
        let id = id(info);
        let folder = self.cell(&id);
        write(&folder.join("cell.json"), info);
        for (part, range) in Cell::parts(info.mode, records.len()).into_iter().enumerate().take(done) {
            let records = &records[range];
            let lines: Vec<String> = records.iter().map(|r| serde_json::to_string(r).unwrap()).collect();
            std::fs::write(folder.join(format!("{part:05}.jsonl")), lines.join("\n") + "\n").unwrap();
            write(&folder.join(format!("{part:05}.model.json")), &models[part % models.len()]);
            let edits = records.iter().filter(|r| r.error.is_none()).count();
            let cost = Cost {
                edits,
                edit_seconds: 2.0 * edits as f64,
                score_seconds: 1.0,
                baseline_seconds: 0.5,
                peak_memory_bytes: 300_000_000 + part as u64 * 1_000_000,
                edit_peak_memory_bytes: 200_000_000 + part as u64 * 1_000_000,
            };
            write(&folder.join(format!("{part:05}.cost.json")), &cost);
        }
        id
    }

    /// A cell of a few records, all done, with nothing measured of the model.
    fn small(&self, info: &CellInfo, records: &[RecordResult]) -> String {
        self.add(info, records, &[ModelResult::default()], usize::MAX)
    }

    /// Six data sets, three methods, one of them also in sequence; a failed edit; a part missing.
    fn knowedit() -> Self {
        let results = Self::new();
        let sets = [
            ("wiki_recent", Form::Facts),
            ("zsre", Form::Facts),
            ("wikibio", Form::Facts),
            ("wiki_counterfact", Form::Facts),
            ("convsent", Form::ConvSent),
            ("sanitation", Form::Sanitation),
        ];
        let mut random = Random(1);
        for (data, form) in sets {
            for method in ["rome", "memit", "ft-m"] {
                let records = records(20, &mut random, false);
                let done = if (data, method) == ("zsre", "memit") { 1 } else { 2 };
                let info = info(method, data, form, Mode::Single, 20);
                results.add(&info, &records, &[ModelResult::default()], done);
            }
        }
        let info = info("memit", "zsre", Form::Facts, Mode::Sequential, 20);
        let model = ModelResult {
            measured: 1,
            perplexity: Some([20.0, 80.0]),
            general: BTreeMap::from([("piqa".into(), [0.6, 0.5])]),
            retention: [5, 10, 20]
                .map(|edits| Retention {
                    edits,
                    edit: Some(1.0 - 0.02 * edits as f64),
                    perplexity: Some(20.0 + edits as f64),
                })
                .to_vec(),
            collapsed: Some(15),
        };
        results.add(&info, &records(20, &mut random, true), &[model], 1);
        results
    }

    /// The cell of which a part is missing, and the folder of it.
    fn unfinished(&self) -> (CellInfo, PathBuf) {
        let info = info("memit", "zsre", Form::Facts, Mode::Single, 20);
        let folder = self.cell(&id(&info));
        (info, folder)
    }
}

/// A cell's id, of the model that all are of.
fn id(info: &CellInfo) -> String {
    info.id(FINGERPRINT).unwrap()
}

/// All reports of what is there.
fn reported(results: &Results) -> (Value, String, String, Value) {
    let (run, cells) = results.read();
    let report = Report::new(&run, &cells);
    let parsed = |text: String| serde_json::from_str::<Value>(&text).unwrap();
    let (json, lm_eval) = (parsed(report.json().unwrap()), parsed(report.lm_eval().unwrap()));
    (json, report.markdown(), report.html().unwrap(), lm_eval)
}

/// What the page's browser of records has.
fn browser(page: &str) -> Value {
    let start = page.find(r#"id="data">"#).unwrap() + 10;
    serde_json::from_str(&page[start..start + page[start..].find("</script>").unwrap()]).unwrap()
}

fn write<T: Serialize>(path: &Path, value: &T) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, serde_json::to_vec(value).unwrap()).unwrap();
}

fn info(method: &str, data: &str, form: Form, mode: Mode, records: usize) -> CellInfo {
    CellInfo {
        method: method.into(),
        settings: json!({"layer": 5, "note": HOSTILE}),
        data: DataInfo {
            name: data.into(),
            form,
            version: "85eb718b0b00".into(),
            unasked: vec![],
            skipped: vec![Skipped { record: 2, why: HOSTILE.into() }],
        },
        mode,
        seed: 0,
        records: (0..records).map(|i| 3 * i + 1).collect(),
        parts: Cell::parts(mode, records).len(),
        protocols: BTreeMap::from([("compat".into(), "token accuracy".into())]),
        text: None,
        general: BTreeMap::new(),
        sources: BTreeMap::new(),
    }
}

/// Records with scores that some of them lack; the second one's edit failed.
fn records(count: usize, random: &mut Random, sequence: bool) -> Vec<RecordResult> {
    let mut scores = |lacking: bool| {
        let mut both = Both::default();
        for scores in [&mut both.compat, &mut both.strict] {
            scores.insert("edit".into(), random.share());
            scores.insert("locality".into(), random.share());
            scores.insert("fluency".into(), 4.0 + random.share());
            if !lacking {
                scores.insert("portability".into(), random.share());
                scores.insert("portability/Reasoning".into(), random.share());
            }
        }
        both
    };
    let of = |i: usize| {
        let texts = [format!("The capital of {HOSTILE} {i} is"), "Rome".into()];
        let base = RecordResult { record: 3 * i + 1, edits: vec![texts.clone()], ..RecordResult::default() };
        if i == 1 {
            return RecordResult { error: Some(format!("no subject: {HOSTILE}")), ..base };
        }
        let [prompt, answer] = texts;
        let probe = ProbeResult {
            role: Role::Edit,
            kind: HOSTILE.into(),
            prompt,
            answers: vec![answer],
            before: "Paris".into(),
            after: HOSTILE.into(),
            immediate: None,
            forced: Some(["Paris".into(), "Rome".into()]),
            scores: Both { compat: scores_of(&[("tokens", 1.0)]), strict: scores_of(&[("exact", 0.0)]) },
        };
        let (before, after) = (scores(i.is_multiple_of(3)), scores(i.is_multiple_of(3)));
        let immediate = sequence.then(|| scores(true));
        RecordResult { before, after, immediate, probes: vec![probe], ..base }
    };
    (0..count).map(of).collect()
}

fn scores_of(all: &[(&str, f64)]) -> Scores {
    all.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
}

/// A record with strict scores alone.
fn strict(record: usize, scores: &[(&str, f64)]) -> RecordResult {
    let after = Both { strict: scores_of(scores), ..Both::default() };
    RecordResult { record, after, ..RecordResult::default() }
}

/// A record with compat scores alone, before and after.
fn compat(record: usize, before: &[(&str, f64)], after: &[(&str, f64)]) -> RecordResult {
    let both = |scores| Both { compat: scores_of(scores), ..Both::default() };
    RecordResult { record, before: both(before), after: both(after), ..RecordResult::default() }
}

#[test]
fn means_are_over_the_records_that_have_a_score() {
    let results = Results::knowedit();
    let (run, cells) = results.read();
    let report = Report::new(&run, &cells);
    for cell in &cells {
        let summary = report.cells.iter().find(|c| c.id == cell.id).unwrap();
        assert_eq!((summary.failed, summary.scored), (1, cell.records.len() - 1));
        for (name, statistic) in &summary.after.compat {
            let values: Vec<f64> =
                cell.records.iter().filter_map(|r| r.after.compat.get(name).copied()).collect();
            assert_eq!(statistic.count, values.len(), "{name}");
            assert!((statistic.mean - values.iter().sum::<f64>() / values.len() as f64).abs() < 1e-12);
            let [low, high] = statistic.interval.unwrap();
            assert!(low < statistic.mean && statistic.mean < high, "{name}: {low} {high}");
        }
        assert!(summary.after.compat["portability"].count < summary.after.compat["edit"].count);
        let cost = summary.cost.unwrap();
        assert_eq!((cost.edits, cost.seconds_per_edit), (cell.records.len() - 1, Some(2.0)));
    }
    let sequence = report.cells.iter().find(|c| c.mode == Mode::Sequential).unwrap();
    assert_eq!(sequence.collapsed, Some(15));
    assert_eq!(sequence.retention.iter().map(|r| r.edits).collect::<Vec<_>>(), [5, 10, 20]);
    assert!((sequence.perplexity.unwrap().after - 80.0).abs() < 1e-9);
    assert_eq!(sequence.stretches.iter().map(|s| (s.from, s.to)).next_back(), Some((11, 20)));
    assert!(sequence.immediate.compat.contains_key("edit") && sequence.stretches[0].compat.after.is_some());
}

#[test]
fn counterfacts_score_is_a_harmonic_mean_of_means() {
    let results = Results::new();
    let info = info("rome", "counterfact", Form::CounterFact, Mode::Single, 3);
    let three = |e, g, s| [("efficacy", e), ("generalization", g), ("specificity", s)];
    let records = [
        strict(1, &three(1.0, 1.0, 0.5)),
        strict(4, &three(1.0, 0.0, 0.7)),
        // Without all three, a record takes no part.
        strict(7, &[("efficacy", 0.0)]),
    ];
    results.small(&info, &records);
    let (run, cells) = results.read();
    let score = Report::new(&run, &cells).cells[0].after.strict["score"];
    assert!((score.mean - 3.0 / (1.0 / 1.0 + 1.0 / 0.5 + 1.0 / 0.6)).abs() < 1e-12, "{}", score.mean);
    // Draws of the second record alone have a mean of 0, and so a score of 0.
    assert_eq!((score.count, score.interval.unwrap()[0]), (2, 0.0));
}

#[test]
fn the_same_results_give_the_same_bytes() {
    let results = Results::knowedit();
    let all = || {
        let (run, cells) = results.read();
        let report = Report::new(&run, &cells);
        [report.html().unwrap(), report.markdown(), report.json().unwrap(), report.lm_eval().unwrap()]
    };
    assert_eq!(all(), all());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(pool.install(all), all());
}

/// The page's markup without what stands in its own script, style and data.
fn outside_scripts(page: &str) -> String {
    let mut out = String::new();
    let mut rest = page;
    while let Some(at) = rest.find("<script") {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        rest = &rest[rest.find("</script>").unwrap() + 9..];
    }
    out + rest
}

#[test]
fn hostile_texts_stay_texts() {
    let results = Results::knowedit();
    let (run, cells) = results.read();
    let report = Report::new(&run, &cells);
    let page = report.html().unwrap();
    // Just the page's own: its data and its script. Nothing opens a comment.
    assert_eq!((page.matches("<script").count(), page.matches("</script>").count()), (2, 2));
    assert!(!page.contains("<!--") && !page.contains("<img") && !page.contains("<b>135M"));
    let markup = outside_scripts(&page);
    assert!(markup.contains("&lt;img src=x onerror=alert(1)&gt;"), "the settings are shown");
    // What looks like a place of the skeleton is left as it is.
    assert!(markup.contains("{{data}}"));

    let data = browser(&page);
    let strings = data["strings"].as_array().unwrap();
    assert!(strings.contains(&json!(HOSTILE)), "the browser of records has the text as it was");
    let markdown = report.markdown();
    assert!(!markdown.contains("<img") && !markdown.contains("<b>"), "{markdown}");
}

#[test]
fn the_page_loads_nothing() {
    let results = Results::knowedit();
    let (run, cells) = results.read();
    let page = Report::new(&run, &cells).html().unwrap();
    for outside in ["http://", "https://", " src=\"", "@import", "url(", "<link", "fetch(", "XMLHttp"] {
        assert!(!page.contains(outside), "{outside}");
    }
    for wanted in [
        "Not finished, and reported as far as they are: 1 of 19 cells",
        "memit, in sequence on zsre: the model had collapsed after 15 edits",
        "Published, Llama-2-7b-chat",
        "97.18",
        "1 failed",
        "1 of 2 parts",
        "15 of 20",
        "right after each",
        "unedited model",
    ] {
        assert!(page.contains(wanted), "{wanted}");
    }
}

#[test]
fn records_of_the_browser_are_whole() {
    let results = Results::knowedit();
    let (run, cells) = results.read();
    let page = Report::new(&run, &cells).html().unwrap();
    let data = browser(&page);
    let text = |id: &Value| data["strings"][id.as_u64().unwrap() as usize].as_str().unwrap().to_owned();
    for cell in &cells {
        let shown = data["cells"].as_array().unwrap().iter().find(|c| c["id"] == cell.id).unwrap();
        let records = shown["records"].as_array().unwrap();
        assert_eq!(records.len(), cell.records.len());
        for (shown, record) in records.iter().zip(&cell.records) {
            assert_eq!(shown[0], record.record);
            assert_eq!([text(&shown[1][0][0]), text(&shown[1][0][1])], record.edits[0]);
            assert_eq!((!shown[2].is_null()).then(|| text(&shown[2])), record.error);
            assert_eq!(shown[5].is_null(), record.immediate.is_none());
            // Its only probe has its tokens, and is not said.
            assert_eq!((&shown[7], &shown[8]), (&json!(false), &json!(false)));
            for (shown, probe) in shown[6].as_array().unwrap().iter().zip(&record.probes) {
                assert_eq!((shown[0].as_str().unwrap(), text(&shown[1])), ("edit", probe.kind.clone()));
                assert_eq!([text(&shown[4]), text(&shown[5])], [probe.before.clone(), probe.after.clone()]);
                assert_eq!([text(&shown[6][0]), text(&shown[6][1])], *probe.forced.as_ref().unwrap());
                let named = |scores: &Value| (text(&scores[0][0]), scores[0][1].clone());
                assert_eq!(named(&shown[7][0]), ("tokens".to_owned(), json!(1.0)));
                assert_eq!(named(&shown[7][1]), ("exact".to_owned(), json!(0.0)));
            }
        }
    }
}

#[test]
fn the_best_of_a_column_is_marked() {
    let results = Results::new();
    for (method, success) in [("memit", 0.9), ("rome", 1.0), ("ft-m", 0.2)] {
        let info = info(method, "zsre", Form::Facts, Mode::Single, 1);
        results.small(&info, &[strict(1, &[("edit", success), ("locality", 0.5)])]);
    }
    // A row over other records does not compete, be it fewer or more, and spoils nothing.
    let cell = info("kn", "zsre", Form::Facts, Mode::Single, 3);
    results.small(&cell, &[1, 4, 7].map(|record| strict(record, &[("edit", 1.0), ("locality", 0.5)])));
    let cell = info("lora", "zsre", Form::Facts, Mode::Single, 1);
    let failed = RecordResult { error: Some("it cannot be".into()), ..strict(1, &[]) };
    results.small(&cell, &[failed]);
    let (run, cells) = results.read();
    let report = Report::new(&run, &cells);
    let table = report.table(true);
    assert!(table.contains("| rome | each alone | 1 of 1 | **100.0** | 50.0 |"), "{table}");
    assert!(table.contains("| memit | each alone | 1 of 1 | 90.0 |"), "{table}");
    assert_eq!(report.html().unwrap().matches("<mark>100.0</mark>").count(), 1);
}

#[test]
fn the_frontier_joins_what_nothing_beats() {
    let results = Results::new();
    // The third is beaten by the first in both.
    for (method, edit, locality) in [("rome", 0.9, 0.5), ("memit", 0.6, 0.8), ("ft-m", 0.7, 0.4)] {
        let info = info(method, "zsre", Form::Facts, Mode::Single, 1);
        results.small(&info, &[strict(1, &[("edit", edit), ("locality", locality)])]);
    }
    // One over other records does not compete: theirs may be easier.
    let cell = info("kn", "zsre", Form::Facts, Mode::Single, 2);
    let failed = RecordResult { error: Some("it cannot be".into()), ..strict(1, &[]) };
    results.small(&cell, &[failed, strict(4, &[("edit", 1.0), ("locality", 1.0)])]);
    let (run, cells) = results.read();
    let page = Report::new(&run, &cells).html().unwrap();
    let edges: Vec<&str> = page.lines().filter(|l| l.starts_with("<polyline class=\"edge")).collect();
    assert_eq!(edges.len(), 1, "strict alone was measured");
    assert_eq!(edges[0].matches(',').count(), 2, "{}", edges[0]);
    assert_eq!(page.matches("<circle class=\"mark").count(), 4);
}
