//! General ability: scores against a plain computation over whole texts, the field's own files, and
//! broken ones.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

use std::path::{Path, PathBuf};

use mutandis_bench::edited::Edited;
use mutandis_bench::fork::{Fork, log_probabilities};
use mutandis_bench::general::{Accuracy, Measure, SUITES, Suite};
use mutandis_engine::{Delta, LogitRows, Model, Options, Overlay, Pass, Role, Sequence, WeightId};
use serde_json::{Value, json};

/// Sums of ln p in f32 on one side; a pass in two parts adds up in another order than in one.
const CLOSE: f64 = 1e-4;

fn model(threads: usize) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/stories260K.gguf");
    Model::load(&path, Options { threads: Some(threads), ..Options::default() }).unwrap()
}

/// A change of a layer's down projection that moves its answers.
fn overlay(model: &Model, layer: usize) -> Overlay {
    let (d, f) = (model.architecture().width, model.architecture().mlp_width);
    let numbers =
        |n: usize, seed: usize| (0..n).map(|i| ((i * 7919 + seed) as f32).sin()).collect::<Vec<_>>();
    let mut overlay = Overlay::default();
    let delta = Delta::low_rank(1, &numbers(d, layer), &numbers(f, layer + 9)).unwrap();
    overlay.push(WeightId { layer, role: Role::MlpOut }, delta);
    overlay
}

/// ln p of the tokens of a text from one on, in f64, each text in a pass of its own.
fn plain(edited: &Edited<'_>, ids: &[u32], from: usize) -> Vec<f64> {
    let sequences = vec![Sequence { tokens: ids, overlays: edited.overlays, ..Default::default() }];
    let pass = Pass { sequences, logits: LogitRows::All, ..Default::default() };
    let logits = edited.model.forward(pass).unwrap().logits;
    let v = edited.model.architecture().vocabulary;
    (from..ids.len())
        .map(|i| {
            let row = &logits[(i - 1) * v..i * v];
            let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            f64::from(row[ids[i] as usize]) - sum.ln()
        })
        .collect()
}

fn encode(model: &Model, text: &str) -> Vec<u32> {
    model.tokenizer().unwrap().encode(text).unwrap().ids
}

const QUESTIONS: [(&str, [&str; 3]); 5] = [
    ("Once upon a time, there was a little", ["girl named Lily", "boy", "elephant in the deep sea"]),
    ("Tom and his dog went to the", ["park", "zebra hat", "sky to play with the sun"]),
    ("She was very", ["happy", "sad because she lost her toy", "table"]),
    ("The cat", ["sat", "said, \"I am sorry\"", "of the"]),
    ("Every day, they liked to play with the", ["ball", "ball and the car", "and"]),
];

#[test]
fn probabilities_of_ways_are_those_of_whole_texts() {
    let model = model(2);
    let changes = [overlay(&model, 1), overlay(&model, 3)];
    let stacks: [Vec<&Overlay>; 3] = [vec![], vec![&changes[0]], vec![&changes[0], &changes[1]]];
    let edited: Vec<Edited<'_>> = stacks
        .iter()
        .zip(["", "", "It was a sunny day. "])
        .map(|(overlays, prefix)| Edited { model: &model, overlays, prefix })
        .collect();
    let asked: Vec<(&Edited<'_>, &str, [&str; 3])> =
        QUESTIONS.iter().enumerate().map(|(i, (text, ways))| (&edited[i % 3], *text, *ways)).collect();
    let forks: Vec<Fork<'_>> =
        asked.iter().map(|(e, text, ways)| Fork::new(e, text, ways).unwrap()).collect();
    let together = log_probabilities(&model, &forks).unwrap();
    let mut moved = 0;
    for (i, ((edited, text, ways), found)) in asked.iter().zip(&together).enumerate() {
        let text = format!("{}{text}", edited.prefix);
        let start = encode(&model, &text).len();
        for (way, found) in ways.iter().zip(found) {
            let ids = encode(&model, &format!("{text} {way}"));
            let wanted = plain(edited, &ids, start);
            assert_eq!(found.len(), wanted.len());
            for (found, wanted) in found.iter().zip(&wanted) {
                assert!((f64::from(*found) - wanted).abs() < CLOSE, "{text} {way}: {found} is not {wanted}");
            }
            moved += usize::from(plain(&Edited::unedited(&model), &ids, start) != wanted);
        }
        // No fork knows of its neighbours, to the last bit.
        assert_eq!(log_probabilities(&model, &forks[i..=i]).unwrap()[0], *found);
    }
    assert!(moved >= 9, "the changes change nothing");
}

/// A real model, or a folder of real data.
fn real(variable: &str, default: &str, name: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable)
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..").join(default), PathBuf::from)
        .join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is not here", path.display());
    None
}

