//! What lies in a folder of results, and what may not.

use super::*;

#[test]
fn cells_come_sorted_with_what_is_done() {
    let results = Results::knowedit();
    let (run, cells) = results.read();
    assert_eq!(run.model.layers, 30);
    let names: Vec<(&str, &str, Mode)> =
        cells.iter().map(|c| (c.info.data.name.as_str(), c.info.method.as_str(), c.info.mode)).collect();
    let mut sorted = names.clone();
    sorted.sort_by_key(|n| (n.0.to_owned(), n.1.to_owned(), n.2 == Mode::Sequential));
    assert_eq!((names.len(), &names), (19, &sorted));
    let (info, _) = results.unfinished();
    let part = cells.iter().find(|c| c.id == id(&info)).unwrap();
    assert_eq!((part.done, part.records.len(), part.costs.len(), part.models.len()), (1, 16, 1, 1));
    assert_eq!(part.records[2].record, 7);
}

#[test]
fn what_a_killed_run_leaves_beside_is_not_taken_for_results() {
    let results = Results::knowedit();
    let before = results.read();
    let (_, folder) = results.unfinished();
    std::fs::write(folder.join(".mutandis-x1y2"), "half a").unwrap();
    std::fs::write(folder.join("1.jsonl"), "a copy under another name").unwrap();
    std::fs::write(folder.join("00001.cost.json"), "{").unwrap();
    std::fs::create_dir_all(results.cell("begun")).unwrap();
    std::fs::write(results.path().join("notes.txt"), "mine").unwrap();
    assert_eq!(results.read(), before);
}

#[test]
fn what_is_no_folder_of_results_is_told() {
    let results = Results::knowedit();
    let run = results.path().join("run.json");
    let error = |path: &Path| read(path).unwrap_err().to_string();
    assert!(error(&results.path().join("gone")).contains("it does not exist"));
    assert!(error(&run).contains("it is a file"));
    assert!(error(&results.unfinished().1).contains("cannot read its `run.json`"));
    for (text, expected) in [
        (r#"{"format": 3, "model": 7}"#, "is of format 3, and this version reads format 2"),
        (r#"{"format": 1, "model": 7}"#, "is of format 1, and this version reads format 2"),
        (r#"{"name": "something"}"#, "should have `format` 2, and has none"),
        (r#"{"format": 2}"#, "missing field `tool`"),
        ("{", "is damaged at line 1"),
    ] {
        std::fs::write(&run, text).unwrap();
        assert!(results.error().contains(expected), "{text}: {}", results.error());
    }
    let empty = Results::new();
    assert!(empty.error().contains("no part of any cell is done"));
}

#[test]
fn damage_is_named_with_its_file_and_line() {
    let results = Results::knowedit();
    let (_, folder) = results.unfinished();
    let part = folder.join("00000.jsonl");
    let whole = std::fs::read_to_string(&part).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let with = |lines: &[&str]| {
        std::fs::write(&part, lines.join("\n")).unwrap();
        let error = read(results.path()).unwrap_err();
        assert!(error.to_string().contains("00000.jsonl` is damaged"), "{error}");
        assert!(error.hint().unwrap().contains("only this part is made anew"), "{:?}", error.hint());
        error.to_string()
    };
    // A line broken off, one that is no record.
    assert!(with(&[lines[0], lines[1], &lines[2][..40]]).contains("at line 3: EOF"));
    assert!(with(&[lines[0], "[]"]).contains("line 2"));
    // A part holds its own records, each once, in order, and all of them.
    let other = lines[1].replace("\"record\":4", "\"record\":5");
    assert!(with(&[lines[0], &other]).contains("line 2: it is record 5, where 4 is expected"));
    assert!(with(&[lines[0], lines[1], lines[0]]).contains("line 3: it is record 1, where 7 is expected"));
    assert!(with(&[lines[1], lines[0]]).contains("line 1: it is record 4, where 1 is expected"));
    assert!(with(&lines[..9]).contains("it has 9 of its 16 records"));
    assert!(with(&[]).contains("it has 0 of its 16 records"));
    let next = lines[0].replace("\"record\":1,", "\"record\":49,");
    let long: Vec<&str> = lines.iter().copied().chain([next.as_str()]).collect();
    assert!(with(&long).contains("line 17: it is record 49, and the part has 16 records"));
    std::fs::write(&part, b"\xff\xfe\n").unwrap();
    assert!(results.error().contains("line 1"));
    std::fs::write(&part, &whole).unwrap();
    assert_eq!(results.read().1.len(), 19);

    std::fs::rename(&part, part.with_file_name("00007.jsonl")).unwrap();
    assert!(results.error().contains("is part 7, and its cell has 2 parts"));
}

#[test]
fn a_part_has_what_goes_with_it() {
    let results = Results::knowedit();
    let name = "00000.model.json";
    let file = results.unfinished().1.join(name);
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, "{\n\"measured\": -1}").unwrap();
    let error = read(results.path()).unwrap_err();
    assert!(error.to_string().contains(name) && error.to_string().contains("line 2"), "{error}");
    assert!(error.hint().unwrap().starts_with("run the benchmark again"), "{:?}", error.hint());
    std::fs::remove_file(&file).unwrap();
    let error = read(results.path()).unwrap_err();
    assert!(error.to_string().ends_with(&format!("{name}` is missing")), "{error}");
    assert!(error.hint().unwrap().starts_with("run the benchmark again"), "{:?}", error.hint());
    std::fs::write(&file, whole).unwrap();
    // What it cost may be lost, and nothing else with it.
    let costs = || results.read().1.iter().map(|cell| cell.costs.len()).sum::<usize>();
    let before = costs();
    std::fs::write(file.with_file_name("00000.cost.json"), "{\n\"edits\": -1}").unwrap();
    assert_eq!(costs(), before - 1);
}

#[test]
fn a_cell_says_what_it_is() {
    let results = Results::knowedit();
    let (_, folder) = results.unfinished();
    let path = folder.join("cell.json");
    std::fs::write(&path, "{").unwrap();
    assert!(results.error().contains("cell.json` is damaged at line 1"), "{}", results.error());
    std::fs::remove_file(&path).unwrap();
    assert!(results.error().contains("cell.json` is missing"), "{}", results.error());
    // With no part that is done there is nothing to be told of.
    std::fs::remove_file(folder.join("00000.jsonl")).unwrap();
    assert_eq!(results.read().1.len(), 18);
}

#[test]
fn a_cell_is_the_one_its_name_says() {
    let expected = "was made for another model or changed by hand";
    // Changed by hand, under another name, of another model.
    let results = Results::knowedit();
    let (info, folder) = results.unfinished();
    write(&folder.join("cell.json"), &CellInfo { seed: 7, ..info.clone() });
    assert!(results.error().contains(expected), "{}", results.error());
    write(&folder.join("cell.json"), &info);
    std::fs::rename(&folder, results.cell("zsre-memit-single-0123456789")).unwrap();
    assert!(results.error().contains(&id(&info)), "{}", results.error());

    let results = Results::knowedit();
    let path = results.path().join("run.json");
    let run = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, run.replace(FINGERPRINT, "fedcba9876543210")).unwrap();
    assert!(results.error().contains(expected), "{}", results.error());
}
