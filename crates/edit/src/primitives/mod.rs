//! What methods are made of: each primitive once, tested, for all of them.

pub mod contexts;
pub mod moments;
mod writing;
