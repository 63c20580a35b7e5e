//! What a record asks: its probes in one list, which both protocols answer.

use mutandis_edit::{Fact, Probe};

use crate::results::{Role, Scores};

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// What it is for.
    pub role: Role,
    /// The data set's name for its kind; empty where there is none.
    pub kind: String,
    /// The prompt.
    pub prompt: String,
    /// Answers that count as right, as the data set writes them; of a text that is only gone on with
    /// there are none. DIFFERENCE: blank ones are gone; where the first of several is blank, the peer scores
    /// nothing, and we the next.
    pub answers: Vec<String>,
}

impl Question {
    /// The answer that compat scores: the first.
    pub fn first_answer(&self) -> Option<&str> {
        self.answers.first().map(String::as_str).filter(|answer| !answer.trim().is_empty())
    }

    /// Answers that are not blank.
    pub fn right(&self) -> Vec<String> {
        self.answers.iter().filter(|answer| !answer.trim().is_empty()).cloned().collect()
    }
}

/// All questions about the facts of a record. Of equal texts to be gone on with one is asked.
pub fn questions(facts: &[Fact], generation: &[String]) -> Vec<Question> {
    let mut all = vec![];
    for fact in facts {
        let target = || {
            let written = fact.written_target.as_ref().unwrap_or(&fact.target);
            [std::slice::from_ref(written), &fact.aliases].concat()
        };
        let own = |role, prompt: &String| Question {
            role,
            kind: String::new(),
            prompt: prompt.clone(),
            answers: target(),
        };
        all.push(own(Role::Edit, &fact.prompt));
        all.extend(fact.rephrases.iter().map(|prompt| own(Role::Rephrase, prompt)));
        let probe = |role| {
            move |Probe { kind, prompt, answers }: &Probe| Question {
                role,
                kind: kind.clone(),
                prompt: prompt.clone(),
                answers: answers.clone(),
            }
        };
        all.extend(fact.portability.iter().map(probe(Role::Portability)));
        all.extend(fact.locality.iter().map(probe(Role::Locality)));
    }
    for (i, prompt) in generation.iter().enumerate() {
        if !generation[..i].contains(prompt) {
            let (kind, answers) = (String::new(), vec![]);
            all.push(Question { role: Role::Generation, kind, prompt: prompt.clone(), answers });
        }
    }
    all
}

impl Role {
    /// The name of its score.
    pub fn name(self) -> &'static str {
        match self {
            Self::Edit => "edit",
            Self::Rephrase => "rephrase",
            Self::Portability => "portability",
            Self::Locality => "locality",
            Self::Generation => "generation",
        }
    }
}

/// Scores of a record from those of its questions: for each role the mean over kinds of the mean
/// over their questions, as EasyEdit's table has it (`../shared/reference/easyedit.md` §1.12), and
/// every kind by itself as `role/kind`. `part` goes behind the names: `:f1`.
pub fn scores(questions: &[Question], part: &str, of: impl Fn(usize) -> Option<f64>) -> Scores {
    let scored = questions.iter().enumerate().filter_map(|(i, q)| Some((q.role, q.kind.as_str(), of(i)?)));
    means_of(scored, part)
}

/// As [`scores`], of roles and kinds with their scores.
pub(crate) fn means_of<'a>(scored: impl Iterator<Item = (Role, &'a str, f64)>, part: &str) -> Scores {
    let mut kinds: Vec<(Role, &str, Vec<f64>)> = vec![];
    for (role, kind, score) in scored {
        match kinds.iter_mut().find(|(r, k, _)| (*r, *k) == (role, kind)) {
            Some((_, _, scores)) => scores.push(score),
            None => kinds.push((role, kind, vec![score])),
        }
    }
    let mut all = Scores::new();
    for role in [Role::Edit, Role::Rephrase, Role::Portability, Role::Locality] {
        let own = || kinds.iter().filter(move |(r, ..)| *r == role);
        if let Some(score) = mean(own().filter_map(|(_, _, scores)| mean(scores.iter().copied()))) {
            all.insert(format!("{}{part}", role.name()), score);
        }
        for (_, kind, scores) in own().filter(|(_, kind, _)| !kind.is_empty()) {
            if let Some(score) = mean(scores.iter().copied()) {
                all.insert(format!("{}/{kind}{part}", role.name()), score);
            }
        }
    }
    all
}

/// Mean; nothing of nothing.
pub(crate) fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, n), x| (sum + x, n + 1));
    (count > 0).then(|| sum / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_weigh_equally_within_a_record() {
        let probe = |kind: &str| Probe { kind: kind.into(), prompt: "P".into(), answers: vec!["a".into()] };
        let fact = Fact {
            prompt: "A is".into(),
            target: "B".into(),
            portability: vec![probe("one"), probe("one"), probe("two")],
            ..Fact::default()
        };
        let asked = questions(&[fact], &["Go".into(), "Go".into(), "on".into()]);
        assert_eq!(asked.iter().filter(|q| q.role == Role::Generation).count(), 2);
        let values = [Some(0.25), Some(1.0), Some(0.0), Some(1.0), None, None];
        let found = scores(&asked, ":f1", |i| values[i]);
        let expected = [
            ("edit:f1", 0.25),
            ("portability/one:f1", 0.5),
            ("portability/two:f1", 1.0),
            ("portability:f1", 0.75),
        ];
        assert_eq!(found, expected.map(|(name, x)| (name.to_owned(), x)).into());
    }
}
