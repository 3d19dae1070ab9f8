//! The pure domain of Holdfast: what a key, a version, an envelope and a record are.
//!
//! Responsible for names and ids, the state machine, the ciphertext envelope, the encryption context, the types of
//! secrets, the canonical bytes that are MACed, and the audit record. It must never do I/O: no tokio, no tonic, no
//! cryptoki, no SQL. Every other crate stands on this one; it stands on none of them.

pub mod alias;
pub mod audit;
pub mod canonical;
pub mod clock;
pub mod consumer;
pub mod context;
pub mod domain;
pub mod envelope;
pub mod fault;
pub mod filter;
pub mod id;
pub mod import;
pub mod import_job;
pub mod journal;
pub mod key;
pub mod lifecycle;
pub mod manifest;
pub mod name;
pub mod root;
pub mod secret;
pub mod state;
pub mod text;
pub mod usage;
