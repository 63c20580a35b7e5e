//! Files of records taken apart: an array, an object of lists, or lines. What is wrong with one
//! record is told of that record alone.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

/// Stands where bytes are no text. Unicode keeps it from text, for uses such as this one.
const TORN: char = '\u{fdd0}';

/// A file's records, each with what is wrong with its JSON.
pub(crate) enum File {
    Records(Vec<Result<Value, String>>),
    Sanitation { forget: Vec<Result<Value, String>>, retain: Vec<Result<Value, String>> },
}

/// The text of a file; a record with bytes that are none is known by [`TORN`].
pub(super) fn text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        if !chunk.invalid().is_empty() {
            text.push(TORN);
        }
    }
    text
}

/// Takes a text apart: one array or object, or else lines of which one is an object at least.
///
/// # Errors
/// Says what it is instead.
pub(crate) fn parse(text: &str) -> Result<File, String> {
    let bare = without_nan(text.strip_prefix('\u{feff}').unwrap_or(text));
    let bare = bare.as_ref();
    let wrong = match serde_json::from_str::<&RawValue>(bare) {
        Ok(whole) => return document(whole.get()),
        Err(wrong) => wrong,
    };
    let start = bare.trim_start();
    let is_document = start.starts_with(['[', '{']);
    if is_document && wrong.is_eof() {
        let what = if start.starts_with('[') { "array" } else { "object" };
        let last = bare.trim_end().lines().count();
        return Err(format!("it ends early, in line {last}, before its {what} does"));
    }
    if !is_spread(start) {
        let records = lines(bare);
        if records.iter().flatten().any(Value::is_object) {
            return Ok(File::Records(records));
        }
    }
    if let Some(at) = text.find(TORN) {
        return Err(format!("it is not UTF-8 text (byte {at} is not part of a character)"));
    }
    Err(match start.chars().next() {
        Some(_) if is_document => wrong.to_string(),
        Some(first) => format!("it begins with `{first}`"),
        None => "it begins with nothing".to_owned(),
    })
}

/// Names of numbers that JSON does not have, and Python writes all the same.
const NO_NUMBERS: [&str; 3] = ["NaN", "-Infinity", "Infinity"];

/// The text with `null` in place of numbers that are none: what they stand for is missing.
fn without_nan(text: &str) -> Cow<'_, str> {
    if !NO_NUMBERS.iter().any(|name| text.contains(name)) {
        return Cow::Borrowed(text);
    }
    let (mut out, mut rest, mut in_string) = (String::with_capacity(text.len()), text, false);
    while let Some(letter) = rest.chars().next() {
        let name = NO_NUMBERS.iter().find(|name| !in_string && rest.starts_with(**name));
        let length = match (letter, name) {
            (_, Some(name)) => {
                out.push_str("null");
                rest = &rest[name.len()..];
                continue;
            }
            // The letter behind it is part of it, whatever it is.
            ('\\', _) if in_string => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            _ => letter.len_utf8(),
        };
        // A line's end ends a string that was never closed: the next line is another record.
        in_string = match letter {
            '"' => !in_string,
            '\n' => false,
            _ => in_string,
        };
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    Cow::Owned(out)
}

/// Whether an array or an object is written over several lines. Then a line that is an object is
/// part of it, and no record of its own.
fn is_spread(start: &str) -> bool {
    let first = start.lines().next().unwrap_or_default().trim_end();
    match start.chars().next() {
        Some('[') => first.ends_with(['[', '{', ',']),
        Some('{') => first.ends_with(['[', '{']),
        _ => false,
    }
}

/// What a text holds that is one JSON value.
fn document(text: &str) -> Result<File, String> {
    let kind = match text.chars().next() {
        Some('[') => {
            let all: Vec<&RawValue> = serde_json::from_str(text).map_err(|e| e.to_string())?;
            return Ok(File::Records(values(&all)));
        }
        Some('{') => return Ok(object(text)),
        Some('"') => "text",
        Some('n') => "null",
        Some('t' | 'f') => "a boolean",
        _ => "a number",
    };
    Err(format!("it is {kind}, expected an array of records or one record a line"))
}

/// KnowEdit's Sanitation, or one record.
fn object(text: &str) -> File {
    let fields: BTreeMap<String, &RawValue> = serde_json::from_str(text).unwrap_or_default();
    // The peer's name, or the data set's own; other data sets have a `locality` or `success` of theirs.
    let list = |name: &str| {
        let field = fields.get(name)?;
        let wrong = || vec![Err(format!("`{name}` is no list of questions"))];
        Some(serde_json::from_str::<Vec<&RawValue>>(field.get()).map_or_else(|_| wrong(), |all| values(&all)))
    };
    let is_list = |name: &str| fields.get(name).is_some_and(|field| field.get().starts_with('['));
    match list("K_F").or_else(|| list("success").filter(|_| is_list("success"))) {
        Some(forget) => {
            File::Sanitation { forget, retain: list("K_R").or_else(|| list("locality")).unwrap_or_default() }
        }
        None => File::Records(vec![value(text, None)]),
    }
}

