//! The admin listener over TLS: each request is answered only while its certificate is good, as on the public one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test helpers"
)]

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kms_core::clock::{Clock, ManualClock, SystemClock, Timestamp};
use kms_hsm_soft::{SoftDevice, SoftToken};
use kms_server::admin::{Access, Gauges, Readiness, routes};
use kms_server::transport::health::HealthService;
use kms_server::transport::{
    ConnectionLimits, Protocols, Security, ServeOptions, Shutdown, ShutdownTrigger, TlsFiles,
    TlsStore, serve,
};
use kms_testkit::client::{connect, tls};
use kms_testkit::deadline::within;
use kms_testkit::pki::{Identity, Kind, Pki};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const LIMIT: Duration = Duration::from_secs(20);
const PATHS: [&str; 4] = ["/livez", "/readyz", "/metrics", "/nothing"];

struct Admin {
    address: SocketAddr,
    pki: Pki,
    client: Identity,
    store: Arc<TlsStore>,
    clock: Arc<ManualClock>,
    _trigger: ShutdownTrigger,
    _directory: tempfile::TempDir,
}

impl Admin {
    async fn start(encrypted: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::create(directory.path());
        let (server, client) = pki.usual();
        let files = TlsFiles {
            certificate: server.certificate,
            private_key: server.key,
            client_ca: pki.ca(),
            crls: vec![pki.revoke("list", &[])],
        };
        let store = Arc::new(TlsStore::load(files, Protocols::Http1AndHttp2).unwrap());
        let clock = Arc::new(ManualClock::new(SystemClock.now()));
        let mut options = ServeOptions::new(ConnectionLimits::default(), clock.clone());
        options.http1 = true;
        let gauges = Gauges {
            hsm: Arc::new(SoftToken::new(SoftDevice::new("soft-1"), clock.clone())),
            readiness: Arc::default(),
            kms: Arc::new(OnceLock::new()),
            public: Arc::default(),
            admin: Arc::clone(&options.stats),
            certificates: vec![("admin", Arc::clone(&store))],
        };
        let (security, access) = if encrypted {
            (Security::Tls(Arc::clone(&store)), Access::Authenticated(clock.clone()))
        } else {
            (Security::Plain, Access::Everybody)
        };
        let health = HealthService::start().await;
        let readiness = Arc::<Readiness>::default();
        let gateway = Arc::default();
        let routes = routes(&health, readiness, Arc::default(), gauges, access, gateway).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (trigger, shutdown) = Shutdown::channel();
        tokio::spawn(serve(listener, security, routes, options, shutdown));
        Self { address, pki, client, store, clock, _trigger: trigger, _directory: directory }
    }

    /// Opens a connection of HTTP/1.1.
    async fn open(&self, identity: &Identity) -> tokio_rustls::client::TlsStream<TcpStream> {
        let mut config = tls(&self.pki.ca(), Some(identity));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let tcp = TcpStream::connect(self.address).await.unwrap();
        connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap()
    }
}

/// Asks for a path and returns the code of the answer.
async fn get(
    stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin),
    path: &str,
) -> u16 {
    ask(stream, path).await.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Asks for a path and returns the answer.
async fn ask(
    stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin),
    path: &str,
) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    within(LIMIT, "an answer", async {
        while !is_whole(&answer) {
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "closed");
        }
    })
    .await;
    String::from_utf8(answer).unwrap()
}

/// Whether an answer has all of the body that its header announces.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    body.len() == length.unwrap().parse::<usize>().unwrap()
}

async fn codes(
    stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin),
) -> Vec<u16> {
    let mut codes = Vec::new();
    for path in PATHS {
        codes.push(get(stream, path).await);
    }
    codes
}

/// Not ready yet, and one path is nothing.
const SERVED: [u16; 4] = [200, 503, 200, 404];
const REFUSED: [u16; 4] = [401; 4];

#[tokio::test]
async fn a_good_certificate_is_served_until_it_is_revoked() {
    let admin = Admin::start(true).await;
    let mut open = admin.open(&admin.client).await;
    assert_eq!(codes(&mut open).await, SERVED);
    admin.store.reload().unwrap();
    assert_eq!(codes(&mut open).await, SERVED, "a reload that changes nothing");
    admin.pki.revoke("list", &[&admin.client]);
    admin.store.reload().unwrap();
    assert_eq!(codes(&mut open).await, REFUSED);
}

#[tokio::test]
async fn a_certificate_that_runs_out_on_an_open_connection_is_refused() {
    let admin = Admin::start(true).await;
    let mut open = admin.open(&admin.client).await;
    assert_eq!(codes(&mut open).await, SERVED);
    let end = Timestamp::from_unix_ms(4_000_000_000_000);
    let left = end.as_unix_ms() - admin.clock.now().as_unix_ms();
    admin.clock.advance(Duration::from_millis(left.try_into().unwrap()));
    assert_eq!(codes(&mut open).await, REFUSED);
}

#[tokio::test]
async fn a_certificate_that_names_nobody_is_refused() {
    let admin = Admin::start(true).await;
    let nameless = admin.pki.issue_serial("nameless", &Kind::WithoutSan, 40);
    assert_eq!(codes(&mut admin.open(&nameless).await).await, REFUSED);
}

#[tokio::test]
async fn grpc_is_refused_with_a_status() {
    let admin = Admin::start(true).await;
    let channel = connect(admin.address, &admin.pki.ca(), Some(&admin.client)).await.unwrap();
    let mut health = HealthClient::new(channel);
    assert!(health.check(HealthCheckRequest::default()).await.is_ok());
    admin.pki.revoke("list", &[&admin.client]);
    admin.store.reload().unwrap();
    let refused = health.check(HealthCheckRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(refused.message(), "the client certificate is no longer trusted");
}

#[tokio::test]
async fn without_tls_the_allowed_networks_decide_alone() {
    let admin = Admin::start(false).await;
    let mut open = TcpStream::connect(admin.address).await.unwrap();
    assert_eq!(codes(&mut open).await, SERVED);
}

#[tokio::test]
async fn metrics_tell_when_certificates_and_revocation_lists_run_out_also_after_a_reload() {
    let admin = Admin::start(true).await;
    let mut open = admin.open(&admin.client).await;
    let server =
        r#"holdfast_tls_certificate_not_after_seconds{listener="admin",certificate="server"}"#;
    let told = ask(&mut open, "/metrics").await;
    // 2090-01-01, and the end that rcgen gives an authority: 4096-01-01.
    for line in [
        format!("{server} 3786912000"),
        r#"holdfast_tls_certificate_not_after_seconds{listener="admin",certificate="client_ca"} 67090118400"#.to_owned(),
        r#"holdfast_tls_crl_next_update_seconds{listener="admin"} 3786912000"#.to_owned(),
    ] {
        assert!(told.lines().any(|told| told == line), "{line}\n{told}");
    }
    // Written over the server's: a reload looks at no dates.
    admin.pki.issue("server", &Kind::Expired);
    admin.store.reload().unwrap();
    let told = ask(&mut open, "/metrics").await;
    assert!(told.contains(&format!("{server} 1609459200\n")), "{told}");
}
