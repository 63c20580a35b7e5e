//! The tables, as rows and columns; Markdown and HTML only dress them.

use std::collections::BTreeSet;

use super::metric::{self, MAIN};
use super::protocol::Protocol;
use super::published::{KNOWEDIT, PublishedSet};
use super::summary::{Protocols, Statistic, Summary, edits_in_words};

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
    pub(super) best: bool,
}

pub(super) struct Row<'a> {
    pub(super) kind: Kind,
    pub(super) cell: &'a Summary,
    /// One for each column.
    pub(super) entries: Vec<Option<Entry>>,
}

impl Row<'_> {
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
    pub(super) note: Option<&'static str>,
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
    let columns = columns(&cells, |name| MAIN.contains(&name));
    groups.iter().map(|g| block(g, columns.clone(), g.published)).collect()
}

/// Portability and locality by kind.
pub(super) fn kinds<'a>(groups: &[Group<'a>]) -> Vec<Block<'a>> {
    blocks(groups, is_kind)
}

fn is_kind(name: &str) -> bool {
    name.split_once('/').is_some_and(|(score, _)| ["portability", "locality"].contains(&score))
}

/// Scores that KnowEdit's table does not have, such as CounterFact's.
pub(super) fn others<'a>(groups: &[Group<'a>]) -> Vec<Block<'a>> {
    blocks(groups, |name| !is_kind(name) && !MAIN.contains(&name))
}

fn blocks<'a>(groups: &[Group<'a>], wanted: fn(&str) -> bool) -> Vec<Block<'a>> {
    let all = groups.iter().map(|g| block(g, columns(&g.cells, wanted), None));
    all.filter(|b| !b.columns.is_empty()).collect()
}

/// Where a score stands in CounterFact's own table; others follow by name.
const ORDER: [&str; 5] = ["score", "efficacy", "generalization", "specificity", "consistency"];

fn columns(cells: &[&Summary], wanted: impl Fn(&str) -> bool) -> Vec<Column> {
    let place = |name: &str| {
        let head = metric::parent(name).unwrap_or(name);
        let among = |names: &[&str]| names.iter().position(|n| *n == head).unwrap_or(names.len());
        (among(&MAIN), among(&ORDER))
    };
    let of = |protocol: Protocol| {
        let sides = cells.iter().flat_map(|c| [&c.before, &c.after, &c.immediate]);
        let names: BTreeSet<&String> =
            sides.flat_map(|side| protocol.of(side).keys()).filter(|name| wanted(name)).collect();
        let mut names: Vec<&String> = names.into_iter().collect();
        names.sort_by_key(|name| place(name));
        names.into_iter().map(move |name| Column { protocol, name: name.clone() })
    };
    Protocol::ALL.into_iter().flat_map(of).collect()
}

fn block<'a>(group: &Group<'a>, columns: Vec<Column>, published: Option<&'static PublishedSet>) -> Block<'a> {
    let row = |kind: Kind, cell: &'a Summary, scores: &Protocols| {
        let entry =
            |column: &Column| column.protocol.of(scores).get(&column.name).map(|s| entry(&column.name, s));
        Row { kind, cell, entries: columns.iter().map(entry).collect() }
    };
    let mut rows = vec![];
    // All cells of a data set say nearly the same of the unedited model: the one with most records
    // speaks for them.
    let mut speaker: Option<&Summary> = None;
    for cell in &group.cells {
        if !cell.before.is_empty() && speaker.is_none_or(|s| cell.scored > s.scored) {
            speaker = Some(cell);
        }
    }
    rows.extend(speaker.map(|cell| row(Kind::Unedited, cell, &cell.before)));
    for cell in &group.cells {
        if !cell.immediate.is_empty() {
            rows.push(row(Kind::Immediate, cell, &cell.immediate));
        }
        rows.push(row(Kind::After, cell, &cell.after));
    }
    rows.retain(|row| row.kind == Kind::After || row.entries.iter().any(Option::is_some));
    mark_best(&columns, &mut rows);
    let data = &group.cells[0].data;
    let skipped = match data.skipped {
        0 => String::new(),
        n => format!(", {n} records left out that cannot be used"),
    };
    Block {
        title: group.title.clone(),
        about: format!("{}, version {}{skipped}", data.name, short(&data.version)),
        note: published.and_then(|p| p.note.as_deref()),
        references: published.map(|p| references(p, &columns)).unwrap_or_default(),
        columns,
        rows,
    }
}

fn entry(name: &str, s: &Statistic) -> Entry {
    Entry {
        shown: metric::shown(name, s.mean),
        range: s.interval.map(|i| metric::range(name, i)),
        best: false,
    }
}

/// Marks the best of each column, among what stands after all edits; those that read the same are
/// all best.
fn mark_best(columns: &[Column], rows: &mut [Row<'_>]) {
    for (i, Column { protocol, name }) in columns.iter().enumerate() {
        let value = |row: &Row<'_>| {
            let statistic = protocol.of(&row.cell.after).get(name).filter(|_| row.kind == Kind::After)?;
            Some(if metric::higher_is_better(name)? { statistic.mean } else { -statistic.mean })
        };
        let competing: Vec<(usize, f64)> =
            rows.iter().enumerate().filter_map(|(r, row)| Some((r, value(row)?))).collect();
        let Some((best, _)) = competing.iter().max_by(|a, b| a.1.total_cmp(&b.1)) else { continue };
        let shown = rows[*best].entries[i].as_ref().map(|e| e.shown.clone());
        if competing.len() > 1 {
            for (r, _) in competing {
                if let Some(entry) = rows[r].entries[i].as_mut() {
                    entry.best = Some(&entry.shown) == shown.as_ref();
                }
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
