//! Prefixes that a model writes.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

use mutandis_edit::Context;
use mutandis_edit::primitives::contexts::{ContextSpec, sampled};
use mutandis_engine::{Model, Options};

fn model(threads: usize) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/stories260K.gguf");
    Model::load(&path, Options { threads: Some(threads), ..Options::default() }).unwrap()
}

fn check(templates: &[String], count: usize) {
    assert_eq!(templates.len(), count);
    assert_eq!(templates[0], "{}");
    for template in &templates[1..] {
        assert!(template.ends_with(". {}"), "{template}");
        assert_eq!(template.matches(['{', '}']).count(), 2, "{template}");
        assert!(!template.contains(['\n', '\r']), "{template}");
    }
}

#[test]
fn templates_are_romes_and_depend_on_the_seed_alone() {
    let spec = ContextSpec::default();
    let one = sampled(&model(1), &spec, &Context::default()).unwrap();
    check(&one, 21);
    assert_eq!(one, sampled(&model(4), &spec, &Context::default()).unwrap());
    let other = ContextSpec { seed: 1, ..spec.clone() };
    assert_ne!(one, sampled(&model(1), &other, &Context::default()).unwrap());
    // A line does not depend on those written beside it.
    let fewer = ContextSpec { lengths: vec![(5, 3)], ..spec };
    assert_eq!(one[..4], sampled(&model(2), &fewer, &Context::default()).unwrap());
}

#[test]
fn given_words_begin_the_prefixes_in_turn() {
    let starts = Some(vec!["The".to_owned(), "Lily".to_owned()]);
    let spec = ContextSpec { lengths: vec![(8, 3), (12, 1)], starts, ..ContextSpec::default() };
    let found = sampled(&model(2), &spec, &Context::default()).unwrap();
    check(&found, 5);
    for (template, start) in found[1..].iter().zip(["The", "Lily", "The", "The"]) {
        assert!(template.starts_with(start), "{template}");
    }
}

#[test]
fn kept_templates_are_used_and_damaged_ones_are_not() {
    let cache = tempfile::tempdir().unwrap();
    let cx = Context { cache: Some(cache.path().to_owned()), ..Context::default() };
    let spec = ContextSpec { lengths: vec![(5, 2)], ..ContextSpec::default() };
    let model = model(2);
    let found = sampled(&model, &spec, &cx).unwrap();
    let path = std::fs::read_dir(cache.path().join("contexts")).unwrap().next().unwrap().unwrap().path();
    let good = std::fs::read_to_string(&path).unwrap();
    let marked = good.replace(&found[1], "Kept. {}");
    std::fs::write(&path, &marked).unwrap();
    assert_eq!(sampled(&model, &spec, &cx).unwrap()[1], "Kept. {}");
    for bad in [good.replace("{}", "{} {}"), good[..good.len() - 5].to_owned(), String::new(), "[]".into()] {
        std::fs::write(&path, bad).unwrap();
        assert_eq!(sampled(&model, &spec, &cx).unwrap(), found);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), good);
    }
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let model = model(1);
    let refused = [
        ContextSpec { top_k: 0, ..ContextSpec::default() },
        ContextSpec { lengths: vec![(100_000, 1)], ..ContextSpec::default() },
    ];
    for spec in refused {
        assert!(sampled(&model, &spec, &Context::default()).is_err(), "{spec:?}");
    }
    let none = ContextSpec { lengths: vec![], ..ContextSpec::default() };
    assert_eq!(sampled(&model, &none, &Context::default()).unwrap(), ["{}"]);
}
