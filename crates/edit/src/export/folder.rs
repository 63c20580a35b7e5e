//! A copy of a safetensors checkpoint's folder.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

use mutandis_engine::checkpoint::{Checkpoint, Dtype, Replacements};
use serde_json::Value;

use super::apart::base_folder;
use super::{Written, bits};
use crate::atomic::{self, folder_of};
use crate::error::{Error, Result};

/// Endings of files that hold weights in forms that are not edited.
const OTHER_WEIGHTS: [&str; 9] = ["safetensors", "bin", "pt", "pth", "ckpt", "gguf", "h5", "msgpack", "onnx"];

/// Which shard holds which tensor, and how many bytes all are.
const INDEX: &str = "model.safetensors.index.json";

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
    let failed = |e: io::Error| Error::unwritable(folder, &e);
    // A link stays, and what it leads to is replaced.
    let real = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    let copy =
        tempfile::Builder::new().prefix(atomic::PREFIX).tempdir_in(folder_of(&real)).map_err(failed)?;
    let base = base_folder(checkpoint);
    let parts = Parts::of(checkpoint)?;
    let mut written = Written { loads_as: rounded_to(&base, replaced), ..Written::default() };
    for (path, length) in checkpoint.files() {
        let to = copy.path().join(path.file_name().unwrap_or_default());
        match checkpoint.rewritten(path, replaced)? {
            Some(rewritten) => atomic::write(&to, |file| rewritten.write(file)).map_err(failed)?,
            None => copied(path, &to).map_err(failed)?,
        }
        written.bytes += fs::metadata(&to).map_or(length as u64, |m| m.len());
    }
    for name in &parts.copied {
        let (from, to) = (base.join(name), copy.path().join(name));
        let index = if name == INDEX { index(checkpoint, replaced, &from)? } else { None };
        match index {
            Some(text) => atomic::write(&to, |file| file.write_all(&text)).map_err(failed)?,
            None => copied(&from, &to).map_err(failed)?,
        }
    }
    written.left_out = parts.left_out;
    let opened = if checkpoint.path().is_dir() { None } else { checkpoint.path().file_name() };
    verify(&opened.map_or(copy.path().to_owned(), |name| copy.path().join(name)))?;
    // Again: something may have been put there while the copy was made.
    check(checkpoint, folder, force)?;
    place(copy, &real).map_err(failed)?;
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
    if !folder.is_dir() {
        return Err(Error::input_hint(
            format!("`{shown}` is a file, expected a folder"),
            "choose another name with `--out`",
        ));
    }
    if let Some(name) = foreign(checkpoint, folder)? {
        return Err(Error::input_hint(
            format!("`{shown}` holds `{name}`, which is not what an export of this model writes"),
            "`--force` replaces nothing but earlier exports: move it away, or choose another folder with `--out`",
        ));
    }
    Ok(())
}

/// The first thing in a folder that no export of this checkpoint writes: a name that it does not have,
/// a folder, a link, or a file beside the weights that is not the base's any more.
fn foreign(checkpoint: &Checkpoint, folder: &Path) -> Result<Option<String>> {
    let parts = Parts::of(checkpoint)?;
    let base = base_folder(checkpoint);
    for entry in entries(folder)? {
        let name = entry.file_name();
        let kind = entry.file_type().map_err(Error::io("read", entry.path()))?;
        let copied = parts.copied.contains(&name);
        // An index tells of the export's own sizes.
        let is_ours = kind.is_file()
            && (parts.own.contains(&name)
                || copied && (name == INDEX || same_content(&base.join(&name), &entry.path())?));
        if !is_ours {
            let end = if kind.is_dir() { "/" } else { "" };
            return Ok(Some(format!("{}{end}", name.to_string_lossy())));
        }
    }
    Ok(None)
}

/// What becomes of the files of a base's folder.
#[derive(Default)]
struct Parts {
    /// Those that hold its weights.
    own: Vec<OsString>,
    /// Those that are copied.
    copied: Vec<OsString>,
    /// Everything else: other forms of the weights, folders, hidden files.
    left_out: Vec<String>,
}

