//! A JSON object of `config.json`, read by key: types are checked, and errors name the key.

use std::path::Path;

use serde_json::{Map, Value};

use crate::architecture::{Activation, Rotary, RotaryPairs, RotaryScaling};
use crate::error::{Error, Result};

/// One JSON object, read by key with typed errors. A null counts as absent.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    pub(super) path: &'a Path,
    pub(super) object: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    pub(super) fn corrupt(&self, what: String) -> Error {
        Error::Corrupt { path: self.path.to_owned(), format: "config.json", what }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|v| !v.is_null())
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match read(value) {
            Some(v) => Ok(Some(v)),
            None => {
                let mut shown = value.to_string();
                if shown.chars().count() > 60 {
                    shown = shown.chars().take(60).chain(['…']).collect();
                }
                Err(self.corrupt(format!("`{key}` is {shown}, expected {expected}")))
            }
        }
    }

    pub(super) fn size(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number", |v| v.as_u64().and_then(|n| n.try_into().ok()))
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(super) fn object(&self, key: &str) -> Result<Option<Keys<'a>>> {
        let object = self.typed(key, "an object", Value::as_object)?;
        Ok(object.map(|object| Keys { path: self.path, object }))
    }

    pub(super) fn needed(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| self.corrupt(format!("`{key}` is missing")))
    }

    pub(super) fn needed_either(&self, key: &str, alias: &str) -> Result<usize> {
        match self.size(alias)? {
            Some(n) if self.get(key).is_none() => Ok(n),
            _ => self.needed(key),
        }
    }

    /// The number of layers, checked at once: lists of that length are made.
    pub(super) fn layers(&self, key: &str) -> Result<usize> {
        match self.needed(key)? {
            n @ 1..=10_000 => Ok(n),
            n => Err(self.corrupt(format!("`{key}` is {n}, expected 1 to 10000"))),
        }
    }

    pub(super) fn divided(&self, key: &str, value: usize, by_key: &str, by: usize) -> Result<usize> {
        if by == 0 || !value.is_multiple_of(by) {
            return Err(self.corrupt(format!("`{key}` {value} is not a multiple of `{by_key}` {by}")));
        }
        Ok(value / by)
    }

    pub(super) fn activation(&self, key: &str, default: &str) -> Result<Activation> {
        Ok(match self.text(key)?.unwrap_or(default) {
            "silu" | "swish" => Activation::Silu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
            "gelu" | "gelu_python" => Activation::Gelu,
            "relu" => Activation::Relu,
            other => {
                let known = "silu, gelu, gelu_new, gelu_pytorch_tanh, relu";
                return Err(unsupported(format!("the activation `{other}` (`{key}`)"), known));
            }
        })
    }

    /// Which layers attend to a window, from `layer_types`.
    pub(super) fn local_layers(&self, layers: usize) -> Result<Option<Vec<bool>>> {
        let Some(types) = self.typed("layer_types", "an array", Value::as_array)? else {
            return Ok(None);
        };
        if types.len() != layers {
            return Err(self.corrupt(format!("`layer_types` has {} entries, expected {layers}", types.len())));
        }
        let local = types.iter().map(|t| match t.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => Err(unsupported(format!("the layer type {t}"), "full_attention, sliding_attention")),
        });
        local.collect::<Result<_>>().map(Some)
    }

    /// `rope_scaling`, or transformers 5's `rope_parameters`.
    pub(super) fn rope_object(&self) -> Result<Option<Keys<'a>>> {
        match self.object("rope_scaling")?.filter(|o| !o.object.is_empty()) {
            Some(old) => Ok(Some(old)),
            None => self.object("rope_parameters"),
        }
    }

    pub(super) fn rotary(&self, width: usize, context: usize) -> Result<Rotary> {
        let inner = self.rope_object()?;
        let base = inner.as_ref().map(|i| i.number("rope_theta")).transpose()?.flatten();
        let base = base.or(self.number("rope_theta")?).unwrap_or(10_000.0);
        let scaling = inner.map(|i| i.rotary_scaling(context)).transpose()?.unwrap_or(RotaryScaling::None);
        Ok(Rotary { width, pairs: RotaryPairs::Halves, base, scaling })
    }

    /// The scaling that this object, `rope_scaling` or alike, describes.
    pub(super) fn rotary_scaling(&self, context: usize) -> Result<RotaryScaling> {
        let kind = self.text("rope_type")?.or(self.text("type")?).unwrap_or("default");
        let needed = |key: &str| {
            self.number(key)?.ok_or_else(|| self.corrupt(format!("rotary scaling `{kind}` has no `{key}`")))
        };
        Ok(match kind {
            "default" => RotaryScaling::None,
            "linear" => RotaryScaling::Linear { factor: needed("factor")? },
            "llama3" => RotaryScaling::Llama3 {
                factor: needed("factor")?,
                low_frequency_factor: needed("low_freq_factor")?,
                high_frequency_factor: needed("high_freq_factor")?,
                original_context: self.number("original_max_position_embeddings")?.unwrap_or(context as f64),
            },
            other => {
                return Err(unsupported(format!("the rotary scaling `{other}`"), "default, linear, llama3"));
            }
        })
    }

    /// Families that rotate whole heads in transformers, whatever the config says, are not given
    /// a config that says otherwise.
    pub(super) fn refuse_partial_rotation(&self) -> Result<()> {
        let inner = self.rope_object()?.map(|i| i.number("partial_rotary_factor")).transpose()?.flatten();
        match inner.or(self.number("partial_rotary_factor")?) {
            Some(x) if x != 1.0 => {
                Err(unsupported(format!("`partial_rotary_factor` {x} for this model type"), "1, or gpt_neox"))
            }
            _ => Ok(()),
        }
    }
}

/// A setting that the engine does not compute, and what it does in its place.
pub(super) fn unsupported(what: String, known: &str) -> Error {
    Error::Unsupported { what, known: Some(known.to_owned()) }
}
