//! A benchmark: the cells of a plan, run part by part into a folder of results.
//!
//! Whatever ends it, the same call goes on where it was: a part that is done is not made again,
//! and nothing depends on which parts were made in one go.

mod cells;
mod choice;
mod info;
mod once;

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::{Duration, Instant};

use mutandis_edit::primitives::value_search::Values;
use mutandis_edit::{Context, Error, Progress, Result};
use mutandis_engine::Model;

use self::cells::{Cells, Parts, Planned};
use self::once::Once;
use crate::baseline::Baseline;
use crate::data::find::{Places, find, name_of};
use crate::data::{Form, Set};
use crate::judge::{self, Asked, Judge};
use crate::memory::Memory;
use crate::plan::Order;
use crate::record::{Measures, Prepared};
use crate::results::{CellFolder, Folder};
use crate::run::{Cell, Part, counted};
use crate::whole::Whole;

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
    /// What is measured of the edited model.
    pub whole: &'a Whole,
    /// The text's git blob id.
    pub text: Option<String>,
    /// Their data sets.
    pub sets: &'a Sets,
    /// Which part of the work.
    pub shard: Shard,
    /// Hears of records that are done.
    pub progress: &'a dyn Progress,
    /// Memory of the process.
    pub memory: Memory,
    /// Who judges free answers, where anybody does.
    pub judge: Option<&'a dyn Judge>,
}

/// A data set with its name.
#[derive(Debug, Clone)]
struct Named {
    name: String,
    set: Set,
}

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
            sets.names.insert(data.clone(), sets.all.len());
            sets.all.push(Named { name: name_of(data, &path), set });
        }
        Ok(sets)
    }
}

/// What was run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ran {
    /// Ids of the plan's cells, in order.
    pub cells: Vec<String>,
    /// Records that this run has edited and scored.
    pub records: usize,
    /// Parts of all cells.
    pub parts: usize,
    /// Those of them that are this shard's.
    pub own_parts: usize,
}

