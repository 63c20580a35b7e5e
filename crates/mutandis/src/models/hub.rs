//! The hub: its standard cache, shared with every other tool, and downloads into it.
//!
//! Layout: `models--ORG--NAME/{blobs/ETAG, snapshots/COMMIT/FILE -> ../../blobs/ETAG, refs/REVISION}`
//! and `.locks/models--ORG--NAME/ETAG.lock`. An unfinished blob is `ETAG.incomplete`, the name that
//! the hub's own tools use, so that either side can finish what the other began.

use std::{
    collections::BTreeSet,
    fs::File,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{
    Located, Models, Source, digest,
    http::{Client, Wanted},
    local, lock,
    registry::ShortName,
    spec::{HubId, is_safe_path},
};
use crate::{Error, Result, atomic};

/// Files that a model in a folder may need beside its weights.
const SIDE_FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
];

/// The repository as the cache has it, whole enough to be opened; without the network.
pub(super) fn cached(models: &Models<'_>, id: &HubId) -> Result<Option<Located>> {
    let folder = models.env.hub_cache()?.join(id.folder());
    let Some(commit) = commit_of(&folder, &id.revision) else {
        return Ok(None);
    };
    let snapshot = folder.join("snapshots").join(&commit);
    if !snapshot.is_dir() {
        return Ok(None);
    }
    match open(&snapshot, id) {
        Ok(path) => Ok(Some(located(id, path, Source::HubCache { repo: id.repo.clone(), commit }))),
        // A snapshot of which something is absent: fetching makes it whole.
        Err(Error::NotAModel { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Brings the repository's current state into the cache and returns it. What the cache holds
/// already is not fetched again.
pub(super) fn fetch(models: &Models<'_>, id: &HubId) -> Result<Located> {
    let cache = models.env.hub_cache()?;
    let folder = cache.join(id.folder());
    let client = models.hub_client();
    let endpoint = models.env.hub_endpoint();
    let (repo, revision) = (&id.repo, &id.revision);
    let info_url = format!("{endpoint}/api/models/{repo}/revision/{}", revision.replace('/', "%2F"));
    let info: Info = client.json(&info_url)?;
    let bad_answer = |what: String| Error::BadAnswer { url: info_url.clone(), what };
    if !is_commit(&info.sha) {
        return Err(bad_answer(format!("the commit {:?}, expected 40 hexadecimal digits", info.sha)));
    }
    let snapshot = folder.join("snapshots").join(&info.sha);
    let fetcher = Fetcher {
        models,
        id,
        client,
        commit: &info.sha,
        folder: &folder,
        snapshot: &snapshot,
        cache: &cache,
    };
    let names: BTreeSet<&str> = info
        .siblings
        .iter()
        .map(|sibling| sibling.rfilename.as_str())
        .filter(|name| is_safe_path(name))
        .collect();
    fetcher.fetch_all(&fetcher.choose(&names)?)?;
    if revision != &info.sha {
        let reference = folder.join("refs").join(revision);
        create_parent(&reference)?;
        atomic::write(&reference, |writer| writer.write_all(info.sha.as_bytes()))?;
    }
    let path = open(&snapshot, id)?;
    Ok(located(id, path, Source::Hub { repo: repo.clone(), commit: info.sha }))
}

/// The file of a short name, where the hub cache has it under its checksum.
pub(super) fn cached_file(models: &Models<'_>, model: &ShortName) -> Option<PathBuf> {
    let folder = models.env.hub_cache().ok()?.join(format!("models--{}", model.hub.repo.replace('/', "--")));
    std::fs::read_dir(folder.join("snapshots")).ok()?.flatten().find_map(|snapshot| {
        let file = snapshot.path().join(model.hub.file);
        let blob = std::fs::canonicalize(&file).ok()?;
        let is_it = blob.file_name()? == model.sha256 && blob.metadata().ok()?.len() == model.bytes;
        is_it.then_some(file)
    })
}

/// Reads the cached files of a repository whole, as far as their names tell their checksums, and
/// throws away those that are damaged; offline, that is an error instead.
pub(super) fn verify(models: &Models<'_>, id: &HubId) -> Result<()> {
    let folder = models.env.hub_cache()?.join(id.folder());
    let Some(commit) = commit_of(&folder, &id.revision) else {
        return Ok(());
    };
    let snapshot = folder.join("snapshots").join(commit);
    let Ok(entries) = std::fs::read_dir(snapshot) else {
        return Ok(());
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let Ok(blob) = std::fs::canonicalize(&path) else {
            continue;
        };
        let name = blob.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (Some(expected), true) = (as_sha256(&name), blob.is_file()) else {
            continue;
        };
        let bytes = blob.metadata().map_or(0, |meta| meta.len());
        let bar = models.progress.bytes(format!("checking {}", id.repo), bytes);
        let found = digest::sha256(&blob, &bar, models.interrupt)?;
        if found != expected {
            let path = path.display().to_string();
            let error = Error::Checksum { path, expected: expected.into(), found };
            if models.offline.is_some() {
                return Err(error);
            }
            models.progress.note(&format!("note: {error}; fetching it again"));
            std::fs::remove_file(&blob).map_err(Error::io("remove", &blob))?;
        }
    }
    Ok(())
}

/// Every repository in the cache that can be opened, by name.
pub(super) fn list(models: &Models<'_>) -> Result<Vec<Located>> {
    let Ok(entries) = std::fs::read_dir(models.env.hub_cache()?) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((org, name)) = name.strip_prefix("models--").and_then(|name| name.split_once("--")) else {
            continue;
        };
        let id = HubId { repo: format!("{org}/{name}"), revision: "main".into(), file: None };
        // What cannot be opened is another tool's business.
        if let Ok(Some(located)) = cached(models, &id) {
            found.push(located);
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// One download of a repository at a commit.
struct Fetcher<'a> {
    models: &'a Models<'a>,
    id: &'a HubId,
    client: Client<'a>,
    commit: &'a str,
    folder: &'a Path,
    snapshot: &'a Path,
    cache: &'a Path,
}

/// A file of the repository, with what the hub says of it.
struct Piece<'n> {
    name: &'n str,
    etag: String,
    bytes: u64,
}

impl Fetcher<'_> {
    /// The files to fetch: what the engine reads, and not the other formats beside it.
    fn choose(&self, names: &BTreeSet<&str>) -> Result<Vec<String>> {
        if let Some(file) = &self.id.file {
            if names.contains(file.as_str()) {
                return Ok(vec![file.clone()]);
            }
            return Err(Error::Status { url: self.url(file), status: 404 });
        }
        let at_root = |end: &'static str| {
            names
                .iter()
                .filter(move |name| !name.contains('/') && name.ends_with(end))
                .map(|name| name.to_string())
        };
        let mut chosen: Vec<String> = if names.contains(local::INDEX) {
            // Some repositories hold the same weights twice; the index says which are meant.
            self.fetch_all(&[local::INDEX.to_owned()])?;
            let index = self.snapshot.join(local::INDEX);
            let text = std::fs::read(&index).map_err(Error::io("read", &index))?;
            let shards = local::shards(&text).map_err(|what| Error::NotAModel { path: index, what })?;
            shards.into_iter().chain([local::INDEX.to_owned()]).collect()
        } else if names.contains("model.safetensors") {
            vec!["model.safetensors".to_owned()]
        } else {
            at_root(".safetensors").collect()
        };
        if chosen.is_empty() {
            let ggufs: Vec<String> =
                names.iter().filter(|n| n.ends_with(".gguf")).map(|n| n.to_string()).collect();
            return match ggufs.as_slice() {
                [] => {
                    let what = "it holds neither a GGUF file nor safetensors".into();
                    Err(Error::NotAModel { path: PathBuf::from(&self.id.repo), what })
                }
                [_] => Ok(ggufs),
                [first, ..] => {
                    let example = HubId { file: Some(first.clone()), ..self.id.clone() }.to_string();
                    Err(Error::Ambiguous { place: self.id.to_string(), choices: ggufs, example })
                }
            };
        }
        chosen.extend(SIDE_FILES.iter().filter(|name| names.contains(*name)).map(|name| name.to_string()));
        chosen.extend(at_root(".json").filter(|name| name.starts_with("tokenizer")));
        Ok(chosen)
    }

    fn fetch_all(&self, names: &[String]) -> Result<()> {
        let mut pieces = Vec::with_capacity(names.len());
        for name in names {
            let url = self.url(name);
            let remote = self.client.head(&url)?;
            let bad_answer = |what: &str| Error::BadAnswer { url: url.clone(), what: what.into() };
            let etag = remote.etag.filter(|etag| is_safe_path(etag) && !etag.contains('/'));
            let etag = etag.ok_or_else(|| bad_answer("no ETag that can name a file"))?;
            let bytes = remote.bytes.ok_or_else(|| bad_answer("no size"))?;
            pieces.push(Piece { name, etag, bytes });
        }
        let total = pieces.iter().map(|piece| piece.bytes).sum();
        let bar = self.models.progress.bytes(self.id.repo.clone(), total);
        let mut done = 0;
        for piece in &pieces {
            let blob = self.folder.join("blobs").join(&piece.etag);
            create_parent(&blob)?;
            bar.set(done);
            self.fetch_blob(piece, &blob, &bar).map_err(keep)?;
            link(&blob, &self.snapshot.join(piece.name), piece.name, &piece.etag)?;
            done += piece.bytes;
        }
        Ok(())
    }

    fn fetch_blob(&self, piece: &Piece<'_>, blob: &Path, bar: &crate::progress::Bar) -> Result<()> {
        let is_whole = || blob.metadata().is_ok_and(|meta| meta.len() == piece.bytes);
        if is_whole() {
            return Ok(());
        }
        let lock_file = format!("{}.lock", piece.etag);
        let _lock =
            lock::lock(self.models, &self.cache.join(".locks").join(self.id.folder()).join(lock_file))?;
        if is_whole() {
            return Ok(());
        }
        let partial = blob.with_file_name(format!("{}.incomplete", piece.etag));
        let wanted = Wanted { bytes: piece.bytes, sha256: as_sha256(&piece.etag) };
        self.client.download(&self.url(piece.name), &partial, wanted, bar)?;
        atomic::promote(&partial, blob)
    }

    fn url(&self, name: &str) -> String {
        format!("{}/{}/resolve/{}/{name}", self.models.env.hub_endpoint(), self.id.repo, self.commit)
    }
}

/// Says what an interruption leaves behind.
pub(super) fn keep(error: Error) -> Error {
    match error {
        Error::Interrupted { .. } => Error::Interrupted {
            kept: Some("what was fetched is kept: run the same command again to go on from there".into()),
        },
        other => other,
    }
}

fn open(snapshot: &Path, id: &HubId) -> Result<PathBuf> {
    match &id.file {
        Some(file) => {
            let path = snapshot.join(file);
            let what = || format!("`{file}` is absent");
            if path.is_file() {
                Ok(path)
            } else {
                Err(Error::NotAModel { path: snapshot.into(), what: what() })
            }
        }
        None => {
            let example = |file: &str| HubId { file: Some(file.to_owned()), ..id.clone() }.to_string();
            match local::open_folder(snapshot, &id.to_string(), example) {
                // A repository may keep its only GGUF file in a folder.
                Err(Error::NotAModel { path, what }) => {
                    only_gguf_below(snapshot).ok_or(Error::NotAModel { path, what })
                }
                other => other,
            }
        }
    }
}

fn only_gguf_below(snapshot: &Path) -> Option<PathBuf> {
    let folders = std::fs::read_dir(snapshot).ok()?.flatten().map(|entry| entry.path());
    let mut ggufs = folders
        .filter(|path| path.is_dir())
        .flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "gguf") && path.is_file());
    let only = ggufs.next()?;
    ggufs.next().is_none().then_some(only)
}

