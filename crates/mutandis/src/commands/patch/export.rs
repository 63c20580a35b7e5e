//! `mutandis patch export`: patches written into a copy of the model.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ValueEnum;
use mutandis::engine::Model;
use mutandis::engine::checkpoint::{Container, Dtype};
use mutandis_edit::export::{
    ALIKE, Export, Stored, StoredTensor, Written, check_beneath, check_folder, check_form,
};
use mutandis_edit::{Error, Fact, Patch};
use serde::Serialize;

use super::lora;
use crate::answers::{Question, answers};
use crate::commands::edit::{apart, writable};
use crate::patched::Patched;
use crate::session::Session;

/// The options of `mutandis patch export`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    given: Given,
    /// What is written
    #[arg(long, value_enum)]
    to: Form,
    /// Where it goes: a file for GGUF (of a model or an adapter), else a folder
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// How changed tensors are stored: `own`, `f32`, `f16`, `bf16`, `q8_0`, `q4_k`… [default: as in
    /// the model, or else the narrowest of Q8_0, F16 and F32 with which the facts' answers stay, or the
    /// change itself where there are no facts to ask]
    #[arg(long, value_parser = format)]
    dtype: Option<Format>,
    /// Whose layout an adapter has [default: by the ending of `--out`]
    #[arg(long, value_enum, value_name = "KIND")]
    form: Option<lora::Form>,
    /// Rank of every matrix of an adapter [default: the one that keeps the changes]
    #[arg(long, value_name = "N")]
    rank: Option<usize>,
    /// Overwrite what is there; of a folder only an earlier export
    #[arg(long)]
    force: bool,
}

/// The patches that are exported.
#[derive(Debug, clap::Args)]
pub(super) struct Given {
    /// Patch files and ledgers, in order; their changes are added up
    #[arg(required = true, value_name = "FILE|LEDGER")]
    pub(super) files: Vec<PathBuf>,
    /// Take a patch as it is that was computed on top of other patches than those before it
    #[arg(long)]
    independent: bool,
}

impl Given {
    /// Reads the patches.
    ///
    /// # Errors
    /// Where one cannot be read, or stands on something else than it was computed on.
    pub(super) fn read(&self, model: &Model) -> anyhow::Result<Vec<Patch>> {
        let patches = Patched::read(&self.files, model)?;
        if !self.independent {
            check_beneath(&patches)?;
        }
        Ok(patches)
    }
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
#[derive(Debug, Clone, Serialize)]
struct Tried {
    dtype: &'static str,
    kept: usize,
    of: usize,
    /// Least cosine between a change as stored and as it should be, of tensors that no true fact tells
    /// of.
    #[serde(skip_serializing_if = "Option::is_none")]
    cosine: Option<f64>,
    extra_bytes: i64,
}

impl Tried {
    fn is_good(&self) -> bool {
        self.kept == self.of && self.cosine.is_none_or(|cosine| cosine >= ALIKE)
    }

    fn is_better_than(&self, other: &Self) -> bool {
        self.kept > other.kept || self.kept == other.kept && self.cosine > other.cosine
    }
}

/// What the facts of patches are worth as a test of an export.
struct Asked<'a> {
    session: &'a Session<'a>,
    model: &'a Model,
    facts: Vec<&'a Fact>,
    /// Which of them are true under the patches.
    wanted: Vec<bool>,
    /// Tensors with changes that none of these tells of.
    silent: BTreeSet<String>,
}

/// Formats that were chosen.
struct Chosen {
    tried: Tried,
    stored: Stored,
    /// Facts that are true with them.
    exported: usize,
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
            return lora::run(&lora::Options { out, form, rank, force }, &args.given, session);
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
    check(args, container, session)?;
    let model = session.load()?.model;
    check_form(&model, container)?;
    if container == Container::Safetensors {
        check_folder(&model, &args.out, args.force)?;
    }
    let patched = Patched::of(args.given.read(&model)?, &model)?;
    let export = Export::new(&model, &patched.patches)?;
    let asked = Asked::new(session, &model, &export, &patched)?;
    if args.dtype.is_none() && !asked.silent.is_empty() {
        session.progress.note(&format!(
            "no true fact tells of the change of {} tensors: it is stored as it is, up to a cosine of {ALIKE}",
            asked.silent.len()
        ));
    }
    let (chosen, tried) = choose(&rungs(args.dtype, container, &export), &export, &asked)?;
    let stored = chosen.stored;
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
        facts: Facts { count: asked.facts.len(), patched: count(&asked.wanted), exported: chosen.exported },
        tried,
        written,
    };
    for note in notes(&chosen.tried, report.written.loads_as) {
        session.progress.note(&note);
    }
    session.output.print(&report, || report.text())?;
    Ok(ExitCode::SUCCESS)
}

