//! Single records, for the page's browser. The page's script reads what is written here.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::Report;
use crate::results::{Both, ProbeResult, RecordResult, Scores};

/// All records, as `{strings, cells: [{id, label, data, records}]}`. Texts are indices into
/// `strings`, as many methods are asked the same; a record is an array of
/// `[number, edits, error, before, after, immediate, probes]`, a probe of
/// `[role, kind, prompt, answers, before, after, scores]`, scores are `[[name, value], …]`.
pub(super) fn document(report: &Report<'_>) -> Value {
    let mut strings = Strings::default();
    let mut cells = vec![];
    for (result, summary) in report.results.iter().zip(&report.cells) {
        let records: Vec<Value> = result.records.iter().map(|r| record(&mut strings, r)).collect();
        cells.push(json!({
            "id": result.id,
            "label": summary.label(),
            "data": summary.data.name,
            "records": records,
        }));
    }
    json!({"strings": strings.all, "cells": cells})
}

fn record(strings: &mut Strings, r: &RecordResult) -> Value {
    let edits: Vec<[usize; 2]> = r.edits.iter().map(|[p, t]| [strings.id(p), strings.id(t)]).collect();
    let error = r.error.as_ref().map(|e| strings.id(e));
    let mut sides = |both: &Both| [scores(strings, &both.compat), scores(strings, &both.strict)];
    let (before, after) = (sides(&r.before), sides(&r.after));
    let immediate = r.immediate.as_ref().map(sides);
    let probes: Vec<Value> = r.probes.iter().map(|p| probe(strings, p)).collect();
    json!([r.record, edits, error, before, after, immediate, probes])
}

fn probe(strings: &mut Strings, p: &ProbeResult) -> Value {
    let answers: Vec<usize> = p.answers.iter().map(|a| strings.id(a)).collect();
    let mut id = |text: &str| strings.id(text);
    let (kind, prompt, before, after) = (id(&p.kind), id(&p.prompt), id(&p.before), id(&p.after));
    json!([p.role, kind, prompt, answers, before, after, scores(strings, &p.scores)])
}

fn scores(strings: &mut Strings, scores: &Scores) -> Vec<(usize, f64)> {
    // Four digits are more than anybody reads, and a third of the bytes.
    scores.iter().map(|(name, value)| (strings.id(name), (value * 1e4).round() / 1e4)).collect()
}

/// Texts, each once.
#[derive(Default, Serialize)]
struct Strings {
    all: Vec<String>,
    #[serde(skip)]
    ids: HashMap<String, usize>,
}

impl Strings {
    fn id(&mut self, text: &str) -> usize {
        if let Some(&id) = self.ids.get(text) {
            return id;
        }
        let id = self.all.len();
        self.all.push(text.to_owned());
        self.ids.insert(text.to_owned(), id);
        id
    }
}
