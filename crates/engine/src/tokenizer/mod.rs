//! Tokenizers: text to ids with character offsets, ids to text, and chat templates.
//!
//! One [`Tokenizer`] whatever the source: a Hugging Face directory (`from_dir`), or the vocabulary
//! inside a GGUF (`from_gguf`, written for start-up in a few hundredths of a second). Text that
//! looks like a special token is text, except in [`Tokenizer::encode_with_specials`].

mod byte_bpe;
mod categories;
mod chat;
mod checkpoint;
mod directory;
mod gguf;
mod merge;
mod pieces;
mod pretokenize;
mod sentencepiece;
mod stream;

use std::ops::Range;

pub use chat::{ChatTemplate, Message};
pub use gguf::GgufVocabulary;
pub use stream::StreamDecoder;

use crate::{Error, Result};
use byte_bpe::ByteBpe;
use directory::Directory;
use pieces::{Kind, Literals, Pieces};
use sentencepiece::SentencePiece;

/// A text as tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoding {
    /// Ids, `[t]`.
    pub ids: Vec<u32>,
    /// For each id the characters (not bytes) of the text that it covers, `[t]`, in order.
    ///
    /// A token that the tokenizer adds (BOS, EOS, a space put first) covers nothing. A character
    /// spelt by several byte tokens lies in the range of each of them. A character that the
    /// vocabulary cannot spell, not even in part, lies in none.
    pub offsets: Vec<Range<usize>>,
}

impl Encoding {
    /// The last token that covers a character; `None` if there is none, or no such character.
    ///
    /// Of a character spelt by several byte tokens it is the last: the one that has seen it whole.
    pub fn token_at_char(&self, char_index: usize) -> Option<usize> {
        let after = self.offsets.partition_point(|range| range.start <= char_index);
        self.offsets[..after].iter().rposition(|range| range.contains(&char_index))
    }

    /// Assembles an encoding from tokens with the bytes that they cover, in order.
    fn assemble(text: &str, tokens: &[(u32, Range<usize>)], before: &[u32], after: &[u32]) -> Self {
        let count = before.len() + tokens.len() + after.len();
        let mut ids = Vec::with_capacity(count);
        let mut offsets = Vec::with_capacity(count);
        ids.extend_from_slice(before);
        offsets.resize(before.len(), 0..0);
        // By byte, the index of the character that it belongs to.
        let characters: Option<Vec<usize>> = (!text.is_ascii()).then(|| {
            let each = text.chars().enumerate();
            each.flat_map(|(i, c)| std::iter::repeat_n(i, c.len_utf8())).collect()
        });
        let index = |byte: usize| match &characters {
            Some(of) => of[byte],
            None => byte,
        };
        let total = text.len().checked_sub(1).map_or(0, |last| index(last) + 1);
        let mut floor = 0;
        for (id, range) in tokens {
            let start = if range.start < text.len() { index(range.start) } else { total };
            let end = match range.end.min(text.len()).checked_sub(1) {
                Some(last) if range.end > range.start => index(last) + 1,
                _ => start,
            };
            // A normaliser may reorder; offsets stay in order all the same.
            floor = start.max(floor);
            ids.push(*id);
            offsets.push(floor..end.max(floor));
        }
        ids.extend_from_slice(after);
        offsets.resize(count, total..total);
        Self { ids, offsets }
    }
}

/// Whether special tokens show in decoded text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// Leave them out.
    Skip,
    /// Write them as the vocabulary does (`<|im_end|>`).
    Keep,
}

/// A model's tokenizer. Cheap to share by reference between threads.
pub struct Tokenizer {
    backend: Backend,
    pieces: Pieces,
    bos: Option<u32>,
    eos: Vec<u32>,
    /// Put before every text that is encoded whole.
    before: Vec<u32>,
    /// Put behind it.
    after: Vec<u32>,
    /// Whether encoding puts a space first that decoding takes away.
    strips_space: bool,
    chat_template: Option<String>,
}

enum Backend {
    Native(Box<Native>),
    Directory(Box<Directory>),
}

/// The tokenizers written here.
#[derive(Debug)]
struct Native {
    model: NativeModel,
    /// User-defined tokens, found in any text.
    literals: Literals,
    /// Those and the special ones.
    specials: Literals,
    space_prefix: bool,
}

