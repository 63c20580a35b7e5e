//! Values found at one layer, written into several: from facts to a patch in one sweep.
//!
//! For each layer, from the lowest up: keys and what is still missing at the last layer, both with
//! the layers below already written; the layer's share of it, solved for; on to the next layer.
//! The hidden states entering a layer are kept, so that each layer runs twice over the prompts
//! (cut at the lookup token, which nothing after it can reach) and the model never as a whole
//! (methods.md §4b rows 4 and 5).

use std::ops::Range;

use mutandis_engine::{Model, Role, Site, SiteKind, WeightId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ascent::Ascent;
use super::beside;
use super::moments::{self, MomentSpec};
use super::post::Post;
use super::rank_one::mean_row;
use super::request::{Framing, Request, note_thinned};
use super::solver::{Hold, Solution, System};
use super::statistics::Statistics;
use super::strength::Resolved;
use super::value_search::{Ease, Found, Goal, Search, Steps, accepted, values};
use crate::context::Context;
use crate::error::{Error, Result, check_number};
use crate::method::{Job, on_top};
use crate::patch::{Patch, SolveInfo, WeightChange};

/// Settings that all methods share which write several layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
pub struct Settings {
    /// Layers whose MLP down projections are written, from 0; the value is searched for at the
    /// last. Where absent, from an eighth to a quarter of the way up, as the published settings
    /// of 32-layer models have it; where a norm stands behind each MLP (Gemma), one layer, two
    /// thirds of the way up.
    pub layers: Option<Vec<usize>>,
    /// The texts that the value is searched in.
    #[serde(flatten)]
    pub framing: Framing,
    /// The search for the value.
    pub search: Search,
    /// Tokens that the moments are taken over; a few times the key's width where absent.
    pub moment_tokens: Option<usize>,
    /// Added to the moments' diagonal, relative to its mean: what a small sample of text leaves
    /// open.
    pub ridge: f64,
    /// Weight of the keys of earlier edits, which are held like the text's.
    pub past: f64,
    /// Steps taken on each change once it is solved for.
    pub post: Post,
    /// How often facts are searched for and written, each time on top of the last: in a second
    /// round those that the first has not made true (by the search's margin), the others held.
    /// Fewer where nothing is left to do.
    pub rounds: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            layers: None,
            framing: Framing::default(),
            search: Search::default(),
            moment_tokens: None,
            ridge: moments::RIDGE,
            past: 0.0,
            post: Post::default(),
            rounds: 1,
        }
    }
}

/// What of a residual a layer takes over, of those that are left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// One over their number (MEMIT, eq. 20).
    Even,
    /// One over the root of their number (PMET).
    Root,
}

/// What distinguishes one method from another before its system.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// Where δ's are searched for, in the last layer, from the lowest up. What is written is the
    /// last one's value.
    pub sites: &'a [SiteKind],
    /// The same where a norm stands behind the MLP, which scales away whatever is added before
    /// it: only what the layer's own maps give out can be written there.
    pub within: &'a [SiteKind],
    /// How the residual is spread.
    pub share: Share,
    /// A loss other than ROME's.
    pub ease: Option<Ease>,
    /// Whether facts of one subject share a value.
    pub merge: bool,
}

impl Default for Plan<'_> {
    /// MEMIT's (arXiv 2210.07229, §4.3).
    fn default() -> Self {
        Self {
            sites: &[SiteKind::Residual],
            within: &[SiteKind::MlpOut],
            share: Share::Even,
            ease: None,
            merge: false,
        }
    }
}

/// One layer about to be written.
pub struct Layer<'a> {
    /// Its number, from 0.
    pub index: usize,
    /// Width of a key.
    pub f: usize,
    /// Keys of the facts, `[n, f]`.
    pub keys: &'a [f64],
    /// Keys that are held where they are, `[m, f]`, each times the root of its weight: those of
    /// earlier edits, and of other statements about the subjects.
    pub held: &'a [f64],
}

