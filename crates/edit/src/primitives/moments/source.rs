//! The text that moments are measured on, in batches that depend on nothing but the settings.

use std::fs;
use std::path::Path;

use mutandis_engine::tokenizer::Tokenizer;
use mutandis_engine::{Model, Pass, Read, Sampling, Sequence};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use super::MomentSpec;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::primitives::writing::{self, Line};

/// Sequences written side by side: enough to keep the products busy, few enough that their keys
/// and values stay small.
const LINES: usize = 32;

/// Rows of a pass over given text.
const ROWS: usize = 1024;

/// Bytes of running text encoded at once; cut at line ends.
const PIECE: usize = 16 * 1024;

/// Where keys come from.
pub(super) enum Source {
    /// Text that the model writes.
    Written { starts: Vec<Vec<u32>>, length: usize, seed: u64, sampling: Sampling },
    /// Windows of a corpus, and for each batch the windows in it.
    Corpus { windows: Vec<Vec<u32>>, batches: Vec<std::ops::Range<usize>> },
}

/// A source with what identifies it.
pub(super) struct Described {
    pub(super) source: Source,
    /// Everything that the keys depend on besides the model.
    pub(super) identity: serde_json::Value,
    /// For people.
    pub(super) name: String,
}

impl Described {
    /// The corpus of the context; the model's own text where it has none.
    pub(super) fn new(model: &Model, spec: &MomentSpec, cx: &Context<'_>) -> Result<Self> {
        let tokens = spec.budget(model)?;
        match &cx.corpus {
            Some(path) => Self::corpus(model, spec, tokens, path),
            None => Self::written(model, spec, tokens),
        }
    }

    fn written(model: &Model, spec: &MomentSpec, tokens: usize) -> Result<Self> {
        let length = spec.length.clamp(1, model.architecture().context);
        let starts = starts(model.tokenizer()?, spec, tokens.div_ceil(length))?;
        let source = Source::Written { starts, length, seed: spec.seed, sampling: spec.sampling };
        let identity = serde_json::json!({
            "written": { "length": length, "seed": spec.seed, "starts": spec.starts, "sampling": spec.sampling },
            "tokens": tokens,
        });
        Ok(Self { source, identity, name: format!("text written by the model, seed {}", spec.seed) })
    }

    fn corpus(model: &Model, spec: &MomentSpec, tokens: usize, path: &Path) -> Result<Self> {
        let text = read(path)?;
        let tokenizer = model.tokenizer()?;
        let before = tokenizer.encode("")?.ids;
        let window = spec.window.min(model.architecture().context).max(before.len() + 1);
        let mut windows: Vec<Vec<u32>> = vec![];
        let mut sum = 0;
        'pieces: for piece in pieces(path, &text) {
            let encoding = tokenizer.encode(&piece?)?;
            let plain = encoding.ids.strip_prefix(&before[..]).unwrap_or(&encoding.ids);
            for part in plain.chunks(window - before.len()) {
                let room = tokens - sum;
                let mut ids = [&before, part].concat();
                ids.truncate(room);
                sum += ids.len();
                windows.push(ids);
                if sum >= tokens {
                    break 'pieces;
                }
            }
        }
        if sum < 2 {
            return Err(Error::input_hint(
                format!("the corpus `{}` holds no text", path.display()),
                "give a text file, or a `.jsonl` whose objects have a `text`",
            ));
        }
        let mut batches = vec![];
        let mut from = 0;
        while from < windows.len() {
            let mut rows = 0;
            let fits = windows[from..].iter().take_while(|w| {
                rows += w.len();
                rows <= ROWS
            });
            let to = from + fits.count().max(1);
            batches.push(from..to);
            from = to;
        }
        let hash = blake3::hash(text.as_bytes()).to_hex();
        let identity = serde_json::json!({ "corpus": hash.as_str(), "window": window, "tokens": tokens });
        let name = format!("corpus `{}`", path.file_name().unwrap_or(path.as_os_str()).to_string_lossy());
        Ok(Self { source: Source::Corpus { windows, batches }, identity, name })
    }
}

impl Source {
    /// Number of batches.
    pub(super) fn batches(&self) -> usize {
        match self {
            Self::Written { starts, .. } => starts.len().div_ceil(LINES),
            Self::Corpus { batches, .. } => batches.len(),
        }
    }

    /// Tokens of the batches before one; of all, given their number.
    pub(super) fn tokens_before(&self, batch: usize) -> usize {
        match self {
            Self::Written { starts, length, .. } => (batch * LINES).min(starts.len()) * length,
            Self::Corpus { windows, batches } => {
                let end = batches[..batch].last().map_or(0, |b| b.end);
                windows[..end].iter().map(Vec::len).sum()
            }
        }
    }

