//! From a path to a declared, mapped checkpoint: which container it is, and which files it takes.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::declared::Declared;
use super::gguf::Gguf;
use super::names::Container;
use super::safetensors::{self, directory_of};
use super::store::{Mapped, Slot, Store, Stored};
use super::{config, gguf_config};
use crate::error::{Error, Result};

/// A checkpoint whose tensors are not yet matched with its architecture.
pub(super) struct Opened {
    pub(super) container: Container,
    pub(super) store: Store,
    pub(super) gguf: Option<Gguf>,
    pub(super) declared: Declared,
}

/// Opens a `.gguf` file, a `.safetensors` file, an index of shards, or a directory with one of
/// these. A file is told by its first bytes, then by its name.
pub(super) fn open(path: &Path) -> Result<Opened> {
    let metadata = std::fs::metadata(path).map_err(Error::io("open", path))?;
    if metadata.is_dir() {
        return open_directory(path);
    }
    if has_magic(path)? || path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
        return open_gguf(path);
    }
    let directory = directory_of(path);
    if path.file_name().is_some_and(|n| n == safetensors::INDEX) {
        return open_safetensors(safetensors::open_directory(&directory)?, &directory);
    }
    if path.extension().is_some_and(|e| e == "safetensors") {
        return open_safetensors(safetensors::open_file(path)?, &directory);
    }
    Err(Error::input_hint(
        format!("`{}` is neither a GGUF nor a safetensors file", path.display()),
        "give a `.gguf` or `.safetensors` file, or a directory with `config.json` and `model.safetensors`",
    ))
}

fn has_magic(path: &Path) -> Result<bool> {
    let mut start = Vec::new();
    let file = std::fs::File::open(path).map_err(Error::io("open", path))?;
    file.take(4).read_to_end(&mut start).map_err(Error::io("read", path))?;
    Ok(start == b"GGUF")
}

fn open_directory(path: &Path) -> Result<Opened> {
    if path.join(safetensors::SINGLE).exists() || path.join(safetensors::INDEX).exists() {
        return open_safetensors(safetensors::open_directory(path)?, path);
    }
    let mut ggufs = Vec::new();
    let mut pickles = false;
    for entry in std::fs::read_dir(path).map_err(Error::io("read", path))? {
        let file = entry.map_err(Error::io("read", path))?.path();
        match file.extension().and_then(|e| e.to_str()) {
            Some("gguf") => ggufs.push(file),
            Some("bin" | "pt" | "pth") => pickles = true,
            _ => {}
        }
    }
    ggufs.sort();
    match ggufs.as_slice() {
        [] if pickles => Err(Error::Unsupported {
            what: format!("`{}`: a checkpoint of Python pickles", path.display()),
            known: Some("safetensors, GGUF".into()),
        }),
        [] => Err(Error::input_hint(
            format!("`{}` holds no `{}`", path.display(), safetensors::SINGLE),
            format!("it needs `config.json` and `{}` or `{}`", safetensors::SINGLE, safetensors::INDEX),
        )),
        [file] => open_gguf(file),
        [first, ..] if piece_of(first).is_some_and(|(_, count)| count == ggufs.len()) => open_gguf(first),
        _ => Err(Error::input_hint(
            format!("`{}` holds {} GGUF files", path.display(), ggufs.len()),
            "name the one that is meant",
        )),
    }
}

fn open_safetensors(store: Store, directory: &Path) -> Result<Opened> {
    let path = directory.join("config.json");
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::input_hint(
                format!("`{}` is missing", path.display()),
                "a safetensors checkpoint needs the `config.json` that it was published with, beside it",
            ));
        }
        Err(e) => return Err(Error::io("read", path)(e)),
    };
    let declared = config::declare(&text, &path)?;
    Ok(Opened { container: Container::Safetensors, store, gguf: None, declared })
}

