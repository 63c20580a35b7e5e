//! `config.json` to [`Architecture`]: keys old and new, and each family's defaults, as
//! transformers 5.5 reads them.

use std::path::Path;

use serde_json::{Map, Value};

use super::config_keys::{Keys, unsupported};
use super::declared::{Bias, Biases, Declared, KNOWN_MODEL_TYPES, check};
use crate::architecture::{
    Activation, Architecture, Family, Mlp, Norm, ResidualForm, Rotary, RotaryPairs, RotaryScaling,
};
use crate::error::{Error, Result};

/// Reads the text of a `config.json`; `path` is for messages.
///
/// # Errors
/// [`Error::Unsupported`] for an unknown `model_type` or a setting that the engine does not
/// compute, [`Error::Corrupt`] for what is missing, of the wrong type, or senseless.
pub(super) fn declare(text: &[u8], path: &Path) -> Result<Declared> {
    let root: Value = serde_json::from_slice(text).map_err(|e| Error::Corrupt {
        path: path.to_owned(),
        format: "config.json",
        what: e.to_string(),
    })?;
    let Value::Object(root) = &root else {
        return Err(Error::Corrupt {
            path: path.to_owned(),
            format: "config.json",
            what: "it is not a JSON object".into(),
        });
    };
    let keys = Keys { path, object: root };
    if let Some(quantization) = keys.object("quantization_config")? {
        let method = quantization.text("quant_method")?.unwrap_or("unknown");
        return Err(unsupported(
            format!("a checkpoint quantised with `{method}`"),
            "F32, F16, BF16, or GGUF",
        ));
    }
    let model_type = keys
        .text("model_type")?
        .ok_or_else(|| keys.corrupt("it has no `model_type`, so the architecture is unknown".into()))?;
    let declared = match model_type {
        "llama" => llama(&keys, Family::Llama, model_type),
        "mistral" => llama(&keys, Family::Llama, model_type),
        "qwen2" => llama(&keys, Family::Qwen2, model_type),
        "qwen3" => llama(&keys, Family::Qwen3, model_type),
        "gemma3_text" => gemma3(&keys, keys.flag("tie_word_embeddings")?),
        "gemma3" => {
            let text = keys.object("text_config")?;
            let text =
                text.ok_or_else(|| keys.corrupt("model type `gemma3` needs a `text_config`".into()))?;
            let tied = keys.flag("tie_word_embeddings")?;
            gemma3(&text, tied.or(text.flag("tie_word_embeddings")?))
        }
        "gpt2" => gpt2(&keys),
        "gptj" => gptj(&keys),
        "gpt_neox" => gpt_neox(&keys),
        other => {
            return Err(unsupported(format!("the model type `{other}`"), KNOWN_MODEL_TYPES));
        }
    }?;
    check(&declared.architecture).map_err(|what| keys.corrupt(what))?;
    Ok(declared)
}

