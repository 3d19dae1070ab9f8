//! The caller's certificate, private key and CAs, from PEM files.
//!
//! A private key that others than its owner may read is refused: the check is on the opened file, so nothing can be
//! swapped in between.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

/// The longest PEM file that is read; a bundle of all public CAs is a fifth of it.
pub const MAX_PEM_BYTES: usize = 1024 * 1024;
/// Permission bits that a private key file may not have: anything for group and others.
pub const FORBIDDEN_KEY_MODE: u32 = 0o077;

/// Why a certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file cannot be read.
    #[error("cannot read `{}`: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        cause: std::io::Error,
    },
    /// The file is longer than [`MAX_PEM_BYTES`].
    #[error("`{}` is longer than 1 MiB", .0.display())]
    TooLong(PathBuf),
    /// Group or others may read the private key.
    #[error("`{}` is a private key that others may read (mode {mode:04o})", path.display())]
    KeyMode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// There is no usable PEM block in the file.
    #[error("`{}` holds no {what} in PEM form", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// Certificate and key do not make a usable pair.
    #[error("`{}` and its private key cannot be used: {cause}", path.display())]
    Pair {
        /// The certificate.
        path: PathBuf,
        /// What rustls says.
        cause: rustls::Error,
    },
}

/// Makes the TLS configuration: TLS 1.3 only, our CAs only, a client certificate always, no resumption.
///
/// The key's bytes are wiped here; rustls keeps its own copy while the connection lives.
pub fn tls_config(
    ca: &Path,
    cert: &Path,
    key: &Path,
) -> Result<Arc<ClientConfig>, CredentialsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        let unusable = |_| CredentialsError::Pem { path: ca.into(), what: "CA certificate" };
        roots.add(certificate).map_err(unusable)?;
    }
    let chain = certificates(cert)?;
    let key = private_key(key)?;
    let pair = |cause| CredentialsError::Pair { path: cert.into(), cause };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(pair)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(pair)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let pem = read_bounded(path, |_| Ok(()))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) | Err(_) => Err(CredentialsError::Pem { path: path.into(), what: "certificate" }),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, CredentialsError> {
    let pem = read_bounded(path, |mode| {
        if mode & FORBIDDEN_KEY_MODE == 0 {
            return Ok(());
        }
        Err(CredentialsError::KeyMode { path: path.into(), mode })
    })?;
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| CredentialsError::Pem { path: path.into(), what: "private key" })
}

fn read_bounded(
    path: &Path,
    check_mode: impl FnOnce(u32) -> Result<(), CredentialsError>,
) -> Result<Zeroizing<Vec<u8>>, CredentialsError> {
    let failed = |cause| CredentialsError::Read { path: path.into(), cause };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    check_mode(metadata.permissions().mode() & 0o7777)?;
    // Reserved whole, so that growing leaves no copy of a key behind in freed memory.
    let mut pem = Zeroizing::new(Vec::with_capacity(MAX_PEM_BYTES + 1));
    file.take(MAX_PEM_BYTES as u64 + 1).read_to_end(&mut pem).map_err(failed)?;
    if pem.len() > MAX_PEM_BYTES {
        return Err(CredentialsError::TooLong(path.into()));
    }
    Ok(pem)
}
