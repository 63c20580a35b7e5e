//! All methods: one file, one line each.

/// Paragraphs of a method's documentation, a blank line between.
macro_rules! describe {
    ($first:literal $(, $rest:literal)*) => { concat!($first $(, "\n\n", $rest)*) };
}

mod ice;
mod r_rome;
mod rome;

use crate::method::Entry;

/// Every method, in the order in which it is listed.
pub static METHODS: &[Entry] =
    &[Entry::of::<r_rome::RRome>(), Entry::of::<rome::Rome>(), Entry::of::<ice::Ice>()];
