//! `mutandis bench run`: a plan, or what the flags say.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use mutandis::judge::Endpoint;
use mutandis_bench::benchmark::{Benchmark, Sets, Shard};
use mutandis_bench::compat::in_context::Branch;
use mutandis_bench::data::find::Places;
use mutandis_bench::data::git_blob_id;
use mutandis_bench::general::Suite;
use mutandis_bench::judge::Judge;
use mutandis_bench::perplexity::{TEXT, Window, windows};
use mutandis_bench::plan::{GENERAL, Many, Plan, Protocol};
use mutandis_bench::record::Measures;
use mutandis_bench::report::Report;
use mutandis_bench::results::{self, CellInfo, FORMAT, Folder, ModelInfo, RunInfo};
use mutandis_bench::run::{Mode, Whole};
use mutandis_bench::strict::counterfact::References;
use mutandis_edit::{Context, Error, Progress, find};
use mutandis_engine::Model;

use super::super::methods::settings;
use crate::session::Session;
use crate::stages::Stages;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis bench run --data wiki_counterfact_train_cf.json --limit 50
  mutandis bench run --data facts.jsonl --method memit --mode batch:200 --json
  mutandis bench run --data facts.jsonl --method rome --method alphaedit --mode sequential
  mutandis bench run knowedit.toml --folder ./KnowEdit --limit 50 --out knowedit
  mutandis bench run knowedit.toml --shard 0/3 --out knowedit

Every part that is done is kept in the folder of results: whatever ends a run, the same command goes
on where it was. Folders of shards are merged by copying them into one another. `mutandis bench
report` makes a page of them.

A plan is a TOML file with the keys `method`, `data`, `mode`, `seed`, `limit` and `set`, each one or
a list, at the top or in several `[[run]]`; and at the top `folder`, `protocol`, `fluency`, `text`,
`general` and `general-limit`. Flags win over it.

