//! A benchmark: the cells of a plan, run part by part into a folder of results.
//!
//! Whatever ends it, the same call goes on where it was: a part that is done is not made again,
//! and nothing depends on which parts were made in one go.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;
use std::time::Instant;

use mutandis_edit::{Context, Error, Progress, Result};
use mutandis_engine::Model;

use crate::baseline::Baseline;
use crate::data::find::{Places, find};
use crate::data::{Record, Set};
use crate::judge::{self, Judge};
use crate::plan::Order;
use crate::record::{Measures, PROTOCOL, Prepared};
use crate::results::{CellFolder, CellInfo, DataInfo, Folder};
use crate::run::{Cell, Whole};

/// Which of several machines this is: it makes every part whose number leaves `index` when divided
/// by `of`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    pub index: usize,
    /// How many there are.
    pub of: usize,
}

impl Shard {
    /// All of it.
    pub const WHOLE: Self = Self { index: 0, of: 1 };
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((index, of)) if index < of => Ok(Self { index, of }),
            Some((index, of)) => {
                Err(format!("there is no shard {index} of {of}: they are numbered from 0, as in `0/3`"))
            }
            None => Err(format!("`{text}` is no shard; write as in `0/3`")),
        }
    }
}

/// What is run, and how.
pub struct Benchmark<'a> {
    /// The model.
    pub model: &'a Model,
    /// The cells.
    pub orders: &'a [Order],
    /// What is measured of every record.
    pub measures: &'a Measures,
    /// What is measured of the edited model, and by which text, told by its git blob id.
    pub whole: &'a Whole,
    /// The text's git blob id.
    pub text: Option<String>,
    /// Their data sets.
    pub sets: &'a Sets,
    /// Which part of the work.
    pub shard: Shard,
    /// Hears of records that are done.
    pub progress: &'a dyn Progress,
    /// Memory of the process at most so far, in bytes.
    pub peak_memory: fn() -> u64,
    /// Who judges free answers, where anybody does.
    pub judge: Option<&'a dyn Judge>,
}

/// A data set with its name.
type Named = (String, Set);

/// The data sets of a plan, each read once.
#[derive(Debug, Clone, Default)]
pub struct Sets {
    /// Places in `all`, by what a plan calls them.
    names: BTreeMap<String, usize>,
    all: Vec<Named>,
}

impl Sets {
    /// Reads all that the orders name, before any of it is used.
    ///
    /// # Errors
    /// Where one is not found or cannot be used.
    pub fn read(orders: &[Order], places: &Places) -> Result<Self> {
        let mut sets = Self::default();
        for Order { data, .. } in orders {
            if sets.names.contains_key(data) {
                continue;
            }
            let path = find(data, places)?;
            let set = Set::read(&path)?;
            // A path is of this machine; its file's name is the data set's.
            let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
            let is_file = Path::new(data).extension().is_some();
            sets.names.insert(data.clone(), sets.all.len());
            sets.all.push((if is_file { stem } else { data.clone() }, set));
        }
        Ok(sets)
    }
}

/// A cell with its records, before it is run.
struct Planned<'a> {
    order: &'a Order,
    set: usize,
    /// Records of the set, by their place in it.
    records: Vec<usize>,
    id: String,
    folder: CellFolder,
    /// Parts that are to be made now.
    parts: Vec<(usize, Range<usize>)>,
}

/// What was run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ran {
    /// Ids of the plan's cells, in order.
    pub cells: Vec<String>,
    /// Records that were edited and scored now.
    pub records: usize,
    /// Records that had been before.
    pub kept: usize,
}

