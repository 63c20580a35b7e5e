//! `mutandis bench report`: what a benchmark has found, as tables, a page and files.

use std::path::PathBuf;
use std::process::ExitCode;

use mutandis_bench::report::Report;
use mutandis_bench::results;
use mutandis_edit::{Error, atomic};

use crate::session::Session;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis bench report results
  mutandis bench report results --out public
  mutandis bench report results --json

Writes into the folder: report.html (one page with tables, plots and all records, which needs no
network), report.md, report.json, and lm-eval.json (lm-evaluation-harness's layout). A run that is
not finished is reported as far as it is.")]
pub(super) struct ReportArgs {
    /// The folder that the benchmark wrote to
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Where the report goes [default: the folder itself]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

pub(super) fn report(args: &ReportArgs, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let (run, cells) = results::read(&args.dir)?;
    let report = Report::new(&run, &cells);
    let out = args.out.as_deref().unwrap_or(&args.dir);
    let files = [
        ("report.html", report.html()?),
        ("report.md", report.markdown()),
        ("report.json", report.json()?),
        ("lm-eval.json", report.lm_eval()?),
    ];
    if let Some(above) = out.parent() {
        std::fs::create_dir_all(above).map_err(|error| Error::unwritable(out, &error))?;
    }
    let bytes = files.each_ref().map(|(name, text)| (*name, text.as_bytes()));
    atomic::write_folder(out, &bytes).map_err(|error| Error::unwritable(out, &error))?;
    for (name, _) in files {
        session.progress.note(&format!("wrote {}", out.join(name).display()));
    }
    session.output.print(&report, || report.table(true))?;
    Ok(ExitCode::SUCCESS)
}
