//! Models by name: from what stands after `--model` to a path that the engine opens.
//!
//! - A **path**: a folder, a `.gguf` or a `.safetensors` file. Taken as it is.
//! - A **short name** of the [`registry`]: looked for in mutandis' own cache, then in the hub's
//!   cache; else fetched, from the hub if it has the very same file (its checksum is asked for
//!   first), otherwise from PyPI.
//! - A **hub id**: looked for in the hub's cache, else fetched into it. What is cached is used
//!   without asking the network; [`Models::get`] brings it up to date.
//!
//! A file gets its final name only when it is whole and its checksum is right; until then it is
//! kept as `*.partial` (in the hub's cache, `*.incomplete`) and the next attempt goes on from it.

mod digest;
mod http;
mod hub;
mod local;
mod lock;
mod pypi;
pub mod registry;
mod spec;
mod store;

use std::path::{Path, PathBuf};

use serde::Serialize;

use self::{http::Client, registry::ShortName, spec::Spec};
use crate::{Error, Result, env::Env, interrupt::Interrupt, progress::Progress};

/// A model on this machine.
#[derive(Debug, Clone, Serialize)]
pub struct Located {
    /// What the engine opens: a `.gguf` or `.safetensors` file, or a folder with `config.json`.
    pub path: PathBuf,
    /// How the user names it.
    pub name: String,
    /// Where it was found.
    pub source: Source,
}

/// Where a model was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Source {
    /// The user gave its path.
    Path,
    /// mutandis' own cache.
    Cache,
    /// The hub's cache.
    HubCache {
        /// `org/name`.
        repo: String,
        /// The commit.
        commit: String,
    },
    /// Fetched from the hub just now.
    Hub {
        /// `org/name`.
        repo: String,
        /// The commit, or the branch that was asked for.
        commit: String,
    },
    /// Fetched from PyPI just now.
    Pypi,
}

/// A short name, and whether its file is here.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// The name.
    pub name: &'static str,
    /// One line about it.
    pub description: &'static str,
    /// Its licence.
    pub licence: &'static str,
    /// Size of its file, in bytes.
    pub bytes: u64,
    /// SHA-256 of its file.
    pub sha256: &'static str,
    /// Where the file is, if it is here.
    pub path: Option<PathBuf>,
}

/// What is known of one file of a model.
#[derive(Debug, Clone, Serialize)]
pub struct ModelFile {
    /// Its name, relative to the model's folder.
    pub name: String,
    /// Its size, in bytes.
    pub bytes: u64,
    /// Its SHA-256, in lower-case hexadecimal.
    pub sha256: String,
}

/// Finds and fetches models, for one environment.
#[derive(Clone, Copy)]
pub struct Models<'a> {
    /// The environment: caches, endpoint, token.
    pub env: &'a Env,
    /// What switched the network off, as the user names it, if anything did.
    pub offline: Option<&'static str>,
    /// Where progress and notes go.
    pub progress: &'a Progress,
    /// Polled while fetching.
    pub interrupt: &'a Interrupt,
    /// The short names; [`registry::REGISTRY`] but in tests.
    pub registry: &'static [ShortName],
}

/// The path for what stands after `--model` (`None`: the default model), fetching it if it is not
/// on this machine. Says nothing and cannot be interrupted: see [`Models`] for that.
///
/// # Errors
/// As [`Models::resolve`].
pub fn resolve(spec: Option<&str>, env: &Env) -> Result<Located> {
    let (progress, interrupt) = (Progress::hidden(), Interrupt::new());
    Models::new(env, &progress, &interrupt).resolve(spec)
}

impl<'a> Models<'a> {
    /// With the registry, and the network as the environment has it.
    pub fn new(env: &'a Env, progress: &'a Progress, interrupt: &'a Interrupt) -> Self {
        Self { env, offline: env.offline(), progress, interrupt, registry: registry::REGISTRY }
    }

    /// The model for what stands after `--model` (`None`: the default), fetched if it is not here.
    ///
    /// # Errors
    /// Where the text names nothing, what it names is no model, or it cannot be fetched; every
    /// such [`Error`] has a hint.
    pub fn resolve(&self, spec: Option<&str>) -> Result<Located> {
        match self.locate(spec)? {
            Some(located) => Ok(located),
            None => self.fetch(spec),
        }
    }

