//! Byte-level BPE: words by rule, bytes merged by the vocabulary's list of merges.

use std::collections::HashMap;
use std::ops::Range;

use super::merge::{Merger, NO_ID, Pair};
use super::pieces::{Index, Kind, Pieces, Seeded, char_of_byte, shown};
use super::pretokenize::Rule;
use crate::{Error, Result};

/// The model behind `tokenizer.ggml.model = gpt2`.
#[derive(Debug)]
pub(super) struct ByteBpe {
    rule: Rule,
    index: Index,
    /// (left id, right id) → what they become.
    merges: HashMap<u64, Pair, Seeded>,
    /// The id of each single byte, or [`NO_ID`].
    bytes: [u32; 256],
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

impl ByteBpe {
    /// Resolves the merges against the vocabulary.
    ///
    /// # Errors
    /// If two tokens have the same text, or a merge names a piece that is absent.
    pub(super) fn new(rule: Rule, pieces: &Pieces, merges: &[String]) -> Result<Self> {
        let texts = &pieces.text;
        let index = Index::new(texts)?;
        let mut bytes = [NO_ID; 256];
        for byte in 0..=255_u8 {
            let text = char_of_byte(byte).encode_utf8(&mut [0; 4]).to_owned();
            bytes[usize::from(byte)] = index.get(texts, text.as_bytes()).unwrap_or(NO_ID);
        }
        let mut table = HashMap::with_capacity_and_hasher(merges.len(), Seeded::default());
        let mut joined = Vec::new();
        for (rank, merge) in merges.iter().enumerate() {
            let find = |piece: &[u8]| {
                index.get(texts, piece).ok_or_else(|| Error::Tokenizer {
                    what: format!(
                        "merge {rank} (`{}`) names the piece `{}`, which the vocabulary lacks",
                        shown(merge),
                        shown(&String::from_utf8_lossy(piece)),
                    ),
                })
            };
            // A piece may not be empty, so the separator is looked for behind the first character.
            let first = merge.chars().next().map_or(0, char::len_utf8);
            let gap = merge[first..].find(' ').map(|at| first + at);
            let Some((left, right)) = gap.map(|at| (&merge[..at], &merge[at + 1..])) else {
                return Err(Error::Tokenizer {
                    what: format!("merge {rank} (`{}`) is not two pieces", shown(merge)),
                });
            };
            joined.clear();
            joined.extend_from_slice(left.as_bytes());
            joined.extend_from_slice(right.as_bytes());
            let pair = key(find(left.as_bytes())?, find(right.as_bytes())?);
            let id = find(&joined)?;
            // Of a merge that is listed twice the first place counts.
            table.entry(pair).or_insert(Pair { rank: rank as u32, id });
        }
        Ok(Self { rule, index, merges: table, bytes })
    }

    /// Appends the tokens of `text[range]` with the bytes that each covers. A byte that is not in
    /// the vocabulary gives no token.
    pub(super) fn encode(
        &self,
        pieces: &Pieces,
        text: &str,
        range: Range<usize>,
        out: &mut Vec<(u32, Range<usize>)>,
    ) {
        let mut words = Vec::new();
        self.rule.words(text, range, &mut words);
        let mut merger = Merger::default();
        for word in words {
            if let Some(id) = self.whole(pieces, &text[word.clone()]) {
                out.push((id, word));
                continue;
            }
            merger.clear();
            for at in word {
                merger.push(at, at + 1, self.bytes[usize::from(text.as_bytes()[at])]);
            }
            merger.run(|a, b| self.merges.get(&key(a.id, b.id)).copied());
            let known = merger.symbols().filter(|s| s.id != NO_ID);
            out.extend(known.map(|s| (s.id, s.start..s.end)));
        }
    }

    fn whole(&self, pieces: &Pieces, word: &str) -> Option<u32> {
        if !self.rule.whole_words {
            return None;
        }
        let spelt: String = word.bytes().map(char_of_byte).collect();
        let id = self.index.get(&pieces.text, spelt.as_bytes())?;
        (pieces.kind[id as usize] == Kind::Normal).then_some(id)
    }
}
