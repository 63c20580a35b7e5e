//! One process at a time: advisory locks on files, as the hub's own tools take them.

use std::{
    fs::{File, TryLockError},
    path::Path,
    time::Duration,
};

use super::Models;
use crate::{Error, Result};

/// Waits for the lock on `path`, creating the file and its folders. It is released when the file
/// is dropped; the empty file stays, because removing it would let two processes in.
pub(super) fn lock(models: &Models<'_>, path: &Path) -> Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(Error::io("create", path))?;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {
                if !std::mem::replace(&mut told, true) {
                    models.progress.note("another process is fetching the same file: waiting for it");
                }
                models.interrupt.check()?;
                std::thread::sleep(Duration::from_millis(100));
            }
            // Some network file systems have no locks; a cache there still has to work.
            Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {
                return Ok(file);
            }
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", path)(error)),
        }
    }
}
