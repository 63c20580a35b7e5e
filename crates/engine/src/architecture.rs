//! Architectures as data: what a checkpoint declares about itself, in one plain struct.
//!
//! A family is a reading of `config.json` or GGUF metadata into [`Architecture`], plus the names
//! of its tensors (`checkpoint::names`). The forward pass reads only this struct, never a name.

use serde::{Deserialize, Serialize};

/// The families that the engine can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Llama 1–3, SmolLM, SmolLM2, Mistral.
    Llama,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3 (dense).
    Qwen3,
    /// Gemma 3, text.
    Gemma3,
    /// GPT-2.
    Gpt2,
    /// GPT-J.
    Gptj,
    /// GPT-NeoX, Pythia.
    GptNeox,
}

/// How a row is normalised.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Norm {
    /// `x / sqrt(mean(x²) + ε) · w`.
    Rms {
        /// ε.
        epsilon: f32,
    },
    /// `(x − mean) / sqrt(var + ε) · w + b`.
    Layer {
        /// ε.
        epsilon: f32,
    },
}

/// The MLP's non-linearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `x · σ(x)`.
    Silu,
    /// The tanh form of GELU (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// `x · Φ(x)` with the error function.
    Gelu,
    /// `max(x, 0)`.
    Relu,
}

/// Which dimensions of a head a rotation pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RotaryPairs {
    /// `(i, i + width/2)`: Llama in the Hugging Face layout, NeoX, Qwen, Gemma.
    Halves,
    /// `(2i, 2i + 1)`: GPT-J.
    Neighbours,
}

/// Stretching of the rotary frequencies beyond the trained context.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RotaryScaling {
    /// None.
    None,
    /// All frequencies divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, smooth between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low_frequency_factor` are divided.
        low_frequency_factor: f64,
        /// Wavelengths below `original_context / high_frequency_factor` are kept.
        high_frequency_factor: f64,
        /// Context length of the first training.
        original_context: f64,
    },
    /// Divisors given per frequency (GGUF's `rope_freqs.weight`), length `width / 2`.
    Divisors(
        /// One per frequency.
        Vec<f64>,
    ),
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rotary {
    /// Rotated dimensions of each head; the rest pass unchanged.
    pub width: usize,
    /// Pairing.
    pub pairs: RotaryPairs,
    /// θ.
    pub base: f64,
    /// Scaling.
    pub scaling: RotaryScaling,
}

/// The MLP's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mlp {
    /// `down(act(gate(x)) · up(x))`.
    Gated(Activation),
    /// `down(act(up(x)))`.
    Plain(Activation),
}

/// How attention and MLP join the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResidualForm {
    /// `x += attn(norm(x)); x += mlp(norm(x))`.
    Sequential,
    /// `x += attn(norm₁(x)) + mlp(norm₂(x))`, GPT-NeoX.
    Parallel,
    /// `x += attn(norm(x)) + mlp(norm(x))` with one norm, GPT-J.
    ParallelSharedNorm,
}

/// Everything the forward pass needs to know besides the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Architecture {
    /// Declared family.
    pub family: Family,
    /// Number of layers.
    pub layers: usize,
    /// `d`: model width.
    pub width: usize,
    /// `f`: MLP width.
    pub mlp_width: usize,
    /// `h`: query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// `k`: width of one head.
    pub head_width: usize,
    /// `v`: vocabulary, as the embedding's rows.
    pub vocabulary: usize,
    /// Longest sequence, in tokens.
    pub context: usize,
    /// Norm of the residual stream (and of q, k where `qk_norm`).
    pub norm: Norm,
    /// MLP form and activation.
    pub mlp: Mlp,
    /// Rotary embedding of layers that attend to the whole context; `None`: learned positions.
    pub rotary: Option<Rotary>,
    /// Rotary embedding of layers that attend to a window, where it differs (Gemma 3).
    pub local_rotary: Option<Rotary>,
    /// Sliding window per layer, in tokens (a token sees itself and `window − 1` before it);
    /// `None`: the whole context. Length `layers`.
    pub windows: Vec<Option<usize>>,
    /// Factor on q·k.
    pub attention_scale: f32,
    /// Residual form.
    pub residual: ResidualForm,
    /// q and k are normalised per head before rotation (Qwen 3, Gemma 3).
    pub qk_norm: bool,
    /// Attention and MLP outputs are normalised before they join the residual stream (Gemma 3).
    pub sandwich_norm: bool,
    /// The head is the embedding.
    pub tied: bool,
    /// Factor on the embedding (Gemma: √d, rounded as the reference rounds it).
    pub embedding_scale: f32,
    /// `s · tanh(logits / s)` where given.
    pub logit_soft_cap: Option<f32>,
    /// The same on attention scores.
    pub attention_soft_cap: Option<f32>,
}

impl Architecture {
    /// Query width `h · k`.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_width
    }

    /// Key and value width.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_width
    }
}

/// What a weight is for, in the engine's own words; a checkpoint's names are mapped to these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Token embedding, `[v, d]`.
    Embedding,
    /// Learned positions, `[context, d]`.
    Positions,
    /// Norm before attention, `[d]`.
    AttentionNorm,
    /// Query projection, `[h·k, d]`.
    Query,
    /// Key projection, `[kv·k, d]`.
    Key,
    /// Value projection, `[kv·k, d]`.
    Value,
    /// Attention output projection, `[d, h·k]`.
    AttentionOut,
    /// Norm of each query head, `[k]`.
    QueryNorm,
    /// Norm of each key head, `[k]`.
    KeyNorm,
    /// Norm after attention (sandwich), `[d]`.
    AttentionPostNorm,
    /// Norm before the MLP, `[d]`.
    MlpNorm,
    /// Gate projection, `[f, d]`.
    MlpGate,
    /// Up projection, `[f, d]`.
    MlpUp,
    /// Down projection, `[d, f]`: the matrix that locate-then-edit methods write.
    MlpOut,
    /// Norm after the MLP (sandwich), `[d]`.
    MlpPostNorm,
    /// Last norm, `[d]`.
    FinalNorm,
    /// Output head, `[v, d]`; the embedding where tied.
    Head,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 17] = [
        Self::Embedding,
        Self::Positions,
        Self::AttentionNorm,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::AttentionOut,
        Self::QueryNorm,
        Self::KeyNorm,
        Self::AttentionPostNorm,
        Self::MlpNorm,
        Self::MlpGate,
        Self::MlpUp,
        Self::MlpOut,
        Self::MlpPostNorm,
        Self::FinalNorm,
        Self::Head,
    ];

    /// Whether every layer has its own.
    pub fn in_layer(self) -> bool {
        !matches!(self, Self::Embedding | Self::Positions | Self::FinalNorm | Self::Head)
    }
}

impl std::fmt::Display for Role {
    /// As it is written in files: `mlp-out`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Serialize::serialize(self, f)
    }
}

/// Weight or bias of a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The matrix, or the scale of a norm.
    Weight,
    /// The bias vector.
    Bias,
}
