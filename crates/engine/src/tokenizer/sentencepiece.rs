//! BPE as SentencePiece does it: characters merged by the score of the piece that they make, and
//! bytes for what the vocabulary cannot spell.

use std::ops::Range;

use super::merge::{Merger, NO_ID, Pair};
use super::pieces::{Index, Kind, Pieces, SPACE};
use crate::{Error, Result};

/// The model behind `tokenizer.ggml.model = llama`.
#[derive(Debug)]
pub(super) struct SentencePiece {
    index: Index,
    /// By id: lower merges first. Order-reversing image of the scores.
    ranks: Vec<u32>,
    /// The id of each single byte; where there is none, that of the unknown token or [`NO_ID`].
    bytes: [u32; 256],
    /// Bytes of the longest piece: nothing longer need be looked up.
    longest: usize,
}

impl SentencePiece {
    /// # Errors
    /// If two tokens have the same text, or the scores are too few, too many or NaN.
    pub(super) fn new(pieces: &Pieces, scores: &[f32], unknown: Option<u32>) -> Result<Self> {
        let texts = &pieces.text;
        if scores.len() != texts.len() {
            return Err(Error::Tokenizer {
                what: format!("{} scores for {} tokens", scores.len(), texts.len()),
            });
        }
        if let Some(id) = scores.iter().position(|score| score.is_nan()) {
            return Err(Error::Tokenizer { what: format!("the score of token {id} is NaN") });
        }
        let index = Index::new(texts)?;
        let mut bytes = [unknown.unwrap_or(NO_ID); 256];
        for byte in 0..=255_u8 {
            let id = index.get(texts, format!("<0x{byte:02X}>").as_bytes());
            let own = || byte.is_ascii().then(|| index.get(texts, &[byte])).flatten();
            if let Some(id) = id.or_else(own) {
                bytes[usize::from(byte)] = id;
            }
        }
        let longest = texts.iter().map(String::len).max().unwrap_or(0);
        let ranks = scores.iter().map(|&score| descending(score)).collect();
        Ok(Self { index, ranks, bytes, longest })
    }

    /// Appends the tokens of `text[range]` with the bytes of `text` that each covers. With
    /// `prefixed`, as if a space stood before it.
    pub(super) fn encode(
        &self,
        pieces: &Pieces,
        text: &str,
        range: Range<usize>,
        prefixed: bool,
        out: &mut Vec<(u32, Range<usize>)>,
    ) {
        let spelt = spell(&text[range.clone()], prefixed);
        let mut merger = Merger::default();
        for (at, c) in spelt.char_indices() {
            let end = at + c.len_utf8();
            let id = self.find(pieces, &spelt.as_bytes()[at..end]).unwrap_or(NO_ID);
            merger.push(at, end, id);
        }
        merger.run(|a, b| {
            let id = self.find(pieces, &spelt.as_bytes()[a.start..b.end])?;
            Some(Pair { rank: self.ranks[id as usize], id })
        });
        // Where the next token starts in `text`: symbols are whole characters, in order.
        let mut source = range.start;
        for symbol in merger.symbols() {
            let piece = &spelt[symbol.start..symbol.end];
            let made_up = usize::from(prefixed && symbol.start == 0);
            let characters = piece.chars().count() - made_up;
            let rest = &text[source..range.end];
            let length = rest.char_indices().nth(characters).map_or(rest.len(), |(at, _)| at);
            let covered = source..source + length;
            source = covered.end;
            if symbol.id != NO_ID {
                out.push((symbol.id, covered));
                continue;
            }
            let bytes = piece.bytes().map(|byte| self.bytes[usize::from(byte)]);
            out.extend(bytes.filter(|&id| id != NO_ID).map(|id| (id, covered.clone())));
        }
    }

    /// The piece that plain text may become: special tokens and bytes are not spelt, so text that
    /// looks like one stays text.
    fn find(&self, pieces: &Pieces, key: &[u8]) -> Option<u32> {
        if key.len() > self.longest {
            return None;
        }
        let id = self.index.get(&pieces.text, key)?;
        let kind = pieces.kind[id as usize];
        matches!(kind, Kind::Normal | Kind::UserDefined | Kind::Unused).then_some(id)
    }
}

/// Spaces escaped, and one put first if asked for.
fn spell(text: &str, prefixed: bool) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 2 + SPACE.len_utf8());
    out.extend(prefixed.then_some(SPACE));
    out.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
    out
}

/// An integer that orders as the negated score does; both zeros are one.
fn descending(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    // Sign and magnitude to two's complement order, then reversed.
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_reverse_the_order_of_scores() {
        let scores = [f32::INFINITY, 3.5, 1e-40, 0.0, -1e-40, -1.0, -1000.0, f32::NEG_INFINITY];
        assert!(scores.windows(2).all(|w| descending(w[0]) < descending(w[1])));
        assert_eq!(descending(0.0), descending(-0.0));
    }
}
