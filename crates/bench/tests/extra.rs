//! What the peer measures on request, and how it reads targets: against plain computations.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

use mutandis_bench::compat::extra::Extra;
use mutandis_bench::compat::vanilla::Vanilla;
use mutandis_bench::compat::{Asked, Forced, predict};
use mutandis_bench::edited::Edited;
use mutandis_bench::record::{Measures, Prepared, unedited};
use mutandis_bench::results::Scores;
use mutandis_bench::score::{Scored, score};
use mutandis_edit::{Fact, Probe};
use mutandis_engine::tokenizer::Specials;
use mutandis_engine::{Delta, LogitRows, Model, Options, Overlay, Pass, Role as Weight, Sequence, WeightId};
use serde_json::json;

/// Means of ln p in f32 on one side.
const CLOSE: f64 = 1e-4;

fn model() -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/stories260K.gguf");
    Model::load(&path, Options::default()).unwrap()
}

fn fact() -> Fact {
    let probe = |prompt: &str, answer: &str| Probe {
        kind: "near".into(),
        prompt: prompt.into(),
        answers: vec![answer.into()],
    };
    Fact {
        rephrases: vec!["One day, Tom was at the".into(), "Tom and Lily liked the".into()],
        portability: vec![probe("Tom played in the", "big park")],
        locality: vec![probe("Ben went to the", "zoo"), probe("Once upon a time, there", "was a little")],
        ..Fact::new("Tom went to the", "Tom", "big park").unwrap()
    }
}

/// −ln p in nats of every token of a text but the first, in f64.
fn losses(by: &Edited<'_>, text: &str) -> Vec<f64> {
    let ids = by.model.tokenizer().unwrap().encode(text).unwrap().ids;
    let sequences = vec![Sequence { tokens: &ids, overlays: by.overlays, ..Default::default() }];
    let logits =
        by.model.forward(Pass { sequences, logits: LogitRows::All, ..Pass::default() }).unwrap().logits;
    let rows = logits.chunks_exact(by.model.architecture().vocabulary);
    let of = |(row, id): (&[f32], &u32)| {
        row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln() - f64::from(row[*id as usize])
    };
    rows.zip(&ids[1..]).map(of).collect()
}

fn tokens(model: &Model, text: &str) -> usize {
    model.tokenizer().unwrap().encode(text).unwrap().ids.len()
}

fn scored(model: &Model, by: Edited<'_>, extra: &[Extra]) -> Scored {
    let record = Prepared::of_facts(model, 0, &[fact()], &[]).unwrap();
    let measures = Measures { extra: extra.to_vec(), ..Measures::COMPAT };
    let before = unedited(model, &[&record], &measures, 0).unwrap();
    score(&[(&record, by)], &[&before[0]], &measures, true, 0).unwrap().remove(0)
}

fn is(scores: &Scores, name: &str, wanted: f64) {
    let found = scores[name];
    assert!((found - wanted).abs() <= CLOSE * wanted.abs().max(1.0), "{name}: {found} is not {wanted}");
}

#[test]
fn numbers_on_request_are_those_of_every_prompt_alone() {
    let model = model();
    let numbers = |n: usize| (0..n).map(|i| ((i * 7919) as f32).sin()).collect::<Vec<_>>();
    let (d, f) = (model.architecture().width, model.architecture().mlp_width);
    let mut overlay = Overlay::default();
    let id = WeightId { layer: 2, role: Weight::MlpOut };
    overlay.push(id, Delta::low_rank(1, &numbers(d), &numbers(f)).unwrap());
    let overlays = [&overlay];
    let plain = Edited::unedited(&model);
    let prefix = "Tom went to the big park. ";
    for by in [Edited { overlays: &overlays, ..plain }, Edited { prefix, ..plain }] {
        let found = scored(&model, by, &[Extra::Ppl, Extra::OodPpl, Extra::Vanilla]);
        let fact = fact();
        for (scores, by) in [(&found.before.compat, &plain), (&found.after.compat, &by)] {
            let perplexity = |prompt: &str| {
                let losses = losses(by, &format!("{} big park", by.prompt(prompt)));
                let target = &losses[tokens(&model, &by.prompt(prompt)) - 1..];
                (target.iter().sum::<f64>() / target.len() as f64).exp()
            };
            let foreseen = |prompt: &str| {
                let losses = losses(by, &by.prompt(prompt));
                losses.iter().filter(|x| **x < -(0.8f64.ln())).count() as f64 / losses.len() as f64
            };
            let mean = |of: &dyn Fn(&str) -> f64| (of(&fact.rephrases[0]) + of(&fact.rephrases[1])) / 2.0;
            is(scores, "edit:ppl", perplexity(&fact.prompt));
            is(scores, "rephrase:ppl", mean(&perplexity));
            is(scores, "edit:ood", foreseen(&fact.prompt));
            is(scores, "rephrase:ood", mean(&foreseen));
            let said = |by: &Edited<'_>, prompt: &str, target: &str| {
                Vanilla::new(&model, by.overlays, &by.prompt(prompt), target).unwrap()
            };
            let own = said(by, &fact.prompt, "big park");
            is(scores, "edit:vanilla", own.accuracy().unwrap());
            is(scores, "edit:vanilla-f1", own.f1());
            let moved = said(by, "Tom played in the", "big park");
            is(scores, "portability/near:vanilla", moved.accuracy().unwrap());
        }
        // What was said before, and not what is right, is what should stay.
        let same = fact.locality.iter().map(|probe| {
            let [was, is] = [&plain, &by].map(|by| {
                Vanilla::new(&model, by.overlays, &by.prompt(&probe.prompt), &probe.answers[0]).unwrap().said
            });
            was.iter().zip(&is).filter(|(a, b)| a == b).count() as f64 / is.len() as f64
        });
        is(&found.after.compat, "locality:vanilla", same.sum::<f64>() / 2.0);
        assert!(!found.before.compat.contains_key("locality:vanilla"), "nothing was to stay before the edit");
        let edited = &found.probes[0].scores.compat;
        is(edited, "ppl", found.after.compat["edit:ppl"]);
        is(edited, "vanilla-f1", found.after.compat["edit:vanilla-f1"]);
        let change = (found.before.compat["edit:ppl"] / found.after.compat["edit:ppl"]).ln();
        assert!(change.abs() > 0.01, "the change changes nothing");
    }
    // Nothing of it is measured where nobody asks.
    let bare = scored(&model, plain, &[]);
    assert!(bare.after.compat.keys().all(|name| !name.contains(':')), "{:?}", bare.after.compat);
}

