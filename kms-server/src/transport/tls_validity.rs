//! When the certificates and revocation lists in force run out: for the operator's alarm, which decides nothing here.

use std::path::Path;

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

use super::tls::TlsError;

/// The last moments of a TLS set, in seconds since 1970, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Validity {
    /// Of the server's chain: of its certificate or of an intermediate one, whichever ends first.
    pub server: Option<i64>,
    /// Of the authorities of clients, whichever ends first.
    pub client_ca: Option<i64>,
    /// When the first revocation list must have been replaced. `None` only when there is none.
    pub crl_next_update: Option<i64>,
}

/// Returns when the first of a file's certificates ends.
///
/// # Errors
/// [`TlsError::Content`] when one cannot be read: its end would be missing in the alarm.
pub(super) fn first_end(
    path: &Path,
    certificates: &[CertificateDer<'_>],
) -> Result<Option<i64>, TlsError> {
    let ends = certificates.iter().map(|der| {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| content(path, "certificate", error.to_string()))?;
        Ok(certificate.validity().not_after.timestamp())
    });
    first(ends)
}

/// Returns when the first of a file's revocation lists must have been replaced.
///
/// # Errors
/// [`TlsError::Content`] when one cannot be read, or does not say when.
pub(super) fn first_next_update(
    path: &Path,
    lists: &[CertificateRevocationListDer<'_>],
) -> Result<Option<i64>, TlsError> {
    let updates = lists.iter().map(|der| {
        let unusable = |detail| content(path, "revocation list", detail);
        let (_, list) = CertificateRevocationList::from_der(der)
            .map_err(|error| unusable(error.to_string()))?;
        match list.next_update() {
            Some(next) => Ok(next.timestamp()),
            // Rustls would refuse it too, but would not say which file, nor why.
            None => Err(unusable("it has no nextUpdate, which RFC 5280 requires".to_owned())),
        }
    });
    first(updates)
}

fn first(moments: impl Iterator<Item = Result<i64, TlsError>>) -> Result<Option<i64>, TlsError> {
    let moments: Vec<i64> = moments.collect::<Result<_, _>>()?;
    Ok(moments.into_iter().min())
}

fn content(path: &Path, expected: &'static str, detail: String) -> TlsError {
    TlsError::Content { path: path.to_owned(), expected, detail }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa, KeyIdMethod,
        KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
    };

    use kms_testkit::pki::Pki;

    use super::*;
    use crate::transport::{Protocols, TlsFiles, TlsStore};

    fn issuer(end: i32) -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::CrlSign];
        params.not_after = date_time_ymd(end, 1, 1);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn crl(next: i32) -> CertificateRevocationListDer<'static> {
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(next, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&issuer(2050)).unwrap().into()
    }

    fn start_of(year: i32) -> i64 {
        date_time_ymd(year, 1, 1).unix_timestamp()
    }

    #[test]
    fn the_first_end_of_each_kind_counts() {
        let certificates = [2040, 2035, 2045].map(|end| issuer(end).der().clone());
        let path = Path::new("any");
        assert_eq!(first_end(path, &certificates).unwrap(), Some(start_of(2035)));
        let lists = [crl(2031), crl(2030)];
        assert_eq!(first_next_update(path, &lists).unwrap(), Some(start_of(2030)));
        assert_eq!(first_next_update(path, &[]).unwrap(), None);
    }

    fn pem(label: &str, der: &[u8]) -> String {
        let text = data_encoding::BASE64.encode(der);
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    }

    /// Splits a DER value into its content and what follows it.
    fn opened(der: &[u8]) -> (&[u8], &[u8]) {
        let (start, length) = match der[1] {
            0x82 => (4, usize::from(der[2]) << 8 | usize::from(der[3])),
            0x81 => (3, usize::from(der[2])),
            short => (2, usize::from(short)),
        };
        der[start..].split_at(length)
    }

    fn sequence(content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        let head: &[u8] = match length {
            [0, short @ ..0x80] => &[0x30, short],
            [0, long] => &[0x30, 0x81, long],
            [high, low] => &[0x30, 0x82, high, low],
        };
        [head, content].concat()
    }

    /// No issuer of ours makes such a list, so its moment is cut out; no signature is verified when a list is loaded.
    fn crl_without_next_update() -> Vec<u8> {
        let list = crl(2031);
        let (content, _) = opened(&list);
        let (to_be_signed, signature) = opened(content);
        let next_update = b"\x17\x0d310101000000Z";
        let at = to_be_signed.windows(next_update.len()).position(|part| part == next_update);
        let mut to_be_signed = to_be_signed.to_vec();
        to_be_signed.drain(at.unwrap()..at.unwrap() + next_update.len());
        sequence(&[sequence(&to_be_signed), signature.to_vec()].concat())
    }

    #[test]
    fn what_does_not_tell_its_end_is_refused_and_the_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::create(directory.path());
        let (server, _) = pki.usual();
        let files = TlsFiles {
            certificate: server.certificate.clone(),
            private_key: server.key,
            client_ca: pki.ca(),
            crls: vec![pki.revoke("list", &[])],
        };
        let load = || TlsStore::load(files.clone(), Protocols::Http2);
        assert!(load().unwrap().current().validity().crl_next_update.is_some());

        let whole = std::fs::read_to_string(&files.crls[0]).unwrap();
        let second = pem("X509 CRL", &crl_without_next_update());
        std::fs::write(&files.crls[0], format!("{whole}{second}")).unwrap();
        let told = load().unwrap_err().to_string();
        assert!(told.contains("list.crl") && told.contains("no nextUpdate"), "{told}");
        std::fs::write(&files.crls[0], whole).unwrap();

        // Rustls looks at the first of a chain only.
        let leaf = std::fs::read_to_string(&server.certificate).unwrap();
        let chain = format!("{leaf}{}", pem("CERTIFICATE", &[0; 3]));
        std::fs::write(&server.certificate, chain).unwrap();
        let told = load().unwrap_err().to_string();
        assert!(told.contains("server.pem has no valid certificate"), "{told}");
    }
}
