//! Writing files so that nobody ever sees half of one, with errors that name the file.

use std::{
    io::{self, Write},
    path::Path,
};

use mutandis_edit::atomic;

use crate::{Error, Result};

/// [`atomic::write`].
///
/// # Errors
/// [`Error::DiskFull`] without space, [`Error::Io`] with the path otherwise.
pub fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    atomic::write(path, fill).map_err(Error::io("write", path))
}

/// [`atomic::promote`].
///
/// # Errors
/// [`Error::Io`] or [`Error::DiskFull`] with the final path; the file keeps its old name then.
pub fn promote(partial: &Path, path: &Path) -> Result<()> {
    atomic::promote(partial, path).map_err(Error::io("write", path))
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
