//! Training of weights: against PyTorch and `peft`, by finite differences, and where it goes wrong.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::Notes;
use mutandis_edit::patch::WeightChange;
use mutandis_edit::primitives::answers::Example;
use mutandis_edit::primitives::train::{
    Bounds, Budget, Lesson, Optimizer, Parameter, Schedule, Trained, Training, train,
};
use mutandis_edit::{Context, Fact, Job, Patch, find};
use mutandis_engine::{LogitRows, Model, Options, Overlay, Pass, Role, Sequence, WeightId};
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use safetensors::SafeTensors;
use serde_json::json;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

fn model(name: &str) -> Model {
    Model::load(&fixture(name), Options::default()).unwrap()
}

/// The settings that `fixtures/train.py` has.
fn golden_training() -> Training {
    Training { epochs: 12, learning_rate: 3e-3, batch: 3, stop_below: 0.0, ..Training::default() }
}
const GOLDEN_LAYER: usize = 2;

struct Golden(Vec<u8>);

impl Golden {
    fn open() -> Self {
        Self(std::fs::read(fixture("train.safetensors")).unwrap())
    }

    fn numbers(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap();
        let numbers = tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        (tensor.shape().to_vec(), numbers)
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let data = file.tensor(name).unwrap().data().to_vec();
        data.as_chunks::<8>().0.iter().map(|b| u32::try_from(i64::from_le_bytes(*b)).unwrap()).collect()
    }

    /// Texts whose last tokens are the answer.
    fn examples(&self) -> Vec<Example> {
        (0..3)
            .map(|i| {
                let mut tokens = self.ids(&format!("tokens.{i}"));
                let from = tokens.len() - self.ids(&format!("answer.{i}"))[0] as usize;
                let targets = (from..tokens.len()).map(|at| (at - 1, tokens[at])).collect();
                tokens.pop();
                Example { tokens, targets }
            })
            .collect()
    }
}

/// The change as one matrix `[out, in]`.
fn dense(change: &WeightChange) -> Vec<f32> {
    match change {
        WeightChange::Dense { delta, .. } => delta.clone(),
        WeightChange::LowRank { rank, left, right } => left
            .chunks_exact(*rank)
            .flat_map(|l| {
                right.chunks_exact(*rank).map(move |r| l.iter().zip(r).map(|(a, b)| a * b).sum::<f32>())
            })
            .collect(),
    }
}

/// Relative distance; sums in f64.
fn distance(ours: &[f32], theirs: &[f32]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let apart = norm(&mut ours.iter().zip(theirs).map(|(a, b)| f64::from(a - b)));
    apart / norm(&mut theirs.iter().map(|x| f64::from(*x)))
}

/// Adam divides by root second moments: a gradient near zero has a sign by rounding, and its number
/// steps by the whole rate. Hence not 1e-6.
const DELTA: f64 = 2e-3;
const LOSS: f32 = 1e-4;

fn learnt(
    model: &Model,
    stack: &[&Overlay],
    parameters: &mut [Parameter],
    examples: &[Example],
    training: &Training,
    seed: u64,
) -> Trained {
    let lesson = Lesson { examples, training, budget: None, seed };
    train(model, stack, parameters, &lesson, &Context::default()).unwrap()
}

fn trained(parameters: &mut [Parameter], examples: &[Example], training: &Training) -> Trained {
    learnt(&model("llama"), &[], parameters, examples, training, 0)
}

fn same_losses(ours: &[f32], golden: &Golden, name: &str) {
    let (_, theirs) = golden.numbers(name);
    assert_eq!(ours.len(), theirs.len());
    for (step, (a, b)) in ours.iter().zip(&theirs).enumerate() {
        assert!((a - b).abs() < LOSS, "{name}, step {step}: {a} against {b}");
    }
}

