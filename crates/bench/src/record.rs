//! Records made ready, and what a model says to them.

use std::ops::Range;
use std::sync::Arc;

use mutandis_edit::{Change, Error, Fact, Result};
use mutandis_engine::Model;
use serde::{Deserialize, Serialize};

use crate::compat::extra::Extra;
use crate::compat::in_context::Branch;
use crate::compat::{Asked, Forced, Probes, fluency_text, predict};
use crate::data::{Form, Record, Set, Task};
use crate::edited::Edited;
use crate::passes::{Seen, Text};
use crate::question::{Question, mean, questions};
use crate::results::Role;
use crate::sentiment::{Likelihoods, Opinion};
use crate::strict::counterfact::{self, References};
use crate::strict::erasure::{self, Held};
use crate::texts::{Ask, Given, Way, Written, write};
use crate::{compat, sanitation, sentiment, strict};

/// What is measured of every record.
#[derive(Debug, Clone)]
pub struct Measures {
    /// As EasyEdit's functions compute it.
    pub compat: bool,
    /// In free generation.
    pub strict: bool,
    /// Texts that the model goes on with, too.
    pub fluency: bool,
    /// What the peer measures on request; part of compat.
    pub extra: Vec<Extra>,
    /// How the peer cuts targets behind edits that are a prompt.
    pub branch: Branch,
    /// Texts that what is written is compared with, by object.
    pub references: Option<Arc<References>>,
}

impl Measures {
    /// What a sweep looks at.
    pub const COMPAT: Self = Self::bare(true, false);

    /// Free answers alone: what a gate looks at.
    pub(crate) const STRICT: Self = Self::bare(false, true);

    const fn bare(compat: bool, strict: bool) -> Self {
        Self { compat, strict, fluency: false, extra: vec![], branch: Branch::Other, references: None }
    }
}

/// Version of what is asked and how; results of another are not mixed with these.
pub const PROTOCOL: u32 = 5;

/// Tokens of a text whose fluency is measured, at most. The peer counts the prompt's, too.
const FLUENCY: usize = 100;

/// Texts of a record that are written for its fluency and consistency, at most.
const GENERATIONS: usize = 3;

/// Tokens of an answer at most: room for a sentence, which nearly all end by themselves. An answer
/// to a question whose right one is longer has room for half as much again, and a few tokens more.
pub(crate) const ANSWER: usize = 48;

/// A record, ready to be asked.
#[derive(Debug, Clone)]
pub struct Prepared<'a> {
    /// Its number in the file.
    pub number: usize,
    /// What is edited.
    pub facts: Vec<Fact>,
    /// What else is asked of it.
    pub(crate) kind: Kind<'a>,
    /// Its questions; none where only its kind's own are asked.
    pub(crate) probes: Probes,
    /// New tokens of an answer at most, by question.
    budgets: Vec<usize>,
    /// Prompts that are not asked, as they are longer than the model's context with their answers.
    pub(crate) too_long: Vec<String>,
}

/// What a record is scored by.
#[derive(Debug, Clone)]
pub(crate) enum Kind<'a> {
    /// Its questions, and, where they are known, texts about its object and what it is to forget.
    Facts {
        /// Ids of relation and object.
        reference: Option<[String; 2]>,
        /// What is to be forgotten, with wrong answers, where that is what the fact is for.
        erased: Option<sanitation::Case<'a>>,
    },
    /// Opinions about a topic.
    Sentiment(Box<sentiment::Case>),
    /// Whether an answer is gone, and others are not.
    Erasure(sanitation::Case<'a>),
}

/// What a model says to a record.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Said {
    /// Predictions of the compat texts.
    pub(crate) predicted: Vec<Vec<u32>>,
    /// Free answers, by question.
    pub(crate) free: Vec<String>,
    /// The text whose fluency the peer measures, with its prompt.
    pub(crate) peer: Option<String>,
    /// Texts drawn from the model, without their prompts.
    pub(crate) sampled: Vec<String>,
    /// The same, greedily.
    pub(crate) greedy: Vec<String>,
    /// How likely opinions are, as the peer computes it.
    pub(crate) opinions: Option<Likelihoods>,
    /// The same as it is meant, with free opinions.
    pub(crate) sentiment: Option<strict::sentiment::Before>,
    /// Ten tokens behind each question of an erasure.
    pub(crate) ten: Option<Vec<String>>,
    /// Free answers to them, and what is still held.
    pub(crate) erasure: Option<(Vec<String>, Option<Held>)>,
    /// What is still held of an answer that a fact is to have forgotten.
    pub(crate) held: Option<Held>,
    /// Which object is preferred, where the record tells the old one.
    pub(crate) preferences: counterfact::Scores,
    /// What the head of the unedited model reads at the first answers of questions about what should
    /// not change, `[labels of all, d]`: what divergences are measured from. Kept in a file of its own.
    #[serde(skip)]
    pub(crate) heads: Vec<f32>,
}

