//! The steps of ROME and MEMIT against the peer's, recorded in `../shared/golden/edit.*`.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

use std::path::{Path, PathBuf};

use mutandis_edit::patch::WeightChange;
use mutandis_edit::primitives::moments::{self, Moments};
use mutandis_edit::primitives::post::Post;
use mutandis_edit::primitives::rank_one::{mean_row, rank_one, unit};
use mutandis_edit::primitives::request::{Request, Token};
use mutandis_edit::primitives::solver::Hold;
use mutandis_edit::primitives::spread::{Layer, Order, Share, write};
use mutandis_edit::primitives::value_search::{Found, Goal, Search, search};
use mutandis_edit::{Context, Fact, Job};
use mutandis_engine::{
    Delta, LogitRows, Model, Options, Overlay, Pass, Role, Sequence, Site, SiteKind, WeightId,
};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// Keys: one forward pass in f32 on both sides.
const KEYS: f64 = 1e-4;
/// The first steps of δ; later ones divide by tiny second moments, and are compared by loss.
const DELTA: f64 = 1e-3;
/// The update, given the same target.
const UPDATE: f64 = 1e-3;
/// Logits after the golden update.
const LOGITS: f64 = 1e-4;
/// Losses are recorded with three decimals; the path wanders a little as Adam amplifies rounding.
const LOSS: f64 = 5e-3;

fn folder(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable)
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..").join(default), PathBuf::from)
}

struct Golden {
    bytes: Vec<u8>,
    info: Value,
}

impl Golden {
    fn load(name: &str) -> Self {
        let golden = folder("MUTANDIS_SHARED", "shared").join("golden");
        Self {
            bytes: std::fs::read(golden.join(format!("{name}.safetensors"))).unwrap(),
            info: serde_json::from_slice(&std::fs::read(golden.join(format!("{name}.json"))).unwrap())
                .unwrap(),
        }
    }

    fn get(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let data = file.tensor(name).unwrap();
        match data.dtype() {
            Dtype::F64 => data
                .data()
                .chunks_exact(8)
                .map(|b| f64::from_le_bytes(b.try_into().unwrap()) as f32)
                .collect(),
            _ => data.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        }
    }
}

/// ‖a − b‖ / ‖b‖.
fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    (difference / b.iter().map(|b| square(f64::from(*b))).sum::<f64>()).sqrt()
}

fn model() -> Option<Model> {
    let path = folder("MUTANDIS_TEST_MODELS", "models").join("SmolLM2-135M-Instruct.Q4_1.gguf");
    if !path.exists() || !folder("MUTANDIS_SHARED", "shared").exists() {
        eprintln!("skipped: `{}` or ../shared is absent", path.display());
        return None;
    }
    Some(Model::load(&path, Options::default()).unwrap())
}

