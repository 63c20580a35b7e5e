//! The search for values, on a small real model.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;
use std::sync::Mutex;

use mutandis_edit::patch::SearchInfo;
use mutandis_edit::primitives::request::{Request, Token};
use mutandis_edit::primitives::value_search::{Found, Goal, Search, Values, search};
use mutandis_edit::{Context, Entry, Fact, Job, METHODS, Patch, Progress};
use mutandis_engine::{
    Action, Delta, Intervention, LogitRows, Model, Options, Overlay, Pass, Role, Sequence, Site, SiteKind,
    WeightId,
};
use serde_json::json;

fn model() -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/stories260K.gguf");
    Model::load(&path, Options::default()).unwrap()
}

fn facts() -> Vec<Fact> {
    let facts = [
        ("Once upon a time, Lily had a", "Lily", "red car"),
        ("One day, Tom went to the", "Tom", "old house"),
        ("Every day, Sue liked to", "Sue", "sleep"),
    ];
    facts.into_iter().map(|(prompt, subject, target)| Fact::new(prompt, subject, target).unwrap()).collect()
}

const LAYER: usize = 2;

fn found(model: &Model, search_settings: &Search) -> Vec<Found> {
    let requests: Vec<Request> =
        facts().iter().map(|f| Request::new(model, f, &["{}".into()], Token::Subject).unwrap()).collect();
    let sites = [Site::new(LAYER, SiteKind::Residual)];
    search(model, &[], &Goal::new(&sites, search_settings), &requests, &Context::default()).unwrap()
}

fn norm(x: &[f32]) -> f32 {
    x.iter().map(|x| x * x).sum::<f32>().sqrt()
}

/// By how many nats the target leads at its worst token, with δ at the lookup token and patches in
/// place: an independent run of the whole model.
fn lead(model: &Model, fact: &Fact, delta: Option<&[f32]>, overlays: &[&Overlay]) -> f32 {
    let request = Request::new(model, fact, &["{}".into()], Token::Subject).unwrap();
    let prompt = &request.prompts[0];
    let tokens = [&prompt.at.ids[..], &prompt.target[..prompt.target.len() - 1]].concat();
    let add = |delta: &[f32]| Intervention {
        site: Site::new(LAYER, SiteKind::Residual),
        rows: vec![prompt.at.lookup],
        action: Action::Add(delta.to_vec()),
    };
    let pass = Pass {
        sequences: vec![Sequence { tokens: &tokens, overlays, ..Default::default() }],
        interventions: delta.into_iter().map(add).collect(),
        logits: LogitRows::All,
        ..Default::default()
    };
    let logits = model.forward(pass).unwrap().logits;
    let v = model.architecture().vocabulary;
    let from = prompt.at.ids.len() - 1;
    let rows = logits.chunks_exact(v).skip(from).zip(&prompt.target);
    rows.map(|(row, &id)| {
        let others = row.iter().enumerate().filter(|(i, _)| *i != id as usize).map(|(_, x)| *x);
        row[id as usize] - others.fold(f32::NEG_INFINITY, f32::max)
    })
    .fold(f32::INFINITY, f32::min)
}

#[test]
fn a_search_ends_at_the_margin_and_is_shortened_to_it() {
    let model = model();
    let settle =
        Search { settle: 1, margin: 0.5, steps: 200, clamp: 50.0, stop_below: 0.0, ..Search::default() };
    let shorten = Search { shorten: 6, ..settle.clone() };
    let (long, short) = (found(&model, &settle), found(&model, &shorten));
    let mut shortened = 0;
    for ((fact, long), short) in facts().iter().zip(&long).zip(&short) {
        for found in [long, short] {
            let lead = lead(&model, fact, Some(&found.delta), &[]);
            assert!(lead >= 0.5 - 1e-3, "`{}` leads by {lead} nats", fact.target);
        }
        assert!(norm(&short.delta) <= norm(&long.delta) * (1.0 + 1e-6));
        // Shorter by one more of the 64 parts, it is not enough.
        let part = norm(&short.delta) / norm(&long.delta);
        if part < 1.0 {
            shortened += 1;
            let less: Vec<f32> = short.delta.iter().map(|x| x * (part - 1.0 / 64.0) / part).collect();
            assert!(lead(&model, fact, Some(&less), &[]) < 0.5 + 1e-3);
        }
        assert_eq!(short.losses.len(), long.losses.len() + 1);
    }
    assert!(shortened > 0, "no search overshot: the test shows nothing");
}

/// Counts what is begun.
#[derive(Default)]
struct Stages(Mutex<Vec<String>>);

impl Progress for Stages {
    fn begin(&self, stage: &str, _: usize) {
        self.0.lock().unwrap().push(stage.to_owned());
    }
    fn step(&self, _: usize) {}
    fn end(&self) {}
}

