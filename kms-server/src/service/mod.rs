//! The use-cases, one file each. Stands between authz and the keyring.
//!
//! Responsible for the order of things: decide, check, record, do, record, answer. It must never answer before the
//! audit record is durable, and never touch a key without a permit.

mod batch;
mod describe_ciphertext;
mod error;
mod generate_data_key;
mod generate_random;
mod kms;
mod rewrap;
mod trail;
mod types;
mod unwrap;
mod wrap;

pub use error::{RETRY_AFTER, ServiceError};
pub use kms::{Kms, Parts, Randomness, SystemRandomness};
pub use types::*;
