//! How strongly other keys are held, in units that carry over from one model to another.
//!
//! Published weights (λ = 15,000 on C, 10 on I) fit the key statistics of one model. The relative
//! strength of a term is its mean eigenvalue over the mean energy of a key, `E‖k‖² = tr C`: for
//! `λ·C` that is `(λ·tr C/f) / tr C = λ/f`, for `c·I` it is `c / tr C`. At a relative strength of
//! 1 about half of a residual is written along a key like any other.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error as _, Unexpected};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::moments::Moments;
use super::subspace::Cut;
use crate::error;

/// The weight of a term: a number is relative, `"15000 absolute"` is as published.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Strength {
    /// Mean eigenvalue over tr C.
    Relative(f64),
    /// In the units of the formula.
    Absolute(f64),
}

/// Both forms of a strength, for one layer of one model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Resolved {
    /// Mean eigenvalue over tr C.
    pub relative: f64,
    /// In the units of the formula.
    pub absolute: f64,
}

impl Strength {
    /// Checks the setting of this name; 0 is a strength only where the system does without its
    /// term.
    ///
    /// # Errors
    /// Where it is not finite, negative, or 0 and must not be.
    pub fn check(self, name: &str, zero: bool) -> error::Result<()> {
        let hint = "0.01 is relative to the model's own keys, \"15000 absolute\" as formulas have it";
        error::check_number(name, self.number(), zero, hint)
    }

    /// As λ of `λ·C`.
    pub fn of_moments(self, moments: &Moments) -> Resolved {
        self.resolve(moments.f as f64)
    }

    /// As c of `c·I`.
    pub fn of_ridge(self, moments: &Moments) -> Resolved {
        self.resolve(moments.trace())
    }

    /// As c of `c·I`, keys having this mean squared norm.
    pub fn of_energy(self, energy: f64) -> Resolved {
        self.resolve(energy)
    }

    fn resolve(self, unit: f64) -> Resolved {
        match self {
            Self::Relative(relative) => Resolved { relative, absolute: relative * unit },
            Self::Absolute(absolute) => Resolved { relative: absolute / unit, absolute },
        }
    }

    /// The number alone.
    pub fn number(self) -> f64 {
        match self {
            Self::Relative(x) | Self::Absolute(x) => x,
        }
    }
}

/// Word behind a number that is in the units of the formula.
const ABSOLUTE: &str = "absolute";

fn read<'de, D: Deserializer<'de>>(from: D) -> Result<(f64, bool), D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(f64),
        Text(String),
    }
    match Written::deserialize(from)? {
        Written::Number(x) => Ok((x, false)),
        Written::Text(text) => {
            let number = text.trim().strip_suffix(ABSOLUTE).and_then(|t| t.trim().parse().ok());
            let expected = &"a number, or as in \"15000 absolute\"";
            number.map(|x| (x, true)).ok_or_else(|| D::Error::invalid_value(Unexpected::Str(&text), expected))
        }
    }
}

fn write<S: Serializer>(number: f64, absolute: bool, to: S) -> Result<S::Ok, S::Error> {
    if absolute { to.serialize_str(&format!("{number} {ABSOLUTE}")) } else { to.serialize_f64(number) }
}

impl<'de> Deserialize<'de> for Strength {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        read(from).map(|(x, absolute)| if absolute { Self::Absolute(x) } else { Self::Relative(x) })
    }
}

impl Serialize for Strength {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        write(self.number(), matches!(self, Self::Absolute(_)), to)
    }
}

impl<'de> Deserialize<'de> for Cut {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        read(from).map(|(x, absolute)| if absolute { Self::Absolute(x) } else { Self::Energy(x) })
    }
}

impl Serialize for Cut {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self::Absolute(x) => write(x, true, to),
            Self::Energy(x) => write(x, false, to),
        }
    }
}

/// A schema of its own for both: what is written is a number or a text.
fn schema() -> Schema {
    json_schema!({ "type": ["number", "string"] })
}

impl JsonSchema for Strength {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Strength".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schema()
    }

    fn inline_schema() -> bool {
        true
    }
}

impl JsonSchema for Cut {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Cut".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schema()
    }

    fn inline_schema() -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn both_forms_are_read_and_written() {
        for (written, strength) in [
            (json!(0.5), Strength::Relative(0.5)),
            (json!("15000 absolute"), Strength::Absolute(15_000.0)),
            (json!("0.02 absolute"), Strength::Absolute(0.02)),
        ] {
            assert_eq!(serde_json::from_value::<Strength>(written.clone()).unwrap(), strength);
            assert_eq!(serde_json::to_value(strength).unwrap(), written);
        }
        for wrong in [json!("15000"), json!("absolute"), json!("x absolute"), json!([1]), json!(null)] {
            assert!(serde_json::from_value::<Strength>(wrong.clone()).is_err(), "{wrong}");
        }
        assert_eq!(serde_json::from_value::<Cut>(json!(0.98)).unwrap(), Cut::Energy(0.98));
    }

    #[test]
    fn relative_and_absolute_convert() {
        let (upper, f) = (vec![3.0, 0.5, 1.0], 2);
        let text = String::new;
        let moments =
            Moments { base: text(), layer: 0, f, count: 9, upper, error: 0.0, source: text(), notes: vec![] };
        assert_eq!(Strength::Absolute(10.0).of_moments(&moments).relative, 5.0);
        assert_eq!(Strength::Relative(0.25).of_ridge(&moments).absolute, 1.0);
    }
}
