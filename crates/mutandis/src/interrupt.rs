//! The token that long work polls to learn that it should stop.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::{Error, Result};

/// Raised once, by Ctrl-C or a request to terminate; clones share the state.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// A token that nobody has raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the work to stop. Returns whether it had been asked before.
    pub fn raise(&self) -> bool {
        self.0.swap(true, Ordering::Relaxed)
    }

    /// Whether the work should stop.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// `Ok` to go on.
    ///
    /// # Errors
    /// [`Error::Interrupted`] once the token is raised.
    pub fn check(&self) -> Result<()> {
        if self.is_raised() { Err(Error::Interrupted { kept: None }) } else { Ok(()) }
    }

    /// The bare flag, for crates that know nothing of this one: `true` means stop.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}
