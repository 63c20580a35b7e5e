//! Ledgers: undo in the middle, merges, and journals that were cut off, damaged or tampered with.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::HashSet;
use std::path::Path;

use mutandis_edit::ledger::{Action, Plan, Writer};
use mutandis_edit::patch::{Laid, WeightChange, chain};
use mutandis_edit::{Context, Entry, Error, Fact, Job, Ledger, METHODS, Patch, find};
use mutandis_engine::architecture::Role;
use mutandis_engine::{Model, Options, Overlay, WeightId};
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use serde_json::json;

use common::{facts, fixture, logits, model, quick};

const NAMES: [&str; 9] = ["Lily", "Tom", "Max", "Sam", "Mia", "Ben", "Sue", "Jack", "Anna"];
const TARGETS: [&str; 6] = ["house", "park", "sea", "cat", "zoo", "river"];

fn nobody() -> impl FnMut() -> Result<(), Error> {
    || panic!("another process has the lock")
}

fn open(folder: &Path, patch: &Patch) -> Writer {
    Writer::open(folder, Some(&patch.base), &mut nobody()).unwrap()
}

/// A change of rank one with numbers of its own, as quick to make as it is to read.
fn tiny(model: &Model, i: u64) -> Patch {
    let mut rng = ChaCha8Rng::seed_from_u64(i);
    let id = WeightId { layer: (i % 5) as usize, role: Role::MlpOut };
    let [out, inn] = model.linear_shape(id.role, id.layer).unwrap();
    let mut numbers = |n| (0..n).map(|_| rng.next_u32() as f32 / u32::MAX as f32 - 0.5).collect::<Vec<_>>();
    let name = NAMES[(i % 9) as usize];
    let fact = Fact::new(format!("On day {i}, {name} went to the"), name, TARGETS[(i % 6) as usize]).unwrap();
    let entry = &METHODS[0];
    let mut patch = Patch::new(model, entry.id, entry.family, json!({}), &[fact], i).unwrap();
    let change = WeightChange::LowRank { rank: 1, left: numbers(out), right: numbers(inn) };
    patch.push(model, id, change.scaled(0.05)).unwrap();
    patch
}

fn ids(ledger: &Ledger) -> Vec<String> {
    ledger.stack().iter().map(|r| r.id.clone()).collect()
}

fn load(ledger: &Ledger) -> Vec<Patch> {
    ledger.stack().iter().map(|r| ledger.load(r).unwrap()).collect()
}

/// Logits under a stack, and the text that its prompts put before.
fn answers(model: &Model, patches: &[Patch]) -> (Vec<f32>, String) {
    let mut laid = Laid::default();
    laid.lay(model, patches).unwrap();
    (logits(model, &laid.overlays()), patches.iter().filter_map(|p| p.prefix.clone()).collect())
}

/// An edit as a user asks for it.
#[derive(Clone)]
struct Edit {
    method: &'static Entry,
    facts: Vec<Fact>,
    seed: u64,
    /// Whether it is made on top of the stack, or on the base alone.
    on_top: bool,
}

impl Edit {
    fn new(i: usize, rng: &mut ChaCha8Rng) -> Self {
        let mut any = |n: usize| rng.next_u32() as usize % n;
        let (name, target) = (NAMES[any(9)], TARGETS[any(6)]);
        let mut facts = vec![Fact::new(format!("One day, {name} went to the"), name, target).unwrap()];
        if any(4) == 0 {
            facts.push(Fact::new(format!("On day {i}, {name} had a"), name, TARGETS[any(6)]).unwrap());
        }
        Self { method: &METHODS[i % METHODS.len()], facts, seed: any(2) as u64, on_top: any(5) == 0 }
    }