#[test]
fn what_a_tokenizer_merges_across_the_border_belongs_to_the_ways() {
    let Some(path) = real("MUTANDIS_TEST_MODELS", "models", "gemma-3-270m-q4_k_m.gguf") else { return };
    let model = Model::load(&path, Options::default()).unwrap();
    let edited = Edited::unedited(&model);
    // The blank at its end and the one behind it are one token.
    let text = "This is a passage about the river Tove. ";
    let ways = ["The Tove is a river.", "It rains"];
    let shared = encode(&model, text.trim_end());
    let fork = Fork::new(&edited, text, &ways).unwrap();
    let found = log_probabilities(&model, &[fork]).unwrap().remove(0);
    for (way, found) in ways.iter().zip(found) {
        let ids = encode(&model, &format!("{text} {way}"));
        assert!(!ids.starts_with(&encode(&model, text)) && ids.starts_with(&shared));
        let wanted = plain(&edited, &ids, shared.len());
        assert_eq!(found.len(), wanted.len());
        for (found, wanted) in found.iter().zip(wanted) {
            assert!((f64::from(*found) - wanted).abs() < CLOSE, "{found} is not {wanted}");
        }
    }
}

#[test]
fn a_text_without_tokens_is_refused() {
    // This tokenizer puts nothing before a text, so that nothing predicts its first token.
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/qwen2.gguf");
    let model = Model::load(&path, Options::default()).unwrap();
    let error = Fork::new(&Edited::unedited(&model), "", &["a", "b"]).unwrap_err();
    assert!(error.to_string().contains("cannot be told apart by their tokens"), "{error}");
    let prefixed = Edited { prefix: "Once", ..Edited::unedited(&model) };
    assert!(Fork::new(&prefixed, "", &["a", "b"]).is_ok());
}

/// A folder with a suite's files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}

/// The longest choice, which a sum over its tokens disfavours.
fn answer(ways: &[&str; 3]) -> usize {
    (0..3).max_by_key(|i| ways[*i].len()).unwrap()
}

fn dialogue() -> String {
    let record = |(text, ways): &(&str, [&str; 3])| {
        let letter = ["A", "B", "C"][answer(ways)];
        format!("{}\n", json!({"article": text, "options": ways, "answers": letter}))
    };
    QUESTIONS.iter().map(record).collect()
}

#[test]
fn accuracy_is_the_share_of_likeliest_choices_by_sum_and_by_byte() {
    let folder = folder(&[("glue_eval/dialogue.jsonl", &dialogue())]);
    let suite = Suite::read(folder.path(), "dialogue", None).unwrap();
    assert_eq!((suite.name, suite.measure, suite.questions.len()), ("dialogue", Measure::AccNorm, 5));
    let one = model(1);
    let change = overlay(&one, 2);
    for overlays in [&[][..], &[&change][..]] {
        let edited = Edited { model: &one, overlays, prefix: "" };
        let (mut acc, mut acc_norm) = (0.0, 0.0);
        for (text, ways) in &QUESTIONS {
            let start = encode(&one, text).len();
            let sum = |way: &&str| {
                plain(&edited, &encode(&one, &format!("{text} {way}")), start).iter().sum::<f64>()
            };
            let best = |score: &dyn Fn(&&str) -> f64| {
                (0..3).max_by(|a, b| score(&ways[*a]).total_cmp(&score(&ways[*b]))).unwrap()
            };
            acc += f64::from(u8::from(best(&sum) == answer(ways)));
            acc_norm += f64::from(u8::from(best(&|way| sum(way) / way.len() as f64) == answer(ways)));
        }
        let wanted = Accuracy { acc: acc / 5.0, acc_norm: acc_norm / 5.0, n: 5 };
        assert_eq!(suite.accuracy(&edited).unwrap(), wanted);
        assert_eq!(wanted.by(suite.measure), wanted.acc_norm);
        assert!(acc != acc_norm || !overlays.is_empty(), "no question tells the two measures apart");
    }
    let four = model(4);
    let (one, four) = (Edited::unedited(&one), Edited::unedited(&four));
    assert_eq!(suite.accuracy(&one).unwrap(), suite.accuracy(&four).unwrap());
}

