//! CounterFact's metrics (of ROME's paper, arXiv 2202.05262, which made the data set): which of the
//! two objects a model prefers, and whether what it writes agrees with the new one.
//!
//! The probability of an object is that of its mean token, exp of the mean ln p, as the paper's code
//! has it: objects of unequal length stay comparable.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use mutandis_edit::fact::names;
use mutandis_edit::{Fact, Probe, Result};
use mutandis_engine::Model;
use serde::{Deserialize, Serialize};

use crate::data::{NEIGHBORHOOD, Source};
use crate::edited::Edited;
use crate::fork::{Fork, log_probabilities};
use crate::results::{self, Role};
use crate::words::words;

/// How likely the two objects are after a prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Preference {
    /// What the prompt is for: the edit, a paraphrase of it, or a neighbour, which is `Locality`.
    pub role: Role,
    /// The prompt.
    pub prompt: String,
    /// Mean ln p of the new object's tokens, in nats.
    pub new: f64,
    /// The same of the true object's.
    pub old: f64,
}

/// Of the prompts of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Preferred {
    /// Share of the prompts at which the object that should be is the likelier one, 0 to 1.
    pub share: f64,
    /// Mean of its probability less the other's, −1 to 1: the paper's magnitude.
    pub magnitude: f64,
}

/// Scores of one record; `None` where it has no such prompt. The paper's score over records is the
/// harmonic mean of the three shares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// The new object preferred after the edited prompt (ES, EM).
    pub efficacy: Option<Preferred>,
    /// The same after paraphrases (PS, PM).
    pub generalization: Option<Preferred>,
    /// The true object preferred after prompts about neighbours of the subject (NS, NM).
    pub specificity: Option<Preferred>,
}

impl Scores {
    /// Scores of a record's preferences.
    pub fn of(all: &[Preference]) -> Self {
        let of = |role: Role| {
            let pair = |p: &Preference| if role == Role::Locality { [p.old, p.new] } else { [p.new, p.old] };
            let pairs: Vec<[f64; 2]> = all.iter().filter(|p| p.role == role).map(pair).collect();
            let n = pairs.len() as f64;
            (!pairs.is_empty()).then(|| Preferred {
                share: pairs.iter().filter(|[wanted, other]| wanted > other).count() as f64 / n,
                magnitude: pairs.iter().map(|[wanted, other]| wanted.exp() - other.exp()).sum::<f64>() / n,
            })
        };
        Self { efficacy: of(Role::Edit), generalization: of(Role::Rephrase), specificity: of(Role::Locality) }
    }

    /// By name: `efficacy`, `efficacy:magnitude` and so on.
    pub(crate) fn named(&self) -> results::Scores {
        let all = [
            ("efficacy", self.efficacy),
            ("generalization", self.generalization),
            ("specificity", self.specificity),
        ];
        let each = all.into_iter().filter_map(|(name, found)| Some((name, found?)));
        each.flat_map(|(name, found)| {
            [(name.to_owned(), found.share), (format!("{name}:magnitude"), found.magnitude)]
        })
        .collect()
    }
}

