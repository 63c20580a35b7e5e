//! Gates: what an edit has to reach, and may not harm, to be taken.
//!
//! A gate is a file of thresholds. What it does not name does not count. What an edit moved
//! (`efficacy`, `paraphrase`, `kept`, `kl`) is told against the model as the edit found it, with
//! any patches beneath; how far the model has come altogether (`perplexity`, `norm`, `general`)
//! against the unedited one, so that many small harms add up.

mod measure;

use std::path::{Path, PathBuf};

use mutandis_edit::{Context, Error, Result};
use mutandis_engine::Model;
use serde::{Deserialize, Serialize};

pub use measure::{Asked, Case, Measure, Trial};

use crate::general::Suite;
use crate::perplexity::{TEXT, Window, windows};
use crate::plan::{GENERAL, known};
use crate::whole::Whole;

/// Thresholds, as they are written in a TOML file; at least one.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// At least: share of facts whose free answer begins with the target.
    pub efficacy: Option<f64>,
    /// At least: the same, of other wordings of their prompts.
    pub paraphrase: Option<f64>,
    /// At least: share of unrelated prompts that are answered as before.
    pub kept: Option<f64>,
    /// At most: mean KL(before ‖ after) of the first token behind those prompts, in nats.
    pub kl: Option<f64>,
    /// At most: rise of perplexity of a fixed text, relative to the unedited model's.
    pub perplexity: Option<f64>,
    /// At most: ‖ΔW‖ / ‖W‖ of any one weight, patches beneath included.
    pub norm: Option<f64>,
    /// General ability.
    pub general: Option<General>,
}

/// Suites of general ability that must hold.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct General {
    /// Their names, such as `piqa`.
    pub suites: Vec<String>,
    /// The folder that they are read from.
    pub folder: PathBuf,
    /// First questions of each.
    #[serde(default = "questions")]
    pub limit: usize,
    /// At most: drop of the accuracy of any of them, 0 to 1.
    pub drop: f64,
}

fn questions() -> usize {
    GENERAL
}

/// Which way a threshold holds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    /// No less.
    AtLeast(f64),
    /// No more.
    AtMost(f64),
}

impl Bound {
    fn holds(self, measured: f64) -> bool {
        match self {
            Self::AtLeast(least) => measured >= least,
            Self::AtMost(most) => measured <= most,
        }
    }
}

/// What a gate says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether every check passed.
    pub passed: bool,
    /// Its checks, in the order of [`Gate`]'s fields.
    pub checks: Vec<Check>,
}

/// One threshold, and what was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// The threshold's name; of a suite `general/NAME`.
    pub name: String,
    /// The threshold.
    #[serde(flatten)]
    pub bound: Bound,
    /// What was measured; nothing where the model's predictions are no numbers.
    pub measured: Option<f64>,
    /// Of how many it is a mean.
    pub count: usize,
    /// Whether it holds.
    pub passed: bool,
    /// Where it does not: what fell shortest, the worst first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub worst: Vec<Case>,
}

/// The gate that ships with mutandis.
pub const DEFAULT: &str = include_str!("../gates/default.toml");

/// Cases that a check names.
const WORST: usize = 5;

impl Gate {
    /// Reads a gate: a file, or [`DEFAULT`] by the name `default`, where there is no such file.
    ///
    /// # Errors
    /// Where the file cannot be read, is not TOML, has a key that no gate has, names no threshold,
    /// or one that cannot be.
    pub fn read(path: &Path) -> Result<Self> {
        let read = std::fs::read_to_string(path);
        let shipped = (path == Path::new("default")).then(|| DEFAULT.to_owned());
        let text = read.or_else(|e| shipped.ok_or(e)).map_err(|e| {
            Error::input_hint(
                format!("cannot read the gate `{}`: {e}", path.display()),
                "give a TOML file of thresholds, or `default` for the one that ships with mutandis",
            )
        })?;
        Self::parse(&text).map_err(|error| match error {
            Error::Input { what, hint } => {
                Error::Input { what: format!("the gate `{}`: {what}", path.display()), hint }
            }
            other => other,
        })
    }

