//! What every subcommand is given: the global options, resolved.

use mutandis::{env::Env, interrupt::Interrupt, models::Models, progress::Progress};

use crate::{
    cli::{Global, Weights},
    output::Output,
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
    /// How frozen weights are kept in memory.
    #[expect(dead_code, reason = "read by the subcommands that load a model; drop this line there")]
    pub(crate) weights: Weights,
    offline: bool,
}

impl<'a> Session<'a> {
    /// Resolves the global options; with `--threads`, sets up the pool that all work runs in.
    pub(crate) fn new(global: Global, env: &'a Env, interrupt: &'a Interrupt) -> anyhow::Result<Self> {
        if let Some(threads) = global.threads {
            rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build_global()?;
        }
        Ok(Self {
            env,
            interrupt,
            progress: Progress::stderr(global.quiet),
            model: global.model,
            output: Output::new(global.json),
            weights: global.weights,
            offline: global.offline,
        })
    }

    /// Finds and fetches models, with this run's options.
    pub(crate) fn models(&self) -> Models<'_> {
        let models = Models::new(self.env, &self.progress, self.interrupt);
        if self.offline { Models { offline: Some("--offline"), ..models } } else { models }
    }
}
