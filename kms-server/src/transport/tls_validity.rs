//! When the certificates and revocation lists in force run out: for the operator's alarm, which decides nothing here.

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

/// The last moments of a TLS set, in seconds since 1970, UTC. What cannot be read has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Validity {
    /// Of the server's chain: of its certificate or of an intermediate one, whichever ends first.
    pub server: Option<i64>,
    /// Of the authorities of clients, whichever ends first.
    pub client_ca: Option<i64>,
    /// When the first revocation list must have been replaced. `None` also when there is none.
    pub crl_next_update: Option<i64>,
}

impl Validity {
    /// Reads them off the parts of a set.
    pub(super) fn of(
        chain: &[CertificateDer<'_>],
        authorities: &[CertificateDer<'_>],
        crls: &[CertificateRevocationListDer<'_>],
    ) -> Self {
        let next_updates = crls.iter().filter_map(|der| {
            let (_, list) = CertificateRevocationList::from_der(der).ok()?;
            list.next_update().map(|next| next.timestamp())
        });
        Self {
            server: earliest_end(chain),
            client_ca: earliest_end(authorities),
            crl_next_update: next_updates.min(),
        }
    }
}

fn earliest_end(certificates: &[CertificateDer<'_>]) -> Option<i64> {
    let ends = certificates.iter().filter_map(|der| {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        Some(certificate.validity().not_after.timestamp())
    });
    ends.min()
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa, KeyIdMethod,
        KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
    };

    use super::*;

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
        let [a, b, c] = [2040, 2035, 2045].map(|end| issuer(end).der().clone());
        let found = Validity::of(&[a.clone(), b], &[c, a], &[crl(2031), crl(2030)]);
        let expected = Validity {
            server: Some(start_of(2035)),
            client_ca: Some(start_of(2040)),
            crl_next_update: Some(start_of(2030)),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_not_there_or_cannot_be_read_has_no_end() {
        let rubbish = CertificateDer::from(vec![0; 3]);
        assert_eq!(Validity::of(&[rubbish], &[], &[]), Validity::default());
    }
}
