//! Where a prompt ends and its target begins, in two real tokenizers, on 500 records of each of
//! KnowEdit's files. A tokenizer merges across that border now and then; then the peer's cut, which
//! counts the prompt's own tokens, is kept.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

use std::path::{Path, PathBuf};

use mutandis_bench::compat::Forced;
use mutandis_bench::data::{Record, Set, Task};
use mutandis_engine::checkpoint::Checkpoint;
use mutandis_engine::tokenizer::{Specials, Tokenizer};

fn folder(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable)
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..").join(default), PathBuf::from)
}

/// KnowEdit's files, and how many texts their first 500 records have.
const FILES: [(&str, usize); 10] = [
    ("ZsRE-test-all.json", 2500),
    ("wiki_counterfact_train_cf.json", 2012),
    ("wiki_counterfact_test_cf_885.json", 6931),
    ("wiki_recent_train.json", 2851),
    ("wikibio-train-all.json", 1392),
    ("wikibio-test-all.json", 918),
    ("convsent_blender_test.json", 10_000),
    ("convsent_blender_val.json", 10_000),
    ("sanitation_trivia_qa_train.json", 80),
    ("sanitation_trivia_qa_test.json", 80),
];

/// Every prompt of a record with what is to follow it.
fn texts(record: &Record) -> Vec<(&str, &str)> {
    match &record.task {
        Task::Sentiment { topic, positive, negative } => {
            positive.iter().chain(negative).map(|said| (topic.as_str(), said.as_str())).collect()
        }
        Task::Facts { facts, .. } => facts
            .iter()
            .flat_map(|fact| {
                let wordings = std::iter::once(&fact.prompt).chain(&fact.rephrases);
                let probes = fact.portability.iter().chain(&fact.locality);
                let probed = probes.filter_map(|p| Some((p.prompt.as_str(), p.answers.first()?.as_str())));
                wordings.map(|prompt| (prompt.as_str(), fact.target.as_str())).chain(probed)
            })
            .collect(),
    }
}

/// Checks one text; whether its tokenizer merged across the border.
fn merges(tokenizer: &Tokenizer, prompt: &str, target: &str) -> bool {
    let encode = |text: &str| tokenizer.encode(text).unwrap().ids;
    let (own, whole) = (encode(prompt), encode(&format!("{prompt} {target}")));
    let forced = Forced::cut(tokenizer, prompt, target).unwrap();
    // The peer's: everything together, cut at the number of the prompt's own tokens.
    assert_eq!((&forced.ids, forced.start), (&whole, own.len().min(whole.len())));
    let said = tokenizer.decode_continuation(forced.labels(), Specials::Keep);
    let merged = !whole.starts_with(&own);
    // Only blanks are merged: the one between joins those at the prompt's end.
    let wanted = if merged { target.to_owned() } else { format!(" {target}") };
    assert_eq!(said, wanted, "behind `{prompt}`");
    merged
}

/// Checks all files; `merged` has how many of a file's texts are merged across the border, where any is.
fn check(model: &str, merged: &[(&str, usize)]) {
    let path = folder("MUTANDIS_TEST_MODELS", "models").join(model);
    let data = folder("MUTANDIS_SHARED", "shared").join("data/knowedit");
    if !path.exists() || !data.exists() {
        eprintln!("skipped: `{}` or `{}` is absent", path.display(), data.display());
        return;
    }
    let tokenizer = Tokenizer::of(&Checkpoint::open(&path).unwrap()).unwrap().unwrap();
    for (file, count) in FILES {
        let set = Set::read(&data.join(file)).unwrap();
        let texts: Vec<(&str, &str)> = set.records.iter().take(500).flat_map(texts).collect();
        assert_eq!(texts.len(), count, "{file}");
        let found = texts.iter().filter(|(prompt, target)| merges(&tokenizer, prompt, target)).count();
        let wanted = merged.iter().find(|(name, _)| *name == file).map_or(0, |(_, count)| *count);
        assert_eq!(found, wanted, "{file}");
    }
}

#[test]
fn smollm2_never_merges_across_the_border() {
    check("SmolLM2-135M-Instruct.Q4_1.gguf", &[]);
}

/// It has tokens of several blanks, and some prompts end in one.
#[test]
fn gemma_3_merges_blanks_across_the_border_and_nothing_else() {
    check("gemma-3-270m-q4_k_m.gguf", &[("wikibio-train-all.json", 95), ("wikibio-test-all.json", 68)]);
}
