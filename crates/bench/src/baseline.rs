//! What the unedited model says, asked once for all runs on a model and a data set.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use mutandis_edit::{Context, Error, Progress, Result, atomic};
use mutandis_engine::{Model, Storage};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::perplexity::TEXT;
use crate::record::{Measures, PROTOCOL, Prepared, Said, unedited};

/// What is known of an unedited model, in a folder whose name is a hash of all that it depends on.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    folder: Option<PathBuf>,
    /// Whether it has been told that nothing can be kept.
    told: Cell<bool>,
}

impl Kept {
    /// What is known of `model`, and depends on all that `also` names; under `place` in `cache`, where
    /// there is one.
    ///
    /// # Errors
    /// Where the model cannot be hashed.
    pub(crate) fn new(cache: Option<&Path>, place: &str, model: &Model, also: &str) -> Result<Self> {
        let at = |folder| Ok(Self { folder, told: Cell::new(false) });
        let Some(cache) = cache else { return at(None) };
        let of = model.fingerprint()?;
        // Weights say neither how they are run nor how text is cut.
        let run = model.architecture();
        let cut = model.tokenizer().and_then(|t| Ok((t.encode(TEXT)?.ids, t.eos_ids().to_vec()))).ok();
        let weights = model.storage() == Storage::Bf16;
        // Another instruction set adds up in another order: its answers are compared with its own.
        let isa = model.isa();
        let all = format!("{PROTOCOL} {of} {run:?} {cut:?} {isa:?} {weights} {also}");
        let hash = blake3::hash(all.as_bytes()).to_hex();
        at(Some(cache.join(place).join(&hash.as_str()[..24])))
    }

    /// What was kept by a name. A damaged file is none: it only saves time.
    pub(crate) fn get<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&std::fs::read(self.path(name, "json")?).ok()?).ok()
    }

    /// Numbers that were kept by a name, and are too many for JSON.
    fn numbers(&self, name: &str) -> Option<Vec<f32>> {
        let file = std::fs::read(self.path(name, "f32")?).ok()?;
        let (bytes, hash) = file.split_last_chunk::<32>()?;
        let (numbers, []) = bytes.as_chunks::<4>() else { return None };
        (blake3::hash(bytes) == *hash)
            .then(|| numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// Keeps it for the next run.
    pub(crate) fn keep<T: Serialize>(&self, name: &str, value: &T, progress: &dyn Progress) {
        self.write(name, "json", progress, || json(value));
    }

    /// The same, of [`Self::numbers`], with a hash behind them.
    fn keep_numbers(&self, name: &str, numbers: &[f32], progress: &dyn Progress) {
        self.write(name, "f32", progress, || {
            let mut bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
            let hash = blake3::hash(&bytes);
            bytes.extend_from_slice(hash.as_bytes());
            Ok(bytes)
        });
    }

    /// Where there is no room, `progress` hears of it, once: it costs the next run some time, and this
    /// one nothing.
    fn write(
        &self,
        name: &str,
        extension: &str,
        progress: &dyn Progress,
        bytes: impl FnOnce() -> Result<Vec<u8>>,
    ) {
        let Some(path) = self.path(name, extension) else { return };
        if let Err(error) = bytes().and_then(|bytes| write(&path, &bytes))
            && !self.told.replace(true)
        {
            progress.note(&format!("what the unedited model says is not kept for the next run: {error}"));
        }
    }

    /// A number, found once for all that `of` says: as it was kept, or else by `find`, and kept.
    ///
    /// # Errors
    /// What `find` fails with, and where the user interrupts.
    pub(crate) fn once(
        &self,
        name: &str,
        of: &impl Serialize,
        cx: &Context<'_>,
        find: impl FnOnce() -> Result<f64>,
    ) -> Result<f64> {
        cx.check()?;
        let name = format!("{name}-{}", &blake3::hash(&json(of)?).to_hex()[..24]);
        // In brackets, as a number that is cut short is another number.
        if let Some([known]) = self.get::<[f64; 1]>(&name) {
            return Ok(known);
        }
        let found = find()?;
        self.keep(&name, &[found], cx.progress);
        Ok(found)
    }

    fn path(&self, name: &str, extension: &str) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{name}.{extension}")))
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    atomic::write(path, |file| file.write_all(bytes)).map_err(Error::io("write", path))
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::input(format!("answers cannot be written: {e}")))
}

/// Answers of the unedited model to the records of a data set, one by one.
#[derive(Debug, Clone)]
pub struct Baseline(Kept);

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
        let Measures { compat, strict, fluency, .. } = measures;
        let also = format!("{version} {compat} {strict} {fluency} {seed}");
        Ok(Self(Kept::new(cache, "answers", model, &also)?))
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
        let width = model.architecture().width;
        let kept = |record: &Prepared<'_>| {
            let name = record.number.to_string();
            let heads = self.0.numbers(&name).unwrap_or_default();
            Some(Said { heads, ..self.0.get(&name)? }).filter(|said| record.fits(said, measures, width))
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
            let name = records[i].number.to_string();
            self.0.keep(&name, &said, progress);
            if !said.heads.is_empty() {
                self.0.keep_numbers(&name, &said.heads, progress);
            }
            all[i] = Some(said);
        }
        Ok(all.into_iter().flatten().collect())
    }
}
