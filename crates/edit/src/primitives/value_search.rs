//! The search for a value: a vector δ, added at one site and token of a frozen model, that makes
//! it say the target (ROME, arXiv 2202.05262, eq. 4; methods.md §2.1, P-c).
//!
//! A δ at layer `l`, position `p` changes nothing below `l` nor before `p`: hidden states entering
//! the site and the keys and values of each prompt's prefix are computed once, and every step
//! runs the suffix through the upper layers only. Facts are searched together, a batch at a time;
//! one that is done leaves its batch.

mod kept;
mod prepared;

pub use kept::{Values, values};

use mutandis_engine::{Model, Overlay, Site};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::adam::Adam;
use super::request::{ROWS, Request};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::patch::SearchInfo;
use prepared::Prepared;

/// Settings of the search; `Default` holds ROME's as published for Llama-like models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Search {
    /// Adam's learning rate.
    pub learning_rate: f32,
    /// Most steps.
    pub steps: usize,
    /// Weight of ‖δ‖ / ‖h‖², h the site's value in the bare prompt.
    pub decay: f32,
    /// ‖δ‖ is kept below this many times ‖h‖.
    pub clamp: f32,
    /// Weight of the divergence from the unedited model at the subject itself.
    pub kl: f32,
    /// The search ends when the loss falls below this, in nats.
    pub stop_below: f32,
    /// The search ends so many steps after the target has become the likeliest answer in every
    /// context (ENCORE, arXiv 2502.01636); 0: it does not.
    pub settle: usize,
    /// By how many nats the target must lead over every other answer to count as the likeliest.
    pub margin: f32,
    /// Number of halvings by which δ is shortened once the target is the likeliest answer in every
    /// context, as far as it stays so; 0: it is not.
    pub shorten: usize,
    /// Norm to which the MLP's output with δ is brought when the search is over, and from twice of
    /// which on the fact is refused (NAS); 0: it stays as found.
    pub anchor: f32,
}

impl Default for Search {
    fn default() -> Self {
        Self {
            learning_rate: 0.5,
            steps: 25,
            decay: 1e-3,
            clamp: 4.0,
            kl: 0.0625,
            stop_below: 0.05,
            settle: 0,
            margin: 0.0,
            shorten: 0,
            anchor: 0.0,
        }
    }
}

impl Search {
    /// Checks that the settings can lead anywhere, in so many rounds of searching and writing.
    ///
    /// # Errors
    /// Names the first setting that cannot, with what is expected.
    pub fn check(&self, rounds: usize) -> Result<()> {
        let bad = |name: &str, value: f32, expected: &str| {
            Err(Error::input_hint(
                format!("`search.{name}` is {value}, expected {expected}"),
                "leave it out for the published value",
            ))
        };
        if self.steps == 0 || self.steps > 10_000 {
            return bad("steps", self.steps as f32, "1 to 10000");
        }
        if !(self.learning_rate > 0.0 && self.learning_rate <= 100.0) {
            return bad("learning-rate", self.learning_rate, "more than 0, at most 100");
        }
        if !(self.clamp > 0.0 && self.clamp.is_finite()) {
            return bad("clamp", self.clamp, "more than 0");
        }
        for (name, value) in
            [("decay", self.decay), ("kl", self.kl), ("margin", self.margin), ("anchor", self.anchor)]
        {
            if !(value >= 0.0 && value.is_finite()) {
                return bad(name, value, "0 or more");
            }
        }
        if self.shorten > 24 {
            return bad("shorten", self.shorten as f32, "0 to 24: an f32 has no more halves");
        }
        if !(1..=100).contains(&rounds) {
            return Err(Error::input_hint(
                format!("`rounds` is {rounds}, expected 1 to 100"),
                "1 is published; a second round catches what the first left",
            ));
        }
        if rounds > 1 && self.settle == 0 {
            return Err(Error::input_hint(
                format!("`rounds` is {rounds} and `search.settle` is 0: nothing tells which facts hold"),
                "set `search.settle` to 1 or more",
            ));
        }
        if !self.stop_below.is_finite() {
            return bad("stop-below", self.stop_below, "a finite number");
        }
        Ok(())
    }
}

/// One step's loss and its parts, in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepLoss {
    /// Sum of the parts.
    pub total: f32,
    /// −ln p(target), mean over contexts and target tokens.
    pub nll: f32,
    /// Weighted divergence at the subject.
    pub kl: f32,
    /// Weighted decay.
    pub decay: f32,
    /// Mean over contexts of exp(−nll of the context).
    pub probability: f32,
}

