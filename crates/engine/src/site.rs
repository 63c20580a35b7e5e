//! Places of a forward pass that can be read, changed, and differentiated.

use std::sync::Arc;

use crate::architecture::Architecture;
use serde::{Deserialize, Serialize};

/// A kind of place within a layer (or before the first, or after the last).
///
/// The order is the order in which a pass comes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SiteKind {
    /// The residual stream entering the layer, `[d]`; at layer 0 the embedding.
    Input,
    /// What the query, key and value projections read, `[d]`; where one norm serves the MLP too
    /// (GPT-J), the MLP's copy is [`Self::MlpIn`].
    AttentionIn,
    /// Queries before their norm and rotation, `[h·k]`.
    Query,
    /// Keys before their norm and rotation, `[kv·k]`.
    Key,
    /// Values, `[kv·k]`.
    Value,
    /// What the attention output projection reads, `[h·k]`.
    AttentionKey,
    /// The attention output projection's result, before any norm of its own, `[d]`.
    AttentionOut,
    /// What the gate and up projections read, `[d]`.
    MlpIn,
    /// What the down projection reads: the MLP's key, `[f]`.
    MlpKey,
    /// The down projection's result, before any norm of its own, `[d]`.
    MlpOut,
    /// The residual stream leaving the layer, `[d]`.
    Residual,
    /// What the head reads, `[d]`; layer `L − 1`.
    FinalNorm,
}

impl SiteKind {
    /// Width of a row, in numbers.
    pub fn width(self, architecture: &Architecture) -> usize {
        match self {
            Self::Query | Self::AttentionKey => architecture.query_width(),
            Self::Key | Self::Value => architecture.kv_width(),
            Self::MlpKey => architecture.mlp_width,
            Self::Input
            | Self::AttentionIn
            | Self::AttentionOut
            | Self::MlpIn
            | Self::MlpOut
            | Self::Residual
            | Self::FinalNorm => architecture.width,
        }
    }
}

/// A place: a kind at a layer, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Site {
    /// Layer.
    pub layer: usize,
    /// Kind.
    pub kind: SiteKind,
}

impl Site {
    /// A site.
    pub fn new(layer: usize, kind: SiteKind) -> Self {
        Self { layer, kind }
    }
}

/// A function that rewrites one row of a site.
pub type RowFn = Arc<dyn Fn(&mut [f32]) + Send + Sync>;

/// What is done to the rows of a site; values are `[rows, width]`.
#[derive(Clone)]
pub enum Action {
    /// The rows become these.
    Replace(Vec<f32>),
    /// These are added to the rows.
    Add(Vec<f32>),
    /// The rows are multiplied.
    Scale(f32),
    /// Anything else, row by row. It has no gradient.
    With(RowFn),
}

impl std::fmt::Debug for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Replace(v) => write!(f, "Replace({} values)", v.len()),
            Self::Add(v) => write!(f, "Add({} values)", v.len()),
            Self::Scale(s) => write!(f, "Scale({s})"),
            Self::With(_) => write!(f, "With(…)"),
        }
    }
}

/// A change of some rows of a site during a pass.
#[derive(Debug, Clone)]
pub struct Intervention {
    /// Where.
    pub site: Site,
    /// Which rows of the pass (all sequences' rows, one after another).
    pub rows: Vec<usize>,
    /// What is done to them.
    pub action: Action,
}

/// Rows of a site to be read, after interventions.
#[derive(Debug, Clone)]
pub struct Read {
    /// Where.
    pub site: Site,
    /// Which rows; all where `None`.
    pub rows: Option<Vec<usize>>,
}