#[test]
fn kept_values_give_the_same_patches_from_one_search() {
    let (model, mut facts) = (model(), facts());
    for method in METHODS {
        if method.defaults().get("search").is_none() {
            continue;
        }
        let quick = |strength: f64| {
            let mut all = json!({"prefixes": [1, 1], "moment-tokens": 600, "search": {"steps": 6}});
            match method.defaults().get("layers") {
                Some(_) => all["layers"] = json!([1, LAYER]),
                None => all["layer"] = json!(LAYER),
            }
            if method.defaults().get("lambda").is_some() {
                all["lambda"] = json!(strength);
            }
            if method.defaults().get("null-space").is_some() {
                all["null-space"] = json!(0.9);
            }
            all
        };
        // One that fits no model of this context does not stop the others.
        facts.truncate(3);
        facts.push(Fact::new("Ann saw a", "Ann", "cat ".repeat(900)).unwrap());
        let stages = Stages::default();
        let kept = Context { values: Some(Values::ahead(&facts)), progress: &stages, ..Context::default() };
        let edit = |strength: f64, fact: &Fact, cx: &Context<'_>| {
            let facts = std::slice::from_ref(fact);
            let job = Job { model: &model, stack: &[], prior: &[], facts, seed: 3 };
            method.edit(&quick(strength), &job, cx)
        };
        for strength in [0.1, 0.5] {
            for fact in &facts[..3] {
                let alone: Patch = edit(strength, fact, &Context::default()).unwrap();
                let together = edit(strength, fact, &kept).unwrap();
                assert_eq!(alone.weights, together.weights, "{}", method.id);
                assert_eq!(alone.search, together.search, "{}", method.id);
            }
        }
        assert!(edit(0.1, &facts[3], &kept).is_err());
        let searches = stages.0.lock().unwrap().iter().filter(|s| *s == "searching values").count();
        assert_eq!(searches, 1, "{}", method.id);
    }
}

#[test]
fn methods_that_search_alike_share_a_search_and_are_told_what_it_took() {
    let (model, facts) = (model(), facts());
    let method = |id: &str| METHODS.iter().find(|m| m.id == id).unwrap();
    let stages = Stages::default();
    let kept = Values::default();
    let edit = |id: &str, margin: f64| {
        let settings = json!({
            "prefixes": [0, 0], "moment-tokens": 600, "layers": [1, LAYER], "search": {"steps": 6, "margin": margin},
        });
        let values = kept.looking_ahead(&facts);
        let cx = Context { values: Some(values.clone()), progress: &stages, ..Context::default() };
        for fact in &facts {
            let facts = std::slice::from_ref(fact);
            let alone = Context::default();
            let made = [&cx, &alone].map(|cx| {
                let job = Job { model: &model, stack: &[], prior: &[], facts, seed: 3 };
                method(id).edit(&settings, &job, cx).unwrap()
            });
            assert_eq!(made[0].weights, made[1].weights, "{id}");
        }
        values.spared_seconds()
    };
    let searches = || stages.0.lock().unwrap().iter().filter(|stage| *stage == "searching values").count();
    assert_eq!(edit("memit", 1.0), 0.0, "it has searched itself");
    assert_eq!(searches(), 1);
    let spared = edit("emmet", 1.0);
    assert_eq!(searches(), 1);
    assert!(spared > 0.0);
    assert_eq!(edit("emmet", 2.0), 0.0, "nobody has searched by this margin");
    assert_eq!(searches(), 2);
    let again = edit("memit-merge", 1.0);
    assert_eq!(searches(), 2);
    // The same values, the seconds added up in the same order.
    assert_eq!(again, spared);
}

#[test]
fn values_on_top_of_other_edits_are_searched_anew() {
    let (model, facts) = (model(), facts());
    let a = model.architecture();
    let (left, right): (Vec<f32>, Vec<f32>) = (
        (0..a.width).map(|i| 0.3 * ((i * 7 % 11) as f32 - 5.0)).collect(),
        (0..a.mlp_width).map(|i| 0.1 * ((i * 5 % 13) as f32 - 6.0)).collect(),
    );
    let mut below = Overlay::default();
    below.push(WeightId { layer: 0, role: Role::MlpOut }, Delta::low_rank(1, &left, &right).unwrap());
    let method = METHODS.iter().find(|m| m.defaults().get("layer").is_some()).unwrap();
    let settings = json!({"prefixes": [0, 0], "moment-tokens": 600, "layer": LAYER, "search": {"steps": 6}});
    let kept = Context { values: Some(Values::ahead(&facts)), ..Context::default() };
    let edit = |stack: &[&Overlay], cx: &Context<'_>| {
        let job = Job { model: &model, stack, prior: &[], facts: &facts[..1], seed: 3 };
        method.edit(&settings, &job, cx).unwrap().weights
    };
    let bare = edit(&[], &kept);
    assert!(bare != edit(&[&below], &kept));
    assert!(edit(&[&below], &kept) == edit(&[&below], &Context::default()));
}

/// Facts with targets of one token: what so small a model can be brought to say.
fn short_facts() -> [Fact; 2] {
    [("Once upon a time, Lily had a", "Lily", "cat"), ("One day, Tom went to the", "Tom", "house")]
        .map(|(prompt, subject, target)| Fact::new(prompt, subject, target).unwrap())
}