    /// Runs a batch. `visit` sees, for each pass, which sequence each row belongs to (counted
    /// over all batches), and one `[rows, width]` per read.
    pub(super) fn run(
        &self,
        model: &Model,
        batch: usize,
        reads: &[Read],
        cx: &Context<'_>,
        mut visit: impl FnMut(&[usize], Vec<Vec<f32>>),
    ) -> Result<()> {
        match self {
            Self::Written { starts, length, seed, sampling } => {
                let first = batch * LINES;
                let last = (first + LINES).min(starts.len());
                let mut lines: Vec<Line> = (first..last)
                    .map(|i| Line::new(model, starts[i].clone(), *length, *seed, i as u64))
                    .collect();
                writing::write(model, &mut lines, sampling, reads, true, |rows, keys| {
                    cx.check()?;
                    let sequences: Vec<usize> = rows.iter().map(|r| first + r).collect();
                    visit(&sequences, keys);
                    Ok(())
                })
            }
            Self::Corpus { windows, batches } => {
                cx.check()?;
                let range = batches[batch].clone();
                let sequences = windows[range.clone()]
                    .iter()
                    .map(|w| Sequence { tokens: w, ..Sequence::default() })
                    .collect();
                let pass = Pass { sequences, reads: reads.to_vec(), ..Pass::default() };
                let outcome = model.forward(pass)?;
                let rows: Vec<usize> = range.flat_map(|i| std::iter::repeat_n(i, windows[i].len())).collect();
                visit(&rows, outcome.reads);
                Ok(())
            }
        }
    }
}

/// First tokens of so many sequences: the given words in turn; without them what the tokenizer
/// puts before every text (BOS); and where it puts nothing, words drawn from the vocabulary.
fn starts(tokenizer: &Tokenizer, spec: &MomentSpec, count: usize) -> Result<Vec<Vec<u32>>> {
    if let Some(words) = spec.starts.as_ref().filter(|words| !words.is_empty()) {
        let ids: Vec<Vec<u32>> = words.iter().map(|w| Ok(tokenizer.encode(w)?.ids)).collect::<Result<_>>()?;
        if let Some(at) = ids.iter().position(Vec::is_empty) {
            return Err(Error::input(format!("the start `{}` has no token", words[at])));
        }
        return Ok(ids.into_iter().cycle().take(count).collect());
    }
    let before = tokenizer.encode("")?.ids;
    if !before.is_empty() {
        return Ok(vec![before; count]);
    }
    let all = 0..tokenizer.vocabulary_len() as u32;
    let mut words: Vec<u32> = all.clone().filter(|&id| opens_a_text(tokenizer, id)).collect();
    if words.is_empty() {
        words = all.filter(|&id| !tokenizer.is_special(id)).collect();
    }
    if words.is_empty() {
        return Err(Error::input("the vocabulary has no token that stands for text"));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(spec.seed);
    // Lines have the streams from 0 on; this one is its own.
    rng.set_stream(u64::MAX);
    Ok((0..count).map(|_| vec![words[(rng.next_u64() % words.len() as u64) as usize]]).collect())
}

/// Whether a token is a word as it stands at the start of a text.
fn opens_a_text(tokenizer: &Tokenizer, id: u32) -> bool {
    if tokenizer.is_special(id) {
        return false;
    }
    let bytes = tokenizer.piece_bytes(id);
    let Ok(text) = std::str::from_utf8(&bytes) else { return false };
    text.starts_with(char::is_uppercase)
        && text.chars().count() > 1
        && text.chars().skip(1).all(char::is_lowercase)
}

fn read(path: &Path) -> Result<String> {
    if path.is_dir() {
        return Err(Error::input_hint(
            format!("the corpus `{}` is a folder, expected a file", path.display()),
            "join its texts into one file, or into a `.jsonl` whose objects have a `text`",
        ));
    }
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    String::from_utf8(bytes).map_err(|e| {
        Error::input_hint(
            format!(
                "the corpus `{}` is not UTF-8 text (byte {})",
                path.display(),
                e.utf8_error().valid_up_to()
            ),
            "give a plain text file, or a `.jsonl` whose objects have a `text`",
        )
    })
}

/// Texts of a corpus: those of a `.jsonl`, or running text in pieces cut at line ends.
fn pieces<'a>(path: &'a Path, text: &'a str) -> Box<dyn Iterator<Item = Result<String>> + 'a> {
    let is_jsonl = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jsonl"));
    if is_jsonl {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        return Box::new(lines.map(|(i, line)| {
            let object: serde_json::Value = serde_json::from_str(line).map_err(|e| {
                Error::input(format!("line {} of `{}` is not JSON: {e}", i + 1, path.display()))
            })?;
            object.get("text").and_then(|t| t.as_str()).map(str::to_owned).ok_or_else(|| {
                Error::input_hint(
                    format!("line {} of `{}` has no string `text`", i + 1, path.display()),
                    "each line is one JSON object with a `text`",
                )
            })
        }));
    }
    let mut rest = text;
    Box::new(std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut end = rest.len();
        if end > PIECE {
            end = rest.floor_char_boundary(PIECE);
            if let Some(line) = rest[..end].rfind('\n') {
                end = line + 1;
            }
        }
        let (now, later) = rest.split_at(end);
        rest = later;
        Some(Ok(now.to_owned()))
    }))
}