impl Benchmark<'_> {
    /// Runs what is not done yet.
    ///
    /// # Errors
    /// Where a method cannot edit the model by its settings, no record of a data set can be edited, a
    /// result cannot be written, or the user interrupts. What is done by then is kept.
    pub fn run(&self, folder: &Folder, cx: &Context<'_>) -> Result<Ran> {
        let sets = &self.sets.all;
        // Methods that search alike share what is found.
        let cx = &Context { values: Some(Values::default()), ..cx.clone() };
        // Before anything is run: every edit would fail, one after another.
        for Order { method, settings, .. } in self.orders {
            method.check_for(self.model, cx.recipe.as_ref(), settings).map_err(|error| {
                let hint = format!("`mutandis methods show {}` lists its settings", method.id);
                Error::input_hint(format!("`{}`: {error}", method.id), error.hint().unwrap_or(hint))
            })?;
        }
        let Cells { mut planned, mut ran, left_out } = self.cells(folder, cx)?;
        let all = planned.iter().map(Planned::records_left).sum::<usize>();
        if all > 0 {
            self.progress.begin("measuring the unedited model", 0);
            self.whole.measure(self.model, cx)?;
            self.progress.end();
        }
        let started = Instant::now();
        let mut state = State::default();
        self.progress.begin("records", all);
        while !planned.is_empty() {
            let mut others = vec![];
            for cell in planned {
                let (begun, made) = (Instant::now(), state.made);
                let parts = self.cell(&cell, &sets[cell.set], &mut state, cx)?;
                if state.made > made {
                    let seconds = started.elapsed().as_secs_f64();
                    let left = seconds / state.made as f64 * (all - state.done) as f64;
                    self.progress.note(&format!(
                        "{} on {}, {}: {:.0} s; {} of {all} records, {} left",
                        cell.order.method.id,
                        sets[cell.set].name,
                        cell.order.mode,
                        begun.elapsed().as_secs_f64(),
                        state.done,
                        duration(left)
                    ));
                }
                if !parts.is_empty() {
                    others.push(Planned { parts, ..cell });
                }
            }
            planned = others;
            if !planned.is_empty() {
                self.wait(&planned, &mut state, cx)?;
            }
        }
        self.progress.end();
        ran.records = state.made;
        if left_out.cells > 0 {
            self.progress.note(&left_out.at_the_end(ran.cells.len()));
        }
        self.tell_silence(state.asked);
        Ok(ran)
    }

    /// Waits a moment for parts that other runs are making.
    fn wait(&self, planned: &[Planned<'_>], state: &mut State, cx: &Context<'_>) -> Result<()> {
        if !std::mem::replace(&mut state.waits, true) {
            let count: usize = planned.iter().map(|cell| cell.parts.len()).sum();
            let parts = counted(count, "part");
            self.progress.note(&format!("waiting for another run, which is making {parts} of this one"));
        }
        cx.check()?;
        std::thread::sleep(MOMENT);
        Ok(())
    }

    /// Tells what a judge has left open, and what it was not asked about.
    fn tell_silence(&self, Asked { all, silent }: Asked) {
        if silent > 0 {
            self.progress.note(&format!("the judge said neither yes nor no to {silent} of {all} answers"));
        }
        let opinions = self.sets.all.iter().filter(|data| self.judge_of(data.set.form).is_none());
        for Named { name, .. } in opinions.filter(|_| self.judge.is_some()) {
            self.progress.note(&format!("nobody judges opinions: the judge was not asked about {name}"));
        }
    }

    /// Who judges free answers to records of a form: of an opinion none is the right one.
    fn judge_of(&self, form: Form) -> Option<&dyn Judge> {
        self.judge.filter(|_| form != Form::ConvSent)
    }

    /// Makes the parts of a cell; those that another run is making are left, and told.
    fn cell(
        &self,
        planned: &Planned<'_>,
        Named { set, .. }: &Named,
        state: &mut State,
        cx: &Context<'_>,
    ) -> Result<Parts> {
        let Planned { order, records, folder, parts, .. } = planned;
        let once = Once::new(cx.progress);
        let cx = &Context { progress: &once, ..cx.clone() };
        let judge = self.judge_of(set.form);
        let mut others = vec![];
        let seed = order.seed;
        let measures = self.measures;
        let baseline = Baseline::new(cx.cache.as_deref(), self.model, &set.version, measures, seed)?;
        let cell = Cell {
            model: self.model,
            method: order.method,
            settings: &order.settings,
            mode: order.mode,
            seed,
            measures,
            whole: self.whole,
            memory: self.memory,
        };
        for (part, range) in parts {
            let Some(_claim) = folder.claim(*part)? else {
                others.push((*part, range.clone()));
                continue;
            };
            let numbers: Vec<usize> = records[range.clone()].iter().map(|&i| set.records[i].number).collect();
            // Another run may have made it by now.
            if folder.is_done(*part, &numbers)? {
                state.done += range.len();
                continue;
            }
            let steps = folder.steps(*part);
            if let Some(judge) = judge
                && let Some(scored) = steps.scored()
            {
                self.keep(folder, *part, scored, Some(judge), state, cx)?;
                continue;
            }
            let of = |&i: &usize| {
                let mut record = Prepared::new(self.model, set, i, seed)?;
                if !order.method.needs_subject {
                    // A wrong subject is none, where none is needed.
                    record
                        .facts
                        .iter_mut()
                        .filter(|f| f.subject_range().is_err())
                        .for_each(|f| f.subject.clear());
                }
                Ok(record)
            };
            let prepared: Vec<Prepared<'_>> = records[range.clone()].iter().map(of).collect::<Result<_>>()?;
            let started = Instant::now();
            let before = baseline.said(self.model, &prepared, measures, seed, self.progress)?;
            cx.check()?;
            let baseline_seconds = started.elapsed().as_secs_f64();
            let done = state.done;
            let heard = |edited: usize| self.progress.step(done + edited);
            let mut run = cell.run(&prepared, &before, Some(&steps), &heard, cx)?;
            run.cost.baseline_seconds = baseline_seconds;
            state.made += range.len();
            self.keep(folder, *part, run, judge, state, cx)?;
        }
        Ok(others)
    }

    /// Keeps a part that is scored, once the judge has said its word, where one does.
    fn keep(
        &self,
        folder: &CellFolder,
        part: usize,
        mut run: Part,
        judge: Option<&dyn Judge>,
        state: &mut State,
        cx: &Context<'_>,
    ) -> Result<()> {
        if let Some(judge) = judge {
            let steps = folder.steps(part);
            steps.keep_scored(&run)?;
            let mut verdicts = steps.verdicts();
            for record in &mut run.records {
                cx.check()?;
                judge::judge(judge, record, &mut verdicts, &mut state.asked)?;
            }
        }
        folder.keep(part, &run)?;
        state.done += run.records.len();
        self.progress.step(state.done);
        Ok(())
    }
}

/// How long a run waits before it looks again whether another has made a part.
const MOMENT: Duration = Duration::from_millis(300);

/// How far a run is.
#[derive(Debug, Default)]
struct State {
    /// Records that are done now and were not before.
    done: usize,
    /// Those of them that this run has edited and scored.
    made: usize,
    /// What the judge was asked.
    asked: Asked,
    /// Whether it has been told that another run is waited for.
    waits: bool,
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
