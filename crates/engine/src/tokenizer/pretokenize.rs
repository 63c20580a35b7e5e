//! Cutting a text into words before byte-level BPE, as `tokenizer.ggml.pre` names the rule.
//!
//! Each rule is published as one or more regular expressions. They are written out by hand here:
//! exact, linear, nothing to compile at start-up, and no backtracking limit to run into.

use std::ops::Range;

use super::categories::Category;
use crate::{Error, Result};

/// A pre-tokenisation rule, and what goes with its name by convention.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    stages: &'static [Stage],
    /// A word that is a piece as it stands is not taken apart and merged anew.
    pub(super) whole_words: bool,
    /// Whether BOS is added where the file does not say.
    pub(super) add_bos: bool,
}

/// One expression; each cuts what the one before left.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}|`
    /// ` ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    Llama3 { digits: usize },
    /// `[^\r\n\p{L}\p{N}]?U*L+|[^\r\n\p{L}\p{N}]?U+L*|\p{N}{1,DIGITS}|`
    /// ` ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+` with U `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`
    /// and L `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`; the words may keep their contraction.
    Cased { digits: usize, contractions: bool },
    /// `\p{N}`
    EachNumber,
    /// `\p{N}+`
    Numbers,
    /// `[\p{P}\$\+<=>\^~\|]+`
    Punctuation,
    /// `[0-9][0-9][0-9]`
    AsciiTriples,
}

/// Names whose rule this version knows, for error messages.
const KNOWN: &str = "gpt-2, phi-2, olmo, mpt, jais, smollm, starcoder, refact, command-r, \
    codeshell, exaone, llama-bpe, llama3, llama-v3, falcon3, pixtral, dbrx, smaug-bpe, glm4, \
    chatglm-bpe, qwen2, stablelm2, deepseek-r1-qwen, tekken, gpt-4o, llama4, default";

impl Rule {
    /// The rule of a `tokenizer.ggml.pre`; without one, `default` (as files from before that key
    /// are read elsewhere).
    ///
    /// # Errors
    /// [`Error::Unsupported`] names an unknown rule and lists the known ones.
    pub(super) fn named(pre: Option<&str>) -> Result<Self> {
        use Stage::*;
        let plain = |stages| Self { stages, whole_words: false, add_bos: false };
        let marked = |stages| Self { stages, whole_words: true, add_bos: true };
        Ok(match pre.unwrap_or("default") {
            "gpt-2" | "gpt2" | "phi-2" | "olmo" | "mpt" | "jais" => plain(&[Gpt2]),
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" => {
                plain(&[EachNumber, Gpt2])
            }
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "pixtral" => marked(&[Llama3 { digits: 3 }]),
            "dbrx" | "smaug-bpe" | "glm4" | "chatglm-bpe" => plain(&[Llama3 { digits: 3 }]),
            "qwen2" | "stablelm2" | "deepseek-r1-qwen" => plain(&[Llama3 { digits: 1 }]),
            "tekken" => marked(&[Cased { digits: 1, contractions: false }]),
            "gpt-4o" | "llama4" => plain(&[Cased { digits: 3, contractions: true }]),
            "default" => plain(&[Punctuation, Gpt2, Numbers, AsciiTriples]),
            other => {
                return Err(Error::Unsupported {
                    what: format!("the pre-tokenizer `{}`", super::pieces::shown(other)),
                    known: Some(KNOWN.into()),
                });
            }
        })
    }

    /// Appends the words of `text[range]`, in order and without gaps.
    pub(super) fn words(&self, text: &str, range: Range<usize>, out: &mut Vec<Range<usize>>) {
        cut(text, range, self.stages, out);
    }
}

fn cut(text: &str, range: Range<usize>, stages: &[Stage], out: &mut Vec<Range<usize>>) {
    let Some((stage, rest)) = stages.split_first() else {
        return out.push(range);
    };
    let mut at = range.start;
    while at < range.end {
        let length = stage.first(&text[at..range.end]);
        cut(text, at..at + length, rest, out);
        at += length;
    }
}

/// What the patterns distinguish.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

