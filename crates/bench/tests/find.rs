//! Data sets by name.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

use std::path::{Path, PathBuf};

use mutandis_bench::data::Set;
use mutandis_bench::data::find::{Places, find, name_of};

/// A folder with empty files.
fn folder(files: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }
    folder
}

fn found(name: &str, folder: Option<&Path>, hub: Option<&Path>) -> PathBuf {
    let places = Places { folder: folder.map(Path::to_owned), hub_cache: hub.map(Path::to_owned) };
    let path = find(name, &places).unwrap();
    let inner = [folder, hub].into_iter().flatten().find_map(|base| path.strip_prefix(base).ok());
    inner.unwrap_or(&path).to_owned()
}

#[test]
fn a_file_that_exists_wins_over_a_name() {
    let folder = folder(&["zsre", "ZsRE-test-all.json"]);
    let path = folder.path().join("zsre");
    assert_eq!(found(path.to_str().unwrap(), Some(folder.path()), None), Path::new("zsre"));
    assert_eq!(found("zsre", Some(folder.path()), None), Path::new("ZsRE-test-all.json"));
}

#[test]
fn a_data_set_is_called_the_same_wherever_it_lies_and_however_it_is_named() {
    let folder = folder(&["people.jsonl", "people", "zsre", "data/ZsRE-test-all.json", "data/mine.v2.json"]);
    let places = Places { folder: Some(folder.path().join("data")), hub_cache: None };
    let name = |data: &str| name_of(data, &find(data, &places).unwrap());
    let own = |file: &str| name(folder.path().join(file).to_str().unwrap());
    for file in ["people.jsonl", "people", "./people.jsonl", "data/../people"] {
        assert_eq!(own(file), "people", "{file}");
    }
    for data in ["zsre", "ZSRE", "ZsRE"] {
        assert_eq!(name(data), "zsre");
    }
    assert_eq!(own("zsre"), "zsre");
    assert_eq!(own("data/ZsRE-test-all.json"), "ZsRE-test-all");
    // A file of the folder is no path of this machine either.
    assert_eq!(name("mine.v2.json"), "mine.v2");
}

#[test]
fn a_folder_that_is_not_there_is_told() {
    let folder = folder(&["file"]);
    let check = |path: &str| Places { folder: Some(folder.path().join(path)), hub_cache: None }.check();
    assert!(check("").is_ok() && Places::default().check().is_ok());
    for (path, why) in [("gone", "gone` does not exist"), ("file", "file` is a file, and a folder is wanted")]
    {
        let error = check(path).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        assert!(error.hint().unwrap().contains("`--folder`"));
    }
}

#[test]
fn names_are_found_in_the_folder_as_it_is_published_and_tests_before_training() {
    let folder = folder(&[
        "benchmark/wiki_recent/recent_train.json",
        "benchmark/wiki_recent/recent_test.json",
        "benchmark/ZsRE/ZsRE-test-all.json",
        "knowedit/wiki_counterfact_train_cf.json",
        "Convsent/blender_val.json",
        "mquake/MQuAKE-T.json",
    ]);
    for (name, file) in [
        ("wiki_recent", "benchmark/wiki_recent/recent_test.json"),
        ("wiki-recent", "benchmark/wiki_recent/recent_test.json"),
        ("ZsRE", "benchmark/ZsRE/ZsRE-test-all.json"),
        ("wiki_counterfact", "knowedit/wiki_counterfact_train_cf.json"),
        ("convsent", "Convsent/blender_val.json"),
        ("mquake-t", "mquake/MQuAKE-T.json"),
    ] {
        assert_eq!(found(name, Some(folder.path()), None), Path::new(file));
    }
}

#[test]
fn the_hubs_cache_is_read_at_the_revision_of_main() {
    let set = "datasets--zjunlp--KnowEdit";
    let file = |revision: &str| format!("{set}/snapshots/{revision}/benchmark/WikiBio/wikibio-test-all.json");
    let hub = folder(&[&file("aaa"), &file("bbb"), &format!("{set}/refs/main")]);
    std::fs::write(hub.path().join(set).join("refs/main"), "bbb\n").unwrap();
    assert_eq!(found("wikibio", None, Some(hub.path())), Path::new(&file("bbb")));
    // What the user has comes first, with a file for training too.
    let own = folder(&["wikibio-train-all.json"]);
    assert_eq!(found("wikibio", Some(own.path()), Some(hub.path())), Path::new("wikibio-train-all.json"));
    let empty = folder(&[]);
    assert_eq!(found("wikibio", Some(empty.path()), Some(hub.path())), Path::new(&file("bbb")));
    // Only KnowEdit's sets are in that cache.
    let odd = folder(&[&format!("{set}/snapshots/main/benchmark/counterfact.json")]);
    let places = Places { folder: None, hub_cache: Some(odd.path().to_owned()) };
    assert!(find("counterfact", &places).is_err());
}

