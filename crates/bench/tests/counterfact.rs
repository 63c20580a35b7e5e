//! CounterFact's metrics: against a plain computation, and on the data set's own records.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

use std::path::{Path, PathBuf};

use mutandis_bench::data::{Set, Task};
use mutandis_bench::edited::Edited;
use mutandis_bench::results::Role;
use mutandis_bench::strict::counterfact::{Preference, References, Scores, preferences};
use mutandis_edit::{Fact, Probe};
use mutandis_engine::{Delta, LogitRows, Model, Options, Overlay, Pass, Role as Weight, Sequence, WeightId};
use serde_json::json;

/// Means of ln p in f32 on one side; a pass in two parts adds up in another order than in one.
const CLOSE: f64 = 1e-4;

fn model() -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/stories260K.gguf");
    Model::load(&path, Options::default()).unwrap()
}

fn fact() -> Fact {
    let mut fact = Fact::new("Tom went to the", "Tom", "big park").unwrap();
    fact.ground_truth = Some("zoo".into());
    fact.rephrases = vec!["One day, Tom was at the".into(), "Tom and Lily liked the".into()];
    let probe = |prompt: &str, answer: &str| Probe {
        kind: "neighborhood".into(),
        prompt: prompt.into(),
        answers: vec![answer.into()],
    };
    fact.locality = vec![
        probe("Ben went to the", "zoo"),
        probe("Tomas went to the", "zoo"),
        // One of what is true of the new object is no neighbour.
        probe("Max went to the", "big park"),
        Probe { answers: vec![], ..probe("Sam went to the", "") },
        // Nor is the subject itself, unless the data set says so.
        Probe { kind: "Forgetfulness".into(), ..probe("Yesterday, tom was at the", "zoo") },
    ];
    fact
}

/// Mean ln p of the tokens behind a prompt, in f64, from one pass over the whole text.
fn plain(edited: &Edited<'_>, prompt: &str, target: &str) -> f64 {
    let encode = |text: &str| edited.model.tokenizer().unwrap().encode(text).unwrap().ids;
    let prompt = format!("{}{prompt}", edited.prefix);
    let (start, ids) = (encode(&prompt).len(), encode(&format!("{prompt} {target}")));
    let sequences = vec![Sequence { tokens: &ids, overlays: edited.overlays, ..Default::default() }];
    let pass = Pass { sequences, logits: LogitRows::All, ..Default::default() };
    let logits = edited.model.forward(pass).unwrap().logits;
    let v = edited.model.architecture().vocabulary;
    let of = |i: usize| {
        let row = &logits[(i - 1) * v..i * v];
        f64::from(row[ids[i] as usize]) - row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln()
    };
    (start..ids.len()).map(of).sum::<f64>() / (ids.len() - start) as f64
}

#[test]
fn preferences_are_mean_log_probabilities_of_both_objects() {
    let model = model();
    let numbers = |n: usize| (0..n).map(|i| ((i * 7919) as f32).sin()).collect::<Vec<_>>();
    let (d, f) = (model.architecture().width, model.architecture().mlp_width);
    let mut overlay = Overlay::default();
    let id = WeightId { layer: 2, role: Weight::MlpOut };
    overlay.push(id, Delta::low_rank(1, &numbers(d), &numbers(f)).unwrap());
    let overlays = [&overlay];
    let edits = [
        Edited::unedited(&model),
        Edited { model: &model, overlays: &overlays, prefix: "" },
        Edited { model: &model, overlays: &[], prefix: "Tom went to the big park. " },
    ];
    let (fact, mut unknown, mut unchanged) = (fact(), fact(), fact());
    unknown.ground_truth = None;
    unchanged.ground_truth = Some(" big park".into());
    let others = [(edits[0], &unknown), (edits[0], &unchanged)];
    let asked: Vec<(Edited<'_>, &Fact)> = edits.iter().map(|e| (*e, &fact)).chain(others).collect();
    let found = preferences(&model, &asked).unwrap();
    for (none, why) in found[3..].iter().zip(["without a true object", "where both are the same"]) {
        assert!(none.is_empty(), "{why} there is nothing to prefer");
        assert_eq!(Scores::of(none), Scores::default());
    }
    for (edited, found) in edits.iter().zip(&found) {
        let roles: Vec<Role> = found.iter().map(|p| p.role).collect();
        assert_eq!(roles, [Role::Edit, Role::Rephrase, Role::Rephrase, Role::Locality, Role::Locality]);
        for Preference { prompt, new, old, .. } in found {
            let wanted = [plain(edited, prompt, "big park"), plain(edited, prompt, "zoo")];
            assert!(
                (new - wanted[0]).abs() < CLOSE && (old - wanted[1]).abs() < CLOSE,
                "{prompt}: {wanted:?}"
            );
        }
        assert_eq!(preferences(&model, &[(*edited, &fact)]).unwrap()[0], *found, "neighbours in a batch");
    }
    // Blanks around objects, which data sets write here and there, change nothing.
    let mut spaced = fact.clone();
    spaced.ground_truth = Some(" zoo ".into());
    spaced.locality[1].answers = vec!["zoo ".into()];
    assert_eq!(preferences(&model, &[(edits[0], &spaced)]).unwrap()[0], found[0]);
    assert!((found[0][0].new - found[1][0].new).abs() > 0.01, "the change changes nothing");
    assert!((found[0][0].new - found[2][0].new).abs() > 0.01, "the prefix changes nothing");
}

#[test]
fn shares_and_magnitudes_are_of_the_object_that_should_be_preferred() {
    let preference = |role: Role, [new, old]: [f64; 2]| Preference {
        role,
        prompt: String::new(),
        new: new.ln(),
        old: old.ln(),
    };
    let scores = Scores::of(&[
        preference(Role::Edit, [0.75, 0.25]),
        preference(Role::Rephrase, [0.5, 0.125]),
        preference(Role::Rephrase, [0.1, 0.6]),
        preference(Role::Rephrase, [0.2, 0.2]),
        preference(Role::Locality, [0.1, 0.3]),
        preference(Role::Locality, [0.05, 0.45]),
        preference(Role::Locality, [0.7, 0.1]),
        preference(Role::Locality, [0.1, 0.5]),
    ]);
    let [efficacy, generalization, specificity] =
        [scores.efficacy, scores.generalization, scores.specificity].map(Option::unwrap);
    assert_eq!((efficacy.share, generalization.share, specificity.share), (1.0, 1.0 / 3.0, 0.75));
    for (found, wanted) in
        [(efficacy, 0.5), (generalization, (0.375 - 0.5) / 3.0), (specificity, (0.2 + 0.4 - 0.6 + 0.4) / 4.0)]
    {
        assert!((found.magnitude - wanted).abs() < 1e-12, "{found:?} is not {wanted}");
    }
}

fn read(text: &str) -> mutandis_edit::Result<References> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    References::read(file.path())
}

