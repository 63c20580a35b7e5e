//! How moments from text that the model writes compare with moments from a corpus.
//!
//! `cargo run --release -p mutandis-edit --example moments_study -- MODEL.gguf SHARED [LAYER]`
//! prints one line per kind of text, number of tokens and ridge: the cosine between u = C⁻¹k and
//! the reference's u over real subjects' keys (mean and lowest), and the loss: how much more u
//! disturbs the keys of the reference than the best u would, E[(uᵀk')²]/(uᵀk)² over its minimum.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::Instant;

use mutandis_edit::Context;
use mutandis_edit::primitives::moments::{MomentSpec, Moments, factor, moments};
use mutandis_engine::{Model, Options, Pass, Read, Sampling, Sequence, Site, SiteKind};

/// The last is as good as C = I.
const RIDGES: [f64; 5] = [0.0, 1e-1, 3e-1, 1.0, 1e6];

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (path, shared) = (PathBuf::from(&args[1]), PathBuf::from(&args[2]));
    let layer: usize = args.get(3).map_or(5, |l| l.parse().unwrap());
    let only = args.get(4).map_or("", String::as_str);
    let model = Model::load(&path, Options { threads: Some(2), ..Options::default() }).unwrap();
    model.fingerprint().unwrap();
    let keys = subject_keys(&model, &shared, layer, 24);
    let wiki = shared.join("data/wikitext-2/wiki.valid.tokens.txt");
    let measure = |spec: MomentSpec, corpus: Option<&Path>| {
        let cache = std::env::temp_dir().join("moments_study");
        let cx =
            Context { corpus: corpus.map(Path::to_owned), cache: Some(cache), ..Context::default() };
        let begun = Instant::now();
        let found = moments(&model, &[layer], &spec, &cx).unwrap().remove(0);
        (found, begun.elapsed().as_secs_f64())
    };
    let tokens = |n| MomentSpec { tokens: Some(n), ..MomentSpec::default() };
    let (reference, seconds) = measure(tokens(75_000), Some(&wiki));
    println!(
        "reference: wikitext-2 valid, {} tokens, error {:.3}, {seconds:.1} s",
        reference.count, reference.error
    );
    let mut references = vec![("wiki", reference.clone())];
    let other = shared.join("data/wikitext-2/wiki.test.tokens.txt");
    if let Some(golden) = golden(&shared, &reference) {
        references.push(("golden", golden));
    }
    let report = |name: &str, m: &Moments, seconds: f64| {
        for (to, reference) in &references {
            for ridge in RIDGES {
                let [mean, low, loss] = compare(m, reference, &keys, ridge);
                println!(
                    "{name:<28} {:>6} tokens {seconds:>6.1} s error {:.3} tr {:.3} | to {to:<6} ridge {ridge:<5} cos {mean:.3} (≥ {low:.3}) loss {loss:.3}",
                    m.count,
                    m.error,
                    m.trace() / reference.trace(),
                );
            }
        }
    };
    if only.is_empty() || only == "wiki" {
        if let Some((_, golden)) = references.get(1) {
            report("golden", golden, 0.0);
        }
        for n in [5_000, 15_000, 50_000] {
            let (m, s) = measure(tokens(n), Some(&other));
            report("wikitext-2 test", &m, s);
        }
    }
    let words = |list: &[&str]| Some(list.iter().map(|w| (*w).to_owned()).collect());
    if only.is_empty() || only == "variants" {
        let n = 10_000;
        let five = words(&["The", "Therefore", "Because", "I", "You"]);
        let (m, s) = measure(MomentSpec { starts: five, ..tokens(n) }, None);
        report("written, five words", &m, s);
        let warm = Sampling { temperature: 0.8, ..Sampling::PLAIN };
        let (m, s) = measure(MomentSpec { sampling: warm, ..tokens(n) }, None);
        report("written, temperature 0.8", &m, s);
        let hot = Sampling { temperature: 1.2, ..Sampling::PLAIN };
        let (m, s) = measure(MomentSpec { sampling: hot, ..tokens(n) }, None);
        report("written, temperature 1.2", &m, s);
        let (m, s) = measure(MomentSpec { length: 64, ..tokens(n) }, None);
        report("written, length 64", &m, s);
        let (m, s) = measure(MomentSpec { length: 256, ..tokens(n) }, None);
        report("written, length 256", &m, s);
    }
    if only.is_empty() || only == "written" {
        let mut all: Option<(Moments, f64)> = None;
        for (seed, n) in [2_000, 3_000, 5_000, 10_000, 30_000].into_iter().enumerate() {
            let (m, s) = measure(MomentSpec { seed: seed as u64, ..tokens(n) }, None);
            all = Some(match all {
                None => (m, s),
                Some((have, before)) => (have.merge(&m).unwrap(), before + s),
            });
            let (m, s) = all.as_ref().unwrap();
            report("written", m, *s);
        }
    }
}

