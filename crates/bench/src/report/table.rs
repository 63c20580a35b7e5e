//! The tables, as rows and columns; Markdown and HTML only dress them.

use std::collections::BTreeSet;

use super::metric::{self, MAIN};
use super::protocol::Protocol;
use super::published::{KNOWEDIT, PublishedSet};
use super::summary::{Protocols, Statistic, Summary, edits_in_words};
use crate::results::Skipped;

/// A score under a protocol.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Column {
    pub(super) protocol: Protocol,
    pub(super) name: String,
}

/// Which scores a row has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The model as it came.
    Unedited,
    /// In a sequence, right after each edit.
    Immediate,
    /// After the edits.
    After,
}

/// A number in a table.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) shown: String,
    pub(super) range: Option<String>,
    /// Of how many records it is, where these are fewer than the row's.
    pub(super) fewer: Option<usize>,
    pub(super) best: bool,
}

pub(super) struct Row<'a> {
    pub(super) kind: Kind,
    pub(super) cell: &'a Summary,
    /// One for each column.
    pub(super) entries: Vec<Option<Entry>>,
    /// Whether compat scores in it are by functions that other methods' are not by.
    is_in_context: bool,
}

/// Behind the name of a method whose compat is by functions of its own.
pub(super) const MARK: &str = " †";

impl Row<'_> {
    /// What stands behind the row's name.
    pub(super) fn mark(&self) -> &'static str {
        if self.is_in_context { MARK } else { "" }
    }

    /// What was done, in words, behind the method's name.
    pub(super) fn edits(&self) -> String {
        let when = match self.kind {
            Kind::Immediate => ", right after each",
            Kind::After if !self.cell.immediate.is_empty() => ", at the end",
            Kind::After | Kind::Unedited => "",
        };
        edits_in_words(self.cell) + when
    }

    /// Of how many records the row is.
    pub(super) fn scored(&self) -> String {
        format!("{} of {}", self.cell.scored, self.cell.records)
    }

    /// What keeps the row from being about all records.
    pub(super) fn short(&self) -> Vec<String> {
        let mut out = vec![];
        if self.cell.failed > 0 {
            out.push(format!("{} failed", self.cell.failed));
        }
        if self.cell.done < self.cell.parts {
            out.push(format!("{} of {} parts", self.cell.done, self.cell.parts));
        }
        out
    }
}

/// Published numbers under the rows of a data set.
pub(super) struct Reference {
    pub(super) method: String,
    /// One for each column.
    pub(super) entries: Vec<Option<String>>,
}

/// A data set's part of a table.
pub(super) struct Block<'a> {
    pub(super) title: String,
    /// The data set's own name, version and records left out.
    pub(super) about: String,
    /// Of the published numbers.
    pub(super) note: Option<&'static str>,
    /// What a mark behind a method's name means.
    pub(super) mark: Option<String>,
    /// Records left out; of the main table alone.
    pub(super) skipped: &'a [Skipped],
    pub(super) columns: Vec<Column>,
    pub(super) rows: Vec<Row<'a>>,
    pub(super) references: Vec<Reference>,
}

/// Cells of one data set, in KnowEdit's order, then by name.
pub(super) struct Group<'a> {
    pub(super) title: String,
    pub(super) cells: Vec<&'a Summary>,
    published: Option<&'static PublishedSet>,
}

pub(super) fn groups(cells: &[Summary]) -> Vec<Group<'_>> {
    let key = |c: &Summary| {
        let place = KNOWEDIT.of(&c.data.name).map_or(usize::MAX, |(place, _)| place);
        (place, c.data.name.clone(), c.data.version.clone())
    };
    let keys: BTreeSet<_> = cells.iter().map(key).collect();
    let title = |name: &str| KNOWEDIT.of(name).map_or_else(|| name.to_owned(), |(_, set)| set.title.clone());
    let group = |k: &(usize, String, String)| {
        let (_, name, version) = k;
        let mut title_of_group = title(name);
        // Two files of one data set, such as a train and a test file.
        if keys.iter().filter(|other| title(&other.1) == title_of_group).count() > 1 {
            title_of_group.push_str(&format!(" ({name}, {})", short(version)));
        }
        let published = KNOWEDIT.of(name).map(|(_, set)| set);
        Group { title: title_of_group, cells: cells.iter().filter(|c| key(c) == *k).collect(), published }
    };
    keys.iter().map(group).collect()
}

/// A hash as people quote it.
pub(super) fn short(hash: &str) -> String {
    hash.chars().take(8).collect()
}