#[test]
fn consistency_is_the_cosine_of_weighed_words() {
    let text = |text: &str| json!({"name": "x", "text": text});
    let file = json!([
        {"relation_id": "P1", "target_id": "Q1", "samples": [text("The red cat sat."), text("A cat ran!")]},
        {"relation_id": "P1", "target_id": "Q2", "samples": [text("The dog sat.")]},
        {"relation_id": "P2", "target_id": "Q1", "samples": []},
    ]);
    let references = read(&file.to_string()).unwrap();
    let key = |relation: &str, object: &str| [relation.to_owned(), object.to_owned()];
    let near =
        |found: Option<f64>, wanted: f64| assert!((found.unwrap() - wanted).abs() < 1e-12, "{found:?}");
    // Of three texts, "the", "cat" and "sat" are in two, the others in one.
    let (common, rare) = ((4.0f64 / 3.0).ln() + 1.0, (4.0f64 / 2.0).ln() + 1.0);
    // the red cat sat a cat ran; "cat the cat blue": "blue" is in no text.
    let reference = [common, rare, 2.0 * common, common, rare, rare];
    let length = |w: &[f64]| w.iter().map(|x| x * x).sum::<f64>().sqrt();
    let dot = common * common + 2.0 * common * 2.0 * common;
    let wanted = dot / (length(&reference) * length(&[2.0 * common, common]));
    near(references.consistency(&key("P1", "Q1"), &["cat the", "CAT, blue."]), wanted);
    near(references.consistency(&key("P1", "Q2"), &["The dog sat"]), 1.0);
    near(references.consistency(&key("P1", "Q2"), &["A red cat ran."]), 0.0);
    near(references.consistency(&key("P1", "Q2"), &["Nothing known"]), 0.0);
    assert_eq!(references.consistency(&key("P1", "Q2"), &[""; 0]), None);
    assert_eq!(references.consistency(&key("P2", "Q1"), &["cat"]), None, "it has no texts");
    assert_eq!(references.consistency(&key("P2", "Q7"), &["cat"]), None);
    // `printf '[{"relation_id":"P","target_id":"Q","samples":[{"text":"a b"}]}]' | git hash-object --stdin`
    let small = read(r#"[{"relation_id":"P","target_id":"Q","samples":[{"text":"a b"}]}]"#).unwrap();
    assert_eq!(small.version, "63064d87521779239f63904e6105b1a414df9794");
}

#[test]
fn files_that_hold_no_references_are_refused() {
    for (text, why) in [
        ("", "EOF"),
        ("[]", "it holds no words"),
        (r#"[{"relation_id":"P","target_id":"Q","samples":[{"text":"…"}]}]"#, "it holds no words"),
        (r#"[{"relation_id":"P","samples":[]}]"#, "missing field `target_id`"),
        (r#"[{"relation_id":"P","target_id":"Q","samples":[{"text":3}]}]"#, "expected a string"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.to_string().contains(why), "{text}: {error}");
        assert!(error.hint().unwrap().contains("attribute_snippets.json"));
    }
}

#[test]
fn every_record_of_counterfact_has_its_prompts_and_its_reference() {
    let shared = std::env::var_os("MUTANDIS_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from);
    let path = shared.join("data/counterfact/counterfact_fullfields_merged.json");
    if !path.exists() {
        eprintln!("skipped: {} is not here", path.display());
        return;
    }
    let model = model();
    let set = Set::read(&path).unwrap();
    for record in &set.records {
        let Task::Facts { reference, .. } = &record.task else { panic!("no facts") };
        let [relation, object] = reference.as_ref().unwrap();
        assert!(relation.starts_with('P') && object.starts_with('Q'), "{relation}, {object}");
    }
    let facts: Vec<&Fact> = set.records.iter().map(|r| &r.facts()[0]).take(20).collect();
    let unedited = Edited::unedited(&model);
    let asked: Vec<(Edited<'_>, &Fact)> = facts.iter().map(|fact| (unedited, *fact)).collect();
    for found in preferences(&model, &asked).unwrap() {
        let count = |role: Role| found.iter().filter(|p| p.role == role).count();
        assert_eq!([Role::Edit, Role::Rephrase, Role::Locality].map(count), [1, 2, 10]);
    }
}
