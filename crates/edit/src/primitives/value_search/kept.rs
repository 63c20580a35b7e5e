//! Values kept from one edit to the next: for runs that edit the same facts again and again, each
//! alone.
//!
//! A value does not depend on how it is written, so one search serves all strengths, and all methods
//! that search alike; and facts that will each be edited alone can be searched together.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{Found, Goal, search};
use crate::context::Context;
use crate::error::Result;
use crate::fact::Fact;
use crate::method::Job;
use crate::primitives::request::{Framing, Request};

/// Most values that are kept, some 20 kB each for a model of 135M; those found first go first.
const MOST: usize = 4096;

/// Values found so far, by all that they depend on. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Values {
    ahead: Arc<[Fact]>,
    kept: Arc<Mutex<Kept>>,
    used: Arc<Mutex<Used>>,
}

/// Values with the seconds that the search for each took, and their keys in order of age.
#[derive(Debug, Default)]
struct Kept {
    found: HashMap<blake3::Hash, (Found, f64)>,
    ages: VecDeque<blake3::Hash>,
}

/// Values that were searched or asked for, and the seconds of those that were there already.
#[derive(Debug, Default)]
struct Used {
    keys: HashSet<blake3::Hash>,
    spared: f64,
}

impl Values {
    /// Values of facts each of which will be edited alone, on the same model: the first search
    /// looks ahead to all of them.
    pub fn ahead(facts: &[Fact]) -> Self {
        Self::default().looking_ahead(facts)
    }

    /// The same values, for a run that edits these facts, each alone.
    #[must_use]
    pub fn looking_ahead(&self, facts: &[Fact]) -> Self {
        Self { ahead: facts.into(), kept: Arc::clone(&self.kept), used: Arc::default() }
    }

    /// Seconds that searches of other runs took for values that this one has used.
    pub fn spared_seconds(&self) -> f64 {
        lock(&self.used).spared
    }

    fn has(&self, key: &blake3::Hash) -> bool {
        lock(&self.kept).found.contains_key(key)
    }

    fn keep(&self, keys: Vec<blake3::Hash>, found: Vec<Found>, seconds: f64) {
        lock(&self.used).keys.extend(&keys);
        let mut kept = lock(&self.kept);
        for (key, found) in keys.into_iter().zip(found) {
            kept.ages.push_back(key);
            kept.found.insert(key, (found, seconds));
        }
    }

    /// Gives the values of a job, and makes room for those of the next.
    fn take(&self, keys: &[blake3::Hash]) -> Vec<Found> {
        let (mut kept, mut used) = (lock(&self.kept), lock(&self.used));
        let mut all = Vec::with_capacity(keys.len());
        for key in keys {
            if let Some((found, seconds)) = kept.found.get(key) {
                all.push(found.clone());
                if used.keys.insert(*key) {
                    used.spared += seconds;
                }
            }
        }
        while kept.ages.len() > MOST
            && let Some(oldest) = kept.ages.pop_front()
        {
            kept.found.remove(&oldest);
        }
        all
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The values of a job's requests: those kept in the context, the others searched for. On top of
/// earlier edits all are searched for.
///
/// # Errors
/// As [`search`].
pub fn values(
    job: &Job<'_>,
    framing: &Framing,
    goal: &Goal<'_>,
    requests: &[Request],
    cx: &Context<'_>,
) -> Result<Vec<Found>> {
    let (Some(values), true) = (&cx.values, job.stack.is_empty()) else {
        return search(job.model, job.stack, goal, requests, cx);
    };
    let about = format!("{} {goal:?}", job.model.fingerprint()?);
    let key = |request: &Request| blake3::hash(format!("{about} {request:?}").as_bytes());
    let keys: Vec<blake3::Hash> = requests.iter().map(key).collect();
    if !keys.iter().all(|k| values.has(k)) {
        // A fact that does not fit is told of when it is edited itself.
        let ahead = Job { facts: &values.ahead, ..*job };
        let ahead = framing.each(&ahead, cx)?.into_iter().flatten();
        let mut missing: Vec<(blake3::Hash, Request)> = keys.iter().copied().zip(requests.to_vec()).collect();
        missing.extend(ahead.map(|request| (key(&request), request)));
        let mut seen = HashSet::new();
        missing.retain(|(key, _)| !values.has(key) && seen.insert(*key));
        let (missing_keys, missing): (Vec<_>, Vec<_>) = missing.into_iter().unzip();
        let started = Instant::now();
        let found = search(job.model, job.stack, goal, &missing, cx)?;
        values.keep(missing_keys, found, started.elapsed().as_secs_f64() / missing.len() as f64);
    }
    Ok(values.take(&keys))
}
