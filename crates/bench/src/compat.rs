//! Scores as EasyEdit computes them: token accuracy by teacher forcing (its `test_prediction_acc`).
//!
//! The text is always `prompt + " " + target`. A position counts where the likeliest token is the
//! target's own, with the true tokens before it. That is no exact match and no free generation:
//! of a target of four tokens three may come for free.

pub mod extra;
pub mod in_context;
pub mod likelihood;
pub mod sanitation;
pub mod sentiment;
pub mod vanilla;

use mutandis_engine::sampling::likeliest;
use mutandis_engine::tokenizer::Tokenizer;
use mutandis_engine::{Model, Overlay, Result};

use crate::passes::{self, Text};
use crate::question::{Question, scores};
use crate::results::{Role, Scores};

/// A prompt with its target, as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forced {
    /// Ids of prompt and target together.
    pub ids: Vec<u32>,
    /// Index at which the target begins: the number of tokens of the prompt alone, as the peer
    /// counts it, even where the tokenizer merges across the border.
    pub start: usize,
}

impl Forced {
    /// Tokenises `prompt + " " + target`.
    ///
    /// # Errors
    /// Where the model has no tokenizer.
    pub fn new(model: &Model, prompt: &str, target: &str) -> Result<Self> {
        Self::cut(model.tokenizer()?, prompt, target)
    }

    /// As [`Self::new`], by a tokenizer alone.
    ///
    /// # Errors
    /// Where it fails on a text.
    pub fn cut(tokenizer: &Tokenizer, prompt: &str, target: &str) -> Result<Self> {
        let ids = tokenizer.encode(&format!("{prompt} {target}"))?.ids;
        let start = tokenizer.encode(prompt)?.ids.len().min(ids.len());
        Ok(Self { ids, start })
    }

    /// Ids that are to be predicted.
    pub fn labels(&self) -> &[u32] {
        &self.ids[self.start..]
    }

    /// Share of the labels that were predicted; `None` without labels, where the peer has NaN.
    pub fn accuracy(&self, predicted: &[u32]) -> Option<f64> {
        agreement(predicted, self.labels())
    }
}

/// Share of equal ids; `None` for none at all.
pub fn agreement(a: &[u32], b: &[u32]) -> Option<f64> {
    let equal = a.iter().zip(b).filter(|(a, b)| a == b).count();
    (!b.is_empty()).then(|| equal as f64 / b.len() as f64)
}

/// A text to be predicted, and the patches under which it is.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The text.
    pub text: &'a Forced,
    /// Patches in force.
    pub overlays: &'a [&'a Overlay],
}

/// The likeliest token at each of the targets' positions, given the true tokens before it.
///
/// # Errors
/// Where a text is empty or longer than the model's context.
pub fn predict(model: &Model, asked: &[Asked<'_>]) -> Result<Vec<Vec<u32>>> {
    let texts: Vec<Text<'_>> = asked.iter().map(Text::from).collect();
    passes::read(model, &texts, |_, _, row| likeliest(row) as u32)
}

/// A record's texts, tokenised once.
#[derive(Debug, Clone)]
pub struct Probes {
    /// All texts.
    pub texts: Vec<Forced>,
    /// The question that each is made of.
    pub of: Vec<usize>,
    questions: Vec<Question>,
}

impl Probes {
    /// The texts of a record's questions. Of several right answers the first is used, as the peer
    /// does; questions without one are left out.
    ///
    /// # Errors
    /// Where the model has no tokenizer.
    pub fn new(model: &Model, questions: Vec<Question>) -> Result<Self> {
        let (mut texts, mut of) = (vec![], vec![]);
        for (i, question) in questions.iter().enumerate() {
            if let Some(answer) = question.first_answer() {
                texts.push(Forced::new(model, &question.prompt, answer)?);
                of.push(i);
            }
        }
        Ok(Self { texts, of, questions })
    }

    /// Some of the questions, in their order; their texts are not tokenised again.
    pub(crate) fn only(&self, questions: Vec<Question>) -> Self {
        let (mut texts, mut of) = (vec![], vec![]);
        for (text, i) in self.texts.iter().zip(&self.of) {
            if let Some(at) = questions.iter().position(|q| *q == self.questions[*i]) {
                texts.push(text.clone());
                of.push(at);
            }
        }
        Self { texts, of, questions }
    }

    /// What is asked.
    pub fn questions(&self) -> &[Question] {
        &self.questions
    }

    /// Whether a text is about what should not change: its prediction before the edit counts.
    pub fn is_locality(&self, text: usize) -> bool {
        self.questions[self.of[text]].role == Role::Locality
    }

    /// Score of every question that has a text, from the predictions of its text; `before` holds
    /// those of the unedited model.
    pub fn each(&self, before: &[Vec<u32>], after: &[Vec<u32>]) -> Vec<Option<f64>> {
        let mut all = vec![None; self.questions.len()];
        for (i, text) in self.texts.iter().enumerate() {
            all[self.of[i]] = match self.is_locality(i) {
                true => agreement(&after[i], &before[i]),
                false => text.accuracy(&after[i]),
            };
        }
        all
    }

    /// Scores of predictions, one for each text, as [`Self::each`].
    pub fn scores(&self, before: &[Vec<u32>], after: &[Vec<u32>]) -> Scores {
        let each = self.each(before, after);
        scores(&self.questions, "", |i| each[i])
    }
}

/// A text as the peer scores its fluency (easyedit.md §1.11): compatibility-decomposed, paragraphs
/// joined, without the sign of the end of a text.
pub fn fluency_text(text: &str) -> String {
    use unicode_normalization::UnicodeNormalization;
    text.nfkd().collect::<String>().replace("\n\n", " ").replace("<|endoftext|>", "")
}
