//! Fixtures, golden tensors, and how far two lists of numbers are apart.

use std::path::{Path, PathBuf};

use mutandis_engine::{
    Cache, Delta, LogitRows, Model, Options, Overlay, Pass, Past, Role, Sequence, WeightId,
};
use safetensors::{Dtype, SafeTensors};

/// All fixtures with goldens of their own values, in safetensors or GGUF.
pub(crate) const FAMILIES: [&str; 11] = [
    "llama",
    "llama3_rope",
    "llama_bias",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma3",
    "gpt2",
    "gptj",
    "gpt_neox",
    "gpt_neox_seq",
];

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

pub(crate) fn options() -> Options {
    Options { threads: Some(2), ..Options::default() }
}

pub(crate) fn load(file: &str) -> Model {
    load_with(file, options())
}

pub(crate) fn load_with(file: &str, options: Options) -> Model {
    Model::load(&fixtures().join(file), options).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// `golden.safetensors`, numbers as f64 whatever their type.
pub(crate) struct Golden(Vec<u8>);

impl Golden {
    pub(crate) fn open() -> Self {
        Self(std::fs::read(fixtures().join("golden.safetensors")).unwrap())
    }

    pub(crate) fn find(&self, name: &str) -> Option<Vec<f64>> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).ok()?;
        let data = tensor.data();
        Some(match tensor.dtype() {
            Dtype::F64 => data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::F32 => {
                data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect()
            }
            Dtype::I64 => {
                data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect()
            }
            other => panic!("{name} is {other:?}"),
        })
    }

    pub(crate) fn get(&self, name: &str) -> Vec<f64> {
        self.find(name).unwrap_or_else(|| panic!("no golden value `{name}`"))
    }

    pub(crate) fn ids(&self, name: &str, i: usize) -> Vec<u32> {
        self.get(&format!("{name}.ids.{i}")).iter().map(|x| *x as u32).collect()
    }
}

/// Largest and root mean square difference.
pub(crate) fn apart(found: &[f32], expected: &[f64]) -> (f64, f64) {
    assert_eq!(found.len(), expected.len());
    assert!(!found.is_empty());
    let (mut worst, mut sum) = (0.0f64, 0.0);
    for (a, b) in found.iter().zip(expected) {
        let d = (f64::from(*a) - b).abs();
        assert!(!d.is_nan(), "a number is not finite");
        worst = worst.max(d);
        sum += d * d;
    }
    (worst, (sum / found.len() as f64).sqrt())
}

pub(crate) fn size(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |a, b| a.max(b.abs()))
}

/// Fails where the two differ by more than `tolerance` of the largest expected value.
pub(crate) fn assert_near(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    let (worst, _) = apart(found, expected);
    let size = size(expected);
    assert!(size > 0.0, "{what}: the golden value vanishes");
    assert!(worst <= tolerance * size, "{what}: off by {worst:e} of {size:e}");
}

pub(crate) fn to_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(*x)).collect()
}

/// Numbers between −1 and 1 from a seed (a multiplicative generator; its high bits).
pub(crate) fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

pub(crate) fn plain(tokens: &[u32]) -> Sequence<'_> {
    Sequence { tokens, ..Sequence::default() }
}

/// All logits of a batch.
pub(crate) fn logits<'a>(model: &Model, sequences: Vec<Sequence<'a>>) -> Vec<f32> {
    model.forward(Pass { sequences, logits: LogitRows::All, ..Pass::default() }).unwrap().logits
}

/// Keys and values of some tokens.
pub(crate) fn cache_of(model: &Model, tokens: &[u32]) -> Cache {
    let mut cache = Cache::new(model.architecture());
    let sequences = vec![Sequence { cache: Some(&mut cache), ..plain(tokens) }];
    model.forward(Pass { sequences, ..Pass::default() }).unwrap();
    cache
}

pub(crate) fn past_of(model: &Model, tokens: &[u32], from: usize) -> Past {
    cache_of(model, tokens).past(tokens.len(), from)
}

/// A change of one linear map: two low-rank factors, and for some a full matrix besides.
pub(crate) struct Change {
    pub(crate) id: WeightId,
    shape: [usize; 2],
    left: Vec<f32>,
    right: Vec<f32>,
    full: Option<Vec<f32>>,
}

const RANK: usize = 2;

impl Change {
    /// The sum, `[out, in]`.
    pub(crate) fn dense(&self) -> Vec<f32> {
        let [out, inn] = self.shape;
        let product = |o: usize, i: usize| -> f32 {
            (0..RANK).map(|r| self.left[o * RANK + r] * self.right[i * RANK + r]).sum()
        };
        (0..out * inn)
            .map(|at| product(at / inn, at % inn) + self.full.as_ref().map_or(0.0, |f| f[at]))
            .collect()
    }
}

/// Changes of every linear map of some layers, and of the head.
pub(crate) fn changes(model: &Model, layers: &[usize]) -> Vec<Change> {
    let roles =
        [Role::Query, Role::Key, Role::Value, Role::AttentionOut, Role::MlpGate, Role::MlpUp, Role::MlpOut];
    let inside = layers.iter().flat_map(|&layer| roles.map(|role| WeightId { layer, role }));
    let scaled = |seed, len, by: f32| random(seed, len).into_iter().map(|x| x * by).collect::<Vec<f32>>();
    inside
        .chain([WeightId { layer: 0, role: Role::Head }])
        .enumerate()
        .filter_map(|(i, id)| {
            let shape @ [out, inn] = model.linear_shape(id.role, id.layer).ok()?;
            let seed = 1000 * (1 + i as u64);
            Some(Change {
                id,
                shape,
                left: scaled(seed, out * RANK, 0.3),
                right: scaled(seed + 1, inn * RANK, 0.3),
                full: (i % 2 == 0).then(|| scaled(seed + 2, out * inn, 0.1)),
            })
        })
        .collect()
}

/// The changes as a patch's overlay.
pub(crate) fn overlay(changes: &[Change]) -> Overlay {
    let mut overlay = Overlay::default();
    for c in changes {
        overlay.push(c.id, Delta::low_rank(RANK, &c.left, &c.right).unwrap());
        if let Some(full) = &c.full {
            overlay.push(c.id, Delta::dense(c.shape[0], c.shape[1], full).unwrap());
        }
    }
    overlay
}
