//! What changed weights read when the facts are asked.

use std::cmp::Reverse;

use mutandis_engine::{Model, Overlay, Pass, Read, Role, Sequence, Site, SiteKind, WeightId};
use rayon::prelude::*;

use super::Touched;
use crate::error::Result;
use crate::fact::continuation;
use crate::patch::{Patch, Stack};

/// Most facts whose texts are run, evenly drawn from all.
const FACTS: usize = 256;

/// Most inputs that a tensor is rounded by: those that its change does most with. More cost time with
/// their square, and a few stand for many, as a change has few directions.
const INPUTS: usize = 256;

/// Facts that are run side by side.
const BATCH: usize = 16;

/// Inputs of tensors.
pub(super) struct Seen {
    /// One per tensor, `[n, in]`; none for tensors that are not stored by rows in blocks.
    pub(super) inputs: Vec<Vec<f32>>,
}

impl Seen {
    /// Runs prompts and targets of the patches' facts, under all patches.
    pub(super) fn new(model: &Model, patches: &[Patch], touched: &[Touched]) -> Result<Self> {
        let facts: Vec<_> = patches.iter().flat_map(|p| &p.facts).collect();
        let mut inputs = vec![vec![]; touched.len()];
        // Formats of single numbers are rounded one by one, and need none.
        let sites: Vec<(usize, Site)> = touched
            .iter()
            .enumerate()
            .filter(|(_, t)| t.weights.iter().all(|(_, layout)| layout.by_rows()))
            .filter_map(|(i, t)| Some((i, read_by(t.weights.first()?.0))))
            .collect();
        if facts.is_empty() || sites.is_empty() {
            return Ok(Self { inputs });
        }
        let mut stack = Stack::default();
        patches.iter().try_for_each(|patch| stack.push(model, patch))?;
        let overlay = stack.overlay()?;
        let overlays: [&Overlay; 1] = [&overlay];
        let tokenizer = model.tokenizer()?;
        let mut texts = vec![];
        for fact in facts.iter().step_by(facts.len().div_ceil(FACTS)) {
            let mut tokens = tokenizer.encode(fact.prompt.trim_end())?.ids;
            tokens.extend(tokenizer.encode_continuation(&continuation(&fact.target))?.ids);
            tokens.truncate(model.architecture().context);
            texts.push(tokens);
        }
        for batch in texts.chunks(BATCH) {
            let sequence = |tokens| Sequence { tokens, overlays: &overlays, ..Sequence::default() };
            let pass = Pass {
                sequences: batch.iter().map(|tokens| sequence(tokens)).collect(),
                reads: sites.iter().map(|(_, site)| Read { site: *site, rows: None }).collect(),
                ..Pass::default()
            };
            for ((i, _), rows) in sites.iter().zip(model.forward(pass)?.reads) {
                inputs[*i].extend(rows);
            }
        }
        for (i, _) in sites {
            inputs[i] = model.install(|| most_changed(&touched[i], &inputs[i]));
        }
        Ok(Self { inputs })
    }
}

/// The rows that the change does most with.
fn most_changed(touched: &Touched, rows: &[f32]) -> Vec<f32> {
    let inn = touched.inn;
    let effect = |x: &[f32]| -> f64 {
        let product = |d: &[f32]| d.iter().zip(x).map(|(d, x)| d * x).sum::<f32>();
        touched.change.chunks_exact(inn).map(|d| f64::from(product(d)).powi(2)).sum()
    };
    let mut ranked: Vec<(usize, f64)> = rows.par_chunks_exact(inn).map(effect).enumerate().collect();
    ranked.sort_by_key(|(row, effect)| (Reverse(effect.to_bits()), *row)); // not negative: in order of size
    ranked.truncate(INPUTS);
    ranked.iter().flat_map(|(row, _)| &rows[row * inn..(row + 1) * inn]).copied().collect()
}

/// The place that a weight reads.
fn read_by(id: WeightId) -> Site {
    let kind = match id.role {
        Role::AttentionOut => SiteKind::AttentionKey,
        Role::MlpGate | Role::MlpUp => SiteKind::MlpIn,
        Role::MlpOut => SiteKind::MlpKey,
        Role::Head => SiteKind::FinalNorm,
        _ => SiteKind::AttentionIn,
    };
    Site::new(id.layer, kind)
}
