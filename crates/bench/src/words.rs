//! Texts as words, as the Penn Treebank cuts them: what n-gram entropies are counted over.
//!
//! The peer's fluency is taken over `nltk.word_tokenize`. Its words are reproduced here (checked
//! against it in `fixtures/words.json`). DIFFERENCE: its sentences come from a trained model of
//! English abbreviations, ours from rules; where they differ, a period more or less is a word.

/// The words and signs of a text.
pub fn words(text: &str) -> Vec<String> {
    sentences(text).into_iter().flat_map(of_sentence).collect()
}

/// The first sentence of a text, to the sign that ends it; all of it where none has ended and
/// something else begun.
pub fn first_sentence(text: &str) -> &str {
    sentences(text).first().copied().unwrap_or(text)
}

/// Where the first sentence of a text may end, in bytes: behind each period that may be an
/// abbreviation's or a sentence's, and at last where it surely does.
pub(crate) fn ends(text: &str) -> Vec<usize> {
    let marks = marks(text);
    let sure = marks.iter().find(|mark| mark.is_sure && !text[..mark.end].trim().is_empty());
    let last = sure.map_or(text.len(), |mark| mark.end);
    let doubtful = marks.iter().map(|mark| mark.end).take_while(|end| *end < last);
    doubtful.chain([last]).collect()
}

/// Abbreviations that a capital may follow within a sentence.
const ABBREVIATIONS: [&str; 31] = [
    "c", "ca", "mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "gen", "col", "lt", "capt", "sgt", "rev",
    "gov", "sen", "rep", "no", "vs", "e.g", "i.e", "bros", "mt", "ft", "inc", "co", "corp", "ltd", "vol",
];

/// Whether a word is initials: capitals with periods between them, as in `A.C` and `U.S`.
fn is_initials(word: &str) -> bool {
    let mut letters = word.split('.');
    letters.all(|part| part.chars().count() == 1 && part.chars().all(char::is_uppercase))
}

/// A place behind a sign where a sentence may end.
struct Mark {
    /// In bytes.
    end: usize,
    /// No abbreviation, initials or ordinal stand before it, and it is no ellipsis.
    is_sure: bool,
}

/// The places where sentences may end, but for the end of the text.
fn marks(text: &str) -> Vec<Mark> {
    let mut out = vec![];
    let mut from = 0;
    let chars: Vec<(usize, char)> = text.char_indices().collect();
    let mut i = 0;
    while i < chars.len() {
        if !matches!(chars[i].1, '.' | '?' | '!') {
            i += 1;
            continue;
        }
        let sign = i;
        let closes = |c: char| matches!(c, '.' | '?' | '!' | ')' | ']' | '}' | '"' | '\'' | '”' | '’' | '»');
        while i < chars.len() && closes(chars[i].1) {
            i += 1;
        }
        let Some(&(end, next)) = chars.get(i) else { break };
        if !next.is_whitespace() {
            continue;
        }
        let follows = chars[i..].iter().map(|(_, c)| *c).find(|c| !c.is_whitespace());
        if follows.is_none_or(char::is_lowercase) {
            continue;
        }
        let opens = |c: char| c.is_whitespace() || matches!(c, '(' | '[' | '"' | '“');
        let word = text[from..chars[sign].0].rsplit(opens).next().unwrap_or("");
        let signs = &chars[sign..i];
        let lone = signs.len() == 1 && signs[0].1 == '.';
        // Three periods may stand for what is left out, or within a name.
        let ellipsis = signs.len() > 1 && signs.iter().all(|(_, c)| *c == '.');
        // A small number that a text begins with may count something, as in `2. Bundesliga`.
        let ordinal = (1..=2).contains(&word.len())
            && word.bytes().all(|b| b.is_ascii_digit())
            && text[..chars[sign].0].trim_start() == word;
        let known = ABBREVIATIONS.contains(&word.to_lowercase().as_str());
        let is_sure = !(ellipsis || lone && (is_initials(word) || known || ordinal));
        if is_sure {
            from = end;
        }
        out.push(Mark { end, is_sure });
    }
    out
}

/// Cuts a text behind the signs that end a sentence.
fn sentences(text: &str) -> Vec<&str> {
    let mut from = 0;
    let mut out = vec![];
    for Mark { end, .. } in marks(text).into_iter().filter(|mark| mark.is_sure) {
        out.push(&text[from..end]);
        from = end;
    }
    out.push(&text[from..]);
    out.retain(|s| !s.trim().is_empty());
    out
}

/// What is cut off a word's end with its apostrophe.
const CLITICS: [&str; 13] = ["", "s", "S", "m", "M", "d", "D", "ll", "LL", "re", "RE", "ve", "VE"];

/// A sentence that is being cut.
struct Cutter<'a> {
    chars: &'a [char],
    words: Vec<String>,
    word: String,
}

fn of_sentence(sentence: &str) -> Vec<String> {
    let chars: Vec<char> = sentence.trim().chars().collect();
    let mut cutter = Cutter { chars: &chars, words: vec![], word: String::new() };
    let mut at = 0;
    while at < chars.len() {
        at += cutter.step(at);
    }
    cutter.end();
    cutter.words.into_iter().flat_map(contraction).collect()
}