    /// Makes it, with nothing of the ledger's.
    fn make(&self, model: &Model, stack: &[Patch], cx: &Context<'_>) -> Patch {
        let stack = if self.on_top { stack } else { &[] };
        let mut laid = Laid::default();
        laid.lay(model, stack).unwrap();
        let overlays: Vec<&Overlay> = laid.overlays();
        let job = Job { model, stack: &overlays, prior: stack, facts: &self.facts, seed: self.seed };
        let under = stack
            .iter()
            .fold(None, |under: Option<String>, patch| Some(chain(under.as_deref(), &patch.id().unwrap())));
        Patch { under, ..self.method.edit(&quick(self.method), &job, cx).unwrap() }
    }
}

/// The stack of some edits, made one after another; one that is there already is left out.
fn made(edits: &[&Edit], model: &Model, cx: &Context<'_>) -> Vec<Patch> {
    let mut stack: Vec<Patch> = vec![];
    let mut seen = HashSet::new();
    for edit in edits {
        let patch = edit.make(model, &stack, cx);
        if seen.insert(patch.id().unwrap()) {
            stack.push(patch);
        }
    }
    stack
}

/// A stack of mixed patches out of whose middle some are taken, group by group, in any order.
fn check_undo(seed: u64, size: usize, gone: usize) {
    let (model, folder) = (model(2), tempfile::tempdir().unwrap());
    let cx = Context { cache: Some(folder.path().join("cache")), ..Context::default() };
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut edits: Vec<Edit> = vec![];
    let mut stack: Vec<Patch> = vec![];
    let mut seen = HashSet::new();
    for i in 0.. {
        if stack.len() == size {
            break;
        }
        let edit = Edit::new(i, &mut rng);
        let patch = edit.make(&model, &stack, &cx);
        if seen.insert(patch.id().unwrap()) {
            edits.push(edit);
            stack.push(patch);
        }
    }
    let methods: HashSet<&str> = edits.iter().map(|e| e.method.id).collect();
    assert!(size < METHODS.len() || methods.len() == METHODS.len(), "not all methods: {methods:?}");

    let mut writer = open(&folder.path().join("ledger"), &stack[0]);
    writer.add(&stack, false).unwrap();
    // By edit, whatever the patch is by now.
    let first: Vec<String> = ids(writer.ledger());
    let mut numbers: Vec<usize> = (0..size).collect();
    for i in 0..gone {
        let j = i + rng.next_u32() as usize % (size - i);
        numbers.swap(i, j);
    }
    let mut left: Vec<usize> = numbers[gone..].to_vec();
    left.sort_unstable();
    let (mut at, mut anew) = (0, 0);
    while at < gone {
        let group = (1 + rng.next_u32() as usize % 8).min(gone - at);
        let ledger = writer.ledger();
        let out = numbers[at..at + group]
            .iter()
            .filter_map(|n| ledger.stack().iter().find(|r| r.edit() == first[*n]).map(|r| r.id.clone()));
        let plan = Plan::revert(ledger, &out.collect()).unwrap();
        anew += writer.carry_out(&plan, Some((&model, &cx))).unwrap().anew.len();
        at += group;
    }
    let kept: Vec<&Edit> = left.iter().map(|n| &edits[*n]).collect();
    let expected = made(&kept, &model, &cx);
    let expected_ids: Vec<String> = expected.iter().map(|p| p.id().unwrap()).collect();
    let ledger = Ledger::open(writer.ledger().folder()).unwrap();
    assert_eq!(ids(&ledger), expected_ids, "seed {seed}");
    assert!(answers(&model, &load(&ledger)) == answers(&model, &expected), "seed {seed}: answers differ");
    assert!(anew > 0 || size < 20, "nothing stood on what was taken out");
}

#[test]
fn what_is_taken_out_of_a_hundred_mixed_patches_has_never_been() {
    check_undo(1, 100, 20);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_is_taken_out_of_a_stack_has_never_been(seed in 2u64..1_000_000, size in 3usize..16, share in 1usize..4) {
        check_undo(seed, size, (size * share / 4).max(1));
    }
}

