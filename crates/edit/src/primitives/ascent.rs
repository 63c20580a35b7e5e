//! Prompts on their way up through the layers of a model that is being written.
//!
//! The hidden states entering a layer are kept, so that going on from there runs no layer twice
//! and the model never as a whole (methods.md §4b row 5).

use mutandis_engine::{LogitRows, Model, Overlay, Pass, Read, Sequence, Site, SiteKind, Start};

use crate::error::Result;
use crate::method::on_top;

/// Rows of a pass, at most: what its activations take in memory.
const ROWS: usize = 4096;

/// Prompts, each as far as the token at which it is read, and how high they are.
pub(super) struct Ascent<'a> {
    model: &'a Model,
    stack: &'a [&'a Overlay],
    /// What was written so far.
    pub(super) written: Overlay,
    prompts: Vec<&'a [u32]>,
    /// Hidden states of each prompt entering `layer`, `[tokens, d]`.
    hidden: Vec<Vec<f32>>,
    /// Where the prompts are.
    pub(super) layer: usize,
}

impl<'a> Ascent<'a> {
    /// Brings prompts, each of one token or more, to where `layer` begins.
    ///
    /// # Errors
    /// Where the model cannot be run on them.
    pub(super) fn new(
        model: &'a Model,
        stack: &'a [&'a Overlay],
        prompts: Vec<&'a [u32]>,
        layer: usize,
    ) -> Result<Self> {
        let mut ascent =
            Self { model, stack, written: Overlay::default(), prompts, hidden: vec![], layer: 0 };
        if layer > 0 {
            ascent.advance(layer)?;
        }
        Ok(ascent)
    }

    /// What stands at a site of this layer or above, at the last token of some prompts, one after
    /// another, with what was written.
    ///
    /// # Errors
    /// Where the model cannot be run on them.
    pub(super) fn at_last(&self, prompts: &[usize], site: Site) -> Result<Vec<f32>> {
        Ok(self.read(prompts, site, false)?.concat())
    }

    /// Hidden states of each prompt entering the layer, `[tokens, d]`.
    pub(super) fn hidden(&self) -> &[Vec<f32>] {
        &self.hidden
    }

    /// Where a pass over some prompts begins.
    pub(super) fn start(&self, prompts: &[usize]) -> Start {
        if self.layer == 0 {
            return Start::Tokens;
        }
        let rows = prompts.iter().flat_map(|&p| &self.hidden[p]).copied().collect();
        Start::Hidden { layer: self.layer, rows }
    }

    /// Up to where a higher layer begins, with what was written.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(super) fn advance(&mut self, layer: usize) -> Result<()> {
        let all: Vec<usize> = (0..self.prompts.len()).collect();
        self.hidden = self.read(&all, Site::new(layer - 1, SiteKind::Residual), true)?;
        self.layer = layer;
        Ok(())
    }

    /// Runs some prompts from where they are and reads one site, of their last tokens or all.
    fn read(&self, prompts: &[usize], site: Site, all: bool) -> Result<Vec<Vec<f32>>> {
        let overlays = on_top(self.stack, &self.written);
        let width = site.kind.width(self.model.architecture());
        let mut out = Vec::with_capacity(prompts.len());
        let mut rest = prompts;
        while !rest.is_empty() {
            let mut rows = 0;
            let fits = |p: &&usize| {
                rows += self.prompts[**p].len();
                rows <= ROWS
            };
            let (now, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
            rest = later;
            let start = self.start(now);
            let sequences = now
                .iter()
                .map(|&p| Sequence { tokens: self.prompts[p], overlays: &overlays, ..Default::default() })
                .collect();
            let mut at = 0;
            let ends: Vec<usize> = now
                .iter()
                .map(|&p| {
                    at += self.prompts[p].len();
                    at
                })
                .collect();
            let last = || Some(ends.iter().map(|e| e - 1).collect());
            let reads = vec![Read { site, rows: if all { None } else { last() } }];
            let pass = Pass { sequences, start, reads, logits: LogitRows::None, ..Default::default() };
            let read = self.model.forward(pass)?.reads.pop().unwrap_or_default();
            let mut from = 0;
            for end in ends {
                let to = if all { end } else { from + 1 };
                out.push(read[from * width..to * width].to_vec());
                from = to;
            }
        }
        Ok(out)
    }
}
