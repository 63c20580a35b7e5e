//! Writing files so that nobody ever sees half of one.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use crate::{Error, Result};

/// Writes `path` through a temporary file in the same folder, which must exist: `fill` writes the
/// content, it is forced to the disk, then renamed. On any failure the temporary file is removed,
/// and what was at `path` before is still there.
///
/// # Errors
/// [`Error::DiskFull`] without space, [`Error::Io`] with the path otherwise.
pub fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let folder = folder_of(path);
    let mut builder = tempfile::Builder::new();
    builder.prefix(".mutandis-");
    // Temporary files are private by default; a result should be as readable as any new file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).map_err(Error::io("create a file in", folder))?;
    let mut writer = BufWriter::with_capacity(1 << 20, file.as_file_mut());
    fill(&mut writer).and_then(|()| writer.flush()).map_err(Error::io("write", path))?;
    drop(writer);
    file.as_file().sync_all().map_err(Error::io("write", path))?;
    file.persist(path).map_err(|failed| Error::io("write", path)(failed.error))?;
    sync_folder(folder);
    Ok(())
}

/// Gives a finished file its final name: forces it to the disk, then renames it.
///
/// # Errors
/// [`Error::Io`] or [`Error::DiskFull`] with the final path; the file keeps its old name then.
pub fn promote(partial: &Path, path: &Path) -> Result<()> {
    File::options()
        .append(true)
        .open(partial)
        .and_then(|file| file.sync_all())
        .and_then(|()| std::fs::rename(partial, path))
        .map_err(Error::io("write", path))?;
    sync_folder(folder_of(path));
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn replaces_the_file_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        std::fs::write(&path, "old").unwrap();
        write(&path, |w| w.write_all(b"new")).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(names(folder.path()), ["a.json"]);
    }

    #[test]
    fn a_failure_in_the_middle_keeps_the_old_file_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        std::fs::write(&path, "old").unwrap();
        let error = write(&path, |w| {
            w.write_all(&[7; 3 << 20])?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err();
        assert!(matches!(error, Error::DiskFull { .. }), "{error}");
        assert!(error.to_string().contains("a.json"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(folder.path()), ["a.json"]);
    }

    #[test]
    fn a_folder_that_is_absent_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = write(&folder.path().join("gone/a.json"), |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("gone"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn the_file_is_as_readable_as_any_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("plain"), "").unwrap();
        write(&folder.path().join("ours"), |_| Ok(())).unwrap();
        let mode = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode("ours"), mode("plain"));
    }
}