#[test]
fn what_stands_on_others_says_so_and_needs_them() {
    let (model, folder) = (model(1), tempfile::tempdir().unwrap());
    let path = folder.path().join("ledger");
    let [a, b, c] = [0, 1, 2].map(|i| tiny(&model, i));
    let on = |under: &[&Patch], patch: &Patch| Patch {
        under: under.iter().fold(None, |u: Option<String>, p| Some(chain(u.as_deref(), &p.id().unwrap()))),
        ..patch.clone()
    };
    let mut writer = open(&path, &a);
    writer.add(std::slice::from_ref(&a), false).unwrap();
    // Twice is once, and what it was computed on has to be there.
    let error = writer.add(&[b.clone(), a.clone()], false).unwrap_err();
    assert!(error.to_string().contains("is in the stack already"), "{error}");
    let error = writer.add(&[on(&[&b], &c)], false).unwrap_err();
    assert!(error.to_string().contains("on top of other patches"), "{error}");
    assert!(error.hint().unwrap().contains("--independent"));
    assert_eq!(writer.ledger().stack().len(), 1, "a refused patch left a trace");
    // Two at once, the second on the first.
    let (b, c) = (on(&[&a], &b), on(&[&a, &on(&[&a], &b)], &c));
    writer.add(&[b.clone(), c], false).unwrap();
    // Taken as it is, it depends on nothing.
    let d = on(&[&b], &tiny(&model, 3));
    writer.add(std::slice::from_ref(&d), true).unwrap();
    assert!(writer.ledger().stack()[3].independent);
    let plan = Plan::revert(writer.ledger(), &[a.id().unwrap()].into()).unwrap();
    assert_eq!(plan.anew().count(), 2);
    // Without the model nothing happens.
    let before = std::fs::read(path.join("journal.jsonl")).unwrap();
    assert!(writer.carry_out(&plan, None).is_err());
    assert_eq!(std::fs::read(path.join("journal.jsonl")).unwrap(), before);
    let plan = Plan::revert(writer.ledger(), &[d.id().unwrap()].into()).unwrap();
    assert_eq!(plan.anew().count(), 0);
    writer.carry_out(&plan, None).unwrap();
    assert_eq!(writer.ledger().stack().len(), 3);
    assert_eq!(writer.ledger().history().last().unwrap().action, Action::Revert);
    // What was taken out can come back: its file is still there.
    let file = writer.ledger().place(&d.id().unwrap());
    writer.add(&[Patch::load(&file).unwrap()], true).unwrap();
    assert_eq!(writer.ledger().stack().len(), 4);
}

#[test]
fn an_edit_that_fails_or_is_interrupted_while_computed_anew_changes_nothing() {
    let (model, folder) = (model(1), tempfile::tempdir().unwrap());
    let cx = Context::default();
    let ice = Edit { method: find("ice").unwrap(), facts: facts(), seed: 0, on_top: true };
    let first = ice.make(&model, &[], &cx);
    let mend = METHODS.iter().find(|m| m.trainer_defaults().is_some()).unwrap();
    let second = Edit { method: mend, facts: facts(), seed: 0, on_top: true }.make(
        &model,
        std::slice::from_ref(&first),
        &cx,
    );
    let mut writer = open(&folder.path().join("ledger"), &first);
    writer.add(&[first.clone(), second.clone()], false).unwrap();
    let tree = |writer: &Writer| std::fs::read(writer.ledger().folder().join("journal.jsonl")).unwrap();
    let before = tree(&writer);
    let plan = Plan::revert(writer.ledger(), &[first.id().unwrap()].into()).unwrap();
    let stopped = Context::default();
    stopped.interrupt.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(matches!(writer.carry_out(&plan, Some((&model, &stopped))), Err(Error::Interrupted)));
    assert_eq!(tree(&writer), before);
    // Its editor is another by now.
    let editor = second.config["editor"].as_str().unwrap().to_owned();
    let other = Path::new(&editor).with_extension("kept");
    std::fs::rename(&editor, &other).unwrap();
    let error = writer.carry_out(&plan, Some((&model, &cx))).unwrap_err();
    std::fs::rename(&other, &editor).unwrap();
    assert!(error.to_string().contains(&editor), "{error}");
    assert_eq!(tree(&writer), before);
    writer.carry_out(&plan, Some((&model, &cx))).unwrap();
    assert_eq!(writer.ledger().stack().len(), 1);
}

