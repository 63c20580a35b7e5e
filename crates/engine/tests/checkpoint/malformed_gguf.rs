//! Broken and hostile GGUF files: each class with its message, and properties over random damage.

use std::path::Path;

use mutandis_engine::checkpoint::{Array, Checkpoint, Gguf, Value};
use proptest::prelude::*;

use crate::allocations::largest_during;
use crate::builder::{GgufBuilder, Tensor, string, values};
use crate::families::{gguf_llama, read_everything};

fn parse(bytes: &[u8]) -> Result<Gguf, String> {
    Gguf::parse(bytes, Path::new("m.gguf")).map_err(|e| e.to_string())
}

#[track_caller]
fn refused(bytes: &[u8], expected: &str) {
    let message = parse(bytes).unwrap_err();
    assert!(message.contains(expected), "expected `{expected}` in `{message}`");
}

/// Of each kind of value one, and two tensors.
fn valid() -> GgufBuilder {
    let mut strings = 8u32.to_le_bytes().to_vec();
    strings.extend(2u64.to_le_bytes());
    strings.extend(string("ab"));
    strings.extend(string("ç"));
    let mut nested = 9u32.to_le_bytes().to_vec();
    nested.extend(1u64.to_le_bytes());
    nested.extend(5u32.to_le_bytes());
    nested.extend(1u64.to_le_bytes());
    nested.extend((-7i32).to_le_bytes());
    GgufBuilder::new()
        .raw("u8", 0, &[200])
        .raw("i8", 1, &[0xFF])
        .raw("u16", 2, &[1, 2])
        .raw("i16", 3, &[0, 0x80])
        .u32("u32", 7)
        .raw("i32", 5, &(-5i32).to_le_bytes())
        .f32("f32", 1.5)
        .raw("bool", 7, &[1])
        .str("str", "text")
        .raw("strings", 9, &strings)
        .raw("nested", 9, &nested)
        .raw("u64", 10, &(1u64 << 40).to_le_bytes())
        .raw("i64", 11, &(-1i64).to_le_bytes())
        .raw("f64", 12, &2.5f64.to_le_bytes())
        .tensor("a", &[2, 3], &values(6, 1))
        .tensor("b", &[4], &values(4, 2))
}

fn tensor(name: &str, dims: &[u64], kind: u32, length: usize) -> Tensor {
    Tensor { name: name.into(), dims: dims.to_vec(), kind, bytes: vec![0; length], offset: None }
}

#[test]
fn every_type_of_value_is_read() {
    for version in [2, 3] {
        let mut file = valid();
        file.version = version;
        let g = parse(&file.build()).unwrap();
        assert_eq!((g.version(), g.tensors().len(), g.metadata().count()), (version, 2, 14));
        assert_eq!(
            (g.u32("u8").unwrap(), g.u32("u16").unwrap(), g.u32("u32").unwrap()),
            (Some(200), Some(513), Some(7))
        );
        assert_eq!(g.get("i8"), Some(&Value::I8(-1)));
        assert_eq!(g.get("i16"), Some(&Value::I16(-32768)));
        assert_eq!((g.f32("f32").unwrap(), g.f32("f64").unwrap()), (Some(1.5), Some(2.5)));
        assert_eq!((g.bool("bool").unwrap(), g.str("str").unwrap()), (Some(true), Some("text")));
        assert_eq!(g.strings("strings").unwrap().unwrap(), ["ab", "ç"]);
        assert_eq!(g.get("nested"), Some(&Value::Array(Array::Nested(vec![Array::I32(vec![-7])]))));
        assert_eq!(g.u64("u64").unwrap(), Some(1 << 40));
        assert!(g.u32("u64").unwrap_err().to_string().contains("`u64` is U64(1099511627776), expected"));
        assert_eq!(g.tensors()[0].shape, [2, 3]);
        assert!(g.data_offset().is_multiple_of(32));
    }
}

#[test]
fn headers_that_are_not_gguf_are_refused() {
    refused(b"", "the file ends inside the magic: 4 bytes expected at 0, 0 left");
    refused(b"GGML\0\0\0\0", "expected the magic `GGUF`, found `GGML`");
    refused(b"GGUF\0\0\0\x03", "big-endian GGUF is not supported (supported: little-endian");
    refused(b"GGUF\x01\0\0\0", "GGUF version 1 is not supported (supported: 2, 3)");
    refused(b"GGUF\x09\0\0\0", "GGUF version 9 is not supported");
}

#[test]
fn hostile_counts_are_refused_without_memory() {
    for n in [1u64 << 60, u64::MAX, 1 << 32, 1000] {
        let mut file = valid();
        file.tensor_count = Some(n);
        refused(&file.build(), &format!("it declares {n} tensors, but at most"));
        let mut file = valid();
        file.metadata_count = Some(n);
        refused(&file.build(), &format!("it declares {n} metadata entries, but at most"));
        for kind in 0..13u32 {
            let mut array = kind.to_le_bytes().to_vec();
            array.extend(n.to_le_bytes());
            let bytes = GgufBuilder::new().raw("k", 9, &array).build();
            let (result, largest) = largest_during(|| parse(&bytes));
            assert!(result.unwrap_err().contains(&format!("it declares {n} elements of `k`, but at most")));
            assert!(largest < 4096, "{largest} bytes for a file of {}", bytes.len());
        }
        let bytes = GgufBuilder::new().raw("k", 8, &n.to_le_bytes()).build();
        refused(&bytes, &format!("the file ends inside `k`: {n} bytes expected"));
    }
}

