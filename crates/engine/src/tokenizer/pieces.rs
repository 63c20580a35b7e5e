//! The vocabulary itself: what each id stands for, and how to find an id by its text.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;

use crate::{Error, Result};

/// What a token is, as GGUF numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An ordinary piece.
    Normal,
    /// Stands for what the vocabulary cannot say.
    Unknown,
    /// A special token: never made from plain text.
    Control,
    /// A literal string that is always one token.
    UserDefined,
    /// Reserved.
    Unused,
    /// One byte, written `<0xXX>`.
    Byte,
}

/// How the text of an ordinary piece spells its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alphabet {
    /// One printable character for each byte (GPT-2).
    ByteLevel,
    /// UTF-8 with `▁` (U+2581) for a space (SentencePiece).
    SentencePiece,
}

/// The escaped space of SentencePiece.
pub(super) const SPACE: char = '\u{2581}';

/// Every token's text and kind, by id.
#[derive(Debug)]
pub(super) struct Pieces {
    /// Text, by id; empty for an id that has none.
    pub(super) text: Vec<String>,
    /// Kind, by id.
    pub(super) kind: Vec<Kind>,
    /// How ordinary pieces are spelt.
    pub(super) alphabet: Alphabet,
}

impl Pieces {
    /// The bytes that a token stands for; none for an id out of range.
    pub(super) fn bytes(&self, id: u32) -> Vec<u8> {
        let mut out = Vec::new();
        self.append_bytes(id, &mut out);
        out
    }

    /// [`Self::bytes`], appended.
    pub(super) fn append_bytes(&self, id: u32, out: &mut Vec<u8>) {
        let Some(text) = self.text.get(id as usize) else {
            return;
        };
        match (self.kind[id as usize], self.alphabet) {
            (Kind::Control | Kind::Unknown, _) | (Kind::UserDefined, Alphabet::ByteLevel) => {
                out.extend_from_slice(text.as_bytes());
            }
            (Kind::Byte, _) => match byte_of(text) {
                Some(byte) => out.push(byte),
                None => out.extend_from_slice(text.as_bytes()),
            },
            (_, Alphabet::ByteLevel) => {
                for c in text.chars() {
                    match byte_of_char(c) {
                        Some(byte) => out.push(byte),
                        None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                    }
                }
            }
            (_, Alphabet::SentencePiece) => {
                for (i, part) in text.split(SPACE).enumerate() {
                    if i > 0 {
                        out.push(b' ');
                    }
                    out.extend_from_slice(part.as_bytes());
                }
            }
        }
    }

    /// Whether a token is a mark rather than text.
    pub(super) fn is_special(&self, id: u32) -> bool {
        matches!(self.kind.get(id as usize), Some(Kind::Control | Kind::Unknown))
    }
}

/// The byte that `<0xXX>` names.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let hex = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    hex.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// The character that stands for a byte in byte-level vocabularies: printable bytes stand for
/// themselves, the other 68 are moved to U+0100 and up, in order.
pub(super) fn char_of_byte(byte: u8) -> char {
    let moved = match byte {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => return char::from(byte),
        0x00..=0x20 => u32::from(byte),
        0x7F..=0xA0 => u32::from(byte) - 0x7F + 33,
        0xAD => 67,
    };
    char::from_u32(0x100 + moved).expect("U+0100 to U+0143 are characters")
}

/// The byte that a character of a byte-level vocabulary stands for.
pub(super) fn byte_of_char(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// A multiplying hash with a seed of its own: a quarter of the cost of the standard one over
/// hundreds of thousands of short keys, and a file cannot aim at its collisions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seeded(u64);

impl Default for Seeded {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0_u8))
    }
}

impl Seeded {
    fn hash_bytes(self, bytes: &[u8]) -> u64 {
        let mut mix = Mix(self.0);
        mix.write(bytes);
        mix.finish()
    }
}

impl BuildHasher for Seeded {
    type Hasher = Mix;

    fn build_hasher(&self) -> Mix {
        Mix(self.0)
    }
}

/// The state of [`Seeded`].
#[derive(Debug)]
pub(super) struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
        self.write_u64(bytes.len() as u64);
    }

    fn write_u64(&mut self, word: u64) {
        // Both halves of the 128-bit product: every input bit reaches every output bit.
        let product = u128::from(self.0 ^ word) * 0x9E37_79B9_7F4A_7C15_u128;
        self.0 = (product as u64) ^ ((product >> 64) as u64) ^ word.rotate_left(29);
    }

    fn finish(&self) -> u64 {
        let product = u128::from(self.0) * 0xD6E8_FEB8_6659_FD93_u128;
        (product as u64) ^ ((product >> 64) as u64)
    }
}

/// Ids by text: open addressing over the texts that [`Pieces`] already holds.
#[derive(Debug)]
pub(super) struct Index {
    /// (upper half of the hash, id); an id of `u32::MAX` is a free slot.
    slots: Vec<(u32, u32)>,
    seed: Seeded,
}

impl Index {
    /// Indexes every text but the empty ones.
    ///
    /// # Errors
    /// If two ids have the same text.
    pub(super) fn new(texts: &[String]) -> Result<Self> {
        let capacity = (texts.len() * 2).next_power_of_two().max(16);
        let mut index = Self { slots: vec![(0, u32::MAX); capacity], seed: Seeded::default() };
        for (id, text) in texts.iter().enumerate() {
            if text.is_empty() {
                continue;
            }
            match index.find(texts, text.as_bytes()) {
                Ok(other) => {
                    return Err(Error::Tokenizer {
                        what: format!("tokens {other} and {id} are both `{}`", shown(text)),
                    });
                }
                Err((slot, tag)) => index.slots[slot] = (tag, id as u32),
            }
        }
        Ok(index)
    }

