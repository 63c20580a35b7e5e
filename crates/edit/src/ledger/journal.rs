//! The journal: one line an operation, each named by a hash of itself and of the line before.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Record;
use crate::atomic;
use crate::error::{Error, Result};
use crate::patch::Base;

/// Version of the journal that is written, and the newest that is read.
const VERSION: u64 = 1;

/// Name of the file in a ledger's folder.
pub(super) const FILE: &str = "journal.jsonl";

/// What every line begins with; its hash follows.
const HASH: &str = r#"{"hash":""#;

/// Length of a hash, in hexadecimal digits.
const DIGITS: usize = 64;

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Patches join the stack.
    Add,
    /// Patches leave it.
    Revert,
    /// What was done in another ledger is done here.
    Merge,
}

/// A patch in another's place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Instead {
    /// The id that leaves.
    pub of: String,
    /// The same edit, computed anew.
    pub now: Record,
}

/// One operation: what leaves the stack, what takes another's place, what comes behind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// When, UTC, RFC 3339.
    pub at: String,
    /// What it is.
    #[serde(rename = "does")]
    pub action: Action,
    /// Ids that leave the stack.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub out: Vec<String>,
    /// Patches that take another's place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instead: Vec<Instead>,
    /// Patches that come behind all others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<Record>,
    /// Of a merge: the last line of the other journal that was taken in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
}

/// What the first line says.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    #[serde(rename = "mutandis-ledger")]
    version: u64,
    base: Base,
}

/// A journal that was read: whole lines whose hashes hold.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    pub(super) base: Base,
    pub(super) lines: Vec<Line>,
    /// Hashes of the first line and of all others.
    pub(super) heads: Vec<String>,
    /// The first line, where it is still to be written: with the first operation.
    begin: String,
    /// Bytes of whole lines.
    whole: u64,
    /// Bytes behind them: of an operation that was cut off before its end.
    pub(super) torn: u64,
}

impl Journal {
    /// Where a folder has its journal.
    pub(super) fn place(folder: &Path) -> PathBuf {
        folder.join(FILE)
    }

    /// A journal that begins with its first operation; nothing is written yet.
    pub(super) fn new(folder: &Path, base: &Base) -> Result<Self> {
        let (head, begin) = chained("", &Header { version: VERSION, base: base.clone() })?;
        let (path, base, heads) = (Self::place(folder), base.clone(), vec![head]);
        Ok(Self { path, base, lines: vec![], heads, begin, whole: 0, torn: 0 })
    }

    /// Whether anything of it is on the disk.
    pub(super) fn is_written(&self) -> bool {
        self.begin.is_empty()
    }

