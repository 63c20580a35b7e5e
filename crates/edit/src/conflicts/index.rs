//! What lies beside a ledger so that it need not be read whole: entries of one length, by patch.
//!
//! Whatever is wrong with these files, they are made again from the patches: each entry ends with a
//! sum of what is in it. Entries of patches that are no longer in the stack are passed over.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::keys::{self, Metric, SIZE};
use super::words::Traits;
use crate::atomic;
use crate::error::Result;
use crate::ledger::{INDEX, Ledger};
use crate::patch::Patch;

/// Bytes of an entry before its numbers: the id's beginning and the fact.
const HEAD: usize = 20;

/// Version of these files: it is part of every sum, so that those of another are made again.
const VERSION: u64 = 2;

/// Bytes of a sum.
const SUM: usize = 8;

/// In place of a fact's number: the patch has no key at this layer.
const NONE: u32 = u32::MAX;

/// Bytes of an entry of words.
const WORDS: usize = HEAD + 4 * 8 + SUM;

/// Bytes of an entry of keys.
const KEYS: usize = HEAD + 4 * SIZE + SUM;

/// How far a sketch's cosine c may be off, in standard deviations (1 − c²)/√[`SIZE`] of it.
const SLACK: f64 = 4.0;

/// A patch in an index: the first 16 bytes of its id.
pub(super) fn key(id: &str) -> u128 {
    id.get(..32).and_then(|digits| u128::from_str_radix(digits, 16).ok()).unwrap_or_default()
}

/// The indexes of a ledger.
pub(super) struct Index<'a> {
    ledger: &'a Ledger,
    /// Where each patch is in the stack.
    at: HashMap<u128, usize>,
}

/// Sketches of the keys of one layer.
pub(super) struct Sketches {
    directions: Vec<f32>,
    width: usize,
    all: Vec<(u128, usize, Sketch)>,
}

/// A key in short, of length 1.
pub(super) type Sketch = [f32; SIZE];

impl<'a> Index<'a> {
    /// Those of a ledger. Only whoever writes to the ledger may.
    pub(super) fn new(ledger: &'a Ledger) -> Self {
        let at = ledger.stack().iter().enumerate().map(|(i, record)| (key(&record.id), i));
        Self { ledger, at: at.collect() }
    }

    /// A patch of the stack.
    pub(super) fn patch(&self, id: u128) -> Result<Option<Patch>> {
        let record = self.at.get(&id).and_then(|at| self.ledger.stack().get(*at));
        record.map(|record| self.ledger.load(record)).transpose()
    }

    /// Words of all facts of the stack, with their patch and their number in it.
    pub(super) fn traits(&self) -> Result<Vec<(u128, usize, Traits)>> {
        let make = |patch: &Patch, id: u128, out: &mut Vec<u8>| {
            for (at, fact) in patch.facts.iter().enumerate() {
                let t = Traits::of(fact);
                let numbers = [t.prompt, t.relation, t.subject, t.target].map(u64::to_le_bytes);
                put(id, u32::try_from(at).unwrap_or(NONE), numbers.as_flattened(), out);
            }
        };
        let bytes = self.brought("words", WORDS, make)?;
        let all = entries(&bytes, WORDS).filter(|(id, _, _)| self.at.contains_key(id));
        let all = all.map(|(id, at, rest)| {
            let mut numbers = rest.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
            let mut next = || numbers.next().unwrap_or_default();
            let traits = Traits { prompt: next(), relation: next(), subject: next(), target: next() };
            (id, at as usize, traits)
        });
        Ok(all.collect())
    }

    /// Sketches of the keys of the stack at a layer.
    pub(super) fn sketches(&self, layer: usize, metric: &Metric) -> Result<Sketches> {
        let name = format!("{layer}.{}.{}", metric.width(), metric.id());
        // A ledger that has not begun has no folder yet that anything could be kept in.
        let place = Ledger::is_at(self.ledger.folder());
        let place = place.then(|| self.folder().join(format!("directions.{name}")));
        let directions = directions(place.as_deref(), metric)?;
        let mut sketches = Sketches { directions, width: metric.width(), all: vec![] };
        let make = |patch: &Patch, id: u128, out: &mut Vec<u8>| {
            let own = sketches.of(patch, metric);
            for (at, sketch) in own.iter().enumerate() {
                put(id, u32::try_from(at).unwrap_or(NONE), sketch.map(f32::to_le_bytes).as_flattened(), out);
            }
            if own.is_empty() {
                put(id, NONE, &[0; 4 * SIZE], out);
            }
        };
        let bytes = self.brought(&format!("keys.{name}"), KEYS, make)?;
        for (id, at, rest) in entries(&bytes, KEYS) {
            if at != NONE && self.at.contains_key(&id) {
                let mut sketch = [0.0; SIZE];
                let numbers = rest.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                sketch.iter_mut().zip(numbers).for_each(|(to, x)| *to = x);
                sketches.all.push((id, at as usize, sketch));
            }
        }
        Ok(sketches)
    }

    fn folder(&self) -> PathBuf {
        self.ledger.folder().join(INDEX)
    }

