//! Models by hub id, against a hub on 127.0.0.1.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{
    Ran, Sandbox,
    hub::{COMMIT, Hub},
    noise, sha256, tree,
};

const INDEX: &[u8] = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;

/// Larger than the buffers of a socket, so that a cut or a pause is felt in the middle.
const LARGE: usize = 600_000;

fn sandbox(hub: &Hub) -> Sandbox {
    Sandbox::new().with("HF_ENDPOINT", &hub.endpoint)
}

fn gguf_hub() -> (Hub, Vec<u8>) {
    let bytes = noise(7, LARGE);
    (Hub::new(&[("README.md", b"read me", false), ("m.gguf", &bytes, true)]), bytes)
}

fn blobs(sandbox: &Sandbox) -> Vec<String> {
    tree(&sandbox.path(".cache/huggingface/hub/models--org--name/blobs"))
}

#[test]
fn a_repository_lands_in_the_standard_layout_and_only_what_is_needed() {
    let (one, two) = (noise(1, 50_000), noise(2, 70_000));
    let hub = Hub::new(&[
        (".gitattributes", b"x", false),
        ("README.md", b"read me", false),
        ("config.json", b"{}", false),
        ("tokenizer.json", b"{\"a\": 1}", false),
        ("tokenizer_config.json", b"{\"b\": 2}", false),
        ("chat_template.jinja", b"{{ x }}", false),
        ("model.safetensors.index.json", INDEX, false),
        ("model-1.safetensors", &one, true),
        ("model-2.safetensors", &two, true),
        ("consolidated.safetensors", &noise(3, 9), true),
        ("pytorch_model.bin", b"pickle", true),
        ("onnx/config.json", b"{}", false),
    ]);
    let sandbox = sandbox(&hub);
    let path = sandbox.run(&["model", "get", "org/name"]).ok().stdout;
    let repository = sandbox.path(".cache/huggingface/hub/models--org--name");
    let snapshot = repository.join("snapshots").join(COMMIT);
    assert_eq!(Path::new(path.trim_end()), snapshot);
    let expected = [
        "chat_template.jinja",
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(tree(&snapshot), expected);
    assert_eq!(hub.fetched(), expected);
    assert_eq!(std::fs::read(snapshot.join("model-2.safetensors")).unwrap(), two);
    let link = std::fs::read_link(snapshot.join("model-1.safetensors")).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(sha256(&one)));
    assert_eq!(std::fs::read_to_string(repository.join("refs/main")).unwrap(), COMMIT);
    assert!(!blobs(&sandbox).iter().any(|name| name.ends_with(".incomplete")));

    // Again: the state is asked for, nothing is fetched; offline, nothing is asked.
    hub.change(|state| state.log.clear());
    sandbox.run(&["model", "get", "org/name"]).ok();
    assert_eq!(hub.fetched(), [""; 0]);
    hub.change(|state| state.log.clear());
    assert_eq!(sandbox.run(&["model", "get", "org/name", "--offline"]).ok().stdout, path);
    let list = sandbox.run(&["model", "list", "--json"]).ok().json();
    assert_eq!(list["hub"][0]["name"], "org/name");
    assert_eq!(list["hub"][0]["source"]["commit"], COMMIT);
    let show = sandbox.run(&["model", "show", "org/name", "--json"]).tells_of_no_model().json();
    assert_eq!(show["files"].as_array().unwrap().iter().filter(|f| f["sha256"] == sha256(&two)).count(), 1);
    assert!(hub.log().is_empty(), "looking asks nobody");
}

#[test]
fn a_snapshot_that_another_tool_left_half_is_made_whole() {
    let hub = Hub::new(&[("config.json", b"{}", false), ("model.safetensors", &noise(1, 1000), true)]);
    let sandbox = sandbox(&hub);
    let repository = sandbox.path(".cache/huggingface/hub/models--org--name");
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::create_dir_all(repository.join("snapshots").join(COMMIT)).unwrap();
    std::fs::write(repository.join("refs/main"), COMMIT).unwrap();
    std::fs::write(repository.join("snapshots").join(COMMIT).join("config.json"), "{}").unwrap();
    sandbox
        .run(&["model", "show", "org/name"])
        .fails_with(&["`org/name` is not on this machine", "hint: `mutandis model get"]);
    sandbox.run(&["model", "get", "org/name"]).ok();
    sandbox.run(&["model", "show", "org/name"]).tells_of_no_model();
}

#[test]
fn a_connection_that_is_cut_is_taken_up_where_it_broke() {
    let (hub, bytes) = gguf_hub();
    hub.change(|state| state.cut_after = Some(200_000));
    let sandbox = sandbox(&hub);
    let path = sandbox.run(&["model", "get", "org/name"]).ok().stdout;
    assert_eq!(std::fs::read(path.trim_end()).unwrap(), bytes);
    let ranges: Vec<_> =
        hub.log().into_iter().filter(|r| r.path.starts_with("/storage/")).map(|r| r.range).collect();
    assert_eq!(ranges.last().unwrap().as_deref(), Some("bytes=200000-"), "{ranges:?}");
    assert_eq!(hub.fetched(), ["m.gguf"]);
}

