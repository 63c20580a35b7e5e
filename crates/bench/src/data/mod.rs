//! Data sets: files of records in the forms that the field uses, read as facts with their probes.
//!
//! A record that can be used in part is used, with a note; one that cannot is skipped and named.
//! Only a file that is no data set at all is an error.

mod file;
pub mod find;
mod forms;
mod ripple;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use mutandis_edit::{Change, Error, Fact, Probe, Result};
use serde::{Deserialize, Serialize};

pub(crate) use file::{File, parse};
pub(crate) use forms::{MULTI_HOP, NEIGHBORHOOD};

use crate::sanitation::Answers;

/// The form of a file's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// One fact each, with probes: KnowEdit, EasyEdit, MEND's zsRE, our own.
    Facts,
    /// CounterFact with all its prompts (ROME's file).
    CounterFact,
    /// Several facts each, and questions that take several of them together.
    Mquake,
    /// RippleEdits.
    RippleEdits,
    /// KnowEdit's ConvSent: opinions about a topic.
    ConvSent,
    /// KnowEdit's Sanitation: questions to be forgotten, and others.
    Sanitation,
}

impl Form {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Facts => "facts with probes",
            Self::CounterFact => "CounterFact",
            Self::Mquake => "MQuAKE",
            Self::RippleEdits => "RippleEdits",
            Self::ConvSent => "ConvSent",
            Self::Sanitation => "Sanitation",
        }
    }
}

/// What a record asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Facts that are to become true together; their probes are the facts' own.
    Facts {
        /// One, or several that questions take together.
        facts: Vec<Fact>,
        /// Prompts whose continuations should agree with the facts.
        generation: Vec<String>,
        /// Wikidata's ids of the relation and of the new object, under which texts are found that
        /// such continuations are compared with; CounterFact alone has them.
        reference: Option<[String; 2]>,
    },
    /// How a topic is to be spoken of.
    Sentiment {
        /// The topic.
        topic: String,
        /// What is said of it with approval.
        positive: Vec<String>,
        /// What is said of it without.
        negative: Vec<String>,
    },
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number in the file, from 1.
    pub number: usize,
    /// What it asks for.
    pub task: Task,
}

impl Record {
    /// Its facts; none where it is about a sentiment.
    pub fn facts(&self) -> &[Fact] {
        match &self.task {
            Task::Facts { facts, .. } => facts,
            Task::Sentiment { .. } => &[],
        }
    }
}

/// Something about a record, in one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    /// The record's number, from 1.
    pub record: usize,
    /// What.
    pub what: String,
}

impl Note {
    fn new(record: usize, what: &str) -> Self {
        Self { record, what: escaped(what) }
    }
}

/// A data set.
#[derive(Debug, Clone)]
pub struct Set {
    /// The form of its records.
    pub form: Form,
    /// The file's git blob id (SHA-1), by which a version is told from another.
    pub version: String,
    /// Records that can be used.
    pub records: Vec<Record>,
    /// Questions whose answers no edit may change (Sanitation).
    pub retained: Vec<Probe>,
    /// Answers among which wrong ones are drawn, where records are to forget theirs.
    pub answers: Answers,
    /// Records that cannot, each once, in the file's order.
    pub skipped: Vec<Note>,
    /// What of the others is odd, by kind.
    pub oddities: BTreeMap<&'static str, Vec<Note>>,
}

/// What a file is to be.
const EXPECTED: &str = "expected a JSON array or JSON lines of records such as \
                        {\"prompt\": …, \"subject\": …, \"target_new\": …}, or one of KnowEdit's, CounterFact's, \
                        zsRE's, MQuAKE's or RippleEdits' files";

impl Set {
    /// Reads a file.
    ///
    /// # Errors
    /// Where it cannot be read, is not JSON, or has no record that can be used.
    pub fn read(path: &Path) -> Result<Self> {
        let source = Source { path, what: "data set", expected: EXPECTED };
        let (bytes, version) = source.bytes()?;
        let mut set = Self::of(parse(&file::text(&bytes)).map_err(|why| source.invalid(&why))?);
        set.version = version;
        if set.records.is_empty() {
            return Err(source.unusable(&set.skipped));
        }
        Ok(set)
    }

    fn of(file: File) -> Self {
        let ((form, records), retain) = match file {
            File::Records(records) => (forms::read(records), vec![]),
            File::Sanitation { forget, retain } => ((Form::Sanitation, forms::forgotten(forget)), retain),
        };
        let mut set = Self {
            form,
            version: String::new(),
            records: Vec::with_capacity(records.len()),
            retained: vec![],
            answers: Answers::default(),
            skipped: vec![],
            oddities: BTreeMap::new(),
        };
        for (i, record) in retain.into_iter().enumerate() {
            match record.and_then(|record| forms::retained(&record)) {
                Ok(probe) => {
                    if probe.answers.is_empty() {
                        set.note(NO_ANSWER, i + 1, &format!("`{}`, which is to be kept", probe.prompt));
                    }
                    set.retained.push(probe);
                }
                Err(what) => set.note(UNASKED, i + 1, &what),
            }
        }
        for (i, record) in records.into_iter().enumerate() {
            let number = i + 1;
            match record {
                Ok((task, notes)) => {
                    set.records.push(Record { number, task });
                    notes.iter().for_each(|what| set.note(PASSED_OVER, number, what));
                }
                Err(what) => set.skipped.push(Note::new(number, &what)),
            }
        }
        let forgets = |fact: &Fact| fact.change == Change::Erase;
        if form == Form::Sanitation || set.records.iter().flat_map(Record::facts).any(forgets) {
            set.answers = Answers::of(&set.records, &set.retained);
        }
        set.look();
        set
    }