#[derive(Debug)]
enum NativeModel {
    ByteBpe(ByteBpe),
    SentencePiece(SentencePiece),
}

/// What is asked of an encoding, beside the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// A text from its start.
    Whole,
    /// Text that goes on from other text.
    Continuation,
    /// A text from its start that holds special tokens.
    Marked,
}

impl Tokenizer {
    /// Encodes a text from its start, with what the model's own rule adds (BOS, rarely EOS).
    ///
    /// # Errors
    /// Never for a tokenizer from a GGUF. One from a `tokenizer.json` may fail where its own parts
    /// do, such as an expression that gives up on a text.
    pub fn encode(&self, text: &str) -> Result<Encoding> {
        let tokens = self.tokens(text, Mode::Whole)?;
        Ok(Encoding::assemble(text, &tokens, &self.before, &self.after))
    }

    /// Encodes text that continues other text: nothing is added, neither BOS nor the space that
    /// some models put first. What stands in `text` is all there is.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_continuation(&self, text: &str) -> Result<Encoding> {
        let tokens = self.tokens(text, Mode::Continuation)?;
        Ok(Encoding::assemble(text, &tokens, &[], &[]))
    }

    /// Encodes a text in which special tokens stand as such, as chat templates write it. Nothing
    /// is added: a template writes its own BOS.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_with_specials(&self, text: &str) -> Result<Encoding> {
        let tokens = self.tokens(text, Mode::Marked)?;
        Ok(Encoding::assemble(text, &tokens, &[], &[]))
    }

    /// The text of a whole sequence. Bytes that are no UTF-8 become U+FFFD; the space that
    /// encoding puts first is taken away; ids out of range stand for nothing.
    pub fn decode(&self, ids: &[u32], specials: Specials) -> String {
        let mut bytes = self.decode_bytes(ids, specials);
        // Special tokens before the text do not hide its first space.
        let first = ids.iter().position(|&id| !self.pieces.is_special(id)).unwrap_or(ids.len());
        let lead = self.decode_bytes(&ids[..first], specials).len();
        if self.strips_space && bytes.get(lead) == Some(&b' ') {
            bytes.remove(lead);
        }
        lossy(bytes)
    }

    /// The text of ids that continue other text: a leading space stays.
    pub fn decode_continuation(&self, ids: &[u32], specials: Specials) -> String {
        lossy(self.decode_bytes(ids, specials))
    }

    /// Decodes one id after another while generating; see [`StreamDecoder`].
    pub fn stream(&self, specials: Specials) -> StreamDecoder<'_> {
        StreamDecoder::new(self, specials)
    }

    /// One token as text to show, special tokens as the vocabulary writes them. Bytes that are no
    /// UTF-8 by themselves are written `<0xXX>`.
    pub fn piece(&self, id: u32) -> String {
        let bytes = self.pieces.bytes(id);
        let mut out = String::new();
        for chunk in bytes.utf8_chunks() {
            out.push_str(chunk.valid());
            out.extend(chunk.invalid().iter().map(|byte| format!("<0x{byte:02X}>")));
        }
        out
    }

    /// The bytes that a token stands for; none for an id out of range.
    pub fn piece_bytes(&self, id: u32) -> Vec<u8> {
        self.pieces.bytes(id)
    }

    /// The highest id plus one.
    pub fn vocabulary_len(&self) -> usize {
        self.pieces.text.len()
    }

    /// The token that begins a text, whether or not [`Self::encode`] adds it.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// All tokens that end what a model generates: the declared end first, then ends of turns.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    /// Whether an id is a special token, which plain text never becomes.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.is_special(id)
    }

    /// The id of a token by its text as the vocabulary writes it.
    pub fn id_of(&self, text: &str) -> Option<u32> {
        let at = self.pieces.text.iter().position(|have| !have.is_empty() && have == text)?;
        u32::try_from(at).ok()
    }

    /// Checks the tokenizer against the rows of the model's embedding.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if an id has no row, or if more than half of the rows have no token:
    /// embeddings are padded, but not that far.
    pub fn validate(&self, vocabulary: usize) -> Result<()> {
        // Room for the padding of models so small that half of the rows says nothing.
        const SLACK: usize = 1024;
        let tokens = self.vocabulary_len();
        let fault = if tokens > vocabulary {
            "more tokens than rows"
        } else if vocabulary / 2 > tokens + SLACK {
            "less than half of the rows have a token"
        } else {
            return Ok(());
        };
        Err(Error::Tokenizer {
            what: format!(
                "it has {tokens} tokens, but the model's embedding has {vocabulary} rows ({fault}): \
                 it belongs to another model"
            ),
        })
    }

    /// How text is cut, in a word: `byte-level-bpe` or `sentencepiece` for a GGUF's vocabulary,
    /// `tokenizer.json` where that file says how.
    pub fn kind(&self) -> &'static str {
        match &self.backend {
            Backend::Directory(_) => "tokenizer.json",
            Backend::Native(native) => match native.model {
                NativeModel::ByteBpe(_) => "byte-level-bpe",
                NativeModel::SentencePiece(_) => "sentencepiece",
            },
        }
    }

    /// Whether a chat template came with the tokenizer.
    pub fn has_chat_template(&self) -> bool {
        self.chat_template.is_some()
    }

    /// The chat template that came with the tokenizer.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] if there is none, or it is not valid.
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        let source = self.chat_template.as_deref().ok_or_else(|| Error::ChatTemplate {
            what: "the model has none: it was not trained to chat".into(),
        })?;
        let text = |id: Option<u32>| self.pieces.text.get(id? as usize).cloned();
        ChatTemplate::new(source, text(self.bos), text(self.eos.first().copied()))
    }

    fn tokens(&self, text: &str, mode: Mode) -> Result<Vec<(u32, Range<usize>)>> {
        match &self.backend {
            Backend::Native(native) => Ok(native.tokens(&self.pieces, text, mode)),
            Backend::Directory(directory) => directory.tokens(text, mode),
        }
    }

    fn decode_bytes(&self, ids: &[u32], specials: Specials) -> Vec<u8> {
        let mut bytes = Vec::new();
        for &id in ids {
            if specials == Specials::Keep || !self.pieces.is_special(id) {
                self.pieces.append_bytes(id, &mut bytes);
            }
        }
        bytes
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let source = match &self.backend {
            Backend::Native(_) => "GGUF",
            Backend::Directory(_) => "tokenizer.json",
        };
        f.debug_struct("Tokenizer")
            .field("source", &source)
            .field("tokens", &self.vocabulary_len())
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .field("before", &self.before)
            .field("after", &self.after)
            .finish_non_exhaustive()
    }
}

