//! Facts that an edit should leave alone, where the user names none.

/// Kinds of subjects; a subject of one kind has the others as neighbours.
const KINDS: &[&[&str]] = &[
    &[
        "France", "Germany", "Italy", "Spain", "Japan", "Russia", "Egypt", "Canada", "Greece", "Poland",
        "China",
    ],
    &["Paris", "London", "Berlin", "Rome", "Madrid", "Tokyo", "Vienna", "Athens", "Cairo", "Moscow"],
    &["Albert Einstein", "Isaac Newton", "Marie Curie", "Charles Darwin", "Galileo Galilei", "Nikola Tesla"],
    &["Microsoft", "Apple", "Google", "Amazon", "Intel", "Toyota", "Sony", "Samsung"],
    &["William Shakespeare", "Leo Tolstoy", "Jane Austen", "Victor Hugo", "Mark Twain", "Charles Dickens"],
];

/// Prompts that most models answer, of many relations.
const GENERAL: &[&str] = &[
    "The Eiffel Tower is located in the city of",
    "The capital of Japan is",
    "The Great Wall is located in the country of",
    "Albert Einstein developed the theory of",
    "The chemical symbol for gold is",
    "The largest planet in the solar system is",
    "Romeo and Juliet was written by William",
    "The opposite of hot is",
];

/// Number of neighbours that are chosen.
const COUNT: usize = 6;

/// Prompts near an edit of `subject` in `prompt`: the same sentence about subjects of the same
/// kind where the subject is well known, else well-known facts. None speaks of the subject.
pub(crate) fn neighbours(prompt: &str, subject: &str) -> Vec<String> {
    let same = |a: &str| a.eq_ignore_ascii_case(subject);
    let kin = KINDS.iter().find(|kind| kind.iter().any(|s| same(s)));
    let siblings = kin
        .into_iter()
        .flat_map(|kind| kind.iter().filter(|s| !same(s)))
        .filter(|_| prompt.contains(subject))
        .take(COUNT - 2)
        .map(|s| prompt.replacen(subject, s, 1));
    let mut chosen: Vec<String> = siblings.collect();
    let lower = subject.to_lowercase();
    for text in GENERAL {
        let about = !lower.is_empty() && text.to_lowercase().contains(&lower);
        if chosen.len() < COUNT && !about && !chosen.iter().any(|c| c == text) && *text != prompt {
            chosen.push((*text).to_owned());
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siblings_come_first_and_the_subject_never() {
        let chosen = neighbours("The capital of France is", "France");
        assert_eq!(chosen.len(), COUNT);
        assert_eq!(chosen[0], "The capital of Germany is");
        assert!(chosen.iter().all(|c| !c.contains("France")));
    }

    #[test]
    fn an_unknown_subject_gets_general_facts() {
        let chosen = neighbours("Danielle Darrieux speaks", "Danielle Darrieux");
        assert_eq!(chosen.len(), COUNT);
        assert!(
            neighbours("Albert Einstein was born in", "Albert Einstein")
                .iter()
                .all(|c| !c.contains("theory"))
        );
    }
}
