//! `mutandis bench show`: the plans and the gate that ship, to begin one's own from.

use std::process::ExitCode;

use mutandis_bench::{gate, plan};
use mutandis_edit::Error;
use mutandis_edit::fact::nearest;
use serde::Serialize;

use crate::session::Session;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis bench show
  mutandis bench show knowedit.toml > mine.toml
  mutandis bench show default > gate.toml")]
pub(super) struct ShowArgs {
    /// A plan, or the gate `default` [default: list them]
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// A file that ships.
#[derive(Debug, Clone, Copy, Serialize)]
struct Shipped {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
}

fn shipped() -> impl Iterator<Item = Shipped> {
    let plans = plan::SHIPPED.map(|(name, text)| Shipped { name, kind: "plan", text });
    plans.into_iter().chain([Shipped { name: "default", kind: "gate", text: gate::DEFAULT }])
}

impl Shipped {
    /// The first sentence of its comment.
    fn about(self) -> String {
        let comment = self.text.lines().map_while(|line| line.strip_prefix('#')).map(str::trim);
        let words = comment.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
        words.split_inclusive(". ").next().unwrap_or_default().trim_end().to_owned()
    }
}

pub(super) fn show(args: &ShowArgs, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let Some(name) = args.name.as_deref() else {
        let width = shipped().map(|file| file.name.len()).max().unwrap_or(0);
        session.output.print(&shipped().collect::<Vec<_>>(), || {
            let line = |file: Shipped| format!("{:<width$}  {}  {}", file.name, file.kind, file.about());
            shipped().map(line).collect::<Vec<_>>().join("\n")
        })?;
        return Ok(ExitCode::SUCCESS);
    };
    let file = shipped().find(|file| file.name == name).ok_or_else(|| {
        let names = || shipped().map(|file| file.name);
        let hint = match nearest(name, names()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("there are {}", names().collect::<Vec<_>>().join(", ")),
        };
        Error::input_hint(format!("no plan or gate `{name}` ships with mutandis"), hint)
    })?;
    session.output.print(&file, || file.text.to_owned())?;
    Ok(ExitCode::SUCCESS)
}
