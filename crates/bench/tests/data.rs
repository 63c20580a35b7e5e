//! Data sets: the field's own files, and every kind of broken one.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

use std::path::{Path, PathBuf};

use mutandis_bench::data::{Form, Record, Set, Task};
use mutandis_edit::Fact;
use serde_json::{Value, json};

fn shared(file: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("MUTANDIS_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from);
    let path = folder.join("data").join(file);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is not here", path.display());
    None
}

fn read(text: &str) -> mutandis_edit::Result<Set> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Set::read(file.path())
}

fn fact(record: &Record) -> &Fact {
    &record.facts()[0]
}

/// Counts as the data's README has them.
#[test]
fn real_files_are_read_whole() {
    let odd = |set: &Set, kind: &str| set.oddities.get(kind).map_or(0, Vec::len);
    for (file, form, records, [twice, absent, unchanged]) in [
        ("knowedit/ZsRE-test-all.json", Form::Facts, 1304, [8, 3, 43]),
        ("knowedit/wiki_counterfact_train_cf.json", Form::Facts, 1428, [11, 0, 6]),
        ("knowedit/wiki_counterfact_test_cf_885.json", Form::Facts, 885, [0, 0, 0]),
        ("knowedit/wiki_recent_train.json", Form::Facts, 570, [0, 0, 0]),
        ("knowedit/wikibio-test-all.json", Form::Facts, 306, [0, 0, 0]),
        ("knowedit/convsent_blender_val.json", Form::ConvSent, 799, [1, 0, 0]),
        ("knowedit/sanitation_trivia_qa_test.json", Form::Sanitation, 80, [0, 80, 0]),
        ("knowedit/sanitation_trivia_qa_train.json", Form::Sanitation, 80, [0, 0, 0]),
        ("counterfact/counterfact_fullfields_merged.json", Form::CounterFact, 1129, [0, 0, 0]),
        ("mquake/AKEW_MQuAKE-CF_354.json", Form::Mquake, 354, [0, 0, 0]),
    ] {
        let Some(path) = shared(file) else { continue };
        let set = Set::read(&path).unwrap();
        assert_eq!((set.form, set.records.len(), set.skipped.len()), (form, records, 0), "{file}");
        let kinds = ["said twice", "subject not in the prompt", "target is the old answer"];
        assert_eq!(kinds.map(|kind| odd(&set, kind)), [twice, absent, unchanged], "{file}");
        assert!(set.version.len() == 40, "{file}");
    }
}

