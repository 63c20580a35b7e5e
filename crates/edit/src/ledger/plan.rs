//! What a change of the stack comes to, before anything is done.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use super::{Action, Ledger, Line, Record};
use crate::error::{Error, Result};
use crate::patch::chain;

/// A stack that is to be: which patches stay as they are, and which are computed anew.
#[derive(Debug)]
pub struct Plan {
    pub(super) action: Action,
    /// What stays and what comes, in order; empty where patches leave and nothing else happens.
    pub(super) items: Vec<Item>,
    pub(super) out: Vec<String>,
    pub(super) head: Option<String>,
    /// How many patches the other ledger added that were once here and were taken out.
    pub stays_out: usize,
}

/// A patch of the stack that is to be.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) record: Record,
    /// Where its file is.
    pub(super) file: PathBuf,
    /// Where it is computed anew: on top of how many of the items.
    pub(super) on: Option<usize>,
    /// Whether it is in the stack already.
    pub(super) is_here: bool,
}

impl Plan {
    /// The stack without some of its patches, by id: those that were computed on top of one of them
    /// are computed anew on top of what is left of what they stood on.
    ///
    /// # Errors
    /// Where one is not in the stack, or the journal contradicts itself.
    pub fn revert(ledger: &Ledger, ids: &HashSet<String>) -> Result<Self> {
        let here: HashSet<&str> = ledger.stack().iter().map(|r| r.id.as_str()).collect();
        if let Some(id) = ids.iter().find(|id| !here.contains(id.as_str())) {
            return Err(Error::input_hint(
                format!("`{id}` is not in the stack"),
                "`mutandis patch list` shows what is",
            ));
        }
        // Where nothing stands on anything, nothing has to be looked at but what goes.
        let stands = ledger.stack().iter().any(|record| record.depends().is_some());
        let items = if stands { without(ledger, ids)? } else { vec![] };
        let gone = ledger.stack().iter().filter(|r| ids.contains(&r.id));
        let out = gone.map(|r| r.id.clone()).collect();
        Ok(Self { action: Action::Revert, items, out, head: None, stays_out: 0 })
    }

    /// The stack with what was done in another ledger since both were last the same: what was taken
    /// out there goes, what was added there comes behind ours.
    ///
    /// # Errors
    /// Where they are of different bases, or a journal contradicts itself.
    pub fn merge(ours: &Ledger, theirs: &Ledger) -> Result<Self> {
        ours.check_base(theirs.base(), &format!("the ledger `{}`", theirs.folder().display()))?;
        let new = &theirs.history()[known(ours, theirs)..];
        // Edits, not ids: an edit that was computed anew is still the same edit.
        let edits: HashMap<&str, &str> =
            theirs.history().iter().flat_map(records).map(|r| (r.id.as_str(), r.edit())).collect();
        let alive: HashSet<&str> = theirs.stack().iter().map(Record::edit).collect();
        let gone = new.iter().flat_map(|line| &line.out).filter_map(|id| edits.get(id.as_str()));
        let gone: HashSet<&str> = gone.filter(|edit| !alive.contains(**edit)).copied().collect();
        let is_gone = |r: &&Record| gone.contains(r.edit());
        let out: Vec<String> = ours.stack().iter().filter(is_gone).map(|r| r.id.clone()).collect();
        let mut items = without(ours, &out.iter().cloned().collect())?;

        let here: HashSet<&str> = ours.stack().iter().map(Record::edit).collect();
        let ever: HashSet<&str> = ours.history().iter().flat_map(records).map(Record::edit).collect();
        let since: HashSet<&str> = new.iter().flat_map(|l| &l.added).map(Record::edit).collect();
        let mut stays_out = 0;
        // Beyond the first that is computed anew nobody can know yet what stands.
        let mut prefixes = Prefixes::default();
        let mut taken = 0;
        for record in theirs.stack().iter().filter(|r| since.contains(r.edit()) && !here.contains(r.edit())) {
            if ever.contains(record.edit()) {
                stays_out += 1;
                continue;
            }
            for item in items.iter().skip(taken).take_while(|item| item.on.is_none()) {
                prefixes.push(&item.record.id);
                taken += 1;
            }
            let stands = record.depends().is_none_or(|under| prefixes.depth(under).is_some());
            items.push(Item {
                record: record.clone(),
                file: theirs.place(&record.id),
                on: (!stands).then_some(items.len()),
                is_here: false,
            });
        }
        let head = Some(theirs.head().to_owned());
        Ok(Self { action: Action::Merge, items, out, head, stays_out })
    }