    fn note(&mut self, kind: &'static str, record: usize, what: &str) {
        self.oddities.entry(kind).or_default().push(Note::new(record, what));
    }

    /// Notes what is odd about records that can be used all the same.
    fn look(&mut self) {
        let mut seen: HashMap<String, usize> = HashMap::new();
        let mut found: Vec<(&'static str, usize, String)> = vec![];
        let mut note = |kind, record, what| found.push((kind, record, what));
        for Record { number, task } in &self.records {
            let text = match task {
                Task::Sentiment { topic, .. } => topic.clone(),
                Task::Facts { facts, .. } => {
                    for fact in facts {
                        for (kind, what) in odd(fact) {
                            note(kind, *number, what);
                        }
                    }
                    // MQuAKE asks several questions about the same facts, in records of their own.
                    let asked =
                        facts.iter().flat_map(|f| &f.portability).filter(|_| self.form == Form::Mquake);
                    let said = facts.iter().map(|f| format!("{}\0{}\0", f.prompt, f.target));
                    said.chain(asked.map(|p| format!("{}\0", p.prompt))).collect()
                }
            };
            match seen.get(&text) {
                Some(first) => note(REPEATED, *number, format!("says what record {first} says")),
                None => {
                    seen.insert(text, *number);
                }
            }
        }
        for (kind, record, what) in found {
            self.note(kind, record, &what);
        }
    }
}

const PASSED_OVER: &str = "passed over in part";
const UNASKED: &str = "question to be kept that cannot be asked";
const REPEATED: &str = "said twice";
const NO_SUBJECT: &str = "subject not in the prompt";
const NO_CHANGE: &str = "target is the old answer";
const NO_ANSWER: &str = "probe without an answer";

/// What is odd about a fact.
fn odd(fact: &Fact) -> Vec<(&'static str, String)> {
    let mut out = vec![];
    if let Err(error) = fact.subject_range() {
        let none = "no subject is named".to_owned();
        out.push((NO_SUBJECT, if fact.subject.is_empty() { none } else { error.to_string() }));
    }
    if fact.ground_truth.as_ref().is_some_and(|truth| truth.trim() == fact.target) {
        out.push((NO_CHANGE, format!("`{}` is to be answered `{}`, as before", fact.prompt, fact.target)));
    }
    for probe in fact.locality.iter().chain(&fact.portability).filter(|p| p.answers.is_empty()) {
        out.push((NO_ANSWER, format!("`{}`", probe.prompt)));
    }
    out
}

/// A text file of somebody else's making, and what it is to be.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) path: &'a Path,
    /// What it is to be, in words.
    pub(crate) what: &'a str,
    /// What is expected of it: the hint of its errors.
    pub(crate) expected: &'a str,
}

impl Source<'_> {
    /// Its text, and its version: the git blob id.
    ///
    /// # Errors
    /// Where it cannot be read, or is not UTF-8.
    pub(crate) fn read(&self) -> Result<(String, String)> {
        let (bytes, version) = self.bytes()?;
        let mut text = String::from_utf8(bytes).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            self.invalid(&format!("it is not UTF-8 text (byte {at} is not part of a character)"))
        })?;
        if text.starts_with('\u{feff}') {
            text.remove(0);
        }
        Ok((text, version))
    }

    /// Its bytes, and its version.
    ///
    /// # Errors
    /// Where it cannot be read, or begins as no text does.
    fn bytes(&self) -> Result<(Vec<u8>, String)> {
        let bytes = std::fs::read(self.path).map_err(|e| {
            let what = format!("cannot read the {} `{}`: {e}", self.what, self.path.display());
            Error::input_hint(what, self.expected)
        })?;
        let magic: [(&[u8], &str); 4] = [
            (b"\x1f\x8b", "it is compressed by gzip: unpack it first"),
            (b"PK\x03\x04", "it is a zip archive: unpack it first"),
            (b"\xff\xfe", "it is UTF-16 text: write it as UTF-8"),
            (b"\xfe\xff", "it is UTF-16 text: write it as UTF-8"),
        ];
        if let Some((_, why)) = magic.iter().find(|(start, _)| bytes.starts_with(start)) {
            return Err(self.invalid(why));
        }
        let version = git_blob_id(&bytes);
        Ok((bytes, version))
    }

    /// None of its records can be used.
    pub(crate) fn unusable(&self, skipped: &[Note]) -> Error {
        self.invalid(&match skipped {
            [Note { record, what }, ..] => {
                format!("none of its {} records can be used; record {record}: {what}", skipped.len())
            }
            [] => "it holds no records".to_owned(),
        })
    }

    /// It is something else.
    pub(crate) fn invalid(&self, why: &str) -> Error {
        let what = format!("`{}` is no {}: {}", self.path.display(), self.what, escaped(why));
        Error::input_hint(what, self.expected)
    }
}

/// A text without characters that a terminal would obey or that cannot be seen.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// The id under which git keeps these bytes.
pub fn git_blob_id(bytes: &[u8]) -> String {
    use sha1::{Digest, Sha1};
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}