fn class(c: char) -> Class {
    // `char::is_whitespace` is the property White_Space, as `\s` is.
    match Category::of(c) {
        kind if kind.is_letter() => Class::Letter,
        Category::Number => Class::Number,
        _ if c.is_whitespace() => Class::Space,
        _ => Class::Other,
    }
}

/// Bytes of the longest prefix whose characters all satisfy `test`.
fn run(text: &str, test: impl Fn(char) -> bool) -> usize {
    text.find(|c| !test(c)).unwrap_or(text.len())
}

fn is_newline(c: char) -> bool {
    matches!(c, '\r' | '\n')
}

impl Stage {
    /// Bytes of the first cut of a text that is not empty: at least one character.
    fn first(self, text: &str) -> usize {
        match self {
            Self::Gpt2 => contraction(text, false)
                .or_else(|| {
                    let body = text.strip_prefix(' ').unwrap_or(text);
                    let kind = class(body.chars().next()?);
                    let word = run(body, |c| class(c) == kind);
                    (kind != Class::Space).then(|| text.len() - body.len() + word)
                })
                .unwrap_or_else(|| spaces(text)),
            Self::Llama3 { digits } => contraction(text, true)
                .or_else(|| {
                    let body = text.strip_prefix(may_lead).unwrap_or(text);
                    let word = run(body, |c| class(c) == Class::Letter);
                    (word > 0).then(|| text.len() - body.len() + word)
                })
                .unwrap_or_else(|| common(text, digits, is_newline)),
            Self::Cased { digits, contractions } => text
                .strip_prefix(may_lead)
                .and_then(|body| Some(text.len() - body.len() + lower_tail(body)?))
                .or_else(|| lower_tail(text))
                .or_else(|| {
                    let body = text.strip_prefix(may_lead)?;
                    Some(text.len() - body.len() + upper_head(body)?)
                })
                .or_else(|| upper_head(text))
                .map(|word| {
                    let tail = contraction(&text[word..], true).filter(|_| contractions);
                    word + tail.unwrap_or(0)
                })
                .unwrap_or_else(|| common(text, digits, |c| is_newline(c) || c == '/')),
            Self::EachNumber => match text.chars().next() {
                Some(c) if class(c) == Class::Number => c.len_utf8(),
                _ => run(text, |c| class(c) != Class::Number),
            },
            Self::Numbers => alike(text, |c| class(c) == Class::Number),
            Self::Punctuation => {
                alike(text, |c| Category::of(c) == Category::Punctuation || "$+<=>^~|".contains(c))
            }
            Self::AsciiTriples => {
                let triple = |w: &[u8]| w.iter().all(u8::is_ascii_digit);
                match text.as_bytes().windows(3).position(triple) {
                    Some(0) => 3,
                    Some(gap) => gap,
                    None => text.len(),
                }
            }
        }
    }
}

/// Bytes of the characters that answer `test` as the first one does.
fn alike(text: &str, test: impl Fn(char) -> bool) -> usize {
    let first = text.chars().next().is_some_and(&test);
    run(text, |c| test(c) == first)
}

/// `[^\r\n\p{L}\p{N}]`
fn may_lead(c: char) -> bool {
    !is_newline(c) && !matches!(class(c), Class::Letter | Class::Number)
}

/// `'s|'t|'re|'ve|'m|'ll|'d`
fn contraction(text: &str, any_case: bool) -> Option<usize> {
    let tail = text.strip_prefix('\'')?.as_bytes();
    let is = |want: &str| {
        tail.get(..want.len()).is_some_and(|have| {
            if any_case { have.eq_ignore_ascii_case(want.as_bytes()) } else { have == want.as_bytes() }
        })
    };
    ["s", "t", "re", "ve", "m", "ll", "d"].into_iter().find(|w| is(w)).map(|w| 1 + w.len())
}

/// `\s+(?!\S)|\s+`: white space leaves its last character to the word behind it.
fn spaces(text: &str) -> usize {
    let length = run(text, char::is_whitespace);
    let last = text[..length].chars().next_back().map_or(0, char::len_utf8);
    if length < text.len() && length > last { length - last } else { length }
}

