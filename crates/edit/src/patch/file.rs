//! A patch as a file.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use mutandis_engine::WeightId;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;

use super::{FORMAT, Patch, WeightChange};
use crate::atomic;
use crate::error::{Error, Result};

/// What the names of key tensors begin with; the layer follows.
const KEYS: &str = "keys.";

/// What the names of tensors of a method's state begin with; its own name follows.
const STATE: &str = "state.";

/// Longest header that is read, in bytes: a million facts fit.
const HEADER_LIMIT: u64 = 1 << 30;

/// Why bytes are no patch.
enum Unread {
    /// They are of a format that came later.
    Newer(u64),
    /// What is wrong with them.
    Damaged(String),
}

impl From<String> for Unread {
    fn from(why: String) -> Self {
        Self::Damaged(why)
    }
}

impl From<&str> for Unread {
    fn from(why: &str) -> Self {
        Self::Damaged(why.to_owned())
    }
}

impl Patch {
    /// Its name by content, hexadecimal: the same edit has the same id whenever, and by whatever
    /// version, it was made.
    ///
    /// # Errors
    /// As [`Patch::to_bytes`].
    pub fn id(&self) -> Result<String> {
        let mut document = serde_json::to_value(self)
            .map_err(|e| Error::input(format!("the patch cannot be written: {e}")))?;
        for field in ["created", "tool"] {
            document[field] = Value::String(String::new());
        }
        Ok(digest(&document.to_string(), borrowed(&self.tensors())))
    }

