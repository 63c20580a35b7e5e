//! The ledger: an ordered stack of patches over one base, in a folder.
//!
//! `journal.jsonl` is the single source of truth: one line an operation, each with a hash of itself
//! and the line before; it comes with the first operation. `patches/` holds the files by their id,
//! those that were taken out as well. Files are written before the line that names them, and a line
//! is written at once and forced to the disk: a process that is killed leaves the state before or
//! after. A writer takes `lock`; readers need none.

mod carry;
mod journal;
mod lock;
mod plan;
mod record;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use mutandis_engine::Model;

use self::journal::Journal;
use self::lock::Lock;
use self::plan::Prefixes;
use crate::atomic;
use crate::error::{Error, Result};
use crate::patch::{Base, Patch};

pub use self::carry::Done;
pub use self::journal::{Action, Instead, Line};
pub use self::plan::Plan;
pub use self::record::Record;

/// Digits of an id that messages and lists show.
pub const SHORT: usize = 12;

/// What names of patch files end with.
const ENDING: &str = ".patch.safetensors";

/// The folder that holds their files.
const PATCHES: &str = "patches";

/// The folder of what can be made again.
pub(crate) const INDEX: &str = "index";

/// What helps where the file of a patch is not what it should be.
const RESTORE: &str = "restore it from a copy, or take the patch out with `mutandis patch revert`";

/// A ledger as it was when it was read.
#[derive(Debug)]
pub struct Ledger {
    folder: PathBuf,
    journal: Journal,
    stack: Vec<Record>,
}

/// A ledger that this process alone writes to, until it is dropped.
#[derive(Debug)]
pub struct Writer {
    ledger: Ledger,
    lock: Lock,
    /// Whether its folder was made by this process.
    is_made: bool,
    /// Bytes of an operation that was cut off before its end, and dropped.
    pub dropped: u64,
}

impl Ledger {
    /// Reads a ledger. Nobody is waited for: what is being written does not count yet.
    ///
    /// # Errors
    /// Where the folder is no ledger, is of a newer version, or its journal is damaged.
    pub fn open(folder: &Path) -> Result<Self> {
        if !Self::is_at(folder) {
            return Err(Error::input_hint(
                format!("`{}` is no ledger: it has no `journal.jsonl`", folder.display()),
                "`mutandis patch add LEDGER FILE` begins one",
            ));
        }
        let journal = Journal::read(folder)?;
        let stack = replay(&journal, folder)?;
        Ok(Self { folder: folder.to_owned(), journal, stack })
    }

    /// Whether a folder is a ledger.
    pub fn is_at(folder: &Path) -> bool {
        Journal::place(folder).is_file()
    }

    /// Finds out before the work that a folder is no ledger, and cannot become one.
    ///
    /// # Errors
    /// Where it is a file, or holds something else.
    pub fn check_place(folder: &Path) -> Result<()> {
        if Self::is_at(folder) { Ok(()) } else { beginnable(folder) }
    }

