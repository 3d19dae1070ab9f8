//! File keys over the wire: real mTLS, with a crypto service in memory behind it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test helpers")]

mod backup_support;

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use age_core::format::FileKey;
use age_core::secrecy::ExposeSecret as _;
use backup_support::{KEY, MemoryKms, key, plaintext};
use kms_cli::backup::{
    FileKeyService, Recipients, RemoteFileKeys, ServiceError, Status, WrappedFileKey, open_stream,
    reseal_file, seal_stream,
};
use kms_cli::client::ClientError;
use kms_cli::context::ResolvedContext;
use kms_proto::v1::crypto_service_server::{CryptoService, CryptoServiceServer};
use kms_proto::v1::*;
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
use tonic::{Request, Response, Status as Answer};

/// Longer than any test takes; a call that hangs fails then.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The encryption context of each call.
type Contexts = Arc<Mutex<Vec<Vec<(String, String)>>>>;

/// Answers the three calls that backups need, and notes their encryption contexts.
struct InMemory {
    kms: Arc<MemoryKms>,
    contexts: Contexts,
    /// True to answer with what breaks the contract.
    broken: bool,
}

fn refused<T>(_: T) -> Answer {
    Answer::invalid_argument("refused for a test")
}

#[tonic::async_trait]
impl CryptoService for InMemory {
    async fn wrap(&self, request: Request<WrapRequest>) -> Result<Response<WrapResponse>, Answer> {
        let WrapRequest { key, plaintext, context } = request.into_inner();
        self.contexts.lock().unwrap().push(context.into_iter().collect());
        let bytes = plaintext.as_ref().try_into().map_err(refused)?;
        let name = key.parse().map_err(refused)?;
        let wrapped = self.kms.wrap(&name, &FileKey::new(Box::new(bytes))).map_err(refused)?;
        let mut ciphertext = wrapped.as_bytes().to_vec();
        ciphertext.truncate(if self.broken { 60 } else { ciphertext.len() });
        let key_version = format!("{key}/versions/{}", self.kms.primary_version().get());
        Ok(Response::new(WrapResponse { ciphertext: ciphertext.into(), key_version }))
    }

    async fn unwrap(
        &self,
        request: Request<UnwrapRequest>,
    ) -> Result<Response<UnwrapResponse>, Answer> {
        let UnwrapRequest { key, ciphertext, context } = request.into_inner();
        self.contexts.lock().unwrap().push(context.into_iter().collect());
        let wrapped = WrappedFileKey::new(&ciphertext).map_err(refused)?;
        let file_key =
            self.kms.unwrap(&key.parse().map_err(refused)?, &wrapped).map_err(refused)?;
        let mut plaintext = file_key.expose_secret().to_vec();
        plaintext.truncate(if self.broken { 15 } else { 16 });
        let key_version = format!("{key}/versions/{}", wrapped.header().version.get());
        Ok(Response::new(UnwrapResponse { plaintext: plaintext.into(), key_version }))
    }

    async fn describe_ciphertext(
        &self,
        request: Request<DescribeCiphertextRequest>,
    ) -> Result<Response<DescribeCiphertextResponse>, Answer> {
        let wrapped = WrappedFileKey::new(&request.into_inner().ciphertext).map_err(refused)?;
        let described = self.kms.describe(&wrapped).map_err(refused)?;
        let version = wrapped.header().version.get() + u32::from(self.broken);
        let key_version =
            described.key.map(|key| format!("{key}/versions/{version}")).unwrap_or_default();
        Ok(Response::new(DescribeCiphertextResponse {
            format: 1,
            suite: 1,
            key_uid: wrapped.header().key_uid.to_string(),
            version,
            key_version,
            plaintext_length_bytes: 16,
            current: described.current,
        }))
    }

    async fn rewrap(&self, _: Request<RewrapRequest>) -> Result<Response<RewrapResponse>, Answer> {
        Err(Answer::unimplemented("not for backups"))
    }

    async fn generate_data_key(
        &self,
        _: Request<GenerateDataKeyRequest>,
    ) -> Result<Response<GenerateDataKeyResponse>, Answer> {
        Err(Answer::unimplemented("not for backups"))
    }

