//! gRPC: from messages to use-cases and back.
//!
//! In the order in which a request meets them: `route` finds the method of a path, `gateway` asks who calls and does what
//! every call needs, `arrive` reads the message, `bounds` counts it, `decode` and `encode` translate field by field,
//! `answer` frames what goes back, `failures` keeps the log short. `crypto`, `key`, `import` and `health` name
//! the methods, `rewrap_stream` is the one whose messages are many, which `messages` reads and `stream_answers`
//! answers.

mod alias;
mod answer;
mod arrive;
mod backup;
mod batch;
mod bounds;
mod crypto;
mod deadline;
mod decode;
mod encode;
mod failures;
mod gateway;
mod health;
mod import;
mod key;
mod messages;
mod rewrap_stream;
mod route;
mod stream_answers;

pub use backup::not_yet;
pub use gateway::{EVENT_ID_KEY, Gateway, GatewayParts, RefusalLog};
pub use route::GrpcService;