    /// Whether the stack stays as it is.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty() && self.items.iter().all(|item| item.is_here && item.on.is_none())
    }

    /// Patches that leave the stack.
    pub fn out(&self) -> &[String] {
        &self.out
    }

    /// Patches that are computed anew, for which the model is needed.
    pub fn anew(&self) -> impl Iterator<Item = &Record> {
        self.items.iter().filter(|item| item.on.is_some()).map(|item| &item.record)
    }

    /// Patches that are new to the stack, with the files that hold them.
    pub fn joining(&self) -> impl Iterator<Item = (&Record, &PathBuf)> {
        self.items.iter().filter(|item| !item.is_here).map(|item| (&item.record, &item.file))
    }
}

/// All patches that an operation put into the stack.
fn records(line: &Line) -> impl Iterator<Item = &Record> {
    line.instead.iter().map(|instead| &instead.now).chain(&line.added)
}

/// How many operations of another journal are known here: those that both begin with, and those up
/// to the last that was merged.
fn known(ours: &Ledger, theirs: &Ledger) -> usize {
    let (a, b) = (&ours.journal.heads, &theirs.journal.heads);
    let common = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let merged: HashSet<&str> = ours.history().iter().filter_map(|line| line.head.as_deref()).collect();
    let merged = b.iter().rposition(|head| merged.contains(head.as_str())).map_or(0, |at| at + 1);
    // The first line is no operation.
    common.max(merged).saturating_sub(1)
}

/// The stack without some patches.
fn without(ledger: &Ledger, gone: &HashSet<String>) -> Result<Vec<Item>> {
    let stack = ledger.stack();
    // Nothing that stands on less than this changes.
    let first = stack.iter().position(|r| gone.contains(&r.id)).unwrap_or(stack.len());
    let depths = if first == stack.len() { vec![None; first] } else { depths(stack)? };
    let mut items: Vec<Item> = Vec::with_capacity(stack.len());
    // How many items come of the first so many patches.
    let mut left = Vec::with_capacity(stack.len() + 1);
    for (record, depth) in stack.iter().zip(depths) {
        left.push(items.len());
        if !gone.contains(&record.id) {
            let on = depth.filter(|depth| *depth > first).map(|depth| left[depth]);
            items.push(Item { record: record.clone(), file: ledger.place(&record.id), on, is_here: true });
        }
    }
    Ok(items)
}

/// For each patch of a stack how many of the first ones it was computed on top of, where it was on
/// any.
fn depths(stack: &[Record]) -> Result<Vec<Option<usize>>> {
    let mut prefixes = Prefixes::default();
    let mut depths = Vec::with_capacity(stack.len());
    for record in stack {
        let depth = record.depends().map(|under| {
            prefixes.depth(under).ok_or_else(|| {
                Error::input_hint(
                    format!("the journal does not hold what the patch `{}` was computed on", record.id),
                    "it was changed by hand: restore it from a copy",
                )
            })
        });
        depths.push(depth.transpose()?);
        prefixes.push(&record.id);
    }
    Ok(depths)
}

/// Names by content of everything that a stack begins with.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    depths: HashMap<String, usize>,
    last: Option<String>,
}

impl Prefixes {
    /// Of a whole stack.
    pub(super) fn of(stack: &[Record]) -> Self {
        let mut all = Self::default();
        stack.iter().for_each(|record| all.push(&record.id));
        all
    }

    /// One more patch on top.
    pub(super) fn push(&mut self, id: &str) {
        let next = chain(self.last.as_deref(), id);
        self.depths.insert(next.clone(), self.depths.len() + 1);
        self.last = Some(next);
    }

    /// How many patches have that name together.
    pub(super) fn depth(&self, under: &str) -> Option<usize> {
        self.depths.get(under).copied()
    }

    /// The name of all.
    pub(super) fn last(&self) -> Option<&str> {
        self.last.as_deref()
    }
}
