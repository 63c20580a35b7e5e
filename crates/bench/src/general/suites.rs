//! The suites that are known: where their files are, and how a record becomes a question.
//!
//! Wordings are ours, so that scores compare before and after an edit, and not with tables that
//! used others.

use mutandis_edit::fact::texts;
use serde_json::{Map, Value};

use super::{Error, Measure, Path, PathBuf, Question, Result, nearest};

type Object = Map<String, Value>;
/// Context and choices.
type Asked = (String, Vec<String>);

/// A suite that is known.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// Its name.
    pub name: &'static str,
    /// What it asks.
    pub about: &'static str,
    /// The file of its questions, within a folder of suites.
    pub file: &'static str,
    /// By which measure it is reported.
    pub measure: Measure,
    /// The file of its labels beside that of its questions, where they have one of their own.
    pub(super) labels: Option<&'static str>,
    /// What a record looks like.
    pub(super) expected: &'static str,
    /// Context and choices of a record.
    ask: fn(&Object) -> Result<Asked, String>,
    /// Where a record says which choice is right; none where labels have a file of their own.
    answer: &'static str,
    /// What it calls its choices; indices from 0 where there are none.
    names: &'static [&'static str],
}

const LETTERS: &[&str] = &["A", "B", "C", "D", "E", "F", "G", "H", "I", "J"];

/// All of them: PIQA (arXiv 1911.11641), CommonsenseQA (1811.00937), MMLU (2009.03300), samples of
/// GLUE's tasks (1804.07461) and MuTual (2004.04494).
///
/// Choices that are texts are scored as texts, MMLU's by their letters, as is usual.
pub const SUITES: &[Known] = &[
    Known {
        name: "piqa",
        about: "everyday physics: which of two ways reaches a goal",
        file: "piqa/valid.jsonl",
        labels: Some("valid-labels.lst"),
        measure: Measure::AccNorm,
        expected: "expected JSON lines of {\"goal\", \"sol1\", \"sol2\"}",
        ask: |r| Ok((question(&text(r, "goal")?), vec![text(r, "sol1")?, text(r, "sol2")?])),
        answer: "",
        names: &[],
    },
    Known {
        name: "commonsense_qa",
        about: "common sense: which of five short answers fits a question",
        file: "commonsense_qa/test.jsonl",
        labels: None,
        measure: Measure::AccNorm,
        expected: "expected JSON lines of {\"question\", \"choices\": {\"text\": […]}, \"answerKey\": \"A\"}",
        ask: |r| {
            let choices = r.get("choices").and_then(Value::as_object).ok_or("`choices` is missing")?;
            Ok((question(&text(r, "question")?), list(choices, "text")?))
        },
        answer: "answerKey",
        names: LETTERS,
    },
    Known {
        name: "mmlu",
        about: "knowledge of 57 subjects, four answers each, by letter",
        file: "glue_eval/mmlu.jsonl",
        labels: None,
        measure: Measure::Acc,
        expected: "expected JSON lines of {\"question\", \"choices\": […], \"answer\": 0}",
        ask: |r| {
            let choices = list(r, "choices")?;
            let lettered = LETTERS.iter().zip(&choices).map(|(l, c)| format!("{l}. {c}\n"));
            let asked = format!("{}\n{}Answer:", text(r, "question")?.trim(), lettered.collect::<String>());
            Ok((asked, LETTERS.iter().take(choices.len()).map(|l| (*l).to_owned()).collect()))
        },
        answer: "answer",
        names: &[],
    },
    Known {
        name: "cola",
        about: "whether a sentence is grammatical",
        file: "glue_eval/cola.jsonl",
        labels: None,
        measure: Measure::Acc,
        expected: SENTENCE,
        ask: |r| {
            let asked = "Is the sentence grammatical?";
            Ok((format!("Sentence: {}\n{}", text(r, "sentence")?, question(asked)), words(["no", "yes"])))
        },
        answer: "label",
        names: &[],
    },
    Known {
        name: "sst2",
        about: "whether a review is favourable",
        file: "glue_eval/sst2.jsonl",
        labels: None,
        measure: Measure::Acc,
        expected: SENTENCE,
        ask: |r| {
            let asked = question("Is the review positive or negative?");
            let choices = words(["negative", "positive"]);
            Ok((format!("Review: {}\n{asked}", text(r, "sentence")?), choices))
        },
        answer: "label",
        names: &[],
    },
    Known {
        name: "mrpc",
        about: "whether two sentences mean the same",
        file: "glue_eval/mrpc.jsonl",
        labels: None,
        measure: Measure::Acc,
        expected: SENTENCES,
        ask: |r| Ok((pair(r, "Do both sentences mean the same?")?, words(["no", "yes"]))),
        answer: "label",
        names: &[],
    },
    Known {
        name: "rte",
        about: "whether the second sentence follows from the first",
        file: "glue_eval/rte.jsonl",
        labels: None,
        measure: Measure::Acc,
        expected: SENTENCES,
        ask: follows,
        answer: "label",
        names: &[],
    },
    Known {
        name: "nli",
        about: "the same, on other pairs",
        file: "glue_eval/nli.jsonl",
        labels: None,
        measure: Measure::Acc,
        expected: SENTENCES,
        ask: follows,
        answer: "label",
        names: &["entailment", "not_entailment"],
    },
    Known {
        name: "dialogue",
        about: "which of four replies goes on with a conversation",
        file: "glue_eval/dialogue.jsonl",
        labels: None,
        measure: Measure::AccNorm,
        expected: "expected JSON lines of {\"article\", \"options\": […], \"answers\": \"A\"}",
        ask: |r| Ok((text(r, "article")?, list(r, "options")?)),
        answer: "answers",
        names: LETTERS,
    },
];

