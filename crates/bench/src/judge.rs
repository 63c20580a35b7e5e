//! A judge: somebody else's model that says whether a free answer is right.
//!
//! Exact match fails an answer that says the right thing in other words; a judge may not. Its word
//! is a score of its own (`edit:judge` and so on), beside the others and never in place of them.

use mutandis_edit::Result;

use crate::question;
use crate::results::{ProbeResult, RecordResult, Role, Scores};

/// Says whether answers are right. This crate opens no socket: who does implements it.
pub trait Judge: Sync {
    /// Who judges, for the record of how results were made.
    fn name(&self) -> String;

    /// Whether an answer to a question means the same as one of the right ones; nothing where it
    /// does not say.
    ///
    /// # Errors
    /// Where it cannot be asked.
    fn is_right(&self, question: &str, right: &[String], said: &str) -> Result<Option<bool>>;
}

/// What a judge is asked, for one that answers in words.
pub fn wording(question: &str, right: &[String], said: &str) -> String {
    format!(
        "Does the answer below say the same as the reference? Other wording, more detail and other \
         spelling are fine; another fact, a contradiction or no answer is not.\n\nQuestion: {question}\n\
         Reference: {}\nAnswer: {said}\n\nReply with one word, yes or no.",
        right.join(" / ")
    )
}

/// What a judge's reply means.
pub fn verdict(reply: &str) -> Option<bool> {
    let first = reply.trim_start_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    match first.split(|c: char| !c.is_alphanumeric()).next()? {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

/// Asks a judge of every free answer of a record that has a right one, and adds its scores.
///
/// # Errors
/// As [`Judge::is_right`].
pub(crate) fn judge(judge: &dyn Judge, record: &mut RecordResult) -> Result<()> {
    let asked = |probe: &ProbeResult| {
        matches!(probe.role, Role::Edit | Role::Rephrase | Role::Portability) && !probe.answers.is_empty()
    };
    for probe in record.probes.iter_mut().filter(|probe| asked(probe)) {
        if let Some(is_right) = judge.is_right(&probe.prompt, &probe.answers, &probe.after)? {
            probe.scores.strict.insert("judge".to_owned(), f64::from(is_right));
        }
    }
    let score = |probe: &ProbeResult| probe.scores.strict.get("judge").copied();
    let found: Scores = question::means_of(
        record.probes.iter().filter_map(|p| Some((p.role, p.kind.as_str(), score(p)?))),
        ":judge",
    );
    record.after.strict.extend(found);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::results::Both;

    #[test]
    fn replies_are_understood_or_they_are_none() {
        for (reply, meant) in [
            ("yes", Some(true)),
            (" **No**, it names another city", Some(false)),
            ("Yes.", Some(true)),
            ("Nothing to say", None),
            ("", None),
        ] {
            assert_eq!(verdict(reply), meant, "{reply}");
        }
    }

    /// Says yes to what begins like the first right answer, and nothing to what is empty.
    struct Lenient;

    impl Judge for Lenient {
        fn name(&self) -> String {
            "lenient".into()
        }

        fn is_right(&self, _: &str, right: &[String], said: &str) -> Result<Option<bool>> {
            Ok((!said.is_empty()).then(|| said.trim().starts_with(&right[0])))
        }
    }

    #[test]
    fn a_judges_word_is_a_score_of_its_own() {
        let probe = |role, kind: &str, after: &str| ProbeResult {
            role,
            kind: kind.into(),
            prompt: "P".into(),
            answers: vec!["Rome".into()],
            before: String::new(),
            after: after.into(),
            forced: None,
            scores: Both::default(),
        };
        let mut record = RecordResult {
            probes: vec![
                probe(Role::Edit, "", " Rome, of course"),
                probe(Role::Portability, "one", "Paris"),
                probe(Role::Portability, "one", "Rome"),
                probe(Role::Portability, "two", ""),
                probe(Role::Locality, "near", "Rome"),
            ],
            ..RecordResult::default()
        };
        judge(&Lenient, &mut record).unwrap();
        let expected = [("edit:judge", 1.0), ("portability/one:judge", 0.5), ("portability:judge", 0.5)];
        assert_eq!(record.after.strict, expected.map(|(name, x)| (name.to_owned(), x)).into());
        assert!(record.probes[4].scores == Both::default());
    }
}