    /// Bytes of the file.
    ///
    /// # Errors
    /// Where a number is not finite.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        for (name, _, bytes) in self.tensors() {
            if !is_finite(bytes) {
                let what = format!("the patch cannot be written: `{name}` holds a number that is not finite");
                return Err(Error::Numerical { what });
            }
        }
        self.encoded()
    }

    /// The same, of whatever is in its tensors.
    fn encoded(&self) -> Result<Vec<u8>> {
        let document = serde_json::to_string(self)
            .map_err(|e| Error::input(format!("the patch cannot be written: {e}")))?;
        // JSON has no word for a number that is not finite: `null` is written, and not read again.
        serde_json::from_str::<Self>(&document).map_err(|e| Error::Numerical {
            what: format!("the patch cannot be written: it holds a number that is not finite ({e})"),
        })?;
        let tensors = self.tensors();
        let digest = digest(&document, borrowed(&tensors));
        let views: Result<Vec<_>, _> =
            tensors.iter().map(|(n, s, b)| Ok((n, TensorView::new(Dtype::F32, s.clone(), b)?))).collect();
        let metadata = HashMap::from([("mutandis".to_owned(), document), ("digest".to_owned(), digest)]);
        let bytes = views.and_then(|v: Vec<_>| safetensors::serialize(v, Some(metadata)));
        let mut bytes = bytes.map_err(|e| Error::input(format!("the patch cannot be written: {e:?}")))?;
        order_metadata(&mut bytes)?;
        Ok(bytes)
    }

    /// Names, shapes and bytes of its tensors, by name.
    fn tensors(&self) -> Vec<(String, Vec<usize>, &[u8])> {
        let mut tensors: Vec<(String, Vec<usize>, &[u8])> = vec![];
        for (i, (id, change)) in self.weights.iter().enumerate() {
            let name = |part: &str| format!("{i}.{}.{}.{part}", id.layer, role_name(*id));
            match change {
                WeightChange::LowRank { rank, left, right } => {
                    tensors.push((name("left"), vec![left.len() / rank, *rank], bytemuck::cast_slice(left)));
                    tensors.push((
                        name("right"),
                        vec![right.len() / rank, *rank],
                        bytemuck::cast_slice(right),
                    ));
                }
                WeightChange::Dense { out, inn, delta } => {
                    tensors.push((name("delta"), vec![*out, *inn], bytemuck::cast_slice(delta)));
                }
            }
        }
        for (layer, keys) in &self.keys {
            let count = self.facts.len().max(1);
            let rows = if keys.len().is_multiple_of(count) { count } else { 1 };
            tensors.push((
                format!("{KEYS}{layer}"),
                vec![rows, keys.len() / rows],
                bytemuck::cast_slice(keys),
            ));
        }
        for (name, values) in &self.state {
            tensors.push((format!("{STATE}{name}"), vec![values.len()], bytemuck::cast_slice(values)));
        }
        tensors.sort();
        tensors
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// Where the folder is absent or cannot be written to, or the disk is full.
    pub fn save(&self, path: &Path) -> Result<()> {
        let bytes = self.to_bytes()?;
        atomic::write(path, |file| file.write_all(&bytes)).map_err(|e| Error::unwritable(path, &e))
    }

    /// Reads and verifies a file, whole.
    ///
    /// # Errors
    /// Where it cannot be read, is damaged, was changed, or is of a newer format.
    pub fn load(path: &Path) -> Result<Self> {
        Self::parse(path, &Self::bytes_of(path)?)
    }

    /// The bytes of a file, as they are.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn bytes_of(path: &Path) -> Result<Vec<u8>> {
        std::fs::read(path).map_err(|e| {
            Error::input_hint(
                format!("cannot read the patch `{}`: {e}", path.display()),
                "give a `.patch.safetensors` file that `mutandis edit` wrote",
            )
        })
    }

    /// Verifies the bytes of a file.
    ///
    /// # Errors
    /// Where they are damaged, were changed, or are of a newer format.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let (path, what) = (path.to_owned(), "patch");
        Self::read(bytes).map_err(|error| match error {
            Unread::Newer(found) => Error::Newer { path, what, found, reads: FORMAT },
            Unread::Damaged(why) => Error::Corrupt { path, what, why },
        })
    }

    /// Reads and verifies the bytes of a file; the error says what is wrong.
    ///
    /// # Errors
    /// Where they are damaged, were changed, or are of a newer format.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        Self::read(bytes).map_err(|error| match error {
            Unread::Newer(found) => format!("it has format {found}, this version reads format {FORMAT}"),
            Unread::Damaged(why) => why,
        })
    }

    fn read(bytes: &[u8]) -> Result<Self, Unread> {
        let header_len = bytes.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)).unwrap_or(u64::MAX);
        if header_len > HEADER_LIMIT || header_len > bytes.len() as u64 {
            return Err(format!("it has {} bytes, too few for its header", bytes.len()).into());
        }
        let broken = |e: safetensors::SafeTensorError| format!("its tensors cannot be read: {e:?}");
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(broken)?;
        let metadata = metadata.metadata().clone().unwrap_or_default();
        let field =
            |name: &str| metadata.get(name).ok_or_else(|| format!("it has no `{name}` in its metadata"));
        let document = field("mutandis")?;
        // A newer format is told as such whatever else has changed in it, the digest included.
        let json: Result<Value, String> = serde_json::from_str(document).map_err(|e| e.to_string());
        let format = json.as_ref().ok().and_then(|json| json.get("format")?.as_u64());
        if let Some(newer) = format.filter(|format| *format > u64::from(FORMAT)) {
            return Err(Unread::Newer(newer));
        }
        let tensors = SafeTensors::deserialize(bytes).map_err(broken)?;
        let mut listed: Vec<(String, TensorView<'_>)> = tensors.tensors();
        listed.sort_by(|a, b| a.0.cmp(&b.0));
        let found = digest(document, listed.iter().map(|(n, t)| (n.as_str(), t.shape(), t.data())));
        if *field("digest")? != found {
            return Err("its contents do not match its digest: it was changed after it was made".into());
        }
        json?;
        match format {
            Some(v) if v == u64::from(FORMAT) => {}
            Some(v) => return Err(format!("it has format {v}, this version reads format {FORMAT}").into()),
            None => return Err("it names no format".into()),
        }
        let mut patch: Self = serde_json::from_str(document).map_err(|e| e.to_string())?;
        let mut parts: BTreeMap<(usize, String), HashMap<String, &TensorView<'_>>> = Default::default();
        for (name, tensor) in &listed {
            if tensor.dtype() != Dtype::F32 {
                return Err(format!("tensor `{name}` is {:?}, expected F32", tensor.dtype()).into());
            }
            if !is_finite(tensor.data()) {
                return Err(format!("tensor `{name}` holds a number that is not finite").into());
            }
            if let Some(layer) = name.strip_prefix(KEYS) {
                let layer = layer.parse().map_err(|_| format!("tensor `{name}` has an odd name"))?;
                patch.keys.insert(layer, floats(tensor.data()));
                continue;
            }
            if let Some(name) = name.strip_prefix(STATE) {
                patch.state.insert(name.to_owned(), floats(tensor.data()));
                continue;
            }
            let (index, rest) =
                name.split_once('.').ok_or_else(|| format!("tensor `{name}` has an odd name"))?;
            let (weight, part) =
                rest.rsplit_once('.').ok_or_else(|| format!("tensor `{name}` has an odd name"))?;
            let index = index.parse().map_err(|_| format!("tensor `{name}` has an odd name"))?;
            parts.entry((index, weight.to_owned())).or_default().insert(part.to_owned(), tensor);
        }
        for ((_, weight), parts) in parts {
            let id = weight_id(&weight).ok_or_else(|| format!("`{weight}` is no weight"))?;
            let change = match (parts.get("left"), parts.get("right"), parts.get("delta")) {
                (Some(l), Some(r), None) => {
                    let rank = match (l.shape(), r.shape()) {
                        ([_, a], [_, b]) if a == b && *a > 0 => *a,
                        (a, b) => {
                            let why = format!("the factors of `{weight}` have shapes {a:?} and {b:?}");
                            return Err(why.into());
                        }
                    };
                    WeightChange::LowRank { rank, left: floats(l.data()), right: floats(r.data()) }
                }
                (None, None, Some(d)) => match d.shape() {
                    [out, inn] => WeightChange::Dense { out: *out, inn: *inn, delta: floats(d.data()) },
                    other => return Err(format!("the change of `{weight}` has shape {other:?}").into()),
                },
                _ => return Err(format!("the change of `{weight}` is not whole").into()),
            };
            patch.weights.push((id, change));
        }
        Ok(patch)
    }
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    numbers(bytes).collect()
}

