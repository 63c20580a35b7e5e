//! ICE: in-context editing.

use mutandis_engine::Model;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::method::{Family, Job, Method};
use crate::patch::Patch;

/// Settings of in-context editing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Config {
    /// What is put before every prompt, once for each fact; `{}` becomes the fact.
    pub template: String,
    /// What stands between the facts and the prompt.
    pub lead: String,
}

impl Default for Config {
    fn default() -> Self {
        Self { template: "Imagine that {}.\n".to_owned(), lead: String::new() }
    }
}

/// Shows the model each fact before the question (KnowEdit, arXiv 2401.01286, §4).
pub(super) struct Ice;

impl Method for Ice {
    const ID: &'static str = "ice";
    const FAMILY: Family = Family::Recognition;
    const PAPER: &'static str = "2401.01286";
    const SUMMARY: &'static str = "the facts are put before every prompt; no weight changes";
    const DOC: &'static str = describe!(
        "Puts \"Imagine that FACT.\" before every prompt. The patch is that text; no weight changes. A small \
         model hardly heeds the published wording; its recipe may have one that it does.",
        "When to use: at once, on any model; as the baseline that other methods have to beat.",
        "When not: for many facts (each costs context), or where unrelated prompts must not be touched.",
        "Cost: none to make; the facts' tokens are read with every prompt."
    );
    type Config = Config;

    fn check(config: &Config, _: &Model) -> Result<()> {
        if !config.template.contains("{}") {
            return Err(Error::input_hint(
                format!("the template `{}` has no `{{}}`", config.template),
                "put `{}` where the fact goes",
            ));
        }
        Ok(())
    }

    fn edit(config: &Config, job: &Job<'_>, cx: &Context<'_>) -> Result<Patch> {
        cx.check()?;
        let mut patch = job.patch::<Self>(config)?;
        let shown = job.facts.iter().map(|fact| {
            let text = format!("{}{}", fact.prompt.trim(), fact.continuation());
            config.template.replace("{}", text.trim_end_matches('.'))
        });
        let prefix = shown.collect::<String>() + &config.lead;
        let tokens = job.model.tokenizer()?.encode(&prefix)?.ids.len();
        let context = job.model.architecture().context;
        if tokens * 2 > context {
            return Err(Error::input_hint(
                format!("the facts take {tokens} tokens, more than half of the model's context of {context}"),
                "edit fewer facts at once, or use a method that writes weights",
            ));
        }
        patch.prefix = Some(prefix);
        Ok(patch)
    }
}
