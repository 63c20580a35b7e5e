//! Published numbers, as data.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

/// A published table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Published {
    /// The model edited.
    pub model: String,
    /// Where the numbers stand.
    pub source: String,
    /// How to take them.
    pub note: String,
    /// Methods, as named there.
    pub methods: Vec<String>,
    /// Data sets.
    pub sets: Vec<PublishedSet>,
}

/// A data set's numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PublishedSet {
    /// As named there.
    pub title: String,
    /// Names of our data sets that are this one: its files, without what stands behind the dot, and
    /// its short name; in lower case, with `_` for `-`.
    pub names: Vec<String>,
    /// What is odd about these numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// By score name, a number for each method, in percent (fluency: bits × 100).
    #[serde(flatten)]
    pub scores: BTreeMap<String, Vec<f64>>,
}

/// The KnowEdit paper's table of single edits.
pub(super) static KNOWEDIT: LazyLock<Published> = LazyLock::new(|| {
    serde_json::from_str(include_str!("published.json")).expect("the file is part of the program")
});

impl Published {
    /// The numbers of one of our data sets, and their place.
    pub(super) fn of(&self, data: &str) -> Option<(usize, &PublishedSet)> {
        let data = data.to_lowercase().replace('-', "_");
        self.sets.iter().enumerate().find(|(_, set)| set.names.contains(&data))
    }
}

#[cfg(test)]
mod tests {
    use super::super::protocol::Protocol;
    use super::super::table::{Column, is_main};
    use super::*;

    #[test]
    fn every_number_has_its_method() {
        for set in &KNOWEDIT.sets {
            assert!(set.scores.contains_key("edit") && set.scores.contains_key("fluency"), "{}", set.title);
            for (name, values) in &set.scores {
                let column = Column { protocol: Protocol::Compat, name: name.clone() };
                assert!(is_main(&column, true), "{name}");
                assert_eq!(values.len(), KNOWEDIT.methods.len(), "{} {name}", set.title);
            }
        }
    }

    /// Row sums of the table as printed, added up apart from this file.
    #[test]
    fn the_numbers_are_those_of_the_table() {
        let sums = |name: &str| {
            let of = |set: &PublishedSet| set.scores.get(name).map(|v| v.iter().sum::<f64>());
            KNOWEDIT.sets.iter().filter_map(of).collect::<Vec<f64>>()
        };
        let close = |found: Vec<f64>, wanted: &[f64]| {
            assert_eq!(found.len(), wanted.len());
            found.iter().zip(wanted).for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{a} for {b}"));
        };
        close(sums("edit"), &[705.15, 708.47, 745.69, 691.62, 397.32, 283.75]);
        close(sums("portability"), &[438.94, 450.11, 465.73]);
        close(sums("locality"), &[499.47, 487.11, 565.97, 521.86, 407.0]);
        close(sums("locality:kl"), &[53.59]);
        close(sums("fluency"), &[4477.99, 4222.25, 4921.69, 4497.02, 4474.83, 3734.67]);
    }

    #[test]
    fn data_sets_are_found_by_their_names() {
        let title = |name: &str| KNOWEDIT.of(name).map(|(_, set)| set.title.as_str());
        for (wanted, names) in [
            ("WikiData_recent", &["wiki_recent", "wiki-recent", "wiki_recent_train", "recent_test"][..]),
            ("ZsRE", &["ZsRE", "ZsRE-test-all"]),
            ("WikiBio", &["wikibio", "wikibio-train-all", "WikiBio-test-all"]),
            ("WikiData_counterfact", &["wiki_counterfact_test_cf_885", "test_cf", "train_cf"]),
            ("ConvSent", &["convsent", "blender_val", "convsent_blender_test"]),
            ("Sanitation", &["sanitation", "trivia_qa_train", "sanitation_trivia_qa_test"]),
        ] {
            names.iter().for_each(|name| assert_eq!(title(name), Some(wanted), "{name}"));
        }
        // Other data sets of similar names.
        for name in ["zsre_mend_eval", "counterfact", "recent_news", "triviaqa", "trivia_qa", "blender", "cf"]
        {
            assert_eq!(title(name), None, "{name}");
        }
    }
}
