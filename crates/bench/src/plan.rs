//! Plans: which methods are run on which data sets, how, and what is measured.

mod read;

use std::path::{Path, PathBuf};

use mutandis_edit::method::merge;
use mutandis_edit::{Entry, Error, METHODS, Result, find};
use serde_json::{Value, json};

pub(crate) use self::read::known;
use crate::compat::extra::Extra;
use crate::run::Mode;

/// A plan, as it is written in a TOML file. What stands at the top holds for every `[[run]]` that
/// does not say otherwise; without a `[[run]]` the top is the only one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// What is run, at the top.
    pub top: Table,
    /// The folder that data sets and suites are looked for in. As every path of a plan it goes by the
    /// folder that the program runs in.
    pub folder: Option<PathBuf>,
    /// Protocols: `compat`, `strict`; both by default.
    pub protocol: Many<Protocol>,
    /// Whether texts are written and their fluency is measured; yes by default.
    pub fluency: Option<bool>,
    /// What compat measures besides its table: `ppl`, `ood-ppl`, `vanilla`.
    pub extra: Many<Extra>,
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
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    /// Methods by id; `all` are all that are registered. One that is named twice is run once.
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
#[derive(Debug, Clone, PartialEq)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// Where the file cannot be read, is not TOML, has a key that no plan has, or one that holds
    /// something else than it should.
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
        read::plan(text)
    }

    /// Whether a protocol is measured: both are unless one is named.
    pub fn measures(&self, protocol: Protocol) -> bool {
        let named = self.protocol.all();
        named.is_empty() || named.contains(&protocol)
    }

    /// What compat measures besides its table, each once.
    ///
    /// # Errors
    /// Where compat is not measured at all.
    pub fn extras(&self) -> Result<Vec<Extra>> {
        let mut all = self.extra.all();
        all.sort_unstable();
        all.dedup();
        if !all.is_empty() && !self.measures(Protocol::Compat) {
            return Err(Error::input_hint(
                "`extra` is of the protocol `compat`, which is not measured",
                "leave `extra` or `protocol` out, or name `compat` too",
            ));
        }
        Ok(all)
    }

    /// The cells, in order: run by run, data set by data set, so that what is known of one is used
    /// while it is there.
    ///
    /// # Errors
    /// Where a method, mode or setting does not exist, or nothing is to be run.
    pub fn orders(&self) -> Result<Vec<Order>> {
        self.orders_with(|_| Ok(json!({})))
    }

    /// As [`Self::orders`], with changes for each method that are laid over the settings of every run.
    ///
    /// # Errors
    /// As [`Self::orders`]; where there are no changes for one of the methods.
    pub fn orders_with<E: From<Error>>(
        &self,
        changes: impl Fn(&'static Entry) -> Result<Value, E>,
    ) -> Result<Vec<Order>, E> {
        let only = [Table::default()];
        let runs = if self.run.is_empty() { &only[..] } else { &self.run };
        let mut all = vec![];
        for (number, run) in (1..).zip(runs) {
            let of_run = |error| self.of_run(number, error);
            let methods = methods(&run.method.or(&self.top.method)).map_err(of_run)?;
            let sets = run.data.or(&self.top.data);
            for (key, is_missing) in [("method", methods.is_empty()), ("data", sets.is_empty())] {
                if is_missing {
                    let what = match self.run.len() {
                        0 => format!("the plan runs nothing: it names no `{key}`"),
                        _ => format!("`[[run]]` {number} runs nothing: it names no `{key}`"),
                    };
                    let hint = format!("give `{key}`, at the top or in every `[[run]]`");
                    return Err(Error::input_hint(what, hint).into());
                }
            }
            let modes = run.mode.or(&self.top.mode);
            let modes = if modes.is_empty() { vec!["single".to_owned()] } else { modes };
            let modes = modes
                .iter()
                .map(|mode| {
                    mode.parse()
                        .map_err(|why: String| Error::input_hint(why, "see `mutandis bench run --help`"))
                })
                .collect::<Result<Vec<Mode>>>()
                .map_err(of_run)?;
            let settings = run.set.as_ref().or(self.top.set.as_ref());
            let settings = |method: &'static Entry| -> Result<Value, E> {
                let mut all = settings.cloned().unwrap_or_else(|| json!({}));
                merge(&mut all, &changes(method)?);
                method.check_settings(&all).map_err(of_run)?;
                Ok(all)
            };
            let methods = methods.into_iter().map(|method| settings(method).map(|set| (method, set)));
            let methods = methods.collect::<Result<Vec<(&'static Entry, Value)>, E>>()?;
            let seeds = run.seed.or(&self.top.seed);
            let seeds = if seeds.is_empty() { vec![0] } else { seeds };
            let limit = run.limit.or(self.top.limit).unwrap_or(LIMIT);
            if limit == 0 {
                let hint = "give 1 or more";
                return Err(
                    of_run(Error::input_hint("`limit` is 0: there are no records to run", hint)).into()
                );
            }
            for data in sets {
                for &(method, ref settings) in &methods {
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
        Ok(all)
    }
}

impl Plan {
    /// Says at which of several runs an error is.
    fn of_run(&self, number: usize, error: Error) -> Error {
        match error {
            Error::Input { what, hint } if !self.run.is_empty() => {
                Error::Input { what: format!("`[[run]]` {number}: {what}"), hint }
            }
            other => other,
        }
    }
}

/// Methods by their ids, `all` among them, each once.
fn methods(ids: &[String]) -> Result<Vec<&'static Entry>> {
    let mut methods: Vec<&'static Entry> = vec![];
    for id in ids {
        let named: Vec<&'static Entry> = if id == "all" { METHODS.iter().collect() } else { vec![find(id)?] };
        for method in named {
            if !methods.iter().any(|other| other.id == method.id) {
                methods.push(method);
            }
        }
    }
    Ok(methods)
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
            ("method = 'rome'", "the plan runs nothing: it names no `data`", "`data`"),
            (
                "[[run]]\nmethod = 'rome'\ndata = 'a'\n[[run]]\nmethod = 'rome'",
                "`[[run]]` 2 runs nothing: it names no `data`",
                "at the top or in every `[[run]]`",
            ),
            ("data = 'a'\nmethod = []", "it names no `method`", "`method`"),
            ("method = 'rome'\ndata = 'a'\nlimit = 0", "`limit` is 0", "1 or more"),
            (
                "data = 'a'\n[[run]]\nmethod = 'rome'\n[[run]]\nmethod = 'rmoe'",
                "`[[run]]` 2: there is no method `rmoe`",
                "did you mean `rome`?",
            ),
            (
                "method = 'ft-m'\ndata = 'a'\nset = { epochs = nan }",
                "`set.epochs` of the plan is nan: expected text, a finite number",
                "--help",
            ),
            (
                "method = 'ft-m'\ndata = 'a'\nset = { epochs = 2026-01-01 }",
                "is 2026-01-01: expected",
                "--help",
            ),
            ("method =", "TOML parse error", "TOML"),
        ] {
            let error = Plan::parse(text).and_then(|plan| plan.orders()).unwrap_err();
            assert!(error.to_string().contains(what), "{text}: {error}");
            assert!(error.hint().unwrap().contains(hint), "{text}: {:?}", error.hint());
        }
    }

    #[test]
    fn a_value_that_no_key_takes_is_told_with_its_key_and_what_was_expected() {
        for (text, what, hint) in [
            ("seed = -1", "`seed` of the plan is -1: expected a whole number from 0", "--help"),
            ("seed = [0, 1.5]", "`seed` of the plan holds 1.5: expected a whole number from 0", "--help"),
            ("limit = 1.5", "`limit` of the plan is 1.5: expected a whole number from 0", "--help"),
            (
                "general-limit = '9'",
                "`general-limit` of the plan is \"9\": expected a whole number",
                "--help",
            ),
            (
                "protocol = 'compta'",
                "`protocol` of the plan is \"compta\": expected",
                "did you mean `compat`?",
            ),
            ("extra = 'pppl'", "`extra` of the plan is \"pppl\": expected", "did you mean `ppl`?"),
            (
                "extra = ['ood_ppl']",
                "`extra` of the plan holds \"ood_ppl\": expected",
                "did you mean `ood-ppl`?",
            ),
            ("set = 5", "`set` of the plan is 5: expected a table of settings", "--help"),
            ("set = [5]", "`set` of the plan is a list: expected a table of settings", "--help"),
            ("general = 1", "`general` of the plan is 1: expected text", "--help"),
            ("method = [3]", "`method` of the plan holds 3: expected text", "--help"),
            ("fluency = 'no'", "`fluency` of the plan is \"no\": expected `true` or `false`", "--help"),
            ("folder = 7", "`folder` of the plan is 7: expected a path", "--help"),
            ("[[run]]\n[[run]]\nlimit = -2", "`limit` of `[[run]]` 2 is -2: expected a whole", "--help"),
            ("[run]\nlimit = 2", "`run` of the plan is a table: expected tables, each under", "--help"),
            ("run = [1]", "`run` of the plan holds 1: expected tables", "--help"),
        ] {
            let error = Plan::parse(text).unwrap_err();
            assert!(error.to_string().contains(what), "{text}: {error}");
            assert!(error.hint().unwrap().contains(hint), "{text}: {:?}", error.hint());
        }
        assert_eq!(Plan::parse("general = 'piqa'").unwrap().general, ["piqa"]);
        assert_eq!(Plan::parse("general = ['piqa', 'rte']").unwrap().general, ["piqa", "rte"]);
    }

    #[test]
    fn changes_are_laid_over_the_settings_of_every_run() {
        let plan = Plan::parse(
            r#"
            data = "a"
            set = { layer = 1, search = { steps = 3 } }
            [[run]]
            method = "rome"
            [[run]]
            method = ["rome", "r-rome"]
            set = { layer = 2 }
        "#,
        )
        .unwrap();
        let changes = json!({"search": {"learning-rate": 0.25}});
        let orders = plan.orders_with::<Error>(|_| Ok(changes.clone())).unwrap();
        let found: Vec<(&str, &Value)> = orders.iter().map(|o| (o.method.id, &o.settings)).collect();
        let own = json!({"layer": 2, "search": {"learning-rate": 0.25}});
        let both = json!({"layer": 1, "search": {"steps": 3, "learning-rate": 0.25}});
        assert_eq!(found, [("rome", &both), ("rome", &own), ("r-rome", &own)]);
        // What one of the methods does not have is refused, and so is what there is no change for.
        let all = Plan::parse("data = 'a'\nmethod = 'all'").unwrap();
        let error = all.orders_with::<Error>(|_| Ok(json!({"layr": 1}))).unwrap_err();
        assert!(error.to_string().contains("has no setting `layr`"), "{error}");
        let error = all.orders_with(|method| Err(Error::input(format!("not {}", method.id)))).unwrap_err();
        assert_eq!(error.to_string(), format!("not {}", METHODS[0].id));
    }

    #[test]
    fn a_method_that_is_named_twice_is_run_once() {
        let ids = |text: &str| -> Vec<&'static str> {
            Plan::parse(text).unwrap().orders().unwrap().iter().map(|order| order.method.id).collect()
        };
        assert_eq!(ids("data = 'a'\nmethod = ['rome', 'ft-m', 'rome']"), ["rome", "ft-m"]);
        let all = ids("data = 'a'\nmethod = ['rome', 'all']");
        assert_eq!((all.len(), all[0]), (METHODS.len(), "rome"));
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
    fn what_is_measured_on_request_is_of_compat() {
        let extras = |text: &str| Plan::parse(text).and_then(|plan| plan.extras());
        assert_eq!(extras("extra = ['vanilla', 'ppl', 'vanilla']").unwrap(), [Extra::Ppl, Extra::Vanilla]);
        assert_eq!(extras("extra = 'ood-ppl'\nprotocol = 'compat'").unwrap(), [Extra::OodPpl]);
        let error = extras("extra = 'ppl'\nprotocol = 'strict'").unwrap_err();
        assert!(error.to_string().contains("which is not measured"), "{error}");
        assert!(error.hint().unwrap().contains("`compat`"));
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
