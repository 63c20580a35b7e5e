//! `mutandis locate neurons`: the MLP neurons that an answer hangs on.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use mutandis_edit::primitives::contexts;
use mutandis_edit::primitives::neurons::{Finding, Neuron, find, likeliest};
use mutandis_edit::{Error, atomic};
use mutandis_engine::Model;
use mutandis_engine::tokenizer::Specials;
use serde::Serialize;

use super::picture;
use crate::answers::shown;
use crate::commands::edit::{apart, writable_by};
use crate::patched::Patched;
use crate::session::Session;
use crate::stages::Stages;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis locate neurons \"The capital of France is\"
  mutandis locate neurons \"The capital of France is\" --answer Paris --also \"France's capital city is\"
  mutandis locate neurons \"The capital of France is\" --plot neurons.svg --json
  mutandis locate neurons \"The capital of France is\" --patch france-rome.patch.safetensors

Integrated gradients of the answer's probability (arXiv 2104.08696), at the prompt's last token. With
other wordings, neurons are kept that count for two in five of the prompts; a neuron that only one
wording hangs on is about the wording.")]
pub(super) struct Args {
    /// Text that the answer continues
    #[arg(allow_negative_numbers = true)]
    prompt: String,
    /// The answer, of which the first token counts [default: what the model says]
    #[arg(long, value_name = "TEXT", allow_negative_numbers = true)]
    answer: Option<String>,
    /// Another wording; may be given several times
    #[arg(long, value_name = "PROMPT", allow_negative_numbers = true)]
    also: Vec<String>,
    /// A patch, or a ledger, to lay over the model; may be given several times
    #[arg(long, value_name = "FILE|LEDGER")]
    patch: Vec<PathBuf>,
    /// Wordings that the model makes: the prompt behind so many prefixes that it writes
    #[arg(long, default_value_t = 0, value_name = "N")]
    prefixes: usize,
    /// Steps from a silent neuron to one as it is
    #[arg(long, default_value_t = Finding::default().steps)]
    steps: usize,
    /// A neuron counts above this share of the largest attribution
    #[arg(long, default_value_t = Finding::default().threshold)]
    threshold: f64,
    /// A neuron is kept that counts for this share of the prompts
    #[arg(long, default_value_t = Finding::default().share)]
    share: f64,
    /// Draw a picture: an SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Replace the picture if it is there
    #[arg(long)]
    force: bool,
    /// Seed of everything that is drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Serialize)]
struct Report {
    prompts: Vec<String>,
    /// The token whose probability is attributed.
    answer: String,
    answer_id: u32,
    layers: usize,
    neurons: Vec<Neuron>,
    plot: Option<PathBuf>,
    seconds: f64,
}

pub(super) fn run(args: Args, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let finding = Finding { steps: args.steps, threshold: args.threshold, share: args.share };
    check(&args, &finding, session)?;
    let model = session.load()?.model;
    let patched = Patched::load(&args.patch, &model)?;
    let stack = patched.overlays();
    let started = Instant::now();
    let stages = Stages::new(&session.progress);
    let cx = session.context(&stages);
    let templates = contexts::for_edits(&model, [args.prefixes, 0], args.seed, &cx)?;
    let mut texts: Vec<String> = templates.iter().map(|t| t.replace("{}", args.prompt.trim_end())).collect();
    texts.extend(args.also.iter().map(|t| t.trim_end().to_owned()));
    let prompts =
        texts.iter().map(|text| ids(&model, &patched.prompt(text))).collect::<anyhow::Result<Vec<_>>>()?;
    let tokenizer = model.tokenizer()?;
    let answer = match &args.answer {
        Some(text) => {
            let after = tokenizer.encode_continuation(&format!(" {}", text.trim()))?.ids;
            *after.first().ok_or_else(|| {
                Error::input_hint(
                    format!("`--answer {text}` has no tokens"),
                    "give a word, as in `--answer Paris`",
                )
            })?
        }
        None => likeliest(&model, &stack, &prompts[0])?,
    };
    let neurons = find(&model, &stack, &prompts, answer, &finding, &cx)?;
    let report = Report {
        prompts: texts,
        answer: tokenizer.decode(&[answer], Specials::Keep).trim().to_owned(),
        answer_id: answer,
        layers: model.architecture().layers,
        neurons,
        plot: args.plot.clone(),
        seconds: started.elapsed().as_secs_f64(),
    };
    if let Some(path) = &args.plot {
        let title = format!("{} … {}", report.prompts[0], report.answer);
        let drawing = picture::neurons(&title, report.layers, &report.neurons);
        atomic::write(path, |file| file.write_all(drawing.as_bytes())).map_err(Error::io("write", path))?;
    }
    session.output.print(&report, || report.text())?;
    Ok(ExitCode::SUCCESS)
}

/// Finds out before the work what can be found out without the model.
fn check(args: &Args, finding: &Finding, session: &Session<'_>) -> anyhow::Result<()> {
    if let Some(path) = &args.plot {
        writable_by("--plot", "neurons.svg", path, args.force)?;
        apart(session, session.model.as_deref(), path, &args.patch)?;
    }
    finding.check()?;
    let mut texts = vec![("the prompt", &args.prompt)];
    texts.extend(args.answer.iter().map(|text| ("`--answer`", text)));
    texts.extend(args.also.iter().map(|text| ("a prompt of `--also`", text)));
    if let Some((name, _)) = texts.iter().find(|(_, text)| text.trim().is_empty()) {
        let hint = "as in `mutandis locate neurons \"The capital of France is\" --answer Paris`";
        return Err(Error::input_hint(format!("{name} is blank"), hint).into());
    }
    Ok(())
}

fn ids(model: &Model, text: &str) -> anyhow::Result<Vec<u32>> {
    let ids = model.tokenizer()?.encode(text)?.ids;
    let most = model.architecture().context.saturating_sub(1);
    if ids.is_empty() || ids.len() > most {
        let what = format!("the prompt `{}` has {} tokens, expected 1 to {most}", shown(text), ids.len());
        return Err(Error::input_hint(what, "shorten it: it has to fit into the model's context").into());
    }
    Ok(ids)
}

impl Report {
    fn text(&self) -> String {
        let mut lines = vec![format!("{} … {}", self.prompts[0], self.answer)];
        if self.neurons.is_empty() {
            lines.push("no neuron counts in enough wordings; lower `--share` or `--threshold`".into());
        } else {
            lines.push("  layer  neuron  attribution  activation  of wordings".into());
        }
        for n in self.neurons.iter().take(20) {
            lines.push(format!(
                "  {:>5}  {:>6}  {:>11.4}  {:>10.3}  {:>9.0} %",
                n.layer,
                n.neuron,
                n.attribution,
                n.activation,
                100.0 * n.share
            ));
        }
        if self.neurons.len() > 20 {
            lines.push(format!("  and {} more", self.neurons.len() - 20));
        }
        let most = (0..self.layers).map(|l| self.of_layer(l)).max().unwrap_or(0).max(1);
        lines.push("neurons by layer".into());
        for layer in (0..self.layers).filter(|&l| self.of_layer(l) > 0) {
            let count = self.of_layer(layer);
            let bar = "█".repeat((count * 40).div_ceil(most));
            lines.push(format!("  {layer:>5}  {bar} {count}"));
        }
        if let Some(plot) = &self.plot {
            lines.push(format!("picture: {}", plot.display()));
        }
        lines.push(format!("{} prompts, {:.1} s", self.prompts.len(), self.seconds));
        lines.join("\n")
    }

    fn of_layer(&self, layer: usize) -> usize {
        self.neurons.iter().filter(|n| n.layer == layer).count()
    }
}
