//! Conflicts of patches that join a ledger, and what they do to each other, measured.

use mutandis::engine::Model;
use mutandis_edit::conflicts::{CLOSE, Conflict, Conflicts, Kind, Side, conflicts, likelihoods};
use mutandis_edit::ledger::{Writer, short};
use mutandis_edit::{Fact, Patch};
use serde::Serialize;

use crate::patched::Patched;
use crate::session::Session;

/// Conflicts that are shown one by one.
const SHOWN: usize = 20;

/// How patches are compared with a ledger's before they join it.
#[derive(Debug, clap::Args)]
pub(in crate::commands) struct Comparing {
    /// Cosine of two facts' keys from which they are close
    #[arg(long, value_name = "COSINE", default_value_t = CLOSE, value_parser = cosine)]
    close: f64,
    /// Where facts are in conflict, do not measure what they do to each other
    #[arg(long)]
    no_measure: bool,
}

/// What there is to say of patches that join.
#[derive(Debug, Default, Serialize)]
pub(in crate::commands) struct Report {
    /// What was found.
    #[serde(flatten)]
    pub(in crate::commands) conflicts: Conflicts,
    /// What became of the facts in conflict; empty where nothing was measured.
    interference: Vec<Interference>,
}

/// One fact of a conflict.
#[derive(Debug, Clone, Serialize)]
struct Interference {
    /// Its patch, before anything is computed anew.
    id: String,
    prompt: String,
    target: String,
    /// Probability of the target before the patches join.
    before: f32,
    /// And after; absent where it is not known yet.
    after: Option<f32>,
}

fn cosine(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    number.filter(|c| *c > 0.0 && *c <= 1.0).ok_or_else(|| "expected more than 0, and 1 at most".to_owned())
}

impl Comparing {
    /// Whether what facts in conflict do to each other is measured.
    pub(in crate::commands) fn measures(&self) -> bool {
        !self.no_measure
    }
}

impl Report {
    /// Compares patches with a ledger.
    pub(in crate::commands) fn new(
        session: &Session<'_>,
        writer: &Writer,
        patches: &[Patch],
        comparing: &Comparing,
    ) -> anyhow::Result<Self> {
        let cache = session.env.cache().ok();
        let conflicts = conflicts(writer, patches, comparing.close, cache.as_deref())?;
        Ok(Self { conflicts, interference: vec![] })
    }

    /// Leaves out conflicts with patches that go.
    pub(super) fn without(&mut self, out: &[String]) {
        self.conflicts.found.retain(|conflict| !out.contains(&conflict.old.id));
    }

    /// Whether there is nothing to be said.
    pub(in crate::commands) fn is_empty(&self) -> bool {
        self.conflicts.found.is_empty()
    }

    /// How many contradict each other.
    pub(super) fn contradictions(&self) -> usize {
        self.conflicts.found.iter().filter(|conflict| conflict.kind == Kind::Contradiction).count()
    }

    /// Measures the facts in conflict under what is in force before the patches join.
    pub(in crate::commands) fn before(&mut self, model: &Model, patched: &Patched) -> anyhow::Result<()> {
        let mut sides: Vec<&Side> = vec![];
        for side in self.conflicts.found.iter().flat_map(|conflict| [&conflict.new, &conflict.old]) {
            if sides.len() < 2 * SHOWN && !sides.contains(&side) {
                sides.push(side);
            }
        }
        let facts: Vec<Fact> = sides.iter().map(|side| side.fact.clone()).collect();
        let before = measured(model, patched, &facts)?;
        let each = sides.iter().zip(before).map(|(side, before)| Interference {
            id: side.id.clone(),
            prompt: side.fact.prompt.clone(),
            target: side.fact.target.clone(),
            before,
            after: None,
        });
        self.interference = each.collect();
        Ok(())
    }

    /// Measures the same facts once the patches are in force.
    pub(in crate::commands) fn after(&mut self, model: &Model, patched: &Patched) -> anyhow::Result<()> {
        let facts = self.interference.iter().map(|i| Fact::new(&i.prompt, "", &i.target));
        let facts = facts.collect::<Result<Vec<_>, _>>()?;
        let after = measured(model, patched, &facts)?;
        self.interference.iter_mut().zip(after).for_each(|(i, after)| i.after = Some(after));
        Ok(())
    }

    /// In words, one line a conflict and one a fact that was measured.
    pub(in crate::commands) fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.conflicts.found.iter().take(SHOWN).map(|c| self.line(c)).collect();
        if let Some(more) = self.conflicts.found.len().checked_sub(SHOWN).filter(|more| *more > 0) {
            lines.push(format!("and {more} more conflicts"));
        }
        lines.extend(self.interference.iter().map(|i| {
            let after = i.after.map_or_else(String::new, |after| format!(" → {:.1} %", 100.0 * after));
            format!("  {} → {}: {:.1} %{after}", i.prompt, i.target, 100.0 * i.before)
        }));
        lines
    }

    fn line(&self, conflict: &Conflict) -> String {
        let kind = match conflict.kind {
            Kind::Contradiction => "contradicts",
            Kind::Reverse => "may contradict the other way round",
            Kind::Repeat => "repeats",
            Kind::Close => "is close to",
        };
        let cosine = conflict.cosine.zip(conflict.layer).map(|(cosine, layer)| {
            let metric = self.conflicts.metrics.get(&layer).map(String::as_str);
            let metric =
                if metric == Some("moments") { "under the moments" } else { "plain: no moments are known" };
            format!(" (cosine {cosine:.3} at layer {layer}, {metric})")
        });
        let told = |side: &Side| format!("{} → {}", side.fact.prompt, side.fact.target);
        format!(
            "conflict: {}  {kind} {}  {}{}",
            told(&conflict.new),
            short(&conflict.old.id),
            told(&conflict.old),
            cosine.unwrap_or_default()
        )
    }
}

/// Measures what a ledger's patches and new ones do to each other, where there is a conflict and the
/// model is on this machine; says so where it is not.
pub(super) fn before_joining(
    session: &Session<'_>,
    writer: &Writer,
    report: &mut Report,
    comparing: &Comparing,
) -> anyhow::Result<Option<(Model, Patched)>> {
    if report.is_empty() || !comparing.measures() {
        return Ok(None);
    }
    let ledger = writer.ledger();
    let model = session.load_here().and_then(|model| {
        ledger.check_model(&model)?;
        Ok(model)
    });
    let model = match model {
        Ok(model) => model,
        Err(why) => {
            session.progress.note(&format!("what they do to each other is not measured: {why}"));
            return Ok(None);
        }
    };
    let stack = ledger.stack().iter().map(|record| ledger.load(record)).collect::<Result<Vec<_>, _>>()?;
    let patched = Patched::of(stack, &model)?;
    report.before(&model, &patched)?;
    Ok(Some((model, patched)))
}

fn measured(model: &Model, patched: &Patched, facts: &[Fact]) -> anyhow::Result<Vec<f32>> {
    Ok(likelihoods(model, &patched.overlays(), &patched.prompt(""), facts)?)
}
