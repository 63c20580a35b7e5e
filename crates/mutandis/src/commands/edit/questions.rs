//! What is asked before and after an edit.

use mutandis::engine::Model;
use mutandis::interrupt::Interrupt;
use mutandis_edit::Fact;

use super::Args;
use crate::answers::{Answer, Question, answers};
use crate::neighbours::neighbours;
use crate::patched::Patched;

/// Facts whose answers are shown one by one; of more the rest is only counted.
pub(super) const SHOWN: usize = 20;

/// What is asked before and after.
pub(super) struct Questions {
    pub(super) also: Vec<(String, Option<String>)>,
    pub(super) keep: Vec<String>,
}

/// The answers to them.
pub(super) struct Answers {
    pub(super) facts: Vec<Answer>,
    pub(super) also: Vec<Answer>,
    pub(super) keep: Vec<Answer>,
}

impl Questions {
    pub(super) fn new(args: &Args, facts: &[Fact]) -> Self {
        let first = facts.first();
        let target = |f: &Fact| Some(f.target.clone());
        let mut also: Vec<(String, Option<String>)> =
            args.also.iter().map(|p| (p.clone(), first.and_then(target))).collect();
        also.extend(
            facts.iter().take(SHOWN).flat_map(|f| f.rephrases.iter().map(move |p| (p.clone(), target(f)))),
        );
        let mut keep = args.keep.clone();
        keep.extend(facts.iter().take(SHOWN).flat_map(|f| f.locality.iter().map(|p| p.prompt.clone())));
        if keep.is_empty() {
            keep = first.map(|f| neighbours(&f.prompt, &f.written_subject())).unwrap_or_default();
        }
        Self { also, keep }
    }

    pub(super) fn ask(
        &self,
        model: &Model,
        patched: &Patched,
        facts: &[Fact],
        interrupt: &Interrupt,
    ) -> anyhow::Result<Answers> {
        let mut questions: Vec<Question<'_>> =
            facts.iter().map(|f| Question { prompt: &f.prompt, target: Some(&f.target) }).collect();
        questions.extend(self.also.iter().map(|(p, t)| Question { prompt: p, target: t.as_deref() }));
        questions.extend(self.keep.iter().map(|p| Question { prompt: p, target: None }));
        let mut all = answers(model, patched, &questions, interrupt)?.into_iter();
        let facts = all.by_ref().take(facts.len()).collect();
        let also = all.by_ref().take(self.also.len()).collect();
        Ok(Answers { facts, also, keep: all.collect() })
    }
}
