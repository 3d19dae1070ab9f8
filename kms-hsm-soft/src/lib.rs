//! Dev-only: a software token that implements the `Hsm` trait, for tests and benchmarks.
//!
//! It answers every call at once, on the caller's thread, with the semantics that the conformance suite demands. It is
//! never part of a shipped binary: it holds keys in the memory of this process.

mod crypto;
mod device;
mod import;
mod token;

pub use device::SoftDevice;
pub use token::SoftToken;
