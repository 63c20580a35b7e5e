//! A fact by its words: case, blanks and punctuation aside.

use std::collections::HashSet;

use crate::fact::Fact;

/// Letters from which a word says something of its own ("of", "the" and "was" do not).
const TELLING: usize = 4;

/// Hashes of what a fact says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Traits {
    /// The prompt.
    pub(super) prompt: u64,
    /// The subject, and the prompt without it.
    pub(super) relation: u64,
    /// The subject.
    pub(super) subject: u64,
    /// The target.
    pub(super) target: u64,
}

impl Traits {
    pub(super) fn of(fact: &Fact) -> Self {
        let prompt = words(&fact.prompt);
        let relation = match fact.subject_range() {
            Ok(range) => {
                let chars = |from: usize, to: usize| fact.prompt.chars().skip(from).take(to - from);
                let count = fact.prompt.chars().count();
                let rest: String =
                    chars(0, range.start).chain([' ']).chain(chars(range.end, count)).collect();
                hash(&format!("{}\n{}", words(&fact.subject), words(&rest)))
            }
            Err(_) => hash(&prompt),
        };
        Self {
            prompt: hash(&prompt),
            relation,
            subject: hash(&words(&fact.subject)),
            target: hash(&words(&fact.target)),
        }
    }
}

/// Whether two prompts share a word that says something, their subjects aside.
pub(super) fn share_a_word(a: &Fact, b: &Fact) -> bool {
    let telling = |fact: &Fact| -> HashSet<String> {
        let own = words(&fact.subject);
        let own: HashSet<&str> = own.split(' ').collect();
        let all = words(&fact.prompt);
        let is_telling = |word: &&str| word.chars().count() >= TELLING && !own.contains(word);
        all.split(' ').filter(is_telling).map(str::to_owned).collect()
    };
    !telling(a).is_disjoint(&telling(b))
}

/// Words in lower case with a blank between them; the text where it has none.
fn words(text: &str) -> String {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let words = words.map(str::to_lowercase).collect::<Vec<_>>().join(" ");
    if words.is_empty() { text.trim().to_owned() } else { words }
}

fn hash(text: &str) -> u64 {
    let hash = blake3::hash(text.as_bytes());
    hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
