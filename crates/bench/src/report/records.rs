//! Single records, for the page's browser. The page's script reads what is written here.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::{Report, escape};
use crate::results::{Both, ProbeResult, RecordResult, Role, Scores};

/// All records, as `{strings, cells: [{id, label, data, records}]}`. Texts are indices into
/// `strings`, as many methods are asked the same; a record is an array of
/// `[number, edits, error, before, after, immediate, probes, held, changed]`, a probe of
/// `[role, kind, prompt, answers, before, after, forced, scores, changed, immediate]`. Scores are
/// `[compat, strict]`, each `[[name, value], …]`; what was not asked is null. Of the texts of a record
/// those that strict's fluency is of are there, or else compat's: all are in the results, and would be
/// most of the page.
pub(super) fn document(report: &Report<'_>) -> Value {
    let mut strings = Strings::default();
    let mut cells = vec![];
    for (result, summary) in report.results.iter().zip(&report.cells) {
        let records: Vec<Value> = result.records.iter().map(|r| record(&mut strings, r)).collect();
        cells.push(json!({
            "id": result.id,
            "label": summary.label(),
            "data": summary.set,
            "records": records,
        }));
    }
    json!({"strings": strings.all, "cells": cells})
}

fn record(strings: &mut Strings, r: &RecordResult) -> Value {
    let edits: Vec<[usize; 2]> = r.edits.iter().map(|[p, t]| [strings.id(p), strings.id(t)]).collect();
    let error = r.error.as_ref().map(|e| strings.id(e));
    let (before, after) = (sides(strings, &r.before), sides(strings, &r.after));
    let immediate = r.immediate.as_ref().map(|both| sides(strings, both));
    let shown: Vec<&ProbeResult> = r.probes.iter().filter(|p| is_shown(r, p)).collect();
    let asked: Vec<bool> = shown.iter().map(|p| is_asked(r, p)).collect();
    let changed: Vec<bool> = shown.iter().zip(&asked).map(|(p, &asked)| is_changed(p, asked)).collect();
    let probes: Vec<Value> =
        shown.iter().enumerate().map(|(i, p)| probe(strings, p, asked[i], changed[i])).collect();
    json!([r.record, edits, error, before, after, immediate, probes, held(r), changed.contains(&true)])
}

fn probe(strings: &mut Strings, p: &ProbeResult, is_asked: bool, is_changed: bool) -> Value {
    let answers: Vec<usize> = p.answers.iter().map(|a| strings.id(a)).collect();
    let (kind, prompt) = (strings.id(&p.kind), strings.id(&p.prompt));
    let free = is_asked.then(|| (strings.id(&p.before), strings.id(&p.after)));
    let (before, after) = free.unzip();
    // Of a probe without an answer nothing is forced.
    let forced = p.forced.as_ref().filter(|texts| texts.iter().any(|text| !text.is_empty()));
    let forced = forced.map(|texts| [strings.id(&texts[0]), strings.id(&texts[1])]);
    let scores = sides(strings, &p.scores);
    let immediate = p.immediate.as_ref().filter(|_| is_asked).map(|said| strings.id(said));
    json!([p.role, kind, prompt, answers, before, after, forced, scores, is_changed, immediate])
}

/// Whether a probe is in the browser: of texts that are gone on with one way of writing is enough.
fn is_shown(record: &RecordResult, probe: &ProbeResult) -> bool {
    let texts = || record.probes.iter().filter(|p| p.role == Role::Generation);
    let first = ["nucleus", "compat"].into_iter().find(|kind| texts().any(|text| text.kind == *kind));
    probe.role != Role::Generation || first.is_none_or(|kind| probe.kind == kind)
}

/// Whether a probe has a free answer: with compat alone nothing is asked freely but for texts to be gone
/// on with.
fn is_asked(record: &RecordResult, probe: &ProbeResult) -> bool {
    let is_free =
        |p: &ProbeResult| !p.scores.strict.is_empty() || !p.before.is_empty() || !p.after.is_empty();
    let mut questions = record.probes.iter().filter(|p| p.role != Role::Generation);
    probe.role == Role::Generation || questions.any(is_free)
}

/// Whether something that should stay did not: by what is said freely, or else by compat's score.
fn is_changed(p: &ProbeResult, is_asked: bool) -> bool {
    let Both { compat, strict } = &p.scores;
    let score = strict.get("same").or_else(|| compat.get("tokens")).or_else(|| compat.get("same"));
    p.role == Role::Locality && score.map_or(is_asked && p.before != p.after, |score| *score < 1.0)
}