    /// The ledger that a file is a part of, or would be: its journal, its lock, a patch, an index.
    pub fn around(path: &Path) -> Option<PathBuf> {
        let path = std::path::absolute(path).ok()?;
        let is_own = |name: &std::ffi::OsStr| {
            *name == *PATCHES || *name == *INDEX || *name == *lock::FILE || *name == *journal::FILE
        };
        let within = path
            .ancestors()
            .find(|part| part.file_name().is_some_and(is_own) && part.parent().is_some_and(Self::is_at));
        within.and_then(Path::parent).map(Path::to_owned)
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The base that all its patches belong to.
    pub fn base(&self) -> &Base {
        &self.journal.base
    }

    /// The patches in force, the lowest first.
    pub fn stack(&self) -> &[Record] {
        &self.stack
    }

    /// All operations, the oldest first.
    pub fn history(&self) -> &[Line] {
        &self.journal.lines
    }

    /// Hash of the last operation, and with it of all before.
    pub fn head(&self) -> &str {
        self.journal.head()
    }

    /// What an edit on top of the whole stack is computed under, as [`Patch::under`] has it.
    pub fn chain(&self) -> Option<String> {
        Prefixes::of(&self.stack).last().map(str::to_owned)
    }

    /// How many of the lowest patches have that name together, as [`Patch::under`] has it.
    pub fn depth(&self, under: &str) -> Option<usize> {
        Prefixes::of(&self.stack).depth(under)
    }

    /// The patch of a number, counted from 1, or of the beginning of an id.
    ///
    /// # Errors
    /// Where there is none, or several.
    pub fn find(&self, which: &str) -> Result<&Record> {
        let list = "`mutandis patch list` shows numbers and ids";
        let number = which.parse::<usize>().ok().and_then(|n| n.checked_sub(1));
        if let Some(record) = number.and_then(|n| self.stack.get(n)) {
            return Ok(record);
        }
        let begins = |r: &&Record| !which.is_empty() && r.id.starts_with(which);
        let mut found = self.stack.iter().filter(begins);
        match (found.next(), found.next()) {
            (Some(record), None) => Ok(record),
            (Some(a), Some(b)) => Err(Error::input_hint(
                format!("`{which}` is the beginning of several ids: {} and {}", short(&a.id), short(&b.id)),
                "give more of its digits, or its number",
            )),
            (None, _) => Err(Error::input_hint(
                format!(
                    "no patch of the stack has the number or the id `{which}`: it has {}",
                    self.stack.len()
                ),
                list,
            )),
        }
    }

    /// The patch that has a fact with this text in its prompt or target, whatever the case.
    ///
    /// # Errors
    /// Where there is none, or several, or the text is blank; where a patch of many facts cannot be
    /// read.
    pub fn find_fact(&self, text: &str) -> Result<&Record> {
        let wanted = text.trim().to_lowercase();
        if wanted.is_empty() {
            return Err(Error::input_hint(
                "the text of the fact is blank, and would be in every fact",
                "give a part of its prompt or target: `mutandis patch list` shows them",
            ));
        }
        let has = |text: &str| text.to_lowercase().contains(&wanted);
        let mut found = vec![];
        for record in &self.stack {
            // The journal tells of the first fact alone.
            let is_about = has(&record.prompt)
                || has(&record.target)
                || (record.facts > 1
                    && self.load(record)?.facts.iter().any(|fact| has(&fact.prompt) || has(&fact.target)));
            found.extend(is_about.then_some(record));
        }
        match found[..] {
            [record] => Ok(record),
            [] => Err(Error::input_hint(
                format!("no patch of the stack has a fact with `{text}`"),
                "`mutandis patch list` shows them",
            )),
            [a, b, ..] => Err(Error::input_hint(
                format!(
                    "`{text}` is in {} patches, {} and {} among them",
                    found.len(),
                    short(&a.id),
                    short(&b.id)
                ),
                "give more of the text, or a number or an id: `mutandis patch list` shows them",
            )),
        }
    }

    /// Reads a patch and checks that it is the one that the record tells of.
    ///
    /// # Errors
    /// Where its file is missing, damaged, or was changed.
    pub fn load(&self, record: &Record) -> Result<Patch> {
        load(&self.place(&record.id), &record.id)
    }

    /// Where the file of a patch is.
    pub fn place(&self, id: &str) -> PathBuf {
        place(&self.folder, id)
    }

    /// Checks that a model is the one that the ledger is about.
    ///
    /// # Errors
    /// Where it is not, with what to do.
    pub fn check_model(&self, model: &Model) -> Result<()> {
        let found = model.fingerprint()?;
        if found == self.base().fingerprint {
            return Ok(());
        }
        Err(Error::input_hint(
            format!(
                "the ledger `{}` is about another base: it expects {} ({}, {} layers), the model is {}",
                self.folder.display(),
                short(&self.base().fingerprint),
                self.base().family,
                self.base().layers,
                short(found)
            ),
            "give the model that it is about with `--model`; nothing was changed",
        ))
    }

    /// Writes the file of a patch, unless it is there and sound; notes one that was not there.
    fn write(&self, patch: &Patch, new: &mut Vec<PathBuf>) -> Result<()> {
        let id = patch.id()?;
        let path = self.place(&id);
        let is_there = path.exists();
        if is_there && load(&path, &id).is_ok() {
            return Ok(());
        }
        let folder = atomic::folder_of(&path);
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let bytes = patch.to_bytes()?;
        atomic::write(&path, |file| file.write_all(&bytes)).map_err(Error::io("write", &path))?;
        new.extend((!is_there).then_some(path));
        Ok(())
    }

    /// Checks that something belongs to the same base.
    fn check_base(&self, other: &Base, what: &str) -> Result<()> {
        if other.fingerprint == self.base().fingerprint {
            return Ok(());
        }
        Err(Error::input_hint(
            format!(
                "{what} is about another base: the ledger `{}` expects {}, it is of {}",
                self.folder.display(),
                short(&self.base().fingerprint),
                short(&other.fingerprint)
            ),
            "a ledger holds patches of one base: begin another one for it",
        ))
    }
}

impl Writer {
    /// Opens a ledger for writing. Where the folder is absent or empty and a `base` is given, it is one
    /// that begins with its first operation; without one, nothing is left of it. As long as another
    /// process writes to it, `wait` is called; an error of it ends the waiting.
    ///
    /// # Errors
    /// As [`Ledger::open`]; where the folder holds something else, or cannot be written to.
    pub fn open(folder: &Path, base: Option<&Base>, wait: &mut dyn FnMut() -> Result<()>) -> Result<Self> {
        let begins = base.filter(|_| !Ledger::is_at(folder));
        match begins {
            Some(_) => beginnable(folder)?,
            // Tells that there is none, where there is none.
            None if !Ledger::is_at(folder) => drop(Ledger::open(folder)?),
            None => {}
        }
        let is_made = begins.is_some() && !folder.exists();
        let lock = Lock::take(folder, begins.is_some(), wait)?;
        let ledger = match begins {
            // Another process may have begun it while this one waited.
            Some(base) if !Ledger::is_at(folder) => {
                Ledger { folder: folder.to_owned(), journal: Journal::new(folder, base)?, stack: vec![] }
            }
            _ => Ledger::open(folder)?,
        };
        let dropped = ledger.journal.torn;
        let mut writer = Self { ledger, lock, is_made, dropped };
        writer.ledger.journal.drop_torn()?;
        if dropped > 0 || writer.lock.is_marked() {
            writer.sweep();
        }
        Ok(writer)
    }

