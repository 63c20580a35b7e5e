//! The layout of `peft`: a folder with `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use mutandis_engine::architecture::Family;
use mutandis_engine::checkpoint::{Container, Dtype, check_finite};
use safetensors::tensor::{SafeTensors, TensorView};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Adapter, Module, scale};
use crate::atomic;
use crate::error::{Error, Result};

pub(super) const CONFIG: &str = "adapter_config.json";
pub(super) const WEIGHTS: &str = "adapter_model.safetensors";

/// What stands before every module's name: `peft`'s wrapper and the model in it.
const PREFIX: &str = "base_model.model.";
const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";

/// What in a config says how factors become a change; the rest is about training.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    alpha_pattern: Map<String, Value>,
    #[serde(default)]
    rank_pattern: Map<String, Value>,
}

/// Settings that make an adapter more than `B · A` added to the weights as they are.
const MORE: [&str; 12] = [
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "kasa_config",
    "arrow_config",
    "monteclora_config",
    "alora_invocation_tokens",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
];

/// Ways to start a training that change the base as well.
const NOT_ON_THE_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

pub(super) fn write(adapter: &Adapter, folder: &Path) -> Result<()> {
    let rank = adapter.rank;
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = vec![];
    for m in &adapter.modules {
        let (a, b) = (m.padded_a(rank), m.padded_b(rank));
        tensors.push((format!("{PREFIX}{}{A}", m.name), vec![rank, a.len() / rank], a));
        tensors.push((format!("{PREFIX}{}{B}", m.name), vec![b.len() / rank, rank], b));
    }
    let views: Result<Vec<_>, _> = tensors
        .iter()
        .map(|(name, shape, numbers)| {
            let bytes = bytemuck::cast_slice(numbers);
            Ok((name, TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes)?))
        })
        .collect();
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let weights = views
        .and_then(|views| safetensors::serialize(views, Some(format)))
        .map_err(|e| Error::input(format!("the adapter cannot be written: {e:?}")))?;
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": null,
        "inference_mode": true,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        // GPT-2 alone stores its matrices as [in, out]; factors are as everywhere.
        "fan_in_fan_out": adapter.family == Family::Gpt2,
        "modules_to_save": null,
        "target_modules": adapter.modules.iter().map(|m| &m.name).collect::<Vec<_>>(),
    });
    let config = serde_json::to_string_pretty(&config).map(|text| text + "\n");
    let config = config.map_err(|e| Error::input(format!("the adapter cannot be written: {e}")))?;
    atomic::write_folder(folder, &[(CONFIG, config.as_bytes()), (WEIGHTS, &weights)])
        .map_err(|e| Error::unwritable(folder, &e))
}

pub(super) fn read(folder: &Path, family: Family) -> Result<Adapter> {
    let path = folder.join(CONFIG);
    let text = std::fs::read(&path).map_err(|e| absent(folder, &path, e))?;
    let config = read_config(&text, &path)?;
    let path = folder.join(WEIGHTS);
    let bytes = std::fs::read(&path).map_err(|e| absent(folder, &path, e))?;
    let corrupt = |why: String| Error::Corrupt { path: path.clone(), what: "adapter", why };
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|e| corrupt(format!("its tensors cannot be read: {e:?}")))?;
    let mut pairs: BTreeMap<String, [Option<TensorView<'_>>; 2]> = BTreeMap::new();
    for (name, view) in tensors.tensors() {
        let bare = name.strip_prefix(PREFIX).unwrap_or(&name);
        match (bare.strip_suffix(A), bare.strip_suffix(B)) {
            (Some(module), _) => pairs.entry(module.to_owned()).or_default()[0] = Some(view),
            (_, Some(module)) => pairs.entry(module.to_owned()).or_default()[1] = Some(view),
            _ => return Err(unread(&name)),
        }
    }
    let mut modules = vec![];
    for (name, pair) in pairs {
        let [Some(a), Some(b)] = pair else {
            return Err(corrupt(format!("of `{name}` it has only one of `lora_A` and `lora_B`")));
        };
        let (&[rank, _], &[_, columns]) = (a.shape(), b.shape()) else {
            return Err(corrupt(format!("the factors of `{name}` are {:?} and {:?}", a.shape(), b.shape())));
        };
        let declared = config.rank(&name)?;
        if rank != columns || rank != declared || rank == 0 {
            return Err(corrupt(format!(
                "the factors of `{name}` are {:?} and {:?}, but `{CONFIG}` says rank {declared}",
                a.shape(),
                b.shape()
            )));
        }
        let (a, mut b) = (numbers(&name, &a)?, numbers(&name, &b)?);
        let (setting, alpha) = config.alpha(&name)?;
        scale(&name, setting, alpha, alpha / config.divisor(rank), &mut b)?;
        modules.push(Module { name, rank, a, b, lost: 0.0 });
    }
    let rank = modules.iter().map(|m| m.rank).max();
    let rank = rank.ok_or_else(|| corrupt("it holds no factors".into()))?;
    Ok(Adapter { container: Container::Safetensors, family, rank, modules })
}

impl Config {
    /// Rank of a module.
    fn rank(&self, module: &str) -> Result<usize> {
        let own = matching(&self.rank_pattern, "rank_pattern", module)?.and_then(Value::as_u64);
        Ok(own.map_or(self.r, |rank| usize::try_from(rank).unwrap_or(usize::MAX)))
    }

