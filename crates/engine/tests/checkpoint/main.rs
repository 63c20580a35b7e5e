//! Checkpoints through the public interface: real models, tiny ones of each packing, broken ones.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod allocations;
mod builder;
mod families;
mod layouts;
mod malformed_gguf;
mod malformed_safetensors;
mod models;