/// Every element of an array by itself: one that is no value does not spoil the others.
fn values(all: &[&RawValue]) -> Vec<Result<Value, String>> {
    all.iter().map(|one| value(one.get(), None)).collect()
}

fn lines(text: &str) -> Vec<Result<Value, String>> {
    let all = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    all.map(|(i, line)| value(line, Some(i + 1))).collect()
}

/// A record's JSON. Of one that is a line of the file, the line is named if anything is wrong.
fn value(text: &str, line: Option<usize>) -> Result<Value, String> {
    let at = line.map(|line| format!("line {line}: ")).unwrap_or_default();
    if text.contains(TORN) {
        return Err(format!("{at}it is not UTF-8 text"));
    }
    serde_json::from_str(text).map_err(|e| {
        if e.is_eof() {
            return format!("{at}it ends early");
        }
        // Serde counts lines from the record's own beginning: that number would contradict the file's.
        let text = e.to_string();
        let why = &text[..text.rfind(" at line ").unwrap_or(text.len())];
        match (line, e.column()) {
            (None, _) | (_, 0) => format!("{at}{why}"),
            (Some(_), column) => format!("{at}{why} (column {column})"),
        }
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use serde_json::json;

    use super::*;

    /// Which of a text's records are JSON, and what is wrong with the others.
    fn parsed(text: &str) -> Vec<Result<(), String>> {
        match parse(text).unwrap() {
            File::Records(records) => records.into_iter().map(|r| r.map(drop)).collect(),
            File::Sanitation { forget, .. } => forget.into_iter().map(|r| r.map(drop)).collect(),
        }
    }

    #[test]
    fn lines_are_lines_whatever_the_first_one_is() {
        for first in ["not json", "null", "[1]", "[1", "{\"a\": 1,", "{\"a\"", "\u{fdd0}"] {
            let found = parsed(&format!("{first}\n{{\"a\": 1}}\n{{\"a\": 2}}\n"));
            assert_eq!(found.len(), 3, "{first}");
            assert_eq!(&found[1..], [Ok(()), Ok(())], "{first}");
        }
    }

    #[test]
    fn an_array_or_object_over_several_lines_is_no_list_of_lines() {
        for (text, why) in [
            ("[\n{\"a\": 1},\n{\"b\": 2,,},\n{\"c\": 3}\n]", "at line 3"),
            ("[{\"a\": 1},\n{\"b\": nil},\n{\"c\": 3}\n]", "at line 2"),
            ("{\"K_F\": [\n{\"a\": nil},\n{\"b\": 1}\n]}", "at line 2"),
            ("[\n{\"a\": 1},\n{\"b\": 2}\n", "it ends early, in line 3, before its array does"),
            ("{\"K_F\": [\n{\"a\": 1}\n\n", "it ends early, in line 2, before its object does"),
        ] {
            let error = parse(text).err().unwrap();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn numbers_that_are_none_are_missing() {
        for text in ["[{\"a\": NaN},\n{\"b\": [-Infinity, 1]}]", "{\"a\": NaN}\n{\"b\": [-Infinity, 1]}"] {
            let File::Records(found) = parse(text).unwrap() else { panic!("{text}") };
            let wanted = [json!({"a": null}), json!({"b": [null, 1]})];
            assert_eq!(found.into_iter().collect::<Result<Vec<_>, _>>().unwrap(), wanted, "{text}");
        }
        let text = r#"{"a": "NaN \" Infinity \\", "b": Infinity, "c": "é NaN"}"#;
        assert_eq!(without_nan(text), r#"{"a": "NaN \" Infinity \\", "b": null, "c": "é NaN"}"#);
    }

    #[test]
    fn an_element_that_is_no_value_is_left_out_alone() {
        let two = [Ok(()), Err("number out of range".to_owned())];
        assert_eq!(parsed("[{\"a\": 1},\n {\"a\": 1e999}]"), two);
        assert_eq!(parsed("{\"K_F\": [{\"a\": 1}, {\"a\": 1e999}], \"K_R\": []}"), two);
        let lines = parsed("{\"a\": 1}\n\n{\"a\": 1e999}");
        assert!(lines[1].as_ref().is_err_and(|why| why.starts_with("line 3: number")), "{lines:?}");
    }
}
