//! Every family on the tiny models of `fixtures/`: golden values, gradients, partial passes, bad
//! input.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod damage;
mod differences;
mod golden;
mod gradients;
mod input;
mod partial;
mod support;
