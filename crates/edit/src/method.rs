//! What a method is, and the list of all of them.

use std::collections::HashMap;
use std::path::PathBuf;

use mutandis_engine::{Model, Overlay};
use schemars::{JsonSchema, Schema, schema_for};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::fact::{Fact, nearest};
use crate::methods::METHODS;
use crate::patch::{CORPUS, Patch};
use crate::primitives::editor::training::{self, Order, Outcome};
use crate::primitives::editor::{self, Trainer};
use crate::recipes::{self, Recipe};

/// The three families of the KnowEdit paper (arXiv 2401.01286, §3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// External knowledge: the model is shown the fact.
    Recognition,
    /// Merged parameters: a learned representation joins the model's own.
    Association,
    /// Intrinsic weights are changed.
    Mastery,
}

/// What an edit starts from.
pub struct Job<'a> {
    /// The frozen base.
    pub model: &'a Model,
    /// Patches already in force, oldest first: the edit is computed on top of them.
    pub stack: &'a [&'a Overlay],
    /// The same patches themselves, for methods that look back at what was edited before.
    pub prior: &'a [Patch],
    /// Facts to be made true; never empty.
    pub facts: &'a [Fact],
    /// Seed of everything that is drawn.
    pub seed: u64,
}

impl Job<'_> {
    /// An empty patch of a method with its settings.
    ///
    /// # Errors
    /// Where the base cannot be hashed.
    pub fn patch<M: Method>(&self, config: &M::Config) -> Result<Patch> {
        let config = serde_json::to_value(config)
            .map_err(|e| Error::input(format!("settings of `{}` cannot be written: {e}", M::ID)))?;
        Patch::new(self.model, M::ID, M::FAMILY, config, self.facts, self.seed)
    }
}

/// An editing method: a pure function from a model and facts to a patch.
pub trait Method: Sized + 'static {
    /// Short name in kebab-case.
    const ID: &'static str;
    /// Family.
    const FAMILY: Family;
    /// arXiv id of the paper.
    const PAPER: &'static str;
    /// One line: what it does.
    const SUMMARY: &'static str;
    /// What it does, when to use it and when not, cost, differences from the paper: what
    /// `mutandis methods show` prints.
    const DOC: &'static str;
    /// Settings; `Default` holds the paper's values.
    type Config: Default + Serialize + DeserializeOwned + JsonSchema;
    /// Whether every fact has to name a subject that its prompt has.
    const NEEDS_SUBJECT: bool = false;
    /// How its editor is trained, where it needs one.
    const TRAINER: Option<Trainer> = None;

    /// Checks all of the settings that can be without a fact: it comes before every edit.
    ///
    /// # Errors
    /// Names the setting that is out of range or does not fit the model, with what is expected.
    fn check(config: &Self::Config, model: &Model) -> Result<()>;

    /// Makes the patch, by settings that [`Self::check`] has let pass.
    ///
    /// # Errors
    /// Where a fact does not fit the model, or the computation breaks down.
    fn edit(config: &Self::Config, job: &Job<'_>, cx: &Context<'_>) -> Result<Patch>;
}

/// A method with its types erased.
pub struct Entry {
    /// Short name.
    pub id: &'static str,
    /// Family.
    pub family: Family,
    /// arXiv id.
    pub paper: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Documentation.
    pub doc: &'static str,
    schema: fn() -> Schema,
    defaults: fn() -> Value,
    typed: fn(&Value) -> Result<Value>,
    check: fn(&Value, &Model) -> Result<()>,
    edit: fn(&Value, &Job<'_>, &Context<'_>) -> Result<Patch>,
    trainer: Option<Trainer>,
    /// Whether every fact has to name a subject that its prompt has.
    pub needs_subject: bool,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Entry({})", self.id)
    }
}

impl Entry {
    /// The entry of a method.
    pub const fn of<M: Method>() -> Self {
        Self {
            id: M::ID,
            family: M::FAMILY,
            paper: M::PAPER,
            summary: M::SUMMARY,
            doc: M::DOC,
            schema: schema_of::<M::Config>,
            defaults: || {
                serde_json::to_value(M::Config::default())
                    .expect("settings are plain numbers, texts and lists")
            },
            typed: |config| {
                let config = config_of::<M>(config)?;
                serde_json::to_value(config)
                    .map_err(|e| Error::input(format!("settings of `{}` cannot be written: {e}", M::ID)))
            },
            check: |config, model| M::check(&config_of::<M>(config)?, model),
            edit: |config, job, cx| M::edit(&config_of::<M>(config)?, job, cx),
            trainer: M::TRAINER,
            needs_subject: M::NEEDS_SUBJECT,
        }
    }

