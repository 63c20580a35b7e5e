//! GGUF metadata to [`Architecture`].

use super::declared::{Bias, Biases, Declared, KNOWN_GGUF_ARCHITECTURES, check};
use super::gguf::{Array, Gguf, Value};
use super::names::GGUF_ARCHITECTURES;
use crate::architecture::{
    Activation, Architecture, Family, Mlp, Norm, ResidualForm, Rotary, RotaryPairs, RotaryScaling,
};
use crate::error::{Error, Result};

/// What the table of tensors, rather than the metadata, says.
pub(super) struct FromTensors {
    /// Rows of the embedding.
    pub(super) vocabulary: usize,
    /// No head of its own.
    pub(super) tied: bool,
    /// `rope_freqs.weight`, where present.
    pub(super) divisors: Option<Vec<f64>>,
}

/// Reads the metadata.
///
/// # Errors
/// [`Error::Unsupported`] for an unknown `general.architecture` or a setting that the engine does
/// not compute, [`Error::Corrupt`] for what is missing, of the wrong type, or senseless.
pub(super) fn declare(gguf: &Gguf, tensors: FromTensors) -> Result<Declared> {
    if let Some(kind) = gguf.str("general.type")?
        && kind != "model"
    {
        return Err(unsupported(format!("a GGUF file of type `{kind}`"), "model"));
    }
    let name = gguf.str("general.architecture")?.ok_or_else(|| {
        gguf.corrupt("it has no `general.architecture`, so the architecture is unknown".into())
    })?;
    let known = GGUF_ARCHITECTURES.iter().find(|(known, _)| *known == name);
    let &(_, family) = known
        .ok_or_else(|| unsupported(format!("the GGUF architecture `{name}`"), KNOWN_GGUF_ARCHITECTURES))?;
    let keys = Keys { gguf, prefix: name };
    let declared = Declared { architecture: architecture(&keys, family, tensors)?, biases: biases(family) };
    check(&declared.architecture).map_err(|what| gguf.corrupt(what))?;
    Ok(declared)
}

/// The metadata is silent about biases; families that always have them need them.
fn biases(family: Family) -> Biases {
    match family {
        Family::Gpt2 | Family::GptNeox => Biases::layers(Bias::Always),
        Family::Gptj => Biases { mlp: Bias::Always, head: Bias::IfPresent, ..Biases::layers(Bias::Never) },
        Family::Qwen2 => Biases { inputs: Bias::Always, ..Biases::layers(Bias::IfPresent) },
        Family::Llama | Family::Qwen3 | Family::Gemma3 => Biases::layers(Bias::IfPresent),
    }
}

fn architecture(keys: &Keys<'_>, family: Family, tensors: FromTensors) -> Result<Architecture> {
    if keys.size("expert_count")?.unwrap_or(0) > 0 {
        return Err(unsupported(
            format!("a mixture of experts (`{}.expert_count`)", keys.prefix),
            "dense models",
        ));
    }
    let width = keys.needed("embedding_length")?;
    let heads = keys.needed("attention.head_count")?;
    let layers = match keys.needed("block_count")? {
        n @ 1..=10_000 => n,
        n => {
            return Err(keys
                .gguf
                .corrupt(format!("`{}.block_count` is {n}, expected 1 to 10000", keys.prefix)));
        }
    };
    let head_width = match keys.size("attention.key_length")? {
        Some(k) => k,
        None if heads > 0 && width.is_multiple_of(heads) => width / heads,
        None => {
            let what = format!(
                "`{0}.embedding_length` {width} is not a multiple of `{0}.attention.head_count` {heads}",
                keys.prefix
            );
            return Err(keys.gguf.corrupt(what));
        }
    };
    if let Some(value_width) = keys.size("attention.value_length")?
        && value_width != head_width
    {
        return Err(unsupported(
            format!("values of width {value_width} beside keys of width {head_width}"),
            "equal widths",
        ));
    }
    let norm = match family {
        Family::Llama | Family::Qwen2 | Family::Qwen3 | Family::Gemma3 => {
            Norm::Rms { epsilon: keys.needed_number("attention.layer_norm_rms_epsilon")? }
        }
        _ => Norm::Layer { epsilon: keys.needed_number("attention.layer_norm_epsilon")? },
    };
    let mlp = match family {
        Family::Llama | Family::Qwen2 | Family::Qwen3 => Mlp::Gated(Activation::Silu),
        Family::Gemma3 => Mlp::Gated(Activation::GeluTanh),
        Family::Gpt2 | Family::Gptj => Mlp::Plain(Activation::GeluTanh),
        // The models were trained with the exact form; llama.cpp runs the tanh form.
        Family::GptNeox => Mlp::Plain(Activation::Gelu),
    };
    let residual = match family {
        Family::Gptj => ResidualForm::ParallelSharedNorm,
        Family::GptNeox if keys.flag("use_parallel_residual")?.unwrap_or(true) => ResidualForm::Parallel,
        _ => ResidualForm::Sequential,
    };
    let rotary = match family {
        Family::Gpt2 => None,
        _ => Some(rotary(keys, family, head_width, tensors.divisors)?),
    };
    let local_rotary = match family {
        Family::Gemma3 => Some(Rotary {
            width: head_width,
            pairs: RotaryPairs::Halves,
            base: keys.number("rope.freq_base_swa")?.map_or(10_000.0, f64::from),
            scaling: RotaryScaling::None,
        }),
        _ => None,
    };
    Ok(Architecture {
        family,
        layers,
        width,
        mlp_width: keys.needed("feed_forward_length")?,
        heads,
        kv_heads: keys.size("attention.head_count_kv")?.unwrap_or(heads),
        head_width,
        vocabulary: tensors.vocabulary,
        context: keys.needed("context_length")?,
        norm,
        mlp,
        rotary,
        local_rotary,
        windows: windows(keys, family, layers)?,
        attention_scale: match keys.number("attention.scale")? {
            Some(scale) if scale != 0.0 => scale,
            _ => attention_scale(family, layers, width, heads, head_width),
        },
        residual,
        qk_norm: matches!(family, Family::Qwen3 | Family::Gemma3),
        sandwich_norm: family == Family::Gemma3,
        tied: tensors.tied,
        embedding_scale: if family == Family::Gemma3 { (width as f32).sqrt() } else { 1.0 },
        logit_soft_cap: keys.number("final_logit_softcapping")?,
        attention_soft_cap: keys.number("attn_logit_softcapping")?,
    })
}