    async fn batch_wrap(
        &self,
        _: Request<BatchWrapRequest>,
    ) -> Result<Response<BatchWrapResponse>, Answer> {
        Err(Answer::unimplemented("not for backups"))
    }

    async fn batch_unwrap(
        &self,
        _: Request<BatchUnwrapRequest>,
    ) -> Result<Response<BatchUnwrapResponse>, Answer> {
        Err(Answer::unimplemented("not for backups"))
    }

    async fn batch_rewrap(
        &self,
        _: Request<BatchRewrapRequest>,
    ) -> Result<Response<BatchRewrapResponse>, Answer> {
        Err(Answer::unimplemented("not for backups"))
    }

    type RewrapStreamStream = tokio_stream::Empty<Result<RewrapStreamResponse, Answer>>;

    async fn rewrap_stream(
        &self,
        _: Request<tonic::Streaming<RewrapStreamRequest>>,
    ) -> Result<Response<Self::RewrapStreamStream>, Answer> {
        Err(Answer::unimplemented("not for backups"))
    }

    async fn batch_generate_data_key(
        &self,
        _: Request<BatchGenerateDataKeyRequest>,
    ) -> Result<Response<BatchGenerateDataKeyResponse>, Answer> {
        Err(Answer::unimplemented("not for backups"))
    }

    async fn generate_random(
        &self,
        _: Request<GenerateRandomRequest>,
    ) -> Result<Response<GenerateRandomResponse>, Answer> {
        Err(Answer::unimplemented("not for backups"))
    }
}

/// A server on a thread of its own, and a context that leads to it.
struct Server {
    kms: Arc<MemoryKms>,
    contexts: Contexts,
    context: ResolvedContext,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    _files: tempfile::TempDir,
}

