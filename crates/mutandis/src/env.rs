//! Every environment variable that mutandis reads, in one table, read once.
//!
//! [`Env`] is captured in `main` and passed down, so nothing else in the workspace asks the
//! system, and tests hand in what they like.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use mutandis_engine::kernels::Isa;

use crate::{Error, Result};

/// A variable and what it does, for the help and the reference.
#[derive(Debug, Clone, Copy)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What it does, in one line.
    pub help: &'static str,
}

macro_rules! variables {
    ($($constant:ident = $help:literal;)*) => {
        $(#[doc = $help] pub const $constant: &str = stringify!($constant);)*
        /// All of them, in the order of the help.
        pub const TABLE: &[Variable] = &[$(Variable { name: $constant, help: $help },)*];
    };
}

variables! {
    MUTANDIS_CACHE = "folder of mutandis' own cache (default: `$XDG_CACHE_HOME/mutandis`)";
    XDG_CACHE_HOME = "folder of all caches (default: `~/.cache`)";
    HOME = "the user's folder";
    HF_HUB_CACHE = "folder of the hub's cache (default: `$HF_HOME/hub`)";
    HF_HOME = "folder of the hub's files (default: `$XDG_CACHE_HOME/huggingface`)";
    HF_ENDPOINT = "address of the hub (default: `https://huggingface.co`)";
    HF_TOKEN = "token for private and gated repositories";
    HF_TOKEN_PATH = "file that holds the token (default: `$HF_HOME/token`)";
    HF_HUB_OFFLINE = "1: never use the network, as `--offline`";
    TRANSFORMERS_OFFLINE = "1: the same, under its older name";
    MUTANDIS_JUDGE_KEY = "key for the endpoint of `bench run --judge`";
    MUTANDIS_KERNELS = "`avx512`, `avx2` or `portable`: instruction set of the kernels (default: the fastest there is)";
    NO_COLOR = "not empty: no colours";
    PATH = "where pip and uv are looked for";
}

/// Variables that libraries read by themselves, listed so that the help is whole.
pub const READ_BY_LIBRARIES: &[Variable] = &[
    Variable {
        name: "HTTPS_PROXY",
        help: "proxy for the network; also `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`",
    },
    Variable {
        name: "PIP_INDEX_URL",
        help: "and pip's other variables: read by pip when it fetches a model",
    },
    Variable { name: "RAYON_NUM_THREADS", help: "number of threads where `--threads` is not given" },
];

/// What the environment said when the program began. An empty value counts as not set. Not
/// `Debug`, because it holds a token.
#[derive(Clone, Default)]
pub struct Env {
    mutandis_cache: Option<PathBuf>,
    xdg_cache_home: Option<PathBuf>,
    home: Option<PathBuf>,
    hf_hub_cache: Option<PathBuf>,
    hf_home: Option<PathBuf>,
    hf_endpoint: Option<String>,
    hf_token: Option<String>,
    hf_token_path: Option<PathBuf>,
    offline: Option<&'static str>,
    kernels: Option<String>,
    judge_key: Option<String>,
    no_color: bool,
    path: Option<OsString>,
}

impl Env {
    /// The environment of this process. Called once, in `main`.
    pub fn capture() -> Self {
        Self::from_lookup(|name| std::env::var_os(name))
    }

    /// An environment from any other source of values.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Self {
        let get = |name| lookup(name).filter(|value| !value.is_empty());
        let text = |name| get(name).and_then(|value| value.into_string().ok());
        let folder = |name| get(name).map(PathBuf::from);
        let is_set = |name: &&'static str| {
            let value = text(name).unwrap_or_default().to_ascii_lowercase();
            matches!(value.as_str(), "1" | "true" | "yes" | "on")
        };
        Self {
            mutandis_cache: folder(MUTANDIS_CACHE),
            xdg_cache_home: folder(XDG_CACHE_HOME),
            home: folder(HOME),
            hf_hub_cache: folder(HF_HUB_CACHE),
            hf_home: folder(HF_HOME),
            hf_endpoint: text(HF_ENDPOINT),
            hf_token: text(HF_TOKEN),
            hf_token_path: folder(HF_TOKEN_PATH),
            offline: [HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE].into_iter().find(is_set),
            kernels: text(MUTANDIS_KERNELS),
            judge_key: text(MUTANDIS_JUDGE_KEY),
            no_color: get(NO_COLOR).is_some(),
            path: get(PATH),
        }
    }

    /// Instruction set of the kernels, where one is asked for.
    ///
    /// # Errors
    /// Where it is none of those that this processor has.
    pub fn kernels(&self) -> Result<Option<Isa>, mutandis_engine::Error> {
        let Some(name) = self.kernels.as_deref() else { return Ok(None) };
        if let Some(isa) = Isa::available().find(|isa| name.eq_ignore_ascii_case(isa.name())) {
            return Ok(Some(isa));
        }
        let known: Vec<String> = Isa::available().map(|isa| format!("`{}`", isa.name())).collect();
        Err(mutandis_engine::Error::input_hint(
            format!(
                "`{MUTANDIS_KERNELS}` is `{name}`, expected what this processor has, {}",
                known.join(", ")
            ),
            "unset it for the fastest of them",
        ))
    }

    /// Folder of mutandis' own cache. It need not exist.
    ///
    /// # Errors
    /// [`Error::NoCacheFolder`] where nothing says where the user's files are.
    pub fn cache(&self) -> Result<PathBuf> {
        if let Some(folder) = &self.mutandis_cache {
            return Ok(self.expand(folder));
        }
        let tried = "`MUTANDIS_CACHE`, `XDG_CACHE_HOME` and `HOME`";
        Ok(self.caches().ok_or(Error::NoCacheFolder { tried })?.join("mutandis"))
    }

    /// Folder of the hub's cache, shared with every other tool that uses it. It need not exist.
    ///
    /// # Errors
    /// [`Error::NoCacheFolder`] where nothing says where the user's files are.
    pub fn hub_cache(&self) -> Result<PathBuf> {
        if let Some(folder) = &self.hf_hub_cache {
            return Ok(self.expand(folder));
        }
        let tried = "`HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME` and `HOME`";
        Ok(self.hf_home().ok_or(Error::NoCacheFolder { tried })?.join("hub"))
    }

    /// Address of the hub, without a slash at its end.
    pub fn hub_endpoint(&self) -> &str {
        self.hf_endpoint.as_deref().unwrap_or("https://huggingface.co").trim_end_matches('/')
    }

    /// The token for the hub, where there is one.
    pub fn hub_token(&self) -> Option<String> {
        let token = self.hf_token.clone().or_else(|| {
            let file = match &self.hf_token_path {
                Some(file) => self.expand(file),
                None => self.hf_home()?.join("token"),
            };
            std::fs::read_to_string(file).ok()
        })?;
        let token = token.trim();
        (!token.is_empty()).then(|| token.to_owned())
    }

    /// Name of the variable that switches the network off, where one does.
    pub fn offline(&self) -> Option<&'static str> {
        self.offline
    }

    /// The key for a judge's endpoint, where there is one.
    pub fn judge_key(&self) -> Option<String> {
        self.judge_key.clone()
    }

    /// Whether colours are unwanted.
    pub fn no_color(&self) -> bool {
        self.no_color
    }

    /// Where programs are looked for.
    pub fn path(&self) -> Option<&OsString> {
        self.path.as_ref()
    }

    /// `~` and `~/…` as the shell would have it, which leaves it alone inside quotes.
    pub(crate) fn expand(&self, path: &Path) -> PathBuf {
        match (path.strip_prefix("~"), &self.home) {
            (Ok(rest), Some(home)) => home.join(rest),
            _ => path.to_owned(),
        }
    }

    fn caches(&self) -> Option<PathBuf> {
        match &self.xdg_cache_home {
            Some(folder) => Some(self.expand(folder)),
            None => Some(self.home.as_ref()?.join(".cache")),
        }
    }

    fn hf_home(&self) -> Option<PathBuf> {
        match &self.hf_home {
            Some(folder) => Some(self.expand(folder)),
            None => Some(self.caches()?.join("huggingface")),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn env(values: &[(&str, &str)]) -> Env {
        Env::from_lookup(|name| {
            values.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn the_hub_cache_follows_the_documented_order() {
        let all = [("HOME", "/u"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")];
        let expected = ["/u/.cache/huggingface/hub", "/x/huggingface/hub", "/h/hub", "/c"];
        for (n, expected) in expected.iter().enumerate() {
            assert_eq!(env(&all[..=n]).hub_cache().unwrap(), Path::new(expected));
        }
        assert!(matches!(env(&[]).hub_cache(), Err(Error::NoCacheFolder { .. })));
    }

    #[test]
    fn our_cache_follows_the_documented_order() {
        let all = [("HOME", "/u"), ("XDG_CACHE_HOME", "/x"), ("MUTANDIS_CACHE", "~/m")];
        let expected = ["/u/.cache/mutandis", "/x/mutandis", "/u/m"];
        for (n, expected) in expected.iter().enumerate() {
            assert_eq!(env(&all[..=n]).cache().unwrap(), Path::new(expected));
        }
        assert!(matches!(env(&[("MUTANDIS_CACHE", "")]).cache(), Err(Error::NoCacheFolder { .. })));
    }

    #[test]
    fn offline_takes_the_hub_spellings_of_true() {
        for value in ["1", "true", "YES", "on"] {
            assert_eq!(env(&[("TRANSFORMERS_OFFLINE", value)]).offline(), Some("TRANSFORMERS_OFFLINE"));
        }
        assert_eq!(env(&[("HF_HUB_OFFLINE", "0")]).offline(), None);
    }

    #[test]
    fn the_token_comes_from_the_variable_else_the_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        let home = folder.path().to_str().unwrap();
        assert_eq!(env(&[("HF_HOME", home)]).hub_token().unwrap(), "hf_file");
        assert_eq!(env(&[("HF_HOME", home), ("HF_TOKEN", " hf_var ")]).hub_token().unwrap(), "hf_var");
        assert_eq!(env(&[("HF_HOME", "/nowhere")]).hub_token(), None);
    }

    #[test]
    fn every_variable_is_listed_once_with_a_help() {
        let mut names: Vec<_> = TABLE.iter().chain(READ_BY_LIBRARIES).map(|v| v.name).collect();
        assert!(TABLE.iter().all(|v| !v.help.is_empty()));
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