/// What models prefer after all prompts of their facts, many facts at a time, each under its own
/// edits. A neighbour is a probe of locality that the true object answers: what CounterFact calls one,
/// or what is about another subject. Blanks around objects do not count. A fact without a true object,
/// or whose target is that object, has no preferences: nothing could be preferred to the other.
///
/// # Errors
/// Where the model has no tokenizer, or a prompt is empty or longer than its context.
pub fn preferences(model: &Model, asked: &[(Edited<'_>, &Fact)]) -> Result<Vec<Vec<Preference>>> {
    let (mut forks, mut all) = (vec![], Vec::with_capacity(asked.len()));
    for (edited, fact) in asked {
        let mut of_fact = vec![];
        let old = fact.ground_truth.as_deref().map(str::trim);
        if let Some(old) = old.filter(|old| *old != fact.target.trim()) {
            let is_old = |p: &&Probe| p.answers.first().is_some_and(|answer| answer.trim() == old);
            let answered = fact.locality.iter().filter(is_old);
            let is_neighbour = |p: &&Probe| p.kind == NEIGHBORHOOD || !names(&p.prompt, &fact.subject);
            let neighbours = answered.filter(is_neighbour);
            let prompts = std::iter::once((Role::Edit, &fact.prompt))
                .chain(fact.rephrases.iter().map(|prompt| (Role::Rephrase, prompt)))
                .chain(neighbours.map(|probe| (Role::Locality, &probe.prompt)));
            for (role, prompt) in prompts {
                forks.push(Fork::new(edited, prompt, &[&fact.target, old])?);
                of_fact.push(Preference { role, prompt: prompt.clone(), new: 0.0, old: 0.0 });
            }
        }
        all.push(of_fact);
    }
    let found = log_probabilities(model, &forks)?;
    let mean = |tokens: &[f32]| tokens.iter().map(|x| f64::from(*x)).sum::<f64>() / tokens.len() as f64;
    for (preference, found) in all.iter_mut().flatten().zip(found) {
        (preference.new, preference.old) = (mean(&found[0]), mean(&found[1]));
    }
    Ok(all)
}

/// Texts about things that have an object, by the ids of relation and object: ROME's
/// `attribute_snippets.json`.
///
/// Words are weighed by how few of the file's texts have them: TF-IDF with ln((1 + n) / (1 + df))
/// and 1 added, as is usual. DIFFERENCE: the paper's code ships weights that were taken from an
/// encyclopedia; ours are taken from these texts.
#[derive(Debug, Clone)]
pub struct References {
    /// The file's git blob id.
    pub version: String,
    /// Place of a word among the weights.
    vocabulary: HashMap<String, usize>,
    /// Weight of each word.
    idf: Vec<f64>,
    /// The texts of a relation and an object as one vector of length 1, by rising place.
    vectors: BTreeMap<[String; 2], Vec<(usize, f64)>>,
}

#[derive(Deserialize)]
struct Snippets {
    relation_id: String,
    target_id: String,
    samples: Vec<Snippet>,
}

#[derive(Deserialize)]
struct Snippet {
    text: String,
}

impl References {
    /// Reads a JSON array of `{"relation_id", "target_id", "samples": [{"text"}]}`.
    ///
    /// # Errors
    /// Where it cannot be read, has another form, or holds no text.
    pub fn read(path: &Path) -> Result<Self> {
        let expected = "expected ROME's `attribute_snippets.json`: a JSON array of {\"relation_id\", \
                        \"target_id\", \"samples\": [{\"text\"}]}";
        let source = Source { path, what: "file of reference texts", expected };
        let (text, version) = source.read()?;
        let entries: Vec<Snippets> =
            serde_json::from_str(&text).map_err(|e| source.invalid(&e.to_string()))?;
        let mut vocabulary = HashMap::new();
        let mut having: Vec<usize> = vec![];
        let mut counts: BTreeMap<[String; 2], BTreeMap<usize, usize>> = BTreeMap::new();
        let mut texts = 0;
        for Snippets { relation_id, target_id, samples } in entries {
            let of_object = counts.entry([relation_id, target_id]).or_default();
            for Snippet { text } in samples {
                texts += 1;
                let mut own = BTreeMap::new();
                for word in terms(&text) {
                    let next = vocabulary.len();
                    *own.entry(*vocabulary.entry(word).or_insert(next)).or_insert(0) += 1;
                }
                having.resize(vocabulary.len(), 0);
                for (word, count) in own {
                    having[word] += 1;
                    *of_object.entry(word).or_insert(0) += count;
                }
            }
        }
        if vocabulary.is_empty() {
            return Err(source.invalid("it holds no words"));
        }
        let idf: Vec<f64> =
            having.iter().map(|df| (f64::from(1 + texts) / (1.0 + *df as f64)).ln() + 1.0).collect();
        let vectors = counts.into_iter().map(|(key, counts)| (key, vector(counts, &idf))).collect();
        Ok(Self { version, vocabulary, idf, vectors })
    }

    /// Cosine of the texts that a model wrote, with their prompts, with those about the object, 0 to
    /// 1; `None` where the file has none about it, or nothing was written. Words that the file does
    /// not have do not count.
    pub fn consistency<T: AsRef<str>>(&self, object: &[String; 2], written: &[T]) -> Option<f64> {
        let reference = self.vectors.get(object).filter(|vector| !vector.is_empty())?;
        let mut counts = BTreeMap::new();
        for word in written.iter().flat_map(|text| terms(text.as_ref())) {
            if let Some(place) = self.vocabulary.get(&word) {
                *counts.entry(*place).or_insert(0) += 1;
            }
        }
        (!written.is_empty()).then(|| {
            let written: BTreeMap<usize, f64> = vector(counts, &self.idf).into_iter().collect();
            reference.iter().filter_map(|(word, weight)| Some(weight * written.get(word)?)).sum()
        })
    }
}

/// The words of a text in lower case, without signs.
fn terms(text: &str) -> impl Iterator<Item = String> {
    words(text).into_iter().filter(|w| w.contains(char::is_alphanumeric)).map(|w| w.to_lowercase())
}

/// Counts times weights, of length 1.
fn vector(counts: BTreeMap<usize, usize>, idf: &[f64]) -> Vec<(usize, f64)> {
    let weighed: Vec<(usize, f64)> =
        counts.into_iter().map(|(word, count)| (word, count as f64 * idf[word])).collect();
    let length = weighed.iter().map(|(_, w)| w * w).sum::<f64>().sqrt();
    weighed.into_iter().map(|(word, w)| (word, w / length)).collect()
}
