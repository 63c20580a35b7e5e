//! A model in memory: frozen weights, packed, with the threads and kernels that run them.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use crate::architecture::{Architecture, Mlp, Norm, Part, Role};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::kernels::Isa;
use crate::kernels::norm::NormWeights;
use crate::kernels::pack::{Packed, Storage};
use crate::tokenizer::Tokenizer;

/// Most threads that a model can be given.
pub const THREADS_LIMIT: usize = 1024;

/// How a model is loaded.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// How frozen weights are kept.
    pub storage: Storage,
    /// Kernels to use; the fastest available where `None`.
    pub isa: Option<Isa>,
    /// Threads; all processors where `None`.
    pub threads: Option<usize>,
}

/// A frozen linear map `y = x · Wᵀ + b`.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) role: Role,
    pub(crate) layer: usize,
    pub(crate) forward: Packed,
    pub(crate) bias: Option<Vec<f32>>,
    /// For backward passes; packed when the first one comes.
    backward: OnceLock<Packed>,
}

/// One block of the transformer.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attention_norm: NormWeights,
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) attention_out: Linear,
    pub(crate) query_norm: Option<NormWeights>,
    pub(crate) key_norm: Option<NormWeights>,
    pub(crate) attention_post_norm: Option<NormWeights>,
    /// Absent where one norm serves attention and MLP (GPT-J).
    pub(crate) mlp_norm: Option<NormWeights>,
    pub(crate) gate: Option<Linear>,
    pub(crate) up: Linear,
    pub(crate) mlp_out: Linear,
    pub(crate) mlp_post_norm: Option<NormWeights>,
}

/// A frozen model. Nothing in it changes after loading: changes are overlays of a pass.
pub struct Model {
    checkpoint: Checkpoint,
    architecture: Architecture,
    tokenizer: Option<Tokenizer>,
    storage: Storage,
    isa: Isa,
    pool: rayon::ThreadPool,
    pub(crate) layers: Vec<Layer>,
    pub(crate) final_norm: NormWeights,
    pub(crate) head: Linear,
    pub(crate) positions: Option<Vec<f32>>,
    fingerprint: OnceLock<String>,
    operations: AtomicU64,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("architecture", &self.architecture).finish_non_exhaustive()
    }
}

