//! The peer of a connection: where it comes from and whom its certificate names.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use kms_core::clock::Timestamp;

use super::x509::{CertificateIdentity, NoIdentity};
use super::{AuthnMethod, Principal};

/// Why a request has no principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unauthenticated {
    /// The connection has no client certificate.
    #[error("no client certificate")]
    NoCertificate,
    /// The certificate names no principal.
    #[error("{0}")]
    NoIdentity(NoIdentity),
    /// The certificate ran out while the connection was open.
    #[error("the client certificate has expired")]
    Expired,
    /// The certificate is not trusted any more: its CA is gone, or it was revoked.
    #[error("the client certificate is no longer trusted")]
    Revoked,
}

impl Unauthenticated {
    /// Returns the reason for programs and audit records.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NoCertificate => "CERT_MISSING",
            Self::NoIdentity(_) => "CERT_NAMES_NOBODY",
            Self::Expired => "CERT_EXPIRED",
            Self::Revoked => "CERT_UNTRUSTED",
        }
    }
}

/// The peer of one connection, shared by all its requests.
#[derive(Debug)]
pub struct Peer {
    address: SocketAddr,
    principal: Result<Principal, Unauthenticated>,
    not_after: Timestamp,
    revoked: AtomicBool,
}

impl Peer {
    /// Makes the peer of a connection without TLS.
    pub fn unauthenticated(address: SocketAddr) -> Self {
        Self::verified(address, None)
    }

    /// Makes the peer of a connection whose certificate TLS has verified.
    pub fn verified(address: SocketAddr, identity: Option<CertificateIdentity>) -> Self {
        let (principal, not_after) = match identity {
            None => (Err(Unauthenticated::NoCertificate), Timestamp::from_unix_ms(i64::MIN)),
            Some(CertificateIdentity { name, not_after }) => {
                let principal = name
                    .map(|id| Principal { id, method: AuthnMethod::Mtls })
                    .map_err(Unauthenticated::NoIdentity);
                (principal, not_after)
            }
        };
        Self { address, principal, not_after, revoked: AtomicBool::new(false) }
    }

    /// Returns address and port.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes the trust away: no later request of this connection is authenticated.
    pub fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
    }

    /// Returns who is calling at `now`. Asked for every request: certificates run out while connections are open.
    pub fn authenticate(&self, now: Timestamp) -> Result<&Principal, Unauthenticated> {
        let principal = self.principal.as_ref().map_err(|error| *error)?;
        if self.revoked.load(Ordering::Acquire) {
            return Err(Unauthenticated::Revoked);
        }
        if now > self.not_after {
            return Err(Unauthenticated::Expired);
        }
        Ok(principal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: Result<&str, NoIdentity>) -> Peer {
        let identity = CertificateIdentity {
            name: name.map(Into::into),
            not_after: Timestamp::from_unix_ms(1000),
        };
        Peer::verified(([127, 0, 0, 1], 1).into(), Some(identity))
    }

    fn id(peer: &Peer, now_ms: i64) -> Result<&str, Unauthenticated> {
        peer.authenticate(Timestamp::from_unix_ms(now_ms)).map(|principal| &*principal.id)
    }

    #[test]
    fn a_certificate_counts_until_its_last_moment_and_not_after() {
        let peer = peer(Ok("spiffe://td/a"));
        assert_eq!(id(&peer, 1000), Ok("spiffe://td/a"));
        assert_eq!(id(&peer, 1001), Err(Unauthenticated::Expired));
    }

    #[test]
    fn a_revoked_peer_is_nobody_from_then_on() {
        let peer = peer(Ok("spiffe://td/a"));
        peer.revoke();
        assert_eq!(id(&peer, 1), Err(Unauthenticated::Revoked));
    }

    #[test]
    fn without_a_name_or_certificate_there_is_no_principal() {
        let nameless = peer(Err(NoIdentity::Ambiguous));
        assert_eq!(id(&nameless, 1), Err(Unauthenticated::NoIdentity(NoIdentity::Ambiguous)));
        let plain = Peer::unauthenticated(([127, 0, 0, 1], 1).into());
        assert_eq!(id(&plain, 1), Err(Unauthenticated::NoCertificate));
    }
}
