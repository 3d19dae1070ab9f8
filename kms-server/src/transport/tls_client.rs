//! TLS of connections that this server makes: who the other side must be, and who this one is.
//!
//! TLS 1.3 only, with the CAs that are named and no others: those of the system are for the web.

use std::path::PathBuf;
use std::sync::Arc;

use kms_core::clock::Timestamp;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;

use super::tls::{TlsError, read_certificates, read_private_key, read_roots};
use super::tls_check::certificate_dates;

/// Where the parts of a client's TLS set are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTlsFiles {
    /// PEM certificates of the CAs that issue the server's.
    pub server_ca: PathBuf,
    /// PEM chain of the client, leaf first, and its PEM private key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// What a problem is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The CAs of the server.
    ServerCa,
    /// The client's certificate.
    Certificate,
    /// The client's private key, or that the two belong together.
    PrivateKey,
}

/// Returns everything that is wrong with the files at `now`.
pub fn check(files: &ClientTlsFiles, now: Timestamp) -> Vec<(Part, TlsError)> {
    let mut problems = Vec::new();
    if let Err(error) = read_roots(&files.server_ca) {
        problems.push((Part::ServerCa, error));
    }
    if let Some((certificate, private_key)) = &files.identity {
        if let Err(error) = read_certificates(certificate) {
            problems.push((Part::Certificate, error));
        }
        if let Err(error) = read_private_key(private_key) {
            problems.push((Part::PrivateKey, error));
        }
    }
    // Whether the parts fit together can be told only when each is good.
    if problems.is_empty()
        && let Err(error) = load(files)
    {
        problems.push((Part::PrivateKey, error));
    }
    problems.extend(
        certificate_dates(&files.server_ca, now).into_iter().map(|error| (Part::ServerCa, error)),
    );
    if let Some((certificate, _)) = &files.identity {
        let dates = certificate_dates(certificate, now);
        problems.extend(dates.into_iter().map(|error| (Part::Certificate, error)));
    }
    problems
}

/// Reads the files.
///
/// # Errors
/// Says which file does not do, and why.
pub fn load(files: &ClientTlsFiles) -> Result<Arc<ClientConfig>, TlsError> {
    let roots = read_roots(&files.server_ca)?;
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| TlsError::Unusable { part: "TLS 1.3", detail: error.to_string() })?
        .with_root_certificates(roots);
    let mut config = match &files.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder
            .with_client_auth_cert(read_certificates(certificate)?, read_private_key(key)?)
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => {
                    TlsError::KeyMismatch { certificate: certificate.clone(), key: key.clone() }
                }
                other => TlsError::Unusable {
                    part: "certificate with private key",
                    detail: other.to_string(),
                },
            })?,
    };
    // Each connection proves its key, as those that clients make do.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use kms_testkit::pki::{Kind, Pki};

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix_ms(1_700_000_000_000);

    #[test]
    fn good_files_are_read_and_each_bad_one_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::create(directory.path());
        let client = pki.issue("client", &Kind::Dns("client"));
        let other = pki.issue("other", &Kind::Dns("other"));
        let of = |ca: PathBuf, certificate: &PathBuf, key: &PathBuf| ClientTlsFiles {
            server_ca: ca,
            identity: Some((certificate.clone(), key.clone())),
        };
        let good = of(pki.ca(), &client.certificate, &client.key);
        assert!(check(&good, NOW).is_empty());
        assert!(load(&good).unwrap().client_auth_cert_resolver.has_certs());
        let alone = ClientTlsFiles { identity: None, ..good.clone() };
        assert!(check(&alone, NOW).is_empty() && load(&alone).is_ok());

        let parts = |files: &ClientTlsFiles| -> Vec<Part> {
            check(files, NOW).into_iter().map(|(part, _)| part).collect()
        };
        let nowhere = PathBuf::from("/nowhere");
        let bad = of(nowhere.clone(), &nowhere, &nowhere);
        assert_eq!(parts(&bad), [Part::ServerCa, Part::Certificate, Part::PrivateKey]);
        let mixed = of(pki.ca(), &client.certificate, &other.key);
        assert!(matches!(
            check(&mixed, NOW)[..],
            [(Part::PrivateKey, TlsError::KeyMismatch { .. })]
        ));
        let expired = pki.issue("expired", &Kind::Expired);
        let late = of(pki.ca(), &expired.certificate, &expired.key);
        assert!(matches!(check(&late, NOW)[..], [(Part::Certificate, TlsError::Expired { .. })]));
    }
}
