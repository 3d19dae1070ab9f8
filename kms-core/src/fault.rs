//! Whose fault an error is, and whether trying again can help.
//!
//! Every error enum of every layer answers these two questions by method; the map to gRPC codes is built on the answers
//! and stands in one place, the server's `transport/status.rs`.

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The caller sent something that cannot be served; the same request fails again.
    Caller,
    /// Policy refuses the caller.
    Policy,
    /// The HSM, its module or its token.
    Device,
    /// The database.
    Store,
    /// The audit log.
    Audit,
    /// A defect of ours.
    Bug,
}

/// Whether the same request can succeed later without anyone changing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Trying again does not help.
    Never,
    /// Trying again after a while may help.
    Later,
}
