//! A fact as tokens: prompts in their contexts, the lookup token, the target.

use mutandis_engine::Model;
use mutandis_engine::tokenizer::Tokenizer;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::contexts;
use super::lookup::{self, Text};
use crate::context::Context;
use crate::error::{Error, Result, check_number};
use crate::fact::Fact;
use crate::method::Job;

/// In which texts a fact is searched, at which token it is written, and what else is held there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
pub struct Framing {
    /// Number of prefixes of 5 and of 10 tokens that the prompt is searched behind, besides the
    /// bare prompt.
    pub prefixes: [usize; 2],
    /// The token at which the fact is written.
    pub token: Token,
    /// Weight of the keys of what lies beside a fact, which are held where they are: other
    /// statements about its subject, and its own about other subjects. 0: they are not.
    pub beside: f64,
}

/// A token of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Token {
    /// The subject's last: every prompt about the subject meets the fact.
    Subject,
    /// The prompt's last: prompts that end in the same words meet it.
    Last,
}

impl Framing {
    /// The published one behind so many prefixes.
    pub fn behind(prefixes: [usize; 2]) -> Self {
        Self { prefixes, token: Token::Subject, beside: 0.0 }
    }

    /// Checks what no type does.
    ///
    /// # Errors
    /// Where the weight is negative or not finite.
    pub fn check(&self) -> Result<()> {
        let hint = "0 holds nothing, 1 weighs another statement as much as the fact itself";
        check_number("beside", self.beside, true, hint)
    }

    /// The facts as tokens, in contexts that the model writes.
    ///
    /// # Errors
    /// Where a fact does not fit the model, or contexts cannot be written.
    pub fn requests(&self, job: &Job<'_>, cx: &Context<'_>) -> Result<Vec<Request>> {
        let requests = self.each(job, cx)?.into_iter().collect::<Result<Vec<_>>>()?;
        let moved = requests.iter().filter(|r| r.moved).count();
        if moved > 0 {
            cx.progress.note(&format!(
                "{moved} of {} facts are written at the token behind their subject: its own is one that models \
                 park attention on, where all subjects look the same",
                requests.len()
            ));
        }
        note_thinned(&requests, cx);
        Ok(requests)
    }

    /// As [`Self::requests`], with an answer for each fact.
    ///
    /// # Errors
    /// Where contexts cannot be written.
    pub(crate) fn each(&self, job: &Job<'_>, cx: &Context<'_>) -> Result<Vec<Result<Request>>> {
        let templates = contexts::for_edits(job.model, self.prefixes, job.seed, cx)?;
        Request::each(job.model, job.facts, &templates, self.token)
    }
}

impl Default for Framing {
    /// MEMIT's: five prefixes of 10 tokens.
    fn default() -> Self {
        Self::behind([0, 5])
    }
}

/// A prompt as tokens, with the token at which an edit reads and writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Index of the token that holds the subject's last character, or of one behind it (see
    /// `lookup`).
    pub lookup: usize,
}

/// A prompt in a context, with what it should be followed by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The prompt.
    pub at: Located,
    /// Target ids; at least one.
    pub target: Vec<u32>,
}

/// A fact in all its contexts, or several facts that share a value.
#[derive(Debug, Clone)]
pub struct Request {
    /// The prompt in each context, the bare ones first.
    pub prompts: Vec<Prompt>,
    /// How many prompts are bare: one for each fact.
    pub bare: usize,
    /// `"{subject} is a"`, cut after the lookup token: what the subject is must not change. With
    /// causal attention nothing after that token can be seen there (methods.md §4b row 1).
    pub essence: Located,
    /// Where its search begins: the δ that an earlier one ended with and that was not enough, or
    /// nothing.
    pub start: Vec<f32>,
    /// Whether it is written behind its token, which is a sink.
    pub moved: bool,
    /// Whether its prefixed prompts were left out, as they would not fit in memory.
    pub thinned: bool,
}

