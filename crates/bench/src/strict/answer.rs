//! Free answers: where one ends, and whether it is right.

use std::collections::HashMap;

use crate::words::{ends, first_sentence};

/// Whether a text that is being written holds a whole answer: a line or a sentence has ended, and
/// something else has begun. Blank lines ahead of it are not counted.
pub fn is_whole(text: &str) -> bool {
    let text = text.trim_start();
    text.contains('\n') || first_sentence(text).len() < text.len()
}

/// The answer in what a model wrote: its first line with anything in it, to the end of that line's
/// first sentence.
pub fn answer(text: &str) -> &str {
    let line = text.trim_start().lines().next().unwrap_or_default();
    first_sentence(line).trim_end()
}

/// A text as answers are compared: in lower case, without punctuation, without articles, with one
/// blank between words (SQuAD, arXiv 1606.05250).
pub fn normalised(text: &str) -> String {
    let is_sign = |c: char| c.is_ascii_punctuation() || "‘’“”„«»…–—".contains(c);
    let bare: String = text.to_lowercase().chars().filter(|c| !is_sign(*c)).collect();
    let words = bare.split_whitespace().filter(|w| !matches!(*w, "a" | "an" | "the"));
    words.collect::<Vec<_>>().join(" ")
}

/// An answer, to each place where it may have ended: `2. He was born` says 2, or it speaks of a 2nd
/// something; only who knows the right answer can tell.
fn readings(said: &str) -> impl Iterator<Item = &str> {
    ends(said).into_iter().map(|end| &said[..end])
}

/// Whether an answer is one of the right ones, to the letter once both are normalised; where it may
/// have ended in several places, in any reading. A right answer of signs alone is compared as it
/// stands.
pub fn is_exact(said: &str, right: &[String]) -> bool {
    let is_one = |said: &str| {
        let ours = normalised(said);
        right.iter().any(|answer| match normalised(answer) {
            theirs if theirs.is_empty() => bare(said) == bare(answer),
            theirs => theirs == ours,
        })
    };
    readings(said).any(is_one)
}

/// Whether two answers say the same, to the letter once both are normalised; those of signs alone are
/// compared as they stand.
pub fn is_same(one: &str, other: &str) -> bool {
    match (normalised(one), normalised(other)) {
        (one_bare, other_bare) if one_bare.is_empty() && other_bare.is_empty() => bare(one) == bare(other),
        (one, other) => one == other,
    }
}

/// A text that is compared as it stands, but for case, blanks around it and a period behind it.
fn bare(text: &str) -> String {
    let text = text.trim().to_lowercase();
    text.strip_suffix('.').filter(|rest| !rest.is_empty()).unwrap_or(&text).to_owned()
}

/// Whether a text begins with the target as whole words, once both are normalised: what follows it
/// does not count. A target of signs alone is compared as it stands.
pub fn begins(text: &str, target: &str) -> bool {
    let rest = match normalised(target) {
        theirs if theirs.is_empty() => text.trim_start().strip_prefix(target.trim()).map(str::to_owned),
        theirs => normalised(text).strip_prefix(&theirs).map(str::to_owned),
    };
    rest.is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
}

/// The best F1 over the right answers, and over readings as for [`is_exact`]: harmonic mean of the
/// shares of words in common, words counted as often as they occur in both (SQuAD). 0 to 1.
pub fn f1(said: &str, right: &[String]) -> f64 {
    let of = |said: &str| {
        let ours = normalised(said);
        let ours: Vec<&str> = ours.split_whitespace().collect();
        let each = right.iter().map(|answer| match normalised(answer) {
            // Of signs or articles alone no word is left to have in common.
            theirs if theirs.is_empty() => f64::from(bare(said) == bare(answer)),
            theirs => f1_of(&ours, &theirs),
        });
        each.fold(0.0, f64::max)
    };
    readings(said).map(of).fold(0.0, f64::max)
}

