//! Facts: what should be true, and where the prompt says of whom.

mod read;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::read::{LOC, kind, texts, texts_noted};
use crate::error::{Error, Result};

/// Jaro–Winkler similarity from which a text is a misspelling of a name; below, it is another.
const MISSPELT: f64 = 0.8;

/// How a fact relates to what the model says now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// The model knows nothing of it yet.
    Insert,
    /// It takes the place of another answer.
    #[default]
    Modify,
    /// The old answer is to be forgotten; the target is what is said in its place.
    Erase,
}

/// A prompt with the answers that are right for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Probe {
    /// What is probed: the data set's own name, such as `Relation_Specificity`.
    pub kind: String,
    /// The prompt.
    pub prompt: String,
    /// Answers that count as right; may be empty.
    pub answers: Vec<String>,
}

/// One fact.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Fact {
    /// Text that the target continues, such as `The capital of France is`.
    pub prompt: String,
    /// Of whom or what it speaks, as the prompt writes it; empty where no method needs it.
    #[serde(default)]
    pub subject: String,
    /// What should come next, without a leading blank.
    pub target: String,
    /// The target as its record writes it, where that has blanks around it: the peer scores those, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_target: Option<String>,
    /// Other ways to write the target, which the strict scores of a benchmark count as right.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// What the model says, or should have said, before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ground_truth: Option<String>,
    /// Kind of change.
    #[serde(default)]
    pub change: Change,
    /// Other wordings of the prompt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rephrases: Vec<String>,
    /// What must stay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locality: Vec<Probe>,
    /// What must follow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub portability: Vec<Probe>,
}

impl Fact {
    /// A fact to be modified.
    ///
    /// # Errors
    /// Where the prompt or the target is empty.
    pub fn new(
        prompt: impl Into<String>,
        subject: impl Into<String>,
        target: impl Into<String>,
    ) -> Result<Self> {
        let fact = Self {
            prompt: prompt.into(),
            subject: subject.into().trim().to_owned(),
            target: target.into().trim().to_owned(),
            ..Self::default()
        };
        fact.check()?;
        Ok(fact)
    }

    /// Checks what every method relies on.
    ///
    /// # Errors
    /// Where the prompt or the target is empty.
    pub fn check(&self) -> Result<()> {
        if self.prompt.trim().is_empty() {
            return Err(Error::input_hint(
                "the prompt is empty",
                "give the text that the target should continue, such as `The capital of France is`",
            ));
        }
        if self.target.trim().is_empty() {
            return Err(Error::input_hint(
                format!("the target of `{}` is empty", self.prompt),
                "give the new answer, such as `--to Rome`; to erase one, give what should be said in its place",
            ));
        }
        Ok(())
    }

    /// The target as it follows the prompt: with a blank before it, where its script has blanks
    /// between words.
    pub fn continuation(&self) -> String {
        continuation(&self.target)
    }

    /// The subject as the prompt writes it; as given where the prompt does not name it.
    pub fn written_subject(&self) -> String {
        match self.subject_range() {
            Ok(range) => self.prompt.chars().skip(range.start).take(range.len()).collect(),
            Err(_) => self.subject.clone(),
        }
    }

    /// Where the prompt names the subject, in characters.
    ///
    /// An exact match of whole words wins, then any exact match, then one that overlooks case,
    /// the kind of quotes and dashes, and runs of blanks. Of several the last is taken: it has
    /// seen most of the prompt.
    ///
    /// # Errors
    /// Where the subject is empty or not in the prompt, with what might have been meant.
    pub fn subject_range(&self) -> Result<std::ops::Range<usize>> {
        find_subject(&self.prompt, &self.subject).ok_or_else(|| {
            if self.subject.is_empty() {
                return Error::input_hint(
                    format!("the fact `{}` names no subject", self.prompt),
                    "say of whom the prompt speaks: `--subject France`, or `\"subject\": \"France\"` in a file",
                );
            }
            Error::input_hint(
                format!("the subject `{}` is not in the prompt `{}`", self.subject, self.prompt),
                match nearest_words(&self.prompt, &self.subject) {
                    Some(near) => format!("write the subject as the prompt does; did you mean `{near}`?"),
                    None => "write the subject as the prompt does, or reword the prompt".to_owned(),
                },
            )
        })
    }
}

/// A target as it follows a prompt.
pub fn continuation(target: &str) -> String {
    let target = target.trim_start();
    // Chinese, Japanese and Thai write no blanks; punctuation follows at once.
    let joined = |c: char| matches!(c, '\u{0e00}'..='\u{0eff}' | '\u{3000}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | ',' | '.' | ';' | ':' | '!' | '?');
    match target.chars().next() {
        Some(c) if joined(c) => target.to_owned(),
        _ => format!(" {target}"),
    }
}

/// The name that was meant, where the text is a misspelling of one.
pub fn nearest<'a>(text: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |name: &str| strsim::jaro_winkler(&name.to_lowercase(), &text.to_lowercase());
    let best = names.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) >= MISSPELT).then_some(best)
}

