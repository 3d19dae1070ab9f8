//! TLS 1.3 with client certificates, and its replacement while the server runs.
//!
//! Responsible for reading certificate, key, CA and CRL files into one consistent set, and for swapping sets. A set that
//! does not fit together never replaces one that does. There are no session tickets: each connection proves its key.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use kms_core::clock::Timestamp;
use rustls::crypto::aws_lc_rs;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};

use super::tls_validity::{Validity, first_end, first_next_update};

/// The largest certificate, key, CA or CRL file: a CRL of some 100,000 entries.
pub const MAX_TLS_FILE_BYTES: u64 = 8 * 1024 * 1024;
/// Permission bits that a private key may not have when it belongs to the server's own account.
const OTHERS_MASK: u32 = 0o077;
/// The same when it belongs to another account, root as a rule, which lets the server read it through a group.
const FOREIGN_MASK: u32 = 0o037;

/// Where the parts of a TLS set are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM chain of the server, leaf first.
    pub certificate: PathBuf,
    /// PEM private key of the leaf.
    pub private_key: PathBuf,
    /// PEM certificates of the CAs that issue client certificates.
    pub client_ca: PathBuf,
    /// PEM revocation lists. When there is one, every certificate of a client's chain must be covered by a current one.
    pub crls: Vec<PathBuf>,
}

/// Why a TLS set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// A file is larger than [`MAX_TLS_FILE_BYTES`].
    #[error("{path} is larger than 8 MiB")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Others may use the private key.
    #[error(
        "{path} is open to its group or others; run `chmod 0600` on it, or `chmod 0640` where it belongs to another account"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// A file does not hold what it should.
    #[error("{path} has no valid {expected}: {detail}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// Why it does not.
        detail: String,
    },
    /// The private key is that of another certificate.
    #[error("{key} is not the key of the first certificate in {certificate}")]
    KeyMismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// A certificate or revocation list has run out. Told by the check of a configuration only.
    #[error("{path}: `{subject}` expired at {since}; put a current one in its place")]
    Expired {
        /// The file.
        path: PathBuf,
        /// Whom the certificate names; of a revocation list, its issuer.
        subject: String,
        /// The last second of its validity.
        since: Timestamp,
    },
    /// A certificate is for later, or the clock is slow. Told by the check of a configuration only.
    #[error("{path}: `{subject}` is valid from {from} only; wait, or set the clock right")]
    NotYetValid {
        /// The file.
        path: PathBuf,
        /// Whom the certificate names.
        subject: String,
        /// The first second of its validity.
        from: Timestamp,
    },
    /// Certificate and key do not fit, or a CA or CRL cannot be used.
    #[error("{part} cannot be used: {detail}")]
    Unusable {
        /// Which part.
        part: &'static str,
        /// Why.
        detail: String,
    },
}

/// Which application protocols a listener offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocols {
    /// gRPC only.
    Http2,
    /// gRPC, and HTTP/1.1 for probes and scrapers.
    Http1AndHttp2,
}

impl Protocols {
    fn alpn(self) -> Vec<Vec<u8>> {
        match self {
            Self::Http2 => vec![b"h2".to_vec()],
            Self::Http1AndHttp2 => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        }
    }
}

/// One consistent set: what new connections use, and what old ones are verified against again.
#[derive(Debug)]
pub struct TlsSet {
    config: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
    validity: Validity,
    epoch: u64,
}

impl TlsSet {
    /// Returns the configuration of new connections.
    pub fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }

    /// Returns the number of this set; every reload adds one.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns when the parts of this set run out.
    pub const fn validity(&self) -> Validity {
        self.validity
    }

    /// Verifies a client's chain, leaf first, against this set's CAs and CRLs.
    pub fn verify_client(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> bool {
        match chain.split_first() {
            Some((leaf, rest)) => self.verifier.verify_client_cert(leaf, rest, now).is_ok(),
            None => false,
        }
    }
}

/// The set in force, and how to read the next one.
#[derive(Debug)]
pub struct TlsStore {
    files: TlsFiles,
    protocols: Protocols,
    current: ArcSwap<TlsSet>,
}

impl TlsStore {
    /// Reads the first set.
    ///
    /// # Errors
    /// Says which file does not do, and why.
    pub fn load(files: TlsFiles, protocols: Protocols) -> Result<Self, TlsError> {
        let first = read_set(&files, protocols, 0)?;
        Ok(Self { files, protocols, current: ArcSwap::from_pointee(first) })
    }

    /// Reads the files again. When they do not do, the set in force stays.
    ///
    /// # Errors
    /// Says which file does not do, and why.
    pub fn reload(&self) -> Result<(), TlsError> {
        let epoch = self.current.load().epoch.saturating_add(1);
        self.current.store(Arc::new(read_set(&self.files, self.protocols, epoch)?));
        Ok(())
    }

