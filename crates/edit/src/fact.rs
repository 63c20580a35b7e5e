//! Facts: what should be true, and where the prompt says of whom.

use std::path::Path;
use std::str::Utf8Error;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};

/// Jaro–Winkler similarity from which a text is a misspelling of a name; below, it is another.
const MISSPELT: f64 = 0.8;

/// How a fact relates to what the model says now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// The model knows nothing of it yet.
    Insert,
    /// It takes the place of another answer.
    #[default]
    Modify,
    /// The old answer is to be forgotten; the target is what is said in its place.
    Erase,
}

/// A prompt with the answers that are right for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Probe {
    /// What is probed: the data set's own name, such as `Relation_Specificity`.
    pub kind: String,
    /// The prompt.
    pub prompt: String,
    /// Answers that count as right; may be empty.
    pub answers: Vec<String>,
}

/// One fact.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Fact {
    /// Text that the target continues, such as `The capital of France is`.
    pub prompt: String,
    /// Of whom or what it speaks, as the prompt writes it; empty where no method needs it.
    #[serde(default)]
    pub subject: String,
    /// What should come next, without a leading blank.
    pub target: String,
    /// The target as its record writes it, where that has blanks around it: the peer scores those, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_target: Option<String>,
    /// What the model says, or should have said, before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ground_truth: Option<String>,
    /// Kind of change.
    #[serde(default)]
    pub change: Change,
    /// Other wordings of the prompt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rephrases: Vec<String>,
    /// What must stay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locality: Vec<Probe>,
    /// What must follow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub portability: Vec<Probe>,
}

impl Fact {
    /// A fact to be modified.
    ///
    /// # Errors
    /// Where the prompt or the target is empty.
    pub fn new(
        prompt: impl Into<String>,
        subject: impl Into<String>,
        target: impl Into<String>,
    ) -> Result<Self> {
        let fact = Self {
            prompt: prompt.into(),
            subject: subject.into().trim().to_owned(),
            target: target.into().trim().to_owned(),
            ..Self::default()
        };
        fact.check()?;
        Ok(fact)
    }

    /// Checks what every method relies on.
    ///
    /// # Errors
    /// Where the prompt or the target is empty.
    pub fn check(&self) -> Result<()> {
        if self.prompt.trim().is_empty() {
            return Err(Error::input_hint(
                "the prompt is empty",
                "give the text that the target should continue, such as `The capital of France is`",
            ));
        }
        if self.target.trim().is_empty() {
            return Err(Error::input_hint(
                format!("the target of `{}` is empty", self.prompt),
                "give the new answer, such as `--to Rome`; to erase one, give what should be said in its place",
            ));
        }
        Ok(())
    }

    /// The target as it follows the prompt: with a blank before it, where its script has blanks
    /// between words.
    pub fn continuation(&self) -> String {
        continuation(&self.target)
    }

    /// The subject as the prompt writes it; as given where the prompt does not name it.
    pub fn written_subject(&self) -> String {
        match self.subject_range() {
            Ok(range) => self.prompt.chars().skip(range.start).take(range.len()).collect(),
            Err(_) => self.subject.clone(),
        }
    }

    /// Where the prompt names the subject, in characters.
    ///
    /// An exact match of whole words wins, then any exact match, then one that overlooks case,
    /// the kind of quotes and dashes, and runs of blanks. Of several the last is taken: it has
    /// seen most of the prompt.
    ///
    /// # Errors
    /// Where the subject is empty or not in the prompt, with what might have been meant.
    pub fn subject_range(&self) -> Result<std::ops::Range<usize>> {
        find_subject(&self.prompt, &self.subject).ok_or_else(|| {
            if self.subject.is_empty() {
                return Error::input_hint(
                    format!("the fact `{}` names no subject", self.prompt),
                    "say of whom the prompt speaks: `--subject France`",
                );
            }
            Error::input_hint(
                format!("the subject `{}` is not in the prompt `{}`", self.subject, self.prompt),
                match nearest_words(&self.prompt, &self.subject) {
                    Some(near) => format!("write the subject as the prompt does; did you mean `{near}`?"),
                    None => "write the subject as the prompt does, or reword the prompt".to_owned(),
                },
            )
        })
    }

