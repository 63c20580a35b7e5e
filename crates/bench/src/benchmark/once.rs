//! Notes of many edits, each told once.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use mutandis_edit::Progress;

/// Passes on what it hears, and a note that has come before not again: what holds for one record of a
/// cell mostly holds for many.
pub(super) struct Once<'a> {
    progress: &'a dyn Progress,
    told: Mutex<BTreeSet<String>>,
}

impl<'a> Once<'a> {
    pub(super) fn new(progress: &'a dyn Progress) -> Self {
        Self { progress, told: Mutex::default() }
    }
}

impl Progress for Once<'_> {
    fn begin(&self, stage: &str, steps: usize) {
        self.progress.begin(stage, steps);
    }

    fn step(&self, done: usize) {
        self.progress.step(done);
    }

    fn end(&self) {
        self.progress.end();
    }

    fn note(&self, text: &str) {
        if self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(text.to_owned()) {
            self.progress.note(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);

    impl Progress for Heard {
        fn begin(&self, _: &str, _: usize) {}
        fn step(&self, _: usize) {}
        fn end(&self) {}
        fn note(&self, text: &str) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(text.to_owned());
        }
    }

    #[test]
    fn a_note_is_told_at_once_and_not_again() {
        let heard = Heard::default();
        let once = Once::new(&heard);
        let said = || heard.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        once.note("the model has collapsed");
        assert_eq!(said(), ["the model has collapsed"]);
        once.note("1 of 1 facts");
        once.note("the model has collapsed");
        assert_eq!(said(), ["the model has collapsed", "1 of 1 facts"]);
    }
}
