//! The cells of a plan, before any is run: which records each takes, and which parts are left.

use std::collections::HashSet;
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

/// Cells that cannot be run: their method is not ready, such as one whose editor is not trained yet, or
/// none of their records can be edited.
#[derive(Default)]
pub(super) struct LeftOut {
    pub(super) cells: usize,
    reasons: Vec<Reason>,
    first: Option<Error>,
}

/// Why cells are left out: of one method on some data sets, or of some methods on one.
struct Reason {
    why: String,
    methods: Vec<&'static str>,
    sets: Vec<String>,
}

impl LeftOut {
    fn add(&mut self, method: &'static str, data: &str, error: Error) {
        self.cells += 1;
        let why = in_words(&error);
        self.first.get_or_insert(error);
        for reason in self.reasons.iter_mut().filter(|reason| reason.why == why) {
            let (has_method, has_set) =
                (reason.methods.contains(&method), reason.sets.iter().any(|set| set == data));
            match (has_method, has_set) {
                (true, true) => return,
                (true, false) if reason.methods.len() == 1 => return reason.sets.push(data.to_owned()),
                (false, true) if reason.sets.len() == 1 => return reason.methods.push(method),
                _ => {}
            }
        }
        self.reasons.push(Reason { why, methods: vec![method], sets: vec![data.to_owned()] });
    }

    /// Which and why: a line for each reason.
    fn lines(&self) -> impl Iterator<Item = String> {
        self.reasons.iter().map(|Reason { why, methods, sets }| {
            let are = if methods.len() == 1 { "is" } else { "are" };
            format!("{} on {} {are} left out: {why}", methods.join(", "), sets.join(", "))
        })
    }

    /// How many of all cells there were, `made` being the others.
    pub(super) fn at_the_end(&self, made: usize) -> String {
        format!("{} of {} cells were left out, as told at the beginning", self.cells, self.cells + made)
    }
}

impl<'a> Benchmark<'a> {
    /// The cells of the plan; tells which are left out.
    ///
    /// # Errors
    /// Where none can be run, or the folder of results cannot be used.
    pub(super) fn cells(&self, folder: &Folder, cx: &Context<'_>) -> Result<Cells<'a>> {
        let mut cells = Cells::default();
        let planned = self.plan(&mut cells, folder, cx);
        let LeftOut { reasons, first, .. } = &mut cells.left_out;
        let nothing_left = first.take().filter(|_| planned.is_ok() && cells.planned.is_empty());
        // A single reason for all is what the run ends with.
        if nothing_left.is_none() || reasons.len() > 1 {
            cells.left_out.lines().for_each(|line| self.progress.note(&line));
        }
        planned?;
        nothing_left.map_or(Ok(cells), Err)
    }

    /// Adds the cells of the plan.
    fn plan(&self, cells: &mut Cells<'a>, folder: &Folder, cx: &Context<'_>) -> Result<()> {
        let Sets { names, all: sets } = self.sets;
        let mut looked = Looked::default();
        let mut ids = HashSet::new();
        for order in self.orders {
            let Some(&number) = names.get(&order.data) else { continue };
            let Named { name, set } = &sets[number];
            // All methods of a plan edit the same records of a data set.
            let mut of_set = self.orders.iter().filter(|other| names.get(&other.data) == Some(&number));
            let needs_subject = of_set.any(|other| other.method.needs_subject);
            let chosen = looked.choose(self.model, number, set, order, needs_subject)?;
            let records = chosen.records.clone();
            let editor = match records.is_empty() {
                true => Err(none_fits(&order.data, &chosen)),
                false => order.method.editor(&order.settings, self.model, cx),
            };
            let path = editor.as_ref().ok().and_then(Option::as_deref);
            let info = self.info(order, &sets[number], chosen, path, cx)?;
            let id = info.id(self.model.fingerprint()?)?;
            // A cell that is listed twice is run once, and its parts count once wherever they are made.
            if !ids.insert(id.clone()) {
                continue;
            }
            // The others are run, and this one once it can be.
            if let Err(error) = editor {
                cells.left_out.add(order.method.id, name, error);
                // Its parts keep their numbers: another shard may be able to make them.
                cells.ran.parts += info.parts;
                continue;
            }
            let (folder, parts) = self.left(order, &id, &info, folder, &mut cells.ran)?;
            cells.ran.cells.push(id);
            cells.planned.push(Planned { order, set: number, records, folder, parts });
        }
        Ok(())
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
        left_out.add("malmen", "zsre", Error::input_hint("no editor for malmen", "train one"));
        left_out.add("mend", "counterfact", untrained());
        // In another mode.
        left_out.add("mend", "zsre", untrained());
        left_out.add("mend", "mquake", Error::input("too long"));
        // A reason that is the data set's own.
        left_out.add("rome", "people", Error::input("no record fits"));
        left_out.add("memit", "people", Error::input("no record fits"));
        assert_eq!(
            left_out.lines().collect::<Vec<_>>(),
            [
                "mend on zsre, counterfact is left out: no editor; train one",
                "malmen on zsre is left out: no editor for malmen; train one",
                "mend on mquake is left out: too long",
                "rome, memit on people are left out: no record fits",
            ]
        );
        assert_eq!(left_out.at_the_end(4), "7 of 11 cells were left out, as told at the beginning");
    }
}
