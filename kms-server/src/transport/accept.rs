//! The accept loop: from a listening socket to served connections, and to a graceful end.
//!
//! It serves any tonic `Routes`, so that benchmarks measure a bare service through this very code. It must never end
//! because of what a client does or because the process is short of descriptors; it ends by the shutdown signal only.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use kms_core::clock::Clock;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tower::Service;

use super::connection::{self, End};
use super::limits::{ACCEPT_PAUSE, ConnectionLimits};
use super::network::Network;
use super::shutdown::Shutdown;
use super::sources::{Place, Sources};
use super::stats::ConnectionStats;
use super::tls::TlsStore;

/// What can be served: tonic's `Routes`, or anything that answers HTTP/2 requests with tonic bodies.
///
/// It must be ready at all times: it is called without `poll_ready`, as tonic's own services allow.
pub trait HttpService:
    Service<
        http::Request<Incoming>,
        Response = http::Response<tonic::body::Body>,
        Error = Infallible,
        Future: Send + Unpin + 'static,
    > + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> HttpService for S where
    S: Service<
            http::Request<Incoming>,
            Response = http::Response<tonic::body::Body>,
            Error = Infallible,
            Future: Send + Unpin + 'static,
        > + Clone
        + Send
        + Sync
        + 'static
{
}

/// How a listener's connections are protected.
#[derive(Clone, Debug)]
pub enum Security {
    /// TLS 1.3 with client certificates.
    Tls(Arc<TlsStore>),
    /// None: for the admin listener on a loopback address.
    Plain,
}

/// Bounds, counters and the clock of one listener.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Bounds.
    pub limits: ConnectionLimits,
    /// From where the listener may be reached; `None` means from everywhere.
    pub networks: Option<Arc<[Network]>>,
    /// Whether HTTP/1.1 is spoken too.
    pub http1: bool,
    /// How long requests in flight may take after the signal to stop.
    pub drain: Duration,
    /// Whether a connection lets its requests go first and then writes their answers together.
    pub write_together: bool,
    /// Counters.
    pub stats: Arc<ConnectionStats>,
    /// Time, for certificates.
    pub clock: Arc<dyn Clock>,
}

impl ServeOptions {
    /// Makes the options of a gRPC listener that everyone may reach.
    pub fn new(limits: ConnectionLimits, clock: Arc<dyn Clock>) -> Self {
        let drain = limits.age_grace;
        Self {
            limits,
            networks: None,
            http1: false,
            drain,
            write_together: true,
            stats: Arc::default(),
            clock,
        }
    }

    fn admits(&self, address: IpAddr) -> bool {
        let inside = |networks: &[Network]| networks.iter().any(|one| one.contains(address));
        self.networks.as_deref().is_none_or(inside)
    }
}

/// How a listener ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every connection ended by itself.
    Completely,
    /// Some were cut off at the deadline.
    AtDeadline,
}

/// Serves connections until the signal to stop, then drains.
pub async fn serve<S: HttpService>(
    listener: TcpListener,
    security: Security,
    service: S,
    options: ServeOptions,
    mut shutdown: Shutdown,
) -> Drained {
    let connections = Arc::new(Semaphore::new(options.limits.max_connections));
    let handshakes = Arc::new(Semaphore::new(options.limits.max_handshakes));
    let sources = Sources::new(&options.limits);
    let cut_off = Arc::new(AtomicBool::new(false));
    let (alive, mut all_gone) = mpsc::channel::<()>(1);
    let options = Arc::new(options);
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.triggered() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                options.stats.accept_errors.add();
                if ends_one_connection(&error) {
                    continue;
                }
                tracing::warn!(%error, "accept failed; pausing");
                if timeout(ACCEPT_PAUSE, shutdown.triggered()).await.is_ok() {
                    break;
                }
                continue;
            }
        };
        let Some((connection, place)) = admit(&options, &connections, &sources, address) else {
            continue;
        };
        let accepted = Accepted { stream, address, place, handshakes: Arc::clone(&handshakes) };
        let alive = alive.clone();
        let security = security.clone();
        let service = service.clone();
        let options = Arc::clone(&options);
        let shutdown = shutdown.clone();
        let cut_off = Arc::clone(&cut_off);
        tokio::spawn(async move {
            let open = Open::new(&options.stats);
            let draining = shutdown.clone();
            let end = connection::run(accepted, security, service, &options, shutdown).await;
            if end == End::CutOff && draining.is_triggered() {
                cut_off.store(true, Ordering::Release);
            }
            drop((open, connection, alive));
        });
    }
    drop((listener, alive));
    // A little longer than the connections give themselves, so that they end first.
    let patience = options.drain.saturating_add(DRAIN_MARGIN);
    match timeout(patience, all_gone.recv()).await {
        Ok(_) if !cut_off.load(Ordering::Acquire) => Drained::Completely,
        Ok(_) | Err(_) => Drained::AtDeadline,
    }
}

/// What a drain may take longer than its connections, to see them end.
const DRAIN_MARGIN: Duration = Duration::from_millis(250);

/// A connection that was accepted and admitted.
pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) address: SocketAddr,
    pub(super) place: Place,
    pub(super) handshakes: Arc<Semaphore>,
}

impl fmt::Debug for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepted").field("address", &self.address).finish_non_exhaustive()
    }
}

fn admit(
    options: &ServeOptions,
    connections: &Arc<Semaphore>,
    sources: &Arc<Sources>,
    address: SocketAddr,
) -> Option<(OwnedSemaphorePermit, Place)> {
    options.stats.accepted.add();
    if !options.admits(address.ip()) {
        options.stats.refused_networks.add();
        return None;
    }
    let Ok(connection) = Arc::clone(connections).try_acquire_owned() else {
        options.stats.refused_connections.add();
        return None;
    };
    let Some(place) = sources.enter(address.ip()) else {
        options.stats.refused_sources.add();
        return None;
    };
    Some((connection, place))
}

/// Counts a connection as open while it lives.
struct Open(Arc<ConnectionStats>);

impl Open {
    fn new(stats: &Arc<ConnectionStats>) -> Self {
        stats.open.add();
        Self(Arc::clone(stats))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.remove();
    }
}

/// Errors of accept(2) that concern the one connection that was in line, not the process.
fn ends_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}