impl Cutter<'_> {
    fn at(&self, i: usize) -> Option<char> {
        self.chars.get(i).copied()
    }

    fn before(&self, i: usize) -> Option<char> {
        i.checked_sub(1).and_then(|i| self.at(i))
    }

    /// Ends the word that is being read.
    fn end(&mut self) {
        if !self.word.is_empty() {
            self.words.push(std::mem::take(&mut self.word));
        }
    }

    /// A sign that is a word of its own.
    fn sign(&mut self, sign: &str, length: usize) -> usize {
        self.end();
        self.words.push(sign.to_owned());
        length
    }

    /// Whether a quote there opens something.
    fn opens(&self, i: usize) -> bool {
        self.before(i).is_none_or(|c| matches!(c, ' ' | '(' | '[' | '{' | '<' | '«' | '“' | '‘' | '„' | '`'))
    }

    /// Whether a word ends in front of a place: at blanks, and at signs that are cut off.
    fn is_edge(&self, i: usize) -> bool {
        match self.at(i) {
            None => true,
            Some(':' | ',') => self.at(i + 1).is_none_or(|c| !c.is_ascii_digit()),
            Some('.') => self.is_last_period(i) || self.at(i + 1) == Some('.'),
            Some('-') => self.at(i + 1) == Some('-'),
            Some(c) => c.is_whitespace() || is_sign(c) || c == '"',
        }
    }

    /// Whether only what closes follows a period.
    fn is_last_period(&self, i: usize) -> bool {
        let closes = |c: &char| matches!(c, ']' | ')' | '}' | '>' | '"' | '\'' | '»' | '”' | '’' | ' ');
        self.before(i).is_some_and(|c| c != '.') && self.chars[i + 1..].iter().all(closes)
    }

    /// Reads on from a place; how many characters that took.
    fn step(&mut self, i: usize) -> usize {
        let c = self.chars[i];
        match c {
            c if c.is_whitespace() => {
                self.end();
                1
            }
            '"' | '\'' if c == '"' || self.at(i + 1) == Some('\'') => {
                let sign = if self.opens(i) { "``" } else { "''" };
                self.sign(sign, if c == '"' { 1 } else { 2 })
            }
            '`' if self.at(i + 1) == Some('`') => self.sign("``", 2),
            '-' if self.at(i + 1) == Some('-') => self.sign("--", 2),
            ':' | ',' if self.is_edge(i) => self.sign(&c.to_string(), 1),
            '.' => {
                let run = self.chars[i..].iter().take_while(|c| **c == '.').count();
                if run > 1 || self.is_last_period(i) {
                    return self.sign(&".".repeat(run), run);
                }
                self.word.push('.');
                1
            }
            '\'' => self.apostrophe(i),
            c if is_sign(c) => self.sign(&c.to_string(), 1),
            c => {
                // "n't" is a word.
                if matches!(c, 'n' | 'N') && self.is_negation(i) {
                    self.end();
                }
                self.word.push(c);
                1
            }
        }
    }

    fn is_negation(&self, i: usize) -> bool {
        let rest: String = self.chars[i..].iter().take(3).collect();
        (rest == "n't" || rest == "N'T") && !self.word.is_empty() && self.is_edge(i + 3)
    }

    fn apostrophe(&mut self, i: usize) -> usize {
        let ends = |clitic: &str| {
            let length = clitic.chars().count();
            self.chars[i + 1..].iter().take(length).collect::<String>() == *clitic
                && self.is_edge(i + 1 + length)
        };
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let behind = !self.word.is_empty() && self.before(i).is_some_and(|c| c != '\'');
        if behind && !matches!(self.word.as_str(), "n" | "N") && CLITICS.iter().any(|c| ends(c)) {
            self.end();
        }
        let starts = !self.before(i).is_some_and(is_word) && self.at(i + 1).is_some_and(is_word);
        self.word.push('\'');
        if starts && !self.is_clitic(i) {
            self.end();
        }
        1
    }

    /// Whether an apostrophe at the beginning of a word is one of "'re", "'ve", "'ll", "'m" ….
    fn is_clitic(&self, i: usize) -> bool {
        let word: String =
            self.chars[i + 1..].iter().take_while(|c| c.is_alphanumeric() || **c == '_').collect();
        matches!(word.to_lowercase().as_str(), "re" | "ve" | "ll" | "m" | "t" | "s" | "d" | "n")
    }
}

/// Signs that are always words of their own.
fn is_sign(c: char) -> bool {
    matches!(
        c,
        ';' | '@'
            | '#'
            | '$'
            | '%'
            | '&'
            | '?'
            | '!'
            | '*'
            | '('
            | ')'
            | '['
            | ']'
            | '{'
            | '}'
            | '<'
            | '>'
            | '`'
            | '«'
            | '»'
            | '“'
            | '”'
            | '‘'
            | '’'
            | '„'
            | '\u{2012}'..='\u{2015}'
    )
}

/// "cannot" and its like are two words.
fn contraction(word: String) -> Vec<String> {
    let cut = match word.to_lowercase().as_str() {
        "cannot" | "gimme" | "gonna" | "gotta" | "lemme" | "wanna" => 3,
        "more'n" => 4,
        "d'ye" | "'tis" | "'twas" => 2,
        _ => return vec![word],
    };
    vec![word[..cut].to_owned(), word[cut..].to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_nltks() {
        let golden: Vec<(String, Vec<String>)> =
            serde_json::from_str(include_str!("../../../fixtures/words.json")).unwrap_or_default();
        assert!(golden.len() > 100, "{}", golden.len());
        for (text, wanted) in golden {
            assert_eq!(of_sentence(&text), wanted, "{text}");
        }
    }

    #[test]
    fn a_sentence_ends_where_another_begins() {
        for (text, count) in [
            ("He left. She stayed! Why? (So.) \"Yes.\" no.", 5),
            ("Dr. Smith met J. Doe in the U.S. Army. then came 3.5 more.", 1),
            ("one... Two", 1),
            ("He was born in [O.S. May] and (c. 1820) wrote \"U.S. Grant\".", 1),
            (" ", 0),
        ] {
            assert_eq!(sentences(text).len(), count, "{text}: {:?}", sentences(text));
        }
        assert_eq!(words("It ended. Then"), ["It", "ended", ".", "Then"]);
    }
}
