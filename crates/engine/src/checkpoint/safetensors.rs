//! The safetensors container: one file, or shards with an index.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::dtype::Dtype;
use super::rewrite::Replacements;
use super::store::{Mapped, Slot, Store, Stored};
use crate::error::{Error, Result};

const FORMAT: &str = "safetensors";
pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Maps the weights of a directory: `model.safetensors`, else the shards that
/// `model.safetensors.index.json` names.
pub(super) fn open_directory(directory: &Path) -> Result<Store> {
    let single = directory.join(SINGLE);
    if single.exists() {
        return open_file(&single);
    }
    open_shards(directory, &directory.join(INDEX))
}

/// Maps one file.
pub(super) fn open_file(path: &Path) -> Result<Store> {
    let file = Mapped::open(path)?;
    let slots = parse(file.bytes(), path, 0)?;
    Store::new(vec![file], slots, FORMAT)
}

fn open_shards(directory: &Path, index: &Path) -> Result<Store> {
    let corrupt = |what: String| Error::Corrupt { path: index.to_owned(), format: "safetensors index", what };
    let text = std::fs::read(index).map_err(Error::io("read", index))?;
    let json: Value = serde_json::from_slice(&text).map_err(|e| corrupt(e.to_string()))?;
    let map = json
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| corrupt("it has no object `weight_map`".into()))?;
    let mut names = BTreeSet::new();
    for (tensor, shard) in map {
        let shard = shard.as_str().ok_or_else(|| {
            corrupt(format!("`weight_map` of tensor `{tensor}` is {shard}, expected a file name"))
        })?;
        if !is_plain_file_name(shard) {
            return Err(corrupt(format!(
                "tensor `{tensor}` is said to be in `{shard}`, which is not a plain file name"
            )));
        }
        names.insert(shard);
    }
    let mut files = Vec::new();
    let mut slots = Vec::new();
    for &name in &names {
        let path = directory.join(name);
        if !path.exists() {
            return Err(corrupt(format!("shard `{name}` is missing from `{}`", directory.display())));
        }
        let file = Mapped::open(&path)?;
        slots.extend(parse(file.bytes(), &path, files.len())?);
        files.push(file);
    }
    let store = Store::new(files, slots, FORMAT)?;
    match map.iter().find(|(tensor, _)| !store.contains(tensor)) {
        Some((tensor, shard)) => Err(corrupt(format!("tensor `{tensor}` is missing from its shard {shard}"))),
        None => Ok(store),
    }
}

/// Whether a shard's name stays inside the directory: one component, no separator of any system.
fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    plain && !name.contains(['/', '\\', ':', '\0'])
}

/// The tensors of one file, in file order.
///
/// The header is read here and not by the `safetensors` crate, because its (0.8) bounds check can
/// overflow on hostile offsets, and its errors do not say which tensor is at fault.
///
/// # Errors
/// [`Error::Corrupt`] for anything that breaks the format: sizes, overlaps, gaps, bad JSON.
pub(super) fn parse(bytes: &[u8], path: &Path, file: usize) -> Result<Vec<Slot>> {
    let corrupt = |what: String| Error::Corrupt { path: path.to_owned(), format: FORMAT, what };
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(corrupt(format!("the file has {} bytes, fewer than its own length field", bytes.len())));
    };
    let declared = u64::from_le_bytes(*length);
    let header = usize::try_from(declared).ok().and_then(|n| rest.get(..n)).ok_or_else(|| {
        corrupt(format!("the header is said to take {declared} bytes, but the file has {}", bytes.len()))
    })?;
    let entries: Map<String, Value> =
        serde_json::from_slice(header).map_err(|e| corrupt(format!("the header is not valid JSON: {e}")))?;
    let data = &rest[header.len()..];
    let mut slots = Vec::new();
    for (name, entry) in entries {
        if name == "__metadata__" {
            continue;
        }
        let entry: Entry = serde_json::from_value(entry)
            .map_err(|e| corrupt(format!("the entry of tensor `{name}`: {e}")))?;
        let [start, end] = entry.data_offsets;
        if start > end || end > data.len() {
            return Err(corrupt(format!(
                "tensor `{name}` lies at {start}..{end}, but there are {} bytes of data",
                data.len()
            )));
        }
        let elements =
            entry.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(|| {
                corrupt(format!("the shape {:?} of tensor `{name}` overflows", entry.shape))
            })?;
        let stored = match entry.dtype.as_str() {
            "F32" => Stored::Known(Dtype::F32),
            "F16" => Stored::Known(Dtype::F16),
            "BF16" => Stored::Known(Dtype::Bf16),
            other => Stored::Other(other.to_owned()),
        };
        if let Stored::Known(dtype) = stored
            && dtype.row_bytes(elements) != Some(end - start)
        {
            return Err(corrupt(format!(
                "tensor `{name}` of shape {:?} and format {} has {} bytes",
                entry.shape,
                dtype.name(),
                end - start
            )));
        }
        let base = bytes.len() - data.len();
        slots.push(Slot { name, stored, shape: entry.shape, file, range: base + start..base + end });
    }
    slots.sort_by_key(|s| (s.range.start, s.range.end));
    let mut at = bytes.len() - data.len();
    for slot in &slots {
        if slot.range.start != at {
            let how = if slot.range.start < at {
                "overlaps the tensor before it"
            } else {
                "leaves a gap before it"
            };
            return Err(corrupt(format!("tensor `{}` {how}", slot.name)));
        }
        at = slot.range.end;
    }
    if at != bytes.len() {
        return Err(corrupt(format!("the tensors end at byte {at}, the file at {}", bytes.len())));
    }
    Ok(slots)
}

/// The header, with its length before it, of a file with some tensors replaced: metadata and the
/// order of entries stay, and every byte where no format changes. `slots` are the file's, in file
/// order.
///
/// # Errors
/// [`Error::Input`] where a replacement's bytes are not as many as it needs, or its format is none
/// of safetensors.
pub(super) fn rewritten_header(
    bytes: &[u8],
    path: &Path,
    slots: &[&Slot],
    replaced: &Replacements,
) -> Result<Vec<u8>> {
    let start = slots.first().map_or(bytes.len(), |s| s.range.start);
    let (mut at, mut same) = (0, true);
    let mut entries: Map<String, Value> =
        serde_json::from_slice(&bytes[8..start]).map_err(|e| Error::Corrupt {
            path: path.to_owned(),
            format: FORMAT,
            what: format!("the header is not valid JSON: {e}"),
        })?;
    for slot in slots {
        let mut size = slot.range.len();
        if let Some(new) = replaced.get(&slot.name) {
            let elements = slot.shape.iter().product();
            if new.dtype.block_len() > 1 || new.dtype.row_bytes(elements) != Some(new.bytes.len()) {
                return Err(Error::input(format!(
                    "tensor `{}` of shape {:?} cannot be {} bytes of {} in safetensors",
                    slot.name,
                    slot.shape,
                    new.bytes.len(),
                    new.dtype.name()
                )));
            }
            size = new.bytes.len();
            same &= slot.stored == Stored::Known(new.dtype);
            entries[&slot.name]["dtype"] = new.dtype.name().into();
        }
        entries[&slot.name]["data_offsets"] = vec![at, at + size].into();
        at += size;
    }
    if same {
        return Ok(bytes[..start].to_vec());
    }
    let mut text = Value::Object(entries).to_string().into_bytes();
    // The tensors begin at a multiple of eight bytes.
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    Ok(header)
}

/// A header's entry, as the format defines it.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// The directory that holds a file, `.` where the path has no parent.
pub(super) fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