    /// The ledger as it is now.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Puts patches on top of the stack, in order. Where a patch was computed on top of others, these
    /// must be what the stack begins with; `independent` takes it as it is all the same.
    ///
    /// # Errors
    /// Where a patch belongs to another base, is in the stack already, or was computed on top of
    /// something else; where a file cannot be written. Nothing was changed then.
    pub fn add(&mut self, patches: &[Patch], independent: bool) -> Result<Vec<Record>> {
        let here: HashSet<&str> = self.ledger.stack.iter().map(|r| r.id.as_str()).collect();
        let mut new: HashSet<String> = HashSet::new();
        let stands = patches.iter().any(|patch| patch.under.is_some());
        let mut prefixes = if stands { Prefixes::of(&self.ledger.stack) } else { Prefixes::default() };
        let mut added = Vec::with_capacity(patches.len());
        for patch in patches {
            let what = match patch.facts.first() {
                Some(fact) => format!("the patch of `{}`", fact.prompt),
                None => format!("the patch by `{}`", patch.method),
            };
            self.ledger.check_base(&patch.base, &what)?;
            let mut record = Record::of(patch, patch.to_bytes()?.len() as u64)?;
            if here.contains(record.id.as_str()) || !new.insert(record.id.clone()) {
                return Err(Error::input_hint(
                    format!("{what} ({}) is in the stack already", short(&record.id)),
                    "an edit counts once; leave it out",
                ));
            }
            if let Some(under) = &patch.under
                && prefixes.depth(under).is_none()
            {
                if !independent {
                    return Err(Error::input_hint(
                        format!(
                            "{what} ({}) was computed on top of other patches than the stack begins with",
                            short(&record.id)
                        ),
                        "make the edit on this ledger with `mutandis edit --ledger`, or take it as it is with \
                         `--independent`",
                    ));
                }
                record.independent = true;
            }
            if stands {
                prefixes.push(&record.id);
            }
            added.push(record);
        }
        if added.is_empty() {
            return Ok(added);
        }
        let (out, instead, head) = (vec![], vec![], None);
        let line = Line { at: now(), action: Action::Add, out, instead, added: added.clone(), head };
        self.commit(line, |ledger, new| patches.iter().try_for_each(|patch| ledger.write(patch, new)))?;
        Ok(added)
    }