/// Llama, Mistral, Qwen 2, Qwen 3: one form with few differences.
fn llama(keys: &Keys<'_>, family: Family, model_type: &str) -> Result<Declared> {
    let width = keys.needed("hidden_size")?;
    let heads = keys.needed("num_attention_heads")?;
    let layers = keys.layers("num_hidden_layers")?;
    let kv_default = if model_type == "mistral" { 8 } else { heads };
    // An explicit null means "as many as heads" in every family.
    let kv_heads = match keys.object.get("num_key_value_heads") {
        Some(Value::Null) => heads,
        _ => keys.size("num_key_value_heads")?.unwrap_or(kv_default),
    };
    let head_width = match keys.size("head_dim")? {
        Some(k) => k,
        None if family == Family::Qwen3 => 128,
        None => keys.divided("hidden_size", width, "num_attention_heads", heads)?,
    };
    let context_default = match (family, model_type) {
        (_, "mistral") => 131_072,
        (Family::Llama, _) => 2048,
        _ => 32_768,
    };
    keys.refuse_partial_rotation()?;
    let windows = match model_type {
        "llama" => vec![None; layers],
        "mistral" => {
            let window = match keys.object.get("sliding_window") {
                None => Some(4096),
                Some(_) => keys.size("sliding_window")?,
            };
            vec![window; layers]
        }
        _ => {
            let window = match keys.object.get("sliding_window") {
                _ if !keys.flag("use_sliding_window")?.unwrap_or(false) => None,
                None => Some(4096),
                Some(_) => keys.size("sliding_window")?,
            };
            let first = keys.size("max_window_layers")?.unwrap_or(28);
            let local =
                keys.local_layers(layers)?.unwrap_or_else(|| (0..layers).map(|l| l >= first).collect());
            local.iter().map(|&local| window.filter(|_| local)).collect()
        }
    };
    let attention_bias = keys.flag("attention_bias")?.unwrap_or(false);
    let biases = match model_type {
        "llama" => Biases {
            inputs: Bias::declared(attention_bias),
            output: Bias::declared(attention_bias),
            mlp: Bias::declared(keys.flag("mlp_bias")?.unwrap_or(false)),
            head: Bias::Never,
        },
        "qwen2" => Biases { inputs: Bias::Always, ..Biases::layers(Bias::Never) },
        "qwen3" => Biases { mlp: Bias::Never, ..Biases::layers(Bias::declared(attention_bias)) },
        _ => Biases::layers(Bias::Never),
    };
    let context = keys.size("max_position_embeddings")?.unwrap_or(context_default);
    Ok(Declared {
        architecture: Architecture {
            family,
            layers,
            width,
            mlp_width: keys.needed("intermediate_size")?,
            heads,
            kv_heads,
            head_width,
            vocabulary: keys.needed("vocab_size")?,
            context,
            norm: Norm::Rms { epsilon: keys.number("rms_norm_eps")?.unwrap_or(1e-6) as f32 },
            mlp: Mlp::Gated(keys.activation("hidden_act", "silu")?),
            rotary: Some(keys.rotary(head_width, context)?),
            local_rotary: None,
            windows,
            attention_scale: inverse_root(head_width as f64),
            residual: ResidualForm::Sequential,
            qk_norm: family == Family::Qwen3,
            sandwich_norm: false,
            tied: keys.flag("tie_word_embeddings")?.unwrap_or(false),
            embedding_scale: 1.0,
            logit_soft_cap: None,
            attention_soft_cap: None,
        },
        biases,
    })
}

/// Gemma 3's text model. Multimodal configs leave out what equals the default, so all have one.
fn gemma3(keys: &Keys<'_>, tied: Option<bool>) -> Result<Declared> {
    if keys.flag("use_bidirectional_attention")?.unwrap_or(false) {
        return Err(unsupported("`use_bidirectional_attention`".into(), "causal attention"));
    }
    keys.refuse_partial_rotation()?;
    let width = keys.size("hidden_size")?.unwrap_or(2304);
    let layers = keys.layers("num_hidden_layers")?;
    let head_width = keys.size("head_dim")?.unwrap_or(256);
    let context = keys.size("max_position_embeddings")?.unwrap_or(131_072);
    let window = match keys.object.get("sliding_window") {
        None => Some(4096),
        Some(_) => keys.size("sliding_window")?,
    };
    let local = match keys.local_layers(layers)? {
        Some(local) => local,
        None => {
            let pattern = keys.size("sliding_window_pattern")?.unwrap_or(6);
            if pattern == 0 {
                return Err(keys.corrupt("`sliding_window_pattern` is 0".into()));
            }
            (1..=layers).map(|l| !l.is_multiple_of(pattern)).collect()
        }
    };
    let (global_rotary, local_rotary) = gemma3_rotary(keys, head_width, context)?;
    let scalar = keys.number("query_pre_attn_scalar")?.unwrap_or(256.0);
    let attention_bias = Bias::declared(keys.flag("attention_bias")?.unwrap_or(false));
    Ok(Declared {
        architecture: Architecture {
            family: Family::Gemma3,
            layers,
            width,
            mlp_width: keys.size("intermediate_size")?.unwrap_or(9216),
            heads: keys.size("num_attention_heads")?.unwrap_or(8),
            kv_heads: keys.size("num_key_value_heads")?.unwrap_or(4),
            head_width,
            vocabulary: keys.size("vocab_size")?.unwrap_or(262_208),
            context,
            norm: Norm::Rms { epsilon: keys.number("rms_norm_eps")?.unwrap_or(1e-6) as f32 },
            mlp: Mlp::Gated(match keys.get("hidden_activation") {
                Some(_) => keys.activation("hidden_activation", "gelu_pytorch_tanh")?,
                None => Activation::GeluTanh,
            }),
            rotary: Some(global_rotary),
            local_rotary: Some(local_rotary),
            windows: local.iter().map(|&local| window.filter(|_| local)).collect(),
            attention_scale: inverse_root(scalar),
            residual: ResidualForm::Sequential,
            qk_norm: true,
            sandwich_norm: true,
            tied: tied.unwrap_or(true),
            embedding_scale: (width as f64).sqrt() as f32,
            logit_soft_cap: keys.number("final_logit_softcapping")?.map(|x| x as f32),
            attention_soft_cap: keys.number("attn_logit_softcapping")?.map(|x| x as f32),
        },
        biases: Biases { mlp: Bias::Never, ..Biases::layers(attention_bias) },
    })
}

