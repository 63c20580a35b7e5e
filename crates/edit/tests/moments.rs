//! Moments of a small trained model: against f64, kept, resumed, merged, damaged.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use mutandis_edit::primitives::moments::{MomentSpec, Moments, factor, moments};
use mutandis_edit::{Context, Error, Progress};
use mutandis_engine::{Model, Options, Pass, Read, Sampling, Sequence, Site, SiteKind};

fn model(threads: usize) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/stories260K.gguf");
    Model::load(&path, Options { threads: Some(threads), ..Options::default() }).unwrap()
}

/// Three batches of text that the model writes.
fn spec() -> MomentSpec {
    MomentSpec { tokens: Some(70 * 16), length: 16, ..MomentSpec::default() }
}

fn upper_of(keys: &[Vec<f32>]) -> Vec<f64> {
    let f = keys[0].len();
    let mut upper = vec![];
    for i in 0..f {
        for j in i..f {
            let sum: f64 = keys.iter().map(|k| f64::from(k[i]) * f64::from(k[j])).sum();
            upper.push(sum / keys.len() as f64);
        }
    }
    upper
}

/// Largest difference relative to the Cauchy–Schwarz bound of each element.
fn difference(found: &[f32], exact: &[f64], f: usize) -> f64 {
    let mut diagonal = vec![];
    let mut at = 0;
    for i in 0..f {
        diagonal.push(exact[at]);
        at += f - i;
    }
    let (mut worst, mut at) = (0.0f64, 0);
    for i in 0..f {
        for j in i..f {
            let scale = (diagonal[i] * diagonal[j]).sqrt();
            worst = worst.max((f64::from(found[at]) - exact[at]).abs() / scale);
            at += 1;
        }
    }
    worst
}

/// Texts of different lengths, as a `.jsonl`.
fn corpus(folder: &Path, name: &str, range: std::ops::Range<usize>) -> PathBuf {
    let words =
        ["Once", "Lily", "the dog", "ran to", "a big", "red", "ball", "and", "was happy.", "Tim said"];
    let lines: Vec<String> = range
        .map(|i| {
            let text: Vec<&str> = (0..20 + 7 * i).map(|j| words[(i * 31 + j * j * 7 + j) % 10]).collect();
            serde_json::json!({ "text": text.join(" ") }).to_string()
        })
        .collect();
    let path = folder.join(name);
    std::fs::write(&path, lines.join("\n\n")).unwrap();
    path
}

fn on_corpus(model: &Model, layers: &[usize], path: &Path) -> Vec<Moments> {
    let cx = Context { corpus: Some(path.to_owned()), ..Context::default() };
    let spec = MomentSpec { tokens: Some(usize::MAX), window: 100, ..MomentSpec::default() };
    moments(model, layers, &spec, &cx).unwrap()
}

#[test]
fn moments_of_a_corpus_are_those_of_its_windows_in_f64() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(2);
    let path = corpus(folder.path(), "a.jsonl", 0..9);
    let found = on_corpus(&model, &[3, 1], &path);

    let tokenizer = model.tokenizer().unwrap();
    let bos = tokenizer.encode("").unwrap().ids;
    assert_eq!(bos.len(), 1, "the model begins texts with BOS");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut keys = vec![vec![]; 2];
    for line in text.lines().filter(|l| !l.is_empty()) {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        let ids = tokenizer.encode(value["text"].as_str().unwrap()).unwrap().ids;
        for window in ids[1..].chunks(99) {
            let tokens = [&bos, window].concat();
            let read = |layer| Read { site: Site::new(layer, SiteKind::MlpKey), rows: None };
            let pass = Pass {
                sequences: vec![Sequence { tokens: &tokens, ..Sequence::default() }],
                reads: vec![read(3), read(1)],
                ..Pass::default()
            };
            for (keys, rows) in keys.iter_mut().zip(model.forward(pass).unwrap().reads) {
                keys.extend(rows.chunks_exact(found[0].f).map(<[f32]>::to_vec));
            }
        }
    }
    for ((moments, keys), layer) in found.iter().zip(&keys).zip([3, 1]) {
        assert_eq!((moments.layer, moments.count as usize), (layer, keys.len()));
        // Blocks of f32 sums, and the result rounded to f32.
        let worst = difference(&moments.upper, &upper_of(keys), moments.f);
        assert!(worst < 1e-6, "layer {layer}: {worst:e}");
        assert!(moments.error > 0.0 && moments.error < 1.0, "{}", moments.error);
    }
}

#[test]
fn parts_merge_to_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(2);
    let of = |name, range| on_corpus(&model, &[2], &corpus(folder.path(), name, range)).remove(0);
    let (a, b, whole) = (of("a.jsonl", 0..6), of("b.jsonl", 6..11), of("whole.jsonl", 0..11));
    let merged = a.merge(&b).unwrap();
    assert_eq!(merged.count, whole.count);
    let exact: Vec<f64> = whole.upper.iter().map(|x| f64::from(*x)).collect();
    let worst = difference(&merged.upper, &exact, whole.f);
    assert!(worst < 1e-6, "{worst:e}");
    let other = on_corpus(&model, &[1], &folder.path().join("a.jsonl")).remove(0);
    assert!(matches!(a.merge(&other), Err(Error::Input { .. })));
}

