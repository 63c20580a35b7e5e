//! The two protocols, and what is said of them.

use super::Report;
use super::summary::{Protocols, Statistics};

/// How a number was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Protocol {
    Compat,
    Strict,
}

impl Protocol {
    pub(super) const ALL: [Self; 2] = [Self::Compat, Self::Strict];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Compat => "compat",
            Self::Strict => "strict",
        }
    }

    pub(super) fn of(self, scores: &Protocols) -> &Statistics {
        match self {
            Self::Compat => &scores.compat,
            Self::Strict => &scores.strict,
        }
    }
}

/// What the two protocols are, whatever a run says of their details.
const PROTOCOLS: [(&str, &str); 2] = [
    (
        "compat",
        "What EasyEdit’s functions compute, quirk by quirk, so that published tables compare: where the model is \
         asked otherwise than there (what is sampled, and which questions opinions and retained answers are asked \
         by), the README says it.",
    ),
    (
        "strict",
        "What a user sees: free generation that stops by itself, and how likely given answers are where \
         nothing is written. A text that a model ends after a word or two has no fluency, and counts for none: \
         compat’s writes on.",
    ),
];

/// A protocol, or what else is said of how numbers were measured.
pub(super) struct Words {
    pub(super) name: String,
    /// What it is, in short.
    pub(super) lead: Option<&'static str>,
    /// What the cells say of it, a sentence for each form of data.
    pub(super) said: Vec<String>,
}

impl Words {
    /// All of it in one paragraph.
    pub(super) fn paragraph(&self) -> String {
        self.lead.into_iter().chain(self.said.iter().map(String::as_str)).collect::<Vec<_>>().join(" ")
    }
}

/// Each protocol with what it is, and what the cells say of it.
pub(super) fn words(report: &Report<'_>) -> Vec<Words> {
    let is_measured = |name: &str| report.protocols.keys().any(|said| said.split(',').next() == Some(name));
    let known =
        PROTOCOLS.iter().filter(|(name, _)| is_measured(name)).map(|(name, lead)| (*name, Some(*lead)));
    // The version is for programs that tell protocols apart.
    let others = report.protocols.keys().map(String::as_str).filter(|name| *name != "version");
    let others = others.filter(|name| PROTOCOLS.iter().all(|(known, _)| known != name));
    let words = |(name, lead): (&str, _)| {
        let said = report.protocols.get(name).into_iter().flatten().map(|words| sentence(words));
        Words { name: name.to_owned(), lead, said: said.collect() }
    };
    known.chain(others.map(|name| (name, None))).map(words).collect()
}

fn sentence(words: &str) -> String {
    let mut letters = words.trim().chars();
    let start: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
    let end = if words.trim().ends_with('.') { "" } else { "." };
    format!("{start}{}{end}", letters.as_str())
}
