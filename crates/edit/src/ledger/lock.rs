//! One writer at a time.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Result};

/// How long a writer sleeps before it asks again whether the other one is done.
const PAUSE: Duration = Duration::from_millis(50);

/// Name of the file in a ledger's folder.
pub(super) const FILE: &str = "lock";

/// A ledger that nobody else writes to. The empty file stays when it is released; it goes only with
/// a ledger that did not begin, and whoever waited for it looks again then.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    /// Takes the lock of a folder, and makes the folder where a ledger `begins` in it. As long as
    /// another process has it, `wait` is called, and an error of it ends the waiting.
    pub(super) fn take(folder: &Path, begins: bool, wait: &mut dyn FnMut() -> Result<()>) -> Result<Self> {
        let path = folder.join(FILE);
        loop {
            if begins {
                std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
            }
            let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
            let file = match file {
                // Who did not begin it has just taken its folder away.
                Err(error) if begins && error.kind() == ErrorKind::NotFound => continue,
                file => file.map_err(Error::io("write", &path))?,
            };
            hold(&file, &path, wait)?;
            if !is_removed(&file) {
                return Ok(Self(file));
            }
        }
    }

    /// Whether the lock of a folder is marked as [`Lock::is_marked`] has it.
    pub(super) fn is_marked_at(folder: &Path) -> bool {
        std::fs::metadata(folder.join(FILE)).is_ok_and(|m| m.len() > 0)
    }

    /// Takes the file away, of a ledger that did not begin.
    pub(super) fn remove(&self, folder: &Path) {
        let _ = std::fs::remove_file(folder.join(FILE));
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

/// Waits until nobody else has the lock.
fn hold(file: &File, path: &Path, wait: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => {
                wait()?;
                std::thread::sleep(PAUSE);
            }
            // Some network file systems have no locks; a ledger there still has to work.
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", path)(error)),
        }
    }
}

/// Whether the file was taken away while it was waited for: who opens it now gets another one.
fn is_removed(file: &File) -> bool {
    #[cfg(unix)]
    return file.metadata().is_ok_and(|m| std::os::unix::fs::MetadataExt::nlink(&m) == 0);
    #[cfg(not(unix))]
    {
        let _ = file;
        false
    }
}