/// PMET's loss (arXiv 2308.08742): as soon as the target is the likeliest answer everywhere, its
/// part weighs less, and the search ends once the divergence is small.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ease {
    /// Weight of the target's part from then on.
    pub weight: f32,
    /// The search ends when the weighted divergence is at most this, in nats.
    pub stop_kl: f32,
}

/// What is searched for, and how.
#[derive(Debug, Clone, Copy)]
pub struct Goal<'a> {
    /// Where a δ is added, all in one layer, from the lowest up: `MlpOut` (ROME), `Residual`
    /// (MEMIT), `AttentionOut` and `MlpOut` (PMET).
    pub sites: &'a [Site],
    /// Settings.
    pub search: &'a Search,
    /// Most steps: those of the settings, or what is left of several rounds of them.
    pub steps: usize,
    /// PMET's loss in place of ROME's.
    pub ease: Option<Ease>,
    /// Whether δ is kept after every step.
    pub keep_trace: bool,
}

impl<'a> Goal<'a> {
    /// ROME's loss, at one site or several.
    pub fn new(sites: &'a [Site], search: &'a Search) -> Self {
        Self { sites, search, steps: search.steps, ease: None, keep_trace: false }
    }
}

/// The steps of a run's rounds. Of several facts each round has its own, as one fact's writing moves
/// the others. The first search for one alone goes on into those of later rounds, which begins
/// nothing anew; a later round mends what the writing moved, and where it cannot, more will not.
///
/// DIFFERENCE: published searches have one round, for which this is the same.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steps {
    each: usize,
    /// What is left of all rounds, where there is one fact.
    left: Option<usize>,
    is_first: bool,
}

impl Steps {
    pub(super) fn new(search: &Search, rounds: usize, facts: usize) -> Self {
        let left = (facts == 1).then_some(search.steps * rounds);
        Self { each: search.steps, left, is_first: true }
    }

    /// Most steps of the next round; nothing where none is left.
    pub(super) fn next(self) -> Option<usize> {
        let most = match self.left {
            Some(left) if self.is_first => left,
            Some(left) => left.min(self.each),
            None => self.each,
        };
        (most > 0).then_some(most)
    }

    /// Takes away what a round has used.
    pub(super) fn used(&mut self, found: &[Found]) {
        let used = found.iter().map(|found| found.losses.len()).max().unwrap_or(0);
        let is_vain = !self.is_first && !found.iter().all(|found| found.holds);
        self.left = self.left.map(|left| if is_vain { 0 } else { left.saturating_sub(used) });
        self.is_first = false;
    }
}

/// What was found for a fact.
#[derive(Debug, Clone)]
pub struct Found {
    /// The sites' values in the (first) bare prompt, `[sites, d]`.
    pub initial: Vec<f32>,
    /// δ `[sites, d]`; the value searched for is `initial + δ`.
    pub delta: Vec<f32>,
    /// The MLP key at the lookup token of every prompt, `[prompts, f]`.
    pub keys: Vec<f32>,
    /// The MLP's output there, `[prompts, d]`.
    pub outputs: Vec<f32>,
    /// Losses of every step.
    pub losses: Vec<StepLoss>,
    /// δ after every step, where the goal asks to keep them.
    pub trace: Vec<Vec<f32>>,
    /// Whether the target leads in every context with δ; known where the search may settle.
    pub holds: bool,
    /// Norm of the MLP's output with δ, before [`Search::anchor`] changed it.
    pub norm: f32,
    /// Whether that was so large that the fact should not be written.
    pub refused: bool,
}

impl Found {
    /// Whether the target was the answer from the start, so that there is nothing to write.
    pub fn is_nothing(&self) -> bool {
        self.delta.iter().all(|x| *x == 0.0)
    }

    /// What a later round writes: nothing where δ does not make the fact true, as pushing on would
    /// only do harm. The next search for it goes on from there, unless that is too far already.
    pub(crate) fn in_later_round(mut self, request: &mut Request) -> Self {
        request.start.clear();
        if self.refused || !self.holds {
            let nothing = vec![0.0; self.delta.len()];
            let far = std::mem::replace(&mut self.delta, nothing);
            if !std::mem::take(&mut self.refused) {
                request.start = far;
            }
        }
        self
    }

