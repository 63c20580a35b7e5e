//! Our side of `bench/compare.py`: a process that answers JSON lines (`bench/README.md`).
#![expect(clippy::print_stdout, reason = "the protocol is spoken on stdout")]

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Parser;
use mutandis_edit::primitives::moments::{Factor, Moments, factor};
use mutandis_edit::primitives::rank_one::{mean_row, rank_one, unit};
use mutandis_edit::primitives::request::{self, Located, Request};
use mutandis_edit::primitives::value_search::{Goal, Objective, Search, search};
use mutandis_edit::{Context, Fact, Job, find};
use mutandis_engine::generate::{Generation, Prompt};
use mutandis_engine::kernels::loss;
use mutandis_engine::{
    Delta, LogitRows, Model, Options, Overlay, Pass, Role, Sequence, Site, SiteKind, Storage, WeightId,
};
use serde::Deserialize;
use serde_json::{Value, json};

mod speed;

#[derive(Parser)]
struct Args {
    /// GGUF file
    #[arg(long)]
    model: PathBuf,
    /// Threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// As the checkpoint stores them, instead of f32
    #[arg(long)]
    as_stored: bool,
}

#[derive(Deserialize)]
struct Ask {
    case: String,
    #[serde(default)]
    ids: Vec<Vec<u32>>,
    dump: Option<PathBuf>,
    request: Option<Rows>,
    delta: Option<Vec<f32>>,
    #[serde(default)]
    tokens: usize,
    recipe: Option<String>,
    prompt: Option<String>,
    subject: Option<String>,
    target: Option<String>,
    moments: Option<PathBuf>,
    #[serde(default)]
    probes: Vec<Vec<u32>>,
    edits: Option<speed::Edits>,
    #[serde(default)]
    times: usize,
}

#[derive(Deserialize)]
struct Rows {
    rows: Vec<Vec<u32>>,
    lookups: Vec<usize>,
    keys: Vec<Vec<u32>>,
    target: Vec<u32>,
    layer: usize,
}

impl Rows {
    fn request(&self) -> anyhow::Result<Request> {
        let (Some(essence), Some(&lookup)) = (self.rows.last(), self.lookups.last()) else {
            bail!("no rows")
        };
        let prompts = self.keys.iter().zip(&self.lookups).map(|(ids, &lookup)| request::Prompt {
            at: Located { ids: ids.clone(), lookup },
            target: self.target.clone(),
        });
        let essence = Located { ids: essence[..=lookup].to_vec(), lookup };
        Ok(Request {
            prompts: prompts.collect(),
            bare: 1,
            essence,
            start: vec![],
            moved: false,
            thinned: false,
        })
    }
}

struct Peer {
    model: Model,
    factors: HashMap<(PathBuf, usize), Factor>,
}

fn main() -> anyhow::Result<()> {
    // As the command does.
    mutandis::memory::keep_freed();
    let args = Args::parse();
    let storage = if args.as_stored { Storage::AsStored } else { Storage::F32 };
    let options = Options { storage, threads: Some(args.threads), isa: None };
    let mut peer = Peer { model: Model::load(&args.model, options)?, factors: HashMap::new() };
    say(&json!({"peer": "mutandis", "version": env!("CARGO_PKG_VERSION")}))?;
    for line in std::io::stdin().lock().lines() {
        let answer = serde_json::from_str(&line?).map_err(Into::into).and_then(|ask| peer.answer(&ask));
        say(&answer.unwrap_or_else(|e: anyhow::Error| json!({"error": format!("{e:#}")})))?;
    }
    Ok(())
}

fn say(value: &Value) -> anyhow::Result<()> {
    println!("{value}");
    std::io::stdout().flush()?;
    Ok(())
}

impl Peer {
    fn answer(&mut self, ask: &Ask) -> anyhow::Result<Value> {
        match ask.case.as_str() {
            "forward" => self.forward(ask),
            "vstep" => self.value_step(ask),
            "decode" => self.decode(ask),
            "rome" => self.rome(ask),
            "edits" => speed::edits(&self.model, ask.edits.as_ref().context("no edits")?),
            "peak" => Ok(speed::peak(&self.model, ask.times)),
            other => bail!("no case `{other}`"),
        }
    }

    fn forward(&self, ask: &Ask) -> anyhow::Result<Value> {
        let started = Instant::now();
        let sequences = ask.ids.iter().map(|ids| Sequence { tokens: ids, ..Default::default() }).collect();
        let logits =
            self.model.forward(Pass { sequences, logits: LogitRows::All, ..Default::default() })?.logits;
        let seconds = started.elapsed().as_secs_f64();
        if let Some(path) = &ask.dump {
            let bytes: Vec<u8> = logits.iter().flat_map(|x| x.to_le_bytes()).collect();
            std::fs::write(path, bytes)?;
        }
        let checksum: f64 = logits.iter().map(|x| f64::from(*x)).sum();
        Ok(json!({"seconds": seconds, "checksum": checksum}))
    }

    fn value_step(&self, ask: &Ask) -> anyhow::Result<Value> {
        let (rows, delta) =
            (ask.request.as_ref().context("no request")?, ask.delta.as_ref().context("no delta")?);
        let requests = [rows.request()?];
        let settings = Search::default();
        let started = Instant::now();
        let sites = [Site::new(rows.layer, SiteKind::MlpOut)];
        let mut objective = Objective::new(&self.model, &[], &sites, &requests)?;
        let prepared = started.elapsed().as_secs_f64();
        let started = Instant::now();
        let (loss, gradient) = objective.at(delta, &settings)?;
        let seconds = started.elapsed().as_secs_f64();
        let losses = [loss.total, loss.nll, loss.kl, loss.decay];
        Ok(json!({"seconds": seconds, "prepare_seconds": prepared, "losses": losses, "gradient": gradient}))
    }

