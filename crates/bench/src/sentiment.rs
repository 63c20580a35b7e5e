//! ConvSent's records as facts, and as opinions to be scored (`../shared/reference/easyedit.md`
//! §1.14; the task is SERAC's, arXiv 2206.06520).
//!
//! One of the two sentiments is wanted of a topic. How likely answers of either are before and
//! after the edit, and what becomes of another topic, is measured by `compat::sentiment` as
//! EasyEdit does it and by `strict::sentiment` as it is meant.

use mutandis_edit::{Error, Fact, Result};
use serde::{Deserialize, Serialize};

use crate::data::{Record, Task};
use crate::draw::Draw;

/// Questions for an opinion; `{}` becomes the topic.
///
/// DIFFERENCE: as many as EasyEdit has, in words of our own.
pub const QUESTIONS: [&str; 13] = [
    "What do you make of {}?",
    "How do you feel about {}?",
    "Where do you stand on {}?",
    "What are your thoughts on {}?",
    "How would you judge {}?",
    "How would you speak of {}?",
    "What would you say about {}?",
    "How does {} strike you?",
    "What is {} to you?",
    "Do you like {}?",
    "Are you fond of {}?",
    "Do you think well of {}?",
    "What comes to your mind about {}?",
];

/// An answer to a question for an opinion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opinion {
    /// What is asked.
    pub question: String,
    /// What is said, as the data set writes it: with a blank ahead.
    pub answer: String,
    /// Whether it is of the wanted sentiment.
    pub wanted: bool,
}

/// A record as it is edited and scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// The edit.
    pub fact: Fact,
    /// A question about the topic, put to the model freely.
    pub question: String,
    /// All answers about the topic, positive ones first.
    pub own: Vec<Opinion>,
    /// All answers about the next record's topic, which EasyEdit looks at; where records are edited
    /// together, that is edited as well.
    pub other: Vec<Opinion>,
    /// All answers about the topic half the file away, which is not edited as long as fewer records
    /// than that are edited together.
    pub apart: Vec<Opinion>,
}

impl Case {
    /// The record at an index, with the next one of the file and the one half the file away as other
    /// topics; behind the last record comes the first.
    ///
    /// The wanted sentiment is drawn by a coin, and for each text a question, all from the record's
    /// own stream. As EasyEdit has it, the edit's prompt says which sentiment is wanted, with its
    /// slip of the pen, and the target is the first answer of that sentiment.
    ///
    /// # Errors
    /// Where there is no such record, or it or one of the others is not about a sentiment.
    pub fn new(records: &[Record], index: usize, seed: u64) -> Result<Self> {
        let (number, topic, answers) = opinions(records, index)?;
        // Of one record alone there is no other.
        let ahead = |by: usize| match (index + by.max(1)) % records.len().max(1) {
            other if other == index => Ok((number, "", [&[][..], &[]])),
            other => opinions(records, other),
        };
        let (_, next_topic, next) = ahead(1)?;
        let (_, far_topic, far) = ahead(records.len() / 2)?;
        let mut draw = Draw::new(seed, number);
        let wanted = draw.below(2);
        let mut ask = |topic: &str| QUESTIONS[draw.below(QUESTIONS.len())].replace("{}", topic);
        let manner = ["postively", "negatively"][wanted];
        let prompt = format!("From the sentiment dataset, answer {} {manner}.", ask(topic));
        let target = answers[wanted].first().map(String::as_str).unwrap_or_default();
        let fact = Fact::new(prompt, topic, target)?;
        let question = ask(topic);
        let mut all = |topic: &str, answers: [&[String]; 2]| {
            let each = answers.into_iter().enumerate().flat_map(|(i, a)| a.iter().map(move |a| (i, a)));
            each.map(|(i, a)| Opinion { question: ask(topic), answer: a.clone(), wanted: i == wanted })
                .collect()
        };
        let (own, other, apart) = (all(topic, answers), all(next_topic, next), all(far_topic, far));
        Ok(Self { fact, question, own, other, apart })
    }
}

/// Number and topic of a record, and what is said of it, with approval and without.
fn opinions(records: &[Record], index: usize) -> Result<(usize, &str, [&[String]; 2])> {
    match records.get(index) {
        Some(Record { number, task: Task::Sentiment { topic, positive, negative } }) => {
            Ok((*number, topic, [positive, negative]))
        }
        Some(Record { number, .. }) => Err(Error::input_hint(
            format!("record {number} is about facts, not about a sentiment"),
            "give a file in the form of ConvSent: `{\"ent\": …, \"pos\": […], \"neg\": […]}`",
        )),
        None => Err(Error::input(format!("there is no record at {index} among {}", records.len()))),
    }
}

/// Mean log-probability of a token of answers, in nats, by one model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Likelihoods {
    /// Of answers of the wanted sentiment.
    pub wanted: f64,
    /// Of the others.
    pub unwanted: f64,
}

