//! Gradients at every kind of site, in every circumstance, against central differences through
//! the whole model.
//!
//! A random vector is added at a site, once forwards and once backwards; the loss is a random
//! combination of all logits, summed in f64. Two steps are combined (Richardson), so the
//! truncation error is of the fourth order in the step.

use mutandis_engine::{
    Action, Cache, Intervention, LogitRows, Model, Overlay, Pass, Past, Read, Sequence, Site, SiteKind,
    Start, Wants,
};

use crate::support::{
    FAMILIES, Golden, assert_near, changes, fixtures, load, logits, options, overlay, past_of, random,
};

pub(crate) const KINDS: [SiteKind; 12] = [
    SiteKind::Input,
    SiteKind::AttentionIn,
    SiteKind::Query,
    SiteKind::Key,
    SiteKind::Value,
    SiteKind::AttentionKey,
    SiteKind::AttentionOut,
    SiteKind::MlpIn,
    SiteKind::MlpKey,
    SiteKind::MlpOut,
    SiteKind::Residual,
    SiteKind::FinalNorm,
];

/// Against the norm of the gradient: the loss is known to 1e-6 or so, the step is a hundredth.
const SLOPE: f64 = 2.5e-3;

/// A power of two, so that steps add no rounding of their own.
const STEP: f32 = 1.0 / 128.0;
/// Norm of a gradient from which on the step is smaller.
const STEEP: f64 = 40.0;

/// What is on the way of a pass.
#[derive(Default)]
struct Circumstances {
    /// Tokens kept before each sequence, as a past.
    past: usize,
    /// Tokens kept after those, in a cache.
    cached: usize,
    /// Layer that the pass starts at.
    from: usize,
    overlays: bool,
    /// Interventions at other sites.
    way: bool,
}

struct Bench<'a> {
    model: &'a Model,
    /// Tokens run, of each sequence.
    tokens: Vec<&'a [u32]>,
    pasts: Vec<Option<Past>>,
    caches: Vec<Option<Cache>>,
    overlays: Vec<Vec<&'a Overlay>>,
    way: Vec<Intervention>,
    hidden: Option<(usize, Vec<f32>)>,
    weights: Vec<f32>,
}

impl<'a> Bench<'a> {
    fn new(model: &'a Model, ids: &'a [Vec<u32>; 2], overlay: &'a Overlay, c: &Circumstances) -> Self {
        let a = model.architecture();
        let kept = c.past + c.cached;
        let tokens: Vec<&[u32]> = ids.iter().map(|s| &s[kept..]).collect();
        let pasts = ids.iter().map(|s| (c.past > 0).then(|| past_of(model, &s[..c.past], c.from)));
        let caches = ids.iter().map(|s| {
            (c.cached > 0).then(|| {
                // Made as a pass makes it: after the past.
                let past = past_of(model, &s[..c.past], 0);
                let mut cache = Cache::new(a);
                let sequence = Sequence {
                    tokens: &s[c.past..kept],
                    past: Some(&past),
                    cache: Some(&mut cache),
                    overlays: &[],
                };
                model.forward(Pass { sequences: vec![sequence], ..Pass::default() }).unwrap();
                cache
            })
        });
        let rows = tokens.iter().map(|t| t.len()).sum::<usize>();
        let last = a.layers - 1;
        let way = |site: Site, rows: Vec<usize>, action| Intervention { site, rows, action };
        let on_the_way = vec![
            way(Site::new(last, SiteKind::MlpKey), vec![1, 2], Action::Scale(0.5)),
            way(Site::new(c.from, SiteKind::MlpOut), vec![0], Action::Replace(random(31, a.width))),
            way(Site::new(last, SiteKind::AttentionOut), vec![2], Action::Scale(-1.5)),
            way(Site::new(last, SiteKind::Value), vec![1], Action::Replace(random(32, a.kv_width()))),
            way(Site::new(last, SiteKind::AttentionIn), vec![3], Action::Scale(0.7)),
            way(Site::new(last, SiteKind::FinalNorm), vec![1], Action::Scale(1.2)),
            way(Site::new(last, SiteKind::Residual), vec![rows - 1], Action::Scale(0.9)),
        ];
        Self {
            model,
            pasts: pasts.collect(),
            caches: caches.collect(),
            // One sequence has the patch, the other has not.
            overlays: vec![vec![], if c.overlays { vec![overlay] } else { vec![] }],
            way: if c.way { on_the_way } else { vec![] },
            hidden: (c.from > 0).then(|| (c.from, random(33, rows * a.width))),
            weights: random(34, rows * a.vocabulary),
            tokens,
        }
    }