impl Model {
    /// Loads a checkpoint: a GGUF file, a safetensors file, or a directory.
    ///
    /// # Errors
    /// Where the file is damaged, a tensor is missing, misshapen or not finite, the family is not
    /// known, the tokenizer does not fit, or the threads cannot be started.
    pub fn load(path: &Path, options: Options) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let isa = options.isa.unwrap_or_else(Isa::detect);
        if let Some(threads) = options.threads.filter(|n| *n > THREADS_LIMIT) {
            return Err(Error::input_hint(
                format!("{threads} threads are asked for, expected at most {THREADS_LIMIT}"),
                "more threads than cores gain nothing",
            ));
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads.unwrap_or(0))
            .build()
            .map_err(|e| Error::input(format!("cannot start threads: {e}")))?;
        let architecture = checkpoint.architecture().clone();
        let loader =
            Loader { checkpoint: &checkpoint, architecture: &architecture, storage: options.storage };
        let weights = || -> Result<_> {
            let layers: Result<Vec<Layer>> =
                (0..architecture.layers).into_par_iter().map(|l| loader.layer(l)).collect();
            let final_norm = loader.norm(Role::FinalNorm, 0, architecture.width)?;
            let head = loader.head()?;
            if !architecture.tied {
                loader.finite(Role::Embedding, 0)?;
            }
            let positions = match architecture.rotary {
                Some(_) => None,
                None => Some(loader.finite(Role::Positions, 0)?.to_f32()),
            };
            Ok((layers?, final_norm, head, positions))
        };
        // The tokenizer is a fifth of the work, and none of it runs in parallel.
        let (tokenizer, weights) = pool.install(|| rayon::join(|| Tokenizer::of(&checkpoint), weights));
        let tokenizer = tokenizer?;
        let (layers, final_norm, head, positions) = weights?;
        Ok(Self {
            architecture,
            tokenizer,
            storage: options.storage,
            isa,
            pool,
            layers,
            final_norm,
            head,
            positions,
            fingerprint: OnceLock::new(),
            operations: AtomicU64::new(0),
            checkpoint,
        })
    }

    /// What the checkpoint declares.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The checkpoint behind the model.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// Where the checkpoint has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| Error::Tokenizer { what: "the checkpoint has none".into() })
    }

    /// Hash of the weights, hexadecimal; computed when first asked for.
    ///
    /// # Errors
    /// Where a file can no longer be read.
    pub fn fingerprint(&self) -> Result<&str> {
        if let Some(known) = self.fingerprint.get() {
            return Ok(known);
        }
        let computed = self.install(|| self.checkpoint.fingerprint());
        Ok(self.fingerprint.get_or_init(|| computed))
    }

    /// Floating-point operations that products with weights took since the model was loaded, two
    /// for each multiply-add, forward and backward. Attention, patches and what is not a product
    /// are not counted.
    pub fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    /// Counts a product of so many rows with a weight.
    pub(crate) fn count(&self, linear: &Linear, rows: usize) {
        let multiplied = rows * linear.forward.n * linear.forward.depth;
        self.operations.fetch_add(2 * multiplied as u64, Ordering::Relaxed);
    }

    /// Kernels in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// How frozen weights are kept.
    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs a computation on the model's threads. A long chain of passes wakes them only once
    /// when it runs inside.
    pub fn install<R: Send>(&self, body: impl FnOnce() -> R + Send) -> R {
        self.pool.install(body)
    }

    /// A weight as `[out, in]` f32, from the checkpoint.
    ///
    /// # Errors
    /// Where the model has no such weight.
    pub fn weight(&self, role: Role, layer: usize) -> Result<Vec<f32>> {
        let loader = self.loader();
        self.install(|| Ok(loader.matrix(role, layer)?.to_f32()))
    }

    fn loader(&self) -> Loader<'_> {
        Loader { checkpoint: &self.checkpoint, architecture: &self.architecture, storage: self.storage }
    }

    /// The frozen linear map of a role, where the family has one.
    pub(crate) fn linear(&self, role: Role, layer: usize) -> Option<&Linear> {
        if role == Role::Head {
            return Some(&self.head);
        }
        let l = self.layers.get(layer)?;
        match role {
            Role::Query => Some(&l.query),
            Role::Key => Some(&l.key),
            Role::Value => Some(&l.value),
            Role::AttentionOut => Some(&l.attention_out),
            Role::MlpGate => l.gate.as_ref(),
            Role::MlpUp => Some(&l.up),
            Role::MlpOut => Some(&l.mlp_out),
            _ => None,
        }
    }

    /// `[out, in]` of a linear map.
    ///
    /// # Errors
    /// Where the layer or the role does not exist in this model.
    pub fn linear_shape(&self, role: Role, layer: usize) -> Result<[usize; 2]> {
        let linear = self.linear(role, layer).ok_or_else(|| self.no_linear(role, layer))?;
        Ok([linear.forward.n, linear.forward.depth])
    }

    /// That there is no such linear map, with those of the layer, or the layers that there are.
    fn no_linear(&self, role: Role, layer: usize) -> Error {
        let is_there = |role: &Role| *role != Role::Head && self.linear(*role, layer).is_some();
        let known: Vec<String> =
            Role::ALL.into_iter().filter(is_there).map(|role| format!("`{role}`")).collect();
        let hint = match known.is_empty() {
            true => format!("layers are 0 to {}", self.architecture.layers.saturating_sub(1)),
            false => format!("the linear maps of that layer are {}", known.join(", ")),
        };
        Error::input_hint(format!("the model has no linear map `{role}` at layer {layer}"), hint)
    }

    /// The map packed for backward passes.
    pub(crate) fn backward_of<'a>(&'a self, linear: &'a Linear) -> Result<&'a Packed> {
        if let Some(packed) = linear.backward.get() {
            return Ok(packed);
        }
        let loader = self.loader();
        let matrix = loader.matrix(loader.stored_role(linear.role), linear.layer)?;
        Ok(linear.backward.get_or_init(|| Packed::transposed(&matrix, self.storage)))
    }

    /// Embedding rows of tokens, scaled, `[t, d]`.
    pub(crate) fn embed(&self, tokens: impl Iterator<Item = u32>) -> Result<Vec<f32>> {
        let d = self.architecture.width;
        let loader = self.loader();
        let matrix = loader.matrix(Role::Embedding, 0)?;
        let mut out = Vec::new();
        for token in tokens {
            if token as usize >= self.architecture.vocabulary {
                return Err(Error::input(format!(
                    "token id {token} is beyond the vocabulary of {}",
                    self.architecture.vocabulary
                )));
            }
            let at = out.len();
            out.resize(at + d, 0.0);
            matrix.decode_rows(token as usize, &mut out[at..]);
        }
        if self.architecture.embedding_scale != 1.0 {
            for x in &mut out {
                *x *= self.architecture.embedding_scale;
            }
        }
        Ok(out)
    }
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    architecture: &'a Architecture,
    storage: Storage,
}

