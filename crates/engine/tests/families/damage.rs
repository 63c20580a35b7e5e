//! Damaged files through the whole engine: load and run three tokens, give a result or an error,
//! never a panic.

use std::cell::Cell;
use std::path::PathBuf;

use mutandis_engine::{LogitRows, Model, Options, Pass};
use proptest::prelude::*;

use crate::support::{fixtures, plain};

/// Directory or GGUF, and the file in it that is damaged.
const TARGETS: [(&str, &str); 12] = [
    ("llama_q4_q5.gguf", ""),
    ("gemma3.gguf", ""),
    ("gpt2.gguf", ""),
    ("gpt_neox.gguf", ""),
    ("llama3_rope.gguf", ""),
    ("qwen3", "model.safetensors"),
    ("gpt_neox_old", "model.safetensors"),
    ("llama3_rope_old", "model-00001-of-00002.safetensors"),
    ("llama3_rope_old", "model.safetensors.index.json"),
    ("llama3_rope", "config.json"),
    ("gemma3", "config.json"),
    ("gptj", "config.json"),
];

struct Target {
    folder: tempfile::TempDir,
    /// What is loaded.
    model: PathBuf,
    /// What is damaged.
    file: PathBuf,
    sound: Vec<u8>,
}

fn copies() -> Vec<Target> {
    let copy = |(name, file): (&str, &str)| {
        let folder = tempfile::tempdir().unwrap();
        let from = fixtures().join(name);
        let (model, file) = if file.is_empty() {
            std::fs::copy(&from, folder.path().join(name)).unwrap();
            (folder.path().join(name), folder.path().join(name))
        } else {
            for entry in std::fs::read_dir(&from).unwrap() {
                let entry = entry.unwrap();
                std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
            }
            (folder.path().to_owned(), folder.path().join(file))
        };
        let sound = std::fs::read(&file).unwrap();
        Target { folder, model, file, sound }
    };
    TARGETS.into_iter().map(copy).collect()
}

/// Whether the model could be loaded and run.
fn runs(model: &std::path::Path) -> bool {
    let options = Options { threads: Some(1), ..Options::default() };
    let Ok(model) = Model::load(model, options) else { return false };
    let pass = Pass { sequences: vec![plain(&[1, 2, 3])], logits: LogitRows::All, ..Pass::default() };
    model.forward(pass).is_ok()
}

#[test]
fn damaged_files_give_a_result_or_an_error() {
    let targets = copies();
    for t in &targets {
        assert!(t.folder.path().exists() && runs(&t.model), "{} is sound", t.file.display());
    }
    let config = ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() };
    let (ran, failed) = (Cell::new(0), Cell::new(0));
    proptest!(config, |(
        which in 0..TARGETS.len(),
        // Half of the damage is in the first 2 KB, where the declarations are.
        early in any::<bool>(),
        at in any::<prop::sample::Index>(),
        // A bit, a byte, or the rest of the file.
        how in 0..3,
        value in any::<u8>(),
    )| {
        let t = &targets[which];
        let len = if early { t.sound.len().min(2048) } else { t.sound.len() };
        let at = at.index(len);
        let mut damaged = t.sound.clone();
        match how {
            0 => damaged[at] ^= 1 << (value % 8),
            1 => damaged[at] = value,
            _ if value < 64 => damaged.truncate(at),
            // A digit, where there is one, becomes another: in JSON that is a different number.
            _ => if damaged[at].is_ascii_digit() { damaged[at] = b'0' + value % 10 } else { damaged[at] ^= value },
        }
        std::fs::write(&t.file, damaged).unwrap();
        let count = if runs(&t.model) { &ran } else { &failed };
        count.set(count.get() + 1);
        std::fs::write(&t.file, &t.sound).unwrap();
    });
    let (ran, failed) = (ran.get(), failed.get());
    eprintln!("{ran} damaged files ran, {failed} were refused");
    assert!(ran > 50 && failed > 50, "the damage is one-sided: {ran} ran, {failed} were refused");
}