    /// The entries of a file whose sums hold, with those added that it lacks: fewer than a patch has
    /// facts count as none, as a process that was killed leaves them.
    fn brought(&self, name: &str, size: usize, make: impl Fn(&Patch, u128, &mut Vec<u8>)) -> Result<Vec<u8>> {
        let path = self.folder().join(name);
        let mut bytes = std::fs::read(&path).unwrap_or_default();
        let is_whole = bytes.len().is_multiple_of(size) && bytes.chunks_exact(size).all(holds);
        if !is_whole {
            bytes = bytes.chunks_exact(size).filter(|entry| holds(entry)).collect::<Vec<_>>().concat();
        }
        let mut found = vec![0usize; self.ledger.stack().len()];
        for (id, fact, _) in entries(&bytes, size) {
            if let Some(at) = self.at.get(&id) {
                found[*at] = found[*at].saturating_add(if fact == NONE { usize::MAX } else { 1 });
            }
        }
        let lacking = self.ledger.stack().iter().zip(found).filter(|(record, found)| *found < record.facts);
        let mut more = vec![];
        for (record, _) in lacking {
            make(&self.ledger.load(record)?, key(&record.id), &mut more);
        }
        bytes.extend(&more);
        // It saves time and nothing else: a place that cannot be written to is no reason to fail.
        let _ = match is_whole {
            true if more.is_empty() => Ok(()),
            true => append(&path, &more),
            false => atomic::write(&path, |file| file.write_all(&bytes)),
        };
        Ok(bytes)
    }
}

impl Sketches {
    /// Sketches of a patch's own keys, one a fact; none where it has none here.
    pub(super) fn of(&self, patch: &Patch, metric: &Metric) -> Vec<Sketch> {
        let keys = (0..patch.facts.len()).map_while(|fact| keys::of(patch, metric.layer(), fact));
        keys.filter(|key| key.len() == self.width)
            .map(|key| {
                let mut sketch = [0.0f32; SIZE];
                for (to, row) in sketch.iter_mut().zip(self.directions.chunks_exact(self.width.max(1))) {
                    *to = row.iter().zip(key).map(|(a, b)| a * b).sum();
                }
                let size = sketch.iter().map(|x| x * x).sum::<f32>().sqrt();
                if size > 0.0 {
                    sketch.iter_mut().for_each(|x| *x /= size);
                }
                sketch
            })
            .collect()
    }

    /// Adds those of one more patch.
    pub(super) fn push(&mut self, id: u128, own: Vec<Sketch>) {
        self.all.extend(own.into_iter().enumerate().map(|(at, sketch)| (id, at, sketch)));
    }

    /// Facts whose keys may have a cosine of `close` to this one's, the likeliest first.
    pub(super) fn near(&self, sketch: &Sketch, close: f64) -> Vec<(u128, usize)> {
        let least = close - SLACK * (1.0 - close * close).max(0.0) / (SIZE as f64).sqrt();
        let cosine = |other: &Sketch| f64::from(sketch.iter().zip(other).map(|(a, b)| a * b).sum::<f32>());
        let mut near: Vec<(f64, usize)> = self
            .all
            .iter()
            .enumerate()
            .map(|(i, (_, _, other))| (cosine(other), i))
            .filter(|(c, _)| *c >= least)
            .collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        near.truncate(super::READ);
        near.into_iter().filter_map(|(_, i)| self.all.get(i)).map(|(id, at, _)| (*id, *at)).collect()
    }
}

/// Writes an entry.
fn put(id: u128, fact: u32, numbers: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend(id.to_le_bytes());
    out.extend(fact.to_le_bytes());
    out.extend(numbers);
    let sum = sum(&out[start..]);
    out.extend(sum.to_le_bytes());
}

/// A sum that any one word changes. It tells of damage; nobody gains by making one up. (Ten thousand
/// entries are read at every addition, for which a cryptographic hash takes milliseconds.)
fn sum(bytes: &[u8]) -> u64 {
    // FNV-1a over words; all that is summed here is made of whole ones.
    let words = bytes.as_chunks::<4>().0.iter().map(|word| u64::from(u32::from_le_bytes(*word)));
    words.fold(0xcbf2_9ce4_8422_2325 ^ VERSION, |sum, word| (sum ^ word).wrapping_mul(0x0100_0000_01b3))
}

/// Whether bytes end with the sum of those before.
fn holds(bytes: &[u8]) -> bool {
    bytes.split_last_chunk::<SUM>().is_some_and(|(own, named)| sum(own) == u64::from_le_bytes(*named))
}

/// Id, fact and numbers of each entry, which ends with its sum.
fn entries(bytes: &[u8], size: usize) -> impl Iterator<Item = (u128, u32, &[u8])> {
    bytes.chunks_exact(size).filter_map(|entry| {
        let (id, rest) = entry.split_first_chunk::<16>()?;
        let (fact, rest) = rest.split_first_chunk::<4>()?;
        Some((u128::from_le_bytes(*id), u32::from_le_bytes(*fact), rest))
    })
}

fn append(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(atomic::folder_of(path))?;
    File::options().append(true).create(true).open(path)?.write_all(bytes)
}

/// The directions of a metric: kept, where there is a place for them, as those under moments take a
/// factor to make.
fn directions(path: Option<&Path>, metric: &Metric) -> Result<Vec<f32>> {
    let Some(path) = path else { return metric.directions() };
    let size = 4 * SIZE * metric.width();
    if let Ok(bytes) = std::fs::read(path)
        && bytes.len() == size + SUM
        && holds(&bytes)
    {
        let numbers = bytes[..size].as_chunks::<4>().0.iter();
        return Ok(numbers.map(|bytes| f32::from_le_bytes(*bytes)).collect());
    }
    let made = metric.directions()?;
    let mut bytes: Vec<u8> = made.iter().flat_map(|x| x.to_le_bytes()).collect();
    bytes.extend(sum(&bytes).to_le_bytes());
    if std::fs::create_dir_all(atomic::folder_of(path)).is_ok() {
        let _ = atomic::write(path, |file| file.write_all(&bytes));
    }
    Ok(made)
}