/// Methods that search for values round after round.
fn in_rounds() -> impl Iterator<Item = &'static Entry> {
    let has = |method: &Entry, name: &str| method.defaults().get(name).is_some();
    METHODS.iter().filter(move |m| has(m, "rounds") && has(m, "search"))
}

/// By how many nats facts are short of the margin, all together, after so many rounds of so many
/// steps.
fn short(model: &Model, method: &Entry, facts: &[Fact], rounds: usize, steps: usize) -> f32 {
    let defaults = method.defaults();
    let mut all = json!({
        "prefixes": [0, 0], "moment-tokens": 600, "rounds": rounds,
        "search": {"steps": steps, "settle": 1, "margin": 0.5, "shorten": 6, "clamp": 50.0, "stop-below": 0.0}
    });
    match defaults.get("layers") {
        Some(_) => all["layers"] = json!([1, LAYER]),
        None => all["layer"] = json!(LAYER),
    }
    if defaults.get("lambda").is_some() {
        all["lambda"] = json!(0.1);
    }
    if defaults.get("null-space").is_some() {
        all["null-space"] = json!(0.3);
    }
    let job = Job { model, stack: &[], prior: &[], facts, seed: 3 };
    let patch = method.edit(&all, &job, &Context::default()).unwrap();
    assert_eq!(patch.search.len(), facts.len(), "{}", method.id);
    let overlay = patch.overlay(model).unwrap();
    let short = |f: &Fact| (0.5 - lead(model, f, None, &[&overlay])).max(0.0);
    facts.iter().map(short).sum()
}

#[test]
fn more_rounds_make_true_what_the_first_left() {
    let (model, facts) = (model(), short_facts());
    // Where the first round leaves nothing, or no search succeeds, nothing is shown.
    let mut shown = 0;
    for method in in_rounds() {
        let [once, often] = [1, 6].map(|rounds| short(&model, method, &facts, rounds, 60));
        assert!(often <= once + 1e-3, "{}: {once} nats short after one round, {often} after six", method.id);
        if once > 0.1 && often < 0.5 * once {
            shown += 1;
        }
    }
    assert!(shown > 4, "later rounds helped only {shown} methods");
}

#[test]
fn a_search_that_found_nothing_in_one_round_goes_on_in_the_next() {
    let (model, facts) = (model(), short_facts());
    let mut shown = 0;
    for method in in_rounds() {
        // So few steps do not suffice in any one round.
        let [once, often] = [1, 40].map(|rounds| short(&model, method, &facts, rounds, 4));
        shown += usize::from(once > 1.0 && often < 0.05);
    }
    assert!(shown > 4, "searches in many short rounds succeeded for only {shown} methods");
}

#[test]
fn a_fact_alone_is_searched_for_by_the_steps_of_all_rounds() {
    let (model, facts) = (model(), short_facts());
    let search =
        |steps: usize| json!({"steps": steps, "settle": 1, "margin": 0.5, "clamp": 50.0, "stop-below": 0.0});
    for method in in_rounds() {
        let first = |facts: &[Fact], rounds: usize, steps: usize| {
            let settings =
                json!({"prefixes": [0, 0], "moment-tokens": 600, "rounds": rounds, "search": search(steps)});
            let job = Job { model: &model, stack: &[], prior: &[], facts, seed: 3 };
            let patch = method.edit(&settings, &job, &Context::default()).unwrap();
            let SearchInfo { steps, loss, .. } = patch.search[0];
            (steps, loss)
        };
        // As one search of as many steps; beside another fact each round has its own.
        let alone = first(&facts[..1], 10, 6);
        assert_eq!(alone, first(&facts[..1], 1, 60), "{}", method.id);
        assert!(alone.0 > 6, "{}: {} steps sufficed", method.id, alone.0);
        assert_eq!(first(&facts, 10, 6).0, 6, "{}", method.id);
    }
}

#[test]
fn what_is_true_already_is_left_alone() {
    let model = model();
    // The model's own answer as the target.
    let prompt = "Once upon a time, Lily had a";
    let ids = model.tokenizer().unwrap().encode(prompt).unwrap().ids;
    let pass = Pass {
        sequences: vec![Sequence { tokens: &ids, ..Default::default() }],
        logits: LogitRows::Last,
        ..Default::default()
    };
    let logits = model.forward(pass).unwrap().logits;
    let likeliest = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
    let decode = model.tokenizer().unwrap();
    let target = decode.decode(&[likeliest as u32], mutandis_engine::tokenizer::Specials::Skip);
    let fact = Fact::new(prompt, "Lily", target.trim()).unwrap();
    let request = Request::new(&model, &fact, &["{}".into()], Token::Subject).unwrap();
    assert_eq!(request.prompts[0].target, [likeliest as u32]);
    let settings = Search { settle: 1, ..Search::default() };
    let sites = [Site::new(LAYER, SiteKind::Residual)];
    let goal = Goal::new(&sites, &settings);
    let found = search(&model, &[], &goal, &[request], &Context::default()).unwrap().remove(0);
    assert!(found.is_nothing());
    assert_eq!(found.losses.len(), 1);
}
