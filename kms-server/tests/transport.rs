//! The accept loop against real TLS clients: who gets in, who does not, and what none of them can break.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test helpers"
)]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use kms_core::clock::{Clock as _, SystemClock};
use kms_server::authn::{Peer, Unauthenticated};
use kms_server::transport::health::HealthService;
use kms_server::transport::stats::ConnectionStats;
use kms_server::transport::{
    ConnectionLimits, Drained, Protocols, Security, ServeOptions, Shutdown, ShutdownTrigger,
    TlsFiles, TlsStore, serve,
};
use kms_testkit::client::{AlertDescription, connect, handshake_alert, tls};
use kms_testkit::deadline::within;
use kms_testkit::pki::{CLIENT_SPIFFE_ID, Identity, Kind, Pki};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_types::StatusExt as _;

const LIMIT: Duration = Duration::from_secs(20);
const GATE: u32 = 1000;

type Seen = Arc<Mutex<Vec<Result<String, Unauthenticated>>>>;

/// A health service that notes who calls, and answers when the gate is open.
#[derive(Clone)]
struct Noting {
    routes: Routes,
    seen: Seen,
    gate: Arc<Semaphore>,
}

impl tower::Service<http::Request<Incoming>> for Noting {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Incoming>) -> Self::Future {
        let peer = request.extensions().get::<Arc<Peer>>().unwrap();
        let who = peer.authenticate(SystemClock.now()).map(|principal| principal.id.to_string());
        self.seen.lock().unwrap().push(who);
        let answer = self.routes.call(request);
        let gate = Arc::clone(&self.gate);
        Box::pin(async move {
            let _open = gate.acquire().await.unwrap();
            answer.await
        })
    }
}

/// A server on a free port.
struct Server {
    address: SocketAddr,
    pki: Pki,
    store: Arc<TlsStore>,
    stats: Arc<ConnectionStats>,
    seen: Seen,
    gate: Arc<Semaphore>,
    trigger: ShutdownTrigger,
    running: JoinHandle<Drained>,
    client: Identity,
    _directory: tempfile::TempDir,
}

impl Server {
    async fn start(edit: impl FnOnce(&mut ServeOptions)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::create(directory.path());
        let (server, client) = pki.usual();
        let files = TlsFiles {
            certificate: server.certificate,
            private_key: server.key,
            client_ca: pki.ca(),
            crls: vec![pki.revoke("list", &[])],
        };
        let store = Arc::new(TlsStore::load(files, Protocols::Http2).unwrap());
        let mut options = ServeOptions::new(ConnectionLimits::default(), Arc::new(SystemClock));
        edit(&mut options);
        let stats = Arc::clone(&options.stats);
        let seen = Seen::default();
        let gate = Arc::new(Semaphore::new(GATE as usize));
        let health = HealthService::start().await;
        let routes = Routes::new(health.server()).prepare();
        let service = Noting { routes, seen: Arc::clone(&seen), gate: Arc::clone(&gate) };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (trigger, shutdown) = Shutdown::channel();
        let security = Security::Tls(Arc::clone(&store));
        let running = tokio::spawn(serve(listener, security, service, options, shutdown));
        Self {
            address,
            pki,
            store,
            stats,
            seen,
            gate,
            trigger,
            running,
            client,
            _directory: directory,
        }
    }

    async fn channel(&self, identity: Option<&Identity>) -> Result<Channel, String> {
        let ca = self.pki.ca();
        let connecting = connect(self.address, &ca, identity);
        within(LIMIT, "a connection", connecting).await.map_err(|error| error.to_string())
    }

    /// Connects and calls once.
    async fn call_as(&self, identity: Option<&Identity>) -> Result<(), String> {
        call(&self.channel(identity).await?).await
    }

    /// Shakes hands as the good client, and leaves HTTP/2 to the test.
    async fn tls(&self) -> tokio_rustls::client::TlsStream<TcpStream> {
        let config = Arc::new(tls(&self.pki.ca(), Some(&self.client)));
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(config);
        connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap()
    }

    async fn good_client_is_served(&self) {
        assert_eq!(self.call_as(Some(&self.client)).await, Ok(()));
    }

    fn last_seen(&self) -> Result<String, Unauthenticated> {
        self.seen.lock().unwrap().last().cloned().unwrap()
    }

    /// Starts a call that waits at the closed gate.
    async fn waiting_call(&self, channel: &Channel) -> JoinHandle<Result<(), String>> {
        let channel = channel.clone();
        let calling = tokio::spawn(async move { call(&channel).await });
        eventually("the request", || !self.seen.lock().unwrap().is_empty()).await;
        calling
    }
}

