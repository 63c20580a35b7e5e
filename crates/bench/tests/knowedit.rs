//! KnowEdit's two special data sets and in-context edits, against what the definitions give when
//! they are worked out slowly, one text at a time, from all logits.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

use std::path::{Path, PathBuf};

use mutandis_bench::compat::in_context::{self, Branch};
use mutandis_bench::compat::{
    Asked, Probes, predict, sanitation as compat_sanitation, sentiment as compat_sentiment,
};
use mutandis_bench::data::{Record, Set, Task};
use mutandis_bench::edited::Edited;
use mutandis_bench::question::questions;
use mutandis_bench::results::Role as Asks;
use mutandis_bench::sanitation::Case as Forgotten;
use mutandis_bench::sentiment::{Case, Likelihoods, Opinion};
use mutandis_bench::strict::{erasure, sentiment as strict_sentiment};
use mutandis_edit::{Fact, Probe};
use mutandis_engine::{
    Delta, LogitRows, Model, Options, Overlay, Pass, Role, Sequence, WeightId, next_token_distribution,
};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

fn folder(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable)
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..").join(default), PathBuf::from)
}

fn stories(threads: usize) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/stories260K.gguf");
    Model::load(&path, Options { threads: Some(threads), ..Options::default() }).unwrap()
}

/// A model whose tokenizer puts nothing before a text; nothing where it is not here.
fn smollm2() -> Option<Model> {
    let path = folder("MUTANDIS_TEST_MODELS", "models").join("SmolLM2-135M-Instruct.Q4_1.gguf");
    if !path.exists() {
        eprintln!("skipped: `{}` is absent", path.display());
        return None;
    }
    Some(Model::load(&path, Options::default()).unwrap())
}

/// A change that moves answers without breaking the model.
fn change(model: &Model) -> Overlay {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let [out, inn] = model.linear_shape(Role::MlpOut, 2).unwrap();
    let mut draw = |n: usize| -> Vec<f32> {
        (0..n).map(|_| (rng.next_u32() >> 8) as f32 / (1 << 24) as f32 - 0.5).collect()
    };
    let (left, right) = (draw(2 * out), draw(2 * inn));
    let mut overlay = Overlay::default();
    overlay.push(WeightId { layer: 2, role: Role::MlpOut }, Delta::low_rank(2, &left, &right).unwrap());
    overlay
}

/// ln p of every token at every place of one text, `[tokens][v]`.
fn logs(model: &Model, ids: &[u32], overlays: &[&Overlay]) -> Vec<Vec<f64>> {
    let pass = Pass {
        sequences: vec![Sequence { tokens: ids, overlays, ..Default::default() }],
        logits: LogitRows::All,
        ..Default::default()
    };
    let logits = model.forward(pass).unwrap().logits;
    let row = |row: &[f32]| {
        let level = row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
        row.iter().map(|x| f64::from(*x) - level).collect()
    };
    logits.chunks_exact(model.architecture().vocabulary).map(row).collect()
}

fn best(row: &[f64]) -> u32 {
    let mut at = 0;
    row.iter().enumerate().for_each(|(i, x)| at = if *x > row[at] { i } else { at });
    at as u32
}

fn divergence(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum()
}

