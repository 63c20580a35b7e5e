//! What an edit did, as gates and cards tell it.

use mutandis_edit::patch::Norms;
use mutandis_edit::{Context, Error, Fact, Patch, Probe, Result};
use serde::{Deserialize, Serialize};

use crate::edited::Edited;
use crate::passes::{self, Text};
use crate::question::mean;
use crate::record::{ANSWER, Measures, Prepared, ask};
use crate::results::Role;
use crate::strict::answer::{answer, begins};
use crate::texts::{Ask, Way, write};
use crate::whole::Whole;

/// Facts that are asked side by side; the work can be stopped between.
const TOGETHER: usize = 16;

/// Facts of patches beneath whose answers should stay, at most: those of a long stack are drawn
/// evenly from it.
const BENEATH: usize = 16;

/// What is asked about an edit: its facts, other wordings, and what should stay as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Asked {
    facts: Vec<Fact>,
    /// Prompts to be kept of an edit that knows no facts, as one that was imported.
    kept: Vec<String>,
}

impl Asked {
    /// Facts with their own wordings and prompts to be kept; `also` are more wordings of the
    /// first, `keep` more prompts to be kept. Where there are none at all, `neighbours` has some.
    pub fn new(
        facts: &[Fact],
        also: &[String],
        keep: &[String],
        neighbours: impl FnOnce(&Fact) -> Vec<String>,
    ) -> Self {
        let mut facts: Vec<Fact> =
            facts.iter().map(|fact| Fact { portability: vec![], ..fact.clone() }).collect();
        if let Some(first) = facts.first_mut() {
            first.rephrases.extend_from_slice(also);
        }
        let mut asked = Self { facts, kept: vec![] };
        asked.keep(keep.iter().cloned());
        if !asked.has_kept() {
            let chosen = neighbours(asked.facts.first().unwrap_or(&Fact::default()));
            asked.keep(chosen.into_iter());
        }
        asked
    }

    /// Holds answers to facts of patches beneath the edit, too, where it does not change them.
    pub fn and_beneath(mut self, patches: &[Patch]) -> Self {
        let is_new = |fact: &&Fact| self.facts.iter().all(|own| own.prompt != fact.prompt);
        let known: Vec<&Fact> = patches.iter().flat_map(|patch| &patch.facts).filter(is_new).collect();
        let count = known.len().min(BENEATH);
        let drawn: Vec<String> = (0..count).map(|i| known[i * known.len() / count].prompt.clone()).collect();
        self.keep(drawn.into_iter());
        self
    }

    fn keep(&mut self, prompts: impl Iterator<Item = String>) {
        let probe = |prompt| Probe { kind: String::new(), prompt, answers: vec![] };
        match self.facts.first_mut() {
            Some(first) => first.locality.extend(prompts.map(probe)),
            None => self.kept.extend(prompts),
        }
    }

    pub(super) fn has_facts(&self) -> bool {
        !self.facts.is_empty()
    }

    pub(super) fn has_rephrases(&self) -> bool {
        self.facts.iter().any(|fact| !fact.rephrases.is_empty())
    }

    pub(super) fn has_kept(&self) -> bool {
        !self.kept.is_empty() || self.facts.iter().any(|fact| !fact.locality.is_empty())
    }
}

/// An edit that is to be measured.
#[derive(Debug, Clone, Copy)]
pub struct Trial<'a> {
    /// What is asked.
    pub asked: &'a Asked,
    /// What is measured of the model as a whole.
    pub whole: &'a Whole,
    /// The model as the edit found it.
    pub before: Edited<'a>,
    /// With the edit.
    pub after: Edited<'a>,
    /// How far weights are from the base, with the edit.
    pub norms: &'a [Norms],
}

