//! Long sequences: facts in turns, one patch each on top of those before, watched as they grow.
//!
//! A turn's patch is written, to a folder or a ledger, once it is known to be good, and never touched
//! again: whatever ends the sequence, what is there is good, and the same command goes on from it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mutandis::engine::Model;
use mutandis_bench::edited::Edited;
use mutandis_bench::gate::{Asked, Verdict, text};
use mutandis_bench::whole::Whole;
use mutandis_edit::{Context, Error, Fact, Ledger, Patch};
use serde::Serialize;
use serde_json::Value;

use super::place::join;
use super::{Args, Order, unanswered, writable};
use crate::answers::{Question, answers};
use crate::commands::patch::ledger::writer;
use crate::gated::{asked, measure, told};
use crate::patched::Patched;
use crate::report::NO;
use crate::session::Session;
use crate::stages::Stages;

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    store: Store,
    method: String,
    /// Facts of the file.
    facts: usize,
    turns: Vec<Turn>,
    /// Facts of the turns that were kept.
    edited: usize,
    /// Of them those that are answered as asked at the end.
    answered: usize,
    stopped: Option<Stopped>,
    seconds: f64,
    peak_memory_bytes: u64,
}

/// Where a sequence's patches are kept.
#[derive(Serialize, Clone)]
#[serde(rename_all = "kebab-case")]
enum Store {
    /// As files, each called after its turn.
    Folder(PathBuf),
    /// On top of its stack.
    Ledger(PathBuf),
}

/// A turn whose patch was kept.
#[derive(Serialize)]
struct Turn {
    turn: usize,
    patch: PathBuf,
    facts: usize,
    /// What was found of it; nothing where an earlier run made it.
    #[serde(flatten)]
    found: Option<Found>,
}

#[derive(Serialize)]
struct Found {
    /// Of the turn's facts those that are answered as asked.
    answered: usize,
    /// How many times the unedited model's perplexity is; nothing where it is no number.
    perplexity: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gate: Option<Verdict>,
}

/// Why a sequence ended before its time.
#[derive(Serialize)]
struct Stopped {
    turn: usize,
    why: String,
    #[serde(flatten)]
    found: Option<Found>,
}

