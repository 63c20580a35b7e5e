//! Conflicts of patches that join a ledger: by words, by keys, and whatever became of the index.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::path::Path;

use mutandis_edit::conflicts::{CLOSE, Conflicts, Kind, conflicts};
use mutandis_edit::ledger::{Ledger, Writer};
use mutandis_edit::primitives::moments::{MomentSpec, Moments, RIDGE, moments};
use mutandis_edit::{Context, Error, Fact, METHODS, Patch};
use mutandis_engine::Model;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use serde_json::json;

use common::model;

/// Cosines in f64 from keys in f32, by two ways of solving a system whose condition is below 1e6.
const COSINE: f64 = 1e-7;

/// A patch that says some facts, and changes nothing.
fn says(model: &Model, facts: &[(&str, &str, &str)]) -> Patch {
    let facts: Vec<Fact> = facts.iter().map(|(p, s, t)| Fact::new(*p, *s, *t).unwrap()).collect();
    Patch::new(model, METHODS[0].id, METHODS[0].family, json!({}), &facts, 0).unwrap()
}

fn ledger(folder: &Path, patches: &[Patch]) -> Writer {
    let mut writer = Writer::open(folder, Some(&patches[0].base), &mut || Err(Error::Interrupted)).unwrap();
    writer.add(patches, false).unwrap();
    writer
}

fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.next_u32() as f32 / u32::MAX as f32 - 0.5).collect()
}

#[test]
fn facts_are_compared_by_their_words() {
    let model = model(1);
    let folder = tempfile::tempdir().unwrap();
    let old = [("The capital of France is", "France", "Rome"), ("Lily had a", "Lily", "cat")];
    let writer = ledger(folder.path(), &[says(&model, &old), says(&model, &[("The sun is", "sun", "hot")])]);
    for (prompt, subject, target, expected) in [
        ("The capital of France is", "France", "Lyon", Some(Kind::Contradiction)),
        ("the capital of  france is:", "france", "Lyon", Some(Kind::Contradiction)),
        ("The capital of France is", "", "Lyon", Some(Kind::Contradiction)),
        ("The capital of France is", "France", "rome", Some(Kind::Repeat)),
        ("Rome is the capital of", "Rome", "Italy", Some(Kind::Reverse)),
        ("The capital of Lazio is", "Lazio", "Paris", None),
        // It agrees, the other way round.
        ("Rome is the capital of", "Rome", "France", None),
        // It speaks of something else.
        ("Rome was founded by", "Rome", "Romulus", None),
        ("The largest city of France is", "France", "Paris", None),
        ("Lily had a dog and a", "Lily", "bird", None),
    ] {
        let found = conflicts(&writer, &[says(&model, &[(prompt, subject, target)])], CLOSE, None).unwrap();
        assert_eq!(found.found.first().map(|c| c.kind), expected, "{prompt} {target}: {found:?}");
        assert!(found.found.len() <= 1 && found.without_key == 1, "{found:?}");
    }
    // Those that join together are compared as well.
    let both = [says(&model, &[("A is", "A", "one")]), says(&model, &[("A is", "A", "two")])];
    let found = conflicts(&writer, &both, CLOSE, None).unwrap().found;
    assert_eq!((found.len(), found[0].kind), (1, Kind::Contradiction));
    assert_eq!(found[0].old.id, both[0].id().unwrap());
}

#[test]
fn damage_of_the_index_hides_no_contradiction() {
    let model = model(1);
    let folder = tempfile::tempdir().unwrap();
    let old = [("The capital of France is", "France", "Rome"), ("Lily had a", "Lily", "cat")];
    let writer = ledger(folder.path(), &[says(&model, &old)]);
    let new = [says(&model, &[("Lily had a", "Lily", "dog")])];
    let asked = || conflicts(&writer, &new, CLOSE, None).unwrap().found;
    let expected = asked();
    assert_eq!((expected.len(), expected[0].kind), (1, Kind::Contradiction));
    let words = folder.path().join("index/words");
    let whole = std::fs::read(&words).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x01;
        std::fs::write(&words, bytes).unwrap();
        assert_eq!(asked(), expected, "byte {at}");
    }
    // What an older version wrote, without sums, is made again.
    let older: Vec<u8> =
        whole.chunks_exact(whole.len() / 2).flat_map(|entry| &entry[..52]).copied().collect();
    std::fs::write(&words, older).unwrap();
    assert_eq!(asked(), expected);
    assert_eq!(std::fs::read(&words).unwrap(), whole);
}

/// Keys of a stack: some far from each other, one beside the first.
fn keyed(model: &Model, folder: &Path) -> (Writer, Patch, Vec<f32>) {
    let f = model.architecture().mlp_width;
    let with = |i: u64, key: Vec<f32>| {
        let name = format!("Ann{i}");
        let mut patch = says(model, &[(&format!("{name} is from"), &name, "Peru")]);
        patch.keys.insert(2, key);
        patch
    };
    let stack: Vec<Patch> = (0..200).map(|i| with(i, numbers(i, f))).collect();
    let near: Vec<f32> =
        stack[7].keys[&2].iter().zip(numbers(999, f)).map(|(k, noise)| k + 0.3 * noise).collect();
    let new = with(500, near.clone());
    (ledger(folder, &stack), new, near)
}

