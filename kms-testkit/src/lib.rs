//! Dev-only: what tests need of the real world. SoftHSM tokens, a PostgreSQL, a test PKI, server processes.
//!
//! Never part of a shipped binary. What cannot be found fails the test and says how to get it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "test support: a failure here is a failed test"
)]

pub mod client;
pub mod deadline;
pub mod faulty;
pub mod isolated;
pub mod pki;
pub mod postgres;
pub mod process;
pub mod softhsm;

pub use faulty::{Faulty, isolated_faulty};
pub use isolated::{isolated, isolated_with};
pub use pki::Pki;
pub use postgres::Postgres;
pub use process::Process;
pub use softhsm::SoftHsm;
