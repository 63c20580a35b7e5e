//! `mutandis patch export`: patches written into a copy of the model.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ValueEnum;
use mutandis::engine::Model;
use mutandis::engine::checkpoint::{Container, Dtype};
use mutandis_edit::export::{Export, StoredTensor, Written, check_form};
use mutandis_edit::{Error, Fact, Patch};
use serde::Serialize;

use super::lora;
use crate::answers::{Question, answers};
use crate::commands::edit::writable;
use crate::patched::Patched;
use crate::session::Session;

/// The options of `mutandis patch export`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The patch files, in order; their changes are added up
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What is written
    #[arg(long, value_enum)]
    to: Form,
    /// Where it goes: a file for GGUF (of a model or an adapter), else a folder
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// How changed tensors are stored: `own`, `f32`, `f16`, `bf16`, `q8_0`, `q4_k`… [default: as in
    /// the model, or else the narrowest of Q8_0, F16 and F32 with which the facts' answers stay]
    #[arg(long, value_parser = format)]
    dtype: Option<Format>,
    /// Whose layout an adapter has [default: by the ending of `--out`]
    #[arg(long, value_enum, value_name = "KIND")]
    form: Option<lora::Form>,
    /// Rank of every matrix of an adapter [default: the one that keeps the changes]
    #[arg(long, value_name = "N")]
    rank: Option<usize>,
    /// Overwrite what is there
    #[arg(long)]
    force: bool,
}

/// Forms that a patched model can be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// A copy of a model that is one `.gguf` file
    Gguf,
    /// A copy of a model's folder, as transformers reads it
    Safetensors,
    /// A LoRA adapter: a folder for peft, or a GGUF file for llama.cpp
    Lora,
}

/// A number format as asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// The tensor's own.
    Own,
    This(Dtype),
}

#[derive(Serialize)]
struct Report {
    out: String,
    to: &'static str,
    tensors: Vec<StoredTensor>,
    /// What they take more than in the model's own formats.
    extra_bytes: i64,
    facts: Facts,
    tried: Vec<Tried>,
    #[serde(flatten)]
    written: Written,
}

/// Facts whose first answer is the target.
#[derive(Serialize)]
struct Facts {
    count: usize,
    patched: usize,
    exported: usize,
}

/// A choice of formats, and how many facts it keeps of those that the patches make true.
#[derive(Serialize)]
struct Tried {
    dtype: String,
    kept: usize,
    of: usize,
    extra_bytes: i64,
}

pub(super) fn run(args: &Args, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let fits = |given: bool, option: &str, what: &str| match given {
        true => {
            let what = format!("`{option}` is an option of {what}");
            Err(Error::input_hint(what, format!("leave out `{option}`, or choose another `--to`")))
        }
        false => Ok(()),
    };
    let container = match args.to {
        Form::Lora => {
            fits(args.dtype.is_some(), "--dtype", "copies of a model")?;
            let (out, form, rank, force) = (&*args.out, args.form, args.rank, args.force);
            return lora::run(&lora::Options { out, form, rank, force }, &args.files, session);
        }
        Form::Gguf => Container::Gguf,
        Form::Safetensors => Container::Safetensors,
    };
    fits(args.form.is_some(), "--form", "adapters")?;
    fits(args.rank.is_some(), "--rank", "adapters")?;
    copy(args, container, session)
}

/// Writes a copy of the model.
fn copy(args: &Args, container: Container, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let patches = args.files.iter().map(|path| Patch::load(path)).collect::<Result<Vec<_>, _>>()?;
    check(args, container)?;
    let model = session.load()?.model;
    check_form(&model, container)?;
    let export = Export::new(&model, &patches)?;
    let facts: Vec<&Fact> = patches.iter().flat_map(|p| &p.facts).collect();
    let ask = |patched: &Patched| answered(session, &model, patched, &facts);
    let wanted = ask(&Patched::of(patches.clone(), &model)?)?;

    let mut tried: Vec<Tried> = vec![];
    let (stored, exported) = loop {
        let (dtype, mut stored, last) = match (args.dtype, tried.len()) {
            (Some(Format::This(dtype)), _) => (dtype.name(), export.store_as(dtype)?, true),
            (Some(Format::Own), _) => ("own", export.store(None)?, true),
            (None, 0) => ("own", export.store(None)?, false),
            (None, n) => {
                let rungs = rungs(container);
                let rung = rungs[(n - 1).min(rungs.len() - 1)];
                (rung.name(), export.store(Some(rung))?, n >= rungs.len())
            }
        };
        let exported = ask(&Patched::with(std::mem::take(&mut stored.overlay)))?;
        let kept = wanted.iter().zip(&exported).filter(|(was, is)| **was && **is).count();
        let of = count(&wanted);
        tried.push(Tried { dtype: dtype.to_owned(), kept, of, extra_bytes: stored.extra_bytes() });
        if kept == of || last {
            break (stored, exported);
        }
        session.progress.note(&format!("stored as {dtype}, {kept} of {of} facts stay: trying wider"));
    };
    session.interrupt.check()?;
    let written = match container {
        Container::Gguf => stored.write_gguf(&model, &args.out)?,
        Container::Safetensors => stored.write_safetensors(&model, &args.out, args.force)?,
    };
    let report = Report {
        out: args.out.display().to_string(),
        to: name(container),
        extra_bytes: stored.extra_bytes(),
        tensors: stored.tensors,
        facts: Facts { count: facts.len(), patched: count(&wanted), exported: count(&exported) },
        tried,
        written,
    };
    let lost = report.tried.last().map_or(0, |t| t.of - t.kept);
    if lost > 0 {
        session.progress.note(&format!(
            "{lost} of {} facts are lost by rounding: store the tensors wider, with `--dtype`",
            report.facts.patched
        ));
    }
    session.output.print(&report, || report.text())?;
    Ok(ExitCode::SUCCESS)
}

