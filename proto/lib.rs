//! The wire contract of Holdfast: messages, clients and servers of `kms.v1`, generated from `proto/`.
//!
//! Knows no other crate. Conversions between these messages and domain types live with their users, in the server's
//! `transport` and in the CLI, where every field is destructured so that a new one cannot be forgotten.

/// The messages and services of version 1 of the contract.
pub mod v1 {
    #![allow(
        clippy::allow_attributes_without_reason,
        clippy::pedantic,
        missing_debug_implementations,
        unreachable_pub,
        unused_qualifications,
        reason = "generated code"
    )]
    tonic::include_proto!("kms.v1");
}

/// The encoded `FileDescriptorSet` of the contract, for reflection and for tests that list every RPC.
pub const FILE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/kms_descriptor.bin"));
