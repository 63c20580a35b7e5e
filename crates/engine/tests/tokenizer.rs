//! Tokenizers against llama.cpp's ids on both real models, and against their own promises.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

#[path = "tokenizer/chat.rs"]
mod chat;
#[path = "tokenizer/directory.rs"]
mod directory;
#[path = "tokenizer/hostile.rs"]
mod hostile;
#[path = "tokenizer/support.rs"]
mod support;

use std::time::Instant;

use mutandis_engine::tokenizer::{Encoding, Specials, Tokenizer};
use proptest::prelude::*;
use support::{GEMMA3, SMOLLM2, gemma3, smollm2};

/// The golden texts with their ids under one model.
pub(crate) fn golden(model: &str) -> Vec<(String, Vec<u32>)> {
    let Some(path) = support::data("MUTANDIS_SHARED", "shared", "golden/tokens.jsonl") else {
        return Vec::new();
    };
    let lines = std::fs::read_to_string(path).unwrap();
    let row = |line: &str| {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let ids = serde_json::from_value(row[model].clone()).unwrap();
        (row["text"].as_str().unwrap().to_owned(), ids)
    };
    let rows: Vec<_> = lines.lines().map(row).collect();
    assert_eq!(rows.len(), 1884);
    rows
}

/// What must hold of any encoding of any text. `covers`: the vocabulary can spell every byte.
pub(crate) fn check_offsets(text: &str, encoding: &Encoding, covers: bool) {
    let characters = text.chars().count();
    assert_eq!(encoding.ids.len(), encoding.offsets.len());
    let (mut start, mut end) = (0, 0);
    for range in &encoding.offsets {
        assert!(range.start <= range.end && range.end <= characters, "{text:?}: {range:?}");
        assert!(range.start >= start && range.end >= end, "{text:?}: {:?}", encoding.offsets);
        assert!(!covers || range.start <= end, "{text:?} has a gap: {:?}", encoding.offsets);
        (start, end) = (range.start, range.end);
    }
    assert!(!covers || end == characters, "{text:?} is cut: {:?}", encoding.offsets);
    for index in 0..characters {
        let expected = encoding.offsets.iter().rposition(|range| range.contains(&index));
        assert_eq!(encoding.token_at_char(index), expected);
        assert!(!covers || expected.is_some());
    }
    assert_eq!(encoding.token_at_char(characters), None);
}

fn check_golden(tokenizer: &Tokenizer, model: &str) {
    let mut wrong = Vec::new();
    for (text, ids) in golden(model) {
        let encoding = tokenizer.encode(&text).unwrap();
        if encoding.ids != ids {
            wrong.push((text, ids, encoding.ids));
            continue;
        }
        check_offsets(&text, &encoding, true);
        assert_eq!(tokenizer.decode(&ids, Specials::Skip), text);
    }
    assert!(wrong.is_empty(), "{} texts differ, first: {:?}", wrong.len(), &wrong[..1]);
}

#[test]
fn ids_equal_llama_cpp_for_smollm2() {
    let Some(tokenizer) = smollm2() else { return };
    check_golden(&tokenizer, "smollm2");
    assert_eq!(tokenizer.vocabulary_len(), 49152);
    assert_eq!(tokenizer.bos(), Some(1));
    assert_eq!(tokenizer.eos_ids(), [2, 0]);
    assert_eq!(tokenizer.encode("").unwrap(), Encoding::default());
}

#[test]
fn ids_equal_llama_cpp_for_gemma3() {
    let Some(tokenizer) = gemma3() else { return };
    check_golden(&tokenizer, "gemma3");
    assert_eq!(tokenizer.bos(), Some(2));
    assert_eq!(tokenizer.eos_ids()[0], 1);
    assert!(tokenizer.eos_ids().contains(&tokenizer.id_of("<end_of_turn>").unwrap()));
    assert_eq!(tokenizer.encode("").unwrap().ids, [2]);
    assert!(tokenizer.encode_continuation("").unwrap().ids.is_empty());
}

