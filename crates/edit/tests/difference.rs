//! Patches from the difference of two checkpoints.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use mutandis_edit::difference::{self, Difference};
use mutandis_edit::patch::WeightChange;
use mutandis_edit::{Context, Error};
use mutandis_engine::architecture::Part;
use mutandis_engine::checkpoint::{Checkpoint, Dtype};
use mutandis_engine::{LogitRows, Model, Options, Overlay, Pass, Role, Sequence};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use safetensors::tensor::{SafeTensors, TensorView};

/// A change of a stored matrix `[out, in]`.
type Edit<'a> = (&'a str, Box<dyn Fn(usize, usize) -> Vec<f32>>);

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

fn model(path: &Path) -> Model {
    Model::load(path, Options::default()).unwrap()
}

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| (f64::from(random.next_u32()) / f64::from(u32::MAX) - 0.5) as f32).collect()
}

/// ΔW of a rank.
fn of_rank(rank: usize, seed: u64) -> Box<dyn Fn(usize, usize) -> Vec<f32>> {
    Box::new(move |out, inn| {
        let change = WeightChange::LowRank {
            rank,
            left: random(out * rank, seed),
            right: random(inn * rank, seed + 1),
        };
        let mut delta = vec![0.0; out * inn];
        change.add_to(&mut delta);
        delta
    })
}

