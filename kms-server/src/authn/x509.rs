//! Who a client certificate names.
//!
//! The certificate is verified by TLS before it comes here; this file only reads the one name in it. A certificate that
//! names nobody, or two, names no one: there is no guessing.

use std::sync::Arc;

use kms_core::clock::Timestamp;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The longest SPIFFE id (SPIFFE-ID §2.3).
pub const MAX_SPIFFE_ID_BYTES: usize = 2048;
/// The longest trust domain (SPIFFE-ID §2.3).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;
/// The longest DNS name (RFC 1035 §2.3.4).
pub const MAX_DNS_NAME_BYTES: usize = 253;
/// The longest label of a DNS name (RFC 1035 §2.3.4).
pub const MAX_DNS_LABEL_BYTES: usize = 63;

/// Why a certificate names no principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoIdentity {
    /// The certificate cannot be parsed.
    #[error("the certificate cannot be parsed")]
    Malformed,
    /// There is neither a URI SAN nor a DNS SAN.
    #[error("the certificate has neither a URI SAN nor a DNS SAN")]
    NoName,
    /// There is more than one URI SAN, or there is none and more than one DNS SAN.
    #[error("the certificate has more than one name")]
    Ambiguous,
    /// The URI SAN is not a SPIFFE id with a path.
    #[error("the URI SAN is not a SPIFFE id")]
    InvalidSpiffeId,
    /// The DNS SAN is not a plain host name.
    #[error("the DNS SAN is not a plain host name")]
    InvalidDnsName,
}

/// What is read of a certificate, once a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateIdentity {
    /// The SPIFFE id or the DNS name in lower case.
    pub name: Result<Arc<str>, NoIdentity>,
    /// The last moment at which the certificate is valid.
    pub not_after: Timestamp,
}

/// Reads name and end of validity of a certificate in DER.
pub fn identify(der: &[u8]) -> CertificateIdentity {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => CertificateIdentity {
            name: name_of(&certificate),
            // Valid through the whole second that it names (RFC 5280 §4.1.2.5).
            not_after: Timestamp::from_unix_ms(
                certificate
                    .validity()
                    .not_after
                    .timestamp()
                    .saturating_mul(1000)
                    .saturating_add(999),
            ),
        },
        Err(_) => CertificateIdentity {
            name: Err(NoIdentity::Malformed),
            not_after: Timestamp::from_unix_ms(i64::MIN),
        },
    }
}

fn name_of(certificate: &X509Certificate<'_>) -> Result<Arc<str>, NoIdentity> {
    let extension = certificate.subject_alternative_name().map_err(|_| NoIdentity::Malformed)?;
    let names = match &extension {
        Some(extension) => extension.value.general_names.as_slice(),
        None => &[],
    };
    let uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    if let Some(uri) = at_most_one(uris)? {
        return if is_spiffe_id(uri) { Ok(uri.into()) } else { Err(NoIdentity::InvalidSpiffeId) };
    }
    let hosts = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(host) => Some(*host),
        _ => None,
    });
    let host = at_most_one(hosts)?.ok_or(NoIdentity::NoName)?.to_ascii_lowercase();
    if is_host_name(&host) { Ok(host.into()) } else { Err(NoIdentity::InvalidDnsName) }
}

fn at_most_one<'a>(
    mut names: impl Iterator<Item = &'a str>,
) -> Result<Option<&'a str>, NoIdentity> {
    let first = names.next();
    if names.next().is_some() { Err(NoIdentity::Ambiguous) } else { Ok(first) }
}

/// Checks a SPIFFE id with a path (SPIFFE-ID §2.1, §2.2): no port, query, fragment, escape or empty segment.
pub fn is_spiffe_id(uri: &str) -> bool {
    let Some((domain, path)) = uri.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/'))
    else {
        return false;
    };
    let domain_byte = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_')
    };
    let segment_byte =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let segment = |text: &str| !matches!(text, "" | "." | "..") && text.bytes().all(segment_byte);
    uri.len() <= MAX_SPIFFE_ID_BYTES
        && (1..=MAX_TRUST_DOMAIN_BYTES).contains(&domain.len())
        && domain.bytes().all(domain_byte)
        && path.split('/').all(segment)
}