    fn rows(&self) -> usize {
        self.tokens.iter().map(|t| t.len()).sum()
    }

    fn pass<'p>(&'p self, caches: &'p mut [Option<Cache>], more: Option<Intervention>) -> Pass<'p> {
        let sequences = self
            .tokens
            .iter()
            .zip(&self.pasts)
            .zip(caches)
            .zip(&self.overlays)
            .map(|(((tokens, past), cache), overlays)| Sequence {
                tokens,
                past: past.as_ref(),
                cache: cache.as_mut(),
                overlays,
            })
            .collect();
        Pass {
            sequences,
            start: match &self.hidden {
                Some((layer, rows)) => Start::Hidden { layer: *layer, rows: rows.clone() },
                None => Start::Tokens,
            },
            interventions: self.way.iter().cloned().chain(more).collect(),
            logits: LogitRows::All,
            ..Pass::default()
        }
    }

    /// The loss with `step · direction` added at a site.
    fn loss(&self, site: Site, direction: &[f32], step: f32) -> f64 {
        let add = Action::Add(direction.iter().map(|x| x * step).collect());
        let more = Intervention { site, rows: (0..self.rows()).collect(), action: add };
        let mut caches = self.caches.clone();
        let logits = self.model.forward(self.pass(&mut caches, Some(more))).unwrap().logits;
        logits.iter().zip(&self.weights).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
    }

    /// Gradients at all sites, after whatever happens there.
    fn gradients(&self, sites: &[Site]) -> Vec<Vec<f32>> {
        let mut caches = self.caches.clone();
        let mut pass = self.pass(&mut caches, None);
        pass.record = true;
        let tape = self.model.forward(pass).unwrap().tape.unwrap();
        let wants = Wants {
            logits: self.weights.clone(),
            sites: sites.iter().map(|site| Read { site: *site, rows: None }).collect(),
            ..Wants::default()
        };
        self.model.backward(&tape, &wants).unwrap().sites
    }

    fn check(&self, label: &str, from: usize) {
        let a = self.model.architecture();
        // Gemma's layer 5 alone sees everything; elsewhere the first, the second and the last.
        let mut layers = vec![from, 1, 5, a.layers - 1];
        layers.retain(|l| (from..a.layers).contains(l));
        layers.sort_unstable();
        layers.dedup();
        let sites: Vec<Site> = layers
            .iter()
            .flat_map(|l| KINDS.map(|kind| Site::new(*l, kind)))
            .filter(|s| s.kind != SiteKind::FinalNorm || s.layer == a.layers - 1)
            .collect();
        for (i, (site, gradient)) in sites.iter().zip(self.gradients(&sites)).enumerate() {
            let direction = random(100 + i as u64, gradient.len());
            let slope: f64 =
                gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
            let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            // A steep loss is a crooked one, and needs a smaller step; its rounding matters less.
            let step = if norm < STEEP { STEP } else { STEP / 8.0 };
            let across = |step: f32| self.loss(*site, &direction, step) - self.loss(*site, &direction, -step);
            let numeric = (8.0 * across(step) - across(2.0 * step)) / (12.0 * f64::from(step));
            assert!(norm > 1e-3, "{label} {site:?}: the gradient vanishes");
            assert!(
                (slope - numeric).abs() <= SLOPE * norm,
                "{label} {site:?}: slope {slope}, by differences {numeric}, norm {norm}"
            );
        }
    }
}

fn check(name: &str, label: &str, c: &Circumstances) {
    check_model(&load(name), name, label, c);
}

