//! What is inside a folder that should be a model.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::spec::is_safe_path;
use crate::{Error, Result};

/// The path that the engine opens, for a path that the user gave: a `.gguf` or `.safetensors`
/// file, a folder with `config.json` and safetensors, or the only GGUF file of a folder.
pub(super) fn open_path(path: &Path) -> Result<PathBuf> {
    if path.is_dir() {
        let example = |choice: &str| path.join(choice).display().to_string();
        return open_folder(path, &path.display().to_string(), example);
    }
    match extension(path).as_str() {
        "gguf" | "safetensors" => Ok(path.to_owned()),
        other => Err(Error::NotAModel {
            path: path.to_owned(),
            what: format!("its name ends in `.{other}`, expected `.gguf` or `.safetensors`"),
        }),
    }
}

/// The same for a folder; `place` and `example` say how the user names it and one of its files.
pub(super) fn open_folder(folder: &Path, place: &str, example: impl Fn(&str) -> String) -> Result<PathBuf> {
    let not_a_model = |what: String| Error::NotAModel { path: folder.to_owned(), what };
    let mut ggufs = Vec::new();
    let mut has_safetensors = false;
    for entry in std::fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let path = entry.map_err(Error::io("read", folder))?.path();
        // A link whose target is gone is a file that is absent.
        if !path.is_file() {
            continue;
        }
        match extension(&path).as_str() {
            "gguf" => ggufs.push(path),
            "safetensors" => has_safetensors = true,
            _ => {}
        }
    }
    let index = folder.join(INDEX);
    if folder.join("config.json").is_file() && (has_safetensors || index.is_file()) {
        if index.is_file() {
            let text = std::fs::read(&index).map_err(Error::io("read", &index))?;
            let shards = shards(&text).map_err(|what| Error::NotAModel { path: index.clone(), what })?;
            if let Some(missing) = shards.iter().find(|shard| !folder.join(shard).is_file()) {
                return Err(not_a_model(format!("`{missing}` of its index is absent")));
            }
        }
        return Ok(folder.to_owned());
    }
    ggufs.sort();
    match ggufs.as_slice() {
        [] if has_safetensors => Err(not_a_model("`config.json` is absent".into())),
        [] => Err(not_a_model("it holds neither a GGUF file nor safetensors".into())),
        [only] => Ok(only.clone()),
        several => {
            let choices: Vec<String> = several
                .iter()
                .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
                .collect();
            let example = example(&choices[0]);
            Err(Error::Ambiguous { place: place.to_owned(), choices, example })
        }
    }
}

/// The file that lists the shards of a checkpoint in several files.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Names of the shards in the text of an index, or what is wrong with it.
pub(super) fn shards(index: &[u8]) -> Result<BTreeSet<String>, String> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let index: Index =
        serde_json::from_slice(index).map_err(|error| format!("not a valid index: {error}"))?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    match shards.iter().find(|shard| !is_safe_path(shard) || shard.contains('/')) {
        Some(hostile) => Err(format!("its shard {hostile:?} is not the name of a file")),
        None if shards.is_empty() => Err("it lists no shard".into()),
        None => Ok(shards),
    }
}

fn extension(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn one_gguf_is_the_model_and_several_are_listed() {
        let one = folder(&[("a.gguf", ""), ("README.md", "")]);
        assert_eq!(open_path(one.path()).unwrap(), one.path().join("a.gguf"));
        let two = folder(&[("b.Q8_0.gguf", ""), ("a.Q4_0.gguf", "")]);
        let error = open_path(two.path()).unwrap_err();
        assert!(error.to_string().ends_with("holds 2 GGUF files: a.Q4_0.gguf, b.Q8_0.gguf"), "{error}");
        assert!(error.hint().unwrap().contains("a.Q4_0.gguf`"));
    }

    #[test]
    fn safetensors_need_their_config_and_every_shard() {
        let index = r#"{"weight_map": {"x": "m-1.safetensors", "y": "m-2.safetensors"}}"#;
        let mut files = vec![("m-1.safetensors", "")];
        let what = |files: &[(&str, &str)]| open_path(folder(files).path()).unwrap_err().to_string();
        assert!(what(&files).contains("`config.json` is absent"));
        files.extend([("config.json", "{}"), (INDEX, index)]);
        assert!(what(&files).contains("`m-2.safetensors` of its index is absent"));
        files.push(("m-2.safetensors", ""));
        let whole = folder(&files);
        assert_eq!(open_path(whole.path()).unwrap(), whole.path());
    }

    #[test]
    fn an_index_cannot_point_outside() {
        for index in [r#"{"weight_map": {"x": "../../secret"}}"#, r#"{"weight_map": {}}"#, "[", "{}"] {
            assert!(shards(index.as_bytes()).is_err(), "{index}");
        }
    }

    #[test]
    fn a_pickle_is_refused_with_a_hint() {
        let folder = folder(&[("pytorch_model.bin", "")]);
        let error = open_path(&folder.path().join("pytorch_model.bin")).unwrap_err();
        assert!(error.hint().unwrap().contains("pickles are not read"));
        assert!(
            open_path(folder.path()).unwrap_err().to_string().contains("neither a GGUF file nor safetensors")
        );
    }
}