    /// Reads facts from JSON lines, or from one JSON array, with EasyEdit's field names
    /// (`prompt`, `subject`, `target_new`, `ground_truth`, `rephrase_prompt`, `locality`,
    /// `portability`, or flat `locality_prompt` and `locality_ground_truth`), MEND's (`src`, `alt`,
    /// `rephrase`, `loc`, `loc_ans`) or our own.
    ///
    /// # Errors
    /// Where the file cannot be read, or a record lacks a field or has it in another type: the
    /// line and the field are named.
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
    /// (`text`, `labels`, `concept`).
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn from_record(record: &Value) -> Result<Self, String> {
        let object =
            record.as_object().ok_or_else(|| format!("expected an object, found {}", kind(record)))?;
        let text = |names: &[&str]| -> Result<Option<String>, String> {
            match names.iter().find_map(|n| object.get(*n).filter(|v| !v.is_null()).map(|v| (n, v))) {
                None => Ok(None),
                Some((n, v)) => {
                    first_text(v).map(Some).ok_or_else(|| format!("`{n}` should be text, found {}", kind(v)))
                }
            }
        };
        let need = |names: &[&str]| text(names)?.ok_or_else(|| format!("`{}` is missing", names[0]));
        let change = match text(&["change"])?.as_deref() {
            None | Some("modify") => Change::Modify,
            Some("insert") => Change::Insert,
            Some("erase") => Change::Erase,
            Some(other) => return Err(format!("`change` is `{other}`, expected insert, modify or erase")),
        };
        let rephrases = ["rephrase_prompt", "rephrase", "rephrases"].iter().find_map(|n| object.get(*n));
        let prompt = need(&["prompt", "src", "text"])?;
        let written = need(&["target_new", "target", "alt", "labels"])?;
        let target = written.trim().to_owned();
        let fact = Self {
            prompt,
            subject: text(&["subject", "concept"])?.unwrap_or_default().trim().to_owned(),
            written_target: (written != target).then_some(written),
            target,
            ground_truth: text(&["ground_truth", "answers"])?,
            change,
            rephrases: rephrases.map(texts).unwrap_or_default(),
            locality: match (text(&["loc", "locality_prompt"])?, text(&["loc_ans", "locality_ground_truth"])?)
            {
                (Some(prompt), Some(answer)) => {
                    vec![Probe { kind: "loc".to_owned(), prompt, answers: vec![answer] }]
                }
                _ => object.get("locality").map(probes).unwrap_or_default(),
            },
            portability: object.get("portability").map(probes).unwrap_or_default(),
        };
        fact.check().map_err(|e| e.to_string())?;
        Ok(fact)
    }
}

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

