//! Scores of records under edits, in both protocols, many records side by side.

use mutandis_edit::Result;
use mutandis_edit::fact::LOC;
use mutandis_engine::Model;
use mutandis_engine::tokenizer::Specials;

use crate::compat::{self, extra, in_context};
use crate::data::MULTI_HOP;
use crate::edited::Edited;
use crate::fluency::fluency;
use crate::question::{Question, mean, scores};
use crate::record::{Divergences, Heads, Kind, Measures, Prepared, Said, Under, ask_and_compare, preferred};
use crate::results::{Both, ProbeResult, Role, Scores};
use crate::strict::answer::{answer, f1, is_exact, is_same};
use crate::strict::erasure::Held;
use crate::strict::{self, erasure};

/// A record's scores, and what was asked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scored {
    /// Of the unedited model.
    pub before: Both,
    /// Of the edited one.
    pub after: Both,
    /// Every question with its answers.
    pub probes: Vec<ProbeResult>,
}

/// Scores records, each under its edits; `before` is what the unedited model says to them, and
/// `in_place` whether the peer's method overwrites weights ([`compat::sentiment::is_in_place`]).
///
/// # Errors
/// Where a text is longer than the model's context.
pub fn score(
    under: &[Under<'_>],
    before: &[&Said],
    measures: &Measures,
    in_place: bool,
    seed: u64,
) -> Result<Vec<Scored>> {
    let heard = ask_and_compare(under, Heads::Compared(before), measures, seed)?;
    let (after, divergences): (Vec<Said>, Vec<Divergences>) = heard.into_iter().unzip();
    let mut all = Vec::with_capacity(under.len());
    for (((under, before), after), divergences) in under.iter().zip(before).zip(&after).zip(&divergences) {
        let mut scored = asked(under.0, before, after, divergences);
        forced(under.0, before, after, under.1.model, &mut scored)?;
        in_context_scores(under, measures, &mut scored)?;
        correct(under.0, before, after, &mut scored);
        extras(under, measures, &mut scored)?;
        special(under, before, measures, in_place, &mut scored)?;
        texts(under.0, before, after, &mut scored);
        fluencies(before, after, &mut scored);
        all.push(scored);
    }
    if measures.strict {
        preferences(under, before, measures, &after, &mut all)?;
    }
    Ok(all)
}

/// Scores of a record's questions.
fn asked(record: &Prepared<'_>, before: &Said, after: &Said, divergences: &[Option<f64>]) -> Scored {
    let questions = record.questions();
    let each = |said: &Said| match said.predicted.is_empty() {
        true => vec![None; questions.len()],
        false => record.probes.each(&before.predicted, &said.predicted),
    };
    let (was, tokens) = (each(before), each(after));
    let strict = Strict { questions, before, divergences };
    let mut out = Scored {
        before: Both { compat: scores(questions, "", |i| was[i]), strict: strict.scores(before, false) },
        after: Both { compat: scores(questions, "", |i| tokens[i]), strict: strict.scores(after, true) },
        probes: vec![],
    };
    // What should not change agrees with itself.
    out.before.compat.retain(|name, _| !name.starts_with(Role::Locality.name()));
    for (i, question) in questions.iter().enumerate().filter(|(_, q)| q.role != Role::Generation) {
        let text = |said: &Said| said.free.get(i).cloned().unwrap_or_default();
        let own = Both {
            compat: tokens[i].map(|score| ("tokens".to_owned(), score)).into_iter().collect(),
            strict: strict.each(i, after).into_iter().map(|(name, score)| (name.to_owned(), score)).collect(),
        };
        out.probes.push(ProbeResult {
            role: question.role,
            kind: question.kind.clone(),
            prompt: question.prompt.clone(),
            answers: question.right(),
            before: text(before),
            after: text(after),
            immediate: None,
            forced: None,
            scores: own,
        });
    }
    out
}

/// The texts whose fluency is measured, as they were written.
fn texts(record: &Prepared<'_>, before: &Said, after: &Said, scored: &mut Scored) {
    let mut add = |kind: &str, prompt: &str, before: &str, after: &str| {
        scored.probes.push(ProbeResult {
            role: Role::Generation,
            kind: kind.to_owned(),
            prompt: prompt.to_owned(),
            answers: vec![],
            before: before.to_owned(),
            after: after.to_owned(),
            immediate: None,
            forced: None,
            scores: Both::default(),
        });
    };
    if let (Some(was), Some(is)) = (&before.peer, &after.peer) {
        add("compat", record.prompt(), was, is);
    }
    for (kind, of) in [("nucleus", |said: &Said| &said.sampled), ("greedy", |said: &Said| &said.greedy)]
        as [(&str, fn(&Said) -> &Vec<String>); 2]
    {
        for ((prompt, was), is) in record.generations().into_iter().zip(of(before)).zip(of(after)) {
            add(kind, prompt, was, is);
        }
    }
}

/// Scores of free answers.
struct Strict<'a> {
    questions: &'a [Question],
    before: &'a Said,
    divergences: &'a [Option<f64>],
}