#[test]
fn a_journal_cut_off_anywhere_in_its_last_line_is_what_it_was_before() {
    let (model, folder) = (model(1), tempfile::tempdir().unwrap());
    let path = folder.path().join("ledger");
    let patches: Vec<Patch> = (0..3).map(|i| tiny(&model, i)).collect();
    let mut writer = open(&path, &patches[0]);
    writer.add(&patches[..1], false).unwrap();
    writer.add(&patches[1..2], false).unwrap();
    drop(writer);
    let journal = path.join("journal.jsonl");
    let whole = std::fs::read(&journal).unwrap();
    let begin = whole[..whole.len() - 1].iter().rposition(|b| *b == b'\n').unwrap() + 1;
    for cut in begin..whole.len() {
        std::fs::write(&journal, &whole[..cut]).unwrap();
        assert_eq!(Ledger::open(&path).unwrap().stack().len(), 1, "cut at {cut}");
    }
    std::fs::write(&journal, &whole[..whole.len() - 9]).unwrap();
    let mut writer = open(&path, &patches[0]);
    assert_eq!(writer.dropped as usize, whole.len() - 9 - begin);
    // The patch that it had written stays, as the journal may have been cut off, and all goes on.
    assert!(patches[..2].iter().all(|patch| writer.ledger().place(&patch.id().unwrap()).exists()));
    writer.add(&patches[1..], false).unwrap();
    assert_eq!(load(&Ledger::open(&path).unwrap()).len(), 3);
}

#[test]
fn damage_is_named_by_its_line_and_loses_nothing() {
    let (model, folder) = (model(1), tempfile::tempdir().unwrap());
    let path = folder.path().join("ledger");
    let patches: Vec<Patch> = (0..3).map(|i| tiny(&model, i)).collect();
    let mut writer = open(&path, &patches[0]);
    patches.iter().for_each(|p| drop(writer.add(std::slice::from_ref(p), false).unwrap()));
    drop(writer);
    let journal = path.join("journal.jsonl");
    let whole = std::fs::read(&journal).unwrap();
    let mut line = 1;
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        // Not into a line's end, which would make two lines one, or one two.
        bytes[at] ^= if whole[at] == b'\n' { 0 } else { 0x01 };
        if whole[at] != b'\n' && bytes[at] != b'\n' {
            std::fs::write(&journal, &bytes).unwrap();
            let error = Ledger::open(&path).expect_err(&format!("byte {at}"));
            let told = error.to_string();
            // A changed hash does not fit the next line either; the first of both is told.
            assert!(told.contains(&format!("line {line} of the journal")) || line == 1, "byte {at}: {told}");
            assert!(error.hint().is_some(), "byte {at}: {told}");
            let refused = Writer::open(&path, Some(&patches[0].base), &mut nobody());
            assert!(refused.is_err() && std::fs::read(&journal).unwrap() == bytes, "byte {at}");
        }
        line += usize::from(whole[at] == b'\n');
    }
    // Lines in another order, or taken out, or of another ledger.
    let lines: Vec<&str> = std::str::from_utf8(&whole).unwrap().lines().collect();
    for order in [&[0, 2, 1, 3][..], &[0, 1, 3], &[0, 1, 2, 2], &[1, 2, 3]] {
        let text: String = order.iter().map(|i| format!("{}\n", lines[*i])).collect();
        std::fs::write(&journal, text).unwrap();
        assert!(Ledger::open(&path).is_err(), "{order:?}");
    }
    std::fs::write(&journal, &whole).unwrap();
    assert_eq!(load(&Ledger::open(&path).unwrap()).len(), 3);
}

