//! What numbers in a report say of themselves: of what they are, of how many, by which protocol.

use super::*;

const IN_CONTEXT: &str = "compat, in context";

/// A cell of so many records whose edits are a prompt.
fn ice(count: usize) -> CellInfo {
    let mut info = info("ice", "zsre", Form::Facts, Mode::Single, count);
    info.protocols.insert(IN_CONTEXT.into(), "icl_lm_eval in place of compat".into());
    info
}

fn line<'a>(text: &'a str, start: &str) -> &'a str {
    text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no {start:?} in {text}"))
}

#[test]
fn the_unedited_model_is_told_of_by_a_clean_baseline() {
    let results = Results::new();
    let of = |record: usize, before: f64| compat(record, &[("edit", before)], &[("edit", 1.0)]);
    results.small(&ice(2), &[of(1, 0.75), of(4, 0.75)]);
    let note =
        "†: compat is by EasyEdit’s functions for edits that are a prompt, before and after: icl_lm_eval";
    let (_, markdown, page, _) = reported(&results);
    assert!(line(&markdown, "| *unedited* †").contains("| 75.0"), "{markdown}");
    assert!(markdown.contains(note) && page.contains(note));

    // More records are no reason to let it speak.
    results.small(&info("rome", "zsre", Form::Facts, Mode::Single, 1), &[of(1, 0.25)]);
    let (_, markdown, page, _) = reported(&results);
    assert_eq!(line(&markdown, "| *unedited*"), "| *unedited* |  | 1 of 1 | 25.0 |");
    assert!(line(&markdown, "| ice").starts_with("| ice † | each alone |"), "{markdown}");
    assert!(line(&markdown, "| rome").starts_with("| rome | each alone |"), "{markdown}");
    assert!(markdown.contains(note) && page.contains(note) && page.contains("</a> †<small>"));
}

#[test]
fn a_score_of_fewer_records_says_so_and_is_no_best() {
    let results = Results::new();
    let all = |portability: f64| {
        let scores = [("edit", 0.5), ("portability", portability)];
        [1, 4, 7].map(|record| strict(record, &scores))
    };
    let mut some = all(0.333);
    some[1].after.strict.remove("portability");
    some[2].after.strict.remove("portability");
    results.small(&info("rome", "zsre", Form::Facts, Mode::Single, 3), &some);
    results.small(&info("memit", "zsre", Form::Facts, Mode::Single, 3), &all(0.2));
    // Where all are alike, none is best.
    assert!(line(&reported(&results).1, "| rome").contains("| 3 of 3 | 50.0 (50.0–50.0) |"));
    let lower = [1, 4, 7].map(|record| strict(record, &[("edit", 0.25)]));
    results.small(&info("kn", "zsre", Form::Facts, Mode::Single, 3), &lower);
    let (_, markdown, page, _) = reported(&results);
    let row = line(&markdown, "| rome");
    assert!(row.contains("3 of 3 | **50.0** (50.0–50.0) | 33.3 (n=1) |"), "{row}");
    let row = line(&markdown, "| memit");
    assert!(row.contains("3 of 3 | **50.0** (50.0–50.0) | 20.0 (20.0–20.0) |"), "{row}");
    assert!(page.contains(">33.3<small>(n=1)</small></td>"), "{page}");
    // Two of three have an interval, too.
    some[1].after.strict.insert("portability".into(), 0.333);
    results.small(&info("rome", "zsre", Form::Facts, Mode::Single, 3), &some);
    assert!(reported(&results).1.contains("| 33.3 (33.3–33.3; n=2) |"));
    // The better of two is no best of four: of either other two nobody knows over the same records.
    results.small(&info("emmet", "zsre", Form::Facts, Mode::Single, 3), &all(0.3));
    results.small(&info("pmet", "zsre", Form::Facts, Mode::Single, 3), &some);
    let markdown = reported(&results).1;
    assert!(line(&markdown, "| emmet").ends_with("| 30.0 (30.0–30.0) |"), "{markdown}");
    // With a third it is.
    results.small(&info("encore", "zsre", Form::Facts, Mode::Single, 3), &all(0.1));
    let markdown = reported(&results).1;
    assert!(line(&markdown, "| emmet").ends_with("| **30.0** (30.0–30.0) |"), "{markdown}");
}