/// Whether a text names a subject, as a word or several of them.
pub fn names(text: &str, subject: &str) -> bool {
    let chars: Vec<char> = text.chars().collect();
    let edge = |at: Option<usize>| !at.and_then(|at| chars.get(at)).is_some_and(|c| c.is_alphanumeric());
    find_subject(text, subject).is_some_and(|found| edge(found.start.checked_sub(1)) && edge(Some(found.end)))
}

fn find_subject(prompt: &str, subject: &str) -> Option<std::ops::Range<usize>> {
    let chars: Vec<char> = prompt.chars().collect();
    let exact: Vec<char> = subject.chars().collect();
    if exact.is_empty() {
        return None;
    }
    let starts: Vec<usize> = (0..chars.len().saturating_sub(exact.len() - 1))
        .filter(|&i| chars[i..i + exact.len()] == exact[..])
        .collect();
    let word = |i: &&usize| {
        let edge = |c: Option<&char>| !c.is_some_and(|c| c.is_alphanumeric());
        edge(i.checked_sub(1).and_then(|j| chars.get(j))) && edge(chars.get(**i + exact.len()))
    };
    if let Some(&i) = starts.iter().rev().find(word).or(starts.last()) {
        return Some(i..i + exact.len());
    }
    // Tolerant: compare folded characters, remembering where each came from.
    let (folded, origins) = fold(&chars);
    let (wanted, _) = fold(&exact);
    if wanted.is_empty() {
        return None;
    }
    let at = (0..folded.len().saturating_sub(wanted.len() - 1))
        .rev()
        .find(|&i| folded[i..i + wanted.len()] == wanted[..])?;
    Some(origins[at]..origins[at + wanted.len() - 1] + 1)
}

/// Lower case, plain quotes and dashes, single blanks; with the index of each origin.
fn fold(chars: &[char]) -> (Vec<char>, Vec<usize>) {
    let (mut out, mut origins) = (vec![], vec![]);
    for (i, c) in chars.iter().enumerate() {
        let plain = match c {
            '‘' | '’' | '`' | '´' => '\'',
            '“' | '”' | '„' => '"',
            '‐' | '‑' | '–' | '—' | '_' => '-',
            c if c.is_whitespace() => ' ',
            c => *c,
        };
        if plain == ' ' && (out.is_empty() || out.last() == Some(&' ')) {
            continue;
        }
        for lower in plain.to_lowercase() {
            out.push(lower);
            origins.push(i);
        }
    }
    while out.last() == Some(&' ') {
        out.pop();
        origins.pop();
    }
    (out, origins)
}

/// The run of as many words of the prompt that is most like the subject.
fn nearest_words<'a>(prompt: &'a str, subject: &str) -> Option<&'a str> {
    let count = subject.split_whitespace().count().max(1);
    let words: Vec<&str> = prompt.split_whitespace().collect();
    let runs = words.windows(count.min(words.len().max(1))).map(|w| {
        let start = w[0].as_ptr() as usize - prompt.as_ptr() as usize;
        let last = w[w.len() - 1];
        let end = last.as_ptr() as usize - prompt.as_ptr() as usize + last.len();
        &prompt[start..end]
    });
    nearest(subject, runs)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn check_subject(prompt: &str, subject: &str, expected: &str) {
        let range = Fact::new(prompt, subject, "x").unwrap().subject_range().unwrap();
        let found: String = prompt.chars().skip(range.start).take(range.len()).collect();
        assert_eq!(found, expected, "`{subject}` in `{prompt}`");
    }

    #[test]
    fn subjects_are_found_exactly_or_tolerantly() {
        check_subject("The capital of France is", "France", "France");
        check_subject("Bart likes art and Bartók", "art", "art");
        check_subject("Zoë’s  mother is", "zoë's mother", "Zoë’s  mother");
        check_subject("東京の市長は", "東京", "東京");
        check_subject("The Jean–Luc story", " jean-luc ", "Jean–Luc");
    }

    #[test]
    fn an_absent_subject_is_named_with_what_may_be_meant() {
        let error =
            Fact::new("The capital of France is", "Frnace", "Rome").unwrap().subject_range().unwrap_err();
        assert_eq!(error.to_string(), "the subject `Frnace` is not in the prompt `The capital of France is`");
        assert!(error.hint().unwrap().contains("did you mean `France`?"), "{:?}", error.hint());
        let error = Fact::new("The capital of France is", "", "Rome").unwrap().subject_range().unwrap_err();
        assert!(error.hint().unwrap().contains("--subject"));
    }
}
