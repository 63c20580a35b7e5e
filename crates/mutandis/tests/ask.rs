//! `ask`, `chat`, `tokens` and `model show` on tiny models, as a user runs them.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests may panic, and say what they skip")]

mod common;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
};

use common::{Ran, Sandbox};
use serde_json::{Value, json};

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name).to_str().unwrap().to_owned()
}

/// A trained model of 260,000 weights that writes stories.
fn stories() -> String {
    fixture("stories260K.gguf")
}

fn ask(sandbox: &Sandbox, rest: &[&str]) -> Ran {
    let model = stories();
    let mut arguments = vec!["ask", "--model", model.as_str()];
    arguments.extend(rest);
    sandbox.run(&arguments)
}

fn with_stdin(sandbox: &Sandbox, arguments: &[&str], input: &str) -> Ran {
    let mut command = sandbox.command(arguments);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that fails before it reads closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    Ran::from(child.wait_with_output().unwrap())
}

/// A GGUF with one metadata string more: llama's tiny model, made to chat.
fn chatty(sandbox: &Sandbox) -> String {
    const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}\
                            {% if add_generation_prompt %}<assistant>{% endif %}";
    let bytes = std::fs::read(stories()).unwrap();
    let count = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
    let mut out = bytes[..16].to_vec();
    out.extend((count + 1).to_le_bytes());
    let mut added = Vec::new();
    for (text, kind) in [("tokenizer.chat_template", Some(8u32)), (TEMPLATE, None)] {
        added.extend((text.len() as u64).to_le_bytes());
        added.extend(text.bytes());
        added.extend(kind.into_iter().flat_map(u32::to_le_bytes));
    }
    // A whole number of blocks keeps the data aligned: another string fills the rest.
    let fill = |length: usize| {
        let mut entry = (3u64).to_le_bytes().to_vec();
        entry.extend(b"pad");
        entry.extend(8u32.to_le_bytes());
        entry.extend((length as u64).to_le_bytes());
        entry.extend(std::iter::repeat_n(b'x', length));
        entry
    };
    let rest = (added.len() + fill(0).len()) % 32;
    added.extend(fill((32 - rest) % 32));
    out[16..24].copy_from_slice(&(count + 2).to_le_bytes());
    out.extend(added);
    out.extend(&bytes[24..]);
    let path = sandbox.path("chatty.gguf");
    std::fs::write(&path, out).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn text_and_json_tell_the_same_answer() {
    let sandbox = Sandbox::new();
    let text = ask(&sandbox, &["Once upon a time"]).ok();
    assert!(text.stdout.starts_with(", there was a little girl named"), "{text:?}");
    assert_eq!((text.stdout.lines().count(), text.stderr.as_str()), (1, ""));
    let json = ask(&sandbox, &["Once upon a time", "--json"]).ok().json();
    assert_eq!(format!("{}\n", json["text"].as_str().unwrap()), text.stdout);
    assert_eq!((json["tokens"].as_array().unwrap().len(), &json["stop"]), (40, &json!("length")));
    assert_eq!((&json["prompt"], &json["prompt_tokens"]), (&json!("Once upon a time"), &json!(5)));
    assert_eq!(json["model"], stories().as_str());

    let top = json["top"].as_array().unwrap();
    assert_eq!((top.len(), &top[0]["id"], &top[0]["token"]), (20, &json["tokens"][0], &json!(",")));
    let logprobs: Vec<f64> = top.iter().map(|t| t["logprob"].as_f64().unwrap()).collect();
    assert!(logprobs.is_sorted_by(|a, b| a >= b), "{logprobs:?}");
    let total: f64 = logprobs.iter().map(|x| x.exp()).sum();
    assert!(total > 0.5 && total <= 1.0, "{total}");

    let seconds = |name: &str| json["seconds"][name].as_f64().unwrap();
    assert!(seconds("load") > 0.0 && seconds("load") < seconds("first_token"));
    assert!(seconds("first_token") < seconds("total"));
    assert!(json["peak_memory_bytes"].as_u64().unwrap() > 1 << 20);
}

#[test]
fn a_text_may_begin_with_a_minus() {
    let sandbox = Sandbox::new();
    let json = ask(&sandbox, &["-5", "--max-tokens", "1", "--json"]).ok().json();
    assert_eq!(json["prompt"], "-5");
    // A mistyped option is still told as one.
    assert_eq!(ask(&sandbox, &["Once", "--max-token", "1"]).code, Some(2));
}