/// Facts of one turn at a time.
pub(super) fn run(
    args: &Args,
    order: &Order,
    size: usize,
    session: &Session<'_>,
) -> anyhow::Result<ExitCode> {
    let turns: Vec<&[Fact]> = order.facts.chunks(size).collect();
    // A fact that no method could take would be found out only when its turn comes.
    for fact in order.facts.iter().filter(|fact| !fact.subject.is_empty()) {
        fact.subject_range()?;
    }
    let questions: Vec<Asked> = turns.iter().map(|facts| asked(facts, &[], &args.keep)).collect();
    if let Some(gate) = &order.gate {
        questions.iter().try_for_each(|asked| gate.fits(asked))?;
    }
    let store = Store::new(args)?;
    store.check(args, turns.len(), session)?;

    let model = session.load()?.model;
    let stages = Stages::new(&session.progress);
    let cx = Order::context(args, session, &stages, &model)?;
    let watch = Watch {
        args,
        order,
        session,
        store: &store,
        settings: order.entry.resolved(&model, cx.recipe.as_ref(), &order.settings)?,
        model: &model,
    };

    let ledger = args.ledger.as_deref().filter(|folder| Ledger::is_at(folder));
    let ledger = ledger.map(Ledger::open).transpose()?;
    let below = if ledger.is_some() { args.ledger.as_slice() } else { &args.patches };
    let mut patches = Patched::read(below, &model)?;
    // In a ledger, what an earlier run has made lies on top.
    let made = if ledger.is_some() { watch.made(&turns, &patches)? } else { 0 };
    let mut on_top = patches.split_off(patches.len() - made).into_iter();
    let mut patched = Patched::of(patches, &model)?;
    let beneath = patched.patches.len();
    let was = answers(&model, &patched, &asks(&order.facts), session.interrupt)?;
    unanswered(&order.facts, &was)?;
    let suites = order.gate.as_ref().map(|gate| gate.suites().to_vec()).unwrap_or_default();
    let whole = Whole::new(&model, text(&model)?, suites, &cx)?;

    let (mut done, mut stopped): (Vec<Turn>, _) = (vec![], None);
    for (i, (facts, asked)) in turns.iter().zip(&questions).enumerate() {
        let turn = i + 1;
        let kept = match (&store, &ledger) {
            (Store::Folder(folder), _) => watch.kept(&folder.join(file(args, turn)), facts, &patched)?,
            (Store::Ledger(_), None) => None,
            (Store::Ledger(_), Some(ledger)) => match on_top.next() {
                Some(patch) => Some((ledger.place(&patch.id()?), patch)),
                None => None,
            },
        };
        let (path, found) = match kept {
            Some((path, patch)) => {
                patched.push(vec![patch], &model)?;
                (path, None)
            }
            None => match watch.turn(turn, (facts, asked), &whole, patched, &cx)? {
                Ended::Good(now, path, found) => {
                    session.progress.note(&format!(
                        "turn {turn} of {}: {}",
                        turns.len(),
                        found.told(facts.len())
                    ));
                    patched = now;
                    (path, Some(found))
                }
                Ended::Bad(before, why, found) => {
                    patched = before;
                    stopped = Some(Stopped { turn, why, found });
                    break;
                }
            },
        };
        done.push(Turn { turn, patch: path, facts: facts.len(), found });
    }
    let edited = &order.facts[..done.iter().map(|turn| turn.facts).sum()];
    let now = answers(&model, &patched, &asks(edited), session.interrupt)?;
    let answered = edited.iter().zip(&now).filter(|(fact, now)| now.answer == fact.target).count();
    debug_assert_eq!(patched.patches.len(), beneath + done.len());
    let report = Report {
        store: store.clone(),
        method: args.method.clone(),
        facts: order.facts.len(),
        turns: done,
        edited: edited.len(),
        answered,
        stopped,
        seconds: session.seconds(),
        peak_memory_bytes: mutandis::memory::peak().unwrap_or(0),
    };
    session.output.print(&report, || report.text())?;
    Ok(if report.stopped.is_none() { ExitCode::SUCCESS } else { ExitCode::from(NO) })
}

fn asks(facts: &[Fact]) -> Vec<Question<'_>> {
    facts.iter().map(|fact| Question { prompt: &fact.prompt, target: Some(&fact.target) }).collect()
}

/// What the patch of a turn is called: as the file of facts.
fn file(args: &Args, turn: usize) -> String {
    let stem = args.facts.as_deref().and_then(Path::file_stem);
    let name = stem.map_or_else(|| "facts".into(), |stem| stem.to_string_lossy());
    format!("{name}-{turn:04}.patch.safetensors")
}

impl Store {
    fn new(args: &Args) -> anyhow::Result<Self> {
        match (&args.ledger, &args.out) {
            (Some(ledger), None) => Ok(Self::Ledger(ledger.clone())),
            (None, Some(folder)) => Ok(Self::Folder(folder.clone())),
            (found, _) => {
                let found = if found.is_some() { "both `--ledger` and `--out`" } else { "neither" };
                let what = format!("`--turn` keeps patches in a ledger or in a folder, {found} is given");
                Err(Error::input_hint(what, "give one: `--ledger FOLDER`, or `--out FOLDER`").into())
            }
        }
    }

    /// Finds out before the work that nothing could be kept.
    fn check(&self, args: &Args, turns: usize, session: &Session<'_>) -> anyhow::Result<()> {
        let folder = match self {
            Self::Ledger(folder) if Ledger::is_at(folder) => {
                return writer(session, folder, None, &args.writing).map(drop);
            }
            Self::Ledger(folder) if folder.exists() && !folder.is_dir() => {
                let what = format!("`{}` is a file, expected the folder of a ledger", folder.display());
                return Err(Error::input_hint(what, "give another name with `--ledger`").into());
            }
            Self::Ledger(_) => return Ok(()),
            Self::Folder(folder) => folder,
        };
        std::fs::create_dir_all(folder).map_err(|e| {
            let hint = "with `--turn`, give a folder with `--out`";
            Error::input_hint(format!("cannot make the folder `{}`: {e}", folder.display()), hint)
        })?;
        writable(&folder.join(file(args, turns)), true)
    }
}

