//! Progress of the libraries on the screen, with the seconds that each stage took.

use std::sync::Mutex;
use std::time::Instant;

use mutandis::progress::{Bar, Progress};

/// Shows stages as bars and remembers how long each took.
#[derive(Debug)]
pub(crate) struct Stages<'a> {
    progress: &'a Progress,
    running: Mutex<Option<(String, Instant, Bar)>>,
    seconds: Mutex<Vec<(String, f64)>>,
}

impl<'a> Stages<'a> {
    /// Stages shown on a screen.
    pub(crate) fn new(progress: &'a Progress) -> Self {
        Self { progress, running: Mutex::default(), seconds: Mutex::default() }
    }

    /// Seconds spent in stages whose name begins so.
    pub(crate) fn seconds(&self, prefix: &str) -> f64 {
        let seconds = self.seconds.lock().unwrap_or_else(|e| e.into_inner());
        seconds.iter().filter(|(name, _)| name.starts_with(prefix)).fold(0.0, |sum, (_, s)| sum + s)
    }
}

impl mutandis_edit::Progress for Stages<'_> {
    fn begin(&self, stage: &str, steps: usize) {
        self.end();
        let bar = self.progress.steps(stage.to_owned(), steps as u64);
        *self.running.lock().unwrap_or_else(|e| e.into_inner()) =
            Some((stage.to_owned(), Instant::now(), bar));
    }

    fn step(&self, done: usize) {
        if let Some((_, _, bar)) = &*self.running.lock().unwrap_or_else(|e| e.into_inner()) {
            bar.set(done as u64);
        }
    }

    fn end(&self) {
        if let Some((name, started, _)) = self.running.lock().unwrap_or_else(|e| e.into_inner()).take() {
            let mut seconds = self.seconds.lock().unwrap_or_else(|e| e.into_inner());
            seconds.push((name, started.elapsed().as_secs_f64()));
        }
    }

    fn note(&self, text: &str) {
        self.progress.note(text);
    }
}