#[test]
fn a_whole_weight_is_trained_as_pytorch_does() {
    let golden = Golden::open();
    let id = WeightId { layer: GOLDEN_LAYER, role: Role::MlpOut };
    let (shape, delta) = golden.numbers("dense.delta");
    let shape: [usize; 2] = shape.try_into().unwrap();
    let mut whole = [Parameter::dense(id, shape, Bounds::default())];
    let info = trained(&mut whole, &golden.examples(), &golden_training());
    same_losses(&info.losses, &golden, "dense.losses");
    let apart = distance(&dense(&whole[0].change()), &delta);
    assert!(apart < DELTA, "{apart}");
    assert!(info.search.iter().all(|s| s.steps == 12));

    let (_, bounded) = golden.numbers("dense.bounded");
    let mut within = [Parameter::dense(id, shape, Bounds { each: Some(0.004), norm: None })];
    trained(&mut within, &golden.examples(), &golden_training());
    let ours = dense(&within[0].change());
    assert!(distance(&ours, &bounded) < DELTA, "{}", distance(&ours, &bounded));
    assert!(ours.iter().all(|x| x.abs() <= 0.004) && ours.iter().any(|x| x.abs() == 0.004));
}

#[test]
fn low_rank_changes_are_trained_as_peft_does() {
    let golden = Golden::open();
    let model = model("llama");
    let names = [("q", Role::Query), ("v", Role::Value)];
    let mut all = vec![];
    for layer in 0..model.architecture().layers {
        for (name, role) in names {
            let (shape, a) = golden.numbers(&format!("lora.a.{name}.{layer}"));
            let [rank, inn] = shape.try_into().unwrap();
            let right: Vec<f32> =
                (0..inn).flat_map(|i| (0..rank).map(|r| a[r * inn + i]).collect::<Vec<_>>()).collect();
            let id = WeightId { layer, role };
            let shape = model.linear_shape(role, layer).unwrap();
            all.push(Parameter::low_rank(id, shape, &right, rank, 5.0 / 3.0).unwrap());
        }
    }
    let info = trained(&mut all, &golden.examples(), &golden_training());
    same_losses(&info.losses, &golden, "lora.losses");
    for parameter in &all {
        let name = names.iter().find(|(_, role)| *role == parameter.id.role).unwrap().0;
        let (_, delta) = golden.numbers(&format!("lora.delta.{name}.{}", parameter.id.layer));
        let apart = distance(&dense(&parameter.change()), &delta);
        assert!(apart < DELTA, "{name} of layer {}: {apart}", parameter.id.layer);
    }
}

#[test]
fn a_step_is_the_slope_of_the_loss() {
    // One step of plain descent at rate 1 moves by minus the gradient: the loss must fall by its
    // squared norm per unit of rate, for a rate that is small.
    let golden = Golden::open();
    let model = model("llama");
    let examples = golden.examples();
    let rate = 1e-3f32;
    let training =
        Training { epochs: 2, learning_rate: rate, optimizer: Optimizer::Sgd, ..golden_training() };
    for role in [Role::Query, Role::Key, Role::Value, Role::AttentionOut, Role::MlpGate, Role::MlpUp] {
        for layer in 0..model.architecture().layers {
            let shape = model.linear_shape(role, layer).unwrap();
            let mut one = [Parameter::dense(WeightId { layer, role }, shape, Bounds::default())];
            let half = Training { epochs: 1, ..training.clone() };
            trained(&mut one, &examples, &half);
            let squared: f64 =
                dense(&one[0].change()).iter().map(|x| f64::from(x / rate).powi(2)).sum::<f64>();
            let mut two = [Parameter::dense(WeightId { layer, role }, shape, Bounds::default())];
            let losses = trained(&mut two, &examples, &training).losses;
            let fell = f64::from(losses[0] - losses[1]) / f64::from(rate);
            // Losses have seven digits, and the second-order term is left out.
            let slack = 0.03 * squared + 1e-6 / f64::from(rate);
            assert!((fell - squared).abs() < slack, "{role} {layer}: fell {fell}, expected {squared}");
        }
    }
}