#[test]
fn what_does_not_belong_is_refused_with_a_way_out() {
    let (model, folder) = (model(1), tempfile::tempdir().unwrap());
    let path = folder.path().join("ledger");
    let patch = tiny(&model, 0);
    let mut writer = open(&path, &patch);
    writer.add(std::slice::from_ref(&patch), false).unwrap();
    drop(writer);
    let fails = |error: Error, parts: &[&str]| {
        let told = format!("{error} / {}", error.hint().unwrap());
        parts.iter().for_each(|part| assert!(told.contains(part), "no {part:?} in {told}"));
    };
    // Another base, of a patch and of a model.
    let other = Model::load(&fixture("llama.gguf"), Options::default()).unwrap();
    let foreign = tiny(&other, 0);
    fails(
        open(&path, &patch).add(std::slice::from_ref(&foreign), false).unwrap_err(),
        &["another base", "begin another"],
    );
    let ledger = Ledger::open(&path).unwrap();
    fails(ledger.check_model(&other).unwrap_err(), &["another base", "--model"]);
    let elsewhere = folder.path().join("elsewhere");
    open(&elsewhere, &foreign).add(&[foreign], false).unwrap();
    fails(Plan::merge(&ledger, &Ledger::open(&elsewhere).unwrap()).unwrap_err(), &["another base"]);
    // A patch that was changed, even with its digest made right, and one that is gone.
    let record = &ledger.stack()[0];
    let file = ledger.place(&record.id);
    let bytes = std::fs::read(&file).unwrap();
    Patch { seed: 99, ..patch.clone() }.save(&file).unwrap();
    fails(ledger.load(record).unwrap_err(), &["holds another patch", "patch revert"]);
    std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    fails(ledger.load(record).unwrap_err(), &["is not a valid patch", "restore it", "patch revert"]);
    Patch { format: 2, ..patch.clone() }.save(&file).unwrap();
    fails(ledger.load(record).unwrap_err(), &["has format 2", "reads format 1", "newer mutandis"]);
    std::fs::remove_file(&file).unwrap();
    fails(ledger.load(record).unwrap_err(), &["is gone", "patch revert"]);
    std::fs::write(&file, bytes).unwrap();
    // A newer version, whatever else is in it.
    let journal = path.join("journal.jsonl");
    let text = std::fs::read_to_string(&journal).unwrap();
    std::fs::write(&journal, text.replace(r#""mutandis-ledger":1"#, r#""mutandis-ledger":2"#)).unwrap();
    fails(Ledger::open(&path).unwrap_err(), &["version 2", "reads version 1", "newer mutandis"]);
    // No ledger at all.
    fails(Ledger::open(folder.path()).unwrap_err(), &["is no ledger", "patch add"]);
    fails(
        Writer::open(folder.path(), Some(&patch.base), &mut nobody()).unwrap_err(),
        &["is not empty", "a folder that is empty"],
    );
    fails(
        Writer::open(&folder.path().join("gone"), None, &mut nobody()).unwrap_err(),
        &["is no ledger", "patch add"],
    );
    assert!(!folder.path().join("gone").exists());
}

#[test]
fn a_journal_that_was_cut_off_costs_no_patch() {
    let (model, folder) = (model(1), tempfile::tempdir().unwrap());
    let path = folder.path().join("ledger");
    let patches: Vec<Patch> = (0..4).map(|i| tiny(&model, i)).collect();
    let mut writer = open(&path, &patches[0]);
    patches[..3].iter().for_each(|p| drop(writer.add(std::slice::from_ref(p), false).unwrap()));
    let place = |patch: &Patch| Ledger::open(&path).unwrap().place(&patch.id().unwrap());
    let places: Vec<_> = patches.iter().map(place).collect();
    drop(writer);
    // Of the first operation all is left, of the second a part; and what a process that was killed
    // leaves: half a patch, and a temporary file.
    let whole = std::fs::read_to_string(path.join("journal.jsonl")).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    std::fs::write(path.join("journal.jsonl"), format!("{}\n{}\n{}", lines[0], lines[1], &lines[2][..9]))
        .unwrap();
    let half = places[0].with_file_name(format!("{}.patch.safetensors", "0".repeat(64)));
    std::fs::write(&half, &std::fs::read(&places[0]).unwrap()[..99]).unwrap();
    let temporary = places[0].with_file_name(".mutandis-abc");
    std::fs::write(&temporary, "x").unwrap();
    let other = path.join("patches/notes.txt");
    std::fs::write(&other, "mine").unwrap();

    let mut writer = open(&path, &patches[3]);
    writer.add(&patches[3..], false).unwrap();
    assert!(!half.exists() && !temporary.exists() && other.exists());
    assert!(places.iter().all(|place| Patch::load(place).is_ok()), "a good patch was removed");
    let again: Vec<Patch> = places[1..3].iter().map(|place| Patch::load(place).unwrap()).collect();
    writer.add(&again, false).unwrap();
    assert_eq!(load(&Ledger::open(&path).unwrap()).len(), 4);
}

#[test]
fn a_ledger_that_did_not_begin_leaves_nothing() {
    let (model, folder) = (model(1), tempfile::tempdir().unwrap());
    let [a, b] = [0, 1].map(|i| tiny(&model, i));
    let on_other = Patch { under: Some(chain(None, &b.id().unwrap())), ..a.clone() };
    let (new, empty) = (folder.path().join("new"), folder.path().join("empty"));
    std::fs::create_dir(&empty).unwrap();
    for path in [&new, &empty] {
        assert!(open(path, &on_other).add(std::slice::from_ref(&on_other), false).is_err());
        assert!(!Ledger::is_at(path));
    }
    assert!(!new.exists() && std::fs::read_dir(&empty).unwrap().next().is_none());
    // Who waits meanwhile begins it.
    let first = open(&new, &a);
    let (waits, waiting) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = Writer::open(&new, Some(&b.base), &mut move || {
                let _ = waits.send(());
                Ok(())
            })
            .unwrap();
            writer.add(std::slice::from_ref(&b), false).unwrap();
        });
        waiting.recv().unwrap();
        drop(first);
    });
    assert_eq!(ids(&Ledger::open(&new).unwrap()), [b.id().unwrap()]);
    assert!(new.join("lock").exists());
    // A process that was killed in the first operation leaves the files of its patches.
    std::fs::remove_file(new.join("journal.jsonl")).unwrap();
    let refused = Ledger::check_place(&new).unwrap_err().to_string();
    assert!(refused.contains("is not empty"), "{refused}");
    std::fs::write(new.join("lock"), "writing\n").unwrap();
    open(&new, &a).add(std::slice::from_ref(&on_other), false).unwrap_err();
    open(&new, &a).add(&[a, b], false).unwrap();
    assert_eq!(load(&Ledger::open(&new).unwrap()).len(), 2);
}

