//! `mutandis patch merge`: what was done in another ledger, done here.

use std::path::PathBuf;
use std::process::ExitCode;

use mutandis_edit::ledger::Plan;
use mutandis_edit::{Ledger, Patch};
use serde_json::json;

use super::conflict::{Comparing, Report, before_joining};
use super::tell::named;
use super::{Writing, anew, carry_out, writer};
use crate::patched::Patched;
use crate::session::Session;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis patch merge edits/ ../hers/edits/
  mutandis patch merge edits/ ../hers/edits/ --force --json

What the other ledger took out since both were the same goes here too; what it added comes behind
ours. Patches that were computed on top of others are computed anew where these differ now. Exit code
1 where facts contradict each other: nothing is merged then.")]
pub(in super::super) struct MergeArgs {
    /// The ledger that is written to
    ledger: PathBuf,
    /// The other ledger, which stays as it is
    other: PathBuf,
    /// Merge although facts contradict each other: of two the later one wins
    #[arg(long)]
    force: bool,
    /// The text for moments that the patches to be computed anew were made with
    #[arg(long, value_name = "FILE")]
    corpus: Option<PathBuf>,
    #[command(flatten)]
    comparing: Comparing,
    #[command(flatten)]
    writing: Writing,
}

pub(in super::super) fn run(args: &MergeArgs, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let theirs = Ledger::open(&args.other)?;
    let mut writer = writer(session, &args.ledger, None, &args.writing)?;
    let plan = Plan::merge(writer.ledger(), &theirs)?;
    let joining: Vec<Patch> =
        plan.joining().map(|(record, _)| theirs.load(record)).collect::<Result<_, _>>()?;
    let mut report = Report::new(session, &writer, &joining, &args.comparing)?;
    report.without(plan.out());
    if plan.stays_out > 0 {
        session
            .progress
            .note(&format!("{} of their patches were taken out here and stay out", plan.stays_out));
    }
    let contradictions = report.contradictions();
    if contradictions > 0 && !args.force {
        let document = json!({
            "ledger": args.ledger, "other": args.other, "merged": false, "conflicts": report,
            "head": writer.ledger().head(),
        });
        session.output.print(&document, || {
            let mut lines = report.lines();
            let facts = if contradictions == 1 {
                "1 fact contradicts".to_owned()
            } else {
                format!("{contradictions} facts contradict")
            };
            lines.push(format!(
                "{facts} what is here: nothing was merged; `--force` merges, and the later one wins"
            ));
            lines.join("\n")
        })?;
        return Ok(ExitCode::FAILURE);
    }
    let gone: Vec<String> =
        writer.ledger().stack().iter().filter(|record| plan.out().contains(&record.id)).map(named).collect();
    let is_empty = plan.is_empty();
    let measuring = before_joining(session, &writer, &mut report, &args.comparing)?;
    let model = measuring.as_ref().map(|(model, _)| model);
    let done = if is_empty {
        Default::default()
    } else {
        carry_out(session, &mut writer, &plan, args.corpus.clone(), model)?
    };
    if let Some(model) = model {
        report.after(model, &Patched::load(std::slice::from_ref(&args.ledger), model)?)?;
    }
    let left = writer.ledger().stack().len();
    let document = json!({
        "ledger": args.ledger, "other": args.other, "merged": true, "conflicts": report, "out": done.out,
        "anew": anew(&done), "added": done.added, "patches": left, "head": writer.ledger().head(),
    });
    session.output.print(&document, || {
        let mut lines = report.lines();
        lines.extend(gone.iter().map(|text| format!("taken out  {text}")));
        lines.extend(done.anew.iter().map(|(_, record)| format!("computed anew  {}", named(record))));
        lines.extend(done.added.iter().map(|record| format!("added  {}", named(record))));
        lines.push(if is_empty {
            "there is nothing new".into()
        } else {
            format!("{left} patches are in the stack")
        });
        lines.join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}
