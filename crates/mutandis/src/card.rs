//! Cards: what a patch is, in Markdown for people, with what makes it again at the end.
//!
//! The last fenced JSON block of a card is a [`Card`], and its last line a hash of everything
//! above: a card says what it said when it was made, or it is refused.

use std::collections::BTreeMap;
use std::path::Path;

use mutandis::edit::patch::Base;
use mutandis::edit::{Error, Fact, Patch};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Version of the block that is written.
const FORMAT: u32 = 1;

/// What makes a patch again, and by what it is known to be the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Card {
    /// [`FORMAT`].
    #[serde(rename = "mutandis-card")]
    pub(crate) format: u32,
    /// What made the patch, and with which instruction set.
    pub(crate) tool: String,
    /// The model as whoever made the card names it; paths without their folders.
    pub(crate) model: String,
    /// The base.
    pub(crate) base: Base,
    /// Method.
    pub(crate) method: String,
    /// All settings.
    pub(crate) settings: Value,
    /// Facts.
    pub(crate) facts: Vec<Fact>,
    /// Seed.
    pub(crate) seed: u64,
    /// [`Patch::sources`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) sources: BTreeMap<String, String>,
    /// Ids of the patches beneath, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) beneath: Vec<String>,
    /// [`Patch::id`].
    pub(crate) patch: String,
    /// [`Patch::sketch`].
    pub(crate) sketch: Vec<f64>,
    /// The text that goes before every prompt, where the patch is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) prefix: Option<String>,
    /// What the edited model answers to each fact.
    pub(crate) answers: Vec<String>,
}

impl Card {
    /// What makes a patch again.
    pub(crate) fn new(
        patch: &Patch,
        model: String,
        beneath: &[Patch],
        answers: Vec<String>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            format: FORMAT,
            tool: patch.tool.clone(),
            model,
            base: patch.base.clone(),
            method: patch.method.clone(),
            settings: patch.config.clone(),
            facts: patch.facts.clone(),
            seed: patch.seed,
            sources: patch.sources.clone(),
            beneath: beneath.iter().map(Patch::id).collect::<Result<_, _>>()?,
            patch: patch.id()?,
            sketch: patch.sketch(),
            prefix: patch.prefix.clone(),
            answers,
        })
    }

    /// Reads a card.
    ///
    /// # Errors
    /// Where it cannot be read, is no card, was changed, or is of a newer version.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::input_hint(
                format!("cannot read the card `{}`: {e}", path.display()),
                "give a Markdown file that `mutandis patch card` wrote",
            )
        })?;
        Ok(Self::parse(&text).map_err(|why| {
            let hint = "take the card as it was written, or make it again with `mutandis patch card`";
            Error::input_hint(format!("`{}` is not a valid card: {why}", path.display()), hint)
        })?)
    }

    fn parse(text: &str) -> Result<Self, String> {
        // Git and mail change line ends; nothing else may change.
        let text = text.replace("\r\n", "\n");
        let at = text.rfind(SEAL).ok_or("its last line, with a hash of the rest, is missing")?;
        let (body, seal) = text.split_at(at);
        if seal.trim_end() != sealed(body) {
            return Err("it does not match its hash: it was changed after it was made".to_owned());
        }
        let (_, block) = body.rsplit_once("\n```json\n").ok_or("it has no block of JSON")?;
        let (json, _) = block.split_once("\n```").ok_or("its block of JSON does not end")?;
        let value: Value = serde_json::from_str(json).map_err(|e| format!("its block of JSON: {e}"))?;
        match value.get("mutandis-card").and_then(Value::as_u64) {
            Some(v) if v == u64::from(FORMAT) => {}
            Some(v) => return Err(format!("it has version {v}, this program reads version {FORMAT}")),
            None => return Err("its block of JSON names no version".to_owned()),
        }
        let card: Self = serde_json::from_value(value).map_err(|e| format!("its block of JSON: {e}"))?;
        if card.answers.len() != card.facts.len() {
            return Err(format!("it has {} answers for {} facts", card.answers.len(), card.facts.len()));
        }
        Ok(card)
    }

    /// A card: the text for people, the block, and the hash.
    pub(crate) fn under(&self, text: &str) -> anyhow::Result<String> {
        let body = format!("{}\n\n```json\n{}\n```\n\n", text.trim_end(), serde_json::to_string(self)?);
        Ok(format!("{body}{}\n", sealed(&body)))
    }
}

const SEAL: &str = "<!-- all of the above, BLAKE3: ";

/// The last line of a card.
fn sealed(body: &str) -> String {
    format!("{SEAL}{} -->", blake3::hash(body.as_bytes()).to_hex())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn sample() -> Card {
        let text = r#"{"mutandis-card":1,"tool":"t","model":"m","base":{"fingerprint":"f","family":"llama","layers":2},
            "method":"rome","settings":{"layer":1},"facts":[{"prompt":"A ```json","target":"B"}],"seed":3,
            "patch":"p","sketch":[0.25,-1.5],"answers":["B"]}"#;
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_card_says_what_it_said() {
        let text = sample().under("# A\n\n```json\n{}\n```\n").unwrap();
        assert_eq!(Card::parse(&text), Ok(sample()));
        assert_eq!(Card::parse(&text.replace('\n', "\r\n")), Ok(sample()));
        assert!(text.ends_with(" -->\n"), "{text}");
    }

    #[test]
    fn a_card_that_was_changed_says_so() {
        let card = sample().under("# A").unwrap();
        for at in 0..card.trim_end().len() {
            let mut bytes = card.clone().into_bytes();
            bytes[at] ^= 1;
            let Ok(bad) = String::from_utf8(bytes) else { continue };
            assert!(Card::parse(&bad).is_err(), "byte {at} of {card}");
            assert!(Card::parse(&card[..at]).is_err(), "cut at {at}");
        }
        let sealed = |body: &str| format!("{body}{}\n", sealed(body));
        for (body, why) in [
            ("# A\n", "no block of JSON"),
            ("\n```json\n{}", "does not end"),
            ("\n```json\n{\n```\n", "block of JSON: EOF"),
            ("\n```json\n{}\n```\n", "names no version"),
            ("\n```json\n{\"mutandis-card\":2}\n```\n", "has version 2, this program reads version 1"),
            ("\n```json\n{\"mutandis-card\":1}\n```\n", "missing field"),
        ] {
            let found = Card::parse(&sealed(body)).unwrap_err();
            assert!(found.contains(why), "{body}: {found}");
        }
        let mut card = sample();
        card.answers.clear();
        assert!(Card::parse(&card.under("").unwrap()).unwrap_err().contains("0 answers for 1 facts"));
    }
}
