//! Plans: which methods are run on which data sets, how, and what is measured.

use std::path::{Path, PathBuf};

use mutandis_edit::fact::nearest;
use mutandis_edit::{Entry, Error, METHODS, Result, find};
use serde::Deserialize;
use serde_json::Value;

use crate::run::Mode;

/// A plan, as it is written in a TOML file. What stands at the top holds for every `[[run]]` that
/// does not say otherwise; without a `[[run]]` the top is the only one.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Plan {
    /// What is run, at the top.
    #[serde(flatten)]
    pub top: Table,
    /// The folder that data sets, suites and the text are looked for in.
    pub folder: Option<PathBuf>,
    /// Protocols: `compat`, `strict`; both by default.
    pub protocol: Many<Protocol>,
    /// Whether texts are written and their fluency is measured; yes by default.
    pub fluency: Option<bool>,
    /// A text whose perplexity is measured; one that ships with mutandis by default.
    pub text: Option<PathBuf>,
    /// Texts about objects that what is written is compared with (ROME's `attribute_snippets.json`).
    pub references: Option<PathBuf>,
    /// Suites of general ability.
    pub general: Vec<String>,
    /// Questions of each suite.
    pub general_limit: Option<usize>,
    /// Runs.
    pub run: Vec<Table>,
}

/// What is run: every method on every data set, in every mode, with every seed.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Table {
    /// Methods by id; `all` are all that are registered.
    pub method: Many<String>,
    /// Data sets, by path or by name.
    pub data: Many<String>,
    /// `single`, `batch:N`, `sequential`, `sequential:N`.
    pub mode: Many<String>,
    /// Seeds.
    pub seed: Many<u64>,
    /// First records of each data set.
    pub limit: Option<usize>,
    /// Settings, for all methods of the run.
    pub set: Option<Value>,
}

/// One, or several in brackets.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Many<T> {
    /// One.
    One(T),
    /// Several.
    Several(Vec<T>),
}

impl<T> Default for Many<T> {
    fn default() -> Self {
        Self::Several(vec![])
    }
}

impl<T: Clone> Many<T> {
    /// All of them.
    pub fn all(&self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one.clone()],
            Self::Several(several) => several.clone(),
        }
    }

    fn or(&self, other: &Self) -> Vec<T> {
        let own = self.all();
        if own.is_empty() { other.all() } else { own }
    }
}

/// How something is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// As EasyEdit's functions compute it.
    Compat,
    /// In free generation.
    Strict,
}

/// One cell of a plan, before its data set is read.
#[derive(Debug, Clone)]
pub struct Order {
    /// The method.
    pub method: &'static Entry,
    /// Changes of its settings.
    pub settings: Value,
    /// The data set, by path or by name.
    pub data: String,
    /// How edits follow one another.
    pub mode: Mode,
    /// Seed.
    pub seed: u64,
    /// First records.
    pub limit: usize,
}

/// Plans that ship with mutandis, by name.
pub const SHIPPED: [(&str, &str); 2] = [
    ("knowedit.toml", include_str!("../plans/knowedit.toml")),
    ("edits.toml", include_str!("../plans/edits.toml")),
];

/// Records of a data set, where nothing says how many.
pub const LIMIT: usize = 20;

/// Questions of a suite, where nothing says how many.
pub const GENERAL: usize = 100;

impl Plan {
    /// Reads a plan: a file, or one of [`SHIPPED`] by its name, where there is no such file.
    ///
    /// # Errors
    /// Where the file cannot be read, is not TOML, or has a key that no plan has.
    pub fn read(path: &Path) -> Result<Self> {
        let shipped = SHIPPED.iter().find(|(name, _)| path == Path::new(name)).map(|(_, text)| *text);
        let read = std::fs::read_to_string(path);
        let text = read.or_else(|e| shipped.map(str::to_owned).ok_or(e)).map_err(|e| {
            let hint =
                "give a TOML file such as `knowedit.toml`, or say what to run with `--data` and `--method`";
            Error::input_hint(format!("cannot read the plan `{}`: {e}", path.display()), hint)
        })?;
        Self::parse(&text).map_err(|error| match error {
            Error::Input { what, hint } => {
                Error::Input { what: format!("the plan `{}`: {what}", path.display()), hint }
            }
            other => other,
        })
    }

    /// Reads a plan's text.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(text: &str) -> Result<Self> {
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| not_toml(&e))?;
        known(&table, &[TABLE, TOP].concat(), "a plan")?;
        for run in table.get("run").and_then(toml::Value::as_array).into_iter().flatten() {
            known(run.as_table().unwrap_or(&toml::Table::new()), TABLE, "a `[[run]]`")?;
        }
        toml::from_str(text).map_err(|e| not_toml(&e))
    }

    /// Whether a protocol is measured: both are unless one is named.
    pub fn measures(&self, protocol: Protocol) -> bool {
        let named = self.protocol.all();
        named.is_empty() || named.contains(&protocol)
    }

    /// The cells, in order: run by run, data set by data set, so that what is known of one is used
    /// while it is there.
    ///
    /// # Errors
    /// Where a method, mode or setting does not exist, or nothing is to be run.
    pub fn orders(&self) -> Result<Vec<Order>> {
        let only = [Table::default()];
        let runs = if self.run.is_empty() { &only[..] } else { &self.run };
        let mut all = vec![];
        for run in runs {
            let methods = methods(&run.method.or(&self.top.method))?;
            let modes = run.mode.or(&self.top.mode);
            let modes = if modes.is_empty() { vec!["single".to_owned()] } else { modes };
            let modes = modes
                .iter()
                .map(|mode| {
                    mode.parse()
                        .map_err(|why: String| Error::input_hint(why, "see `mutandis bench run --help`"))
                })
                .collect::<Result<Vec<Mode>>>()?;
            let seeds = run.seed.or(&self.top.seed);
            let seeds = if seeds.is_empty() { vec![0] } else { seeds };
            let settings =
                run.set.clone().or_else(|| self.top.set.clone()).unwrap_or_else(|| serde_json::json!({}));
            let limit = run.limit.or(self.top.limit).unwrap_or(LIMIT);
            if limit == 0 {
                return Err(Error::input_hint("`limit` is 0: there are no records to run", "give 1 or more"));
            }
            for data in run.data.or(&self.top.data) {
                for &method in &methods {
                    method.check_settings(&settings)?;
                    for &mode in &modes {
                        all.extend(seeds.iter().map(|&seed| Order {
                            method,
                            settings: settings.clone(),
                            data: data.clone(),
                            mode,
                            seed,
                            limit,
                        }));
                    }
                }
            }
        }
        if all.is_empty() {
            return Err(Error::input_hint(
                "the plan runs nothing: it names no data set or no method",
                "give `data` and `method`, at the top or in every `[[run]]`",
            ));
        }
        Ok(all)
    }
}

