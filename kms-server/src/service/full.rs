//! What more cannot wait in.

/// What is full when more is asked than may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The queue of the HSM.
    #[error("the hsm queue is full")]
    Queue,
    /// The places for changes of keys, of all tenants together.
    #[error("too many changes of keys at a time")]
    Changes,
    /// The places for changes of one tenant.
    #[error("too many changes of keys of this tenant at a time")]
    ChangesOfTenant,
}