impl<'a> Prepared<'a> {
    /// Makes a record of a data set ready; what is drawn for it is drawn from a stream of its own.
    ///
    /// # Errors
    /// Where the model has no tokenizer.
    pub fn new(model: &Model, set: &'a Set, index: usize, seed: u64) -> Result<Self> {
        let record: &Record = &set.records[index];
        let (tokenizer, context) = (model.tokenizer()?, model.architecture().context);
        let erased = || -> Result<(Option<sanitation::Case<'a>>, Vec<String>)> {
            let Some(mut case) = sanitation::Case::new(set, record, seed) else { return Ok((None, vec![])) };
            let dropped = case.fit(context, |text| Ok(tokenizer.encode(text)?.ids.len()))?;
            Ok((Some(case), dropped))
        };
        match &record.task {
            Task::Facts { .. } if set.form == Form::Sanitation => {
                let mut own = Self::of_facts(model, record.number, &[], &[])?;
                own.facts = record.facts().to_vec();
                let (case, dropped) = erased()?;
                own.too_long = dropped;
                if let Some(case) = case {
                    own.kind = Kind::Erasure(case);
                }
                Ok(own)
            }
            Task::Facts { facts, generation, reference } => {
                let mut own = Self::of_facts(model, record.number, facts, generation)?;
                let erased = match &facts[..] {
                    [Fact { change: Change::Erase, ground_truth: Some(_), .. }] => erased()?.0,
                    _ => None,
                };
                own.kind = Kind::Facts { reference: reference.clone(), erased };
                Ok(own)
            }
            Task::Sentiment { .. } => {
                let case = sentiment::Case::new(&set.records, index, seed)?;
                let mut own = Self::of_facts(model, record.number, &[], &[])?;
                own.facts = vec![case.fact.clone()];
                own.kind = Kind::Sentiment(Box::new(case));
                Ok(own)
            }
        }
    }

    /// Makes facts ready; `generation` are texts to be gone on with.
    ///
    /// # Errors
    /// Where the model has no tokenizer.
    pub fn of_facts(model: &Model, number: usize, facts: &[Fact], generation: &[String]) -> Result<Self> {
        let (tokenizer, context) = (model.tokenizer()?, model.architecture().context);
        let (mut asked, mut budgets, mut too_long) = (vec![], vec![], vec![]);
        let length = |text: &str| -> Result<usize> { Ok(tokenizer.encode_continuation(text)?.ids.len()) };
        // The two objects are asked about beside the right answers.
        let objects = facts.iter().flat_map(|f| f.ground_truth.as_deref().into_iter().chain([&f.target[..]]));
        let object = objects.map(length).collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or(0);
        for question in questions(facts, generation) {
            let answers = question.answers.iter().map(|answer| length(answer)).collect::<Result<Vec<_>>>()?;
            // The first is given behind the prompt, the others are compared with. One more for the blank
            // between them, which may be a token of its own.
            let given = answers.first().copied().unwrap_or(0).max(object) + 1;
            let room = context.saturating_sub(tokenizer.encode(&question.prompt)?.ids.len());
            if given > room {
                too_long.push(question.prompt);
                continue;
            }
            let longest = answers.into_iter().max().unwrap_or(0);
            budgets.push(ANSWER.max(longest + longest / 2 + 8).min(room));
            asked.push(question);
        }
        let probes = Probes::new(model, asked)?;
        let kind = Kind::Facts { reference: None, erased: None };
        let mut facts = facts.to_vec();
        if !too_long.is_empty() {
            let is_asked = |prompt: &String| !too_long.contains(prompt);
            for fact in &mut facts {
                fact.rephrases.retain(is_asked);
                fact.portability.retain(|probe| is_asked(&probe.prompt));
                fact.locality.retain(|probe| is_asked(&probe.prompt));
            }
        }
        Ok(Self { number, facts, kind, probes, budgets, too_long })
    }

