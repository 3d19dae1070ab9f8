//! Authentication: who is calling.
//!
//! Stands between transport and authorization. TLS has verified the certificate before; this module reads the one name
//! in it and asks, for every request, whether it still counts. It must never decide what the caller may do.

use std::fmt;
use std::sync::Arc;

mod peer;
pub mod x509;

pub use peer::{Peer, Unauthenticated};

/// How a principal was authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AuthnMethod {
    /// By a client certificate over TLS 1.3.
    Mtls,
    /// Not at all: the server itself, for rotations that are due and for reconciliation.
    Internal,
}

impl AuthnMethod {
    /// Returns the name used in audit records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mtls => "mtls",
            Self::Internal => "internal",
        }
    }
}

/// Who is calling, after authentication.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Principal {
    /// SPIFFE id, or DNS name in lower case.
    pub id: Arc<str>,
    /// How we know.
    pub method: AuthnMethod,
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)
    }
}
