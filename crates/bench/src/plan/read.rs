//! Plans read from TOML key by key, so that whatever is wrong is told with the key it stands at.

use std::path::PathBuf;

use mutandis_edit::fact::nearest;
use mutandis_edit::{Error, Result};
use serde_json::Value;

use super::{Many, Plan, Protocol, Table};
use crate::compat::extra::Extra;

const TABLE: &[&str] = &["method", "data", "mode", "seed", "limit", "set"];
const TOP: &[&str] =
    &["folder", "protocol", "fluency", "extra", "text", "references", "general", "general-limit", "run"];

/// Reads a plan's text.
///
/// # Errors
/// Where it is not TOML, has a key that no plan has, or one that holds something else than it should.
pub(super) fn plan(text: &str) -> Result<Plan> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        Error::input_hint(e.to_string().trim_end().to_owned(), "a plan is TOML, as `knowedit.toml` is")
    })?;
    known(&table, &[TABLE, TOP].concat(), "a plan")?;
    let keys = Keys { table: &table, of: "the plan".to_owned() };
    Ok(Plan {
        top: keys.run()?,
        folder: keys.one("folder")?,
        protocol: keys.many("protocol")?,
        fluency: keys.one("fluency")?,
        extra: keys.many("extra")?,
        text: keys.one("text")?,
        references: keys.one("references")?,
        general: keys.many::<String>("general")?.all(),
        general_limit: keys.one("general-limit")?,
        run: keys.runs()?,
    })
}

/// Refuses keys that a table does not have, with the one that may be meant.
pub(crate) fn known(table: &toml::Table, keys: &[&'static str], what: &str) -> Result<()> {
    let Some(key) = table.keys().find(|key| !keys.contains(&key.as_str())) else { return Ok(()) };
    let meant = nearest(key, keys.iter().copied());
    let meant = meant.map(|m| format!("did you mean `{m}`? ")).unwrap_or_default();
    Err(Error::input_hint(format!("{what} has no key `{key}`"), format!("{meant}keys: {}", keys.join(", "))))
}

/// A table, and what it is part of.
struct Keys<'a> {
    table: &'a toml::Table,
    of: String,
}

impl Keys<'_> {
    /// What a key holds; nothing where it is not there.
    fn one<T: Kind>(&self, key: &str) -> Result<Option<T>> {
        self.table.get(key).map(|value| self.value(key, "is", value)).transpose()
    }

    /// What a key holds that may hold several.
    fn many<T: Kind>(&self, key: &str) -> Result<Many<T>> {
        match self.table.get(key) {
            None => Ok(Many::default()),
            Some(toml::Value::Array(items)) => {
                let all = items.iter().map(|item| self.value(key, "holds", item));
                Ok(Many::Several(all.collect::<Result<_>>()?))
            }
            Some(one) => Ok(Many::One(self.value(key, "is", one)?)),
        }
    }

    fn value<T: Kind>(&self, key: &str, verb: &str, value: &toml::Value) -> Result<T> {
        T::of(value).ok_or_else(|| {
            let meant = value.as_str().and_then(|text| nearest(text, T::NAMES.iter().copied()));
            let meant = meant.map(|m| format!("did you mean `{m}`? ")).unwrap_or_default();
            self.wrong(key, verb, value, T::EXPECTED, &meant)
        })
    }

    /// What every run has.
    fn run(&self) -> Result<Table> {
        Ok(Table {
            method: self.many("method")?,
            data: self.many("data")?,
            mode: self.many("mode")?,
            seed: self.many("seed")?,
            limit: self.one("limit")?,
            set: self.settings()?,
        })
    }

    /// Settings. TOML has values that no setting has.
    fn settings(&self) -> Result<Option<Value>> {
        match self.table.get("set").and_then(|set| odd("set".to_owned(), set)) {
            Some((key, value)) => {
                Err(self.wrong(&key, "is", value, "text, a finite number, `true` or `false`, or a list", ""))
            }
            None => self.one("set"),
        }
    }

    fn runs(&self) -> Result<Vec<Table>> {
        let expected = "tables, each under a `[[run]]`";
        let items = match self.table.get("run") {
            None => return Ok(vec![]),
            Some(toml::Value::Array(items)) => items,
            Some(other) => return Err(self.wrong("run", "is", other, expected, "")),
        };
        let run = |(i, item): (usize, &toml::Value)| {
            let table = item.as_table().ok_or_else(|| self.wrong("run", "holds", item, expected, ""))?;
            known(table, TABLE, "a `[[run]]`")?;
            Keys { table, of: format!("`[[run]]` {}", i + 1) }.run()
        };
        items.iter().enumerate().map(run).collect()
    }

    fn wrong(&self, key: &str, verb: &str, value: &toml::Value, expected: &str, meant: &str) -> Error {
        let found = match value {
            toml::Value::String(text) => format!("{text:?}"),
            toml::Value::Array(_) => "a list".to_owned(),
            toml::Value::Table(_) => "a table".to_owned(),
            plain => plain.to_string(),
        };
        Error::input_hint(
            format!("`{key}` of {} {verb} {found}: expected {expected}", self.of),
            format!("{meant}`mutandis bench run --help` says what each key holds"),
        )
    }
}

