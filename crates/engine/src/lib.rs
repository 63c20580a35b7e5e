//! A transformer that can be opened: checkpoints, tokenizers, forward and backward passes with
//! sites that can be read and changed, and generation.
//!
//! The engine knows no editing method. It never prints, reads no environment variable, opens no
//! socket. Dimension letters used in the docs: `b` batch, `t` tokens, `d` model width, `f` MLP
//! width, `h` heads, `k` head width, `v` vocabulary, `l` layer, `n` facts, `r` rank.

pub mod architecture;
pub mod backward;
pub mod cache;
pub mod checkpoint;
mod error;
pub mod forward;
pub mod generate;
pub mod kernels;
pub mod model;
pub mod overlay;
mod rows;
pub mod sampling;
pub mod site;
#[cfg(test)]
mod testing;
pub mod tokenizer;
mod validate;

pub use architecture::{Architecture, Role};
pub use backward::{Gradients, Pair, Wants};
pub use cache::{Cache, Past};
pub use error::{Error, Result};
pub use forward::{LogitRows, Outcome, Pass, Sequence, Start, Tape};
pub use generate::{Generated, Generation, Kept, Prompt, Step, StopReason, next_token_distribution, ranked};
pub use kernels::Isa;
pub use kernels::pack::Storage;
pub use model::{Model, Options, THREADS_LIMIT};
pub use overlay::{Delta, Overlay, WeightId};
pub use sampling::Sampling;
pub use site::{Action, Intervention, Read, Site, SiteKind};
