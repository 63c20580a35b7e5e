//! Decoding while generating.

use super::{Specials, Tokenizer};

/// Turns ids into text one by one, and gives out only whole characters.
///
/// What is generated continues a prompt, so a leading space stays. The pieces joined, with
/// [`Self::finish`], are what [`Tokenizer::decode_continuation`] gives for all ids at once.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    specials: Specials,
    /// The beginning of a character whose end has not come yet.
    pending: Vec<u8>,
}

impl<'a> StreamDecoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, specials: Specials) -> Self {
        Self { tokenizer, specials, pending: Vec::new() }
    }

    /// Takes the next id, and returns the text that is now certain; often nothing between the
    /// bytes of one character. Bytes that can no longer become one are given as U+FFFD.
    pub fn push(&mut self, id: u32) -> String {
        if self.specials == Specials::Keep || !self.tokenizer.is_special(id) {
            self.tokenizer.pieces.append_bytes(id, &mut self.pending);
        }
        let mut out = String::new();
        let mut done = 0;
        loop {
            match std::str::from_utf8(&self.pending[done..]) {
                Ok(rest) => {
                    out.push_str(rest);
                    done += rest.len();
                    break;
                }
                Err(error) => {
                    let valid = done + error.valid_up_to();
                    out.push_str(&String::from_utf8_lossy(&self.pending[done..valid]));
                    done = valid;
                    let Some(invalid) = error.error_len() else {
                        break;
                    };
                    out.push(char::REPLACEMENT_CHARACTER);
                    done += invalid;
                }
            }
        }
        self.pending.drain(..done);
        out
    }

    /// Ends the text: an unfinished character becomes U+FFFD.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}
