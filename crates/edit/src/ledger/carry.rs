//! Carrying out: files first, then the one line that makes it happen.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::Path;

use mutandis_engine::Model;

use super::journal::Instead;
use super::plan::Plan;
use super::{Line, Record, Writer};
use crate::context::{Context, Progress};
use crate::error::{Error, Result};
use crate::method::{Job, find};
use crate::patch::{CORPUS, Laid, Patch, chain};

/// What an operation did.
#[derive(Debug, Default)]
pub struct Done {
    /// Patches that left the stack.
    pub out: Vec<String>,
    /// Patches that were computed anew: the id before, and what is there now.
    pub anew: Vec<(String, Record)>,
    /// Patches that joined, without those that were computed anew.
    pub added: Vec<Record>,
}

/// A patch of the new stack: in a file, or in memory where it was computed anew.
struct Placed<'a> {
    record: Record,
    file: &'a Path,
    patch: Option<Patch>,
}

impl Placed<'_> {
    fn patch(&self) -> Result<Cow<'_, Patch>> {
        Ok(match &self.patch {
            Some(patch) => Cow::Borrowed(patch),
            None => Cow::Owned(super::load(self.file, &self.record.id)?),
        })
    }
}

impl Writer {
    /// Carries a plan out: computes anew what must be, by each patch's own method, settings, facts
    /// and seed, writes files, and then the journal. Whatever fails, nothing has changed.
    ///
    /// # Errors
    /// Where something is to be computed anew and no model is given, or the model is another; where
    /// a file is missing, damaged or cannot be written; where a method fails or is interrupted.
    pub fn carry_out(&mut self, plan: &Plan, with: Option<(&Model, &Context<'_>)>) -> Result<Done> {
        if let Some((model, _)) = with {
            self.ledger.check_model(model)?;
        }
        let total = plan.anew().count();
        if total == 0 && plan.joining().next().is_none() {
            let (at, action, out, head) = (super::now(), plan.action, plan.out.clone(), plan.head.clone());
            self.commit(Line { at, action, out, instead: vec![], added: vec![], head }, |_, _| Ok(()))?;
            return Ok(Done { out: plan.out.clone(), ..Done::default() });
        }
        let mut done = Done { out: plan.out.clone(), ..Done::default() };
        let mut stack: Vec<Placed<'_>> = Vec::with_capacity(plan.items.len());
        // How long the new stack was before each item: one that is there already is left out.
        let mut lengths = Vec::with_capacity(plan.items.len() + 1);
        let mut ids: HashSet<String> = HashSet::new();
        let mut computed = 0;
        let mut beneath = Beneath::default();
        for item in &plan.items {
            lengths.push(stack.len());
            let placed = match item.on {
                None => Placed { record: item.record.clone(), file: &item.file, patch: None },
                Some(on) => {
                    let Some((model, cx)) = with else {
                        return Err(Error::input("patches are to be computed anew, and no model is given"));
                    };
                    cx.check()?;
                    if computed == 0 {
                        cx.progress.begin("computing patches anew", total);
                    }
                    let old = super::load(&item.file, &item.record.id)?;
                    let on = lengths.get(on).copied().unwrap_or(stack.len());
                    beneath.reach(model, stack.get(..on).unwrap_or(&stack))?;
                    let patch = anew(&old, model, &beneath, cx)?;
                    let bytes = patch.to_bytes()?.len() as u64;
                    let first = Some(item.record.edit().to_owned());
                    let record = Record { first, ..Record::of(&patch, bytes)? };
                    computed += 1;
                    cx.progress.step(computed);
                    Placed { record, file: &item.file, patch: Some(patch) }
                }
            };
            if ids.insert(placed.record.id.clone()) {
                if placed.patch.is_some() {
                    done.anew.push((item.record.id.clone(), placed.record.clone()));
                }
                stack.push(placed);
            } else if item.is_here {
                done.out.push(item.record.id.clone());
            }
        }
        if let (Some((_, cx)), true) = (with, total > 0) {
            cx.progress.end();
            cx.check()?;
        }
        self.settle(plan, &stack, done)
    }

    /// Writes the files of a new stack, then the line.
    fn settle(&mut self, plan: &Plan, stack: &[Placed<'_>], mut done: Done) -> Result<Done> {
        let gone: HashSet<&str> = done.out.iter().map(String::as_str).collect();
        let was = self.ledger.stack().iter().map(|r| r.id.as_str()).filter(|id| !gone.contains(id));
        let was: HashSet<&str> = was.collect();
        let old: HashMap<&str, &str> =
            done.anew.iter().map(|(old, now)| (now.id.as_str(), old.as_str())).collect();
        let new: Vec<&Placed<'_>> = stack.iter().filter(|p| !was.contains(p.record.id.as_str())).collect();
        let (mut instead, mut added) = (vec![], vec![]);
        for placed in &new {
            let now = placed.record.clone();
            match old.get(now.id.as_str()) {
                Some(of) if was.contains(of) => instead.push(Instead { of: (*of).to_owned(), now }),
                _ => added.push(now),
            }
        }
        let joined = added.iter().filter(|r| !old.contains_key(r.id.as_str())).cloned().collect();
        let (at, action, out, head) = (super::now(), plan.action, done.out.clone(), plan.head.clone());
        let line = Line { at, action, out, instead, added, head };
        self.commit(line, |ledger, files| {
            new.iter().try_for_each(|placed| ledger.write(&*placed.patch()?, files))
        })?;
        done.added = joined;
        Ok(done)
    }
}

/// The patches that an edit is computed on top of.
#[derive(Default)]
struct Beneath {
    patches: Vec<Patch>,
    laid: Laid,
    /// [`chain`] of them.
    under: Option<String>,
}

impl Beneath {
    /// Brings it to a stack. Plans go up the stack, so that as a rule only some come on top.
    fn reach(&mut self, model: &Model, stack: &[Placed<'_>]) -> Result<()> {
        if stack.len() < self.patches.len() {
            *self = Self::default();
        }
        for placed in stack.iter().skip(self.patches.len()) {
            self.patches.push(placed.patch()?.into_owned());
            self.under = Some(chain(self.under.as_deref(), &placed.record.id));
        }
        self.laid.lay(model, &self.patches)
    }
}

/// The same edit on top of other patches.
fn anew(old: &Patch, model: &Model, beneath: &Beneath, cx: &Context<'_>) -> Result<Patch> {
    let quiet = Quiet(cx.progress);
    let corpus = cx.corpus.clone().filter(|_| old.sources.contains_key(CORPUS));
    let cx = Context { corpus, recipe: None, values: None, progress: &quiet, ..cx.clone() };
    let job = Job {
        model,
        stack: &beneath.laid.overlays(),
        prior: &beneath.patches,
        facts: &old.facts,
        seed: old.seed,
    };
    let patch = find(&old.method)?.edit(&old.config, &job, &cx)?;
    let other = old.sources.iter().find(|(name, hash)| patch.sources.get(*name) != Some(hash));
    if let Some((name, hash)) = other {
        return Err(Error::input_hint(
            format!(
                "the patch of `{}` cannot be computed anew: the {name} that it was made with ({}) is not at hand",
                old.facts.first().map_or("", |f| &f.prompt),
                super::short(hash)
            ),
            "give a corpus with `--corpus FILE`, put another file back where it was; nothing was changed",
        ));
    }
    Ok(Patch { under: beneath.under.clone(), ..patch })
}

/// Tells notes, and nothing of the steps within one patch.
struct Quiet<'a>(&'a dyn Progress);

impl Progress for Quiet<'_> {
    fn begin(&self, _: &str, _: usize) {}
    fn step(&self, _: usize) {}
    fn end(&self) {}
    fn note(&self, text: &str) {
        self.0.note(text);
    }
}