#[test]
fn no_option_of_speed_changes_an_answer() {
    let sandbox = Sandbox::new();
    let tokens = |rest: &[&str]| {
        let mut arguments = vec!["Tim had a red ball", "--json", "--max-tokens", "60"];
        arguments.extend(rest);
        ask(&sandbox, &arguments).ok().json()["tokens"].clone()
    };
    let plain = tokens(&[]);
    for rest in [["--threads", "1"], ["--threads", "3"], ["--weights", "f32"], ["--weights", "quantized"]] {
        assert_eq!(tokens(&rest), plain, "{rest:?}");
    }
    let drawn = |seed| tokens(&["--temperature", "1", "--top-k", "40", "--seed", seed]);
    assert_eq!(drawn("3"), drawn("3"));
    assert_ne!(drawn("3"), drawn("4"));
    assert_ne!(tokens(&["--top-p", "0.99"]), plain, "top-p alone means temperature 1");
}

#[test]
fn stop_strings_and_lengths_end_an_answer() {
    let sandbox = Sandbox::new();
    let ran = ask(&sandbox, &["Once upon a time", "--stop", "girl", "--stop", "zebra", "--json"]).ok();
    assert_eq!(
        (&ran.json()["text"], &ran.json()["stop"]),
        (&json!(", there was a little "), &json!("stop-string"))
    );
    assert_eq!(ask(&sandbox, &["Once upon a time", "--stop", " girl"]).ok().stdout, ", there was a little\n");
    let one = ask(&sandbox, &["Once upon a time", "--max-tokens", "1"]).ok();
    assert_eq!(one.stdout, ",\n");
    let full = ask(&sandbox, &["Once upon a time", "--max-tokens", "100000", "--temperature", "1"]).ok();
    let ended = full.stderr.contains("context of 512 tokens is full");
    assert!(ended || full.stdout.len() < 3000, "{full:?}");
}

#[test]
fn what_cannot_be_asked_is_refused_with_a_hint() {
    let sandbox = Sandbox::new();
    ask(&sandbox, &[""]).fails_with(&["error: the text is empty\n", "hint: "]);
    let long = "once upon a time ".repeat(600);
    ask(&sandbox, &[&long]).fails_with(&["longer than the model's context of 512", "hint: shorten"]);
    ask(&sandbox, &["a", "--chat"]).fails_with(&["has no chat template", "hint: "]);
    ask(&sandbox, &["a", "--temperature", "-1"]).fails_with(&["temperature is -1", "hint: "]);
    ask(&sandbox, &["a", "--top-p", "2"]).fails_with(&["is 2", "hint: "]);
    ask(&sandbox, &["a", "--top-k", "0"]).fails_with(&["is 0", "hint: "]);
    ask(&sandbox, &["a", "--stop", ""]).fails_with(&["stop string is empty", "hint: "]);
    ask(&sandbox, &["a", "--max-tokens", "0"]).fails_with(&["max-tokens"]);
    ask(&sandbox, &["a", "--patch", "gone.patch.safetensors"]).fails_with(&["gone.patch.safetensors"]);
    sandbox.run(&["ask", "a", "--model", "smolm2"]).fails_with(&["`smolm2`", "hint: short names"]);

    let bytes = std::fs::read(stories()).unwrap();
    let cut = sandbox.path("cut.gguf");
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    sandbox.run(&["ask", "a", "--model", cut.to_str().unwrap()]).fails_with(&["cut.gguf", "hint: "]);
}

