//! Reports of synthetic results: what is read, what is counted, and what a page may not do.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mutandis_bench::data::Form;
use mutandis_bench::report::Report;
use mutandis_bench::results::{
    Both, CellInfo, CellResult, Cost, DataInfo, FORMAT, ModelInfo, ModelResult, ProbeResult, RecordResult,
    Retention, Role, RunInfo, read,
};
use mutandis_bench::run::Mode;
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

const HOSTILE: &str = "<img src=x onerror=alert(1)> | </script><!-- {{data}} `x`";

/// A folder of results, written as the runner writes one.
struct Results(tempfile::TempDir);

impl Results {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = ModelInfo {
            name: "SmolLM2 <b>135M</b>".into(),
            fingerprint: "0123456789abcdef".into(),
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

    /// A cell of two parts, of which `done` are there.
    fn add(&self, id: &str, info: &CellInfo, records: &[RecordResult], model: &ModelResult, done: usize) {
        let folder = self.cell(id);
        write(&folder.join("cell.json"), info);
        let size = records.len().div_ceil(info.parts);
        for (part, records) in records.chunks(size).enumerate().take(done) {
            let lines: Vec<String> = records.iter().map(|r| serde_json::to_string(r).unwrap()).collect();
            std::fs::write(folder.join(format!("{part:05}.jsonl")), lines.join("\n") + "\n").unwrap();
            write(&folder.join(format!("{part:05}.model.json")), model);
            let cost = Cost {
                edits: records.len(),
                edit_seconds: 2.0 * records.len() as f64,
                score_seconds: 1.0,
                baseline_seconds: 0.5,
                peak_memory_bytes: 300_000_000 + part as u64 * 1_000_000,
            };
            write(&folder.join(format!("{part:05}.cost.json")), &cost);
        }
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
                results.add(&format!("{data}-{method}"), &info, &records, &ModelResult::default(), done);
            }
        }
        let info = info("memit", "zsre", Form::Facts, Mode::Sequential, 20);
        let model = ModelResult {
            perplexity: Some([20.0, 80.0]),
            general: BTreeMap::from([("piqa".into(), [0.6, 0.5])]),
            retention: [5, 10, 20]
                .map(|edits| Retention {
                    edits,
                    edit: 1.0 - 0.02 * edits as f64,
                    perplexity: Some(20.0 + edits as f64),
                })
                .to_vec(),
            collapsed: Some(15),
        };
        results.add("zsre-memit-sequential", &info, &records(20, &mut random, true), &model, 2);
        results
    }
}

fn write<T: Serialize>(path: &Path, value: &T) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, serde_json::to_vec(value).unwrap()).unwrap();
}

fn info(method: &str, data: &str, form: Form, mode: Mode, records: usize) -> CellInfo {
    CellInfo {
        method: method.into(),
        settings: json!({"layer": 5, "note": HOSTILE}),
        data: DataInfo { name: data.into(), form, version: "85eb718b0b00".into(), skipped: 1 },
        mode,
        seed: 0,
        records: (0..records).map(|i| 3 * i + 1).collect(),
        parts: 2,
        protocols: BTreeMap::from([("compat".into(), "token accuracy".into())]),
        text: None,
        general: BTreeMap::new(),
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
            scores: BTreeMap::from([("tokens".into(), 1.0)]),
        };
        let (before, after) = (scores(i.is_multiple_of(3)), scores(i.is_multiple_of(3)));
        let immediate = sequence.then(|| scores(true));
        RecordResult { before, after, immediate, probes: vec![probe], ..base }
    };
    (0..count).map(of).collect()
}

/// A record with strict scores alone.
fn strict(record: usize, scores: &[(&str, f64)]) -> RecordResult {
    let strict = scores.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    RecordResult { record, after: Both { strict, ..Both::default() }, ..RecordResult::default() }
}

#[test]
fn cells_come_sorted_with_what_is_done() {
    let results = Results::knowedit();
    let (run, cells) = results.read();
    assert_eq!(run.model.layers, 30);
    let names: Vec<(&str, &str, Mode)> =
        cells.iter().map(|c| (c.info.data.name.as_str(), c.info.method.as_str(), c.info.mode)).collect();
    let mut sorted = names.clone();
    sorted.sort_by_key(|n| (n.0.to_owned(), n.1.to_owned(), n.2 == Mode::Sequential));
    assert_eq!((names.len(), &names), (19, &sorted));
    let part = cells.iter().find(|c| c.id == "zsre-memit").unwrap();
    assert_eq!((part.done, part.records.len(), part.costs.len()), (1, 10, 1));
    assert_eq!(part.records[2].record, 7);
}

