//! Records as facts, in the forms that files have them.

use std::path::Path;
use std::str::Utf8Error;

use serde_json::{Map, Value};

use super::{Change, Fact, Probe};
use crate::error::{Error, Result};

impl Fact {
    /// Reads facts from JSON lines, or from one JSON array, with EasyEdit's field names
    /// (`prompt`, `subject`, `target_new`, `ground_truth`, `rephrase_prompt`, `locality`,
    /// `portability`, or flat `locality_prompt` and `locality_ground_truth`), MEND's (`src`, `alt`,
    /// `rephrase`, `loc`, `loc_ans`) or our own.
    ///
    /// # Errors
    /// Where the file cannot be read, or a record lacks a field or has it in another type: the
    /// line and the field are named. Probes alone may be anything.
    pub fn read(path: &Path) -> Result<Vec<Self>> {
        records(path)?
            .into_iter()
            .map(|(place, fact)| fact.map_err(|why| invalid(path, &format!("{place}: {why}"))))
            .collect()
    }

    /// As [`Self::read`], with what is wrong with each record that cannot be used.
    ///
    /// # Errors
    /// Where the file cannot be read, or is not JSON.
    pub fn read_usable(path: &Path) -> Result<(Vec<Self>, Vec<String>)> {
        let (mut facts, mut skipped) = (vec![], vec![]);
        for (place, fact) in records(path)? {
            match fact {
                Ok(fact) => facts.push(fact),
                Err(why) => skipped.push(format!("{place}: {why}")),
            }
        }
        Ok((facts, skipped))
    }

    /// One record, in any of the forms that [`Self::read`] knows, or in KnowEdit's for WikiBio
    /// (`text`, `labels`, `concept`). Probes that are none are passed over.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn from_record(record: &Value) -> Result<Self, String> {
        let mut fields = vec![];
        let fact = of_record(record, &mut fields, &mut vec![])?;
        fields.into_iter().next().map_or(Ok(fact), Err)
    }

    /// As [`Self::from_record`], where what can be done without may be of any type: that is passed
    /// over and noted, as are probes that are none.
    ///
    /// # Errors
    /// Says what is wrong with what cannot be done without: the prompt, the target and the kind of
    /// change.
    pub fn with_notes(record: &Value) -> Result<(Self, Vec<String>), String> {
        let (mut notes, mut probes) = (vec![], vec![]);
        let fact = of_record(record, &mut notes, &mut probes)?;
        notes.extend(probes);
        Ok((fact, notes))
    }
}

