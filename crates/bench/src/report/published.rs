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
    /// Names of our data sets that are this one, in lower case; `*` at the end stands for anything.
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
        let data = data.to_lowercase();
        let is = |name: &String| match name.strip_suffix('*') {
            Some(start) => data.starts_with(start),
            None => data == *name,
        };
        self.sets.iter().enumerate().find(|(_, set)| set.names.iter().any(is))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_its_method() {
        for set in &KNOWEDIT.sets {
            assert!(set.scores.contains_key("edit") && set.scores.contains_key("fluency"), "{}", set.title);
            for (name, values) in &set.scores {
                assert!(super::super::metric::MAIN.contains(&name.as_str()), "{name}");
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
        close(sums("locality"), &[499.47, 487.11, 565.97, 521.86, 53.59, 407.0]);
        close(sums("fluency"), &[4477.99, 4222.25, 4921.69, 4497.02, 4474.83, 3734.67]);
    }

    #[test]
    fn data_sets_are_found_by_their_names() {
        let title = |name: &str| KNOWEDIT.of(name).map(|(_, set)| set.title.as_str());
        assert_eq!(title("wiki_recent_train"), Some("WikiData_recent"));
        assert_eq!(title("ZsRE"), Some("ZsRE"));
        assert_eq!(title("wiki_counterfact_test_cf_885"), Some("WikiData_counterfact"));
        // Other data sets of similar names.
        assert_eq!(title("zsre_mend_eval"), None);
        assert_eq!(title("counterfact"), None);
    }
}