    /// Reads and verifies a journal.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let path = Self::place(folder);
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let torn = bytes.len() - whole;
        let damaged = |line: usize, why: &str| damaged(&path, line, why);
        let text = std::str::from_utf8(&bytes[..whole])
            .map_err(|e| damaged(bytes[..e.valid_up_to()].split(|b| *b == b'\n').count(), "it is no text"))?;
        let mut lines = text.lines();
        let first = lines.next().ok_or_else(|| damaged(1, "it is empty"))?;
        let (head, _) = split(first).map_err(|why| damaged(1, why))?;
        // A newer version is told as such whatever else has changed in it.
        let header: serde_json::Value =
            serde_json::from_str(first).map_err(|e| damaged(1, &e.to_string()))?;
        match header.get("mutandis-ledger").and_then(serde_json::Value::as_u64) {
            Some(VERSION) => {}
            Some(other) => {
                return Err(Error::input_hint(
                    format!(
                        "`{}` is of version {other}, this mutandis reads version {VERSION}",
                        path.display()
                    ),
                    "use the newer mutandis that wrote it; nothing was changed",
                ));
            }
            None => return Err(damaged(1, "it is not the first line of a ledger")),
        }
        let header: Header = serde_json::from_value(header).map_err(|e| damaged(1, &e.to_string()))?;
        let rest: Vec<&str> = lines.collect();
        verify("", first).map_err(|why| damaged(1, why))?;
        let lines: Vec<(String, Line)> = rest
            .par_iter()
            .enumerate()
            .map(|(i, text)| {
                let number = i + 2;
                // What is wrong with the line before is told there.
                let before = if i == 0 { head } else { split(rest[i - 1]).map_or("", |(hash, _)| hash) };
                let hash = verify(before, text).map_err(|why| damaged(number, why))?;
                let line = serde_json::from_str(text).map_err(|e| damaged(number, &e.to_string()))?;
                Ok((hash.to_owned(), line))
            })
            .collect::<Vec<Result<_>>>()
            .into_iter()
            .collect::<Result<_>>()?;
        let (others, lines): (Vec<String>, Vec<Line>) = lines.into_iter().unzip();
        let heads = std::iter::once(head.to_owned()).chain(others).collect();
        let (whole, torn) = (whole as u64, torn as u64);
        Ok(Self { base: header.base, lines, heads, begin: String::new(), whole, torn, path })
    }

    /// Hash of the last line.
    pub(super) fn head(&self) -> &str {
        self.heads.last().map_or("", String::as_str)
    }

    /// Takes off what was cut off before its end. Only whoever has the lock may.
    pub(super) fn drop_torn(&mut self) -> Result<()> {
        if self.torn > 0 {
            let file = File::options().write(true).open(&self.path);
            let cut = file.and_then(|file| file.set_len(self.whole).and_then(|()| file.sync_all()));
            cut.map_err(Error::io("write", &self.path))?;
            self.torn = 0;
        }
        Ok(())
    }

    /// Appends an operation and forces it to the disk: from then on it has happened. On a failure
    /// the journal is as it was. Only whoever has the lock may.
    pub(super) fn append(&mut self, line: Line) -> Result<()> {
        let (hash, own) = chained(self.head(), &line)?;
        let text = format!("{}{own}", self.begin);
        let written = match self.is_written() {
            true => self.extend(&text),
            // It begins whole or not at all.
            false => atomic::write(&self.path, |file| file.write_all(text.as_bytes())),
        };
        written.map_err(Error::io("write", &self.path))?;
        self.begin.clear();
        self.whole += text.len() as u64;
        self.heads.push(hash);
        self.lines.push(line);
        Ok(())
    }

    /// Puts text behind what is there, and forces it to the disk.
    fn extend(&self, text: &str) -> std::io::Result<()> {
        let mut file = File::options().append(true).open(&self.path)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).inspect_err(|_| {
            // Should this fail too, the next writer finds an unfinished line and drops it.
            let _ = file.set_len(self.whole);
        })
    }
}

/// A line with its hash, and the hash.
fn chained(before: &str, body: &impl Serialize) -> Result<(String, String)> {
    let json = serde_json::to_string(body)
        .map_err(|e| Error::input(format!("the operation cannot be written: {e}")))?;
    let body = &json[1..];
    let hash = hash(before, body);
    let line = format!("{HASH}{hash}\",{body}\n");
    Ok((hash, line))
}

/// Over the line before by its hash, and all of a line behind its own.
fn hash(before: &str, body: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(before.as_bytes());
    hasher.update(b"\n");
    hasher.update(body.as_bytes());
    hasher.finalize().to_hex().to_string()
}

/// The hash that a line names, and what follows it.
fn split(line: &str) -> Result<(&str, &str), &'static str> {
    let rest = line.strip_prefix(HASH).ok_or("it does not begin with its hash")?;
    let (hash, body) = rest.split_at_checked(DIGITS).ok_or("it is too short")?;
    Ok((hash, body.strip_prefix("\",").ok_or("it does not begin with its hash")?))
}

/// The hash that a line names, where it holds.
fn verify<'a>(before: &str, line: &'a str) -> Result<&'a str, &'static str> {
    let (named, body) = split(line)?;
    if named != hash(before, body) {
        return Err("it does not have the hash that it names: it, or the line before it, was changed");
    }
    Ok(named)
}

fn damaged(path: &Path, line: usize, why: &str) -> Error {
    let hint = match line {
        1 => "restore it from a copy; the patches are all still in `patches/`".to_owned(),
        _ => format!(
            "restore it from a copy, or keep a copy and cut it off after line {}, which is sound; the patches are \
             all still in `patches/`",
            line - 1
        ),
    };
    Error::input_hint(format!("line {line} of the journal `{}` is damaged: {why}", path.display()), hint)
}
