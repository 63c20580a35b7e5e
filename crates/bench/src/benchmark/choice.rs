//! Which records of a data set are used.

use std::collections::HashMap;

use mutandis_edit::Result;
use mutandis_engine::Model;

use crate::data::{Record, Set};
use crate::plan::Order;
use crate::record::Prepared;
use crate::results::Skipped;

/// Prompts of a record that are longer than the model's context, and why it cannot be used at all.
type Found = (Vec<String>, Option<String>);

/// The number of a set, a record's place in it, and the seed of what is drawn for it.
type Key = (usize, usize, u64);

/// What was found of records.
#[derive(Debug, Default)]
pub(super) struct Looked(HashMap<Key, Found>);

/// Records that are used, by their place in the set, and those that are not.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) records: Vec<usize>,
    /// Among those up to the last one used; all of the file's where it has fewer than were asked for.
    pub(super) skipped: Vec<Skipped>,
    /// Prompts of the used ones that are not asked.
    pub(super) unasked: Vec<Skipped>,
}

/// So much of a prompt that is not asked is told.
const SHOWN: usize = 40;

impl Looked {
    /// The first records of set `number` that an order can edit: with their subjects in their prompts,
    /// where a method needs them. Where no record of the set has that, each fails by itself and says why.
    ///
    /// # Errors
    /// Where the model has no tokenizer.
    pub(super) fn choose(
        &mut self,
        model: &Model,
        number: usize,
        set: &Set,
        &Order { limit, seed, .. }: &Order,
        needs_subject: bool,
    ) -> Result<Chosen> {
        let named = |record: &Record| record.facts().iter().all(|fact| fact.subject_range().is_ok());
        let asks_for_it = needs_subject && set.records.iter().any(named);
        let mut chosen = Chosen::default();
        for (i, record) in set.records.iter().enumerate() {
            if chosen.records.len() == limit {
                break;
            }
            let mut skip = |why: String| chosen.skipped.push(Skipped { record: record.number, why });
            if asks_for_it && !named(record) {
                let why = record.facts().iter().find_map(|fact| fact.subject_range().err());
                skip(why.map_or_else(String::new, |why| why.to_string()));
                continue;
            }
            let (too_long, unfit) = self.look(model, set, (number, i, seed))?;
            match unfit {
                Some(why) => skip(why.clone()),
                None => {
                    chosen.unasked.extend(too_long.iter().map(|prompt| {
                        let start: String = prompt.chars().take(SHOWN).collect();
                        let why = format!("`{start}…` is longer than the model's context with its answers");
                        Skipped { record: record.number, why }
                    }));
                    chosen.records.push(i);
                }
            }
        }
        let last = match chosen.records.last() {
            Some(&i) if chosen.records.len() == limit => set.records[i].number,
            _ => usize::MAX,
        };
        let unreadable = set.skipped.iter().filter(|note| note.record < last);
        chosen.skipped.extend(unreadable.map(|note| Skipped { record: note.record, why: note.what.clone() }));
        chosen.skipped.sort_by_key(|skipped| skipped.record);
        Ok(chosen)
    }

    fn look(&mut self, model: &Model, set: &Set, key: Key) -> Result<&Found> {
        use std::collections::hash_map::Entry;
        Ok(match self.0.entry(key) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(place) => {
                let (_, index, seed) = key;
                let record = Prepared::new(model, set, index, seed)?;
                let unfit = record.unfit(model)?;
                place.insert((record.too_long, unfit))
            }
        })
    }
}