#[test]
fn means_over_as_many_other_records_do_not_compete() {
    let results = Results::new();
    for (method, fluency, lacks) in [("rome", 0.4, 1), ("memit", 0.5, 1), ("kn", 0.6, 2), ("emmet", 0.3, 1)] {
        let mut all = [1, 4, 7].map(|record| strict(record, &[("edit", 0.5), ("portability", fluency)]));
        all[lacks].after.strict.remove("portability");
        results.small(&info(method, "zsre", Form::Facts, Mode::Single, 3), &all);
    }
    let markdown = reported(&results).1;
    assert!(line(&markdown, "| memit").contains("**50.0** (50.0–50.0; n=2)"), "{markdown}");
    assert!(line(&markdown, "| kn").contains("| 60.0 (60.0–60.0; n=2)"), "{markdown}");
}

#[test]
fn costs_compare_over_the_data_sets_that_all_have() {
    let results = Results::new();
    let add = |method: &str, data: &str| {
        let records = [strict(1, &[("edit", 0.5)])];
        results.small(&info(method, data, Form::Facts, Mode::Single, 1), &records);
    };
    let caption = || {
        let page = reported(&results).2;
        let at = page.find("Seconds per edit").unwrap();
        page[at..at + page[at..].find('<').unwrap()].to_owned()
    };
    add("rome", "zsre");
    add("memit", "zsre");
    assert!(caption().ends_with(", over all data sets"), "{}", caption());
    add("rome", "people");
    assert!(caption().ends_with(", over zsre, which all have"), "{}", caption());
    add("kn", "mquake");
    assert!(caption().ends_with(", each over its own data sets"), "{}", caption());
}

#[test]
fn a_rise_that_reads_as_none_is_none() {
    let results = Results::new();
    let records = [strict(1, &[("edit", 0.5)])];
    let model =
        |after: f64| ModelResult { measured: 1, perplexity: Some([37.164, after]), ..ModelResult::default() };
    let info = info("rome", "zsre", Form::Facts, Mode::Single, 1);
    results.add(&info, &records, &[model(37.166)], 1);
    assert!(!reported(&results).2.contains("class=\"worse\""));
    results.add(&info, &records, &[model(38.0)], 1);
    assert!(reported(&results).2.contains("class=\"worse\""));
}

#[test]
fn models_as_a_whole_are_counted() {
    let results = Results::new();
    let suite = SuiteInfo { questions: 250, measure: "acc_norm".into(), version: "77aa".into() };
    let general = BTreeMap::from([("piqa".to_owned(), suite.clone())]);
    let info = CellInfo { general, ..info("rome", "zsre", Form::Facts, Mode::Single, 20) };
    let model = |piqa, perplexity| ModelResult {
        measured: 1,
        perplexity: Some([20.0, perplexity]),
        general: BTreeMap::from([("piqa".into(), [0.6, piqa])]),
        ..ModelResult::default()
    };
    let records: Vec<RecordResult> = info.records.iter().map(|&r| strict(r, &[("edit", 0.9)])).collect();
    results.add(&info, &records, &[model(0.5, 20.0), model(0.4, 80.0)], 2);
    // In a sequence there is one model; of other questions the accuracy is another one.
    let fewer = SuiteInfo { questions: 100, ..suite };
    let sequence = CellInfo {
        mode: Mode::Sequential,
        parts: 1,
        general: BTreeMap::from([("piqa".to_owned(), fewer)]),
        ..info
    };
    results.add(&sequence, &records, &[model(0.6, 20.0)], 1);

    let (json, markdown, page, _) = reported(&results);
    let cells = json["cells"].as_array().unwrap();
    let found = &cells[0]["general"]["piqa"];
    assert_eq!(
        (&found["measured"], &found["questions"], &found["measure"]),
        (&json!(2), &json!(250), &json!("acc_norm"))
    );
    assert_eq!(found["interval"], json!([0.4, 0.5]));
    let perplexity = &cells[0]["perplexity"];
    assert_eq!(perplexity["measured"], 2);
    assert!((perplexity["after"].as_f64().unwrap() - 40.0).abs() < 1e-9, "{perplexity}");
    assert_eq!(
        (&cells[1]["perplexity"]["measured"], &cells[1]["perplexity"]["interval"]),
        (&json!(1), &Value::Null)
    );

    let table = &markdown[markdown.find("## The model as a whole").unwrap()..];
    let columns =
        "| edited models | perplexity | piqa (acc_norm, 100 questions) | piqa (acc_norm, 250 questions) |";
    assert!(line(table, "| data set").ends_with(columns), "{table}");
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| zsre")).collect();
    assert!(rows[0].starts_with("| zsre | rome | 2 of 20 edits, each alone |"), "{table}");
    assert!(rows[0].contains("| 20.00 → 40.00 (20.00–80.00; +100.0 %) | – |"), "{table}");
    assert!(rows[0].contains("| 60.0 → 45.0 (40.0–50.0; −15.0) |"), "{table}");
    assert!(rows[1].contains("| 1 sequence | 20.00 → 20.00 (0.0 %) | 60.0 → 60.0 (0.0) | – |"), "{table}");
    for wanted in ["2 of 20 edits, each alone", "1 sequence", "piqa<small>acc_norm, 250 questions</small>"] {
        assert!(page.contains(wanted), "{wanted}");
    }
}

