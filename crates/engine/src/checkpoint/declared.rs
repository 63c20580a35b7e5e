//! What a checkpoint declares of itself, and the checks that hold for every family.

use crate::architecture::{Architecture, Family, Norm, Role, Rotary, RotaryScaling};

/// An architecture, and which of its linear layers have a bias.
#[derive(Debug, Clone)]
pub(super) struct Declared {
    pub(super) architecture: Architecture,
    pub(super) biases: Biases,
}

/// Whether a bias is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bias {
    /// Not, by declaration.
    Never,
    /// Needed.
    Always,
    /// The file decides (GGUF does not declare biases).
    IfPresent,
}

impl Bias {
    pub(super) fn declared(present: bool) -> Self {
        if present { Self::Always } else { Self::Never }
    }
}

/// Biases by group of linear layers. Layer norms always have one, RMS norms never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Biases {
    /// Query, key, value.
    pub(super) inputs: Bias,
    /// Attention output.
    pub(super) output: Bias,
    /// All of the MLP.
    pub(super) mlp: Bias,
    /// The head.
    pub(super) head: Bias,
}

impl Biases {
    /// The same for every group but the head, which has none.
    pub(super) fn layers(bias: Bias) -> Self {
        Self { inputs: bias, output: bias, mlp: bias, head: Bias::Never }
    }
}

impl Declared {
    /// Whether a role has a bias.
    pub(super) fn bias(&self, role: Role) -> Bias {
        match role {
            Role::Query | Role::Key | Role::Value => self.biases.inputs,
            Role::AttentionOut => self.biases.output,
            Role::MlpGate | Role::MlpUp | Role::MlpOut => self.biases.mlp,
            Role::Head => self.biases.head,
            Role::Embedding | Role::Positions => Bias::Never,
            Role::AttentionNorm
            | Role::QueryNorm
            | Role::KeyNorm
            | Role::AttentionPostNorm
            | Role::MlpNorm
            | Role::MlpPostNorm
            | Role::FinalNorm => Bias::declared(matches!(self.architecture.norm, Norm::Layer { .. })),
        }
    }
}

/// The families, as a checkpoint's `config.json` and GGUF metadata call them.
pub(super) const KNOWN_MODEL_TYPES: &str =
    "llama, mistral, qwen2, qwen3, gemma3, gemma3_text, gpt2, gptj, gpt_neox";
pub(super) const KNOWN_GGUF_ARCHITECTURES: &str = "llama, qwen2, qwen3, gemma3, gpt2, gptj, gptneox";

/// Largest layer count and largest of every other size: far above any model, and small enough that
/// no product of three of them overflows and no table of layers is large.
const MAX_LAYERS: usize = 10_000;
const MAX_SIZE: usize = 1 << 20;
const MAX_VOCABULARY: usize = 1 << 26;
const MAX_CONTEXT: usize = 1 << 32;

/// Checks sizes and numbers that every family must satisfy; the message says what is wrong.
pub(super) fn check(a: &Architecture) -> Result<(), String> {
    for (what, size, most) in [
        ("number of layers", a.layers, MAX_LAYERS),
        ("model width", a.width, MAX_SIZE),
        ("MLP width", a.mlp_width, MAX_SIZE),
        ("number of heads", a.heads, MAX_SIZE),
        ("number of key and value heads", a.kv_heads, MAX_SIZE),
        ("head width", a.head_width, MAX_SIZE),
        ("vocabulary size", a.vocabulary, MAX_VOCABULARY),
        ("context length", a.context, MAX_CONTEXT),
    ] {
        if size == 0 || size > most {
            return Err(format!("the {what} is {size}, expected 1 to {most}"));
        }
    }
    if a.heads.checked_mul(a.head_width).is_none_or(|n| n > MAX_SIZE) {
        return Err(format!("{} heads of width {} are more than {MAX_SIZE}", a.heads, a.head_width));
    }
    if !a.heads.is_multiple_of(a.kv_heads) {
        return Err(format!(
            "the {} heads are not a multiple of the {} key and value heads",
            a.heads, a.kv_heads
        ));
    }
    let fused = matches!(a.family, Family::Gpt2 | Family::Gptj | Family::GptNeox);
    if fused && (a.kv_heads != a.heads || a.query_width() != a.width) {
        return Err(format!(
            "{} heads of width {} do not make up the model width {}",
            a.heads, a.head_width, a.width
        ));
    }
    for rotary in a.rotary.iter().chain(&a.local_rotary) {
        check_rotary(rotary, a.head_width)?;
    }
    if let Some(window) = a.windows.iter().flatten().find(|&&w| w == 0) {
        return Err(format!("a sliding window has {window} tokens"));
    }
    let (Norm::Rms { epsilon } | Norm::Layer { epsilon }) = a.norm;
    for (what, value) in [
        ("norm's epsilon", epsilon),
        ("attention scale", a.attention_scale),
        ("logit soft cap", a.logit_soft_cap.unwrap_or(1.0)),
        ("attention soft cap", a.attention_soft_cap.unwrap_or(1.0)),
    ] {
        if !value.is_finite() || value <= 0.0 {
            return Err(format!("the {what} is {value}, expected a positive number"));
        }
    }
    Ok(())
}

fn check_rotary(r: &Rotary, head_width: usize) -> Result<(), String> {
    if r.width == 0 || !r.width.is_multiple_of(2) || r.width > head_width {
        return Err(format!(
            "the rotary width is {}, expected an even number up to the head width {head_width}",
            r.width
        ));
    }
    let mut numbers = vec![("base", r.base)];
    match &r.scaling {
        RotaryScaling::None => {}
        RotaryScaling::Linear { factor } => numbers.push(("scaling factor", *factor)),
        RotaryScaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_context } => {
            numbers.push(("scaling factor", *factor));
            numbers.push(("low frequency factor", *low_frequency_factor));
            numbers.push(("high frequency factor", *high_frequency_factor));
            numbers.push(("original context", *original_context));
            if high_frequency_factor <= low_frequency_factor {
                return Err(format!(
                    "the rotary high frequency factor {high_frequency_factor} is not above the low one, {low_frequency_factor}"
                ));
            }
        }
        RotaryScaling::Divisors(divisors) => {
            if divisors.len() != r.width / 2 {
                return Err(format!(
                    "there are {} rotary divisors, expected {} for the rotary width {}",
                    divisors.len(),
                    r.width / 2,
                    r.width
                ));
            }
            numbers.extend(divisors.iter().map(|&d| ("divisor", d)));
        }
    }
    match numbers.iter().find(|(_, x)| !x.is_finite() || *x <= 0.0) {
        Some((what, x)) => Err(format!("the rotary {what} is {x}, expected a positive number")),
        None => Ok(()),
    }
}