#[test]
fn suites_lie_in_a_folder_or_in_its_general() {
    let data = dialogue();
    let in_general = folder(&[("general/glue_eval/dialogue.jsonl", &data)]);
    let beside_general = folder(&[("glue_eval/dialogue.jsonl", &data), ("general/notes.txt", "mine")]);
    for folder in [in_general, beside_general] {
        assert_eq!(Suite::read(folder.path(), "dialogue", None).unwrap().questions.len(), 5);
    }
}

#[test]
fn records_become_questions_with_the_right_answer() {
    let piqa = json!({"goal": "dresser", "sol1": "bobby pin ", "sol2": "finish"}).to_string();
    let mmlu = json!({"question": " 4 x 9? ", "choices": ["a", "b", "c", "d"], "answer": 2}).to_string();
    let csqa = json!({"question": "Where?", "choices": {"label": ["A", "B"], "text": ["bank", "mall"]}, "answerKey": "B"});
    let single = |label: i32| json!({"sentence": "It is wet.", "label": label}).to_string();
    let pair = |label: Value| {
        json!({"sentence1": "It rains.", "sentence2": "It is wet.", "label": label}).to_string()
    };
    let labelled = [
        ("cola", single(0), "no"),
        ("sst2", single(1), "positive"),
        ("mrpc", pair(json!(1)), "yes"),
        ("rte", pair(json!(0)), "yes"),
        ("nli", pair(json!("not_entailment")), "no"),
    ];
    let folder = folder(&[
        ("valid.jsonl", &piqa),
        ("valid-labels.lst", "1\n"),
        ("mmlu.jsonl", &mmlu),
        ("commonsense_qa/test.jsonl", &csqa.to_string()),
    ]);
    let read = |name: &str| Suite::read(folder.path(), name, None).unwrap().questions.remove(0);
    let question = read("piqa");
    assert_eq!(question.context, "Question: dresser\nAnswer:");
    assert_eq!((question.choices, question.answer), (vec!["bobby pin ".to_owned(), "finish".into()], 1));
    let question = read("mmlu");
    assert_eq!(question.context, "4 x 9?\nA. a\nB. b\nC. c\nD. d\nAnswer:");
    assert_eq!((question.choices.concat(), question.answer), ("ABCD".to_owned(), 2));
    let question = read("commonsense_qa");
    assert_eq!((question.choices, question.answer), (vec!["bank".to_owned(), "mall".into()], 1));
    for (name, text, wanted) in labelled {
        std::fs::write(folder.path().join(format!("{name}.jsonl")), text).unwrap();
        let question = read(name);
        assert!(question.context.contains("It is wet.\n"), "{question:?}");
        assert_eq!(question.choices[question.answer], wanted, "{name}");
    }
}

/// Counts as the data's README and the files have them.
#[test]
fn real_suites_are_read_whole() {
    let Some(folder) = real("MUTANDIS_SHARED", "shared", "data/general") else { return };
    // Questions, and how many have the first choice as their answer.
    let counts = [
        ("piqa", 1838, 910),
        ("commonsense_qa", 1221, 239),
        ("mmlu", 1516, 379),
        ("cola", 644, 322),
        ("sst2", 856, 428),
        ("mrpc", 258, 129),
        ("rte", 262, 131),
        ("nli", 2489, 1249),
        ("dialogue", 886, 212),
    ];
    assert_eq!(counts.map(|(name, ..)| name), *SUITES.iter().map(|s| s.name).collect::<Vec<_>>());
    for (name, questions, first) in counts {
        let suite = Suite::read(&folder, name, None).unwrap();
        assert_eq!((suite.questions.len(), suite.skipped.len()), (questions, 0), "{name}");
        assert_eq!(suite.questions.iter().filter(|q| q.answer == 0).count(), first, "{name}");
        assert_eq!(suite.version.split('+').map(str::len).max(), Some(40), "{name}");
        let ten = Suite::read(&folder, name, Some(10)).unwrap();
        assert_eq!(ten.questions, suite.questions[..10]);
        assert_eq!(ten.version, suite.version);
    }
}

