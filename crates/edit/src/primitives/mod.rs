//! What methods are made of: each primitive once, tested, for all of them.

pub mod contexts;
pub mod locate_then_edit;
pub mod moments;
pub mod rank_one;
pub mod request;
pub mod value_search;
mod writing;
