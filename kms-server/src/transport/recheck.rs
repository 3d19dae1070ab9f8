//! Whether a client is still who it was: its chain is verified again when CAs or CRLs were reloaded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kms_core::clock::{Clock, Timestamp};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::stats::ConnectionStats;
use super::tls::TlsStore;
use crate::authn::{Peer, Unauthenticated};

/// Verifies a chain again after a reload.
#[derive(Debug)]
pub(super) struct Recheck {
    pub(super) store: Arc<TlsStore>,
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// The epoch of the set that the chain was verified with.
    pub(super) verified: AtomicU64,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) stats: Arc<ConnectionStats>,
}

impl Recheck {
    fn run(&self, peer: &Peer) {
        let epoch = self.store.epoch();
        if self.verified.load(Ordering::Acquire) == epoch {
            return;
        }
        let unix_ms = u64::try_from(self.clock.now().as_unix_ms()).unwrap_or(0);
        let now = UnixTime::since_unix_epoch(Duration::from_millis(unix_ms));
        if !self.store.current().verify_client(&self.chain, now) {
            self.stats.revoked_connections.add();
            peer.revoke();
        }
        self.verified.store(epoch, Ordering::Release);
    }
}

/// The client of a connection, and what is needed to ask again. In a request that may outlive a reload.
#[derive(Clone, Debug)]
pub(super) struct Trust {
    pub(super) peer: Arc<Peer>,
    /// `None` without TLS.
    pub(super) recheck: Option<Arc<Recheck>>,
}

impl Trust {
    /// Takes the peer's trust away when it is over.
    pub(super) fn recheck(&self) {
        if let Some(recheck) = &self.recheck {
            recheck.run(&self.peer);
        }
    }

    /// Asks again who is calling.
    pub(super) fn still(&self, now: Timestamp) -> Result<(), Unauthenticated> {
        self.recheck();
        self.peer.authenticate(now).map(|_| ())
    }
}
