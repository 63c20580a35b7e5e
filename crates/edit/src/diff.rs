//! What two stacks of patches differ in: facts, and how far each weight is moved.

use std::collections::{BTreeMap, HashMap, HashSet};

use mutandis_engine::WeightId;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::fact::Fact;
use crate::ledger::short;
use crate::patch::{Patch, Stack};

/// A prompt that both answer, each with a target of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// The prompt.
    pub prompt: String,
    /// The first one's target.
    pub a: String,
    /// The other one's.
    pub b: String,
}

/// A weight that one of them changes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Moved {
    /// Which.
    #[serde(flatten)]
    pub weight: WeightId,
    /// ‖ΔW‖ of the first, Frobenius; 0 where it leaves the weight alone.
    pub a: f64,
    /// That of the other.
    pub b: f64,
    /// ‖ΔW − ΔW'‖ of both.
    pub difference: f64,
}

/// What two stacks differ in.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Diff {
    /// Ids of patches in the first alone.
    pub patches_a: Vec<String>,
    /// Ids of patches in the other alone.
    pub patches_b: Vec<String>,
    /// How many patches are in both.
    pub shared: usize,
    /// Facts of the first whose prompts the other does not have.
    pub facts_a: Vec<Fact>,
    /// Facts of the other whose prompts the first does not have.
    pub facts_b: Vec<Fact>,
    /// Prompts whose targets differ.
    pub changed: Vec<Changed>,
    /// All weights that are changed, with how far.
    pub weights: Vec<Moved>,
}

impl Diff {
    /// Compares two stacks. Of several facts with one prompt the last counts.
    ///
    /// # Errors
    /// Where they belong to different bases.
    pub fn of(a: &[Patch], b: &[Patch]) -> Result<Self> {
        let bases: Vec<&str> =
            [a.first(), b.first()].iter().flatten().map(|p| &*p.base.fingerprint).collect();
        if let [one, other] = bases[..]
            && one != other
        {
            return Err(Error::input_hint(
                format!("they belong to different bases, {} and {}", short(one), short(other)),
                "compare patches of one model",
            ));
        }
        let ids = |patches: &[Patch]| patches.iter().map(Patch::id).collect::<Result<Vec<String>>>();
        let (ids_a, ids_b) = (ids(a)?, ids(b)?);
        let only = |own: &[String], other: &[String]| -> Vec<String> {
            let other: HashSet<&String> = other.iter().collect();
            own.iter().filter(|id| !other.contains(id)).cloned().collect()
        };
        let mut diff =
            Self { patches_a: only(&ids_a, &ids_b), patches_b: only(&ids_b, &ids_a), ..Self::default() };
        diff.shared = ids_a.len() - diff.patches_a.len();

        let (of_a, of_b) = (last(a), last(b));
        for fact in of_a.values() {
            match of_b.get(fact.prompt.as_str()) {
                None => diff.facts_a.push((*fact).clone()),
                Some(other) if other.target != fact.target => diff.changed.push(Changed {
                    prompt: fact.prompt.clone(),
                    a: fact.target.clone(),
                    b: other.target.clone(),
                }),
                Some(_) => (),
            }
        }
        let is_new = |fact: &&&Fact| !of_a.contains_key(fact.prompt.as_str());
        diff.facts_b = of_b.values().filter(is_new).map(|fact| (*fact).clone()).collect();
        diff.weights = moved(a, b)?;
        Ok(diff)
    }

    /// Whether they are the same patches and move no weight differently.
    pub fn is_empty(&self) -> bool {
        self.patches_a.is_empty()
            && self.patches_b.is_empty()
            && self.weights.iter().all(|w| w.difference == 0.0)
    }
}

/// For each prompt the last fact.
fn last(patches: &[Patch]) -> BTreeMap<&str, &Fact> {
    patches.iter().flat_map(|p| &p.facts).map(|fact| (fact.prompt.as_str(), fact)).collect()
}

/// How far both move each weight.
fn moved(a: &[Patch], b: &[Patch]) -> Result<Vec<Moved>> {
    let sum = |patches: &[Patch]| {
        let mut stack = Stack::default();
        patches.iter().try_for_each(|patch| stack.add(patch)).map(|()| stack)
    };
    let (a, b) = (sum(a)?, sum(b)?);
    let (a, b): (HashMap<_, _>, HashMap<_, _>) = (a.sums().collect(), b.sums().collect());
    let mut weights: Vec<WeightId> = a.keys().chain(b.keys()).copied().collect();
    weights.sort_unstable();
    weights.dedup();
    let all = weights.into_iter().map(|weight| {
        let of = |sums: &HashMap<WeightId, &[f32]>, i: usize| {
            f64::from(sums.get(&weight).and_then(|sum| sum.get(i)).copied().unwrap_or_default())
        };
        let size =
            [&a, &b].iter().filter_map(|sums| sums.get(&weight)).map(|sum| sum.len()).max().unwrap_or(0);
        let norm = |at: &dyn Fn(usize) -> f64| (0..size).map(at).map(|x| x * x).sum::<f64>().sqrt();
        Moved {
            weight,
            a: norm(&|i| of(&a, i)),
            b: norm(&|i| of(&b, i)),
            difference: norm(&|i| of(&a, i) - of(&b, i)),
        }
    });
    Ok(all.collect())
}