    /// JSON schema of the settings of the training of its editor, where it has one.
    pub fn trainer_schema(&self) -> Option<Schema> {
        self.trainer.map(|_| schema_of::<training::Settings>())
    }

    /// Settings of the training of its editor, where it has one.
    pub fn trainer_defaults(&self) -> Option<Value> {
        self.trainer.map(|trainer| {
            serde_json::to_value((trainer.settings)()).expect("settings are plain numbers, texts and lists")
        })
    }

    /// Trains its editor and writes it to `order.out`; what was interrupted goes on.
    ///
    /// # Errors
    /// Where the method has no editor, a setting or a record does not fit the model, a file cannot
    /// be written, or the user interrupts.
    pub fn train(
        &self,
        settings: &Value,
        order: &Order<'_>,
        model: &Model,
        cx: &Context<'_>,
    ) -> Result<Outcome> {
        let (trainer, settings) = self.training(settings)?;
        training::train(
            model,
            &training::Plan { method: self.id, rule: trainer.rule, settings: &settings },
            order,
            cx,
        )
    }

    /// Whether the method works by an editor that is trained.
    pub fn has_editor(&self) -> bool {
        self.trainer.is_some()
    }

    /// Checks that the method works by an editor that is trained.
    ///
    /// # Errors
    /// Names the methods that do, where it does not.
    pub fn check_editor(&self) -> Result<()> {
        self.trainer().map(drop)
    }

    /// The file of the trained editor that an edit would use; `None` for methods that use none.
    ///
    /// # Errors
    /// Where there is none yet, with how to train one, or a setting does not fit.
    pub fn editor(&self, settings: &Value, model: &Model, cx: &Context<'_>) -> Result<Option<PathBuf>> {
        if self.trainer.is_none() {
            return Ok(None);
        }
        let all = self.settings(model, cx.recipe.as_ref(), settings);
        let named = all.get("editor").and_then(Value::as_str).map(PathBuf::from);
        editor::file(named, model, self.id, cx).map(Some)
    }

    /// Checks settings of the training of its editor, as [`Self::check_settings`] does its own.
    ///
    /// # Errors
    /// As [`Self::check_settings`] and [`Self::check_editor`].
    pub fn check_training(&self, settings: &Value) -> Result<()> {
        self.training(settings).map(drop)
    }

    /// How its editor is trained, with these settings over its own.
    fn training(&self, settings: &Value) -> Result<(Trainer, training::Settings)> {
        let trainer = self.trainer()?;
        let defaults = self.trainer_defaults().unwrap_or_default();
        self.known(&defaults, settings)?;
        let mut all = defaults.clone();
        merge(&mut all, settings);
        Ok((trainer, read(self.id, &defaults, &all)?))
    }

    fn trainer(&self) -> Result<Trainer> {
        self.trainer.ok_or_else(|| {
            let with: Vec<&str> = METHODS.iter().filter(|m| m.trainer.is_some()).map(|m| m.id).collect();
            Error::input_hint(
                format!("`{}` uses no editor", self.id),
                format!("methods that use one: {}", with.join(", ")),
            )
        })
    }

    /// JSON schema of the settings.
    pub fn schema(&self) -> Schema {
        (self.schema)()
    }

    /// The settings that the paper published.
    pub fn defaults(&self) -> Value {
        (self.defaults)()
    }

    /// Settings in force: the published ones, then the model's recipe (`recipe` has them, or else
    /// a shipped one), then the user's changes; nested objects are merged key by key.
    pub fn settings(&self, model: &Model, recipe: Option<&Recipe>, changes: &Value) -> Value {
        let mut all = self.defaults();
        let own = recipe.and_then(|r| r.settings(self.id));
        if let Some(settings) = own.or_else(|| recipes::shipped(model.architecture(), self.id)) {
            merge(&mut all, &settings);
        }
        merge(&mut all, changes);
        all
    }