impl Layer<'_> {
    /// The system of this layer's keys.
    pub fn system<'b>(&'b self, hold: Hold<'b>, slack: f64) -> System<'b> {
        System { f: self.f, keys: self.keys, past: self.held, past_weight: 1.0, hold, slack }
    }

    /// X where keys of ordinary text are held by `weight · C + norm · I`.
    ///
    /// # Errors
    /// Where the moments are not usable, or the system is singular.
    pub fn solve_held(
        &self,
        ridge: f64,
        statistics: &Statistics<'_>,
        [weight, norm]: [f64; 2],
        slack: f64,
    ) -> Result<Solution> {
        let moments = statistics.moments(self.index)?;
        // weight·C + norm·I is weight times C with a larger ridge.
        let mean = moments.trace() / self.f as f64;
        let more = if norm == 0.0 { 0.0 } else { norm / (weight * mean) };
        let factor = statistics.factor(self.index, ridge + more)?;
        self.system(Hold::Moments { weight, moments, factor: &factor }, slack).solve()
    }

    /// Notes where a solution belongs, and with which strengths it was found.
    pub fn report<const N: usize>(&self, solution: Solution, strengths: [(&str, Resolved); N]) -> Solution {
        let mut info = solution.info;
        info.layer = Some(self.index);
        info.strengths = strengths.map(|(name, value)| (name.to_owned(), value)).into();
        Solution { info, ..solution }
    }
}

/// A method's own part: X of one layer's keys.
pub type Solve<'a> = &'a dyn Fn(&Layer<'_>, &Statistics<'_>) -> Result<Solution>;

/// Searches values for all facts at once, writes them, and fills the patch.
///
/// # Errors
/// Where a fact or setting does not fit the model, or the computation breaks down.
pub fn edit(
    settings: &Settings,
    plan: &Plan<'_>,
    solve: Solve<'_>,
    job: &Job<'_>,
    cx: &Context<'_>,
    patch: &mut Patch,
) -> Result<()> {
    let model = job.model;
    let layers = settings.layers(model)?;
    let (mut requests, owners) = share(settings.framing.requests(job, cx)?, job, plan.merge, cx)?;
    let Framing { token, beside: beside_weight, .. } = settings.framing;
    let beside =
        if beside_weight > 0.0 { beside::statements(model, job.facts, token, &requests)? } else { vec![] };
    let spec = MomentSpec { tokens: settings.moment_tokens, seed: job.seed, ..MomentSpec::default() };
    let statistics = Statistics::new(model, &layers, &spec, cx)?;

    let last = *layers.last().unwrap_or(&0);
    let kinds = if model.architecture().sandwich_norm { plan.within } else { plan.sites };
    let sites: Vec<Site> = kinds.iter().map(|&kind| Site::new(last, kind)).collect();
    let mut steps = Steps::new(&settings.search, settings.rounds, job.facts.len());
    let d = model.architecture().width;
    for round in 0..settings.rounds {
        let Some(most) = steps.next() else { break };
        let goal = Goal { ease: plan.ease, steps: most, ..Goal::new(&sites, &settings.search) };
        let written = patch.overlay(model)?;
        let job = Job { stack: &on_top(job.stack, &written), ..*job };
        let mut found = values(&job, &settings.framing, &goal, &requests, cx)?;
        steps.used(&found);
        if round == 0 {
            patch.search = owners.iter().map(|&owner| found[owner].info()).collect();
        } else {
            if found.iter().all(Found::is_nothing) {
                break;
            }
            found =
                found.into_iter().zip(&mut requests).map(|(f, request)| f.in_later_round(request)).collect();
            // None was found yet: the next search goes on from there.
            if found.iter().all(Found::is_nothing) {
                continue;
            }
        }
        let kept = accepted(&found, &settings.search, cx)?;
        let order = Order {
            layers: &layers,
            site: kinds.last().copied().unwrap_or(SiteKind::Residual),
            share: plan.share,
            past: settings.past,
            beside: &beside,
            beside_weight,
            post: &settings.post,
            own: &patch.weights,
            requests: kept.iter().map(|&i| &requests[i]).collect(),
            targets: kept.iter().map(|&i| target(&found[i], d)).collect(),
        };
        let solve = |layer: &Layer<'_>| solve(layer, &statistics);
        for change in write(&job, &order, &solve, cx)? {
            let id = WeightId { layer: change.layer, role: Role::MlpOut };
            patch.push(model, id, change.change)?;
            patch.solve.push(change.info);
            patch.keys.insert(change.layer, change.keys.iter().map(|x| *x as f32).collect());
        }
    }
    Ok(())
}

/// Values to be written.
pub struct Order<'a> {
    /// Layers, ascending.
    pub layers: &'a [usize],
    /// Where the values belong, in the last layer.
    pub site: SiteKind,
    /// How what is missing is spread.
    pub share: Share,
    /// Weight of the keys of earlier edits.
    pub past: f64,
    /// Other statements about the subjects, as tokens.
    pub beside: &'a [Vec<u32>],
    /// Weight of their keys.
    pub beside_weight: f64,
    /// Steps taken on each change.
    pub post: &'a Post,
    /// What this edit has changed before.
    pub own: &'a [(WeightId, WeightChange)],
    /// The facts.
    pub requests: Vec<&'a Request>,
    /// The value of each fact, `[d]`.
    pub targets: Vec<Vec<f64>>,
}

