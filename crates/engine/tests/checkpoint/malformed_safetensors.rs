//! Broken and hostile safetensors files, indices and configs: each class with its message, and
//! properties over random damage.

use std::path::Path;

use mutandis_engine::checkpoint::Checkpoint;
use proptest::prelude::*;
use serde_json::json;

use crate::builder::{raw_safetensors, safetensors, write_model};
use crate::families::read_everything;

/// The smallest model, to see the safetensors reader through [`Checkpoint::open`].
fn open_with(weights: &[u8]) -> Result<Checkpoint, String> {
    let directory = tempfile::tempdir().unwrap();
    write_model(directory.path(), &config(), weights);
    Checkpoint::open(directory.path()).map_err(|e| e.to_string())
}

fn config() -> serde_json::Value {
    json!({"model_type": "llama", "hidden_size": 2, "num_attention_heads": 1, "num_hidden_layers": 1,
        "vocab_size": 3, "intermediate_size": 2, "tie_word_embeddings": true})
}

fn tensors() -> Vec<(String, &'static str, Vec<usize>, Vec<u8>)> {
    let layer = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
    let mlp = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];
    let mut out = vec![("model.embed_tokens.weight".to_owned(), "F32", vec![3, 2], vec![1; 24])];
    for name in layer.iter().chain(&mlp) {
        out.push((format!("model.layers.0.{name}.weight"), "BF16", vec![2, 2], vec![2; 8]));
    }
    for name in ["layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm"] {
        out.push((format!("model.{name}.weight"), "F16", vec![2], vec![3; 4]));
    }
    out
}

#[test]
fn broken_safetensors_are_refused() {
    open_with(&safetensors(&tensors())).unwrap();
    let case = |weights: &[u8], expected: &str| {
        let message = open_with(weights).unwrap_err();
        assert!(message.contains(expected), "expected `{expected}` in `{message}`");
    };
    case(b"", "the file has 0 bytes, fewer than its own length field");
    case(
        &(1u64 << 60).to_le_bytes(),
        "the header is said to take 1152921504606846976 bytes, but the file has 8",
    );
    case(&raw_safetensors("{\"a\":"), "the header is not valid JSON");
    case(&raw_safetensors("[]"), "the header is not valid JSON");
    case(&raw_safetensors(&"[".repeat(100_000)), "the header is not valid JSON");
    let entry = |shape: &str, offsets: &str| {
        let header = format!("{{\"a\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":{offsets}}}}}");
        [raw_safetensors(&header), vec![0; 8]].concat()
    };
    case(&entry("[2]", "[0,16]"), "tensor `a` lies at 0..16, but there are 8 bytes of data");
    case(&entry("[2]", "[8,0]"), "tensor `a` lies at 8..0");
    case(&entry("[2]", "[0,18446744073709551608]"), "tensor `a` lies at 0..18446744073709551608");
    case(&entry("[4294967296,4294967296,4]", "[0,8]"), "of tensor `a` overflows");
    case(&entry("[3]", "[0,8]"), "tensor `a` of shape [3] and format F32 has 8 bytes");
    case(&entry("[-1]", "[0,8]"), "the entry of tensor `a`: invalid value");
    case(&entry("[1]", "[4,8]"), "tensor `a` leaves a gap before it");
    case(&entry("[1]", "[0,4]"), "the tensors end at byte");
    let two = "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},\
                \"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}";
    case(&[raw_safetensors(two), vec![0; 8]].concat(), "tensor `b` overlaps the tensor before it");
}

#[test]
fn shards_are_joined_and_bad_indices_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (&tensors()[..5], &tensors()[5..]);
    let write = |name: &str, bytes: &[u8]| std::fs::write(directory.path().join(name), bytes).unwrap();
    write("config.json", config().to_string().as_bytes());
    write("s-1.safetensors", &safetensors(first));
    let index = |second_name: &str, extra: &str| {
        let mut map = serde_json::Map::new();
        map.extend(first.iter().map(|t| (t.0.clone(), json!("s-1.safetensors"))));
        map.extend(second.iter().map(|t| (t.0.clone(), json!(second_name))));
        if !extra.is_empty() {
            map.insert(extra.into(), json!("s-1.safetensors"));
        }
        write("model.safetensors.index.json", json!({"weight_map": map}).to_string().as_bytes());
        Checkpoint::open(directory.path()).map_err(|e| e.to_string())
    };
    let case = |second_name: &str, extra: &str, expected: &str| {
        let message = index(second_name, extra).unwrap_err();
        assert!(message.contains(expected), "expected `{expected}` in `{message}`");
    };
    case("s-2.safetensors", "", "shard `s-2.safetensors` is missing from");
    write("s-2.safetensors", &safetensors(second));
    for escape in ["../s-2.safetensors", "/etc/passwd", "..", "a\\b", ""] {
        case(escape, "", "which is not a plain file name");
    }
    case("s-2.safetensors", "x.weight", "tensor `x.weight` is missing from its shard \"s-1.safetensors\"");
    let whole = index("s-2.safetensors", "").unwrap();
    let print = whole.fingerprint();
    write("s-2.safetensors", &safetensors(&[second, &first[..1]].concat()));
    case("s-2.safetensors", "", "tensor `model.embed_tokens.weight` is present twice");
    let mut changed = second.to_vec();
    changed[3].3[0] ^= 1;
    write("s-2.safetensors", &safetensors(&changed));
    assert_ne!(index("s-2.safetensors", "").unwrap().fingerprint(), print);
    write("model.safetensors.index.json", b"{}");
    let message = Checkpoint::open(directory.path()).unwrap_err().to_string();
    assert!(message.contains("it has no object `weight_map`"), "{message}");
}

