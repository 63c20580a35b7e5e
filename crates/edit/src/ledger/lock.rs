//! One writer at a time.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Result};

/// How long a writer sleeps before it asks again whether the other one is done.
const PAUSE: Duration = Duration::from_millis(50);

/// A ledger that nobody else writes to. The empty file stays when it is released, because removing
/// it would let two writers in.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    /// Takes the lock of a folder. As long as another process has it, `wait` is called, and an error
    /// of it ends the waiting.
    pub(super) fn take(folder: &Path, wait: &mut dyn FnMut() -> Result<()>) -> Result<Self> {
        let path = folder.join("lock");
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let file = file.map_err(Error::io("write", &path))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::WouldBlock) => {
                    wait()?;
                    std::thread::sleep(PAUSE);
                }
                // Some network file systems have no locks; a ledger there still has to work.
                Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
                    return Ok(Self(file));
                }
                Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
            }
        }
    }

    /// Whether whoever had the lock before did not come to the end of its writing.
    pub(super) fn is_marked(&self) -> bool {
        self.0.metadata().is_ok_and(|m| m.len() > 0)
    }

    /// Says to whoever comes next that files may lie about, should this process not come to its
    /// end. Only saves the next one a search, so a failure is none.
    pub(super) fn mark(&mut self) {
        let _ = self.0.write_all(b"writing\n");
    }

    /// Takes the mark away.
    pub(super) fn clear(&mut self) {
        let _ = self.0.set_len(0);
        let _ = std::io::Seek::rewind(&mut self.0);
    }
}
