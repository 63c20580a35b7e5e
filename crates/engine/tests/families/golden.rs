//! Logits, hidden states and MLP keys of every family, in every form in which it is stored.

use std::path::Path;

use mutandis_engine::{Isa, LogitRows, Model, Options, Pass, Read, Site, SiteKind, Storage};

use crate::support::{
    FAMILIES, Golden, apart, assert_near, fixtures, load, load_with, logits, options, plain,
};

/// The bound on logits, against f32 by PyTorch.
const LOGITS: f64 = 1e-4;
/// How much further from f64 than PyTorch's f32 a tiny model's logits may be, in root mean square:
/// nothing on average, but two rounding noises of the same size differ by a fifth either way over
/// two thousand numbers.
const RMS_SLACK: f64 = 1.25;
/// The same for the largest of them: one extreme value of a long-tailed noise over another.
const WORST_SLACK: f64 = 2.0;
/// Activations, of the largest of their place.
const ACTIVATIONS: f64 = 5e-6;

struct Errors {
    ours: (f64, f64),
    torch: (f64, f64),
}

/// Checks a model against the goldens of `name`: in one batch, singly, with its inner states.
fn check(model: &Model, golden: &Golden, name: &str, label: &str) -> Errors {
    let sequences = [golden.ids(name, 0), golden.ids(name, 1)];
    let batch = logits(model, sequences.iter().map(|s| plain(s)).collect());
    let singly: Vec<f32> = sequences.iter().flat_map(|s| logits(model, vec![plain(s)])).collect();
    assert_eq!(batch, singly, "{label}: a batch is not its sequences one by one");
    let all =
        |what: &str| -> Vec<f64> { (0..2).flat_map(|i| golden.get(&format!("{name}.{what}.{i}"))).collect() };
    let (exact, torch) = (all("logits64"), all("logits32"));
    let (worst, _) = apart(&batch, &torch);
    assert!(worst < LOGITS, "{label}: logits differ from PyTorch's by {worst:e}");
    let torch: Vec<f32> = torch.iter().map(|x| *x as f32).collect();
    inner(model, golden, name, label, &sequences);
    Errors { ours: apart(&batch, &exact), torch: apart(&torch, &exact) }
}

fn inner(model: &Model, golden: &Golden, name: &str, label: &str, sequences: &[Vec<u32>; 2]) {
    let layers = model.architecture().layers;
    let middle = layers / 2;
    if golden.find(&format!("{name}.mlp_key.0")).is_none() {
        return;
    }
    let first: Vec<usize> = (0..sequences[0].len()).collect();
    let mut reads = vec![Read { site: Site::new(middle, SiteKind::Input), rows: None }];
    for l in 0..layers {
        reads.push(Read { site: Site::new(l, SiteKind::MlpKey), rows: Some(first.clone()) });
    }
    let pass = Pass { sequences: sequences.iter().map(|s| plain(s)).collect(), reads, ..Pass::default() };
    let found = model.forward(pass).unwrap();
    let hidden: Vec<f64> = (0..2).flat_map(|i| golden.get(&format!("{name}.hidden.{middle}.{i}"))).collect();
    assert_near(&format!("{label} hidden"), &found.reads[0], &hidden, ACTIVATIONS);
    for l in 0..layers {
        let key = golden.get(&format!("{name}.mlp_key.{l}"));
        assert_near(&format!("{label} key {l}"), &found.reads[1 + l], &key, ACTIVATIONS);
    }
}

/// A fixture's directory with `config.old.json` in the place of `config.json`.
fn with_old_config(name: &str, into: &Path) -> Model {
    let from = fixtures().join(name);
    std::fs::copy(from.join("config.old.json"), into.join("config.json")).unwrap();
    std::fs::copy(from.join("model.safetensors"), into.join("model.safetensors")).unwrap();
    Model::load(into, options()).unwrap()
}