    /// The model, if it is on this machine. Never uses the network.
    ///
    /// # Errors
    /// Where the text names nothing, or what it names is no model.
    pub fn locate(&self, spec: Option<&str>) -> Result<Option<Located>> {
        match self.parse(spec)? {
            Spec::Path(path) => {
                let name = spec.unwrap_or_default().to_owned();
                Ok(Some(Located { path: local::open_path(&path)?, name, source: Source::Path }))
            }
            Spec::Short(model) => store::cached(self, model),
            Spec::Hub(id) => hub::cached(self, &id),
        }
    }

    /// As [`Models::resolve`], and brings a hub id up to date. With `verify`, every file
    /// whose checksum is known is read whole, and fetched again if it is damaged.
    ///
    /// # Errors
    /// As [`Models::resolve`]; offline, [`Error::Checksum`] for a damaged file.
    pub fn get(&self, spec: Option<&str>, verify: bool) -> Result<Located> {
        match self.parse(spec)? {
            Spec::Hub(id) => {
                if verify {
                    hub::verify(self, &id)?;
                }
                if self.offline.is_some() { self.resolve(spec) } else { self.fetch(spec) }
            }
            Spec::Short(model) if verify => {
                let Some(located) = self.locate(spec)? else {
                    return self.fetch(spec);
                };
                match store::verify(self, model, &located.path) {
                    Err(error @ Error::Checksum { .. }) if self.offline.is_none() => {
                        // Only our own copy is ours to replace.
                        if located.source != Source::Cache {
                            return Err(error);
                        }
                        self.progress.note(&format!("note: {error}; fetching it again"));
                        std::fs::remove_file(&located.path).map_err(Error::io("remove", &located.path))?;
                        self.fetch(spec)
                    }
                    other => other.map(|()| located),
                }
            }
            _ => self.resolve(spec),
        }
    }

    /// The short names, in the order of the registry.
    ///
    /// # Errors
    /// [`Error::NoCacheFolder`].
    pub fn short_names(&self) -> Result<Vec<Listed>> {
        let list = |model: &ShortName| {
            let path = store::cached(self, model)?.map(|located| located.path);
            let ShortName { name, description, licence, bytes, sha256, .. } = *model;
            Ok(Listed { name, description, licence, bytes, sha256, path })
        };
        self.registry.iter().map(list).collect()
    }

    /// The hub's models that are cached and can be opened, by name.
    ///
    /// # Errors
    /// [`Error::NoCacheFolder`].
    pub fn hub_models(&self) -> Result<Vec<Located>> {
        hub::list(self)
    }

    /// The files of a located model with their checksums, read whole; in order of their names.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Interrupted`].
    pub fn files(&self, located: &Located) -> Result<Vec<ModelFile>> {
        let paths = model_files(&located.path)?;
        let total = paths.iter().filter_map(|path| path.metadata().ok()).map(|meta| meta.len()).sum();
        let bar = self.progress.bytes("reading", total);
        let describe = |path: PathBuf| {
            let bytes = path.metadata().map_err(Error::io("read", &path))?.len();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok(ModelFile { name, bytes, sha256: digest::sha256(&path, &bar, self.interrupt)? })
        };
        paths.into_iter().map(describe).collect()
    }

    /// The entry of the registry for a short name.
    pub fn short_name(&self, name: &str) -> Option<&'static ShortName> {
        self.registry.iter().find(|model| model.answers_to(name))
    }

    fn parse(&self, spec: Option<&str>) -> Result<Spec<'static>> {
        Spec::parse(spec.unwrap_or(registry::DEFAULT), self.registry, self.env)
    }

    fn fetch(&self, spec: Option<&str>) -> Result<Located> {
        let name = spec.unwrap_or(registry::DEFAULT).to_owned();
        if let Some(by) = self.offline {
            return Err(Error::Offline { name, by });
        }
        match self.parse(spec)? {
            Spec::Path(path) => Err(Error::NoSuchPath { path }),
            Spec::Short(model) => store::fetch(self, model),
            Spec::Hub(id) => hub::fetch(self, &id),
        }
    }

    fn hub_client(&self) -> Client<'a> {
        Client::new(self.env.hub_endpoint(), self.env.hub_token(), self.interrupt)
    }
}

/// Size in bytes of a model's files, without reading them.
///
/// # Errors
/// [`Error::Io`] where its folder cannot be read.
pub fn size(path: &Path) -> Result<u64> {
    Ok(model_files(path)?.iter().filter_map(|path| path.metadata().ok()).map(|meta| meta.len()).sum())
}

fn model_files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).map_err(Error::io("read", path))?;
    let is_part = |path: &PathBuf| {
        let end = path.extension().unwrap_or_default();
        path.is_file() && (end == "safetensors" || end == "json" || end == "jinja" || end == "txt")
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_part).collect();
    files.sort();
    Ok(files)
}