/// One thing that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measure {
    /// Its name, as [`super::Gate`] has it; of a suite `general/NAME`.
    pub name: String,
    /// In the threshold's unit; nothing where the model's predictions are no numbers.
    pub value: Option<f64>,
    /// Of how many it is a mean; of norms, how many weights were changed.
    pub count: usize,
    /// Those that fell short (of `kl` and `norm` all), the worst first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cases: Vec<Case>,
}

/// One of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// The prompt; of norms the weight.
    pub what: String,
    /// The answer that was wanted, where one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<String>,
    /// The free answer before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// The free answer after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// What was measured of it alone, where that is a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
}

/// A question with its free answers.
struct Told {
    role: Role,
    prompt: String,
    /// Answers that are right, the target first; none of what should stay, which is held against what
    /// was said, right or wrong.
    right: Vec<String>,
    before: String,
    after: String,
}

impl Trial<'_> {
    /// Measures whatever can be: shares that nothing is asked for, and what [`Whole`] leaves out,
    /// are not there.
    ///
    /// # Errors
    /// Where a prompt is longer than the model's context, or the user interrupts.
    pub fn measure(&self, cx: &Context<'_>) -> Result<Vec<Measure>> {
        let told = self.told(cx)?;
        let given = |told: &Told| told.right.iter().any(|answer| begins(&told.after, answer));
        let same = |told: &Told| answer(&told.before) == answer(&told.after);
        let mut all = vec![];
        all.extend(share("efficacy", &told, Role::Edit, given));
        all.extend(share("paraphrase", &told, Role::Rephrase, given));
        all.extend(share("kept", &told, Role::Locality, same));
        cx.check()?;
        all.extend(self.divergence(&told)?);
        cx.check()?;
        if !self.whole.text.is_empty() {
            all.push(Measure {
                name: "perplexity".to_owned(),
                value: self.whole.rise(&self.after)?,
                count: self.whole.text.iter().map(|window| window.len() - 1).sum(),
                cases: vec![],
            });
        }
        all.push(self.norm());
        cx.check()?;
        all.extend(self.whole.drops(&self.after)?.into_iter().map(|(suite, drop)| Measure {
            name: format!("general/{}", suite.name),
            value: Some(drop),
            count: suite.questions.len(),
            cases: vec![],
        }));
        Ok(all)
    }

    fn told(&self, cx: &Context<'_>) -> Result<Vec<Told>> {
        let mut all = vec![];
        for group in self.asked.facts.chunks(TOGETHER) {
            cx.check()?;
            let record = Prepared::of_facts(self.after.model, 0, group, &[])?;
            // A gate that looks past a prompt would let an edit through that nobody has looked at.
            if let Some(prompt) = record.too_long.first() {
                let context = self.after.model.architecture().context;
                let start: String = prompt.chars().take(40).collect();
                return Err(Error::input_hint(
                    format!("the prompt `{start}…` is longer than the model's context of {context} tokens"),
                    "shorten it, or take it out of what the gate looks at",
                ));
            }
            // Answers are greedy: there is nothing that a seed would change.
            let said = ask(&[(&record, self.before), (&record, self.after)], &Measures::STRICT, 0)?;
            let [before, after] = &said[..] else { continue };
            let texts = before.free.iter().zip(&after.free);
            all.extend(record.questions().iter().zip(texts).map(|(question, (before, after))| Told {
                role: question.role,
                prompt: question.prompt.clone(),
                right: if question.role == Role::Locality { vec![] } else { question.right() },
                before: before.clone(),
                after: after.clone(),
            }));
        }
        all.extend(self.told_alone(cx)?);
        Ok(all)
    }

    /// What is said to prompts to be kept that stand beside no fact.
    fn told_alone(&self, cx: &Context<'_>) -> Result<Vec<Told>> {
        let mut all = vec![];
        for group in self.asked.kept.chunks(TOGETHER) {
            cx.check()?;
            let said = |by: Edited<'_>| {
                let ask =
                    |prompt| Ask { by, prompt, way: Way::Answer, budget: ANSWER, stream: 0, given: None };
                let asks: Vec<Ask<'_>> = group.iter().map(|prompt| ask(prompt.as_str())).collect();
                write(&asks, 0)
            };
            let (before, after) = (said(self.before)?, said(self.after)?);
            let texts = before.into_iter().zip(after);
            all.extend(group.iter().zip(texts).map(|(prompt, (before, after))| Told {
                role: Role::Locality,
                prompt: prompt.clone(),
                right: vec![],
                before: before.text,
                after: after.text,
            }));
        }
        Ok(all)
    }

    /// KL(before ‖ after) of the first token behind each prompt that should stay.
    fn divergence(&self, told: &[Told]) -> Result<Option<Measure>> {
        let kept: Vec<&Told> = told.iter().filter(|told| told.role == Role::Locality).collect();
        let tokenizer = self.after.model.tokenizer()?;
        let ids = |by: &Edited<'_>| {
            kept.iter()
                .map(|told| Ok(tokenizer.encode(&by.prompt(&told.prompt))?.ids))
                .collect::<Result<Vec<_>>>()
        };
        let (before, after) = (ids(&self.before)?, ids(&self.after)?);
        let found = passes::divergences(
            self.after.model,
            &texts(&before, &self.before),
            &texts(&after, &self.after),
        )?;
        let each: Vec<f64> = found.into_iter().flatten().map(f64::from).collect();
        let cases = kept.iter().zip(&each).map(|(told, kl)| case(told, Some(*kl)));
        Ok(mean(each.iter().copied()).map(|kl| Measure {
            name: "kl".to_owned(),
            value: kl.is_finite().then_some(kl),
            count: each.len(),
            cases: worst_first(cases.collect()),
        }))
    }

    /// The largest ‖ΔW‖ / ‖W‖ of a weight; 0 where none was changed.
    fn norm(&self) -> Measure {
        let each = self.norms.iter().map(|norms| Case {
            what: format!("{} of layer {}", norms.weight.role, norms.weight.layer),
            value: Some(norms.delta / norms.base),
            ..Case::default()
        });
        let cases = worst_first(each.collect());
        let most = cases.first().map_or(Some(0.0), |case| case.value);
        Measure { name: "norm".to_owned(), value: most, count: cases.len(), cases }
    }
}

