//! RippleEdits (arXiv 2307.12976): a fact and what follows from it, by six criteria.
//!
//! Its edit is a whole sentence, and its subject an id: what the target and the subject are is read
//! off the sentence before the edit and the questions about aliases.

use mutandis_edit::fact::{kind, texts};
use mutandis_edit::{Change, Fact, Probe};
use serde_json::{Map, Value};

use super::Task;
use super::forms::{one, text};

/// What stays.
const LOCALITY: [&str; 2] = ["Relation_Specificity", "Forgetfulness"];
/// What follows.
const PORTABILITY: [&str; 4] =
    ["Logical_Generalization", "Compositionality_I", "Compositionality_II", ALIASING];
/// What stands before the object.
const IS: &str = " is ";
/// Questions that name the subject otherwise.
const ALIASING: &str = "Subject_Aliasing";

/// A record as a task.
///
/// # Errors
/// Where no sentence is there, or no target can be read off it.
pub(super) fn task(record: &Map<String, Value>, notes: &mut Vec<String>) -> Result<Task, String> {
    let edit = record.get("edit").and_then(Value::as_object).ok_or("`edit` is missing")?;
    let sentence = text(edit, "prompt")?;
    let sentence = sentence.trim_end().trim_end_matches('.');
    let before = edit.get("original_fact").and_then(Value::as_object).and_then(|o| text(o, "prompt").ok());
    let mut probes = |kinds: &[&str]| -> Vec<Probe> {
        kinds.iter().flat_map(|kind| queries(record, kind, notes)).collect()
    };
    let portability = probes(&PORTABILITY);
    let aliases: Vec<Probe> = portability.iter().filter(|p| p.kind == ALIASING).cloned().collect();
    let (prompt, target) = cut(sentence, before.as_deref(), &aliases)
        .ok_or_else(|| format!("no target can be told from the rest of `{sentence}`"))?;
    let mut fact = Fact::new(&prompt, subject(&prompt, &aliases).unwrap_or_default(), target)
        .map_err(|e| e.to_string())?;
    fact.ground_truth = before
        .and_then(|b| Some(b.trim_end().trim_end_matches('.').strip_prefix(&prompt)?.trim().to_owned()));
    fact.change = if fact.ground_truth.is_some() { Change::Modify } else { Change::Insert };
    fact.locality = probes(&LOCALITY);
    fact.portability = portability;
    Ok(one(fact))
}

/// The questions of a criterion, each with its answers and their aliases; what is none is noted.
fn queries(record: &Map<String, Value>, criterion: &str, notes: &mut Vec<String>) -> Vec<Probe> {
    let mut passed_over = |what: &Value, expected: &str| {
        if !what.is_null() {
            let found = kind(what);
            notes.push(format!("{found} in `{criterion}` is passed over: it should be {expected}"));
        }
    };
    let mut list = |value: Option<&Value>, expected: &str| -> Vec<Value> {
        match value {
            None => vec![],
            Some(Value::Array(items)) => items.clone(),
            Some(other) => {
                passed_over(other, expected);
                vec![]
            }
        }
    };
    let tests = list(record.get(criterion), "a list of tests");
    let queries: Vec<Value> =
        tests.iter().flat_map(|test| list(test.get("test_queries"), "a list of questions")).collect();
    let mut all = vec![];
    for query in &queries {
        let Some(prompt) = query.get("prompt").map(texts).and_then(|all| all.into_iter().next()) else {
            passed_over(query, "an object with a `prompt`");
            continue;
        };
        // One alone need not be in a list.
        let answers = match query.get("answers") {
            Some(Value::Array(answers)) => &answers[..],
            Some(one) => std::slice::from_ref(one),
            None => &[],
        };
        let names = |answer: &Value| -> Vec<String> {
            match answer {
                Value::Object(_) => {
                    ["value", "aliases"].iter().filter_map(|n| answer.get(*n)).flat_map(texts).collect()
                }
                text => texts(text),
            }
        };
        let answers = answers.iter().flat_map(names).collect();
        all.push(Probe { kind: criterion.to_owned(), prompt, answers });
    }
    all
}

/// A sentence as prompt and target: at an answer to the question about an alias (the longest that it
/// ends with), behind what it shares with the sentence before the edit, or at its last "is". What it
/// shares may reach into the target ("United Kingdom", "United States"): its sentences have one "is".
fn cut(sentence: &str, before: Option<&str>, aliases: &[Probe]) -> Option<(String, String)> {
    let at = |at: usize| {
        let (prompt, target) = (sentence[..at].trim_end(), sentence[at..].trim());
        (!prompt.is_empty() && !target.is_empty()).then(|| (prompt.to_owned(), target.to_owned()))
    };
    let answered = aliases.iter().flat_map(|p| &p.answers).filter_map(|answer| {
        let prompt = sentence.strip_suffix(answer.trim()).filter(|p| p.ends_with(char::is_whitespace))?;
        Some(prompt.len())
    });
    let shared = before.and_then(|before| {
        let same =
            sentence.char_indices().zip(before.chars()).find(|((_, a), b)| a != b).map(|((i, _), _)| i)?;
        let (is, word) = (sentence[..same].rfind(IS), sentence[..same].rfind(char::is_whitespace));
        is.map(|i| i + IS.len()).or(word)
    });
    let last_is = || sentence.rfind(IS).map(|i| i + IS.len());
    at(answered.min().or(shared).or_else(last_is)?)
}

/// The subject: what stands in the prompt where the question about an alias has the alias.
fn subject(prompt: &str, aliases: &[Probe]) -> Option<String> {
    aliases.iter().find_map(|probe| {
        let same = |a: &mut dyn Iterator<Item = char>, b: &mut dyn Iterator<Item = char>| {
            a.zip(b).take_while(|(a, b)| a == b).count()
        };
        let (one, other): (Vec<char>, Vec<char>) =
            (prompt.chars().collect(), probe.prompt.trim_end().chars().collect());
        let mut ahead = same(&mut one.iter().copied(), &mut other.iter().copied());
        let longest = one.len().min(other.len()) - ahead;
        let mut behind = same(&mut one.iter().rev().copied(), &mut other.iter().rev().copied()).min(longest);
        // A name does not begin or end within a word.
        while ahead > 0 && one[ahead - 1].is_alphanumeric() {
            ahead -= 1;
        }
        while behind > 0 && one[one.len() - behind].is_alphanumeric() {
            behind -= 1;
        }
        let name: String = one.get(ahead..one.len() - behind)?.iter().collect();
        let name = name.trim();
        (!name.is_empty()).then(|| name.to_owned())
    })
}
