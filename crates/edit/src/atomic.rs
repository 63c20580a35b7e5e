//! Writing files so that nobody ever sees half of one.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use tempfile::{NamedTempFile, PersistError};

/// What names of temporary files begin with.
pub const PREFIX: &str = ".mutandis-";

/// Whether a file of this name is being written, or was left by a writer that was killed.
pub fn is_temporary(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Writes `path` through a temporary file in the same folder, which must exist: `fill` writes the
/// content, it is forced to the disk, then renamed. On any failure the temporary file is removed,
/// and what was at `path` before is still there.
///
/// # Errors
/// What the system says.
pub fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    put(path, fill, |file| file.persist(path))
}

/// As [`write()`], where nothing is at `path` yet: of several writers at once one succeeds.
///
/// # Errors
/// What the system says; [`io::ErrorKind::AlreadyExists`] where something is there, which stays.
pub fn write_new(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    put(path, fill, |file| file.persist_noclobber(path))
}

fn put(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    name: impl FnOnce(NamedTempFile) -> Result<File, PersistError>,
) -> io::Result<()> {
    let folder = folder_of(path);
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX);
    // Temporary files are private by default; a result should be as readable as any new file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).map_err(bare)?;
    let mut writer = BufWriter::with_capacity(1 << 20, file.as_file_mut());
    fill(&mut writer)?;
    writer.flush()?;
    drop(writer);
    file.as_file().sync_all()?;
    name(file).map_err(|failed| failed.error)?;
    sync_folder(folder);
    Ok(())
}

/// Writes files of a folder, each with its content: a new folder appears whole or not at all; in
/// one that is there, files of these names are replaced, and only once all are on the disk.
///
/// # Errors
/// What the system says.
pub fn write_folder(folder: &Path, files: &[(&str, &[u8])]) -> io::Result<()> {
    let beside = folder_of(folder);
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    // What lies above a folder that is there need not be ours to write to.
    let made = builder.tempdir_in(if folder.is_dir() { folder } else { beside }).map_err(bare)?;
    for (name, bytes) in files {
        write(&made.path().join(name), |file| file.write_all(bytes))?;
    }
    if folder.exists() {
        for (name, _) in files {
            std::fs::rename(made.path().join(name), folder.join(name))?;
        }
        sync_folder(folder);
    } else {
        std::fs::rename(made.path(), folder)?;
        // It has another name now, and must not be removed.
        let _ = made.keep();
        sync_folder(beside);
    }
    Ok(())
}

/// What the system said, without the name of a file that nobody has asked for.
fn bare(error: io::Error) -> io::Error {
    let within = error.get_ref().and_then(|wrapped| wrapped.source());
    let code = within.and_then(|e| e.downcast_ref::<io::Error>()).and_then(io::Error::raw_os_error);
    code.map_or(error, io::Error::from_raw_os_error)
}

/// Gives a finished file its final name: forces it to the disk, then renames it.
///
/// # Errors
/// What the system says; the file keeps its old name then.
pub fn promote(partial: &Path, path: &Path) -> io::Result<()> {
    File::options().append(true).open(partial)?.sync_all()?;
    std::fs::rename(partial, path)?;
    sync_folder(folder_of(path));
    Ok(())
}

/// Whether a file could not be written for want of space: on the disk, in a quota, or below a limit.
pub fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// The folder that a file lies in; the current one where the path names none.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Makes the new name durable too. Not every file system can, and the file itself is whole by
/// now, so a refusal is not an error.
fn sync_folder(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}