async fn call(channel: &Channel) -> Result<(), String> {
    let mut client = HealthClient::new(channel.clone());
    let calling = client.check(HealthCheckRequest::default());
    within(LIMIT, "an answer", calling).await.map(drop).map_err(|status| status.to_string())
}

/// Reads until the server closes; a reset is a close too.
async fn is_closed(mut stream: TcpStream) {
    let mut rest = Vec::new();
    let _ = within(LIMIT, "a close", stream.read_to_end(&mut rest)).await;
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    within(LIMIT, what, async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_good_certificate_names_the_principal() {
    let server = Server::start(|_| {}).await;
    server.good_client_is_served().await;
    assert_eq!(server.last_seen(), Ok(CLIENT_SPIFFE_ID.to_owned()));
    let host = server.pki.issue_serial("host", &Kind::Dns("a.test"), 20);
    assert_eq!(server.call_as(Some(&host)).await, Ok(()));
    assert_eq!(server.last_seen(), Ok("a.test".to_owned()));
}

/// A client that signed its certificate itself.
fn self_signed(directory: &Path) -> Identity {
    let made = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    let files = (directory.join("self.pem"), directory.join("self.key"));
    std::fs::write(&files.0, made.cert.pem()).unwrap();
    std::fs::write(&files.1, made.signing_key.serialize_pem()).unwrap();
    Identity::existing(files.0, files.1)
}

#[tokio::test]
async fn bad_certificates_are_told_by_alert_what_is_wrong_with_them() {
    let server = Server::start(|_| {}).await;
    let issue = |kind, serial| server.pki.issue_serial(&format!("bad{serial}"), kind, serial);
    let elsewhere = tempfile::tempdir().unwrap();
    let (_, foreign) = Pki::create(elsewhere.path()).usual();
    let stranger = self_signed(elsewhere.path());
    let revoked = server.pki.issue_serial("revoked", &Kind::Dns("a.test"), 33);
    server.pki.revoke("list", &[&revoked]);
    server.store.reload().unwrap();
    let bad = [
        // RFC 8446 §6.2: "has expired or is not currently valid".
        (Some(issue(&Kind::Expired, 30)), AlertDescription::CertificateExpired),
        (Some(issue(&Kind::NotYetValid, 31)), AlertDescription::CertificateExpired),
        (Some(issue(&Kind::WithoutClientUsage, 32)), AlertDescription::UnsupportedCertificate),
        (Some(revoked), AlertDescription::CertificateRevoked),
        // This authority has the name of the trusted one, so it is the signature that fails.
        (Some(foreign), AlertDescription::DecryptError),
        (Some(stranger), AlertDescription::UnknownCA),
        (None, AlertDescription::CertificateRequired),
    ];
    for (count, (identity, expected)) in (1..).zip(&bad) {
        let (ca, identity) = (server.pki.ca(), identity.as_ref());
        let told = handshake_alert(server.address, &ca, identity);
        let told = within(LIMIT, "an alert", told).await.unwrap();
        assert_eq!(told, Some(*expected), "{identity:?}");
        eventually("the count", || server.stats.failed_handshakes.get() == count).await;
    }
    assert!(server.seen.lock().unwrap().is_empty());
    server.good_client_is_served().await;
}

#[tokio::test]
async fn a_certificate_that_names_nobody_has_no_principal() {
    let server = Server::start(|_| {}).await;
    for (serial, kind) in [(40, Kind::TwoUris), (41, Kind::WithoutSan)] {
        let nameless = server.pki.issue_serial("nameless", &kind, serial);
        assert_eq!(server.call_as(Some(&nameless)).await, Ok(()));
        let seen = server.last_seen();
        assert!(matches!(seen, Err(Unauthenticated::NoIdentity(_))), "{kind:?}: {seen:?}");
    }
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let server = Server::start(|_| {}).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(server.pki.ca()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let shaking = connector.connect("localhost".try_into().unwrap(), tcp);
    let refused = within(LIMIT, "an answer", shaking).await.unwrap_err();
    let refused = refused.downcast::<rustls::Error>().unwrap();
    let expected = rustls::Error::AlertReceived(AlertDescription::ProtocolVersion);
    assert_eq!(refused, expected);
    eventually("a failed handshake", || server.stats.failed_handshakes.get() == 1).await;
}

#[tokio::test]
async fn plain_text_on_the_tls_port_is_told_by_alert_and_closed_without_harm() {
    let server = Server::start(|_| {}).await;
    for text in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(text).await.unwrap();
        let mut told = Vec::new();
        within(LIMIT, "a close", stream.read_to_end(&mut told)).await.unwrap();
        // One record, RFC 8446 §5.1: an alert of two bytes, fatal, decode_error.
        assert_eq!(told, [21, 3, 3, 0, 2, 2, u8::from(AlertDescription::DecodeError)]);
    }
    eventually("both failures", || server.stats.failed_handshakes.get() == 2).await;
    server.good_client_is_served().await;
}

#[tokio::test]
async fn a_client_that_says_nothing_is_dropped_at_the_handshake_timeout() {
    let short = Duration::from_millis(50);
    let server = Server::start(|options| options.limits.handshake_timeout = short).await;
    is_closed(TcpStream::connect(server.address).await.unwrap()).await;
    eventually("the count", || server.stats.failed_handshakes.get() == 1).await;
}

#[tokio::test]
async fn connections_are_accepted_up_to_the_limit_and_refused_past_it() {
    let server = Server::start(|options| options.limits.max_connections = 2).await;
    let first = server.channel(Some(&server.client)).await.unwrap();
    let second = server.channel(Some(&server.client)).await.unwrap();
    assert_eq!(call(&first).await, Ok(()));
    assert_eq!(call(&second).await, Ok(()));
    is_closed(TcpStream::connect(server.address).await.unwrap()).await;
    assert_eq!(server.stats.refused_connections.get(), 1);
    drop(first);
    eventually("a free place", || server.stats.open.get() == 1).await;
    server.good_client_is_served().await;
}

/// Connects from another address of this machine, and says so much.
async fn from_elsewhere(server: &Server, first_bytes: &[u8]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut stream = socket.connect(server.address).await.unwrap();
    stream.write_all(first_bytes).await.unwrap();
    stream
}

/// The first byte of a handshake.
const HELLO: &[u8] = &[22];

#[tokio::test]
async fn handshakes_are_bounded_apart_from_connections() {
    let server = Server::start(|options| options.limits.max_handshakes = 1).await;
    let open = server.channel(Some(&server.client)).await.unwrap();
    assert_eq!(call(&open).await, Ok(()));
    let stalling = from_elsewhere(&server, HELLO).await;
    eventually("the stalling one to be accepted", || server.stats.open.get() == 2).await;
    let refused = || server.stats.refused_handshakes.get() > 0;
    within(LIMIT, "a refusal", async {
        while !refused() {
            // The other may not have taken its place yet: then this one does, fails, and frees it.
            let mut one_more = TcpStream::connect(server.address).await.unwrap();
            one_more.write_all(HELLO).await.unwrap();
            one_more.shutdown().await.unwrap();
            is_closed(one_more).await;
        }
    })
    .await;
    drop(stalling);
    eventually("the place to be free", || server.stats.open.get() == 1).await;
    server.good_client_is_served().await;
}

#[tokio::test]
async fn silent_clients_keep_nobody_out() {
    let server = Server::start(|_| {}).await;
    let most = ConnectionLimits::default().max_handshakes;
    let mut silent = Vec::new();
    for _ in 0..=most {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    eventually("all to be open", || server.stats.open.get() > most as u64).await;
    server.good_client_is_served().await;
    assert_eq!(server.stats.refused_handshakes.get(), 0);
}

#[tokio::test]
async fn clients_that_stall_in_their_handshake_keep_only_their_own_source_waiting() {
    let server = Server::start(|options| {
        options.limits.max_handshakes = 16;
        options.limits.handshake_timeout = LIMIT;
    })
    .await;
    let mut stalling = Vec::new();
    for _ in 0..16 {
        stalling.push(from_elsewhere(&server, HELLO).await);
    }
    eventually("all to be open", || server.stats.open.get() == 16).await;
    server.good_client_is_served().await;
    assert_eq!(server.stats.refused_handshakes.get(), 0);
}

#[tokio::test]
async fn one_source_has_connections_up_to_its_limit_and_others_have_theirs() {
    let server = Server::start(|options| options.limits.max_connections_per_source = 2).await;
    let first = server.channel(Some(&server.client)).await.unwrap();
    let second = server.channel(Some(&server.client)).await.unwrap();
    assert_eq!(call(&first).await, Ok(()));
    assert_eq!(call(&second).await, Ok(()));
    is_closed(TcpStream::connect(server.address).await.unwrap()).await;
    assert_eq!(server.stats.refused_sources.get(), 1);
    let _elsewhere = from_elsewhere(&server, &[]).await;
    eventually("the one from elsewhere", || server.stats.open.get() == 3).await;
    drop(first);
    eventually("a free place", || server.stats.open.get() == 2).await;
    server.good_client_is_served().await;
}

/// What every HTTP/2 client says first, and empty SETTINGS.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[tokio::test]
async fn a_connection_without_a_request_is_ended_at_the_handshake_timeout() {
    let short = Duration::from_millis(200);
    let server = Server::start(|options| options.limits.handshake_timeout = short).await;
    for said in [&[][..], PREFACE] {
        let mut stream = server.tls().await;
        stream.write_all(said).await.unwrap();
        let mut rest = Vec::new();
        let _ = within(LIMIT, "a close", stream.read_to_end(&mut rest)).await;
    }
    assert_eq!(server.stats.without_request.get(), 2);
    let open = server.channel(Some(&server.client)).await.unwrap();
    assert_eq!(call(&open).await, Ok(()));
}

#[tokio::test]
async fn a_client_that_ignores_the_goaway_does_not_hold_the_drain() {
    let server = Server::start(|options| options.drain = LIMIT * 10).await;
    let mut stream = server.tls().await;
    stream.write_all(PREFACE).await.unwrap();
    let mut settings = [0; 1];
    within(LIMIT, "SETTINGS", stream.read_exact(&mut settings)).await.unwrap();
    server.trigger.trigger();
    // The server asks whether the GOAWAY has arrived; the client never says so, and keeps the connection.
    assert_eq!(within(LIMIT, "the drain", server.running).await.unwrap(), Drained::Completely);
}

async fn watch(channel: &Channel) -> tonic::Streaming<HealthCheckResponse> {
    let mut client = HealthClient::new(channel.clone());
    let watching = client.watch(HealthCheckRequest::default());
    let mut changes = within(LIMIT, "an answer", watching).await.unwrap().into_inner();
    assert!(changes.message().await.unwrap().is_some());
    changes
}

#[tokio::test]
async fn watching_health_does_not_hold_the_drain() {
    let server = Server::start(|options| options.drain = LIMIT * 10).await;
    let open = server.channel(Some(&server.client)).await.unwrap();
    let mut changes = watch(&open).await;
    server.trigger.trigger();
    assert!(within(LIMIT, "its end", changes.message()).await.unwrap().is_none());
    assert_eq!(within(LIMIT, "the drain", server.running).await.unwrap(), Drained::Completely);
}

#[tokio::test]
async fn watching_health_does_not_hold_a_connection_that_is_too_old() {
    let server = Server::start(|options| {
        options.limits.max_age = Duration::from_millis(500);
        options.limits.age_grace = LIMIT * 10;
    })
    .await;
    let open = server.channel(Some(&server.client)).await.unwrap();
    let mut changes = watch(&open).await;
    assert!(within(LIMIT, "its end", changes.message()).await.unwrap().is_none());
    eventually("the end of the connection", || server.stats.open.get() == 0).await;
    assert_eq!(server.stats.cut_off.get(), 0);
}

#[tokio::test]
async fn health_of_a_service_that_is_not_here_is_not_found() {
    let server = Server::start(|_| {}).await;
    let mut client = HealthClient::new(server.channel(Some(&server.client)).await.unwrap());
    let asked = || HealthCheckRequest { service: "x.v1.Nothing".to_owned() };
    let refusals =
        [client.check(asked()).await.unwrap_err(), client.watch(asked()).await.unwrap_err()];
    for refused in refusals {
        assert_eq!(refused.code(), tonic::Code::NotFound);
        let info = refused.get_details_error_info().unwrap();
        assert_eq!(
            (info.domain.as_str(), info.reason.as_str()),
            ("holdfast.dev", "SERVICE_UNKNOWN")
        );
    }
}

#[tokio::test]
async fn a_foreign_network_is_refused_before_tls() {
    let elsewhere = ["192.0.2.0/24".parse().unwrap()];
    let server = Server::start(|options| options.networks = Some(elsewhere[..].into())).await;
    is_closed(TcpStream::connect(server.address).await.unwrap()).await;
    assert_eq!(server.stats.refused_networks.get(), 1);
    assert_eq!(server.stats.open.get(), 0);
}

#[tokio::test]
async fn a_revoked_client_is_nobody_on_its_open_connection_too() {
    let server = Server::start(|_| {}).await;
    let open = server.channel(Some(&server.client)).await.unwrap();
    assert_eq!(call(&open).await, Ok(()));
    assert_eq!(server.last_seen(), Ok(CLIENT_SPIFFE_ID.to_owned()));
    server.pki.revoke("list", &[&server.client]);
    server.store.reload().unwrap();
    assert_eq!(call(&open).await, Ok(()));
    assert_eq!(server.last_seen(), Err(Unauthenticated::Revoked));
    assert_eq!(server.stats.revoked_connections.get(), 1);
    assert!(server.call_as(Some(&server.client)).await.is_err());
}

#[tokio::test]
async fn a_reload_that_changes_nothing_keeps_the_principal() {
    let server = Server::start(|_| {}).await;
    let open = server.channel(Some(&server.client)).await.unwrap();
    assert_eq!(call(&open).await, Ok(()));
    server.store.reload().unwrap();
    assert_eq!(call(&open).await, Ok(()));
    assert_eq!(server.last_seen(), Ok(CLIENT_SPIFFE_ID.to_owned()));
}

#[tokio::test]
async fn a_broken_file_keeps_the_old_certificates() {
    let server = Server::start(|_| {}).await;
    let before = server.store.epoch();
    let certificate = server.pki.ca().with_file_name("server.pem");
    std::fs::write(&certificate, "-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap();
    assert!(server.store.reload().is_err());
    assert_eq!(server.store.epoch(), before);
    server.good_client_is_served().await;
}

#[tokio::test]
async fn requests_in_flight_finish_and_new_connections_are_refused_in_a_drain() {
    let server = Server::start(|_| {}).await;
    let open = server.channel(Some(&server.client)).await.unwrap();
    let closed_gate = server.gate.acquire_many(GATE).await.unwrap();
    let calling = server.waiting_call(&open).await;
    server.trigger.trigger();
    let is_gone = || std::net::TcpStream::connect(server.address).is_err();
    eventually("the listener to be gone", is_gone).await;
    drop(closed_gate);
    assert_eq!(calling.await.unwrap(), Ok(()));
    assert_eq!(within(LIMIT, "the drain", server.running).await.unwrap(), Drained::Completely);
}

#[tokio::test]
async fn a_request_that_never_ends_is_cut_off_at_the_deadline_of_the_drain() {
    let short = Duration::from_millis(50);
    let server = Server::start(|options| options.drain = short).await;
    let open = server.channel(Some(&server.client)).await.unwrap();
    let _closed_gate = server.gate.acquire_many(GATE).await.unwrap();
    let calling = server.waiting_call(&open).await;
    server.trigger.trigger();
    assert!(calling.await.unwrap().is_err());
    assert_eq!(within(LIMIT, "the drain", server.running).await.unwrap(), Drained::AtDeadline);
    assert_eq!(server.stats.cut_off.get(), 1);
}

#[tokio::test]
async fn a_connection_that_is_too_old_is_ended_and_the_client_comes_back() {
    let short = Duration::from_millis(200);
    let server = Server::start(|options| options.limits.max_age = short).await;
    let open = server.channel(Some(&server.client)).await.unwrap();
    assert_eq!(call(&open).await, Ok(()));
    eventually("the end of the connection", || server.stats.open.get() == 0).await;
    assert_eq!(call(&open).await, Ok(()));
    assert!(server.stats.handshakes.get() >= 2);
}

#[tokio::test]
async fn no_session_is_resumed() {
    let server = Server::start(|_| {}).await;
    let config = Arc::new(tls(&server.pki.ca(), Some(&server.client)));
    let connector = tokio_rustls::TlsConnector::from(config);
    for _ in 0..2 {
        let name = "localhost".try_into().unwrap();
        let tcp = TcpStream::connect(server.address).await.unwrap();
        let mut stream = connector.connect(name, tcp).await.unwrap();
        // The server's SETTINGS come after whatever tickets it would send.
        let mut first = [0; 1];
        within(LIMIT, "SETTINGS", stream.read_exact(&mut first)).await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

#[test]
fn a_set_of_files_that_does_not_fit_is_refused() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (pki, other) = (Pki::create(ours.path()), Pki::create(theirs.path()));
    let ((server, _), (stranger, _)) = (pki.usual(), other.usual());
    let load = |key: &Path, ca: &Path| {
        let files = TlsFiles {
            certificate: server.certificate.clone(),
            private_key: key.to_owned(),
            client_ca: ca.to_owned(),
            crls: vec![],
        };
        TlsStore::load(files, Protocols::Http2).is_ok()
    };
    assert!(load(&server.key, &pki.ca()));
    assert!(!load(&stranger.key, &pki.ca()));
    assert!(!load(&server.key, &server.key));
    assert!(!load(&server.key, Path::new("/nowhere")));
}
