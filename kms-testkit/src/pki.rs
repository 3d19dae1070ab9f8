//! A certificate authority for tests, and every kind of certificate that a server must accept or refuse.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};

/// SPIFFE id of the usual client.
pub const CLIENT_SPIFFE_ID: &str = "spiffe://holdfast.test/client";
/// Years between which certificates are valid, unless their kind says otherwise.
const VALID_YEARS: (i32, i32) = (2020, 2090);

/// What is special about a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A server for `localhost`, 127.0.0.1 and `::1`.
    Server,
    /// Such a server, whose certificate ended in 2021.
    ExpiredServer,
    /// A client with this one SPIFFE id.
    Spiffe(&'static str),
    /// A client with this one DNS name.
    Dns(&'static str),
    /// A client whose certificate ended in 2021.
    Expired,
    /// A client whose certificate begins in 2080.
    NotYetValid,
    /// A client whose certificate allows server authentication only.
    WithoutClientUsage,
    /// A client with two URI SANs.
    TwoUris,
    /// A client without any SAN.
    WithoutSan,
}

/// A certificate with its key, as PEM files.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key, readable by the owner only.
    pub key: PathBuf,
    serial: u64,
}

impl Identity {
    /// Takes files that another authority wrote, such as dev mode's.
    pub const fn existing(certificate: PathBuf, key: PathBuf) -> Self {
        Self { certificate, key, serial: 0 }
    }
}

/// A certificate authority, which writes what it issues into a directory.
#[derive(Debug)]
pub struct Pki {
    directory: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    /// Makes an authority of its own in `directory`, which is created.
    pub fn create(directory: &Path) -> Self {
        std::fs::create_dir_all(directory).expect("create the directory of the authority");
        let mut params = CertificateParams::default();
        params.distinguished_name = name("holdfast test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("generate the authority's key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("sign the authority");
        std::fs::write(directory.join("ca.pem"), issuer.pem()).expect("write ca.pem");
        Self { directory: directory.to_owned(), issuer }
    }

    /// Returns the file with the authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// Issues a certificate of `kind`. Its files are named after `file_stem`.
    pub fn issue(&self, file_stem: &str, kind: &Kind) -> Identity {
        self.issue_serial(file_stem, kind, 1)
    }

    /// Like [`Pki::issue`], with a serial number, which a revocation list names.
    pub fn issue_serial(&self, file_stem: &str, kind: &Kind, serial: u64) -> Identity {
        let key = KeyPair::generate().expect("generate a key");
        let mut params = parameters(kind);
        params.serial_number = Some(SerialNumber::from(serial));
        let certificate = params.signed_by(&key, &self.issuer).expect("sign a certificate");
        let identity = Identity {
            certificate: self.directory.join(format!("{file_stem}.pem")),
            key: self.directory.join(format!("{file_stem}.key")),
            serial,
        };
        std::fs::write(&identity.certificate, certificate.pem()).expect("write a certificate");
        write_private(&identity.key, &key.serialize_pem());
        identity
    }

    /// Writes a revocation list of this authority and returns its file.
    pub fn revoke(&self, file_stem: &str, revoked: &[&Identity]) -> PathBuf {
        let revoked_certs = revoked.iter().map(|identity| RevokedCertParams {
            serial_number: SerialNumber::from(identity.serial),
            revocation_time: date_time_ymd(VALID_YEARS.0, 1, 2),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(VALID_YEARS.0, 1, 2),
            next_update: date_time_ymd(VALID_YEARS.1, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).expect("sign the revocation list");
        let path = self.directory.join(format!("{file_stem}.crl"));
        std::fs::write(&path, list.pem().expect("encode the list")).expect("write the list");
        path
    }

    /// Issues the usual pair: a server, and a client called [`CLIENT_SPIFFE_ID`].
    pub fn usual(&self) -> (Identity, Identity) {
        let server = self.issue_serial("server", &Kind::Server, 10);
        (server, self.issue_serial("client", &Kind::Spiffe(CLIENT_SPIFFE_ID), 11))
    }
}

fn parameters(kind: &Kind) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name("holdfast test");
    params.not_before = date_time_ymd(VALID_YEARS.0, 1, 1);
    params.not_after = date_time_ymd(VALID_YEARS.1, 1, 1);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.subject_alt_names = vec![uri(CLIENT_SPIFFE_ID)];
    match kind {
        Kind::Server | Kind::ExpiredServer => {
            if *kind == Kind::ExpiredServer {
                params.not_after = date_time_ymd(2021, 1, 1);
            }
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.subject_alt_names = vec![
                dns("localhost"),
                SanType::IpAddress(IpAddr::from([127, 0, 0, 1])),
                SanType::IpAddress(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1_u16])),
            ];
        }
        Kind::Spiffe(id) => params.subject_alt_names = vec![uri(id)],
        Kind::Dns(id) => params.subject_alt_names = vec![dns(id)],
        Kind::Expired => params.not_after = date_time_ymd(2021, 1, 1),
        Kind::NotYetValid => params.not_before = date_time_ymd(2080, 1, 1),
        Kind::WithoutClientUsage => {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        }
        Kind::TwoUris => {
            params.subject_alt_names.push(uri("spiffe://holdfast.test/second"));
        }
        Kind::WithoutSan => params.subject_alt_names.clear(),
    }
    params
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("URIs are ASCII"))
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().expect("DNS names are ASCII"))
}

fn write_private(path: &Path, text: &str) {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    let opened = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    opened.and_then(|mut file| file.write_all(text.as_bytes())).expect("write a private key");
}