fn is_finite(bytes: &[u8]) -> bool {
    numbers(bytes).all(f32::is_finite)
}

fn role_name(id: WeightId) -> String {
    serde_json::to_value(id.role).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

fn weight_id(text: &str) -> Option<WeightId> {
    let (layer, role) = text.split_once('.')?;
    Some(WeightId {
        layer: layer.parse().ok()?,
        role: serde_json::from_value(Value::String(role.to_owned())).ok()?,
    })
}

/// Puts the metadata of a safetensors file in order of their names, so that a patch has the same
/// bytes whenever it is written: the crate takes them from a hash map.
fn order_metadata(bytes: &mut [u8]) -> Result<()> {
    let wrong = || Error::input("the patch cannot be written: its header is not as expected");
    let (length, rest) = bytes.split_first_chunk_mut::<8>().ok_or_else(wrong)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| wrong())?;
    let header = rest.get_mut(..length).ok_or_else(wrong)?;
    let mut value: Value = serde_json::from_slice(header).map_err(|_| wrong())?;
    if let Some(metadata) = value.get_mut("__metadata__").and_then(Value::as_object_mut) {
        metadata.sort_keys();
    }
    let ordered = serde_json::to_vec(&value).map_err(|_| wrong())?;
    // The same names and values, so no longer than before; the format pads with spaces.
    let (text, padding) = header.split_at_mut_checked(ordered.len()).ok_or_else(wrong)?;
    text.copy_from_slice(&ordered);
    padding.fill(b' ');
    Ok(())
}

/// Tensors as [`digest`] takes them.
fn borrowed<'a>(
    tensors: &'a [(String, Vec<usize>, &'a [u8])],
) -> impl Iterator<Item = (&'a str, &'a [usize], &'a [u8])> {
    tensors.iter().map(|(name, shape, bytes)| (name.as_str(), shape.as_slice(), *bytes))
}

fn digest<'a>(document: &str, tensors: impl Iterator<Item = (&'a str, &'a [usize], &'a [u8])>) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(document.as_bytes());
    for (name, shape, data) in tensors {
        part(name.as_bytes());
        part(format!("{shape:?}").as_bytes());
        part(data);
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn patch(number: f32) -> Patch {
        let mut patch: Patch = serde_json::from_value(serde_json::json!({
            "format": FORMAT, "base": {"fingerprint": "f", "family": "llama", "layers": 2}, "method": "m",
            "family": "mastery", "config": {}, "facts": [], "seed": 0, "norms": [], "solve": [],
            "created": "", "tool": "",
        }))
        .unwrap();
        let id = weight_id("1.mlp-out").unwrap();
        patch.weights.push((id, WeightChange::Dense { out: 1, inn: 2, delta: vec![1.0, number] }));
        patch
    }

    #[test]
    fn a_number_that_is_not_finite_is_neither_written_nor_read() {
        assert_eq!(Patch::from_bytes(&patch(2.0).to_bytes().unwrap()).unwrap(), patch(2.0));
        for number in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(matches!(patch(number).to_bytes(), Err(Error::Numerical { .. })));
            let why = Patch::from_bytes(&patch(number).encoded().unwrap()).unwrap_err();
            assert!(why.contains("not finite"), "{why}");
        }
    }

    #[test]
    fn a_newer_format_is_told_as_such_whatever_else_it_has() {
        let path = Path::new("a.p");
        let newer = Patch { format: FORMAT + 1, ..patch(2.0) }.to_bytes().unwrap();
        let mut changed = newer.clone();
        *changed.last_mut().unwrap() ^= 1;
        for bytes in [newer, changed] {
            let error = Patch::parse(path, &bytes).unwrap_err();
            let told = format!("{error} / {}", error.hint().unwrap());
            for part in ["`a.p`", "has format 2", "reads format 1", "use a newer mutandis"] {
                assert!(told.contains(part), "no {part:?} in {told}");
            }
        }
        let older = Patch { format: 0, ..patch(2.0) }.to_bytes().unwrap();
        assert!(matches!(Patch::parse(path, &older), Err(Error::Corrupt { .. })));
    }
}