/// A safetensors fixture with some tensors changed, everything stored in `dtype`.
fn edited(name: &str, dtype: safetensors::Dtype, edits: &[Edit<'_>]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixture(name).join("config.json"), folder.path().join("config.json")).unwrap();
    let bytes = std::fs::read(fixture(name).join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let stored: Vec<(String, Vec<usize>, Vec<u8>)> = file
        .tensors()
        .into_iter()
        .map(|(name, t)| {
            let known = Dtype::ALL.into_iter().find(|d| d.name() == t.dtype().to_string()).unwrap();
            let mut numbers = vec![0.0; t.shape().iter().product()];
            known.decode(t.data(), &mut numbers);
            if let Some((_, delta)) = edits.iter().find(|(edited, _)| *edited == name) {
                let inn = *t.shape().last().unwrap();
                let delta = delta(numbers.len() / inn, inn);
                numbers.iter_mut().zip(delta).for_each(|(x, d)| *x += d);
            }
            (name, t.shape().to_vec(), encoded(&numbers, dtype))
        })
        .collect();
    let views = stored.iter().map(|(n, s, b)| (n, TensorView::new(dtype, s.clone(), b).unwrap()));
    let bytes = safetensors::serialize(views, None::<HashMap<String, String>>).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    folder
}

fn encoded(numbers: &[f32], dtype: safetensors::Dtype) -> Vec<u8> {
    match dtype {
        safetensors::Dtype::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
        // Rounded to nearest: half a unit in the last place is added before the cut.
        safetensors::Dtype::BF16 => numbers
            .iter()
            .flat_map(|x| {
                let bits = x.to_bits();
                let up = 0x7FFF + ((bits >> 16) & 1);
                u16::try_from((bits + up) >> 16).unwrap().to_le_bytes()
            })
            .collect(),
        other => panic!("{other:?}"),
    }
}

fn between(base: &Path, edited: &Path, linear_only: bool) -> Result<Difference, Error> {
    difference::between(&model(base), &Checkpoint::open(edited).unwrap(), linear_only, &Context::default())
}

/// Weights and ranks, `None` where dense.
fn ranks(found: &Difference) -> Vec<(usize, Role, Option<usize>)> {
    found.patch.weights.iter().map(|(id, change)| (id.layer, id.role, change.rank())).collect()
}

/// How far the base with the patch is from the edited model, in logits.
fn off(base: &Path, edited: &Path, found: &Difference) -> f32 {
    let tokens: Vec<u32> = (3..12).collect();
    let logits = |model: &Model, overlays: &[&Overlay]| {
        let sequences = vec![Sequence { tokens: &tokens, overlays, ..Sequence::default() }];
        model.forward(Pass { sequences, logits: LogitRows::All, ..Pass::default() }).unwrap().logits
    };
    let base = model(base);
    let patched = logits(&base, &[&found.patch.overlay(&base).unwrap()]);
    let right = logits(&model(edited), &[]);
    patched.iter().zip(&right).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn told<T>(result: Result<T, Error>, parts: &[&str]) {
    let error = result.err().unwrap();
    let text = format!("{error}; {}", error.hint().unwrap_or_default());
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text:?}");
    }
}

/// Sums of f32 in another order, on logits of about 4.
const LOGITS: f32 = 1e-4;

const DOWN: &str = "model.layers.1.mlp.down_proj.weight";
const QUERY: &str = "model.layers.0.self_attn.q_proj.weight";
const NORM: &str = "model.norm.weight";

#[test]
fn a_merged_adapter_is_found_again_with_its_rank() {
    let f32 = safetensors::Dtype::F32;
    let merged = edited("llama", f32, &[(DOWN, of_rank(3, 1)), (QUERY, of_rank(1, 5))]);
    // Whether the base is safetensors or a GGUF with the same numbers and its own order of rows.
    for base in ["llama", "llama.gguf"] {
        let found = between(&fixture(base), merged.path(), false).unwrap();
        assert_eq!(ranks(&found), [(0, Role::Query, Some(1)), (1, Role::MlpOut, Some(3))], "{base}");
        assert!(found.patch.facts.is_empty() && found.patch.method == "import");
        let far = off(&fixture(base), merged.path(), &found);
        assert!(far < LOGITS, "{base}: off by {far}");
    }
    // A fused tensor is three weights.
    let fused = "transformer.h.0.attn.c_attn.weight";
    let merged = edited("gpt2", f32, &[(fused, of_rank(2, 3))]);
    let found = between(&fixture("gpt2"), merged.path(), false).unwrap();
    assert_eq!(ranks(&found), [Role::Query, Role::Key, Role::Value].map(|role| (0, role, Some(2))));
}

#[test]
fn rounding_of_the_storage_does_not_hide_a_low_rank() {
    // `mistral` is bf16: the sum of base and change is rounded to eight bits.
    let merged = edited("mistral", safetensors::Dtype::BF16, &[(DOWN, of_rank(2, 1))]);
    let found = between(&fixture("mistral"), merged.path(), false).unwrap();
    assert_eq!(ranks(&found), [(1, Role::MlpOut, Some(2))]);
    // A change that is smaller than the rounding is kept as it is stored, not explained away.
    let little: Edit<'_> =
        (DOWN, Box::new(|out, inn| of_rank(2, 1)(out, inn).iter().map(|x| x * 0.01).collect()));
    let merged = edited("mistral", safetensors::Dtype::BF16, &[little]);
    let found = between(&fixture("mistral"), merged.path(), false).unwrap();
    assert_eq!(ranks(&found), [(1, Role::MlpOut, None)]);
    assert!(off(&fixture("mistral"), merged.path(), &found) < LOGITS);
}

#[test]
fn what_is_of_full_rank_is_kept_whole() {
    let full: Edit<'_> = (DOWN, Box::new(|out, inn| random(out * inn, 9)));
    let tuned = edited("llama", safetensors::Dtype::F32, &[full]);
    let found = between(&fixture("llama"), tuned.path(), false).unwrap();
    assert_eq!(ranks(&found), [(1, Role::MlpOut, None)]);
    assert!(off(&fixture("llama"), tuned.path(), &found) < LOGITS);
}

#[test]
fn other_number_formats_are_no_difference() {
    // The same numbers in blocks of eight, and of four and five bits.
    for stored in ["llama_q8_0.gguf", "llama_q4_q5.gguf"] {
        told(between(&fixture("llama"), &fixture(stored), false), &["no linear map differs"]);
    }
    // With a change that stands out of the rounding of bf16.
    let merged = edited("llama", safetensors::Dtype::BF16, &[(DOWN, of_rank(2, 1))]);
    let found = between(&fixture("llama.gguf"), merged.path(), false).unwrap();
    assert_eq!(ranks(&found), [(1, Role::MlpOut, Some(2))]);
}

#[test]
fn a_small_edit_of_a_quantised_base_is_found() {
    // The base's own numbers in f32, with a change of one weight that is smaller than its steps.
    let base = fixture("llama_q8_0.gguf");
    let (from, names) = (Checkpoint::open(&base).unwrap(), Checkpoint::open(&fixture("llama")).unwrap());
    let same: Vec<Edit<'_>> = Role::ALL
        .into_iter()
        .flat_map(|role| (0..if role.in_layer() { 3 } else { 1 }).map(move |layer| (role, layer)))
        .filter(|(role, _)| *role != Role::Head)
        .filter_map(|(role, layer)| {
            let name = names.tensor_name(role, Part::Weight, layer)?;
            let (new, old) = (from.matrix(role, layer).unwrap()?, names.matrix(role, layer).unwrap()?);
            let mut delta: Vec<f32> = new.to_f32().iter().zip(old.to_f32()).map(|(n, o)| n - o).collect();
            if name == DOWN {
                let edit = of_rank(1, 1)(new.out, new.inn);
                delta.iter_mut().zip(edit).for_each(|(d, x)| *d += 1e-3 * x);
            }
            Some((name.leak() as &str, Box::new(move |_: usize, _: usize| delta.clone()) as _))
        })
        .collect();
    let merged = edited("llama", safetensors::Dtype::F32, &same);
    let found = between(&base, merged.path(), false).unwrap();
    assert!(ranks(&found).contains(&(1, Role::MlpOut, Some(1))), "{:?}", ranks(&found));
    assert!(found.patch.weights.len() == 1, "{:?}", ranks(&found));
}

#[test]
fn what_no_patch_can_change_is_refused_or_skipped_by_name() {
    let shifted: Edit<'_> = (NORM, Box::new(|out, inn| vec![0.125; out * inn]));
    let tuned = edited("llama", safetensors::Dtype::F32, &[shifted, (DOWN, of_rank(1, 1))]);
    told(between(&fixture("llama"), tuned.path(), false), &["`model.norm.weight`", "--linear-only"]);
    let found = between(&fixture("llama"), tuned.path(), true).unwrap();
    assert_eq!((found.skipped, found.patch.weights.len()), (vec![NORM.to_owned()], 1));
    // The head of a tied model is its embedding.
    let embedding: Edit<'_> = ("model.embed_tokens.weight", of_rank(1, 1));
    let tuned = edited("llama", safetensors::Dtype::F32, &[embedding]);
    told(between(&fixture("llama"), tuned.path(), false), &["model.embed_tokens.weight"]);
}

#[test]
fn two_that_are_not_one_model_are_refused() {
    told(
        between(&fixture("llama"), &fixture("qwen2"), false),
        &["different architectures", "Llama", "Qwen2"],
    );
    told(between(&fixture("llama"), &fixture("llama"), false), &["no linear map differs"]);
}

#[test]
fn a_difference_does_not_depend_on_threads() {
    let merged = edited("llama", safetensors::Dtype::F32, &[(DOWN, of_rank(3, 1)), (QUERY, of_rank(2, 5))]);
    let ids = [1, 2].map(|threads| {
        let base =
            Model::load(&fixture("llama"), Options { threads: Some(threads), ..Options::default() }).unwrap();
        let edited = Checkpoint::open(merged.path()).unwrap();
        let found = base.install(|| difference::between(&base, &edited, false, &Context::default())).unwrap();
        found.patch.id().unwrap()
    });
    assert_eq!(ids[0], ids[1]);
}
