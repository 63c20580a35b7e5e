//! `mutandis chat`: a conversation on the model's chat template.

use std::{
    io::{BufRead, IsTerminal, Write},
    num::NonZeroUsize,
    ops::ControlFlow,
    path::PathBuf,
    process::ExitCode,
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    time::Duration,
};

use mutandis::{
    Error,
    engine::{
        Cache, Generation, Kept, Model, Prompt, StopReason,
        tokenizer::{ChatTemplate, Message},
    },
};
use serde::Serialize;

use super::decoding::{Decoding, chat_template};
use mutandis::memory;

use crate::{output, patched::Patched, session::Session};

/// How long a Ctrl-C may go unseen while the user types.
const GLANCE: Duration = Duration::from_millis(100);

/// Talk with a model
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis chat
  mutandis chat --patch rome.patch.safetensors --system \"Answer in one word.\"
  echo \"What is the capital of France?\" | mutandis chat --json

A line is a turn. /reset forgets the conversation, /exit ends it.")]
pub(crate) struct Args {
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// A patch, or a ledger, to lay over the model; may be given several times
    #[arg(long, value_name = "FILE|LEDGER")]
    patch: Vec<PathBuf>,
    /// The longest answer, in tokens
    #[arg(long, value_name = "N", default_value = "512")]
    max_tokens: NonZeroUsize,
    #[command(flatten)]
    decoding: Decoding,
}

/// What `--json` prints for a turn, on one line.
#[derive(Serialize)]
struct Turn<'a> {
    turn: u64,
    user: &'a str,
    text: String,
    /// Ids generated, without the one that ended the answer.
    tokens: Vec<u32>,
    stop: StopReason,
    /// Tokens of the whole conversation up to the answer.
    prompt_tokens: usize,
    /// How many of them were known from earlier turns.
    reused_tokens: usize,
    model: &'a str,
    /// From the user's line to the end of the answer.
    seconds: f64,
    peak_memory_bytes: Option<u64>,
}

pub(crate) fn run(args: Args, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let generation = args.decoding.generation(args.max_tokens)?;
    let loaded = session.load()?;
    let (model, name) = (&loaded.model, loaded.located.name.as_str());
    let template = chat_template(model, name)?;
    let patched = Patched::load(&args.patch, model)?;
    let system: Vec<Message> = args.system.iter().map(|text| Message::new("system", text)).collect();
    let cache = Cache::new(model.architecture());
    let messages = system.clone();
    let mut talk =
        Conversation { model, name, template, patched, generation, messages, cache, held: vec![], turns: 0 };
    let for_people = std::io::stdin().is_terminal() && !session.output.is_json();
    let lines = lines();
    loop {
        if for_people {
            // A closed stderr is no reason to fail.
            let _ = std::io::stderr().write_all(b"> ");
        }
        let Some(line) = next(&lines, session)? else { break };
        match line.trim() {
            "" => {}
            "/exit" | "/quit" => break,
            "/reset" => talk.messages.clone_from(&system),
            text => match talk.turn(text, session) {
                Err(error) if for_people && error.is::<mutandis::engine::Error>() => {
                    session.progress.note(&format!("error: {error}"));
                    session.progress.note("hint: /reset forgets the conversation, /exit ends it");
                }
                done => done?,
            },
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The lines of standard input. Read by a thread of its own, so that a Ctrl-C is seen while it
/// waits.
fn lines() -> Receiver<std::io::Result<String>> {
    let (sender, receiver) = sync_channel(0);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn next(lines: &Receiver<std::io::Result<String>>, session: &Session<'_>) -> anyhow::Result<Option<String>> {
    loop {
        session.interrupt.check()?;
        match lines.recv_timeout(GLANCE) {
            Ok(line) => return Ok(Some(line.map_err(Error::io("read", "standard input"))?)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
        }
    }
}

/// A conversation and what the model remembers of it.
struct Conversation<'a> {
    model: &'a Model,
    name: &'a str,
    template: ChatTemplate,
    patched: Patched,
    generation: Generation,
    messages: Vec<Message>,
    /// Keys and values of `held`.
    cache: Cache,
    held: Vec<u32>,
    turns: u64,
}

impl Conversation<'_> {
    /// One turn of the user and the model's answer. On an error the turn has not been.
    fn turn(&mut self, user: &str, session: &Session<'_>) -> anyhow::Result<()> {
        let begun = session.seconds();
        self.messages.push(Message::new("user", user));
        let answered = self.answer(session);
        let (text, tokens, stop, prompt_tokens, reused_tokens) = match answered {
            Ok(answer) => answer,
            Err(error) => {
                self.messages.pop();
                return Err(error);
            }
        };
        self.turns += 1;
        if session.output.is_json() {
            let turn = Turn {
                turn: self.turns,
                user,
                text: text.clone(),
                tokens,
                stop,
                prompt_tokens,
                reused_tokens,
                model: self.name,
                seconds: session.seconds() - begun,
                peak_memory_bytes: memory::peak(),
            };
            let mut line = serde_json::to_vec(&turn)?;
            line.push(b'\n');
            output::write(&line)?;
        } else {
            output::write(b"\n")?;
            if stop == StopReason::Context {
                let context = self.model.architecture().context;
                session.progress.note(&format!(
                    "note: the model's context of {context} tokens is full; /reset forgets the conversation"
                ));
            }
        }
        self.messages.push(Message::new("assistant", text));
        Ok(())
    }

    /// Text, tokens, why it ended, tokens read, and how many of them were in the cache.
    fn answer(
        &mut self,
        session: &Session<'_>,
    ) -> anyhow::Result<(String, Vec<u32>, StopReason, usize, usize)> {
        let text = self.template.render(&self.with_prefix(), true)?;
        let ids = self.model.tokenizer()?.encode_with_specials(&text)?.ids;
        // The last token is run in any case: its logits begin the answer.
        let same = self.held.iter().zip(&ids).take_while(|(a, b)| a == b).count();
        let known = same.min(ids.len().saturating_sub(1));
        self.cache.truncate(known);
        self.held.truncate(known);
        let overlays = self.patched.overlays();
        let prompt = Prompt {
            tokens: &ids[known..],
            cache: Some(Kept::Lent(&mut self.cache)),
            overlays: &overlays,
            stream: self.turns,
            ..Prompt::default()
        };
        let mut broken = Ok(());
        let results = self.generation.run_with(self.model, vec![prompt], |step| {
            broken = session.interrupt.check();
            if broken.is_ok() && !session.output.is_json() && !step.text.is_empty() {
                broken = output::write(step.text.as_bytes());
            }
            if broken.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        broken?;
        let generated = results.into_iter().next().expect("one prompt, one answer");
        self.held.extend(ids[known..].iter().chain(&generated.tokens));
        self.held.truncate(self.cache.len());
        Ok((generated.text, generated.tokens, generated.stop, ids.len(), known))
    }

    /// The conversation; where a patch is a prompt, it stands before the user's first words.
    fn with_prefix(&self) -> Vec<Message> {
        let mut messages = self.messages.clone();
        if let Some(first) = messages.iter_mut().find(|message| message.role == "user") {
            first.content = self.patched.prompt(&first.content);
        }
        messages
    }
}
