//! `mutandis model`: get, show and list models.

use std::{collections::BTreeMap, path::Path, process::ExitCode};

use clap::Subcommand;
use indicatif::BinaryBytes;
use mutandis::{
    Error,
    engine::{self, architecture::Family, checkpoint::Checkpoint, tokenizer::Tokenizer},
    models::{self, Listed, Located, ModelFile, Source, registry},
};
use serde::Serialize;

use crate::session::Session;

/// Get, show and list models
#[derive(Debug, clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Fetch a model, or bring a hub model up to date, and print its path
    #[command(after_help = "Examples:
  mutandis model get                      the default model
  mutandis model get gemma3 --verify
  mutandis model get org/name@main
  mutandis model get org/name:FILE.gguf   one file of several

A download that was interrupted goes on where it stopped.")]
    Get {
        /// A short name or a hub id; without it, what `--model` says
        name: Option<String>,
        /// Read the whole file and compare its checksum; fetch it again if it is damaged
        #[arg(long)]
        verify: bool,
    },
    /// Show what a model is, where its files are and their checksums; fetches nothing
    #[command(after_help = "Examples:
  mutandis model show
  mutandis model show ./my-model --json")]
    Show {
        /// A path, a short name or a hub id; without it, what `--model` says
        name: Option<String>,
    },
    /// List the short names and the hub models that are cached
    #[command(after_help = "Examples:
  mutandis model list
  mutandis model list --json")]
    List,
}

pub(crate) fn run(args: Args, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    match args.action {
        Action::Get { name, verify } => get(session, named(&name, session), verify),
        Action::Show { name } => show(session, named(&name, session)),
        Action::List => list(session),
    }
}

fn named<'n>(name: &'n Option<String>, session: &'n Session<'_>) -> Option<&'n str> {
    name.as_deref().or(session.model.as_deref())
}

#[derive(Serialize)]
struct Got<'a> {
    #[serde(flatten)]
    located: &'a Located,
    bytes: u64,
}

