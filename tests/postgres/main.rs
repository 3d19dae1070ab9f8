//! The real server on a real PostgreSQL: the main job, an outage, what is refused at start, and what shows an edited row.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test program: a failure here is a failed test"
)]

#[path = "../common/mod.rs"]
mod common;

mod integrity;
mod main_job;
mod outage;
mod refused;