/// A target as it follows a prompt.
pub fn continuation(target: &str) -> String {
    let target = target.trim_start();
    // Chinese, Japanese and Thai write no blanks; punctuation follows at once.
    let joined = |c: char| matches!(c, '\u{0e00}'..='\u{0eff}' | '\u{3000}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | ',' | '.' | ';' | ':' | '!' | '?');
    match target.chars().next() {
        Some(c) if joined(c) => target.to_owned(),
        _ => format!(" {target}"),
    }
}

/// The name that was meant, where the text is a misspelling of one.
pub fn nearest<'a>(text: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |name: &str| strsim::jaro_winkler(&name.to_lowercase(), &text.to_lowercase());
    let best = names.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) >= MISSPELT).then_some(best)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn first_text(value: &Value) -> Option<String> {
    match value {
        Value::String(s) => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        Value::Array(items) => items.iter().find_map(first_text),
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

/// `{kind: {prompt, ground_truth}}`, `{kind: [{…}]}`, or lists inside either; empty ones drop out.
fn probes(value: &Value) -> Vec<Probe> {
    fn gather(kind: &str, value: &Value, out: &mut Vec<Probe>) {
        match value {
            Value::Array(items) => items.iter().for_each(|v| gather(kind, v, out)),
            Value::Object(o) => match o.get("prompt") {
                Some(Value::Array(prompts)) => {
                    let answers = o.get("ground_truth").and_then(Value::as_array);
                    for (i, p) in prompts.iter().filter_map(Value::as_str).enumerate() {
                        let answers = answers.and_then(|a| a.get(i)).map(texts).unwrap_or_default();
                        out.push(Probe { kind: kind.to_owned(), prompt: p.to_owned(), answers });
                    }
                }
                Some(p) => {
                    if let Some(p) = first_text(p) {
                        let answers = o.get("ground_truth").map(texts).unwrap_or_default();
                        out.push(Probe { kind: kind.to_owned(), prompt: p, answers });
                    }
                }
                None => o.iter().for_each(|(k, v)| gather(k, v, out)),
            },
            _ => {}
        }
    }
    let mut out = vec![];
    gather("", value, &mut out);
    out
}

fn find_subject(prompt: &str, subject: &str) -> Option<std::ops::Range<usize>> {
    let chars: Vec<char> = prompt.chars().collect();
    let exact: Vec<char> = subject.chars().collect();
    if exact.is_empty() {
        return None;
    }
    let starts: Vec<usize> = (0..chars.len().saturating_sub(exact.len() - 1))
        .filter(|&i| chars[i..i + exact.len()] == exact[..])
        .collect();
    let word = |i: &&usize| {
        let edge = |c: Option<&char>| !c.is_some_and(|c| c.is_alphanumeric());
        edge(i.checked_sub(1).and_then(|j| chars.get(j))) && edge(chars.get(**i + exact.len()))
    };
    if let Some(&i) = starts.iter().rev().find(word).or(starts.last()) {
        return Some(i..i + exact.len());
    }
    // Tolerant: compare folded characters, remembering where each came from.
    let (folded, origins) = fold(&chars);
    let (wanted, _) = fold(&exact);
    if wanted.is_empty() {
        return None;
    }
    let at = (0..folded.len().saturating_sub(wanted.len() - 1))
        .rev()
        .find(|&i| folded[i..i + wanted.len()] == wanted[..])?;
    Some(origins[at]..origins[at + wanted.len() - 1] + 1)
}

/// Lower case, plain quotes and dashes, single blanks; with the index of each origin.
fn fold(chars: &[char]) -> (Vec<char>, Vec<usize>) {
    let (mut out, mut origins) = (vec![], vec![]);
    for (i, c) in chars.iter().enumerate() {
        let plain = match c {
            '‘' | '’' | '`' | '´' => '\'',
            '“' | '”' | '„' => '"',
            '‐' | '‑' | '–' | '—' | '_' => '-',
            c if c.is_whitespace() => ' ',
            c => *c,
        };
        if plain == ' ' && (out.is_empty() || out.last() == Some(&' ')) {
            continue;
        }
        for lower in plain.to_lowercase() {
            out.push(lower);
            origins.push(i);
        }
    }
    while out.last() == Some(&' ') {
        out.pop();
        origins.pop();
    }
    (out, origins)
}

/// The run of as many words of the prompt that is most like the subject.
fn nearest_words<'a>(prompt: &'a str, subject: &str) -> Option<&'a str> {
    let count = subject.split_whitespace().count().max(1);
    let words: Vec<&str> = prompt.split_whitespace().collect();
    let runs = words.windows(count.min(words.len().max(1))).map(|w| {
        let start = w[0].as_ptr() as usize - prompt.as_ptr() as usize;
        let last = w[w.len() - 1];
        let end = last.as_ptr() as usize - prompt.as_ptr() as usize + last.len();
        &prompt[start..end]
    });
    nearest(subject, runs)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn check_subject(prompt: &str, subject: &str, expected: &str) {
        let range = Fact::new(prompt, subject, "x").unwrap().subject_range().unwrap();
        let found: String = prompt.chars().skip(range.start).take(range.len()).collect();
        assert_eq!(found, expected, "`{subject}` in `{prompt}`");
    }

    #[test]
    fn subjects_are_found_exactly_or_tolerantly() {
        check_subject("The capital of France is", "France", "France");
        check_subject("Bart likes art and Bartók", "art", "art");
        check_subject("Zoë’s  mother is", "zoë's mother", "Zoë’s  mother");
        check_subject("東京の市長は", "東京", "東京");
        check_subject("The Jean–Luc story", " jean-luc ", "Jean–Luc");
    }

    #[test]
    fn an_absent_subject_is_named_with_what_may_be_meant() {
        let error =
            Fact::new("The capital of France is", "Frnace", "Rome").unwrap().subject_range().unwrap_err();
        assert_eq!(error.to_string(), "the subject `Frnace` is not in the prompt `The capital of France is`");
        assert!(error.hint().unwrap().contains("did you mean `France`?"), "{:?}", error.hint());
        let error = Fact::new("The capital of France is", "", "Rome").unwrap().subject_range().unwrap_err();
        assert!(error.hint().unwrap().contains("--subject"));
    }

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