impl Benchmark<'_> {
    /// Runs what is not done yet.
    ///
    /// # Errors
    /// Where no record of a data set can be edited, a result cannot be written, or the user interrupts.
    /// What is done by then is kept.
    pub fn run(&self, folder: &Folder, cx: &Context<'_>) -> Result<Ran> {
        let Sets { names, all: sets } = self.sets;
        let mut number = 0;
        let mut ran = Ran::default();
        let mut planned = vec![];
        for order in self.orders {
            let Some(&set) = names.get(&order.data) else { continue };
            let cell = self.planned(order, set, &sets[set], folder, &mut number, cx)?;
            let now: usize = cell.parts.iter().map(|(_, range)| range.len()).sum();
            ran.records += now;
            ran.kept += cell.records.len() - now;
            // A cell that is listed twice is run once.
            if !ran.cells.contains(&cell.id) {
                ran.cells.push(cell.id.clone());
                planned.push(cell);
            }
        }
        let started = Instant::now();
        let mut done = 0;
        self.progress.begin("records", ran.records);
        for cell in &planned {
            let begun = Instant::now();
            self.cell(cell, &sets[cell.set], &mut done, cx)?;
            if !cell.parts.is_empty() {
                let seconds = started.elapsed().as_secs_f64();
                let left = seconds / done.max(1) as f64 * (ran.records - done) as f64;
                self.progress.note(&format!(
                    "{} on {}, {}: {:.0} s; {done} of {} records, {} left",
                    cell.order.method.id,
                    sets[cell.set].0,
                    cell.order.mode,
                    begun.elapsed().as_secs_f64(),
                    ran.records,
                    duration(left)
                ));
            }
        }
        self.progress.end();
        Ok(ran)
    }

    fn planned<'o>(
        &self,
        order: &'o Order,
        set: usize,
        (name, data): &Named,
        folder: &Folder,
        number: &mut usize,
        cx: &Context<'_>,
    ) -> Result<Planned<'o>> {
        let (records, skipped) = chosen(data, order.limit);
        if records.is_empty() {
            return Err(Error::input(format!("no record of `{}` can be edited", order.data)));
        }
        let parts = Cell::parts(order.mode, records.len());
        let info = CellInfo {
            method: order.method.id.to_owned(),
            settings: order.method.settings(self.model, cx.recipe.as_ref(), &order.settings),
            data: DataInfo { name: name.clone(), form: data.form, version: data.version.clone(), skipped },
            mode: order.mode,
            seed: order.seed,
            records: records.iter().map(|&i| data.records[i].number).collect(),
            parts: parts.len(),
            protocols: protocols(self.measures, self.judge),
            text: self.text.clone(),
            general: self.whole.general.iter().map(|s| (s.name.to_owned(), s.questions.len())).collect(),
        };
        let id = id(&info, self.model)?;
        let folder = folder.cell(&id, &info)?;
        let mut own = vec![];
        for (part, range) in parts.into_iter().enumerate() {
            if *number % self.shard.of == self.shard.index && !folder.is_done(part) {
                own.push((part, range));
            }
            *number += 1;
        }
        Ok(Planned { order, set, records, id, folder, parts: own })
    }

    fn cell(
        &self,
        planned: &Planned<'_>,
        (_, set): &(String, Set),
        done: &mut usize,
        cx: &Context<'_>,
    ) -> Result<()> {
        let Planned { order, records, folder, parts, .. } = planned;
        let seed = order.seed;
        let baseline = Baseline::new(cx.cache.as_deref(), self.model, &set.version, self.measures, seed)?;
        let cell = Cell {
            model: self.model,
            method: order.method,
            settings: &order.settings,
            mode: order.mode,
            seed,
            measures: self.measures,
            whole: self.whole,
        };
        for (part, range) in parts {
            let of = |&i: &usize| Prepared::new(self.model, set, i, seed);
            let prepared: Vec<Prepared<'_>> = records[range.clone()].iter().map(of).collect::<Result<_>>()?;
            let started = Instant::now();
            let before = baseline.said(self.model, &prepared, self.measures, seed)?;
            cx.check()?;
            let baseline_seconds = started.elapsed().as_secs_f64();
            let mut run = cell.run(&prepared, &before, Some(&folder.steps(*part)), cx)?;
            for record in &mut run.records {
                if let Some(judge) = self.judge {
                    cx.check()?;
                    judge::judge(judge, record)?;
                }
            }
            run.cost.baseline_seconds = baseline_seconds;
            run.cost.peak_memory_bytes = (self.peak_memory)();
            folder.keep(*part, &run)?;
            *done += range.len();
            self.progress.step(*done);
        }
        Ok(())
    }
}