#[test]
fn divergence_is_told_and_the_best_is_kept() {
    let model = model("stories260K.gguf");
    let facts = [Fact::new("Once upon a time, Lily had a", "Lily", "red car").unwrap()];
    let notes = Notes::default();
    let cx = Context { progress: &notes, ..Context::default() };
    let job = Job { model: &model, stack: &[], prior: &[], facts: &facts, seed: 7 };
    let with = |rate: f64, cx: &Context<'_>| {
        let settings = json!({"learning-rate": rate, "optimizer": "sgd", "layers": [3]});
        find("ft-m").unwrap().edit(&settings, &job, cx).unwrap()
    };
    let patch = with(1e25, &cx);
    let told = notes.0.lock().unwrap().join("\n");
    assert!(told.contains("training diverged") && told.contains("learning-rate"), "{told}");
    assert!(patch.weights.iter().all(|(_, c)| c.norm().is_finite()));
    // What the diverged steps were like is no part of it: it can be kept.
    assert!(patch.search[0].loss.is_finite() && patch.to_bytes().is_ok(), "{:?}", patch.search);
    let overlay = patch.overlay(&model).unwrap();
    let loss = loss(&model, &[&overlay], &facts[0]);
    assert!(loss <= self::loss(&model, &[], &facts[0]) + 1e-4, "{loss}");
}

#[test]
fn divergence_of_many_facts_and_of_the_last_step_is_told() {
    let model = model("stories260K.gguf");
    let facts = [("Lily", "red car"), ("Tom", "blue hat"), ("Ben", "big dog")]
        .map(|(name, to)| Fact::new(format!("Once upon a time, {name} had a"), name, to).unwrap());
    let job = Job { model: &model, stack: &[], prior: &[], facts: &facts, seed: 7 };
    let mut told_of = 0;
    for schedule in ["breadth-first", "depth-first"] {
        for (rate, epochs) in [(1e3, 25), (1e3, 1), (1e25, 1)] {
            for method in ["ft-m", "lora"] {
                let notes = Notes::default();
                let cx = Context { progress: &notes, ..Context::default() };
                let settings = json!({"learning-rate": rate, "epochs": epochs, "schedule": schedule});
                let patch = find(method).unwrap().edit(&settings, &job, &cx).unwrap();
                let told = notes.0.lock().unwrap().join("\n");
                let overlay = patch.overlay(&model).unwrap();
                let mean =
                    |stack: &[&Overlay]| facts.iter().map(|f| loss(&model, stack, f)).sum::<f32>() / 3.0;
                // It is told, and undone; or else the facts are nearer than they were.
                let (before, now) = (mean(&[]), mean(&[&overlay]));
                assert!(now <= before + 1e-4, "{method} {settings}: {before} → {now}, told: {told}");
                told_of += usize::from(told.contains("training diverged"));
                for info in &patch.search {
                    assert!(info.loss.is_finite(), "{:?}", patch.search);
                }
            }
        }
    }
    assert!(told_of >= 8, "only {told_of} of 12 were told");
}

/// Mean loss of the fact's answer.
fn loss(model: &Model, stack: &[&Overlay], fact: &Fact) -> f32 {
    let example = Example::answer(model, fact, false).unwrap();
    let id = WeightId { layer: 0, role: Role::MlpOut };
    let mut none = [Parameter::dense(id, model.linear_shape(id.role, 0).unwrap(), Bounds::default())];
    let once = Training { epochs: 1, ..Training::default() };
    learnt(model, stack, &mut none, &[example], &once, 0).losses[0]
}

#[test]
fn the_end_of_an_answer_is_learnt_where_asked() {
    let model = model("stories260K.gguf");
    let eos = model.tokenizer().unwrap().eos_ids()[0];
    let fact = Fact::new("Once upon a time, Lily had a", "Lily", "red car").unwrap();
    let without = Example::answer(&model, &fact, false).unwrap();
    let with = Example::answer(&model, &fact, true).unwrap();
    assert_eq!(with.targets[..without.targets.len()], without.targets);
    assert_eq!(with.targets.last().unwrap(), &(with.tokens.len() - 1, eos));
    assert_eq!(with.tokens.last().unwrap(), &without.targets.last().unwrap().1);
}

