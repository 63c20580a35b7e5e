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

/// Each protocol with what it is, and what the cells say of it.
pub(super) fn words(report: &Report<'_>) -> Vec<(String, String)> {
    let known = PROTOCOLS.iter().map(|(name, _)| (*name).to_owned());
    // The version is for programs that tell protocols apart.
    let others = report.protocols.keys().filter(|name| *name != "version");
    let others = others.filter(|name| PROTOCOLS.iter().all(|(known, _)| known != name)).cloned();
    let words = |name: &String| {
        let lead = PROTOCOLS.iter().find(|(known, _)| known == name).map(|(_, words)| (*words).to_owned());
        let said = report.protocols.get(name).into_iter().flatten().map(|words| sentence(words));
        lead.into_iter().chain(said).collect::<Vec<_>>().join(" ")
    };
    known.chain(others).map(|name| (name.clone(), words(&name))).collect()
}

fn sentence(words: &str) -> String {
    let mut letters = words.trim().chars();
    let start: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
    let end = if words.trim().ends_with('.') { "" } else { "." };
    format!("{start}{}{end}", letters.as_str())
}