/// Whether an edit held: whether all its probes are right, by free answers or else by compat's tokens.
/// Nothing where no probe can be right or wrong, as with a sentiment, which has a degree.
fn held(r: &RecordResult) -> Option<bool> {
    if r.error.is_some() {
        return Some(false);
    }
    let of = |names: [&str; 2], side: fn(&Both) -> &Scores| {
        let edits = r.probes.iter().filter(|p| p.role == Role::Edit);
        let found: Vec<f64> =
            edits.filter_map(|p| names.iter().find_map(|name| side(&p.scores).get(*name).copied())).collect();
        (!found.is_empty()).then(|| found.iter().all(|score| *score == 1.0))
    };
    of(["exact", "erased"], |both| &both.strict).or_else(|| of(["tokens", "erased"], |both| &both.compat))
}

/// Compat and strict.
fn sides(strings: &mut Strings, both: &Both) -> [Vec<(usize, f64)>; 2] {
    [scores(strings, &both.compat), scores(strings, &both.strict)]
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
        self.all.push(escape::text(text));
        self.ids.insert(text.to_owned(), id);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(role: Role, compat: &[(&str, f64)], strict: &[(&str, f64)]) -> ProbeResult {
        let scores = |all: &[(&str, f64)]| all.iter().map(|(name, x)| ((*name).to_owned(), *x)).collect();
        ProbeResult {
            role,
            kind: String::new(),
            prompt: "P".into(),
            answers: vec![],
            before: String::new(),
            after: String::new(),
            immediate: None,
            forced: None,
            scores: Both { compat: scores(compat), strict: scores(strict) },
        }
    }

    fn record(probes: Vec<ProbeResult>) -> RecordResult {
        RecordResult { probes, ..RecordResult::default() }
    }

    #[test]
    fn an_edit_held_where_every_probe_of_it_is_right() {
        let edit = |compat: &[(&str, f64)], strict: &[(&str, f64)]| probe(Role::Edit, compat, strict);
        for (probes, expected) in [
            (vec![edit(&[("tokens", 0.5)], &[("exact", 1.0), ("f1", 0.9)])], Some(true)),
            (vec![edit(&[("tokens", 1.0)], &[("exact", 0.0)])], Some(false)),
            (vec![edit(&[], &[("exact", 1.0)]), edit(&[], &[("exact", 0.0)])], Some(false)),
            (vec![edit(&[("tokens", 1.0)], &[])], Some(true)),
            (vec![edit(&[("tokens", 0.75)], &[])], Some(false)),
            (vec![edit(&[], &[("erased", 1.0)])], Some(true)),
            // A sentiment has a degree; of nothing nothing is said.
            (vec![edit(&[], &[]), probe(Role::Locality, &[], &[("same", 1.0)])], None),
            (vec![], None),
        ] {
            assert_eq!(held(&record(probes.clone())), expected, "{probes:?}");
        }
        let failed = RecordResult { error: Some("no".into()), ..RecordResult::default() };
        assert_eq!(held(&failed), Some(false));
    }

    #[test]
    fn what_changed_is_told_by_either_protocol() {
        let kept = |compat: &[(&str, f64)], strict: &[(&str, f64)]| probe(Role::Locality, compat, strict);
        for (probe, expected) in [
            (kept(&[("tokens", 0.5)], &[]), true),
            (kept(&[("tokens", 1.0)], &[]), false),
            (kept(&[("same", 0.9)], &[]), true),
            (kept(&[("tokens", 0.5)], &[("same", 1.0)]), false),
            (kept(&[], &[("same", 0.0), ("kl", 0.5)]), true),
            (probe(Role::Portability, &[("tokens", 0.5)], &[]), false),
        ] {
            assert_eq!(is_changed(&probe, true), expected, "{probe:?}");
        }
    }

    #[test]
    fn what_was_not_asked_is_not_taken_for_an_empty_answer() {
        let asked = |r: &RecordResult| r.probes.iter().map(|p| is_asked(r, p)).collect::<Vec<_>>();
        let written = ProbeResult { after: "text".into(), ..probe(Role::Generation, &[], &[]) };
        let compat = probe(Role::Edit, &[("tokens", 1.0)], &[]);
        assert_eq!(asked(&record(vec![compat.clone(), written])), [false, true]);
        // ConvSent's own question has no score, and is asked with the others.
        let strict = probe(Role::Locality, &[], &[("same", 1.0)]);
        assert_eq!(asked(&record(vec![probe(Role::Edit, &[], &[]), strict])), [true, true]);
        assert_eq!(super::probe(&mut Strings::default(), &compat, false, false)[4], Value::Null);
    }
}
