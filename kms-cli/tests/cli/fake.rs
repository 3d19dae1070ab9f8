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
use kms_proto::v1::key_service_server::{KeyService, KeyServiceServer};
use kms_testkit::Pki;
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

type Answer<T> = Result<Response<T>, Status>;

/// What the server saw, and the errors it gives before it answers.
#[derive(Default)]
pub(crate) struct Script {
    /// Errors for the next calls, the last one first.
    pub(crate) errors: Vec<Status>,
    /// The request ids of mutations, in order of arrival.
    pub(crate) request_ids: Vec<String>,
    /// The encryption contexts of wraps, as sorted pairs.
    pub(crate) bindings: Vec<Vec<(String, String)>>,
    /// The masks of updates.
    pub(crate) masks: Vec<Vec<String>>,
    /// Whether a rollover is done and never answered.
    pub(crate) silent: bool,
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
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let script = Arc::new(Mutex::new(Script::default()));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(server_config(pki)));
        let (sender, receiver) = tokio::sync::mpsc::channel(16);
        runtime.spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (acceptor, sender) = (acceptor.clone(), sender.clone());
                tokio::spawn(async move {
                    if let Ok(tls) = acceptor.accept(tcp).await {
                        let _ = sender.send(Ok::<_, io::Error>(Stream(tls))).await;
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

fn server_config(pki: &Pki) -> ServerConfig {
    let (server, _) = pki.usual();
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
struct Service(Arc<Mutex<Script>>);

impl Service {
    /// Counts a call, and gives the next scripted error.
    fn seen(&self) -> Result<std::sync::MutexGuard<'_, Script>, Status> {
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

    fn mutation(&self, request_id: &str) -> Result<std::sync::MutexGuard<'_, Script>, Status> {
        self.0.lock().unwrap().request_ids.push(request_id.to_owned());
        self.seen()
    }
}

fn key(name: String) -> v1::Key {
    v1::Key { name, uid: "u".into(), revision: 7, primary_version: 2, ..Default::default() }
}

fn unwritten<T>() -> Answer<T> {
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
        let key_version = format!("{}/versions/2", request.key);
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

#[tonic::async_trait]
impl KeyService for Service {
    async fn create_key(&self, request: Request<v1::CreateKeyRequest>) -> Answer<v1::Key> {
        let request = request.into_inner();
        drop(self.mutation(&request.request_id)?);
        Ok(Response::new(key(format!("{}/keys/{}", request.parent, request.key_id))))
    }

    async fn describe_key(&self, request: Request<v1::DescribeKeyRequest>) -> Answer<v1::Key> {
        drop(self.seen()?);
        let name = request.into_inner().name;
        let owner = if name.contains("payroll") { "finance" } else { "kms bench" };
        Ok(Response::new(v1::Key { owner: owner.into(), ..key(name) }))
    }

    async fn list_keys(
        &self,
        request: Request<v1::ListKeysRequest>,
    ) -> Answer<v1::ListKeysResponse> {
        drop(self.seen()?);
        // Three keys, at most two on a page.
        let request = request.into_inner();
        let first: u32 = request.page_token.parse().unwrap_or(0);
        let end = 3.min(first + request.page_size.min(2));
        let keys = (first..end).map(|n| key(format!("{}/keys/k{n}", request.parent))).collect();
        let next_page_token = if end < 3 { end.to_string() } else { String::new() };
        Ok(Response::new(v1::ListKeysResponse { keys, next_page_token }))
    }

    async fn update_key(&self, request: Request<v1::UpdateKeyRequest>) -> Answer<v1::Key> {
        let request = request.into_inner();
        let mut script = self.mutation(&request.request_id)?;
        script.masks.push(request.update_mask.unwrap_or_default().paths);
        Ok(Response::new(v1::Key { revision: request.revision + 1, ..key(request.name) }))
    }

    async fn rotate_key(
        &self,
        request: Request<v1::RotateKeyRequest>,
    ) -> Answer<v1::RotateKeyResponse> {
        let request = request.into_inner();
        let silent = self.mutation(&request.request_id)?.silent;
        if silent {
            std::future::pending::<()>().await;
        }
        let version = v1::KeyVersion { version: 3, state: 2, primary: true, ..Default::default() };
        let (key, version) = (Some(key(request.name)), Some(version));
        Ok(Response::new(v1::RotateKeyResponse { key, version }))
    }

    async fn describe_key_version(
        &self,
        request: Request<v1::DescribeKeyVersionRequest>,
    ) -> Answer<v1::KeyVersion> {
        drop(self.seen()?);
        let name = request.into_inner().name;
        Ok(Response::new(v1::KeyVersion { name, version: 3, state: 4, ..Default::default() }))
    }

    async fn list_key_versions(
        &self,
        _: Request<v1::ListKeyVersionsRequest>,
    ) -> Answer<v1::ListKeyVersionsResponse> {
        unwritten()
    }

    async fn suspend_key_version(
        &self,
        request: Request<v1::SuspendKeyVersionRequest>,
    ) -> Answer<v1::KeyVersion> {
        let request = request.into_inner();
        drop(self.mutation(&request.request_id)?);
        Ok(Response::new(v1::KeyVersion { name: request.name, state: 3, ..Default::default() }))
    }

    async fn resume_key_version(
        &self,
        request: Request<v1::ResumeKeyVersionRequest>,
    ) -> Answer<v1::KeyVersion> {
        let request = request.into_inner();
        drop(self.mutation(&request.request_id)?);
        Ok(Response::new(v1::KeyVersion { name: request.name, state: 2, ..Default::default() }))
    }

    async fn deactivate_key_version(
        &self,
        request: Request<v1::DeactivateKeyVersionRequest>,
    ) -> Answer<v1::KeyVersion> {
        let request = request.into_inner();
        drop(self.mutation(&request.request_id)?);
        Ok(Response::new(v1::KeyVersion { name: request.name, state: 4, ..Default::default() }))
    }

    async fn disable_key(&self, request: Request<v1::DisableKeyRequest>) -> Answer<v1::Key> {
        let request = request.into_inner();
        drop(self.mutation(&request.request_id)?);
        let state = v1::KeyState::Disabled.into();
        Ok(Response::new(v1::Key { state, primary_version: 0, ..key(request.name) }))
    }

    async fn enable_key(&self, request: Request<v1::EnableKeyRequest>) -> Answer<v1::Key> {
        let request = request.into_inner();
        drop(self.mutation(&request.request_id)?);
        let state = v1::KeyState::Enabled.into();
        Ok(Response::new(v1::Key { state, ..key(request.name) }))
    }

    async fn compromise_key_version(
        &self,
        request: Request<v1::CompromiseKeyVersionRequest>,
    ) -> Answer<v1::CompromiseKeyVersionResponse> {
        let request = request.into_inner();
        drop(self.mutation(&request.request_id)?);
        let version = |name: String, number, state| v1::KeyVersion {
            name,
            version: number,
            state,
            ..Default::default()
        };
        let name = request.name.split("/versions/").next().unwrap_or_default().to_owned();
        let replacement = version(format!("{name}/versions/4"), 4, 2);
        Ok(Response::new(v1::CompromiseKeyVersionResponse {
            version: Some(version(request.name, 3, 5)),
            key: Some(key(name)),
            replacement: Some(replacement),
        }))
    }

    async fn schedule_key_version_destruction(
        &self,
        request: Request<v1::ScheduleKeyVersionDestructionRequest>,
    ) -> Answer<v1::KeyVersion> {
        let request = request.into_inner();
        drop(self.mutation(&request.request_id)?);
        let seconds = request.window.map_or(0, |window| window.seconds);
        let destroy_time = Some(prost_types::Timestamp { seconds, nanos: 0 });
        let name = request.name;
        Ok(Response::new(v1::KeyVersion { name, state: 6, destroy_time, ..Default::default() }))
    }

    async fn cancel_key_version_destruction(
        &self,
        request: Request<v1::CancelKeyVersionDestructionRequest>,
    ) -> Answer<v1::KeyVersion> {
        let request = request.into_inner();
        drop(self.mutation(&request.request_id)?);
        Ok(Response::new(v1::KeyVersion { name: request.name, state: 4, ..Default::default() }))
    }

    async fn get_version_usage(
        &self,
        request: Request<v1::GetVersionUsageRequest>,
    ) -> Answer<v1::VersionUsage> {
        drop(self.seen()?);
        let time = Some(prost_types::Timestamp { seconds: 0, nanos: 0 });
        Ok(Response::new(v1::VersionUsage {
            name: request.into_inner().name,
            state: 4,
            protect: Some(v1::UseTally { count: 7, first_time: time, last_time: time }),
            retirement: 2,
            evidence: vec!["7 ciphertexts".into()],
            blind_spots: vec!["backups".into()],
            ..Default::default()
        }))
    }

    async fn list_key_history(
        &self,
        _: Request<v1::ListKeyHistoryRequest>,
    ) -> Answer<v1::ListKeyHistoryResponse> {
        drop(self.seen()?);
        let entry = |version, old_state, new_state, detail: &str| v1::KeyHistoryEntry {
            version,
            old_state,
            new_state,
            detail: detail.into(),
            actor: "spiffe://t/officer".into(),
            reason: "because".into(),
            ..Default::default()
        };
        let entries =
            vec![entry(1, 0, 2, ""), entry(0, 0, 0, r#"{"owner":["a","b"]}"#), entry(1, 2, 3, "")];
        Ok(Response::new(v1::ListKeyHistoryResponse { entries, next_page_token: String::new() }))
    }
}

/// A TLS stream that tonic takes.
struct Stream(TlsStream<TcpStream>);

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
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