impl Strict<'_> {
    /// Scores of one question by their names.
    fn each(&self, i: usize, said: &Said) -> Vec<(&'static str, f64)> {
        let (question, Some(text)) = (&self.questions[i], said.free.get(i)) else { return vec![] };
        let found = answer(text);
        let mut all = vec![];
        match question.role {
            Role::Generation => {}
            Role::Locality => {
                let same = self.before.free.get(i).is_some_and(|was| is_same(answer(was), found));
                all.push(("same", f64::from(same)));
                all.extend(self.divergences.get(i).copied().flatten().map(|kl| ("kl", kl)));
            }
            _ => {
                let right = question.right();
                if !right.is_empty() {
                    all.push(("exact", f64::from(is_exact(found, &right))));
                    all.push(("f1", f1(found, &right)));
                }
            }
        }
        all
    }

    /// Whether any wording of the question that takes several facts together is answered right, as MQuAKE
    /// counts (arXiv 2305.14795, §4).
    fn any_wording(&self, exact: impl Fn(usize) -> Option<f64>) -> Option<(String, f64)> {
        let is_one =
            |i: &usize| self.questions[*i].role == Role::Portability && self.questions[*i].kind == MULTI_HOP;
        let best = (0..self.questions.len()).filter(is_one).filter_map(exact).reduce(f64::max)?;
        Some((format!("{}/{MULTI_HOP}:any", Role::Portability.name()), best))
    }

    /// Scores of a record; those of what should stay only where something was `edited`.
    fn scores(&self, said: &Said, edited: bool) -> Scores {
        let each: Vec<Vec<(&str, f64)>> = (0..self.questions.len()).map(|i| self.each(i, said)).collect();
        let of = |name: &'static str| {
            let each = &each;
            move |i: usize| each[i].iter().find(|(n, _)| *n == name).map(|(_, score)| *score)
        };
        let mut all = scores(self.questions, "", of("exact"));
        all.extend(self.any_wording(of("exact")));
        all.extend(scores(self.questions, ":f1", of("f1")));
        if edited {
            all.extend(scores(self.questions, "", of("same")));
            all.extend(scores(self.questions, ":kl", of("kl")));
        }
        all
    }
}

/// How zsRE's specificity is told elsewhere (methods.md §2.8): whether the true answer is predicted to the
/// question about something else, rather than whether what is predicted stays.
fn correct(record: &Prepared<'_>, before: &Said, after: &Said, scored: &mut Scored) {
    for (said, both) in [(before, &mut scored.before), (after, &mut scored.after)] {
        let texts = record.probes.texts.iter().zip(&record.probes.of).zip(&said.predicted);
        let of = texts.filter_map(|((text, question), predicted)| {
            let question = &record.questions()[*question];
            (question.role == Role::Locality && question.kind == LOC).then(|| text.accuracy(predicted))?
        });
        both.compat.extend(mean(of).map(|score| ("locality:correct".to_owned(), score)));
    }
}

/// Texts of what was predicted in place of the answers, with their true tokens before each.
fn forced(
    record: &Prepared<'_>,
    before: &Said,
    after: &Said,
    model: &Model,
    scored: &mut Scored,
) -> Result<()> {
    let tokenizer = model.tokenizer()?;
    let text = |ids: &[u32]| tokenizer.decode_continuation(ids, Specials::Keep);
    // Questions of texts that are gone on with come last, and have no answers.
    for (&question, (was, is)) in record.probes.of.iter().zip(before.predicted.iter().zip(&after.predicted)) {
        if let Some(probe) = scored.probes.get_mut(question) {
            probe.forced = Some([text(was), text(is)]);
        }
    }
    Ok(())
}

/// The peer has functions of their own for edits that are a prompt.
fn in_context_scores((record, by): &Under<'_>, measures: &Measures, scored: &mut Scored) -> Result<()> {
    if by.prefix.is_empty() || !measures.compat || !matches!(record.kind, Kind::Facts { .. }) {
        return Ok(());
    }
    let found = in_context::scores(by, measures.branch, record.questions())?;
    scored.before.compat = found.before;
    scored.before.compat.retain(|name, _| !name.starts_with(Role::Locality.name()));
    scored.after.compat = found.after;
    let asked = record.questions().iter().zip(&found.each);
    let kept = asked.filter(|(question, _)| question.role != Role::Generation);
    for (probe, (_, score)) in scored.probes.iter_mut().zip(kept) {
        // What was predicted bare is not what these functions look at.
        probe.forced = None;
        probe.scores.compat.remove("tokens");
        probe.scores.compat.extend(score.map(|score| ("tokens".to_owned(), score)));
    }
    Ok(())
}

/// What the peer measures on request, before and after.
fn extras((record, by): &Under<'_>, measures: &Measures, scored: &mut Scored) -> Result<()> {
    if measures.compat && !measures.extra.is_empty() {
        let (unedited, questions) = (Edited::unedited(by.model), record.questions());
        let before = extra::measure(&measures.extra, &unedited, questions, &mut [])?;
        let is_kept = |name: &String| !name.starts_with(Role::Locality.name());
        scored.before.compat.extend(before.into_iter().filter(|(name, _)| is_kept(name)));
        let after = extra::measure(&measures.extra, by, questions, &mut scored.probes)?;
        scored.after.compat.extend(after);
    }
    Ok(())
}