fn check_model(model: &Model, name: &str, label: &str, c: &Circumstances) {
    let golden = Golden::open();
    let ids = [golden.ids(name, 0), golden.ids(name, 1)];
    let overlay = overlay(&changes(model, &[1, model.architecture().layers - 1]));
    Bench::new(model, &ids, &overlay, c).check(&format!("{name}, {label}"), c.from);
}

#[test]
fn plain() {
    for name in FAMILIES {
        check(name, "plain", &Circumstances::default());
    }
}

#[test]
fn with_interventions_and_patches_on_the_way() {
    for name in FAMILIES {
        check(name, "on the way", &Circumstances { way: true, overlays: true, ..Default::default() });
    }
}

#[test]
fn after_a_past() {
    for name in FAMILIES {
        check(name, "past", &Circumstances { past: 3, ..Default::default() });
    }
}

#[test]
fn after_a_past_and_a_cache() {
    for name in ["gemma3", "mistral", "gpt2", "gptj"] {
        check(name, "past and cache", &Circumstances { past: 2, cached: 2, ..Default::default() });
    }
}

#[test]
fn from_hidden_states_with_everything() {
    for name in FAMILIES {
        let c = Circumstances { past: 2, cached: 0, from: 1, overlays: true, way: true };
        // Nothing of the way is below the layer that the pass starts at.
        check(name, "from layer 1", &c);
    }
}

/// No model of these families in use has soft caps, but a config may ask for them.
#[test]
fn through_soft_caps() {
    let golden = Golden::open();
    let ids = golden.ids("gemma3", 0);
    let with = |changes: &[(&str, f64)]| {
        let folder = tempfile::tempdir().unwrap();
        let from = fixtures().join("gemma3");
        std::fs::copy(from.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
        let text = std::fs::read_to_string(from.join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        for (key, value) in changes {
            config[*key] = (*value).into();
        }
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        Model::load(folder.path(), options()).unwrap()
    };
    let bare = logits(&with(&[]), vec![crate::support::plain(&ids)]);
    let capped = logits(&with(&[("final_logit_softcapping", 2.0)]), vec![crate::support::plain(&ids)]);
    let expected: Vec<f64> = bare.iter().map(|x| 2.0 * (f64::from(*x) / 2.0).tanh()).collect();
    assert_near("capped logits", &capped, &expected, 1e-6);
    let both = with(&[("final_logit_softcapping", 3.0), ("attn_logit_softcapping", 1.5)]);
    for past in [0, 3] {
        check_model(
            &both,
            "gemma3",
            "soft caps",
            &Circumstances { past, overlays: true, ..Default::default() },
        );
    }
}

/// A pass may have no logits at all: what is wanted then comes from seeds, the final norm's too.
#[test]
fn seeds_give_what_the_logits_gave() {
    let golden = Golden::open();
    for name in ["llama", "gptj", "gemma3"] {
        let model = load(name);
        let a = model.architecture();
        let ids = golden.ids(name, 0);
        let last = Site::new(a.layers - 1, SiteKind::FinalNorm);
        let below = Site::new(1, SiteKind::MlpOut);
        let run = |logits: LogitRows| {
            let reads = vec![Read { site: last, rows: None }];
            let sequences = vec![crate::support::plain(&ids)];
            model.forward(Pass { sequences, reads, logits, record: true, ..Pass::default() }).unwrap()
        };
        let read = |site| Read { site, rows: None };
        let all = run(LogitRows::All);
        let wants = Wants {
            logits: random(7, ids.len() * a.vocabulary),
            sites: vec![read(last), read(below)],
            ..Wants::default()
        };
        let expected = model.backward(&all.tape.unwrap(), &wants).unwrap().sites;
        let none = run(LogitRows::None);
        let wants = Wants {
            seeds: vec![(read(last), expected[0].clone())],
            sites: vec![read(last), read(below)],
            ..Wants::default()
        };
        let found = model.backward(&none.tape.unwrap(), &wants).unwrap().sites;
        assert_eq!(found, expected, "{name}");
    }
}