/// `\p{N}{1,DIGITS}| ?[^\s\p{L}\p{N}]+[TAIL]*|\s*[\r\n]+|\s+(?!\S)|\s+`, for a text that does not
/// start with a letter.
fn common(text: &str, digits: usize, tail: impl Fn(char) -> bool) -> usize {
    let numbers = text.chars().take(digits).take_while(|&c| class(c) == Class::Number);
    let numbers: usize = numbers.map(char::len_utf8).sum();
    if numbers > 0 {
        return numbers;
    }
    let body = text.strip_prefix(' ').unwrap_or(text);
    let others = run(body, |c| class(c) == Class::Other);
    if others > 0 {
        return text.len() - body.len() + others + run(&body[others..], tail);
    }
    let white = &text[..run(text, char::is_whitespace)];
    match white.rfind(is_newline) {
        Some(last) => last + 1,
        None => spaces(text),
    }
}

/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`
fn is_upper(c: char) -> bool {
    matches!(Category::of(c), Category::Upper | Category::Letter | Category::Mark)
}

/// `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`
fn is_lower(c: char) -> bool {
    matches!(Category::of(c), Category::Lower | Category::Letter | Category::Mark)
}

/// `U*L+`
fn lower_tail(text: &str) -> Option<usize> {
    let head = run(text, is_upper);
    let tail = run(&text[head..], is_lower);
    if tail > 0 {
        return Some(head + tail);
    }
    // The first part gives back up to the last character that the second can have.
    text[..head].char_indices().rfind(|&(_, c)| is_lower(c)).map(|(at, c)| at + c.len_utf8())
}

/// `U+L*`
fn upper_head(text: &str) -> Option<usize> {
    let head = run(text, is_upper);
    (head > 0).then(|| head + run(&text[head..], is_lower))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use tokenizers::tokenizer::pattern::Pattern;
    use tokenizers::utils::SysRegex;

    const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
    const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    /// Applies published expressions one after another; what does not match stays one piece.
    fn by_regex(text: &str, patterns: &[SysRegex]) -> Vec<String> {
        let mut parts = vec![text.to_owned()];
        for pattern in patterns {
            parts = parts
                .iter()
                .flat_map(|part| {
                    let found = pattern.find_matches(part).unwrap();
                    let cut = found.into_iter().map(|((a, b), _)| part[a..b].to_owned());
                    cut.filter(|p| !p.is_empty()).collect::<Vec<_>>()
                })
                .collect();
        }
        parts
    }

    fn check(name: &str, patterns: &[&str]) {
        let rule = Rule::named(Some(name)).unwrap();
        let patterns: Vec<_> = patterns.iter().map(|p| SysRegex::new(p).unwrap()).collect();
        // Every kind of character that a pattern tells apart, some of them twice.
        let alphabet: Vec<char> =
            "aZbé\u{301}ǅʰ漢ن59½٣ \t\n\r\u{a0}\u{3000}'sTrEllvdm.,!$+/<=|^~€😀\u{200d}\0".chars().collect();
        let mut state = 11_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        for _ in 0..6000 {
            let length = next() % 14;
            let text: String = (0..length).map(|_| alphabet[next() % alphabet.len()]).collect();
            let mut words = Vec::new();
            rule.words(&text, 0..text.len(), &mut words);
            let words: Vec<_> = words.into_iter().map(|w| text[w].to_owned()).collect();
            assert_eq!(words, by_regex(&text, &patterns), "{name}: {text:?}");
        }
    }

    #[test]
    fn rules_agree_with_their_published_expressions() {
        check("gpt-2", &[GPT2]);
        check("smollm", &[r"\p{N}", GPT2]);
        check("llama-bpe", &[LLAMA3]);
        check("qwen2", &[QWEN2]);
        check("tekken", &[TEKKEN]);
        check("gpt-4o", &[GPT4O]);
        check("default", &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]);
    }

    #[test]
    fn every_known_name_is_known_and_an_unknown_one_is_named() {
        for name in KNOWN.split(", ") {
            assert!(Rule::named(Some(name)).is_ok(), "{name}");
        }
        let error = Rule::named(Some("bogus-bpe")).unwrap_err().to_string();
        assert!(error.contains("`bogus-bpe`") && error.contains("smollm, starcoder"), "{error}");
    }
}