/// Global and local rotation: `rope_parameters` by layer type, or `rope_theta`, `rope_scaling`
/// (global only) and `rope_local_base_freq`.
fn gemma3_rotary(keys: &Keys<'_>, head_width: usize, context: usize) -> Result<(Rotary, Rotary)> {
    let nested = keys.object("rope_parameters")?;
    let by_type = |name: &str| nested.as_ref().map(|n| n.object(name)).transpose().map(Option::flatten);
    let (full, sliding) = (by_type("full_attention")?, by_type("sliding_attention")?);
    if nested.is_some() && full.is_none() && sliding.is_none() {
        return Err(keys.corrupt(
            "`rope_parameters` has neither `full_attention` nor `sliding_attention`, as Gemma 3 needs".into(),
        ));
    }
    // The old key, where given, is laid over the new one.
    let scaling = keys.object("rope_scaling")?.or(full);
    let empty = Map::new();
    let none = Keys { path: keys.path, object: &empty };
    let base = |theta: &Option<Keys<'_>>, key: &str, default: f64| -> Result<f64> {
        let inner = theta.as_ref().map(|t| t.number("rope_theta")).transpose()?.flatten();
        Ok(inner.or(keys.number(key)?).unwrap_or(default))
    };
    let rotary = |inner: &Option<Keys<'_>>, base: f64| -> Result<Rotary> {
        let scaling = inner.as_ref().unwrap_or(&none).rotary_scaling(context)?;
        Ok(Rotary { width: head_width, pairs: RotaryPairs::Halves, base, scaling })
    };
    let global_base = base(&full.or(scaling), "rope_theta", 1_000_000.0)?;
    let local_base = base(&sliding, "rope_local_base_freq", 10_000.0)?;
    Ok((rotary(&scaling, global_base)?, rotary(&sliding, local_base)?))
}

fn gpt2(keys: &Keys<'_>) -> Result<Declared> {
    for key in ["scale_attn_by_inverse_layer_idx", "add_cross_attention"] {
        if keys.flag(key)?.unwrap_or(false) {
            return Err(unsupported(format!("`{key}` of gpt2"), "false"));
        }
    }
    let scaled = keys.flag("scale_attn_weights")?.unwrap_or(true);
    let mut declared = gpt(keys, Family::Gpt2)?;
    let a = &mut declared.architecture;
    a.attention_scale = if scaled { inverse_root(a.head_width as f64) } else { 1.0 };
    a.tied = keys.flag("tie_word_embeddings")?.unwrap_or(true);
    declared.biases = Biases::layers(Bias::Always);
    Ok(declared)
}

fn gptj(keys: &Keys<'_>) -> Result<Declared> {
    let rotated = match keys.object.get("rotary_dim") {
        Some(Value::Null) => {
            return Err(unsupported("`rotary_dim` null of gptj".into(), "a number"));
        }
        _ => keys.size("rotary_dim")?.unwrap_or(64),
    };
    let mut declared = gpt(keys, Family::Gptj)?;
    let a = &mut declared.architecture;
    a.rotary = Some(Rotary {
        width: rotated,
        pairs: RotaryPairs::Neighbours,
        base: 10_000.0,
        scaling: RotaryScaling::None,
    });
    a.residual = ResidualForm::ParallelSharedNorm;
    a.tied = keys.flag("tie_word_embeddings")?.unwrap_or(false);
    declared.biases = Biases { mlp: Bias::Always, head: Bias::Always, ..Biases::layers(Bias::Never) };
    Ok(declared)
}

