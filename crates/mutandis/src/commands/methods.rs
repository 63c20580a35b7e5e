//! `mutandis methods`: what there is to edit with.

use std::process::ExitCode;

use clap::Subcommand;
use mutandis_edit::{Entry, METHODS, find};
use serde_json::{Value, json};

use crate::session::Session;

/// List the editing methods, or show one
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis methods
  mutandis methods show r-rome
  mutandis methods show rome --json")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show a method: what it does, its settings and their published values
    #[command(after_help = "Examples:
  mutandis methods show ice")]
    Show {
        /// The method's id
        id: String,
    },
}

pub(crate) fn run(args: Args, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    match args.action {
        None => {
            let document: Vec<Value> = METHODS.iter().map(summary).collect();
            session.output.print(&document, || {
                let width = METHODS.iter().map(|m| m.id.len()).max().unwrap_or(0);
                let line = |m: &Entry| format!("{:<width$}  {:<11}  {}", m.id, family(m), m.summary);
                METHODS.iter().map(line).collect::<Vec<_>>().join("\n")
            })?;
        }
        Some(Action::Show { id }) => {
            let method = find(&id)?;
            let mut document = summary(method);
            document["documentation"] = json!(method.doc);
            document["settings"] = method.defaults();
            document["schema"] = serde_json::to_value(method.schema())?;
            session.output.print(&document, || text(method))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn family(method: &Entry) -> String {
    serde_json::to_value(method.family).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

fn summary(method: &Entry) -> Value {
    json!({"id": method.id, "family": family(method), "paper": method.paper, "summary": method.summary})
}

fn text(method: &Entry) -> String {
    let mut lines = vec![
        format!("{} ({}, arXiv {})", method.id, family(method), method.paper),
        String::new(),
        method.doc.to_owned(),
        String::new(),
        "Settings (`--set KEY=VALUE`):".to_owned(),
    ];
    let schema = serde_json::to_value(method.schema()).unwrap_or_default();
    settings("", &method.defaults(), &schema, &schema, &mut lines);
    lines.join("\n")
}

/// Each setting with its default and what the schema says of it; nested ones by dotted names.
fn settings(prefix: &str, defaults: &Value, at: &Value, schema: &Value, lines: &mut Vec<String>) {
    let Some(object) = defaults.as_object() else { return };
    for (key, value) in object {
        let property = &at["properties"][key];
        let name = format!("{prefix}{key}");
        let target =
            property["$ref"].as_str().and_then(|r| r.rsplit('/').next()).map(|n| &schema["$defs"][n]);
        match (value.is_object(), target) {
            (true, Some(target)) => settings(&format!("{name}."), value, target, schema, lines),
            _ => {
                let about = property["description"].as_str().unwrap_or_default().replace('\n', " ");
                lines.push(format!("  {name} = {value}\n      {about}"));
            }
        }
    }
}
