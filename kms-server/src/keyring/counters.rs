//! What the keyring counts, for /metrics.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($(#[doc = $doc:literal] $name:ident),+ $(,)?) => {
        /// Counters since the start of the process.
        #[derive(Debug, Default)]
        pub struct Counters {
            $(#[doc = $doc] pub $name: Counter),+
        }

        impl Counters {
            /// Lists all counters: name, what it counts, number.
            pub fn all(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), $doc.trim(), self.$name.read())),+]
            }
        }
    };
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number.
    pub fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

counters! {
    /// Rows or keys that failed their integrity check. Any is an alert.
    integrity_failures,
    /// Uses of a COMPROMISED version that were permitted. Any is an alert.
    compromised_uses,
    /// Uses of a version that is scheduled for destruction, refused. Any is an alert.
    destroy_scheduled_uses,
    /// Uses of a DISABLED key, refused: somebody still needs it.
    disabled_key_uses,
    /// Versions that protect near the end of their cryptoperiod, and after it, each once a load.
    cryptoperiod_warnings,
    /// Versions that process near the end of their recipient-usage period, and after it, each once a load.
    recipient_usage_warnings,
    /// Uses of versions that could not be put on the list, as too many versions waited for their counts to be written.
    uses_not_noted,
    /// Key rows read from the store.
    key_loads,
    /// Aliases read from the store.
    alias_loads,
    /// Versions loaded into the HSM.
    version_loads,
    /// Versions dropped to make room.
    evictions,
    /// Leases taken.
    leases,
    /// Writes of counters, each for any number of leases.
    lease_writes,
}
