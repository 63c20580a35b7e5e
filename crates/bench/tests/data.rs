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

fn read(bytes: impl AsRef<[u8]>) -> mutandis_edit::Result<Set> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
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
        "generation_prompts": ["Laurent Cars's work office is surrounded by"],
        "distracting_neighborhood_prompts": ["Laurent Cars was employed in Philadelphia. Victor Hugo worked in"],
        "portability": {"Recalled Relation": "(Philadelphia, state, …)", "New Question": "Of what state?", "New Answer": "Pennsylvania"}
    }]);
    let set = read(record.to_string()).unwrap();
    let Task::Facts { facts, generation, reference } = &set.records[0].task else { panic!("no facts") };
    assert_eq!(reference.as_ref().unwrap(), &["P937", "Q1345"]);
    assert_eq!(facts[0].prompt, "Laurent Cars was employed in");
    assert_eq!((facts[0].target.as_str(), facts[0].ground_truth.as_deref()), ("Philadelphia", Some("Paris")));
    let kept: Vec<_> = facts[0].locality.iter().map(|p| (p.kind.as_str(), p.answers[0].as_str())).collect();
    let near = ("neighborhood", "Paris");
    assert_eq!(kept, [near, near, ("attribute", "Philadelphia"), ("distracting", "Paris")]);
    let hop = &facts[0].portability[..];
    assert_eq!((hop.len(), hop[0].kind.as_str(), &hop[0].answers[0][..]), (1, "one-hop", "Pennsylvania"));
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
    let set = read(record.to_string()).unwrap();
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
        read(record.to_string()).unwrap().records.remove(0)
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
    // What the old and the new object begin with is no part of the prompt.
    let kingdom = "The country of Leonardo DiCaprio is United Kingdom.";
    assert_eq!(of(&edit(kingdom, before, json!([]))), wanted("", "United Kingdom", "United States"));
    // Of answers that the sentence ends with the longest counts.
    let names = json!([{"test_queries": [{"prompt": "Leo's country is", "answers": [{"value": "Emirates", "aliases": ["United Arab Emirates"]}]}]}]);
    assert_eq!(fact(&edit(sentence, Value::Null, names)).target, "United Arab Emirates");
    // A blank of more than one byte before the target is a blank.
    let [now, was] = ["Syria", "Japan"].map(|of| format!("The country of X is\u{a0}{of}."));
    let record = edit(&now, json!({"prompt": was}), json!([]));
    assert_eq!(
        (fact(&record).prompt.as_str(), fact(&record).target.as_str()),
        ("The country of X is", "Syria")
    );
}

#[test]
fn what_is_passed_over_in_a_record_is_noted_in_every_form() {
    let rewrite = json!({"prompt": "{} is in", "subject": "A", "target_new": {"str": "B"}, "target_true": {"str": "C"}});
    let ripple = json!({
        "edit": {"prompt": "The home of A is B."},
        "Relation_Specificity": "garbage",
        "Forgetfulness": [{"test_queries": [5, {"prompt": "The child of A is", "answers": "D"}]}],
        "Compositionality_I": [{"test_queries": 7}],
    });
    for (record, notes) in [
        (
            json!({"requested_rewrite": rewrite, "paraphrase_prompts": ["A lies in", true, {"a": 1}]}),
            vec!["a boolean in `paraphrase_prompts`", "an object in `paraphrase_prompts`"],
        ),
        (
            json!({"requested_rewrite": [rewrite], "questions": ["Where?", false], "new_answer": "B", "new_single_hops": [5]}),
            vec!["a boolean in `questions`", "a number in `new_single_hops`"],
        ),
        (json!({"ent": "A", "pos": ["good"], "neg": ["bad", true]}), vec!["a boolean in `neg`"]),
        (
            json!({"prompt": "A is", "target_new": "B", "rephrase_prompt": ["A's", {"a": 1}]}),
            vec!["an object in `rephrase_prompt`"],
        ),
        (
            ripple,
            vec![
                "a number in `Compositionality_I`",
                "text in `Relation_Specificity`",
                "a number in `Forgetfulness`",
            ],
        ),
    ] {
        let set = read(json!([record]).to_string()).unwrap();
        let found: Vec<&str> = set.oddities["passed over in part"].iter().map(|n| n.what.as_str()).collect();
        assert_eq!(found.len(), notes.len(), "{found:?}");
        for (found, note) in found.iter().zip(notes) {
            assert!(found.starts_with(note), "{found}: {note}");
        }
        if set.form == Form::RippleEdits {
            assert_eq!(fact(&set.records[0]).locality[0].answers, ["D"], "one answer need not be in a list");
        }
    }
}

