//! What the text after `--model` means.

use std::path::PathBuf;

use super::registry::ShortName;
use crate::{Error, Result, env::Env};

/// `--model`, understood but not yet looked for.
#[derive(Debug, Clone)]
pub(super) enum Spec<'a> {
    /// A file or folder that exists.
    Path(PathBuf),
    /// A short name of the registry.
    Short(&'a ShortName),
    /// A repository on the hub.
    Hub(HubId),
}

/// `org/name`, `org/name@revision`, `org/name:FILE.gguf`, `org/name@revision:FILE.gguf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HubId {
    /// `org/name`.
    pub repo: String,
    /// Branch, tag or commit; `main` unless given.
    pub revision: String,
    /// The one file that is wanted, where one is named.
    pub file: Option<String>,
}

impl<'a> Spec<'a> {
    /// What exists on the disk wins, except over a short name: a folder named `smollm2` is
    /// `./smollm2`, so that the default means the same everywhere.
    pub(super) fn parse(spec: &str, registry: &'a [ShortName], env: &Env) -> Result<Self> {
        if let Some(model) = registry.iter().find(|model| model.answers_to(spec)) {
            return Ok(Self::Short(model));
        }
        let path = env.expand(spec.as_ref());
        if !spec.is_empty() && path.exists() {
            return Ok(Self::Path(path));
        }
        let looks_like_path = spec.starts_with(['.', '/', '~', '\\'])
            || spec.matches('/').count() > 1 && !spec.contains([':', '@'])
            || !spec.contains([':', '@']) && (spec.ends_with(".gguf") || spec.ends_with(".safetensors"));
        if looks_like_path {
            return Err(Error::NoSuchPath { path });
        }
        if spec.contains('/') {
            return HubId::parse(spec).map(Self::Hub);
        }
        let known = registry.iter().map(|model| format!("`{}`", model.name)).collect::<Vec<_>>();
        Err(Error::UnknownModel { spec: spec.to_owned(), known: known.join(", ") })
    }
}

impl HubId {
    fn parse(id: &str) -> Result<Self> {
        let bad = |what| Error::BadHubId { id: id.to_owned(), what };
        let (rest, file) = match id.split_once(':') {
            Some((rest, file)) => (rest, Some(file)),
            None => (id, None),
        };
        let (repo, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let Some((org, name)) = repo.split_once('/') else {
            return Err(bad("expected `org/name`"));
        };
        for part in [org, name] {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if part.is_empty() || part.starts_with('.') || !part.chars().all(is_plain) {
                return Err(bad("an organisation and a name are made of letters, digits, `-`, `_` and `.`"));
            }
        }
        if !is_safe_path(revision) {
            return Err(bad("a revision is a branch, a tag or a commit"));
        }
        if file.is_some_and(|file| !is_safe_path(file)) {
            return Err(bad("a file is a path inside the repository"));
        }
        let (repo, revision) = (repo.to_owned(), revision.to_owned());
        Ok(Self { repo, revision, file: file.map(str::to_owned) })
    }

    /// Name of the repository's folder in the hub cache.
    pub(super) fn folder(&self) -> String {
        format!("models--{}", self.repo.replace('/', "--"))
    }
}

impl std::fmt::Display for HubId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.repo)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        self.file.as_ref().map_or(Ok(()), |file| write!(f, ":{file}"))
    }
}

/// Whether a path from outside may become part of one of ours and of a URL: relative, `/`
/// between its parts, none of them hidden or a step upwards, printable without escapes.
pub(super) fn is_safe_path(path: &str) -> bool {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+' | '=' | ',');
    path.len() < 512
        && path.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && part.chars().all(is_safe))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::{super::registry::REGISTRY, *};

    fn parse(spec: &str) -> Result<Spec<'static>> {
        Spec::parse(spec, REGISTRY, &Env::default())
    }

    #[test]
    fn hub_ids_take_a_revision_and_a_file() {
        for (id, revision, file) in [
            ("org/na-me_1.5", "main", None),
            ("org/na-me_1.5@v1.0", "v1.0", None),
            ("org/na-me_1.5@refs/pr/3", "refs/pr/3", None),
            ("org/na-me_1.5:Q4/m.gguf", "main", Some("Q4/m.gguf")),
            ("org/na-me_1.5@dev:m.gguf", "dev", Some("m.gguf")),
        ] {
            let Spec::Hub(found) = parse(id).unwrap() else { panic!("{id} is a hub id") };
            assert_eq!(found.repo, "org/na-me_1.5");
            assert_eq!((found.revision.as_str(), found.file.as_deref()), (revision, file));
            assert_eq!(found.folder(), "models--org--na-me_1.5");
            assert_eq!(found.to_string(), id, "what is shown can be given again");
        }
    }

    #[test]
    fn hostile_ids_are_refused() {
        for id in [
            "org/..",
            "../org",
            "a/b:../x",
            "a/b:/etc/x",
            "a/b@../x",
            "a/b@",
            "a/b:",
            "/b@c",
            "a/ b",
            "a/b?x",
        ] {
            let error = parse(id).unwrap_err();
            assert!(matches!(error, Error::BadHubId { .. } | Error::NoSuchPath { .. }), "{id}: {error}");
        }
    }

    proptest::proptest! {
        /// Whatever is typed: no panic, and what is accepted can neither leave the cache nor mean
        /// something else when it is typed again.
        #[test]
        fn accepted_ids_are_safe(text in "[a-c./@:~ \\\\%\u{e9}-]{0,24}|.{0,40}") {
            if let Ok(Spec::Hub(id)) = parse(&text) {
                assert!(!id.folder().contains(['/', '\\']) && !id.folder().contains(".."));
                for part in [Some(&id.revision), id.file.as_ref()].into_iter().flatten() {
                    assert!(!part.starts_with('/') && part.split('/').all(|part| part != ".."));
                }
                assert!(matches!(parse(&id.to_string()), Ok(Spec::Hub(again)) if again == id));
            }
        }
    }

    #[test]
    fn names_that_look_like_paths_are_reported_as_paths() {
        for spec in ["./m", "/nowhere/m.gguf", "m.gguf", "a/b/c", "~/m"] {
            assert!(matches!(parse(spec), Err(Error::NoSuchPath { .. })), "{spec}");
        }
    }

    #[test]
    fn short_names_have_aliases_and_unknown_ones_list_the_known() {
        assert!(matches!(parse("Gemma3-270m").unwrap(), Spec::Short(m) if m.name == "gemma3"));
        for spec in ["gpt5", ""] {
            let error = parse(spec).unwrap_err();
            assert!(error.hint().unwrap().contains("`smollm2`, `gemma3`"), "{spec}: {error}");
        }
    }

    #[test]
    fn a_path_that_exists_is_a_path() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(parse(folder.path().to_str().unwrap()).unwrap(), Spec::Path(_)));
    }
}