#[test]
fn what_a_killed_run_leaves_beside_is_not_taken_for_results() {
    let results = Results::knowedit();
    let before = results.read();
    let folder = results.cell("zsre-memit");
    std::fs::write(folder.join(".mutandis-x1y2"), "half a").unwrap();
    std::fs::write(folder.join("00001.cost.json"), "{").unwrap();
    std::fs::create_dir_all(results.cell("begun")).unwrap();
    std::fs::write(results.path().join("notes.txt"), "mine").unwrap();
    assert_eq!(results.read(), before);
}

#[test]
fn what_is_no_folder_of_results_is_told() {
    let results = Results::knowedit();
    let run = results.path().join("run.json");
    let error = |path: &Path| read(path).unwrap_err().to_string();
    assert!(error(&results.path().join("gone")).contains("it does not exist"));
    assert!(error(&run).contains("it is a file"));
    assert!(error(&results.cell("zsre-memit")).contains("cannot read its `run.json`"));
    for (text, expected) in [
        (r#"{"format": 2, "model": 7}"#, "is of format 2, and this version reads format 1"),
        (r#"{"name": "something"}"#, "should have `format` 1, and has none"),
        (r#"{"format": 1}"#, "missing field `tool`"),
        ("{", "is damaged at line 1"),
    ] {
        std::fs::write(&run, text).unwrap();
        assert!(results.error().contains(expected), "{text}: {}", results.error());
    }
    let empty = Results::new();
    assert!(empty.error().contains("no part of any cell is done"));
}

#[test]
fn damage_is_named_with_its_file_and_line() {
    let results = Results::knowedit();
    let part = results.cell("zsre-memit").join("00000.jsonl");
    let whole = std::fs::read_to_string(&part).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let with = |lines: &[&str]| {
        std::fs::write(&part, lines.join("\n")).unwrap();
        let error = results.error();
        assert!(error.contains("zsre-memit/00000.jsonl"), "{error}");
        error
    };
    // A line broken off, in bytes that are no text, of another cell, said twice.
    assert!(with(&[lines[0], lines[1], &lines[2][..40]]).contains("damaged at line 3: EOF"));
    assert!(with(&[lines[0], "[]"]).contains("line 2"));
    assert!(
        with(&[lines[0], &lines[1].replace("\"record\":4", "\"record\":5")])
            .contains("record 5 is not one of")
    );
    assert!(with(&[lines[0], lines[1], lines[0]]).contains("line 3: record 1 is there twice"));
    std::fs::write(&part, b"\xff\xfe\n").unwrap();
    assert!(results.error().contains("line 1"));
    std::fs::write(&part, &whole).unwrap();

    let cost = part.with_extension("cost.json");
    std::fs::write(&cost, "{\n\"edits\": -1}").unwrap();
    let error = results.error();
    assert!(error.contains("00000.cost.json") && error.contains("line 2"), "{error}");
    std::fs::remove_file(&cost).unwrap();
    std::fs::rename(&part, part.with_file_name("00007.jsonl")).unwrap();
    assert!(results.error().contains("is part 7, and its cell has 2 parts"));
    std::fs::remove_file(results.cell("zsre-memit").join("cell.json")).unwrap();
    assert!(read(results.path()).unwrap_err().to_string().contains("cell.json"));
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
        assert_eq!((cost.edits, cost.seconds_per_edit), (cell.records.len(), Some(2.0)));
    }
    let sequence = report.cells.iter().find(|c| c.mode == Mode::Sequential).unwrap();
    assert_eq!(sequence.collapsed, Some(15));
    assert_eq!(sequence.retention.iter().map(|r| r.edits).collect::<Vec<_>>(), [5, 10, 20]);
    assert!((sequence.perplexity.unwrap().after - 80.0).abs() < 1e-9);
    assert_eq!(sequence.stretches.iter().map(|s| (s.from, s.to)).next_back(), Some((11, 20)));
    assert!(sequence.immediate.compat.contains_key("edit"));
}

#[test]
fn counterfacts_score_is_a_harmonic_mean_of_means() {
    let results = Results::new();
    let mut info = info("rome", "counterfact", Form::CounterFact, Mode::Single, 3);
    info.parts = 1;
    let three = |e, g, s| [("efficacy", e), ("generalization", g), ("specificity", s)];
    let records = [
        strict(1, &three(1.0, 1.0, 0.5)),
        strict(4, &three(1.0, 0.0, 0.7)),
        // Without all three, a record takes no part.
        strict(7, &[("efficacy", 0.0)]),
    ];
    results.add("a", &info, &records, &ModelResult::default(), 1);
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

    let start = page.find(r#"id="data">"#).unwrap() + 10;
    let data: Value =
        serde_json::from_str(&page[start..start + page[start..].find("</script>").unwrap()]).unwrap();
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
        "1 of 19 cells are not finished",
        "memit, in sequence on zsre: the model had collapsed after 15 edits",
        "Published, Llama-2-7b-chat",
        "97.18",
        "1 failed",
        "1 of 2 parts",
        "9 of 20",
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
    let start = page.find(r#"id="data">"#).unwrap() + 10;
    let data: Value =
        serde_json::from_str(&page[start..start + page[start..].find("</script>").unwrap()]).unwrap();
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
            for (shown, probe) in shown[6].as_array().unwrap().iter().zip(&record.probes) {
                assert_eq!((shown[0].as_str().unwrap(), text(&shown[1])), ("edit", probe.kind.clone()));
                assert_eq!([text(&shown[4]), text(&shown[5])], [probe.before.clone(), probe.after.clone()]);
            }
        }
    }
}

#[test]
fn the_best_of_a_column_is_marked() {
    let results = Results::new();
    for (id, method, success) in [("a", "memit", 0.9), ("b", "rome", 1.0), ("c", "ft-m", 0.2)] {
        let mut info = info(method, "zsre", Form::Facts, Mode::Single, 1);
        info.parts = 1;
        results.add(id, &info, &[strict(1, &[("edit", success)])], &ModelResult::default(), 1);
    }
    let (run, cells) = results.read();
    let report = Report::new(&run, &cells);
    let table = report.table(true);
    assert!(table.contains("| rome | each alone | 1 of 1 | **100.0** |"), "{table}");
    assert!(table.contains("| memit | each alone | 1 of 1 | 90.0 |"), "{table}");
    assert_eq!(report.html().unwrap().matches("<mark>100.0</mark>").count(), 1);
}

#[test]
fn cells_of_the_same_name_are_told_apart() {
    let results = Results::new();
    for (id, seed) in [("1111111111", 0), ("2222222222", 1), ("3333333333", 1)] {
        let info = CellInfo { seed, parts: 1, ..info("rome", "zsre", Form::Facts, Mode::Batch(5), 1) };
        results.add(id, &info, &[strict(1, &[("edit", 1.0)])], &ModelResult::default(), 1);
    }
    let (run, cells) = results.read();
    let labels: Vec<String> = Report::new(&run, &cells).cells.iter().map(|c| c.label()).collect();
    assert_eq!(
        labels,
        ["rome, 5 at once (seed 0)", "rome, 5 at once (22222222)", "rome, 5 at once (33333333)"]
    );
}

#[test]
fn lm_evals_layout_has_every_score() {
    let results = Results::knowedit();
    let (run, cells) = results.read();
    let report = Report::new(&run, &cells);
    let document: Value = serde_json::from_str(&report.lm_eval().unwrap()).unwrap();
    let task = "knowedit_wiki_recent_rome_single";
    let at = report.cells.iter().find(|c| c.id == "wiki_recent-rome").unwrap();
    let found = &document["results"][task];
    assert_eq!(found["edit_success,none"], json!(at.after.compat["edit"].mean));
    assert_eq!(found["edit_success_stderr,none"], json!(at.after.compat["edit"].stderr.unwrap()));
    assert_eq!(found["portability_reasoning,strict"], json!(at.after.strict["portability/Reasoning"].mean));
    assert_eq!(document["n-samples"][task], json!({"original": 20, "effective": 19}));
    assert_eq!(
        (&document["n-shot"][task], &document["higher_is_better"][task]["edit_success"]),
        (&json!(0), &json!(true))
    );
    assert_eq!(document["results"].as_object().unwrap().len(), cells.len());
    assert!(document["results"].get("knowedit_zsre_memit_sequential").is_some());
}

#[test]
fn the_frontier_joins_what_nothing_beats() {
    let results = Results::new();
    // The third is beaten by the first in both.
    for (id, method, edit, locality) in
        [("a", "rome", 0.9, 0.5), ("b", "memit", 0.6, 0.8), ("c", "ft-m", 0.7, 0.4)]
    {
        let info = CellInfo { parts: 1, ..info(method, "zsre", Form::Facts, Mode::Single, 1) };
        let record = strict(1, &[("edit", edit), ("locality", locality)]);
        results.add(id, &info, &[record], &ModelResult::default(), 1);
    }
    let (run, cells) = results.read();
    let page = Report::new(&run, &cells).html().unwrap();
    let edges: Vec<&str> = page.lines().filter(|l| l.starts_with("<polyline class=\"edge")).collect();
    assert_eq!(edges.len(), 1, "strict alone was measured");
    assert_eq!(edges[0].matches(',').count(), 2, "{}", edges[0]);
    assert_eq!(page.matches("<circle class=\"mark").count(), 3);
}
