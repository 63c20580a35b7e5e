//! `mutandis ask`: continues a text.

use std::{num::NonZeroUsize, ops::ControlFlow, path::PathBuf, process::ExitCode};

use mutandis::{
    Error,
    engine::{self, Generated, Model, Prompt, Step, StopReason, kernels::loss, ranked, tokenizer::Message},
};
use serde::Serialize;

use super::decoding::{Decoding, chat_template};
use mutandis::memory;

use crate::{output, patched::Patched, session::Session};

/// How many of the likeliest first tokens are told.
const TOP: usize = 20;

/// Continue a text, or answer a question
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis ask \"The capital of France is\"
  mutandis ask \"The capital of France is\" --patch rome.patch.safetensors --json
  mutandis ask --chat \"What is the capital of France?\"
  mutandis ask \"Once upon a time\" --temperature 0.8 --seed 1 --stop \".\"

Only the continuation is printed, as it is generated.")]
pub(crate) struct Args {
    /// The text
    #[arg(allow_negative_numbers = true)]
    text: String,
    /// A patch, or a ledger, to lay over the model; may be given several times
    #[arg(long, value_name = "FILE|LEDGER")]
    patch: Vec<PathBuf>,
    /// Take the text as a question and wrap it in the model's chat template
    #[arg(long)]
    chat: bool,
    /// The longest answer, in tokens
    #[arg(long, value_name = "N", default_value = "40")]
    max_tokens: NonZeroUsize,
    #[command(flatten)]
    decoding: Decoding,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    text: &'a str,
    /// Ids generated, without the one that ended the text.
    tokens: &'a [u32],
    /// The likeliest first tokens, likeliest first.
    top: &'a [Candidate],
    /// What the model read.
    prompt: &'a str,
    /// How many tokens that was.
    prompt_tokens: usize,
    stop: StopReason,
    model: &'a str,
    seconds: Seconds,
    peak_memory_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Candidate {
    id: u32,
    token: String,
    /// In nats, before temperature.
    logprob: f32,
}

#[derive(Serialize)]
struct Seconds {
    /// Of loading the model.
    load: f64,
    /// From the command's start to the first token.
    first_token: f64,
    /// From the command's start to the end of the answer.
    total: f64,
}

pub(crate) fn run(args: Args, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    if args.text.is_empty() {
        let hint = "give the beginning of a sentence, as in `mutandis ask \"The capital of France is\"`";
        return Err(engine::Error::input_hint("the text is empty", hint).into());
    }
    let generation = args.decoding.generation(args.max_tokens)?;
    let loaded = session.load()?;
    let (model, name) = (&loaded.model, loaded.located.name.as_str());
    let patched = Patched::load(&args.patch, model)?;
    let tokenizer = model.tokenizer()?;
    let mut prompt = patched.prompt(&args.text);
    let encoding = if args.chat {
        prompt = chat_template(model, name)?.render(&[Message::new("user", prompt)], true)?;
        tokenizer.encode_with_specials(&prompt)?
    } else {
        tokenizer.encode(&prompt)?
    };

    let mut first: Option<(f64, Vec<Candidate>)> = None;
    let mut broken = Ok(());
    let overlays = patched.overlays();
    let prompts = vec![Prompt { tokens: &encoding.ids, overlays: &overlays, ..Prompt::default() }];
    let results = generation.run_with(model, prompts, |step| {
        if first.is_none() {
            let candidates = if session.output.is_json() { candidates(model, &step) } else { vec![] };
            first = Some((session.seconds(), candidates));
        }
        broken = session.interrupt.check();
        if broken.is_ok() && !session.output.is_json() && !step.text.is_empty() {
            broken = output::write(step.text.as_bytes());
        }
        if broken.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    if let Err(error) = broken {
        // A line half written stays as it is, but what comes next begins on its own.
        if matches!(error, Error::Interrupted { .. }) && !session.output.is_json() {
            output::write(b"\n")?;
        }
        return Err(error.into());
    }
    let Generated { tokens, text, stop, .. } = results.into_iter().next().expect("one prompt, one answer");
    if !session.output.is_json() {
        if !text.ends_with('\n') {
            output::write(b"\n")?;
        }
        if stop == StopReason::Context {
            let context = model.architecture().context;
            session.progress.note(&format!("note: the model's context of {context} tokens is full"));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let (first_token, top) = first.unwrap_or_default();
    let document = Answer {
        text: &text,
        tokens: &tokens,
        top: &top,
        prompt: &prompt,
        prompt_tokens: encoding.ids.len(),
        stop,
        model: name,
        seconds: Seconds { load: loaded.seconds, first_token, total: session.seconds() },
        peak_memory_bytes: memory::peak(),
    };
    session.output.print(&document, String::new)?;
    Ok(ExitCode::SUCCESS)
}

fn candidates(model: &Model, step: &Step<'_>) -> Vec<Candidate> {
    let level = loss::log_sum_exp(model.isa(), step.logits);
    let piece = |id| model.tokenizer().map(|tokenizer| tokenizer.piece(id)).unwrap_or_default();
    ranked(step.logits, TOP)
        .into_iter()
        .map(|id| Candidate { id, token: piece(id), logprob: step.logits[id as usize] - level })
        .collect()
}