    /// Returns the set in force.
    pub fn current(&self) -> Arc<TlsSet> {
        self.current.load_full()
    }

    /// Returns the number of the set in force, without touching its reference count.
    pub fn epoch(&self) -> u64 {
        self.current.load().epoch
    }
}

fn read_set(files: &TlsFiles, protocols: Protocols, epoch: u64) -> Result<TlsSet, TlsError> {
    let chain = read_certificates(&files.certificate)?;
    let key = read_private_key(&files.private_key)?;
    let authorities = read_certificates(&files.client_ca)?;
    let roots = roots_of(&files.client_ca, &authorities)?;
    let mut validity = Validity {
        server: first_end(&files.certificate, &chain)?,
        client_ca: first_end(&files.client_ca, &authorities)?,
        crl_next_update: None,
    };
    let mut crls = Vec::new();
    for path in &files.crls {
        let lists = read_crls(path)?;
        let next = first_next_update(path, &lists)?;
        validity.crl_next_update = validity.crl_next_update.into_iter().chain(next).min();
        crls.extend(lists);
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let unusable = |part: &'static str| {
        move |error: &dyn std::fmt::Display| TlsError::Unusable { part, detail: error.to_string() }
    };
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .with_crls(crls)
            .enforce_revocation_expiration()
            .build()
            .map_err(|error| unusable("client CA or CRL")(&error))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unusable("TLS 1.3")(&error))?
        .with_client_cert_verifier(Arc::clone(&verifier))
        .with_single_cert(chain, key)
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch {
                certificate: files.certificate.clone(),
                key: files.private_key.clone(),
            },
            other => unusable("certificate with private key")(&other),
        })?;
    config.alpn_protocols = protocols.alpn();
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(TlsSet { config: Arc::new(config), verifier, validity, epoch })
}

pub(super) fn read_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    roots_of(path, &read_certificates(path)?)
}

fn roots_of(
    path: &Path,
    authorities: &[CertificateDer<'static>],
) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in authorities {
        roots.add(certificate.clone()).map_err(|error| TlsError::Content {
            path: path.to_owned(),
            expected: "CA certificate",
            detail: error.to_string(),
        })?;
    }
    Ok(roots)
}

pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    read_all(path, "certificate", |pem| CertificateDer::pem_slice_iter(pem).collect())
}

pub(super) fn read_crls(
    path: &Path,
) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    read_all(path, "revocation list", |pem| {
        CertificateRevocationListDer::pem_slice_iter(pem).collect()
    })
}

pub(super) fn read_private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let unreadable = |cause| TlsError::Unreadable { path: path.to_owned(), cause };
    let metadata = fs::metadata(path).map_err(unreadable)?;
    let own = metadata.uid() == rustix::process::geteuid().as_raw();
    if is_exposed(metadata.mode(), own) {
        return Err(TlsError::Exposed { path: path.to_owned() });
    }
    let pem = zeroize::Zeroizing::new(read_bounded(path)?);
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| TlsError::Content {
        path: path.to_owned(),
        expected: "private key",
        detail: error.to_string(),
    })
}

/// As PostgreSQL judges its key: a group may read one that the server does not own, as it could not read it otherwise.
const fn is_exposed(mode: u32, own: bool) -> bool {
    mode & if own { OTHERS_MASK } else { FOREIGN_MASK } != 0
}

fn read_all<T>(
    path: &Path,
    expected: &'static str,
    parse: impl Fn(&[u8]) -> Result<Vec<T>, rustls_pki_types::pem::Error>,
) -> Result<Vec<T>, TlsError> {
    let content = |detail: String| TlsError::Content { path: path.to_owned(), expected, detail };
    let items = parse(&read_bounded(path)?).map_err(|error| content(error.to_string()))?;
    if items.is_empty() {
        return Err(content("there is none in it".to_owned()));
    }
    Ok(items)
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |cause| TlsError::Unreadable { path: path.to_owned(), cause };
    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(MAX_TLS_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_TLS_FILE_BYTES {
        return Err(TlsError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::is_exposed;

    #[test]
    fn a_group_may_read_a_private_key_of_another_account_and_nothing_more() {
        for (mode, exposed, exposed_foreign) in [
            (0o100_600, false, false),
            (0o100_400, false, false),
            (0o100_640, true, false),
            (0o100_440, true, false),
            (0o100_660, true, true),
            (0o100_650, true, true),
            (0o100_604, true, true),
            (0o100_602, true, true),
            (0o100_601, true, true),
        ] {
            assert_eq!(is_exposed(mode, true), exposed, "{mode:o}");
            assert_eq!(is_exposed(mode, false), exposed_foreign, "{mode:o}");
        }
    }
}
