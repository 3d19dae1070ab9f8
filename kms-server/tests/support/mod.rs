//! What the integration tests of store and audit share: samples, system call traces, crash images.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::panic,
    reason = "test support: a failure here is a failed test, and no test uses all of it"
)]

pub mod crash;
pub mod faulty;
pub mod samples;
pub mod strace;
