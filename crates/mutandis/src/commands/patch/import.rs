//! `mutandis patch from-lora` and `from-diff`: what others made, as patches.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mutandis::engine::checkpoint::Checkpoint;
use mutandis_edit::lora::Adapter;
use mutandis_edit::{Error, Patch, difference};
use serde_json::{Value, json};

use super::show::changes;
use crate::commands::edit::{apart, writable};
use crate::session::Session;
use crate::stages::Stages;

/// What `patch from-lora` takes.
#[derive(Debug, clap::Args)]
pub(super) struct FromLora {
    /// The adapter: peft's folder or a file of it, or llama.cpp's `.gguf`
    adapter: PathBuf,
    #[command(flatten)]
    out: Out,
}

/// What `patch from-diff` takes.
#[derive(Debug, clap::Args)]
pub(super) struct FromDiff {
    /// The model that was changed: a folder, a file, a hub id, or a short name
    base: String,
    /// What it became
    edited: String,
    /// Leave out what no patch can change: norms, embeddings, biases, settings as `rope_theta`
    #[arg(long)]
    linear_only: bool,
    #[command(flatten)]
    out: Out,
}

/// Where the patch goes.
#[derive(Debug, clap::Args)]
struct Out {
    /// Where the patch goes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Overwrite the patch file
    #[arg(long)]
    force: bool,
}

pub(super) fn from_lora(args: &FromLora, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    args.out.check(&[session.model.as_deref()], std::slice::from_ref(&args.adapter), session)?;
    let model = session.load()?.model;
    let patch = Adapter::read(&args.adapter, model.architecture().family)?.patch(&model)?;
    told(&patch, &args.out.out, &[], session)
}

pub(super) fn from_diff(args: &FromDiff, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    args.out.check(&[Some(args.base.as_str()), Some(args.edited.as_str())], &[], session)?;
    let edited = Checkpoint::open(&session.models().resolve(Some(&args.edited))?.path)?;
    let base = session.load_named(Some(&args.base))?.model;
    let stages = Stages::new(&session.progress);
    let cx = session.context(&stages);
    let settings = settings(base.checkpoint(), &edited)?;
    if let Some(first) = settings.first() {
        // Another container tells some of it in other words, and some not at all.
        if base.checkpoint().container() == edited.container() && !args.linear_only {
            let more = if settings.len() > 1 { "; and others" } else { "" };
            let what = format!("the two compute differently from the same weights: {first}{more}");
            let hint = "no patch can change that: leave it as it is with `--linear-only`; the patch is not the \
                        whole difference then";
            return Err(Error::input_hint(what, hint).into());
        }
        session.progress.note(&format!("not in the patch: {}", settings.join("; ")));
    }
    let found = base.install(|| difference::between(&base, &edited, args.linear_only, &cx))?;
    let skipped: Vec<String> = found.skipped.into_iter().chain(settings).collect();
    told(&found.patch, &args.out.out, &skipped, session)
}

impl Out {
    /// Finds out before the work that the patch cannot be written there, or is in the way of models.
    fn check(&self, models: &[Option<&str>], read: &[PathBuf], session: &Session<'_>) -> anyhow::Result<()> {
        writable(&self.out, self.force)?;
        models.iter().try_for_each(|model| apart(session, *model, &self.out, read))
    }
}

/// What a difference of sizes would be: of such models one is no edit of the other.
const SIZES: [&str; 8] =
    ["family", "layers", "width", "mlp_width", "heads", "kv_heads", "head_width", "vocabulary"];

/// Names that checkpoints have for what an architecture says.
const NAMES: [(&str, &str); 6] = [
    ("norm.Rms.epsilon", "rms_norm_eps"),
    ("norm.Layer.epsilon", "layer_norm_eps"),
    ("rotary.base", "rope_theta"),
    ("rotary.scaling", "rope_scaling"),
    ("local_rotary.base", "rope_local_base_freq"),
    ("windows", "sliding_window"),
];

/// What makes two models of the same sizes compute differently from the same weights, each with both
/// values. How long a text may be does not, nor whether the head is the embedding: that is a weight.
fn settings(base: &Checkpoint, edited: &Checkpoint) -> anyhow::Result<Vec<String>> {
    let (a, b) = (serde_json::to_value(base.architecture())?, serde_json::to_value(edited.architecture())?);
    // They are told apart when their weights are compared.
    if SIZES.iter().any(|size| a[*size] != b[*size]) {
        return Ok(vec![]);
    }
    let mut found = vec![];
    apart_at("", &a, &b, &mut found);
    let same_words = base.container() == edited.container();
    let counts =
        |at: &str| !["context", "tied"].contains(&at) && (same_words || !at.contains("rotary.scaling"));
    let named = |at: &str| NAMES.iter().find(|(ours, _)| at.starts_with(ours)).map(|(_, theirs)| *theirs);
    let line = |(at, was, is): &(String, String, String)| {
        let name = named(at).unwrap_or(at.as_str());
        format!("`{name}` is {was} in the base and {is} in what it became")
    };
    Ok(found.iter().filter(|(at, ..)| counts(at)).map(line).collect())
}

/// Where two documents differ, with both values.
fn apart_at(at: &str, a: &Value, b: &Value, found: &mut Vec<(String, String, String)>) {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) if x.keys().eq(y.keys()) => {
            for (key, x) in x {
                let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                apart_at(&at, x, &y[key], found);
            }
        }
        _ if same(a, b) => {}
        _ => found.push((at.to_owned(), shown(a), shown(b))),
    }
}

/// Whether two values are the same, up to the rounding of f32, which GGUF has.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => (a - b).abs() <= f64::from(f32::EPSILON) * a.abs().max(b.abs()),
        _ => a == b,
    }
}

fn shown(value: &Value) -> String {
    // What came as f32 would show the digits of an f64.
    value.as_f64().map_or_else(|| value.to_string(), |x| (x as f32).to_string())
}

/// Saves a patch and says what is in it, and what is not.
fn told(patch: &Patch, out: &Path, skipped: &[String], session: &Session<'_>) -> anyhow::Result<ExitCode> {
    patch.save(out)?;
    let document = json!({
        "patch": out, "id": patch.id()?, "weights": changes(patch), "skipped": skipped,
        "seconds": session.seconds(),
    });
    session.output.print(&document, || {
        let ranks: Vec<usize> = patch.weights.iter().filter_map(|(_, change)| change.rank()).collect();
        let dense = patch.weights.len() - ranks.len();
        let mut lines = vec![];
        if let Some(most) = ranks.iter().max() {
            lines.push(format!("{} weights change by low rank, {most} at most", ranks.len()));
        }
        if dense > 0 {
            lines.push(format!("{dense} weights change whole"));
        }
        lines.extend(skipped.iter().map(|name| format!("skipped  {name}")));
        lines.push(out.display().to_string());
        lines.join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}
