//! The two real models against gguf-py and the golden values.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use mutandis_engine::architecture::{
    Activation, Family, Mlp, Norm, Part, ResidualForm, Role, RotaryPairs, RotaryScaling,
};
use mutandis_engine::checkpoint::{Checkpoint, Container, Matrix};

const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const GEMMA3: &str = "gemma-3-270m-q4_k_m.gguf";

fn folder(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../..")).join(default),
        PathBuf::from,
    )
}

fn model(name: &str) -> Option<Checkpoint> {
    let path = folder("MUTANDIS_TEST_MODELS", "models").join(name);
    if !path.exists() {
        eprintln!("skipped: no `{}`", path.display());
        return None;
    }
    Some(Checkpoint::open(&path).unwrap())
}

fn golden(name: &str) -> Option<Vec<u8>> {
    let path = folder("MUTANDIS_SHARED", "shared").join("golden").join(name);
    let bytes = std::fs::read(&path);
    if bytes.is_err() {
        eprintln!("skipped: no `{}`", path.display());
    }
    bytes.ok()
}

/// Σ bits(xᵢ) · (2654435761 i + 1) mod 2⁶⁴: any element changed, or two swapped, changes it.
fn checksum(values: &[f32]) -> u64 {
    values.iter().enumerate().fold(0u64, |sum, (i, v)| {
        sum.wrapping_add(
            u64::from(v.to_bits()).wrapping_mul((i as u64).wrapping_mul(2_654_435_761).wrapping_add(1)),
        )
    })
}

fn weight(c: &Checkpoint, role: Role, layer: usize) -> Matrix<'_> {
    c.matrix(role, layer).unwrap().unwrap()
}

/// Expected sums: gguf-py's `dequantize` of the whole tensor, Llama's q and k put back into Hugging
/// Face's order with numpy, the checksum above.
fn check_sums(c: &Checkpoint, sums: &[(Role, usize, (usize, usize), u64)]) {
    for &(role, layer, shape, sum) in sums {
        let m = weight(c, role, layer);
        assert_eq!((m.out, m.inn), shape, "{role:?}");
        assert_eq!(checksum(&m.to_f32()), sum, "{role:?} of layer {layer}");
    }
}

#[test]
fn smollm2_is_read_as_gguf_py_reads_it() {
    let Some(c) = model(SMOLLM2) else { return };
    let a = c.architecture();
    assert_eq!((c.container(), a.family), (Container::Gguf, Family::Llama));
    assert_eq!(
        (a.layers, a.width, a.mlp_width, a.heads, a.kv_heads, a.head_width),
        (30, 576, 1536, 9, 3, 64)
    );
    assert_eq!((a.vocabulary, a.context, a.tied), (49_152, 8192, true));
    assert_eq!(a.norm, Norm::Rms { epsilon: 1e-5 });
    assert_eq!((a.mlp, a.residual), (Mlp::Gated(Activation::Silu), ResidualForm::Sequential));
    let r = a.rotary.as_ref().unwrap();
    assert_eq!(
        (r.width, r.pairs, r.base, &r.scaling),
        (64, RotaryPairs::Halves, 100_000.0, &RotaryScaling::None)
    );
    assert_eq!((a.attention_scale, a.embedding_scale), (0.125, 1.0));
    assert_eq!((a.windows.as_slice(), a.qk_norm), ([None; 30].as_slice(), false));

    assert_eq!(c.tensor_names().count(), 272);
    assert_eq!(c.unused(), Vec::<String>::new());
    check_sums(
        &c,
        &[
            (Role::Embedding, 0, (49_152, 576), 0x6087_7a41_7264_8380),
            (Role::Head, 0, (49_152, 576), 0x6087_7a41_7264_8380),
            (Role::Query, 3, (576, 576), 0x5ca7_4b4f_09cd_6200),
            (Role::Key, 3, (192, 576), 0x6ecd_5d8d_ba00_3c00),
            (Role::Value, 3, (192, 576), 0x5bf1_99d5_5ad4_e400),
            (Role::MlpOut, 29, (576, 1536), 0xe3a1_582f_e7cb_c000),
        ],
    );
    assert!(c.vector(Role::Query, Part::Bias, 0).unwrap().is_none());
    assert!(c.matrix(Role::Positions, 0).unwrap().is_none());
    let beyond = c.matrix(Role::MlpOut, 30).unwrap_err();
    assert_eq!(beyond.to_string(), "the model has no layer 30");

    let gguf = c.gguf().unwrap();
    assert_eq!((gguf.version(), gguf.alignment(), gguf.data_offset()), (3, 32, 1_785_664));
    assert_eq!(gguf.str("tokenizer.ggml.pre").unwrap(), Some("smollm"));
    assert_eq!(gguf.strings("tokenizer.ggml.merges").unwrap().unwrap().len(), 48_900);
    assert_eq!(gguf.i32s("tokenizer.ggml.token_type").unwrap().unwrap().len(), 49_152);
    assert_eq!(gguf.u32("no.such.key").unwrap(), None);
    let wrong = gguf.u32("general.name").unwrap_err().to_string();
    assert!(wrong.contains("metadata `general.name` is a string, expected an integer below 2^32"), "{wrong}");

    assert_eq!(c.fingerprint(), "f1fbd8337ee90fd2f51226d3481a413fe3647bcdae72d33fd190b82dca1bb7c4");
}

