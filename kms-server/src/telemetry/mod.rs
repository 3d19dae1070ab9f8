//! Telemetry: log lines and numbers about what the server does.
//!
//! It must never carry a secret, a tenant name or a key id in a label, and never block a request.

pub mod lines;
pub mod log;
pub mod metrics;