/// What a sequence is watched with.
struct Watch<'a> {
    args: &'a Args,
    order: &'a Order,
    session: &'a Session<'a>,
    store: &'a Store,
    /// As patches hold them.
    settings: Value,
    model: &'a Model,
}

/// How a turn ended: with what is in force now.
enum Ended {
    /// Its patch was written.
    Good(Patched, PathBuf, Found),
    /// It was not: why.
    Bad(Patched, String, Option<Found>),
}

impl Watch<'_> {
    /// How many of the uppermost patches are those of the first turns.
    fn made(&self, turns: &[&[Fact]], all: &[Patch]) -> anyhow::Result<usize> {
        let count = all.len();
        for made in (1..=count.min(turns.len())).rev() {
            let mut own = all[count - made..].iter().zip(turns);
            if own.all(|(patch, facts)| self.differs(patch, facts).is_none()) {
                return Ok(made);
            }
        }
        // A sequence that is there, but not as it would be made now, is not stacked on itself.
        for (number, patch) in all.iter().enumerate() {
            let turn = turns.iter().find(|facts| facts.iter().any(|fact| patch.facts.contains(fact)));
            let Some(facts) = turn else { continue };
            let why = self.differs(patch, facts).map_or_else(
                || "others lie on top of it".to_owned(),
                |what| format!("it is of another sequence: its {what} differ"),
            );
            return Err(Error::input_hint(
                format!("patch {} of the ledger has facts of this file, and {why}", number + 1),
                "take it out with `patch revert`, give another `--ledger`, or the same command as before to go on",
            )
            .into());
        }
        Ok(0)
    }

    /// What a patch has otherwise than that of a turn would.
    fn differs(&self, patch: &Patch, facts: &[Fact]) -> Option<&'static str> {
        let all = [
            ("method", patch.method != self.order.entry.id),
            ("settings", patch.config != self.settings),
            ("facts", patch.facts != facts),
            ("seed", patch.seed != self.args.seed),
        ];
        all.into_iter().find(|(_, differs)| *differs).map(|(what, _)| what)
    }

    /// A turn's patch that an earlier run has made, with its file.
    fn kept(
        &self,
        path: &Path,
        facts: &[Fact],
        beneath: &Patched,
    ) -> anyhow::Result<Option<(PathBuf, Patch)>> {
        if !path.exists() {
            return Ok(None);
        }
        let patch = Patch::load(path)?;
        patch.check_base(self.model)?;
        let on_others = patch.under != beneath.chain()?;
        match self.differs(&patch, facts).or(on_others.then_some("patches beneath")) {
            None => Ok(Some((path.to_owned(), patch))),
            Some(what) => Err(Error::input_hint(
                format!("`{}` is of another sequence: its {what} differ", path.display()),
                "give an empty folder with `--out`, or the same command as before to go on with it",
            )
            .into()),
        }
    }

    /// How many times the unedited model's perplexity is; nothing where it is no number.
    fn times(&self, whole: &Whole, patched: &Patched) -> anyhow::Result<Option<f64>> {
        let overlays = patched.overlays();
        let prefix = patched.prefix.as_deref().unwrap_or_default();
        let rise = whole.rise(&Edited { model: self.model, overlays: &overlays, prefix })?;
        Ok(rise.map(|rise| 1.0 + rise))
    }

    /// Keeps a turn's patch; where.
    fn keep(&self, turn: usize, patch: &Patch) -> anyhow::Result<PathBuf> {
        match self.store {
            Store::Folder(folder) => {
                let path = folder.join(file(self.args, turn));
                patch.save(&path)?;
                Ok(path)
            }
            Store::Ledger(folder) => {
                let (path, conflicts) = join(self.session, folder, patch, self.args, None)?;
                conflicts.lines().iter().for_each(|line| self.session.progress.note(line));
                Ok(path)
            }
        }
    }

    /// Makes a turn's patch, and keeps it where it is good.
    fn turn(
        &self,
        turn: usize,
        (facts, asked): (&[Fact], &Asked),
        whole: &Whole,
        mut patched: Patched,
        cx: &Context<'_>,
    ) -> anyhow::Result<Ended> {
        let patch = match self.order.patch(self.args, facts, self.model, &patched, cx) {
            Ok(patch) => patch,
            // A model that has broken down may leave nothing to compute an edit from.
            Err(error) if matches!(error.downcast_ref(), Some(Error::Numerical { .. })) => {
                return Ok(Ended::Bad(patched, format!("its edit could not be computed: {error}"), None));
            }
            Err(error) => return Err(error),
        };
        let measures = match &self.order.gate {
            Some(_) => measure(self.model, asked, whole, &patched, &patch, cx)?,
            None => vec![],
        };
        let gate = self.order.gate.as_ref().map(|gate| gate.judge(&measures));
        patched.push(vec![patch], self.model)?;
        let now = answers(self.model, &patched, &asks(facts), self.session.interrupt)?;
        let times = match measures.iter().find(|measure| measure.name == "perplexity") {
            Some(measure) => measure.value.map(|rise| 1.0 + rise),
            None => self.times(whole, &patched)?,
        };
        let alarm = self.args.alarm;
        let why = match times {
            None => Some("the model has collapsed: its predictions are no numbers".to_owned()),
            _ if now.iter().any(|answer| !answer.probability.is_finite()) => {
                Some("the model has collapsed: its answers are no numbers".to_owned())
            }
            Some(times) if times > alarm => Some(format!(
                "the model has collapsed: perplexity is {times:.2} times the unedited model's, the alarm is at {alarm}"
            )),
            _ if gate.as_ref().is_some_and(|verdict| !verdict.passed) => {
                Some("it did not pass the gate".to_owned())
            }
            _ => None,
        };
        let found = Found {
            answered: facts.iter().zip(&now).filter(|(fact, now)| now.answer == fact.target).count(),
            perplexity: times,
            gate,
        };
        cx.check()?;
        Ok(match why {
            None => {
                let patch = patched.patches.last().ok_or_else(|| Error::input("there is no patch"))?;
                let path = self.keep(turn, patch)?;
                Ended::Good(patched, path, found)
            }
            Some(why) => {
                patched.patches.pop();
                Ended::Bad(Patched::of(patched.patches, self.model)?, why, Some(found))
            }
        })
    }
}

