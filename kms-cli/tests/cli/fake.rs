//! A server of the contract over real mTLS that keeps no secret: its envelopes hold the plaintext as it came.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use kms_core::envelope::{Envelope, Header, Suite};
use kms_core::id::{KeyUid, KeyVersion};
use kms_proto::v1;
use kms_proto::v1::crypto_service_server::{CryptoService, CryptoServiceServer};
use kms_proto::v1::key_service_server::KeyServiceServer;
use kms_testkit::Pki;
use kms_testkit::pki::Identity;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

pub(super) type Answer<T> = Result<Response<T>, Status>;

/// What the server saw, and the errors it gives before it answers.
#[derive(Default)]
pub(crate) struct Script {
    /// Errors for the next calls, the last one first.
    pub(crate) errors: Vec<Status>,
    /// The request ids of mutations, in order of arrival.
    pub(crate) request_ids: Vec<String>,
    /// The encryption contexts of wraps, as sorted pairs.
    pub(crate) bindings: Vec<Vec<(String, String)>>,
    /// Filters and orders of lists.
    pub(crate) lists: Vec<(String, String)>,
    /// The masks of updates.
    pub(crate) masks: Vec<Vec<String>>,
    /// Whether mutations are done and never answered.
    pub(crate) silent: bool,
    /// Whether the first mutation that is done takes all connections down with it, for good.
    pub(crate) hangs_up: bool,
    /// Whether that has happened.
    gone: bool,
    /// How many calls came.
    pub(crate) calls: usize,
    /// How many items each batch had, in order of arrival.
    pub(crate) batches: Vec<usize>,
    /// Is called when a batch comes.
    pub(crate) on_batch: Option<Box<dyn FnMut() + Send>>,
    /// After so many batches no further one is answered.
    pub(crate) answered_batches: Option<usize>,
    /// What is refused of items: plaintext, and with what status, as often as it stands here.
    pub(crate) refused_items: Vec<(Vec<u8>, v1::ItemStatus)>,
}

/// The running server; it ends with the test.
pub(crate) struct Fake {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// What it saw.
    pub(crate) script: Arc<Mutex<Script>>,
    _runtime: tokio::runtime::Runtime,
}

/// An error as a Holdfast server sends it.
pub(crate) fn refusal(code: Code, reason: &str, retry: Option<Duration>) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, "holdfast.dev", std::collections::HashMap::new());
    if let Some(delay) = retry {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(code, "said the server", details)
}

impl Fake {
    /// Starts it with the usual certificates of `pki`.
    pub(crate) fn start(pki: &Pki) -> Self {
        Self::start_as(pki, pki.usual().0)
    }

    /// Starts it with another certificate of `pki`.
    pub(crate) fn start_as(pki: &Pki, server: Identity) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let script = Arc::new(Mutex::new(Script::default()));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(server_config(pki, server)));
        let (sender, receiver) = tokio::sync::mpsc::channel(16);
        let taken = Arc::clone(&script);
        runtime.spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (acceptor, sender) = (acceptor.clone(), sender.clone());
                let script = Arc::clone(&taken);
                if script.lock().unwrap().gone {
                    continue;
                }
                tokio::spawn(async move {
                    if let Ok(tls) = acceptor.accept(tcp).await {
                        let _ = sender.send(Ok::<_, io::Error>(Stream(tls, script))).await;
                    }
                });
            }
        });
        let service = Service(Arc::clone(&script));
        let router = tonic::transport::Server::builder()
            .add_service(CryptoServiceServer::new(service.clone()))
            .add_service(KeyServiceServer::new(service));
        let incoming = tokio_stream::wrappers::ReceiverStream::new(receiver);
        runtime.spawn(router.serve_with_incoming(incoming));
        Self { address, script, _runtime: runtime }
    }

    /// Lends what it saw.
    pub(crate) fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }
}

fn server_config(pki: &Pki, server: Identity) -> ServerConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pki.ca()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let chain = CertificateDer::pem_file_iter(server.certificate).unwrap();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            chain.collect::<Result<_, _>>().unwrap(),
            PrivateKeyDer::from_pem_file(server.key).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

#[derive(Clone)]
pub(super) struct Service(pub(super) Arc<Mutex<Script>>);