/// Finds out before the work what cannot be.
fn check(args: &Args, container: Container) -> anyhow::Result<()> {
    if container == Container::Gguf {
        return writable(&args.out, args.force);
    }
    if let Some(Format::This(dtype)) = args.dtype
        && dtype.block_len() > 1
    {
        let hint = "give `--dtype f32`, `f16` or `bf16`, or leave it out";
        return Err(Error::input_hint(format!("safetensors has no {}", dtype.name()), hint).into());
    }
    if args.out.exists() && !args.force {
        let hint = "choose another folder with `--out`, or replace it with `--force`";
        return Err(Error::input_hint(format!("`{}` exists", args.out.display()), hint).into());
    }
    let parent = args.out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !parent.is_dir() {
        let what = format!("the folder `{}` does not exist", parent.display());
        return Err(Error::input_hint(what, "make it first, or choose another place with `--out`").into());
    }
    Ok(())
}

/// Whether each fact's first answer is its target.
fn answered(
    session: &Session<'_>,
    model: &Model,
    patched: &Patched,
    facts: &[&Fact],
) -> anyhow::Result<Vec<bool>> {
    let questions: Vec<_> =
        facts.iter().map(|f| Question { prompt: &f.prompt, target: Some(&f.target) }).collect();
    let answers = answers(model, patched, &questions, session.interrupt)?;
    Ok(answers.iter().zip(facts).map(|(now, fact)| now.answer == fact.target).collect())
}

fn count(answered: &[bool]) -> usize {
    answered.iter().filter(|yes| **yes).count()
}

fn format(text: &str) -> Result<Format, String> {
    let known = Dtype::ALL.into_iter().find(|d| d.name().eq_ignore_ascii_case(text)).map(Format::This);
    let own = text.eq_ignore_ascii_case("own").then_some(Format::Own);
    let names = || Dtype::ALL.map(|d| d.name().to_lowercase()).join(", ");
    known.or(own).ok_or_else(|| format!("expected `own` or one of {}", names()))
}

fn name(container: Container) -> &'static str {
    match container {
        Container::Gguf => "gguf",
        Container::Safetensors => "safetensors",
    }
}

/// What is tried, from narrow to wide, where a tensor's own format loses a fact.
fn rungs(container: Container) -> &'static [Dtype] {
    match container {
        Container::Gguf => &[Dtype::Q8_0, Dtype::F16, Dtype::F32],
        Container::Safetensors => &[Dtype::F32],
    }
}

impl Report {
    fn text(&self) -> String {
        let mut lines = vec![];
        for t in &self.tensors {
            let format = if t.from == t.to { t.to.to_owned() } else { format!("{} → {}", t.from, t.to) };
            lines.push(format!(
                "{}  {format}  {} bytes  stored change: cosine {:.3}, norm {:.2}; {:.1} % lost where the facts \
                 are asked",
                t.tensor,
                t.bytes_after,
                t.cosine,
                t.norm,
                100.0 * t.lost
            ));
        }
        let f = &self.facts;
        lines.push(format!(
            "\nfacts    {} of {} answered by the export, {} by the patches",
            f.exported, f.count, f.patched
        ));
        for t in &self.tried {
            lines.push(format!(
                "tried    {}: {} of {} stay, {:+} bytes",
                t.dtype, t.kept, t.of, t.extra_bytes
            ));
        }
        if !self.written.left_out.is_empty() {
            lines.push(format!("left out {} (unedited weights)", self.written.left_out.join(", ")));
        }
        lines.push(format!("written  {} ({} bytes of weights)", self.out, self.written.bytes));
        lines.join("\n")
    }
}