    /// Why it cannot be edited on a model; nothing where it can.
    ///
    /// # Errors
    /// Where the model has no tokenizer.
    pub(crate) fn unfit(&self, model: &Model) -> Result<Option<String>> {
        let (tokenizer, context) = (model.tokenizer()?, model.architecture().context);
        let is_long = match &self.kind {
            Kind::Facts { .. } => self.facts.iter().any(|fact| self.too_long.contains(&fact.prompt)),
            Kind::Sentiment(case) => {
                let texts = case.own.iter().chain(&case.other).chain(&case.apart);
                let length =
                    |o: &Opinion| Ok(tokenizer.encode(&format!("{} {}", o.question, o.answer))?.ids.len());
                let lengths = texts.map(length).collect::<Result<Vec<_>>>()?;
                lengths.into_iter().any(|length| length > context)
            }
            Kind::Erasure(case) => {
                let old = case.fact.ground_truth.as_deref().unwrap_or_default();
                tokenizer.encode(&format!("{} {old}", case.fact.prompt))?.ids.len() >= context
            }
        };
        Ok(is_long.then(|| format!("its texts are longer than the model's context of {context} tokens")))
    }

    pub(crate) fn questions(&self) -> &[Question] {
        self.probes.questions()
    }

    /// Where in [`Said::heads`] those of each text are that is about what should not change, by text, and
    /// how many numbers there are in all.
    fn compared(&self, width: usize) -> (Vec<Option<Range<usize>>>, usize) {
        let mut end = 0;
        let of = |(i, text): (usize, &Forced)| {
            let (start, text) = (end, Text::from(&Asked { text, overlays: &[] }));
            end += if self.probes.is_locality(i) { text.places.len() * width } else { 0 };
            (end > start).then_some(start..end)
        };
        (self.probes.texts.iter().enumerate().map(of).collect(), end)
    }

    /// Whether answers that were kept are to these questions, and whole; of a model of this width.
    pub(crate) fn fits(&self, said: &Said, measures: &Measures, width: usize) -> bool {
        let Measures { compat, strict, fluency, .. } = *measures;
        let heads = self.compared(width).1;
        let predicted = if compat { &self.probes.texts[..] } else { &[] };
        let free = if strict { self.questions().len() } else { 0 };
        let written = if strict && fluency { self.generations().len() } else { 0 };
        let of_its_kind = match &self.kind {
            Kind::Facts { .. } => true,
            Kind::Sentiment(_) => said.sentiment.is_some() == strict,
            Kind::Erasure(_) => (said.ten.is_some(), said.erasure.is_some()) == (compat, strict),
        };
        said.heads.len() == if strict { heads } else { 0 }
            && said.predicted.len() == predicted.len()
            && said.predicted.iter().zip(predicted).all(|(said, text)| said.len() == text.labels().len())
            && said.free.len() == free
            && [&said.sampled, &said.greedy].iter().all(|texts| texts.len() == written)
            && said.peer.is_some() == (compat && fluency)
            && of_its_kind
    }

    /// The same record, of which only the edited prompts are asked.
    pub(crate) fn only_edits(&self) -> Self {
        let (questions, budgets): (Vec<Question>, Vec<usize>) = self
            .questions()
            .iter()
            .zip(&self.budgets)
            .filter(|(question, _)| question.role == Role::Edit)
            .map(|(question, budget)| (question.clone(), *budget))
            .unzip();
        Self { probes: self.probes.only(questions), budgets, ..self.clone() }
    }

    /// Edit success as the peer computes it; nothing where it has no such question.
    pub(crate) fn edit_success(&self, said: &Said) -> Option<f64> {
        self.probes.scores(&said.predicted, &said.predicted).get(Role::Edit.name()).copied()
    }

    /// Prompts of texts that are gone on with: the record's own, or else its edited prompt.
    pub(crate) fn generations(&self) -> Vec<&str> {
        let own = self.questions().iter().filter(|q| q.role == Role::Generation);
        let own: Vec<&str> = own.map(|q| q.prompt.as_str()).take(GENERATIONS).collect();
        if own.is_empty() { vec![self.prompt()] } else { own }
    }

    /// The prompt whose continuation the peer scores: the edited one; of what is erased another.
    pub(crate) fn prompt(&self) -> &str {
        let edited = self.facts.first().map_or("", |fact| fact.prompt.as_str());
        match &self.kind {
            Kind::Erasure(case) => case.generation.map_or(edited, |probe| probe.prompt.as_str()),
            _ => edited,
        }
    }

