//! Tokenizers from a Hugging Face directory: the same ids as from the GGUF, and hostile files.

use std::path::Path;

use mutandis_engine::tokenizer::{GgufVocabulary, Specials, Tokenizer};
use serde_json::{Value, json};

use super::support::{GEMMA3, SMOLLM2, vocabulary};
use super::{check_offsets, golden};

fn write(dir: &Path, name: &str, value: &Value) {
    std::fs::write(dir.join(name), serde_json::to_vec(value).unwrap()).unwrap();
}

fn ids_by_text(parts: &GgufVocabulary) -> serde_json::Map<String, Value> {
    parts.tokens.iter().enumerate().map(|(id, text)| (text.clone(), json!(id))).collect()
}

fn added(parts: &GgufVocabulary) -> Vec<Value> {
    let types = parts.token_types.as_ref().unwrap().iter();
    let marked = types.enumerate().filter(|(_, kind)| [2, 3, 4].contains(*kind));
    let token = |(id, kind): (usize, &i32)| {
        json!({
            "id": id, "content": parts.tokens[id], "special": *kind != 4, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false,
        })
    };
    marked.map(token).collect()
}

/// The directory that SmolLM2 is published as, rebuilt from its GGUF.
fn smollm2(parts: &GgufVocabulary) -> Value {
    json!({
        "version": "1.0", "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0,
            "direction": "Right"}, "padding": null, "added_tokens": added(parts),
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
            "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
            "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
            "byte_fallback": false, "vocab": ids_by_text(parts), "merges": parts.merges},
    })
}

/// The same for Gemma 3. The merges follow from the scores: every cut of every piece.
fn gemma3(parts: &GgufVocabulary) -> Value {
    let vocabulary = ids_by_text(parts);
    let scores = parts.scores.as_ref().unwrap();
    let types = parts.token_types.as_ref().unwrap();
    let mut order: Vec<usize> = (0..types.len()).filter(|&id| types[id] == 1).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let mut merges = Vec::new();
    for id in order {
        let piece = &parts.tokens[id];
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            let plain =
                |half: &str| vocabulary.get(half).is_some_and(|id| types[id.as_u64().unwrap() as usize] == 1);
            if plain(left) && plain(right) {
                merges.push(json!([left, right]));
            }
        }
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added(parts),
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true,
            "byte_fallback": true, "vocab": vocabulary, "merges": merges},
    })
}

fn check(file: &str, model: &str, build: fn(&GgufVocabulary) -> Value, config: &Value) {
    let Some(parts) = vocabulary(file) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "tokenizer.json", &build(&parts));
    write(dir.path(), "tokenizer_config.json", config);
    let start = std::time::Instant::now();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    eprintln!("{model}: read in {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    let native = Tokenizer::from_gguf(parts).unwrap();
    assert_eq!(tokenizer.bos(), native.bos());
    assert_eq!(tokenizer.eos_ids(), native.eos_ids());
    assert_eq!(tokenizer.vocabulary_len(), native.vocabulary_len());
    for (text, ids) in golden(model) {
        if model == "gemma3" && text.contains("</s>") {
            // A literal of Gemma's, which llama.cpp takes for an end of text and spells out.
            assert!(tokenizer.encode(&text).unwrap().ids.contains(&212));
            continue;
        }
        let encoding = tokenizer.encode(&text).unwrap();
        assert_eq!(encoding.ids, ids, "{text:?}");
        check_offsets(&text, &encoding, true);
        assert_eq!(encoding.offsets, native.encode(&text).unwrap().offsets, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, Specials::Skip), text);
        let marked = tokenizer.encode_with_specials(&text).unwrap();
        assert_eq!(marked, native.encode_with_specials(&text).unwrap(), "{text:?}");
        let rest = tokenizer.encode_continuation(&text).unwrap();
        assert_eq!(rest, native.encode_continuation(&text).unwrap(), "{text:?}");
    }
}

#[test]
fn smollm2_gives_the_same_ids_as_its_gguf() {
    let config = json!({
        "bos_token": {"content": "<|im_start|>", "lstrip": false}, "eos_token": "<|im_end|>",
    });
    check(SMOLLM2, "smollm2", smollm2, &config);
}

#[test]
fn gemma3_gives_the_same_ids_as_its_gguf() {
    let config = json!({"bos_token": "<bos>", "eos_token": "<eos>", "add_bos_token": true,
        "tokenizer_class": "GemmaTokenizerFast"});
    check(GEMMA3, "gemma3", gemma3, &config);
}

