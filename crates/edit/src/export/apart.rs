//! Places where something written would take the model's own.

use std::fs;
use std::path::{Path, PathBuf};

use mutandis_engine::checkpoint::{Checkpoint, Container};

use crate::atomic::folder_of;
use crate::error::{Error, Result};

/// Endings of files that a folder of safetensors has besides its weights.
const BESIDE: [&str; 5] = ["json", "jinja", "txt", "model", "tiktoken"];

/// Checks that what is written to `out` leaves a checkpoint as it is: that this is none of its files,
/// nor its folder, by whatever name.
///
/// # Errors
/// Where it is one.
pub fn check_apart(checkpoint: &Checkpoint, out: &Path) -> Result<()> {
    // What is not there yet is nobody's.
    let Ok(real) = fs::canonicalize(out) else { return Ok(()) };
    let same = |path: &Path| fs::canonicalize(path).is_ok_and(|path| path == real);
    let what = if same(&base_folder(checkpoint)) {
        "the folder of the model"
    } else if checkpoint.files().any(|(file, _)| same(file)) || beside(checkpoint).any(|file| same(&file)) {
        "a file of the model"
    } else {
        return Ok(());
    };
    Err(Error::input_hint(
        format!("`{}` is {what} itself, which stays as it is, even with `--force`", out.display()),
        "choose another place with `--out`",
    ))
}

/// The folder that a checkpoint lies in.
pub(super) fn base_folder(checkpoint: &Checkpoint) -> PathBuf {
    let path = checkpoint.path();
    if path.is_dir() { path.to_owned() } else { folder_of(path).to_owned() }
}

/// What the weights cannot be read without: config, index, tokenizer. A GGUF file holds all of it.
fn beside(checkpoint: &Checkpoint) -> impl Iterator<Item = PathBuf> {
    let is_read = |path: &PathBuf| {
        let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        BESIDE.contains(&ending.as_str())
    };
    let folder = match checkpoint.container() {
        Container::Safetensors => fs::read_dir(base_folder(checkpoint)).ok(),
        Container::Gguf => None,
    };
    folder.into_iter().flatten().flatten().map(|entry| entry.path()).filter(is_read)
}