#[test]
fn building_is_fast() {
    for file in [SMOLLM2, GEMMA3] {
        let Some(parts) = support::vocabulary(file) else {
            return;
        };
        let start = Instant::now();
        let tokenizer = Tokenizer::from_gguf(parts).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        eprintln!("{file}: built in {:.1} ms", seconds * 1e3);
        // Ten times what it takes on an idle machine in this profile: the machine may be busy.
        assert!(seconds < 1.0, "{seconds} s");
        let text = "The quick brown fox jumps over 12 lazy dogs; naïvely, 漢字!\n".repeat(2000);
        let start = Instant::now();
        let ids = tokenizer.encode(&text).unwrap().ids.len();
        let seconds = start.elapsed().as_secs_f64();
        eprintln!("{:.2} MB/s, {ids} tokens", text.len() as f64 / 1e6 / seconds);
        // One word, or no words at all: neither may cost more than n log n.
        let start = Instant::now();
        tokenizer.encode(&"a".repeat(200_000)).unwrap();
        tokenizer.encode(&" ".repeat(200_000)).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        eprintln!("long runs in {:.1} ms", seconds * 1e3);
        assert!(seconds < 5.0, "{seconds} s");
    }
}

#[test]
fn a_subject_ends_in_the_token_that_holds_its_last_character() {
    let (Some(smollm2), Some(gemma3)) = (smollm2(), gemma3()) else {
        return;
    };
    for tokenizer in [&smollm2, &gemma3] {
        for (text, subject) in [
            ("The mother tongue of Danielle Darrieux is", "Danielle Darrieux"),
            ("Zoë 😀🏽 lives in Kraków.", "😀🏽"),
            ("日本の首都は東京です", "東京"),
            ("𝕏 and ꙮ", "ꙮ"),
        ] {
            let encoding = tokenizer.encode(text).unwrap();
            let byte = text.find(subject).unwrap() + subject.len();
            let last = text[..byte].chars().count() - 1;
            let token = encoding.token_at_char(last).unwrap();
            // Decoded up to and with that token the text holds the subject, and not before it.
            let upto = |n: usize| tokenizer.decode(&encoding.ids[..n], Specials::Skip);
            assert!(upto(token + 1).contains(subject), "{text}");
            assert!(!upto(token).contains(subject), "{text}");
        }
    }
    // 😀 is F0 9F 98 80, for which SmolLM2 has no single token.
    let encoding = smollm2.encode("a😀").unwrap();
    assert!(encoding.ids.len() > 2);
    assert!(encoding.offsets[1..].iter().all(|range| *range == (1..2)));
    assert_eq!(encoding.token_at_char(1), Some(encoding.ids.len() - 1));
    // BOS covers nothing, so the first character is the next token's.
    assert_eq!(gemma3.encode("Hi").unwrap().token_at_char(0), Some(1));
}

#[test]
fn special_tokens_are_text_unless_asked_for() {
    let (Some(smollm2), Some(gemma3)) = (smollm2(), gemma3()) else {
        return;
    };
    for (tokenizer, names) in [
        (&smollm2, ["<|im_end|>", "<|endoftext|>", "<empty_output>"]),
        (&gemma3, ["<bos>", "<end_of_turn>", "<unused99>"]),
    ] {
        for name in names {
            let text = format!("a{name}b");
            let plain = tokenizer.encode_continuation(&text).unwrap();
            assert!(plain.ids.iter().all(|&id| !tokenizer.is_special(id)), "{name}");
            assert_eq!(tokenizer.decode(&plain.ids, Specials::Skip), text);
            let marked = tokenizer.encode_with_specials(&text).unwrap();
            let id = tokenizer.id_of(name).unwrap();
            assert_eq!((marked.ids.len(), marked.ids[1]), (3, id));
            assert_eq!(marked.offsets[1], 1..text.len() - 1);
            assert_eq!(tokenizer.decode(&marked.ids, Specials::Skip), "ab");
            assert_eq!(tokenizer.decode(&marked.ids, Specials::Keep), text);
            assert_eq!(tokenizer.piece(id), name);
        }
        let every = 0..u32::try_from(tokenizer.vocabulary_len()).unwrap();
        for id in every.filter(|&id| tokenizer.is_special(id)) {
            let text = tokenizer.piece(id);
            let ids = tokenizer.encode_continuation(&text).unwrap().ids;
            assert!(!ids.contains(&id), "{text} is made from plain text");
            // The first literal piece of two may be the longer one, never the wrong one.
            assert_eq!(tokenizer.encode_with_specials(&text).unwrap().ids, [id]);
        }
    }
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let (Some(smollm2), Some(gemma3)) = (smollm2(), gemma3()) else {
        return;
    };
    assert!(smollm2.validate(49152).is_ok() && smollm2.validate(49280).is_ok());
    let error = gemma3.validate(49152).unwrap_err().to_string();
    assert!(error.contains("262144 tokens") && error.contains("49152 rows"), "{error}");
    assert!(smollm2.validate(262_144).is_err());
}

