//! The layout of llama.cpp: a GGUF file of type `adapter`, with `NAME.weight.lora_a` and `.lora_b`.

use std::collections::BTreeMap;
use std::path::Path;

use mutandis_engine::architecture::Family;
use mutandis_engine::checkpoint::{
    Container, Dtype, Gguf, GgufTensor, GgufWriter, Value, check_finite, gguf_architecture,
};

use super::{Adapter, Module, scale};
use crate::atomic;
use crate::error::{Error, Result};

const A: &str = ".weight.lora_a";
const B: &str = ".weight.lora_b";
const ALPHA: &str = "adapter.lora.alpha";

pub(super) fn write(adapter: &Adapter, path: &Path) -> Result<()> {
    let rank = adapter.rank;
    let mut file = GgufWriter::new();
    for (key, value) in [
        ("general.type", "adapter"),
        ("general.architecture", gguf_architecture(adapter.family)),
        ("adapter.type", "lora"),
    ] {
        file.metadata(key, &Value::Str(value.to_owned()));
    }
    file.metadata(ALPHA, &Value::F32(rank as f32));
    for m in &adapter.modules {
        let (a, b) = (m.padded_a(rank), m.padded_b(rank));
        let (inn, rows) = (a.len() / rank, b.len() / rank);
        file.tensor(&format!("{}{A}", m.name), Dtype::F32, &[rank, inn], bytes(a))?;
        file.tensor(&format!("{}{B}", m.name), Dtype::F32, &[rows, rank], bytes(b))?;
    }
    atomic::write(path, |to| file.write(to)).map_err(|e| Error::unwritable(path, &e))
}

pub(super) fn read(path: &Path, family: Family) -> Result<Adapter> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let gguf = Gguf::parse(&bytes, path)?;
    let text = |key: &str| Ok::<_, Error>(gguf.str(key)?.unwrap_or_default());
    let kind = (text("general.type")?, text("adapter.type")?);
    if kind != ("adapter", "lora") {
        return Err(Error::input_hint(
            format!(
                "`{}` is a GGUF of type `{}` `{}`, expected `adapter` `lora`",
                path.display(),
                kind.0,
                kind.1
            ),
            "give an adapter that llama.cpp's converter or `mutandis patch export` wrote; two models are compared by `mutandis patch from-diff`",
        ));
    }
    let (found, wanted) = (text("general.architecture")?, gguf_architecture(family));
    if found != wanted {
        return Err(Error::input_hint(
            format!("the adapter is for the architecture `{found}`, the model is `{wanted}`"),
            "give the model that the adapter was trained on with `--model`",
        ));
    }
    if gguf.get("adapter.alora.invocation_tokens").is_some() {
        return Err(Error::input(
            "the adapter acts on a part of the text only (aLoRA), which no change of weights does",
        ));
    }
    let corrupt = |why: String| Error::Corrupt { path: path.to_owned(), what: "adapter", why };
    let mut pairs: BTreeMap<&str, [Option<&GgufTensor>; 2]> = BTreeMap::new();
    for tensor in gguf.tensors() {
        match (tensor.name.strip_suffix(A), tensor.name.strip_suffix(B)) {
            (Some(module), _) => pairs.entry(module).or_default()[0] = Some(tensor),
            (_, Some(module)) => pairs.entry(module).or_default()[1] = Some(tensor),
            _ => {
                return Err(Error::input_hint(
                    format!("the adapter holds `{}`, which is no factor of a linear map", tensor.name),
                    "only low-rank changes of linear maps are read",
                ));
            }
        }
    }
    let alpha = f64::from(gguf.f32(ALPHA)?.unwrap_or(0.0));
    let mut modules = vec![];
    for (name, pair) in pairs {
        let [Some(a), Some(b)] = pair else {
            return Err(corrupt(format!("of `{name}` it has only one of `lora_a` and `lora_b`")));
        };
        let (&[rank, _], &[_, columns]) = (&a.shape[..], &b.shape[..]) else {
            return Err(corrupt(format!("the factors of `{name}` are {:?} and {:?}", a.shape, b.shape)));
        };
        if rank != columns || rank == 0 {
            return Err(corrupt(format!("the factors of `{name}` are {:?} and {:?}", a.shape, b.shape)));
        }
        // As llama.cpp has it: without an alpha the factors are taken as they are.
        let by = if alpha == 0.0 { 1.0 } else { alpha / rank as f64 };
        let (a, mut b) = (numbers(&bytes, a)?, numbers(&bytes, b)?);
        scale(name, ALPHA, alpha, by, &mut b)?;
        modules.push(Module { name: name.to_owned(), rank, a, b, lost: 0.0 });
    }
    let rank = modules.iter().map(|m| m.rank).max().ok_or_else(|| corrupt("it holds no factors".into()))?;
    Ok(Adapter { container: Container::Gguf, family, rank, modules })
}

fn numbers(file: &[u8], tensor: &GgufTensor) -> Result<Vec<f32>> {
    let bytes = &file[tensor.range.clone()];
    let mut numbers = vec![0.0; bytes.len() / tensor.dtype.block_bytes() * tensor.dtype.block_len()];
    tensor.dtype.decode(bytes, &mut numbers);
    check_finite(&tensor.name, &numbers)?;
    Ok(numbers)
}

fn bytes(numbers: Vec<f32>) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}