fn check_rome(model: &Model, name: &str) {
    let golden = Golden::load(name);
    let request = &golden.info["info"]["request"];
    let text = |key: &str| request[key].as_str().unwrap().to_owned();
    let fact = Fact::new(text("prompt"), text("subject"), text("target_new")).unwrap();
    let templates: Vec<String> = serde_json::from_value(golden.info["rome_templates"].clone()).unwrap();
    let tokens = Request::new(model, &fact, &templates, Token::Subject).unwrap();
    let (sites, settings) = ([Site::new(5, SiteKind::MlpOut)], Search::default());
    let goal = Goal { keep_trace: true, ..Goal::new(&sites, &settings) };
    let cx = Context::default();
    let found: Found = search(model, &[], &goal, std::slice::from_ref(&tokens), &cx).unwrap().remove(0);

    let keys = golden.get("rome.keys_per_template");
    assert!(relative(&found.keys, &keys) < KEYS, "keys: {:e}", relative(&found.keys, &keys));
    let bare = golden.get("rome.cur_input");
    assert!(relative(&found.keys[..bare.len()], &bare) < KEYS);
    assert!(relative(&found.initial, &golden.get("rome.cur_output")) < KEYS);

    let steps = golden.get("rome.delta_steps");
    let d = model.architecture().width;
    for (i, (ours, theirs)) in found.trace.iter().zip(steps.chunks_exact(d)).enumerate().take(3) {
        assert!(relative(ours, theirs) < DELTA, "δ after step {i}: {:e}", relative(ours, theirs));
    }
    let losses: Vec<Vec<f64>> =
        serde_json::from_value(golden.info["info"]["rome"]["losses"].clone()).unwrap();
    assert_eq!(found.losses.len(), losses.len(), "steps until the loss is small");
    for (i, (ours, theirs)) in found.losses.iter().zip(&losses).enumerate() {
        for (ours, theirs) in [ours.total, ours.nll, ours.kl, ours.decay].iter().zip(theirs) {
            assert!((f64::from(*ours) - theirs).abs() < LOSS, "step {i}: {ours} against {theirs}");
        }
    }

    // The solver, given the golden target: C = I, as the peer ships it.
    let f = model.architecture().mlp_width;
    let mean = mean_row(&keys, f);
    assert!(relative(&mean, &golden.get("rome.k_mean")) < KEYS);
    let u = unit(&mean.iter().map(|x| f64::from(*x)).collect::<Vec<_>>()).unwrap();
    let residual: Vec<f64> = golden
        .get("rome.v_star")
        .iter()
        .zip(golden.get("rome.cur_output"))
        .map(|(v, o)| f64::from(*v) - f64::from(o))
        .collect();
    let change = rank_one(&u, &bare, &residual).unwrap();
    assert!(relative(&change.right, &golden.get("rome.u")) < UPDATE);
    assert!(relative(&change.left, &golden.get("rome.right")) < UPDATE);

    check_logits(model, &golden, "rome", &tokens);

    // The same with C from the recorded moments, as the paper has it.
    let factor = moments::factor(&recorded_moments(5, f), 0.0).unwrap();
    let u = unit(&factor.solve(&mean.iter().map(|x| f64::from(*x)).collect::<Vec<_>>())).unwrap();
    let change = rank_one(&u, &bare, &residual).unwrap();
    let (right, left) = (golden.get("rome_mom2.u"), golden.get("rome_mom2.right"));
    assert!(relative(&change.right, &right) < UPDATE, "u with C: {:e}", relative(&change.right, &right));
    assert!(relative(&change.left, &left) < UPDATE, "Λ with C: {:e}", relative(&change.left, &left));
    check_logits(model, &golden, "rome_mom2", &tokens);
}

/// C = E[k kᵀ] of a layer, as the peer measured it.
fn recorded_moments(layer: usize, f: usize) -> Moments {
    let path = folder("MUTANDIS_SHARED", "shared").join("golden/moments.safetensors");
    let file = Golden { bytes: std::fs::read(path).unwrap(), info: Value::Null };
    let upper = file.get(&format!("upper.{layer}"));
    let (base, source, notes) = (String::new(), String::new(), vec![]);
    Moments { base, layer, f, count: 74_851, upper, error: 0.0, source, notes }
}

/// Logits of the bare prompt under a recorded rank-one edit of layer 5.
fn check_logits(model: &Model, golden: &Golden, edit: &str, request: &Request) {
    let get = |name: &str| golden.get(&format!("{edit}.{name}"));
    let mut overlay = Overlay::default();
    let delta = Delta::low_rank(1, &get("right"), &get("u")).unwrap();
    overlay.push(WeightId { layer: 5, role: Role::MlpOut }, delta);
    let worst = worst_logit(model, golden, &overlay, &format!("{edit}.post_last_logits"), request);
    assert!(worst < LOGITS, "logits after `{edit}` differ by {worst:e}");
}

/// Largest difference from the recorded logits at the bare prompt's last token.
fn worst_logit(model: &Model, golden: &Golden, overlay: &Overlay, name: &str, request: &Request) -> f64 {
    let (stack, ids) = ([overlay], &request.prompts[0].at.ids);
    let pass = Pass {
        sequences: vec![Sequence { tokens: ids, overlays: &stack, ..Default::default() }],
        logits: LogitRows::Last,
        ..Default::default()
    };
    let logits = model.forward(pass).unwrap().logits;
    let each = logits.iter().zip(golden.get(name)).map(|(a, b)| (f64::from(*a) - f64::from(b)).abs());
    each.fold(0.0, f64::max)
}