/// Texts that what comes first behind them is asked of.
fn texts<'a>(ids: &'a [Vec<u32>], by: &Edited<'a>) -> Vec<Text<'a>> {
    let overlays = by.overlays;
    let last = |ids: &[u32]| ids.len().saturating_sub(1)..ids.len();
    ids.iter().map(|ids| Text { ids, overlays, places: last(ids) }).collect()
}

/// The share of questions of a role whose answers are good; nothing where there is none.
fn share(name: &str, told: &[Told], role: Role, is_good: impl Fn(&Told) -> bool) -> Option<Measure> {
    let own: Vec<&Told> = told.iter().filter(|told| told.role == role).collect();
    let (good, bad): (Vec<&Told>, Vec<&Told>) = own.iter().partition(|told| is_good(told));
    mean(own.iter().map(|told| f64::from(u8::from(is_good(told))))).map(|value| Measure {
        name: name.to_owned(),
        value: Some(value),
        count: good.len() + bad.len(),
        cases: bad.into_iter().map(|told| case(told, None)).collect(),
    })
}

fn case(told: &Told, value: Option<f64>) -> Case {
    Case {
        what: told.prompt.clone(),
        wanted: told.right.first().cloned(),
        before: Some(answer(&told.before).to_owned()),
        after: Some(answer(&told.after).to_owned()),
        value: value.filter(|value| value.is_finite()),
    }
}

/// Largest values first, and before them what is no number.
fn worst_first(mut cases: Vec<Case>) -> Vec<Case> {
    let key = |case: &Case| case.value.unwrap_or(f64::INFINITY);
    cases.sort_by(|a, b| key(b).total_cmp(&key(a)));
    cases
}
