//! What is wrong with a set of TLS files: all of it, with the dates, before it is used.
//!
//! Loading a set stops at the first thing that does not do and looks at no date: rustls does not judge its own
//! certificate, nor the validity of a CA, and an expired revocation list shows only in refused clients.

use std::path::Path;

use kms_core::clock::Timestamp;
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

use super::tls::{
    Protocols, TlsError, TlsFiles, TlsStore, read_certificates, read_crls, read_private_key,
    read_roots,
};
use super::tls_validity::{first_end, first_next_update};

/// Returns each problem with the key of the configuration that names the file; `tls` when it is about several.
pub fn check(files: &TlsFiles, now: Timestamp) -> Vec<(&'static str, TlsError)> {
    let mut problems = Vec::new();
    if let Err(error) = read_certificates(&files.certificate)
        .and_then(|chain| first_end(&files.certificate, &chain))
    {
        problems.push(("tls.certificate", error));
    }
    if let Err(error) = read_private_key(&files.private_key) {
        problems.push(("tls.private_key", error));
    }
    if let Err(error) = read_roots(&files.client_ca) {
        problems.push(("tls.client_ca", error));
    }
    for path in &files.crls {
        if let Err(error) = read_crls(path).and_then(|lists| first_next_update(path, &lists)) {
            problems.push(("tls.crls", error));
        }
    }
    // Whether the parts fit together can be told only when each is good.
    if problems.is_empty()
        && let Err(error) = TlsStore::load(files.clone(), Protocols::Http2)
    {
        problems.push(("tls", error));
    }
    problems.extend(dates(files, now));
    problems
}

/// Returns what has run out at `now`, or is for later. A file that cannot be read is told by [`check`].
pub fn dates(files: &TlsFiles, now: Timestamp) -> Vec<(&'static str, TlsError)> {
    let mut problems = Vec::new();
    let certificates =
        [("tls.certificate", &files.certificate), ("tls.client_ca", &files.client_ca)];
    for (key, path) in certificates {
        problems.extend(certificate_dates(path, now).into_iter().map(|error| (key, error)));
    }
    for path in &files.crls {
        for der in read_crls(path).unwrap_or_default() {
            let Ok((_, list)) = CertificateRevocationList::from_der(&der) else { continue };
            let Some(ends) = list.next_update() else { continue };
            if now >= second(ends.timestamp()) {
                let (subject, since) = (list.issuer().to_string(), second(ends.timestamp()));
                let error = TlsError::Expired { path: path.clone(), subject, since };
                problems.push(("tls.crls", error));
            }
        }
    }
    problems
}

/// Returns which certificates of a file have run out at `now`, or are for later.
pub(super) fn certificate_dates(path: &Path, now: Timestamp) -> Vec<TlsError> {
    let mut problems = Vec::new();
    for der in read_certificates(path).unwrap_or_default() {
        let Ok((_, certificate)) = X509Certificate::from_der(&der) else { continue };
        let validity = certificate.validity();
        let (path, subject) = (path.to_owned(), certificate.subject().to_string());
        let (begins, ends) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        if now < second(begins) {
            problems.push(TlsError::NotYetValid { path, subject, from: second(begins) });
        } else if now >= second(ends.saturating_add(1)) {
            problems.push(TlsError::Expired { path, subject, since: second(ends) });
        }
    }
    problems
}

const fn second(unix: i64) -> Timestamp {
    Timestamp::from_unix_ms(unix.saturating_mul(1000))
}
