//! The bounds of connections, handshakes and messages.
//!
//! Every number that keeps one client from using up the server stands here, with the reason for its value. It must
//! never hold a bound of the domain: those are in kms-core.

use std::time::Duration;

/// The largest gRPC message, in either direction: a full batch of small items, a few dozen of the largest.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// The largest message of a stream of items: the longest envelope and context, names, and room to spare.
pub const MAX_STREAM_ITEM_BYTES: usize = 128 * 1024;
/// What a stream of items takes of [`BODY_BUDGET_BYTES`] while it waits for an item: that item, of which all is read as
/// it comes. Eight connections full of such streams.
pub const IDLE_STREAM_BYTES: usize = MAX_STREAM_ITEM_BYTES;
/// What it takes while it has items: what its client may send ahead, a message that
/// is not whole yet, and two windows of answers. Some forty streams at a time.
pub const STREAM_BYTES: usize = WINDOW_BYTES as usize + 2 * 1024 * 1024;
/// The longest reference of an item of a stream: the name of a row, not the row.
pub const MAX_REFERENCE_BYTES: usize = 256;
/// Bytes that the bodies of all requests together may take, beyond the first of each: sixty of the largest at a time.
pub const BODY_BUDGET_BYTES: usize = 256 * 1024 * 1024;
/// The most bytes of headers that one request may have; gRPC needs a few hundred.
pub const MAX_HEADER_LIST_BYTES: u32 = 16 * 1024;
/// Streams that a client may reset before we answered them, before the connection ends (CVE-2023-44487).
pub const MAX_PENDING_RESETS: usize = 20;
/// Streams that a client may make us reset, before the connection ends (CVE-2025-8671).
pub const MAX_LOCAL_RESETS: usize = 256;
/// Flow-control window of a connection and of a stream: one message of the largest size fits.
pub const WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Bytes of answers that are buffered for one stream before its handler has to wait.
pub const MAX_SEND_BUFFER_BYTES: usize = 1024 * 1024;
/// How long `accept` rests when the process is out of descriptors or memory; the kernel's backlog waits meanwhile.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Of all handshakes at a time, one source may have one part in so many: eight would have to work together to take all.
pub const HANDSHAKE_SHARES: usize = 8;
/// How long a client may take to confirm that its connection ends, when no request is in flight any more.
pub const GOAWAY_PATIENCE: Duration = Duration::from_millis(250);
/// The backlog of a listening socket.
pub const LISTEN_BACKLOG: u32 = 1024;

/// Bounds of one listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections at a time, those in the handshake included. One more is closed at once.
    pub max_connections: usize,
    /// Connections at a time from one address, or one IPv6 network of 64 bits. One more is closed at once.
    pub max_connections_per_source: usize,
    /// Handshakes at a time: they cost a hundred times what a request costs. One more is closed at once. A handshake begins
    /// with the client's first byte; a source has an eighth of them at a time, and its others wait for their turn.
    pub max_handshakes: usize,
    /// How long a client may take for its handshake, the wait for its first byte included; and then for its first request.
    pub handshake_timeout: Duration,
    /// Requests at a time on one connection.
    pub max_streams: u32,
    /// How long a connection may be silent before it is asked for a sign of life.
    pub keepalive_interval: Duration,
    /// How long the sign of life may take.
    pub keepalive_timeout: Duration,
    /// How old a connection may get; then it is ended gracefully, so that new certificates and peers take hold.
    pub max_age: Duration,
    /// How long requests in flight may take after a connection is told to end.
    pub age_grace: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            max_connections_per_source: 1024,
            max_handshakes: 256,
            handshake_timeout: Duration::from_secs(5),
            max_streams: 256,
            keepalive_interval: Duration::from_mins(1),
            keepalive_timeout: Duration::from_secs(20),
            max_age: Duration::from_hours(1),
            age_grace: Duration::from_secs(30),
        }
    }
}