/// The first records whose subject is in the prompt, by their place in the set, and how many were
/// passed over. Where no record names a subject, all can be used: some methods do without.
fn chosen(set: &Set, limit: usize) -> (Vec<usize>, usize) {
    let named = |record: &Record| record.facts().iter().all(|fact| fact.subject_range().is_ok());
    let all: Vec<bool> = set.records.iter().map(named).collect();
    let none = !all.contains(&true);
    let mut records = vec![];
    let mut skipped = 0;
    for (i, named) in all.into_iter().enumerate() {
        if records.len() == limit {
            break;
        }
        if named || none { records.push(i) } else { skipped += 1 }
    }
    // Those that could not be read, up to the last one used.
    let last = records.last().map_or(0, |&i| set.records[i].number);
    skipped += set.skipped.iter().filter(|note| note.record < last).count();
    (records, skipped)
}

/// What is measured, in words.
fn protocols(measures: &Measures, judge: Option<&dyn Judge>) -> BTreeMap<String, String> {
    let mut all = BTreeMap::from([
        ("version".to_owned(), PROTOCOL.to_string()),
        ("prompts".to_owned(), "plain, as the data set writes them; no chat template".to_owned()),
    ]);
    let mut say = |name: &str, is_measured: bool, text: &str| {
        if is_measured {
            all.insert(name.to_owned(), text.to_owned());
        }
    };
    say(
        "compat",
        measures.compat,
        "EasyEdit's functions: token accuracy under teacher forcing of `prompt + \" \" + target`; first alias; \
         locality as agreement of likeliest tokens before and after; means over probes, kinds, records",
    );
    say(
        "strict",
        measures.strict,
        "greedy free generation to the end of the first sentence or line; exact match and F1 (:f1) against all \
         aliases, SQuAD's normalisation; locality as the same answer before and after, and KL in nats (:kl)",
    );
    say(
        "fluency",
        measures.fluency,
        "weighted entropy of 2- and 3-grams of words, in bits; compat: top-5 sampling, 100 tokens with the prompt, \
         prompt scored too; strict: 100 new tokens, nucleus 0.9 of the top 50 (fluency) and greedy (fluency:greedy), text alone",
    );
    if let Some(judge) = judge {
        all.insert(
            "judge".to_owned(),
            format!("{}: whether a free answer says what a right one does", judge.name()),
        );
    }
    all
}

/// A name that tells a cell from every other: readable, with a hash of all that it is.
fn id(info: &CellInfo, model: &Model) -> Result<String> {
    let json =
        serde_json::to_string(info).map_err(|e| Error::input(format!("a cell cannot be written: {e}")))?;
    let hash = blake3::hash(format!("{} {json}", model.fingerprint()?).as_bytes()).to_hex();
    let plain = |c: char| if c.is_alphanumeric() { c } else { '-' };
    let name: String =
        format!("{} {} {}", info.data.name, info.method, info.mode).chars().map(plain).take(80).collect();
    Ok(format!("{name}-{}", &hash.as_str()[..10]))
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_numbered_from_0() {
        assert_eq!("1/3".parse(), Ok(Shard { index: 1, of: 3 }));
        for (text, why) in
            [("3/3", "from 0"), ("1", "as in `0/3`"), ("a/b", "as in `0/3`"), ("0/0", "from 0")]
        {
            assert!(text.parse::<Shard>().is_err_and(|e| e.contains(why)), "{text}");
        }
    }
}