    /// Reads a gate's text.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(text: &str) -> Result<Self> {
        const HINT: &str = "a gate is TOML, such as `efficacy = 0.95`";
        let not_toml = |e: toml::de::Error| Error::input_hint(e.to_string().trim_end().to_owned(), HINT);
        let table: toml::Table = text.parse().map_err(not_toml)?;
        known(&table, KEYS, "a gate")?;
        if let Some(general) = table.get("general").and_then(toml::Value::as_table) {
            known(general, GENERAL_KEYS, "`[general]`")?;
        }
        let gate: Self = toml::from_str(text).map_err(not_toml)?;
        gate.check()?;
        Ok(gate)
    }

    fn check(&self) -> Result<()> {
        let bounds = self.bounds();
        if bounds.is_empty() {
            return Err(Error::input_hint(
                "it names no threshold: every edit would pass",
                format!("give at least one of {}", KEYS.join(", ")),
            ));
        }
        for (name, bound) in &bounds {
            let (value, most) = match bound {
                Bound::AtLeast(value) => (*value, 1.0),
                Bound::AtMost(value) if name.starts_with("general/") => (*value, 1.0),
                Bound::AtMost(value) => (*value, f64::MAX),
            };
            if !(0.0..=most).contains(&value) {
                let name = if name.starts_with("general/") { "drop" } else { name };
                let expected = if most == 1.0 { "a share of 0 to 1" } else { "0 or more" };
                return Err(Error::input_hint(
                    format!("`{name}` is {value}, expected {expected}"),
                    "leave a threshold out where it should not count",
                ));
            }
        }
        if self.general.as_ref().is_some_and(|g| g.limit == 0) {
            return Err(Error::input_hint("`limit` is 0: no question would be asked", "give 1 or more"));
        }
        Ok(())
    }

    /// All thresholds by name, in order.
    fn bounds(&self) -> Vec<(String, Bound)> {
        let own = [
            ("efficacy", self.efficacy.map(Bound::AtLeast)),
            ("paraphrase", self.paraphrase.map(Bound::AtLeast)),
            ("kept", self.kept.map(Bound::AtLeast)),
            ("kl", self.kl.map(Bound::AtMost)),
            ("perplexity", self.perplexity.map(Bound::AtMost)),
            ("norm", self.norm.map(Bound::AtMost)),
        ];
        let own = own.into_iter().filter_map(|(name, bound)| Some((name.to_owned(), bound?)));
        let suites = self.general.iter().flat_map(|general| {
            general.suites.iter().map(|name| (format!("general/{name}"), Bound::AtMost(general.drop)))
        });
        own.chain(suites).collect()
    }

    /// Finds out before the work that a threshold cannot be measured of these facts.
    ///
    /// # Errors
    /// Where there are no facts, or they have no other wordings, or nothing is to be kept.
    pub fn fits(&self, asked: &Asked) -> Result<()> {
        let of_facts = [("efficacy", self.efficacy), ("paraphrase", self.paraphrase)];
        if let (Some((name, _)), false) =
            (of_facts.iter().find(|(_, bound)| bound.is_some()), asked.has_facts())
        {
            return Err(Error::input_hint(
                format!("the gate has a threshold for `{name}`, and no fact is known of the edit"),
                "a patch that was imported knows none, nor does an empty ledger: take the threshold out of a copy of the gate",
            ));
        }
        if self.paraphrase.is_some() && !asked.has_rephrases() {
            return Err(Error::input_hint(
                "the gate has a threshold for `paraphrase`, and no fact has another wording",
                "give some with `--also`, or with `rephrase_prompt` in the file of facts, or take the threshold out",
            ));
        }
        if (self.kept.is_some() || self.kl.is_some()) && !asked.has_kept() {
            return Err(Error::input_hint(
                "the gate has a threshold for what is kept, and no prompt is to be kept",
                "give some with `--keep`, or with `locality` in the file of facts, or take the threshold out",
            ));
        }
        Ok(())
    }

    /// The suites that it asks for.
    ///
    /// # Errors
    /// Where one does not exist or cannot be read.
    pub fn suites(&self) -> Result<Vec<Suite>> {
        let Some(general) = &self.general else { return Ok(vec![]) };
        general.suites.iter().map(|name| Suite::read(&general.folder, name, Some(general.limit))).collect()
    }

    /// Measures the unedited model as a whole: the suites, and, where there is a threshold for it,
    /// the perplexity of [`text`].
    ///
    /// # Errors
    /// Where a text is longer than the model's context.
    pub fn whole(&self, model: &Model, suites: Vec<Suite>, cx: &Context<'_>) -> Result<Whole> {
        let text = self.perplexity.map(|_| text(model)).transpose()?;
        Whole::new(model, text.unwrap_or_default(), suites, cx)
    }

    /// Holds what was measured against the thresholds.
    pub fn judge(&self, measures: &[Measure]) -> Verdict {
        let check = |(name, bound): (String, Bound)| {
            let found = measures.iter().find(|measure| measure.name == name);
            let measured = found.and_then(|measure| measure.value);
            let passed = measured.is_some_and(|measured| bound.holds(measured));
            let cases = found.map(|measure| &measure.cases[..]).unwrap_or_default();
            let worst = if passed { vec![] } else { cases.iter().take(WORST).cloned().collect() };
            Check { name, bound, measured, count: found.map_or(0, |m| m.count), passed, worst }
        };
        let checks: Vec<Check> = self.bounds().into_iter().map(check).collect();
        Verdict { passed: checks.iter().all(|check| check.passed), checks }
    }
}

/// The text whose perplexity gates and alarms look at, ours, in windows.
///
/// # Errors
/// Where the model has no tokenizer.
pub fn text(model: &Model) -> Result<Vec<Vec<u32>>> {
    Ok(windows(model, TEXT, Window::default())?)
}

