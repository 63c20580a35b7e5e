//! `mutandis bench run --judge`: an endpoint that says whether free answers are right.
#![allow(missing_docs, clippy::unwrap_used)]
#![cfg(unix)]

mod common;

use common::people::{people, run, stories};
use serde_json::{Value, json};

/// An endpoint on this machine that finds every answer right, is busy at its first question, and is
/// gone for those of these numbers.
fn endpoint(gone: std::ops::Range<usize>) -> (String, std::sync::Arc<std::sync::Mutex<Vec<Value>>>) {
    use std::io::{BufRead, BufReader, Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let asked = std::sync::Arc::new(std::sync::Mutex::new(vec![]));
    let log = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let (mut length, mut line, mut key) = (0, String::new(), String::new());
            while stream.read_line(&mut line).unwrap() > 2 {
                let lower = line.to_lowercase();
                if let Some(n) = lower.strip_prefix("content-length:") {
                    length = n.trim().parse().unwrap();
                }
                if lower.starts_with("authorization:") {
                    key.clone_from(&line.trim().to_owned());
                }
                line.clear();
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            let mut question: Value = serde_json::from_slice(&body).unwrap();
            question["key"] = json!(key);
            let number = log.lock().unwrap().len();
            log.lock().unwrap().push(question);
            let reply = json!({"choices": [{"message": {"content": "Yes."}}]}).to_string();
            let status = match number {
                0 => "429 Too Many Requests",
                n if gone.contains(&n) => "404 Not Found",
                _ => "200 OK",
            };
            let head =
                format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", reply.len());
            stream.get_mut().write_all((head + &reply).as_bytes()).unwrap();
        }
    });
    (url, asked)
}

#[test]
fn a_judge_is_asked_about_free_answers_and_about_nothing_else() {
    let (url, asked) = endpoint(0..0);
    let sandbox = people().with("MUTANDIS_JUDGE_KEY", "secret");
    let model = stories();
    let more = ["--method", "r-rome", "--set", "layer=2", "--limit", "2", "--no-fluency", "--json"];
    let judged = [&more[..], &["--judge", &url, "--judge-model", "wise"]].concat();
    let report = sandbox.run(&run(&model, &judged)).ok().json();
    let strict = &report["cells"][0]["after"]["strict"];
    assert_eq!(
        (&strict["edit:judge"]["mean"], &strict["portability:judge"]["mean"]),
        (&json!(1.0), &json!(1.0))
    );
    assert_eq!(strict["locality:judge"], Value::Null);
    let asked = asked.lock().unwrap();
    // Whether it is there, twice, as it was busy; then two records of three questions.
    assert_eq!(asked.len(), 8, "{asked:?}");
    assert!(
        asked.iter().all(|q| q["model"] == "wise" && q["key"].as_str().unwrap().ends_with("Bearer secret"))
    );
    let text = asked[2]["messages"][0]["content"].as_str().unwrap();
    assert!(text.contains("One day, Tom went to the") && text.contains("Reference: house"), "{text}");
    // Nobody is there, or may be asked, or it is no address: nothing is edited in vain.
    let gone =
        [&more[..], &["--judge", "http://127.0.0.1:1/v1", "--judge-model", "wise", "--out", "gone"]].concat();
    sandbox.run(&run(&model, &gone)).fails_with(&["`wise`", "MUTANDIS_JUDGE_KEY"]);
    let offline = [&judged[..], &["--offline", "--out", "gone"]].concat();
    sandbox.run(&run(&model, &offline)).fails_with(&["`wise` cannot be asked", "`--offline`"]);
    let nowhere = [&more[..], &["--judge", "ftp://here", "--judge-model", "wise", "--out", "gone"]].concat();
    sandbox.run(&run(&model, &nowhere)).fails_with(&["`ftp://here` is no address", "http://"]);
    assert!(!sandbox.path("gone").exists());
}

#[test]
fn a_judge_that_fails_costs_no_edit_and_no_verdict() {
    let (url, asked) = endpoint(4..5);
    let sandbox = people();
    let model = stories();
    let words = [
        "--method",
        "r-rome",
        "--set",
        "layer=2",
        "--limit",
        "2",
        "--no-fluency",
        "--judge",
        &url,
        "--judge-model",
        "wise",
    ];
    sandbox.run(&run(&model, &words)).fails_with(&["`wise`", "status 404", "what is done is kept"]);
    let cells = std::fs::read_dir(sandbox.path("results/cells")).unwrap().next().unwrap().unwrap().path();
    let read =
        |name: &str| -> Value { serde_json::from_slice(&std::fs::read(cells.join(name)).unwrap()).unwrap() };
    let scored = read("00000.steps/scored.json");
    sandbox.run(&run(&model, &words)).ok();
    assert_eq!(read("00000.cost.json"), scored["cost"], "it was edited once");
    assert!(!cells.join("00000.steps").exists());
    // Whether it is there (once busy), two verdicts, one that failed; whether it is there, and the other four.
    assert_eq!(asked.lock().unwrap().len(), 2 + 2 + 1 + 1 + 4);
}