#[test]
fn an_answer_that_nobody_reads_ends_quietly() {
    let sandbox = Sandbox::new();
    let model = stories();
    let mut child = sandbox
        .command(&["ask", "Once upon a time", "--model", &model, "--max-tokens", "400"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
}

#[test]
fn a_chat_remembers_and_forgets() {
    let sandbox = Sandbox::new();
    let model = chatty(&sandbox);
    let base = ["chat", "--model", model.as_str(), "--max-tokens", "12", "--json"];
    let input = "Once upon a time\n\nWho was she?\n/reset\nOnce upon a time\n/exit\nnever read\n";
    let ran = with_stdin(&sandbox, &base, input).ok();
    let turns: Vec<Value> = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(turns.len(), 3, "{ran:?}");
    assert_eq!((&turns[0]["turn"], &turns[1]["user"]), (&json!(1), &json!("Who was she?")));
    // The second turn reads the first one's prompt from the cache at least, and then some.
    let number = |turn: usize, name: &str| turns[turn][name].as_u64().unwrap();
    assert!(number(1, "reused_tokens") >= number(0, "prompt_tokens"), "{turns:?}");
    assert!(number(1, "prompt_tokens") > number(1, "reused_tokens"));
    assert_eq!(
        (&turns[2]["text"], &turns[2]["prompt_tokens"]),
        (&turns[0]["text"], &turns[0]["prompt_tokens"])
    );

    let plain = with_stdin(&sandbox, &base[..5], "Once upon a time\n").ok();
    assert_eq!(plain.stdout, format!("{}\n", turns[0]["text"].as_str().unwrap()));
    assert_eq!(plain.stderr, "");

    let system = with_stdin(&sandbox, &[&base[..], &["--system", "Be brief."]].concat(), "Hello\n").ok();
    let without = with_stdin(&sandbox, &base, "Hello\n").ok();
    assert!(system.json()["prompt_tokens"].as_u64() > without.json()["prompt_tokens"].as_u64());
    let asked =
        sandbox.run(&["ask", "--chat", "Hello", "--model", &model, "--max-tokens", "12", "--json"]).ok();
    assert_eq!(asked.json()["text"], without.json()["text"]);
    assert_eq!(asked.json()["prompt"], "<user>Hello\n<assistant>");
}

#[test]
fn a_model_that_was_not_trained_to_chat_says_so() {
    let sandbox = Sandbox::new();
    with_stdin(&sandbox, &["chat", "--model", &stories()], "Hello\n")
        .fails_with(&["has no chat template", "hint: `mutandis ask"]);
    let model = chatty(&sandbox);
    let long = format!("{}\n", "once upon a time ".repeat(600));
    with_stdin(&sandbox, &["chat", "--model", &model], &long)
        .fails_with(&["longer than the model's context", "hint: "]);
}

#[test]
fn tokens_show_ids_pieces_and_characters() {
    let sandbox = Sandbox::new();
    let model = stories();
    let shown = sandbox.run(&["tokens", "a café", "--model", &model, "--json"]).ok().json();
    assert_eq!(shown["text"], "a café");
    let pieces: String =
        shown["pieces"].as_array().unwrap()[1..].iter().map(|p| p.as_str().unwrap()).collect();
    let ids = shown["ids"].as_array().unwrap();
    assert_eq!((ids.len(), &ids[0]), (shown["offsets"].as_array().unwrap().len(), &json!(1)));
    assert!(pieces.starts_with(" a caf"), "{pieces}");
    assert_eq!(shown["offsets"][0], json!([0, 0]), "BOS covers nothing");
    assert_eq!(shown["offsets"].as_array().unwrap().last().unwrap()[1], 6);
    let table = sandbox.run(&["tokens", "a café", "--model", &model]).ok().stdout;
    assert_eq!(table.lines().count(), ids.len() + 1);
    let count = sandbox.run(&["tokens", "a café", "--model", &model, "--count"]).ok().stdout;
    assert_eq!(count, format!("{}\n", ids.len()));
}

#[test]
fn a_file_of_texts_is_cut_line_by_line() {
    let sandbox = Sandbox::new();
    let model = stories();
    let path = sandbox.path("texts.jsonl");
    std::fs::write(&path, "{\"text\": \"One\", \"more\": 1}\n\n{\"text\": \"a \\n b\"}\n").unwrap();
    let base = ["tokens", "--model", &model, "--file", "texts.jsonl"];
    let json = [&base[..], &["--json"]].concat();
    let ran = sandbox.run(&json).ok();
    let lines: Vec<Value> = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[1]["text"]), (2, &json!("a \n b")));
    let alone = sandbox.run(&["tokens", "One", "--model", &model, "--json"]).ok().json();
    assert_eq!(lines[0]["ids"], alone["ids"]);
    let piped =
        with_stdin(&sandbox, &["tokens", "--model", &model, "--file", "-", "--json"], "{\"text\": \"One\"}");
    assert_eq!(piped.ok().json()["ids"], alone["ids"]);

    for (bad, what) in
        [("{\"txt\": 1}", "text"), ("{", "EOF"), ("{\"text\": 1}", "string"), ("\u{0}", "value")]
    {
        std::fs::write(&path, format!("{{\"text\": \"One\"}}\n{bad}\n{{\"text\": \"never\"}}\n")).unwrap();
        let ran = sandbox.run(&json);
        assert_eq!((ran.code, ran.stdout.lines().count()), (Some(2), 1), "{ran:?}");
        for part in ["line 2 of `texts.jsonl`", what, "hint: "] {
            assert!(ran.stderr.contains(part), "no {part:?} in {}", ran.stderr);
        }
    }
    sandbox.run(&["tokens", "--model", &model, "--file", "gone.jsonl"]).fails_with(&["gone.jsonl"]);
    sandbox.run(&["tokens", "--model", &model]).fails_with(&["TEXT"]);
}