    /// The id of a text. `texts` is what the index was built from.
    pub(super) fn get(&self, texts: &[String], key: &[u8]) -> Option<u32> {
        self.find(texts, key).ok()
    }

    fn find(&self, texts: &[String], key: &[u8]) -> Result<u32, (usize, u32)> {
        let hash = self.seed.hash_bytes(key);
        let (mask, tag) = (self.slots.len() - 1, (hash >> 32) as u32);
        let mut slot = hash as usize & mask;
        loop {
            match self.slots[slot] {
                (_, u32::MAX) => return Err((slot, tag)),
                (t, id) if t == tag && texts[id as usize].as_bytes() == key => return Ok(id),
                _ => slot = (slot + 1) & mask,
            }
        }
    }
}

/// A piece of a text, in bytes: either plain, or one token whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fragment {
    /// Where it lies in the text.
    pub(super) range: Range<usize>,
    /// The token that it is, if it is one.
    pub(super) token: Option<u32>,
}

/// Ids by the bytes of their text.
type ByBytes = HashMap<Box<[u8]>, u32, Seeded>;

/// Tokens that are found in a text as literal strings, before anything else is looked at.
#[derive(Debug, Default)]
pub(super) struct Literals {
    /// Literals of one length each, the longest first.
    lengths: Vec<(usize, ByBytes)>,
    /// The bytes that any of them starts with.
    first_bytes: HashSet<u8, Seeded>,
}

impl Literals {
    /// The tokens of `pieces` that `wanted` picks.
    pub(super) fn new(pieces: &Pieces, wanted: impl Fn(&str, Kind) -> bool) -> Self {
        let mut literals = Self::default();
        for (id, (text, &kind)) in pieces.text.iter().zip(&pieces.kind).enumerate() {
            let Some(&first) = text.as_bytes().first().filter(|_| wanted(text, kind)) else {
                continue;
            };
            literals.first_bytes.insert(first);
            let lengths = &mut literals.lengths;
            let at = match lengths.binary_search_by(|have| text.len().cmp(&have.0)) {
                Ok(at) => at,
                Err(at) => {
                    lengths.insert(at, (text.len(), ByBytes::default()));
                    at
                }
            };
            lengths[at].1.insert(text.as_bytes().into(), id as u32);
        }
        literals
    }

    /// Cuts a text at its literals: of two that overlap the longer wins, of equals the left one.
    pub(super) fn cut(&self, text: &str) -> Vec<Fragment> {
        let bytes = text.as_bytes();
        let mut starts = [false; 256];
        for &first in &self.first_bytes {
            starts[usize::from(first)] = true;
        }
        let candidates: Vec<usize> = (0..bytes.len()).filter(|&at| starts[usize::from(bytes[at])]).collect();
        let mut taken = vec![false; if candidates.is_empty() { 0 } else { bytes.len() }];
        let mut found = Vec::new();
        for (length, ids) in &self.lengths {
            for &at in &candidates {
                let end = at + length;
                // What is taken is at least as long, so an overlap shows at one end.
                if end > bytes.len() || taken[at] || taken[end - 1] {
                    continue;
                }
                if let Some(&id) = ids.get(&bytes[at..end]) {
                    taken[at..end].fill(true);
                    found.push((at, end, id));
                }
            }
        }
        found.sort_unstable();
        let mut fragments = Vec::with_capacity(2 * found.len() + 1);
        let mut done = 0;
        for (at, end, id) in found {
            if at > done {
                fragments.push(Fragment { range: done..at, token: None });
            }
            fragments.push(Fragment { range: at..end, token: Some(id) });
            done = end;
        }
        if done < bytes.len() {
            fragments.push(Fragment { range: done..bytes.len(), token: None });
        }
        fragments
    }
}

/// A text for an error message: control characters escaped, cut after 60 characters.
pub(super) fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().nth(60).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_their_characters_are_one_to_one() {
        let mut seen = std::collections::HashSet::new();
        for byte in 0..=255_u8 {
            let c = char_of_byte(byte);
            assert!(seen.insert(c) && !c.is_control() && !c.is_whitespace(), "{byte}: {c:?}");
            assert_eq!(byte_of_char(c), Some(byte));
        }
        // As published with GPT-2.
        assert_eq!((char_of_byte(b' '), char_of_byte(b'\n')), ('Ġ', 'Ċ'));
        assert_eq!((char_of_byte(0xAD), char_of_byte(0x80)), ('Ń', 'Ģ'));
    }

    #[test]
    fn the_longest_literal_wins_over_the_leftmost() {
        let text = ["ab", "bcd", "x"].map(String::from).to_vec();
        let pieces = Pieces { text, kind: vec![Kind::UserDefined; 3], alphabet: Alphabet::ByteLevel };
        let literals = Literals::new(&pieces, |_, kind| kind == Kind::UserDefined);
        let cut: Vec<_> = literals.cut("abcdéxab").into_iter().map(|f| (f.range, f.token)).collect();
        let expected = [(0..1, None), (1..4, Some(1)), (4..6, None), (6..7, Some(2)), (7..9, Some(0))];
        assert_eq!(cut, expected);
        assert_eq!(literals.cut(""), []);
    }
}