/// The KnowEdit table: all blocks have the same columns.
pub(super) fn main<'a>(groups: &[Group<'a>]) -> Vec<Block<'a>> {
    let cells: Vec<&Summary> = groups.iter().flat_map(|g| g.cells.iter().copied()).collect();
    let diverges = diverges(groups);
    let columns = columns(&cells, |column| is_main(column, diverges));
    groups.iter().map(|g| block(g, columns.clone(), g.published)).collect()
}

/// ConvSent's compat has no locality but a divergence: where it was run, those of strict stand beside
/// it.
const DIVERGENCE: &str = "locality:kl";

fn diverges(groups: &[Group<'_>]) -> bool {
    groups.iter().flat_map(|g| &g.cells).any(|cell| cell.after.compat.contains_key(DIVERGENCE))
}

/// Whether a column is one of the KnowEdit table, with divergences or without.
pub(super) fn is_main(Column { name, .. }: &Column, diverges: bool) -> bool {
    MAIN.contains(&name.as_str()) || diverges && name == DIVERGENCE
}

/// Portability and locality by kind.
pub(super) fn kinds<'a>(groups: &[Group<'a>]) -> Vec<Block<'a>> {
    blocks(groups, is_kind)
}

fn is_kind(column: &Column) -> bool {
    column.name.split_once('/').is_some_and(|(score, _)| ["portability", "locality"].contains(&score))
}

/// Scores that KnowEdit's table does not have, such as CounterFact's.
pub(super) fn others<'a>(groups: &[Group<'a>]) -> Vec<Block<'a>> {
    let diverges = diverges(groups);
    blocks(groups, |column| !is_kind(column) && !is_main(column, diverges))
}

fn blocks<'a>(groups: &[Group<'a>], wanted: impl Fn(&Column) -> bool + Copy) -> Vec<Block<'a>> {
    // What was left out stands at the main table.
    let all = groups.iter().map(|g| Block { skipped: &[], ..block(g, columns(&g.cells, wanted), None) });
    all.filter(|b| !b.columns.is_empty()).collect()
}

/// Where a score stands in CounterFact's own table; others follow by name.
const ORDER: [&str; 5] = ["score", "efficacy", "generalization", "specificity", "consistency"];

fn columns(cells: &[&Summary], wanted: impl Fn(&Column) -> bool + Copy) -> Vec<Column> {
    let place = |name: &str| {
        let head = metric::parent(name).unwrap_or(name);
        let among = |names: &[&str]| names.iter().position(|n| *n == head).unwrap_or(names.len());
        (among(&MAIN), among(&ORDER))
    };
    let of = |protocol: Protocol| {
        let sides = cells.iter().flat_map(|c| [&c.before, &c.after, &c.immediate]);
        let names: BTreeSet<&String> = sides.flat_map(|side| protocol.of(side).keys()).collect();
        let mut names: Vec<&String> = names.into_iter().collect();
        names.sort_by_key(|name| place(name));
        names.into_iter().map(move |name| Column { protocol, name: name.clone() }).filter(wanted)
    };
    Protocol::ALL.into_iter().flat_map(of).collect()
}

fn block<'a>(group: &Group<'a>, columns: Vec<Column>, published: Option<&'static PublishedSet>) -> Block<'a> {
    let row = |kind: Kind, cell: &'a Summary, scores: &Protocols| {
        let entry = |column: &Column| {
            column.protocol.of(scores).get(&column.name).map(|s| entry(&column.name, s, cell))
        };
        let entries: Vec<Option<Entry>> = columns.iter().map(entry).collect();
        let has_compat =
            columns.iter().zip(&entries).any(|(c, e)| c.protocol == Protocol::Compat && e.is_some());
        Row { kind, cell, entries, is_in_context: has_compat && cell.in_context().is_some() }
    };
    let mut rows = vec![];
    rows.extend(speaker(group).map(|cell| row(Kind::Unedited, cell, &cell.before)));
    for cell in &group.cells {
        if !cell.immediate.is_empty() {
            rows.push(row(Kind::Immediate, cell, &cell.immediate));
        }
        rows.push(row(Kind::After, cell, &cell.after));
    }
    rows.retain(|row| row.kind == Kind::After || row.entries.iter().any(Option::is_some));
    mark_best(&columns, &mut rows);
    let data = &group.cells[0].data;
    // Cells of more records have passed over more.
    let skipped =
        group.cells.iter().map(|c| c.data.skipped.as_slice()).max_by_key(|s| s.len()).unwrap_or(&[]);
    let left_out = match skipped.len() {
        0 => String::new(),
        1 => ", 1 record left out that cannot be used".to_owned(),
        n => format!(", {n} records left out that cannot be used"),
    };
    Block {
        title: group.title.clone(),
        about: format!("{}, version {}{left_out}", data.name, short(&data.version)),
        mark: mark(&rows),
        skipped,
        note: published.and_then(|p| p.note.as_deref()),
        references: published.map(|p| references(p, &columns)).unwrap_or_default(),
        columns,
        rows,
    }
}