fn average(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn close(ours: f64, slow: f64) {
    assert!((ours - slow).abs() <= 2e-4 * slow.abs().max(1.0), "{ours} is not {slow}");
}

fn encode(model: &Model, text: &str) -> Vec<u32> {
    model.tokenizer().unwrap().encode(text).unwrap().ids
}

fn topics() -> Vec<Record> {
    let of = |number, topic: &str, positive: [&str; 3], negative: [&str; 2]| Record {
        number,
        task: Task::Sentiment {
            topic: topic.into(),
            positive: positive.map(Into::into).into(),
            negative: negative.map(Into::into).into(),
        },
    };
    let one = of(
        1,
        "the big red dog",
        [" It is a good dog.", " I like to play with him so much, he is very happy!", " Yes. "],
        [" He is bad and loud.", " I was sad."],
    );
    let two = of(
        2,
        "rain",
        [" It makes the flowers grow.", " Fun", " I love it."],
        [" I do not like to be wet in the park.", " No."],
    );
    vec![one, two]
}

/// EasyEdit's texts, masks and labels, row by row: tokens, first place scored, labels.
fn peers_rows(model: &Model, prefix: &str, opinions: &[Opinion]) -> (Vec<Vec<u32>>, Vec<usize>) {
    let tokenizer = model.tokenizer().unwrap();
    let end = tokenizer.eos_ids()[0];
    let (mut rows, mut separators) = (vec![], vec![]);
    for o in opinions {
        let mut ids = encode(model, &format!("{prefix}{} ", o.question));
        separators.push(ids.len());
        ids.push(end);
        ids.extend(tokenizer.encode_continuation(&format!(" {}", o.answer)).unwrap().ids);
        rows.push(ids);
    }
    let width = rows.iter().map(Vec::len).max().unwrap();
    rows.iter_mut().for_each(|r| r.resize(width, end));
    (rows, separators)
}

fn peers_likelihoods(
    model: &Model,
    overlays: &[&Overlay],
    opinions: &[Opinion],
    first: impl Fn(&[usize], usize) -> usize,
) -> Likelihoods {
    let end = model.tokenizer().unwrap().eos_ids()[0];
    let (rows, separators) = peers_rows(model, "", opinions);
    let mut found = [vec![], vec![]];
    for (i, (ids, o)) in rows.iter().zip(opinions).enumerate() {
        let logs = logs(model, ids, overlays);
        for place in first(&separators, i)..ids.len() {
            let label = if ids[place] == end { 0 } else { ids[place] };
            found[usize::from(o.wanted)].push(logs[place][label as usize]);
        }
    }
    Likelihoods { unwanted: average(&found[0]), wanted: average(&found[1]) }
}

#[test]
fn convsent_is_the_peers_with_every_defect() {
    check_convsent(&stories(2));
    // To the model of stories token 0 and the end of a text are alike; to this one they are not.
    if let Some(model) = smollm2() {
        check_convsent(&model);
    }
}

fn check_convsent(model: &Model) {
    let case = Case::new(&topics(), 0, 1).unwrap();
    let overlay = change(model);
    let (overlays, none) = ([&overlay], Edited::unedited(model));
    let edited = Edited { model, overlays: &overlays, prefix: "" };
    let last = |separators: &[usize], _: usize| *separators.iter().max().unwrap();
    let (before, after) =
        [&none, &edited].map(|e| compat_sentiment::likelihoods(e, &case).unwrap().unwrap()).into();
    for (ours, overlays) in [(before, &[][..]), (after, &overlays[..])] {
        let slow = peers_likelihoods(model, overlays, &case.own, last);
        close(ours.wanted, slow.wanted);
        close(ours.unwanted, slow.unwanted);
        // One mask for all rows: with each row's own, the numbers are others.
        let own = peers_likelihoods(model, overlays, &case.own, |separators, i| separators[i]);
        assert!((ours.wanted - own.wanted).abs() > 1e-3, "{ours:?} {own:?}");
    }
    let (rows, separators) = peers_rows(model, "", &case.other);
    let mut moved = vec![];
    for ids in &rows {
        let (p, q) = (logs(model, ids, &[]), logs(model, ids, &overlays));
        moved.extend((last(&separators, 0)..ids.len()).map(|i| divergence(&p[i], &q[i])));
    }
    let scores = compat_sentiment::scores(&edited, &case, Some(&before), false).unwrap();
    close(scores["locality:kl"], average(&moved));
    assert!(scores["locality:kl"] > 1e-3, "{scores:?}");
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let topic = (after.wanted - before.wanted).exp().min(1.0);
    close(scores["edit"], sigmoid(after.wanted - after.unwanted) * topic);
    // In place, the model is compared with itself: nothing moves, the topic is always kept.
    let scores = compat_sentiment::scores(&edited, &case, Some(&before), true).unwrap();
    close(scores["edit"], sigmoid(after.wanted - after.unwanted));
    assert_eq!(scores["locality:kl"], 0.0);
}

#[test]
fn a_question_without_room_for_its_answer_ends_the_peers_run() {
    let model = stories(1);
    let mut case = Case::new(&topics(), 0, 1).unwrap();
    let none = Edited::unedited(&model);
    // A long answer is cut at 128 tokens: what stands behind does not count.
    case.own[0].answer = " very big".repeat(100);
    let cut = compat_sentiment::likelihoods(&none, &case).unwrap().unwrap();
    case.own[0].answer.push_str(" and red");
    assert_eq!(compat_sentiment::likelihoods(&none, &case).unwrap().unwrap(), cut);
    case.own[1].question = "Why is it so very big?".repeat(20);
    assert_eq!(compat_sentiment::likelihoods(&none, &case).unwrap(), None);
    let scores = compat_sentiment::scores(&none, &case, Some(&cut), false).unwrap();
    assert_eq!(scores.keys().collect::<Vec<_>>(), ["locality:kl"]);
}

#[test]
fn text_before_the_prompt_is_scored_like_any_edit() {
    let model = stories(1);
    let case = Case::new(&topics(), 0, 1).unwrap();
    let shown = Edited { prefix: "The rain was very sad.\n", ..Edited::unedited(&model) };
    let before = compat_sentiment::likelihoods(&Edited::unedited(&model), &case).unwrap().unwrap();
    let scores = compat_sentiment::scores(&shown, &case, Some(&before), false).unwrap();
    let ((plain, at), (long, _)) =
        (peers_rows(&model, "", &case.other), peers_rows(&model, shown.prefix, &case.other));
    let mut moved = vec![];
    for (plain, long) in plain.iter().zip(&long) {
        let (p, q) = (logs(&model, plain, &[]), logs(&model, long, &[]));
        let scored = plain.len() - at.iter().max().unwrap();
        moved.extend((1..=scored).map(|i| divergence(&p[p.len() - i], &q[q.len() - i])));
    }
    close(scores["locality:kl"], average(&moved));
    let (strict, _) =
        strict_sentiment::scores(&shown, &case, &strict_sentiment::Before::new(&model, &case).unwrap())
            .unwrap();
    assert!(strict["locality:kl"] > 0.0, "{strict:?}");
}

#[test]
fn convsent_as_it_is_meant() {
    let model = stories(2);
    let case = Case::new(&topics(), 0, 1).unwrap();
    let overlay = change(&model);
    let overlays = [&overlay];
    let edited = Edited { model: &model, overlays: &overlays, prefix: "" };
    let slow = |overlays: &[&Overlay]| {
        let mut found = [vec![], vec![]];
        for o in &case.own {
            let ids = encode(&model, &format!("{} {}", o.question, o.answer.trim()));
            let start = encode(&model, &o.question).len();
            let logs = logs(&model, &ids, overlays);
            found[usize::from(o.wanted)].extend((start..ids.len()).map(|i| logs[i - 1][ids[i] as usize]));
        }
        Likelihoods { unwanted: average(&found[0]), wanted: average(&found[1]) }
    };
    let before = strict_sentiment::Before::new(&model, &case).unwrap();
    let (scores, probes) = strict_sentiment::scores(&edited, &case, &before).unwrap();
    close(before.likelihoods.unwrap().wanted, slow(&[]).wanted);
    close(scores["edit"], slow(&overlays).success(&slow(&[])));
    let mut moved = vec![];
    for o in &case.apart {
        let ids = encode(&model, &format!("{} {}", o.question, o.answer.trim()));
        let (p, q) = (logs(&model, &ids, &[]), logs(&model, &ids, &overlays));
        moved
            .extend((encode(&model, &o.question).len()..ids.len()).map(|i| divergence(&p[i - 1], &q[i - 1])));
    }
    close(scores["locality:kl"], average(&moved));
    // Free answers, raw; those about the other topic are compared.
    assert!(matches!(probes[0].role, Asks::Edit) && probes[0].prompt == case.question);
    assert_eq!(probes[0].answers.len(), case.own.iter().filter(|o| o.wanted).count());
    let same: Vec<f64> = probes[1..].iter().map(|p| p.scores.strict["same"]).collect();
    assert!(same.iter().zip(&probes[1..]).all(|(s, p)| (*s == 1.0) == (p.before == p.after)), "{probes:?}");
    assert_eq!(scores["locality"], average(&same));
    // A text's numbers are its own, to the last bit, whatever stands beside it.
    let mut more = case.clone();
    let answer = " I do not know what to say to this big day.".repeat(4);
    more.own.insert(0, Opinion { question: case.question.clone(), answer, wanted: false });
    let among = strict_sentiment::likelihoods(&edited, &more).unwrap().unwrap();
    assert_eq!(among.wanted, strict_sentiment::likelihoods(&edited, &case).unwrap().unwrap().wanted);
    // The unedited model has moved nothing.
    let (own, _) = strict_sentiment::scores(&Edited::unedited(&model), &case, &before).unwrap();
    assert_eq!((own["locality"], own["locality:kl"]), (1.0, 0.0));
    assert_eq!(before.scores().into_iter().collect::<Vec<_>>(), [("edit".to_owned(), own["edit"])]);
}

#[test]
fn scores_do_not_depend_on_threads() {
    let found: Vec<_> = [1, 3]
        .into_iter()
        .map(|threads| {
            let model = stories(threads);
            let case = Case::new(&topics(), 1, 2).unwrap();
            let overlay = change(&model);
            let edited = Edited { model: &model, overlays: &[&overlay], prefix: "" };
            let none = Edited::unedited(&model);
            let before = compat_sentiment::likelihoods(&none, &case).unwrap();
            let strict = strict_sentiment::Before::new(&model, &case).unwrap();
            (
                compat_sentiment::scores(&edited, &case, before.as_ref(), false).unwrap(),
                strict_sentiment::scores(&edited, &case, &strict).unwrap(),
            )
        })
        .collect();
    assert_eq!(found[0], found[1]);
}

#[test]
fn every_record_of_the_real_files_can_be_asked() {
    let data = folder("MUTANDIS_SHARED", "shared").join("data/knowedit");
    for file in ["convsent_blender_test.json", "convsent_blender_val.json"] {
        let path = data.join(file);
        if !path.exists() {
            eprintln!("skipped: `{}` is absent", path.display());
            continue;
        }
        let records = Set::read(&path).unwrap().records;
        for i in 0..records.len() {
            let case = Case::new(&records, i, 0).unwrap();
            case.fact.subject_range().unwrap();
            let texts = records[i].number % records.len();
            let Task::Sentiment { positive, negative, .. } = &records[texts].task else { unreachable!() };
            assert_eq!(case.other.len(), positive.len() + negative.len(), "{file} {i}");
        }
    }
    for (file, subjects) in
        [("sanitation_trivia_qa_train.json", true), ("sanitation_trivia_qa_test.json", false)]
    {
        let path = data.join(file);
        if !path.exists() {
            eprintln!("skipped: `{}` is absent", path.display());
            continue;
        }
        let set = Set::read(&path).unwrap();
        for record in &set.records {
            let case = Forgotten::new(&set, record, 0).unwrap();
            assert_eq!((case.retained.len(), case.perturbed.len()), (10, 5));
            let old = case.fact.ground_truth.as_ref().unwrap();
            assert!(!case.perturbed.iter().any(|a| a.eq_ignore_ascii_case(old)), "{case:?}");
            assert_eq!(case.fact.subject_range().is_ok(), subjects, "{}", case.fact.prompt);
        }
    }
}

fn dog() -> Fact {
    let mut fact = Fact::new("The name of the big dog is", "big dog", "Tim the red").unwrap();
    let probe = |kind: &str, prompt: &str, answer: &str| Probe {
        kind: kind.into(),
        prompt: prompt.into(),
        answers: vec![answer.into()],
    };
    fact.rephrases = vec!["The big dog was called".into()];
    fact.portability = vec![probe("r", "The friend of Tim is the", "dog"), probe("s", "He is", "red")];
    fact.locality =
        vec![probe("f", "Lily went to the", "park with her mom"), probe("f", "The sun was", "up")];
    fact
}

/// EasyEdit's predictions and labels of a text.
fn peers_icl(model: &Model, branch: Branch, before: &str, target: &str) -> (Vec<u32>, Vec<u32>) {
    let ids = encode(model, &format!("{before} {target}"));
    let mut labels = match branch {
        Branch::Llama => encode(model, target),
        Branch::Other => encode(model, &format!(" {target}\n")),
    };
    let count = labels.len();
    let logs = logs(model, &ids, &[]);
    let predicted = (ids.len() - count..ids.len() - 1).map(|i| best(&logs[i])).collect();
    match branch {
        Branch::Llama => drop(labels.remove(0)),
        Branch::Other => drop(labels.pop()),
    }
    (predicted, labels)
}

fn share(a: &[u32], b: &[u32]) -> Option<f64> {
    (!b.is_empty()).then(|| a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / b.len() as f64)
}

fn check_in_context(model: &Model, branch: Branch) -> in_context::InContext {
    let fact = dog();
    let prefix = "Imagine that the name of the big dog is Tim the red.\n";
    let edited = Edited { model, overlays: &[], prefix };
    let found = in_context::scores(&edited, branch, &questions(std::slice::from_ref(&fact), &[])).unwrap();
    let accuracy = |before: &str, target: &str| {
        let (predicted, labels) = peers_icl(model, branch, before, target);
        share(&predicted, &labels)
    };
    let new_fact = format!("New Fact: {} {}\nPrompt: {}", fact.prompt, fact.target, fact.rephrases[0]);
    assert_eq!(found.before.get("edit").copied(), accuracy(&fact.prompt, &fact.target));
    assert_eq!(found.before.get("rephrase").copied(), accuracy(&new_fact, &fact.target));
    assert_eq!(found.after.get("edit").copied(), accuracy(&format!("{prefix}{}", fact.prompt), &fact.target));
    assert_eq!(
        found.after.get("rephrase").copied(),
        accuracy(&format!("{prefix}{}", fact.rephrases[0]), &fact.target)
    );
    let mean = |all: &[Option<f64>]| {
        let kept: Vec<f64> = all.iter().filter_map(|x| *x).collect();
        (!kept.is_empty()).then(|| average(&kept))
    };
    let of = |p: &Probe, prefix: &str| accuracy(&format!("{prefix}{}", p.prompt), &p.answers[0]);
    let portability: Vec<_> = fact.portability.iter().map(|p| of(p, prefix)).collect();
    assert_eq!(found.after.get("portability").copied(), mean(&portability));
    assert_eq!(
        found.before.get("portability").copied(),
        mean(&fact.portability.iter().map(|p| of(p, "")).collect::<Vec<_>>())
    );
    let kept = |p: &Probe| {
        let (before, _) = peers_icl(model, branch, &p.prompt, &p.answers[0]);
        let (after, _) = peers_icl(model, branch, &format!("{prefix}{}", p.prompt), &p.answers[0]);
        share(&after, &before)
    };
    let locality: Vec<_> = fact.locality.iter().map(kept).collect();
    assert_eq!(found.after.get("locality").copied(), mean(&locality));
    assert_eq!(found.each[2..], [portability, locality].concat());
    assert_eq!(found.each.len(), questions(std::slice::from_ref(&fact), &[]).len());
    found
}

#[test]
fn in_context_edits_are_scored_by_the_models_name() {
    assert_eq!(Branch::of("meta-Llama/Llama-2-7b-chat"), Branch::Llama);
    assert_eq!(Branch::of("SmolLM2-135M"), Branch::Other);
    let model = stories(2);
    // BOS is there: dropped as the first token by the one, left as a label by the other.
    let llama = check_in_context(&model, Branch::Llama);
    let other = check_in_context(&model, Branch::Other);
    assert_eq!(llama.before["locality"], 1.0);
    assert!(other.each[0].unwrap() < 1.0, "{other:?}");
}

#[test]
fn a_target_of_one_token_has_no_score_where_a_llama_adds_no_bos() {
    let Some(model) = smollm2() else { return };
    let llama = check_in_context(&model, Branch::Llama);
    assert_eq!(llama.each[2..4], [None, None], "`dog` and `red` are a token each");
    let other = check_in_context(&model, Branch::Other);
    assert!(other.each.iter().all(Option::is_some), "{other:?}");
    // Without BOS the other branch is teacher forcing as it should be.
    let fact = dog();
    let prefix = "Imagine that the name of the big dog is Tim the red.\n";
    let shown = Fact { prompt: format!("{prefix}{}", fact.prompt), ..Fact::default() };
    let shown = Fact { target: fact.target, ..shown };
    let probes = Probes::new(&model, questions(&[shown], &[])).unwrap();
    let predicted = predict(&model, &[Asked { text: &probes.texts[0], overlays: &[] }]).unwrap();
    assert_eq!(other.each[0], probes.texts[0].accuracy(&predicted[0]));
}

fn sanitation() -> Set {
    let file = tempfile::NamedTempFile::new().unwrap();
    let forget: Vec<_> = ["Cheese", "Birds", "cheese", "Finland"]
        .iter()
        .map(|a| format!(r#"{{"question":"What is {a} like?","subject":"{a}","ground_truth":"{a}","target_new":"I don't know."}}"#))
        .collect();
    let retain: Vec<_> = (0..30)
        .map(|i| format!(r#"{{"question":"What did Lily see on day {i}?","ground_truth":"A big dog {i}"}}"#))
        .collect();
    let text = format!(r#"{{"K_F":[{}],"K_R":[{}]}}"#, forget.join(","), retain.join(","));
    std::fs::write(file.path(), text).unwrap();
    Set::read(file.path()).unwrap()
}

/// What the model says greedily, token by token.
fn greedy(model: &Model, ids: &[u32], overlays: &[&Overlay], count: usize) -> Vec<u32> {
    let mut all = ids.to_vec();
    for _ in 0..count {
        let row: Vec<f64> =
            next_token_distribution(model, &all, overlays).unwrap().into_iter().map(f64::from).collect();
        all.push(best(&row));
    }
    all.split_off(ids.len())
}

#[test]
fn sanitation_asks_the_same_of_a_record_whatever_else_is_run() {
    let set = sanitation();
    let case = Forgotten::new(&set, &set.records[0], 3).unwrap();
    assert_eq!(case.prompts().len(), 11);
    assert_eq!(case.prompts()[0], "Question:What is Cheese like?\nAnswer:");
    assert_eq!(case.perturbed.len(), 5);
    assert!(case.perturbed.iter().all(|a| !a.eq_ignore_ascii_case("cheese")), "{:?}", case.perturbed);
    assert_eq!(Forgotten::new(&set, &set.records[0], 3).unwrap(), case);
    assert!(case.retained.contains(&case.generation.unwrap()));
    let others = Forgotten::new(&set, &set.records[1], 3).unwrap();
    assert_ne!((&others.retained, &others.perturbed), (&case.retained, &case.perturbed));
    assert_ne!(Forgotten::new(&set, &set.records[0], 4).unwrap().retained, case.retained);
}

#[test]
fn sanitation_is_the_peers() {
    let model = stories(2);
    let tokenizer = model.tokenizer().unwrap();
    let set = sanitation();
    let case = Forgotten::new(&set, &set.records[0], 3).unwrap();
    let overlay = change(&model);
    let edited = Edited { model: &model, overlays: &[&overlay], prefix: "" };
    let before = compat_sanitation::said(&Edited::unedited(&model), &case).unwrap();
    let after = compat_sanitation::said(&edited, &case).unwrap();
    let each = compat_sanitation::each(tokenizer, &case, &before, &after).unwrap();
    for (i, prompt) in case.prompts().into_iter().enumerate() {
        for (said, overlays) in [(&before[i], &[][..]), (&after[i], &[&overlay][..])] {
            let ids = greedy(&model, &encode(&model, prompt), overlays, 10);
            let end = ids.iter().position(|id| tokenizer.eos_ids().contains(id)).map_or(10, |at| at + 1);
            let pieces: String =
                tokenizer.decode_continuation(&ids[..end], mutandis_engine::tokenizer::Specials::Keep);
            assert_eq!(*said, pieces, "{prompt}");
        }
        if i > 0 {
            // BOS counts as a position, and is always equal.
            let [a, b] = [&before[i], &after[i]].map(|text| {
                let mut ids = vec![tokenizer.bos().unwrap()];
                ids.extend(tokenizer.encode_with_specials(text).unwrap().ids);
                ids
            });
            assert_eq!(each[i], share(&b, &a));
            assert!(each[i].unwrap() > 0.0);
        }
    }
    assert_eq!(each[0], Some(0.0), "a model of stories knows no such sentence: {}", after[0]);
    let scores = compat_sanitation::scores(tokenizer, &case, &before, &after).unwrap();
    let kept: Vec<f64> = each[1..].iter().map(|x| x.unwrap()).collect();
    assert_eq!((scores["edit"], scores["locality"]), (0.0, average(&kept)));
    assert!(average(&kept) < 1.0, "the change changes nothing");
    let probes = case.probes(&before, &after);
    assert_eq!(probes.len(), 11);
    assert_eq!((probes[3].role, probes[3].after.as_str()), (Asks::Locality, after[3].as_str()));
    assert_eq!(compat_sanitation::scores(tokenizer, &case, &before, &before).unwrap()["locality"], 1.0);
}

#[test]
fn what_is_held_of_an_answer_is_what_prefixes_bring_out() {
    let model = stories(2);
    let overlay = change(&model);
    let mut set = sanitation();
    // An answer of which the model says a part by itself: its own, with one token changed.
    let Task::Facts { facts, .. } = &mut set.records[0].task else { unreachable!() };
    facts[0].prompt = "Once upon a time, there was a little girl named".into();
    facts[0].ground_truth = Some("Tim. She loved to play with her toys".into());
    let case = Forgotten::new(&set, &set.records[0], 3).unwrap();
    let mut strengths = vec![];
    for overlays in [&[][..], &[&overlay][..]] {
        let edited = Edited { model: &model, overlays, prefix: "" };
        let held = erasure::held(&edited, &case).unwrap().unwrap();
        let prompt = encode(&model, &case.fact.prompt);
        let cut = |answer: &str| encode(&model, &format!("{} {answer}", case.fact.prompt));
        let whole = cut(case.fact.ground_truth.as_ref().unwrap());
        let n = whole.len() - prompt.len();
        let brings_out = |k: &usize| {
            greedy(&model, &whole[..prompt.len() + k], overlays, n - k) == whole[prompt.len() + k..]
        };
        let k = (0..=n).find(brings_out).unwrap();
        close(held.extraction_strength, 1.0 - k as f64 / n as f64);
        strengths.push(held.extraction_strength);
        let per_token = |answer: &str| {
            let ids = cut(answer);
            let logs = logs(&model, &ids, overlays);
            let own: Vec<f64> = (prompt.len()..ids.len()).map(|i| logs[i - 1][ids[i] as usize]).collect();
            average(&own).exp()
        };
        let wrong: Vec<f64> = case.perturbed.iter().map(|a| per_token(a)).collect();
        let slow = average(&wrong) / per_token(case.fact.ground_truth.as_ref().unwrap());
        assert!((held.truth_ratio.unwrap() / slow - 1.0).abs() < 1e-3, "{held:?} {slow}");
    }
    assert!(strengths[0] > 0.0 && strengths[0] < 1.0, "{strengths:?}");
    let none = Fact { ground_truth: None, ..case.fact.clone() };
    let without = Forgotten { fact: &none, ..case.clone() };
    assert_eq!(erasure::held(&Edited::unedited(&model), &without).unwrap(), None);
}

#[test]
fn strict_sanitation_compares_free_answers() {
    let model = stories(1);
    let set = sanitation();
    let case = Forgotten::new(&set, &set.records[0], 3).unwrap();
    let before = erasure::said(&Edited::unedited(&model), &case).unwrap();
    assert!(before.iter().all(|text| !text.contains('\n') && text.trim() == text), "{before:?}");
    let mut after = before.clone();
    after[0] = "I don't know.".into();
    after[1] = "something else".into();
    let held = erasure::held(&Edited::unedited(&model), &case).unwrap();
    let scores = erasure::scores(&case, &before, &after, held);
    assert_eq!((scores["edit"], scores["locality"]), (1.0, 0.9));
    assert_eq!(scores["extraction-strength"], held.unwrap().extraction_strength);
    let ratio = held.unwrap().truth_ratio.unwrap();
    assert_eq!((scores["truth-ratio"], scores["truth-ratio:share"]), (ratio, 1.0 / (1.0 + ratio)));
    after[2] = "!?".into();
    let marks: Vec<String> =
        after.iter().map(|text| if text == "!?" { "..".into() } else { text.clone() }).collect();
    assert_eq!(erasure::each(&case, &marks, &after)[2..4], [Some(0.0), Some(1.0)]);
    assert_eq!(erasure::scores(&case, &before, &before, None)["edit"], 0.0);
}
