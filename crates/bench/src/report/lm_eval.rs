//! lm-evaluation-harness's result layout, so that its tools read ours.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::Report;
use super::metric;
use super::protocol::Protocol;
use super::summary::{Change, Summary};
use super::{table, variant};
use crate::run::Mode;

/// What the layout says of every task, in its order.
const SECTIONS: [&str; 7] =
    ["results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples"];

/// The sections as they fill up.
struct Sections {
    all: [Map<String, Value>; 7],
}

impl Sections {
    /// Adds a task. No task is ever lost to another of its name.
    fn add(&mut self, name: &str, task: Task) {
        let name = free(name, |name| self.all[0].contains_key(name));
        let Task { mut results, mut config, higher_is_better, samples: [original, effective] } = task;
        results.insert("alias".into(), json!(name));
        results.insert("name".into(), json!(name));
        results.insert("sample_len".into(), json!(effective));
        config.insert("task".into(), json!(name));
        let about = [
            Value::Object(results),
            json!([]),
            Value::Object(config),
            json!(super::FORMAT),
            json!(0),
            Value::Object(higher_is_better),
            json!({"original": original, "effective": effective}),
        ];
        for (section, value) in self.all.iter_mut().zip(about) {
            section.insert(name.clone(), value);
        }
    }
}

/// What is said of one task.
struct Task {
    results: Map<String, Value>,
    config: Map<String, Value>,
    higher_is_better: Map<String, Value>,
    samples: [usize; 2],
}

/// A `results_*.json` (harness 0.4). There is no date in it and no commit: the same results give
/// the same file.
pub(super) fn document(report: &Report<'_>) -> Value {
    let model = &report.run.model;
    let mut sections = Sections { all: SECTIONS.map(|_| Map::new()) };
    let names = names(report);
    for (cell, name) in report.cells.iter().zip(&names) {
        let samples = [cell.records, cell.scored];
        let metrics = Metrics::new(cell);
        let (results, better) = (results(cell, &metrics), higher_is_better(&metrics));
        let data = (cell.data.name.as_str(), cell.data.version.as_str());
        let mut config = config(cell, data, None);
        if let Some(metadata) = config.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("records_of_metrics".into(), Value::Object(counts(cell, &metrics)));
        }
        sections.add(name, Task { results, config, higher_is_better: better, samples });
    }
    // After all cells, which keep the plain names.
    for (cell, name) in report.cells.iter().zip(&names) {
        for (suite, ability) in &cell.general {
            let info = ability.suite.as_ref();
            let (measure, version) = info.map_or(("acc", ""), |s| (s.measure.as_str(), s.version.as_str()));
            let questions = info.map_or(ability.change.measured, |s| s.questions);
            sections.add(
                &format!("{name}_{}", slug(suite)),
                whole(cell, (suite, version), measure, &ability.change, questions),
            );
        }
        if let Some(change) = &cell.perplexity {
            let task = whole(cell, ("perplexity", ""), "perplexity", change, change.measured);
            sections.add(&format!("{name}_perplexity"), task);
        }
    }
    let mut out: Map<String, Value> = SECTIONS
        .iter()
        .zip(sections.all)
        .map(|(name, section)| ((*name).to_owned(), Value::Object(section)))
        .collect();
    let config = json!({
        "model": "mutandis",
        "model_args": format!("pretrained={},fingerprint={}", model.name, model.fingerprint),
        "batch_size": null,
        "device": "cpu",
        "limit": null,
        "bootstrap_iters": 1000,
        "gen_kwargs": null,
    });
    out.insert("config".into(), config);
    out.insert("git_hash".into(), Value::Null);
    out.insert("model_source".into(), json!("mutandis"));
    out.insert("model_name".into(), json!(model.name));
    out.insert("tool".into(), json!(report.run.tool));
    Value::Object(out)
}

/// The name itself, or with a number behind it that none has yet.
fn free(name: &str, is_taken: impl Fn(&str) -> bool) -> String {
    let numbered = (2..).map(|i| format!("{name}_{i}"));
    let mut all = std::iter::once(name.to_owned()).chain(numbered);
    all.find(|name| !is_taken(name)).unwrap_or_default()
}

/// A name for each cell. What is told apart by signs alone, such as `a-b` from `a_b`, has its hash too.
fn names(report: &Report<'_>) -> Vec<String> {
    let plain: Vec<String> = report.cells.iter().map(|cell| task(report, cell)).collect();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    plain.iter().for_each(|name| *counts.entry(name).or_default() += 1);
    let mut taken: BTreeSet<String> = BTreeSet::new();
    let name = |(name, cell): (&String, &Summary)| {
        let own = match counts.get(name.as_str()) {
            Some(1) => name.clone(),
            _ => format!("{name}_{}", slug(variant::hash(&cell.id))),
        };
        let own = free(&own, |name| taken.contains(name));
        taken.insert(own.clone());
        own
    };
    plain.iter().zip(&report.cells).map(name).collect()
}

