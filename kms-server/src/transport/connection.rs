//! One connection: handshake, who it is, requests, end.
//!
//! The client's certificate is parsed once, here; every request carries the same shared [`Peer`]. When CAs or CRLs were
//! reloaded meanwhile, the next request verifies the chain again before anyone sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use kms_core::clock::Clock;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::accept::{Accepted, HttpService, Security, ServeOptions};
use super::limits::{
    ConnectionLimits, MAX_HEADER_LIST_BYTES, MAX_LOCAL_RESETS, MAX_PENDING_RESETS,
    MAX_SEND_BUFFER_BYTES, WINDOW_BYTES,
};
use super::shutdown::Shutdown;
use super::stats::ConnectionStats;
use super::tls::TlsStore;
use crate::authn::Peer;
use crate::authn::x509;

/// Runs a connection to its end.
pub(super) async fn run<S: HttpService>(
    accepted: Accepted,
    security: Security,
    service: S,
    options: &ServeOptions,
    shutdown: Shutdown,
) {
    let Accepted { stream, address, handshake } = accepted;
    // Answers are small and awaited: Nagle's algorithm would only delay them. A failure costs latency, nothing else.
    let _ = stream.set_nodelay(true);
    match security {
        Security::Plain => {
            drop(handshake);
            let peer = PeerService::plain(service, Peer::unauthenticated(address));
            drive(stream, peer, options, shutdown).await;
        }
        Security::Tls(store) => {
            let epoch = store.epoch();
            let Some(stream) =
                shake_hands(&store, stream, options, handshake, shutdown.clone()).await
            else {
                options.stats.failed_handshakes.add();
                return;
            };
            options.stats.handshakes.add();
            let chain = client_chain(&stream);
            let identity = chain.first().map(|leaf| x509::identify(leaf));
            let peer = PeerService {
                service,
                peer: Arc::new(Peer::verified(address, identity)),
                recheck: Some(Arc::new(Recheck {
                    store,
                    chain,
                    verified: AtomicU64::new(epoch),
                    clock: Arc::clone(&options.clock),
                    stats: Arc::clone(&options.stats),
                })),
            };
            drive(stream, peer, options, shutdown).await;
        }
    }
}

type TlsStream = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;

async fn shake_hands(
    store: &TlsStore,
    stream: tokio::net::TcpStream,
    options: &ServeOptions,
    permit: OwnedSemaphorePermit,
    mut shutdown: Shutdown,
) -> Option<TlsStream> {
    let acceptor = TlsAcceptor::from(Arc::clone(store.current().config()));
    let handshake = timeout(options.limits.handshake_timeout, acceptor.accept(stream));
    let finished = tokio::select! {
        biased;
        () = shutdown.triggered() => None,
        finished = handshake => finished.ok(),
    };
    drop(permit);
    match finished {
        Some(Ok(stream)) => Some(stream),
        Some(Err(error)) => {
            tracing::debug!(%error, "handshake failed");
            None
        }
        None => None,
    }
}

fn client_chain(stream: &TlsStream) -> Vec<CertificateDer<'static>> {
    let (_, session) = stream.get_ref();
    let chain = session.peer_certificates().unwrap_or_default();
    chain.iter().map(|certificate| certificate.clone().into_owned()).collect()
}

/// Serves requests until the client leaves, the connection is too old, or the signal to stop is raised.
async fn drive<S: HttpService, I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    io: I,
    service: PeerService<S>,
    options: &ServeOptions,
    mut shutdown: Shutdown,
) {
    let builder = builder(&options.limits, options.http1);
    let connection = builder.serve_connection(TokioIo::new(io), service);
    tokio::pin!(connection);
    let too_old = timeout(jittered(options.limits.max_age), std::future::pending::<()>());
    let grace = tokio::select! {
        biased;
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended");
            }
            return;
        }
        () = shutdown.triggered() => options.drain,
        _ = too_old => options.limits.age_grace,
    };
    connection.as_mut().graceful_shutdown();
    if timeout(grace, connection).await.is_err() {
        tracing::info!("connection cut off: requests were still in flight after the grace");
    }
}

fn builder(limits: &ConnectionLimits, http1: bool) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    if !http1 {
        builder = builder.http2_only();
    }
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.handshake_timeout);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.max_streams)
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS)
        .initial_connection_window_size(WINDOW_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .max_send_buf_size(MAX_SEND_BUFFER_BYTES);
    builder
}

/// Takes off up to an eighth, so that connections opened together do not end together.
fn jittered(age: Duration) -> Duration {
    let mut random = [0_u8; 1];
    // Without randomness there is no jitter; nothing else depends on it.
    let _ = aws_lc_rs::rand::fill(&mut random);
    let [byte] = random;
    age.saturating_sub(age.mul_f64(f64::from(byte) / 255.0 / 8.0))
}

/// Verifies a chain again after a reload.
#[derive(Debug)]
struct Recheck {
    store: Arc<TlsStore>,
    chain: Vec<CertificateDer<'static>>,
    verified: AtomicU64,
    clock: Arc<dyn Clock>,
    stats: Arc<ConnectionStats>,
}

impl Recheck {
    fn run(&self, peer: &Peer) {
        let epoch = self.store.epoch();
        if self.verified.load(Ordering::Acquire) == epoch {
            return;
        }
        let unix_ms = u64::try_from(self.clock.now().as_unix_ms()).unwrap_or(0);
        let now = UnixTime::since_unix_epoch(Duration::from_millis(unix_ms));
        if !self.store.current().verify_client(&self.chain, now) {
            self.stats.revoked_connections.add();
            peer.revoke();
        }
        self.verified.store(epoch, Ordering::Release);
    }
}

/// Puts the connection's [`Peer`] into every request.
struct PeerService<S> {
    service: S,
    peer: Arc<Peer>,
    recheck: Option<Arc<Recheck>>,
}

impl<S> PeerService<S> {
    fn plain(service: S, peer: Peer) -> Self {
        Self { service, peer: Arc::new(peer), recheck: None }
    }
}

impl<S: HttpService> hyper::service::Service<http::Request<Incoming>> for PeerService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, mut request: http::Request<Incoming>) -> Self::Future {
        if let Some(recheck) = &self.recheck {
            recheck.run(&self.peer);
        }
        request.extensions_mut().insert(Arc::clone(&self.peer));
        self.service.clone().call(request)
    }
}
