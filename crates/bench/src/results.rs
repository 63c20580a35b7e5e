//! Results as they lie on the disk: what a run leaves behind and a report reads.
//!
//! ```text
//! DIR/run.json                     format, tool, model
//! DIR/cells/ID/cell.json           what the cell is: method, settings, data, mode, seed
//! DIR/cells/ID/00000.jsonl         a part's records, one a line; where it is, the part is done
//! DIR/cells/ID/00000.model.json    what was measured of the edited model as a whole
//! DIR/cells/ID/00000.cost.json     seconds and memory: all that differs from run to run
//! DIR/cells/ID/00000.lock          while a run is making the part
//! DIR/cells/ID/00000.steps/        what of an unfinished part is kept: a sequence's steps, a judge's words
//! ```
//!
//! A part is written whole; one that is found damaged is made again. Folders of shards are merged by copying them
//! into one another.

mod read;
mod write;

use std::collections::BTreeMap;

use mutandis_edit::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data::Form;
use crate::run::Mode;

pub use read::{read, read_cells};
pub use write::{CellFolder, Folder};

/// Version of the layout.
pub const FORMAT: u32 = 2;

/// Scores by name, each a share of 0 to 1 unless its name says otherwise. A score that a record
/// does not have is not there.
///
/// `edit`, `rephrase`, `portability`, `locality`, `fluency` (bits), and `portability/KIND`,
/// `locality/KIND`: a name behind a slash is a kind of what stands before it. A name behind a colon is
/// another measure of it: `edit:f1`, `locality:kl` (nats).
pub type Scores = BTreeMap<String, f64>;

/// Mean of each score over the records that have it.
pub fn means<'a>(all: impl Iterator<Item = &'a Scores>) -> Scores {
    let mut sums: BTreeMap<&str, (f64, usize)> = BTreeMap::new();
    for (name, score) in all.flatten() {
        let (sum, count) = sums.entry(name).or_default();
        *sum += score;
        *count += 1;
    }
    sums.into_iter().map(|(name, (sum, count))| (name.to_owned(), sum / count as f64)).collect()
}

/// The two protocols side by side.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Both {
    /// As EasyEdit's functions compute it.
    pub compat: Scores,
    /// What a user sees: free generation, natural stop.
    pub strict: Scores,
}

/// What a run is about: `run.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// [`FORMAT`].
    pub format: u32,
    /// What made it, with its version.
    pub tool: String,
    /// The model.
    pub model: ModelInfo,
}

/// The unedited model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// As the user names it; of a path, the file's name.
    pub name: String,
    /// Hash of the weights, hexadecimal.
    pub fingerprint: String,
    /// Architecture family.
    pub family: String,
    /// Number of layers.
    pub layers: usize,
}

/// What a cell is: `cell.json`. Its hash is in the cell's [id](Self::id), so that no result is taken for
/// another's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellInfo {
    /// Method.
    pub method: String,
    /// All its settings, as resolved.
    pub settings: Value,
    /// The data set.
    pub data: DataInfo,
    /// How edits follow one another.
    pub mode: Mode,
    /// Seed of everything that is drawn.
    pub seed: u64,
    /// Numbers in the file of the records that are edited, from 1, in order.
    pub records: Vec<usize>,
    /// How many parts the cell has.
    pub parts: usize,
    /// What is measured, and how; in words, by protocol.
    pub protocols: BTreeMap<String, String>,
    /// The text whose perplexity is measured, by its git blob id; none for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Suites of general ability that are measured.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub general: BTreeMap<String, SuiteInfo>,
    /// What else results hang on, by content: `editor` and `references` (hashes of the files),
    /// `weights` (how the model's are held).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, String>,
}

/// What [`CellInfo::protocols`] tells in words alone: what they mean is numbered by its `version`.
const IN_WORDS: [&str; 4] = ["prompts", "compat", "strict", "fluency"];

impl CellInfo {
    /// A name that tells the cell from every other: readable, with a hash of all that it is and of the
    /// model, told by its fingerprint. Mended words leave it as it is.
    ///
    /// # Errors
    /// Where it cannot be written down.
    pub fn id(&self, fingerprint: &str) -> Result<String> {
        let mut info = self.clone();
        for name in IN_WORDS {
            if let Some(words) = info.protocols.get_mut(name) {
                words.clear();
            }
        }
        info.data.skipped.iter_mut().chain(&mut info.data.unasked).for_each(|skipped| skipped.why.clear());
        let json = serde_json::to_string(&info)
            .map_err(|e| Error::input(format!("a cell cannot be written: {e}")))?;
        let hash = blake3::hash(format!("{fingerprint} {json}").as_bytes()).to_hex();
        let plain = |c: char| if c.is_alphanumeric() { c } else { '-' };
        let name: String =
            format!("{} {} {}", info.data.name, info.method, info.mode).chars().map(plain).take(80).collect();
        Ok(format!("{name}-{}", &hash.as_str()[..10]))
    }
}

/// A suite of general ability as it is measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuiteInfo {
    /// How many questions.
    pub questions: usize,
    /// What counts as its accuracy: `acc` or `acc_norm`.
    pub measure: String,
    /// Hash of the questions.
    pub version: String,
}

/// A data set as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataInfo {
    /// Its name, such as `wiki_recent`, or the file's.
    pub name: String,
    /// Form of its records.
    pub form: Form,
    /// The file's git blob id.
    pub version: String,
    /// Questions of the records that are not asked, with why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unasked: Vec<Skipped>,
    /// Records that could not be used, among those up to the last one used; all of the file's
    /// where it holds fewer than were asked for.
    pub skipped: Vec<Skipped>,
}

