//! Tokenizers from a Hugging Face directory, through the `tokenizers` crate.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{OnceLock, PoisonError, RwLock};

use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper};

use super::pieces::{Alphabet, Kind, Pieces, byte_of, shown};
use super::{Backend, Mode, Tokenizer, end_of_generation};
use crate::{Error, Result};

/// Highest id that a `tokenizer.json` may name: far above any model, far below what would exhaust
/// memory for a table by id.
const HIGHEST_ID: u32 = 1 << 24;

/// The crate's tokenizer, and what is needed to ask it three kinds of question.
pub(super) struct Directory {
    /// Leaves special tokens in text alone; the lock is taken for writing only to change that.
    inner: RwLock<tokenizers::Tokenizer>,
    /// The same without the space that it puts first, made when first asked for; `None` where it
    /// puts none.
    bare: Option<OnceLock<tokenizers::Tokenizer>>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and what lies beside it: `tokenizer_config.json`,
    /// `special_tokens_map.json`, `generation_config.json`, `config.json`, `chat_template.jinja`.
    /// Only the first is needed.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read, [`Error::Corrupt`] if one is not what it should be,
    /// [`Error::Unsupported`] for a tokenizer whose pieces are spelt in another way than byte-level
    /// or SentencePiece.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let path = dir.join("tokenizer.json");
        let Some(bytes) = read(&path)? else {
            let others = ["tokenizer.model", "vocab.json", "vocab.txt"];
            let found = others.iter().find(|name| dir.join(name).exists());
            let found = found.map(|name| format!(" (`{name}` alone is not enough)"));
            return Err(Error::Tokenizer {
                what: format!(
                    "`{}` does not exist{}; save the model with a fast tokenizer, or use its GGUF",
                    path.display(),
                    found.unwrap_or_default()
                ),
            });
        };
        let corrupt = |what: String| Error::Corrupt { path: path.clone(), format: "tokenizer.json", what };
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(&bytes)).map_err(corrupt)?;
        drop(bytes);
        if let ModelWrapper::BPE(bpe) = inner.get_model()
            && bpe.dropout.is_some_and(|p| p > 0.0)
        {
            return Err(Error::Unsupported { what: "a BPE dropout".into(), known: None });
        }
        // Not for us: a prompt is never cut or filled up silently.
        guarded(|| inner.with_truncation(None).map(|_| ())).map_err(corrupt)?;
        inner.with_padding(None);
        inner.set_encode_special_tokens(true);

        let settings = Settings::read(dir)?;
        let pieces = pieces(&inner).map_err(|fault| match fault {
            Fault::Corrupt(what) => corrupt(what),
            Fault::Unsupported(error) => error,
        })?;
        let id_of = |text: &str| inner.token_to_id(text);
        let bos = settings.special("bos_token", id_of, pieces.text.len());
        let eos = settings.special("eos_token", id_of, pieces.text.len());
        let declared = eos.into_iter().chain(settings.generation_ends(pieces.text.len()));
        let eos_ids = end_of_generation(&pieces, declared);

        // What the post-processor puts around a text, found by asking; it is then taken out, since
        // it also trims offsets.
        let ask = |add| guarded(|| Ok(inner.encode("a", add)?.get_ids().to_vec()));
        let (with, without) = (ask(true).map_err(corrupt)?, ask(false).map_err(corrupt)?);
        let (mut before, mut after) = around(&with, &without);
        inner.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        if settings.flags_rule() {
            settings.obey("add_bos_token", bos, &mut before);
            settings.obey("add_eos_token", eos, &mut after);
        }

        let prefixed = prefix(&inner).is_some();
        let strips_space = prefixed && decoder_strips(&inner);
        Ok(Self {
            backend: Backend::Directory(Box::new(Directory {
                inner: RwLock::new(inner),
                bare: prefixed.then(OnceLock::new),
            })),
            pieces,
            bos,
            eos: eos_ids,
            before,
            after,
            strips_space,
            chat_template: settings.chat_template,
        })
    }
}

impl Directory {
    /// The tokens of a text with the bytes that each covers; nothing is added.
    pub(super) fn tokens(&self, text: &str, mode: Mode) -> Result<Vec<(u32, Range<usize>)>> {
        // A reader that panicked has changed nothing, and a writer restores its flag below.
        let encoding = match (mode, &self.bare) {
            (Mode::Marked, _) => {
                let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
                inner.set_encode_special_tokens(false);
                let encoding = guarded(|| inner.encode(text, false));
                inner.set_encode_special_tokens(true);
                encoding
            }
            (Mode::Continuation, Some(bare)) => {
                let bare = bare.get_or_init(|| {
                    let mut copy = self.inner.read().unwrap_or_else(PoisonError::into_inner).clone();
                    if let Some((normalizer, pre_tokenizer)) = prefix(&copy) {
                        // Only tokens that are matched after normalising could make this fail, and
                        // they were normalised before: what fails is left as it was.
                        let _ = guarded(|| copy.with_normalizer(normalizer).map(|_| ()));
                        copy.with_pre_tokenizer(pre_tokenizer);
                    }
                    copy
                });
                guarded(|| bare.encode(text, false))
            }
            _ => {
                let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
                guarded(|| inner.encode(text, false))
            }
        };
        let encoding = encoding.map_err(|what| Error::Tokenizer {
            what: format!("`{}` cannot be encoded: {what}", shown(text)),
        })?;
        let ranges = encoding.get_offsets().iter().map(|&(start, end)| start..end);
        Ok(encoding.get_ids().iter().copied().zip(ranges).collect())
    }
}

