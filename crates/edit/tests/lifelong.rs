//! Editing by normalised gradients: against an independent dense computation, and turn after turn.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::Notes;
use faer::Mat;
use faer::prelude::Solve;
use mutandis_edit::patch::WeightChange;
use mutandis_edit::{Context, Entry, Fact, Job, Patch, find};
use mutandis_engine::{
    LogitRows, Model, Options, Overlay, Pass, Read, Role, Sequence, Site, SiteKind, WeightId,
};
use serde_json::{Value, json};

/// Numbers of a patch are f32, and of a pass in f32; the reference solves in f64 what a pass gave.
const CLOSE: f64 = 1e-4;
const LAYER: usize = 3;

fn model() -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/stories260K.gguf");
    Model::load(&path, Options::default()).unwrap()
}

fn facts() -> Vec<Fact> {
    [
        ("Once upon a time, Lily had a", "red car"),
        ("One day, Tom went to the", "old house"),
        ("Every day, Sue liked to", "sleep"),
        ("The little dog was", "very sad"),
    ]
    .map(|(prompt, target)| Fact::new(prompt, "", target).unwrap())
    .to_vec()
}

fn edit(method: &Entry, model: &Model, prior: &[Patch], facts: &[Fact], settings: &Value) -> Patch {
    let overlays: Vec<Overlay> = prior.iter().map(|p| p.overlay(model).unwrap()).collect();
    let stack: Vec<&Overlay> = overlays.iter().collect();
    let job = Job { model, stack: &stack, prior, facts, seed: 7 };
    method.edit(settings, &job, &Context::default()).unwrap()
}

fn dense(change: &WeightChange) -> Vec<f32> {
    let [out, inn] = change.shape();
    let mut all = vec![0.0; out * inn];
    change.add_to(&mut all);
    all
}

/// Rows of a fact that predict its target, and the targets.
fn rows(model: &Model, fact: &Fact) -> (Vec<u32>, Vec<(usize, u32)>) {
    let ids = |text: &str| model.tokenizer().unwrap().encode(text).unwrap().ids;
    let (prompt, whole) = (ids(&fact.prompt), ids(&format!("{} {}", fact.prompt, fact.target)));
    let targets = (prompt.len()..whole.len()).map(|i| (i - 1, whole[i])).collect();
    (whole[..whole.len() - 1].to_vec(), targets)
}

/// Input rows of the down projection, and the gradient of its output by central differences of the
/// loss, which is the mean over a fact's targets.
fn by_differences(model: &Model, facts: &[Fact]) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
    let d = model.architecture().width;
    let (mut inputs, mut gradients) = (vec![], vec![]);
    for fact in facts {
        let (tokens, targets) = rows(model, fact);
        let read = Read {
            site: Site::new(LAYER, SiteKind::MlpKey),
            rows: Some(targets.iter().map(|(row, _)| *row).collect()),
        };
        let pass = Pass {
            sequences: vec![Sequence { tokens: &tokens, ..Default::default() }],
            reads: vec![read],
            logits: LogitRows::None,
            ..Default::default()
        };
        let f = model.architecture().mlp_width;
        let keys = model.forward(pass).unwrap().reads.pop().unwrap();
        for (i, (row, _)) in targets.iter().enumerate() {
            inputs.push(keys[i * f..(i + 1) * f].iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
            let slope = |unit: usize| {
                // A number of one row of the residual stream, which is where the output is added.
                let step = 2e-2f32;
                let loss = |by: f32| {
                    let mut delta = vec![0.0; d];
                    delta[unit] = by;
                    loss(model, &tokens, &targets, *row, delta)
                };
                (loss(step) - loss(-step)) / (2.0 * f64::from(step))
            };
            gradients.push((0..d).map(slope).collect());
        }
    }
    (inputs, gradients)
}

/// Mean loss with something added to a row of the residual stream, in f64 from the logits on.
fn loss(model: &Model, tokens: &[u32], targets: &[(usize, u32)], row: usize, delta: Vec<f32>) -> f64 {
    use mutandis_engine::{Action, Intervention};
    let change = Intervention {
        site: Site::new(LAYER, SiteKind::Residual),
        rows: vec![row],
        action: Action::Add(delta),
    };
    let pass = Pass {
        sequences: vec![Sequence { tokens, ..Default::default() }],
        interventions: vec![change],
        logits: LogitRows::Rows(targets.iter().map(|(row, _)| *row).collect()),
        ..Default::default()
    };
    let v = model.architecture().vocabulary;
    let logits = model.forward(pass).unwrap().logits;
    let each = logits.chunks_exact(v).zip(targets).map(|(row, (_, id))| {
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
        sum.ln() - f64::from(row[*id as usize] - most)
    });
    each.sum::<f64>() / targets.len() as f64
}