fn located(id: &HubId, path: PathBuf, source: Source) -> Located {
    Located { path, name: id.to_string(), source }
}

/// The commit that the cache has for a revision.
fn commit_of(folder: &Path, revision: &str) -> Option<String> {
    if is_commit(revision) {
        return Some(revision.to_owned());
    }
    let commit = std::fs::read_to_string(folder.join("refs").join(revision)).ok()?;
    let commit = commit.trim();
    is_commit(commit).then(|| commit.to_owned())
}

/// The tag of a large file is its SHA-256; that of a small one is git's, over other bytes.
fn as_sha256(etag: &str) -> Option<&str> {
    (etag.len() == 64 && etag.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(etag)
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn create_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(folder) => std::fs::create_dir_all(folder).map_err(Error::io("create", folder)),
        None => Ok(()),
    }
}

/// Puts a file of a snapshot in its place: a relative link to the blob, as the layout has it.
fn link(blob: &Path, file: &Path, name: &str, etag: &str) -> Result<()> {
    create_parent(file)?;
    let target = format!("{}../blobs/{etag}", "../".repeat(1 + name.matches('/').count()));
    if std::fs::read_link(file).is_ok_and(|present| present == Path::new(&target)) {
        return Ok(());
    }
    if file.symlink_metadata().is_ok() {
        std::fs::remove_file(file).map_err(Error::io("replace", file))?;
    }
    #[cfg(unix)]
    let linked = std::os::unix::fs::symlink(&target, file);
    #[cfg(not(unix))]
    let linked = Err(std::io::Error::from(std::io::ErrorKind::Unsupported));
    // Where there are no links, the layout asks for the file itself.
    linked.or_else(|_| {
        let mut blob = File::open(blob).map_err(Error::io("read", blob))?;
        atomic::write(file, |writer| std::io::copy(&mut blob, writer).map(|_| ()))
    })
}