impl Service {
    /// Counts a call, and gives the next scripted error.
    pub(super) fn seen(&self) -> Result<std::sync::MutexGuard<'_, Script>, Status> {
        let mut script = self.0.lock().unwrap();
        script.calls += 1;
        match script.errors.pop() {
            Some(error) => Err(error),
            None => Ok(script),
        }
    }

    /// Rewraps to version 2, or gives the item's scripted refusal.
    fn rewrapped(&self, request: &v1::RewrapRequest) -> v1::batch_rewrap_response::Item {
        let old = Envelope::decode(&request.ciphertext).unwrap();
        let plaintext = &old.ciphertext_and_tag[..old.plaintext_len()];
        let refused = &mut self.0.lock().unwrap().refused_items;
        if let Some(place) = refused.iter().position(|(item, _)| item == plaintext) {
            let (_, status) = refused.remove(place);
            return v1::batch_rewrap_response::Item { status: Some(status), result: None };
        }
        let version = KeyVersion::new(2).unwrap();
        let new = Header { version, ..old.header }.seal(&[2; 12], old.ciphertext_and_tag).into();
        let changed = old.header.version != version;
        let result = Some(v1::RewrapResponse {
            ciphertext: if changed { new } else { request.ciphertext.clone() },
            key_version: format!("{}/versions/2", request.key),
            previous_key_version: format!("{}/versions/{}", request.key, old.header.version),
            changed,
        });
        v1::batch_rewrap_response::Item { status: Some(v1::ItemStatus::default()), result }
    }

    pub(super) async fn mutation(&self, request_id: &str) -> Result<(), Status> {
        self.0.lock().unwrap().request_ids.push(request_id.to_owned());
        let silent = {
            let mut script = self.seen()?;
            script.gone |= script.hangs_up;
            script.silent
        };
        if silent {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

pub(super) fn key(name: String) -> v1::Key {
    v1::Key { name, uid: "u".into(), revision: 7, primary_version: 2, ..Default::default() }
}

pub(super) fn unwritten<T>() -> Answer<T> {
    Err(Status::unimplemented("not part of this fake"))
}

#[tonic::async_trait]
impl CryptoService for Service {
    async fn wrap(&self, request: Request<v1::WrapRequest>) -> Answer<v1::WrapResponse> {
        let request = request.into_inner();
        let mut pairs: Vec<_> = request.context.into_iter().collect();
        pairs.sort();
        self.seen()?.bindings.push(pairs);
        let header = Header {
            suite: Suite::Aes256Gcm,
            key_uid: KeyUid::from_random([7; 16]),
            version: KeyVersion::new(2).unwrap(),
        };
        let ciphertext = header.seal(&[1; 12], &[&request.plaintext[..], &[0; 16]].concat());
        // An alias stands for a key of its name.
        let key_version = format!("{}/versions/2", request.key.replace("/aliases/", "/keys/"));
        Ok(Response::new(v1::WrapResponse { ciphertext: ciphertext.into(), key_version }))
    }

    async fn unwrap(&self, request: Request<v1::UnwrapRequest>) -> Answer<v1::UnwrapResponse> {
        drop(self.seen()?);
        let request = request.into_inner();
        let envelope = Envelope::decode(&request.ciphertext).unwrap();
        let plaintext = envelope.ciphertext_and_tag[..envelope.plaintext_len()].to_vec();
        let key_version = format!("{}/versions/2", request.key);
        Ok(Response::new(v1::UnwrapResponse { plaintext: plaintext.into(), key_version }))
    }

    async fn rewrap(&self, request: Request<v1::RewrapRequest>) -> Answer<v1::RewrapResponse> {
        drop(self.seen()?);
        let request = request.into_inner();
        Ok(Response::new(v1::RewrapResponse {
            ciphertext: request.ciphertext,
            key_version: format!("{}/versions/2", request.key),
            previous_key_version: format!("{}/versions/2", request.key),
            changed: false,
        }))
    }

    async fn generate_data_key(
        &self,
        request: Request<v1::GenerateDataKeyRequest>,
    ) -> Answer<v1::GenerateDataKeyResponse> {
        drop(self.seen()?);
        let request = request.into_inner();
        let length = request.length_bytes as usize;
        let plaintext = if request.without_plaintext { Vec::new() } else { vec![9; length] };
        Ok(Response::new(v1::GenerateDataKeyResponse {
            plaintext: plaintext.into(),
            ciphertext: b"KW-wrapped".to_vec().into(),
            key_version: format!("{}/versions/2", request.key),
        }))
    }

    async fn generate_random(
        &self,
        request: Request<v1::GenerateRandomRequest>,
    ) -> Answer<v1::GenerateRandomResponse> {
        drop(self.seen()?);
        let random = vec![5; request.into_inner().length_bytes as usize].into();
        Ok(Response::new(v1::GenerateRandomResponse { random }))
    }

    async fn batch_wrap(&self, _: Request<v1::BatchWrapRequest>) -> Answer<v1::BatchWrapResponse> {
        unwritten()
    }

    async fn batch_unwrap(
        &self,
        _: Request<v1::BatchUnwrapRequest>,
    ) -> Answer<v1::BatchUnwrapResponse> {
        unwritten()
    }

    async fn batch_rewrap(
        &self,
        request: Request<v1::BatchRewrapRequest>,
    ) -> Answer<v1::BatchRewrapResponse> {
        let requests = request.into_inner().items;
        let silent = {
            let mut script = self.seen()?;
            script.batches.push(requests.len());
            if let Some(told) = &mut script.on_batch {
                told();
            }
            script.answered_batches.is_some_and(|answered| script.batches.len() > answered)
        };
        if silent {
            std::future::pending::<()>().await;
        }
        let items = requests.iter().map(|request| self.rewrapped(request)).collect();
        Ok(Response::new(v1::BatchRewrapResponse { items }))
    }

    type RewrapStreamStream = tokio_stream::Empty<Result<v1::RewrapStreamResponse, Status>>;

    async fn rewrap_stream(
        &self,
        _: Request<tonic::Streaming<v1::RewrapStreamRequest>>,
    ) -> Answer<Self::RewrapStreamStream> {
        unwritten()
    }

    async fn batch_generate_data_key(
        &self,
        _: Request<v1::BatchGenerateDataKeyRequest>,
    ) -> Answer<v1::BatchGenerateDataKeyResponse> {
        unwritten()
    }

    async fn describe_ciphertext(
        &self,
        request: Request<v1::DescribeCiphertextRequest>,
    ) -> Answer<v1::DescribeCiphertextResponse> {
        drop(self.seen()?);
        let request = request.into_inner();
        let envelope = Envelope::decode(&request.ciphertext).unwrap();
        Ok(Response::new(v1::DescribeCiphertextResponse {
            key_uid: envelope.header.key_uid.to_string(),
            version: envelope.header.version.get(),
            key_version: "tenants/t1/keys/k/versions/2".into(),
            current: true,
            ..Default::default()
        }))
    }
}

/// A TLS stream that tonic takes; it breaks before an answer when the script says so.
struct Stream(TlsStream<TcpStream>, Arc<Mutex<Script>>);

impl Connected for Stream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.1.lock().unwrap().gone {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
