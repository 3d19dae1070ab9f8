//! A gRPC client over TLS 1.3 with a certificate of its own.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use kms_proto::v1::crypto_service_client::CryptoServiceClient;
use kms_proto::v1::key_service_client::KeyServiceClient;
pub use rustls::AlertDescription;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::pki::Identity;

/// Returns a TLS configuration that trusts the authority in `ca`, shows `identity` if any, and offers HTTP/2.
pub fn tls(ca: &Path, identity: Option<&Identity>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).expect("read the authority") {
        roots.add(certificate.expect("parse the authority")).expect("add the authority");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3 is there")
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(identity) => {
            let chain = CertificateDer::pem_file_iter(&identity.certificate).expect("read it");
            let chain = chain.collect::<Result<Vec<_>, _>>().expect("parse the certificate");
            let key = PrivateKeyDer::from_pem_file(&identity.key).expect("read the key");
            builder.with_client_auth_cert(chain, key).expect("certificate and key fit")
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Connects to a server at `address` that has a certificate for `localhost`.
///
/// # Errors
/// Says why there is no connection. In TLS 1.3 a server refuses a client's certificate after the client is done: such a
/// refusal may come with the first call instead.
pub async fn connect(
    address: SocketAddr,
    ca: &Path,
    identity: Option<&Identity>,
) -> Result<Channel, tonic::transport::Error> {
    let connector = TlsConnector::from(Arc::new(tls(ca, identity)));
    let open = tower::service_fn(move |_: Uri| {
        let connector = connector.clone();
        async move {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::try_from("localhost").expect("a name");
            Ok::<_, io::Error>(TokioIo::new(connector.connect(name, tcp).await?))
        }
    });
    // The connector speaks TLS; tonic need not know.
    Endpoint::from_static("http://localhost").connect_with_connector(open).await
}

async fn shake_hands(
    address: SocketAddr,
    config: ClientConfig,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("localhost").expect("a name");
    let tcp = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await
}

/// A GET over HTTP/1.1 and TLS; returns the status code and the body.
///
/// # Errors
/// Says why there is no answer.
pub async fn get(
    address: SocketAddr,
    ca: &Path,
    identity: &Identity,
    path: &str,
) -> io::Result<(u16, String)> {
    let mut config = tls(ca, Some(identity));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut stream = shake_hands(address, config).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((code.expect("an answer has a status"), body.to_owned()))
}

/// Shakes hands, says nothing more, and returns the alert with which the server refuses; `None` when it does not refuse
/// but only closes. Nothing is said because what a server has not read can cost the alert.
///
/// # Errors
/// The connection broke without an alert.
pub async fn handshake_alert(
    address: SocketAddr,
    ca: &Path,
    identity: Option<&Identity>,
) -> io::Result<Option<AlertDescription>> {
    let ended = match shake_hands(address, tls(ca, identity)).await {
        Ok(mut stream) => stream.read_to_end(&mut Vec::new()).await.map(drop),
        Err(error) => Err(error),
    };
    let Err(error) = ended else { return Ok(None) };
    match error.downcast::<rustls::Error>() {
        Ok(rustls::Error::AlertReceived(alert)) => Ok(Some(alert)),
        Ok(other) => Err(io::Error::other(other)),
        Err(error) => Err(error),
    }
}

/// Returns a client of the crypto service.
pub fn crypto_client(channel: &Channel) -> CryptoServiceClient<Channel> {
    CryptoServiceClient::new(channel.clone())
}

/// Returns a client of the key service.
pub fn key_client(channel: &Channel) -> KeyServiceClient<Channel> {
    KeyServiceClient::new(channel.clone())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::ServerConfig;
    use rustls::server::WebPkiClientVerifier;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::deadline::within;
    use crate::pki::{Kind, Pki};

    const LIMIT: Duration = Duration::from_secs(20);

    /// Shakes hands once, as a server that trusts `trusted`, with a client that shows what it got from `issuer`.
    async fn handshake(trusted: &Pki, issuer: &Pki, kind: &Kind) -> Result<(), String> {
        let (server, _) = trusted.usual();
        let client = issuer.issue_serial("tried", kind, 77);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(trusted.ca()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(
                vec![CertificateDer::from_pem_file(server.certificate).unwrap()],
                PrivateKeyDer::from_pem_file(server.key).unwrap(),
            )
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accept = async {
            let (tcp, _) = listener.accept().await.unwrap();
            let accepted = TlsAcceptor::from(Arc::new(config)).accept(tcp).await;
            accepted.map(drop).map_err(|error| error.to_string())
        };
        let connector = TlsConnector::from(Arc::new(tls(&trusted.ca(), Some(&client))));
        let connect = async {
            let tcp = TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            connector.connect(name, tcp).await.map(drop).map_err(|error| error.to_string())
        };
        let (accepted, _) =
            within(LIMIT, "a handshake", async { tokio::join!(accept, connect) }).await;
        accepted
    }

    #[tokio::test]
    async fn good_certificates_are_accepted() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::create(directory.path());
        let kinds = [Kind::Spiffe("spiffe://a.test/b"), Kind::Dns("a.test"), Kind::TwoUris];
        for kind in kinds.iter().chain([&Kind::WithoutSan]) {
            assert_eq!(handshake(&pki, &pki, kind).await, Ok(()), "{kind:?}");
        }
    }

    #[tokio::test]
    async fn bad_certificates_are_refused_for_what_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::create(directory.path());
        for (kind, reason) in [
            (Kind::Expired, "expired"),
            (Kind::NotYetValid, "not valid yet"),
            (Kind::WithoutClientUsage, "usage"),
        ] {
            let refusal = handshake(&pki, &pki, &kind).await.unwrap_err();
            assert!(refusal.to_lowercase().contains(reason), "{kind:?}: {refusal}");
        }
    }

    #[tokio::test]
    async fn another_authority_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let ours = Pki::create(&directory.path().join("ours"));
        let other = Pki::create(&directory.path().join("other"));
        let refusal = handshake(&ours, &other, &Kind::Dns("a.test")).await.unwrap_err();
        // Both authorities have one name, so it is the signature that fails.
        assert!(refusal.contains("BadSignature") || refusal.contains("UnknownIssuer"), "{refusal}");
    }
}
