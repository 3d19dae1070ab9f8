//! What happened to connections, as numbers. Read by the admin listener.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Counters of one listener.
        #[derive(Debug, Default)]
        pub struct ConnectionStats { $($(#[$doc])* pub $name: Count),+ }
    };
}

stats! {
    /// Connections that TCP gave us.
    accepted,
    /// Connections open now, those in the handshake included.
    open,
    /// Connections closed at once because of their network.
    refused_networks,
    /// Connections closed at once because there were too many.
    refused_connections,
    /// Connections closed at once because their source had too many.
    refused_sources,
    /// Connections closed at once because too many were in their handshake.
    refused_handshakes,
    /// Handshakes that failed or took too long.
    failed_handshakes,
    /// Handshakes that succeeded.
    handshakes,
    /// Connections ended because no request came in time.
    without_request,
    /// Connections cut off with requests in flight: too old, or in a drain, and out of grace.
    cut_off,
    /// Client certificates that a reload of CAs or CRLs took the validity from.
    revoked_connections,
    /// Times that `accept` failed: out of descriptors, for example.
    accept_errors,
}

/// One number.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds one.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes one off.
    pub fn remove(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns the number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
