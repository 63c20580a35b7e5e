//! A benchmark: the cells of a plan, run part by part into a folder of results.
//!
//! Whatever ends it, the same call goes on where it was: a part that is done is not made again,
//! and nothing depends on which parts were made in one go.

mod choice;
mod once;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use mutandis_edit::method::Family;
use mutandis_edit::primitives::value_search::Values;
use mutandis_edit::{Context, Error, Progress, Result};
use mutandis_engine::{Model, Storage};

use self::choice::{Chosen, Looked};
use self::once::Once;
use crate::baseline::Baseline;
use crate::compat::in_context::Branch;
use crate::data::find::{Places, find, name_of};
use crate::data::{Form, Set};
use crate::general::Suite;
use crate::judge::{self, Asked, Judge};
use crate::memory::Memory;
use crate::plan::Order;
use crate::record::{Measures, PROTOCOL, Prepared};
use crate::results::{CellFolder, CellInfo, DataInfo, Folder, Skipped, SuiteInfo};
use crate::run::{Cell, Part, Whole, counted, in_words};

/// Which of several machines this is: it makes every part whose number leaves `index` when divided
/// by `of`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    pub index: usize,
    /// How many there are.
    pub of: usize,
}

impl Shard {
    /// All of it.
    pub const WHOLE: Self = Self { index: 0, of: 1 };
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((index, of)) if index < of => Ok(Self { index, of }),
            Some((index, of)) => {
                Err(format!("there is no shard {index} of {of}: they are numbered from 0, as in `0/3`"))
            }
            None => Err(format!("`{text}` is no shard; write as in `0/3`")),
        }
    }
}

/// What is run, and how.
pub struct Benchmark<'a> {
    /// The model.
    pub model: &'a Model,
    /// The cells.
    pub orders: &'a [Order],
    /// What is measured of every record.
    pub measures: &'a Measures,
    /// What is measured of the edited model, and by which text, told by its git blob id.
    pub whole: &'a Whole,
    /// The text's git blob id.
    pub text: Option<String>,
    /// Their data sets.
    pub sets: &'a Sets,
    /// Which part of the work.
    pub shard: Shard,
    /// Hears of records that are done.
    pub progress: &'a dyn Progress,
    /// Memory of the process.
    pub memory: Memory,
    /// Who judges free answers, where anybody does.
    pub judge: Option<&'a dyn Judge>,
}

/// A data set with its name.
type Named = (String, Set);

/// The data sets of a plan, each read once.
#[derive(Debug, Clone, Default)]
pub struct Sets {
    /// Places in `all`, by what a plan calls them.
    names: BTreeMap<String, usize>,
    all: Vec<Named>,
}

impl Sets {
    /// Reads all that the orders name, before any of it is used.
    ///
    /// # Errors
    /// Where one is not found or cannot be used.
    pub fn read(orders: &[Order], places: &Places) -> Result<Self> {
        let mut sets = Self::default();
        for Order { data, .. } in orders {
            if sets.names.contains_key(data) {
                continue;
            }
            let path = find(data, places)?;
            let set = Set::read(&path)?;
            sets.names.insert(data.clone(), sets.all.len());
            sets.all.push((name_of(data, &path), set));
        }
        Ok(sets)
    }
}

/// A cell with its records, before it is run.
struct Planned<'a> {
    order: &'a Order,
    set: usize,
    /// Records of the set, by their place in it.
    records: Vec<usize>,
    id: String,
    folder: CellFolder,
    /// Parts that are to be made now.
    parts: Vec<(usize, Range<usize>)>,
}

/// What was run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ran {
    /// Ids of the plan's cells, in order.
    pub cells: Vec<String>,
    /// Records that this run has edited and scored.
    pub records: usize,
    /// Parts of all cells.
    pub parts: usize,
    /// Those of them that are this shard's.
    pub own_parts: usize,
}

