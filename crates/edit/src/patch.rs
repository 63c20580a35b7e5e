//! The patch: an edit as a value and as a file.
//!
//! `NAME.patch.safetensors`: the tensors are the changes, `__metadata__.mutandis` is one JSON
//! document with everything else, `__metadata__.digest` a hash of both. A patch knows the base it
//! was made for and refuses every other.

mod change;
mod file;
mod laid;
mod sketch;

use std::collections::BTreeMap;
use std::path::Path;

use mutandis_engine::{Model, Overlay, WeightId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::fact::Fact;
use crate::method::Family;
use crate::primitives::strength::Resolved;

pub use change::{Stack, WeightChange, norms};
pub use laid::Laid;
pub use sketch::{SKETCH, difference};

/// Version of the file format that is written.
pub const FORMAT: u32 = 1;

/// The text that moments were taken over, where the model did not write it itself.
pub const CORPUS: &str = "corpus";

/// A trained editor.
pub const EDITOR: &str = "editor";

/// A linear system: what it held, and what it cost in exactness.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SolveInfo {
    /// Added to the diagonal, relative to its mean.
    pub jitter: f64,
    /// ‖A x − b‖ / ‖b‖.
    pub residual: f64,
    /// Condition number, estimated from below; 0 where it was not.
    #[serde(default)]
    pub condition: f64,
    /// Which form was solved: "identity", "cholesky", or a form of the normal equation.
    pub form: String,
    /// The layer whose weight it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
    /// Strengths with which other keys were held, by the name of the setting, relative and
    /// absolute.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub strengths: BTreeMap<String, Resolved>,
    /// Dimension of the subspace that the change stays in, of the width of a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub null_space: Option<usize>,
}

/// How much a weight moved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Norms {
    /// Which weight.
    pub weight: WeightId,
    /// ‖ΔW‖, Frobenius.
    pub delta: f64,
    /// ‖W‖, Frobenius.
    pub base: f64,
}

/// How the search for one fact's value went.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SearchInfo {
    /// Steps taken.
    pub steps: usize,
    /// Last loss, in nats.
    pub loss: f32,
    /// Last mean probability of the target.
    pub probability: f32,
    /// Norm of the MLP's output with the value found, before any anchor.
    #[serde(default)]
    pub norm: f32,
    /// Whether the value was too large to be written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
}

/// The base that a patch belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Hash of the weights, hexadecimal.
    pub fingerprint: String,
    /// Architecture family, for messages.
    pub family: String,
    /// Number of layers, for messages.
    pub layers: usize,
}

impl Base {
    /// Checks that this is the base.
    ///
    /// # Errors
    /// Where it is not, with what to do.
    pub fn check(&self, model: &Model) -> Result<()> {
        let found = model.fingerprint()?;
        if found == self.fingerprint {
            return Ok(());
        }
        let short = |s: &str| s.chars().take(12).collect::<String>();
        Err(Error::input_hint(
            format!(
                "the patch was made for another base: it expects {} ({}, {} layers), the model is {}",
                short(&self.fingerprint),
                self.family,
                self.layers,
                short(found)
            ),
            "give the model it was made for with `--model`, or make the edit again on this one",
        ))
    }
}

/// An edit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Patch {
    /// Version of the format.
    pub format: u32,
    /// The base it was made for.
    pub base: Base,
    /// Method.
    pub method: String,
    /// Family of the method.
    pub family: Family,
    /// All settings, as resolved.
    pub config: Value,
    /// The facts it makes true.
    pub facts: Vec<Fact>,
    /// Seed.
    pub seed: u64,
    /// Text put before every prompt, where the patch is one (ICE).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// How far weights moved.
    pub norms: Vec<Norms>,
    /// Numerical compromises.
    pub solve: Vec<SolveInfo>,
    /// How the searches went, one per fact.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<SearchInfo>,
    /// When it was made, UTC, RFC 3339.
    pub created: String,
    /// What made it, and with which instruction set.
    pub tool: String,
    /// [`chain`] of the patches that it was computed on top of; `None` where it was computed on the
    /// base alone. Whoever knows those patches' ids sets it: methods do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under: Option<String>,
    /// What it was made with besides the model, by what it is ([`CORPUS`], [`EDITOR`]): the hash of
    /// each file.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, String>,
    /// Changes of weights.
    #[serde(skip)]
    pub weights: Vec<(WeightId, WeightChange)>,
    /// Keys of the facts by layer, `[n, f]`: what later edits need in order not to undo this one.
    #[serde(skip)]
    pub keys: BTreeMap<usize, Vec<f32>>,
    /// What the method goes on from in later edits, by name.
    #[serde(skip)]
    pub state: BTreeMap<String, Vec<f32>>,
}

impl Patch {
    /// A patch without changes yet.
    ///
    /// # Errors
    /// Where the base cannot be hashed.
    pub fn new(
        model: &Model,
        method: &str,
        family: Family,
        config: Value,
        facts: &[Fact],
        seed: u64,
    ) -> Result<Self> {
        let a = model.architecture();
        let name = serde_json::to_value(a.family).ok().and_then(|v| v.as_str().map(str::to_owned));
        Ok(Self {
            format: FORMAT,
            base: Base {
                fingerprint: model.fingerprint()?.to_owned(),
                family: name.unwrap_or_default(),
                layers: a.layers,
            },
            method: method.to_owned(),
            family,
            config,
            facts: facts.to_vec(),
            seed,
            prefix: None,
            norms: vec![],
            solve: vec![],
            search: vec![],
            created: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            tool: tool(model),
            under: None,
            sources: BTreeMap::new(),
            weights: vec![],
            keys: BTreeMap::new(),
            state: BTreeMap::new(),
        })
    }