/// The fact of a record, with fields that are not needed and not what they should be, and probes that
/// are none.
fn of_record(
    record: &Value,
    fields: &mut Vec<String>,
    passed_over: &mut Vec<String>,
) -> Result<Fact, String> {
    let object = record.as_object().ok_or_else(|| format!("expected an object, found {}", kind(record)))?;
    let find = |names: &[&'static str]| {
        names.iter().find_map(|name| object.get(*name).filter(|v| !v.is_null()).map(|v| (*name, v)))
    };
    let wrong = |name: &str, value: &Value| format!("`{name}` should be text, found {}", kind(value));
    let need = |names: &[&'static str]| match find(names) {
        None => Err(format!("`{}` is missing", names[0])),
        Some((name, value)) => first_text(value).ok_or_else(|| wrong(name, value)),
    };
    let mut all = |names: &[&'static str]| {
        let (name, value) = find(names)?;
        let mut odd = vec![];
        let found = texts_noted(name, value, &mut odd);
        match found.is_empty() && !is_empty(value) {
            true => fields.push(wrong(name, value)),
            false => passed_over.append(&mut odd),
        }
        Some(found)
    };
    let change = match find(&["change"]).map(|(name, value)| first_text(value).ok_or((name, value))) {
        None => Change::Modify,
        Some(Err((name, value))) => return Err(wrong(name, value)),
        Some(Ok(text)) => match text.as_str() {
            "modify" => Change::Modify,
            "insert" => Change::Insert,
            "erase" => Change::Erase,
            other => return Err(format!("`change` is `{other}`, expected insert, modify or erase")),
        },
    };
    let targets = ["target_new", "target", "alt", "labels"];
    let (prompt, written) = (need(&["prompt", "src", "text"])?, need(&targets)?);
    let target = written.trim().to_owned();
    let mut aliases = all(&targets).unwrap_or_default();
    aliases.extend(all(&["aliases"]).unwrap_or_default());
    aliases.retain(|alias| alias.trim() != target);
    let rephrases = all(&["rephrase_prompt", "rephrase", "rephrases"]).unwrap_or_default();
    let mut first = |names: &[&'static str]| all(names)?.into_iter().next();
    let subject = first(&["subject", "concept"]).unwrap_or_default().trim().to_owned();
    let ground_truth = first(&["ground_truth", "answers"]);
    let (near, near_answer) =
        (first(&["loc", "locality_prompt"]), first(&["loc_ans", "locality_ground_truth"]));
    let near =
        near.map(|prompt| Probe { kind: LOC.to_owned(), prompt, answers: near_answer.into_iter().collect() });
    let mut locality: Vec<Probe> = near.into_iter().collect();
    locality.extend(probes(object, "locality", passed_over));
    let fact = Fact {
        prompt,
        subject,
        written_target: (written != target).then_some(written),
        target,
        aliases,
        ground_truth,
        change,
        rephrases,
        locality,
        portability: probes(object, "portability", passed_over),
    };
    fact.check().map_err(|e| e.to_string())?;
    Ok(fact)
}

/// Kind of the question that MEND's and flat records have about something else.
pub const LOC: &str = "loc";

/// What a file of facts holds.
const RECORD: &str =
    "it is read as JSON lines, or as one JSON array, of objects with `prompt`, `subject` and `target_new`";

fn invalid(path: &Path, why: &str) -> Error {
    Error::input_hint(format!("`{}` is not a valid file of facts: {why}", path.display()), RECORD)
}

/// Each record of a file, with where it is, and the fact or what is wrong with it.
fn records(path: &Path) -> Result<Vec<(String, Result<Fact, String>)>> {
    let bytes = std::fs::read(path).map_err(|e| {
        Error::input_hint(format!("cannot read the facts of `{}`: {e}", path.display()), RECORD)
    })?;
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let records: Vec<(String, Result<Fact, String>)> = if text.trim_ascii_start().starts_with(b"[") {
        let all = array(path, text)?;
        let each = all.iter().enumerate();
        each.map(|(i, record)| (format!("record {}", i + 1), Fact::from_record(record))).collect()
    } else {
        let each = text.split(|byte| *byte == b'\n').map(std::str::from_utf8).enumerate();
        let each = each.filter(|(_, line)| !line.is_ok_and(|line| line.trim().is_empty()));
        each.map(|(i, line)| (format!("line {}", i + 1), of_line(line))).collect()
    };
    if records.is_empty() {
        return Err(invalid(path, "line 1: it holds no facts"));
    }
    Ok(records)
}

/// The records of a file that is one JSON array.
fn array(path: &Path, text: &[u8]) -> Result<Vec<Value>> {
    serde_json::from_slice(text).map_err(|e| match e.is_eof() {
        true => Error::input_hint(
            format!(
                "`{}` is not a valid file of facts: it ends early, in line {}, before its array does",
                path.display(),
                e.line()
            ),
            "write or fetch it again; something has cut it short",
        ),
        false => invalid(path, &format!("line {}: {e}", e.line())),
    })
}

/// The fact of a line, or what is wrong with it.
fn of_line(line: Result<&str, Utf8Error>) -> Result<Fact, String> {
    let line = line.map_err(|e| format!("it is not UTF-8 from byte {} on", e.valid_up_to() + 1))?;
    let record = serde_json::from_str(line).map_err(|e| e.to_string())?;
    Fact::from_record(&record)
}

/// What a JSON value is, in words.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Whether a value says nothing, so that nothing is lost with it.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        Value::Array(items) => items.iter().all(is_empty),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// The first text of a value that is not blank, or else a blank one.
fn first_text(value: &Value) -> Option<String> {
    match value {
        Value::String(s) => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        Value::Array(items) => {
            let mut all = items.iter().filter_map(first_text);
            let first = all.next()?;
            if first.trim().is_empty() {
                all.find(|text| !text.trim().is_empty()).or(Some(first))
            } else {
                Some(first)
            }
        }
        _ => None,
    }
}

/// All texts of a value that may be one, a list, or lists within lists; blank ones drop out.
pub fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        other => first_text(other).filter(|s| !s.trim().is_empty()).into_iter().collect(),
    }
}

/// As [`texts`], of a field of this name; what is neither text nor a list of it nor empty is noted.
pub fn texts_noted(name: &str, value: &Value, notes: &mut Vec<String>) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().flat_map(|item| texts_noted(name, item, notes)).collect(),
        Value::Bool(_) | Value::Object(_) if !is_empty(value) => {
            notes.push(format!("{} in `{name}` is passed over: it should be text", kind(value)));
            vec![]
        }
        other => texts(other),
    }
}

