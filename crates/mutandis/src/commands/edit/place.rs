//! Where patches go, found out before the work.

use std::path::{Path, PathBuf};

use mutandis::engine::Model;
use mutandis::engine::checkpoint::Checkpoint;
use mutandis_edit::atomic::PREFIX;
use mutandis_edit::export::check_apart;
use mutandis_edit::primitives::editor::about;
use mutandis_edit::{Error, Fact, Ledger, Patch};

use super::Args;
use crate::commands::patch::ledger::conflict::Report as Conflicts;
use crate::commands::patch::ledger::writer;
use crate::patched::Patched;
use crate::session::Session;

/// A file name from the first fact's subject and target that is not taken yet.
pub(super) fn default_name(facts: &[Fact]) -> PathBuf {
    let slug: String = facts
        .first()
        .map(|f| format!("{} {}", f.subject, f.target))
        .unwrap_or_default()
        .to_lowercase()
        .chars()
        .map(|c| if c.is_alphanumeric() { c } else { '-' })
        .take(48) // with its ending below 255 bytes, the longest name there is, in any script
        .collect();
    let slug = slug.split('-').filter(|s| !s.is_empty()).collect::<Vec<_>>().join("-");
    let slug = if slug.is_empty() { "edit" } else { &slug };
    let name = |n: usize| match n {
        1 => PathBuf::from(format!("{slug}.patch.safetensors")),
        n => PathBuf::from(format!("{slug}-{n}.patch.safetensors")),
    };
    (1..).map(name).find(|p| !p.exists()).unwrap_or_else(|| name(1))
}

/// Finds out before the work, not after it, that a file cannot be written there.
pub(crate) fn writable(path: &Path, force: bool) -> anyhow::Result<()> {
    writable_by("--out", "rome.patch.safetensors", path, force)
}

/// As [`writable`], for a file that is named by another option or is of another kind than a patch;
/// `example` is a name that it might have.
pub(crate) fn writable_by(option: &str, example: &str, path: &Path, force: bool) -> anyhow::Result<()> {
    let shown = path.display();
    if path.is_dir() || path.file_name().is_none() {
        let hint = format!("give a file name, as in `{option} {example}`");
        return Err(Error::input_hint(format!("`{shown}` is not a file name"), hint).into());
    }
    if path.exists() && !force {
        let hint = format!("choose another name with `{option}`, or overwrite it with `--force`");
        return Err(Error::input_hint(format!("`{shown}` exists"), hint).into());
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::Builder::new().prefix(PREFIX).tempfile_in(folder).map_err(|error| {
        let why = match error.kind() {
            std::io::ErrorKind::NotFound if !folder.exists() => {
                format!("the folder `{}` does not exist", folder.display())
            }
            // The name of the trial file would only mislead.
            kind => kind.to_string(),
        };
        let hint = format!("choose a folder that exists and can be written to, with `{option}`");
        Error::input_hint(format!("cannot write `{shown}`: {why}"), hint)
    })?;
    Ok(())
}

/// Finds out before the work that what is written would take the place of something that `--force` is not
/// meant for: what the command itself reads, a part of a ledger, or a file of a model or its folder.
/// `model` is a name as `--model` takes it.
pub(crate) fn apart<'a>(
    session: &Session<'_>,
    model: Option<&str>,
    out: &Path,
    read: impl IntoIterator<Item = &'a PathBuf>,
) -> anyhow::Result<()> {
    let hint = "choose another name with `--out`";
    let real = out.canonicalize().ok();
    if real.is_some() && read.into_iter().any(|path| path.canonicalize().ok() == real) {
        let what =
            format!("`{}` is read by this command, and stays as it is, even with `--force`", out.display());
        return Err(Error::input_hint(what, hint).into());
    }
    if let Some(ledger) = Ledger::around(out) {
        let what = format!("`{}` is a part of the ledger `{}`", out.display(), ledger.display());
        return Err(Error::input_hint(what, hint).into());
    }
    // What is not there yet is no model's, nor is it where a model is yet to be fetched.
    if out.exists()
        && let Some(located) = session.models().locate(model)?
    {
        check_apart(&Checkpoint::open(&located.path)?, out)?;
    }
    Ok(())
}

/// Hash of the text for moments; found out before the work that it is not there.
pub(crate) fn corpus(path: &Path) -> anyhow::Result<String> {
    let mut hasher = blake3::Hasher::new();
    let read = std::fs::File::open(path).and_then(|file| hasher.update_reader(file).map(|_| ()));
    read.map_err(|error| {
        let hint = "give a text file, or leave out `--corpus`: the model writes its own text then";
        Error::input_hint(format!("cannot read the corpus `{}`: {error}", path.display()), hint)
    })?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Finds out before the work that a file holds no trained editor.
pub(super) fn editor(path: &Path, method: &str) -> anyhow::Result<()> {
    let what = match std::fs::File::open(path) {
        Err(error) => format!("cannot read the editor `{}`: {error}", path.display()),
        Ok(_) if about(path).is_none() => format!("`{}` is no editor", path.display()),
        Ok(_) => return Ok(()),
    };
    let hint = format!(
        "`mutandis train {method} --data FILE` trains one, and `edit` finds it by itself unless `--out` put it \
         elsewhere"
    );
    Err(Error::input_hint(what, hint).into())
}

/// Adds a patch to a ledger; says where it is, and with what it is in conflict. Should the ledger
/// not take it, it is kept beside.
pub(super) fn join(
    session: &Session<'_>,
    folder: &Path,
    patch: &Patch,
    args: &Args,
    measured: Option<(&Model, &Patched)>,
) -> anyhow::Result<(PathBuf, Conflicts)> {
    let joined = writer(session, folder, Some(&patch.base), &args.writing).and_then(|mut writer| {
        let patches = std::slice::from_ref(patch);
        let mut conflicts = Conflicts::new(session, &writer, patches, &args.comparing)?;
        if let Some((model, patched)) = measured.filter(|_| args.comparing.measures()) {
            conflicts.before(model, patched)?;
        }
        let added = writer.add(patches, false)?;
        let path = added.first().map(|record| writer.ledger().place(&record.id)).unwrap_or_default();
        Ok((path, conflicts))
    });
    if joined.is_err() && args.out.is_none() {
        let beside = default_name(&patch.facts);
        if patch.save(&beside).is_ok() {
            session.progress.note(&format!("the patch is kept as `{}`", beside.display()));
        }
    }
    joined
}
