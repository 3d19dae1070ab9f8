//! The service on a software token and SQLite: use-cases, permissions, limits, integrity, crashes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failure here is a failed test"
)]

mod aliases;
mod backup;
mod consumers;
mod crash;
mod crypto;
mod destruction;
mod faults;
mod faulty_store;
mod filters;
mod import;
mod import_refusals;
mod integrity;
mod intents;
mod journal;
mod key_destruction;
mod key_state;
mod keys;
mod leases;
mod lifecycle;
mod metrics;
mod model;
mod mutations;
mod places;
mod refusals;
mod replay;
mod rollback;
mod root_edges;
mod root_rollover;
mod rotation;
mod scream;
mod staging;
mod states;
mod support;
mod tampering;
mod told;
mod undo;
mod usage;
mod verify_store;