#[test]
fn threads_and_company_do_not_change_a_bit() {
    let one = moments(&model(1), &[2, 4], &spec(), &Context::default()).unwrap();
    let four = moments(&model(4), &[2, 4], &spec(), &Context::default()).unwrap();
    assert_eq!(one, four);
    let alone = moments(&model(2), &[4], &spec(), &Context::default()).unwrap();
    assert_eq!(one[1], alone[0]);
    assert_eq!(one[0].count, 70 * 16);
    let other_seed = MomentSpec { seed: 1, ..spec() };
    assert_ne!(one[1].upper, moments(&model(1), &[4], &other_seed, &Context::default()).unwrap()[0].upper);
}

/// Raises the flag at a given number of tokens.
struct Stopper {
    at: usize,
    flag: Arc<AtomicBool>,
    first: AtomicUsize,
}

impl Progress for Stopper {
    fn begin(&self, _: &str, _: usize) {}
    fn step(&self, done: usize) {
        self.first.fetch_min(done, Ordering::Relaxed);
        if done >= self.at {
            self.flag.store(true, Ordering::Relaxed);
        }
    }
    fn end(&self) {}
}

/// The outcome, and the number of tokens at which the work began (`MAX`: no work was done).
fn interrupted(model: &Model, cache: &Path, at: usize) -> (Result<Vec<Moments>, Error>, usize) {
    let flag = Arc::new(AtomicBool::new(false));
    let stopper = Stopper { at, flag: flag.clone(), first: AtomicUsize::new(usize::MAX) };
    let cx =
        Context { cache: Some(cache.to_owned()), progress: &stopper, interrupt: flag, ..Context::default() };
    let result = moments(model, &[1, 3], &spec(), &cx);
    (result, stopper.first.load(Ordering::Relaxed))
}

fn files(cache: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(cache.join("moments")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == extension));
    paths.sort();
    paths
}

#[test]
fn interrupted_work_goes_on_to_the_same_bits() {
    let cache = tempfile::tempdir().unwrap();
    let model = model(2);
    let whole = moments(&model, &[1, 3], &spec(), &Context::default()).unwrap();
    // 32 sequences of 16 tokens are a batch; the second is broken off in its middle.
    let (stopped, first) = interrupted(&model, cache.path(), 32 * 16 + 100);
    assert!(matches!(stopped, Err(Error::Interrupted)));
    assert_eq!(first, 0);
    assert_eq!((files(cache.path(), "partial").len(), files(cache.path(), "safetensors").len()), (1, 0));
    let (resumed, first) = interrupted(&model, cache.path(), usize::MAX);
    assert_eq!(first, 32 * 16, "the first batch is not run again");
    assert_eq!(resumed.unwrap(), whole);
    assert_eq!((files(cache.path(), "partial").len(), files(cache.path(), "safetensors").len()), (0, 2));
    let (kept, first) = interrupted(&model, cache.path(), usize::MAX);
    assert_eq!(first, usize::MAX, "nothing is measured again");
    assert_eq!(kept.unwrap(), whole);
}

#[test]
fn a_damaged_partial_file_is_not_believed() {
    let cache = tempfile::tempdir().unwrap();
    let model = model(2);
    let (stopped, _) = interrupted(&model, cache.path(), 32 * 16 + 100);
    assert!(stopped.is_err());
    let path = files(cache.path(), "partial").remove(0);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() - 100;
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (anew, first) = interrupted(&model, cache.path(), usize::MAX);
    assert_eq!(first, 0);
    let anew = anew.unwrap();
    let whole = moments(&model, &[1, 3], &spec(), &Context::default()).unwrap();
    assert_eq!(anew[0].upper, whole[0].upper);
    assert!(anew[0].notes.iter().any(|n| n.contains("from the start")), "{:?}", anew[0].notes);
}

#[test]
fn kept_files_that_are_damaged_or_of_another_model_are_measured_anew() {
    let cache = tempfile::tempdir().unwrap();
    let model = model(2);
    let cx = Context { cache: Some(cache.path().to_owned()), ..Context::default() };
    let whole = moments(&model, &[1], &spec(), &cx).unwrap().remove(0);
    assert!(whole.notes.is_empty());
    let path = files(cache.path(), "safetensors").remove(0);
    let good = std::fs::read(&path).unwrap();

    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 0x10;
    let foreign = {
        let other = tempfile::tempdir().unwrap();
        let path = other.path().join("x.safetensors");
        Moments { base: "another".into(), ..whole.clone() }.save(&path).unwrap();
        std::fs::read(path).unwrap()
    };
    for bad in [flipped, foreign, good[..good.len() / 2].to_vec(), vec![], b"no file at all".to_vec()] {
        std::fs::write(&path, &bad).unwrap();
        let anew = moments(&model, &[1], &spec(), &cx).unwrap().remove(0);
        assert_eq!(anew.upper, whole.upper);
        assert!(anew.notes.iter().any(|n| n.contains("measured anew")), "{:?}", anew.notes);
        assert_eq!(std::fs::read(&path).unwrap(), good, "the file is whole again");
    }
}

