//! Every packing from values that are known, and the same weights from both containers.

use std::path::{Path, PathBuf};

use mutandis_engine::Error;
use mutandis_engine::architecture::{Part, ResidualForm, Role, RotaryScaling};
use mutandis_engine::checkpoint::{Checkpoint, Dtype};
use serde_json::{Value, json};

use crate::builder::{GgufBuilder, bf16, le, safetensors, values, write_model};

type Stored = (String, &'static str, Vec<usize>, Vec<u8>);

fn f32_tensor(name: &str, shape: &[usize], salt: usize) -> Stored {
    (name.into(), "F32", shape.to_vec(), le(&values(shape.iter().product(), salt)))
}

fn open(config: &Value, tensors: &[Stored]) -> Result<(Checkpoint, tempfile::TempDir), Error> {
    let directory = tempfile::tempdir().unwrap();
    write_model(directory.path(), config, &safetensors(tensors));
    Checkpoint::open(directory.path()).map(|c| (c, directory))
}

fn rows(c: &Checkpoint, role: Role) -> Vec<f32> {
    c.matrix(role, 0).unwrap().unwrap().to_f32()
}

fn gpt2_config() -> Value {
    json!({"model_type": "gpt2", "n_embd": 4, "n_head": 2, "n_layer": 1, "n_positions": 3, "vocab_size": 5})
}

/// GPT-2 as published on the hub: no prefix, `Conv1D`, a causal mask saved as a buffer.
fn gpt2_tensors(prefix: &str) -> Vec<Stored> {
    let n = |name: &str| format!("{prefix}{name}");
    vec![
        f32_tensor(&n("wte.weight"), &[5, 4], 1),
        f32_tensor(&n("wpe.weight"), &[3, 4], 2),
        f32_tensor(&n("h.0.ln_1.weight"), &[4], 3),
        f32_tensor(&n("h.0.ln_1.bias"), &[4], 4),
        f32_tensor(&n("h.0.attn.c_attn.weight"), &[4, 12], 5),
        f32_tensor(&n("h.0.attn.c_attn.bias"), &[12], 6),
        f32_tensor(&n("h.0.attn.c_proj.weight"), &[4, 4], 7),
        f32_tensor(&n("h.0.attn.c_proj.bias"), &[4], 8),
        (n("h.0.attn.bias"), "U8", vec![1, 1, 3, 3], vec![1; 9]),
        f32_tensor(&n("h.0.ln_2.weight"), &[4], 9),
        f32_tensor(&n("h.0.ln_2.bias"), &[4], 10),
        f32_tensor(&n("h.0.mlp.c_fc.weight"), &[4, 16], 11),
        f32_tensor(&n("h.0.mlp.c_fc.bias"), &[16], 12),
        f32_tensor(&n("h.0.mlp.c_proj.weight"), &[16, 4], 13),
        f32_tensor(&n("h.0.mlp.c_proj.bias"), &[4], 14),
        f32_tensor(&n("ln_f.weight"), &[4], 15),
        f32_tensor(&n("ln_f.bias"), &[4], 16),
    ]
}

#[test]
fn gpt2_matrices_are_transposed_and_split_by_declaration() {
    for prefix in ["", "transformer."] {
        let (c, _guard) = open(&gpt2_config(), &gpt2_tensors(prefix)).unwrap();
        let fused = values(48, 5);
        for (third, role) in [Role::Query, Role::Key, Role::Value].into_iter().enumerate() {
            let expected: Vec<f32> = (0..4)
                .flat_map(|o| (0..4).map(move |i| i * 12 + third * 4 + o))
                .map(|at| fused[at])
                .collect();
            assert_eq!(rows(&c, role), expected, "{role:?}");
            let bias = c.vector(role, Part::Bias, 0).unwrap().unwrap();
            assert_eq!(bias, values(12, 6)[third * 4..][..4]);
        }
        // A square matrix, where a guess from the shape would leave it as it is.
        let square = values(16, 7);
        let expected: Vec<f32> = (0..16).map(|at| square[at % 4 * 4 + at / 4]).collect();
        assert_eq!(rows(&c, Role::AttentionOut), expected);
        assert_eq!(rows(&c, Role::Head), rows(&c, Role::Embedding));
        assert_eq!(c.unused(), Vec::<String>::new());
        assert_eq!(c.tensor_name(Role::Key, Part::Bias, 0).unwrap(), format!("{prefix}h.0.attn.c_attn.bias"));
    }
}

#[test]
fn a_stored_head_that_differs_from_the_embedding_stands() {
    let mut tensors = gpt2_tensors("transformer.");
    tensors.push(f32_tensor("lm_head.weight", &[5, 4], 1));
    let (same, _guard) = open(&gpt2_config(), &tensors).unwrap();
    assert!(same.architecture().tied);
    assert_eq!(same.unused(), Vec::<String>::new());
    *tensors.last_mut().unwrap() = f32_tensor("lm_head.weight", &[5, 4], 99);
    let (other, _guard) = open(&gpt2_config(), &tensors).unwrap();
    assert!(!other.architecture().tied);
    assert_eq!(rows(&other, Role::Head), values(20, 99));
}

#[test]
fn tensors_that_lack_exceed_or_misfit_are_named() {
    let fails = |change: &dyn Fn(&mut Vec<Stored>)| {
        let mut tensors = gpt2_tensors("");
        change(&mut tensors);
        open(&gpt2_config(), &tensors).unwrap_err().to_string()
    };
    assert_eq!(
        fails(&|t| t.retain(|t| t.0 != "h.0.mlp.c_fc.bias")),
        "tensor `h.0.mlp.c_fc.bias` is missing from the checkpoint"
    );
    assert_eq!(
        fails(&|t| t[11] = f32_tensor("h.0.mlp.c_fc.weight", &[16, 4], 1)),
        "tensor `h.0.mlp.c_fc.weight` has shape [16, 4], expected [4, 16]"
    );
    let beyond = fails(&|t| t.push(f32_tensor("h.1.ln_1.weight", &[4], 1)));
    assert!(
        beyond.ends_with("tensor `h.1.ln_1.weight` belongs to layer 1, but 1 layers are declared"),
        "{beyond}"
    );
    let format = fails(&|t| t[0] = ("wte.weight".into(), "F64", vec![5, 4], vec![0; 160]));
    assert!(
        format.starts_with("tensor `wte.weight`: number format `F64` is not supported (supported: F32"),
        "{format}"
    );

    let mut surplus = gpt2_tensors("");
    surplus.push(f32_tensor("adapter.weight", &[2], 1));
    assert_eq!(open(&gpt2_config(), &surplus).unwrap().0.unused(), ["adapter.weight"]);
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    let mut tensors = gpt2_tensors("");
    tensors[2].3[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    tensors[13].3[20..24].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let (c, _guard) = open(&gpt2_config(), &tensors).unwrap();
    let vector = c.vector(Role::AttentionNorm, Part::Weight, 0).unwrap_err().to_string();
    assert_eq!(vector, "tensor `h.0.ln_1.weight` holds a value that is not finite, at element 1");
    assert_eq!(c.check_finite().unwrap_err().to_string(), vector);
    let matrix = c.matrix(Role::MlpOut, 0).unwrap().unwrap().check_finite("down").unwrap_err();
    // Element 5 of the stored [16, 4] is row 1, column 1 of [4, 16].
    assert_eq!(matrix.to_string(), "tensor `down` holds a value that is not finite, at element 17");
}

fn gemma3_text() -> Value {
    json!({"model_type": "gemma3_text", "hidden_size": 6, "intermediate_size": 8, "num_hidden_layers": 1,
           "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 5})
}

fn gemma3_tensors(prefix: &str) -> Vec<Stored> {
    let shapes: [(&str, &[usize]); 13] = [
        ("embed_tokens", &[5, 6]),
        ("layers.0.input_layernorm", &[6]),
        ("layers.0.self_attn.q_proj", &[8, 6]),
        ("layers.0.self_attn.k_proj", &[4, 6]),
        ("layers.0.self_attn.v_proj", &[4, 6]),
        ("layers.0.self_attn.q_norm", &[4]),
        ("layers.0.self_attn.k_norm", &[4]),
        ("layers.0.self_attn.o_proj", &[6, 8]),
        ("layers.0.post_attention_layernorm", &[6]),
        ("layers.0.pre_feedforward_layernorm", &[6]),
        ("layers.0.mlp.gate_proj", &[8, 6]),
        ("layers.0.mlp.up_proj", &[8, 6]),
        ("layers.0.mlp.down_proj", &[6, 8]),
    ];
    let last: [(&str, &[usize]); 2] = [("layers.0.post_feedforward_layernorm", &[6]), ("norm", &[6])];
    let all = shapes.iter().chain(&last).enumerate();
    all.map(|(i, (name, shape))| {
        let bytes = bf16(&values(shape.iter().product(), i));
        (format!("{prefix}{name}.weight"), "BF16", shape.to_vec(), bytes)
    })
    .collect()
}

#[test]
fn gemma3_is_found_under_every_prefix_and_its_norms_are_offset() {
    let multimodal = json!({"model_type": "gemma3", "text_config": gemma3_text(), "vision_config": {}});
    for (prefix, config) in [
        ("model.", gemma3_text()),
        ("", gemma3_text()),
        ("language_model.model.", multimodal.clone()),
        ("model.language_model.", multimodal),
    ] {
        let mut tensors = gemma3_tensors(prefix);
        tensors.push(("vision_tower.patch.weight".into(), "I64", vec![1], vec![0; 8]));
        let (c, _guard) = open(&config, &tensors).unwrap();
        let norm = c.vector(Role::FinalNorm, Part::Weight, 0).unwrap().unwrap();
        assert_eq!(norm, values(6, 14).iter().map(|w| w + 1.0).collect::<Vec<_>>(), "{prefix}");
        assert_eq!(c.matrix(Role::MlpUp, 0).unwrap().unwrap().dtype, Dtype::Bf16);
        // Not rounded to the weights' bf16 (2.453125): the engine computes in f32.
        assert_eq!(c.architecture().embedding_scale, 6f32.sqrt());
        assert_eq!(c.unused(), Vec::<String>::new());
    }
}

/// Old and new keys say the same.
#[test]
fn gemma3_configs_old_and_new_agree() {
    let with = |more: Value| {
        let mut config = gemma3_text();
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        open(&config, &gemma3_tensors("model.")).unwrap().0.architecture().clone()
    };
    let old = with(json!({"rope_theta": 2e6, "rope_local_base_freq": 5e3, "sliding_window": 7,
        "sliding_window_pattern": 2, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}));
    let new = with(json!({"sliding_window": 7, "layer_types": ["sliding_attention"], "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5e3}}}));
    assert_eq!(old, new);
    assert_eq!(old.rotary.unwrap().scaling, RotaryScaling::Linear { factor: 8.0 });
    assert_eq!(old.local_rotary.unwrap().scaling, RotaryScaling::None);
    assert_eq!(old.windows, [Some(7)]);
}

/// A Llama of one layer, two heads of width four, one of them for keys and values.
pub(crate) fn gguf_llama() -> GgufBuilder {
    GgufBuilder::new()
        .str("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 16)
        .u32("llama.embedding_length", 8)
        .u32("llama.feed_forward_length", 6)
        .u32("llama.attention.head_count", 2)
        .u32("llama.attention.head_count_kv", 1)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .tensor("token_embd.weight", &[5, 8], &values(40, 1))
        .tensor("blk.0.attn_norm.weight", &[8], &values(8, 2))
        .tensor("blk.0.attn_q.weight", &[8, 8], &values(64, 3))
        .tensor("blk.0.attn_q.bias", &[8], &values(8, 4))
        .tensor("blk.0.attn_k.weight", &[4, 8], &values(32, 5))
        .tensor("blk.0.attn_v.weight", &[4, 8], &values(32, 6))
        .tensor("blk.0.attn_output.weight", &[8, 8], &values(64, 7))
        .tensor("blk.0.ffn_norm.weight", &[8], &values(8, 8))
        .tensor("blk.0.ffn_gate.weight", &[6, 8], &values(48, 9))
        .tensor("blk.0.ffn_up.weight", &[6, 8], &values(48, 10))
        .tensor("blk.0.ffn_down.weight", &[8, 6], &values(48, 11))
        .tensor("output_norm.weight", &[8], &values(8, 12))
}

#[test]
fn llama_ggufs_are_unpermuted_with_their_biases() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.gguf");
    let file = gguf_llama().tensor("rope_freqs.weight", &[2], &[1.0, 4.0]);
    std::fs::write(&path, file.build()).unwrap();
    let c = Checkpoint::open(&path).unwrap();
    // Of every head of four rows, 0 2 1 3.
    let order = [0, 2, 1, 3, 4, 6, 5, 7];
    let stored = values(64, 3);
    let expected: Vec<f32> = order.iter().flat_map(|&r| stored[r * 8..][..8].to_vec()).collect();
    assert_eq!(rows(&c, Role::Query), expected);
    let bias = c.vector(Role::Query, Part::Bias, 0).unwrap().unwrap();
    assert_eq!(bias, order.map(|r| values(8, 4)[r]));
    assert_eq!(c.vector(Role::Key, Part::Bias, 0).unwrap(), None);
    let scaling = &c.architecture().rotary.as_ref().unwrap().scaling;
    assert_eq!(scaling, &RotaryScaling::Divisors(vec![1.0, 4.0]));
    assert_eq!(c.unused(), Vec::<String>::new());
}

#[test]
fn a_split_gguf_is_opened_from_any_piece() {
    let directory = tempfile::tempdir().unwrap();
    let piece = |i: u16, mut file: GgufBuilder| {
        let count = 2u16.to_le_bytes();
        file = file.raw("split.no", 2, &i.to_le_bytes()).raw("split.count", 2, &count);
        let path = directory.path().join(format!("m-{:05}-of-00002.gguf", i + 1));
        std::fs::write(&path, file.build()).unwrap();
        path
    };
    let mut first = gguf_llama();
    let mut second = GgufBuilder::new();
    second.tensors = first.tensors.split_off(6);
    let first = piece(0, first);
    let absent = Checkpoint::open(&first).unwrap_err().to_string();
    assert!(absent.ends_with("m-00002-of-00002.gguf`, piece 2 of 2, is missing"), "{absent}");
    let second = piece(1, second);
    for path in [&first, &second, &directory.path().to_owned()] {
        let c = Checkpoint::open(path).unwrap();
        assert_eq!(rows(&c, Role::MlpOut), values(48, 11));
        assert_eq!(c.files().count(), 2);
    }
}

/// Each fixture was saved by transformers, then converted to GGUF: both must come out alike.
#[test]
fn fixtures_agree_between_containers() {
    let fixtures = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures"));
    let mut pairs = 0;
    for entry in std::fs::read_dir(&fixtures).unwrap() {
        let directory = entry.unwrap().path();
        if directory.extension().is_some_and(|e| e == "gguf") {
            let c = Checkpoint::open(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
            c.check_finite().unwrap();
            assert_eq!(c.unused(), Vec::<String>::new(), "{}", directory.display());
        }
        if !directory.join("config.json").exists() {
            continue;
        }
        let a = Checkpoint::open(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
        a.check_finite().unwrap();
        assert_eq!(a.unused(), Vec::<String>::new(), "{}", directory.display());
        // The same in the keys of older versions of transformers.
        if let Ok(old) = std::fs::read(directory.join("config.old.json")) {
            let copy = tempfile::tempdir().unwrap();
            std::fs::copy(directory.join("model.safetensors"), copy.path().join("model.safetensors"))
                .unwrap();
            std::fs::write(copy.path().join("config.json"), old).unwrap();
            let b = Checkpoint::open(copy.path()).unwrap();
            assert_eq!(a.architecture(), b.architecture(), "{}", directory.display());
            assert_eq!(a.fingerprint(), b.fingerprint());
        }
        let gguf = directory.with_extension("gguf");
        if gguf.exists() {
            compare(&directory, &a, &Checkpoint::open(&gguf).unwrap());
            pairs += 1;
        }
    }
    eprintln!("{pairs} fixtures in both containers (none where they are not made yet)");
}

const ROLES: [Role; 17] = [
    Role::Embedding,
    Role::Positions,
    Role::AttentionNorm,
    Role::Query,
    Role::Key,
    Role::Value,
    Role::AttentionOut,
    Role::QueryNorm,
    Role::KeyNorm,
    Role::AttentionPostNorm,
    Role::MlpNorm,
    Role::MlpGate,
    Role::MlpUp,
    Role::MlpOut,
    Role::MlpPostNorm,
    Role::FinalNorm,
    Role::Head,
];

/// Decodes every weight that a model has, whether or not its values make sense.
pub(crate) fn read_everything(c: &Checkpoint) {
    for layer in 0..c.architecture().layers {
        for role in ROLES {
            if let Some(m) = c.matrix(role, layer).unwrap() {
                assert_eq!(m.to_f32().len(), m.out * m.inn);
            }
            for part in [Part::Weight, Part::Bias] {
                // Only a value that is not finite may stop it.
                if let Err(e) = c.vector(role, part, layer) {
                    assert!(matches!(e, Error::NotFinite { .. }), "{e}");
                }
            }
        }
    }
}

fn compare(what: &Path, a: &Checkpoint, b: &Checkpoint) {
    let (x, y) = (a.architecture(), b.architecture());
    let sizes = |a: &mutandis_engine::Architecture| {
        let rotary = a.rotary.as_ref().map(|r| (r.width, r.pairs, r.base));
        (a.family, a.layers, a.vocabulary, a.context, a.norm, a.mlp, rotary, a.residual, a.tied)
    };
    assert_eq!(sizes(x), sizes(y), "{}", what.display());
    assert_eq!((x.attention_scale, &x.windows), (y.attention_scale, &y.windows), "{}", what.display());
    assert_eq!(x.local_rotary, y.local_rotary, "{}", what.display());
    for layer in 0..x.layers {
        for role in ROLES {
            let matrix = |c: &Checkpoint| c.matrix(role, layer).unwrap().map(|m| m.to_f32());
            close(&format!("{} {role:?}", what.display()), matrix(a), matrix(b));
            for part in [Part::Weight, Part::Bias] {
                let vector = |c: &Checkpoint| c.vector(role, part, layer).unwrap();
                close(&format!("{} {role:?} {part:?}", what.display()), vector(a), vector(b));
            }
        }
    }
}

/// Equal to the rounding of 1 + w, which the two containers may do in different precisions.
fn close(what: &str, a: Option<Vec<f32>>, b: Option<Vec<f32>>) {
    assert_eq!(a.as_ref().map(Vec::len), b.as_ref().map(Vec::len), "{what}");
    for (i, (x, y)) in a.iter().flatten().zip(b.iter().flatten()).enumerate() {
        assert!((x - y).abs() <= 2e-7 * x.abs().max(1.0), "{what} element {i}: {x} and {y}");
    }
}

#[test]
fn a_sequential_neox_is_told_by_its_config() {
    let config = json!({"model_type": "gpt_neox", "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 5,
        "num_hidden_layers": 1, "intermediate_size": 4, "rotary_pct": 0.5, "use_parallel_residual": false});
    let mut tensors =
        vec![f32_tensor("gpt_neox.embed_in.weight", &[5, 8], 1), f32_tensor("embed_out.weight", &[5, 8], 2)];
    for (name, out, inn) in [
        ("attention.query_key_value", 24, 8),
        ("attention.dense", 8, 8),
        ("mlp.dense_h_to_4h", 4, 8),
        ("mlp.dense_4h_to_h", 8, 4),
    ] {
        tensors.push(f32_tensor(&format!("gpt_neox.layers.0.{name}.weight"), &[out, inn], out));
        tensors.push(f32_tensor(&format!("gpt_neox.layers.0.{name}.bias"), &[out], inn));
    }
    for name in ["layers.0.input_layernorm", "layers.0.post_attention_layernorm", "final_layer_norm"] {
        tensors.push(f32_tensor(&format!("gpt_neox.{name}.weight"), &[8], 3));
        tensors.push(f32_tensor(&format!("gpt_neox.{name}.bias"), &[8], 4));
    }
    let (c, _guard) = open(&config, &tensors).unwrap();
    assert_eq!(c.architecture().residual, ResidualForm::Sequential);
    assert_eq!(c.architecture().rotary.as_ref().unwrap().width, 2);
    // Heads of four rows: q of head 0, k of head 0, v of head 0, q of head 1…
    let (stored, expected) = (values(192, 24), [4, 5, 6, 7, 16, 17, 18, 19]);
    let expected: Vec<f32> = expected.iter().flat_map(|&r: &usize| stored[r * 8..][..8].to_vec()).collect();
    assert_eq!(rows(&c, Role::Key), expected);
}
