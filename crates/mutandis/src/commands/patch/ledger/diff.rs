//! `mutandis patch diff`: what two stacks differ in.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mutandis_edit::diff::Diff;
use mutandis_edit::ledger::short;
use mutandis_edit::{Ledger, Patch};
use serde_json::json;

use crate::session::Session;

/// Facts and weights that are shown of each kind.
const SHOWN: usize = 50;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis patch diff edits/ ../hers/edits/
  mutandis patch diff before.patch.safetensors after.patch.safetensors --json")]
pub(in super::super) struct DiffArgs {
    /// A ledger or a patch file
    a: PathBuf,
    /// Another one
    b: PathBuf,
}

pub(in super::super) fn run(args: &DiffArgs, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let (a, b) = (read(&args.a)?, read(&args.b)?);
    let diff = Diff::of(&a, &b)?;
    let document = json!({"a": args.a, "b": args.b, "same": diff.is_empty(), "diff": diff});
    session.output.print(&document, || text(&diff))?;
    Ok(ExitCode::SUCCESS)
}

/// The patches of a ledger, or one.
fn read(path: &Path) -> anyhow::Result<Vec<Patch>> {
    if !path.is_dir() {
        return Ok(vec![Patch::load(path)?]);
    }
    let ledger = Ledger::open(path)?;
    Ok(ledger.stack().iter().map(|record| ledger.load(record)).collect::<Result<_, _>>()?)
}

fn text(diff: &Diff) -> String {
    let mut lines = vec![format!(
        "{} patches are in both, {} in the first alone, {} in the second alone",
        diff.shared,
        diff.patches_a.len(),
        diff.patches_b.len()
    )];
    let mut some = |of: Vec<String>| {
        let more = of.len().saturating_sub(SHOWN);
        lines.extend(of.into_iter().take(SHOWN));
        lines.extend((more > 0).then(|| format!("  and {more} more")));
    };
    some(diff.patches_a.iter().map(|id| format!("- {}", short(id))).collect());
    some(diff.patches_b.iter().map(|id| format!("+ {}", short(id))).collect());
    some(diff.facts_a.iter().map(|f| format!("- {} → {}", f.prompt, f.target)).collect());
    some(diff.facts_b.iter().map(|f| format!("+ {} → {}", f.prompt, f.target)).collect());
    some(diff.changed.iter().map(|c| format!("! {} → {} | {}", c.prompt, c.a, c.b)).collect());
    let weight = |w: &mutandis_edit::diff::Moved| {
        let role = w.weight.role;
        let (layer, a, b, d) = (w.weight.layer, w.a, w.b, w.difference);
        format!("  {role} of layer {layer}: ‖ΔW‖ {a:.4} | {b:.4}, difference {d:.4}")
    };
    some(diff.weights.iter().map(weight).collect());
    if diff.is_empty() {
        lines.push("they are the same".into());
    }
    lines.join("\n")
}