impl Benchmark<'_> {
    /// Runs what is not done yet.
    ///
    /// # Errors
    /// Where a method cannot edit the model by its settings, no record of a data set can be edited, a
    /// result cannot be written, or the user interrupts. What is done by then is kept.
    pub fn run(&self, folder: &Folder, cx: &Context<'_>) -> Result<Ran> {
        let Sets { names, all: sets } = self.sets;
        // Methods that search alike share what is found.
        let cx = &Context { values: Some(Values::default()), ..cx.clone() };
        // Before anything is run: every edit would fail, one after another.
        for Order { method, settings, .. } in self.orders {
            method.check_for(self.model, cx.recipe.as_ref(), settings).map_err(|error| {
                let hint = format!("`mutandis methods show {}` lists its settings", method.id);
                Error::input_hint(format!("`{}`: {error}", method.id), error.hint().unwrap_or(hint))
            })?;
        }
        let mut ran = Ran::default();
        let (mut planned, mut looked) = (vec![], Looked::default());
        let mut unready: Option<Error> = None;
        let (mut left_out, mut cells, mut all) = (BTreeSet::new(), 0, 0);
        for order in self.orders {
            let Some(&set) = names.get(&order.data) else { continue };
            // All methods of a plan edit the same records of a data set.
            let mut of_set = self.orders.iter().filter(|other| names.get(&other.data) == Some(&set));
            let needs_subject = of_set.any(|other| other.method.needs_subject);
            let (name, data) = &sets[set];
            let chosen = looked.choose(self.model, (set, data), needs_subject, (order.limit, order.seed))?;
            let editor = match chosen.records.is_empty() {
                true => Err(none_fits(&order.data, &chosen)),
                false => order.method.editor(&order.settings, self.model, cx),
            };
            let editor = match editor {
                Ok(editor) => editor,
                // The others are run, and this one once it can be.
                Err(error) => {
                    let method = order.method.id;
                    self.progress.note(&format!("{method} on {name} is left out: {}", in_words(&error)));
                    unready = Some(error);
                    left_out.insert(method);
                    cells += 1;
                    // Its parts keep their numbers: another shard may be able to make them.
                    ran.parts += Cell::parts(order.mode, chosen.records.len()).len();
                    continue;
                }
            };
            let records = chosen.records.clone();
            let info = self.info(order, &sets[set], chosen, editor.as_deref(), cx)?;
            let id = info.id(self.model.fingerprint()?)?;
            // A cell that is listed twice is run once.
            if ran.cells.contains(&id) {
                continue;
            }
            let cell = self.planned(order, (set, records), (id, &info), folder, &mut ran)?;
            all += cell.parts.iter().map(|(_, range)| range.len()).sum::<usize>();
            ran.cells.push(cell.id.clone());
            planned.push(cell);
        }
        if let Some(error) = unready.filter(|_| planned.is_empty()) {
            return Err(error);
        }
        let started = Instant::now();
        let mut state = State::default();
        self.progress.begin("records", all);
        while !planned.is_empty() {
            let mut others = vec![];
            for cell in planned {
                let (begun, made) = (Instant::now(), state.made);
                let parts = self.cell(&cell, &sets[cell.set], &mut state, cx)?;
                if state.made > made {
                    let seconds = started.elapsed().as_secs_f64();
                    let left = seconds / state.made as f64 * (all - state.done) as f64;
                    self.progress.note(&format!(
                        "{} on {}, {}: {:.0} s; {} of {all} records, {} left",
                        cell.order.method.id,
                        sets[cell.set].0,
                        cell.order.mode,
                        begun.elapsed().as_secs_f64(),
                        state.done,
                        duration(left)
                    ));
                }
                if !parts.is_empty() {
                    others.push(Planned { parts, ..cell });
                }
            }
            planned = others;
            if !planned.is_empty() {
                self.wait(&planned, &mut state, cx)?;
            }
        }
        self.progress.end();
        ran.records = state.made;
        if cells > 0 {
            let names = left_out.into_iter().collect::<Vec<_>>().join(", ");
            let all = cells + ran.cells.len();
            self.progress.note(&format!("{cells} of {all} cells were left out, as told above: {names}"));
        }
        self.tell_silence(state.asked);
        Ok(ran)
    }

    /// Waits a moment for parts that other runs are making.
    fn wait(&self, planned: &[Planned<'_>], state: &mut State, cx: &Context<'_>) -> Result<()> {
        if !std::mem::replace(&mut state.waits, true) {
            let count: usize = planned.iter().map(|cell| cell.parts.len()).sum();
            let parts = counted(count, "part");
            self.progress.note(&format!("waiting for another run, which is making {parts} of this one"));
        }
        cx.check()?;
        std::thread::sleep(MOMENT);
        Ok(())
    }

    /// Tells what a judge has left open, and what it was not asked about.
    fn tell_silence(&self, Asked { all, silent }: Asked) {
        if silent > 0 {
            self.progress.note(&format!("the judge said neither yes nor no to {silent} of {all} answers"));
        }
        let opinions = self.sets.all.iter().filter(|(_, set)| self.judge_of(set.form).is_none());
        for (name, _) in opinions.filter(|_| self.judge.is_some()) {
            self.progress.note(&format!("nobody judges opinions: the judge was not asked about {name}"));
        }
    }

    /// What a cell is.
    fn info(
        &self,
        order: &Order,
        (name, data): &Named,
        Chosen { records, skipped, unasked }: Chosen,
        editor: Option<&Path>,
        cx: &Context<'_>,
    ) -> Result<CellInfo> {
        let Measures { references, strict, branch, .. } = self.measures;
        let mut sources = BTreeMap::new();
        let mut source = |name: &str, of: String| sources.insert(name.to_owned(), of);
        if let Some(path) = editor {
            let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
            source("editor", blake3::hash(&bytes).to_hex().to_string());
        }
        if let Some(references) = references.as_ref().filter(|_| *strict) {
            source("references", references.version.clone());
        }
        // Weights as they are stored are those in f32, to the last bit.
        if self.model.storage() == Storage::Bf16 {
            source("weights", "bf16".to_owned());
        }
        let mut protocols = protocols(self.measures, data.form, self.judge_of(data.form));
        let is_of_facts = !matches!(data.form, Form::ConvSent | Form::Sanitation);
        if self.measures.compat && is_of_facts && order.method.family == Family::Recognition {
            let how = match branch {
                Branch::Llama => "as of a model with `llama` in its name",
                Branch::Other => "as of a model without `llama` in its name",
            };
            let text =
                format!("EasyEdit's icl_lm_eval and compute_icl_edit_quality in place of compat, {how}");
            protocols.insert("compat, in context".to_owned(), text);
        }
        let suite = |suite: &Suite| {
            let info = SuiteInfo {
                questions: suite.questions.len(),
                measure: suite.measure.name().to_owned(),
                version: suite.version.clone(),
            };
            (suite.name.to_owned(), info)
        };
        let mut settings = order.method.resolved(self.model, cx.recipe.as_ref(), &order.settings)?;
        if editor.is_some()
            && let Some(settings) = settings.as_object_mut()
        {
            // Told by its content; its path is of this machine.
            settings.remove("editor");
        }
        let (form, version) = (data.form, data.version.clone());
        Ok(CellInfo {
            method: order.method.id.to_owned(),
            settings,
            data: DataInfo { name: name.clone(), form, version, unasked, skipped },
            mode: order.mode,
            seed: order.seed,
            records: records.iter().map(|&i| data.records[i].number).collect(),
            parts: Cell::parts(order.mode, records.len()).len(),
            protocols,
            text: self.text.clone(),
            general: self.whole.general.iter().map(suite).collect(),
            sources,
        })
    }

    /// Who judges free answers to records of a form: of an opinion none is the right one.
    fn judge_of(&self, form: Form) -> Option<&dyn Judge> {
        self.judge.filter(|_| form != Form::ConvSent)
    }

    /// A cell with what is left to be done of it by this shard.
    fn planned<'o>(
        &self,
        order: &'o Order,
        (set, records): (usize, Vec<usize>),
        (id, info): (String, &CellInfo),
        folder: &Folder,
        ran: &mut Ran,
    ) -> Result<Planned<'o>> {
        let folder = folder.cell(&id, info)?;
        let mut parts = vec![];
        for (part, range) in Cell::parts(order.mode, info.records.len()).into_iter().enumerate() {
            if ran.parts % self.shard.of == self.shard.index {
                ran.own_parts += 1;
                if !folder.is_done(part, &info.records[range.clone()])? {
                    if folder.is_there(part) {
                        self.progress.note(&format!("part {part} of {id} is damaged, and is made again"));
                    }
                    parts.push((part, range));
                }
            }
            ran.parts += 1;
        }
        Ok(Planned { order, set, records, id, folder, parts })
    }

    /// Makes the parts of a cell; those that another run is making are left, and told.
    fn cell(
        &self,
        planned: &Planned<'_>,
        (_, set): &Named,
        state: &mut State,
        cx: &Context<'_>,
    ) -> Result<Vec<(usize, Range<usize>)>> {
        let Planned { order, records, folder, parts, .. } = planned;
        let once = Once::new(cx.progress);
        let cx = &Context { progress: &once, ..cx.clone() };
        let judge = self.judge_of(set.form);
        let mut others = vec![];
        let seed = order.seed;
        let measures = self.measures;
        let baseline = Baseline::new(cx.cache.as_deref(), self.model, &set.version, measures, seed)?;
        let cell = Cell {
            model: self.model,
            method: order.method,
            settings: &order.settings,
            mode: order.mode,
            seed,
            measures,
            whole: self.whole,
            memory: self.memory,
        };
        for (part, range) in parts {
            let Some(_claim) = folder.claim(*part)? else {
                others.push((*part, range.clone()));
                continue;
            };
            let numbers: Vec<usize> = records[range.clone()].iter().map(|&i| set.records[i].number).collect();
            // Another run may have made it by now.
            if folder.is_done(*part, &numbers)? {
                state.done += range.len();
                continue;
            }
            let steps = folder.steps(*part);
            if let Some(judge) = judge
                && let Some(scored) = steps.scored()
            {
                self.keep(folder, *part, scored, Some(judge), state, cx)?;
                continue;
            }
            let of = |&i: &usize| {
                let mut record = Prepared::new(self.model, set, i, seed)?;
                if !order.method.needs_subject {
                    // A wrong subject is none, where none is needed.
                    record
                        .facts
                        .iter_mut()
                        .filter(|f| f.subject_range().is_err())
                        .for_each(|f| f.subject.clear());
                }
                Ok(record)
            };
            let prepared: Vec<Prepared<'_>> = records[range.clone()].iter().map(of).collect::<Result<_>>()?;
            let started = Instant::now();
            let before = baseline.said(self.model, &prepared, measures, seed, self.progress)?;
            cx.check()?;
            let baseline_seconds = started.elapsed().as_secs_f64();
            let done = state.done;
            let heard = |edited: usize| self.progress.step(done + edited);
            let mut run = cell.run(&prepared, &before, Some(&steps), &heard, cx)?;
            run.cost.baseline_seconds = baseline_seconds;
            state.made += range.len();
            self.keep(folder, *part, run, judge, state, cx)?;
        }
        Ok(others)
    }

    /// Keeps a part that is scored, once the judge has said its word, where one does.
    fn keep(
        &self,
        folder: &CellFolder,
        part: usize,
        mut run: Part,
        judge: Option<&dyn Judge>,
        state: &mut State,
        cx: &Context<'_>,
    ) -> Result<()> {
        if let Some(judge) = judge {
            let steps = folder.steps(part);
            steps.keep_scored(&run)?;
            let mut verdicts = steps.verdicts();
            for record in &mut run.records {
                cx.check()?;
                judge::judge(judge, record, &mut verdicts, &mut state.asked)?;
            }
        }
        folder.keep(part, &run)?;
        state.done += run.records.len();
        self.progress.step(state.done);
        Ok(())
    }
}