/// A record that was left out, or a question of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its number in the file, from 1.
    pub record: usize,
    /// Why it could not be used.
    pub why: String,
}

/// One record's result: a line of a part.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RecordResult {
    /// Its number in the file, from 1.
    pub record: usize,
    /// What was edited, as prompt and target.
    pub edits: Vec<[String; 2]>,
    /// Why the edit failed, or could not be scored; `after` is empty then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Scores of the unedited model.
    pub before: Both,
    /// Scores after the edit; in a sequence, after all edits.
    pub after: Both,
    /// In a sequence, right after the record's own edit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub immediate: Option<Both>,
    /// What was asked and answered.
    pub probes: Vec<ProbeResult>,
}

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The edited prompt.
    Edit,
    /// Another wording of it.
    Rephrase,
    /// Something that follows.
    Portability,
    /// Something that stays.
    Locality,
    /// A text that the model goes on with; its kind is how it was written: `compat`, as the peer writes
    /// what its fluency is of (with the prompt, as it is scored), `nucleus`, or `greedy`.
    Generation,
}

/// One question with its answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeResult {
    /// What it is for.
    pub role: Role,
    /// The data set's name for its kind; empty where there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// What is asked.
    pub prompt: String,
    /// What would be right; may be empty.
    pub answers: Vec<String>,
    /// What the unedited model says, raw.
    pub before: String,
    /// What the edited model says, raw.
    pub after: String,
    /// In a sequence, what it said right after the record's own edit, raw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub immediate: Option<String>,
    /// What compat's scores are of, before and after, where that is not what is said freely: the
    /// likeliest tokens at the places of the answer's, its true tokens before each; of an erasure the
    /// peer's ten tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forced: Option<[String; 2]>,
    /// Its own scores after the edit: `tokens` in compat, `exact`, `f1`, `same`, `kl` in strict.
    pub scores: Both,
}

/// What was measured of the edited model as a whole: `*.model.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelResult {
    /// How many edited models were measured: of a part of single edits, the first alone.
    pub measured: usize,
    /// Perplexity of the text, before and after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<[f64; 2]>,
    /// Accuracy on suites of general ability, before and after.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub general: BTreeMap<String, [f64; 2]>,
    /// How earlier edits hold as more are made; only in a sequence.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub retention: Vec<Retention>,
    /// After how many edits the model was found to have collapsed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collapsed: Option<usize>,
}

/// A point of the retention curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Retention {
    /// Edits made so far.
    pub edits: usize,
    /// Mean edit success over all of them (compat); none of what is no fact, or where none was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edit: Option<f64>,
    /// Perplexity of the text, where one is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
}

/// What a part cost: `*.cost.json`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Edits made, without those that failed.
    pub edits: usize,
    /// Seconds of editing, statistics of the model included, and searches that another method of the
    /// same run made.
    pub edit_seconds: f64,
    /// Seconds of scoring, without what the unedited model says.
    pub score_seconds: f64,
    /// Seconds of asking the unedited model; 0 where its answers were kept from before.
    pub baseline_seconds: f64,
    /// Memory of the process at most, in bytes, while the part was made.
    pub peak_memory_bytes: u64,
    /// The same while its edits were made; 0 where it is not known.
    #[serde(default)]
    pub edit_peak_memory_bytes: u64,
}

/// A cell as it was found on the disk.
#[derive(Debug, Clone, PartialEq)]
pub struct CellResult {
    /// Its id: the name of its folder.
    pub id: String,
    /// What it is.
    pub info: CellInfo,
    /// Records of all parts that are done, in the order of `info.records`.
    pub records: Vec<RecordResult>,
    /// Of every part that is done and measured it.
    pub models: Vec<ModelResult>,
    /// Of every part that is done, where it is known.
    pub costs: Vec<Cost>,
    /// Parts that are done.
    pub done: usize,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_cell_keeps_its_id_where_words_are_mended() {
        let words = |what: &str| format!("how {what} is measured");
        let skipped = |why: &str| Skipped { record: 3, why: why.to_owned() };
        let info = CellInfo {
            method: "ft-m".to_owned(),
            settings: serde_json::json!({ "steps": 25 }),
            data: DataInfo {
                name: "zsre".to_owned(),
                form: Form::Facts,
                version: "1".to_owned(),
                unasked: vec![skipped("it has no prompt")],
                skipped: vec![skipped("its subject is not in it")],
            },
            mode: Mode::Single,
            seed: 0,
            records: vec![1, 2, 4],
            parts: 1,
            protocols: ["version", "compat", "judge"].map(|name| (name.to_owned(), words(name))).into(),
            text: None,
            general: BTreeMap::new(),
            sources: BTreeMap::new(),
        };
        let id = |change: &dyn Fn(&mut CellInfo)| {
            let mut changed = info.clone();
            change(&mut changed);
            changed.id("model").unwrap()
        };
        let own = id(&|_| ());
        assert_eq!(
            own,
            id(&|info| drop(info.protocols.insert("compat".to_owned(), "better told".to_owned())))
        );
        assert_eq!(own, id(&|info| info.data.skipped[0].why = "better told".to_owned()));
        for changed in [
            id(&|info| drop(info.protocols.remove("compat"))),
            id(&|info| drop(info.protocols.insert("version".to_owned(), "5".to_owned()))),
            id(&|info| drop(info.protocols.insert("judge".to_owned(), "another".to_owned()))),
            id(&|info| info.data.skipped[0].record = 5),
            id(&|info| info.records.push(5)),
            info.id("another model").unwrap(),
        ] {
            assert_ne!(own, changed);
        }
    }
}