#[test]
fn a_patch_is_found_by_what_its_fact_says() {
    let (model, folder) = (model(1), tempfile::tempdir().unwrap());
    let patch = tiny(&model, 0);
    let mut writer = open(&folder.path().join("ledger"), &patch);
    writer.add(std::slice::from_ref(&patch), false).unwrap();
    assert_eq!(writer.ledger().find_fact(" day 0, LILY").unwrap().id, patch.id().unwrap());
    for blank in ["", "  \n"] {
        let error = writer.ledger().find_fact(blank).unwrap_err();
        assert!(error.to_string().contains("is blank"), "{error}");
        assert!(error.hint().unwrap().contains("patch list"));
    }
}

/// A copy of a ledger, as somebody else has it.
fn cloned(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            cloned(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn two_ledgers_merge_as_if_both_edits_had_been_made_in_one() {
    let (model, folder) = (model(2), tempfile::tempdir().unwrap());
    let cx = Context { cache: Some(folder.path().join("cache")), ..Context::default() };
    let (ours, theirs) = (folder.path().join("ours"), folder.path().join("theirs"));
    let edit = |method: &str, i: usize, on_top: bool| {
        let prompt = format!("One day, {} went to the", NAMES[i]);
        let facts = vec![Fact::new(prompt, NAMES[i], TARGETS[i % 6]).unwrap()];
        Edit { method: find(method).unwrap(), facts, seed: 0, on_top }
    };
    let (a, b, c) = (edit("rome", 0, false), edit("memit", 1, true), edit("ft-m", 2, false));
    let (ours_1, theirs_1, theirs_2) = (edit("rome", 3, true), edit("ft-m", 4, false), edit("rome", 5, true));
    let add = |folder: &Path, edit: &Edit| {
        let stack = if Ledger::is_at(folder) { load(&Ledger::open(folder).unwrap()) } else { vec![] };
        let patch = edit.make(&model, &stack, &cx);
        open(folder, &patch).add(&[patch], false).unwrap();
    };
    let revert = |folder: &Path, number: usize| {
        let mut writer = Writer::open(folder, None, &mut nobody()).unwrap();
        let id = writer.ledger().stack()[number].id.clone();
        let plan = Plan::revert(writer.ledger(), &[id].into()).unwrap();
        writer.carry_out(&plan, Some((&model, &cx))).unwrap()
    };
    let merge = |into: &Path, from: &Path| {
        let mut writer = Writer::open(into, None, &mut nobody()).unwrap();
        let plan = Plan::merge(writer.ledger(), &Ledger::open(from).unwrap()).unwrap();
        let is_empty = plan.is_empty();
        (writer.carry_out(&plan, Some((&model, &cx))).unwrap(), is_empty)
    };
    let stack = |folder: &Path| ids(&Ledger::open(folder).unwrap());
    let expected = |edits: &[&Edit]| -> Vec<String> {
        made(edits, &model, &cx).iter().map(|p| p.id().unwrap()).collect()
    };
    [&a, &b, &c].into_iter().for_each(|edit| add(&ours, edit));
    cloned(&ours, &theirs);
    add(&ours, &ours_1);
    // They take the first out, on which the second stood, and add two.
    assert_eq!(revert(&theirs, 0).anew.len(), 1);
    add(&theirs, &theirs_1);
    add(&theirs, &theirs_2);
    let (done, is_empty) = merge(&ours, &theirs);
    assert!(!is_empty);
    // The second, our own, which stood on all, and theirs that stood on another stack.
    assert_eq!((done.out.len(), done.anew.len(), done.added.len()), (1, 3, 1));
    assert_eq!(stack(&ours), expected(&[&b, &c, &ours_1, &theirs_1, &theirs_2]));
    // Again brings nothing, and back brings ours alone.
    assert!(merge(&ours, &theirs).1);
    let (done, _) = merge(&theirs, &ours);
    assert_eq!((done.out.len(), done.added.len() + done.anew.len()), (0, 1));
    assert_eq!(stack(&theirs).len(), 5);
    // What is taken out here stays out, although it is still there.
    revert(&ours, 3);
    assert!(merge(&ours, &theirs).1, "what was taken out came back");
    // And what they take out of what they had from us goes here too.
    let gone =
        Ledger::open(&theirs).unwrap().stack().iter().position(|r| r.prompt.contains(NAMES[3])).unwrap();
    revert(&theirs, gone);
    assert_eq!(merge(&ours, &theirs).0.out.len(), 1);
    assert_eq!(stack(&ours), expected(&[&b, &c, &theirs_2]));
    // The same edit by both is one.
    let both = edit("ft-m", 6, false);
    add(&ours, &both);
    add(&theirs, &both);
    merge(&ours, &theirs);
    assert_eq!(stack(&ours), expected(&[&b, &c, &theirs_2, &both]));
}

#[test]
fn a_stack_is_laid_the_same_however_it_came_about() {
    let model = model(1);
    let patches: Vec<Patch> = (0..40).map(|i| tiny(&model, i)).collect();
    for count in [1, 15, 16, 17, 40] {
        let (mut at_once, mut step_by_step) = (Laid::default(), Laid::default());
        at_once.lay(&model, &patches[..count]).unwrap();
        (1..=count).for_each(|n| step_by_step.lay(&model, &patches[..n]).unwrap());
        let (a, b) = (logits(&model, &at_once.overlays()), logits(&model, &step_by_step.overlays()));
        assert!(a == b, "{count} patches");
    }
}