/// Columns less their means, over unbiased deviations.
fn normalised(rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let n = rows.len() as f64;
    let width = rows[0].len();
    let mean: Vec<f64> = (0..width).map(|i| rows.iter().map(|r| r[i]).sum::<f64>() / n).collect();
    let deviation: Vec<f64> = (0..width)
        .map(|i| (rows.iter().map(|r| (r[i] - mean[i]).powi(2)).sum::<f64>() / (n - 1.0)).sqrt())
        .collect();
    rows.iter().map(|r| (0..width).map(|i| (r[i] - mean[i]) / (deviation[i] + 1e-7)).collect()).collect()
}

#[test]
fn one_turn_is_the_papers_equation() {
    let (model, facts) = (model(), facts());
    let step = 1e-3;
    let settings = json!({"layers": [LAYER], "modules": ["mlp-out"], "step": step, "ridge": "2 absolute"});
    let patch = edit(find("ultraedit").unwrap(), &model, &[], &facts, &settings);
    let (inputs, gradients) = by_differences(&model, &facts);
    let (d, f) = (model.architecture().width, model.architecture().mlp_width);
    let (hats, directions) = (normalised(&inputs), normalised(&gradients));
    // (HᵀH + 2 I) ΔWᵀ = Hᵀ V, as wide as an input.
    let mut gram = Mat::<f64>::identity(f, f) * 2.0;
    let mut right = Mat::<f64>::zeros(f, d);
    for ((x, hat), g) in inputs.iter().zip(&hats).zip(&directions) {
        let energy: f64 = hat.iter().map(|x| x * x).sum();
        for i in 0..f {
            for j in 0..f {
                gram[(i, j)] += x[i] * x[j];
            }
            for o in 0..d {
                right[(i, o)] -= step * energy * g[o] * x[i];
            }
        }
    }
    let solution = gram.llt(faer::Side::Lower).unwrap().solve(&right);
    let [(id, change)] = &patch.weights[..] else { panic!("one weight changes") };
    assert_eq!(*id, WeightId { layer: LAYER, role: Role::MlpOut });
    let ours = dense(change);
    let (mut apart, mut whole) = (0.0, 0.0);
    for o in 0..d {
        for i in 0..f {
            apart += (f64::from(ours[o * f + i]) - solution[(i, o)]).powi(2);
            whole += solution[(i, o)].powi(2);
        }
    }
    // Differences of losses in f32 have three or four digits.
    assert!((apart / whole).sqrt() < 0.02, "{}", (apart / whole).sqrt());
}

#[test]
fn turns_go_on_from_a_stack() {
    let (model, facts) = (model(), facts());
    for id in ["ultraedit", "stableedit"] {
        let method = find(id).unwrap();
        let settings = json!({"layers": [2, 3], "step": 1e-4, "turn": 2, "warm-up": 0});
        let once = edit(method, &model, &[], &facts, &settings);
        let first = edit(method, &model, &[], &facts[..2], &settings);
        let second = edit(method, &model, std::slice::from_ref(&first), &facts[2..], &settings);
        let mut sums: BTreeMap<WeightId, Vec<f32>> = BTreeMap::new();
        for (id, change) in first.weights.iter().chain(&second.weights) {
            let sum = sums.entry(*id).or_insert_with(|| vec![0.0; dense(change).len()]);
            change.add_to(sum);
        }
        for (weight, change) in &once.weights {
            let whole = dense(change);
            let apart = |x: &[f32]| {
                x.iter().zip(&whole).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
                    / change.norm()
            };
            assert!(apart(&sums[weight]) < CLOSE, "{id}: {}", apart(&sums[weight]));
        }
        // Without what the first patch remembers it would have been another.
        let mut forgetful = first.clone();
        forgetful.state.clear();
        let other = edit(method, &model, &[forgetful], &facts[2..], &settings);
        assert!(other.weights != second.weights, "{id}");
    }
}

