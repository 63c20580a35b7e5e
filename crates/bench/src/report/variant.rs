//! What tells cells of one method, mode and data set from one another, in a few words.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::summary::Summary;
use crate::results::CellResult;

/// So many letters of settings a name has at most: it stands in tables and options.
const LETTERS: usize = 48;

/// A value that is longer is cut.
const VALUE: usize = 20;

/// Gives every cell the words that tell it from others: what differs, and its id's hash where that
/// alone does.
pub(super) fn tell_apart(cells: &mut [Summary], results: &[&CellResult]) {
    let key = |cell: &Summary| {
        (cell.data.name.clone(), cell.data.version.clone(), cell.method.clone(), cell.mode.to_string())
    };
    let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (i, cell) in cells.iter().enumerate() {
        groups.entry(key(cell)).or_default().push(i);
    }
    for alike in groups.into_values().filter(|alike| alike.len() > 1) {
        let of: Vec<&CellResult> = alike.iter().map(|&i| results[i]).collect();
        for (i, words) in alike.into_iter().zip(variants(&of)) {
            cells[i].variant = words;
        }
    }
    let versions: BTreeSet<(String, String)> =
        cells.iter().map(|c| (c.data.name.clone(), c.data.version.clone())).collect();
    for cell in cells {
        // Two versions of a file are two data sets.
        let several = versions.iter().filter(|(name, _)| *name == cell.data.name).count() > 1;
        let version = if several {
            format!(", version {}", super::table::short(&cell.data.version))
        } else {
            String::new()
        };
        cell.set = format!("{}{version}", cell.data.name);
    }
}

/// The hash at the end of a cell's id; all of an id that has none.
pub(super) fn hash(id: &str) -> &str {
    id.rsplit('-').next().unwrap_or(id)
}

fn whole(id: &str) -> &str {
    id
}

fn variants(cells: &[&CellResult]) -> Vec<String> {
    let count = |count: usize| format!("{count} record{}", if count == 1 { "" } else { "s" });
    let counts: Vec<Option<String>> = cells.iter().map(|c| Some(count(c.info.records.len()))).collect();
    let seeds: Vec<Option<String>> = cells.iter().map(|c| Some(format!("seed {}", c.info.seed))).collect();
    let mut words: Vec<Vec<String>> = vec![vec![]; cells.len()];
    for found in [seeds, counts, settings(cells), protocols(cells)].into_iter().filter(|f| differ(f)) {
        words.iter_mut().zip(found).for_each(|(words, found)| words.extend(found));
    }
    let mut names: Vec<String> = words.into_iter().map(|words| words.join(", ")).collect();
    let ways: [fn(&str) -> &str; 2] = [hash, whole];
    for by in ways {
        let said = names.clone();
        for (name, cell) in names.iter_mut().zip(cells) {
            let is_told = !name.is_empty() && said.iter().filter(|other| **other == *name).count() == 1;
            if !is_told {
                let comma = if name.is_empty() { "" } else { ", " };
                *name = format!("{name}{comma}{}", by(&cell.id));
            }
        }
    }
    names
}

fn differ<T: PartialEq>(all: &[T]) -> bool {
    all.windows(2).any(|pair| pair[0] != pair[1])
}

/// Settings that differ, as `name=value`, and what else results hang on; as many as there is room for.
fn settings(cells: &[&CellResult]) -> Vec<Option<String>> {
    let flat: Vec<BTreeMap<String, String>> = cells
        .iter()
        .map(|cell| {
            let mut all = BTreeMap::new();
            flatten(&mut all, "", &cell.info.settings);
            all.extend(cell.info.sources.clone());
            all
        })
        .collect();
    let names: BTreeSet<&String> = flat.iter().flat_map(BTreeMap::keys).collect();
    let differing: Vec<&String> = names
        .into_iter()
        .filter(|name| differ(&flat.iter().map(|f| f.get(*name)).collect::<Vec<_>>()))
        .collect();
    let of = |all: &BTreeMap<String, String>| {
        let mut words = String::new();
        for name in &differing {
            let value = all.get(*name).map_or_else(|| "–".to_owned(), |value| cut(value));
            let next = format!("{}{name}={value}", if words.is_empty() { "" } else { ", " });
            // Two cells that agree in all that is shown get their hashes.
            if !words.is_empty() && words.chars().count() + next.chars().count() > LETTERS {
                break;
            }
            words.push_str(&next);
        }
        (!words.is_empty()).then_some(words)
    };
    flat.iter().map(of).collect()
}

/// Settings within settings have names of several parts.
fn flatten(out: &mut BTreeMap<String, String>, name: &str, value: &Value) {
    match value {
        Value::Object(all) if !all.is_empty() || name.is_empty() => {
            for (key, value) in all {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                flatten(out, &name, value);
            }
        }
        Value::String(text) => drop(out.insert(name.to_owned(), text.clone())),
        // Single precision, written as a user would.
        Value::Number(number)
            if number.as_f64().is_some_and(|x| f64::from(x as f32) == x) && number.is_f64() =>
        {
            drop(out.insert(name.to_owned(), (number.as_f64().unwrap_or_default() as f32).to_string()));
        }
        other => drop(out.insert(name.to_owned(), other.to_string())),
    }
}

fn cut(value: &str) -> String {
    if value.chars().count() <= VALUE {
        return value.to_owned();
    }
    value.chars().take(VALUE - 1).chain(['…']).collect()
}

/// Protocols that some cells have and others do not; of those that all have, short words that differ,
/// such as a version.
fn protocols(cells: &[&CellResult]) -> Vec<Option<String>> {
    let names: BTreeSet<&String> = cells.iter().flat_map(|cell| cell.info.protocols.keys()).collect();
    let of = |cell: &&CellResult| {
        let mut words = vec![];
        for name in &names {
            let said: Vec<Option<&String>> = cells.iter().map(|c| c.info.protocols.get(*name)).collect();
            if !differ(&said) {
                continue;
            }
            match cell.info.protocols.get(*name) {
                None => words.push(format!("no {name}")),
                Some(own) if said.iter().all(Option::is_some) => {
                    if said.iter().flatten().all(|text| text.chars().count() <= VALUE) {
                        words.push(format!("{name} {own}"));
                    }
                }
                Some(_) => words.push(format!("with {name}")),
            }
        }
        (!words.is_empty()).then(|| words.join(", "))
    };
    cells.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_are_told_by_name_and_cut() {
        let mut flat = BTreeMap::new();
        flatten(
            &mut flat,
            "",
            &json!({"layers": [2], "search": {"steps": 25, "rate": 0.001_f32}, "text": "abc"}),
        );
        let found: Vec<String> = flat.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(found, ["layers=[2]", "search.rate=0.001", "search.steps=25", "text=abc"]);
        assert_eq!(cut("[1,2,3,4,5,6,7,8,9,10,11]"), "[1,2,3,4,5,6,7,8,9,…");
        assert_eq!((hash("zsre-rome-single-0123456789"), hash("c1")), ("0123456789", "c1"));
    }
}
