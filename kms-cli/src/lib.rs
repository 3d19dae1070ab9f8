//! The command-line client of Holdfast, as a library: the `kms` binary is a page on top of it.
//!
//! Responsible for arguments, contexts, the connection to a server, and what is read from and written to the caller's
//! files and terminal. It must never take a secret from argv, print a plaintext to a terminal unasked, or leave an
//! output file that looks complete after a failure. Every failure ends in one documented exit code ([`exit::Exit`]).

pub mod args;
pub mod backup;
pub mod bench;
pub mod client;
pub mod context;
pub mod error;
pub mod exit;
pub mod fingerprint;
pub mod input;
pub mod interrupt;
pub mod inventory;
pub mod output;
pub mod terminal;
pub mod verbs;