#[test]
fn gemma3_is_read_as_gguf_py_reads_it() {
    let Some(c) = model(GEMMA3) else { return };
    let a = c.architecture();
    assert_eq!((c.container(), a.family), (Container::Gguf, Family::Gemma3));
    assert_eq!(
        (a.layers, a.width, a.mlp_width, a.heads, a.kv_heads, a.head_width),
        (18, 640, 2048, 4, 1, 256)
    );
    assert_eq!((a.vocabulary, a.context, a.tied), (262_144, 32_768, true));
    assert_eq!(a.norm, Norm::Rms { epsilon: 1e-6 });
    assert_eq!((a.mlp, a.qk_norm, a.sandwich_norm), (Mlp::Gated(Activation::GeluTanh), true, true));
    let (global, local) = (a.rotary.as_ref().unwrap(), a.local_rotary.as_ref().unwrap());
    assert_eq!((global.width, global.base, local.width, local.base), (256, 1e6, 256, 1e4));
    let whole: Vec<usize> = (0..18).filter(|&l| a.windows[l].is_none()).collect();
    assert_eq!(whole, [5, 11, 17]);
    assert!(a.windows.iter().flatten().all(|&w| w == 512));
    assert_eq!((a.attention_scale, a.embedding_scale), (0.0625, 640f32.sqrt()));

    assert_eq!(c.tensor_names().count(), 236);
    assert_eq!(c.unused(), Vec::<String>::new());
    check_sums(
        &c,
        &[
            (Role::Query, 0, (1024, 640), 0xaf2a_cd39_9d2b_5000),
            (Role::Value, 0, (256, 640), 0x2b45_d00b_0cdb_7a00),
            (Role::AttentionOut, 0, (640, 1024), 0xc52b_a51e_174e_d3b8),
            (Role::MlpOut, 0, (640, 2048), 0xf64e_775f_f0b2_a772),
        ],
    );
    let norm = c.vector(Role::MlpPostNorm, Part::Weight, 17).unwrap().unwrap();
    assert_eq!(checksum(&norm), 0x5f4b_b127_40c7_6000);
    assert_eq!(c.fingerprint(), "3622ce1e6ea8e0e35e2f3f18a686201e94d22257b9144da384772212e6eca3d8");
}

/// The rows of the embedding that transformers looked up for prompt 0.
#[test]
fn embeddings_equal_the_golden_ones() {
    for (name, short) in [(SMOLLM2, "smollm2"), (GEMMA3, "gemma3")] {
        let Some(c) = model(name) else { return };
        let Some(activations) = golden(&format!("{short}.activations.safetensors")) else {
            return;
        };
        let Some(logits) = golden(&format!("{short}.logits.safetensors")) else {
            return;
        };
        let (activations, logits) = (
            safetensors::SafeTensors::deserialize(&activations).unwrap(),
            safetensors::SafeTensors::deserialize(&logits).unwrap(),
        );
        let (embed, ids) = (activations.tensor("embed").unwrap(), logits.tensor("ids.0").unwrap());
        let ids: Vec<i64> = ids.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
        let embed: Vec<f32> =
            embed.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let m = weight(&c, Role::Embedding, 0);
        let mut row = vec![0.0; m.inn];
        for (t, &id) in ids.iter().enumerate() {
            m.decode_rows(id as usize, &mut row);
            for i in 0..m.inn {
                // One product of two f32: bit-equal.
                assert_eq!(
                    row[i] * c.architecture().embedding_scale,
                    embed[t * m.inn + i],
                    "{short} {t} {i}"
                );
            }
        }
    }
}

/// A generous multiple of what was measured (2 cores, warm page cache), to catch a fall off a cliff.
#[test]
fn opening_and_checking_is_quick() {
    let Some(c) = model(SMOLLM2) else { return };
    let times = |mut f: Box<dyn FnMut() + '_>| {
        let all = (0..5).map(|_| {
            let start = Instant::now();
            f();
            start.elapsed()
        });
        all.min().unwrap()
    };
    let open = times(Box::new(|| drop(Checkpoint::open(c.path()).unwrap())));
    let finite = times(Box::new(|| c.check_finite().unwrap()));
    let print = times(Box::new(|| assert!(!c.fingerprint().is_empty())));
    let embedding = weight(&c, Role::Embedding, 0);
    let q8_0 = times(Box::new(|| assert!(!embedding.to_f32().is_empty())));
    let down: Vec<_> = (0..30).map(|l| weight(&c, Role::MlpOut, l)).collect();
    let q4_1 = times(Box::new(|| assert!(down.iter().all(|m| !m.to_f32().is_empty()))));
    eprintln!(
        "open {open:?}, check {finite:?}, fingerprint {print:?}, Q8_0 {q8_0:?} of 28.3 M, Q4_1 {q4_1:?} of 26.5 M"
    );
    assert!(open < Duration::from_millis(500), "{open:?}");
    assert!(finite < Duration::from_millis(300), "{finite:?}");
}
