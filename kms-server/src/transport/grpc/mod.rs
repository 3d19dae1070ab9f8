//! gRPC: from messages to use-cases and back.
//!
//! `decode` and `encode` translate, field by field; `gateway` does what every call needs; `crypto` and `key` name the
//! methods; `route` finds the service of a path and types what tonic itself refuses.

mod batch;
mod bounded;
mod crypto;
mod deadline;
mod decode;
mod encode;
mod gateway;
mod key;
mod route;

pub use gateway::{EVENT_ID_KEY, Gateway, GatewayParts, RefusalLog};
pub use route::GrpcService;