/// Runs a call into the `tokenizers` crate, whose panics on hostile files become errors.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(format!("it contradicts itself ({})", text.unwrap_or("no reason given")))
        }
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// The small files beside `tokenizer.json`; `Null` for one that is absent.
struct Settings {
    tokenizer: Value,
    special: Value,
    generation: Value,
    config: Value,
    chat_template: Option<String>,
}

impl Settings {
    fn read(dir: &Path) -> Result<Self> {
        let json = |name: &str| -> Result<Value> {
            let path: PathBuf = dir.join(name);
            let Some(bytes) = read(&path)? else {
                return Ok(Value::Null);
            };
            serde_json::from_slice(&bytes).map_err(|error| Error::Corrupt {
                path,
                format: "JSON",
                what: error.to_string(),
            })
        };
        let tokenizer = json("tokenizer_config.json")?;
        let path = dir.join("chat_template.jinja");
        let chat_template = match read(&path)? {
            Some(bytes) => Some(String::from_utf8(bytes).map_err(|error| Error::Corrupt {
                path,
                format: "UTF-8 text",
                what: error.to_string(),
            })?),
            None => template_of(&tokenizer["chat_template"]),
        };
        Ok(Self {
            tokenizer,
            special: json("special_tokens_map.json")?,
            generation: json("generation_config.json")?,
            config: json("config.json")?,
            chat_template,
        })
    }

    /// A special token by its role: as the tokenizer's own files say, else `config.json`.
    fn special(&self, role: &str, id_of: impl Fn(&str) -> Option<u32>, count: usize) -> Option<u32> {
        for file in [&self.tokenizer, &self.special] {
            match file.get(role) {
                // Said to have none, whatever the model's configuration holds.
                Some(Value::Null) => return None,
                Some(Value::String(text)) => return id_of(text),
                Some(token) => return id_of(token["content"].as_str()?),
                None => {}
            }
        }
        let key = format!("{role}_id");
        let text = &self.config["text_config"];
        ids(&self.config[&key], count).chain(ids(&text[&key], count)).next()
    }

    fn generation_ends(&self, count: usize) -> impl Iterator<Item = u32> {
        let key = "eos_token_id";
        ids(&self.generation[key], count).chain(ids(&self.config[key], count))
    }

    /// Whether `add_bos_token` and `add_eos_token` overrule the post-processor: they do for the
    /// classes that rebuild it from them, others leave them unread.
    fn flags_rule(&self) -> bool {
        let class = self.tokenizer["tokenizer_class"].as_str().unwrap_or_default();
        ["Llama", "Gemma", "CodeLlama", "Cohere"]
            .iter()
            .any(|name| class.strip_suffix("Fast").unwrap_or(class).strip_suffix("Tokenizer") == Some(name))
    }

    fn obey(&self, flag: &str, id: Option<u32>, around: &mut Vec<u32>) {
        match (self.tokenizer[flag].as_bool(), id) {
            (Some(true), Some(id)) => *around = vec![id],
            (Some(false), _) => around.clear(),
            _ => {}
        }
    }
}

/// Ids given as a number or a list of numbers. A configuration may carry the defaults of its
/// family; what the vocabulary does not have is left out.
fn ids(value: &Value, count: usize) -> impl Iterator<Item = u32> {
    let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    let found = list.iter().filter_map(Value::as_u64).filter(move |&id| id < count as u64);
    found.filter_map(|id| u32::try_from(id).ok())
}

/// A template given as a string, or as a list of named ones of which `default` is meant.
fn template_of(value: &Value) -> Option<String> {
    if let Some(text) = value.as_str() {
        return Some(text.to_owned());
    }
    let named = value.as_array()?;
    let default = named.iter().find(|entry| entry["name"] == "default").or(named.first())?;
    default["template"].as_str().map(str::to_owned)
}

/// What stands before and behind `inner` in `outer`.
fn around(outer: &[u32], inner: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let at =
        (0..=outer.len().saturating_sub(inner.len())).find(|&at| outer[at..].starts_with(inner)).unwrap_or(0);
    let behind = outer.get(at + inner.len()..).unwrap_or_default();
    (outer[..at].to_vec(), behind.to_vec())
}

enum Fault {
    Corrupt(String),
    Unsupported(Error),
}