/// Decoding one by one gives the same text, and never half a character.
fn check_stream(tokenizer: &Tokenizer, ids: &[u32]) {
    let mut stream = tokenizer.stream(Specials::Keep);
    let mut text = String::new();
    for &id in ids {
        text.push_str(&stream.push(id));
    }
    text.push_str(&stream.finish());
    assert_eq!(text, tokenizer.decode_continuation(ids, Specials::Keep));
}

#[test]
fn streams_give_whole_characters() {
    let (Some(smollm2), Some(gemma3)) = (smollm2(), gemma3()) else {
        return;
    };
    let ids = smollm2.encode("a😀!").unwrap().ids;
    let mut stream = smollm2.stream(Specials::Skip);
    let parts: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
    assert!(parts.iter().any(String::is_empty), "{parts:?}");
    assert!(parts.iter().all(|part| !part.contains('\u{FFFD}')), "{parts:?}");
    assert_eq!(parts.concat(), "a😀!");
    assert_eq!(stream.finish(), "");
    // What continues a prompt keeps its leading space.
    let paris = gemma3.encode_continuation(" Paris").unwrap().ids;
    assert_eq!(gemma3.stream(Specials::Skip).push(paris[0]), " Paris");
    // A character that is cut off is said to be missing, not left out.
    let cut = &ids[..ids.len() - 2];
    check_stream(&smollm2, cut);
    assert!(smollm2.decode(cut, Specials::Skip).ends_with('\u{FFFD}'));
}

/// Text of all kinds: any character, and those that tokenizers treat in a way of their own.
fn texts() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        any::<char>().prop_map(String::from),
        "[ \t\n\r]{1,5}",
        "[a-z]{1,8}",
        "[0-9]{1,6}",
        "['’](s|ll|S|RE)",
        "[\u{300}-\u{310}é漢ا😀\u{200d}\u{fe0f}]{1,4}",
        Just("<|im_end|>".to_owned()),
        Just("<end_of_turn>".to_owned()),
        Just("<0x41>".to_owned()),
        Just("<h1>".to_owned()),
    ];
    prop::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
}

#[test]
fn any_text_comes_back() {
    let (Some(smollm2), Some(gemma3)) = (smollm2(), gemma3()) else {
        return;
    };
    // SmolLM2's vocabulary lacks 21 single bytes; a character that needs one is lost, as it is in
    // llama.cpp: six control characters, and what begins with F1 or F2.
    let spelt = |c: char| {
        let mut buffer = [0; 4];
        let lacking = |b: &u8| matches!(b, 4 | 6 | 0x13 | 0x14 | 0x16 | 0x1d | 0xf1 | 0xf2);
        !c.encode_utf8(&mut buffer).as_bytes().iter().any(lacking)
    };
    let config = ProptestConfig { cases: 600, failure_persistence: None, ..Default::default() };
    proptest!(config, |(text in texts())| {
        let covered = text.chars().all(spelt);
        let encoding = smollm2.encode(&text).unwrap();
        check_offsets(&text, &encoding, covered);
        if covered {
            prop_assert_eq!(smollm2.decode(&encoding.ids, Specials::Keep), &text[..]);
        }
        check_stream(&smollm2, &encoding.ids);

        let encoding = gemma3.encode(&text).unwrap();
        check_offsets(&text, &encoding, true);
        if !text.contains('\u{2581}') {
            prop_assert_eq!(gemma3.decode(&encoding.ids, Specials::Skip), &text[..]);
        }
        check_stream(&gemma3, &encoding.ids);

        for tokenizer in [&smollm2, &gemma3] {
            check_offsets(&text, &tokenizer.encode_with_specials(&text).unwrap(), false);
            let rest = tokenizer.encode_continuation(&text).unwrap();
            let whole = tokenizer.encode(&text).unwrap();
            prop_assert!(whole.ids.ends_with(&rest.ids));
        }
    });
}

#[test]
fn any_ids_can_be_decoded() {
    let (Some(smollm2), Some(gemma3)) = (smollm2(), gemma3()) else {
        return;
    };
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() };
    let id = prop_oneof![0..262_144_u32, 0..49_152_u32, any::<u32>()];
    proptest!(config, |(ids in prop::collection::vec(id, 0..20))| {
        for tokenizer in [&smollm2, &gemma3] {
            check_stream(tokenizer, &ids);
            let joined: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.piece_bytes(id)).collect();
            let text = String::from_utf8_lossy(&joined);
            prop_assert_eq!(tokenizer.decode(&ids, Specials::Keep), text);
        }
    });
}
