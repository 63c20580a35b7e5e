//! `mutandis bench run`: a plan, or what the flags say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use mutandis::judge::Endpoint;
use mutandis::models::{Located, Source};
use mutandis_bench::benchmark::{Benchmark, Sets, Shard};
use mutandis_bench::compat::extra::Extra;
use mutandis_bench::compat::in_context::Branch;
use mutandis_bench::data::find::Places;
use mutandis_bench::data::{escaped, git_blob_id};
use mutandis_bench::general::Suite;
use mutandis_bench::judge::Judge;
use mutandis_bench::memory::Memory;
use mutandis_bench::perplexity::{TEXT, Window, windows};
use mutandis_bench::plan::{GENERAL, Many, Plan, Protocol};
use mutandis_bench::record::Measures;
use mutandis_bench::report::Report;
use mutandis_bench::results::{
    self, CellInfo, CellResult, DataInfo, FORMAT, Folder, ModelInfo, RunInfo, Skipped,
};
use mutandis_bench::run::{Mode, counted};
use mutandis_bench::strict::counterfact::References;
use mutandis_bench::whole::Whole;
use mutandis_edit::{Context, Error};
use mutandis_engine::Model;

use super::super::methods::settings;
use crate::report::NO;
use crate::session::Session;
use crate::stages::Stages;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis bench run --data wiki_counterfact_train_cf.json --limit 50
  mutandis bench run --data facts.jsonl --method memit --mode batch:200 --json
  mutandis bench run --data facts.jsonl --method rome --method alphaedit --mode sequential
  mutandis bench run knowedit.toml --folder ./KnowEdit --limit 50 --out knowedit
  mutandis bench run knowedit.toml --shard 0/3 --out knowedit

Every part that is done is kept in the folder of results: whatever ends a run, the same command
goes on where it was. Folders of shards are merged by copying them into one another. `mutandis
bench report` makes a page of them.