/// Scores of what is to be forgotten, and of opinions.
fn special(
    (record, by): &Under<'_>,
    before: &Said,
    measures: &Measures,
    in_place: bool,
    scored: &mut Scored,
) -> Result<()> {
    match &record.kind {
        Kind::Facts { erased, .. } => {
            if let Some(case) = erased.as_ref().filter(|_| measures.strict) {
                scored.before.strict.extend(before.held.iter().flat_map(Held::named));
                scored.after.strict.extend(erasure::held(by, case)?.iter().flat_map(Held::named));
            }
        }
        Kind::Sentiment(case) => {
            if measures.compat {
                let likelihoods = before.opinions.as_ref();
                let in_place = in_place && by.prefix.is_empty();
                scored.after.compat = compat::sentiment::scores(by, case, likelihoods, in_place)?;
            }
            if let Some(before) = before.sentiment.as_ref().filter(|_| measures.strict) {
                scored.before.strict = before.scores();
                (scored.after.strict, scored.probes) = strict::sentiment::scores(by, case, before)?;
            }
        }
        Kind::Erasure(case) => {
            let tokenizer = by.model.tokenizer()?;
            if let Some(was) = before.ten.as_ref().filter(|_| measures.compat) {
                let is = compat::sanitation::said(by, case)?;
                scored.before.compat = compat::sanitation::scores(tokenizer, case, was, was)?;
                scored.after.compat = compat::sanitation::scores(tokenizer, case, was, &is)?;
                let each = compat::sanitation::each(tokenizer, case, was, &is)?;
                scored.probes = case.probes(was, &is);
                for ((probe, score), forced) in scored.probes.iter_mut().zip(each).zip(was.iter().zip(is)) {
                    probe.forced = Some([forced.0.clone(), forced.1]);
                    (probe.before, probe.after) = Default::default();
                    probe.scores.compat = case.score_of(probe.role, score);
                }
            }
            if let Some((was, held)) = before.erasure.as_ref().filter(|_| measures.strict) {
                let is = erasure::said(by, case)?;
                scored.before.strict = erasure::scores(case, was, was, *held);
                scored.after.strict = erasure::scores(case, was, &is, erasure::held(by, case)?);
                let each = erasure::each(case, was, &is);
                let forced = std::mem::replace(&mut scored.probes, case.probes(was, &is));
                for (probe, score) in scored.probes.iter_mut().zip(each) {
                    probe.scores.strict = case.score_of(probe.role, score);
                }
                for (probe, by_peer) in scored.probes.iter_mut().zip(forced) {
                    probe.forced = by_peer.forced;
                    probe.scores.compat = by_peer.scores.compat;
                }
            }
            for both in [&mut scored.before.compat, &mut scored.before.strict] {
                both.remove(Role::Locality.name());
            }
        }
    }
    Ok(())
}

fn fluencies(before: &Said, after: &Said, scored: &mut Scored) {
    for (said, both) in [(before, &mut scored.before), (after, &mut scored.after)] {
        let peers = |text| ("fluency".to_owned(), fluency(text).unwrap_or(0.0));
        both.compat.extend(said.peer.as_deref().map(peers));
        let of = |texts: &[String]| mean(texts.iter().filter_map(|text| fluency(text)));
        both.strict.extend(of(&said.sampled).map(|score| ("fluency".to_owned(), score)));
        both.strict.extend(of(&said.greedy).map(|score| ("fluency:greedy".to_owned(), score)));
    }
}

/// CounterFact's metrics, of records that tell the old answer.
fn preferences(
    under: &[Under<'_>],
    before: &[&Said],
    measures: &Measures,
    after: &[Said],
    all: &mut [Scored],
) -> Result<()> {
    for (i, found) in preferred(under)? {
        all[i].before.strict.extend(before[i].preferences.named());
        all[i].after.strict.extend(found.named());
        let Kind::Facts { reference: Some(object), .. } = &under[i].0.kind else { continue };
        for (said, both) in [(before[i], &mut all[i].before), (&after[i], &mut all[i].after)] {
            let prompts = under[i].0.generations().into_iter();
            let texts: Vec<String> =
                prompts.zip(&said.sampled).map(|(p, text)| format!("{p}{text}")).collect();
            let found = measures.references.as_ref().and_then(|r| r.consistency(object, &texts));
            both.strict.extend(found.map(|score| ("consistency".to_owned(), score)));
        }
    }
    Ok(())
}

/// Scores of the unedited model alone, of a record whose edit failed.
pub(crate) fn unedited_scores(record: &Prepared<'_>, said: &Said) -> Both {
    let mut scored = asked(record, said, said, &[]);
    if let Some(opinions) = &said.sentiment {
        scored.before.strict = opinions.scores();
    }
    scored.before.strict.extend(said.held.iter().flat_map(Held::named));
    correct(record, said, said, &mut scored);
    fluencies(said, said, &mut scored);
    scored.before.strict.extend(said.preferences.named());
    scored.before
}
