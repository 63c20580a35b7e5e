//! Reading a folder of results.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use mutandis_edit::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{CellInfo, CellResult, Cost, FORMAT, ModelResult, RecordResult, RunInfo};
use crate::run::Mode;

/// What a part's name ends with.
const RECORDS: &str = "jsonl";

/// Reads what a run has left so far: cells by data set, method and mode, each with the parts that
/// are done. Other files are left alone; so is a cell of which nothing is done.
///
/// # Errors
/// Where `dir` is no folder of results, is of another format, or a file in it is damaged.
pub fn read(dir: &Path) -> Result<(RunInfo, Vec<CellResult>)> {
    let run = run_info(dir)?;
    let mut cells = vec![];
    for folder in entries(&dir.join("cells"))? {
        if let Some(cell) = cell(&folder)? {
            cells.push(cell);
        }
    }
    if cells.is_empty() {
        return Err(Error::input_hint(
            format!("`{}` holds no results yet: no part of any cell is done", dir.display()),
            "let the run get further, then report",
        ));
    }
    // The id comes last, so that equal names come in the same order on every machine.
    cells.sort_by(|a, b| key(a).cmp(&key(b)));
    Ok((run, cells))
}

fn key(cell: &CellResult) -> (&str, &str, (u8, usize), u64, &str) {
    let CellInfo { data, method, mode, seed, .. } = &cell.info;
    (&data.name, method, order(*mode), *seed, &cell.id)
}

fn order(mode: Mode) -> (u8, usize) {
    match mode {
        Mode::Single => (0, 1),
        Mode::Batch(size) => (1, size),
        Mode::Sequential => (2, 1),
        Mode::Turns(size) => (3, size),
    }
}

fn run_info(dir: &Path) -> Result<RunInfo> {
    let expected = "give the folder that a benchmark was told to write to: it holds `run.json` and `cells`";
    let path = dir.join("run.json");
    let none = |why: String| {
        Error::input_hint(format!("`{}` is no folder of results: {why}", dir.display()), expected)
    };
    if !dir.is_dir() {
        return Err(none(if dir.exists() { "it is a file" } else { "it does not exist" }.into()));
    }
    let bytes = std::fs::read(&path).map_err(|e| none(format!("cannot read its `run.json`: {e}")))?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|e| damaged(&path, &e))?;
    // The number first: the rest of another format need not make sense to this one.
    match value.get("format").and_then(Value::as_u64) {
        Some(format) if format == u64::from(FORMAT) => {}
        Some(format) if format > u64::from(FORMAT) => {
            return Err(Error::input_hint(
                format!("`{}` is of format {format}, and this version reads format {FORMAT}", path.display()),
                "use the version that wrote it, or a newer one",
            ));
        }
        found => {
            let found = found.map_or("none".into(), |f| f.to_string());
            return Err(none(format!("its `run.json` should have `format` {FORMAT}, and has {found}")));
        }
    }
    serde_json::from_value(value).map_err(|e| damaged(&path, &e))
}

/// A cell, if any part of it is done.
fn cell(folder: &Path) -> Result<Option<CellResult>> {
    let parts = parts(folder)?;
    let Some(last) = parts.keys().last() else { return Ok(None) };
    let path = folder.join("cell.json");
    let info: CellInfo = json(&path)?;
    if *last >= info.parts {
        let name = parts[last].display();
        let what = format!("`{name}` is part {last}, and its cell has {} parts, from 0", info.parts);
        return Err(Error::input_hint(what, "folders of different runs were mixed: take the file out"));
    }
    let place: HashMap<usize, usize> = info.records.iter().enumerate().map(|(i, &r)| (r, i)).collect();
    let (mut records, mut models, mut costs) = (BTreeMap::new(), vec![], vec![]);
    for path in parts.values() {
        for (line, record) in lines(path)? {
            let wrong = |why: &str| {
                let what =
                    format!("`{}` is damaged at line {line}: record {} {why}", path.display(), record.record);
                Error::input_hint(what, AGAIN)
            };
            let at = *place.get(&record.record).ok_or_else(|| wrong("is not one of the cell's"))?;
            if records.contains_key(&at) {
                return Err(wrong("is there twice"));
            }
            records.insert(at, record);
        }
        models.extend(beside::<ModelResult>(path, "model.json")?);
        costs.extend(beside::<Cost>(path, "cost.json")?);
    }
    let id = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let records = records.into_values().collect();
    Ok(Some(CellResult { id, info, records, models, costs, done: parts.len() }))
}

/// The parts that are done, by number. Temporary files of a run that was killed have other names.
fn parts(folder: &Path) -> Result<BTreeMap<usize, PathBuf>> {
    if !folder.is_dir() {
        return Ok(BTreeMap::new());
    }
    let number = |path: &PathBuf| {
        let is_part = path.extension().is_some_and(|e| e == RECORDS);
        path.file_stem().and_then(|s| s.to_str()).filter(|_| is_part).and_then(|s| s.parse().ok())
    };
    Ok(entries(folder)?.into_iter().filter_map(|path| Some((number(&path)?, path))).collect())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read =
        || std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>();
    match read() {
        Ok(mut all) => {
            all.sort();
            Ok(all)
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(vec![]),
        Err(e) => Err(Error::io("read", folder)(e)),
    }
}

fn lines(path: &Path) -> Result<Vec<(usize, RecordResult)>> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let lines = bytes.split(|&b| b == b'\n').enumerate().filter(|(_, line)| !line.is_empty());
    let parsed = lines.map(|(i, line)| match serde_json::from_slice(line) {
        Ok(record) => Ok((i + 1, record)),
        Err(e) => Err(Error::input_hint(
            format!("`{}` is damaged at line {}: {}", path.display(), i + 1, without_line(&e)),
            AGAIN,
        )),
    });
    parsed.collect()
}

/// What is said of a part beside its records; nothing where it was not measured.
fn beside<T: DeserializeOwned>(part: &Path, extension: &str) -> Result<Option<T>> {
    let path = part.with_extension(extension);
    if path.exists() { json(&path).map(Some) } else { Ok(None) }
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|e| damaged(path, &e))
}

const AGAIN: &str = "delete the file and run the benchmark again: only this part is measured anew";

fn damaged(path: &Path, e: &serde_json::Error) -> Error {
    let why = without_line(e);
    let line = if e.line() > 0 { format!(" at line {}", e.line()) } else { String::new() };
    let hint = "delete the file and run the benchmark again, or copy it from where it is whole";
    Error::input_hint(format!("`{}` is damaged{line}: {why}", path.display()), hint)
}

/// What serde says, without its own count of lines.
fn without_line(e: &serde_json::Error) -> String {
    let text = e.to_string();
    let end = text.rfind(" at line ").unwrap_or(text.len());
    match e.column() {
        0 => text,
        column => format!("{} (column {column})", &text[..end]),
    }
}
