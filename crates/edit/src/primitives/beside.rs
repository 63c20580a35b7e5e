//! What lies beside a fact: other statements about its subject, and its own about other subjects.
//! An edit holds their keys where they are, so that it changes one thing known of one subject.
//!
//! DIFFERENCE: not published; `beside` is 0 by default. The keys are held as those of earlier
//! edits are (AlphaEdit, arXiv 2410.02355, eq. 11): by a term `b·‖ΔW Kₚ‖²`.

use std::collections::HashSet;

use mutandis_engine::{Model, Overlay, Site, SiteKind};

use super::ascent::Ascent;
use super::request::{Request, Token, locate};
use crate::error::Result;
use crate::fact::Fact;

/// Statements that could be made of a person, a place, a work or a thing; `{}` is the subject.
const STATEMENTS: [&str; 8] = [
    "{} is a",
    "{} is known for",
    "The name of {} is",
    "The age of {} is",
    "The family of {} is",
    "The language of {} is",
    "The location of {} is",
    "The owner of {} is",
];

/// Subjects of many kinds that a fact could have been about.
const SUBJECTS: [&str; 8] =
    ["Anna", "Robert Miller", "London", "Brazil", "the company", "the book", "the museum", "the song"];

/// Other statements about the subjects of facts, and the facts' own about other subjects; as
/// tokens, each as far as the token at which its kind of fact is written; each once, and none that
/// a request is about itself.
///
/// # Errors
/// Where a subject is not in its prompt, or has no token.
pub(super) fn statements(
    model: &Model,
    facts: &[Fact],
    token: Token,
    requests: &[Request],
) -> Result<Vec<Vec<u32>>> {
    let tokenizer = model.tokenizer()?;
    let asked = requests.iter().flat_map(|r| &r.prompts[..r.bare]);
    let mut seen: HashSet<Vec<u32>> = asked.map(|p| p.at.ids[..=p.at.lookup].to_vec()).collect();
    let mut out = vec![];
    for fact in facts {
        let prompt = fact.prompt.trim_end();
        let range = fact.subject_range()?;
        let subject: String = prompt.chars().skip(range.start).take(range.len()).collect();
        let before: String = prompt.chars().take(range.start).collect();
        let after: String = prompt.chars().skip(range.end).collect();
        let others =
            STATEMENTS.iter().filter_map(|s| s.split_once("{}")).map(|(b, a)| (b, subject.as_str(), a));
        let elsewhere = SUBJECTS.iter().map(|s| (before.as_str(), *s, after.as_str()));
        for (before, subject, after) in others.chain(elsewhere) {
            let text = format!("{before}{subject}{after}");
            let to_end = if token == Token::Subject { after.chars().count() } else { 0 };
            let mut at = locate(tokenizer, &text, text.chars().count() - to_end - 1)?;
            at.ids.truncate(at.lookup + 1);
            // The key of a text's first token is no statement's: see `lookup`.
            if at.lookup > 0 && seen.insert(at.ids.clone()) {
                out.push(at.ids);
            }
        }
    }
    Ok(out)
}

/// Keys of statements at a layer, `[statements, f]`.
///
/// # Errors
/// Where the model cannot be run on them.
pub(super) fn keys(
    model: &Model,
    stack: &[&Overlay],
    statements: &[Vec<u32>],
    layer: usize,
) -> Result<Vec<f64>> {
    let ascent = Ascent::new(model, stack, statements.iter().map(Vec::as_slice).collect(), layer)?;
    let all: Vec<usize> = (0..statements.len()).collect();
    Ok(ascent.at_last(&all, Site::new(layer, SiteKind::MlpKey))?.into_iter().map(f64::from).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use mutandis_engine::{Options, tokenizer::Specials};

    use super::*;
    use crate::context::Context;
    use crate::method::Job;
    use crate::primitives::request::Framing;

    /// What is held beside facts, as texts.
    fn held(facts: &[Fact], token: Token) -> Vec<String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/stories260K.gguf");
        let model = Model::load(&path, Options::default()).unwrap();
        let job = Job { model: &model, stack: &[], prior: &[], facts, seed: 0 };
        let framing = Framing { token, ..Framing::behind([0, 0]) };
        let requests = framing.requests(&job, &Context::default()).unwrap();
        let tokenizer = model.tokenizer().unwrap();
        let statements = statements(&model, facts, token, &requests).unwrap();
        statements.iter().map(|ids| tokenizer.decode(ids, Specials::Skip).trim().to_owned()).collect()
    }

    #[test]
    fn a_fact_is_not_held_against_itself() {
        let fact = |prompt: &str| Fact::new(prompt, "Lily", "cat").unwrap();
        let all = held(&[fact("Then Lily had a")], Token::Last);
        assert_eq!(all.len(), STATEMENTS.len() + SUBJECTS.len());
        assert!(all.contains(&"The age of Lily is".into()) && all.contains(&"Then the museum had a".into()));
        let one = held(&[fact("The age of Lily is")], Token::Last);
        assert_eq!(one.len(), all.len() - 1);
        assert!(!one.contains(&"The age of Lily is".into()));
    }

    #[test]
    fn a_text_is_held_once_however_many_facts_it_is_beside() {
        let facts = ["Lily", "Tom"].map(|name| Fact::new(format!("Then {name} had a"), name, "cat").unwrap());
        assert_eq!(held(&facts, Token::Last).len(), 2 * STATEMENTS.len() + SUBJECTS.len());
        // Up to the subject, "{} is a" and "{} is known for" are the same text.
        assert_eq!(held(&facts, Token::Subject).len(), 2 * (STATEMENTS.len() - 1) + SUBJECTS.len());
    }
}
