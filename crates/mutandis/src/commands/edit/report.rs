//! What an edit did, for people and as JSON.

use mutandis_bench::gate::Verdict;
use serde::Serialize;

use super::questions::SHOWN;
use crate::answers::Answer;
use crate::commands::patch::ledger::conflict::Report as Conflicts;
use crate::gated::told;
use crate::shell::quoted;

#[derive(Serialize)]
pub(super) struct Report {
    /// Nothing where the gate refused it.
    pub(super) patch: Option<String>,
    /// The ledger that it was added to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ledger: Option<String>,
    /// With what it is in conflict there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) conflicts: Option<Conflicts>,
    pub(super) method: String,
    pub(super) facts: Vec<FactReport>,
    pub(super) also: Vec<AlsoReport>,
    pub(super) keep: Vec<KeepReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) gate: Option<Verdict>,
    pub(super) seconds: Seconds,
    pub(super) peak_memory_bytes: u64,
}

#[derive(Serialize)]
pub(super) struct FactReport {
    pub(super) prompt: String,
    pub(super) subject: String,
    pub(super) target: String,
    pub(super) before: Answer,
    pub(super) after: Answer,
}

#[derive(Serialize)]
pub(super) struct AlsoReport {
    pub(super) prompt: String,
    pub(super) before: Answer,
    pub(super) after: Answer,
}

#[derive(Serialize)]
pub(super) struct KeepReport {
    pub(super) prompt: String,
    pub(super) before: Answer,
    pub(super) after: Answer,
    pub(super) moved: bool,
}

#[derive(Serialize)]
pub(super) struct Seconds {
    pub(super) load: f64,
    pub(super) moments: f64,
    pub(super) edit: f64,
    pub(super) evaluate: f64,
}

impl Report {
    pub(super) fn text(&self, model: Option<&str>) -> String {
        // An answer that is more than a line is shown as one.
        let show = |a: &Answer| {
            let words: Vec<&str> = a.answer.split_whitespace().collect();
            let answer = if words.is_empty() { "(nothing)".to_owned() } else { words.join(" ") };
            format!("{answer} ({:.1} %)", 100.0 * a.probability)
        };
        let mut lines = vec![];
        for f in self.facts.iter().take(SHOWN) {
            lines.push(f.prompt.clone());
            lines.push(format!("  before  {}", show(&f.before)));
            lines.push(format!("  after   {}", show(&f.after)));
        }
        if self.facts.len() > SHOWN {
            let done = self.facts.iter().filter(|f| f.after.answer == f.target).count();
            lines.push(format!("{done} of {} facts are answered as asked", self.facts.len()));
        }
        if !self.also.is_empty() {
            lines.push("\nother wordings".into());
            for a in &self.also {
                lines.push(format!("  {}  {} → {}", a.prompt, show(&a.before), show(&a.after)));
            }
        }
        if !self.keep.is_empty() {
            let kept = self.keep.iter().filter(|k| !k.moved).count();
            lines.push(format!("\nneighbours: {kept} of {} unmoved", self.keep.len()));
            for k in &self.keep {
                lines.push(match k.moved {
                    false => format!("  = {}  {}", k.prompt, show(&k.after)),
                    true => format!("  ! {}  {} → {}", k.prompt, show(&k.before), show(&k.after)),
                });
            }
        }
        lines.extend(self.gate.iter().map(|verdict| format!("\n{}", told(verdict))));
        if let Some(conflicts) = self.conflicts.as_ref().filter(|c| !c.is_empty()) {
            lines.push(String::new());
            lines.extend(conflicts.lines());
        }
        let s = &self.seconds;
        lines.push(format!(
            "\n{} in {:.1} s (load {:.1}, moments {:.1}, edit {:.1}, evaluate {:.1}), {} MB of memory at most",
            self.method,
            s.load + s.moments + s.edit + s.evaluate,
            s.load,
            s.moments,
            s.edit,
            s.evaluate,
            self.peak_memory_bytes / 1_000_000
        ));
        let Some(patch) = &self.patch else {
            lines.push("no patch was written: the edit did not pass its gate".to_owned());
            return lines.join("\n");
        };
        lines.push(format!("patch: {patch}"));
        let mut again = vec!["try:   mutandis ask".to_owned()];
        again.push(quoted(self.facts.first().map_or("…", |f| &f.prompt)));
        again.extend(model.map(|m| format!("--model {}", quoted(m))));
        again.push(format!("--patch {}", quoted(self.ledger.as_ref().unwrap_or(patch))));
        lines.push(again.join(" "));
        lines.join("\n")
    }
}
