//! TCP, then TLS, as the connector that tonic calls whenever it needs a connection.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::Uri;
use tower::Service;

use super::ClientError;
use super::replay::Replay;
use crate::context::ServerAddress;

/// How far down a chain of causes we look.
const MAX_CAUSES: usize = 16;

/// How much is read ahead: a SETTINGS frame of the usual length.
const FIRST_BYTES: usize = 256;
/// How long the server's first bytes are awaited; they come with the end of its handshake, one round trip away.
pub const FIRST_BYTES_WAIT: Duration = Duration::from_secs(1);

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectFailure {
    /// Nothing answers there, or the name does not resolve.
    #[error("{0}")]
    Network(String),
    /// It took longer than this: [`super::CONNECT_TIMEOUT`], or the caller's own limit.
    #[error("not connected within {0:?}")]
    Timeout(Duration),
    /// The server's certificate is not one we trust for this name.
    #[error("the server's certificate is refused: {0}")]
    ServerCertificate(String),
    /// The server's certificate may be the right one, but not now.
    #[error("the server's certificate is {0}")]
    ServerCertificateTime(&'static str),
    /// The server does not accept our certificate.
    #[error("the server refuses our certificate: {0}")]
    ClientCertificate(String),
    /// What answers does not speak TLS 1.3.
    #[error("TLS failed: {0}")]
    Tls(String),
    /// What answers speaks TLS, but not HTTP/2 inside.
    #[error("the server does not speak HTTP/2")]
    NotHttp2,
}

impl ConnectFailure {
    /// Finds the failure in a chain of causes.
    pub fn find(error: &(dyn Error + 'static)) -> Self {
        Self::find_tls(error).unwrap_or_else(|| {
            let mut cause = error;
            for _ in 0..MAX_CAUSES {
                match cause.source() {
                    Some(source) => cause = source,
                    None => break,
                }
            }
            Self::Network(crate::terminal::harmless(&cause.to_string()))
        })
    }

    /// Finds a failure of ours, or of TLS, in a chain of causes. A server's refusal of our certificate comes so: in
    /// TLS 1.3 it arrives after the handshake, with the first read.
    pub fn find_tls(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        for _ in 0..MAX_CAUSES {
            let error = cause?;
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(found.clone());
            }
            if let Some(tls) = error.downcast_ref::<rustls::Error>() {
                return Some(Self::of_tls(tls));
            }
            // An io::Error skips the error it wraps when asked for its source.
            let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            cause = match wrapped {
                Some(wrapped) => Some(wrapped),
                None => error.source(),
            };
        }
        None
    }

    fn of_tls(error: &rustls::Error) -> Self {
        use rustls::{AlertDescription as Alert, CertificateError as Wrong};
        let text = crate::terminal::harmless(&error.to_string());
        match error {
            rustls::Error::InvalidCertificate(Wrong::Expired | Wrong::ExpiredContext { .. }) => {
                Self::ServerCertificateTime("expired")
            }
            rustls::Error::InvalidCertificate(
                Wrong::NotValidYet | Wrong::NotValidYetContext { .. },
            ) => Self::ServerCertificateTime("not valid yet"),
            rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
                Self::ServerCertificate(text)
            }
            rustls::Error::AlertReceived(
                Alert::CertificateRequired
                | Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::AccessDenied
                | Alert::DecryptError,
            ) => Self::ClientCertificate(text),
            _ => Self::Tls(text),
        }
    }

    /// Sorts what a read or a handshake failed with. A server that is full, or that wants no connections of this
    /// address, closes them so: that is not its TLS.
    fn of_io(error: &io::Error) -> Self {
        if let Some(found) = Self::find_tls(error) {
            return found;
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                Self::Network("the server closed the connection before its first answer".into())
            }
            _ => Self::Tls(error.to_string()),
        }
    }
}

/// What a connector gives to tonic.
pub type Connection = TokioIo<Replay<TlsStream<TcpStream>>>;

/// Connects to one server, whatever URI it is asked for.
#[derive(Clone)]
pub struct Connector {
    host: String,
    port: u16,
    name: ServerName<'static>,
    tls: TlsConnector,
}

impl Connector {
    /// Makes a connector; nothing is connected yet.
    pub fn new(server: &ServerAddress, config: Arc<ClientConfig>) -> Result<Self, ClientError> {
        let name = server.tls_name().map_err(|_| ClientError::Bug("a checked host has no name"))?;
        let (host, port) = (server.host().to_owned(), server.port());
        Ok(Self { host, port, name, tls: TlsConnector::from(config) })
    }

    async fn open(self) -> Result<Connection, ConnectFailure> {
        let network = |error: io::Error| ConnectFailure::Network(error.to_string());
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(network)?;
        tcp.set_nodelay(true).map_err(network)?;
        let handshake = self.tls.connect(self.name, tcp).await;
        let mut stream = handshake.map_err(|error| ConnectFailure::of_io(&error))?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(ConnectFailure::NotHttp2);
        }
        let mut first = [0; FIRST_BYTES];
        let length = match tokio::time::timeout(FIRST_BYTES_WAIT, stream.read(&mut first)).await {
            Ok(Ok(0)) => return Err(ConnectFailure::of_io(&io::ErrorKind::UnexpectedEof.into())),
            Ok(Ok(length)) => length,
            Ok(Err(error)) => return Err(ConnectFailure::of_io(&error)),
            // A server that waits for us to speak first is as good.
            Err(_) => 0,
        };
        let first = Bytes::copy_from_slice(first.get(..length).unwrap_or_default());
        Ok(TokioIo::new(Replay::new(first, stream)))
    }
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector")
            .field("host", &self.host)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

impl Service<Uri> for Connector {
    type Response = Connection;
    type Error = ConnectFailure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().open())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tls_error_is_found_below_io_errors() {
        let refused = rustls::Error::AlertReceived(rustls::AlertDescription::UnknownCA);
        let error = io::Error::other(io::Error::other(refused));
        assert!(matches!(
            ConnectFailure::find(&error),
            ConnectFailure::ClientCertificate(text) if text.contains("UnknownCA")
        ));
    }

    #[test]
    fn an_untrusted_server_is_told_apart_from_broken_tls() {
        let untrusted = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        assert!(matches!(ConnectFailure::find(&untrusted), ConnectFailure::ServerCertificate(_)));
        let broken = rustls::Error::General("x".into());
        assert!(matches!(ConnectFailure::find(&broken), ConnectFailure::Tls(_)));
    }

    #[test]
    fn a_certificate_out_of_its_time_is_told_apart_from_another_cas() {
        use rustls::CertificateError::{Expired, NotValidYet};
        for (wrong, text) in [(Expired, "expired"), (NotValidYet, "not valid yet")] {
            let error = rustls::Error::InvalidCertificate(wrong);
            let found = ConnectFailure::find(&error);
            assert_eq!(found, ConnectFailure::ServerCertificateTime(text));
        }
    }

    #[test]
    fn a_server_that_hangs_up_is_no_failure_of_tls() {
        for kind in [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset] {
            let error = io::Error::new(kind, "see https://docs.rs/");
            assert_eq!(
                ConnectFailure::of_io(&error),
                ConnectFailure::Network(
                    "the server closed the connection before its first answer".into()
                )
            );
        }
        let odd = io::Error::other("odd");
        assert_eq!(ConnectFailure::of_io(&odd), ConnectFailure::Tls("odd".into()));
    }

    #[test]
    fn anything_else_is_the_network() {
        let error = io::Error::other("connection refused");
        assert_eq!(
            ConnectFailure::find(&error),
            ConnectFailure::Network("connection refused".into())
        );
    }
}
