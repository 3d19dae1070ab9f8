//! Bad input over real gRPC: each kind has an error of its own, and what is at the limit still works.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    reason = "a failure in a test's helper is a failed test"
)]

mod aliases;
mod batch;
mod ciphertext;
#[path = "../common/mod.rs"]
mod common;
mod connection;
mod fields;
mod lifecycle;
mod mutation;
mod names;
mod pages;
mod states;