/// Checks a host name in lower case: labels of letters, digits and inner hyphens; no wildcard, no trailing dot.
pub fn is_host_name(host: &str) -> bool {
    let byte = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let label = |text: &str| {
        (1..=MAX_DNS_LABEL_BYTES).contains(&text.len())
            && text.bytes().all(byte)
            && !text.starts_with('-')
            && !text.ends_with('-')
    };
    host.len() <= MAX_DNS_NAME_BYTES && host.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, CustomExtension, KeyPair, SanType};

    use super::*;

    fn certificate(names: Vec<SanType>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn name(names: Vec<SanType>) -> Result<Arc<str>, NoIdentity> {
        identify(&certificate(names)).name
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    fn dns(text: &str) -> SanType {
        SanType::DnsName(text.try_into().unwrap())
    }

    #[test]
    fn one_spiffe_id_names_the_principal() {
        assert_eq!(name(vec![uri("spiffe://td/a/b")]).as_deref(), Ok("spiffe://td/a/b"));
    }

    #[test]
    fn a_spiffe_id_goes_before_dns_names() {
        let names = vec![dns("a.example"), uri("spiffe://td/a"), dns("b.example")];
        assert_eq!(name(names).as_deref(), Ok("spiffe://td/a"));
    }

    #[test]
    fn one_dns_name_names_the_principal_in_lower_case() {
        assert_eq!(name(vec![dns("Host.Example")]).as_deref(), Ok("host.example"));
    }

    #[test]
    fn no_name_and_two_names_are_refused() {
        assert_eq!(name(vec![]), Err(NoIdentity::NoName));
        assert_eq!(
            name(vec![uri("spiffe://td/a"), uri("spiffe://td/b")]),
            Err(NoIdentity::Ambiguous)
        );
        assert_eq!(name(vec![dns("a.example"), dns("b.example")]), Err(NoIdentity::Ambiguous));
        let address = SanType::IpAddress("127.0.0.1".parse().unwrap());
        assert_eq!(name(vec![address]), Err(NoIdentity::NoName));
    }

    #[test]
    fn a_foreign_uri_is_refused_even_beside_a_dns_name() {
        let names = vec![uri("https://td/a"), dns("a.example")];
        assert_eq!(name(names), Err(NoIdentity::InvalidSpiffeId));
    }

    #[test]
    fn odd_spiffe_ids_are_refused() {
        let odd = [
            "spiffe://td",
            "spiffe://td/",
            "spiffe:///a",
            "spiffe://TD/a",
            "spiffe://td:1/a",
            "spiffe://td/a/",
            "spiffe://td//a",
            "spiffe://td/./a",
            "spiffe://td/../a",
            "spiffe://td/a?b",
            "spiffe://td/a#b",
            "spiffe://td/%61",
            "SPIFFE://td/a",
            "spiffe://u@td/a",
            "spiffe://td/a b",
            "",
        ];
        for text in odd {
            assert!(!is_spiffe_id(text), "{text:?}");
        }
        assert!(is_spiffe_id("spiffe://td_1.example-x/ns/A.b-c_d"));
    }

    #[test]
    fn spiffe_id_of_2048_bytes_is_accepted_and_2049_refused() {
        let id = |length: usize| format!("spiffe://td/{}", "a".repeat(length - 12));
        assert!(is_spiffe_id(&id(2048)));
        assert!(!is_spiffe_id(&id(2049)));
        let domain = |length: usize| format!("spiffe://{}/a", "d".repeat(length));
        assert!(is_spiffe_id(&domain(255)));
        assert!(!is_spiffe_id(&domain(256)));
    }

    #[test]
    fn odd_host_names_are_refused() {
        for text in ["", ".", "a.", ".a", "a..b", "*.a", "-a", "a-", "a_b", "a b", "\u{e4}"] {
            assert!(!is_host_name(text), "{text:?}");
        }
        assert!(is_host_name(&"a".repeat(63)));
        assert!(!is_host_name(&"a".repeat(64)));
        let long = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(61));
        assert!(is_host_name(&long));
        assert!(!is_host_name(&format!("{long}b")));
    }

    #[test]
    fn an_unreadable_extension_names_nobody() {
        let mut params = CertificateParams::default();
        let broken = CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![0x30, 0x05, 1]);
        params.custom_extensions = vec![broken];
        let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
        assert!(identify(&der).name.is_err());
        assert_eq!(identify(b"x").name, Err(NoIdentity::Malformed));
        assert_eq!(identify(b"x").not_after, Timestamp::from_unix_ms(i64::MIN));
    }

    #[test]
    fn the_last_valid_second_is_valid_to_its_end() {
        let mut params = CertificateParams::default();
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
        assert_eq!(identify(&der).not_after.to_string(), "2030-01-01T00:00:00.999Z");
    }
}
