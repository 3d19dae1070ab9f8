//! The HSM layer: the only place that knows PKCS#11.
//!
//! Stands at the end of the request path, below the keyring. Responsible for the seam [`Hsm`], its PKCS#11 provider
//! (worker threads, keeper, supervisor), the doctor and the conformance suite. Types of cryptoki never leave this
//! crate. It must never create a root because one was not found, never retry a PIN, and never let key material into
//! the memory of this process.

pub mod dev;
pub mod doctor;
pub mod error;
pub mod hsm;
mod pending;
pub mod pkcs11;
#[cfg(feature = "suite")]
pub mod suite;

pub use error::HsmError;
pub use hsm::{
    CryptoOp, CryptoOutput, Finished, GeneratedKey, Hsm, HsmHealth, HsmKey, HsmStatus,
    ImportKeySpec, KeyImport, KeySource, KeySpec, MAX_REWRAPS, Mark, Pending, Sealed, Stray,
    Timing, TokenKeys,
};