fn get(session: &Session<'_>, name: Option<&str>, verify: bool) -> anyhow::Result<ExitCode> {
    let located = session.models().get(name, verify)?;
    let document = Got { located: &located, bytes: models::size(&located.path)? };
    session.output.print(&document, || located.path.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// What `show` says of a model; what the engine knows of it comes beside the files.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    located: &'a Located,
    bytes: u64,
    licence: Option<&'static str>,
    files: Vec<ModelFile>,
    /// What the engine says of it, where the engine can open it.
    #[serde(flatten)]
    inside: Option<Inside>,
    /// Why it cannot.
    error: Option<String>,
}

/// What a checkpoint declares.
#[derive(Serialize)]
struct Inside {
    /// Hash of the weights: what a patch knows its base by.
    fingerprint: String,
    family: Family,
    layers: usize,
    width: usize,
    mlp_width: usize,
    heads: usize,
    kv_heads: usize,
    vocabulary: usize,
    context: usize,
    parameters: usize,
    /// Number of tensors in each number format.
    formats: BTreeMap<&'static str, usize>,
    tokenizer: Option<&'static str>,
    chat_template: bool,
}

impl Inside {
    fn of(path: &Path) -> Result<Self, engine::Error> {
        let checkpoint = Checkpoint::open(path)?;
        let tokenizer = Tokenizer::of(&checkpoint)?;
        let (mut parameters, mut formats) = (0, BTreeMap::new());
        for name in checkpoint.used() {
            let tensor = checkpoint.tensor(name)?;
            parameters += tensor.shape.iter().product::<usize>();
            *formats.entry(tensor.dtype.name()).or_default() += 1;
        }
        let a = checkpoint.architecture();
        Ok(Self {
            fingerprint: checkpoint.fingerprint(),
            family: a.family,
            layers: a.layers,
            width: a.width,
            mlp_width: a.mlp_width,
            heads: a.heads,
            kv_heads: a.kv_heads,
            vocabulary: a.vocabulary,
            context: a.context,
            parameters,
            formats,
            tokenizer: tokenizer.as_ref().map(Tokenizer::kind),
            chat_template: tokenizer.as_ref().is_some_and(Tokenizer::has_chat_template),
        })
    }

    fn lines(&self) -> Vec<String> {
        let family = serde_json::to_value(self.family).unwrap_or_default();
        let formats: Vec<String> =
            self.formats.iter().map(|(name, count)| format!("{count} {name}")).collect();
        let template = if self.chat_template { "with" } else { "without" };
        vec![
            format!(
                "shape    {}: {} layers, width {}, MLP {}, {} heads ({} for keys and values)",
                family.as_str().unwrap_or_default(),
                self.layers,
                self.width,
                self.mlp_width,
                self.heads,
                self.kv_heads
            ),
            format!("weights  {} parameters: {}", self.parameters, formats.join(", ")),
            format!(
                "tokens   {} of {}, context {}, {template} a chat template",
                self.vocabulary,
                self.tokenizer.unwrap_or("no tokenizer"),
                self.context
            ),
            format!("base     {}", self.fingerprint),
        ]
    }
}

fn show(session: &Session<'_>, name: Option<&str>) -> anyhow::Result<ExitCode> {
    let models = session.models();
    let Some(located) = models.locate(name)? else {
        let name = name.unwrap_or(registry::DEFAULT).to_owned();
        return Err(Error::NotHere { name }.into());
    };
    let files = models.files(&located)?;
    let (inside, error) = match Inside::of(&located.path) {
        Ok(inside) => (Some(inside), None),
        // What the files are can be told all the same; that is often what one needs to know then.
        Err(error) => (None, Some(error)),
    };
    let document = Shown {
        located: &located,
        bytes: files.iter().map(|file| file.bytes).sum(),
        licence: models.short_name(&located.name).map(|model| model.licence),
        files,
        inside,
        error: error.as_ref().map(ToString::to_string),
    };
    session.output.print(&document, || {
        let mut lines = vec![
            format!("name     {}", located.name),
            format!("path     {}", located.path.display()),
            format!("source   {}", source(&located.source)),
            format!("size     {}", BinaryBytes(document.bytes)),
        ];
        lines.extend(document.licence.map(|licence| format!("licence  {licence}")));
        lines.extend(document.inside.iter().flat_map(Inside::lines));
        lines.extend(document.error.iter().map(|error| format!("error    {error}")));
        for file in &document.files {
            lines.push(format!("sha256   {}  {}", file.sha256, file.name));
        }
        lines.join("\n")
    })?;
    error.map_or(Ok(ExitCode::SUCCESS), |error| Err(error.into()))
}

#[derive(Serialize)]
struct List {
    short_names: Vec<Listed>,
    hub: Vec<HubModel>,
}

#[derive(Serialize)]
struct HubModel {
    #[serde(flatten)]
    located: Located,
    bytes: u64,
}

fn list(session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let models = session.models();
    let sized = |located: Located| Ok(HubModel { bytes: models::size(&located.path)?, located });
    let hub = models.hub_models()?.into_iter().map(sized).collect::<mutandis::Result<_>>()?;
    let document = List { short_names: models.short_names()?, hub };
    session.output.print(&document, || {
        let widths = document.short_names.iter().map(|model| model.name.len());
        let width =
            widths.chain(document.hub.iter().map(|model| model.located.name.len())).max().unwrap_or(0);
        let line = |name: &str, bytes: u64, state: &str, about: &str| {
            format!("{name:<width$}  {:>10}  {state:<10}  {about}", BinaryBytes(bytes).to_string())
                .trim_end()
                .to_owned()
        };
        let short = document.short_names.iter().map(|model| {
            let state = if model.path.is_some() { "cached" } else { "not cached" };
            line(model.name, model.bytes, state, model.description)
        });
        let hub =
            document.hub.iter().map(|model| line(&model.located.name, model.bytes, "cached", "from the hub"));
        short.chain(hub).collect::<Vec<_>>().join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

fn source(source: &Source) -> String {
    match source {
        Source::Path => "given as a path".into(),
        Source::Cache => "mutandis' cache".into(),
        Source::HubCache { repo, commit } => format!("the hub's cache: {repo} at {commit}"),
        Source::Hub { repo, commit } => format!("the hub: {repo} at {commit}"),
        Source::Pypi => "PyPI".into(),
    }
}
