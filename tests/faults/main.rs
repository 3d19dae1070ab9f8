//! What the server does when what it stands on fails: PIN, module, token, database rows, disk.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failure in a test's helper is a failed test"
)]

#[path = "../common/mod.rs"]
mod common;
mod device;
mod disk;
mod ends;
mod integrity;
mod restore;
mod roots;
mod token;
mod verify_store;
