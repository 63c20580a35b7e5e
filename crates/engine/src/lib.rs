//! A transformer that can be opened: checkpoints, tokenizers, forward and backward passes with
//! sites that can be read and changed, and generation.
//!
//! The engine knows no editing method. It never prints, reads no environment variable, opens no
//! socket. Dimension letters used in the docs: `b` batch, `t` tokens, `d` model width, `f` MLP
//! width, `h` heads, `k` head width, `v` vocabulary, `l` layer, `n` facts, `r` rank.

pub mod architecture;
pub mod checkpoint;
mod error;
pub mod kernels;
#[cfg(test)]
mod testing;
pub mod tokenizer;

pub use architecture::Architecture;
pub use error::{Error, Result};
