//! Writing a folder of results, so that it can be read whenever its writer is ended.

use std::fs::{self, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mutandis_edit::{Error, Result, atomic};
use serde::Serialize;
use serde_json::Value;

use super::read::part;
use super::{CellInfo, FORMAT, RunInfo};
use crate::run::Part;
use crate::steps::Steps;

/// What helps where a folder is another's.
const ELSEWHERE: &str = "choose another folder with `--out`";

/// A folder that results go to.
#[derive(Debug, Clone)]
pub struct Folder {
    dir: PathBuf,
    run: RunInfo,
}

/// The folder of a cell.
#[derive(Debug, Clone)]
pub struct CellFolder(PathBuf);

impl Folder {
    /// Opens a folder. Where it is not there it is made with its first cell: a run that ends before
    /// leaves nothing.
    ///
    /// # Errors
    /// Where it holds results of another model, format or version, or something else.
    pub fn open(dir: &Path, run: &RunInfo) -> Result<Self> {
        let folder = Self { dir: dir.to_owned(), run: run.clone() };
        // What another run is just writing does not make the folder somebody else's; one that has begun
        // in the meantime has said whose it is.
        let is_used = || fs::read_dir(dir).is_ok_and(|all| all.flatten().any(|entry| !is_temporary(&entry)));
        if !folder.is_ours()? && is_used() && !folder.is_ours()? {
            let what = format!("`{}` is not empty, and holds no results of a benchmark", dir.display());
            return Err(Error::input_hint(what, ELSEWHERE));
        }
        // Once for a run; cells are swept as they are opened.
        [dir.to_owned(), dir.join("cells")].iter().for_each(|folder| sweep(folder));
        Ok(folder)
    }

    /// Whether the folder says that it is this run's; it need not say anything yet.
    ///
    /// # Errors
    /// Where it says that it is of another model, format or version, or what it says cannot be read.
    fn is_ours(&self) -> Result<bool> {
        let (shown, run) = (self.dir.display(), &self.run);
        let path = self.dir.join("run.json");
        let refused = |what: String| Err(Error::input_hint(what, ELSEWHERE));
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return refused(format!("cannot read `{}`: {error}", path.display())),
        };
        let found: Value = match serde_json::from_slice(&bytes) {
            Ok(found) => found,
            Err(error) => return refused(format!("`{}` is damaged: {error}", path.display())),
        };
        let missing = |what: &str| refused(format!("`{}` is damaged: it has no {what}", path.display()));
        let Some(format) = found.get("format").and_then(Value::as_u64) else { return missing("`format`") };
        if format != u64::from(FORMAT) {
            return refused(format!(
                "`{shown}` holds results of format {format}, this version writes format {FORMAT}"
            ));
        }
        let Some(fingerprint) = found["model"]["fingerprint"].as_str() else {
            return missing("fingerprint of a model");
        };
        if fingerprint != run.model.fingerprint {
            let short = |s: &str| s.chars().take(12).collect::<String>();
            return refused(format!(
                "`{shown}` holds results of another model: `{}` ({}), and this one is `{}` ({})",
                found["model"]["name"].as_str().unwrap_or_default(),
                short(fingerprint),
                run.model.name,
                short(&run.model.fingerprint)
            ));
        }
        let tool = found["tool"].as_str().unwrap_or("an unknown version");
        if tool != run.tool {
            let what = format!("`{shown}` holds results of {tool}, and this is {}", run.tool);
            let hint = format!("go on with the version that began them, or {ELSEWHERE}");
            return Err(Error::input_hint(what, hint));
        }
        Ok(true)
    }

    /// The folder of a cell, made where it is not there.
    ///
    /// # Errors
    /// Where it cannot be written to, or is another cell's.
    pub fn cell(&self, id: &str, info: &CellInfo) -> Result<CellFolder> {
        // What says whose the folder is comes before anything that it holds. Another run may have said it
        // since the folder was opened: of another model, it keeps the folder for itself.
        if !self.is_ours()? {
            let path = self.dir.join("run.json");
            create(&self.dir)?;
            let bytes = json(&path, &self.run)?;
            match atomic::write_new(&path, |file| file.write_all(&bytes)) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => drop(self.is_ours()?),
                written => written.map_err(|error| Error::unwritable(&path, &error))?,
            }
        }
        let folder = self.dir.join("cells").join(id);
        create(&folder)?;
        sweep(&folder);
        let path = folder.join("cell.json");
        // Its name is a hash of what it says: what is there and cannot be read is written again.
        let kept = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<CellInfo>(&bytes).ok());
        if kept.as_ref() != Some(info) {
            write(&path, info)?;
        }
        Ok(CellFolder(folder))
    }
}

impl CellFolder {
    fn path(&self, part: usize, ending: &str) -> PathBuf {
        self.0.join(format!("{part:05}.{ending}"))
    }

