//! One connection: handshake, who it is, requests, end.
//!
//! The client's certificate is parsed once, here; every request carries the same shared [`Peer`]. When CAs or CRLs were
//! reloaded meanwhile, the next request verifies the chain again before anyone sees it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::accept::{Accepted, HttpService, Security, ServeOptions};
use super::health::{Ending, WATCH_PATH};
use super::in_flight::{Answering, Asked, Requests};
use super::limits::{
    ConnectionLimits, MAX_HEADER_LIST_BYTES, MAX_LOCAL_RESETS, MAX_PENDING_RESETS,
    MAX_SEND_BUFFER_BYTES, WINDOW_BYTES,
};
use super::method::REWRAP_STREAM_PATH;
use super::recheck::{Recheck, Trust};
use super::shutdown::Shutdown;
use super::sources::Place;
use super::tls::TlsStore;
use crate::authn::Peer;
use crate::authn::x509;

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// By itself, or because nothing was left to do.
    ByItself,
    /// With requests in flight that took longer than the grace.
    CutOff,
}

/// Runs a connection to its end.
pub(super) async fn run<S: HttpService>(
    accepted: Accepted,
    security: Security,
    service: S,
    options: &ServeOptions,
    shutdown: Shutdown,
) -> End {
    let address = accepted.address;
    // Answers are small and awaited: Nagle's algorithm would only delay them. A failure costs latency, nothing else.
    let _ = accepted.stream.set_nodelay(true);
    match security {
        Security::Plain => {
            let Accepted { stream, place, .. } = accepted;
            let peer = Arc::new(Peer::unauthenticated(address));
            let end = drive(stream, service, (peer, None), options, shutdown).await;
            drop(place);
            end
        }
        Security::Tls(store) => {
            let epoch = store.epoch();
            let shaken = shake_hands(&store, accepted, options, shutdown.clone()).await;
            let Some((stream, place)) = shaken else {
                options.stats.failed_handshakes.add();
                return End::ByItself;
            };
            options.stats.handshakes.add();
            let chain = client_chain(&stream);
            let identity = chain.first().map(|leaf| x509::identify(leaf));
            let peer = Arc::new(Peer::verified(address, identity));
            let recheck = Recheck {
                store,
                chain,
                verified: AtomicU64::new(epoch),
                clock: Arc::clone(&options.clock),
                stats: Arc::clone(&options.stats),
            };
            let recheck = Some(Arc::new(recheck));
            let end = drive(stream, service, (peer, recheck), options, shutdown).await;
            drop(place);
            end
        }
    }
}

type TlsStream = tokio_rustls::server::TlsStream<TcpStream>;

async fn shake_hands(
    store: &TlsStore,
    accepted: Accepted,
    options: &ServeOptions,
    mut shutdown: Shutdown,
) -> Option<(TlsStream, Place)> {
    let Accepted { stream, place, handshakes, .. } = accepted;
    let handshake = async {
        // Who says nothing takes no place among the handshakes, only one among the connections.
        stream.readable().await?;
        let turn = place.handshake_turn().await;
        let Ok(permit) = handshakes.try_acquire_owned() else {
            options.stats.refused_handshakes.add();
            return Err(io::Error::other("too many handshakes"));
        };
        let acceptor = TlsAcceptor::from(Arc::clone(store.current().config()));
        let finished = acceptor.accept(stream).await;
        drop((turn, permit));
        finished
    };
    let finished = tokio::select! {
        biased;
        () = shutdown.triggered() => return None,
        finished = timeout(options.limits.handshake_timeout, handshake) => finished.ok()?,
    };
    match finished {
        Ok(stream) => Some((stream, place)),
        Err(error) => {
            tracing::debug!(%error, "handshake failed");
            None
        }
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
    service: S,
    (peer, recheck): (Arc<Peer>, Option<Arc<Recheck>>),
    options: &ServeOptions,
    mut shutdown: Shutdown,
) -> End {
    let limits = &options.limits;
    let (told_to_end, ending) = Shutdown::channel();
    let requests = Requests::default();
    let trust = Trust { peer, recheck };
    let service = PeerService { service, trust, ending, requests: requests.clone() };
    let builder = builder(limits, options.http1);
    let connection = builder.serve_connection(TokioIo::new(io), service);
    tokio::pin!(connection);
    let mut turns = Turns { passes: options.write_together, passed: false };
    let served = poll_fn(|context| turns.poll(connection.as_mut(), context));
    let grace = tokio::select! {
        biased;
        ended = served => {
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended");
            }
            return End::ByItself;
        }
        () = shutdown.triggered() => options.drain,
        () = requests.none_within(limits.handshake_timeout) => {
            options.stats.without_request.add();
            limits.age_grace
        }
        () = elapse(jittered(limits.max_age)) => limits.age_grace,
    };
    told_to_end.trigger();
    connection.as_mut().graceful_shutdown();
    let ended = tokio::select! {
        biased;
        _ = connection => true,
        // A client that does not answer a GOAWAY would hold the connection, and the drain, for nothing.
        () = requests.none_left() => true,
        () = elapse(grace) => false,
    };
    if ended {
        return End::ByItself;
    }
    options.stats.cut_off.add();
    tracing::warn!("connection cut off: requests were still in flight after the grace");
    End::CutOff
}

/// Lets the requests of a connection go first, so that what they have to say leaves in one write.
///
/// A connection is woken by the first of its requests that is done, and would write that one answer at once. It passes
/// instead, once: the runtime puts it behind everything that is ready, and the answers of a whole commit group go out
/// together. With nothing else ready it is polled again right away.
#[derive(Debug)]
struct Turns {
    passes: bool,
    passed: bool,
}

impl Turns {
    fn poll<F: Future>(
        &mut self,
        served: Pin<&mut F>,
        context: &mut Context<'_>,
    ) -> Poll<F::Output> {
        self.passed = self.passes && !self.passed;
        if self.passed {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        served.poll(context)
    }
}

/// Waits for a bound to pass.
async fn elapse(bound: Duration) {
    // Nothing is awaited but the time.
    let _ = timeout(bound, std::future::pending::<()>()).await;
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

/// Puts the connection's [`Peer`] into every request.
struct PeerService<S> {
    service: S,
    trust: Trust,
    ending: Ending,
    requests: Requests,
}

impl<S: HttpService> hyper::service::Service<http::Request<Incoming>> for PeerService<S> {
    type Response = http::Response<Answering>;
    type Error = S::Error;
    type Future = Asked<S::Future>;

    fn call(&self, mut request: http::Request<Incoming>) -> Self::Future {
        self.trust.recheck();
        let path = request.uri().path();
        let (watches, streams) = (path == WATCH_PATH, path == REWRAP_STREAM_PATH);
        if watches || streams {
            request.extensions_mut().insert(self.ending.clone());
        }
        if streams {
            request.extensions_mut().insert(self.trust.clone());
        }
        request.extensions_mut().insert(Arc::clone(&self.trust.peer));
        self.requests.begin(self.service.clone().call(request))
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn polls_until_ready(passes: bool) -> (usize, usize) {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        let mut turns = Turns { passes, passed: false };
        let mut served = pin!(ready(()));
        let polls = (1..9).find(|_| turns.poll(served.as_mut(), &mut context).is_ready());
        (polls.unwrap(), woken.0.load(Ordering::SeqCst))
    }

    #[test]
    fn a_connection_passes_once_and_is_sure_to_come_back() {
        assert_eq!(polls_until_ready(true), (2, 1));
        assert_eq!(polls_until_ready(false), (1, 0));
    }
}