/// Longest target that is searched for, in tokens.
const TARGET_LIMIT: usize = 512;

/// Most rows of a step of a search: enough to keep the processor busy, few enough for logits and
/// activations to fit in memory (SmolLM2-135M: 0.7 MB a row).
pub(super) const ROWS: usize = 1536;

impl Request {
    /// Tokenises a fact. A template is text with one `{}`, where the prompt goes.
    ///
    /// # Errors
    /// Where the subject is not in the prompt, the target has no tokens, or the text is longer
    /// than the context.
    pub fn new(model: &Model, fact: &Fact, templates: &[String], token: Token) -> Result<Self> {
        let one = std::slice::from_ref(fact);
        let mut each = Self::each(model, one, templates, token)?;
        each.pop().unwrap_or_else(|| Err(Error::input("there is no fact")))
    }

    /// As [`Self::new`], with an answer for each of several facts.
    ///
    /// # Errors
    /// Where the model cannot be run.
    fn each(model: &Model, facts: &[Fact], templates: &[String], token: Token) -> Result<Vec<Result<Self>>> {
        let texts: Vec<Result<[Text; 2]>> = facts.iter().map(|fact| texts(fact, token)).collect();
        let flat: Vec<&Text> = texts.iter().flatten().flatten().collect();
        let mut characters = lookup::characters(model, &flat)?.into_iter();
        let mut next = || characters.next().unwrap_or_else(|| Err(Error::input("there is no text")));
        let at = |(fact, texts): (&Fact, Result<[Text; 2]>)| {
            let [prompt, essence] = texts?;
            let [prompt_at, essence_at] = [next(), next()];
            let (prompt_at, essence_at) = (prompt_at?, essence_at?);
            let moved = prompt_at != prompt.character;
            let [prompt, essence] = [prompt.at(prompt_at), essence.at(essence_at)];
            Self { moved, ..Self::of(model, fact, templates, &prompt, &essence)? }.thin(&fact.prompt)
        };
        Ok(facts.iter().zip(texts).map(at).collect())
    }

    /// The lookup token is found by character offsets in the whole text, never by counting the
    /// tokens of its parts: merges across a border would move it (methods.md §2.1, P-a).
    fn of(model: &Model, fact: &Fact, templates: &[String], prompt: &Text, essence: &Text) -> Result<Self> {
        let tokenizer = model.tokenizer()?;
        let mut prompts = Vec::with_capacity(templates.len());
        for template in templates {
            let (before, after) = template.split_once("{}").ok_or_else(|| {
                Error::input_hint(
                    format!("the template `{template}` has no `{{}}`"),
                    "put `{}` where the prompt goes",
                )
            })?;
            let text = format!("{before}{}{after}", prompt.text);
            prompts.push(locate(tokenizer, &text, before.chars().count() + prompt.character)?);
        }
        let mut essence = locate(tokenizer, &essence.text, essence.character)?;
        essence.ids.truncate(essence.lookup + 1);
        let target = target(tokenizer, fact)?;
        let longest = prompts.iter().map(|p| p.ids.len()).max().unwrap_or(0) + target.len();
        fits(model, &prompt.text, longest)?;
        let prompts = prompts.into_iter().map(|at| Prompt { at, target: target.clone() }).collect();
        Ok(Self { prompts, bare: 1, essence, start: vec![], moved: false, thinned: false })
    }

    /// Lets another fact share this one's value (MEMIT-Merge, arXiv 2502.07322).
    pub fn merge(&mut self, other: Self) {
        let mut prefixed = self.prompts.split_off(self.bare);
        let (bare, more) = other.prompts.split_at(other.bare);
        self.prompts.extend_from_slice(bare);
        self.bare += other.bare;
        prefixed.extend_from_slice(more);
        self.prompts.append(&mut prefixed);
        self.thinned |= other.thinned;
    }

