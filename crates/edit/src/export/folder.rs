//! A copy of a safetensors checkpoint's folder.

use std::fs;
use std::path::{Path, PathBuf};

use mutandis_engine::checkpoint::{Checkpoint, Replacements};

use super::Written;
use crate::atomic::{self, folder_of};
use crate::error::{Error, Result};

/// Endings of files that hold weights in forms that are not edited.
const OTHER_WEIGHTS: [&str; 9] = ["safetensors", "bin", "pt", "pth", "ckpt", "gguf", "h5", "msgpack", "onnx"];

/// Writes the copy beside `folder`, lets `verify` look at it, then gives it its name: nobody sees half
/// of one.
pub(super) fn write(
    checkpoint: &Checkpoint,
    replaced: &Replacements,
    folder: &Path,
    force: bool,
    verify: impl FnOnce(&Path) -> Result<()>,
) -> Result<Written> {
    check(checkpoint, folder, force)?;
    let failed = |e: std::io::Error| Error::unwritable(folder, &e);
    let parent = folder_of(folder);
    let copy = tempfile::Builder::new().prefix(atomic::PREFIX).tempdir_in(parent).map_err(failed)?;
    let mut written = Written::default();
    let mut own = vec![];
    for (path, length) in checkpoint.files() {
        let name = path.file_name().unwrap_or_default();
        let to = copy.path().join(name);
        match checkpoint.rewritten(path, replaced)? {
            Some(rewritten) => atomic::write(&to, |file| rewritten.write(file)).map_err(failed)?,
            None => link(path, &to).map_err(failed)?,
        }
        written.bytes += fs::metadata(&to).map_or(length as u64, |m| m.len());
        own.push(name.to_owned());
    }
    let base = base_folder(checkpoint);
    let mut entries = fs::read_dir(&base)
        .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
        .map_err(Error::io("read", &base))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (from, name) = (entry.path(), entry.file_name());
        // Folders and hidden files are no part of a checkpoint that transformers reads.
        if own.contains(&name) || !from.is_file() || name.to_string_lossy().starts_with('.') {
            continue;
        }
        let ending = from.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        if OTHER_WEIGHTS.contains(&ending.as_str()) {
            written.left_out.push(name.to_string_lossy().into_owned());
            continue;
        }
        fs::copy(&from, copy.path().join(&name)).map_err(failed)?;
    }
    let opened = if checkpoint.path().is_dir() { None } else { checkpoint.path().file_name() };
    verify(&opened.map_or(copy.path().to_owned(), |name| copy.path().join(name)))?;
    place(copy, folder).map_err(failed)?;
    Ok(written)
}

/// Refuses places where something would be lost.
pub(super) fn check(checkpoint: &Checkpoint, folder: &Path, force: bool) -> Result<()> {
    let shown = folder.display();
    if folder.file_name().is_none() {
        return Err(Error::input_hint(
            format!("`{shown}` is no name of a folder"),
            "give the folder to be made, as in `--out edited`",
        ));
    }
    if folder.symlink_metadata().is_err() {
        return Ok(());
    }
    let base = base_folder(checkpoint);
    let same = |path: &Path| fs::canonicalize(path).ok();
    let inside = same(&base).zip(same(folder)).is_some_and(|(base, out)| base.starts_with(out));
    if inside {
        return Err(Error::input_hint(
            format!("`{shown}` holds the model itself"),
            "choose another folder with `--out`: the base stays as it is",
        ));
    }
    if !force {
        return Err(Error::input_hint(
            format!("`{shown}` exists"),
            "choose another folder with `--out`, or replace it with `--force`",
        ));
    }
    if !folder.join("config.json").is_file() {
        return Err(Error::input_hint(
            format!("`{shown}` exists and is no checkpoint: it has no `config.json`"),
            "`--force` replaces only what could be an earlier export: choose another folder with `--out`",
        ));
    }
    Ok(())
}

/// The folder that the base lies in.
fn base_folder(checkpoint: &Checkpoint) -> PathBuf {
    let path = checkpoint.path();
    if path.is_dir() { path.to_owned() } else { folder_of(path).to_owned() }
}

/// The same file under another name, or a copy where the two lie on different disks.
fn link(from: &Path, to: &Path) -> std::io::Result<()> {
    // A hub's cache has links to its files: what they lead to is linked, not they themselves.
    let from = fs::canonicalize(from)?;
    fs::hard_link(&from, to).or_else(|_| fs::copy(&from, to).map(drop))
}

/// Gives the finished copy its name; what had it before is removed last.
fn place(copy: tempfile::TempDir, folder: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    fs::set_permissions(copy.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let old = tempfile::Builder::new().prefix(atomic::PREFIX).tempdir_in(folder_of(folder))?;
    let aside = old.path().join("old");
    let replaces = folder.symlink_metadata().is_ok();
    if replaces {
        fs::rename(folder, &aside)?;
    }
    if let Err(error) = fs::rename(copy.path(), folder) {
        if replaces {
            fs::rename(&aside, folder)?;
        }
        return Err(error);
    }
    // It lies at its place now: nothing is left to be removed.
    let _ = copy.keep();
    Ok(())
}
