//! Steps of a long sequence of edits, kept so that it goes on where it was ended.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mutandis_edit::{Error, Patch, Result, atomic};
use serde::{Deserialize, Serialize};

use crate::judge::Verdicts;
use crate::results::{Both, Retention};
use crate::run::Part;

/// A part that waits for its judge.
const SCORED: &str = "scored.json";

/// How often, and after which pause, steps are taken away again that do not go.
const TRIES: usize = 5;
const MOMENT: Duration = Duration::from_millis(20);

/// What the judge has said of it.
const VERDICTS: &str = "verdicts.jsonl";

/// A folder of steps.
#[derive(Debug, Clone)]
pub struct Steps(PathBuf);

/// A step: an edit, made and looked at.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Why the edit failed.
    pub error: Option<String>,
    /// Each of its records right after it; nothing where one was left out or could not be scored.
    pub immediate: Vec<Option<Immediate>>,
    /// How earlier edits hold.
    pub retention: Option<Retention>,
    /// Seconds of editing.
    pub edit_seconds: f64,
    /// Seconds of looking at it.
    pub score_seconds: f64,
}

/// A record right after its own edit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Immediate {
    /// Its scores.
    pub scores: Both,
    /// What was said freely, by probe.
    pub said: Vec<String>,
}

impl Steps {
    /// Steps in a folder, which need not exist.
    pub fn new(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    fn path(&self, step: usize, ending: &str) -> PathBuf {
        self.0.join(format!("{step:05}.{ending}"))
    }

    /// A step that was kept, with its patch unless the edit failed. A damaged one is none: it is
    /// made again.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn read(&self, step: usize) -> Result<Option<(Step, Option<Patch>)>> {
        let path = self.path(step, "json");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        let Ok(kept) = serde_json::from_slice::<Step>(&bytes) else { return Ok(None) };
        if kept.error.is_some() {
            return Ok(Some((kept, None)));
        }
        Ok(Patch::load(&self.path(step, "patch.safetensors")).ok().map(|patch| (kept, Some(patch))))
    }

    /// Keeps a step.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&self, step: usize, kept: &Step, patch: Option<&Patch>) -> Result<()> {
        std::fs::create_dir_all(&self.0).map_err(Error::io("create", &self.0))?;
        if let Some(patch) = patch {
            patch.save(&self.path(step, "patch.safetensors"))?;
        }
        // Last: where it is, the step is whole.
        let path = self.path(step, "json");
        let json =
            serde_json::to_vec(kept).map_err(|e| Error::input(format!("a step cannot be written: {e}")))?;
        atomic::write(&path, |file| file.write_all(&json)).map_err(Error::io("write", &path))
    }

    /// A part that was scored and waits for its judge; nothing where there is none, or it is damaged.
    pub fn scored(&self) -> Option<Part> {
        serde_json::from_slice(&std::fs::read(self.0.join(SCORED)).ok()?).ok()
    }

    /// Keeps a part that is scored, before a judge is asked: a judge that fails does not cost the edits.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn keep_scored(&self, part: &Part) -> Result<()> {
        std::fs::create_dir_all(&self.0).map_err(Error::io("create", &self.0))?;
        let path = self.0.join(SCORED);
        let json =
            serde_json::to_vec(part).map_err(|e| Error::input(format!("a part cannot be written: {e}")))?;
        atomic::write(&path, |file| file.write_all(&json)).map_err(Error::io("write", &path))
    }

    /// What a judge has said of the part so far.
    pub fn verdicts(&self) -> Verdicts {
        Verdicts::read(self.0.join(VERDICTS))
    }

    /// Takes all steps away, once the part is done.
    ///
    /// # Errors
    /// Where they cannot be removed.
    pub fn clear(&self) -> Result<()> {
        let mut tries = 0;
        loop {
            match std::fs::remove_dir_all(&self.0) {
                // Another run may be taking them away as well, and be in the middle of it.
                Err(_) if tries < TRIES && self.0.exists() => {
                    tries += 1;
                    std::thread::sleep(MOMENT);
                }
                Err(error) if self.0.exists() => return Err(Error::io("remove", &self.0)(error)),
                _ => return Ok(()),
            }
        }
    }
}
