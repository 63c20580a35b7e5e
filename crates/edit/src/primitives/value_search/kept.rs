//! Values kept from one edit to the next: for runs that edit the same facts again and again, each
//! alone.
//!
//! A value does not depend on how it is written, so one search serves all strengths; and facts
//! that will each be edited alone can be searched together.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Found, Goal, search};
use crate::context::Context;
use crate::error::Result;
use crate::fact::Fact;
use crate::method::Job;
use crate::primitives::request::{Framing, Request};

/// Values found so far, by all that they depend on. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Values(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    ahead: Vec<Fact>,
    found: Mutex<HashMap<blake3::Hash, Found>>,
}

impl Values {
    /// Values of facts each of which will be edited alone, on the same model: the first search
    /// looks ahead to all of them.
    pub fn ahead(facts: &[Fact]) -> Self {
        Self(Arc::new(Inner { ahead: facts.to_vec(), found: Mutex::default() }))
    }

    fn get(&self, key: &blake3::Hash) -> Option<Found> {
        self.0.found.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn keep(&self, keys: Vec<blake3::Hash>, found: Vec<Found>) {
        self.0.found.lock().unwrap_or_else(PoisonError::into_inner).extend(keys.into_iter().zip(found));
    }
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
    if keys.iter().any(|k| values.get(k).is_none()) {
        // A fact that does not fit is told of when it is edited itself.
        let ahead = Job { facts: &values.0.ahead, ..*job };
        let ahead = framing.each(&ahead, cx)?.into_iter().flatten();
        let mut missing: Vec<(blake3::Hash, Request)> = keys.iter().copied().zip(requests.to_vec()).collect();
        missing.extend(ahead.map(|request| (key(&request), request)));
        let mut seen = HashSet::new();
        missing.retain(|(key, _)| values.get(key).is_none() && seen.insert(*key));
        let (missing_keys, missing): (Vec<_>, Vec<_>) = missing.into_iter().unzip();
        let found = search(job.model, job.stack, goal, &missing, cx)?;
        values.keep(missing_keys, found);
    }
    Ok(keys.iter().filter_map(|k| values.get(k)).collect())
}
