//! Dev mode: everything in one directory, one command, no set-up.
//!
//! It must never be mistaken for production: PIN and CA key lie in files beside what they protect, and it says so.

pub mod pki;