/// Mean and lowest cosine of u, mean loss.
fn compare(m: &Moments, reference: &Moments, keys: &[Vec<f64>], ridge: f64) -> [f64; 3] {
    let ours = factor(m, ridge).unwrap();
    let theirs = factor(reference, ridge).unwrap();
    let best = factor(reference, 0.0).unwrap();
    let full = full(reference);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (mut sum, mut low, mut loss) = (0.0, 1.0f64, 0.0);
    for k in keys {
        let (u, v) = (ours.solve(k), theirs.solve(k));
        let cosine = dot(&u, &v) / (dot(&u, &u) * dot(&v, &v)).sqrt();
        sum += cosine;
        low = low.min(cosine);
        let f = u.len();
        let quadratic: f64 = (0..f).map(|i| u[i] * dot(&full[i * f..(i + 1) * f], &u)).sum();
        loss += quadratic * dot(k, &best.solve(k)) / dot(&u, k).powi(2);
    }
    let n = keys.len() as f64;
    [sum / n, low, loss / n]
}

fn full(m: &Moments) -> Vec<f64> {
    let mut full = vec![0.0; m.f * m.f];
    let mut at = 0;
    for i in 0..m.f {
        for j in i..m.f {
            full[i * m.f + j] = f64::from(m.upper[at]);
            full[j * m.f + i] = f64::from(m.upper[at]);
            at += 1;
        }
    }
    full
}

/// Keys at the last tokens of subjects, `[n][f]`.
fn subject_keys(model: &Model, shared: &Path, layer: usize, n: usize) -> Vec<Vec<f64>> {
    let text = std::fs::read_to_string(shared.join("data/counterfact/counterfact-edit.json")).unwrap();
    let records: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let mut keys = vec![];
    for record in records.iter().step_by(41) {
        let (prompt, subject) = (record["prompt"].as_str().unwrap(), record["subject"].as_str().unwrap());
        let Some(at) = prompt.find(subject) else { continue };
        let last = prompt[..at + subject.len()].chars().count() - 1;
        let encoding = model.tokenizer().unwrap().encode(prompt).unwrap();
        let row = encoding.token_at_char(last).unwrap();
        let pass = Pass {
            sequences: vec![Sequence { tokens: &encoding.ids, ..Sequence::default() }],
            reads: vec![Read { site: Site::new(layer, SiteKind::MlpKey), rows: Some(vec![row]) }],
            ..Pass::default()
        };
        keys.push(model.forward(pass).unwrap().reads[0].iter().map(|x| f64::from(*x)).collect());
        if keys.len() == n {
            break;
        }
    }
    keys
}

fn golden(shared: &Path, like: &Moments) -> Option<Moments> {
    let bytes = std::fs::read(shared.join("golden/moments.safetensors")).ok()?;
    let file = safetensors::SafeTensors::deserialize(&bytes).ok()?;
    let view = file.tensor(&format!("upper.{}", like.layer)).ok()?;
    let upper: Vec<f32> =
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    (upper.len() == like.upper.len()).then(|| Moments { upper, count: 74_851, ..like.clone() })
}