#[test]
fn questions_that_cannot_be_used_are_named_and_the_others_are_kept() {
    let lines = concat!(
        "{\"sentence\":\"Good.\",\"label\":1}\n",
        "{\"sentence\":\"Bad.\",\"label\":0\n",
        "\n",
        "{\"sentence\":\"Unlabelled.\"}\n",
        "{\"sentence\":\"Hidden.\",\"label\":-1}\n",
        "{\"sentence\":\" \",\"label\":1}\n",
        "7\n",
        "{\"sentence\":\"Fine.\",\"label\":\"1\"}\n",
        "{\"sentence\":\"Late.\",\"label\":9}\n",
    );
    let folder = folder(&[("sst2.jsonl", lines)]);
    let suite = Suite::read(&folder.path().join("sst2.jsonl"), "sst2", None).unwrap();
    assert_eq!(suite.questions.len(), 2);
    let named: Vec<(usize, &str)> = suite.skipped.iter().map(|n| (n.record, n.what.as_str())).collect();
    assert_eq!(named.iter().map(|(record, _)| *record).collect::<Vec<_>>(), [2, 3, 4, 5, 6, 8]);
    assert_eq!(named[1].1, "`label` is missing or blank");
    assert_eq!(named[2].1, "its label `-1` is none of its 2 choices");
    assert_eq!(named[3].1, "`sentence` is missing or blank");
    assert_eq!(named[4].1, "it is no object");
    let two = Suite::read(folder.path(), "sst2", Some(1)).unwrap();
    assert_eq!((two.questions.len(), two.skipped.len()), (1, 0));
}

#[test]
fn files_that_are_no_suite_are_refused_with_a_way_out() {
    let question = json!({"goal": "a", "sol1": "b", "sol2": "c"}).to_string();
    let questions = format!("{question}\n{question}\n");
    for (labels, why) in [
        (None, "cannot read the file of labels"),
        (Some("1\n"), "it has 1 labels for 2 questions"),
        (Some("1\n0\n1\n"), "it has 3 labels for 2 questions"),
        (Some("2\n-1\n"), "none of its 2 records can be used; record 1: its label `2` is none of its 2"),
    ] {
        let mut files = vec![("piqa/valid.jsonl", questions.as_str())];
        files.extend(labels.map(|text| ("piqa/valid-labels.lst", text)));
        let folder = folder(&files);
        let error = Suite::read(folder.path(), "piqa", None).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        assert!(error.hint().unwrap().contains("expected"), "{:?}", error.hint());
    }
    let folder =
        folder(&[("piqa/valid.jsonl", &questions), ("piqa/valid-labels.lst", "\n1\n"), ("sst2.jsonl", "PK")]);
    let suite = Suite::read(folder.path(), "piqa", None).unwrap();
    assert_eq!((suite.questions.len(), suite.skipped[0].what.as_str()), (1, "its label is missing"));

    let error = Suite::read(folder.path(), "pica", None).unwrap_err();
    assert_eq!(error.to_string(), "there is no suite `pica`");
    assert!(error.hint().unwrap().contains("did you mean `piqa`?"), "{:?}", error.hint());
    let error = Suite::read(folder.path(), "mmlu", None).unwrap_err();
    assert!(error.to_string().contains("has no `glue_eval/mmlu.jsonl`"), "{error}");
    let error = Suite::read(folder.path(), "sst2", None).unwrap_err();
    assert!(error.to_string().contains("it begins with `P`"), "{error}");
    let error = Suite::read(Path::new("nowhere.jsonl"), "sst2", None).unwrap_err();
    assert!(error.to_string().contains("cannot read the `sst2` file `nowhere.jsonl`"), "{error}");
}

/// That contexts and labels are read the right way round shows in a model that knows something.
#[test]
fn a_real_model_answers_better_than_chance() {
    let model = real("MUTANDIS_TEST_MODELS", "models", "SmolLM2-135M-Instruct.Q4_1.gguf");
    let folder = real("MUTANDIS_SHARED", "shared", "data/general");
    let (Some(path), Some(folder)) = (model, folder) else { return };
    let model = Model::load(&path, Options::default()).unwrap();
    for (name, chance) in [("piqa", 0.5), ("commonsense_qa", 0.2)] {
        let suite = Suite::read(&folder, name, Some(60)).unwrap();
        let found = suite.accuracy(&Edited::unedited(&model)).unwrap();
        assert!(found.acc > chance + 0.08 && found.acc_norm > chance + 0.05, "{name}: {found:?}");
    }
}