    /// Rows that a step of its search runs: all tokens from the lookup tokens on.
    pub(super) fn rows(&self) -> usize {
        self.prompts.iter().map(|p| p.at.ids.len() - p.at.lookup + p.target.len()).sum()
    }

    /// Leaves out the prefixed prompts where a step over all would not fit in memory. `about` names
    /// the facts in errors.
    ///
    /// # Errors
    /// Where not even the bare prompts fit.
    pub(super) fn thin(mut self, about: &str) -> Result<Self> {
        if self.rows() > ROWS && self.prompts.len() > self.bare {
            self.prompts.truncate(self.bare);
            self.thinned = true;
        }
        if self.rows() > 2 * ROWS {
            let what = format!(
                "the search for `{about}` runs over {} tokens at once, expected at most {}",
                self.rows(),
                2 * ROWS
            );
            return Err(Error::input_hint(
                what,
                "shorten the target, or, of many facts about one subject, edit some first and the others on top",
            ));
        }
        Ok(self)
    }
}

/// Tells of requests that are searched without their prefixed prompts.
pub(super) fn note_thinned(requests: &[Request], cx: &Context<'_>) {
    let thinned = requests.iter().filter(|r| r.thinned).count();
    if thinned > 0 {
        cx.progress.note(&format!(
            "{thinned} of {} values are searched without prefixes: with them the prompts do not fit in memory",
            requests.len()
        ));
    }
}

/// A fact's prompt and its essence, each with the character at which the fact is looked up.
fn texts(fact: &Fact, token: Token) -> Result<[Text; 2]> {
    let prompt = fact.prompt.trim_end();
    let subject = fact.subject_range()?;
    let essence = format!("{} is a", fact.written_subject());
    let ends = match token {
        Token::Subject => [subject.end, subject.len()],
        Token::Last => [prompt, &essence].map(|text| text.chars().count()),
    };
    Ok([
        Text { text: prompt.to_owned(), character: ends[0] - 1 },
        Text { text: essence, character: ends[1] - 1 },
    ])
}

/// The target's tokens, as they follow the prompt.
///
/// # Errors
/// Where there are none, or too many.
pub(crate) fn target(tokenizer: &Tokenizer, fact: &Fact) -> Result<Vec<u32>> {
    let target = tokenizer.encode_continuation(&fact.continuation())?.ids;
    if target.is_empty() || target.len() > TARGET_LIMIT {
        return Err(Error::input_hint(
            format!("the target `{}` has {} tokens, expected 1 to {TARGET_LIMIT}", fact.target, target.len()),
            "shorten the target",
        ));
    }
    Ok(target)
}

/// Checks that a prompt with its target is no longer than the model's context.
///
/// # Errors
/// Where it is.
pub(crate) fn fits(model: &Model, prompt: &str, tokens: usize) -> Result<()> {
    let context = model.architecture().context;
    if tokens > context {
        return Err(Error::input_hint(
            format!(
                "`{}` with its target is {tokens} tokens long, the model's context is {context}",
                beginning(prompt)
            ),
            "shorten the prompt or the target",
        ));
    }
    Ok(())
}

/// Characters of a text that are shown of one that may be of any length.
const SHOWN: usize = 60;

/// What is shown of a text that may be of any length.
fn beginning(text: &str) -> String {
    let end = text.char_indices().nth(SHOWN).map_or(text.len(), |(at, _)| at);
    let more = if end < text.len() { "…" } else { "" };
    format!("{}{more}", &text[..end])
}

pub(super) fn locate(tokenizer: &Tokenizer, text: &str, character: usize) -> Result<Located> {
    let encoding = tokenizer.encode(text)?;
    let lookup = encoding.token_at_char(character).ok_or_else(|| {
        Error::input_hint(
            format!("no token of `{text}` holds character {character}, the subject's last"),
            "the tokenizer drops it: write the subject with other characters",
        )
    })?;
    Ok(Located { ids: encoding.ids, lookup })
}
