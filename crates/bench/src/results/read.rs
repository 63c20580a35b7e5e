//! Reading a folder of results.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mutandis_edit::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{CellInfo, CellResult, Cost, FORMAT, ModelResult, RecordResult, RunInfo};
use crate::run::{Cell, Mode};

/// What a part's name ends with.
const RECORDS: &str = "jsonl";

/// Reads what a run has left so far: cells by data set, method and mode, each with the parts that
/// are done. Other files are left alone; so is a cell of which nothing is done.
///
/// # Errors
/// Where `dir` is no folder of results, is of another format, or a file in it is damaged, missing, or
/// of another run.
pub fn read(dir: &Path) -> Result<(RunInfo, Vec<CellResult>)> {
    let run = run_info(dir)?;
    let cells = cells(&entries(&dir.join("cells"))?, &run)?;
    if cells.is_empty() {
        return Err(Error::input_hint(
            format!("`{}` holds no results yet: no part of any cell is done", dir.display()),
            "let the run get further, then report",
        ));
    }
    Ok((run, cells))
}

/// As [`read`], of the cells of these ids alone; none where none of their parts is done.
///
/// # Errors
/// As [`read`].
pub fn read_cells(dir: &Path, ids: &[String]) -> Result<(RunInfo, Vec<CellResult>)> {
    let run = run_info(dir)?;
    let folders: Vec<PathBuf> = ids.iter().map(|id| dir.join("cells").join(id)).collect();
    let cells = cells(&folders, &run)?;
    Ok((run, cells))
}

fn cells(folders: &[PathBuf], run: &RunInfo) -> Result<Vec<CellResult>> {
    let cells = folders.iter().map(|folder| cell(folder, run)).collect::<Result<Vec<_>>>()?;
    let mut cells: Vec<CellResult> = cells.into_iter().flatten().collect();
    // The id comes last, so that equal names come in the same order on every machine.
    cells.sort_by(|a, b| key(a).cmp(&key(b)));
    Ok(cells)
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
    let value: Value = serde_json::from_slice(&bytes).map_err(|e| damaged(&path, &e, RUN))?;
    // The number first: the rest of another format need not make sense to this one.
    match value.get("format").and_then(Value::as_u64) {
        Some(format) if format == u64::from(FORMAT) => {}
        Some(format) if format > u64::from(FORMAT) => {
            return Err(Error::input_hint(
                format!("`{}` is of format {format}, and this version reads format {FORMAT}", path.display()),
                "use the version that wrote it, or a newer one",
            ));
        }
        Some(format) => {
            return Err(Error::input_hint(
                format!("`{}` is of format {format}, and this version reads format {FORMAT}", path.display()),
                "use the version that wrote it, or run the benchmark into another folder",
            ));
        }
        found => {
            let found = found.map_or("none".into(), |f| f.to_string());
            return Err(none(format!("its `run.json` should have `format` {FORMAT}, and has {found}")));
        }
    }
    serde_json::from_value(value).map_err(|e| damaged(&path, &e, RUN))
}

/// A cell, if any part of it is done. What lies there is held against what the cell says of itself:
/// a report of half a part, or of another model's, would look like any other.
fn cell(folder: &Path, run: &RunInfo) -> Result<Option<CellResult>> {
    let parts = parts(folder)?;
    let Some(last) = parts.keys().last() else { return Ok(None) };
    let path = folder.join("cell.json");
    let info: CellInfo =
        serde_json::from_slice(&bytes(&path, ANEW)?).map_err(|e| damaged(&path, &e, ANEW))?;
    let id = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let own = info.id(&run.model.fingerprint)?;
    if id != own {
        let what = format!(
            "`{}` was made for another model or changed by hand: by its `cell.json` it should be `{own}`",
            folder.display()
        );
        return Err(Error::input_hint(what, "take the folder out, or copy it from where it was made"));
    }
    let ranges = Cell::parts(info.mode, info.records.len());
    if ranges.len() != info.parts {
        let (path, found) = (path.display(), info.parts);
        let what = format!("`{path}` is damaged: {} parts are expected, and it has {found}", ranges.len());
        return Err(Error::input_hint(what, ANEW));
    }
    if *last >= info.parts {
        let name = parts[last].display();
        let what = format!("`{name}` is part {last}, and its cell has {} parts, from 0", info.parts);
        return Err(Error::input_hint(what, "folders of different runs were mixed: take the file out"));
    }
    let (mut records, mut models, mut costs) = (vec![], vec![], vec![]);
    for (number, path) in &parts {
        let (own, model, cost) = part(path, &info.records[ranges[*number].clone()])?;
        records.extend(own);
        models.push(model);
        costs.extend(cost);
    }
    Ok(Some(CellResult { id, info, records, models, costs, done: parts.len() }))
}