    /// What a patch says of the search.
    pub(crate) fn info(&self) -> SearchInfo {
        let last = self.losses.last();
        SearchInfo {
            steps: self.losses.len(),
            loss: last.map_or(f32::NAN, |l| l.total),
            probability: last.map_or(f32::NAN, |l| l.probability),
            norm: self.norm,
            refused: self.refused,
        }
    }
}

/// Which values are written: those that the anchor does not refuse.
///
/// # Errors
/// Where it refuses all.
pub(super) fn accepted(found: &[Found], search: &Search, cx: &Context<'_>) -> Result<Vec<usize>> {
    let kept: Vec<usize> = (0..found.len()).filter(|&i| !found[i].refused).collect();
    if kept.is_empty() {
        return Err(Error::input_hint(
            format!(
                "no value could be written: all have more than twice the norm of `search.anchor`, {}",
                search.anchor
            ),
            "raise it towards the norms that MLPs give out in this model, or leave it out",
        ));
    }
    if kept.len() < found.len() {
        cx.progress.note(&format!(
            "{} of {} values are more than twice the anchor's norm and are not written",
            found.len() - kept.len(),
            found.len()
        ));
    }
    Ok(kept)
}

/// Most facts, and most rows of a step, in one batch.
const BATCH: (usize, usize) = (64, ROWS);

/// Searches the values of many facts, each with its own δ, Adam state and stop.
///
/// # Errors
/// Where the model cannot be run on the requests, the loss is not finite, or the user interrupts.
pub fn search(
    model: &Model,
    stack: &[&Overlay],
    goal: &Goal<'_>,
    requests: &[Request],
    cx: &Context<'_>,
) -> Result<Vec<Found>> {
    goal.search.check(1)?;
    let batches = batches(requests);
    cx.progress.begin("searching values", batches.len() * goal.steps);
    let mut all = Vec::with_capacity(requests.len());
    for (i, range) in batches.into_iter().enumerate() {
        let told = |step: usize| cx.progress.step(i * goal.steps + step);
        all.extend(search_batch(model, stack, goal, &requests[range], cx, &told)?);
        told(goal.steps);
    }
    cx.progress.end();
    Ok(all)
}

/// Cuts requests into runs that fit a batch.
fn batches(requests: &[Request]) -> Vec<std::ops::Range<usize>> {
    let mut ranges: Vec<std::ops::Range<usize>> = vec![];
    let mut rows = 0;
    for (i, request) in requests.iter().enumerate() {
        let more = request.rows();
        match ranges.last_mut() {
            Some(r) if r.len() < BATCH.0 && rows + more <= BATCH.1 => r.end = i + 1,
            _ => {
                ranges.push(i..i + 1);
                rows = 0;
            }
        }
        rows += more;
    }
    ranges
}

fn search_batch(
    model: &Model,
    stack: &[&Overlay],
    goal: &Goal<'_>,
    requests: &[Request],
    cx: &Context<'_>,
    told: &dyn Fn(usize),
) -> Result<Vec<Found>> {
    let settings = goal.search;
    let prepared = Prepared::new(model, stack, goal.sites, settings.kl > 0.0, requests)?;
    let width = goal.sites.len() * model.architecture().width;
    let state = |(i, request): (usize, &Request)| {
        let fresh = State::new(prepared.initial(i, width), goal.sites.len());
        if request.start.len() == fresh.delta.len() {
            State { delta: request.start.clone(), ..fresh }
        } else {
            fresh
        }
    };
    let mut facts: Vec<State> = requests.iter().enumerate().map(state).collect();
    for step in 0..goal.steps {
        cx.check()?;
        let active: Vec<usize> = (0..facts.len()).filter(|&i| !facts[i].done).collect();
        if active.is_empty() {
            break;
        }
        let last = step + 1 == goal.steps;
        let Some(gradients) = prepared.evaluate(&mut facts, &active, goal, last)? else { break };
        let open = active.iter().zip(gradients).filter(|(f, _)| !facts[**f].done).collect::<Vec<_>>();
        for (&f, gradient) in open {
            facts[f].update(&gradient, settings);
            if goal.keep_trace {
                let delta = facts[f].delta.clone();
                facts[f].trace.push(delta);
            }
        }
        told(step + 1);
    }
    shorten(&prepared, &mut facts, goal, cx)?;
    let found = facts.into_iter().enumerate().map(|(i, f)| Found {
        initial: f.initial,
        delta: f.delta,
        keys: prepared.of(i, &prepared.keys),
        outputs: prepared.of(i, &prepared.outputs),
        losses: f.losses,
        trace: f.trace,
        holds: f.everywhere,
        norm: 0.0,
        refused: false,
    });
    let d = model.architecture().width;
    Ok(found.map(|f| anchored(f, settings.anchor, d)).collect())
}

