//! lm-evaluation-harness's result layout, so that its tools read ours.

use serde_json::{Map, Value, json};

use super::Report;
use super::metric;
use super::protocol::Protocol;
use super::summary::Summary;
use crate::run::Mode;

/// A `results_*.json` (harness 0.4). There is no date in it and no commit: the same results give
/// the same file.
pub(super) fn document(report: &Report<'_>) -> Value {
    let model = &report.run.model;
    let mut sections =
        ["results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples"]
            .map(|name| (name, Map::new()));
    for cell in &report.cells {
        let name = task(report, cell);
        let about = [
            results(&name, cell),
            json!([]),
            config(report, &name, cell),
            json!(super::FORMAT),
            json!(0),
            higher_is_better(cell),
            json!({"original": cell.records, "effective": cell.scored}),
        ];
        for ((_, section), value) in sections.iter_mut().zip(about) {
            section.insert(name.clone(), value);
        }
    }
    let mut out: Map<String, Value> =
        sections.into_iter().map(|(name, section)| (name.to_owned(), Value::Object(section))).collect();
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
    let version = report
        .cells
        .iter()
        .find(several)
        .map(|_| super::table::short(&cell.data.version))
        .unwrap_or_default();
    let words = [benchmark, &cell.data.name, &version, &cell.method, &mode, &cell.variant];
    let slug = |text: &str| {
        let letters = text.chars().map(|c| if c.is_alphanumeric() { c } else { '_' });
        letters.flat_map(char::to_lowercase).collect::<String>()
    };
    words.into_iter().filter(|w| !w.is_empty()).map(slug).collect::<Vec<_>>().join("_")
}

/// A metric's name there: `edit` is `edit_success`, a part of a score has its name behind it.
fn name(score: &str) -> String {
    let name = score.replace(['/', ':', '-', ',', ' '], "_").to_lowercase();
    if name == "edit" { "edit_success".into() } else { name }
}

fn results(task: &str, cell: &Summary) -> Value {
    let mut out = Map::new();
    out.insert("alias".into(), json!(task));
    for (side, prefix) in [(&cell.after, ""), (&cell.immediate, "immediate_"), (&cell.before, "unedited_")] {
        for protocol in Protocol::ALL {
            let filter = filter(protocol);
            for (score, s) in protocol.of(side) {
                let name = format!("{prefix}{}", name(score));
                out.insert(format!("{name},{filter}"), json!(s.mean));
                // The harness writes "N/A" where there is no error to tell.
                out.insert(format!("{name}_stderr,{filter}"), s.stderr.map_or(json!("N/A"), |e| json!(e)));
            }
        }
    }
    Value::Object(out)
}

fn filter(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Compat => "none",
        Protocol::Strict => "strict",
    }
}

fn higher_is_better(cell: &Summary) -> Value {
    let scores = [&cell.after, &cell.immediate, &cell.before];
    let names = scores.into_iter().flat_map(|s| s.compat.keys().chain(s.strict.keys()));
    let sides = names.flat_map(|score| {
        ["", "immediate_", "unedited_"]
            .map(|prefix| (format!("{prefix}{}", name(score)), json!(metric::higher_is_better(score))))
    });
    Value::Object(sides.collect())
}

fn config(report: &Report<'_>, task: &str, cell: &Summary) -> Value {
    json!({
        "task": task,
        "dataset_name": cell.data.name,
        "dataset_version": cell.data.version,
        "num_fewshot": 0,
        "repeats": 1,
        "metadata": {
            "version": super::FORMAT,
            "method": cell.method,
            "mode": cell.mode,
            "settings": cell.settings,
            "seed": cell.seed,
            "cell": cell.id,
            "failed_edits": cell.failed,
            "filters": {"none": "compat", "strict": "strict"},
            "protocols": report.protocols,
        },
    })
}
