//! What a ledger tells of a patch without opening it.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::patch::{Patch, WeightChange};

/// A patch in the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`Patch::id`].
    pub id: String,
    /// Method.
    pub method: String,
    /// How many facts it makes true.
    pub facts: usize,
    /// Prompt of the first.
    pub prompt: String,
    /// Subject of the first.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subject: String,
    /// Target of the first.
    pub target: String,
    /// How many weights it changes.
    pub weights: usize,
    /// The largest rank of its changes; absent where one of them is whole, or none is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// ‖ΔW‖ over all weights, Frobenius.
    pub norm: f64,
    /// Bytes of the file.
    pub bytes: u64,
    /// [`Patch::under`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under: Option<String>,
    /// Whether it stands as it is, whatever lies beneath, although it was computed on other patches.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub independent: bool,
    /// The id that the edit had when it first joined a ledger, where it was computed anew since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<String>,
    /// When the patch was made, UTC, RFC 3339.
    pub created: String,
    /// What a patch that knows no facts was read from, where it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

impl Record {
    /// What there is to tell of a patch whose file has so many `bytes`.
    ///
    /// # Errors
    /// As [`Patch::id`].
    pub fn of(patch: &Patch, bytes: u64) -> Result<Self> {
        let fact = patch.facts.first().cloned().unwrap_or_default();
        let ranks = patch.weights.iter().map(|(_, change)| match change {
            WeightChange::LowRank { rank, .. } => Some(*rank),
            WeightChange::Dense { .. } => None,
        });
        Ok(Self {
            id: patch.id()?,
            method: patch.method.clone(),
            facts: patch.facts.len(),
            prompt: fact.prompt,
            subject: fact.subject,
            target: fact.target,
            weights: patch.weights.len(),
            rank: ranks.collect::<Option<Vec<usize>>>().and_then(|all| all.into_iter().max()),
            norm: patch.norms.iter().map(|n| n.delta.powi(2)).sum::<f64>().sqrt(),
            bytes,
            under: patch.under.clone(),
            independent: false,
            first: None,
            created: patch.created.clone(),
            from: patch.origin().map(str::to_owned),
        })
    }

    /// The id that the edit had when it first joined a ledger: it stays when the patch is computed
    /// anew.
    pub fn edit(&self) -> &str {
        self.first.as_deref().unwrap_or(&self.id)
    }

    /// What it was computed on top of and depends on.
    pub(super) fn depends(&self) -> Option<&str> {
        self.under.as_deref().filter(|_| !self.independent)
    }
}
