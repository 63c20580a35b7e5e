//! What the integration tests share: a sandbox for the command, a hub on 127.0.0.1, and a pip
//! that serves wheels from a folder. No test here leaves this machine.
#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "test support; each test binary uses a part"
)]

pub mod hub;
pub mod people;
pub mod pip;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use mutandis::env::Env;
use sha2::{Digest, Sha256};

/// A home of its own, and nothing else of this machine's environment.
pub struct Sandbox {
    folder: tempfile::TempDir,
    pub variables: Vec<(String, String)>,
}

impl Sandbox {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap().to_owned();
        // Nothing listens on port 1: a test that forgets its own hub fails at once.
        let closed = "http://127.0.0.1:1".to_owned();
        let variables = vec![
            ("HOME".into(), home),
            ("HF_ENDPOINT".into(), closed),
            ("PATH".into(), "/usr/bin:/bin".into()),
        ];
        Self { folder, variables }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.into(), value.into()));
        self
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join(relative)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mutandis"));
        command
            .args(arguments)
            .env_clear()
            .envs(self.variables.iter().cloned())
            .current_dir(self.folder.path());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.command(arguments).output().unwrap())
    }

    /// The same environment, for the library.
    pub fn env(&self) -> Env {
        let value =
            |name: &str| self.variables.iter().find(|(known, _)| known == name).map(|(_, value)| value);
        Env::from_lookup(|name| value(name).map(OsString::from))
    }
}

/// How a run of the command ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Ran {
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// It told of a file what can be told, and that the file is no model.
    #[track_caller]
    pub fn tells_of_no_model(self) -> Self {
        assert!(self.code == Some(2) && self.stderr.contains("error: "), "{self:?}");
        self
    }

    /// It failed as a failure should: exit code 2, an error, nothing on stdout, no panic.
    #[track_caller]
    pub fn fails_with(self, parts: &[&str]) -> Self {
        assert_eq!((self.code, self.stdout.as_str()), (Some(2), ""), "{self:?}");
        assert!(self.stderr.contains("error: ") && !self.stderr.contains("panicked"), "{self:?}");
        for part in parts {
            assert!(self.stderr.contains(part), "no {part:?} in {}", self.stderr);
        }
        self
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap()
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `count` bytes that repeat nowhere soon and do not compress.
pub fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..count).map(|_| next()).collect()
}

/// Every file and link below a folder, relative to it, sorted.
pub fn tree(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, root: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), root, found);
            } else {
                found.push(entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, folder, &mut found);
    found.sort();
    found
}
