//! A card's text.

use mutandis_bench::gate::Case;
use mutandis_bench::report::escape::markdown as escaped;
use mutandis_edit::Fact;
use mutandis_edit::patch::{CORPUS, WeightChange};
use serde_json::Value;

use super::Page;
use crate::answers::Answer;
use crate::commands::methods::plain;
use crate::commands::patch::show::{searched, solved};
use crate::gated::counted;
use crate::shell::quoted;

/// Rows of a table; the rest is counted. All facts are in the block at the end.
const ROWS: usize = 50;

impl Page<'_> {
    /// Everything above the block.
    pub(super) fn markdown(&self) -> String {
        let parts = [
            self.head(),
            self.facts(),
            self.measured(),
            self.method(),
            self.weights(),
            self.hashes(),
            self.again(),
        ];
        parts.join("\n\n")
    }

    fn head(&self) -> String {
        let first = self.patch.facts.first();
        let name = first.map(|fact| if fact.subject.is_empty() { &fact.prompt } else { &fact.subject });
        let mut title = name.zip(first).map_or("An imported edit".to_owned(), |(name, fact)| {
            format!("{} → {}", escaped(name), escaped(&fact.target))
        });
        let more = self.patch.facts.len().saturating_sub(1);
        if more > 0 {
            title.push_str(&format!(", and {more} more facts"));
        }
        let base = &self.patch.base;
        let made = if self.entry.is_some() { "made" } else { "read" };
        let mut about = format!(
            "A patch that changes what a language model knows, for `{}` ({}, {} layers), {made} by `{}` on {}.",
            self.card.model,
            base.family,
            base.layers,
            self.patch.method,
            self.patch.created.split('T').next().unwrap_or_default(),
        );
        match self.card.beneath.len() {
            0 => {}
            1 => about.push_str(" It stands on another patch."),
            n => about.push_str(&format!(" It stands on {n} other patches.")),
        }
        let first = first.map_or("…", |fact| &fact.prompt);
        let (model, file) = (quoted(&self.card.model), quoted(&self.file.name));
        format!(
            "# {title}\n\n{about} It leaves the model's file as it is; to use it:\n\n    mutandis ask {} --model {model} --patch {file}",
            quoted(first)
        )
    }

    fn facts(&self) -> String {
        if self.patch.facts.is_empty() {
            return "## What it changes\n\nNo fact is known of it: it was not computed from facts."
                .to_owned();
        }
        let row = |(fact, (before, after)): (&Fact, (&Answer, &Answer))| {
            let mark = if after.answer == fact.target { "" } else { " (not as asked)" };
            vec![escaped(&fact.prompt), escaped(&fact.target), said(before), format!("{}{mark}", said(after))]
        };
        let rows = self.patch.facts.iter().zip(self.before.iter().zip(&self.after)).map(row);
        let done = self.patch.facts.iter().zip(&self.after).filter(|(f, a)| f.target == a.answer).count();
        format!(
            "## What it changes\n\n{}\n\n{done} of {} facts are answered as asked. In brackets: the probability of the whole answer.",
            table(&["prompt", "asked for", "before", "after"], rows.collect()),
            self.patch.facts.len()
        )
    }

    fn measured(&self) -> String {
        let rows = self.measures.iter().map(|measure| {
            let what = meaning(&measure.name);
            let value = measure.value.map_or("not a number".to_owned(), |value| number(&measure.name, value));
            vec![format!("{what} (`{}`)", measure.name), value, counted(&measure.name, measure.count)]
        });
        let mut text = format!(
            "## What was measured\n\n{}\n\nOn `{}`, plain prompts without a chat template, greedy answers in free generation to the \
             end of the first sentence or line; nothing is drawn, so there is no seed. `efficacy`, `paraphrase`, `kept` and `kl` \
             compare with the model as the edit found it, `perplexity` and `norm` with the unedited one.",
            table(&["", "measured", "of"], rows.collect()),
            self.card.model
        );
        for (name, title) in [
            ("efficacy", "Facts that a free answer does not begin with"),
            ("paraphrase", "Other wordings that are not answered so"),
            ("kept", "Unrelated prompts that are answered otherwise than before"),
        ] {
            let found = self.measures.iter().find(|measure| measure.name == name);
            let cases = found.map(|measure| &measure.cases[..]).unwrap_or_default();
            if !cases.is_empty() {
                let row = |case: &Case| {
                    let text = |text: &Option<String>| text.as_deref().map_or("".to_owned(), escaped);
                    vec![escaped(&case.what), text(&case.before), text(&case.after)]
                };
                text.push_str(&format!(
                    "\n\n{title}:\n\n{}",
                    table(&["prompt", "before", "after"], cases.iter().map(row).collect())
                ));
            }
        }
        text
    }

    fn method(&self) -> String {
        let Some(entry) = self.entry else { return self.origin() };
        let (mine, published) = (flat(&self.patch.config), flat(&entry.defaults()));
        let default = |name: &str| published.iter().find(|(n, _)| n == name).map(|(_, value)| value);
        let differs = mine.iter().filter(|(name, value)| default(name) != Some(value));
        let rows: Vec<Vec<String>> = differs
            .map(|(name, value)| vec![format!("`{name}`"), shown(Some(value)), shown(default(name))])
            .collect();
        let mut text = format!(
            "## How it was made\n\n`{}`: {} ([arXiv {}](https://arxiv.org/abs/{})), seed {}.",
            entry.id, entry.summary, entry.paper, entry.paper, self.patch.seed
        );
        match rows.is_empty() {
            true => text.push_str(" All settings are as published."),
            false => text.push_str(&format!(
                "\n\nSettings that differ from the published ones; all are in the block at the end:\n\n{}",
                table(&["setting", "here", "published"], rows)
            )),
        }
        text
    }

    /// How a patch came about that no method made.
    fn origin(&self) -> String {
        let from = self.patch.origin().map_or(String::new(), |from| format!(" ({})", escaped(from)));
        let rows = flat(&self.patch.config);
        let rows = rows.iter().map(|(name, value)| vec![format!("`{name}`"), shown(Some(value))]).collect();
        format!(
            "## How it was made\n\n`{}`: it was not computed here, but read from something else{from}.\n\n{}",
            self.patch.method,
            table(&["", ""], rows)
        )
    }

    fn weights(&self) -> String {
        let row = |(id, change): &(mutandis_engine::WeightId, WeightChange)| {
            let norms = self.patch.norms.iter().find(|norms| norms.weight == *id);
            let [out, inn] = change.shape();
            let form = match change {
                WeightChange::LowRank { rank, .. } => format!("rank {rank}"),
                WeightChange::Dense { .. } => "whole".to_owned(),
            };
            vec![
                format!("`{}` of layer {}", id.role, id.layer),
                format!("{out} × {inn}"),
                form,
                norms.map_or("–".to_owned(), |n| format!("{:.3}", n.delta)),
                norms.map_or("–".to_owned(), |n| format!("{:.2} %", 100.0 * n.delta / n.base)),
            ]
        };
        let mut text = "## What it changes in the model\n\n".to_owned();
        match (&self.patch.prefix, self.patch.weights.is_empty()) {
            (Some(prefix), _) => {
                text.push_str(&format!("No weight; this goes before every prompt: {}", escaped(prefix)));
            }
            (None, true) => text.push_str("No weight."),
            (None, false) => text.push_str(&table(
                &["weight", "shape", "change", "‖ΔW‖", "of ‖W‖"],
                self.patch.weights.iter().map(row).collect(),
            )),
        }
        text.extend(
            searched(&self.patch.search).map(|search| format!("\n\nValues were searched for: {search}.")),
        );
        if !self.patch.solve.is_empty() {
            text.push_str("\n\nSystems that were solved:\n");
            let count = self.patch.solve.len();
            text.extend(self.patch.solve.iter().take(ROWS).map(|solve| format!("\n- {}", solved(solve))));
            if count > ROWS {
                text.push_str(&format!("\n- and {} more", count - ROWS));
            }
        }
        text
    }

    fn hashes(&self) -> String {
        let mut rows = vec![
            vec!["the model's weights".to_owned(), format!("`{}`", self.patch.base.fingerprint)],
            vec!["the patch, by content".to_owned(), format!("`{}`", self.card.patch)],
            vec![
                format!("the file `{}`, {} bytes", self.file.name, self.file.bytes),
                format!("`{}`", self.file.hash),
            ],
        ];
        let beneath = self.card.beneath.iter().enumerate();
        rows.extend(beneath.map(|(i, id)| vec![format!("patch {} beneath", i + 1), format!("`{id}`")]));
        let sources = self.patch.sources.iter();
        rows.extend(
            sources.map(|(name, hash)| vec![format!("the {name} it was made with"), format!("`{hash}`")]),
        );
        format!("## Hashes\n\n{}\n\nAll are BLAKE3.", table(&["", ""], rows))
    }

    fn again(&self) -> String {
        let Some(entry) = self.entry else {
            return "## How it is made again\n\n`mutandis patch from-lora` and `mutandis patch from-diff` read it again from what \
                    it came from; there is no edit that `mutandis reproduce` could make.\n\nThis is what is known of it:"
                .to_owned();
        };
        let model = quoted(&self.card.model);
        let patches: String =
            (1..=self.card.beneath.len()).map(|i| format!(" --patch BENEATH-{i}")).collect();
        let corpus = if self.patch.sources.contains_key(CORPUS) { " --corpus TEXT" } else { "" };
        let mut text = format!(
            "## How it is made again\n\n    mutandis reproduce CARD.md --model {model}{patches}{corpus}\n\nmakes the edit again \
             and compares: to the byte on any machine with the same instruction set, on any number of threads; elsewhere within a \
             tolerance. The patch was made by {}.",
            self.patch.tool
        );
        if let [fact] = &self.patch.facts[..]
            && Fact::new(&fact.prompt, &fact.subject, &fact.target).is_ok_and(|plain| plain == *fact)
        {
            let subject = match fact.subject.as_str() {
                "" => String::new(),
                subject => format!(" --subject {}", quoted(subject)),
            };
            let published = flat(&entry.defaults());
            let own = flat(&self.patch.config);
            let set: String = own
                .iter()
                .filter(|pair| !published.contains(pair))
                .map(|(name, value)| format!(" --set {}", quoted(&format!("{name}={value}"))))
                .collect();
            text.push_str(&format!(
                " By hand:\n\n    mutandis edit {}{subject} --to {} --method {} --seed {}{set} --model {model}{patches}{corpus}",
                quoted(&fact.prompt),
                quoted(&fact.target),
                self.patch.method,
                self.patch.seed,
            ));
        }
        text.push_str("\n\nThis is what it reads:");
        text
    }
}

