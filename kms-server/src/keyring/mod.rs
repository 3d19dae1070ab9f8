//! The keyring: keys ready for use. Stands between service and { hsm | store }.

mod error;

pub use error::KeyringError;