    /// Claims a part; nothing where another run is making it.
    ///
    /// # Errors
    /// Where the folder cannot be written to.
    pub fn claim(&self, part: usize) -> Result<Option<Claim>> {
        let path = self.path(part, LOCK);
        loop {
            let file = fs::File::create(&path).map_err(|error| Error::unwritable(&path, &error))?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => return Ok(None),
                // Whoever held it has taken the file away: others find another one.
                Ok(()) if !is_at(&file, &path) => {}
                // Or a file system without locks: that nobody else writes there is the user's to see to.
                Ok(()) | Err(TryLockError::Error(_)) => return Ok(Some(Claim { path, _locked: file })),
            }
        }
    }

    /// Whether a part is done: all its records are there, whole, and what was measured beside them.
    /// Steps that led to it are taken away then.
    ///
    /// # Errors
    /// Where they cannot be, or a part cannot be read.
    pub fn is_done(&self, number: usize, records: &[usize]) -> Result<bool> {
        let path = self.path(number, "jsonl");
        for path in [path.clone(), self.path(number, "model.json")] {
            let is_folder = ErrorKind::IsADirectory;
            let read = fs::File::open(&path).and_then(|file| file.metadata());
            let read = read.and_then(|m| if m.is_dir() { Err(is_folder.into()) } else { Ok(()) });
            if let Err(error) = read
                && error.kind() != ErrorKind::NotFound
            {
                // It may be sound: what cannot be read is not written over.
                let hint = "make it readable, or take it out: the part is made again then";
                return Err(Error::input_hint(format!("cannot read `{}`: {error}", path.display()), hint));
            }
        }
        let done = part(&path, records).is_ok();
        if done {
            self.steps(number).clear()?;
        }
        Ok(done)
    }

    /// Whether there is anything of a part's records.
    pub fn is_there(&self, part: usize) -> bool {
        self.path(part, "jsonl").exists()
    }

    /// Where the steps of a part are kept while it is not done.
    pub fn steps(&self, part: usize) -> Steps {
        Steps::new(&self.0.join(format!("{part:05}.steps")))
    }

    /// Keeps a part that has been run.
    ///
    /// # Errors
    /// Where it cannot be written; what is there already is not touched.
    pub fn keep(&self, part: usize, run: &Part) -> Result<()> {
        write(&self.path(part, "cost.json"), &run.cost)?;
        write(&self.path(part, "model.json"), &run.model)?;
        // Last: where it is, the part is done.
        let path = self.path(part, "jsonl");
        let lines = run.records.iter().map(|record| json(&path, record)).collect::<Result<Vec<_>>>()?;
        let fill = |file: &mut dyn Write| {
            lines.iter().try_for_each(|line| {
                file.write_all(line)?;
                file.write_all(b"\n")
            })
        };
        atomic::write(&path, fill).map_err(|error| Error::unwritable(&path, &error))?;
        self.steps(part).clear()
    }
}

/// What the name of the file ends with by which a part is claimed.
const LOCK: &str = "lock";

/// The right to make a part, held against other runs into the same folder until it is dropped. The
/// system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    _locked: fs::File,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // One that stays does no harm: it is nobody's, and the next run takes it away.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether an open file is the one that others find at a path.
fn is_at(file: &fs::File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let id = |found: std::io::Result<fs::Metadata>| found.ok().map(|m| (m.dev(), m.ino()));
        id(file.metadata()) == id(fs::metadata(path))
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}

fn is_temporary(entry: &fs::DirEntry) -> bool {
    atomic::is_temporary(&entry.file_name().to_string_lossy())
}

/// Whether a file has the name of a part's claim; all others are the user's.
fn is_claim(path: &Path) -> bool {
    let number = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    path.extension().is_some_and(|e| e == LOCK)
        && number.len() >= 5
        && number.bytes().all(|digit| digit.is_ascii_digit())
}

/// Takes away what runs that were killed long ago were just writing, and their claims.
fn sweep(folder: &Path) {
    const LONG: Duration = Duration::from_secs(3600);
    let age = |entry: &fs::DirEntry| entry.metadata().ok()?.modified().ok()?.elapsed().ok();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if is_temporary(&entry) && age(&entry).is_some_and(|age| age > LONG) {
            // What cannot be removed does no harm.
            let _ = fs::remove_file(entry.path());
        }
        let path = entry.path();
        if is_claim(&path)
            && let Ok(file) = fs::File::open(&path)
            && file.try_lock().is_ok()
            && is_at(&file, &path)
        {
            // Nobody's: it is still locked while it goes.
            let _ = fs::remove_file(path);
        }
    }
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|error| Error::unwritable(folder, &error))
}

fn json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value)
        .map_err(|e| Error::input(format!("`{}` cannot be written: {e}", path.display())))
}

fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let bytes = json(path, value)?;
    atomic::write(path, |file| file.write_all(&bytes)).map_err(|error| Error::unwritable(path, &error))
}