impl Loader<'_> {
    fn stored_role(&self, role: Role) -> Role {
        if role == Role::Head && self.architecture.tied { Role::Embedding } else { role }
    }

    fn matrix(&self, role: Role, layer: usize) -> Result<crate::checkpoint::Matrix<'_>> {
        self.checkpoint
            .matrix(role, layer)?
            .ok_or_else(|| Error::MissingTensor { name: format!("{role:?} of layer {layer}") })
    }

    fn finite(&self, role: Role, layer: usize) -> Result<crate::checkpoint::Matrix<'_>> {
        let matrix = self.matrix(role, layer)?;
        let name = self.checkpoint.tensor_name(role, Part::Weight, layer);
        matrix.check_finite(&name.unwrap_or_else(|| format!("{role:?} of layer {layer}")))?;
        Ok(matrix)
    }

    fn linear(&self, role: Role, layer: usize) -> Result<Linear> {
        let matrix = self.finite(self.stored_role(role), layer)?;
        Ok(Linear {
            role,
            layer,
            forward: Packed::new(&matrix, self.storage),
            bias: self.checkpoint.vector(role, Part::Bias, layer)?,
            backward: OnceLock::new(),
        })
    }

    fn norm(&self, role: Role, layer: usize, width: usize) -> Result<NormWeights> {
        let scale = self
            .checkpoint
            .vector(role, Part::Weight, layer)?
            .ok_or_else(|| Error::MissingTensor { name: format!("{role:?} of layer {layer}") })?;
        if scale.len() != width {
            return Err(Error::Shape {
                name: format!("{role:?} of layer {layer}"),
                expected: vec![width],
                found: vec![scale.len()],
            });
        }
        let shift = match self.architecture.norm {
            Norm::Layer { .. } => self.checkpoint.vector(role, Part::Bias, layer)?,
            Norm::Rms { .. } => None,
        };
        Ok(NormWeights { kind: self.architecture.norm, scale, shift })
    }

    fn head(&self) -> Result<Linear> {
        self.linear(Role::Head, 0)
    }

    fn layer(&self, l: usize) -> Result<Layer> {
        use crate::architecture::ResidualForm;
        let a = self.architecture;
        let when = |wanted: bool, role, width| wanted.then(|| self.norm(role, l, width)).transpose();
        Ok(Layer {
            attention_norm: self.norm(Role::AttentionNorm, l, a.width)?,
            query: self.linear(Role::Query, l)?,
            key: self.linear(Role::Key, l)?,
            value: self.linear(Role::Value, l)?,
            attention_out: self.linear(Role::AttentionOut, l)?,
            query_norm: when(a.qk_norm, Role::QueryNorm, a.head_width)?,
            key_norm: when(a.qk_norm, Role::KeyNorm, a.head_width)?,
            attention_post_norm: when(a.sandwich_norm, Role::AttentionPostNorm, a.width)?,
            mlp_norm: when(a.residual != ResidualForm::ParallelSharedNorm, Role::MlpNorm, a.width)?,
            gate: matches!(a.mlp, Mlp::Gated(_)).then(|| self.linear(Role::MlpGate, l)).transpose()?,
            up: self.linear(Role::MlpUp, l)?,
            mlp_out: self.linear(Role::MlpOut, l)?,
            mlp_post_norm: when(a.sandwich_norm, Role::MlpPostNorm, a.width)?,
        })
    }
}
