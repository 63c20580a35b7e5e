//! Settings found for a model: data files, chosen by what the checkpoint declares.
//!
//! A recipe takes the place of published settings where the user gives none. How each was found
//! stands in its file.

use mutandis_engine::Architecture;
use serde::Deserialize;
use serde_json::Value;

/// The shipped files.
const FILES: &[&str] =
    &[include_str!("../recipes/smollm2-135m.toml"), include_str!("../recipes/gemma3-270m.toml")];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    model: Shape,
    /// Settings by method.
    methods: std::collections::BTreeMap<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shape {
    family: mutandis_engine::architecture::Family,
    layers: usize,
    width: usize,
    mlp_width: usize,
}

/// The settings of a method for a model of this shape, where a recipe has them.
pub fn for_model(architecture: &Architecture, method: &str) -> Option<Value> {
    let fits = |shape: &Shape| {
        shape.family == architecture.family
            && shape.layers == architecture.layers
            && shape.width == architecture.width
            && shape.mlp_width == architecture.mlp_width
    };
    let recipes =
        FILES.iter().map(|text| toml::from_str::<Recipe>(text).expect("shipped recipes are tested"));
    recipes.filter(|r| fits(&r.model)).find_map(|mut r| r.methods.remove(method))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn shipped_recipes_name_methods_and_settings_that_exist() {
        for text in FILES {
            let recipe: Recipe = toml::from_str(text).unwrap();
            for (method, settings) in &recipe.methods {
                let entry = crate::find(method).unwrap();
                let defaults = entry.defaults();
                for key in settings.as_object().unwrap().keys() {
                    assert!(defaults.get(key).is_some(), "`{method}` has no setting `{key}`");
                }
            }
        }
    }
}
