//! `mutandis patch show`: what a patch says of itself.

use std::path::Path;
use std::process::ExitCode;

use mutandis::engine::WeightId;
use mutandis_edit::patch::{SearchInfo, SolveInfo, WeightChange};
use mutandis_edit::primitives::strength::Resolved;
use mutandis_edit::{Ledger, Patch};
use serde_json::{Value, json};

use crate::commands::methods::plain;
use crate::session::Session;

pub(super) fn run(file: &Path, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    if file.is_dir() {
        return stack(file, session);
    }
    let patch = Patch::load(file)?;
    session.output.print(&document(&patch, file)?, || text(&patch))?;
    Ok(ExitCode::SUCCESS)
}

/// All patches of a ledger, the lowest first, each with its file.
fn stack(folder: &Path, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let ledger = Ledger::open(folder)?;
    let (mut documents, mut texts) = (vec![], vec![]);
    for (i, record) in ledger.stack().iter().enumerate() {
        let (patch, place) = (ledger.load(record)?, ledger.place(&record.id));
        let mut document = document(&patch, &place)?;
        document["id"] = json!(record.id);
        document["file"] = json!(place);
        documents.push(document);
        texts.push(format!("{}  {}\nfile     {}\n{}", i + 1, record.id, place.display(), text(&patch)));
    }
    if texts.is_empty() {
        texts.push("no patch is in the stack".to_owned());
    }
    session.output.print(&json!({"ledger": folder, "patches": documents}), || texts.join("\n\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// A patch, for JSON.
fn document(patch: &Patch, file: &Path) -> anyhow::Result<Value> {
    let mut document = plain(serde_json::to_value(patch)?);
    document["weights"] = json!(changes(patch));
    document["bytes"] = json!(std::fs::metadata(file).map(|m| m.len()).unwrap_or(0));
    Ok(document)
}

/// A patch, for people.
fn text(patch: &Patch) -> String {
    let mut lines = vec![
        match patch.origin() {
            Some(from) => format!("method   {} from {from}", patch.method),
            None => format!("method   {}", patch.method),
        },
        format!("base     {} ({}, {} layers)", patch.base.fingerprint, patch.base.family, patch.base.layers),
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
}

/// What a patch changes, weight by weight.
pub(super) fn changes(patch: &Patch) -> Vec<Value> {
    let change = |(id, change): &(WeightId, WeightChange)| match change {
        WeightChange::LowRank { rank, .. } => json!({
            "layer": id.layer, "role": id.role, "form": "low-rank", "rank": rank, "shape": change.shape(),
        }),
        WeightChange::Dense { .. } => {
            json!({"layer": id.layer, "role": id.role, "form": "dense", "shape": change.shape()})
        }
    };
    patch.weights.iter().map(change).collect()
}

/// The searches for the facts' values in words; none where there was none.
pub(super) fn searched(searches: &[SearchInfo]) -> Option<String> {
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
pub(super) fn solved(solve: &SolveInfo) -> String {
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
