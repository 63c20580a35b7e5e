//! ConvSent as it is meant (KnowEdit, arXiv 2401.01286): EasyEdit's scores (`compat::sentiment`)
//! with its defects corrected.
//!
//! A text is the question, a blank and the answer. Every token of the answer is scored, each by
//! what the model says before it, and nothing else is; the edited model is compared with the
//! unedited one, whatever the method.

use mutandis_engine::{Generation, Model, Result};
use serde::{Deserialize, Serialize};

use crate::compat::{Asked, Forced};
use crate::edited::Edited;
use crate::greedy;
use crate::passes::{self, Text};
use crate::question::mean;
use crate::results::{Both, ProbeResult, Role, Scores};
use crate::sentiment::{Case, Likelihoods, Opinion};
use crate::strict::answer::is_same;

/// Texts about the other topic whose distributions are compared; the first positive and negative
/// ones, half of each.
const OTHERS: usize = 6;

/// Tokens of a free answer at most: enough to tell one opinion from another.
const TOKENS: usize = 16;

/// What the unedited model says of a case: all that [`scores`] needs of it but distributions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Before {
    /// How likely the answers about the topic are.
    pub likelihoods: Option<Likelihoods>,
    /// What it says, to the case's own question first.
    pub said: Vec<String>,
}

impl Before {
    /// Asks the unedited model.
    ///
    /// # Errors
    /// Where the model has no tokenizer, or a text is longer than its context.
    pub fn new(model: &Model, case: &Case) -> Result<Self> {
        let unedited = Edited::unedited(model);
        Ok(Self { likelihoods: likelihoods(&unedited, case)?, said: said(&unedited, case)? })
    }

    /// Scores of the unedited model itself.
    pub fn scores(&self) -> Scores {
        named(self.likelihoods.map(|l| l.success(&l)), None, None)
    }
}

fn named(edit: Option<f64>, locality: Option<f64>, kl: Option<f64>) -> Scores {
    let all = [("edit", edit), ("locality", locality), ("locality:kl", kl)];
    all.into_iter().filter_map(|(name, score)| Some((name.to_owned(), score?))).collect()
}

/// Opinions about the other topic that are looked at.
fn others(case: &Case) -> Vec<&Opinion> {
    let half = |wanted| case.apart.iter().filter(move |o| o.wanted == wanted).take(OTHERS / 2);
    half(true).chain(half(false)).collect()
}

/// Questions that are put freely: the case's own, and each about the other topic once.
fn questions(case: &Case) -> Vec<&str> {
    let mut all = vec![case.question.as_str()];
    for Opinion { question, .. } in others(case) {
        if !all.contains(&question.as_str()) {
            all.push(question);
        }
    }
    all
}

fn said(edited: &Edited<'_>, case: &Case) -> Result<Vec<String>> {
    let generation = Generation { max_tokens: TOKENS, ..Generation::default() };
    let said = greedy::continuations(edited, &questions(case), &generation)?;
    Ok(said.into_iter().map(|g| g.text).collect())
}

fn forced(edited: &Edited<'_>, Opinion { question, answer, .. }: &Opinion) -> Result<Forced> {
    Forced::new(edited.model, &edited.prompt(question), answer.trim())
}

/// How likely the answers about the topic are, by one model; means over tokens. `None` where one
/// sentiment has no answer.
///
/// # Errors
/// Where the model has no tokenizer, or a text is longer than its context.
pub fn likelihoods(edited: &Edited<'_>, case: &Case) -> Result<Option<Likelihoods>> {
    let texts = case.own.iter().map(|o| forced(edited, o)).collect::<Result<Vec<_>>>()?;
    let asked: Vec<Asked<'_>> = texts.iter().map(|text| Asked { text, overlays: edited.overlays }).collect();
    let found = passes::labels(edited.model, &asked)?;
    let each = case.own.iter().zip(found).flat_map(|(o, all)| all.into_iter().map(|(_, x)| (o.wanted, x)));
    Ok(Likelihoods::mean(each))
}

/// Mean over the tokens of other opinions of `KL(unedited ‖ edited)`, in nats.
fn divergence(edited: &Edited<'_>, case: &Case) -> Result<Option<f64>> {
    let unedited = Edited::unedited(edited.model);
    let others = others(case);
    let of = |by: &Edited<'_>| others.iter().map(|o| forced(by, o)).collect::<Result<Vec<_>>>();
    let (plain, shown) = (of(&unedited)?, of(edited)?);
    let pairs = plain.iter().zip(&shown).map(|(plain, shown)| Text::pair(plain, shown, edited.overlays));
    let (before, after): (Vec<_>, Vec<_>) = pairs.map(|[was, is]| (was, is)).unzip();
    let found = passes::divergences(edited.model, &before, &after)?;
    Ok(mean(found.into_iter().flatten().map(f64::from)))
}

/// `edit`: [`Likelihoods::success`]. `locality`: share of questions about the other topic that get
/// the same greedy answer as before. `locality:kl`: in nats, lower being better. With the
/// questions and what was answered.
///
/// # Errors
/// As [`likelihoods`].
pub fn scores(edited: &Edited<'_>, case: &Case, before: &Before) -> Result<(Scores, Vec<ProbeResult>)> {
    let after = likelihoods(edited, case)?;
    let said = said(edited, case)?;
    let mut probes: Vec<ProbeResult> = vec![];
    for (i, (prompt, (before, after))) in
        questions(case).into_iter().zip(before.said.iter().zip(said)).enumerate()
    {
        let own = i == 0;
        let answers = case.own.iter().filter(|o| own && o.wanted).map(|o| o.answer.trim().to_owned());
        let same = (!own).then(|| ("same".to_owned(), f64::from(is_same(before, &after))));
        probes.push(ProbeResult {
            role: if own { Role::Edit } else { Role::Locality },
            kind: String::new(),
            prompt: prompt.to_owned(),
            answers: answers.collect(),
            before: before.clone(),
            after,
            immediate: None,
            forced: None,
            scores: Both { strict: same.into_iter().collect(), ..Both::default() },
        });
    }
    let success = after.zip(before.likelihoods).map(|(after, before)| after.success(&before));
    let same = mean(probes.iter().filter_map(|p| p.scores.strict.get("same").copied()));
    Ok((named(success, same, divergence(edited, case)?), probes))
}
