//! What a caller hands to a pass, checked before anything is computed or appended to a cache.

use std::ops::Range;

use crate::architecture::{Architecture, Role};
use crate::backward::Wants;
use crate::error::{Error, Result};
use crate::forward::{Pass, Sequence, Start, Tape};
use crate::model::Model;
use crate::overlay::Overlay;
use crate::site::{Action, Read, Site, SiteKind};

/// Rows of each sequence, and the position of the first.
pub(crate) type Spans = Vec<(Range<usize>, usize)>;

/// Checks the sequences of a pass and what lies over and before them.
pub(crate) fn sequences(model: &Model, pass: &Pass<'_>, first_layer: usize) -> Result<Spans> {
    let a = model.architecture();
    let mut spans = Vec::with_capacity(pass.sequences.len());
    let mut at = 0;
    for (i, s) in pass.sequences.iter().enumerate() {
        if s.tokens.is_empty() {
            return Err(Error::input_hint(
                format!("sequence {i} of the batch is empty"),
                "give at least one token",
            ));
        }
        let position = s.past.map_or(0, |p| p.len()) + s.cache.as_ref().map_or(0, |c| c.len());
        let end = position + s.tokens.len();
        if end > a.context {
            return Err(Error::input_hint(
                format!("a text of {end} tokens is longer than the model's context of {}", a.context),
                "shorten the text, or ask for fewer new tokens where it is to be continued",
            ));
        }
        kept(a, i, s, first_layer)?;
        for overlay in s.overlays {
            fits(model, overlay)?;
        }
        spans.push((at..at + s.tokens.len(), position));
        at += s.tokens.len();
    }
    Ok(spans)
}

/// Keys and values kept for a sequence are of this model, and whole from the first layer on.
fn kept(a: &Architecture, i: usize, s: &Sequence<'_>, first_layer: usize) -> Result<()> {
    let past = s.past.map(|p| (p.len(), p.width, &p.layers[..]));
    let cache = s.cache.as_deref().map(|c| (c.len(), c.width, &c.layers[..]));
    for (len, width, layers) in past.into_iter().chain(cache) {
        if layers.len() != a.layers || width != a.kv_width() {
            return Err(Error::input_hint(
                format!(
                    "keys and values of {} layers and width {width} before sequence {i} do not fit a \
                     model of {} layers and width {}",
                    layers.len(),
                    a.layers,
                    a.kv_width()
                ),
                "make the cache with `Cache::new` of the same model's architecture",
            ));
        }
        if let Some(l) = (first_layer..a.layers).find(|&l| layers[l].len() != len) {
            return Err(Error::input_hint(
                format!(
                    "layer {l} keeps keys and values of {} tokens before sequence {i}, expected {len}",
                    layers[l].len()
                ),
                "what was kept from a layer upwards serves only passes that start there or above",
            ));
        }
    }
    Ok(())
}

/// Every change of a patch is of a linear map that the model has, in its shape.
fn fits(model: &Model, overlay: &Overlay) -> Result<()> {
    for (id, delta) in overlay.iter() {
        let expected = linear_shape(model, id.role, id.layer)?;
        if delta.shape() != expected {
            return Err(Error::Shape {
                name: format!("change of {:?} of layer {}", id.role, id.layer),
                expected: expected.to_vec(),
                found: delta.shape().to_vec(),
            });
        }
    }
    Ok(())
}

fn linear_shape(model: &Model, role: Role, layer: usize) -> Result<[usize; 2]> {
    if role == Role::Head && layer != 0 {
        return Err(Error::input_hint(
            format!("the head was asked for at layer {layer}"),
            "weights outside the layers are at layer 0",
        ));
    }
    model.linear_shape(role, layer)
}

