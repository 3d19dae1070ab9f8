//! Transport: TLS, connections, gRPC. The first thing that a request meets and the last that an answer leaves.
//!
//! With `admin`, the only module that names tonic. Responsible for accepting connections, for knowing whose they are, for turning
//! messages into domain types and back, and for the one map from errors to gRPC codes. It must never decide who may do
//! what, and never touch a key.

pub mod accept;
mod connection;
pub mod event_id;
pub mod grpc;
pub mod health;
mod in_flight;
pub mod limits;
pub mod method;
pub mod network;
mod recheck;
pub mod shutdown;
mod sources;
pub mod stats;
pub mod status;
pub mod tls;
pub mod tls_check;
pub mod tls_client;
mod tls_validity;

pub use accept::{Drained, HttpService, Security, ServeOptions, serve};
pub use limits::ConnectionLimits;
pub use shutdown::{Shutdown, ShutdownTrigger};
pub use tls::{Protocols, TlsFiles, TlsStore};
pub use tls_validity::Validity;