    /// Its texts as they stand behind what goes before every prompt.
    pub(crate) fn texts(&self, by: &Edited<'_>) -> Result<Vec<Forced>> {
        if by.prefix.is_empty() {
            return Ok(self.probes.texts.clone());
        }
        let text = |&i: &usize| {
            let question = &self.questions()[i];
            let answer = question.first_answer().unwrap_or_default();
            Ok(Forced::new(by.model, &by.prompt(&question.prompt), answer)?)
        };
        self.probes.of.iter().map(text).collect()
    }
}

/// Divergences KL(before ‖ after), in nats, of what records predict where nothing should change:
/// means over the positions of each probe's first answer, its true tokens before them; by question,
/// nothing for questions of other roles or without an answer.
pub(crate) type Divergences = Vec<Option<f64>>;

/// A record and who is asked.
pub type Under<'a> = (&'a Prepared<'a>, Edited<'a>);

/// What the unedited model says to records: all that scores of edits are compared with.
///
/// # Errors
/// Where a text is longer than the model's context.
pub fn unedited(
    model: &Model,
    records: &[&Prepared<'_>],
    measures: &Measures,
    seed: u64,
) -> Result<Vec<Said>> {
    let by = Edited::unedited(model);
    let under: Vec<Under<'_>> = records.iter().map(|record| (*record, by)).collect();
    let all = ask_and_compare(&under, Heads::Kept, measures, seed)?;
    let mut all: Vec<Said> = all.into_iter().map(|(said, _)| said).collect();
    if measures.strict {
        for (i, found) in preferred(&under)? {
            all[i].preferences = found;
        }
    }
    for (said, record) in all.iter_mut().zip(records) {
        match &record.kind {
            Kind::Facts { erased, .. } => {
                if let Some(case) = erased.as_ref().filter(|_| measures.strict) {
                    said.held = erasure::held(&by, case)?;
                }
            }
            Kind::Sentiment(case) => {
                if measures.compat {
                    said.opinions = compat::sentiment::likelihoods(&by, case)?;
                }
                if measures.strict {
                    said.sentiment = Some(strict::sentiment::Before::new(model, case)?);
                }
            }
            Kind::Erasure(case) => {
                if measures.compat {
                    said.ten = Some(compat::sanitation::said(&by, case)?);
                }
                if measures.strict {
                    said.erasure = Some((erasure::said(&by, case)?, erasure::held(&by, case)?));
                }
            }
        }
    }
    Ok(all)
}

/// What is said to the questions of records, each under its edits.
///
/// # Errors
/// Where a text is longer than the model's context.
pub(crate) fn ask(under: &[Under<'_>], measures: &Measures, seed: u64) -> Result<Vec<Said>> {
    let all = ask_and_compare(under, Heads::Unread, measures, seed)?;
    Ok(all.into_iter().map(|(said, _)| said).collect())
}

/// What comes of what the head reads where nothing should change.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Heads<'a> {
    /// It is not read.
    Unread,
    /// It is kept, for edits to be compared with.
    Kept,
    /// It is compared with what the unedited model says to each record.
    Compared(&'a [&'a Said]),
}