#[test]
fn facts_are_learnt_one_after_another_or_all_in_turn() {
    let model = model("stories260K.gguf");
    let facts: Vec<Example> =
        [("Once upon a time, Lily had a", "car"), ("One day, Tom went to the", "house")]
            .iter()
            .map(|(prompt, to)| {
                Example::answer(&model, &Fact::new(*prompt, "", *to).unwrap(), false).unwrap()
            })
            .collect();
    let id = WeightId { layer: 3, role: Role::MlpOut };
    let shape = model.linear_shape(id.role, id.layer).unwrap();
    let run = |schedule, examples: &[Example]| {
        let training = Training { schedule, learning_rate: 2e-3, ..Training::default() };
        let mut one = [Parameter::dense(id, shape, Bounds::default())];
        learnt(&model, &[], &mut one, examples, &training, 3)
    };
    let depth = run(Schedule::DepthFirst, &facts);
    let alone = run(Schedule::DepthFirst, &facts[..1]);
    // The first fact knows nothing of the second while it is learnt.
    assert_eq!(depth.losses[..alone.losses.len()], alone.losses);
    assert!(depth.losses.len() > alone.losses.len());
    let breadth = run(Schedule::BreadthFirst, &facts);
    assert!(breadth.losses.last().unwrap() < &0.02, "{:?}", breadth.losses);
}

#[test]
fn facts_of_patches_beneath_are_learnt_again_where_asked() {
    let model = model("stories260K.gguf");
    let fact = |prompt: &str, to: &str| Fact::new(prompt, "", to).unwrap();
    let lily = fact("Once upon a time, Lily had a", "car");
    // So close to the first that it is learnt at its cost.
    let tom = fact("Once upon a time, Tom had a", "house");
    let method = find("locft-bf").unwrap();
    let edit = |prior: &[Patch], fact: &Fact, rehearse: bool| {
        let overlays: Vec<Overlay> = prior.iter().map(|p| p.overlay(&model).unwrap()).collect();
        let stack: Vec<&Overlay> = overlays.iter().collect();
        let facts = std::slice::from_ref(fact);
        let job = Job { model: &model, stack: &stack, prior, facts, seed: 3 };
        let settings = json!({"rehearse": rehearse, "learning-rate": 5e-3, "end-of-text": false});
        method.edit(&settings, &job, &Context::default()).unwrap()
    };
    let loss_under = |patches: &[&Patch], fact: &Fact| {
        let overlays: Vec<Overlay> = patches.iter().map(|p| p.overlay(&model).unwrap()).collect();
        loss(&model, &overlays.iter().collect::<Vec<_>>(), fact)
    };
    let first = edit(&[], &lily, false);
    let beneath = std::slice::from_ref(&first);
    let [alone, again] = [false, true].map(|rehearse| edit(beneath, &tom, rehearse));
    let [forgets, keeps] = [&alone, &again].map(|second| loss_under(&[&first, second], &lily));
    assert!(keeps < 0.1 && keeps < forgets / 2.0, "{keeps} {forgets}");
    assert!(loss_under(&[&first, &again], &tom) < 0.1);
    assert_eq!((again.search.len(), again.facts.len()), (1, 1));
    // What a newer fact overrules is not learnt again.
    let other = fact("Once upon a time, Lily had a", "dog");
    let newest = edit(beneath, &other, true);
    assert_eq!(newest.weights, edit(beneath, &other, false).weights);
}

/// Log-probabilities along a text.
fn predictions(model: &Model, overlays: &[&Overlay], text: &str) -> Vec<f64> {
    let ids = model.tokenizer().unwrap().encode(text).unwrap().ids;
    let pass = Pass {
        sequences: vec![Sequence { tokens: &ids, overlays, ..Default::default() }],
        logits: LogitRows::All,
        ..Default::default()
    };
    let logits = model.forward(pass).unwrap().logits;
    let v = model.architecture().vocabulary;
    let row = |row: &[f32]| {
        let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
        row.iter().map(|x| f64::from(*x) - sum.ln()).collect::<Vec<_>>()
    };
    logits.chunks_exact(v).flat_map(row).collect()
}

