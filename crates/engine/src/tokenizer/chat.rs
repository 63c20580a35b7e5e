//! Chat templates: jinja, with the settings and helpers that `transformers` gives them.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, ErrorKind, context};

use crate::{Error, Result};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A template that turns a conversation into the text that the model was trained on.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

/// The template's only name in its environment.
const NAME: &str = "chat_template";

/// Most instructions that rendering may take; a conversation of a thousand turns takes under a
/// million.
const FUEL: u64 = 20_000_000;

impl ChatTemplate {
    /// Compiles a template. `bos_token` and `eos_token` are what it may write for them.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] if it is no valid template.
    pub fn new(source: &str, bos_token: Option<String>, eos_token: Option<String>) -> Result<Self> {
        let mut environment = Environment::new();
        // A template comes with the checkpoint, from anybody: it may not run for ever.
        environment.set_fuel(Some(FUEL));
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        // Written as Python writes them, which templates rely on when they print a flag.
        environment.set_formatter(|out, state, value| match value.kind() {
            ValueKind::None => Ok(out.write_str("None")?),
            ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
            _ => minijinja::escape_formatter(out, state, value),
        });
        environment.add_function("raise_exception", |message: String| -> Result<Value, _> {
            Err::<Value, _>(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| {
            let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
            strftime(&format, elapsed.map_or(0, |time| time.as_secs()))
        });
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| fault("is not valid", &error))?;
        Ok(Self {
            environment,
            bos_token: bos_token.unwrap_or_default(),
            eos_token: eos_token.unwrap_or_default(),
        })
    }

    /// The text of a conversation; with `add_generation_prompt` up to where the model's answer
    /// begins. Encode it with [`super::Tokenizer::encode_with_specials`].
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] with what the template says, if it refuses the conversation (roles
    /// that do not alternate, a system turn it does not know) or fails.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let template = self.environment.get_template(NAME).map_err(|error| fault("is not valid", &error))?;
        template
            .render(context! {
                messages,
                add_generation_prompt,
                bos_token => self.bos_token,
                eos_token => self.eos_token,
                tools => (),
                documents => (),
            })
            .map_err(|error| fault("refuses this conversation", &error))
    }
}

fn fault(what: &str, error: &minijinja::Error) -> Error {
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    Error::ChatTemplate { what: format!("it {what}: {detail}{line}") }
}

/// `tojson` as `json.dumps(value, ensure_ascii=False, indent=…)` writes it: nothing is escaped for
/// HTML, and separators are followed by a space.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Accepted because `transformers` accepts it; this one never escapes.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut out = String::new();
    write_json(value, indent, 0, &mut out)?;
    Ok(Value::from_safe_string(out))
}

/// Deeper values are refused rather than the stack overrun.
const DEEPEST: usize = 64;

fn write_json(
    value: &Value,
    indent: Option<usize>,
    depth: usize,
    out: &mut String,
) -> Result<(), minijinja::Error> {
    if depth > DEEPEST {
        return Err(minijinja::Error::new(ErrorKind::BadSerialization, "nested too deep"));
    }
    let newline = |out: &mut String, depth: usize| {
        if let Some(width) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width.min(16) * depth));
        }
    };
    let separator = if indent.is_some() { "," } else { ", " };
    match value.kind() {
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { separator } else { "" });
                newline(out, depth + 1);
                write_scalar(&Value::from(key.to_string()), out)?;
                out.push_str(": ");
                write_json(&value.get_item(&key)?, indent, depth + 1, out)?;
            }
            if value.len().is_some_and(|n| n > 0) {
                newline(out, depth);
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            let mut any = false;
            for item in value.try_iter()? {
                out.push_str(if any { separator } else { "" });
                any = true;
                newline(out, depth + 1);
                write_json(&item, indent, depth + 1, out)?;
            }
            if any {
                newline(out, depth);
            }
            out.push(']');
        }
        _ => write_scalar(value, out)?,
    }
    Ok(())
}

fn write_scalar(value: &Value, out: &mut String) -> Result<(), minijinja::Error> {
    let text = serde_json::to_string(value).map_err(|error| {
        minijinja::Error::new(ErrorKind::BadSerialization, "no JSON value").with_source(error)
    })?;
    out.push_str(&text);
    Ok(())
}

/// Formats seconds since 1970 (UTC) by the usual conversions; others stay as they are.
fn strftime(format: &str, seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let days = seconds / 86_400;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    // Years are counted in cycles of 400, so that a clock set far off costs nothing.
    let (mut year, mut day) = (1970 + days / 146_097 * 400, days % 146_097);
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let of_year = day + 1;
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    let (day, weekday) = (day + 1, DAYS[((days + 4) % 7) as usize]);
    let twelve = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let (bare, code) = match rest.next() {
            Some('-') => (true, rest.next()),
            code => (false, code),
        };
        let padded = |n: u64, width: usize| {
            let width = if bare { 0 } else { width };
            format!("{n:0width$}")
        };
        match code {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&padded(year % 100, 2)),
            Some('m') => out.push_str(&padded(month as u64 + 1, 2)),
            Some('d') => out.push_str(&padded(day, 2)),
            Some('H') => out.push_str(&padded(hour, 2)),
            Some('I') => out.push_str(&padded(twelve, 2)),
            Some('M') => out.push_str(&padded(minute, 2)),
            Some('S') => out.push_str(&padded(second, 2)),
            Some('j') => out.push_str(&padded(of_year, 3)),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('B') => out.push_str(MONTHS[month]),
            Some('b') => out.push_str(&MONTHS[month][..3]),
            Some('%') => out.push('%'),
            other => {
                out.push('%');
                out.extend(bare.then_some('-'));
                out.extend(other);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_without_end_is_an_error() {
        let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a * b %}{% endfor %}{% endfor %}";
        let template = ChatTemplate::new(endless, None, None).expect("it is valid");
        let error = template.render(&[], true).expect_err("it would take days");
        assert!(error.to_string().contains("fuel"), "{error}");
    }

    #[test]
    fn dates_agree_with_python() {
        // datetime.fromtimestamp(s, UTC).strftime(...)
        let format = "%Y-%m-%d %H:%M:%S %a %A %b %B %j %-d %-m %I%p %y %%";
        let expected = [
            (0, "1970-01-01 00:00:00 Thu Thursday Jan January 001 1 1 12AM 70 %"),
            (951_827_696, "2000-02-29 12:34:56 Tue Tuesday Feb February 060 29 2 12PM 00 %"),
            (4_107_542_399, "2100-02-28 23:59:59 Sun Sunday Feb February 059 28 2 11PM 00 %"),
            (1_735_689_599, "2024-12-31 23:59:59 Tue Tuesday Dec December 366 31 12 11PM 24 %"),
        ];
        for (seconds, text) in expected {
            assert_eq!(strftime(format, seconds), text);
        }
        assert_eq!(strftime("%Q %", 0), "%Q %");
        assert!(strftime("%Y", u64::MAX).len() > 4);
    }
}
