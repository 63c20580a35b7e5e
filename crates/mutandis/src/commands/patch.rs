//! `mutandis patch`: look into patch files.

mod card;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use mutandis_edit::Patch;
use mutandis_edit::patch::{SearchInfo, SolveInfo, WeightChange};
use mutandis_edit::primitives::strength::Resolved;
use serde_json::json;

use self::card::{CardArgs, card};
use self::verify::{VerifyArgs, verify};
use super::methods::plain;
use crate::session::Session;

/// Show and verify patches
#[derive(Debug, clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "Examples:
  mutandis patch show france-rome.patch.safetensors
  mutandis patch verify france-rome.patch.safetensors --gate default")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show what a patch says: facts, method, settings, norms
    #[command(after_help = "Examples:
  mutandis patch show france-rome.patch.safetensors
  mutandis patch show france-rome.patch.safetensors --json")]
    Show {
        /// The patch file
        file: PathBuf,
    },
    /// Check that a patch is whole, unchanged, belongs to the model, and passes a gate
    Verify(VerifyArgs),
    /// Write what a patch is, in Markdown, with what makes it again
    Card(CardArgs),
}

pub(crate) fn run(args: Args, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    match args.action {
        Action::Show { file } => show(session, &file),
        Action::Verify(args) => verify(&args, session),
        Action::Card(args) => card(&args, session),
    }
}

fn show(session: &Session<'_>, file: &std::path::Path) -> anyhow::Result<ExitCode> {
    let patch = Patch::load(file)?;
    let mut document = plain(serde_json::to_value(&patch)?);
    let changes: Vec<_> = patch
        .weights
        .iter()
        .map(|(id, change)| match change {
            WeightChange::LowRank { rank, left, right } => json!({
                "layer": id.layer, "role": id.role, "form": "low-rank", "rank": rank,
                "shape": [left.len() / rank, right.len() / rank],
            }),
            WeightChange::Dense { out, inn, .. } => {
                json!({"layer": id.layer, "role": id.role, "form": "dense", "shape": [out, inn]})
            }
        })
        .collect();
    document["weights"] = json!(changes);
    document["bytes"] = json!(std::fs::metadata(file).map(|m| m.len()).unwrap_or(0));
    session.output.print(&document, || {
        let mut lines = vec![
            format!("method   {}", patch.method),
            format!(
                "base     {} ({}, {} layers)",
                patch.base.fingerprint, patch.base.family, patch.base.layers
            ),
            format!("made     {} by {}, seed {}", patch.created, patch.tool, patch.seed),
        ];
        for fact in patch.facts.iter().take(20) {
            lines.push(format!("fact     {} → {}", fact.prompt, fact.target));
        }
        if patch.facts.len() > 20 {
            lines.push(format!("         and {} more", patch.facts.len() - 20));
        }
        for n in patch.norms.iter().take(20) {
            lines.push(format!(
                "changes  {} of layer {}: ‖ΔW‖ {:.3}, {:.2} % of ‖W‖",
                n.weight.role,
                n.weight.layer,
                n.delta,
                100.0 * n.delta / n.base
            ));
        }
        lines.extend(searched(&patch.search).map(|search| format!("searched {search}")));
        lines.extend(patch.solve.iter().take(20).map(|s| format!("solved   {}", solved(s))));
        if let Some(prefix) = &patch.prefix {
            lines.push(format!("prompt   {prefix:?}"));
        }
        lines.join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The searches for the facts' values in words; none where there was none.
fn searched(searches: &[SearchInfo]) -> Option<String> {
    let steps = searches.iter().map(|s| s.steps).max()?;
    let mean = searches.iter().map(|s| s.probability).sum::<f32>() / searches.len() as f32;
    let least = searches.iter().map(|s| s.probability).fold(1.0, f32::min);
    let refused = searches.iter().filter(|s| s.refused).count();
    let mut text = format!(
        "{} in {steps} steps at most: target at {:.1} % in the mean, {:.1} % at least",
        searches.len(),
        100.0 * mean,
        100.0 * least
    );
    if refused > 0 {
        text.push_str(&format!("; {refused} too large and not written"));
    }
    Some(text)
}

/// One linear system in words; a strength is relative, and in brackets as papers have it.
fn solved(solve: &SolveInfo) -> String {
    let mut parts: Vec<String> = solve.layer.map(|layer| format!("layer {layer}")).into_iter().collect();
    parts.push(solve.form.clone());
    let strength = |(name, s): (&String, &Resolved)| {
        format!("{name} {:.3e} relative ({:.4e} absolute)", s.relative, s.absolute)
    };
    parts.extend(solve.strengths.iter().map(strength));
    parts.extend(solve.null_space.map(|n| format!("null space of dimension {n}")));
    if solve.condition > 0.0 {
        parts.push(format!("condition {:.1e}", solve.condition));
    }
    parts.push(format!("residual {:.1e}", solve.residual));
    if solve.jitter > 0.0 {
        parts.push(format!("jitter {:.1e}", solve.jitter));
    }
    parts.join(", ")
}