/// Shortens δ of the facts whose target is the likeliest answer in every context, by bisection, as
/// far as it stays so: what a step overshoots changes other answers and nothing else.
///
/// DIFFERENCE: not published; [`Search::shorten`] is 0 by default.
fn shorten(prepared: &Prepared<'_>, facts: &mut [State], goal: &Goal<'_>, cx: &Context<'_>) -> Result<()> {
    if goal.search.shorten == 0 {
        return Ok(());
    }
    let is_longer = |state: &State| state.everywhere && state.delta.iter().any(|x| *x != 0.0);
    let settled: Vec<usize> = (0..facts.len()).filter(|&i| is_longer(&facts[i])).collect();
    if settled.is_empty() {
        return Ok(());
    }
    let whole: Vec<Vec<f32>> = settled.iter().map(|&i| facts[i].delta.clone()).collect();
    // For each fact the longest part of δ that is too short, the shortest that is not, its loss.
    let mut bounds: Vec<(f32, f32, Option<StepLoss>)> =
        settled.iter().map(|&i| (0.0, 1.0, facts[i].losses.last().copied())).collect();
    let steps: Vec<usize> = settled.iter().map(|&i| facts[i].losses.len()).collect();
    let set = |state: &mut State, whole: &[f32], part: f32| {
        state.delta.iter_mut().zip(whole).for_each(|(x, w)| *x = part * w);
    };
    for _ in 0..goal.search.shorten {
        cx.check()?;
        for ((&i, whole), (low, high, _)) in settled.iter().zip(&whole).zip(&bounds) {
            set(&mut facts[i], whole, f32::midpoint(*low, *high));
        }
        prepared.evaluate(facts, &settled, goal, true)?;
        for (&i, (low, high, loss)) in settled.iter().zip(&mut bounds) {
            let middle = f32::midpoint(*low, *high);
            if facts[i].everywhere {
                (*high, *loss) = (middle, facts[i].losses.last().copied());
            } else {
                *low = middle;
            }
        }
    }
    for (((&i, whole), (_, high, loss)), steps) in settled.iter().zip(&whole).zip(bounds).zip(steps) {
        set(&mut facts[i], whole, high);
        facts[i].everywhere = true;
        facts[i].losses.truncate(steps);
        facts[i].losses.extend(loss);
    }
    Ok(())
}

/// Brings the MLP's output with δ to the anchor's norm.
///
/// DIFFERENCE from the released code, which measures the anchor anew for each model: it is a
/// setting here, found once for a model and kept in its recipe.
fn anchored(mut found: Found, anchor: f32, d: usize) -> Found {
    let is_nothing = found.is_nothing();
    // The MLP's site is the last one.
    let from = found.delta.len() - d;
    let delta = &mut found.delta[from..];
    found.norm = norm(&delta.iter().zip(&found.outputs).map(|(x, out)| x + out).collect::<Vec<_>>());
    if anchor > 0.0 && found.norm > 0.0 && !is_nothing {
        found.refused = found.norm > 2.0 * anchor;
        for (x, out) in delta.iter_mut().zip(&found.outputs) {
            *x = (*x + out) * (anchor / found.norm) - out;
        }
    }
    found
}

/// δ of one fact, and what its optimiser remembers.
struct State {
    initial: Vec<f32>,
    delta: Vec<f32>,
    /// Number of sites.
    sites: usize,
    adam: Adam,
    log_reference: Option<Vec<f32>>,
    losses: Vec<StepLoss>,
    trace: Vec<Vec<f32>>,
    /// Whether the target was the likeliest answer in every context at the last evaluation.
    everywhere: bool,
    /// Evaluations since the target became the likeliest answer everywhere.
    settled: Option<usize>,
    done: bool,
}

impl State {
    fn new(initial: Vec<f32>, sites: usize) -> Self {
        Self {
            delta: vec![0.0; initial.len()],
            adam: Adam::new(initial.len()),
            initial,
            sites,
            log_reference: None,
            losses: vec![],
            trace: vec![],
            everywhere: false,
            settled: None,
            done: false,
        }
    }

