//! What the unedited model says, asked once for all runs on a model and a data set.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use mutandis_edit::{Error, Progress, Result, atomic};
use mutandis_engine::{Model, Storage};

use crate::record::{Measures, PROTOCOL, Prepared, Said, unedited};

/// Where answers of the unedited model are kept: a file for each record, in a folder whose name is
/// a hash of all that they depend on.
#[derive(Debug, Clone)]
pub struct Baseline {
    folder: Option<PathBuf>,
    /// Whether it has been told that answers cannot be kept.
    told: Cell<bool>,
}

impl Baseline {
    /// Answers to a data set, told by the `version` of its file; kept in `cache`, where there is
    /// one.
    ///
    /// # Errors
    /// Where the model cannot be hashed.
    pub fn new(
        cache: Option<&Path>,
        model: &Model,
        version: &str,
        measures: &Measures,
        seed: u64,
    ) -> Result<Self> {
        let at = |folder| Ok(Self { folder, told: Cell::new(false) });
        let Some(cache) = cache else { return at(None) };
        let Measures { compat, strict, fluency, .. } = measures;
        let of = model.fingerprint()?;
        let weights = model.storage() == Storage::Bf16;
        // Another instruction set adds up in another order: its answers are compared with its own.
        let isa = model.isa();
        let all = format!("{PROTOCOL} {of} {isa:?} {weights} {version} {compat} {strict} {fluency} {seed}");
        let hash = blake3::hash(all.as_bytes()).to_hex();
        at(Some(cache.join("answers").join(&hash.as_str()[..24])))
    }

    fn path(&self, record: usize) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{record}.json")))
    }

    /// What the unedited model says to some records: what was kept, and the rest asked now, all at
    /// once, and kept. Where there is no room for that, `progress` hears of it, once.
    ///
    /// # Errors
    /// Where a text is longer than the model's context.
    pub fn said(
        &self,
        model: &Model,
        records: &[Prepared<'_>],
        measures: &Measures,
        seed: u64,
        progress: &dyn Progress,
    ) -> Result<Vec<Said>> {
        // A damaged file is asked anew: it is only kept to save time.
        let kept = |record: &Prepared<'_>| {
            let bytes = std::fs::read(self.path(record.number)?).ok()?;
            serde_json::from_slice::<Said>(&bytes).ok().filter(|said| record.fits(said, measures))
        };
        let mut all: Vec<Option<Said>> = records.iter().map(kept).collect();
        let missing: Vec<usize> = (0..records.len()).filter(|&i| all[i].is_none()).collect();
        let asked: Vec<&Prepared<'_>> = missing.iter().map(|&i| &records[i]).collect();
        let found = unedited(model, &asked, measures, seed).map_err(|all| {
            // Which record it was is worth a second look.
            let of = |record: &&Prepared<'_>| {
                Some((record.number, unedited(model, &[*record], measures, seed).err()?))
            };
            let Some((number, why)) = asked.iter().find_map(of) else { return all };
            let hint = why.hint().unwrap_or_else(|| "take the record out, or use another model".to_owned());
            Error::input_hint(format!("record {number} cannot be asked: {why}"), hint)
        })?;
        for (&i, said) in missing.iter().zip(found) {
            if let Err(error) = self.keep(records[i].number, &said)
                && !self.told.replace(true)
            {
                // It costs the next run some time, not this one its results.
                progress.note(&format!("what the unedited model says is not kept for the next run: {error}"));
            }
            all[i] = Some(said);
        }
        Ok(all.into_iter().flatten().collect())
    }

    fn keep(&self, record: usize, said: &Said) -> Result<()> {
        let Some(path) = self.path(record) else { return Ok(()) };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        let json =
            serde_json::to_vec(said).map_err(|e| Error::input(format!("answers cannot be written: {e}")))?;
        atomic::write(&path, |file| file.write_all(&json)).map_err(Error::io("write", &path))
    }
}
