//! Tokenizers from the vocabulary that a GGUF carries.

use super::byte_bpe::ByteBpe;
use super::pieces::{Alphabet, Kind, Literals, Pieces, byte_of};
use super::pretokenize::Rule;
use super::sentencepiece::SentencePiece;
use super::{Backend, ENDS, Native, NativeModel, Tokenizer, end_of_generation};
use crate::{Error, Result};

/// llama.cpp takes this for an end of text in every vocabulary, and so spells it out where it is
/// plain text, even where it is declared as a literal: Gemma's `</s>` is HTML's strike-through.
/// The golden ids are llama.cpp's.
const SPELT_OUT: &str = "</s>";

/// The `tokenizer.*` keys of a GGUF, as they stand in the file; nothing of it is trusted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufVocabulary {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece-like BPE).
    pub model: String,
    /// `tokenizer.ggml.pre`: the pre-tokenisation rule of byte-level BPE.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`: text by id.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`: needed by `llama`, one for each token.
    pub scores: Option<Vec<f32>>,
    /// `tokenizer.ggml.token_type`: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused,
    /// 6 byte; one for each token.
    pub token_types: Option<Vec<i32>>,
    /// `tokenizer.ggml.merges`: needed by `gpt2`; two pieces with a space between, best first.
    pub merges: Option<Vec<String>>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`: end of turn.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.eom_token_id`: end of message.
    pub eom: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unk: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub pad: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`. Absent: yes for `llama`, by the rule of `pre` for `gpt2`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`. Absent: no.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`. Absent: yes for `llama`, no for `gpt2`.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

impl Tokenizer {
    /// Builds the tokenizer of a GGUF from its own vocabulary.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another model or pre-tokenisation rule; [`Error::Tokenizer`] if
    /// the vocabulary contradicts itself: no tokens, two with the same text, lists of different
    /// lengths, a merge of absent pieces, a special id out of range.
    pub fn from_gguf(parts: GgufVocabulary) -> Result<Self> {
        let sentencepiece = match parts.model.as_str() {
            "gpt2" => false,
            "llama" => true,
            other => {
                return Err(Error::Unsupported {
                    what: format!("the tokenizer model `{}`", super::pieces::shown(other)),
                    known: Some("gpt2, llama".into()),
                });
            }
        };
        let alphabet = if sentencepiece { Alphabet::SentencePiece } else { Alphabet::ByteLevel };
        let count = parts.tokens.len();
        if count == 0 || u32::try_from(count).is_err() {
            return Err(fault(format!("a vocabulary of {count} tokens")));
        }
        let kind = match &parts.token_types {
            Some(types) if types.len() != count => {
                return Err(fault(format!("{} token types for {count} tokens", types.len())));
            }
            Some(types) => types.iter().enumerate().map(kind_of).collect::<Result<_>>()?,
            None => parts
                .tokens
                .iter()
                .map(|text| match byte_of(text) {
                    Some(_) if sentencepiece => Kind::Byte,
                    _ => Kind::Normal,
                })
                .collect(),
        };
        let mut pieces = Pieces { text: parts.tokens, kind, alphabet };

        // Some files call their ends of turns plain or user-defined; plain text must not become
        // one all the same.
        for (text, kind) in pieces.text.iter().zip(&mut pieces.kind) {
            if ENDS.contains(&text.as_str()) {
                *kind = Kind::Control;
            }
        }

        let declared = [
            ("bos_token_id", parts.bos),
            ("eos_token_id", parts.eos),
            ("eot_token_id", parts.eot),
            ("eom_token_id", parts.eom),
            ("unknown_token_id", parts.unk),
            ("padding_token_id", parts.pad),
        ];
        for (name, id) in declared {
            if let Some(id) = id.filter(|&id| id as usize >= count) {
                return Err(fault(format!("`{name}` is {id}, but there are {count} tokens")));
            }
        }
        // What SentencePiece calls them unless told otherwise.
        let usual = |text: &str| {
            let at = pieces.text.iter().take(16).position(|have| sentencepiece && have == text)?;
            u32::try_from(at).ok()
        };
        let bos = parts.bos.or_else(|| usual("<s>"));
        let eos = parts.eos.or_else(|| usual("</s>"));
        let unk = parts.unk.or_else(|| usual("<unk>"));
        if parts.token_types.is_none() {
            for id in [bos, eos, parts.eot, parts.eom, parts.pad].into_iter().flatten() {
                pieces.kind[id as usize] = Kind::Control;
            }
            if let Some(id) = unk {
                pieces.kind[id as usize] = Kind::Unknown;
            }
        }

        let (model, bos_by_rule) = if sentencepiece {
            let scores = parts.scores.ok_or_else(|| missing("scores", "llama"))?;
            (NativeModel::SentencePiece(SentencePiece::new(&pieces, &scores, unk)?), true)
        } else {
            let rule = Rule::named(parts.pre.as_deref())?;
            let merges = parts.merges.ok_or_else(|| missing("merges", "gpt2"))?;
            (NativeModel::ByteBpe(ByteBpe::new(rule, &pieces, &merges)?), rule.add_bos)
        };
        let ends = |name, wanted: Option<bool>, default: bool, id: Option<u32>| match (wanted, id) {
            (Some(true), None) => {
                Err(fault(format!("`{name}` is set, but the vocabulary names no such token")))
            }
            (wanted, id) => Ok(id.filter(|_| wanted.unwrap_or(default)).into_iter().collect()),
        };
        let before = ends("add_bos_token", parts.add_bos, bos_by_rule, bos)?;
        let after = ends("add_eos_token", parts.add_eos, false, eos)?;
        let space_prefix = parts.add_space_prefix.unwrap_or(sentencepiece) && sentencepiece;
        let eos = end_of_generation(&pieces, [eos, parts.eot, parts.eom].into_iter().flatten());
        let native = Native {
            model,
            literals: Literals::new(&pieces, |text, kind| kind == Kind::UserDefined && text != SPELT_OUT),
            specials: Literals::new(&pieces, |_, kind| {
                matches!(kind, Kind::UserDefined | Kind::Control | Kind::Unknown)
            }),
            space_prefix,
        };
        Ok(Self {
            backend: Backend::Native(Box::new(native)),
            pieces,
            bos,
            eos,
            before,
            after,
            strips_space: space_prefix,
            chat_template: parts.chat_template,
        })
    }
}

fn fault(what: String) -> Error {
    Error::Tokenizer { what }
}

fn missing(key: &str, model: &str) -> Error {
    fault(format!("`tokenizer.ggml.{key}` is missing, which a `{model}` vocabulary needs"))
}

fn kind_of((id, code): (usize, &i32)) -> Result<Kind> {
    Ok(match code {
        // 0 is "undefined", which the format leaves to the reader.
        0 | 1 => Kind::Normal,
        2 => Kind::Unknown,
        3 => Kind::Control,
        4 => Kind::UserDefined,
        5 => Kind::Unused,
        6 => Kind::Byte,
        _ => {
            return Err(fault(format!("token {id} has type {code}, expected 1 to 6")));
        }
    })
}