/// The vocabulary by id.
fn pieces(inner: &tokenizers::Tokenizer) -> Result<Pieces, Fault> {
    let alphabet = alphabet(inner).map_err(Fault::Unsupported)?;
    let vocabulary = inner.get_vocab(true);
    let added = inner.get_added_tokens_decoder();
    let Some(&highest) = vocabulary.values().chain(added.keys()).max() else {
        return Err(Fault::Corrupt("it has no tokens".into()));
    };
    if highest >= HIGHEST_ID {
        return Err(Fault::Corrupt(format!("it names id {highest}, expected ids below {HIGHEST_ID}")));
    }
    let mut text = vec![String::new(); highest as usize + 1];
    let mut kind = vec![Kind::Unused; text.len()];
    let bytes = alphabet == Alphabet::SentencePiece;
    for (piece, id) in vocabulary {
        let id = id as usize;
        if !text[id].is_empty() {
            return Err(Fault::Corrupt(format!(
                "id {id} is both `{}` and `{}`",
                shown(&text[id]),
                shown(&piece)
            )));
        }
        kind[id] = if bytes && byte_of(&piece).is_some() { Kind::Byte } else { Kind::Normal };
        text[id] = piece;
    }
    for (&id, token) in &added {
        let marked = if token.special { Kind::Control } else { Kind::UserDefined };
        text[id as usize].clone_from(&token.content);
        kind[id as usize] = marked;
    }
    Ok(Pieces { text, kind, alphabet })
}

/// How pieces are spelt, by the parts that undo the spelling.
fn alphabet(inner: &tokenizers::Tokenizer) -> Result<Alphabet> {
    let decoder = to_json(inner.get_decoder());
    let decoders = kinds(&decoder, "decoders");
    let others = [to_json(inner.get_pre_tokenizer()), to_json(inner.get_normalizer())];
    let byte_level = others.iter().any(|part| {
        kinds(part, "pretokenizers").chain(kinds(part, "normalizers")).any(|kind| kind == "ByteLevel")
    });
    let decoders: Vec<&str> = decoders.collect();
    if decoders.contains(&"ByteLevel") || (decoders.is_empty() && byte_level) {
        return Ok(Alphabet::ByteLevel);
    }
    let known = ["Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"];
    let tells = |kind: &&str| matches!(*kind, "Replace" | "ByteFallback" | "Metaspace");
    if decoders.iter().all(|kind| known.contains(kind)) && decoders.iter().any(tells) {
        return Ok(Alphabet::SentencePiece);
    }
    let what = if decoders.is_empty() {
        "a tokenizer without a decoder".into()
    } else {
        format!("a tokenizer that decodes by {}", decoders.join(", "))
    };
    Err(Error::Unsupported { what, known: Some("ByteLevel, Replace and ByteFallback, Metaspace".into()) })
}

fn to_json<T: serde::Serialize>(part: Option<&T>) -> Value {
    part.and_then(|part| serde_json::to_value(part).ok()).unwrap_or(Value::Null)
}

/// The parts of a component: itself, or those of a `Sequence`.
fn parts<'a>(component: &'a Value, list: &str) -> &'a [Value] {
    match component[list].as_array() {
        Some(parts) => parts,
        None if component.is_null() => &[],
        None => std::slice::from_ref(component),
    }
}

fn kinds<'a>(component: &'a Value, list: &str) -> impl Iterator<Item = &'a str> {
    parts(component, list).iter().filter_map(|part| part["type"].as_str())
}

fn decoder_strips(inner: &tokenizers::Tokenizer) -> bool {
    let decoder = to_json(inner.get_decoder());
    kinds(&decoder, "decoders").any(|kind| matches!(kind, "Strip" | "Metaspace"))
}

type Prefixless = (Option<NormalizerWrapper>, Option<PreTokenizerWrapper>);

/// Normaliser and pre-tokeniser without what puts a space first; `None` where nothing does.
fn prefix(inner: &tokenizers::Tokenizer) -> Option<Prefixless> {
    let mut normalizer = to_json(inner.get_normalizer());
    let mut pre_tokenizer = to_json(inner.get_pre_tokenizer());
    let mut found = false;
    let mut prepends = |part: &Value| {
        let is = part["type"] == "Prepend";
        found |= is;
        is
    };
    if prepends(&normalizer) {
        normalizer = Value::Null;
    } else if let Some(list) = normalizer["normalizers"].as_array_mut() {
        list.retain(|part| !prepends(part));
    }
    let own = match pre_tokenizer.get_mut("pretokenizers") {
        Some(Value::Array(list)) => list.as_mut_slice(),
        _ => std::slice::from_mut(&mut pre_tokenizer),
    };
    for part in own {
        if part["type"] == "Metaspace" && part["prepend_scheme"] != "never" {
            part["prepend_scheme"] = "never".into();
            found = true;
        } else if part["type"] == "ByteLevel" && part["add_prefix_space"] == true {
            part["add_prefix_space"] = false.into();
            found = true;
        }
    }
    let normalizer = serde_json::from_value(normalizer).ok();
    found.then(|| (normalizer, serde_json::from_value(pre_tokenizer).ok()))
}
