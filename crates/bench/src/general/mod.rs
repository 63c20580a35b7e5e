//! General ability: fixed suites of questions with choices, scored by likelihood, to see what an
//! edit breaks.
//!
//! Of each question the choice that the model finds likeliest counts, zero-shot: nothing is
//! generated, and nothing drawn. Suites are read from files as they are published.

mod suites;

use std::path::{Path, PathBuf};

use mutandis_edit::fact::nearest;
use mutandis_edit::{Error, Result};
use mutandis_engine::Model;
use serde::{Deserialize, Serialize};

pub use suites::{Known, SUITES};

use crate::data::{self, Note, Source};
use crate::edited::Edited;
use crate::fork::{Fork, log_probabilities};

/// A question with choices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Question {
    /// Text that each choice goes on from, a blank between.
    pub context: String,
    /// Choices; two at least.
    pub choices: Vec<String>,
    /// Index of the right one.
    pub answer: usize,
}

/// How the likeliest choice is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// By ln p of the whole choice: where choices are letters or single words.
    Acc,
    /// By ln p per byte of the choice (lm-evaluation-harness' `acc_norm`): where choices are
    /// sentences of unequal length.
    AccNorm,
}

impl Measure {
    /// As lm-evaluation-harness names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Acc => "acc",
            Self::AccNorm => "acc_norm",
        }
    }
}

/// Share of questions answered right, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// By [`Measure::Acc`].
    pub acc: f64,
    /// By [`Measure::AccNorm`].
    pub acc_norm: f64,
    /// Number of questions.
    pub n: usize,
}

impl Accuracy {
    /// The one of the two.
    pub fn by(&self, measure: Measure) -> f64 {
        match measure {
            Measure::Acc => self.acc,
            Measure::AccNorm => self.acc_norm,
        }
    }
}

/// A suite as it was read.
#[derive(Debug, Clone)]
pub struct Suite {
    /// Its name, such as `piqa`.
    pub name: &'static str,
    /// By which measure it is reported.
    pub measure: Measure,
    /// The file's git blob id; where labels are a file of their own, both, with a `+` between.
    pub version: String,
    /// Its questions, in the order of the file.
    pub questions: Vec<Question>,
    /// Records that cannot be used, and why; with a limit, of those before it is reached.
    pub skipped: Vec<Note>,
}

impl Suite {
    /// Reads a suite by its name from its file, or from a folder that holds it under its published
    /// name ([`Known::file`], with or without its own folder); the first questions, up to a limit.
    ///
    /// # Errors
    /// Where no suite has that name (the nearest is told), a file is missing or is none of JSON
    /// lines, there are not as many labels as questions, or no question can be used.
    pub fn read(path: &Path, name: &str, limit: Option<usize>) -> Result<Self> {
        let known = suites::find(name)?;
        let path = known.within(path)?;
        let what = format!("`{}` file", known.name);
        let source = Source { path: &path, what: &what, expected: known.expected };
        let (text, mut version) = source.read()?;
        let data::File::Records(records) = data::parse(&text).map_err(|why| source.invalid(&why))? else {
            return Err(source.invalid("it holds lists of questions to forget and to keep"));
        };
        let labels = match known.labels {
            Some(file) => {
                let (labels, id) = labels(&path.with_file_name(file), records.len())?;
                version = format!("{version}+{id}");
                Some(labels)
            }
            None => None,
        };
        let (mut questions, mut skipped) = (vec![], vec![]);
        for (i, record) in records.into_iter().enumerate() {
            if limit.is_some_and(|limit| questions.len() >= limit) {
                break;
            }
            let label = labels.as_ref().map(|labels| labels[i].as_str());
            match record.and_then(|record| known.question(&record, label)) {
                Ok(question) => questions.push(question),
                Err(what) => skipped.push(Note { record: i + 1, what }),
            }
        }
        if questions.is_empty() {
            return Err(source.unusable(&skipped));
        }
        Ok(Self { name: known.name, measure: known.measure, version, questions, skipped })
    }

    /// Leaves out the questions that are longer than a model's context, and tells how many they are.
    ///
    /// # Errors
    /// Where the model has no tokenizer, or none is left.
    pub fn fit(&mut self, model: &Model) -> Result<usize> {
        let (tokenizer, context) = (model.tokenizer()?, model.architecture().context);
        let before = self.questions.len();
        let mut kept = Vec::with_capacity(before);
        for question in std::mem::take(&mut self.questions) {
            let mut longest = 0;
            for choice in &question.choices {
                longest = longest.max(tokenizer.encode(&format!("{} {choice}", question.context))?.ids.len());
            }
            if longest <= context {
                kept.push(question);
            }
        }
        self.questions = kept;
        if self.questions.is_empty() {
            return Err(Error::input_hint(
                format!(
                    "all {before} questions of `{}` are longer than the model's context of {context} tokens",
                    self.name
                ),
                "leave the suite out, or use a model of a longer context",
            ));
        }
        Ok(before - self.questions.len())
    }

    /// How many of its questions a model answers right.
    ///
    /// # Errors
    /// Where the model has no tokenizer, or a question is longer than its context.
    pub fn accuracy(&self, edited: &Edited<'_>) -> Result<Accuracy> {
        let forks: Vec<Fork<'_>> = self
            .questions
            .iter()
            .map(|q| Fork::new(edited, &q.context, &q.choices))
            .collect::<Result<_, _>>()?;
        let found = log_probabilities(edited.model, &forks)?;
        let (mut acc, mut acc_norm) = (0, 0);
        for (question, found) in self.questions.iter().zip(found) {
            let sums: Vec<f64> =
                found.iter().map(|tokens| tokens.iter().map(|x| f64::from(*x)).sum()).collect();
            let per_byte: Vec<f64> =
                sums.iter().zip(&question.choices).map(|(sum, choice)| sum / choice.len() as f64).collect();
            acc += usize::from(largest(&sums) == question.answer);
            acc_norm += usize::from(largest(&per_byte) == question.answer);
        }
        let n = self.questions.len();
        Ok(Accuracy { acc: acc as f64 / n as f64, acc_norm: acc_norm as f64 / n as f64, n })
    }
}

/// Index of the largest; the first of several.
fn largest(values: &[f64]) -> usize {
    (0..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}

/// Labels in a file of their own, one a line, and its version.
fn labels(path: &Path, wanted: usize) -> Result<(Vec<String>, String)> {
    let expected = "expected one label a line, as many as there are questions: \
                    it belongs beside the file of questions";
    let source = Source { path, what: "file of labels", expected };
    let (text, version) = source.read()?;
    let labels: Vec<String> = text.trim_end().lines().map(|l| l.trim().to_owned()).collect();
    if labels.len() != wanted {
        return Err(source.invalid(&format!("it has {} labels for {wanted} questions", labels.len())));
    }
    Ok((labels, version))
}
