//! What every subcommand is given: the global options, resolved.

use std::path::Path;
use std::time::Instant;

use mutandis::{
    engine::{Error, Model, Options, Storage, checkpoint::Checkpoint, tokenizer::Tokenizer},
    env::Env,
    interrupt::Interrupt,
    models::{Located, Models},
    progress::Progress,
};
use mutandis_edit::{Context, recipes::Recipe};

use crate::{
    cli::{Global, Weights},
    output::Output,
    stages::Stages,
};

/// One run of the command.
pub(crate) struct Session<'a> {
    /// The environment.
    pub(crate) env: &'a Env,
    /// Raised by Ctrl-C; long work polls it.
    pub(crate) interrupt: &'a Interrupt,
    /// Talk on stderr.
    pub(crate) progress: Progress,
    /// What stands after `--model`.
    pub(crate) model: Option<String>,
    /// Data on stdout, as text or JSON.
    pub(crate) output: Output,
    /// When the command began.
    pub(crate) started: Instant,
    weights: Weights,
    threads: Option<usize>,
    offline: bool,
}

/// A model in memory.
pub(crate) struct Loaded {
    /// Where it was found, and how the user names it.
    pub(crate) located: Located,
    /// The model.
    pub(crate) model: Model,
    /// Seconds from the found file to the model in memory.
    pub(crate) seconds: f64,
}

impl<'a> Session<'a> {
    /// Resolves the global options; with `--threads`, sets up the pool that all work runs in.
    pub(crate) fn new(global: Global, env: &'a Env, interrupt: &'a Interrupt) -> anyhow::Result<Self> {
        let started = Instant::now();
        let threads = global.threads.map(std::num::NonZeroUsize::get);
        if let Some(threads) = threads {
            rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
        }
        Ok(Self {
            env,
            interrupt,
            progress: Progress::stderr(global.quiet),
            model: global.model,
            output: Output::new(global.json),
            started,
            weights: global.weights,
            threads,
            offline: global.offline,
        })
    }

    /// What says that nothing may be asked over the network: a flag or a variable.
    pub(crate) fn offline(&self) -> Option<&'static str> {
        self.models().offline
    }

    /// Finds and fetches models, with this run's options.
    pub(crate) fn models(&self) -> Models<'_> {
        let models = Models::new(self.env, &self.progress, self.interrupt);
        if self.offline { Models { offline: Some("--offline"), ..models } } else { models }
    }

    /// Finds the model of `--model`, fetches it if need be, and loads it.
    pub(crate) fn load(&self) -> anyhow::Result<Loaded> {
        self.load_named(self.model.as_deref())
    }

    /// The same with a model of another name; the default one where there is none.
    pub(crate) fn load_named(&self, name: Option<&str>) -> anyhow::Result<Loaded> {
        self.load_at(self.models().resolve(name)?)
    }

    /// Loads the model of `--model` where it is on this machine; nothing is fetched.
    pub(crate) fn load_here(&self) -> anyhow::Result<Model> {
        let located = self.models().locate(self.model.as_deref())?;
        let name = || self.model.clone().unwrap_or_else(|| "the default model".to_owned());
        Ok(self.load_at(located.ok_or_else(|| mutandis::Error::NotHere { name: name() })?)?.model)
    }

    fn load_at(&self, located: Located) -> anyhow::Result<Loaded> {
        let storage = match self.weights {
            Weights::F32 => Storage::F32,
            Weights::Bf16 => Storage::Bf16,
            // What the checkpoint has gives the same answers as f32 to the last bit, and is the
            // least to read from memory.
            Weights::Quantized | Weights::Auto => Storage::AsStored,
        };
        let begun = Instant::now();
        let model =
            Model::load(&located.path, Options { storage, threads: self.threads, isa: self.env.kernels()? })?;
        Ok(Loaded { located, model, seconds: begun.elapsed().as_secs_f64() })
    }

    /// The tokenizer of `--model`, without its weights.
    pub(crate) fn tokenizer(&self) -> anyhow::Result<(Located, Tokenizer)> {
        let located = self.models().resolve(self.model.as_deref())?;
        let tokenizer = Tokenizer::of(&Checkpoint::open(&located.path)?)?;
        let tokenizer = tokenizer.ok_or_else(|| {
            Error::input_hint(
                format!("`{}` has no tokenizer", located.name),
                "put its `tokenizer.json` beside the weights",
            )
        })?;
        Ok((located, tokenizer))
    }

    /// What surrounds an edit: the cache, if there is a place for one, who is told, who may stop it.
    pub(crate) fn context<'c>(&'c self, stages: &'c Stages<'_>) -> Context<'c> {
        Context {
            cache: self.env.cache().ok(),
            progress: stages,
            interrupt: self.interrupt.flag(),
            ..Context::default()
        }
    }

    /// The recipe in force for a model: the file given, or else the one that a sweep kept.
    pub(crate) fn recipe(&self, given: Option<&Path>, model: &Model) -> anyhow::Result<Option<Recipe>> {
        if let Some(path) = given {
            return Ok(Some(Recipe::read(path, model)?));
        }
        let Ok(cache) = self.env.cache() else { return Ok(None) };
        let path = Recipe::place(&cache, model)?;
        if !path.exists() {
            return Ok(None);
        }
        match Recipe::read(&path, model) {
            Ok(recipe) => Ok(Some(recipe)),
            Err(error) => {
                // It is only a convenience: without it the shipped settings serve.
                self.progress.note(&format!("{error}; it is not used"));
                Ok(None)
            }
        }
    }

    /// Seconds since the command began.
    pub(crate) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}