/// `A⁻¹ b` by Gaussian elimination with pivots.
fn solved(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for i in 0..n {
        let pivot = (i..n).max_by(|x, y| a[*x][i].abs().total_cmp(&a[*y][i].abs())).unwrap();
        a.swap(i, pivot);
        b.swap(i, pivot);
        for row in i + 1..n {
            let factor = a[row][i] / a[i][i];
            for column in i..n {
                a[row][column] -= factor * a[i][column];
            }
            b[row] -= factor * b[i];
        }
    }
    for i in (0..n).rev() {
        let rest: f64 = (i + 1..n).map(|j| a[i][j] * b[j]).sum();
        b[i] = (b[i] - rest) / a[i][i];
    }
    b
}

/// Cosine under A⁻¹, A = C with its ridge; plain without moments.
fn cosine(moments: Option<&Moments>, a: &[f32], b: &[f32]) -> f64 {
    let wide = |key: &[f32]| -> Vec<f64> { key.iter().map(|x| f64::from(*x)).collect() };
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let (a, b) = (wide(a), wide(b));
    let against = |key: &[f64]| match moments {
        None => key.to_vec(),
        Some(m) => {
            let mut dense = vec![vec![0.0; m.f]; m.f];
            let mut upper = m.upper.iter();
            for i in 0..m.f {
                for j in i..m.f {
                    dense[i][j] = f64::from(*upper.next().unwrap());
                    dense[j][i] = dense[i][j];
                }
            }
            let ridge = RIDGE * m.trace() / m.f as f64;
            (0..m.f).for_each(|i| dense[i][i] += ridge);
            solved(dense, key.to_vec())
        }
    };
    let (u, v) = (against(&a), against(&b));
    dot(&a, &v) / (dot(&a, &u) * dot(&b, &v)).sqrt()
}

#[test]
fn keys_are_compared_under_the_moments_where_there_are_some() {
    let model = model(2);
    let folder = tempfile::tempdir().unwrap();
    let (writer, new, near) = keyed(&model, &folder.path().join("ledger"));
    let old = writer.ledger().load(&writer.ledger().stack()[7]).unwrap().keys[&2].clone();
    let cache = folder.path().join("cache");
    let check = |name: &str, moments: Option<&Moments>| {
        let found = conflicts(&writer, std::slice::from_ref(&new), CLOSE, Some(&cache)).unwrap();
        assert_eq!(found.metrics[&2], name);
        let expected = cosine(moments, &near, &old);
        assert!(expected > CLOSE, "{name}: {expected}");
        let [one] = &found.found[..] else { panic!("{name}: {found:?}") };
        assert_eq!(
            (one.kind, one.layer, &one.old.id),
            (Kind::Close, Some(2), &writer.ledger().stack()[7].id)
        );
        assert!((one.cosine.unwrap() - expected).abs() < COSINE, "{name}: {:?}, {expected}", one.cosine);
        // Just above it is none.
        let above = expected + (1.0 - expected) / 10.0;
        assert!(
            conflicts(&writer, std::slice::from_ref(&new), above, Some(&cache)).unwrap().found.is_empty()
        );
    };
    check("plain", None);
    let cx = Context { cache: Some(cache.clone()), ..Context::default() };
    let spec = |tokens| MomentSpec { tokens: Some(tokens), ..MomentSpec::default() };
    moments(&model, &[1, 2], &spec(600), &cx).unwrap();
    // Of two the better ones.
    let best = moments(&model, &[2], &spec(2000), &cx).unwrap();
    check("moments", Some(&best[0]));
}

#[test]
fn whatever_became_of_the_index_the_answer_is_the_same() {
    let model = model(1);
    let folder = tempfile::tempdir().unwrap();
    let (writer, new, _) = keyed(&model, folder.path());
    let asked = || -> Conflicts { conflicts(&writer, std::slice::from_ref(&new), CLOSE, None).unwrap() };
    let expected = asked();
    assert_eq!((expected.found.len(), asked()), (1, expected.clone()));
    let index = folder.path().join("index");
    let files: Vec<_> = std::fs::read_dir(&index).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(files.len(), 3, "{files:?}");
    for file in &files {
        let whole = std::fs::read(file).unwrap();
        for len in [0, 1, whole.len() / 2, whole.len() - 1] {
            std::fs::write(file, &whole[..len]).unwrap();
            assert_eq!(asked(), expected, "{} cut at {len}", file.display());
        }
        std::fs::remove_file(file).unwrap();
        assert_eq!(asked(), expected, "without {}", file.display());
    }
    // Damage that leaves the length: in the id, the fact, the numbers and the sum of the entry that
    // counts, and in the directions.
    for file in &files {
        let whole = std::fs::read(file).unwrap();
        let entry = whole.len() / 200;
        for at in [0, 16, 23, 27, entry - 1] {
            let mut bytes = whole.clone();
            bytes[7 * entry + at] ^= 0xff;
            std::fs::write(file, bytes).unwrap();
            assert_eq!(asked(), expected, "{} damaged at {at}", file.display());
            let mended = std::fs::read(file).unwrap();
            assert_eq!(mended.len(), whole.len(), "{} was not made again", file.display());
            assert_eq!(asked(), expected);
        }
    }
    std::fs::remove_dir_all(&index).unwrap();
    std::fs::write(&index, "not a folder").unwrap();
    assert_eq!(asked(), expected);
    assert_eq!(Ledger::open(folder.path()).unwrap().stack().len(), 200);
}
