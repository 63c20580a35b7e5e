//! The gate of a command line: read before the work, held against an edit after it.

use std::collections::HashSet;
use std::path::Path;

use mutandis::edit::patch::norms;
use mutandis::edit::{Context, Fact, Patch};
use mutandis::engine::{Model, Overlay};
use mutandis_bench::edited::Edited;
use mutandis_bench::gate::{Asked, Bound, Case, Check, Gate, Measure, Trial, Verdict};
use mutandis_bench::general::Suite;
use mutandis_bench::whole::Whole;

use crate::neighbours::neighbours;
use crate::patched::Patched;

/// A gate with its suites, before there is a model.
#[derive(Debug)]
pub(crate) struct Gated {
    gate: Gate,
    suites: Vec<Suite>,
}

impl Gated {
    /// Reads the gate and its suites.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let gate = Gate::read(path)?;
        let suites = gate.suites()?;
        Ok(Self { gate, suites })
    }

    /// Finds out before the work that a threshold cannot be measured of these facts.
    pub(crate) fn fits(&self, asked: &Asked) -> anyhow::Result<()> {
        Ok(self.gate.fits(asked)?)
    }

    /// The suites that it asks for.
    pub(crate) fn suites(&self) -> &[Suite] {
        &self.suites
    }

    /// Measures the unedited model.
    pub(crate) fn whole(&self, model: &Model, cx: &Context<'_>) -> anyhow::Result<Whole> {
        Ok(self.gate.whole(model, self.suites.clone(), cx)?)
    }

    /// What the gate says to what was measured.
    pub(crate) fn judge(&self, measures: &[Measure]) -> Verdict {
        self.gate.judge(measures)
    }
}

/// What is asked about facts: with well-known neighbours where nothing else is to be kept.
pub(crate) fn asked(facts: &[Fact], also: &[String], keep: &[String]) -> Asked {
    Asked::new(facts, also, keep, |fact| neighbours(&fact.prompt, &fact.written_subject()))
}

/// Measures a patch on top of others.
pub(crate) fn measure(
    model: &Model,
    asked: &Asked,
    whole: &Whole,
    beneath: &Patched,
    patch: &Patch,
    cx: &Context<'_>,
) -> anyhow::Result<Vec<Measure>> {
    let own = patch.overlay(model)?;
    let (below, above) = (beneath.overlays(), on_top(beneath, &own));
    let prefix =
        [beneath.prefix.as_deref(), patch.prefix.as_deref()].into_iter().flatten().collect::<String>();
    let trial = Trial {
        asked: &asked.clone().and_beneath(&beneath.patches),
        whole,
        before: Edited { model, overlays: &below, prefix: beneath.prefix.as_deref().unwrap_or_default() },
        after: Edited { model, overlays: &above, prefix: &prefix },
        norms: &norms(model, beneath.patches.iter().chain([patch]))?,
    };
    Ok(trial.measure(cx)?)
}

/// Measures a whole stack against the unedited model.
pub(crate) fn measure_all(
    model: &Model,
    asked: &Asked,
    whole: &Whole,
    stack: &Patched,
    cx: &Context<'_>,
) -> anyhow::Result<Vec<Measure>> {
    let (overlays, norms) = (stack.overlays(), norms(model, &stack.patches)?);
    let after = Edited { model, overlays: &overlays, prefix: stack.prefix.as_deref().unwrap_or_default() };
    let trial = Trial { asked, whole, before: Edited::unedited(model), after, norms: &norms };
    Ok(trial.measure(cx)?)
}

/// Facts of a stack as it stands: of several about one prompt the last.
pub(crate) fn standing(patches: &[Patch]) -> Vec<Fact> {
    let mut seen = HashSet::new();
    let facts = patches.iter().flat_map(|patch| &patch.facts).rev();
    let mut last: Vec<Fact> = facts.filter(|fact| seen.insert(&fact.prompt)).cloned().collect();
    last.reverse();
    last
}

fn on_top<'a>(beneath: &'a Patched, own: &'a Overlay) -> Vec<&'a Overlay> {
    beneath.overlays().into_iter().chain((!own.is_empty()).then_some(own)).collect()
}

/// A verdict, for people.
pub(crate) fn told(verdict: &Verdict) -> String {
    let failed = verdict.checks.iter().filter(|check| !check.passed).count();
    let mut lines = vec![match failed {
        0 => "gate: passed".to_owned(),
        _ => format!("gate: {failed} of {} checks failed", verdict.checks.len()),
    }];
    let width = verdict.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    for check in &verdict.checks {
        let (mark, name) = (if check.passed { '=' } else { '!' }, &check.name);
        lines.push(format!("  {mark} {name:<width$}  {}", result(check)));
        lines.extend(check.worst.iter().map(|case| format!("      {}", fell_short(case))));
    }
    lines.join("\n")
}

/// What was measured, and what was asked for.
fn result(check: &Check) -> String {
    let (word, bound) = match check.bound {
        Bound::AtLeast(least) => ("at least", least),
        Bound::AtMost(most) => ("at most", most),
    };
    let measured = check.measured.map_or("not a number".to_owned(), |measured| format!("{measured:.3}"));
    format!("{measured}, {word} {bound} ({})", counted(&check.name, check.count))
}

/// Of how many something is a mean.
pub(crate) fn counted(name: &str, count: usize) -> String {
    let one = match name {
        "efficacy" => "fact",
        "paraphrase" => "wording",
        "kept" | "kl" => "prompt",
        "perplexity" => "token",
        "norm" => "weight",
        _ => "question",
    };
    format!("{count} {one}{}", if count == 1 { "" } else { "s" })
}

fn fell_short(case: &Case) -> String {
    let line = |text: &Option<String>| {
        let words: Vec<&str> = text.iter().flat_map(|text| text.split_whitespace()).collect();
        if words.is_empty() { "(nothing)".to_owned() } else { words.join(" ") }
    };
    let mut text = case.what.clone();
    if case.after.is_some() {
        text.push_str(&format!("  {} → {}", line(&case.before), line(&case.after)));
    }
    text.extend(case.wanted.iter().map(|wanted| format!("; wanted {wanted}")));
    text.extend(case.value.map(|value| format!("  {value:.3}")));
    text
}