/// Checks the sites of a pass: layers, rows, and sizes of what is put there.
pub(crate) fn sites(
    model: &Model,
    pass: &Pass<'_>,
    first_layer: usize,
    rows: usize,
    logit_rows: &[usize],
) -> Result<()> {
    let a = model.architecture();
    if let Start::Hidden { layer, rows: hidden } = &pass.start {
        let expected = rows * a.width;
        if hidden.len() != expected || *layer >= a.layers {
            return Err(Error::input(format!(
                "hidden states of {} numbers entering layer {layer} do not fit {expected} numbers and {} layers",
                hidden.len(),
                a.layers
            )));
        }
    }
    let wanted = pass.reads.iter().filter_map(|r| r.rows.as_ref()).flatten();
    let given = pass.interventions.iter().flat_map(|i| &i.rows);
    exist(given.chain(wanted).chain(logit_rows), rows)?;
    let at = pass.interventions.iter().map(|i| i.site).chain(pass.reads.iter().map(|r| r.site));
    for site in at {
        reached(a, site, first_layer..a.layers)?;
    }
    for i in &pass.interventions {
        let expected = i.rows.len() * i.site.kind.width(a);
        if let Action::Replace(v) | Action::Add(v) = &i.action
            && v.len() != expected
        {
            return Err(Error::input(format!(
                "an intervention at {:?} has {} numbers, expected {expected}",
                i.site,
                v.len()
            )));
        }
    }
    Ok(())
}

fn exist<'a>(mut wanted: impl Iterator<Item = &'a usize>, rows: usize) -> Result<()> {
    match wanted.find(|&&r| r >= rows) {
        None => Ok(()),
        Some(row) => Err(Error::input(format!("row {row} does not exist in a pass of {rows} rows"))),
    }
}

fn reached(a: &Architecture, site: Site, layers: Range<usize>) -> Result<()> {
    if !layers.contains(&site.layer) {
        return Err(Error::input(format!(
            "layer {} is not among the layers {} to {} of this pass",
            site.layer,
            layers.start,
            layers.end.saturating_sub(1)
        )));
    }
    if site.kind == SiteKind::FinalNorm && site.layer != a.layers - 1 {
        return Err(Error::input_hint(
            format!("the final norm was asked for at layer {}", site.layer),
            format!("it is at layer {}", a.layers - 1),
        ));
    }
    Ok(())
}

/// Checks what is wanted of a backward pass over `rows` rows.
pub(crate) fn wants(model: &Model, tape: &Tape<'_>, wants: &Wants, rows: usize) -> Result<()> {
    let a = model.architecture();
    let layers = tape.first_layer..tape.first_layer + tape.layers.len();
    let seeds = wants.seeds.iter().map(|(read, _)| read);
    for Read { site, rows: wanted } in seeds.chain(&wants.sites) {
        reached(a, *site, layers.clone())?;
        exist(wanted.iter().flatten(), rows)?;
    }
    for (read, values) in &wants.seeds {
        let expected = read.rows.as_ref().map_or(rows, Vec::len) * read.site.kind.width(a);
        if values.len() != expected {
            return Err(Error::input(format!("a seed has {} numbers, expected {expected}", values.len())));
        }
    }
    for id in &wants.pairs {
        linear_shape(model, id.role, id.layer)?;
        if id.role == Role::Head && wants.logits.is_empty() {
            return Err(Error::input_hint(
                "a gradient at the head is wanted, but none of the logits is given",
                "ask the forward pass for logits, and give their gradient",
            ));
        }
        if id.role != Role::Head && !layers.contains(&id.layer) {
            return Err(Error::input(format!(
                "a gradient at layer {} is outside the recorded layers {} to {}",
                id.layer,
                layers.start,
                layers.end.saturating_sub(1)
            )));
        }
    }
    let expected = tape.logit_rows.len() * a.vocabulary;
    if !wants.logits.is_empty() && wants.logits.len() != expected {
        return Err(Error::input(format!(
            "the gradient of the logits has {} numbers, expected {expected}",
            wants.logits.len()
        )));
    }
    Ok(())
}
