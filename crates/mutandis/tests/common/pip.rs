//! A pip that serves wheels from a folder: a script named `python3` or `uv`, first on the path.

use std::{
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// Copies `PACKAGE.whl` from its own folder and notes what was asked for.
const SCRIPT: &str = r#"#!/bin/sh
PATH=/usr/bin:/bin
here=$(dirname "$0")
case "$*" in
  *--version*) echo "pip 0.0 (pretended)"; exit 0 ;;
esac
while [ $# -gt 1 ]; do
  if [ "$1" = --dest ]; then destination=$2; fi
  shift
done
echo "$1" >> "$here/log"
package=${1%%==*}
if [ -e "$here/full" ]; then
  echo "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device" >&2
  exit 1
fi
if ! cp "$here/$package.whl" "$destination/$package-1.0-py3-none-any.whl" 2>/dev/null; then
  echo "WARNING: some chatter" >&2
  echo "ERROR: No matching distribution found for $1" >&2
  exit 1
fi
"#;

pub struct Pip {
    folder: tempfile::TempDir,
}

impl Pip {
    pub fn new() -> Self {
        Self::named("python3")
    }

    /// The same under the name of another program that runs pip.
    pub fn named(program: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join(program);
        std::fs::write(&script, SCRIPT).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder }
    }

    /// The value for `PATH`: nothing but this pip.
    pub fn path(&self) -> String {
        self.folder.path().display().to_string()
    }

    /// Publishes a wheel with one member.
    pub fn publish(&self, package: &str, member: &str, content: &[u8]) {
        write_zip(&self.wheel(package), member, content);
    }

    pub fn wheel(&self, package: &str) -> PathBuf {
        self.folder.path().join(format!("{package}.whl"))
    }

    /// Pretends that the disk is full, or has space again.
    pub fn fill_disk(&self, is_full: bool) {
        let mark = self.folder.path().join("full");
        if is_full { std::fs::write(mark, "").unwrap() } else { std::fs::remove_file(mark).unwrap() }
    }

    /// The requirements that were asked for, in order.
    pub fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

fn write_zip(path: &Path, member: &str, content: &[u8]) {
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let options =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    zip.start_file("package/__init__.py", options).unwrap();
    zip.write_all(b"raise SystemExit('never run')\n").unwrap();
    zip.start_file(member, options).unwrap();
    zip.write_all(content).unwrap();
    zip.finish().unwrap();
}