/// What was written to one layer.
pub struct Written {
    /// The layer.
    pub layer: usize,
    /// Its change.
    pub change: WeightChange,
    /// Keys of the facts there, `[n, f]`.
    pub keys: Vec<f64>,
    /// About the system.
    pub info: SolveInfo,
}

/// Writes values in one sweep through the layers (MEMIT, algorithm 1). `solve` gives X of one
/// layer's keys.
///
/// # Errors
/// Where the model cannot be run on the requests or a system is singular.
pub fn write(
    job: &Job<'_>,
    order: &Order<'_>,
    solve: &dyn Fn(&Layer<'_>) -> Result<Solution>,
    cx: &Context<'_>,
) -> Result<Vec<Written>> {
    let (d, f) = (job.model.architecture().width, job.model.architecture().mlp_width);
    let (Some(&first), Some(&last)) = (order.layers.first(), order.layers.last()) else {
        return Err(Error::input("there is no layer to write"));
    };
    let site = Site::new(last, order.site);
    let mut sweep = Sweep::new(job, order, first)?;
    let mut out = Vec::with_capacity(order.layers.len());
    cx.progress.begin("writing layers", order.layers.len());
    for (i, &layer) in order.layers.iter().enumerate() {
        cx.check()?;
        let (keys, now) = (sweep.keys()?, sweep.values(site)?);
        let mut held = past(job.prior, layer, order.past, f);
        held.extend(weighed(&sweep.held()?, order.beside_weight));
        let solution = solve(&Layer { index: layer, f, keys: &keys, held: &held })?;
        let left_over = (order.layers.len() - i) as f64;
        let share = match order.share {
            Share::Even => 1.0 / left_over,
            Share::Root => 1.0 / left_over.sqrt(),
        };
        let n = order.targets.len();
        let mut left = vec![0.0f32; d * n];
        for (j, (target, now)) in order.targets.iter().zip(now.chunks_exact(d)).enumerate() {
            for (o, (z, h)) in target.iter().zip(now).enumerate() {
                left[o * n + j] = ((z - f64::from(*h)) * share) as f32;
            }
        }
        let right = solution.right_factor(f);
        let id = WeightId { layer, role: Role::MlpOut };
        let change = WeightChange::LowRank { rank: n, left, right };
        let change = order.post.apply(job.model, job.prior, order.own, id, change)?;
        sweep.ascent.written.push(id, change.delta()?);
        out.push(Written { layer, change, keys, info: solution.info });
        if let Some(&next) = order.layers.get(i + 1) {
            sweep.ascent.advance(next)?;
        }
        cx.progress.step(i + 1);
    }
    cx.progress.end();
    Ok(out)
}

impl Settings {
    /// Checks what no type does.
    ///
    /// # Errors
    /// Names the setting that is out of range, or that the model has no weight for.
    pub fn check(&self, model: &Model) -> Result<()> {
        self.search.check(self.rounds)?;
        self.framing.check()?;
        self.post.check()?;
        check_number("ridge", self.ridge, true, "1 is the default")?;
        check_number(
            "past",
            self.past,
            true,
            "0 lets go of earlier edits, 1 holds them like this one's facts",
        )?;
        self.layers(model).map(drop)
    }

    /// The layers to be written.
    ///
    /// # Errors
    /// Where there is none, one does not exist, or they do not ascend.
    fn layers(&self, model: &Model) -> Result<Vec<usize>> {
        let (count, alone) = (model.architecture().layers, model.architecture().sandwich_norm);
        let usual = if alone { vec![2 * count / 3] } else { (count / 8..=count / 4).collect() };
        let layers = self.layers.clone().unwrap_or(usual);
        if layers.is_empty() || layers.windows(2).any(|w| w[0] >= w[1]) {
            return Err(Error::input_hint(
                format!("`layers` is {layers:?}, expected one or more, ascending"),
                "as in `layers=[4,5,6]`",
            ));
        }
        if alone && layers.len() > 1 {
            return Err(Error::input_hint(
                format!(
                    "`layers` is {layers:?}; in this model a norm stands behind each MLP, so that layers cannot share a change"
                ),
                "name one layer",
            ));
        }
        layers.iter().try_for_each(|&l| model.linear_shape(Role::MlpOut, l).map(drop))?;
        Ok(layers)
    }
}

/// Requests, those of one subject as one where they are to be merged; and which each fact is in.
fn share(
    each: Vec<Request>,
    job: &Job<'_>,
    merge: bool,
    cx: &Context<'_>,
) -> Result<(Vec<Request>, Vec<usize>)> {
    if !merge {
        let owners = (0..each.len()).collect();
        return Ok((each, owners));
    }
    let (mut merged, mut owners): (Vec<(Request, &str)>, Vec<usize>) = (vec![], vec![]);
    let mut subjects = std::collections::HashMap::new();
    for (fact, request) in job.facts.iter().zip(each) {
        let owner = *subjects.entry(fact.subject.to_lowercase()).or_insert(merged.len());
        match merged.get_mut(owner) {
            Some((first, _)) => first.merge(request),
            None => merged.push((request, &fact.subject)),
        }
        owners.push(owner);
    }
    let requests: Vec<Request> =
        merged.into_iter().map(|(request, subject)| request.thin(subject)).collect::<Result<_>>()?;
    note_thinned(&requests, cx);
    Ok((requests, owners))
}

/// The value that a fact's lookup token should have at the site that is written.
fn target(found: &Found, d: usize) -> Vec<f64> {
    let from = found.delta.len() - d;
    found.initial[from..]
        .iter()
        .zip(&found.delta[from..])
        .map(|(h, x)| f64::from(*h) + f64::from(*x))
        .collect()
}

/// Keys that earlier edits wrote to a layer, times the root of their weight.
fn past(prior: &[Patch], layer: usize, weight: f64, f: usize) -> Vec<f64> {
    let kept = prior.iter().filter_map(|p| p.keys.get(&layer)).filter(|k| k.len().is_multiple_of(f));
    if weight == 0.0 { vec![] } else { kept.flat_map(|keys| weighed(keys, weight)).collect() }
}

/// Keys times the root of their weight: what they weigh in a system whose weight is 1.
fn weighed(keys: &[f32], weight: f64) -> Vec<f64> {
    keys.iter().map(|x| f64::from(*x) * weight.sqrt()).collect()
}

/// All prompts, cut at their lookup tokens, on their way up; behind them the statements that are
/// held.
struct Sweep<'a> {
    ascent: Ascent<'a>,
    /// For each request its first prompt, its bare ones, and all.
    of_request: Vec<(usize, usize, usize)>,
    /// Number of prompts of requests.
    own: usize,
    held: usize,
    f: usize,
}