    /// α of a module, and the setting that it stands in.
    fn alpha(&self, module: &str) -> Result<(&'static str, f64)> {
        let setting = "alpha_pattern";
        let own = matching(&self.alpha_pattern, setting, module)?.and_then(Value::as_f64);
        Ok(own.map_or(("lora_alpha", self.lora_alpha), |alpha| (setting, alpha)))
    }

    /// What α is divided by to give what `B · A` is multiplied by: r, or √r (rank-stabilised,
    /// arXiv 2312.03732).
    fn divisor(&self, rank: usize) -> f64 {
        if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 }
    }
}

/// The value for a module: that of the first pattern that is its name, or the end of it behind a
/// dot. `peft` takes regular expressions; those in use are names, and others are refused.
fn matching<'a>(patterns: &'a Map<String, Value>, setting: &str, module: &str) -> Result<Option<&'a Value>> {
    for (pattern, value) in patterns {
        let plain = pattern.trim_start_matches('^').trim_end_matches('$').replace("\\.", ".");
        if !value.is_number() || plain.contains(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '.')
        {
            return Err(Error::input_hint(
                format!(
                    "`{setting}` of `{CONFIG}` has `{pattern}`: {value}, expected a module's name and a number"
                ),
                "write the modules out one by one, each with its number",
            ));
        }
        let ends = |rest: &str| rest.is_empty() || (rest.ends_with('.') && !pattern.starts_with('^'));
        if module.strip_suffix(plain.as_str()).is_some_and(ends) {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

fn read_config(text: &[u8], path: &Path) -> Result<Config> {
    let corrupt = |e: serde_json::Error| {
        let at = near(text, &e).map(|name| format!(", at `{name}`")).unwrap_or_default();
        Error::Corrupt { path: path.to_owned(), what: "adapter", why: format!("{e}{at}") }
    };
    let mut fields: Map<String, Value> = serde_json::from_slice(text).map_err(corrupt)?;
    // `null` is how `peft` writes what is not set.
    fields.retain(|_, value| !value.is_null());
    let set = |value: &Value| match value {
        Value::Bool(on) => *on,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    };
    if let Some(name) = MORE.iter().find(|name| fields.get(**name).is_some_and(set)) {
        return Err(not_lora(&format!("`{name}` is set in `{CONFIG}`")));
    }
    if let Some(bias) = fields.get("bias").and_then(Value::as_str).filter(|bias| *bias != "none") {
        return Err(not_lora(&format!("`bias` is `{bias}` in `{CONFIG}`")));
    }
    let start = fields.get("init_lora_weights").and_then(Value::as_str).unwrap_or_default();
    if NOT_ON_THE_BASE.iter().any(|known| start.starts_with(known)) {
        return Err(Error::input_hint(
            format!("the adapter started from `{start}`, which changes the base as well"),
            "convert it to a plain LoRA first: `save_pretrained` of `peft` has `path_initial_model_for_weight_conversion`",
        ));
    }
    let config: Config = serde_json::from_value(Value::Object(fields)).map_err(corrupt)?;
    if config.peft_type != "LORA" {
        return Err(not_lora(&format!("`peft_type` is `{}` in `{CONFIG}`", config.peft_type)));
    }
    Ok(config)
}

/// The setting that an error in a config is about: the last text in quotes before it.
fn near<'a>(text: &'a [u8], error: &serde_json::Error) -> Option<&'a str> {
    let line = std::str::from_utf8(text).ok()?.lines().nth(error.line().checked_sub(1)?)?;
    line.get(..error.column().min(line.len()))?.rsplit('"').nth(1)
}

fn numbers(name: &str, view: &TensorView<'_>) -> Result<Vec<f32>> {
    let dtype = match view.dtype() {
        safetensors::Dtype::F32 => Dtype::F32,
        safetensors::Dtype::F16 => Dtype::F16,
        safetensors::Dtype::BF16 => Dtype::Bf16,
        other => {
            return Err(Error::input_hint(
                format!("the factors of `{name}` are {other:?}, expected F32, F16 or BF16"),
                "save the adapter in one of these",
            ));
        }
    };
    let mut numbers = vec![0.0; view.data().len() / dtype.block_bytes()];
    dtype.decode(view.data(), &mut numbers);
    check_finite(name, &numbers)?;
    Ok(numbers)
}

fn not_lora(why: &str) -> Error {
    Error::input_hint(
        format!("the adapter is more than low-rank changes of weights: {why}"),
        "merge it into its base with `peft` (`merge_and_unload`) and take the difference: `mutandis patch from-diff`",
    )
}

fn unread(name: &str) -> Error {
    let what = [
        ("lora_embedding", "an embedding"),
        ("lora_magnitude_vector", "the scales of DoRA"),
        ("bias", "a bias"),
    ];
    let what =
        what.iter().find(|(part, _)| name.contains(part)).map_or("no factor of a linear map", |(_, w)| w);
    not_lora(&format!("`{name}` is {what}"))
}

fn absent(folder: &Path, path: &PathBuf, error: std::io::Error) -> Error {
    if error.kind() != std::io::ErrorKind::NotFound {
        return Error::io("read", path)(error);
    }
    let pickled = folder.join("adapter_model.bin").exists();
    Error::input_hint(
        format!("`{}` is missing", path.display()),
        if pickled {
            "`adapter_model.bin` is a pickle, which is not read: save the adapter anew with a recent `peft`"
                .to_owned()
        } else {
            format!(
                "give a folder that `peft` wrote, with `{CONFIG}` and `{WEIGHTS}`, or llama.cpp's `.gguf`"
            )
        },
    )
}
