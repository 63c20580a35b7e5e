//! Records that an editor is trained on.

use mutandis_engine::Model;
use rayon::prelude::*;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::fact::Fact;
use crate::primitives::answers::Example;

/// A fact to be learnt, and what must stay.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The fact.
    pub fact: Fact,
    /// The same question in other words.
    pub rephrase: String,
    /// An unrelated prompt and its answer.
    pub locality: (String, String),
}

impl Record {
    /// Of a fact with something that must stay; its first rephrasing, or the prompt itself where
    /// there is none.
    ///
    /// # Errors
    /// What it lacks.
    pub fn new(fact: Fact) -> Result<Self, String> {
        let rephrase = fact.rephrases.first().unwrap_or(&fact.prompt).clone();
        let is_there = |text: &&String| !text.trim().is_empty();
        let locality = fact.locality.iter().filter(|p| is_there(&&p.prompt));
        let locality = locality
            .filter_map(|p| Some((p.prompt.clone(), p.answers.iter().find(is_there)?.clone())))
            .next();
        let Some(locality) = locality else {
            return Err(
                "it has no unrelated prompt with its answer (`loc` and `loc_ans`, or `locality`)".into()
            );
        };
        Ok(Self { fact, rephrase, locality })
    }

    /// The fact, its rephrasing, and what must stay.
    pub(super) fn examples(&self, model: &Model) -> Result<[Example; 3]> {
        let of = |prompt: &str, target: &str| {
            let fact = Fact { prompt: prompt.to_owned(), target: target.to_owned(), ..self.fact.clone() };
            Example::answer(model, &fact, false)
        };
        Ok([
            of(&self.fact.prompt, &self.fact.target)?,
            of(&self.rephrase, &self.fact.target)?,
            of(&self.locality.0, &self.locality.1)?,
        ])
    }
}

/// Those records that the model can read; the first few others are named.
pub(super) fn fitting<'a>(model: &Model, records: &'a [Record], cx: &Context<'_>) -> Vec<&'a Record> {
    let tried: Vec<Result<&Record>> =
        records.par_iter().map(|record| record.examples(model).map(|_| record)).collect();
    let why: Vec<&Error> = tried.iter().filter_map(|tried| tried.as_ref().err()).collect();
    if !why.is_empty() {
        let named: Vec<String> = why.iter().take(NAMED).map(ToString::to_string).collect();
        let more = if why.len() > NAMED { "; …" } else { "" };
        let (count, named) = (why.len(), named.join("; "));
        cx.progress.note(&format!("{count} records do not fit the model and are skipped: {named}{more}"));
    }
    tried.into_iter().filter_map(Result::ok).collect()
}

/// Records that are named of those left out.
const NAMED: usize = 5;