impl<'a> Sweep<'a> {
    fn new(job: &'a Job<'a>, order: &'a Order<'a>, layer: usize) -> Result<Self> {
        let (mut prompts, mut of_request): (Vec<&[u32]>, _) = (vec![], vec![]);
        for request in &order.requests {
            of_request.push((prompts.len(), request.bare, request.prompts.len()));
            prompts.extend(request.prompts.iter().map(|p| &p.at.ids[..=p.at.lookup]));
        }
        let (own, held) = (prompts.len(), order.beside.len());
        prompts.extend(order.beside.iter().map(Vec::as_slice));
        let ascent = Ascent::new(job.model, job.stack, prompts, layer)?;
        Ok(Self { ascent, of_request, own, held, f: job.model.architecture().mlp_width })
    }

    /// Keys of prompts at this layer.
    fn read(&self, prompts: Range<usize>) -> Result<Vec<f32>> {
        let prompts: Vec<usize> = prompts.collect();
        self.ascent.at_last(&prompts, Site::new(self.ascent.layer, SiteKind::MlpKey))
    }

    /// Keys of the requests at this layer, `[n, f]`: the mean of the bare prompts' and the mean of
    /// the others', in equal parts (MEMIT's mean over kinds of context).
    fn keys(&self) -> Result<Vec<f64>> {
        let f = self.f;
        let read = self.read(0..self.own)?;
        let mut keys = Vec::with_capacity(self.of_request.len() * f);
        for &(first, bare, count) in &self.of_request {
            let kinds =
                [&read[first * f..(first + bare) * f], &read[(first + bare) * f..(first + count) * f]];
            let means: Vec<Vec<f32>> =
                kinds.into_iter().filter(|k| !k.is_empty()).map(|k| mean_row(k, f)).collect();
            let mean = |i: usize| means.iter().map(|m| f64::from(m[i])).sum::<f64>() / means.len() as f64;
            keys.extend((0..f).map(mean));
        }
        Ok(keys)
    }

    /// Keys of the statements that are held, `[m, f]`.
    fn held(&self) -> Result<Vec<f32>> {
        self.read(self.own..self.own + self.held)
    }

    /// What stands at a site above in the first bare prompt of each request, `[n, d]`.
    fn values(&self, site: Site) -> Result<Vec<f32>> {
        let bare: Vec<usize> = self.of_request.iter().map(|(first, _, _)| *first).collect();
        self.ascent.at_last(&bare, site)
    }
}