const TABLE: &[&str] = &["method", "data", "mode", "seed", "limit", "set"];
const TOP: &[&str] =
    &["folder", "protocol", "fluency", "text", "references", "general", "general-limit", "run"];

/// Refuses keys that a table does not have, with the one that may be meant.
pub(crate) fn known(table: &toml::Table, keys: &[&'static str], what: &str) -> Result<()> {
    let Some(key) = table.keys().find(|key| !keys.contains(&key.as_str())) else { return Ok(()) };
    let meant = nearest(key, keys.iter().copied());
    let meant = meant.map(|m| format!("did you mean `{m}`? ")).unwrap_or_default();
    Err(Error::input_hint(format!("{what} has no key `{key}`"), format!("{meant}keys: {}", keys.join(", "))))
}

fn not_toml(error: &toml::de::Error) -> Error {
    Error::input_hint(error.to_string().trim_end().to_owned(), "a plan is TOML, as `knowedit.toml` is")
}

fn methods(ids: &[String]) -> Result<Vec<&'static Entry>> {
    if ids == ["all"] {
        return Ok(METHODS.iter().collect());
    }
    ids.iter().map(|id| find(id)).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn names(text: &str) -> Vec<String> {
        let order = |o: &Order| format!("{} {} {} s{} n{}", o.data, o.method.id, o.mode, o.seed, o.limit);
        Plan::parse(text).unwrap().orders().unwrap().iter().map(order).collect()
    }

    #[test]
    fn runs_are_products_of_what_they_list() {
        let text = r#"
            method = ["ft-m", "rome"]
            data = "a"
            limit = 5
            [[run]]
            data = ["b", "c"]
            mode = ["single", "batch:2"]
            method = "rome"
            [[run]]
            seed = [1, 2]
            limit = 3
        "#;
        let expected = [
            "b rome single s0 n5",
            "b rome batch:2 s0 n5",
            "c rome single s0 n5",
            "c rome batch:2 s0 n5",
            "a ft-m single s1 n3",
            "a ft-m single s2 n3",
            "a rome single s1 n3",
            "a rome single s2 n3",
        ];
        assert_eq!(names(text), expected);
        assert_eq!(names("method = 'all'\ndata = 'a'").len(), METHODS.len());
    }

    #[test]
    fn what_no_plan_has_is_named_with_what_may_be_meant() {
        for (text, what, hint) in [
            ("methd = 'rome'\ndata = 'a'", "a plan has no key `methd`", "did you mean `method`?"),
            ("data = 'a'\n[[run]]\nlimt = 3", "a `[[run]]` has no key `limt`", "did you mean `limit`?"),
            ("method = 'rmoe'\ndata = 'a'", "there is no method `rmoe`", "did you mean `rome`?"),
            (
                "method = 'rome'\ndata = 'a'\nset = { layr = 3 }",
                "`rome` has no setting `layr`",
                "did you mean `layer`?",
            ),
            ("method = 'rome'\ndata = 'a'\nmode = 'batch'", "`batch` is no mode", "--help"),
            ("method = 'rome'", "the plan runs nothing", "`data`"),
            ("method = 'rome'\ndata = 'a'\nlimit = 0", "`limit` is 0", "1 or more"),
            ("method = [3]", "data did not match", "TOML"),
            ("method =", "TOML parse error", "TOML"),
        ] {
            let error = Plan::parse(text).and_then(|plan| plan.orders()).unwrap_err();
            assert!(error.to_string().contains(what), "{text}: {error}");
            assert!(error.hint().unwrap().contains(hint), "{text}: {:?}", error.hint());
        }
    }

    #[test]
    fn shipped_plans_are_read_by_their_names() {
        for (name, _) in SHIPPED {
            assert!(!Plan::read(Path::new(name)).unwrap().orders().unwrap().is_empty(), "{name}");
        }
        let cells = Plan::read(Path::new("knowedit.toml")).unwrap().orders().unwrap();
        assert_eq!(cells.len(), 6 * METHODS.len());
    }

    #[test]
    fn both_protocols_are_measured_unless_one_is_named() {
        let measured = |text: &str| {
            let plan = Plan::parse(text).unwrap();
            [Protocol::Compat, Protocol::Strict].map(|protocol| plan.measures(protocol))
        };
        assert_eq!(measured(""), [true, true]);
        assert_eq!(measured("protocol = ['strict']"), [false, true]);
        assert_eq!(measured("protocol = 'compat'"), [true, false]);
    }
}