impl Found {
    /// One line.
    fn told(&self, facts: usize) -> String {
        let perplexity = self.perplexity.map_or("no number".to_owned(), |times| format!("×{times:.3}"));
        format!("{} of {facts} answered, perplexity {perplexity}", self.answered)
    }
}

impl Report {
    fn text(&self) -> String {
        let mut lines = vec![];
        let made = self.turns.iter().filter(|turn| turn.found.is_some()).count();
        let before = self.turns.len() - made;
        lines.push(match before {
            0 => format!("{made} turns"),
            _ => format!("{made} turns, on from {before} that were there"),
        });
        lines.push(format!("{} of {} facts are answered as asked at the end", self.answered, self.edited));
        if let Some(last) = self.turns.iter().rev().find_map(|turn| turn.found.as_ref()?.perplexity) {
            lines.push(format!("perplexity is {last:.3} times the unedited model's"));
        }
        if let Some(stopped) = &self.stopped {
            lines.push(format!("\nstopped at turn {}: {}", stopped.turn, stopped.why));
            lines.extend(stopped.found.iter().flat_map(|found| found.gate.as_ref()).map(told));
            lines.push(format!(
                "kept: the {} turns before it, {} of {} facts",
                self.turns.len(),
                self.edited,
                self.facts
            ));
        }
        lines.push(format!(
            "\n{} in {:.1} s, {} MB of memory at most",
            self.method,
            self.seconds,
            self.peak_memory_bytes / 1_000_000
        ));
        lines.push(match &self.store {
            Store::Folder(folder) => format!("patches: {}", folder.display()),
            Store::Ledger(folder) => format!("ledger: {}", folder.display()),
        });
        lines.join("\n")
    }
}