/// The first date, or number that is none, at or below a key.
fn odd(key: String, value: &toml::Value) -> Option<(String, &toml::Value)> {
    match value {
        toml::Value::Table(table) => {
            table.iter().find_map(|(inner, value)| odd(format!("{key}.{inner}"), value))
        }
        toml::Value::Array(items) => items.iter().find_map(|value| odd(key.clone(), value)),
        toml::Value::Float(number) if !number.is_finite() => Some((key, value)),
        toml::Value::Datetime(_) => Some((key, value)),
        _ => None,
    }
}

/// What a key of a plan may hold.
trait Kind: Sized {
    /// It, in words.
    const EXPECTED: &'static str;
    /// All that it may be, where that can be listed.
    const NAMES: &'static [&'static str] = &[];

    /// The value, if it is of this kind.
    fn of(value: &toml::Value) -> Option<Self>;
}

impl Kind for String {
    const EXPECTED: &'static str = "text";

    fn of(value: &toml::Value) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }
}

impl Kind for PathBuf {
    const EXPECTED: &'static str = "a path, as text";

    fn of(value: &toml::Value) -> Option<Self> {
        value.as_str().map(Self::from)
    }
}

impl Kind for bool {
    const EXPECTED: &'static str = "`true` or `false`";

    fn of(value: &toml::Value) -> Option<Self> {
        value.as_bool()
    }
}

impl Kind for u64 {
    const EXPECTED: &'static str = "a whole number from 0";

    fn of(value: &toml::Value) -> Option<Self> {
        Self::try_from(value.as_integer()?).ok()
    }
}

impl Kind for usize {
    const EXPECTED: &'static str = "a whole number from 0";

    fn of(value: &toml::Value) -> Option<Self> {
        Self::try_from(value.as_integer()?).ok()
    }
}

impl Kind for Protocol {
    const EXPECTED: &'static str = "`compat`, `strict`, or both in brackets";
    const NAMES: &'static [&'static str] = &["compat", "strict"];

    fn of(value: &toml::Value) -> Option<Self> {
        match value.as_str()? {
            "compat" => Some(Self::Compat),
            "strict" => Some(Self::Strict),
            _ => None,
        }
    }
}

impl Kind for Extra {
    const EXPECTED: &'static str = "`ppl`, `ood-ppl`, `vanilla`, or several of them in brackets";
    const NAMES: &'static [&'static str] = &["ppl", "ood-ppl", "vanilla"];

    fn of(value: &toml::Value) -> Option<Self> {
        match value.as_str()? {
            "ppl" => Some(Self::Ppl),
            "ood-ppl" => Some(Self::OodPpl),
            "vanilla" => Some(Self::Vanilla),
            _ => None,
        }
    }
}

/// Settings.
impl Kind for Value {
    const EXPECTED: &'static str = "a table of settings, as in `{ layer = 5 }`";

    fn of(value: &toml::Value) -> Option<Self> {
        let table = value.as_table()?;
        serde_json::to_value(table).ok()
    }
}