#[test]
fn a_saved_file_says_what_was_saved() {
    let folder = tempfile::tempdir().unwrap();
    let whole = moments(&model(2), &[0], &spec(), &Context::default()).unwrap().remove(0);
    let path = folder.path().join("deep/er/m.safetensors");
    whole.save(&path).unwrap();
    assert_eq!(Moments::load(&path).unwrap(), whole);
    assert!(matches!(Moments::load(&folder.path().join("absent")), Err(Error::Io { .. })));
}

fn made(f: usize, upper: Vec<f32>) -> Moments {
    Moments {
        base: "none".into(),
        layer: 0,
        f,
        count: 1,
        upper,
        error: 0.0,
        source: "made up".into(),
        notes: vec![],
    }
}

#[test]
fn factors_solve_with_the_ridge() {
    let m = moments(&model(2), &[2], &spec(), &Context::default()).unwrap().remove(0);
    let f = m.f;
    let k: Vec<f64> = (0..f).map(|i| ((i * 37 % 101) as f64 / 50.0 - 1.0).powi(3)).collect();
    for ridge in [1e-3, 0.5] {
        let factor = factor(&m, ridge).unwrap();
        assert_eq!((factor.ridge, factor.jitter()), (ridge, 0.0));
        let x = factor.solve(&k);
        let mut back = x.iter().map(|x| x * ridge * m.trace() / f as f64).collect::<Vec<_>>();
        let mut at = 0;
        for i in 0..f {
            for j in i..f {
                let c = f64::from(m.upper[at]);
                back[i] += c * x[j];
                if i != j {
                    back[j] += c * x[i];
                }
                at += 1;
            }
        }
        let error = back.iter().zip(&k).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        // f64 rounding times a condition number of at most f / ridge.
        assert!(error < 1e-9, "{error:e}");
        let both = factor.solve_columns(&[&k[..], &x[..]].concat(), 2);
        let close =
            |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-9 * (1.0 + b.abs()));
        assert!(close(&both[..f], &x) && close(&both[f..], &factor.solve(&x)));
    }
}

#[test]
fn a_matrix_without_a_factor_gets_a_jitter_that_is_reported() {
    // Rank one, and slightly indefinite.
    let indefinite = made(3, vec![1.0, 2.0, 3.0, 4.0, 6.0, 9.0 - 1e-4]);
    let jittered = factor(&indefinite, 0.0).unwrap();
    assert!(jittered.jitter() > 0.0 && jittered.jitter() < 1e-2, "{}", jittered.jitter());
    assert_eq!(factor(&indefinite, 0.1).unwrap().jitter(), 0.0);
    for upper in [vec![0.0; 6], vec![1.0, f32::NAN, 0.0, 1.0, 0.0, 1.0], vec![1.0, 9.0, 9.0, 1.0, 9.0, 1.0]] {
        assert!(matches!(factor(&made(3, upper), 0.0), Err(Error::Numerical { .. })));
    }
    assert!(matches!(factor(&indefinite, -1.0), Err(Error::Input { .. })));
    assert!(matches!(factor(&indefinite, f64::NAN), Err(Error::Input { .. })));
}

#[test]
fn bad_corpora_and_settings_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(1);
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let cases = [
        (folder.path().to_owned(), "folder"),
        (file("empty.txt", b""), "no text"),
        (file("binary.txt", b"abc\xff\xfe"), "UTF-8"),
        (file("bad.jsonl", b"{\"text\": \"a b c\"}\nnot json"), "line 2"),
        (file("other.jsonl", b"{\"body\": 1}"), "`text`"),
        (folder.path().join("absent.txt"), "absent.txt"),
    ];
    for (path, expected) in cases {
        let cx = Context { corpus: Some(path), ..Context::default() };
        let error = moments(&model, &[0], &spec(), &cx).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = moments(&model, &[5], &spec(), &Context::default()).unwrap_err();
    assert!(error.to_string().contains("layer 5") && error.hint().unwrap().contains("0 to 4"), "{error}");
    let cold = MomentSpec { sampling: Sampling { temperature: -1.0, ..Sampling::PLAIN }, ..spec() };
    assert!(moments(&model, &[0], &cold, &Context::default()).is_err());
    // Any seed and length will do, but not any budget.
    let odd = MomentSpec { tokens: Some(64), length: 0, seed: u64::MAX, ..spec() };
    assert!(moments(&model, &[0], &odd, &Context::default()).is_ok());
    for tokens in [0, 1, 63] {
        let few = MomentSpec { tokens: Some(tokens), ..spec() };
        let error = moments(&model, &[0], &few, &Context::default()).unwrap_err();
        assert!(error.to_string().contains(&format!("over {tokens} tokens, expected 64")), "{error}");
    }
}
