//! `mutandis patch from-lora` and `from-diff`: what others made, as patches.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mutandis::engine::checkpoint::Checkpoint;
use mutandis_edit::lora::Adapter;
use mutandis_edit::{Patch, difference};
use serde_json::json;

use super::show::changes;
use crate::commands::edit::writable;
use crate::session::Session;
use crate::stages::Stages;

/// What `patch from-lora` takes.
#[derive(Debug, clap::Args)]
pub(super) struct FromLora {
    /// The adapter: peft's folder, or llama.cpp's `.gguf`
    adapter: PathBuf,
    #[command(flatten)]
    out: Out,
}

/// What `patch from-diff` takes.
#[derive(Debug, clap::Args)]
pub(super) struct FromDiff {
    /// The model that was changed: a folder, a file, a hub id, or a short name
    base: String,
    /// What it became
    edited: String,
    /// Leave out what no patch can change: norms, embeddings, biases
    #[arg(long)]
    linear_only: bool,
    #[command(flatten)]
    out: Out,
}

/// Where the patch goes.
#[derive(Debug, clap::Args)]
struct Out {
    /// Where the patch goes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Overwrite the patch file
    #[arg(long)]
    force: bool,
}

pub(super) fn from_lora(args: &FromLora, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    writable(&args.out.out, args.out.force)?;
    let model = session.load()?.model;
    let patch = Adapter::read(&args.adapter, model.architecture().family)?.patch(&model)?;
    told(&patch, &args.out.out, &[], session)
}

pub(super) fn from_diff(args: &FromDiff, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    writable(&args.out.out, args.out.force)?;
    let edited = Checkpoint::open(&session.models().resolve(Some(&args.edited))?.path)?;
    let base = session.load_named(Some(&args.base))?.model;
    let stages = Stages::new(&session.progress);
    let cx = session.context(&stages);
    let found = base.install(|| difference::between(&base, &edited, args.linear_only, &cx))?;
    told(&found.patch, &args.out.out, &found.skipped, session)
}

/// Saves a patch and says what is in it, and what is not.
fn told(patch: &Patch, out: &Path, skipped: &[String], session: &Session<'_>) -> anyhow::Result<ExitCode> {
    patch.save(out)?;
    let document = json!({
        "patch": out, "id": patch.id()?, "weights": changes(patch), "skipped": skipped,
        "seconds": session.seconds(),
    });
    session.output.print(&document, || {
        let ranks: Vec<usize> = patch.weights.iter().filter_map(|(_, change)| change.rank()).collect();
        let dense = patch.weights.len() - ranks.len();
        let mut lines = vec![];
        if let Some(most) = ranks.iter().max() {
            lines.push(format!("{} weights change by low rank, {most} at most", ranks.len()));
        }
        if dense > 0 {
            lines.push(format!("{dense} weights change whole"));
        }
        lines.extend(skipped.iter().map(|name| format!("skipped  {name}")));
        lines.push(out.display().to_string());
        lines.join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}