#[test]
fn an_interruption_keeps_the_part_and_the_next_run_goes_on() {
    let (hub, bytes) = gguf_hub();
    hub.change(|state| state.pause = Duration::from_millis(40));
    let sandbox = sandbox(&hub);
    let child = sandbox
        .command(&["model", "get", "org/name"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let partial = sandbox
        .path(".cache/huggingface/hub/models--org--name/blobs")
        .join(format!("{}.incomplete", sha256(&bytes)));
    let patience = Instant::now();
    while partial.metadata().map_or(0, |meta| meta.len()) < 50_000 {
        assert!(patience.elapsed() < Duration::from_secs(20), "the download never began");
        std::thread::sleep(Duration::from_millis(10));
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    Ran::from(child.wait_with_output().unwrap())
        .fails_with(&["error: interrupted", "hint: what was fetched is kept"]);
    let kept = partial.metadata().unwrap().len();
    assert!((50_000..LARGE as u64).contains(&kept), "{kept}");
    assert_eq!(blobs(&sandbox).len(), 1, "nothing under its final name");
    assert!(tree(&sandbox.path(".cache/huggingface/hub/models--org--name/snapshots")).is_empty());

    hub.change(|state| state.pause = Duration::ZERO);
    let path = sandbox.run(&["model", "get", "org/name"]).ok().stdout;
    assert_eq!(std::fs::read(path.trim_end()).unwrap(), bytes);
    assert_eq!(hub.log().last().unwrap().range, Some(format!("bytes={kept}-")));
}

#[test]
fn the_token_opens_the_hub_and_is_not_told_to_the_storage() {
    let (hub, _) = gguf_hub();
    hub.change(|state| state.token = Some("hf_secret".into()));
    let without = sandbox(&hub);
    without.run(&["model", "get", "org/name"]).fails_with(&["status 401", "hint:", "`HF_TOKEN`"]);
    sandbox(&hub).with("HF_TOKEN", "hf_secret").run(&["model", "get", "org/name"]).ok();
    let log = hub.log();
    let to_storage: Vec<_> = log.iter().filter(|r| r.path.starts_with("/storage/")).collect();
    assert!(!to_storage.is_empty() && to_storage.iter().all(|r| r.authorization.is_none()), "{to_storage:?}");
}

#[test]
fn what_is_not_there_is_said_with_a_hint() {
    let (hub, _) = gguf_hub();
    let sandbox = sandbox(&hub);
    sandbox.run(&["model", "get", "other/name"]).fails_with(&["status 404", "hint: check the spelling"]);
    sandbox.run(&["model", "get", "org/name@gone"]).fails_with(&["status 404"]);
    sandbox.run(&["model", "get", "org/name:gone.gguf"]).fails_with(&["gone.gguf` answered with status 404"]);
}

#[test]
fn content_that_does_not_match_its_checksum_is_thrown_away() {
    let (hub, _) = gguf_hub();
    hub.change(|state| state.files[1].bytes[300_000] ^= 1);
    let sandbox = sandbox(&hub);
    sandbox.run(&["model", "get", "org/name"]).fails_with(&["has sha256", "expected", "hint:"]);
    assert_eq!(blobs(&sandbox), [""; 0]);
}

#[test]
fn a_beginning_that_is_of_another_file_is_thrown_away() {
    let (hub, bytes) = gguf_hub();
    let sandbox = sandbox(&hub);
    let folder = sandbox.path(".cache/huggingface/hub/models--org--name/blobs");
    std::fs::create_dir_all(&folder).unwrap();
    for (length, seed) in [(1000, 1), (LARGE, 2), (LARGE + 5, 3)] {
        let _ = std::fs::remove_file(folder.join(sha256(&bytes)));
        std::fs::write(folder.join(format!("{}.incomplete", sha256(&bytes))), noise(seed, length)).unwrap();
        let path = sandbox.run(&["model", "get", "org/name"]).ok().stdout;
        assert_eq!(std::fs::read(path.trim_end()).unwrap(), bytes, "{length}");
        assert_eq!(blobs(&sandbox), [sha256(&bytes)]);
    }
}

#[test]
fn a_blob_that_went_bad_is_found_by_verify() {
    let (hub, bytes) = gguf_hub();
    let sandbox = sandbox(&hub);
    let path = sandbox.run(&["model", "get", "org/name"]).ok().stdout;
    let blob = sandbox.path(".cache/huggingface/hub/models--org--name/blobs").join(sha256(&bytes));
    let mut damaged = bytes.clone();
    damaged[5] ^= 1;
    std::fs::write(&blob, &damaged).unwrap();
    sandbox.run(&["model", "get", "org/name", "--verify", "--offline"]).fails_with(&["has sha256", "hint:"]);
    assert_eq!(std::fs::read(&blob).unwrap(), damaged, "offline, a damaged file is better than none");
    sandbox.run(&["model", "get", "org/name", "--verify"]).ok();
    assert_eq!(std::fs::read(path.trim_end()).unwrap(), bytes);
}

#[test]
fn two_at_once_fetch_once() {
    let (hub, bytes) = gguf_hub();
    hub.change(|state| state.pause = Duration::from_millis(5));
    let sandbox = sandbox(&hub);
    let start = || {
        let mut command = sandbox.command(&["model", "get", "org/name"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let both = [start(), start()].map(|child| Ran::from(child.wait_with_output().unwrap()).ok());
    for ran in &both {
        assert_eq!(std::fs::read(ran.stdout.trim_end()).unwrap(), bytes);
    }
    assert!(both.iter().any(|ran| ran.stderr.contains("waiting for it")), "{both:?}");
    let gets = hub.log().iter().filter(|r| r.method == "GET" && r.path.starts_with("/storage/")).count();
    assert_eq!(gets, 1);
}

#[test]
fn offline_nobody_is_asked() {
    let (hub, _) = gguf_hub();
    for (variable, value, flag) in
        [("HF_HUB_OFFLINE", "1", None), ("TRANSFORMERS_OFFLINE", "yes", None), ("X", "", Some("--offline"))]
    {
        let sandbox = sandbox(&hub).with(variable, value);
        let by = flag.unwrap_or(variable);
        for name in ["org/name", "smollm2"] {
            let mut arguments = vec!["model", "get", name];
            arguments.extend(flag);
            sandbox
                .run(&arguments)
                .fails_with(&[&format!("switched off by {by}"), "hint: run `mutandis model get"]);
        }
    }
    assert!(hub.log().is_empty());
}

#[test]
fn several_gguf_files_are_listed_and_one_can_be_named() {
    let (small, large) = (noise(1, 1000), noise(2, 2000));
    let hub = Hub::new(&[("m.Q4_0.gguf", &small, true), ("q8/m.Q8_0.gguf", &large, true)]);
    let sandbox = sandbox(&hub);
    sandbox.run(&["model", "get", "org/name"]).fails_with(&[
        "`org/name` holds 2 GGUF files: m.Q4_0.gguf, q8/m.Q8_0.gguf",
        "hint: name one of them, as in `--model org/name:m.Q4_0.gguf`",
    ]);
    let path = sandbox.run(&["model", "get", "org/name:q8/m.Q8_0.gguf"]).ok().stdout;
    assert_eq!(std::fs::read(path.trim_end()).unwrap(), large);
    assert_eq!(hub.fetched(), ["m.Q8_0.gguf"]);
    // The only one that is cached is the one that is meant.
    assert_eq!(sandbox.run(&["model", "get", "org/name", "--offline"]).ok().stdout, path);
}

#[test]
fn a_hostile_hub_cannot_write_elsewhere() {
    let weights = noise(1, 1000);
    let evil_index = br#"{"weight_map": {"a": "../../../../evil.safetensors"}}"#;
    let hub = Hub::new(&[("../../evil.gguf", &weights, true), ("m.gguf", &weights, true)]);
    let sandbox = sandbox(&hub);
    sandbox.run(&["model", "get", "org/name"]).ok();
    assert_eq!(hub.fetched(), ["m.gguf"]);
    hub.change(|state| state.commit = "../../../../../evil".into());
    sandbox.run(&["model", "get", "org/name"]).fails_with(&["the commit \"../../../../../evil\""]);
    hub.change(|state| {
        state.commit = COMMIT.into();
        state.files[1].etag = "../../evil".into();
    });
    sandbox.run(&["model", "get", "org/name"]).fails_with(&["no ETag that can name a file"]);
    let hub = Hub::new(&[("config.json", b"{}", false), ("model.safetensors.index.json", evil_index, false)]);
    let sandbox = sandbox.with("HF_ENDPOINT", &hub.endpoint);
    sandbox.run(&["model", "get", "org/other"]).fails_with(&["is not the name of a file"]);
    assert!(!tree(&sandbox.path("")).iter().any(|path| path.contains("evil")));
}

#[test]
fn a_hub_that_cannot_be_reached_fails_fast() {
    let began = Instant::now();
    Sandbox::new().run(&["model", "get", "org/name"]).fails_with(&[
        "cannot reach `http://127.0.0.1:1`",
        "caused by:",
        "hint:",
    ]);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing_under_a_final_name() {
    let (hub, _) = gguf_hub();
    let sandbox = sandbox(&hub);
    // A limit on the size of files stands in for a full disk; 100 blocks are 51200 bytes, or
    // 102400 where the shell counts in kilobytes.
    let script =
        format!("trap '' XFSZ; ulimit -f 100; exec '{}' model get org/name", env!("CARGO_BIN_EXE_mutandis"));
    let output =
        Command::new("sh").args(["-c", &script]).env_clear().envs(sandbox.variables.iter().cloned()).output();
    Ran::from(output.unwrap()).fails_with(&["no space left to write", "caused by:", "hint: free some space"]);
    assert_eq!(blobs(&sandbox).len(), 1);
    assert!(blobs(&sandbox)[0].ends_with(".incomplete"));
    sandbox.run(&["model", "get", "org/name"]).ok();
}