#[test]
fn what_the_field_counts_of_zsre_and_mquake_is_told_beside() {
    let model = model();
    let probe = |kind: &str, prompt: &str, answer: &str| Probe {
        kind: kind.into(),
        prompt: prompt.into(),
        answers: vec![answer.into()],
    };
    let (near, hop) = ("Lily had a big", "One day, Tom went to the");
    let answer = |prompt: &str| {
        let bare = Fact { locality: vec![probe("loc", prompt, "x")], ..fact() };
        let record = Prepared::of_facts(&model, 0, &[bare], &[]).unwrap();
        let measures = Measures { strict: true, ..Measures::COMPAT };
        let before = unedited(&model, &[&record], &measures, 0).unwrap();
        let by = Edited::unedited(&model);
        let found = score(&[(&record, by)], &[&before[0]], &measures, true, 0).unwrap().remove(0);
        found.probes.iter().find(|p| p.prompt == prompt).unwrap().after.clone()
    };
    // What the model says itself is right, anything else is wrong.
    let said = answer(hop);
    let said = said.trim().split_terminator(['.', '!', '?', '\n']).next().unwrap();
    let mut fact = fact();
    fact.locality = vec![probe("loc", near, "ball"), probe("Relation_Specificity", near, "zebra")];
    fact.portability = vec![probe("multi-hop", hop, said), probe("multi-hop", near, "zebra")];
    let record = Prepared::of_facts(&model, 0, &[fact], &[]).unwrap();
    let measures = Measures { strict: true, ..Measures::COMPAT };
    let before = unedited(&model, &[&record], &measures, 0).unwrap();
    let by = Edited::unedited(&model);
    let found = score(&[(&record, by)], &[&before[0]], &measures, true, 0).unwrap().remove(0);
    is(&found.after.strict, "portability/multi-hop", 0.5);
    is(&found.after.strict, "portability/multi-hop:any", 1.0);
    // Of the probe that MEND's form has alone; agreement with itself is another thing.
    let text = Forced::new(&model, near, "ball").unwrap();
    let predicted = predict(&model, &[Asked { text: &text, overlays: &[] }]).unwrap();
    for side in [&found.before, &found.after] {
        is(&side.compat, "locality:correct", text.accuracy(&predicted[0]).unwrap());
    }
    is(&found.after.compat, "locality", 1.0);
}

#[test]
fn blanks_of_a_target_are_the_peers_to_score() {
    let model = model();
    let read = |target: &str| {
        let record = json!({"prompt": "Tom went to the", "subject": "Tom", "target_new": target});
        Fact::from_record(&record).unwrap()
    };
    let [plain, blank] = [read("store"), read(" store")];
    assert_eq!((blank.target.as_str(), blank.written_target.as_deref()), ("store", Some(" store")));
    assert_eq!(plain.written_target, None);
    let texts = |fact: &Fact| {
        let record = Prepared::of_facts(&model, 0, std::slice::from_ref(fact), &[]).unwrap();
        let measures = Measures { strict: true, ..Measures::COMPAT };
        let before = unedited(&model, &[&record], &measures, 0).unwrap();
        let by = Edited::unedited(&model);
        let found = score(&[(&record, by)], &[&before[0]], &measures, true, 0).unwrap().remove(0);
        found.probes[0].clone()
    };
    // One blank is the peer's own, the other the data set's.
    let two = Forced::new(&model, "Tom went to the", " store").unwrap();
    assert_eq!(two.ids, model.tokenizer().unwrap().encode("Tom went to the  store").unwrap().ids);
    let (one, two_blanks) = (texts(&plain), texts(&blank));
    let [_, said] = two_blanks.forced.unwrap();
    let predicted = predict(&model, &[Asked { text: &two, overlays: &[] }]).unwrap().remove(0);
    assert_eq!(said, model.tokenizer().unwrap().decode_continuation(&predicted, Specials::Keep));
    assert_ne!(one.forced.unwrap()[1], said, "one blank or two is all the same");
    // A free answer is right or wrong as before.
    assert_eq!(one.scores.strict, two_blanks.scores.strict);
}