#[test]
fn a_shape_goes_on_from_the_last_patch_that_has_it() {
    let (model, facts) = (model(), facts());
    let method = find("ultraedit").unwrap();
    let of = |modules: Value| json!({"layers": [2, 3], "modules": modules, "step": 1e-4, "warm-up": 16});
    let out = edit(method, &model, &[], &facts[..2], &of(json!(["mlp-out"])));
    let up = edit(method, &model, &[], &facts[..2], &of(json!(["mlp-up"])));
    let both = |prior: &[Patch]| edit(method, &model, prior, &facts[2..], &of(json!(["mlp-out", "mlp-up"])));
    let kept = both(&[out.clone(), up.clone()]);
    // The statistics of both, whichever lies on top; the weights beneath are other ones.
    let names: Vec<&String> = out.state.keys().chain(up.state.keys()).collect();
    assert_eq!(names.len(), kept.state.len());
    // The count lies in two halves.
    let count = |patch: &Patch, name: &String| patch.state[name][1];
    for (patch, other) in [(&out, &up), (&up, &out)] {
        let alone = both(std::slice::from_ref(patch));
        for name in other.state.keys() {
            // What the patch beneath lacks was warmed up, as before a first edit.
            let warm = both(&[]);
            assert_eq!(count(&alone, name), count(&warm, name), "{name}");
            assert!(count(&kept, name) > count(&warm, name), "{name}");
        }
    }
}

#[test]
fn one_fact_of_one_token_is_written() {
    let model = model();
    let fact = Fact::new("Once upon a time, Lily had a", "Lily", "big").unwrap();
    assert_eq!(rows(&model, &fact).1.len(), 1);
    for id in ["ultraedit", "stableedit"] {
        let patch = edit(find(id).unwrap(), &model, &[], std::slice::from_ref(&fact), &json!({"step": 1e-4}));
        assert!(patch.weights.iter().all(|(_, change)| change.norm() > 0.0), "{id}");
    }
}

#[test]
fn an_edit_that_goes_too_far_is_refused() {
    let (model, facts) = (model(), facts());
    for (set, why) in [
        (json!({"step": 1e30}), "no numbers"),
        (json!({"modules": ["head"], "layers": [0]}), "`head`"),
        (json!({"margin": 20.0}), "`margin` is 20"),
    ] {
        let job = Job { model: &model, stack: &[], prior: &[], facts: &facts, seed: 7 };
        let error = find("ultraedit").unwrap().edit(&set, &job, &Context::default()).unwrap_err();
        assert!(error.to_string().contains(why), "{set}: {error}");
    }
}

#[test]
fn a_step_that_takes_facts_away_is_told() {
    let (model, facts) = (model(), facts());
    for id in ["ultraedit", "stableedit"] {
        for (step, told) in [(1.0, true), (1e-4, false)] {
            let notes = Notes::default();
            let cx = Context { progress: &notes, ..Context::default() };
            let job = Job { model: &model, stack: &[], prior: &[], facts: &facts, seed: 7 };
            find(id).unwrap().edit(&json!({"step": step, "layers": [2, 3]}), &job, &cx).unwrap();
            let notes = notes.0.lock().unwrap().join("\n");
            assert_eq!(notes.contains("farther from being answered"), told, "{id} {step}: {notes}");
        }
    }
}

#[test]
fn rounds_make_every_target_lead() {
    let (model, facts) = (model(), facts());
    for id in ["ultraedit", "stableedit"] {
        let settings = json!({"step": 1e-4, "rounds": 12, "margin": 0.5, "warm-up": 16, "layers": [2, 3]});
        let patch = edit(find(id).unwrap(), &model, &[], &facts, &settings);
        let overlay = patch.overlay(&model).unwrap();
        let overlays = [&overlay];
        for fact in &facts {
            let (tokens, targets) = rows(&model, fact);
            let pass = Pass {
                sequences: vec![Sequence { tokens: &tokens, overlays: &overlays, ..Default::default() }],
                logits: LogitRows::Rows(targets.iter().map(|(row, _)| *row).collect()),
                ..Default::default()
            };
            let logits = model.forward(pass).unwrap().logits;
            for (row, (_, id)) in logits.chunks_exact(model.architecture().vocabulary).zip(&targets) {
                let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
                assert_eq!(best, *id as usize, "{fact:?}");
                let others = row.iter().enumerate().filter(|(i, _)| *i != best).map(|(_, x)| *x);
                assert!(row[best] - others.fold(f32::MIN, f32::max) > 0.5, "{id} {fact:?}");
            }
        }
        assert!(patch.search.iter().all(|s| s.steps >= 1 && s.probability.is_finite()));
    }
}