const SENTENCE: &str = "expected JSON lines of {\"sentence\", \"label\": 0 or 1}";
const SENTENCES: &str = "expected JSON lines of {\"sentence1\", \"sentence2\", \"label\"}";

/// A suite by its name.
pub(super) fn find(name: &str) -> Result<&'static Known> {
    SUITES.iter().find(|known| known.name == name).ok_or_else(|| {
        let names: Vec<&str> = SUITES.iter().map(|known| known.name).collect();
        let meant = nearest(name, names.iter().copied());
        Error::input_hint(
            format!("there is no suite `{name}`"),
            format!(
                "{}there are `{}`",
                meant.map(|m| format!("did you mean `{m}`? ")).unwrap_or_default(),
                names.join("`, `")
            ),
        )
    })
}

impl Known {
    /// Its file: the one given, or the one in the folder given, or in that folder's `general`, as suites
    /// may have a folder of their own beside data sets.
    pub(super) fn within(&self, path: &Path) -> Result<PathBuf> {
        if !path.is_dir() {
            return Ok(path.to_owned());
        }
        let bare = Path::new(self.file).file_name();
        let names = [Some(self.file.as_ref()), bare].into_iter().flatten();
        let mut files = names.flat_map(|name| [path.join("general").join(name), path.join(name)]);
        files.find(|file| file.is_file()).ok_or_else(|| {
            Error::input_hint(
                format!("the folder `{}` has no `{}`", path.display(), self.file),
                format!("give the file of the suite `{}`, or a folder that has it", self.name),
            )
        })
    }

    /// A record as a question; its label where that is not in the record.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub(super) fn question(&self, record: &Value, label: Option<&str>) -> Result<Question, String> {
        let record = record.as_object().ok_or("it is no object")?;
        let (context, choices) = (self.ask)(record)?;
        if choices.len() < 2 {
            return Err(format!("it has {} choice, and two are needed at least", choices.len()));
        }
        let label = match label {
            Some("") => return Err("its label is missing".to_owned()),
            Some(label) => label.to_owned(),
            None => text(record, self.answer)?,
        };
        let found = match self.names {
            [] => label.parse().ok(),
            names => names.iter().position(|name| *name == label),
        };
        match found.filter(|answer| *answer < choices.len()) {
            Some(answer) => Ok(Question { context, choices, answer }),
            None => Err(format!("its label `{label}` is none of its {} choices", choices.len())),
        }
    }
}

/// A text, as it is written.
fn text(record: &Object, name: &str) -> Result<String, String> {
    match record.get(name) {
        Some(Value::String(text)) if !text.trim().is_empty() => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(number.to_string()),
        _ => Err(format!("`{name}` is missing or blank")),
    }
}

/// A list of texts, none of them blank: a choice more or less is another question.
fn list(record: &Object, name: &str) -> Result<Vec<String>, String> {
    let items = record.get(name).and_then(Value::as_array).ok_or(format!("`{name}` is no list"))?;
    let found = texts(&Value::Array(items.clone()));
    if found.len() != items.len() {
        return Err(format!("one of its `{name}` is blank"));
    }
    Ok(found)
}

fn words(choices: [&str; 2]) -> Vec<String> {
    choices.map(str::to_owned).to_vec()
}

fn question(asked: &str) -> String {
    format!("Question: {asked}\nAnswer:")
}

/// A question about two sentences.
fn pair(record: &Object, asked: &str) -> Result<String, String> {
    let [one, other] = [text(record, "sentence1")?, text(record, "sentence2")?];
    Ok(format!("Sentence 1: {one}\nSentence 2: {other}\n{}", question(asked)))
}

/// Label 0 is that it does.
fn follows(record: &Object) -> Result<Asked, String> {
    Ok((pair(record, "Does sentence 2 follow from sentence 1?")?, words(["yes", "no"])))
}