Scores are told twice. compat: as EasyEdit's functions compute them, the share of the target's tokens
that are the likeliest, each with the true tokens before it. strict: the model answers freely, and the
answer is right or it is not.")]
pub(super) struct RunArgs {
    /// A plan: a TOML file, or one that ships with mutandis, `knowedit.toml` or `edits.toml`
    #[arg(value_name = "PLAN")]
    plan: Option<PathBuf>,
    /// A data set: a file (JSON, JSON lines), or the name of a known one, such as `zsre`
    #[arg(long, value_name = "FILE|NAME")]
    data: Vec<String>,
    /// How; `mutandis methods` lists them, `all` are all [default: r-rome]
    #[arg(long, value_name = "ID")]
    method: Vec<String>,
    /// A setting of the method; `mutandis methods show ID` lists them
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Settings found for the model [default: what `locate sweep` kept, or else a shipped recipe]
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// `single`: each edit on the unedited model; `batch:N`: so many at once; `sequential`: each on
    /// top of those before, scored after its own edit and at the end; `sequential:N`: so many at a
    /// time [default: single]
    #[arg(long)]
    mode: Vec<Mode>,
    /// First so many records of each data set whose subject is in the prompt [default: 20]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Seed of everything that is drawn [default: 0]
    #[arg(long)]
    seed: Vec<u64>,
    /// How scores are told [default: both]
    #[arg(long, value_enum)]
    protocol: Vec<ProtocolArg>,
    /// Write no texts, and measure no fluency
    #[arg(long)]
    no_fluency: bool,
    /// A text whose perplexity is measured before and after [default: one that ships with mutandis]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// A suite of general ability that is measured before and after, such as `piqa`
    #[arg(long, value_name = "NAME")]
    general: Vec<String>,
    /// Questions of each suite [default: 100]
    #[arg(long, value_name = "N")]
    general_limit: Option<usize>,
    /// An API like OpenAI's, up to `/v1`, whose model says whether free answers are right; a key is
    /// taken from `MUTANDIS_JUDGE_KEY` [default: nobody is asked]
    #[arg(long, value_name = "URL", requires = "judge_model")]
    judge: Option<String>,
    /// The model that judges
    #[arg(long, value_name = "NAME", requires = "judge")]
    judge_model: Option<String>,
    /// Where data sets and suites that are named are looked for, besides the hub's cache
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Where results go, and where a run goes on
    #[arg(long, value_name = "FOLDER", default_value = "results")]
    out: PathBuf,
    /// Make only every N-th part, beginning with I: for several machines
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ProtocolArg {
    /// As EasyEdit's functions compute them
    Compat,
    /// In free generation
    Strict,
}

pub(super) fn run(args: &RunArgs, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let plan = plan(args)?;
    // Everything that can be checked without the model is checked before it is loaded.
    let orders = plan.orders()?;
    let places = Places { folder: plan.folder.clone(), hub_cache: session.env.hub_cache().ok() };
    let sets = Sets::read(&orders, &places)?;
    let limit = plan.general_limit.unwrap_or(GENERAL);
    let suites =
        plan.general.iter().map(|name| suite(&plan, name, limit)).collect::<anyhow::Result<Vec<_>>>()?;
    let text = plan.text.as_deref().map(read).transpose()?;
    let text = text.as_deref().unwrap_or(TEXT);

    let references = plan.references.as_deref().map(References::read).transpose()?;

    let loaded = session.load()?;
    let model = loaded.model;
    let measures = Measures {
        compat: plan.measures(Protocol::Compat),
        strict: plan.measures(Protocol::Strict),
        fluency: plan.fluency.unwrap_or(true),
        // The peer goes by the model's name.
        branch: Branch::of(&loaded.located.name),
        references: references.map(Arc::new),
    };
    let run = RunInfo { format: FORMAT, tool: tool(), model: info(&model, &loaded.located.name)? };
    let folder = Folder::open(&args.out, &run)?;
    let stages = Stages::new(&session.progress);
    let records = Stages::new(&session.progress);
    let cx = Context { recipe: session.recipe(args.recipe.as_deref(), &model)?, ..session.context(&stages) };
    stages.begin("measuring the unedited model", 0);
    let whole = Whole::new(&model, windows(&model, text, Window::default())?, suites)?;
    stages.end();
    let judge = args.judge.as_ref().zip(args.judge_model.as_ref());
    let judge = judge.map(|(url, name)| Endpoint::new(url, name, session.env.judge_key()));
    let benchmark = Benchmark {
        model: &model,
        orders: &orders,
        measures: &measures,
        whole: &whole,
        text: Some(git_blob_id(text.as_bytes())),
        sets: &sets,
        shard: args.shard.unwrap_or(Shard::WHOLE),
        progress: &records,
        judge: judge.as_ref().map(|judge| judge as &dyn Judge),
        peak_memory: || mutandis::memory::peak().unwrap_or(0),
    };
    let ran = benchmark.run(&folder, &cx)?;
    let (run, mut cells) = results::read(&args.out)?;
    cells.retain(|cell| ran.cells.contains(&cell.id));
    for cell in &cells {
        let errors: Vec<&str> = cell.records.iter().filter_map(|record| record.error.as_deref()).collect();
        if let Some(first) = errors.first() {
            let CellInfo { method, data, .. } = &cell.info;
            let count = errors.len();
            let text = format!("{count} edits by {method} on {} failed, the first: {first}", data.name);
            session.progress.note(&text);
        }
    }
    let report = Report::new(&run, &cells);
    session.output.print(&report, || report.table(false))?;
    Ok(ExitCode::SUCCESS)
}

/// The plan of a file with what the flags say laid over it.
fn plan(args: &RunArgs) -> anyhow::Result<Plan> {
    let mut plan = args.plan.as_deref().map(Plan::read).transpose()?.unwrap_or_default();
    let runs = plan.run.iter_mut().chain(std::iter::once(&mut plan.top));
    for table in runs {
        several(&mut table.data, &args.data);
        several(&mut table.method, &args.method);
        several(&mut table.seed, &args.seed);
        several(&mut table.mode, &args.mode.iter().map(Mode::to_string).collect::<Vec<_>>());
        table.limit = args.limit.or(table.limit);
    }
    if args.plan.is_none() && args.data.is_empty() {
        let hint = "give a file or a name with `--data`, or a plan such as `knowedit.toml`";
        return Err(Error::input_hint("no data set is given", hint).into());
    }
    if args.plan.is_none() && args.method.is_empty() {
        plan.top.method = Many::One("r-rome".to_owned());
    }
    if !args.settings.is_empty() {
        // Settings of one method mean nothing to another, so each has to know all of them.
        let ids = plan.top.method.all();
        let mut merged = serde_json::json!({});
        for id in &ids {
            merged = settings(find(id)?, &args.settings)?;
        }
        plan.run.iter_mut().for_each(|run| run.set = Some(merged.clone()));
        plan.top.set = Some(merged);
    }
    let over = |path: &Option<PathBuf>, own: &mut Option<PathBuf>| {
        if path.is_some() {
            own.clone_from(path);
        }
    };
    over(&args.folder, &mut plan.folder);
    over(&args.text, &mut plan.text);
    if !args.protocol.is_empty() {
        let of = |p: &ProtocolArg| match p {
            ProtocolArg::Compat => Protocol::Compat,
            ProtocolArg::Strict => Protocol::Strict,
        };
        plan.protocol = Many::Several(args.protocol.iter().map(of).collect());
    }
    if args.no_fluency {
        plan.fluency = Some(false);
    }
    if !args.general.is_empty() {
        plan.general.clone_from(&args.general);
    }
    plan.general_limit = args.general_limit.or(plan.general_limit);
    Ok(plan)
}

fn several<T: Clone>(own: &mut Many<T>, given: &[T]) {
    if !given.is_empty() {
        *own = Many::Several(given.to_vec());
    }
}

/// A suite by name, in the plan's folder.
fn suite(plan: &Plan, name: &str, limit: usize) -> anyhow::Result<Suite> {
    let Some(folder) = &plan.folder else {
        let hint = "say where suites of general ability are with `--folder`";
        return Err(
            Error::input_hint(format!("there is no folder to read the suite `{name}` from"), hint).into()
        );
    };
    // Beside data sets, suites may have a folder of their own.
    let own = folder.join("general");
    Ok(Suite::read(if own.is_dir() { &own } else { folder }, name, Some(limit))?)
}

fn read(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path);
    Ok(text.map_err(|e| {
        let hint = "give a text file, or leave out `--text`: a text of our own is measured then";
        Error::input_hint(format!("cannot read the text `{}`: {e}", path.display()), hint)
    })?)
}

fn tool() -> String {
    concat!("mutandis ", env!("CARGO_PKG_VERSION")).to_owned()
}

fn info(model: &Model, name: &str) -> anyhow::Result<ModelInfo> {
    let a = model.architecture();
    let family = serde_json::to_value(a.family)?.as_str().unwrap_or_default().to_owned();
    Ok(ModelInfo {
        name: name.to_owned(),
        fingerprint: model.fingerprint()?.to_owned(),
        family,
        layers: a.layers,
    })
}