#[test]
fn rome_walks_the_golden_path() {
    let Some(model) = model() else { return };
    check_rome(&model, "edit.r0");
    check_rome(&model, "edit.r1");
}

fn check_memit(model: &Model, name: &str) {
    let golden = Golden::load(name);
    let request = &golden.info["info"]["request"];
    let text = |key: &str| request[key].as_str().unwrap().to_owned();
    let fact = Fact::new(text("prompt"), text("subject"), text("target_new")).unwrap();
    let kinds: Vec<Vec<String>> = serde_json::from_value(golden.info["memit_templates"].clone()).unwrap();
    let requests = [Request::new(model, &fact, &kinds.concat(), Token::Subject).unwrap()];
    let cx = Context::default();
    let (d, f) = (model.architecture().width, model.architecture().mlp_width);

    // The search, at the last layer's residual stream. Only r0 has its steps.
    let (sites, settings) = ([Site::new(8, SiteKind::Residual)], Search::default());
    let goal = Goal { keep_trace: true, ..Goal::new(&sites, &settings) };
    let steps = golden.get("memit.delta_steps");
    if steps.len() > d {
        let found = search(model, &[], &goal, &requests, &cx).unwrap().remove(0);
        for (i, (ours, theirs)) in found.trace.iter().zip(steps.chunks_exact(d)).enumerate().take(3) {
            assert!(relative(ours, theirs) < DELTA, "δ after step {i}: {:e}", relative(ours, theirs));
        }
        let losses: Vec<Vec<f64>> =
            serde_json::from_value(golden.info["info"]["memit"]["losses"].clone()).unwrap();
        assert_eq!(found.losses.len(), losses.len(), "steps until the loss is small");
        for (i, (ours, theirs)) in found.losses.iter().zip(&losses).enumerate() {
            assert!((f64::from(ours.total) - theirs[0]).abs() < LOSS, "step {i}: {}", ours.total);
        }
    }

    // The sweep through the layers, given the golden value.
    let moments: Vec<Moments> = (4..=8).map(|l| recorded_moments(l, f)).collect();
    let solve = |layer: &Layer<'_>| {
        let moments = &moments[layer.index - 4];
        let factor = moments::factor(moments, 0.0)?;
        let hold = Hold::Moments { weight: 15_000.0, moments, factor: &factor };
        layer.system(hold, 1.0).solve()
    };
    let order = Order {
        layers: &[4, 5, 6, 7, 8],
        site: SiteKind::Residual,
        share: Share::Even,
        past: 0.0,
        beside: &[],
        beside_weight: 0.0,
        post: &Post::default(),
        own: &[],
        requests: requests.iter().collect(),
        targets: vec![golden.get("memit.z").iter().map(|x| f64::from(*x)).collect()],
    };
    let job = Job { model, stack: &[], prior: &[], facts: &[fact], seed: 0 };
    let mut overlay = Overlay::default();
    for written in write(&job, &order, &solve, &cx).unwrap() {
        let layer = written.layer;
        let part = |name: &str| golden.get(&format!("memit.{name}.{layer}"));
        let keys: Vec<f32> = written.keys.iter().map(|x| *x as f32).collect();
        assert!(relative(&keys, &part("k")) < KEYS, "keys of {layer}: {:e}", relative(&keys, &part("k")));
        let WeightChange::LowRank { rank: 1, left, right } = written.change else { panic!("rank 1") };
        let far = [relative(&left, &part("resid")), relative(&right, &part("adj_k"))];
        assert!(far[0] < UPDATE && far[1] < UPDATE, "layer {layer}: {far:?}");
        overlay.push(WeightId { layer, role: Role::MlpOut }, Delta::low_rank(1, &left, &right).unwrap());
    }
    let worst = worst_logit(model, &golden, &overlay, "memit.post_last_logits", &requests[0]);
    assert!(worst < LOGITS, "logits after `memit` differ by {worst:e}");
}

#[test]
fn memit_walks_the_golden_path() {
    let Some(model) = model() else { return };
    check_memit(&model, "edit.r0");
    check_memit(&model, "edit.r1");
}
