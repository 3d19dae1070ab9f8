//! Where connections come from, so that no single source can take all places.
//!
//! Counted before the first byte is read: who has not shown a certificate yet has nothing but an address. An IPv6 source
//! is a network of 64 bits, which is what one customer gets at least.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::limits::{ConnectionLimits, HANDSHAKE_SHARES};

/// Bits of an IPv6 address that a source may vary.
const HOST_BITS: u32 = 64;

/// The sources that have connections now.
#[derive(Debug)]
pub(super) struct Sources {
    max_connections: usize,
    max_handshakes: usize,
    by_source: Mutex<HashMap<IpAddr, Source>>,
}

#[derive(Debug)]
struct Source {
    connections: usize,
    handshakes: Arc<Semaphore>,
}

/// A connection's place among those of its source; free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    sources: Arc<Sources>,
    source: IpAddr,
    handshakes: Arc<Semaphore>,
}

impl Sources {
    pub(super) fn new(limits: &ConnectionLimits) -> Arc<Self> {
        Arc::new(Self {
            max_connections: limits.max_connections_per_source,
            max_handshakes: (limits.max_handshakes / HANDSHAKE_SHARES).max(1),
            by_source: Mutex::default(),
        })
    }

    /// Takes a place; `None` when the source has all that it may have.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let source = source(address);
        let mut by_source = self.lock();
        let known = by_source.entry(source).or_insert_with(|| Source {
            connections: 0,
            handshakes: Arc::new(Semaphore::new(self.max_handshakes)),
        });
        if known.connections >= self.max_connections {
            return None;
        }
        known.connections += 1;
        let handshakes = Arc::clone(&known.handshakes);
        Some(Place { sources: Arc::clone(self), source, handshakes })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Source>> {
        self.by_source.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Waits for its turn among the handshakes of its source.
    pub(super) async fn handshake_turn(&self) -> Option<OwnedSemaphorePermit> {
        // Nobody closes it.
        Arc::clone(&self.handshakes).acquire_owned().await.ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_source = self.sources.lock();
        if let Some(source) = by_source.get_mut(&self.source) {
            source.connections -= 1;
            if source.connections == 0 {
                by_source.remove(&self.source);
            }
        }
    }
}

fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() >> HOST_BITS << HOST_BITS).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(max_connections_per_source: usize) -> Arc<Sources> {
        Sources::new(&ConnectionLimits { max_connections_per_source, ..Default::default() })
    }

    fn enter(sources: &Arc<Sources>, address: &str) -> Option<Place> {
        sources.enter(address.parse().unwrap())
    }

    #[test]
    fn a_source_has_places_up_to_the_limit_and_others_have_theirs() {
        let sources = sources(2);
        let first = enter(&sources, "192.0.2.1").unwrap();
        let _second = enter(&sources, "::ffff:192.0.2.1").unwrap();
        assert!(enter(&sources, "192.0.2.1").is_none());
        assert!(enter(&sources, "192.0.2.2").is_some());
        drop(first);
        assert!(enter(&sources, "192.0.2.1").is_some());
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_source() {
        let sources = sources(1);
        let _first = enter(&sources, "2001:db8:0:1::1").unwrap();
        assert!(enter(&sources, "2001:db8:0:1:ffff:ffff:ffff:ffff").is_none());
        assert!(enter(&sources, "2001:db8:0:2::1").is_some());
    }

    #[test]
    fn a_source_without_connections_is_forgotten() {
        let sources = sources(1);
        drop(enter(&sources, "192.0.2.1").unwrap());
        assert!(sources.lock().is_empty());
    }
}