#[test]
fn any_file_of_the_hubs_cache_is_found_by_its_repository() {
    let set = "datasets--someone--facts";
    let file = format!("{set}/snapshots/abc/data/edits.jsonl");
    let hub = folder(&[&file, &format!("{set}/refs/main")]);
    std::fs::write(hub.path().join(set).join("refs/main"), "abc").unwrap();
    let name = "someone/facts/data/edits.jsonl";
    assert_eq!(found(name, None, Some(hub.path())), Path::new(&file));
    assert_eq!(name_of(name, Path::new(&file)), "edits");
    // What the user has comes first.
    let own = folder(&[name]);
    assert_eq!(found(name, Some(own.path()), Some(hub.path())), Path::new(name));
    let places = Places { folder: None, hub_cache: Some(hub.path().to_owned()) };
    for gone in
        ["someone/facts/edits.jsonl", "someone/facts", "another/facts/data/edits.jsonl", "someone/facts/"]
    {
        let error = find(gone, &places).unwrap_err();
        assert_eq!(error.to_string(), format!("the data set `{gone}` is not found"));
        assert!(error.hint().unwrap().contains("`OWNER/NAME/FILE`"), "{:?}", error.hint());
    }
}

#[test]
fn what_is_not_found_is_told_with_where_it_was_looked_for_and_how_it_is_got() {
    let empty = folder(&["data/x"]);
    let places = Places { folder: Some(empty.path().to_owned()), hub_cache: Some(empty.path().join("hub")) };
    let error = find("zsre", &places).unwrap_err();
    let (what, hint) = (error.to_string(), error.hint().unwrap());
    for wanted in ["`zsre` is not found", &*empty.path().to_string_lossy(), "hub/datasets--zjunlp--KnowEdit"]
    {
        assert!(what.contains(wanted), "{what} lacks {wanted}");
    }
    for wanted in ["hf download zjunlp/KnowEdit", "--repo-type dataset", "`ZsRE/ZsRE-test-all.json`"] {
        assert!(hint.contains(wanted), "{hint} lacks {wanted}");
    }
    let error = find("counterfact", &Places::default()).unwrap_err();
    assert!(error.to_string().ends_with("looked in: no folder is given"), "{error}");
    assert!(!error.hint().unwrap().contains("hf download"), "it is not on the hub");
    let error = find("wiki_recnt", &places).unwrap_err();
    assert_eq!(error.to_string(), "the data set `wiki_recnt` is not found");
    assert!(error.hint().unwrap().contains("did you mean `wiki_recent`?"), "{:?}", error.hint());
    assert!(error.hint().unwrap().contains("`mquake-cf`"), "{:?}", error.hint());
    let error = find(&empty.path().join("data").to_string_lossy(), &places).unwrap_err();
    assert!(error.to_string().contains("is a folder"), "{error}");
}

#[test]
fn names_find_data_sets_in_the_shared_folder() {
    let shared = std::env::var_os("MUTANDIS_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from);
    let folder = shared.join("data");
    if !folder.exists() {
        eprintln!("skipped: {} is not here", folder.display());
        return;
    }
    for (name, file, records) in [
        ("wiki_recent", "knowedit/wiki_recent_train.json", 570),
        ("zsre", "knowedit/ZsRE-test-all.json", 1304),
        ("wikibio", "knowedit/wikibio-test-all.json", 306),
        ("wiki_counterfact", "knowedit/wiki_counterfact_test_cf_885.json", 885),
        ("convsent", "knowedit/convsent_blender_test.json", 800),
        ("sanitation", "knowedit/sanitation_trivia_qa_train.json", 80),
        ("counterfact", "counterfact/counterfact_fullfields_merged.json", 1129),
        ("zsre-mend", "zsre/zsre_mend_eval_portability_gpt4.json", 1037),
        ("mquake-cf", "mquake/AKEW_MQuAKE-CF_354.json", 354),
    ] {
        assert_eq!(found(name, Some(&folder), None), Path::new(file));
        assert_eq!(Set::read(&folder.join(file)).unwrap().records.len(), records, "{name}");
    }
}