    /// The same, as a patch holds them: numbers in the precision that the method has for them.
    ///
    /// # Errors
    /// Where a setting is of another kind than the method's.
    pub fn resolved(&self, model: &Model, recipe: Option<&Recipe>, changes: &Value) -> Result<Value> {
        (self.typed)(&self.settings(model, recipe, changes))
    }

    /// Makes a patch with the given settings; absent ones come from the model's recipe, or are as
    /// published.
    ///
    /// # Errors
    /// Where there is no fact, a fact or a setting does not fit, or the computation breaks down.
    pub fn edit(&self, settings: &Value, job: &Job<'_>, cx: &Context<'_>) -> Result<Patch> {
        if job.facts.is_empty() {
            return Err(Error::input_hint(
                "there is no fact to edit",
                "give a prompt and `--to`, or `--facts FILE`",
            ));
        }
        for fact in job.facts {
            fact.check()?;
            // A method may do without a subject, but none can do with a wrong one.
            if !fact.subject.is_empty() {
                fact.subject_range()?;
            }
        }
        Wanted::default().add_all(job.facts, |i| format!("fact {}", i + 1))?;
        self.check_for(job.model, cx.recipe.as_ref(), settings)?;
        let mut patch = (self.edit)(&self.settings(job.model, cx.recipe.as_ref(), settings), job, cx)?;
        if let Some(corpus) = &cx.corpus {
            patch.source(CORPUS, corpus)?;
        }
        patch.jitter().iter().chain(&patch.overgrown()).for_each(|note| cx.progress.note(note));
        Ok(patch)
    }

    /// Checks that all settings exist in this method, and are of the kind that it has them in.
    ///
    /// # Errors
    /// Names the first that does not, or is not.
    pub fn check_settings(&self, settings: &Value) -> Result<()> {
        let mut all = self.defaults();
        self.known(&all, settings)?;
        merge(&mut all, settings);
        (self.typed)(&all).map(drop)
    }

    /// Checks that the settings in force for a model, with these changes, are some that the method can
    /// edit by: in range, and about weights that the model has.
    ///
    /// # Errors
    /// As [`Self::check_settings`]; names the first that is not.
    pub fn check_for(&self, model: &Model, recipe: Option<&Recipe>, changes: &Value) -> Result<()> {
        self.check_settings(changes)?;
        (self.check)(&self.settings(model, recipe, changes), model)
    }

    /// Refuses settings that the method does not have.
    fn known(&self, defaults: &Value, settings: &Value) -> Result<()> {
        let (Value::Object(defaults), Value::Object(settings)) = (defaults, settings) else { return Ok(()) };
        for (name, value) in settings {
            let Some(default) = defaults.get(name) else {
                let meant = nearest(name, defaults.keys().map(String::as_str));
                let meant = meant.map(|m| format!("did you mean `{m}`? ")).unwrap_or_default();
                return Err(Error::input_hint(
                    format!("`{}` has no setting `{name}`", self.id),
                    format!("{meant}`mutandis methods show {}` lists them", self.id),
                ));
            };
            self.known(default, value)?;
        }
        Ok(())
    }
}

fn config_of<M: Method>(settings: &Value) -> Result<M::Config> {
    read(M::ID, &serde_json::to_value(M::Config::default()).unwrap_or_default(), settings)
}

/// The schema of settings. `schemars` only refers to those of a type that wraps another one: they
/// are brought to the root, where they are looked for.
fn schema_of<T: JsonSchema>() -> Schema {
    let mut schema = schema_for!(T);
    let meant = schema.get("$ref").and_then(Value::as_str).and_then(|at| schema.pointer(at)).cloned();
    if let (Some(Value::Object(meant)), Some(root)) = (meant, schema.as_object_mut()) {
        root.remove("$ref");
        for (key, value) in meant {
            root.entry(key).or_insert(value);
        }
    }
    schema
}

/// Settings as a method has them.
///
/// # Errors
/// Where one is of another kind: names it, with what it may be.
fn read<T: DeserializeOwned>(id: &str, defaults: &Value, settings: &Value) -> Result<T> {
    serde_json::from_value(settings.clone()).map_err(|all| {
        let what = match misfit::<T>(defaults, settings) {
            Some((name, value, why)) => format!("setting `{name}` of `{id}` is `{value}`: {why}"),
            None => format!("settings of `{id}`: {all}"),
        };
        Error::input_hint(what, format!("`mutandis methods show {id}` lists them"))
    })
}