    /// A step of Adam, then the clamp of each site.
    fn update(&mut self, gradient: &[f32], settings: &Search) {
        self.adam.step(&mut self.delta, gradient, settings.learning_rate);
        let d = self.delta.len() / self.sites;
        for (delta, initial) in self.delta.chunks_exact_mut(d).zip(self.initial.chunks_exact(d)) {
            let (size, limit) = (norm(delta), settings.clamp * norm(initial));
            if size > limit {
                let factor = limit / size;
                delta.iter_mut().for_each(|x| *x *= factor);
            }
        }
    }

    /// Σ over sites of ‖δ‖ / ‖h‖².
    fn size(&self) -> f32 {
        let d = self.delta.len() / self.sites;
        let each = self.delta.chunks_exact(d).zip(self.initial.chunks_exact(d));
        each.map(|(delta, initial)| norm(delta) / norm(initial).powi(2)).sum()
    }

    /// Adds the gradient of `weight · size()`.
    fn add_decay(&self, weight: f32, gradient: &mut [f32]) {
        let d = self.delta.len() / self.sites;
        let parts = self.delta.chunks_exact(d).zip(self.initial.chunks_exact(d));
        for (sum, (delta, initial)) in gradient.chunks_exact_mut(d).zip(parts) {
            let size = norm(delta);
            if size > 0.0 {
                let factor = weight / (size * norm(initial).powi(2));
                sum.iter_mut().zip(delta).for_each(|(s, x)| *s += factor * x);
            }
        }
    }

    /// Notes whether the target is the likeliest answer everywhere, and whether that has lasted.
    fn settles(&mut self, everywhere: bool, settle: usize) -> bool {
        self.everywhere = everywhere;
        if everywhere && self.adam.steps == 0 && settle > 0 {
            // It is the answer as it is: nothing is to be changed.
            return true;
        }
        self.settled = match self.settled {
            Some(steps) => Some(steps + 1),
            None => everywhere.then_some(0),
        };
        settle > 0 && self.settled.is_some_and(|steps| steps >= settle)
    }
}

/// The loss of one fact as a function of δ, prepared once: for checks and measurements.
pub struct Objective<'a> {
    prepared: Prepared<'a>,
    sites: &'a [Site],
    state: State,
}

impl<'a> Objective<'a> {
    /// Does all that no δ changes, the unedited distribution at the subject included.
    ///
    /// # Errors
    /// As [`search`]; where `request` is not one request.
    pub fn new(
        model: &'a Model,
        stack: &'a [&'a Overlay],
        sites: &'a [Site],
        request: &'a [Request],
    ) -> Result<Self> {
        if request.len() != 1 {
            return Err(Error::input(format!("an objective is about one fact, not {}", request.len())));
        }
        let prepared = Prepared::new(model, stack, sites, true, request)?;
        let width = sites.len() * model.architecture().width;
        let mut states = [State::new(prepared.initial(0, width), sites.len())];
        prepared.evaluate(&mut states, &[0], &Goal::new(sites, &Search::default()), true)?;
        let [state] = states;
        Ok(Self { prepared, sites, state })
    }

    /// The sites' values in the bare prompt, `[sites, d]`.
    pub fn initial(&self) -> &[f32] {
        &self.state.initial
    }

    /// Loss at `delta [sites, d]`, and its gradient.
    ///
    /// # Errors
    /// As [`search`].
    pub fn at(&mut self, delta: &[f32], settings: &Search) -> Result<(StepLoss, Vec<f32>)> {
        self.state.delta.copy_from_slice(delta);
        self.state.done = false;
        // The gradient is wanted however small the loss is.
        let settings = Search { stop_below: f32::NEG_INFINITY, settle: 0, ..settings.clone() };
        let state = std::slice::from_mut(&mut self.state);
        let gradient = self.prepared.evaluate(state, &[0], &Goal::new(self.sites, &settings), false)?;
        let gradient = gradient.and_then(|mut g| g.pop()).unwrap_or_default();
        let loss = self.state.losses.last().copied();
        loss.map(|l| (l, gradient)).ok_or_else(|| Error::Numerical { what: "nothing was evaluated".into() })
    }
}

fn norm(x: &[f32]) -> f32 {
    x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32
}