/// A part as it was read.
type Found = (Vec<RecordResult>, ModelResult, Option<Cost>);

/// Reads a part with what was measured beside its records, which have to be those of these numbers,
/// in this order, and no others. What it cost may be lost: nothing is measured again for that.
///
/// # Errors
/// Where they are not, or something is damaged or cannot be read.
pub(crate) fn part(path: &Path, records: &[usize]) -> Result<Found> {
    let all = part_records(path, records)?;
    Ok((all, beside(path, "model.json")?, beside(path, "cost.json").ok()))
}

fn part_records(path: &Path, records: &[usize]) -> Result<Vec<RecordResult>> {
    let shown = path.display();
    let bytes = bytes(path, AGAIN)?;
    let mut all: Vec<RecordResult> = Vec::with_capacity(records.len());
    let lines = bytes.split(|&b| b == b'\n').enumerate().filter(|(_, line)| !line.is_empty());
    for (line, text) in lines.map(|(i, text)| (i + 1, text)) {
        let damaged =
            |why: &str| Error::input_hint(format!("`{shown}` is damaged at line {line}: {why}"), AGAIN);
        let found: RecordResult = serde_json::from_slice(text).map_err(|e| damaged(&without_line(&e)))?;
        match records.get(all.len()) {
            Some(wanted) if *wanted == found.record => all.push(found),
            Some(wanted) => {
                return Err(damaged(&format!("it is record {}, where {wanted} is expected", found.record)));
            }
            None => {
                let why =
                    format!("it is record {}, and the part has {} records", found.record, records.len());
                return Err(damaged(&why));
            }
        }
    }
    if all.len() < records.len() {
        let what = format!("`{shown}` is damaged: it has {} of its {} records", all.len(), records.len());
        return Err(Error::input_hint(what, AGAIN));
    }
    Ok(all)
}

/// The parts that are done, by number. Temporary files of a run that was killed have other names.
fn parts(folder: &Path) -> Result<BTreeMap<usize, PathBuf>> {
    if !folder.is_dir() {
        return Ok(BTreeMap::new());
    }
    let number = |path: &PathBuf| {
        let stem = path.file_stem()?.to_str().filter(|_| path.extension().is_some_and(|e| e == RECORDS))?;
        // As it is written: a copy under another name is no part.
        stem.parse().ok().filter(|number: &usize| format!("{number:05}") == stem)
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
        Err(e) => {
            let what = format!("cannot read `{}`: {e}", folder.display());
            Err(Error::input_hint(what, "make the folder readable, or take it out"))
        }
    }
}

fn bytes(path: &Path, hint: &str) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| {
        let what = match e.kind() {
            std::io::ErrorKind::NotFound => format!("`{}` is missing", path.display()),
            _ => format!("cannot read `{}`: {e}", path.display()),
        };
        Error::input_hint(what, hint)
    })
}

/// What is said of a part beside its records.
fn beside<T: DeserializeOwned>(part: &Path, extension: &str) -> Result<T> {
    let path = part.with_extension(extension);
    serde_json::from_slice(&bytes(&path, AGAIN)?).map_err(|e| damaged(&path, &e, AGAIN))
}

/// What helps where a part is damaged.
const AGAIN: &str = "run the benchmark again with the same command: only this part is made anew";

/// What helps where it cannot be told which model was run.
const RUN: &str = "copy the file from where it is whole, or run the benchmark into another folder";

/// What helps where it cannot be told what a folder holds.
const ANEW: &str = "copy the file from where it is whole, or run the benchmark again with the same command";

fn damaged(path: &Path, e: &serde_json::Error, hint: &str) -> Error {
    let why = without_line(e);
    let line = if e.line() > 0 { format!(" at line {}", e.line()) } else { String::new() };
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
