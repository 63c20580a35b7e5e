//! Reports: what a run has found, for people and for programs.
//!
//! A [`Report`] is the summaries of all cells. It is written as JSON ([`Report::json`]), Markdown,
//! one HTML file that needs nothing else, and in lm-evaluation-harness's layout. The same results
//! give the same bytes.

mod bootstrap;
pub mod escape;
mod html;
mod lm_eval;
mod markdown;
mod metric;
mod plots;
mod protocol;
mod published;
mod records;
mod summary;
mod svg;
mod table;
mod variant;
mod whole;

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;
use serde::Serialize;

pub use published::{Published, PublishedSet};
pub use summary::{
    Ability, Change, EditSuccess, Point, Protocols, Spent, Statistic, Statistics, Stretch, Success, Summary,
};

use crate::results::{CellResult, RunInfo};

/// Version of the report's JSON.
pub const FORMAT: u32 = 2;

/// A run, summed up. Serialised, it is `report.json`.
#[derive(Debug, Clone, Serialize)]
pub struct Report<'a> {
    /// [`FORMAT`].
    pub format: u32,
    /// The tool and the model.
    pub run: &'a RunInfo,
    /// What the cells say of how they were measured, by protocol; several where they differ.
    pub protocols: BTreeMap<String, BTreeSet<String>>,
    /// The cells, in the order of KnowEdit's data sets, then as they were read.
    pub cells: Vec<Summary>,
    /// What was published elsewhere.
    pub published: &'static Published,
    /// What the cells are summaries of.
    #[serde(skip)]
    results: Vec<&'a CellResult>,
}

impl<'a> Report<'a> {
    /// Sums up what [`crate::results::read`] has read.
    pub fn new(run: &'a RunInfo, results: &'a [CellResult]) -> Self {
        let place =
            |cell: &&CellResult| published::KNOWEDIT.of(&cell.info.data.name).map_or(usize::MAX, |(i, _)| i);
        let mut results: Vec<&CellResult> = results.iter().collect();
        results.sort_by_key(place);
        let mut cells: Vec<Summary> = results.par_iter().map(|cell| Summary::new(cell)).collect();
        variant::tell_apart(&mut cells, &results);
        let mut protocols: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (name, words) in results.iter().flat_map(|cell| &cell.info.protocols) {
            protocols.entry(name.clone()).or_default().insert(words.clone());
        }
        Self { format: FORMAT, run, protocols, cells, published: &published::KNOWEDIT, results }
    }

    /// The summaries, as a JSON document: the fields of this struct.
    ///
    /// # Errors
    /// None that input can cause: every number is finite.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }

    /// The KnowEdit table alone, as Markdown; with what others have `published`, where that is wanted.
    pub fn table(&self, published: bool) -> String {
        markdown::main_table(self, published)
    }

    /// All tables, as Markdown.
    pub fn markdown(&self) -> String {
        markdown::document(self)
    }

    /// One HTML page with tables, plots and all records; it loads nothing from anywhere.
    ///
    /// # Errors
    /// As [`Report::json`].
    pub fn html(&self) -> serde_json::Result<String> {
        html::page(self)
    }

    /// As lm-evaluation-harness 0.4 writes its `results_*.json`, one task a cell, and one for each suite
    /// and the perplexity that it measured. The filter says the protocol: `none` is compat, `strict` is
    /// strict; suites and perplexity have none.
    ///
    /// # Errors
    /// As [`Report::json`].
    pub fn lm_eval(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(&lm_eval::document(self)).map(|text| text + "\n")
    }
}