impl Parts {
    fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_owned();
        let mut parts =
            Self { own: checkpoint.files().map(|(path, _)| name(path)).collect(), ..Self::default() };
        for entry in entries(&base_folder(checkpoint))? {
            let (path, name) = (entry.path(), entry.file_name());
            let shown = name.to_string_lossy().into_owned();
            // What begins so is being written, this copy perhaps.
            if parts.own.contains(&name) || atomic::is_temporary(&shown) {
                continue;
            }
            let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
            if path.is_dir() {
                parts.left_out.push(format!("{shown}/"));
            } else if path.is_file() && !shown.starts_with('.') && !OTHER_WEIGHTS.contains(&ending.as_str()) {
                parts.copied.push(name);
            } else {
                parts.left_out.push(shown);
            }
        }
        Ok(parts)
    }
}

/// What is in a folder, in order of name.
fn entries(folder: &Path) -> Result<Vec<fs::DirEntry>> {
    let mut entries = fs::read_dir(folder)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .map_err(Error::io("read", folder))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    Ok(entries)
}

fn same_content(a: &Path, b: &Path) -> Result<bool> {
    let length = |path: &Path| fs::metadata(path).map(|m| m.len()).map_err(Error::io("read", path));
    let read = |path: &Path| fs::read(path).map_err(Error::io("read", path));
    Ok(length(a)? == length(b)? && read(a)? == read(b)?)
}

/// The base's index with the size that the tensors have now; `None` where that is the same.
fn index(checkpoint: &Checkpoint, replaced: &Replacements, path: &Path) -> Result<Option<Vec<u8>>> {
    let text = fs::read(path).map_err(Error::io("read", path))?;
    // One that is not read, beside a single file, is none of ours to judge.
    let Ok(mut json) = serde_json::from_slice::<Value>(&text) else { return Ok(None) };
    let mut more = 0;
    for (name, new) in replaced {
        if json.get("weight_map").is_some_and(|map| map.get(name).is_some()) {
            more += new.bytes.len() as i64 - checkpoint.tensor(name)?.bytes.len() as i64;
        }
    }
    let Some(total) = json.pointer_mut("/metadata/total_size").filter(|_| more != 0) else { return Ok(None) };
    // Some programs write it as 1e9.
    let Some(was) = total.as_i64().or_else(|| total.as_f64().map(|x| x as i64)) else { return Ok(None) };
    *total = (was + more).into();
    let text = serde_json::to_string_pretty(&json).map(|text| text + "\n");
    Ok(Some(text.map_err(|e| Error::input(format!("`{INDEX}` cannot be written: {e}")))?.into_bytes()))
}

/// The number format that `config.json` names, where a tensor is stored wider than that.
fn rounded_to(base: &Path, replaced: &Replacements) -> Option<&'static str> {
    let config: Value = serde_json::from_slice(&fs::read(base.join("config.json")).ok()?).ok()?;
    let named = named_dtype(&config).or_else(|| named_dtype(config.get("text_config")?))?;
    replaced.values().any(|new| bits(new.dtype) > bits(named)).then(|| named.name())
}

fn named_dtype(config: &Value) -> Option<Dtype> {
    let name = ["dtype", "torch_dtype"].into_iter().find_map(|key| config.get(key)?.as_str())?;
    match name {
        "float32" => Some(Dtype::F32),
        "float16" => Some(Dtype::F16),
        "bfloat16" => Some(Dtype::Bf16),
        _ => None,
    }
}

/// Copies a file, never as a link: what rewrites the copy in place must not reach the base. File
/// systems that can share the bytes until then do.
fn copied(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    // Not every system lets a file be forced to the disk that was opened to be read.
    if let Ok(file) = fs::File::open(to) {
        let _ = file.sync_all();
    }
    Ok(())
}

/// Gives the finished copy its name; what had it before is removed last.
fn place(copy: tempfile::TempDir, folder: &Path) -> io::Result<()> {
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