/// All cells of a data set say nearly the same of the unedited model: the one with most records speaks
/// for them. Where edits are a prompt, the peer's functions ask the unedited model otherwise, too.
fn speaker<'a>(group: &Group<'a>) -> Option<&'a Summary> {
    let mut found: Option<&Summary> = None;
    let rank = |cell: &Summary| (cell.in_context().is_none(), cell.scored);
    for cell in &group.cells {
        if !cell.before.is_empty() && found.is_none_or(|other| rank(cell) > rank(other)) {
            found = Some(cell);
        }
    }
    found
}

/// What [`MARK`] means, where a row has it.
fn mark(rows: &[Row<'_>]) -> Option<String> {
    let words: BTreeSet<&str> =
        rows.iter().filter(|row| row.is_in_context).filter_map(|row| row.cell.in_context()).collect();
    (!words.is_empty()).then(|| {
        let words = words.into_iter().collect::<Vec<_>>().join("; ");
        format!("†: compat is by EasyEdit’s functions for edits that are a prompt, before and after: {words}")
    })
}

fn entry(name: &str, s: &Statistic, cell: &Summary) -> Entry {
    Entry {
        shown: metric::shown(name, s.mean),
        range: s.interval.map(|i| metric::range(name, i)),
        fewer: (s.count < cell.scored).then_some(s.count),
        best: false,
    }
}

/// So many of the records left out are named.
const NAMED: usize = 8;

/// The first records that were left out, with why, and how many more there are.
pub(super) fn left_out(skipped: &[Skipped]) -> (Vec<String>, Option<String>) {
    let named = skipped.iter().take(NAMED).map(|s| format!("record {}: {}", s.record, s.why)).collect();
    let more = skipped.len().saturating_sub(NAMED);
    (named, (more > 0).then(|| format!("and {more} more")))
}

/// Marks the best of each column, among what stands after all edits; those that read the same are
/// all best, unless all do. Means over other records than most rows have do not compete, as theirs may
/// be easier; nor do those by the peer's functions for prompts with others. Where no more than half
/// compete, none is marked: the best of a few would look like the best of all.
fn mark_best(columns: &[Column], rows: &mut [Row<'_>]) {
    for (i, Column { protocol, name }) in columns.iter().enumerate() {
        let value = |row: &Row<'_>| {
            let statistic = *protocol.of(&row.cell.after).get(name).filter(|_| row.kind == Kind::After)?;
            let sign = if metric::higher_is_better(name)? { 1.0 } else { -1.0 };
            let is_other = row.is_in_context && *protocol == Protocol::Compat;
            (!is_other).then_some((sign * statistic.mean, statistic))
        };
        let all: Vec<(usize, f64, Statistic)> = rows
            .iter()
            .enumerate()
            .filter_map(|(r, row)| value(row).map(|(value, statistic)| (r, value, statistic)))
            .collect();
        let alike = |of: Statistic| all.iter().filter(|c| c.2.over == of.over).count();
        // Of as many rows, those over more records.
        let Some(usual) = all.iter().max_by_key(|c| (alike(c.2), c.2.count)) else { continue };
        let competing: Vec<_> = all.iter().filter(|c| c.2.over == usual.2.over).copied().collect();
        let Some((best, ..)) = competing.iter().max_by(|a, b| a.1.total_cmp(&b.1)).copied() else {
            continue;
        };
        if 2 * competing.len() <= all.len() {
            continue;
        }
        let shown = |r: usize| rows[r].entries[i].as_ref().map(|e| e.shown.clone());
        let found = shown(best);
        let places: Vec<usize> = competing.iter().map(|c| c.0).filter(|r| shown(*r) == found).collect();
        if places.len() == competing.len() {
            continue;
        }
        for r in places {
            if let Some(entry) = rows[r].entries[i].as_mut() {
                entry.best = true;
            }
        }
    }
}

/// Published scores are the peer's, so they stand in the columns of `compat`.
fn references(published: &PublishedSet, columns: &[Column]) -> Vec<Reference> {
    let value = |column: &Column, i: usize| {
        let values = published.scores.get(&column.name).filter(|_| column.protocol == Protocol::Compat)?;
        Some(format!("{:.2}", values.get(i)?))
    };
    let of = |(i, method): (usize, &String)| Reference {
        method: method.clone(),
        entries: columns.iter().map(|c| value(c, i)).collect(),
    };
    KNOWEDIT.methods.iter().enumerate().map(of).collect()
}