/// The first setting that is of another kind even where all others are as published: its name, what
/// it is, and what is wrong with that.
fn misfit<T: DeserializeOwned>(
    defaults: &Value,
    settings: &Value,
) -> Option<(String, String, serde_json::Error)> {
    let mut all = vec![];
    innermost(settings, defaults, &[], &mut all);
    all.into_iter().filter(|(path, _)| !path.is_empty()).find_map(|(path, value)| {
        let alone = path.iter().rev().fold(value.clone(), |inner, name| json!({ (*name): inner }));
        let mut tried = defaults.clone();
        merge(&mut tried, &alone);
        let why = serde_json::from_value::<T>(tried).err()?;
        let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Some((path.join("."), shown, why))
    })
}

/// Settings with their paths; of those that hold others, these.
fn innermost<'a>(
    settings: &'a Value,
    defaults: &Value,
    path: &[&'a str],
    found: &mut Vec<(Vec<&'a str>, &'a Value)>,
) {
    match (settings, defaults) {
        (Value::Object(settings), Value::Object(defaults)) => {
            for (name, value) in settings {
                let default = defaults.get(name).unwrap_or(&Value::Null);
                innermost(value, default, &[path, &[name.as_str()]].concat(), found);
            }
        }
        _ => found.push((path.to_vec(), settings)),
    }
}

/// What prompts are to be answered, one after another: no edit can make two different answers to
/// one prompt true, blanks aside.
#[derive(Debug, Default)]
pub struct Wanted {
    /// By prompt: what its fact is called, and the target.
    answers: HashMap<String, (String, String)>,
}

impl Wanted {
    /// Takes one more fact.
    ///
    /// # Errors
    /// Where its prompt is to be answered otherwise already.
    pub fn add(&mut self, fact: &Fact) -> Result<()> {
        self.add_all(std::slice::from_ref(fact), |_| "it".to_owned())
    }

    /// Takes some facts, or none of them; errors call them, by their place, as they are `called`.
    ///
    /// # Errors
    /// Where the prompt of one is to be answered otherwise already.
    pub fn add_all(&mut self, facts: &[Fact], called: impl Fn(usize) -> String) -> Result<()> {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut own: HashMap<String, (String, String)> = HashMap::new();
        for (i, fact) in facts.iter().enumerate() {
            let (prompt, target) = (words(&fact.prompt), words(&fact.target));
            match self.answers.get(&prompt).or_else(|| own.get(&prompt)) {
                Some((first, wanted)) if *wanted != target => {
                    let own = called(i);
                    return Err(Error::input_hint(
                        format!(
                            "{first} and {own} contradict each other: `{prompt}` is to be answered `{wanted}` and `{target}`",
                        ),
                        "keep one of them",
                    ));
                }
                Some(_) => {}
                None => drop(own.insert(prompt, (called(i), target))),
            }
        }
        self.answers.extend(own);
        Ok(())
    }
}

/// The method of that name.
///
/// # Errors
/// Where there is none, with the nearest and the list.
pub fn find(id: &str) -> Result<&'static Entry> {
    METHODS.iter().find(|m| m.id == id).ok_or_else(|| {
        let known: Vec<&str> = METHODS.iter().map(|m| m.id).collect();
        let meant =
            nearest(id, known.iter().copied()).map(|m| format!("did you mean `{m}`? ")).unwrap_or_default();
        Error::input_hint(
            format!("there is no method `{id}`"),
            format!("{meant}methods: {}", known.join(", ")),
        )
    })
}

/// Overlays in force with one more on top, where there is anything in it.
pub(crate) fn on_top<'a>(stack: &[&'a Overlay], more: &'a Overlay) -> Vec<&'a Overlay> {
    stack.iter().copied().chain((!more.is_empty()).then_some(more)).collect()
}

/// Lays changes over settings; nested objects are merged key by key.
pub fn merge(into: &mut Value, changes: &Value) {
    match (into, changes) {
        (Value::Object(into), Value::Object(changes)) => {
            for (key, value) in changes {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, changes) => *into = changes.clone(),
    }
}