    /// Writes files, then the line that names them. On a failure all is as it was.
    fn commit(
        &mut self,
        line: Line,
        files: impl FnOnce(&Ledger, &mut Vec<PathBuf>) -> Result<()>,
    ) -> Result<()> {
        self.lock.mark();
        let mut new = vec![];
        if let Err(error) = files(&self.ledger, &mut new).and_then(|()| self.ledger.journal.append(line)) {
            for path in new {
                let _ = std::fs::remove_file(path);
            }
            self.lock.clear();
            return Err(error);
        }
        self.lock.clear();
        match self.ledger.journal.lines.last() {
            // Most operations need no look at all that was before.
            Some(line) if line.instead.is_empty() => {
                let out: HashSet<&String> = line.out.iter().collect();
                self.ledger.stack.retain(|record| !out.contains(&record.id));
                self.ledger.stack.extend(line.added.iter().cloned());
            }
            _ => self.ledger.stack = replay(&self.ledger.journal, &self.ledger.folder)?,
        }
        Ok(())
    }

    /// Removes what writing leaves that did not come to its end: temporary files, and of patches that
    /// the journal does not name those whose files are not whole. Whole ones stay, as the journal may
    /// have been cut off. What cannot be removed does no harm.
    fn sweep(&mut self) {
        let named = self
            .ledger
            .journal
            .lines
            .iter()
            .flat_map(|line| line.added.iter().chain(line.instead.iter().map(|instead| &instead.now)));
        let named: HashSet<&str> = named.map(|record| record.id.as_str()).collect();
        let is_torn = |name: &str, path: &Path| match name.strip_suffix(ENDING) {
            _ if atomic::is_temporary(name) => true,
            Some(id) if !named.contains(id) => matches!(Patch::load(path), Err(Error::Corrupt { .. })),
            _ => false,
        };
        let folder = &self.ledger.folder;
        let parts = entries(&folder.join(PATCHES)).map(|part| part.path());
        for entry in parts.chain([folder.clone(), folder.join(INDEX)]).flat_map(|part| entries(&part)) {
            if entry.file_name().to_str().is_some_and(|name| is_torn(name, &entry.path())) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        self.lock.clear();
    }
}

impl Drop for Writer {
    /// Leaves nothing of a ledger that did not begin.
    fn drop(&mut self) {
        if self.ledger.journal.is_written() {
            return;
        }
        let folder = &self.ledger.folder;
        let patches = folder.join(PATCHES);
        // Only empty folders can be removed.
        for part in entries(&patches) {
            let _ = std::fs::remove_dir(part.path());
        }
        let _ = std::fs::remove_dir(&patches);
        if patches.exists() {
            // Of a process that was killed: whoever begins the ledger is told by the mark.
            self.lock.mark();
            return;
        }
        self.lock.remove(folder);
        if self.is_made {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// What is in a folder; nothing where it cannot be read.
fn entries(folder: &Path) -> impl Iterator<Item = std::fs::DirEntry> + use<> {
    std::fs::read_dir(folder).into_iter().flatten().flatten()
}

/// The first digits of an id.
pub fn short(id: &str) -> &str {
    id.get(..SHORT).unwrap_or(id)
}

/// Where a ledger keeps the patch of an id.
fn place(folder: &Path, id: &str) -> PathBuf {
    let part = id.get(..2).unwrap_or("xx");
    folder.join(PATCHES).join(part).join(format!("{id}{ENDING}"))
}

/// Reads a patch that should have this id.
fn load(path: &Path, id: &str) -> Result<Patch> {
    if !path.exists() {
        return Err(Error::input_hint(
            format!("the file of the patch {} is gone: `{}`", short(id), path.display()),
            RESTORE,
        ));
    }
    let patch = Patch::load(path).map_err(|error| match error {
        Error::Corrupt { .. } => Error::input_hint(error.to_string(), RESTORE),
        other => other,
    })?;
    let found = patch.id()?;
    if found == id {
        return Ok(patch);
    }
    Err(Error::input_hint(
        format!("`{}` holds another patch ({}): it was changed", path.display(), short(&found)),
        RESTORE,
    ))
}

/// The stack that a journal comes to.
fn replay(journal: &Journal, folder: &Path) -> Result<Vec<Record>> {
    let mut slots: Vec<Option<&Record>> = vec![];
    let mut at: HashMap<&str, usize> = HashMap::new();
    for (i, line) in journal.lines.iter().enumerate() {
        let contradicts = |id: &str, what: &str| {
            Error::input_hint(
                format!(
                    "line {} of the journal `{}` contradicts those before: the patch {} {what}",
                    i + 2,
                    Journal::place(folder).display(),
                    short(id)
                ),
                "restore it from a copy; the patches are all still in `patches/`",
            )
        };
        let absent = |id: &str| contradicts(id, "is not in the stack");
        for id in &line.out {
            let slot = at.remove(id.as_str()).and_then(|slot| slots.get_mut(slot));
            *slot.ok_or_else(|| absent(id))? = None;
        }
        // All leave before any comes.
        let free = line.instead.iter().map(|i| at.remove(i.of.as_str()).ok_or_else(|| absent(&i.of)));
        let free = free.collect::<Result<Vec<usize>>>()?;
        let instead = line.instead.iter().map(|i| &i.now).zip(free);
        let added = line.added.iter().zip(slots.len()..);
        for (record, slot) in instead.chain(added) {
            if at.insert(&record.id, slot).is_some() {
                return Err(contradicts(&record.id, "is there already"));
            }
            match slots.get_mut(slot) {
                Some(place) => *place = Some(record),
                None => slots.push(Some(record)),
            }
        }
    }
    Ok(slots.into_iter().flatten().cloned().collect())
}

/// Refuses to begin a ledger in a folder that holds something else.
fn beginnable(folder: &Path) -> Result<()> {
    let hint = "give a ledger, or a folder that is empty or does not exist yet";
    if !folder.exists() {
        let above = folder.ancestors().skip(1).find(|path| path.exists()).filter(|p| p.is_dir());
        let above = above.unwrap_or(Path::new("."));
        let tried = tempfile::Builder::new().prefix(atomic::PREFIX).tempfile_in(above);
        return tried.map(drop).map_err(|error| {
            let what = format!("cannot make the folder `{}`: {}", folder.display(), error.kind());
            Error::input_hint(what, "choose a place that can be written to")
        });
    }
    if !folder.is_dir() {
        let what = format!("`{}` is a file, expected the folder of a ledger", folder.display());
        return Err(Error::input_hint(what, hint));
    }
    let read = std::fs::read_dir(folder).map_err(Error::io("read", folder))?;
    let names: Vec<_> = read.flatten().collect();
    // What a process leaves that is killed while it begins one, or has there now: it makes its mark first.
    let is_marked = Lock::is_marked_at(folder);
    let ours =
        |name: &str| name == lock::FILE || atomic::is_temporary(name) || (is_marked && name == PATCHES);
    let other = names.iter().find(|entry| !entry.file_name().to_str().is_some_and(ours));
    // Another process may have begun it just now.
    other.filter(|_| !Ledger::is_at(folder)).map_or(Ok(()), |other| {
        Err(Error::input_hint(
            format!(
                "`{}` is no ledger, and is not empty: it holds `{}`",
                folder.display(),
                other.file_name().to_string_lossy()
            ),
            hint,
        ))
    })
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
