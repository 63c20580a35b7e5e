//! `mutandis patch export --to lora`: patches as an adapter for `peft` or llama.cpp.

use std::path::Path;
use std::process::ExitCode;

use clap::ValueEnum;
use mutandis::engine::checkpoint::Container;
use mutandis_edit::Error;
use mutandis_edit::lora::{Adapter, Module};
use serde_json::json;

use super::export::Given;
use crate::commands::edit::{apart, writable};
use crate::session::Session;

/// What an adapter is to be.
#[derive(Debug)]
pub(super) struct Options<'a> {
    /// A folder for peft, a file for llama.cpp.
    pub(super) out: &'a Path,
    /// By the ending of `out` where `None`.
    pub(super) form: Option<Form>,
    /// Of every matrix; the one that keeps the changes where `None`.
    pub(super) rank: Option<usize>,
    /// Whether what is there is overwritten.
    pub(super) force: bool,
}

/// Whose layout an adapter has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Form {
    /// A folder with `adapter_config.json` and `adapter_model.safetensors`
    Peft,
    /// A GGUF file of type `adapter`, for llama.cpp
    Gguf,
}

/// Below this a loss is the rounding of f32.
const EXACT: f64 = 1e-7;

pub(super) fn run(args: &Options<'_>, given: &Given, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let ends_in_gguf = args.out.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    let (form, container) = match args.form {
        Some(Form::Gguf) => ("gguf", Container::Gguf),
        None if ends_in_gguf => ("gguf", Container::Gguf),
        _ => ("peft", Container::Safetensors),
    };
    apart(session, session.model.as_deref(), args.out, &given.files)?;
    match container {
        Container::Gguf => writable(args.out, args.force)?,
        Container::Safetensors => writable_folder(args.out, args.force)?,
    }
    let model = session.load()?.model;
    let patches = given.read(&model)?;
    let adapter = model.install(|| Adapter::new(&patches, &model, container, args.rank))?;
    adapter.write(args.out)?;
    let modules: Vec<_> = adapter
        .modules
        .iter()
        .map(|m| json!({"name": m.name, "rank": m.rank, "lost": m.lost, "shape": [m.b.len() / m.rank, m.a.len() / m.rank]}))
        .collect();
    let document = json!({
        "adapter": args.out, "form": form, "rank": adapter.rank, "alpha": adapter.rank, "modules": modules,
        "seconds": session.seconds(),
    });
    session.output.print(&document, || {
        let mut lines: Vec<String> = adapter.modules.iter().map(line).collect();
        lines.push(format!("rank and alpha {}, for {form}\n{}", adapter.rank, args.out.display()));
        lines.join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

fn line(module: &Module) -> String {
    let lost = if module.lost <= EXACT {
        "exact".to_owned()
    } else {
        format!("{:.2} % of the change's norm lost", 100.0 * module.lost)
    };
    format!("{}  rank {}, {lost}", module.name, module.rank)
}

/// Finds out before the work that an adapter's folder cannot be made there, or is in use.
fn writable_folder(folder: &Path, force: bool) -> anyhow::Result<()> {
    if !folder.exists() {
        return writable(folder, force);
    }
    let shown = folder.display();
    if !folder.is_dir() {
        let hint = "give the name of a folder for peft, or of a file that ends in `.gguf` for llama.cpp";
        return Err(Error::input_hint(format!("`{shown}` is a file, expected a folder"), hint).into());
    }
    if !force {
        let hint = "choose another name with `--out`, or overwrite the adapter in it with `--force`";
        return Err(Error::input_hint(format!("`{shown}` exists"), hint).into());
    }
    let names: Vec<_> = std::fs::read_dir(folder)?.flatten().map(|entry| entry.file_name()).collect();
    // Programs that know of adapters would apply it to what lies beside.
    if names.iter().any(|name| *name == *"config.json") {
        let hint = "an adapter beside a model would be applied to it: choose another folder with `--out`";
        return Err(Error::input_hint(format!("`{shown}` holds a model (`config.json`)"), hint).into());
    }
    writable(&folder.join("adapter_model.safetensors"), force)
}
