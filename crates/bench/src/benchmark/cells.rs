//! The cells of a plan, before any is run: which records each takes, and which parts are left.

use std::collections::BTreeSet;
use std::ops::Range;

use mutandis_edit::{Context, Error, Result};

use super::choice::{Chosen, Looked};
use super::{Benchmark, Named, Ran, Sets};
use crate::plan::Order;
use crate::results::{CellFolder, CellInfo, Folder, Skipped};
use crate::run::{Cell, in_words};

/// The cells of a plan.
#[derive(Default)]
pub(super) struct Cells<'a> {
    /// Those that can be run, in order.
    pub(super) planned: Vec<Planned<'a>>,
    /// What there is to do.
    pub(super) ran: Ran,
    /// Those that cannot.
    pub(super) left_out: LeftOut,
}

/// Parts of a cell by their number, with the records that each takes, by their place in the cell.
pub(super) type Parts = Vec<(usize, Range<usize>)>;

/// A cell with its records.
pub(super) struct Planned<'a> {
    pub(super) order: &'a Order,
    /// Place of its data set among all.
    pub(super) set: usize,
    /// Records of the set, by their place in it.
    pub(super) records: Vec<usize>,
    pub(super) folder: CellFolder,
    /// Parts that are to be made now.
    pub(super) parts: Parts,
}

impl Planned<'_> {
    /// Records of the parts that are to be made now.
    pub(super) fn records_left(&self) -> usize {
        self.parts.iter().map(|(_, range)| range.len()).sum()
    }
}

/// Cells whose method is not ready, such as one whose editor is not trained yet.
#[derive(Default)]
pub(super) struct LeftOut {
    pub(super) cells: usize,
    /// By method and reason: on which data sets.
    reasons: Vec<(&'static str, String, Vec<String>)>,
    first: Option<Error>,
}

impl LeftOut {
    fn add(&mut self, method: &'static str, data: &str, error: Error) {
        self.cells += 1;
        let why = in_words(&error);
        match self.reasons.iter_mut().find(|(of, reason, _)| *of == method && *reason == why) {
            Some((.., sets)) if sets.iter().any(|set| set == data) => {}
            Some((.., sets)) => sets.push(data.to_owned()),
            None => self.reasons.push((method, why, vec![data.to_owned()])),
        }
        self.first.get_or_insert(error);
    }

    /// Which and why: a line for each method and reason.
    fn lines(&self) -> impl Iterator<Item = String> {
        self.reasons
            .iter()
            .map(|(method, why, sets)| format!("{method} on {} is left out: {why}", sets.join(", ")))
    }

    /// How many of all cells there were, `made` being the others.
    pub(super) fn at_the_end(&self, made: usize) -> String {
        let methods: BTreeSet<&str> = self.reasons.iter().map(|(method, ..)| *method).collect();
        let methods = methods.into_iter().collect::<Vec<_>>().join(", ");
        format!("{} of {} cells were left out, as told above: {methods}", self.cells, self.cells + made)
    }
}

impl<'a> Benchmark<'a> {
    /// The cells of the plan; tells which are left out.
    ///
    /// # Errors
    /// Where none can be run, or the folder of results cannot be used.
    pub(super) fn cells(&self, folder: &Folder, cx: &Context<'_>) -> Result<Cells<'a>> {
        let Sets { names, all: sets } = self.sets;
        let mut looked = Looked::default();
        let mut cells = Cells::default();
        for order in self.orders {
            let Some(&number) = names.get(&order.data) else { continue };
            let Named { name, set } = &sets[number];
            // All methods of a plan edit the same records of a data set.
            let mut of_set = self.orders.iter().filter(|other| names.get(&other.data) == Some(&number));
            let needs_subject = of_set.any(|other| other.method.needs_subject);
            let chosen = looked.choose(self.model, number, set, order, needs_subject)?;
            let editor = match chosen.records.is_empty() {
                true => Err(none_fits(&order.data, &chosen)),
                false => order.method.editor(&order.settings, self.model, cx),
            };
            let editor = match editor {
                Ok(editor) => editor,
                // The others are run, and this one once it can be.
                Err(error) => {
                    cells.left_out.add(order.method.id, name, error);
                    // Its parts keep their numbers: another shard may be able to make them.
                    cells.ran.parts += Cell::parts(order.mode, chosen.records.len()).len();
                    continue;
                }
            };
            let records = chosen.records.clone();
            let info = self.info(order, &sets[number], chosen, editor.as_deref(), cx)?;
            let id = info.id(self.model.fingerprint()?)?;
            // A cell that is listed twice is run once.
            if cells.ran.cells.contains(&id) {
                continue;
            }
            let (folder, parts) = self.left(order, &id, &info, folder, &mut cells.ran)?;
            cells.ran.cells.push(id);
            cells.planned.push(Planned { order, set: number, records, folder, parts });
        }
        cells.left_out.lines().for_each(|line| self.progress.note(&line));
        match cells.left_out.first.take().filter(|_| cells.planned.is_empty()) {
            Some(error) => Err(error),
            None => Ok(cells),
        }
    }

    /// A cell's folder, and which of its parts are to be made by this shard.
    fn left(
        &self,
        order: &Order,
        id: &str,
        info: &CellInfo,
        folder: &Folder,
        ran: &mut Ran,
    ) -> Result<(CellFolder, Parts)> {
        let folder = folder.cell(id, info)?;
        let mut parts = vec![];
        for (part, range) in Cell::parts(order.mode, info.records.len()).into_iter().enumerate() {
            if ran.parts % self.shard.of == self.shard.index {
                ran.own_parts += 1;
                if !folder.is_done(part, &info.records[range.clone()])? {
                    if folder.is_there(part) {
                        self.progress.note(&format!("part {part} of {id} is damaged, and is made again"));
                    }
                    parts.push((part, range));
                }
            }
            ran.parts += 1;
        }
        Ok((folder, parts))
    }
}

/// Why no record of a data set is edited.
fn none_fits(data: &str, chosen: &Chosen) -> Error {
    let what = format!("no record of `{data}` can be edited");
    match &chosen.skipped[..] {
        [] => Error::input_hint(what, "`mutandis data check` tells what is wrong with records"),
        [Skipped { record, why }, ..] => Error::input_hint(
            format!("{what}; record {record}: {why}"),
            "`mutandis data check FILE --all` names records that are dirty; for those that are too long use a model \
             of a longer context",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_once_with_all_that_it_holds_for() {
        let mut left_out = LeftOut::default();
        let untrained = || Error::input_hint("no editor", "train one");
        left_out.add("mend", "zsre", untrained());
        left_out.add("malmen", "zsre", untrained());
        left_out.add("mend", "counterfact", untrained());
        // In another mode.
        left_out.add("mend", "zsre", untrained());
        left_out.add("mend", "mquake", Error::input("too long"));
        assert_eq!(
            left_out.lines().collect::<Vec<_>>(),
            [
                "mend on zsre, counterfact is left out: no editor; train one",
                "malmen on zsre is left out: no editor; train one",
                "mend on mquake is left out: too long",
            ]
        );
        assert_eq!(left_out.at_the_end(4), "5 of 9 cells were left out, as told above: malmen, mend");
    }
}
