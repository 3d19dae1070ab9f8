//! What the crash test is made of: clients that keep their own books, and an examiner who compares them with the server.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    reason = "test support: a failure here is a failed test"
)]

pub mod change;
pub mod client;
pub mod examiner;
pub mod intents;
pub mod ledger;
pub mod lived;
pub mod residents;

pub use crate::support_dev::random::Random;