/// As [`ask`], and how far what is predicted where nothing should change is from what the unedited
/// model, which says `before`, predicts.
///
/// # Errors
/// Where a text is longer than the model's context.
pub(crate) fn ask_and_compare(
    under: &[Under<'_>],
    heads: Heads<'_>,
    measures: &Measures,
    seed: u64,
) -> Result<Vec<(Said, Divergences)>> {
    let nothing = |(record, _): &Under<'_>| (Said::default(), vec![None; record.questions().len()]);
    let mut all: Vec<(Said, Divergences)> = under.iter().map(nothing).collect();
    let is_read = measures.strict && !matches!(heads, Heads::Unread);
    let texts = match measures.compat || is_read {
        true => under.iter().map(|(record, by)| record.texts(by)).collect::<Result<Vec<_>>>()?,
        false => vec![vec![]; under.len()],
    };
    if measures.compat && !measures.strict {
        predictions(under, &texts, &mut all)?;
    }
    // Everything is written at once: a step costs little more for many texts than for few. A
    // record's texts stand together, as they share what is laid over the weights.
    let asks = under
        .iter()
        .zip(&texts)
        .enumerate()
        .map(|(i, (under, texts))| {
            let before = if let Heads::Compared(before) = heads { Some(before[i]) } else { None };
            asks(under, texts, is_read, before, measures)
        })
        .collect::<Result<Vec<_>>>()?;
    let mut written = write(&asks.concat(), seed)?.into_iter();
    for (((said, divergences), asks), (record, _)) in all.iter_mut().zip(&asks).zip(under) {
        for (ask, Written { text, seen }) in asks.iter().zip(written.by_ref()) {
            match ask.way {
                Way::Answer => {
                    let i = said.free.len();
                    if let Some(Seen { predicted, heads: read, divergences: found }) = seen {
                        divergences[i] = mean(found.into_iter().map(f64::from));
                        said.predicted.extend(measures.compat.then_some(predicted));
                        if matches!(heads, Heads::Kept) && record.questions()[i].role == Role::Locality {
                            said.heads.extend(read);
                        }
                    }
                    said.free.push(text);
                }
                Way::TopFive => {
                    said.peer = Some(fluency_text(&format!("{}{text}", ask.by.prompt(ask.prompt))));
                }
                Way::Sampled => said.sampled.push(text),
                Way::Greedy => said.greedy.push(text),
            }
        }
    }
    Ok(all)
}

/// What a record asks to be written: free answers, by question, with the answers that are given, and
/// texts whose fluency is measured.
fn asks<'a>(
    (record, by): &Under<'a>,
    texts: &'a [Forced],
    is_read: bool,
    before: Option<&'a Said>,
    measures: &Measures,
) -> Result<Vec<Ask<'a>>> {
    let mut asks = vec![];
    if measures.strict {
        let (compared, heads) = record.compared(by.model.architecture().width);
        if before.is_some_and(|before| before.heads.len() != heads) {
            let what =
                format!("what the unedited model says to record {} was asked otherwise", record.number);
            return Err(Error::input_hint(what, "ask it by the same measures as the edited one"));
        }
        for (i, (question, &budget)) in record.questions().iter().zip(&record.budgets).enumerate() {
            let budget = if question.role == Role::Generation { 0 } else { budget };
            let given = record.probes.of.iter().position(|of| *of == i).filter(|_| !texts.is_empty());
            let given = given.and_then(|text| {
                let compared = compared[text].as_ref().filter(|_| is_read);
                let was = compared.zip(before).map(|(at, before)| &before.heads[at.clone()]);
                (measures.compat || compared.is_some()).then(|| Given { text: &texts[text], was })
            });
            asks.push(Ask { by: *by, prompt: &question.prompt, way: Way::Answer, budget, stream: 0, given });
        }
    }
    let stream = record.number as u64;
    if measures.fluency && measures.compat {
        let prompt = record.prompt();
        let held = by.model.tokenizer()?.encode(&by.prompt(prompt))?.ids.len();
        let budget = FLUENCY.saturating_sub(held);
        asks.push(Ask { by: *by, prompt, way: Way::TopFive, budget, stream, given: None });
    }
    if measures.fluency && measures.strict {
        // Texts of one record are drawn apart.
        for (i, prompt) in (0u64..).zip(record.generations()) {
            let stream = (stream << 8) | i;
            let sampled = Ask { by: *by, prompt, way: Way::Sampled, budget: FLUENCY, stream, given: None };
            asks.extend([sampled, Ask { way: Way::Greedy, ..sampled }]);
        }
    }
    Ok(asks)
}

/// Which of the two objects is preferred, of records that tell the old one, by their places.
pub(crate) fn preferred(under: &[Under<'_>]) -> Result<Vec<(usize, counterfact::Scores)>> {
    let Some((_, first)) = under.first() else { return Ok(vec![]) };
    let (mut asked, mut of) = (vec![], vec![]);
    for (i, (record, by)) in under.iter().enumerate() {
        if let (Kind::Facts { .. }, [fact]) = (&record.kind, &record.facts[..]) {
            asked.push((*by, fact));
            of.push(i);
        }
    }
    let found = counterfact::preferences(first.model, &asked)?;
    Ok(of.into_iter().zip(found.iter().map(|all| counterfact::Scores::of(all))).collect())
}

fn predictions(under: &[Under<'_>], texts: &[Vec<Forced>], all: &mut [(Said, Divergences)]) -> Result<()> {
    let Some((_, first)) = under.first() else { return Ok(()) };
    let asked: Vec<Asked<'_>> = texts
        .iter()
        .zip(under)
        .flat_map(|(texts, (_, by))| texts.iter().map(|text| Asked { text, overlays: by.overlays }))
        .collect();
    let mut predicted = predict(first.model, &asked)?.into_iter();
    for ((said, _), texts) in all.iter_mut().zip(texts) {
        said.predicted = predicted.by_ref().take(texts.len()).collect();
    }
    Ok(())
}
