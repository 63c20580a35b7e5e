//! What is asked of a record of Sanitation: its own question, and some whose answers must stay.

use std::collections::HashSet;

use mutandis_edit::{Fact, Probe, Result};

use crate::data::{Record, Set};
use crate::draw::Draw;
use crate::results::{Both, ProbeResult, Role, Scores};

/// Questions whose answers must stay that are asked for each record.
const RETAINED: usize = 10;

/// Wrong answers that the old one is compared with (TOFU has five).
const PERTURBED: usize = 5;

/// A record's questions and answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case<'a> {
    /// What is to be forgotten.
    pub fact: &'a Fact,
    /// Questions whose answers must stay.
    pub retained: Vec<&'a Probe>,
    /// Answers that were never right: other records' old ones, no two alike.
    pub perturbed: Vec<&'a str>,
    /// The one of the retained questions that the model goes on with, where fluency is measured.
    pub generation: Option<&'a Probe>,
}

/// The answers of a set, from which wrong ones are drawn: no two alike as they are searched for, each
/// as it is searched for and as it was first written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answers(Vec<(String, String)>);

impl Answers {
    /// Those that facts had, and then those of the questions whose answers must stay.
    pub(crate) fn of(records: &[Record], retained: &[Probe]) -> Self {
        let truths = records.iter().flat_map(Record::facts).filter_map(|f| f.ground_truth.as_ref());
        let kept = retained.iter().filter_map(|p| p.answers.first());
        let mut seen = HashSet::new();
        let all = truths.chain(kept).map(|answer| (plain(answer), answer));
        Self(all.filter(|(plain, _)| seen.insert(plain.clone())).map(|(p, a)| (p, a.clone())).collect())
    }

    fn other_than(&self, own: &str) -> Vec<&str> {
        let own = plain(own);
        self.0.iter().filter(|(plain, _)| *plain != own).map(|(_, answer)| answer.as_str()).collect()
    }
}

impl<'a> Case<'a> {
    /// Those of a record of the set, drawn from the record's own stream; `None` where it has no
    /// fact.
    ///
    /// DIFFERENCE: EasyEdit asks all 453 retained questions, once for a whole run; TOFU's wrong
    /// answers are written for each question.
    pub fn new(set: &'a Set, record: &'a Record, seed: u64) -> Option<Self> {
        let fact = record.facts().first()?;
        let others = set.answers.other_than(fact.ground_truth.as_deref().unwrap_or_default());
        let mut draw = Draw::new(seed, record.number);
        let retained = draw.sample(&set.retained, RETAINED);
        let perturbed = draw.sample(&others, PERTURBED).into_iter().copied().collect();
        let generation = retained.get(draw.below(retained.len())).copied();
        Some(Self { fact, retained, perturbed, generation })
    }

    /// Drops questions and wrong answers that are longer than a context, by the number of a text's
    /// tokens; the prompts of the questions.
    ///
    /// # Errors
    /// Where tokens cannot be counted.
    pub(crate) fn fit(
        &mut self,
        context: usize,
        tokens: impl Fn(&str) -> Result<usize>,
    ) -> Result<Vec<String>> {
        let (mut retained, mut perturbed, mut dropped) = (vec![], vec![], vec![]);
        for &probe in &self.retained {
            match tokens(&probe.prompt)? < context {
                true => retained.push(probe),
                false => dropped.push(probe.prompt.clone()),
            }
        }
        for &answer in &self.perturbed {
            if tokens(&format!("{} {answer}", self.fact.prompt))? <= context {
                perturbed.push(answer);
            }
        }
        if self.generation.is_some_and(|probe| dropped.contains(&probe.prompt)) {
            self.generation = retained.first().copied();
        }
        (self.retained, self.perturbed) = (retained, perturbed);
        Ok(dropped)
    }

    /// All prompts, the record's own first.
    pub fn prompts(&self) -> Vec<&'a str> {
        let kept = self.retained.iter().map(|probe| probe.prompt.as_str());
        std::iter::once(self.fact.prompt.as_str()).chain(kept).collect()
    }

    /// What was asked and answered, in the order of [`Self::prompts`].
    pub fn probes(&self, before: &[String], after: &[String]) -> Vec<ProbeResult> {
        let mut probes = vec![];
        for (i, prompt) in self.prompts().into_iter().enumerate() {
            let kept = i.checked_sub(1).and_then(|i| self.retained.get(i));
            probes.push(ProbeResult {
                role: if i == 0 { Role::Edit } else { Role::Locality },
                kind: kept.map(|p| p.kind.clone()).unwrap_or_default(),
                prompt: prompt.to_owned(),
                answers: kept.map_or_else(|| vec![self.fact.target.clone()], |p| p.answers.clone()),
                before: before.get(i).cloned().unwrap_or_default(),
                after: after.get(i).cloned().unwrap_or_default(),
                immediate: None,
                forced: None,
                scores: Both::default(),
            });
        }
        probes
    }

    /// A prompt's own score by its name.
    pub(crate) fn score_of(&self, role: Role, score: Option<f64>) -> Scores {
        let name = if role == Role::Edit { "erased" } else { "same" };
        score.map(|x| (name.to_owned(), x)).into_iter().collect()
    }
}

/// `edit` and `locality` from the scores of all prompts, the record's own first.
pub(crate) fn scores(each: &[Option<f64>]) -> Scores {
    let kept = crate::question::mean(each.iter().skip(1).filter_map(|x| *x));
    let all = [("edit", each.first().copied().flatten()), ("locality", kept)];
    all.into_iter().filter_map(|(name, score)| Some((name.to_owned(), score?))).collect()
}

/// A text as answers are searched for: words in lower case, cut at every sign, without articles.
pub(crate) fn plain(text: &str) -> String {
    let bare: String = text.chars().map(|c| if c.is_alphanumeric() { c } else { ' ' }).collect();
    let bare = bare.to_lowercase();
    let words = bare.split_whitespace().filter(|w| !matches!(*w, "a" | "an" | "the"));
    words.collect::<Vec<_>>().join(" ")
}