A plan is a TOML file:

  data = [\"zsre\", \"facts.jsonl\"]
  limit = 50

  [[run]]
  method = [\"rome\", \"memit\"]

  [[run]]
  method = \"memit\"
  mode = \"batch:50\"
  set = { lambda = 0.02 }

`method`, `data`, `mode` and `seed`, each one or a list, `limit`, and `set`, a table, stand at the top
or in a `[[run]]`; what stands at the top holds for every run that does not say otherwise (a run's
`set` takes the place of the top's whole). Only at the top stand `protocol`, `extra` and `general`,
each one or a list, and `folder`, `text`, `references`, `fluency` and `general-limit`. Paths go by the
folder that the command runs in. Flags win over the plan, and `--set` is laid over the `set` of every
run, key by key.

Data sets with a name: wiki_recent, zsre, wikibio, wiki_counterfact, convsent, sanitation (KnowEdit),
counterfact, zsre-mend, mquake-cf, mquake-t. Suites of general ability: piqa, commonsense_qa, mmlu, cola,
sst2, mrpc, rte, nli, dialogue.

Scores are told twice. compat: as EasyEdit's functions compute them, the share of the target's
tokens that are the likeliest, each with the true tokens before it. strict: the model answers
freely, and the answer is right or it is not.

Exit code 1: every edit failed.")]
pub(super) struct RunArgs {
    /// A plan: a TOML file, or one that ships with mutandis, `knowedit.toml` or `edits.toml`
    #[arg(value_name = "PLAN")]
    plan: Option<PathBuf>,
    /// A data set: a file (JSON, JSON lines), the name of a known one, such as `zsre`, or `OWNER/NAME/FILE`
    /// of one in the hub's cache; may be given several times, as may `--method`, `--set`, `--mode`,
    /// `--seed`, `--protocol`, `--extra` and `--general`
    #[arg(long, value_name = "FILE|NAME")]
    data: Vec<String>,
    /// How; `mutandis methods` lists them, `all` are all, each once [default: the plan's,
    /// without a plan r-rome]
    #[arg(long, value_name = "ID")]
    method: Vec<String>,
    /// A setting of every method that is run; `mutandis methods show ID` lists them. Of one that is
    /// given twice the last counts
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
    /// First so many records of each data set that can be used: with their subjects in their prompts,
    /// where a method needs them [default: 20]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Seed of everything that is drawn [default: 0]
    #[arg(long)]
    seed: Vec<u64>,
    /// Which scores are computed [default: both]; how a sequence holds on the way is always told by
    /// compat's edit success
    #[arg(long, value_enum)]
    protocol: Vec<ProtocolArg>,
    /// Do not write the longer texts that fluency is measured on
    #[arg(long)]
    no_fluency: bool,
    /// What compat measures besides: the peer's perplexity of targets, its share of foreseen tokens,
    /// and the generation it scores GRACE by
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME")]
    extra: Vec<ExtraArg>,
    /// A text whose perplexity is measured before and after [default: one that ships with mutandis]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Reference texts for CounterFact's consistency, ROME's `attribute_snippets.json`; compared with
    /// the texts of `strict`'s fluency
    #[arg(long, value_name = "FILE")]
    references: Option<PathBuf>,
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
    /// Where data sets that are named are looked for, besides the hub's cache, and suites of general
    /// ability, in it or in its `general`
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Where results go, and where a run goes on
    #[arg(long, value_name = "FOLDER", default_value = "results")]
    out: PathBuf,
    /// Make only every N-th part, beginning with I, from 0 to N - 1: for several machines
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ExtraArg {
    /// Perplexity of the target behind the edited prompt and other wordings (`edit:ppl`)
    Ppl,
    /// Share of a prompt's tokens that the model foresees with more than 0.8 (`edit:ood`)
    OodPpl,
    /// Greedy tokens against the target's, which is cut without its leading blank (`edit:vanilla`,
    /// `edit:vanilla-f1`)
    Vanilla,
}

pub(super) fn run(args: &RunArgs, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let plan = plan(args)?;
    // Everything that can be checked without the model is checked before it is loaded.
    let orders = plan.orders_with(|method| settings(method, &args.settings));
    let orders = orders.map_err(|error| of_file(args, error))?;
    let extras = plan.extras()?;
    check(&plan, args)?;
    let places = Places { folder: plan.folder.clone(), hub_cache: session.env.hub_cache().ok() };
    places.check()?;
    let sets = Sets::read(&orders, &places)?;
    let limit = plan.general_limit.unwrap_or(GENERAL);
    let mut suites: Vec<Suite> = vec![];
    for name in &plan.general {
        let suite = suite(&plan, name, limit)?;
        // One that is named twice is asked once.
        if suites.iter().all(|other| other.name != suite.name) {
            suites.push(suite);
        }
    }
    let text = plan.text.as_deref().map(read).transpose()?;
    let text = text.as_deref().unwrap_or(TEXT);

    let judge = judge(args, session)?;
    let references = plan.references.as_deref().map(References::read).transpose()?;
    let shard = args.shard.unwrap_or(Shard::WHOLE);

    let loaded = session.load()?;
    let model = loaded.model;
    let name = shown(&loaded.located);
    let measures = Measures {
        extra: extras,
        compat: plan.measures(Protocol::Compat),
        strict: plan.measures(Protocol::Strict),
        fluency: plan.fluency.unwrap_or(true),
        // The peer goes by the model's name.
        branch: Branch::of(&name),
        references: references.map(Arc::new),
    };
    for suite in &mut suites {
        let left_out = suite.fit(&model)?;
        if left_out > 0 {
            let (name, context) = (suite.name, model.architecture().context);
            let s = if left_out == 1 { " is" } else { "s are" };
            session.progress.note(&format!(
                "{left_out} question{s} left out of {name}: longer than the model's context of {context} tokens"
            ));
        }
        if !suite.skipped.is_empty() {
            let left = suite.skipped.iter().map(|note| (note.record, note.what.as_str())).collect::<Vec<_>>();
            session.progress.note(&left_out_of(suite.name, "question", &left));
        }
    }
    let run = RunInfo { format: FORMAT, tool: tool(), model: info(&model, &name)? };
    // What the model makes of the text comes before the folder: a text that is none leaves none.
    let windows = windows(&model, text, Window::default());
    let windows = windows.map_err(|error| unmeasured(plan.text.as_deref(), error))?;
    let folder = Folder::open(&args.out, &run)?;
    let stages = Stages::new(&session.progress);
    let records = Stages::new(&session.progress);
    let cx = Context { recipe: session.recipe(args.recipe.as_deref(), &model)?, ..session.context(&stages) };
    let whole = Whole::later(windows, suites);
    let benchmark = Benchmark {
        model: &model,
        orders: &orders,
        measures: &measures,
        whole: &whole,
        text: Some(git_blob_id(text.as_bytes())),
        sets: &sets,
        shard,
        progress: &records,
        judge: judge.as_ref().map(|judge| judge as &dyn Judge),
        memory: Memory {
            peak: || mutandis::memory::peak().unwrap_or(0),
            restart: mutandis::memory::restart_peak,
        },
    };
    let ran = benchmark.run(&folder, &cx)?;
    if ran.own_parts == 0 {
        let Shard { index, of } = shard;
        let text =
            format!("shard {index}/{of} has nothing to do: the run has {}", counted(ran.parts, "part"));
        session.progress.note(&text);
    }
    let (run, cells) = results::read_cells(&args.out, &ran.cells)?;
    tell_left_out(&cells, &session.progress);
    let (mut made, mut failed) = (0, 0);
    for cell in &cells {
        let errors: Vec<&str> = cell.records.iter().filter_map(|record| record.error.as_deref()).collect();
        if let Some(first) = errors.first() {
            let CellInfo { method, data, .. } = &cell.info;
            let edits = counted(errors.len(), "edit");
            let text = format!("{edits} by {method} on {} failed, the first: {first}", data.name);
            session.progress.note(&text);
        }
        failed += errors.len();
        made += cell.records.len() - errors.len();
    }
    let report = Report::new(&run, &cells);
    if !cells.is_empty() || session.output.is_json() {
        session.output.print(&report, || report.table(false))?;
    }
    Ok(if made == 0 && failed > 0 { ExitCode::from(NO) } else { ExitCode::SUCCESS })
}

/// The judge, where one is asked for: it has to answer before anything is edited.
fn judge(args: &RunArgs, session: &Session<'_>) -> anyhow::Result<Option<Endpoint>> {
    let Some((url, name)) = args.judge.as_ref().zip(args.judge_model.as_ref()) else { return Ok(None) };
    if let Some(offline) = session.offline() {
        return Err(Error::input_hint(
            format!("the judge `{name}` cannot be asked: `{offline}` says never to use the network"),
            format!("leave out `{offline}`, or `--judge`"),
        )
        .into());
    }
    let judge = Endpoint::new(url, name, session.env.judge_key(), session.interrupt)?;
    judge.greet()?;
    Ok(Some(judge))
}

/// Records of a data set that a note names.
const NAMED: usize = 3;

/// Notes which records and questions were left out, of each data set once.
fn tell_left_out(cells: &[CellResult], progress: &mutandis::progress::Progress) {
    type Left<'a> = (&'a [Skipped], &'a [Skipped]);
    let mut all: BTreeMap<(&str, &str), Left<'_>> = BTreeMap::new();
    for CellResult {
        info: CellInfo { data: DataInfo { name, version, skipped, unasked, .. }, .. }, ..
    } in cells
    {
        // Cells of other limits pass over more of them or fewer.
        let longest = all.entry((name.as_str(), version.as_str())).or_default();
        if skipped.len() > longest.0.len() {
            longest.0 = skipped;
        }
        if unasked.len() > longest.1.len() {
            longest.1 = unasked;
        }
    }
    for ((name, _), (skipped, unasked)) in all {
        let tell = |left: &[Skipped], what: &str, end: &str| {
            let left = left.iter().map(|s| (s.record, s.why.as_str())).collect::<Vec<_>>();
            if !left.is_empty() {
                progress.note(&format!("{}{end}", left_out_of(name, what, &left)));
            }
        };
        tell(skipped, "record", " (`mutandis data check FILE --all` names those that are dirty)");
        tell(unasked, "question", "");
    }
}

/// How many of something were left out, and the first of them, by their record's number with why.
fn left_out_of(name: &str, what: &str, left: &[(usize, &str)]) -> String {
    let first = left.iter().take(NAMED).map(|(record, why)| format!("record {record}: {}", escaped(why)));
    let first = first.collect::<Vec<_>>().join("; ");
    let (more, plural) =
        (if left.len() > NAMED { "; …" } else { "" }, if left.len() == 1 { "" } else { "s" });
    format!("{} {what}{plural} of {name} left out: {first}{more}", left.len())
}

/// Refuses what would be asked for in vain.
fn check(plan: &Plan, args: &RunArgs) -> Result<(), Error> {
    if args.judge.is_some() && !plan.measures(Protocol::Strict) {
        return Err(Error::input_hint(
            "`--judge` is given, and there are no free answers to judge: only `compat` is measured",
            "leave `--judge` out, or measure `strict` too",
        ));
    }
    let writes = plan.measures(Protocol::Strict) && plan.fluency != Some(false);
    if plan.references.is_some() && !writes {
        return Err(Error::input_hint(
            "`references` is given, and no texts are written that could be compared with them",
            "leave it out, or measure `strict` with fluency",
        ));
    }
    if plan.general_limit.is_some() && plan.general.is_empty() {
        return Err(Error::input_hint(
            "`general-limit` is given, and no suite of general ability",
            "name one with `--general`, such as `piqa`, or leave the limit out",
        ));
    }
    if plan.general_limit == Some(0) {
        return Err(Error::input_hint(
            "`general-limit` is 0: there are no questions to ask",
            "give 1 or more, or leave out `general`",
        ));
    }
    Ok(())
}

/// The text cannot be measured: names the one that was given.
fn unmeasured(path: Option<&Path>, error: mutandis_engine::Error) -> anyhow::Error {
    match (path, error) {
        (Some(path), mutandis_engine::Error::Input { what, hint }) => {
            let hint = hint.unwrap_or_else(|| TEXT_HINT.to_owned());
            Error::input_hint(format!("`{}` cannot be used: {what}", path.display()), hint).into()
        }
        (_, error) => error.into(),
    }
}

/// Names the plan of a file where an error of a plan with its flags is the file's own.
fn of_file(args: &RunArgs, error: anyhow::Error) -> anyhow::Error {
    let Some(path) = &args.plan else { return error };
    match Plan::read(path).and_then(|plan| plan.orders()) {
        Err(Error::Input { what, hint }) if what == error.to_string() => {
            Error::Input { what: format!("the plan `{}`: {what}", path.display()), hint }.into()
        }
        _ => error,
    }
}

/// The plan of a file with what the flags say laid over it, but for settings: what they may be hangs
/// on the method.
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
        plan.top.method = Many::One(mutandis_edit::DEFAULT.to_owned());
    }
    let over = |path: &Option<PathBuf>, own: &mut Option<PathBuf>| {
        if path.is_some() {
            own.clone_from(path);
        }
    };
    over(&args.folder, &mut plan.folder);
    over(&args.text, &mut plan.text);
    over(&args.references, &mut plan.references);
    if !args.protocol.is_empty() {
        let of = |p: &ProtocolArg| match p {
            ProtocolArg::Compat => Protocol::Compat,
            ProtocolArg::Strict => Protocol::Strict,
        };
        plan.protocol = Many::Several(args.protocol.iter().map(of).collect());
    }
    if !args.extra.is_empty() {
        let of = |extra: &ExtraArg| match extra {
            ExtraArg::Ppl => Extra::Ppl,
            ExtraArg::OodPpl => Extra::OodPpl,
            ExtraArg::Vanilla => Extra::Vanilla,
        };
        plan.extra = Many::Several(args.extra.iter().map(of).collect());
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
    Ok(Suite::read(folder, name, Some(limit))?)
}

fn read(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path);
    Ok(text.map_err(|e| {
        Error::input_hint(format!("cannot read the text `{}`: {e}", path.display()), TEXT_HINT)
    })?)
}

const TEXT_HINT: &str = "give a text file, or leave out `--text`: a text of our own is measured then";

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

/// A model's name in results: of a path, which is of this machine, the file's.
fn shown(located: &Located) -> String {
    let path = located.path.canonicalize().unwrap_or_else(|_| located.path.clone());
    match (&located.source, path.file_name()) {
        (Source::Path, Some(file)) => file.to_string_lossy().into_owned(),
        _ => located.name.clone(),
    }
}