#[test]
fn show_tells_what_a_checkpoint_declares() {
    let sandbox = Sandbox::new();
    let shown = sandbox.run(&["model", "show", &stories(), "--json"]).ok().json();
    assert_eq!(
        (&shown["family"], &shown["layers"], &shown["context"]),
        (&json!("llama"), &json!(5), &json!(512))
    );
    assert_eq!((&shown["tokenizer"], &shown["chat_template"]), (&json!("sentencepiece"), &json!(false)));
    assert_eq!(shown["fingerprint"].as_str().unwrap().len(), 64);
    assert_eq!(shown["error"], Value::Null);
    // 260,032 weights, as its makers count them.
    assert_eq!(shown["parameters"], 260_032);
    let formats: u64 = shown["formats"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(formats, 5 * 9 + 2);
    assert!(sandbox.run(&["model", "show", &fixture("gemma3")]).ok().stdout.contains("gemma3"));

    // Of a damaged one it tells what can be told, and fails.
    let bytes = std::fs::read(stories()).unwrap();
    std::fs::write(sandbox.path("cut.gguf"), &bytes[..bytes.len() - 1000]).unwrap();
    let ran = sandbox.run(&["model", "show", "cut.gguf"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stdout.contains("cut.gguf") && ran.stderr.contains("\nhint: "), "{ran:?}");
}

#[test]
fn too_many_threads_are_refused() {
    let sandbox = Sandbox::new();
    let ran = sandbox.run(&["ask", "Once", "--model", &stories(), "--threads", "9999999"]);
    ran.fails_with(&["--threads", "expected 1 to 1024"]);
}

#[test]
fn the_kernels_can_be_chosen() {
    let model = stories();
    let usual = ["ask", "Once upon a time", "--model", &model];
    let texts: Vec<String> = ["portable", "avx2"]
        .map(|kernels| Sandbox::new().with("MUTANDIS_KERNELS", kernels).run(&usual))
        .into_iter()
        // A processor may not have them; it is told so then.
        .filter_map(|ran| {
            if ran.code == Some(0) {
                Some(ran.stdout)
            } else {
                ran.fails_with(&["`avx2`"]);
                None
            }
        })
        .collect();
    assert!(texts.iter().all(|t| t.starts_with(", there was a little girl")), "{texts:?}");
    let odd = Sandbox::new().with("MUTANDIS_KERNELS", "mmx").run(&usual);
    odd.fails_with(&["`mmx`", "expected", "`portable`", "hint: "]);
}

#[test]
fn ids_are_llama_cpps_for_both_real_models() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = |variable: &str, default: &str| {
        std::env::var_os(variable).map_or_else(|| root.join("../../..").join(default), PathBuf::from)
    };
    let golden = folder("MUTANDIS_SHARED", "shared").join("golden/tokens.jsonl");
    let models = folder("MUTANDIS_TEST_MODELS", "models");
    let sandbox = Sandbox::new();
    for (name, file) in
        [("smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"), ("gemma3", "gemma-3-270m-q4_k_m.gguf")]
    {
        let model = models.join(file);
        if !golden.exists() || !model.exists() {
            eprintln!("skipped: `{}` or `{}` is absent", golden.display(), model.display());
            continue;
        }
        let (model, golden_path) = (model.to_str().unwrap(), golden.to_str().unwrap());
        let ran = sandbox.run(&["tokens", "--model", model, "--file", golden_path, "--json"]).ok();
        let expected = std::fs::read_to_string(&golden).unwrap();
        let pairs = ran.stdout.lines().zip(expected.lines());
        for (found, expected) in pairs {
            let [found, expected] =
                [found, expected].map(|line| serde_json::from_str::<Value>(line).unwrap());
            assert_eq!((&found["ids"], &found["text"]), (&expected[name], &expected["text"]));
        }
        assert_eq!(ran.stdout.lines().count(), expected.lines().count());
    }
}