#[test]
fn senseless_configs_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let attempt = |key: &str, value: serde_json::Value| {
        let mut config = config();
        config.as_object_mut().unwrap().insert(key.into(), value);
        write_model(directory.path(), &config, &safetensors(&tensors()));
        Checkpoint::open(directory.path()).unwrap_err().to_string()
    };
    for (key, value, expected) in [
        ("model_type", json!("bloom"), "the model type `bloom` is not supported (supported: llama, mistral"),
        ("model_type", json!(null), "it has no `model_type`"),
        ("hidden_size", json!(null), "`hidden_size` is missing"),
        ("hidden_size", json!("2"), "`hidden_size` is \"2\", expected a whole number"),
        ("hidden_size", json!(-2), "`hidden_size` is -2, expected a whole number"),
        ("hidden_size", json!(1u64 << 60), "the model width is 1152921504606846976, expected 1 to"),
        (
            "num_hidden_layers",
            json!(1u64 << 60),
            "`num_hidden_layers` is 1152921504606846976, expected 1 to 10000",
        ),
        ("num_hidden_layers", json!(2), "tensor `model.layers.1.input_layernorm.weight` is missing"),
        ("num_attention_heads", json!(0), "not a multiple of `num_attention_heads` 0"),
        ("num_key_value_heads", json!(2), "the 1 heads are not a multiple of the 2 key and value heads"),
        ("head_dim", json!(3), "the rotary width is 3, expected an even number"),
        ("vocab_size", json!(4), "tensor `model.embed_tokens.weight` has shape [3, 2], expected [4, 2]"),
        ("attention_bias", json!(true), "tensor `model.layers.0.self_attn.q_proj.bias` is missing"),
        ("attention_bias", json!(1), "`attention_bias` is 1, expected true or false"),
        ("hidden_act", json!("mish"), "the activation `mish` (`hidden_act`) is not supported"),
        ("rope_theta", json!(-1.0), "the rotary base is -1, expected a positive number"),
        ("rope_scaling", json!({"rope_type": "yarn"}), "the rotary scaling `yarn` is not supported"),
        ("rope_scaling", json!({"type": "linear"}), "rotary scaling `linear` has no `factor`"),
        ("rope_parameters", json!([1]), "`rope_parameters` is [1], expected an object"),
        ("rms_norm_eps", json!(0.0), "the norm's epsilon is 0, expected a positive number"),
        ("quantization_config", json!({"quant_method": "gptq"}), "a checkpoint quantised with `gptq`"),
    ] {
        let message = attempt(key, value);
        assert!(message.contains(expected), "expected `{expected}` in `{message}`");
    }
    std::fs::remove_file(directory.path().join("config.json")).unwrap();
    let message = Checkpoint::open(directory.path()).unwrap_err().to_string();
    assert!(message.contains("config.json` is missing"), "{message}");
}

#[test]
fn paths_without_a_checkpoint_are_explained() {
    let directory = tempfile::tempdir().unwrap();
    let message = |path: &Path| Checkpoint::open(path).unwrap_err().to_string();
    assert!(message(directory.path()).contains("holds no `model.safetensors`"));
    assert!(message(&directory.path().join("none")).starts_with("cannot open"));
    std::fs::write(directory.path().join("pytorch_model.bin"), b"x").unwrap();
    assert!(message(directory.path()).contains("a checkpoint of Python pickles is not supported"));
    assert!(
        message(&directory.path().join("pytorch_model.bin"))
            .contains("neither a GGUF nor a safetensors file")
    );
    std::fs::write(directory.path().join("a.gguf"), b"").unwrap();
    assert!(message(directory.path()).contains("is not a valid GGUF file: the file ends inside the magic"));
}

/// Opens damaged weights; a mistake would panic, or read outside the map.
fn check_safetensors(weights: &[u8]) {
    if let Ok(c) = open_with(weights) {
        read_everything(&c);
        let names: Vec<_> = c.tensor_names().map(str::to_owned).collect();
        assert!(
            names.iter().all(|n| c.tensor(n).is_err() || c.tensor(n).unwrap().bytes.len() < weights.len())
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_upset_safetensors(json in "[{}\\[\\]\":,a-z0-9]{0,80}", raw in proptest::collection::vec(any::<u8>(), 0..80)) {
        check_safetensors(&raw_safetensors(&json));
        check_safetensors(&raw);
    }

    #[test]
    fn damage_never_upsets_safetensors(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = safetensors(&tensors());
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        check_safetensors(&bytes);
    }
}