    /// A patch that was not computed here but read from something else, which `config` tells of: no
    /// facts are known of it.
    ///
    /// # Errors
    /// Where the base cannot be hashed.
    pub fn imported(model: &Model, config: Value) -> Result<Self> {
        Self::new(model, "import", Family::Mastery, config, &[], 0)
    }

    /// What it was read from, where it is [`Self::imported`] and says so: `peft`, `difference`…
    pub fn origin(&self) -> Option<&str> {
        if self.facts.is_empty() { self.config.get("from").and_then(Value::as_str) } else { None }
    }

    /// Adds a change of a weight to what the patch changes of it already, in the form that takes
    /// least room, and notes how far that moves it.
    ///
    /// # Errors
    /// Where the weight does not exist, has another shape, or the change is not finite.
    pub fn push(&mut self, model: &Model, id: WeightId, change: WeightChange) -> Result<()> {
        let shape = model.linear_shape(id.role, id.layer)?;
        let delta = change.delta()?;
        if delta.shape() != shape {
            return Err(Error::input(format!(
                "a change of {id} has shape {:?}, expected {shape:?}",
                delta.shape()
            )));
        }
        if let Some(at) = self.weights.iter().position(|(weight, _)| *weight == id) {
            let whole = self.weights[at].1.clone().plus(&change);
            whole.delta()?;
            self.norms[at].delta = whole.norm();
            self.weights[at].1 = whole;
            return Ok(());
        }
        let base = change::norm_of(model, id)?;
        let change = change.smaller();
        self.norms.push(Norms { weight: id, delta: change.norm(), base });
        self.weights.push((id, change));
        Ok(())
    }

    /// Notes a file that the patch is made with.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub(crate) fn source(&mut self, name: &str, path: &Path) -> Result<()> {
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        self.sources.insert(name.to_owned(), blake3::hash(&bytes).to_hex().to_string());
        Ok(())
    }

    /// What is said of a change that is larger than the weight it is of: no model stays itself under it.
    pub(crate) fn overgrown(&self) -> Option<String> {
        let times = |norms: &Norms| norms.delta / norms.base;
        let worst = self.norms.iter().max_by(|a, b| times(a).total_cmp(&times(b)))?;
        let many = times(worst);
        (many > 1.0).then(|| {
            let many = if many < 1000.0 { format!("{many:.1}") } else { format!("{many:.1e}") };
            format!(
                "the change of {} is {many} times as large as the weight: the model is hardly itself any more (a \
                 smaller rate, step or strength may do)",
                worst.weight
            )
        })
    }

    /// What had to be added to linear systems so that they could be solved, in words.
    pub(crate) fn jitter(&self) -> Option<String> {
        let all = self.solve.iter().map(|s| s.jitter).filter(|j| *j > 0.0);
        let (count, most) = all.fold((0, 0.0), |(n, most): (usize, f64), j| (n + 1, most.max(j)));
        (count > 0).then(|| {
            format!(
                "{count} of {} systems were singular: up to {most:.0e} of the mean of the diagonal was added to it",
                self.solve.len()
            )
        })
    }

    /// Checks that the patch belongs to this base.
    ///
    /// # Errors
    /// Where it does not, with what to do.
    pub fn check_base(&self, model: &Model) -> Result<()> {
        self.base.check(model)
    }

    /// Checks that the patch belongs to this base, and that what it changes has the base's shapes.
    ///
    /// # Errors
    /// Where it does not.
    pub fn check(&self, model: &Model) -> Result<()> {
        self.check_base(model)?;
        self.weights.iter().try_for_each(|(id, change)| Self::check_shape(model, *id, change).map(drop))
    }

    /// Checks that a change has the shape of its weight, `[out, in]`, which it gives.
    fn check_shape(model: &Model, id: WeightId, change: &WeightChange) -> Result<[usize; 2]> {
        let (shape, found) = (model.linear_shape(id.role, id.layer)?, change.shape());
        if found != shape {
            return Err(Error::input(format!(
                "the patch changes {id} with shape {found:?}, the model has {shape:?}"
            )));
        }
        Ok(shape)
    }

    /// The changes of weights, ready to be laid over the model. Taking the overlay off again
    /// restores the model bit for bit: the base is never written.
    ///
    /// # Errors
    /// Where the patch belongs to another base.
    pub fn overlay(&self, model: &Model) -> Result<Overlay> {
        self.check_base(model)?;
        let mut overlay = Overlay::default();
        for (id, change) in &self.weights {
            Self::check_shape(model, *id, change)?;
            let delta = change.delta()?;
            overlay.push(*id, delta);
        }
        Ok(overlay)
    }
}

/// What makes patches of a model here: numbers may differ in their last digits between instruction
/// sets.
pub fn tool(model: &Model) -> String {
    let isa = format!("{:?}", model.isa()).to_lowercase();
    format!("mutandis {} ({isa})", env!("CARGO_PKG_VERSION"))
}

/// Name of a stack of patches by content: `under` is the name of what lies beneath (`None`: the
/// base alone), `id` the one on top. Names of long stacks are made link by link.
pub fn chain(under: Option<&str>, id: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(under.unwrap_or_default().as_bytes());
    hasher.update(b"/");
    hasher.update(id.as_bytes());
    hasher.finalize().to_hex().to_string()
}