fn open_gguf(path: &Path) -> Result<Opened> {
    let file = Mapped::open(path)?;
    let gguf = Gguf::parse(file.bytes(), path)?;
    let pieces = match gguf.u32("split.count")? {
        Some(count) if count > 1 => pieces(path, &gguf, count as usize)?,
        _ => vec![(file, gguf)],
    };
    let mut slots = Vec::new();
    let mut files = Vec::new();
    let mut headers = Vec::new();
    for (file, gguf) in pieces {
        slots.extend(gguf.tensors().iter().map(|t| Slot {
            name: t.name.clone(),
            stored: Stored::Known(t.dtype),
            shape: t.shape.clone(),
            file: files.len(),
            range: t.range.clone(),
        }));
        files.push(file);
        headers.push(gguf);
    }
    let gguf = headers.swap_remove(0);
    if let Some(total) = gguf.u64("split.tensors.count")?
        && total != slots.len() as u64
    {
        return Err(
            gguf.corrupt(format!("it declares {total} tensors over all its pieces, found {}", slots.len()))
        );
    }
    let store = Store::new(files, slots, "GGUF")?;
    let embedding = store.view("token_embd.weight");
    let tensors = gguf_config::FromTensors {
        // An absent embedding is reported after the architecture, which may be unknown.
        vocabulary: embedding.as_ref().map_or(1, |e| e.shape[0]),
        tied: !store.contains("output.weight"),
        divisors: divisors(&store)?,
    };
    let declared = gguf_config::declare(&gguf, tensors)?;
    embedding?;
    Ok(Opened { container: Container::Gguf, store, gguf: Some(gguf), declared })
}

/// The divisors of the rotary frequencies, which llama.cpp's converter writes as a tensor.
fn divisors(store: &Store) -> Result<Option<Vec<f64>>> {
    let Some(slot) = store.slot("rope_freqs.weight") else {
        return Ok(None);
    };
    let view = store.view(&slot.name)?;
    if view.shape.len() != 1 {
        return Err(Error::Shape {
            name: slot.name.clone(),
            expected: vec![view.shape.iter().product()],
            found: view.shape.to_vec(),
        });
    }
    let mut values = vec![0.0; view.shape[0]];
    view.dtype.decode(view.bytes, &mut values);
    Ok(Some(values.into_iter().map(f64::from).collect()))
}

/// All pieces of a split GGUF, in order, given any one of them.
fn pieces(path: &Path, gguf: &Gguf, count: usize) -> Result<Vec<(Mapped, Gguf)>> {
    let stem = match piece_of(path) {
        Some((stem, named)) if named == count => stem,
        _ => {
            return Err(gguf.corrupt(format!(
                "it is a piece of {count}, expected a file name that ends in `-00001-of-{count:05}.gguf`"
            )));
        }
    };
    let mut pieces = Vec::new();
    for number in 1..=count {
        let piece = directory_of(path).join(format!("{stem}-{number:05}-of-{count:05}.gguf"));
        if !piece.exists() {
            return Err(Error::input_hint(
                format!("`{}`, piece {number} of {count}, is missing", piece.display()),
                "put all pieces of the split GGUF into one directory",
            ));
        }
        let file = Mapped::open(&piece)?;
        let header = Gguf::parse(file.bytes(), &piece)?;
        let (no, of) = (header.u32("split.no")?, header.u32("split.count")?);
        if no != Some(number as u32 - 1) || of != Some(count as u32) {
            return Err(header.corrupt(format!(
                "it is named piece {number} of {count}, but says `split.no` {no:?}, `split.count` {of:?}"
            )));
        }
        pieces.push((file, header));
    }
    Ok(pieces)
}

/// `NAME` and N of `NAME-0000I-of-0000N.gguf`.
fn piece_of(path: &Path) -> Option<(String, usize)> {
    let name = PathBuf::from(path.file_name()?);
    let name = name.to_str()?.strip_suffix(".gguf")?;
    let (rest, count) = name.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    number.parse::<usize>().ok()?;
    Some((stem.to_owned(), count.parse().ok()?))
}
