//! `mutandis patch list|add|revert|log|merge|diff`: stacks of patches in a folder.

pub(in crate::commands) mod conflict;
pub(super) mod diff;
pub(super) mod merge;
mod tell;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mutandis::engine::Model;
use mutandis_edit::ledger::{Done, Plan, Record, Writer};
use mutandis_edit::patch::Base;
use mutandis_edit::{Context, Error, Ledger, Patch};
use serde::Serialize;
use serde_json::json;

use self::conflict::{Comparing, Report, before_joining};
use self::tell::{named, operation, table};
use crate::session::Session;
use crate::stages::Stages;

/// How a ledger is written to.
#[derive(Debug, clap::Args)]
pub(in crate::commands) struct Writing {
    /// Fail where another process is writing to the ledger, instead of waiting for it
    #[arg(long)]
    pub(in crate::commands) no_wait: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis patch list edits/
  mutandis patch list edits/ --json")]
pub(super) struct ListArgs {
    /// The ledger
    ledger: PathBuf,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis patch log edits/
  mutandis patch log edits/ --json")]
pub(super) struct LogArgs {
    /// The ledger
    ledger: PathBuf,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis patch add edits/ france-rome.patch.safetensors
  mutandis patch add edits/ a.patch.safetensors b.patch.safetensors --json

Facts that are in conflict with those of the ledger are told: of the same subject and relation,
contradicting, or with keys that are close. A folder that is empty, or is not there, becomes a ledger. `mutandis edit --ledger edits/` makes an
edit on top of a ledger and adds it.")]
pub(super) struct AddArgs {
    /// The ledger
    ledger: PathBuf,
    /// Patch files, in the order in which they go on top
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Take a patch as it is that was computed on top of other patches than these
    #[arg(long)]
    independent: bool,
    #[command(flatten)]
    comparing: Comparing,
    #[command(flatten)]
    writing: Writing,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis patch revert edits/ 3
  mutandis patch revert edits/ 3fa9c1d2 7 --model gemma3
  mutandis patch revert edits/ --fact \"capital of France\"

What is left answers as if these patches had never been. Patches that were computed on top of one of
them are computed anew, by their own method, settings and seed: the model is needed then.")]
pub(super) struct RevertArgs {
    /// The ledger
    ledger: PathBuf,
    /// Patches: numbers as `patch list` shows them, or beginnings of ids
    #[arg(required_unless_present = "fact")]
    which: Vec<String>,
    /// The patch whose fact has this text in its prompt or target
    #[arg(long, value_name = "TEXT", conflicts_with = "which", allow_negative_numbers = true)]
    fact: Option<String>,
    /// The text for moments that the patches to be computed anew were made with
    #[arg(long, value_name = "FILE")]
    corpus: Option<PathBuf>,
    #[command(flatten)]
    writing: Writing,
}

/// What `list --json` prints.
#[derive(Serialize)]
struct Listed<'a> {
    ledger: &'a Path,
    base: &'a Base,
    /// Hash of the last operation, and with it of all before.
    head: &'a str,
    /// The lowest first.
    patches: &'a [Record],
}

pub(super) fn list(args: &ListArgs, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let ledger = Ledger::open(&args.ledger)?;
    let document =
        Listed { ledger: &args.ledger, base: ledger.base(), head: ledger.head(), patches: ledger.stack() };
    session.output.print(&document, || table(&ledger))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn log(args: &LogArgs, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let ledger = Ledger::open(&args.ledger)?;
    let document = json!({"ledger": args.ledger, "head": ledger.head(), "operations": ledger.history()});
    session.output.print(&document, || {
        let lines = ledger.history().iter().enumerate();
        let mut lines: Vec<String> = lines.map(|(i, line)| operation(i + 1, line)).collect();
        if lines.is_empty() {
            lines.push("nothing was done yet".into());
        }
        lines.join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn add(args: &AddArgs, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let patches = args.files.iter().map(|file| Patch::load(file)).collect::<Result<Vec<_>, _>>()?;
    let base = patches.first().map(|patch| patch.base.clone());
    let mut writer = writer(session, &args.ledger, base.as_ref(), &args.writing)?;
    let mut report = Report::new(session, &writer, &patches, &args.comparing)?;
    let measuring = before_joining(session, &writer, &mut report, &args.comparing)?;
    if let Some((model, _)) = &measuring {
        patches.iter().try_for_each(|patch| patch.check(model))?;
    }
    let added = writer.add(&patches, args.independent)?;
    if let Some((model, mut patched)) = measuring {
        patched.push(patches, &model)?;
        report.after(&model, &patched)?;
    }
    let ledger = writer.ledger();
    let document = json!({
        "ledger": args.ledger, "head": ledger.head(), "added": added, "patches": ledger.stack().len(),
        "conflicts": report,
    });
    session.output.print(&document, || {
        let first = ledger.stack().len() - added.len();
        let lines = added.iter().enumerate().map(|(i, r)| format!("added {}  {}", first + i + 1, named(r)));
        report.lines().into_iter().chain(lines).collect::<Vec<_>>().join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn revert(args: &RevertArgs, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let mut writer = writer(session, &args.ledger, None, &args.writing)?;
    let ledger = writer.ledger();
    let ids: HashSet<String> = match &args.fact {
        Some(text) => std::iter::once(ledger.find_fact(text)?.id.clone()).collect(),
        None => {
            args.which.iter().map(|which| Ok(ledger.find(which)?.id.clone())).collect::<Result<_, Error>>()?
        }
    };
    let plan = Plan::revert(ledger, &ids)?;
    let gone: Vec<Record> = ledger.stack().iter().filter(|r| ids.contains(&r.id)).cloned().collect();
    let done = carry_out(session, &mut writer, &plan, args.corpus.clone(), None)?;
    let left = writer.ledger().stack().len();
    let document = json!({
        "ledger": args.ledger, "head": writer.ledger().head(), "out": done.out, "anew": anew(&done), "patches": left,
    });
    session.output.print(&document, || {
        let mut lines: Vec<String> = gone.iter().map(|r| format!("taken out  {}", named(r))).collect();
        lines.extend(done.anew.iter().map(|(_, r)| format!("computed anew  {}", named(r))));
        lines.push(format!("{left} {} left", if left == 1 { "patch is" } else { "patches are" }));
        lines.join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Opens a ledger for writing; with a `base`, begins one where there is none.
pub(in crate::commands) fn writer(
    session: &Session<'_>,
    folder: &Path,
    base: Option<&Base>,
    writing: &Writing,
) -> anyhow::Result<Writer> {
    let mut is_told = false;
    let writer = Writer::open(folder, base, &mut || {
        if writing.no_wait {
            return Err(Error::input_hint(
                format!("another process is writing to the ledger `{}`", folder.display()),
                "try again later, or leave out `--no-wait`",
            ));
        }
        if !std::mem::replace(&mut is_told, true) {
            session.progress.note("another process is writing to the ledger: waiting for it");
        }
        session.interrupt.check().map_err(|_| Error::Interrupted)
    })?;
    if writer.dropped > 0 {
        session.progress.note(&format!(
            "an operation that was cut off before its end was dropped ({} bytes): the ledger is as it was before it",
            writer.dropped
        ));
    }
    Ok(writer)
}

/// Carries a plan out; where something is to be computed anew, says so and loads the model, unless it
/// is there.
fn carry_out(
    session: &Session<'_>,
    writer: &mut Writer,
    plan: &Plan,
    corpus: Option<PathBuf>,
    loaded: Option<&Model>,
) -> anyhow::Result<Done> {
    let count = plan.anew().count();
    if count == 0 {
        return Ok(writer.carry_out(plan, None)?);
    }
    session.progress.note(&match count {
        1 => "1 patch is computed anew: what it was computed on changes".to_owned(),
        _ => format!("{count} patches are computed anew: what they were computed on changes"),
    });
    let own = if loaded.is_none() { Some(session.load()?.model) } else { None };
    let stages = Stages::new(&session.progress);
    let cx = Context { corpus, ..session.context(&stages) };
    Ok(writer.carry_out(plan, loaded.or(own.as_ref()).map(|model| (model, &cx)))?)
}

/// What was computed anew, for JSON.
fn anew(done: &Done) -> serde_json::Value {
    done.anew.iter().map(|(was, now)| json!({"was": was, "now": now})).collect()
}
