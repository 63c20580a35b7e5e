//! How scores are named and written.

/// Scores of the KnowEdit table, in its order.
pub(super) const MAIN: [&str; 5] = ["edit", "rephrase", "portability", "locality", "fluency"];

/// Titles of scores that are not just their names with a capital.
const TITLES: [(&str, &str); 8] = [
    ("any", "Any wording"),
    ("correct", "As the data set has it"),
    ("edit", "Edit success"),
    ("f1", "F1"),
    ("kl", "KL"),
    ("ppl", "Perplexity"),
    ("ood", "Foreseen tokens"),
    ("vanilla-f1", "Vanilla F1"),
];

/// What a number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// 0 to 1, written in percent.
    Share,
    /// Entropy in bits, written times a hundred as the field's tables do.
    Bits,
    /// Written as it is.
    Plain,
}

/// Whether a name is that of a score, or has that measure, which stands behind `:`. Its kind, behind `/`,
/// is the data set's own word.
fn has(name: &str, word: &str) -> bool {
    let (head, rest) = name.split_once(['/', ':']).unwrap_or((name, ""));
    let measure = match name.contains('/') {
        true => rest.rsplit_once(':').map(|(_, measure)| measure),
        false => Some(rest),
    };
    head == word || measure == Some(word)
}

fn unit(name: &str) -> Unit {
    if has(name, "fluency") {
        Unit::Bits
    } else if has(name, "kl") || has(name, "ppl") || name == "truth-ratio" {
        Unit::Plain
    } else {
        Unit::Share
    }
}

/// The unit as a heading says it.
pub(super) fn unit_in_words(name: &str) -> &'static str {
    match unit(name) {
        Unit::Share => "%",
        Unit::Bits => "bits × 100",
        Unit::Plain => "",
    }
}

/// Whether a larger value is better, where that can be said.
pub(super) fn higher_is_better(name: &str) -> Option<bool> {
    // How far wrong answers should overtake a forgotten one is nobody's to say, nor how sure a model
    // should be of a prompt.
    let unclear = has(name, "truth-ratio") || has(name, "ood");
    let lower = has(name, "kl") || has(name, "ppl") || has(name, "extraction-strength");
    (!unclear).then_some(!lower)
}

/// A score as tables write it.
pub(super) fn scaled(name: &str, value: f64) -> f64 {
    if unit(name) == Unit::Plain { value } else { 100.0 * value }
}

/// A score in a table.
pub(super) fn shown(name: &str, value: f64) -> String {
    if has(name, "ppl") {
        return perplexity(value);
    }
    let digits = if unit(name) == Unit::Plain { 3 } else { 1 };
    fixed(scaled(name, value), digits)
}

/// An interval in a table.
pub(super) fn range(name: &str, [low, high]: [f64; 2]) -> String {
    format!("{}–{}", shown(name, low), shown(name, high))
}

/// With so many digits, and no sign before a zero.
pub(super) fn fixed(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    if text.trim_start_matches('-').bytes().all(|b| matches!(b, b'0' | b'.')) {
        text.trim_start_matches('-').to_owned()
    } else {
        text
    }
}

/// A score's title: of a kind or a measure, without what stands before it.
pub(super) fn title(name: &str) -> String {
    let kind = name.split_once('/').map_or(name, |(_, kind)| kind);
    match kind.split_once(':') {
        Some((kind, measure)) if name.contains('/') => format!("{}, {}", capital(kind), capital(measure)),
        Some((_, measure)) => capital(measure),
        None => capital(kind),
    }
}

/// What a kind or a measure is of; nothing for a score itself.
pub(super) fn parent(name: &str) -> Option<&str> {
    name.split_once(['/', ':']).map(|(score, _)| score)
}

fn capital(part: &str) -> String {
    if let Some((_, title)) = TITLES.iter().find(|(known, _)| *known == part) {
        return (*title).to_owned();
    }
    let words = part.replace(['_', '-'], " ");
    let mut letters = words.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

/// A number of seconds.
pub(super) fn seconds(value: f64) -> String {
    let digits = if value < 10.0 {
        2
    } else if value < 100.0 {
        1
    } else {
        0
    };
    fixed(value, digits)
}

/// A perplexity: models that have collapsed have some of many digits.
pub(super) fn perplexity(value: f64) -> String {
    if value < 1e5 { fixed(value, 2) } else { format!("{value:.1e}") }
}

/// By how much a number has changed: in percent, or as a factor where that is large.
pub(super) fn change(before: f64, after: f64) -> String {
    let ratio = after / before;
    if ratio >= 10.0 {
        return format!("×{}", if ratio < 1e5 { fixed(ratio, 0) } else { format!("{ratio:.1e}") });
    }
    let text = fixed(100.0 * (ratio - 1.0), 1);
    let sign = if text.starts_with('-') || text.trim_start_matches(['0', '.']).is_empty() { "" } else { "+" };
    format!("{sign}{} %", text.replace('-', "−"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_written_in_their_units() {
        assert_eq!(shown("edit", 0.98765), "98.8");
        assert_eq!(shown("fluency", 5.7966), "579.7");
        assert_eq!(shown("fluency:greedy", 5.7966), "579.7");
        assert_eq!(shown("locality:kl", 0.01234), "0.012");
        assert_eq!(shown("locality/Forgetfulness:kl", -1e-9), "0.000");
        assert_eq!(shown("truth-ratio", 2.5), "2.500");
        assert_eq!((shown("edit:ppl", 12.345), shown("edit:ppl", 7.2e86)), ("12.35".into(), "7.2e86".into()));
        assert_eq!(shown("truth-ratio:share", 0.25), "25.0");
        assert_eq!(range("edit", [0.5, 1.0]), "50.0–100.0");
        // A data set's own word is no measure.
        assert_eq!(
            (shown("portability/kl", 0.5), shown("locality/ppl:kl", 0.5)),
            ("50.0".into(), "0.500".into())
        );
    }

    #[test]
    fn changes_are_signed_and_large_ones_are_factors() {
        assert_eq!(change(10.0, 13.56), "+35.6 %");
        assert_eq!(change(10.0, 9.0), "−10.0 %");
        assert_eq!(change(10.0, 10.0), "0.0 %");
        assert_eq!(change(10.0, 79_600.0), "×7960");
        assert_eq!(change(10.0, 1e9), "×1.0e8");
    }

    #[test]
    fn some_scores_are_better_when_lower() {
        let found = ["edit", "locality:kl", "extraction-strength", "truth-ratio:share"].map(higher_is_better);
        assert_eq!(found, [Some(true), Some(false), Some(false), None]);
        assert_eq!(["portability/kl", "locality/ood"].map(higher_is_better), [Some(true); 2]);
    }

    #[test]
    fn titles_are_words() {
        assert_eq!(title("edit"), "Edit success");
        assert_eq!(title("portability/Subject_Aliasing"), "Subject Aliasing");
        assert_eq!(title("edit:f1"), "F1");
        assert_eq!(title("portability/Reasoning:f1"), "Reasoning, F1");
        assert_eq!(["edit", "edit:f1", "locality/a:kl"].map(parent), [None, Some("edit"), Some("locality")]);
        assert_eq!(title(""), "");
    }
}