#[test]
fn broken_metadata_is_refused() {
    refused(&valid().u32("u32", 8).build(), "metadata key `u32` is present twice");
    refused(&valid().raw("k", 99, &[]).build(), "metadata `k` has the unknown type 99");
    refused(&valid().raw("k", 7, &[3]).build(), "boolean `k` has the value 3, expected 0 or 1");
    let mut text = 1u64.to_le_bytes().to_vec();
    text.push(0xFF);
    refused(&valid().raw("k", 8, &text).build(), "`k` is not UTF-8");
    refused(
        &valid().u32("general.alignment", 0).build(),
        "`general.alignment` is 0, expected a power of two",
    );
    refused(
        &valid().u32("general.alignment", 24).build(),
        "`general.alignment` is 24, expected a power of two",
    );
    let mut deep: Vec<u8> = Vec::new();
    for _ in 0..100_000 {
        deep.extend(9u32.to_le_bytes());
        deep.extend(1u64.to_le_bytes());
    }
    refused(&valid().raw("k", 9, &deep).build(), "metadata `k` nests arrays deeper than 8");
}

#[test]
fn broken_tensor_tables_are_refused() {
    let with = |t: Tensor| valid().with(t).build();
    refused(&with(tensor("a", &[1], 0, 4)), "tensor `a` is present twice");
    refused(&with(tensor("t", &[], 0, 4)), "tensor `t` has 0 dimensions, expected 1 to 4");
    refused(&with(tensor("t", &[1; 5], 0, 4)), "tensor `t` has 5 dimensions, expected 1 to 4");
    refused(&with(tensor("t", &[0], 0, 4)), "tensor `t` has a dimension of 0");
    refused(&with(tensor("t", &[1 << 31, 1 << 31, 1 << 31], 0, 4)), "overflows");
    refused(&with(tensor("t", &[1 << 60], 0, 4)), "tensor `t` needs 4611686018427387904 bytes at offset");
    refused(&with(tensor("t", &[u64::MAX], 0, 4)), "not a multiple of");
    refused(
        &with(tensor("t", &[33], 2, 36)),
        "rows of 33 elements, not a multiple of the 32 in a Q4_0 block",
    );
    refused(
        &with(tensor("t", &[32], 23, 36)),
        "tensor `t`: number format `IQ4_XS` is not supported (supported: F32",
    );
    refused(&with(tensor("t", &[32], 77, 36)), "tensor `t` has the unknown number format 77");
    refused(&with(tensor("t", &[33], 0, 100)), "tensor `t` needs 132 bytes at offset");
    refused(
        &with(Tensor { offset: Some(8), ..tensor("t", &[1], 0, 4) }),
        "begins at offset 8, not a multiple of 32",
    );
    refused(&with(Tensor { offset: Some(0), ..tensor("t", &[1], 0, 4) }), "overlap");
    refused(&with(Tensor { offset: Some(u64::MAX - 31), ..tensor("t", &[8], 0, 32) }), "overflows");
}

/// What the parser accepts, it accepts whole: every tensor lies in the file.
fn check_gguf(bytes: &[u8]) {
    let (result, largest) = largest_during(|| parse(bytes));
    // Strings and tables cost a small multiple of their bytes; the constant covers messages.
    assert!(largest <= 16 * bytes.len() + 4096, "{largest} bytes allocated for {}", bytes.len());
    if let Ok(gguf) = result {
        assert!(gguf.tensors().iter().all(|t| t.range.end <= bytes.len() && t.range.start < t.range.end));
    }
}

#[test]
fn a_gguf_cut_short_anywhere_is_refused() {
    let bytes = valid().build();
    for n in 0..bytes.len() {
        assert!(parse(&bytes[..n]).is_err(), "cut at {n} of {}", bytes.len());
    }
    parse(&bytes).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_upset_gguf(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), header in any::<bool>()) {
        if header && bytes.len() >= 24 {
            bytes[..8].copy_from_slice(b"GGUF\x03\0\0\0");
            bytes[9..16].fill(0);
            bytes[17..24].fill(0);
        }
        check_gguf(&bytes);
    }

    #[test]
    fn damage_never_upsets_gguf(flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = valid().build();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= value;
        }
        check_gguf(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Damage to the numbers of the metadata, the names, the shapes and the values.
    #[test]
    fn damage_never_upsets_a_gguf_model(flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = gguf_llama().build();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= value;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.gguf");
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(c) = Checkpoint::open(&path) {
            read_everything(&c);
        }
    }
}
