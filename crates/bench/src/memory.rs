//! How much memory a run takes, told by what it is taken for.

use crate::results::Cost;

/// What tells how much memory the process takes.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// The most since the last restart, in bytes.
    pub peak: fn() -> u64,
    /// Begins to count anew.
    pub restart: fn(),
}

impl Memory {
    /// Where nobody wants to know.
    pub const UNKNOWN: Self = Self { peak: || 0, restart: || () };
}

/// The memory of a part: of its edits, and of all that is done for it.
pub(crate) struct Watch {
    memory: Memory,
    edits: u64,
    all: u64,
}

impl Watch {
    pub(crate) fn new(memory: Memory) -> Self {
        (memory.restart)();
        Self { memory, edits: 0, all: 0 }
    }

    /// Runs what edits.
    pub(crate) fn editing<T>(&mut self, run: impl FnOnce() -> T) -> T {
        self.all = self.all.max((self.memory.peak)());
        (self.memory.restart)();
        let done = run();
        self.edits = self.edits.max((self.memory.peak)());
        done
    }

    /// Tells what it took.
    pub(crate) fn end(self, cost: &mut Cost) {
        cost.edit_peak_memory_bytes = self.edits;
        cost.peak_memory_bytes = self.all.max(self.edits).max((self.memory.peak)());
    }
}