/// A small one as Llama 2 has it, with a space put first.
fn small() -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [
            {"id": 1, "content": "<s>", "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false},
            {"id": 2, "content": "</s>", "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false},
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true,
            "byte_fallback": true,
            "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "b": 5, "ab": 6, "▁ab": 7,
                "<0xC3>": 8, "<0xA9>": 9},
            "merges": [["a", "b"], ["▁", "ab"]]},
    })
}

#[test]
fn a_space_put_first_is_left_out_of_continuations() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "tokenizer.json", &small());
    let config = json!({"bos_token": "<s>", "add_bos_token": true,
        "tokenizer_class": "LlamaTokenizer", "chat_template": [
            {"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ eos_token }}"}]});
    write(dir.path(), "tokenizer_config.json", &config);
    write(dir.path(), "generation_config.json", &json!({"eos_token_id": [2, 5, 99]}));
    write(dir.path(), "config.json", &json!({"eos_token_id": 2, "bos_token_id": 50256}));
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(tokenizer.eos_ids(), [2, 5]);
    let encoding = tokenizer.encode("ab abé").unwrap();
    assert_eq!(encoding.ids, [1, 7, 7, 8, 9]);
    assert_eq!(encoding.offsets, [0..0, 0..2, 2..5, 5..6, 5..6]);
    assert_eq!(tokenizer.decode(&encoding.ids, Specials::Skip), "ab abé");
    assert_eq!(tokenizer.encode_continuation("ab").unwrap().ids, [6]);
    assert_eq!(tokenizer.encode_continuation(" ab").unwrap().ids, [7]);
    assert_eq!(tokenizer.chat_template().unwrap().render(&[], false).unwrap(), "</s>");
    std::fs::write(dir.path().join("chat_template.jinja"), "{{ bos_token }}!").unwrap();
    let template = Tokenizer::from_dir(dir.path()).unwrap().chat_template().unwrap();
    assert_eq!(template.render(&[], false).unwrap(), "<s>!");
}

#[test]
fn hostile_directories_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let error = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
    assert!(error.contains("does not exist"), "{error}");
    let mut cases: Vec<(Value, &str)> = vec![(json!([]), "not a valid"), (json!({}), "not a valid")];
    let mut change = |pointer: &str, value: Value, wanted: &'static str| {
        let mut file = small();
        *file.pointer_mut(pointer).unwrap() = value;
        cases.push((file, wanted));
    };
    change("/model/vocab/a", json!(2_147_483_648_u32), "names id 2147483648");
    change("/model/vocab/a", json!(5), "id 5 is both");
    change("/model/vocab/a", json!(-1), "not a valid");
    change("/model/vocab", json!({}), "not a valid");
    change("/model/merges", json!([["a", "q"]]), "not a valid");
    change("/model/merges", json!(["a"]), "not a valid");
    change("/model/type", json!("Quantum"), "not a valid");
    change("/model/dropout", json!(0.5), "a BPE dropout is not supported");
    change(
        "/decoder",
        json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "|",
        "cleanup": true}),
        "decodes by CTC is not supported",
    );
    change("/decoder", Value::Null, "without a decoder");
    for (file, wanted) in cases {
        write(dir.path(), "tokenizer.json", &file);
        let error = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}, expected {wanted}");
    }
    // Cut short at any place, and with any byte changed: an error or a tokenizer, never a panic.
    let whole = serde_json::to_vec(&small()).unwrap();
    let path = dir.path().join("tokenizer.json");
    let mut works = 0;
    for at in (0..whole.len()).step_by(7) {
        std::fs::write(&path, &whole[..at]).unwrap();
        assert!(Tokenizer::from_dir(dir.path()).is_err());
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 7);
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(tokenizer) = Tokenizer::from_dir(dir.path()) {
            works += 1;
            let _ = tokenizer.encode("ab é</s>").map(|e| tokenizer.decode(&e.ids, Specials::Keep));
            let _ = tokenizer.encode_with_specials("ab é</s>");
        }
    }
    assert!(works > 0);
    write(dir.path(), "tokenizer.json", &small());
    std::fs::write(dir.path().join("tokenizer_config.json"), "{").unwrap();
    let error = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json` is not a valid JSON"), "{error}");
}