impl Native {
    fn tokens(&self, pieces: &Pieces, text: &str, mode: Mode) -> Vec<(u32, Range<usize>)> {
        let literals = if mode == Mode::Marked { &self.specials } else { &self.literals };
        let mut out = Vec::new();
        // A space is put first at the start of a text and behind each token found whole.
        let mut prefixed = self.space_prefix && mode != Mode::Continuation;
        for fragment in literals.cut(text) {
            match (fragment.token, &self.model) {
                (Some(id), _) => {
                    out.push((id, fragment.range));
                    prefixed = self.space_prefix;
                    continue;
                }
                (None, NativeModel::ByteBpe(model)) => {
                    model.encode(pieces, text, fragment.range, &mut out);
                }
                (None, NativeModel::SentencePiece(model)) => {
                    model.encode(pieces, text, fragment.range, prefixed, &mut out);
                }
            }
            prefixed = false;
        }
        out
    }
}

/// What models call the tokens that end a turn or a document.
const ENDS: [&str; 10] = [
    "<|im_end|>",
    "<end_of_turn>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|return|>",
    "<|call|>",
    "<EOT>",
];

/// `declared`, and the tokens that are known to end a turn or a document, each once.
fn end_of_generation(pieces: &Pieces, declared: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut ids = Vec::new();
    for id in declared {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    let marks = |kind| matches!(kind, Kind::Control | Kind::UserDefined);
    for (id, text) in pieces.text.iter().enumerate() {
        let id = id as u32;
        if marks(pieces.kind[id as usize]) && ENDS.contains(&text.as_str()) && !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}
