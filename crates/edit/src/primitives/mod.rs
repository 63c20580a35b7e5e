//! What methods are made of: each primitive once, tested, for all of them.

mod adam;
pub mod answers;
mod ascent;
mod beside;
pub mod cholesky;
pub mod contexts;
pub mod editor;
pub mod fine_tune;
mod grad_pairs;
pub mod least_squares;
pub mod lifelong;
pub mod locate_then_edit;
mod lookup;
pub mod moments;
pub mod neurons;
pub mod normaliser;
pub mod post;
pub mod rank_one;
pub mod request;
pub mod solver;
pub mod spread;
pub mod statistics;
pub mod strength;
pub mod subspace;
pub mod train;
pub mod value_search;
mod writing;
