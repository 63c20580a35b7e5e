//! A judge: somebody else's model that says whether a free answer is right.
//!
//! Exact match fails an answer that says the right thing in other words; a judge may not. Its word
//! is a score of its own (`edit:judge` and so on), beside the others and never in place of them.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use mutandis_edit::{Error, Result};
use serde::{Deserialize, Serialize};

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

/// What a judge's reply means; what it thinks aloud before does not count.
pub fn verdict(reply: &str) -> Option<bool> {
    let reply = reply.rsplit("</think>").next().unwrap_or(reply);
    let first = reply.trim_start_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    match first.split(|c: char| !c.is_alphanumeric()).next()? {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

/// What a judge has said, each word kept as it comes: nothing is asked twice that was answered.
#[derive(Debug)]
pub struct Verdicts {
    path: PathBuf,
    known: HashMap<String, Option<bool>>,
    file: Option<File>,
}

#[derive(Serialize, Deserialize)]
struct Verdict {
    /// Hash of the judge and of what it was asked.
    asked: String,
    is_right: Option<bool>,
}

impl Verdicts {
    /// Those that a file holds: JSON lines. One that is torn is asked again.
    pub fn read(path: PathBuf) -> Self {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Verdict>(line).ok());
        Self { known: lines.map(|line| (line.asked, line.is_right)).collect(), path, file: None }
    }

    /// A judge's word on an answer: what it has said of it, or what it says now.
    fn of(
        &mut self,
        judge: &dyn Judge,
        question: &str,
        right: &[String],
        said: &str,
    ) -> Result<Option<bool>> {
        let all = serde_json::to_vec(&(judge.name(), question, right, said)).unwrap_or_default();
        let asked = blake3::hash(&all).to_hex().to_string();
        if let Some(known) = self.known.get(&asked) {
            return Ok(*known);
        }
        let is_right = judge.is_right(question, right, said)?;
        self.keep(&Verdict { asked: asked.clone(), is_right })?;
        self.known.insert(asked, is_right);
        Ok(is_right)
    }

    fn keep(&mut self, verdict: &Verdict) -> Result<()> {
        let line = serde_json::to_string(verdict)
            .map_err(|e| Error::input(format!("a verdict cannot be written: {e}")))?;
        let wrote = match &mut self.file {
            Some(file) => writeln!(file, "{line}"),
            // The line before may be torn.
            none => File::options().append(true).create(true).open(&self.path).and_then(|mut file| {
                writeln!(file, "\n{line}")?;
                *none = Some(file);
                Ok(())
            }),
        };
        wrote.map_err(|error| Error::unwritable(&self.path, &error))
    }
}

/// Answers that a judge was asked about, and those of them that it has said neither yes nor no to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// All.
    pub all: usize,
    /// Those without a verdict.
    pub silent: usize,
}

/// Asks a judge of every free answer of a record that has a right one, and adds its scores.
///
/// # Errors
/// As [`Judge::is_right`]; where a verdict cannot be kept.
pub(crate) fn judge(
    judge: &dyn Judge,
    record: &mut RecordResult,
    verdicts: &mut Verdicts,
    count: &mut Asked,
) -> Result<()> {
    let asked = |probe: &ProbeResult| {
        matches!(probe.role, Role::Edit | Role::Rephrase | Role::Portability) && !probe.answers.is_empty()
    };
    for probe in record.probes.iter_mut().filter(|probe| asked(probe)) {
        count.all += 1;
        let Some(is_right) = verdicts.of(judge, &probe.prompt, &probe.answers, &probe.after)? else {
            count.silent += 1;
            continue;
        };
        probe.scores.strict.insert("judge".to_owned(), f64::from(is_right));
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
            ("<think>Yes? It says Rome.</think>\n\nNo", Some(false)),
            ("<think>Yes? It says", None),
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
            immediate: None,
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
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("verdicts.jsonl");
        let mut count = Asked::default();
        judge(&Lenient, &mut record, &mut Verdicts::read(path.clone()), &mut count).unwrap();
        assert_eq!(count, Asked { all: 4, silent: 1 });
        let expected = [("edit:judge", 1.0), ("portability/one:judge", 0.5), ("portability:judge", 0.5)];
        assert_eq!(record.after.strict, expected.map(|(name, x)| (name.to_owned(), x)).into());
        assert!(record.probes[4].scores == Both::default());
        // What was said is not asked again, but for a line that is torn.
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        std::fs::write(&path, format!("{}\n{}", lines[1..].join("\n"), &lines[0][..20])).unwrap();
        let mut again = Verdicts::read(path.clone());
        let error = judge(&Deaf, &mut record, &mut again, &mut Asked::default()).unwrap_err();
        assert_eq!(error.to_string(), "out of reach");
        judge(&Lenient, &mut record, &mut again, &mut Asked::default()).unwrap();
        let mut whole = Verdicts::read(path);
        judge(&Deaf, &mut record, &mut whole, &mut Asked::default()).unwrap();
    }

    /// Is out of reach.
    struct Deaf;

    impl Judge for Deaf {
        fn name(&self) -> String {
            "lenient".into()
        }

        fn is_right(&self, _: &str, _: &[String], _: &str) -> Result<Option<bool>> {
            Err(Error::input("out of reach"))
        }
    }
}
