//! Settings found for a model: data files, chosen by what the checkpoint declares.
//!
//! A recipe takes the place of published settings where the user gives none. How each was found
//! stands in its file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mutandis_engine::{Architecture, Model};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::atomic;
use crate::error::{Error, Result};

/// The shipped files: what was found here, and what was published for models of one shape.
const FILES: &[&str] = &[
    include_str!("../recipes/smollm2-135m.toml"),
    include_str!("../recipes/gemma3-270m.toml"),
    include_str!("../recipes/published/gpt2-medium.toml"),
    include_str!("../recipes/published/gpt2-large.toml"),
    include_str!("../recipes/published/gpt2-xl.toml"),
    include_str!("../recipes/published/gpt-j-6b.toml"),
    include_str!("../recipes/published/gpt-neox-20b.toml"),
    include_str!("../recipes/published/llama2-7b.toml"),
    include_str!("../recipes/published/llama3-8b.toml"),
    include_str!("../recipes/published/llama3.2-3b.toml"),
    include_str!("../recipes/published/qwen2.5-7b.toml"),
];

/// Settings of methods for one model, or for all of one shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    model: Shape,
    /// Settings by method.
    methods: BTreeMap<String, Value>,
    /// How they were found, by method: for people.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    found: BTreeMap<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shape {
    family: mutandis_engine::architecture::Family,
    layers: usize,
    width: usize,
    mlp_width: usize,
}

impl Shape {
    fn of(a: &Architecture) -> Self {
        Self { family: a.family, layers: a.layers, width: a.width, mlp_width: a.mlp_width }
    }
}

/// The shipped settings of a method for models of this shape.
pub(crate) fn shipped(architecture: &Architecture, method: &str) -> Option<Value> {
    let recipes =
        FILES.iter().map(|text| toml::from_str::<Recipe>(text).expect("shipped recipes are tested"));
    recipes.filter(|r| r.model == Shape::of(architecture)).find_map(|r| r.settings(method))
}

impl Recipe {
    /// An empty recipe for models of this shape.
    pub fn new(model: &Model) -> Self {
        let model = Shape::of(model.architecture());
        Self { model, methods: BTreeMap::new(), found: BTreeMap::new() }
    }

    /// Where the recipe of a model is kept in a cache folder.
    ///
    /// # Errors
    /// Where the model cannot be hashed.
    pub fn place(cache: &Path, model: &Model) -> Result<PathBuf> {
        let name: String = model.fingerprint()?.chars().take(16).collect();
        Ok(cache.join("recipes").join(format!("{name}.toml")))
    }

    /// Reads a recipe, and checks that it is for models of this shape and of methods and settings
    /// that exist.
    ///
    /// # Errors
    /// Where it cannot be read, is no recipe, or is for other models.
    pub fn read(path: &Path, model: &Model) -> Result<Self> {
        let hint = "`mutandis locate sweep` writes one";
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::input_hint(format!("cannot read the recipe `{}`: {e}", path.display()), hint)
        })?;
        let recipe: Self = toml::from_str(&text).map_err(|e| {
            Error::input_hint(format!("`{}` is no recipe: {}", path.display(), e.message()), hint)
        })?;
        let found = Shape::of(model.architecture());
        if recipe.model != found {
            return Err(Error::input_hint(
                format!(
                    "the recipe `{}` is for other models: it expects {:?}, this one is {found:?}",
                    path.display(),
                    recipe.model
                ),
                "find one for this model with `mutandis locate sweep`",
            ));
        }
        for (method, settings) in &recipe.methods {
            crate::find(method)?.check_settings(settings)?;
        }
        Ok(recipe)
    }

    /// Settings of a method, where it has them.
    pub fn settings(&self, method: &str) -> Option<Value> {
        self.methods.get(method).cloned()
    }

    /// Sets a method's settings, and how they were found.
    pub fn set(&mut self, method: &str, settings: Value, found: Value) {
        self.methods.insert(method.to_owned(), settings);
        self.found.insert(method.to_owned(), found);
    }

    /// Writes the recipe, whole or not at all; its folder is made if need be.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text =
            toml::to_string(self).map_err(|e| Error::input(format!("no recipe can be written: {e}")))?;
        let folder = atomic::folder_of(path);
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        atomic::write(path, |file| file.write_all(text.as_bytes())).map_err(Error::io("write", path))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn shipped_recipes_name_methods_and_settings_that_exist() {
        let mut shapes = std::collections::HashSet::new();
        for text in FILES {
            let recipe: Recipe = toml::from_str(text).unwrap();
            assert!(shapes.insert(format!("{:?}", recipe.model)), "{:?} has two recipes", recipe.model);
            for (method, settings) in &recipe.methods {
                let entry = crate::find(method).unwrap();
                entry.check_settings(settings).unwrap();
                let defaults = entry.defaults();
                for key in settings.as_object().unwrap().keys() {
                    assert!(defaults.get(key).is_some(), "`{method}` has no setting `{key}`");
                }
            }
        }
    }
}
