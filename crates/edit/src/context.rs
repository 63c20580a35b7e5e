//! What surrounds an edit: where statistics are kept, who is told of progress, who may stop it.

use std::any::Any;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::primitives::value_search::Values;
use crate::recipes::Recipe;

/// Hears how far long work is.
pub trait Progress: Sync {
    /// A stage begins: what it does, and of how many steps (0: unknown).
    fn begin(&self, stage: &str, steps: usize);
    /// Steps done so far in this stage.
    fn step(&self, done: usize);
    /// The stage is over.
    fn end(&self);
    /// Something went otherwise than hoped, and the work goes on all the same: one line.
    fn note(&self, _text: &str) {}
}

/// Tells nobody.
struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str, _: usize) {}
    fn step(&self, _: usize) {}
    fn end(&self) {}
}

/// Values by what they were computed from: moments, factors, null spaces. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Memo(Arc<Mutex<HashMap<String, Arc<dyn Any + Send + Sync>>>>);

impl Memo {
    /// The value of a key, made where there is none yet. The key names all that it depends on.
    ///
    /// # Errors
    /// What `make` fails with.
    pub fn get<T: Any + Send + Sync>(&self, key: String, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(value) = kept.and_then(|v| v.downcast().ok()) {
            return Ok(value);
        }
        let value = Arc::new(make()?);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Arc::clone(&value) as _);
        Ok(value)
    }
}

/// Everything an edit may use besides model, facts and settings.
#[derive(Clone)]
pub struct Context<'a> {
    /// Folder for statistics of models (moments, contexts), by content hash; computed anew each
    /// time where `None`.
    pub cache: Option<PathBuf>,
    /// Text for moments; the model writes its own where `None`.
    pub corpus: Option<PathBuf>,
    /// Settings found for this model, in place of the shipped ones.
    pub recipe: Option<Recipe>,
    /// Values that were searched for before; where `None`, each edit searches its own.
    pub values: Option<Values>,
    /// What edits of one process share, so that no factor is computed twice.
    pub memo: Memo,
    /// Progress.
    pub progress: &'a dyn Progress,
    /// Raised when the work should stop.
    pub interrupt: Arc<AtomicBool>,
}

impl Default for Context<'_> {
    fn default() -> Self {
        Self {
            cache: None,
            corpus: None,
            recipe: None,
            values: None,
            memo: Memo::default(),
            progress: &Silent,
            interrupt: Arc::default(),
        }
    }
}

impl Context<'_> {
    /// Ends the work where the user wants it ended.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn check(&self) -> Result<()> {
        if self.interrupt.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}
