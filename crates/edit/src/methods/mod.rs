//! All methods: one file, one line each.

/// Paragraphs of a method's documentation, a blank line between.
macro_rules! describe {
    ($first:literal $(, $rest:literal)*) => { concat!($first $(, "\n\n", $rest)*) };
}

mod adalora;
mod alphaedit;
mod emmet;
mod encore;
mod ft_l;
mod ft_m;
mod ice;
mod kn;
mod locft_bf;
mod lora;
mod malmen;
mod memit;
mod memit_merge;
mod mend;
mod pmet;
mod r_rome;
mod rome;
mod stableedit;
mod ultraedit;

use crate::method::{Entry, Method};

/// The method where none is named.
pub const DEFAULT: &str = <r_rome::RRome as Method>::ID;

/// Every method, in the order in which it is listed.
pub static METHODS: &[Entry] = &[
    Entry::of::<r_rome::RRome>(),
    Entry::of::<rome::Rome>(),
    Entry::of::<memit::Memit>(),
    Entry::of::<memit_merge::MemitMerge>(),
    Entry::of::<emmet::Emmet>(),
    Entry::of::<pmet::Pmet>(),
    Entry::of::<alphaedit::AlphaEdit>(),
    Entry::of::<encore::Encore>(),
    Entry::of::<ft_m::FtM>(),
    Entry::of::<ft_l::FtL>(),
    Entry::of::<locft_bf::LocFtBf>(),
    Entry::of::<lora::Lora>(),
    Entry::of::<adalora::AdaLora>(),
    Entry::of::<ultraedit::UltraEdit>(),
    Entry::of::<stableedit::StableEdit>(),
    Entry::of::<mend::Mend>(),
    Entry::of::<malmen::Malmen>(),
    Entry::of::<kn::Kn>(),
    Entry::of::<ice::Ice>(),
];