impl Server {
    fn start(broken: bool) -> Self {
        let files = tempfile::tempdir().unwrap();
        let pki = Pki::create(files.path());
        let (server, client) = pki.usual();
        let kms = Arc::new(MemoryKms::at(3));
        let contexts = Contexts::default();
        let service = InMemory { kms: Arc::clone(&kms), contexts: Arc::clone(&contexts), broken };
        let acceptor = TlsAcceptor::from(Arc::new(tls(&pki.ca(), &server)));
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (bound, port) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                bound.send(listener.local_addr().unwrap().port()).unwrap();
                let accept = |(listener, acceptor): (TcpListener, TlsAcceptor)| async {
                    let (tcp, _) = listener.accept().await.unwrap();
                    let stream = acceptor.accept(tcp).await.map(Encrypted);
                    Some((stream, (listener, acceptor)))
                };
                let incoming = futures_util::stream::unfold((listener, acceptor), accept);
                let serve = tonic::transport::Server::builder()
                    .add_service(CryptoServiceServer::new(service))
                    .serve_with_incoming(incoming);
                // Stopping drops the connections, as a crash would.
                tokio::select! {
                    ended = serve => ended.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        let context = context(port.recv().unwrap(), &pki.ca(), &client);
        let (stop, thread) = (Some(stop), Some(thread));
        Self { kms, contexts, context, stop, thread, _files: files }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// tonic's trait is not implemented for other crates' streams.
struct Encrypted(TlsStream<TcpStream>);

impl Connected for Encrypted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Encrypted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Encrypted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

fn tls(ca: &Path, server: &Identity) -> ServerConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            vec![CertificateDer::from_pem_file(&server.certificate).unwrap()],
            PrivateKeyDer::from_pem_file(&server.key).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

fn context(port: u16, ca: &Path, client: &Identity) -> ResolvedContext {
    ResolvedContext {
        server: format!("https://localhost:{port}").parse().unwrap(),
        ca: ca.into(),
        cert: client.certificate.clone(),
        key: client.key.clone(),
        tenant: None,
        timeout: TIMEOUT,
    }
}

#[test]
fn a_backup_is_sealed_resealed_and_opened_over_mtls() {
    let server = Server::start(false);
    let service = RemoteFileKeys::connect(&server.context).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sealed.age");
    let plaintext = plaintext(100_000);
    let recipients = Recipients::new(key(), Vec::new()).unwrap();
    let file = std::fs::File::create(&path).unwrap();
    let sealed = seal_stream(&service, &recipients, &plaintext[..], file).unwrap();
    assert_eq!(sealed.version.get(), 3);
    server.kms.rotate();
    let outcome = reseal_file(&service, None, &path).unwrap();
    assert!(matches!(outcome.status, Status::Resealed { to, .. } if to.get() == 4));
    assert_eq!(outcome.key.to_string(), KEY);
    let mut opened = Vec::new();
    let input = std::fs::read(&path).unwrap();
    open_stream(&service, None, &input[..], &mut opened).unwrap();
    assert_eq!(opened, plaintext);
    let contexts = server.contexts.lock().unwrap();
    let expected = vec![("purpose".to_owned(), "age-file-key".to_owned())];
    assert_eq!(contexts.len(), 5);
    assert!(contexts.iter().all(|context| *context == expected), "{contexts:?}");
}

#[test]
fn calls_work_from_inside_another_runtime() {
    let server = Server::start(false);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let service = RemoteFileKeys::connect(&server.context).unwrap();
        service.wrap(&key(), &FileKey::new(Box::new([1; 16]))).unwrap();
    });
}

#[test]
fn calls_from_many_threads_do_not_mix_their_answers() {
    let server = Server::start(false);
    let service = RemoteFileKeys::connect(&server.context).unwrap();
    std::thread::scope(|scope| {
        for byte in 0..8 {
            let service = &service;
            scope.spawn(move || {
                let wrapped = service.wrap(&key(), &FileKey::new(Box::new([byte; 16]))).unwrap();
                let file_key = service.unwrap(&key(), &wrapped).unwrap();
                assert_eq!(*file_key.expose_secret(), [byte; 16]);
            });
        }
    });
}

#[test]
fn answers_that_break_the_contract_are_not_used() {
    let server = Server::start(true);
    let service = RemoteFileKeys::connect(&server.context).unwrap();
    let file_key = FileKey::new(Box::new([1; 16]));
    let wrapped = server.kms.wrap(&key(), &file_key).unwrap();
    let bad = |error| matches!(error, ServiceError::BadAnswer(_));
    assert!(bad(service.wrap(&key(), &file_key).unwrap_err()));
    assert!(service.unwrap(&key(), &wrapped).is_err_and(bad));
    assert!(bad(service.describe(&wrapped).unwrap_err()));
}

#[test]
fn a_refusal_of_the_server_is_handed_on() {
    let server = Server::start(false);
    let service = RemoteFileKeys::connect(&server.context).unwrap();
    let wrapped = server.kms.wrap(&key(), &FileKey::new(Box::new([1; 16]))).unwrap();
    let mut damaged = *wrapped.as_bytes();
    damaged[60] ^= 1;
    let Err(error) = service.unwrap(&key(), &WrappedFileKey::new(&damaged).unwrap()) else {
        panic!("a damaged envelope was opened")
    };
    assert!(
        matches!(&error, ServiceError::Client(ClientError::Refused(refusal)) if refusal.code == tonic::Code::InvalidArgument),
        "{error:?}"
    );
}

#[test]
fn a_server_that_is_not_there_is_told_at_once() {
    let server = Server::start(false);
    let gone = server.context.clone();
    drop(server);
    let error = RemoteFileKeys::connect(&gone).unwrap_err();
    // The certificates went away with the server's files; either is told as the client's error.
    assert!(matches!(error, ServiceError::Client(_)), "{error:?}");
}

#[test]
fn a_connection_that_breaks_is_told_and_does_not_hang() {
    let mut server = Server::start(false);
    let service = RemoteFileKeys::connect(&server.context).unwrap();
    server.stop = None;
    server.thread.take().unwrap().join().unwrap();
    let error = service.wrap(&key(), &FileKey::new(Box::new([1; 16]))).unwrap_err();
    assert!(matches!(error, ServiceError::Client(ClientError::Connect { .. })), "{error:?}");
}