/// What of a finished export is not as it should be.
fn notes(chosen: &Tried, loads_as: Option<&str>) -> Vec<String> {
    let mut notes = vec![];
    if chosen.kept < chosen.of {
        notes.push(format!(
            "{} of {} facts are lost by rounding: store the tensors wider, with `--dtype`",
            chosen.of - chosen.kept,
            chosen.of
        ));
    }
    if let Some(cosine) = chosen.cosine.filter(|cosine| *cosine < ALIKE) {
        notes.push(format!(
            "the change as stored is like the patches' by a cosine of only {cosine:.2}: store the tensors wider, \
             with `--dtype`"
        ));
    }
    if let Some(dtype) = loads_as {
        notes.push(format!(
            "tensors are stored wider than {dtype}, which `config.json` names: transformers rounds them back to it \
             unless it loads the folder with `dtype=torch.float32`"
        ));
    }
    notes
}

/// Finds out before the work what cannot be.
fn check(args: &Args, container: Container, session: &Session<'_>) -> anyhow::Result<()> {
    if container == Container::Gguf {
        writable(&args.out, args.force)?;
        return apart(session, session.model.as_deref(), &args.out, &args.given.files);
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

impl<'a> Asked<'a> {
    fn new(
        session: &'a Session<'a>,
        model: &'a Model,
        export: &Export<'_>,
        patched: &'a Patched,
    ) -> anyhow::Result<Self> {
        let facts = patched.patches.iter().flat_map(|p| &p.facts).collect();
        let mut asked = Self { session, model, facts, wanted: vec![], silent: BTreeSet::new() };
        asked.wanted = asked.answered(patched)?;
        let (mut told, mut untold, mut at) = (BTreeSet::new(), BTreeSet::new(), 0);
        for patch in &patched.patches {
            let tensors = export.tensors_of(patch)?;
            let own = &asked.wanted[at..at + patch.facts.len()];
            at += own.len();
            if own.is_empty() {
                // It may want anything.
                asked.silent.extend(tensors);
            } else if own.contains(&true) {
                told.extend(tensors);
            } else {
                untold.extend(tensors);
            }
        }
        asked.silent.extend(untold.into_iter().filter(|tensor| !told.contains(tensor)));
        Ok(asked)
    }

    /// Whether each fact's first answer is its target.
    fn answered(&self, patched: &Patched) -> anyhow::Result<Vec<bool>> {
        let questions: Vec<_> =
            self.facts.iter().map(|f| Question { prompt: &f.prompt, target: Some(&f.target) }).collect();
        let answers = answers(self.model, patched, &questions, self.session.interrupt)?;
        Ok(answers.iter().zip(&self.facts).map(|(now, fact)| now.answer == fact.target).collect())
    }

    /// How a choice of formats does.
    fn of(&self, dtype: &'static str, mut stored: Stored) -> anyhow::Result<Chosen> {
        let exported = self.answered(&Patched::with(std::mem::take(&mut stored.overlay)))?;
        let kept = self.wanted.iter().zip(&exported).filter(|(was, is)| **was && **is).count();
        let tried = Tried {
            dtype,
            kept,
            of: count(&self.wanted),
            cosine: stored.alike(&self.silent),
            extra_bytes: stored.extra_bytes(),
        };
        Ok(Chosen { tried, stored, exported: count(&exported) })
    }
}

/// The first of these choices with which nothing is lost, or else the best; and all that were tried.
fn choose(rungs: &[Rung], export: &Export<'_>, asked: &Asked<'_>) -> anyhow::Result<(Chosen, Vec<Tried>)> {
    let (mut best, mut tried): (Option<Chosen>, _) = (None, vec![]);
    for (i, rung) in rungs.iter().enumerate() {
        asked.session.interrupt.check()?;
        let chosen = asked.of(rung.name(), rung.store(export)?)?;
        let this = chosen.tried.clone();
        tried.push(this.clone());
        if best.as_ref().is_none_or(|best| this.is_better_than(&best.tried)) {
            best = Some(chosen);
        }
        if this.is_good() {
            break;
        }
        if i + 1 < rungs.len() {
            asked.session.progress.note(&this.short("stored as", ": trying wider"));
        }
    }
    let best = best.ok_or_else(|| Error::input("there is no number format to store the tensors in"))?;
    Ok((best, tried))
}

/// A choice of formats for all tensors.
#[derive(Debug, Clone, Copy)]
enum Rung {
    /// Each in its own.
    Own,
    /// In this one where its own is narrower.
    AtLeast(Dtype),
    /// All in this one.
    All(Dtype),
}

impl Rung {
    fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::AtLeast(dtype) | Self::All(dtype) => dtype.name(),
        }
    }

    fn store(self, export: &Export<'_>) -> Result<Stored, Error> {
        match self {
            Self::Own => export.store(None),
            Self::AtLeast(dtype) => export.store(Some(dtype)),
            Self::All(dtype) => export.store_as(dtype),
        }
    }
}

