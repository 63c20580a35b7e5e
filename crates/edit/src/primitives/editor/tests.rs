#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use mutandis_engine::Role;
use rand_core::RngCore;
use safetensors::SafeTensors;

use super::*;

const SHAPE: [usize; 2] = [5, 7];

fn ids() -> Vec<(WeightId, [usize; 2])> {
    (0..2).map(|layer| (WeightId { layer, role: Role::MlpOut }, SHAPE)).collect()
}

fn whole(change: &WeightChange) -> Vec<f32> {
    let mut delta = vec![0.0; SHAPE[0] * SHAPE[1]];
    change.add_to(&mut delta);
    delta
}

/// Against `fixtures/editors.py`. What is compared is f32 and of size 1 to 1000, and so is what a
/// change is made of: 1e-5 of the largest number is a hundred roundings.
#[test]
fn changes_are_those_of_numpy() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/editors.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |name: &str| -> Vec<f32> {
        let data = file.tensor(name).unwrap().data().to_vec();
        data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let pair = Pair { x: numbers("inputs"), dy: numbers("gradients") };
    for (rule, name) in [(Rule::Sum, "mend"), (Rule::LeastSquares, "malmen")] {
        let mut editor = Editor::new(Shape { rule, rank: 3, blocks: 2 }, ids(), 0).unwrap();
        let shared = editor.shared.get_mut(&SHAPE).unwrap();
        shared.numbers = numbers("numbers");
        shared.statistics = Running::from_state(&numbers("state"), 12, false).unwrap();
        (editor.rates[1], editor.ridges[1]) = (numbers("rate")[0], numbers("ridge")[0]);
        let (found, expected) = (whole(&editor.change(1, &pair).unwrap()), numbers(name));
        let scale = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        for (i, (x, y)) in found.iter().zip(&expected).enumerate() {
            assert!((x - y).abs() < 1e-5 * scale, "{name} {i}: {x}, numpy {y}");
        }
    }
}

/// Numbers within 1 of zero.
fn random(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| (f64::from(rng.next_u32()) / 2_147_483_648.0 - 1.0) as f32).collect()
}

/// All gradients of ⟨G, ΔW⟩ against central differences, G a product of rows as the engine gives
/// it. The changes compared are f32: differences of 2⁻⁸ resolve a few times 1e-5 of them.
#[test]
fn gradients_are_those_of_differences() {
    for rule in [Rule::Sum, Rule::LeastSquares] {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut pairs = |n: usize| Pair { x: random(&mut rng, n * 7), dy: random(&mut rng, n * 5) };
        let (before, seen, after) = (pairs(4), pairs(40), pairs(6));
        let mut editor = Editor::new(Shape { rule, rank: 3, blocks: 2 }, ids(), 1).unwrap();
        editor.see(&[seen.clone(), seen]);
        editor.start(0.05, 0.5);
        for numbers in editor.numbers_mut() {
            let more = random(&mut rng, numbers.len());
            numbers.iter_mut().zip(more).for_each(|(x, y)| *x += 0.3 * y);
        }
        let loss = |editor: &Editor| -> f64 {
            let delta = whole(&editor.change(1, &before).unwrap());
            let rows = after.x.chunks_exact(7).zip(after.dy.chunks_exact(5));
            rows.map(|(x, dy)| {
                let row = |i: usize| -> f64 {
                    delta[i * 7..(i + 1) * 7].iter().zip(x).map(|(d, x)| f64::from(*d) * f64::from(*x)).sum()
                };
                (0..5).map(|i| f64::from(dy[i]) * row(i)).sum::<f64>()
            })
            .sum()
        };
        let mut slopes = editor.slopes();
        let (_, made) = editor.make(1, &before).unwrap();
        editor.back(&made, &after, &mut slopes);
        let groups: Vec<Vec<f64>> =
            slopes.shared.into_values().chain([slopes.rates, slopes.ridges]).collect();
        let step = 2.0f32.powi(-8);
        let mut seen = 0;
        for (group, slopes) in groups.iter().enumerate() {
            for (i, slope) in slopes.iter().enumerate() {
                let at = |by: f32| {
                    let mut moved = editor.clone();
                    moved.numbers_mut()[group][i] += by;
                    loss(&moved)
                };
                let expected = (at(step) - at(-step)) / (2.0 * f64::from(step));
                assert!(
                    (slope - expected).abs() < 2e-3 * (1.0 + expected.abs()),
                    "{rule:?} {group} {i}: {slope}, differences {expected}"
                );
                seen += usize::from(slope.abs() > 1e-3);
            }
        }
        assert!(seen > 100, "{rule:?}: only {seen} gradients are not zero");
    }
}

#[test]
fn an_editor_is_read_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("editor.safetensors");
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let mut editor = Editor::new(Shape { rule: Rule::LeastSquares, rank: 2, blocks: 1 }, ids(), 1).unwrap();
    let seen = Pair { x: random(&mut rng, 70), dy: random(&mut rng, 50) };
    editor.see(&[seen.clone(), seen]);
    let about = About {
        method: "malmen".into(),
        base: "base".into(),
        settings: serde_json::json!({"rank": 2}),
        data: "data".into(),
        seed: 1,
        steps: 3,
        reached: None,
        stale: 0,
    };
    store::save(&path, &editor, &about, &[]).unwrap();
    let (read, said, optimizers) = store::load(&path).unwrap();
    assert_eq!((said, optimizers.len()), (about, 0));
    let pair = Pair { x: random(&mut rng, 21), dy: random(&mut rng, 15) };
    // Statistics are kept in f32.
    let (x, y) = (whole(&editor.change(0, &pair).unwrap()), whole(&read.change(0, &pair).unwrap()));
    x.iter().zip(&y).for_each(|(x, y)| assert!((x - y).abs() <= 1e-5 * (1.0 + y.abs()), "{x} {y}"));

    let bytes = std::fs::read(&path).unwrap();
    for broken in [bytes[..bytes.len() / 2].to_vec(), {
        let mut flipped = bytes.clone();
        *flipped.last_mut().unwrap() ^= 1;
        flipped
    }] {
        std::fs::write(&path, broken).unwrap();
        assert!(matches!(store::load(&path), Err(Error::Corrupt { .. })));
    }
}

#[test]
fn a_rank_above_the_rows_is_refused() {
    let error = Editor::new(Shape { rule: Rule::Sum, rank: 13, blocks: 2 }, ids(), 0).unwrap_err();
    assert_eq!(error.to_string(), "`rank` is 13, expected 1 to 12");
}