#[test]
fn a_version_is_told_by_its_git_blob() {
    // `printf '{"prompt":"A is","target_new":"B"}' | git hash-object --stdin`
    let set = read(r#"{"prompt":"A is","target_new":"B"}"#).unwrap();
    assert_eq!(set.version, "7bb2b18b0fab2fd1cf57e4121d29d209e59f78c4");
    assert_eq!(set.records.len(), 1);
}

#[test]
fn counterfact_neighbours_keep_the_old_object() {
    let record = json!([{
        "requested_rewrite": {
            "prompt": "{} was employed in", "subject": "Laurent Cars", "relation_id": "P937",
            "target_new": {"str": "Philadelphia", "id": "Q1345"}, "target_true": {"str": "Paris"}
        },
        "paraphrase_prompts": ["Hybrid vehicles. Laurent Cars found employment in"],
        "neighborhood_prompts": ["Claude Monet took up work in", "Victor Hugo worked in"],
        "attribute_prompts": ["Thomas Cole worked in"],
        "generation_prompts": ["Laurent Cars's work office is surrounded by"]
    }]);
    let set = read(&record.to_string()).unwrap();
    let Task::Facts { facts, generation, reference } = &set.records[0].task else { panic!("no facts") };
    assert_eq!(reference.as_ref().unwrap(), &["P937", "Q1345"]);
    assert_eq!(facts[0].prompt, "Laurent Cars was employed in");
    assert_eq!((facts[0].target.as_str(), facts[0].ground_truth.as_deref()), ("Philadelphia", Some("Paris")));
    let kept: Vec<_> = facts[0].locality.iter().map(|p| (p.kind.as_str(), p.answers[0].as_str())).collect();
    assert_eq!(kept, [("neighborhood", "Paris"), ("neighborhood", "Paris"), ("attribute", "Philadelphia")]);
    assert_eq!((facts[0].rephrases.len(), generation.len()), (1, 1));
}

#[test]
fn questions_of_mquake_go_with_all_their_facts() {
    let rewrite = |subject: &str, target: &str| json!({"prompt": "{} is a citizen of", "subject": subject, "target_new": {"str": target}});
    let record = json!([{
        "requested_rewrite": [rewrite("Ann", "Croatia"), rewrite("Bob", "Peru")],
        "questions": ["Who heads Ann's country?", "Who leads it?"],
        "new_answer": "Carl", "new_answer_alias": ["Carlo"],
        "new_single_hops": [{"question": "Of where is Ann?", "answer": "Croatia", "answer_alias": ["HR"]}]
    }]);
    let set = read(&record.to_string()).unwrap();
    assert_eq!(set.form, Form::Mquake);
    assert_eq!(set.records[0].facts().len(), 2);
    let probes = &fact(&set.records[0]).portability;
    let kinds: Vec<_> = probes.iter().map(|p| (p.kind.as_str(), p.answers.join("|"))).collect();
    let multi = ("multi-hop", "Carl|Carlo".to_owned());
    assert_eq!(kinds, [multi.clone(), multi, ("single-hop", "Croatia|HR".to_owned())]);
}

#[test]
fn an_edit_of_ripple_edits_is_cut_where_its_target_begins() {
    let query = |prompt: &str, answer: &str| json!([{"test_queries": [{"prompt": prompt, "answers": [{"value": answer, "aliases": ["x"]}]}]}]);
    let edit = |sentence: &str, before: Value, aliases: Value| {
        let record = json!([{
            "example_type": "popular", "edit": {"prompt": sentence, "original_fact": before},
            "Relation_Specificity": query("The mother of Leonardo DiCaprio is", "Irmelin"),
            "Compositionality_I": query("The currency of the country of Leonardo DiCaprio is", "pound"),
            "Subject_Aliasing": aliases
        }]);
        read(&record.to_string()).unwrap().records.remove(0)
    };
    let sentence = "The country of Leonardo DiCaprio is United Arab Emirates.";
    let before = json!({"prompt": "The country of Leonardo DiCaprio is United States."});
    let aliases = query("The country of Leo is", "United Arab Emirates");
    // With the question about an alias, target and subject are read off it.
    let record = edit(sentence, before.clone(), aliases);
    let of = |record: &Record| {
        let f = fact(record);
        (f.prompt.clone(), f.subject.clone(), f.target.clone(), f.ground_truth.clone().unwrap_or_default())
    };
    let prompt = "The country of Leonardo DiCaprio is";
    let wanted = |subject: &str, target: &str, truth: &str| {
        (prompt.to_owned(), subject.to_owned(), target.to_owned(), truth.to_owned())
    };
    assert_eq!(of(&record), wanted("Leonardo DiCaprio", "United Arab Emirates", "United States"));
    assert_eq!(fact(&record).locality[0].answers, ["Irmelin", "x"]);
    assert_eq!(fact(&record).portability.len(), 2);
    // Without, and without a sentence before, the last "is" tells.
    assert_eq!(of(&edit(sentence, Value::Null, json!([]))), wanted("", "United Arab Emirates", ""));
}

#[test]
fn sanitation_asks_and_keeps() {
    let file = json!({
        "K_F": [{"question": "What says a cow?", "subject": "a cow", "ground_truth": "Moo", "target_new": "I don't know."}],
        "K_R": [{"question": "What says a dog?", "ground_truth": "Woof"}, {"question": ""}]
    });
    let set = read(&file.to_string()).unwrap();
    assert_eq!(fact(&set.records[0]).prompt, "Question:What says a cow?\nAnswer:");
    assert_eq!(fact(&set.records[0]).target, "I don't know.");
    assert_eq!(set.retained.len(), 1);
    assert_eq!(set.retained[0].answers, ["Woof"]);
}

#[test]
fn records_that_cannot_be_used_are_named_and_the_others_are_kept() {
    let lines = concat!(
        "{\"prompt\":\"A is\",\"target_new\":\"B\"}\n",
        "\n",
        "{\"prompt\":\"C is\"\n",
        "{\"prompt\":\"D is\",\"target_new\":[]}\n",
        "[1]\n",
        "{\"prompt\":\"E is\",\"target_new\":7,\"portability\":{\"x\":[{\"prompt\":\"F\",\"ground_truth\":[[]]}]}}\n",
    );
    let set = read(lines).unwrap();
    let numbers: Vec<usize> = set.records.iter().map(|r| r.number).collect();
    assert_eq!(numbers, [1, 5]);
    assert_eq!(fact(&set.records[1]).target, "7");
    assert_eq!(set.oddities["probe without an answer"].len(), 1);
    let named: Vec<_> = set.skipped.iter().map(|n| n.record).collect();
    assert_eq!(named, [2, 3, 4]);
    assert!(set.skipped[1].what.contains("`target_new`"), "{:?}", set.skipped);
    assert!(set.skipped[2].what.contains("no object"), "{:?}", set.skipped);
}

#[test]
fn what_is_no_data_set_is_refused_with_what_was_found() {
    for (text, why) in [
        ("", "begins with nothing"),
        ("PK\u{3}", "begins with `P`"),
        ("[]", "holds no records"),
        ("[{\"prompt\": \"A\"", "line 1 column 15"),
        ("{\"question\": \"A\"}", "none of its 1 records can be used; record 1: `prompt` is missing"),
        ("[3, 4]", "record 1: it is no object"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.to_string().contains(why), "{text}: {error}");
        assert!(error.hint().unwrap().contains("JSON lines"));
    }
    let error = Set::read(Path::new("nowhere.json")).unwrap_err();
    assert!(error.to_string().contains("cannot read the data set `nowhere.json`"), "{error}");
}