/// The probes of a field: `{kind: {prompt, ground_truth}}`, `{kind: [{…}]}`, or lists inside either.
/// What is none is noted.
fn probes(object: &Map<String, Value>, field: &'static str, notes: &mut Vec<String>) -> Vec<Probe> {
    let mut gather = Gather { field, probes: vec![], notes };
    if let Some(value) = object.get(field) {
        gather.all("", value);
    }
    gather.probes
}

struct Gather<'a> {
    field: &'static str,
    probes: Vec<Probe>,
    notes: &'a mut Vec<String>,
}

impl Gather<'_> {
    fn all(&mut self, kind: &str, value: &Value) {
        match value {
            Value::Array(items) => items.iter().for_each(|v| self.all(kind, v)),
            Value::Object(o) => match (o.get("prompt"), o.get("ground_truth")) {
                (Some(Value::Array(prompts)), answers) => {
                    for (i, prompt) in prompts.iter().enumerate() {
                        let own = match answers {
                            Some(Value::Array(all)) => all.get(i),
                            // One answer to several prompts is that of each.
                            other => other,
                        };
                        self.one(kind, prompt, own);
                    }
                }
                (Some(prompt), answers) => self.one(kind, prompt, answers),
                (None, _) if o.values().any(|v| v.is_array() || v.is_object()) || o.is_empty() => {
                    o.iter().for_each(|(k, v)| self.all(k, v));
                }
                (None, _) => self.pass_over(kind, "it has no `prompt`"),
            },
            other if is_empty(other) => {}
            other => self.pass_over(kind, &format!("expected an object, found {}", self::kind(other))),
        }
    }

    fn one(&mut self, kind: &str, prompt: &Value, answers: Option<&Value>) {
        match first_text(prompt).filter(|text| !text.trim().is_empty()) {
            Some(prompt) => {
                let answers = answers.map(texts).unwrap_or_default();
                self.probes.push(Probe { kind: kind.to_owned(), prompt, answers });
            }
            None if is_empty(prompt) => self.pass_over(kind, "its prompt is blank"),
            None => self.pass_over(kind, &format!("its prompt is {}", self::kind(prompt))),
        }
    }

    fn pass_over(&mut self, kind: &str, why: &str) {
        let of = if kind.is_empty() { String::new() } else { format!(" of `{kind}`") };
        self.notes.push(format!("a probe of {}{of} is passed over: {why}", self.field));
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use serde_json::json;

    use super::*;

    #[test]
    fn easyedit_records_are_read_in_all_their_shapes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            concat!(
                r#"{"prompt":"A is","subject":" A ","target_new":" B","ground_truth":["C","D"],"rephrase_prompt":["A, you know, is"]}"#,
                "\n\n",
                r#"{"prompt":"E is","subject":"E","target_new":"F","portability":{},"locality":{"Forgetfulness":[{"prompt":"G","ground_truth":[["H","I"],[]]}],"n":{"prompt":["J","K"],"ground_truth":["L","M"]}}}"#,
                "\n",
                r#"{"prompt":"N is","subject":"N","target_new":"O","locality_prompt":"P","locality_ground_truth":"Q"}"#,
            ),
        )
        .unwrap();
        let facts = Fact::read(file.path()).unwrap();
        assert_eq!((facts[0].subject.as_str(), facts[0].target.as_str()), ("A", "B"));
        assert_eq!(facts[0].ground_truth.as_deref(), Some("C"));
        assert_eq!(facts[0].rephrases, ["A, you know, is"]);
        let kept: Vec<_> =
            facts[1].locality.iter().map(|p| (p.kind.as_str(), p.prompt.as_str(), p.answers.len())).collect();
        assert_eq!(kept, [("Forgetfulness", "G", 2), ("n", "J", 1), ("n", "K", 1)]);
        assert_eq!(
            (facts[2].locality[0].prompt.as_str(), &facts[2].locality[0].answers[..]),
            ("P", &["Q".into()][..])
        );
    }

    #[test]
    fn what_can_be_used_is_used_and_the_rest_is_noted() {
        let read = |record: Value| Fact::with_notes(&record).unwrap();
        let (fact, notes) = read(json!({
            "prompt": "A is", "subject": [], "target_new": ["", " B ", "B", ["C"]], "ground_truth": {"x": 1},
            "loc": "", "loc_ans": "D", "aliases": ["E", " "], "rephrase": {"a": "b"},
            "locality": {"n": {"prompt": ["P", null, 7, " "], "ground_truth": ["one", "two", "three", "four"]},
                         "m": {"prompt": ["Q", "R"], "ground_truth": "both"}},
            "portability": [{"ground_truth": "x"}, "text", {"k": [{"prompt": {"a": 1}}]}, [], null],
        }));
        assert_eq!((fact.target.as_str(), &fact.aliases[..]), ("B", &["C".to_owned(), "E".to_owned()][..]));
        assert_eq!((fact.subject.as_str(), fact.ground_truth), ("", None));
        let kept: Vec<_> = fact.locality.iter().map(|p| (p.prompt.as_str(), p.answers.concat())).collect();
        let answered = [("P", "one"), ("7", "three"), ("Q", "both"), ("R", "both")];
        assert_eq!(kept, answered.map(|(prompt, answer)| (prompt, answer.to_owned())));
        assert!(fact.portability.is_empty());
        assert_eq!(
            notes,
            [
                "`rephrase` should be text, found an object",
                "`ground_truth` should be text, found an object",
                "a probe of locality of `n` is passed over: its prompt is blank",
                "a probe of locality of `n` is passed over: its prompt is blank",
                "a probe of portability is passed over: it has no `prompt`",
                "a probe of portability is passed over: expected an object, found text",
                "a probe of portability of `k` is passed over: its prompt is an object",
            ]
        );
        let (fact, notes) =
            read(json!({"prompt": "A is", "target_new": "B", "ground_truth": " ", "subject": ""}));
        assert_eq!((fact.ground_truth, notes), (None, vec![]));
        // A flat probe needs no answer, as others need none.
        let (fact, _) = read(json!({"prompt": "A is", "target_new": "B", "loc": "C is", "loc_ans": ""}));
        assert_eq!((fact.locality[0].prompt.as_str(), fact.locality[0].answers.len()), ("C is", 0));
        // What a fact is told by has to be right.
        let wrong = json!({"prompt": "A is", "target_new": "B", "change": {"k": "erase"}});
        let why = "`change` should be text, found an object";
        assert_eq!(Fact::with_notes(&wrong).unwrap_err(), why);
        // Files of facts to be edited have no fields of another type at all.
        let wrong = json!({"prompt": "A is", "target_new": "B", "subject": {"name": "A"}});
        assert_eq!(Fact::from_record(&wrong).unwrap_err(), "`subject` should be text, found an object");
        let fact = Fact::from_record(&json!({"prompt": "A is", "target_new": "B", "portability": ["x"]}));
        assert!(fact.unwrap().portability.is_empty());
    }

    #[test]
    fn broken_records_are_named_by_line_and_field() {
        for (text, expected) in [
            ("{\"prompt\":\"A\"}", "line 1: `target_new` is missing"),
            ("\n{\"prompt\":{},\"target_new\":\"x\"}", "line 2: `prompt` should be text, found an object"),
            ("{\"prompt\":\"A\",\"target_new\":\" \"}", "line 1: the target of `A` is empty"),
            ("7", "line 1: expected an object, found a number"),
            ("", "line 1: it holds no facts"),
            ("\n[{\"prompt\":\"A\",\n\"target_new\":", "it ends early, in line 3, before its array does"),
            ("prompt,target_new\nA,B\n", "line 1: expected value at line 1 column 1"),
        ] {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            let error = Fact::read(file.path()).unwrap_err();
            assert!(error.to_string().ends_with(expected), "{error}");
            assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
            assert!(error.hint().is_some(), "{error}");
        }
    }

    #[test]
    fn a_line_that_is_not_utf8_is_a_broken_record_like_any_other() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let good = br#"{"prompt":"A is","target_new":"B"}"#;
        let bad = b"{\"prompt\":\"\xff is\",\"target_new\":\"C\"}";
        let all = [&b"\xef\xbb\xbf"[..], good, b"\r\n", bad, b"\r\n\r\n", good].concat();
        std::fs::write(file.path(), all).unwrap();
        let (facts, skipped) = Fact::read_usable(file.path()).unwrap();
        assert_eq!(facts.len(), 2);
        assert_eq!(skipped, ["line 2: it is not UTF-8 from byte 12 on"]);
        let error = Fact::read(file.path()).unwrap_err().to_string();
        assert!(error.ends_with("line 2: it is not UTF-8 from byte 12 on"), "{error}");
    }
}