const KEYS: &[&str] = &["efficacy", "paraphrase", "kept", "kl", "perplexity", "norm", "general"];
const GENERAL_KEYS: &[&str] = &["suites", "folder", "limit", "drop"];

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use mutandis_edit::Fact;

    use super::*;

    fn measure(name: &str, value: Option<f64>) -> Measure {
        let cases = (0..9).map(|i| Case { what: format!("case {i}"), ..Case::default() }).collect();
        Measure { name: name.to_owned(), value, count: 9, cases }
    }

    #[test]
    fn the_shipped_gate_is_read_by_its_name() {
        let gate = Gate::read(Path::new("default")).unwrap();
        assert_eq!(gate, Gate::parse(DEFAULT).unwrap());
        // What the plainest edit has nothing for is left to the user.
        assert_eq!((gate.paraphrase, gate.general), (None, None));
        // Its lines that are commented out are right, too.
        let all = DEFAULT.lines().map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.contains(" = ") || rest.starts_with('[') => rest,
            _ => line,
        });
        let all = Gate::parse(&all.collect::<Vec<_>>().join("\n")).unwrap();
        assert!(all.paraphrase.is_some() && all.general.is_some());
    }

    #[test]
    fn what_no_gate_has_is_named_with_what_may_be_meant() {
        for (text, what, hint) in [
            ("eficacy = 1", "a gate has no key `eficacy`", "did you mean `efficacy`?"),
            ("[general]\nsuite = []", "`[general]` has no key `suite`", "did you mean `suites`?"),
            ("", "no threshold", "efficacy"),
            ("kept = 90", "`kept` is 90, expected a share of 0 to 1", "leave"),
            ("efficacy = nan", "`efficacy` is NaN", "leave"),
            ("kl = -0.1", "`kl` is -0.1, expected 0 or more", "leave"),
            ("norm = inf", "`norm` is inf", "leave"),
            ("[general]\nsuites = ['piqa']\nfolder = '.'\ndrop = 5", "`drop` is 5", "leave"),
            (
                "[general]\nsuites = ['piqa']\nfolder = '.'\ndrop = 0.1\nlimit = 0",
                "`limit` is 0",
                "1 or more",
            ),
            ("[general]\nsuites = ['piqa']\nfolder = '.'", "missing field `drop`", "TOML"),
            ("[general]\nsuites = []\nfolder = '.'\ndrop = 0.1", "no threshold", "general"),
            ("kept = 'most'", "expected f64", "TOML"),
            ("kept =", "TOML parse error", "TOML"),
        ] {
            let error = Gate::parse(text).unwrap_err();
            assert!(error.to_string().contains(what), "{text}: {error}");
            assert!(error.hint().unwrap().contains(hint), "{text}: {:?}", error.hint());
        }
    }

    #[test]
    fn of_an_edit_without_facts_is_asked_what_can_be() {
        let general = |_: &Fact| vec!["The capital of Japan is".to_owned()];
        let none = Asked::new(&[], &[], &[], general);
        let given = Asked::new(&[], &[], &["Tom went to the".to_owned()], |_| panic!("one is given"));
        for asked in [none, given] {
            assert!(Gate::parse("kept = 0.5\nkl = 0.1\nnorm = 1").unwrap().fits(&asked).is_ok(), "{asked:?}");
            for name in ["efficacy", "paraphrase"] {
                let error = Gate::parse(&format!("{name} = 0.5")).unwrap().fits(&asked).unwrap_err();
                assert!(error.to_string().contains(&format!("`{name}`")), "{error}");
                assert!(error.hint().unwrap().contains("take the threshold out"));
            }
        }
        let nothing = Asked::new(&[], &[], &[], |_| vec![]);
        assert!(Gate::parse("kept = 0.5").unwrap().fits(&nothing).is_err());
    }

    #[test]
    fn a_verdict_is_yes_where_every_check_is_and_names_the_worst() {
        let gate = Gate::parse("efficacy = 0.5\nkl = 0.1").unwrap();
        let verdict = gate.judge(&[measure("efficacy", Some(0.5)), measure("kl", Some(0.1))]);
        assert!(verdict.passed && verdict.checks.iter().all(|c| c.worst.is_empty()), "{verdict:?}");
        let verdict = gate.judge(&[measure("efficacy", Some(0.5)), measure("kl", Some(0.11))]);
        assert!(!verdict.passed && verdict.checks[0].passed && !verdict.checks[1].passed);
        assert_eq!(verdict.checks[1].worst.len(), WORST);
        assert_eq!(verdict.checks[1].worst[0].what, "case 0");
        // What is no number, or was not measured, has not passed.
        assert!(!gate.judge(&[measure("efficacy", Some(1.0)), measure("kl", None)]).passed);
        assert!(!gate.judge(&[measure("kl", Some(0.0))]).passed);
        let json = serde_json::to_value(&verdict.checks[1]).unwrap();
        assert_eq!((&json["at-most"], &json["measured"]), (&0.1.into(), &0.11.into()));
        assert_eq!(serde_json::from_value::<Check>(json).unwrap(), verdict.checks[1]);
    }
}