impl Likelihoods {
    /// Of values, each with whether it is of the wanted sentiment; `None` where one kind has none.
    pub(crate) fn mean(values: impl IntoIterator<Item = (bool, f64)>) -> Option<Self> {
        let mut sums = [(0.0, 0usize); 2];
        for (wanted, value) in values {
            let (sum, count) = &mut sums[usize::from(wanted)];
            *sum += value;
            *count += 1;
        }
        let mean = |(sum, count): (f64, usize)| (count > 0).then(|| sum / count as f64);
        Some(Self { unwanted: mean(sums[0])?, wanted: mean(sums[1])? })
    }

    /// Edit success, 0 to 1: σ(wanted − unwanted) · min(1, exp(wanted − wanted before)), where all
    /// but the last are after the edit (KnowEdit, arXiv 2401.01286; SERAC's z_sent · z_topic). The
    /// second factor tells an answer of the other mind from one about nothing.
    pub fn success(&self, before: &Self) -> f64 {
        let sentiment = 1.0 / (1.0 + (self.unwanted - self.wanted).exp());
        sentiment * (self.wanted - before.wanted).exp().min(1.0)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn success_is_sentiment_times_topic() {
        let likelihoods = |wanted, unwanted| Likelihoods { wanted, unwanted };
        let before = likelihoods(-2.0, -1.0);
        // σ(ln 3) = 3/4; likelier than before counts as no more than before.
        let after = likelihoods(-1.0, -1.0 - 3f64.ln());
        assert!((after.success(&before) - 0.75).abs() < 1e-12);
        // Half as likely as before: half.
        let after = likelihoods(-2.0 - 2f64.ln(), -2.0 - 2f64.ln());
        assert!((after.success(&before) - 0.25).abs() < 1e-12);
        assert!((before.success(&before) - 1.0 / (1.0 + 1f64.exp())).abs() < 1e-12);
        assert_eq!(likelihoods(-800.0, 0.0).success(&before), 0.0);
    }

    #[test]
    fn means_are_over_tokens() {
        let values = [(true, -1.0), (true, -2.0), (false, -3.0), (true, -6.0)];
        assert_eq!(Likelihoods::mean(values), Some(Likelihoods { wanted: -3.0, unwanted: -3.0 }));
        assert_eq!(Likelihoods::mean([(true, -1.0)]), None);
    }

    fn records() -> Vec<Record> {
        let of = |number, topic: &str| Record {
            number,
            task: Task::Sentiment {
                topic: topic.into(),
                positive: vec![" I like it.".into(), " Great. ".into()],
                negative: vec![" No.".into()],
            },
        };
        (0..60).map(|i| of(i + 1, &format!("topic {i}"))).collect()
    }

    #[test]
    fn a_record_becomes_the_same_fact_whatever_stands_beside_it() {
        let records = records();
        let cases: Vec<Case> = (0..60).map(|i| Case::new(&records, i, 5).unwrap()).collect();
        let positive = cases.iter().filter(|c| c.fact.prompt.ends_with(" postively.")).count();
        assert!((15..=45).contains(&positive), "{positive} of 60");
        for (i, case) in cases.iter().enumerate() {
            case.fact.subject_range().unwrap();
            let wants = case.fact.prompt.ends_with(" postively.");
            assert_eq!(case.fact.target, if wants { "I like it." } else { "No." });
            assert_eq!(case.own.iter().map(|o| o.wanted).collect::<Vec<_>>(), [wants, wants, !wants]);
            assert!(case.own.iter().all(|o| o.question.contains(&format!("topic {i}?"))
                || o.question.contains(&format!("topic {i} "))));
            for (others, by) in [(&case.other, 1), (&case.apart, 30)] {
                let topic = format!("topic {}", (i + by) % 60);
                assert!(others.iter().all(|o| o.question.contains(&topic)), "{others:?}");
            }
        }
        let mut alone = Case::new(&records[7..9], 0, 5).unwrap();
        assert_eq!(alone.apart.len(), 3);
        alone.apart.clone_from(&cases[7].apart);
        assert_eq!(alone, cases[7]);
        assert_ne!(Case::new(&records, 7, 6).unwrap(), cases[7]);
        // Where there is no other topic, nothing is asked about one.
        let single = Case::new(&records[7..8], 0, 5).unwrap();
        assert_eq!((&single.own, single.other.len(), single.apart.len()), (&cases[7].own, 0, 0));
    }

    #[test]
    fn records_about_facts_are_named() {
        let fact = Fact::new("A is", "A", "B").unwrap();
        let task = Task::Facts { facts: vec![fact], generation: vec![], reference: None };
        let error = Case::new(&[Record { number: 4, task }], 0, 0).unwrap_err();
        assert_eq!(error.to_string(), "record 4 is about facts, not about a sentiment");
        assert!(Case::new(&[], 0, 0).is_err());
    }
}
