//! The built `kms`, run as a user runs it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "test support: a failure here is a failed test"
)]

mod advice;
mod aliases;
mod common;
mod fake;
mod fake_keys;
mod help;
mod hsm;
mod import;
mod interrupt;
mod keys;
mod offline;
mod online;
mod rewrap_cut;
mod rewrap_file;
mod rewrap_left;
mod terminal;
mod unanswered;
