//! Gradients of every family against goldens in f64.

use mutandis_engine::kernels::loss;
use mutandis_engine::{Gradients, LogitRows, Model, Pass, Read, Role, Site, SiteKind, Tape, Wants, WeightId};

use crate::support::{FAMILIES, Golden, assert_near, fixtures, load, plain};

/// Of the largest element: f32 sums of a dozen layers' roundings, each about 1e-7, and the last of
/// them through a softmax.
const GRADIENT: f64 = 2e-5;
/// The loss, in nats.
const LOSS: f64 = 1e-5;
/// Positions that count in the loss.
const POSITIONS: usize = 4;

/// Loss and what a backward pass needs: −mean log p(next token) of the last positions with one.
fn recorded<'a>(model: &Model, ids: &'a [u32]) -> (f64, Tape<'a>, Vec<f32>) {
    let rows: Vec<usize> = (ids.len() - 1 - POSITIONS..ids.len() - 1).collect();
    let targets: Vec<u32> = rows.iter().map(|r| ids[r + 1]).collect();
    let pass =
        Pass { sequences: vec![plain(ids)], logits: LogitRows::Rows(rows), record: true, ..Pass::default() };
    let outcome = model.forward(pass).unwrap();
    let v = model.architecture().vocabulary;
    let losses = loss::cross_entropy(model.isa(), &outcome.logits, v, &targets);
    let mut d = outcome.logits;
    loss::cross_entropy_backward(model.isa(), &mut d, v, &targets, &[1.0 / POSITIONS as f32; POSITIONS]);
    let mean = losses.iter().map(|x| f64::from(*x)).sum::<f64>() / POSITIONS as f64;
    (mean, outcome.tape.unwrap(), d)
}

fn check(model: &Model, golden: &Golden, name: &str, label: &str) {
    let ids = golden.ids(name, 0);
    let (mean, tape, logits) = recorded(model, &ids);
    let expected = golden.get(&format!("{name}.loss"))[0];
    assert!((mean - expected).abs() < LOSS, "{label}: loss {mean}, expected {expected}");

    let middle = model.architecture().layers / 2;
    let mut weights = vec![("down", Role::MlpOut, 1)];
    for (what, role) in [
        ("q", Role::Query),
        ("k", Role::Key),
        ("v", Role::Value),
        ("o", Role::AttentionOut),
        ("gate", Role::MlpGate),
        ("up", Role::MlpUp),
    ] {
        if golden.find(&format!("{name}.grad.{what}")).is_some() {
            weights.push((what, role, middle));
        }
    }
    let at = |kind| Read { site: Site::new(1, kind), rows: Some(vec![3]) };
    let wants = Wants {
        logits,
        sites: vec![at(SiteKind::MlpOut), at(SiteKind::Residual)],
        pairs: weights.iter().map(|(_, role, layer)| WeightId { layer: *layer, role: *role }).collect(),
        ..Wants::default()
    };
    let Gradients { sites, pairs } = model.backward(&tape, &wants).unwrap();
    let grad = |what: &str| golden.get(&format!("{name}.grad.{what}"));
    assert_near(&format!("{label} mlp_out"), &sites[0], &grad("mlp_out"), GRADIENT);
    assert_near(&format!("{label} residual"), &sites[1], &grad("residual"), GRADIENT);
    for ((what, _, _), pair) in weights.iter().zip(&pairs) {
        let found = pair.weight_gradient(model, ids.len());
        assert_near(&format!("{label} {what}"), &found, &grad(what), GRADIENT);
    }
    // Stopping early must not change what was reached.
    let alone = Wants { sites: vec![at(SiteKind::Residual)], pairs: vec![], ..wants };
    assert_eq!(model.backward(&tape, &alone).unwrap().sites[0], sites[1], "{label}");
}

#[test]
fn every_family_gives_the_golden_gradients() {
    let golden = Golden::open();
    for name in FAMILIES {
        for file in [name.to_owned(), format!("{name}.gguf")] {
            if fixtures().join(&file).exists() {
                check(&load(&file), &golden, name, &file);
            }
        }
    }
}

#[test]
fn all_six_projections_have_goldens_somewhere() {
    let golden = Golden::open();
    for (name, weights) in [("llama", 6), ("gemma3", 6), ("gpt2", 5)] {
        let found = ["q", "k", "v", "o", "gate", "up"]
            .into_iter()
            .filter(|w| golden.find(&format!("{name}.grad.{w}")).is_some());
        assert_eq!(found.count(), weights, "{name}");
    }
}

/// The head's own gradient has no golden: it is `dlogitsᵀ · h`, with h as a read gives it.
#[test]
fn the_head_gets_a_pair_of_its_own() {
    let golden = Golden::open();
    for name in ["gptj", "llama"] {
        let model = load(name);
        let ids = golden.ids(name, 0);
        let (_, tape, logits) = recorded(&model, &ids);
        let a = model.architecture();
        let read = Read {
            site: Site::new(a.layers - 1, SiteKind::FinalNorm),
            rows: Some((ids.len() - 1 - POSITIONS..ids.len() - 1).collect()),
        };
        let pass = Pass { sequences: vec![plain(&ids)], reads: vec![read], ..Pass::default() };
        let h = model.forward(pass).unwrap().reads.remove(0);
        let wants = Wants {
            logits: logits.clone(),
            pairs: vec![WeightId { layer: 0, role: Role::Head }],
            ..Wants::default()
        };
        let pair = &model.backward(&tape, &wants).unwrap().pairs[0];
        let mut expected = vec![0.0f64; a.vocabulary * a.width];
        for r in 0..POSITIONS {
            for o in 0..a.vocabulary {
                for i in 0..a.width {
                    expected[o * a.width + i] +=
                        f64::from(logits[r * a.vocabulary + o]) * f64::from(h[r * a.width + i]);
                }
            }
        }
        assert_near(name, &pair.weight_gradient(&model, POSITIONS), &expected, 1e-6);
    }
}