/// What a measure means.
fn meaning(name: &str) -> &str {
    match name {
        "efficacy" => "facts whose free answer begins with the target",
        "paraphrase" => "other wordings whose free answer begins with the target",
        "kept" => "unrelated prompts with the same answer as before",
        "kl" => "divergence of the first token behind them, mean",
        "perplexity" => "rise of the perplexity of a fixed text",
        "norm" => "largest ‖ΔW‖ / ‖W‖ of a weight, patches beneath included",
        _ => "drop of accuracy",
    }
}

fn number(name: &str, value: f64) -> String {
    match name {
        "kl" => format!("{value:.4} nats"),
        "perplexity" => format!("{:+.2} %", 100.0 * value),
        _ => format!("{:.1} %", 100.0 * value),
    }
}

fn said(answer: &Answer) -> String {
    let text = if answer.answer.is_empty() { "(nothing)".to_owned() } else { escaped(&answer.answer) };
    format!("{text} ({:.1} %)", 100.0 * answer.probability)
}

/// A table of texts that are Markdown already.
fn table(head: &[&str], mut rows: Vec<Vec<String>>) -> String {
    let more = rows.len().saturating_sub(ROWS);
    rows.truncate(ROWS);
    let line = |cells: Vec<&str>| format!("| {} |", cells.join(" | "));
    let mut lines = vec![line(head.to_vec()), line(vec!["---"; head.len()])];
    lines.extend(rows.iter().map(|row| line(row.iter().map(String::as_str).collect())));
    if more > 0 {
        lines.push(format!("\nand {more} more"));
    }
    lines.join("\n")
}

/// A setting's value; a dash where the method has none by itself.
fn shown(value: Option<&Value>) -> String {
    value.filter(|value| !value.is_null()).map_or("–".to_owned(), |value| format!("`{value}`"))
}

/// Settings by their names, nested ones with dots, as they were written.
fn flat(settings: &Value) -> Vec<(String, Value)> {
    fn walk(prefix: &str, value: &Value, all: &mut Vec<(String, Value)>) {
        for (name, value) in value.as_object().into_iter().flatten() {
            match value {
                Value::Object(_) => walk(&format!("{prefix}{name}."), value, all),
                _ => all.push((format!("{prefix}{name}"), value.clone())),
            }
        }
    }
    let mut all = vec![];
    walk("", &plain(settings.clone()), &mut all);
    all
}
