//! Vocabularies that contradict themselves: an error that says what is wrong, never a panic.

use mutandis_engine::tokenizer::{GgufVocabulary, Specials, Tokenizer};
use proptest::prelude::*;

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|&text| text.to_owned()).collect()
}

/// Byte-level: enough for "ab ab".
fn bytes() -> GgufVocabulary {
    GgufVocabulary {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        tokens: strings(&["<s>", "a", "b", "Ġ", "ab", "Ġab"]),
        token_types: Some(vec![3, 1, 1, 1, 1, 1]),
        merges: Some(strings(&["a b", "Ġ ab"])),
        bos: Some(0),
        ..GgufVocabulary::default()
    }
}

/// SentencePiece-like, as Llama 2 has it: BOS and a space put first, two bytes only.
fn scored() -> GgufVocabulary {
    GgufVocabulary {
        model: "llama".into(),
        tokens: strings(&["<unk>", "<s>", "</s>", "<0xC3>", "<0xA9>", "▁", "a", "b", "▁a", "ab", "▁ab"]),
        scores: Some(vec![0.0, 0.0, 0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0]),
        token_types: Some(vec![2, 3, 3, 6, 6, 1, 1, 1, 1, 1, 1]),
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        ..GgufVocabulary::default()
    }
}

#[test]
fn the_sound_ones_are_accepted() {
    let tokenizer = Tokenizer::from_gguf(bytes()).unwrap();
    assert_eq!(tokenizer.encode("ab ab").unwrap().ids, [4, 5]);
    // "c" is in no piece: no token, and the offsets of the others stay right.
    let encoding = tokenizer.encode("acb").unwrap();
    assert_eq!((encoding.ids, encoding.offsets), (vec![1, 2], vec![0..1, 2..3]));

    let tokenizer = Tokenizer::from_gguf(scored()).unwrap();
    let encoding = tokenizer.encode("ab abé").unwrap();
    assert_eq!(encoding.ids, [1, 10, 10, 3, 4]);
    assert_eq!(encoding.offsets, [0..0, 0..2, 2..5, 5..6, 5..6]);
    assert_eq!(tokenizer.decode(&encoding.ids, Specials::Skip), "ab abé");
    assert_eq!(tokenizer.decode(&encoding.ids, Specials::Keep), "<s>ab abé");
    assert_eq!(tokenizer.decode_continuation(&[10], Specials::Skip), " ab");
    assert_eq!(tokenizer.encode_continuation("ab").unwrap().ids, [9]);
    // A byte without a token of its own is unknown.
    assert_eq!(tokenizer.encode_continuation("z").unwrap().ids, [0]);
    assert_eq!(tokenizer.eos_ids(), [2]);
    // The space stands first behind a special token, too, and covers nothing by itself.
    let marked = tokenizer.encode_with_specials("<s>b").unwrap();
    assert_eq!((marked.ids, marked.offsets), (vec![1, 5, 7], vec![0..3, 3..3, 3..4]));
}

#[test]
fn each_fault_is_named() {
    type Break = fn(&mut GgufVocabulary);
    let check = |parts: GgufVocabulary, change: Break, wanted: &str| {
        let mut parts = parts;
        change(&mut parts);
        let error = Tokenizer::from_gguf(parts).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}, expected {wanted}");
    };
    for parts in [bytes, scored] {
        check(parts(), |p| p.tokens.clear(), "0 tokens");
        check(parts(), |p| p.tokens[1] = p.tokens[3].clone(), "tokens 1 and 3 are both");
        check(parts(), |p| p.token_types = Some(vec![1; 3]), "3 token types for");
        check(parts(), |p| p.token_types.as_mut().unwrap()[2] = 9, "token 2 has type 9");
        check(parts(), |p| p.eos = Some(1 << 31), "`eos_token_id` is 2147483648");
        check(parts(), |p| p.eot = Some(u32::MAX), "`eot_token_id` is 4294967295");
        check(parts(), |p| p.pad = Some(11), "`padding_token_id` is 11");
        check(parts(), |p| p.model = "t5".into(), "`t5` is not supported (supported: gpt2, llama)");
    }
    check(bytes(), |p| p.merges = None, "`tokenizer.ggml.merges` is missing");
    check(bytes(), |p| p.merges = Some(strings(&["a q"])), "names the piece `q`");
    check(bytes(), |p| p.merges = Some(strings(&["b a"])), "names the piece `ba`");
    check(bytes(), |p| p.merges = Some(strings(&["ab"])), "is not two pieces");
    check(bytes(), |p| p.merges = Some(strings(&[""])), "is not two pieces");
    check(bytes(), |p| p.pre = Some("x".into()), "the pre-tokenizer `x` is not supported");
    check(bytes(), |p| (p.bos, p.add_bos) = (None, Some(true)), "`add_bos_token` is set");
    check(scored(), |p| p.scores = None, "`tokenizer.ggml.scores` is missing");
    check(scored(), |p| p.scores = Some(vec![0.0]), "1 scores for 11 tokens");
    check(scored(), |p| p.scores.as_mut().unwrap()[4] = f32::NAN, "score of token 4 is NaN");
}

#[test]
fn any_vocabulary_is_refused_or_works() {
    let token = prop_oneof![
        "[abĠ▁é]{0,3}",
        "<0x[0-9A-F]{2}>",
        Just("<s>".to_owned()),
        any::<char>().prop_map(String::from),
    ];
    let score = prop_oneof![Just(0.0), any::<f32>()];
    let parts = (
        (any::<bool>(), prop::collection::vec(token, 0..12)),
        prop::option::of(prop::collection::vec(score, 12)),
        prop::option::of(prop::collection::vec(0..7_i32, 12)),
        prop::option::of(prop::collection::vec("[abĠ]{0,2} ?[abĠ]{0,2}", 0..4)),
        prop::collection::vec(prop::option::of(0..14_u32), 4),
        prop::collection::vec(prop::option::of(any::<bool>()), 3),
    );
    let config = ProptestConfig { cases: 3000, failure_persistence: None, ..Default::default() };
    let built = std::cell::Cell::new(0);
    proptest!(config, |(
        ((sentencepiece, mut tokens), scores, types, merges, ids, flags) in parts,
        text in "[abé ▁<s>0xA9\u{1F600}\n]{0,12}",
    )| {
        if sentencepiece {
            // Distinct more often than not.
            tokens.sort();
            tokens.dedup();
        }
        let count = tokens.len();
        let cut = |list: Vec<f32>| list.into_iter().take(count).collect::<Vec<_>>();
        let parts = GgufVocabulary {
            model: if sentencepiece { "llama" } else { "gpt2" }.into(),
            scores: scores.map(cut),
            token_types: types.map(|list| list.into_iter().take(count).collect()),
            tokens,
            merges,
            bos: ids[0], eos: ids[1], unk: ids[2], eot: ids[3],
            add_bos: flags[0], add_eos: flags[1], add_space_prefix: flags[2],
            ..GgufVocabulary::default()
        };
        if let Ok(tokenizer) = Tokenizer::from_gguf(parts) {
            built.set(built.get() + 1);
            for encoding in [
                tokenizer.encode(&text).unwrap(),
                tokenizer.encode_continuation(&text).unwrap(),
                tokenizer.encode_with_specials(&text).unwrap(),
            ] {
                prop_assert!(encoding.ids.iter().all(|&id| (id as usize) < count));
                crate::check_offsets(&text, &encoding, false);
                tokenizer.decode(&encoding.ids, Specials::Skip);
            }
        }
    });
    assert!(built.get() > 100, "only {} of 3000 could be built", built.get());
}
