//! Contexts: short prefixes, written by the model itself, before which an edit should hold too.

use std::io::Write;
use std::path::Path;

use mutandis_engine::tokenizer::Specials;
use mutandis_engine::{Model, Sampling};
use serde::{Deserialize, Serialize};

use super::writing::{self, Line};
use crate::atomic;
use crate::context::Context;
use crate::error::{Error, Result};

/// Raised when the same settings begin to give other prefixes.
const GENERATOR: u32 = 1;

/// Words that prefixes begin with where the tokenizer puts nothing before a text.
const WORDS: [&str; 5] = ["The", "Therefore", "Because", "I", "You"];

/// Which prefixes are written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContextSpec {
    /// Length in tokens (a start word included, BOS not) and number of prefixes of that length.
    pub lengths: Vec<(usize, usize)>,
    /// What prefixes begin with, in turn. Where `None`: the start of a text (BOS) if the
    /// tokenizer puts one there, else "The", "Therefore", "Because", "I", "You".
    pub starts: Option<Vec<String>>,
    /// Each token is drawn from so many of the likeliest.
    pub top_k: usize,
    /// Seed.
    pub seed: u64,
}

impl Default for ContextSpec {
    /// ROME's: ten prefixes of 5 tokens and ten of 10.
    fn default() -> Self {
        Self { lengths: vec![(5, 10), (10, 10)], starts: None, top_k: 5, seed: 0 }
    }
}

/// What is kept in the cache.
#[derive(Serialize, Deserialize)]
struct Kept {
    key: String,
    templates: Vec<String>,
}

/// Templates with one `{}` each: the bare `"{}"` first, then a prefix, a full stop and `{}` for
/// each prefix of the spec. Prefixes hold neither braces nor line breaks nor special tokens.
///
/// The same for a model, spec and machine whatever the threads. Kept in the context's cache; a
/// file there that is not what it should be is written anew.
///
/// # Errors
/// Where the model has no tokenizer, a start has no token, `top_k` is 0, a length is beyond the
/// model's context, or the user stops the work.
pub fn sampled(model: &Model, spec: &ContextSpec, cx: &Context<'_>) -> Result<Vec<String>> {
    let sampling = Sampling { top_k: Some(spec.top_k), ..Sampling::PLAIN };
    sampling.validate()?;
    let count = 1 + spec.lengths.iter().map(|(_, n)| n).sum::<usize>();
    let identity = serde_json::json!({ "generator": GENERATOR, "base": model.fingerprint()?, "spec": spec });
    let key = blake3::hash(identity.to_string().as_bytes()).to_hex()[..32].to_owned();
    let path = cx.cache.as_ref().map(|c| c.join("contexts").join(format!("{key}.json")));
    if let Some(templates) = path.as_deref().and_then(|p| load(p, &key, count)) {
        return Ok(templates);
    }
    let prefixes = prefixes(model, spec, &sampling, cx)?;
    let mut templates = vec!["{}".to_owned()];
    templates.extend(prefixes.iter().map(|p| if p.is_empty() { "{}".into() } else { format!("{p}. {{}}") }));
    if let Some(path) = path {
        // A full disk costs the next run a second, not this one its result.
        let _ = save(&path, &Kept { key, templates: templates.clone() });
    }
    Ok(templates)
}

/// Most prefixes of one length: what a search of one fact holds in memory grows with them.
const MOST: usize = 200;

/// The templates that an edit is searched in: bare, and behind prefixes of 5 and of 10 tokens, so
/// many of each.
///
/// # Errors
/// As [`sampled`]; where too many are asked for.
pub fn for_edits(model: &Model, counts: [usize; 2], seed: u64, cx: &Context<'_>) -> Result<Vec<String>> {
    if let Some(count) = counts.iter().find(|c| **c > MOST) {
        return Err(Error::input_hint(
            format!("`prefixes` asks for {count}, expected at most {MOST}"),
            "ten of each are published; more cost time and memory and gain little",
        ));
    }
    let spec = ContextSpec { lengths: vec![(5, counts[0]), (10, counts[1])], seed, ..ContextSpec::default() };
    sampled(model, &spec, cx)
}

fn prefixes(model: &Model, spec: &ContextSpec, sampling: &Sampling, cx: &Context<'_>) -> Result<Vec<String>> {
    let tokenizer = model.tokenizer()?;
    let before = tokenizer.encode("")?.ids;
    let starts: Vec<Vec<u32>> = match &spec.starts {
        Some(words) if !words.is_empty() => encode_each(model, words)?,
        _ if !before.is_empty() => vec![before.clone()],
        _ => encode_each(model, &WORDS.map(str::to_owned))?,
    };
    let goals = spec.lengths.iter().flat_map(|&(length, n)| std::iter::repeat_n(length, n));
    let mut of_length = 0;
    let mut previous = None;
    let mut lines: Vec<Line> = goals
        .enumerate()
        .map(|(i, length)| {
            of_length = if previous == Some(length) { of_length + 1 } else { 0 };
            previous = Some(length);
            let start = starts[of_length % starts.len()].clone();
            Line::new(model, start, before.len().saturating_add(length), spec.seed, i as u64)
        })
        .collect();
    model.install(|| writing::write(model, &mut lines, sampling, &[], false, |_, _| cx.check()))?;
    Ok(lines.iter().map(|line| tidy(&tokenizer.decode(&line.ids, Specials::Skip))).collect())
}

fn encode_each(model: &Model, words: &[String]) -> Result<Vec<Vec<u32>>> {
    words
        .iter()
        .map(|word| {
            let ids = model.tokenizer()?.encode(word)?.ids;
            if ids.is_empty() {
                Err(Error::input(format!("the start `{word}` has no token")))
            } else {
                Ok(ids)
            }
        })
        .collect()
}

/// Without what would break a template or a prompt: braces go, each run of white space and
/// control characters becomes one space.
fn tidy(text: &str) -> String {
    let plain: String = text
        .chars()
        .filter(|c| !matches!(*c, '{' | '}' | char::REPLACEMENT_CHARACTER))
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Kept templates, where the file is sound.
fn load(path: &Path, key: &str, count: usize) -> Option<Vec<String>> {
    let kept: Kept = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let is_template = |t: &String| t.matches("{}").count() == 1 && !t.contains('\n');
    let sound = kept.key == key
        && kept.templates.len() == count
        && kept.templates.first().is_some_and(|t| t == "{}")
        && kept.templates.iter().all(is_template);
    sound.then_some(kept.templates)
}

fn save(path: &Path, kept: &Kept) -> Result<()> {
    let folder = atomic::folder_of(path);
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let json = |file: &mut dyn Write| Ok(serde_json::to_writer_pretty(file, kept)?);
    atomic::write(path, json).map_err(Error::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::tidy;

    #[test]
    fn prefixes_cannot_break_a_template() {
        assert_eq!(tidy("I\n* {the} \u{7}company\u{fffd} \r\n of"), "I * the company of");
        assert_eq!(tidy("\n{}\n"), "");
    }
}