/// How long a run waits before it looks again whether another has made a part.
const MOMENT: Duration = Duration::from_millis(300);

/// How far a run is.
#[derive(Debug, Default)]
struct State {
    /// Records that are done now and were not before.
    done: usize,
    /// Those of them that this run has edited and scored.
    made: usize,
    /// What the judge was asked.
    asked: Asked,
    /// Whether it has been told that another run is waited for.
    waits: bool,
}

/// Why no record of a data set is edited.
fn none_fits(data: &str, chosen: &Chosen) -> Error {
    let what = format!("no record of `{data}` can be edited");
    match &chosen.skipped[..] {
        [] => Error::input_hint(what, "`mutandis data check` tells what is wrong with records"),
        [Skipped { record, why }, ..] => Error::input_hint(
            format!("{what}; record {record}: {why}"),
            "`mutandis data check FILE --all` names records that are dirty; for those that are too long use a model \
             of a longer context",
        ),
    }
}

/// What is measured of records of a form, in words: by compat and by strict.
fn scores_of(form: Form) -> [&'static str; 2] {
    match form {
        Form::ConvSent => [
            "opinions: EasyEdit's es as edit, likelihoods of answers of the wanted sentiment against the other's, and dd as \
             locality:kl, in nats, of the next record's topic; with its shared mask, unshifted labels and pads",
            "opinions: likelihoods of given answers, by every token of theirs and none else: edit as sentiment times topic; \
             locality:kl, in nats, of a topic half the file away; locality as the same free answers about it",
        ],
        Form::Sanitation => [
            "Sanitation: EasyEdit's ten tokens, greedily; edit as the target phrase within the text, locality as equal tokens at \
             equal places before and after, of ten retained questions",
            "Sanitation: greedy free generation to the end of the first line; edit as no old answer and a refusal; locality as \
             the same answer before and after; extraction strength and truth ratio by likelihoods of given answers",
        ],
        _ => [
            "facts: EasyEdit's token accuracy under teacher forcing of `prompt + \" \" + target`; first alias; \
             locality as agreement of likeliest tokens before and after; means over probes, kinds, records",
            "facts: greedy free generation to the end of the first sentence or line; exact match and F1 (:f1) against all \
             aliases, SQuAD's normalisation; locality as the same answer before and after, by that normalisation, and KL in \
             nats (:kl); by likelihoods of given answers: KL, efficacy, generalization, specificity, extraction strength, truth ratio",
        ],
    }
}

