//! Every row of the fault table against the PKCS#11 provider, through the faulty module on SoftHSM.
//!
//! Not in the conformance suite: a software token has no module that could fail. Each test runs in a process of its
//! own, and awaits events with a deadline.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests")]

mod creation;
mod device;
mod handles;
mod hang;
mod import;
mod lie;
mod login;
mod object;
mod panics;
mod path;
mod probes;
mod rewrap;
mod rig;
mod session;
mod waiting;
