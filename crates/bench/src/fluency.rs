//! Fluency: whether a text that the model writes is varied, or the same few words again and again.

use std::collections::HashMap;

use crate::words::words;

/// Entropy of the n-grams of words, in bits: `−Σ f log₂ f` over their frequencies. 0 for a text of
/// fewer than n words.
pub fn ngram_entropy<W: AsRef<str>>(words: &[W], n: usize) -> f64 {
    let mut counts: HashMap<Vec<&str>, usize> = HashMap::new();
    for gram in words.windows(n.max(1)) {
        *counts.entry(gram.iter().map(AsRef::as_ref).collect()).or_default() += 1;
    }
    let all = counts.values().sum::<usize>() as f64;
    // Sorted, as a sum in another order is another number.
    let mut shares: Vec<f64> = counts.into_values().map(|count| count as f64 / all).collect();
    shares.sort_by(f64::total_cmp);
    -shares.into_iter().map(|f| f * f.log2()).sum::<f64>()
}

/// The peer's fluency of a text, in bits: `(H₂ + 2 H₃) / 3`, H_n the entropy of its n-grams (ROME's
/// generation entropy, arXiv 2202.05262, appendix; easyedit.md §1.11). Tables show a hundred times that.
/// Nothing of fewer words than an n-gram has, where the peer's is 0: such a text is neither varied nor not.
pub fn fluency(text: &str) -> Option<f64> {
    let words = words(text);
    (words.len() >= 3).then(|| of_words(&words))
}

fn of_words<W: AsRef<str>>(words: &[W]) -> f64 {
    (ngram_entropy(words, 2) + 2.0 * ngram_entropy(words, 3)) / 3.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peers_values_over_words_between_blanks() {
        // `../shared/golden/metrics.json`, made by EasyEdit's own function.
        for (text, wanted) in [
            ("a b c d", 1.194_987_500_240_385_4),
            ("the cat sat on the mat the cat sat on the mat", 2.531_398_966_440_371),
            ("x x x x x x", 0.0),
            ("a b a b a b a c", 1.455_703_823_259_891_3),
            ("to be or not to be that is the question to be", 3.223_675_102_738_447_6),
        ] {
            let words: Vec<&str> = text.split_whitespace().collect();
            assert!((of_words(&words) - wanted).abs() < 1e-12, "{text}: {}", of_words(&words));
        }
    }

    #[test]
    fn a_text_of_a_word_or_two_has_none() {
        assert_eq!(fluency("word"), None);
        assert_eq!(fluency(""), None);
        assert_eq!(fluency("In Rome"), None);
        assert_eq!(fluency("In ancient Rome"), Some(1.0 / 3.0));
        assert!(fluency("It rained. It rained again, and then it stopped.").is_some_and(|x| x > 2.0));
    }
}