/// What GPT-2 and GPT-J share, with OpenAI's key names.
fn gpt(keys: &Keys<'_>, family: Family) -> Result<Declared> {
    let width = keys.needed_either("n_embd", "hidden_size")?;
    let heads = keys.needed_either("n_head", "num_attention_heads")?;
    let layers = keys.layers(if keys.get("n_layer").is_some() { "n_layer" } else { "num_hidden_layers" })?;
    let head_width = keys.divided("n_embd", width, "n_head", heads)?;
    let context = match keys.size("n_positions")? {
        Some(n) => Some(n),
        None => keys.size("n_ctx")?.or(keys.size("max_position_embeddings")?),
    };
    Ok(Declared {
        architecture: Architecture {
            family,
            layers,
            width,
            mlp_width: keys.size("n_inner")?.unwrap_or(width.saturating_mul(4)),
            heads,
            kv_heads: heads,
            head_width,
            vocabulary: keys.needed("vocab_size")?,
            context: context.unwrap_or(if family == Family::Gptj { 2048 } else { 1024 }),
            norm: Norm::Layer { epsilon: keys.number("layer_norm_epsilon")?.unwrap_or(1e-5) as f32 },
            mlp: Mlp::Plain(keys.activation("activation_function", "gelu_new")?),
            rotary: None,
            local_rotary: None,
            windows: vec![None; layers],
            attention_scale: inverse_root(head_width as f64),
            residual: ResidualForm::Sequential,
            qk_norm: false,
            sandwich_norm: false,
            tied: true,
            embedding_scale: 1.0,
            logit_soft_cap: None,
            attention_soft_cap: None,
        },
        biases: Biases::layers(Bias::Never),
    })
}

fn gpt_neox(keys: &Keys<'_>) -> Result<Declared> {
    let width = keys.needed("hidden_size")?;
    let heads = keys.needed("num_attention_heads")?;
    let layers = keys.layers("num_hidden_layers")?;
    let head_width = keys.divided("hidden_size", width, "num_attention_heads", heads)?;
    let context = keys.size("max_position_embeddings")?.unwrap_or(2048);
    let inner = keys.rope_object()?;
    let nested = |key: &str| inner.as_ref().map(|i| i.number(key)).transpose().map(Option::flatten);
    let fraction = match nested("partial_rotary_factor")?.or(keys.number("rotary_pct")?) {
        Some(x) => x,
        None => keys.number("partial_rotary_factor")?.unwrap_or(0.25),
    };
    if !(fraction > 0.0 && fraction <= 1.0) {
        return Err(keys.corrupt(format!("`rotary_pct` is {fraction}, expected more than 0 and at most 1")));
    }
    let base = match nested("rope_theta")?.or(keys.number("rotary_emb_base")?) {
        Some(x) => x,
        None => keys.number("rope_theta")?.unwrap_or(10_000.0),
    };
    let scaling = inner.map(|i| i.rotary_scaling(context)).transpose()?.unwrap_or(RotaryScaling::None);
    let parallel = keys.flag("use_parallel_residual")?.unwrap_or(true);
    let attention_bias = Bias::declared(keys.flag("attention_bias")?.unwrap_or(true));
    Ok(Declared {
        architecture: Architecture {
            family: Family::GptNeox,
            layers,
            width,
            mlp_width: keys.needed("intermediate_size")?,
            heads,
            kv_heads: heads,
            head_width,
            vocabulary: keys.needed("vocab_size")?,
            context,
            norm: Norm::Layer { epsilon: keys.number("layer_norm_eps")?.unwrap_or(1e-5) as f32 },
            mlp: Mlp::Plain(keys.activation("hidden_act", "gelu")?),
            rotary: Some(Rotary {
                width: (head_width as f64 * fraction) as usize,
                pairs: RotaryPairs::Halves,
                base,
                scaling,
            }),
            local_rotary: None,
            windows: vec![None; layers],
            attention_scale: inverse_root(head_width as f64),
            residual: if parallel { ResidualForm::Parallel } else { ResidualForm::Sequential },
            qk_norm: false,
            sandwich_norm: false,
            tied: keys.flag("tie_word_embeddings")?.unwrap_or(false),
            embedding_scale: 1.0,
            logit_soft_cap: None,
            attention_soft_cap: None,
        },
        biases: Biases { mlp: Bias::Always, ..Biases::layers(attention_bias) },
    })
}

fn inverse_root(x: f64) -> f32 {
    (1.0 / x.sqrt()) as f32
}