#[test]
fn convsents_published_locality_is_a_divergence() {
    let results = Results::new();
    let record = compat(1, &[("edit", 0.5)], &[("edit", 0.75), ("locality:kl", 0.125)]);
    results.small(&info("rome", "blender_test", Form::ConvSent, Mode::Single, 1), &[record]);
    let (json, markdown, page, _) = reported(&results);
    assert!(
        line(&markdown, "| method").ends_with("| edit success, compat | locality:kl, compat |"),
        "{markdown}"
    );
    assert!(line(&markdown, "| rome").ends_with("| 75.0 | 0.125 |"), "{markdown}");
    assert_eq!(line(&markdown, "| *ICE*"), "| *ICE* | *published* |  | *52.78* | *49.73* |");
    assert!(markdown.contains("under locality’s KL") && page.contains("49.73"));
    let sets = json["published"]["sets"].as_array().unwrap();
    let set = sets.iter().find(|s| s["title"] == "ConvSent").unwrap();
    assert!(set["locality:kl"].is_array() && set["locality"].is_null(), "{set}");
}

#[test]
fn files_of_similar_names_have_no_published_numbers() {
    for (name, is_published) in
        [("test_cf", true), ("train_cf", true), ("recent_news", false), ("trivia_night", false)]
    {
        let results = Results::new();
        let info = info("rome", name, Form::Facts, Mode::Single, 1);
        results.small(&info, &[compat(1, &[], &[("edit", 1.0)])]);
        let (.., page, _) = reported(&results);
        assert_eq!(page.contains("Published, Llama-2-7b-chat"), is_published, "{name}");
    }
}

#[test]
fn curves_over_a_sequence_are_compats() {
    let results = Results::knowedit();
    let (json, markdown, page, _) = reported(&results);
    let cells = json["cells"].as_array().unwrap();
    let sequence = cells.iter().find(|c| c["mode"] == "sequential").unwrap();
    let point = &sequence["retention"][0];
    assert_eq!((&point["edits"], &point["compat"]), (&json!(5), &json!({"edit": 0.9})));
    assert!(point["edit"].is_null(), "no number without its protocol: {point}");
    let stretch = sequence["stretches"][0].as_object().unwrap();
    assert_eq!(stretch.keys().collect::<Vec<_>>(), ["from", "to", "compat"]);
    assert!(markdown.contains("edit success so far, compat"));
    assert!(
        page.contains("edit success so far, %, compat") && page.contains("success at the end, %, compat")
    );
}

#[test]
fn records_left_out_are_named_with_their_reasons() {
    let results = Results::new();
    let mut info = info("rome", "zsre", Form::Facts, Mode::Single, 1);
    info.data.skipped =
        (2..12).map(|record| Skipped { record, why: format!("no <subject> {record}") }).collect();
    results.small(&info, &[strict(1, &[("edit", 1.0)])]);
    let (_, markdown, page, _) = reported(&results);
    assert!(markdown.contains("10 records left out") && page.contains("10 records left out"));
    assert!(markdown.contains("Left out: record 2: no &lt;subject> 2; record 3:"), "{markdown}");
    assert!(markdown.contains("record 9: no &lt;subject> 9; and 2 more."), "{markdown}");
    assert!(page.contains("<summary>Records left out</summary>"));
    assert!(page.contains("<li>record 9: no &lt;subject&gt; 9</li>\n<li>and 2 more</li>"), "{page}");
    assert!(!page.contains("<li>record 10:"));
}