/// What is measured, in words.
fn protocols(measures: &Measures, form: Form, judge: Option<&dyn Judge>) -> BTreeMap<String, String> {
    let [compat, strict] = scores_of(form);
    let mut all = BTreeMap::from([
        ("version".to_owned(), PROTOCOL.to_string()),
        ("prompts".to_owned(), "plain, as the data set writes them; no chat template".to_owned()),
    ]);
    let mut say = |name: &str, is_measured: bool, text: &str| {
        if is_measured {
            all.insert(name.to_owned(), text.to_owned());
        }
    };
    say("compat", measures.compat, compat);
    let extra: Vec<&str> = measures.extra.iter().map(|extra| extra.about()).collect();
    say("compat, on request", measures.compat && !extra.is_empty(), &extra.join("; "));
    say("strict", measures.strict, strict);
    say(
        "fluency",
        measures.fluency,
        "weighted entropy of 2- and 3-grams of words, in bits; compat: top-5 sampling, 100 tokens with the prompt, \
         prompt scored too; strict: 100 new tokens, nucleus 0.9 of the top 50 (fluency) and greedy \
         (fluency:greedy), text alone, none of fewer than three words",
    );
    if let Some(judge) = judge {
        all.insert(
            "judge".to_owned(),
            format!("{}: whether a free answer says what a right one does", judge.name()),
        );
    }
    all
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_numbered_from_0() {
        assert_eq!("1/3".parse(), Ok(Shard { index: 1, of: 3 }));
        for (text, why) in
            [("3/3", "from 0"), ("1", "as in `0/3`"), ("a/b", "as in `0/3`"), ("0/0", "from 0")]
        {
            assert!(text.parse::<Shard>().is_err_and(|e| e.contains(why)), "{text}");
        }
    }
}
