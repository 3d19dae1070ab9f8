//! A small certificate authority for dev mode and tests: P-256, ten years, no revocation.
//!
//! It must never be used in production: its key lies beside the certificates that it issues.

use std::net::IpAddr;

use kms_core::clock::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, string::Ia5String,
};
use zeroize::Zeroizing;

/// How long certificates are valid, in days: a dev directory should outlive its author's patience.
const VALIDITY_DAYS: i64 = 3650;
/// How far back validity starts, in days: clocks differ.
const BACKDATE_DAYS: i64 = 1;

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The generator refused.
    #[error("cannot make a certificate: {0}")]
    Generate(#[from] rcgen::Error),
    /// The clock shows a time that certificates cannot express.
    #[error("the clock shows an impossible time")]
    Clock,
}

/// A certificate with its private key, both in PEM.
#[derive(Clone)]
pub struct Credential {
    /// The certificate.
    pub certificate_pem: String,
    /// The private key; wiped on drop.
    pub private_key_pem: Zeroizing<String>,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credential(redacted)")
    }
}

/// The name that a leaf certificate carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeafName {
    /// A client with a SPIFFE id.
    Client {
        /// The id.
        spiffe_id: String,
    },
    /// A server, reached as `localhost` and by these addresses.
    Server {
        /// SPIFFE id, for the record.
        spiffe_id: String,
        /// The addresses.
        addresses: Vec<IpAddr>,
    },
}

/// A certificate authority.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    credential: Credential,
    now: Timestamp,
}

impl Authority {
    /// Creates an authority.
    pub fn create(name: &str, now: Timestamp) -> Result<Self, PkiError> {
        let mut params = dated(now)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        let credential = credential(certificate.pem(), &key);
        Ok(Self { issuer: Issuer::new(params, key), credential, now })
    }

    /// Returns certificate and key of the authority itself.
    pub const fn credential(&self) -> &Credential {
        &self.credential
    }

    /// Issues a certificate for a client or a server.
    pub fn issue(&self, name: &LeafName) -> Result<Credential, PkiError> {
        let mut params = dated(self.now)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let (common_name, purpose, names) = match name {
            LeafName::Client { spiffe_id } => {
                let names = vec![SanType::URI(Ia5String::try_from(spiffe_id.as_str())?)];
                ("holdfast client", ExtendedKeyUsagePurpose::ClientAuth, names)
            }
            LeafName::Server { spiffe_id, addresses } => {
                let mut names = vec![
                    SanType::URI(Ia5String::try_from(spiffe_id.as_str())?),
                    SanType::DnsName(Ia5String::try_from("localhost")?),
                ];
                names.extend(addresses.iter().copied().map(SanType::IpAddress));
                ("holdfast server", ExtendedKeyUsagePurpose::ServerAuth, names)
            }
        };
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![purpose];
        params.subject_alt_names = names;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(credential(certificate.pem(), &key))
    }
}

fn credential(certificate_pem: String, key: &KeyPair) -> Credential {
    Credential { certificate_pem, private_key_pem: Zeroizing::new(key.serialize_pem()) }
}

/// Returns empty parameters that are valid around `now`.
fn dated(now: Timestamp) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let (year, month, day) = date(now, -BACKDATE_DAYS)?;
    params.not_before = rcgen::date_time_ymd(year, month, day);
    let (year, month, day) = date(now, VALIDITY_DAYS)?;
    params.not_after = rcgen::date_time_ymd(year, month, day);
    Ok(params)
}

/// Returns year, month and day of the date `days` after `now`.
fn date(now: Timestamp, days: i64) -> Result<(i32, u8, u8), PkiError> {
    const DAY_MS: i64 = 86_400_000;
    let moment = now.as_unix_ms().saturating_add(days.saturating_mul(DAY_MS));
    let moment = jiff::Timestamp::from_millisecond(moment).map_err(|_| PkiError::Clock)?;
    let date = jiff::tz::TimeZone::UTC.to_datetime(moment).date();
    let part = |number: i8| u8::try_from(number).map_err(|_| PkiError::Clock);
    Ok((date.year().into(), part(date.month())?, part(date.day())?))
}