#[test]
fn every_family_in_every_form_gives_the_golden_values() {
    let golden = Golden::open();
    let mut failures = vec![];
    for name in FAMILIES.into_iter().chain(["llama_q8_0", "llama_q4_q5"]) {
        let mut forms = vec![];
        for file in [name.to_owned(), format!("{name}.gguf"), format!("{name}_old")] {
            if fixtures().join(&file).exists() {
                forms.push((load(&file), file));
            }
        }
        let folder = tempfile::tempdir().unwrap();
        if fixtures().join(name).is_dir() {
            forms.push((with_old_config(name, folder.path()), format!("{name}, old config")));
        }
        assert!(!forms.is_empty(), "no fixture {name}");
        for (model, label) in &forms {
            let Errors { ours, torch } = check(model, &golden, name, label);
            eprintln!(
                "{label:24} from f64: ours {:.2e} rms {:.2e}, PyTorch's {:.2e} rms {:.2e}, ratios {:.2} {:.2}",
                ours.0,
                ours.1,
                torch.0,
                torch.1,
                ours.0 / torch.0,
                ours.1 / torch.1
            );
            if ours.0 > WORST_SLACK * torch.0 || ours.1 > RMS_SLACK * torch.1 {
                failures.push(label.clone());
            }
        }
    }
    assert!(failures.is_empty(), "further from f64 than PyTorch's f32: {failures:?}");
}

#[test]
fn every_instruction_set_gives_the_golden_values() {
    let golden = Golden::open();
    for name in FAMILIES {
        for isa in Isa::available() {
            let model = load_with(name, Options { isa: Some(isa), ..options() });
            check(&model, &golden, name, &format!("{name} {isa:?}"));
        }
    }
}

#[test]
fn threads_and_storage_do_not_change_a_bit() {
    let golden = Golden::open();
    let packed = ["llama_q8_0.gguf", "llama_q4_q5.gguf"];
    for file in FAMILIES.into_iter().chain(packed).chain(["stories260K.gguf"]) {
        let name = file.trim_end_matches(".gguf");
        let ids = [golden.ids(name, 0), golden.ids(name, 1)];
        let run = |threads, storage| {
            let model = load_with(file, Options { threads: Some(threads), storage, ..options() });
            logits(&model, ids.iter().map(|s| plain(s)).collect())
        };
        let expected = run(1, Storage::F32);
        for (threads, storage) in [(2, Storage::F32), (4, Storage::AsStored), (1, Storage::AsStored)] {
            assert_eq!(run(threads, storage), expected, "{file}: {threads} threads, {storage:?}");
        }
        // bf16 rounds weights by up to 2⁻⁹; logits of these models are a few units, and a dozen
        // roundings add up. Where the checkpoint is bf16 already nothing is rounded.
        let bf16 = run(1, Storage::Bf16);
        let expected: Vec<f64> = expected.iter().map(|x| f64::from(*x)).collect();
        assert_near(&format!("{file} in bf16"), &bf16, &expected, 0.03);
        if ["llama3_rope", "mistral", "qwen3", "gemma3"].contains(&name) {
            assert_eq!(apart(&bf16, &expected).0, 0.0, "{file}");
        }
    }
}

#[test]
fn a_trained_model_continues_a_story() {
    let golden = Golden::open();
    let model = load("stories260K.gguf");
    for i in 0..2 {
        let mut ids = golden.ids("stories260K", i);
        let last = |ids: &[u32]| {
            let pass = Pass { sequences: vec![plain(ids)], logits: LogitRows::Last, ..Pass::default() };
            model.forward(pass).unwrap().logits
        };
        let expected = golden.get(&format!("stories260K.last_logits.{i}"));
        let (worst, _) = apart(&last(&ids), &expected);
        assert!(worst < LOGITS, "last logits are off by {worst:e}");
        for next in golden.get(&format!("stories260K.greedy.{i}")) {
            let row = last(&ids);
            let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
            assert_eq!(best as f64, next, "after {} tokens", ids.len());
            ids.push(best as u32);
        }
    }
}