/// The usual scale, where the metadata has none: Gemma's `query_pre_attn_scalar` is not converted.
/// Every Gemma 3 has the head width there but the 27B model (62 layers), which has `width / heads`.
fn attention_scale(family: Family, layers: usize, width: usize, heads: usize, head_width: usize) -> f32 {
    let scalar = match family {
        Family::Gemma3 if layers == 62 => width as f64 / heads as f64,
        _ => head_width as f64,
    };
    (1.0 / scalar.sqrt()) as f32
}

fn windows(keys: &Keys<'_>, family: Family, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = keys.size("attention.sliding_window")?.filter(|&w| w > 0);
    let Some(window) = window else {
        return Ok(vec![None; layers]);
    };
    if family != Family::Gemma3 {
        return Ok(vec![Some(window); layers]);
    }
    let key = "attention.sliding_window_pattern";
    if let Some(Value::Array(Array::Bool(local))) = keys.get(key) {
        if local.len() != layers {
            let what = format!("`{}.{key}` has {} entries, expected {layers}", keys.prefix, local.len());
            return Err(keys.gguf.corrupt(what));
        }
        return Ok(local.iter().map(|&l| l.then_some(window)).collect());
    }
    match keys.size(key)?.unwrap_or(6) {
        0 => Err(keys.gguf.corrupt(format!("`{}.{key}` is 0", keys.prefix))),
        pattern => Ok((1..=layers).map(|l| (!l.is_multiple_of(pattern)).then_some(window)).collect()),
    }
}

fn rotary(keys: &Keys<'_>, family: Family, head_width: usize, divisors: Option<Vec<f64>>) -> Result<Rotary> {
    let kind = keys.text("rope.scaling.type")?.unwrap_or("linear");
    let factor = match keys.number("rope.scaling.factor")? {
        Some(f) => Some(f),
        None => keys.number("rope.scale_linear")?,
    };
    let linear = match (kind, factor) {
        ("none", _) | ("linear", None) => RotaryScaling::None,
        ("linear", Some(f)) if f == 0.0 || f == 1.0 => RotaryScaling::None,
        ("linear", Some(f)) => RotaryScaling::Linear { factor: f.into() },
        (other, _) => {
            return Err(unsupported(format!("the rotary scaling `{other}`"), "none, linear"));
        }
    };
    let scaling = match (divisors, linear) {
        (None, linear) => linear,
        (Some(divisors), RotaryScaling::Linear { factor }) => {
            RotaryScaling::Divisors(divisors.iter().map(|d| d * factor).collect())
        }
        (Some(divisors), _) => RotaryScaling::Divisors(divisors),
    };
    Ok(Rotary {
        width: keys.size("rope.dimension_count")?.unwrap_or(head_width),
        // Llama's rows are put back into halves on loading.
        pairs: if family == Family::Gptj { RotaryPairs::Neighbours } else { RotaryPairs::Halves },
        base: keys.number("rope.freq_base")?.map_or(10_000.0, f64::from),
        scaling,
    })
}

fn unsupported(what: String, known: &str) -> Error {
    Error::Unsupported { what, known: Some(known.to_owned()) }
}

/// Metadata under the architecture's prefix.
struct Keys<'a> {
    gguf: &'a Gguf,
    prefix: &'a str,
}

impl<'a> Keys<'a> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.gguf.get(&self.full(key))
    }

    /// A size; an array of one size per layer is accepted where all are equal.
    fn size(&self, key: &str) -> Result<Option<usize>> {
        let full = self.full(key);
        if let Some(Value::Array(_)) = self.gguf.get(&full) {
            let sizes = self.gguf.i32s(&full)?.unwrap_or_default();
            let Some(&first) = sizes.first() else {
                return Err(self.gguf.corrupt(format!("metadata `{full}` is an empty array")));
            };
            if sizes.iter().any(|&s| s != first) {
                return Err(unsupported(format!("`{full}` that differs from layer to layer"), "one value"));
            }
            return usize::try_from(first)
                .map(Some)
                .map_err(|_| self.gguf.corrupt(format!("metadata `{full}` is {first}, expected a size")));
        }
        Ok(self.gguf.u64(&full)?.map(|n| usize::try_from(n).unwrap_or(usize::MAX)))
    }

    fn needed(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| self.missing(key))
    }

    fn number(&self, key: &str) -> Result<Option<f32>> {
        self.gguf.f32(&self.full(key))
    }

    fn needed_number(&self, key: &str) -> Result<f32> {
        self.number(key)?.ok_or_else(|| self.missing(key))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.gguf.bool(&self.full(key))
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.gguf.str(&self.full(key))
    }

    fn missing(&self, key: &str) -> Error {
        self.gguf.corrupt(format!("metadata `{}` is missing", self.full(key)))
    }
}