#[test]
fn what_is_held_moves_less() {
    let model = model("stories260K.gguf");
    let facts = [Fact::new("Once upon a time, Lily had a", "Lily", "red car").unwrap()];
    let job = Job { model: &model, stack: &[], prior: &[], facts: &facts, seed: 7 };
    let text = "One day, Tom went to the park with his mom. He saw a big dog and a little bird.";
    let before = predictions(&model, &[], text);
    let moved = |kl: f64| {
        let settings = json!({"kl": kl, "layers": [2], "learning-rate": 2e-3});
        let patch = find("ft-m").unwrap().edit(&settings, &job, &Context::default()).unwrap();
        let overlay = patch.overlay(&model).unwrap();
        let now = predictions(&model, &[&overlay], text);
        let divergence: f64 = now.iter().zip(&before).map(|(p, q)| p.exp() * (p - q)).sum();
        (divergence, loss(&model, &[&overlay], &facts[0]))
    };
    let ((free, learnt), (held, still)) = (moved(0.0), moved(3.0));
    assert!(held < 0.7 * free, "{held} against {free}");
    assert!(learnt < 0.1 && still < 0.5, "{learnt}, {still}");
}

#[test]
fn singular_values_are_given_up_over_all_weights() {
    let model = model("stories260K.gguf");
    let example =
        [Example::answer(&model, &Fact::new("Once upon a time, Lily had a", "", "red car").unwrap(), false)
            .unwrap()];
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut all: Vec<Parameter> = (0..5)
        .map(|layer| {
            let id = WeightId { layer, role: Role::MlpOut };
            let shape = model.linear_shape(id.role, layer).unwrap();
            Parameter::singular(id, shape, 6, 32.0, 0.05, &mut rng).unwrap()
        })
        .collect();
    let training = Training { epochs: 40, learning_rate: 2e-2, stop_below: 0.0, ..Training::default() };
    let budget = Some(Budget { rank: 2, shares: [0.1, 0.4] });
    let lesson = Lesson { examples: &example, training: &training, budget, seed: 0 };
    let losses = train(&model, &[], &mut all, &lesson, &Context::default()).unwrap().losses;
    assert!(losses.last().unwrap() < &(0.1 * losses[0]), "{losses:?}");
    let rank = |p: &Parameter| match p.change() {
        WeightChange::LowRank { rank, .. } => rank,
        WeightChange::Dense { .. } => unreachable!(),
    };
    let ranks: Vec<usize> = all.iter().map(rank).collect();
    assert_eq!(ranks.iter().sum::<usize>(), 10, "{ranks:?}");
    assert!(ranks.iter().any(|r| *r != 2), "{ranks:?}: each weight kept its share");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn bounds_hold(seed: u64, rate in 1e-4f32..1e-1, each in 1e-4f32..1e-2, norm in 1e-3f32..1.0) {
        let model = model("stories260K.gguf");
        let fact = Fact::new("Once upon a time, Lily had a", "", "red car").unwrap();
        let example = [Example::answer(&model, &fact, false).unwrap()];
        let id = WeightId { layer: 4, role: Role::MlpOut };
        let bounds = Bounds { each: Some(each), norm: Some(norm) };
        let mut one = [Parameter::dense(id, model.linear_shape(id.role, 4).unwrap(), bounds)];
        let training = Training { epochs: 3, learning_rate: rate, stop_below: 0.0, ..Training::default() };
        learnt(&model, &[], &mut one, &example, &training, seed);
        let delta = dense(&one[0].change());
        prop_assert!(delta.iter().all(|x| x.abs() <= each));
        let sum = delta.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        prop_assert!(sum <= f64::from(norm) * (1.0 + 1e-5), "{} above {}", sum, norm);
    }
}
