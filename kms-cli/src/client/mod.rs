//! The connection to a server: one mutually authenticated TLS 1.3 channel and the calls over it.
//!
//! [`credentials`] reads certificates, [`connector`] does TLS, [`retry`] bounds time and repeats, [`crypto`], [`mod@batch`]
//! and [`keys`] translate between messages and domain types, [`error`] says what went wrong. This is the only module of the CLI that
//! names tonic, the bench aside. It never logs, and never keeps a plaintext longer than the call.

pub mod admin;
pub mod aliases;
pub mod batch;
pub mod connector;
pub mod credentials;
pub mod crypto;
pub mod error;
pub mod health;
pub mod import;
pub mod keys;
pub mod replay;
pub mod retry;

pub use crypto::{CiphertextDescription, Rewrapped, Unwrapped, Wrapped};
pub use error::{ClientError, Refusal, Repeat};

use std::sync::Arc;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint, Uri};

use crate::context::ResolvedContext;
use connector::{ConnectFailure, Connector};

/// How long TCP and TLS together may take: a handshake over a slow link, with room for one lost packet.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connected client. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    server: Arc<str>,
    timeout: Duration,
}

impl Client {
    /// Reads the certificates, connects, and completes the TLS handshake.
    ///
    /// # Errors
    /// [`ClientError::Credentials`] for the caller's own files, [`ClientError::Connect`] for the network and TLS.
    pub async fn connect(context: &ResolvedContext) -> Result<Self, ClientError> {
        let channel = channel(context).await?;
        let server = context.server.to_string().into();
        Ok(Self { channel, server, timeout: context.timeout })
    }

    /// Lends the channel, for callers that bring their own messages (`kms bench`).
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Returns how long one call may take, retries and waits included.
    pub const fn timeout(&self) -> Duration {
        self.timeout
    }
}

/// Opens one channel: one TCP connection, reopened by itself when it breaks.
pub async fn channel(context: &ResolvedContext) -> Result<Channel, ClientError> {
    let tls = credentials::tls_config(&context.ca, &context.cert, &context.key)?;
    let connector = Connector::new(&context.server, tls)?;
    // The scheme below is what tonic's own TLS would react to; ours is inside the connector. The origin is what the
    // server sees.
    let authority = context.server.authority();
    let origin: Uri = format!("https://{authority}")
        .parse()
        .map_err(|_| ClientError::Bug("an address that was checked is no URI"))?;
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))
        .map_err(|_| ClientError::Bug("an address that was checked is no URI"))?
        .origin(origin)
        .user_agent(concat!("kms/", env!("CARGO_PKG_VERSION")))
        .map_err(|_| ClientError::Bug("our user agent is no header value"))?
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10));
    let connecting = endpoint.connect_with_connector(connector);
    let limit = CONNECT_TIMEOUT.min(context.timeout);
    let failure = match tokio::time::timeout(limit, connecting).await {
        Ok(Ok(channel)) => return Ok(channel),
        Ok(Err(error)) => ConnectFailure::find(&error),
        Err(_) => ConnectFailure::Timeout(limit),
    };
    Err(ClientError::Connect { server: context.server.to_string(), failure })
}
