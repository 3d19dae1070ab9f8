//! The admin listener: health, readiness, metrics, reflection.
//!
//! On an address of its own, behind allowed networks and client certificates. It must never show a secret, a tenant or a
//! key; what it shows, a monitoring system may keep.

mod explain;
mod metrics;
mod readiness;
mod routes;

pub use metrics::Gauges;
pub use readiness::{PROBE_INTERVAL, Probes, Readiness, watch};
pub use routes::{Access, routes};
