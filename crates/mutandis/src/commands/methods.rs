//! `mutandis methods`: what there is to edit with.

use std::process::ExitCode;

use clap::Subcommand;
use mutandis_edit::fact::nearest;
use mutandis_edit::{Entry, Error, METHODS, find};
use serde_json::{Value, json};

use crate::session::Session;

/// List the editing methods, or show one
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mutandis methods
  mutandis methods show r-rome
  mutandis methods show rome --json")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show a method: what it does, its settings and their published values
    #[command(after_help = "Examples:
  mutandis methods show ice")]
    Show {
        /// The method's id
        id: String,
    },
}

pub(crate) fn run(args: Args, session: &Session<'_>) -> anyhow::Result<ExitCode> {
    match args.action {
        None => {
            let document: Vec<Value> = METHODS.iter().map(summary).collect();
            session.output.print(&document, || {
                let width = METHODS.iter().map(|m| m.id.len()).max().unwrap_or(0);
                let line = |m: &Entry| format!("{:<width$}  {:<11}  {}", m.id, family(m), m.summary);
                METHODS.iter().map(line).collect::<Vec<_>>().join("\n")
            })?;
        }
        Some(Action::Show { id }) => {
            let method = find(&id)?;
            let mut document = summary(method);
            document["documentation"] = json!(method.doc);
            document["settings"] = plain(method.defaults());
            document["schema"] = serde_json::to_value(method.schema())?;
            session.output.print(&document, || text(method))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn family(method: &Entry) -> String {
    serde_json::to_value(method.family).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

fn summary(method: &Entry) -> Value {
    json!({"id": method.id, "family": family(method), "paper": method.paper, "summary": method.summary})
}

fn text(method: &Entry) -> String {
    let mut lines = vec![
        format!("{} ({}, arXiv {})", method.id, family(method), method.paper),
        String::new(),
        method.doc.to_owned(),
        String::new(),
        "Settings (`--set KEY=VALUE`):".to_owned(),
    ];
    lines.extend(all_settings(method).iter().map(Setting::text));
    if let Some(settings) = trainer_settings(method) {
        lines.push(format!("\nSettings of its training (`mutandis train {} --set KEY=VALUE`):", method.id));
        lines.extend(settings.iter().map(Setting::text));
    }
    lines.join("\n")
}

/// One setting of a method.
struct Setting {
    /// Its name; of nested ones with dots.
    name: String,
    default: Value,
    /// What the schema says of it.
    property: Value,
}

impl Setting {
    fn text(&self) -> String {
        let about = self.property["description"].as_str().unwrap_or_default().replace('\n', " ");
        format!("  {} = {}\n      {about}", self.name, self.default)
    }
}

/// All settings of a method.
fn all_settings(method: &Entry) -> Vec<Setting> {
    named(&method.defaults(), &serde_json::to_value(method.schema()).unwrap_or_default())
}

/// All settings of the training of a method's editor, where it has one.
fn trainer_settings(method: &Entry) -> Option<Vec<Setting>> {
    let (defaults, schema) = method.trainer_defaults().zip(method.trainer_schema())?;
    Some(named(&defaults, &serde_json::to_value(schema).unwrap_or_default()))
}

/// Settings by their names, nested ones with dots.
fn named(defaults: &Value, schema: &Value) -> Vec<Setting> {
    fn walk(prefix: &str, defaults: &Value, at: &Value, schema: &Value, found: &mut Vec<Setting>) {
        for (key, value) in defaults.as_object().into_iter().flatten() {
            let property = &at["properties"][key];
            let name = format!("{prefix}{key}");
            let target =
                property["$ref"].as_str().and_then(|r| r.rsplit('/').next()).map(|n| &schema["$defs"][n]);
            match (value.is_object(), target) {
                (true, Some(target)) => walk(&format!("{name}."), value, target, schema, found),
                _ => found.push(Setting { name, default: value.clone(), property: property.clone() }),
            }
        }
    }
    let mut found = vec![];
    walk("", &plain(defaults.clone()), schema, schema, &mut found);
    found
}

/// `a.b=value` pairs as nested JSON, each checked against the method's settings. What is not JSON
/// is text, and so is everything where text is wanted; `.5` is a number, though JSON knows none
/// such.
///
/// # Errors
/// Where a pair has no `=`, or the method has no such setting, or one of another kind.
pub(super) fn settings(method: &Entry, pairs: &[String]) -> anyhow::Result<Value> {
    let settings = given(method, &all_settings(method), pairs)?;
    method.check_settings(&settings)?;
    Ok(settings)
}

/// As [`settings`], for the training of a method's editor.
///
/// # Errors
/// As [`settings`]; where the method has no editor.
pub(super) fn training_settings(method: &Entry, pairs: &[String]) -> anyhow::Result<Value> {
    method.check_editor()?;
    let settings = given(method, &trainer_settings(method).unwrap_or_default(), pairs)?;
    method.check_training(&settings)?;
    Ok(settings)
}

fn given(method: &Entry, known: &[Setting], pairs: &[String]) -> anyhow::Result<Value> {
    let mut all = Value::Object(Default::default());
    for pair in pairs {
        let (key, text) = pair.split_once('=').ok_or_else(|| {
            let hint = "write `--set KEY=VALUE`, as in `--set layer=6`";
            Error::input_hint(format!("`--set {pair}` has no `=`"), hint)
        })?;
        let key = key.trim();
        let setting = known.iter().find(|s| s.name == key).ok_or_else(|| unknown(method, key, known))?;
        let padded = text.starts_with('.').then(|| format!("0{text}"));
        let value = match serde_json::from_str(padded.as_deref().unwrap_or(text)) {
            Ok(Value::String(text)) => Value::String(text),
            Ok(value) if setting.property["type"] != "string" => value,
            _ => Value::String(text.to_owned()),
        };
        if !fits(&value, &setting.property) {
            return Err(Error::input_hint(
                format!(
                    "setting `{key}` of `{}` is `{text}`, expected {}",
                    method.id,
                    wanted(&setting.property)
                ),
                format!(
                    "its default is {}; `mutandis methods show {}` lists all",
                    setting.default, method.id
                ),
            )
            .into());
        }
        let mut at = &mut all;
        for part in key.split('.') {
            if !at.is_object() {
                *at = Value::Object(Default::default());
            }
            at = at.as_object_mut().expect("just made one").entry(part).or_insert(Value::Null);
        }
        *at = value;
    }
    Ok(all)
}

fn unknown(method: &Entry, key: &str, known: &[Setting]) -> Error {
    let names = || known.iter().map(|s| s.name.as_str());
    // `steps` for `search.steps` is the likeliest slip.
    let last = |name: &&str| name.rsplit('.').next() == Some(key);
    let hint = match names().find(last).or_else(|| nearest(key, names())) {
        Some(near) => format!("did you mean `{near}`? `mutandis methods show {}` lists all", method.id),
        None => format!("settings: {}", names().collect::<Vec<_>>().join(", ")),
    };
    Error::input_hint(format!("`{}` has no setting `{key}`", method.id), hint)
}

/// Names of the kinds that a property may have.
fn kinds(property: &Value) -> Vec<&str> {
    match &property["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => vec![],
    }
}

/// Whether a value is of the kind that the schema names. What the schema says in other ways is
/// left to the method.
fn fits(value: &Value, property: &Value) -> bool {
    let kinds = kinds(property);
    kinds.is_empty()
        || kinds.iter().any(|kind| match (*kind, value) {
            ("integer", Value::Number(n)) => {
                n.is_u64() || (n.is_i64() && property["minimum"].as_f64().is_none_or(|least| least < 0.0))
            }
            ("array", Value::Array(items)) => {
                let length = |name: &str| property[name].as_u64().map(|n| n as usize);
                length("minItems").is_none_or(|n| items.len() >= n)
                    && length("maxItems").is_none_or(|n| items.len() <= n)
                    && items.iter().all(|item| fits(item, &property["items"]))
            }
            ("number", Value::Number(_))
            | ("boolean", Value::Bool(_))
            | ("string", Value::String(_))
            | ("null", Value::Null)
            | ("object", Value::Object(_)) => true,
            _ => false,
        })
}

/// What [`fits`] wants, in words.
fn wanted(property: &Value) -> String {
    let word = |kind: &str| match kind {
        "integer" => "a whole number".to_owned(),
        "number" => "a number".to_owned(),
        "boolean" => "`true` or `false`".to_owned(),
        "string" => "text".to_owned(),
        "array" => match property["minItems"].as_u64() {
            Some(n) => format!("a list of {n}, as in `[1,2]`"),
            None => "a list, as in `[1,2]`".to_owned(),
        },
        other => format!("`{other}`"),
    };
    kinds(property).into_iter().map(word).collect::<Vec<_>>().join(" or ")
}

/// Numbers as they were written: one that came from single precision loses the digits that only
/// double precision sees.
pub(super) fn plain(mut value: Value) -> Value {
    match &mut value {
        Value::Number(n) if n.is_f64() => {
            let wide = n.as_f64().unwrap_or_default();
            let narrow = wide as f32;
            if f64::from(narrow) == wide
                && let Ok(short) = narrow.to_string().parse::<f64>()
            {
                value = json!(short);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = plain(item.take())),
        Value::Object(fields) => fields.values_mut().for_each(|field| *field = plain(field.take())),
        _ => {}
    }
    value
}
