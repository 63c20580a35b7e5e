//! Scores as EasyEdit computes them: token accuracy by teacher forcing (its `test_prediction_acc`).
//!
//! The text is always `prompt + " " + target`. A position counts where the likeliest token is the
//! target's own, with the true tokens before it. That is no exact match and no free generation:
//! of a target of four tokens three may come for free.

pub mod in_context;
pub mod likelihood;
pub mod sanitation;
pub mod sentiment;
pub mod vanilla;

use mutandis_edit::Fact;
use mutandis_engine::sampling::likeliest;
use mutandis_engine::tokenizer::Tokenizer;
use mutandis_engine::{Model, Overlay, Result};

use crate::passes::{self, Text};

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

/// Rows, and rows with logits, of one pass: what it takes in memory.
pub(crate) const PASS: (usize, usize) = (2048, 384);

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
    /// What each is about.
    kinds: Vec<Kind>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Edit,
    Rephrase,
    Portability(String),
    Locality(String),
}

/// Scores of one record, each 0 to 1; `None` where the record has no such probe.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct Scores {
    /// Of the edited prompt.
    pub edit: Option<f64>,
    /// Of other wordings.
    pub rephrase: Option<f64>,
    /// Mean over kinds of the mean over their probes.
    pub portability: Option<f64>,
    /// The same, of what should not change: agreement with the predictions before the edit.
    pub locality: Option<f64>,
}

impl Probes {
    /// All of a record's probes. Of several right answers the first is used, as the peer does;
    /// probes without one are left out.
    ///
    /// # Errors
    /// Where the model has no tokenizer.
    pub fn new(model: &Model, fact: &Fact) -> Result<Self> {
        let (mut texts, mut kinds) = (vec![], vec![]);
        for (kind, prompt, target) in asked(fact) {
            texts.push(Forced::new(model, prompt, target)?);
            kinds.push(kind);
        }
        Ok(Self { texts, kinds })
    }

    /// Whether each text is about what should not change: its prediction before the edit counts.
    pub fn is_locality(&self, text: usize) -> bool {
        matches!(self.kinds[text], Kind::Locality(_))
    }

    /// Scores of predictions, one for each text; `before` holds those of the unedited model.
    pub fn scores(&self, before: &[Vec<u32>], after: &[Vec<u32>]) -> Scores {
        tally(&self.kinds, |i| match self.kinds[i] {
            Kind::Locality(_) => agreement(&after[i], &before[i]),
            _ => self.texts[i].accuracy(&after[i]),
        })
    }
}

/// What is asked about a fact, with the answer that is looked for.
fn asked(fact: &Fact) -> Vec<(Kind, &str, &str)> {
    let mut all = vec![(Kind::Edit, fact.prompt.as_str(), fact.target.as_str())];
    all.extend(fact.rephrases.iter().map(|prompt| (Kind::Rephrase, prompt.as_str(), fact.target.as_str())));
    for (probes, of) in
        [(&fact.portability, Kind::Portability as fn(String) -> Kind), (&fact.locality, Kind::Locality)]
    {
        for probe in probes {
            if let Some(answer) = probe.answers.first().filter(|a| !a.is_empty()) {
                all.push((of(probe.kind.clone()), &probe.prompt, answer));
            }
        }
    }
    all
}

/// Scores of a record from those of its texts.
fn tally(kinds: &[Kind], score: impl Fn(usize) -> Option<f64>) -> Scores {
    let of = |wanted: &dyn Fn(&Kind) -> bool| {
        let mut scores: Vec<(&Kind, Vec<f64>)> = vec![];
        for (i, kind) in kinds.iter().enumerate().filter(|(_, k)| wanted(k)) {
            let Some(score) = score(i) else { continue };
            match scores.iter_mut().find(|(k, _)| *k == kind) {
                Some((_, scores)) => scores.push(score),
                None => scores.push((kind, vec![score])),
            }
        }
        mean(scores.iter().filter_map(|(_, scores)| mean(scores.iter().copied())))
    };
    Scores {
        edit: of(&|k| *k == Kind::Edit),
        rephrase: of(&|k| *k == Kind::Rephrase),
        portability: of(&|k| matches!(k, Kind::Portability(_))),
        locality: of(&|k| matches!(k, Kind::Locality(_))),
    }
}

impl Scores {
    /// Mean of each score over the records that have it.
    pub fn mean(all: &[Self]) -> Self {
        let of = |score: fn(&Self) -> Option<f64>| mean(all.iter().filter_map(score));
        Self {
            edit: of(|s| s.edit),
            rephrase: of(|s| s.rephrase),
            portability: of(|s| s.portability),
            locality: of(|s| s.locality),
        }
    }
}

pub(crate) fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, n), x| (sum + x, n + 1));
    (count > 0).then(|| sum / count as f64)
}