#[test]
fn what_is_no_text_is_told_as_what_it_is() {
    for (bytes, why) in [
        (&b"\x1f\x8b\x08\x00"[..], "compressed by gzip"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\xff\xfe[\x00", "UTF-16"),
    ] {
        let error = read(bytes).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn sanitation_asks_and_keeps() {
    let file = json!({
        "K_F": [{"question": "What says a cow?", "subject": "a cow", "ground_truth": "Moo", "target_new": "I don't know."}],
        "K_R": [{"question": "What says a dog?", "ground_truth": "Woof"}, {"question": ""}]
    });
    let set = read(file.to_string()).unwrap();
    assert_eq!(fact(&set.records[0]).prompt, "Question:What says a cow?\nAnswer:");
    assert_eq!(fact(&set.records[0]).target, "I don't know.");
    assert_eq!(set.retained.len(), 1);
    assert_eq!(set.retained[0].answers, ["Woof"]);
    let notes = &set.oddities["question to be kept that cannot be asked"];
    assert_eq!(
        (notes.len(), notes[0].record, notes[0].what.as_str()),
        (1, 2, "`question` is missing or blank")
    );
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

/// Numbers of the records that can be used, and those that cannot, with why.
fn told(set: &Set) -> (Vec<usize>, Vec<(usize, &str)>) {
    let skipped = set.skipped.iter().map(|note| (note.record, note.what.as_str()));
    (set.records.iter().map(|record| record.number).collect(), skipped.collect())
}

const GOOD: &str = r#"{"prompt":"A is","target_new":"B"}"#;

#[test]
fn a_bad_first_line_is_left_out_as_any_other_is() {
    let cases: [(&[u8], &str); 5] = [
        (b"not json", "line 2: expected ident (column 2)"),
        (b"null", "it is no object"),
        (b"[1]", "it is no object"),
        (b"{\"prompt\":\"C", "line 2: it ends early"),
        (b"{\"prompt\":\"C\xff is\",\"target_new\":\"D\"}", "line 2: it is not UTF-8 text"),
    ];
    for (bad, why) in cases {
        let first = [&b"\n"[..], bad, b"\n", GOOD.as_bytes(), b"\n"].concat();
        assert_eq!(told(&read(first).unwrap()), (vec![2], vec![(1, why)]));
        // Blank lines count: the line is the file's.
        let last = [GOOD.as_bytes(), b"\n\n\n", bad].concat();
        let why = why.replace("line 2", "line 4");
        assert_eq!(told(&read(last).unwrap()), (vec![1], vec![(2, why.as_str())]));
    }
}

#[test]
fn a_record_of_an_array_that_is_no_json_value_is_left_out_alone() {
    let file = |bad: &[u8]| [&b"["[..], GOOD.as_bytes(), b",\n", bad, b",\n", GOOD.as_bytes(), b"]"].concat();
    let cases: [(&[u8], &str); 3] = [
        (b"{\"prompt\":\"C is\",\"target_new\":1e999}", "number out of range"),
        (b"{\"prompt\":\"C\xff is\",\"target_new\":\"D\"}", "it is not UTF-8 text"),
        (b"7", "it is no object"),
    ];
    for (bad, why) in cases {
        assert_eq!(told(&read(file(bad)).unwrap()), (vec![1, 3], vec![(2, why)]));
    }
}

#[test]
fn the_form_is_what_most_records_look_like() {
    let rewrite = json!({"prompt": "{} is in", "subject": "Rome", "target_new": {"str": "France"}});
    let good = json!({"requested_rewrite": rewrite, "neighborhood_prompts": []});
    let fact = json!({"prompt": "Rome is in", "target_new": "France"});
    let opinion = json!({"ent": "Rome", "pos": ["Good."], "neg": ["Bad."]});
    // Each is read by its own form; of opinions it is told why they are left out.
    let another = "it is of another kind than the file's others, which are CounterFact";
    let set = read(json!([fact, good, good, opinion]).to_string()).unwrap();
    assert_eq!((set.form, told(&set)), (Form::CounterFact, (vec![1, 2, 3], vec![(4, another)])));
    // What cannot be used does not make the form, however much of it there is.
    let (stub, empty) = (json!({"prompt": ""}), json!({"ent": "Rome", "pos": [], "neg": []}));
    for (odd, one, form) in
        [(&stub, &good, Form::CounterFact), (&empty, &fact, Form::Facts), (&stub, &opinion, Form::ConvSent)]
    {
        let set = read(json!([odd, odd, one, odd]).to_string()).unwrap();
        assert_eq!((set.form, told(&set).0), (form, vec![3]));
    }
    // As many of one form as of the other: the one that is listed first.
    assert_eq!(read(json!([good, fact]).to_string()).unwrap().form, Form::Facts);
    assert_eq!(read(json!([fact, good]).to_string()).unwrap().form, Form::Facts);
}

#[test]
fn lists_that_are_none_are_told() {
    let forget = r#"{"question": "A?", "subject": "A", "ground_truth": "B", "target_new": "No."}"#;
    let set = read(format!(r#"{{"K_F": [{forget}], "K_R": {{"a": 1}}}}"#)).unwrap();
    let notes = &set.oddities["question to be kept that cannot be asked"];
    assert!(notes[0].what.contains("`K_R` is no list of questions"), "{notes:?}");
    let error = read(r#"{"K_F": {"a": 1}, "K_R": []}"#).unwrap_err();
    assert!(error.to_string().contains("`K_F` is no list of questions"), "{error}");
    // One whose answer is not told is asked all the same.
    let set = read(format!(r#"{{"K_F": [{forget}], "K_R": [{{"question": "C?"}}]}}"#)).unwrap();
    assert_eq!((set.retained.len(), set.oddities["probe without an answer"].len()), (1, 1));
    let rewrite = json!({"prompt": "{} is in", "subject": "A", "target_new": {"str": "B"}, "target_true": {"str": "C"}});
    let hops = json!([{"requested_rewrite": [rewrite], "questions": ["Where?"], "new_answer": "B", "new_single_hops": 7}]);
    let set = read(hops.to_string()).unwrap();
    let notes = &set.oddities["passed over in part"];
    assert!(notes[0].what.contains("`new_single_hops` is passed over"), "{notes:?}");
}

#[test]
fn what_a_terminal_would_obey_is_told_escaped() {
    let odd = json!({"prompt": "C", "target_new": "D", "subject": "\u{1b}[2J"});
    let set = read(format!("{GOOD}\n{odd}")).unwrap();
    let notes = &set.oddities["subject not in the prompt"];
    assert!(notes[1].what.contains("`\\u{1b}[2J`"), "{notes:?}");
}

#[test]
fn what_is_no_data_set_is_refused_with_what_was_found() {
    for (text, why) in [
        ("", "begins with nothing"),
        ("PK\u{3}", "begins with `P`"),
        ("[]", "holds no records"),
        ("\0\0", "begins with `\\u{0}`"),
        ("null\n", "it is null, expected an array of records or one record a line"),
        ("42", "it is a number, expected"),
        ("\"abc\"", "it is text, expected"),
        ("false", "it is a boolean, expected"),
        ("[{\"prompt\": \"A\"", "it ends early, in line 1, before its array does"),
        ("[\n{\"prompt\": \"A\"},\n{\"prompt\": \"B\"}\n", "it ends early, in line 3, before its array does"),
        ("{\n\"K_F\": [\n{}\n", "it ends early, in line 3, before its object does"),
        ("[\n{\"prompt\": nil},\n{\"prompt\": \"B\"}\n]", "at line 2 column"),
        ("{\"question\": \"A\"}", "none of its 1 records can be used; record 1: `prompt` is missing"),
        ("[3, 4]", "record 1: it is no object"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.to_string().contains(why), "{text}: {error}");
        assert!(error.hint().unwrap().contains("JSON lines"));
    }
    let error = read(b"\xfd\xfe[\0]\0").unwrap_err();
    assert!(error.to_string().contains("it is not UTF-8 text (byte 0 is"), "{error}");
    let error = Set::read(Path::new("nowhere.json")).unwrap_err();
    assert!(error.to_string().contains("cannot read the data set `nowhere.json`"), "{error}");
}