/// Such as `knowedit_wiki_recent_rome_single`.
fn task(report: &Report<'_>, cell: &Summary) -> String {
    let mode = match cell.mode {
        Mode::Single => "single".to_owned(),
        Mode::Batch(size) => format!("batch{size}"),
        Mode::Sequential => "sequential".to_owned(),
        Mode::Turns(size) => format!("sequential{size}"),
    };
    let benchmark = report.published.of(&cell.data.name).map(|_| "knowedit").unwrap_or_default();
    let several = |c: &&Summary| c.data.name == cell.data.name && c.data.version != cell.data.version;
    let version =
        report.cells.iter().find(several).map(|_| table::short(&cell.data.version)).unwrap_or_default();
    let words = [benchmark, &cell.data.name, &version, &cell.method, &mode, &cell.variant];
    words.into_iter().filter(|w| !w.is_empty()).map(slug).collect::<Vec<_>>().join("_")
}

/// Letters and digits in lower case, words joined by one `_`.
fn slug(text: &str) -> String {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("_")
}

/// Names of metrics there, by score: `edit` is `edit_success`, a part of a score has its name behind it.
/// Those that only signs or capitals tell apart are numbered, kinds behind measures.
struct Metrics(BTreeMap<String, String>);

impl Metrics {
    fn new(cell: &Summary) -> Self {
        let sides = [&cell.after, &cell.immediate, &cell.before];
        let all = sides.into_iter().flat_map(|s| s.compat.keys().chain(s.strict.keys()));
        let mut scores: Vec<&String> = all.collect();
        scores.sort_unstable_by_key(|score| (score.contains('/'), *score));
        scores.dedup();
        let mut taken = BTreeSet::new();
        let name = |score: &String| {
            let plain = score.replace(['/', ':', '-', ',', ' '], "_").to_lowercase();
            let plain = if plain == "edit" { "edit_success".into() } else { plain };
            let name = free(&plain, |name| taken.contains(name));
            taken.insert(name.clone());
            (score.clone(), name)
        };
        Self(scores.into_iter().map(name).collect())
    }

    fn of(&self, score: &str) -> &str {
        self.0.get(score).map_or("", String::as_str)
    }
}

/// The harness writes "N/A" where there is no error to tell.
fn error(stderr: Option<f64>) -> Value {
    stderr.map_or(json!("N/A"), |e| json!(e))
}

fn results(cell: &Summary, metrics: &Metrics) -> Map<String, Value> {
    let mut out = Map::new();
    for (side, prefix) in [(&cell.after, ""), (&cell.immediate, "immediate_"), (&cell.before, "unedited_")] {
        for protocol in Protocol::ALL {
            let filter = filter(protocol);
            for (score, s) in protocol.of(side) {
                let name = format!("{prefix}{}", metrics.of(score));
                out.insert(format!("{name},{filter}"), json!(s.mean));
                out.insert(format!("{name}_stderr,{filter}"), error(s.stderr));
            }
        }
    }
    out
}

fn filter(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Compat => "none",
        Protocol::Strict => "strict",
    }
}

/// Records that each metric is a mean over: fewer than the task's where not all have the score.
fn counts(cell: &Summary, metrics: &Metrics) -> Map<String, Value> {
    let of = |protocol: Protocol| {
        let all = protocol.of(&cell.after).iter();
        all.map(move |(score, s)| (format!("{},{}", metrics.of(score), filter(protocol)), json!(s.count)))
    };
    Protocol::ALL.into_iter().flat_map(of).collect()
}

fn higher_is_better(metrics: &Metrics) -> Map<String, Value> {
    let sides = metrics.0.iter().flat_map(|(score, name)| {
        ["", "immediate_", "unedited_"]
            .map(|prefix| (format!("{prefix}{name}"), json!(metric::higher_is_better(score))))
    });
    sides.collect()
}

/// A task of the edited model as a whole. Its error is that over edited models, not over questions.
fn whole(cell: &Summary, data: (&str, &str), measure: &str, change: &Change, samples: usize) -> Task {
    let unedited = format!("unedited_{measure}");
    let results = [
        (format!("{measure},none"), json!(change.after)),
        (format!("{measure}_stderr,none"), error(change.stderr)),
        (format!("{unedited},none"), json!(change.before)),
        (format!("{unedited}_stderr,none"), error(None)),
    ];
    let better = measure != "perplexity";
    Task {
        results: results.into_iter().collect(),
        config: config(cell, data, Some(change.measured)),
        higher_is_better: [(measure.to_owned(), json!(better)), (unedited, json!(better))]
            .into_iter()
            .collect(),
        samples: [samples; 2],
    }
}

/// What a task is of: a data set or suite with its version; and of how many edited models, where these
/// were measured as a whole.
fn config(cell: &Summary, (data, version): (&str, &str), models: Option<usize>) -> Map<String, Value> {
    let config = [
        ("dataset_name", json!(data)),
        ("dataset_version", json!(version)),
        ("num_fewshot", json!(0)),
        ("repeats", json!(1)),
        (
            "metadata",
            json!({
                "version": super::FORMAT,
                "method": cell.method,
                "mode": cell.mode,
                "settings": cell.settings,
                "seed": cell.seed,
                "cell": cell.id,
                "failed_edits": cell.failed,
                "edited_models": models,
                "filters": {"none": "compat", "strict": "strict"},
                "protocols": cell.protocols,
            }),
        ),
    ];
    config.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
