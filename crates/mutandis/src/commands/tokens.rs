//! `mutandis tokens`: how a model cuts text.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::ExitCode,
};

use mutandis::engine::{
    Error,
    tokenizer::{Encoding, Tokenizer},
};
use serde::{Deserialize, Serialize};

use crate::{output, session::Session};

/// Results of a file are written in pieces of so many bytes.
const PIECE: usize = 1 << 16;

/// Show how a model cuts text into tokens
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis tokens \"The capital of France is\"
  mutandis tokens \"The capital of France is\" --count
  mutandis tokens --file texts.jsonl --json

A file has one object with a `text` a line; for each, one line comes out.")]
pub(crate) struct Args {
    /// The text
    #[arg(required_unless_present = "file", allow_negative_numbers = true)]
    text: Option<String>,
    /// Read objects with a `text` from a file, one a line; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    file: Option<PathBuf>,
    /// Print only how many tokens it is
    #[arg(long)]
    count: bool,
}

/// What `--json` prints for a text.
#[derive(Serialize)]
struct Shown<'a> {
    text: &'a str,
    ids: &'a [u32],
    pieces: Vec<String>,
    /// First character of each token, and the one behind its last.
    offsets: Vec<[usize; 2]>,
}

#[derive(Serialize)]
struct Count {
    count: usize,
}

/// A line of a file.
#[derive(Deserialize)]
struct Line {
    text: String,
}

/// What `--json` prints for a line of a file.
#[derive(Serialize)]
struct Cut<'a> {
    text: &'a str,
    ids: &'a [u32],
}

pub(crate) fn run(args: Args, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let (_, tokenizer) = session.tokenizer()?;
    match (&args.file, &args.text) {
        (Some(path), _) => file(path, args.count, &tokenizer, session)?,
        (None, text) => one(text.as_deref().unwrap_or_default(), args.count, &tokenizer, session)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn one(text: &str, count: bool, tokenizer: &Tokenizer, session: &Session<'_>) -> anyhow::Result<()> {
    let encoding = tokenizer.encode(text)?;
    if count {
        let count = encoding.ids.len();
        return session.output.print(&Count { count }, || count.to_string());
    }
    let document = Shown {
        text,
        ids: &encoding.ids,
        pieces: encoding.ids.iter().map(|&id| tokenizer.piece(id)).collect(),
        offsets: encoding.offsets.iter().map(|range| [range.start, range.end]).collect(),
    };
    session.output.print(&document, || table(&document))
}

fn table(shown: &Shown<'_>) -> String {
    let mut lines = vec![format!("{:>8}  {:>11}  piece", "id", "characters")];
    for ((id, [start, end]), piece) in shown.ids.iter().zip(&shown.offsets).zip(&shown.pieces) {
        // Quoted and escaped: white space is what one looks for in such a table.
        lines.push(format!("{id:>8}  {:>11}  {piece:?}", format!("{start}..{end}")));
    }
    lines.join("\n")
}

fn file(path: &Path, count: bool, tokenizer: &Tokenizer, session: &Session<'_>) -> anyhow::Result<()> {
    let source: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        let found = File::open(path).map_err(|error| {
            let hint = "give a file with one object with a `text` a line, or `-` for standard input";
            Error::input_hint(format!("cannot open `{}`: {error}", path.display()), hint)
        });
        Box::new(found?)
    };
    let mut out = Vec::with_capacity(2 * PIECE);
    let lines = BufReader::with_capacity(PIECE, source).split(b'\n');
    for (number, line) in lines.enumerate() {
        session.interrupt.check()?;
        let line = line.map_err(Error::io("read", path))?;
        if let Err(error) = cut(&line, count, tokenizer, session, &mut out) {
            // The good lines before a bad one are told.
            output::write(&out)?;
            let place = format!("line {} of `{}`", number + 1, path.display());
            return Err(error.context(place));
        }
        if out.len() >= PIECE {
            output::write(&out)?;
            out.clear();
        }
    }
    Ok(output::write(&out)?)
}

/// Appends the result for one line; nothing for an empty one.
fn cut(
    line: &[u8],
    count: bool,
    tokenizer: &Tokenizer,
    session: &Session<'_>,
    out: &mut Vec<u8>,
) -> anyhow::Result<()> {
    if line.trim_ascii().is_empty() {
        return Ok(());
    }
    let Line { text } = serde_json::from_slice(line).map_err(|error| {
        // The error counts lines too, but it has seen only this one.
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        Error::input_hint(
            format!("not an object with a `text`: {message}, column {}", error.column()),
            "each line is one JSON object, as in {\"text\": \"The capital of France is\"}",
        )
    })?;
    let Encoding { ids, .. } = tokenizer.encode(&text)?;
    match (session.output.is_json(), count) {
        (true, true) => serde_json::to_writer(&mut *out, &Count { count: ids.len() })?,
        (true, false) => serde_json::to_writer(&mut *out, &Cut { text: &text, ids: &ids })?,
        (false, true) => out.extend(ids.len().to_string().bytes()),
        (false, false) => {
            let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
            out.extend(ids.join(" ").bytes());
        }
    }
    out.push(b'\n');
    Ok(())
}