/// What is tried, from narrow to wide: the one that was asked for, or else the tensors' own formats and
/// all that are wider than one of them.
fn rungs(asked: Option<Format>, container: Container, export: &Export<'_>) -> Vec<Rung> {
    let wider: &[Dtype] = match container {
        Container::Gguf => &[Dtype::Q8_0, Dtype::F16, Dtype::F32],
        Container::Safetensors => &[Dtype::F32],
    };
    match asked {
        Some(Format::This(dtype)) => vec![Rung::All(dtype)],
        Some(Format::Own) => vec![Rung::Own],
        None => {
            let wider = wider.iter().filter(|dtype| export.is_narrower_than(**dtype));
            [Rung::Own].into_iter().chain(wider.map(|dtype| Rung::AtLeast(*dtype))).collect()
        }
    }
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

impl Tried {
    /// In one line.
    fn short(&self, before: &str, after: &str) -> String {
        let Self { dtype, kept, of, cosine, .. } = self;
        let mut parts = vec![];
        if *of > 0 {
            parts.push(format!("{kept} of {of} facts stay"));
        }
        parts.extend(cosine.map(|cosine| format!("cosine of the change {cosine:.3}")));
        if parts.is_empty() {
            parts.push("no fact to keep".to_owned());
        }
        format!("{before} {dtype}, {}{after}", parts.join(", "))
    }
}

impl Report {
    fn text(&self) -> String {
        let mut lines = vec![];
        for t in &self.tensors {
            let format = if t.from == t.to { t.to.to_owned() } else { format!("{} → {}", t.from, t.to) };
            let lost = match t.lost {
                Some(lost) => format!("{:.1} % lost where the facts are asked", 100.0 * lost),
                None => "what is lost where facts are asked was not measured".to_owned(),
            };
            lines.push(format!(
                "{}  {format}  {} bytes  stored change: cosine {:.3}, norm {:.2}; {lost}",
                t.tensor, t.bytes_after, t.cosine, t.norm
            ));
        }
        let f = &self.facts;
        lines.push(match f.count {
            0 => "\nfacts    none are known that could be asked".to_owned(),
            count => format!(
                "\nfacts    {} of {count} answered by the export, {} by the patches",
                f.exported, f.patched
            ),
        });
        for t in &self.tried {
            lines.push(t.short("tried   ", &format!(", {:+} bytes", t.extra_bytes)));
        }
        if !self.written.left_out.is_empty() {
            let left_out = self.written.left_out.join(", ");
            lines.push(format!("left out {left_out} (unedited weights, folders, hidden files)"));
        }
        lines.push(format!("written  {} ({} bytes of weights)", self.out, self.written.bytes));
        lines.join("\n")
    }
}