fn f1_of(ours: &[&str], theirs: &str) -> f64 {
    let mut left: HashMap<&str, usize> = HashMap::new();
    for word in theirs.split_whitespace() {
        *left.entry(word).or_default() += 1;
    }
    let theirs = left.values().sum::<usize>();
    let mut both = 0;
    for word in ours {
        if let Some(count) = left.get_mut(word).filter(|count| **count > 0) {
            *count -= 1;
            both += 1;
        }
    }
    match (ours.len(), theirs) {
        (0, _) | (_, 0) => 0.0,
        (ours, theirs) => 2.0 * both as f64 / (ours + theirs) as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_the_same_but_for_what_normalising_takes_away() {
        for (one, other) in [("a male.", "Male"), ("Rome", "the  Rome"), (".", "."), ("", " ")] {
            assert!(is_same(one, other) && is_same(other, one), "{one:?} {other:?}");
        }
        for (one, other) in [("male", "female"), (".", ":"), ("", "Rome"), ("the", "Rome"), ("?", "")] {
            assert!(!is_same(one, other) && !is_same(other, one), "{one:?} {other:?}");
        }
    }

    #[test]
    fn an_answer_ends_with_its_line_or_sentence() {
        for (text, expected) in [
            (" Rome. Rome is the largest city in", "Rome."),
            ("\n\n Rome\nParis", "Rome"),
            (" St. Petersburg, which is", "St. Petersburg, which is"),
            (" the U.S. Army", "the U.S. Army"),
            (" 3.5 million", "3.5 million"),
            (" A.C. Cesena. The club", "A.C. Cesena."),
            (" 2. Bundesliga, where", "2. Bundesliga, where"),
            (" Warner Bros. Records. It", "Warner Bros. Records."),
            (" G.I. Joe: The Rise", "G.I. Joe: The Rise"),
            (" in 1942. The war", "in 1942."),
            (" It is 2. The other", "It is 2."),
            (" . The", "."),
            ("", ""),
        ] {
            assert_eq!(answer(text), expected, "{text:?}");
        }
        for (text, whole) in [
            (" Rome", false),
            (" Rome.", false),
            (" Rome. R", true),
            ("\n\n", false),
            ("\nRome\n", true),
            (" St. P", false),
        ] {
            assert_eq!(is_whole(text), whole, "{text:?}");
        }
    }

    #[test]
    fn an_answer_that_may_have_ended_sooner_is_right_in_any_reading() {
        let right = |said: &str, right: &str| {
            let right = [right.to_owned()];
            (is_exact(answer(said), &right), f1(answer(said), &right))
        };
        for (said, wanted) in [
            (" 2. He was born in", "2"),
            (" 2. Bundesliga. It", "2. Bundesliga"),
            (" Caterpillar Inc. The company", "Caterpillar Inc."),
            (" World War I. The war", "World War I"),
            (" no. They", "no"),
            (" A.C. Cesena. The club", "A.C. Cesena"),
        ] {
            assert_eq!(right(said, wanted), (true, 1.0), "{said:?}");
        }
        assert!(!right(" 2. He was born in", "2 He").0);
        assert!(!right(" Rome. Paris", "Rome Paris").0, "a sure end is the end");
        // Articles and signs alone are no words to agree in.
        assert_eq!((right(". A", "A"), right(" The.", "the")), ((false, 0.0), (true, 1.0)));
    }

    #[test]
    fn a_text_begins_with_a_target_as_whole_words() {
        for (text, target, expected) in [
            (" Rome, the capital. It", "Rome", true),
            (" the Rome of old", "Rome.", true),
            (" Romeo and", "Rome", false),
            (" Jr. Smith went", "jr Smith", true),
            (" Paris", "Rome", false),
            ("", "Rome", false),
            (" 東京。", "東京", true),
            (" ? no", "?", true),
            (" no", "?", false),
        ] {
            assert_eq!(begins(text, target), expected, "{text:?} {target}");
        }
    }

    #[test]
    fn right_answers_are_right_whatever_surrounds_them() {
        let right = |answers: &[&str]| answers.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>();
        assert!(is_exact("The Beatles.", &right(&["Stones", "beatles"])));
        assert!(is_exact("“Hôtel” ", &right(&["hôtel"])));
        assert!(!is_exact("Paris, the city of light", &right(&["Paris"])));
        assert!(!is_exact("", &right(&["a", "the"])));
        assert!(is_exact("+", &right(&["+"])));
        assert!(!is_exact("Rome", &[]));
    }

    #[test]
    fn f1_counts_words_in_common() {
        let right = ["The Syrian pound".to_owned(), "SYP".to_owned()];
        // Two words in common of two and three.
        assert!((f1("the Syrian pound, yes", &right) - 0.8).abs() < 1e-12);
        assert_eq!(f1("syp", &right), 1.0);
        assert_eq!(f1("dollar", &right), 0.0);
        assert_eq!(f1("", &right), 0.0);
        // A word that is said twice counts once.
        assert!((f1("pound pound", &["pound".into()]) - 2.0 / 3.0).abs() < 1e-12);
    }
}
