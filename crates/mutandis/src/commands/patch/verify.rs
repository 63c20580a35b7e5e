//! `mutandis patch verify`: whether a patch is whole and belongs to the model.

use std::path::Path;
use std::process::ExitCode;

use mutandis_edit::Patch;
use serde_json::json;

use crate::session::Session;

pub(super) fn run(file: &Path, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    let patch = Patch::load(file)?;
    let model = session.load()?.model;
    patch.overlay(&model)?;
    let document = json!({"patch": file, "valid": true, "base": patch.base.fingerprint});
    session.output.print(&document, || format!("`{}` is whole and belongs to this model", file.display()))?;
    Ok(ExitCode::SUCCESS)
}