    fn decode(&self, ask: &Ask) -> anyhow::Result<Value> {
        let generation =
            Generation { max_tokens: ask.tokens, stop_ids: Some(vec![]), ..Generation::default() };
        let started = Instant::now();
        let prompts = ask.ids.iter().map(|ids| Prompt { tokens: ids, ..Prompt::default() }).collect();
        let made = generation.run(&self.model, prompts)?;
        let seconds = started.elapsed().as_secs_f64();
        let ids: Vec<Vec<u32>> = made.into_iter().map(|g| g.tokens).collect();
        Ok(json!({"seconds": seconds, "ids": ids}))
    }

    fn rome(&mut self, ask: &Ask) -> anyhow::Result<Value> {
        let rows = ask.request.as_ref().context("no request")?;
        let mut overlay = Overlay::default();
        let (seconds, steps) = match ask.recipe.as_deref() {
            Some("same") => self.same_recipe(ask, rows, &mut overlay)?,
            Some("default") => self.default_recipe(ask, &mut overlay)?,
            other => bail!("no recipe {other:?}"),
        };
        let stack = [&overlay];
        let (bare, target) = (rows.keys.first().context("no keys")?, &rows.target);
        let ids: Vec<u32> = bare.iter().chain(&target[..target.len() - 1]).copied().collect();
        let pass = Pass {
            sequences: vec![Sequence { tokens: &ids, overlays: &stack, ..Default::default() }],
            logits: LogitRows::Rows((bare.len() - 1..ids.len()).collect()),
            ..Default::default()
        };
        let v = self.model.architecture().vocabulary;
        let logits = self.model.forward(pass)?.logits;
        let p_target = (-loss::cross_entropy(self.model.isa(), &logits, v, target).iter().sum::<f32>()).exp();
        let sequences = ask
            .probes
            .iter()
            .map(|ids| Sequence { tokens: ids, overlays: &stack, ..Default::default() })
            .collect();
        let logits =
            self.model.forward(Pass { sequences, logits: LogitRows::Last, ..Default::default() })?.logits;
        let likeliest = |row: &[f32]| {
            row.iter()
                .enumerate()
                .fold((0, f32::NEG_INFINITY), |b, (i, x)| if *x > b.1 { (i, *x) } else { b })
                .0
        };
        let after: Vec<usize> = logits.chunks_exact(v).map(likeliest).collect();
        Ok(json!({"seconds": seconds, "steps": steps, "p_target": p_target, "after": after}))
    }

    /// The published search and solver on the rows that PyTorch is given too.
    fn same_recipe(&mut self, ask: &Ask, rows: &Rows, overlay: &mut Overlay) -> anyhow::Result<(f64, usize)> {
        let path = ask.moments.as_ref().context("no moments")?;
        let key = (path.clone(), rows.layer);
        if !self.factors.contains_key(&key) {
            let moments = read_moments(path, rows.layer, self.model.architecture().mlp_width)?;
            self.factors.insert(key.clone(), factor(&moments, 0.0)?);
        }
        let factor = &self.factors[&key];
        let requests = [rows.request()?];
        let f = self.model.architecture().mlp_width;
        let started = Instant::now();
        let (sites, settings) = ([Site::new(rows.layer, SiteKind::MlpOut)], Search::default());
        let goal = Goal::new(&sites, &settings);
        let found = search(&self.model, &[], &goal, &requests, &Context::default())?.remove(0);
        let mean: Vec<f64> = mean_row(&found.keys, f).iter().map(|x| f64::from(*x)).collect();
        let u = unit(&factor.solve(&mean))?;
        let residual: Vec<f64> = found.delta.iter().map(|x| f64::from(*x)).collect();
        let change = rank_one(&u, &found.keys[..f], &residual)?;
        let seconds = started.elapsed().as_secs_f64();
        let id = WeightId { layer: rows.layer, role: Role::MlpOut };
        overlay.push(id, Delta::low_rank(1, &change.left, &change.right)?);
        Ok((seconds, found.losses.len()))
    }

    /// What the command does, its cache filled beforehand.
    fn default_recipe(&self, ask: &Ask, overlay: &mut Overlay) -> anyhow::Result<(f64, usize)> {
        let text = |t: &Option<String>| t.clone().context("prompt, subject or target is missing");
        let facts = [Fact::new(text(&ask.prompt)?, text(&ask.subject)?, text(&ask.target)?)?];
        let cx =
            Context { cache: Some(std::env::temp_dir().join("mutandis-bench-peer")), ..Context::default() };
        let entry = find("rome")?;
        let job = Job { model: &self.model, stack: &[], prior: &[], facts: &facts, seed: 0 };
        let no_changes = json!({});
        // Fills the cache with moments and contexts, and nothing else.
        let few = json!({"search": {"steps": 1}});
        entry.edit(&few, &job, &cx)?;
        let started = Instant::now();
        let patch = entry.edit(&no_changes, &job, &cx)?;
        let seconds = started.elapsed().as_secs_f64();
        *overlay = patch.overlay(&self.model)?;
        Ok((seconds, patch.search.first().map_or(0, |s| s.steps)))
    }
}

/// C of a layer from the reference file: `upper.l`, f32.
fn read_moments(path: &Path, layer: usize, f: usize) -> anyhow::Result<Moments> {
    let bytes = std::fs::read(path)?;
    let file = safetensors::SafeTensors::deserialize(&bytes)?;
    let data = file.tensor(&format!("upper.{layer}"))?;
    let upper = data.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    Ok(Moments {
        base: String::new(),
        layer,
        f,
        count: 1,
        upper,
        error: 0.0,
        source: path.display().to_string(),
        notes: vec![],
    })
}
