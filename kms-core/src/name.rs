//! Names: `tenants/{t}`, `tenants/{t}/keys/{k}`, `tenants/{t}/keys/{k}/versions/{n}`, `tenants/{t}/aliases/{a}`.
//!
//! Names are byte-exact: no case folding, no normalisation, ASCII only, so that two names are the same exactly when
//! their bytes are.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::KeyVersion;

/// The longest segment of a name, in bytes: that of a DNS label.
pub const MAX_SEGMENT_BYTES: usize = 63;

/// Why a text is not a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// The segments are not those of the kind of name asked for.
    #[error("must look like `{expected}`")]
    Shape {
        /// The pattern that was expected.
        expected: &'static str,
    },
    /// A segment is empty, too long, or has a character that is not allowed.
    #[error(
        "each part must be 1 to 63 of a-z, 0-9, `-`, `_`, `.`, starting with a letter or digit"
    )]
    Segment,
    /// The version is not a number from 1, written without leading zeros.
    #[error("the version must be a number from 1 to 4294967295")]
    Version,
}

/// One validated part of a name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Segment(Arc<str>);

impl Segment {
    fn new(text: &str) -> Result<Self, InvalidName> {
        let bytes = text.as_bytes();
        let starts_well =
            bytes.first().is_some_and(|first| first.is_ascii_lowercase() || first.is_ascii_digit());
        let allowed = |byte: &u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_' | b'.')
        };
        if bytes.len() > MAX_SEGMENT_BYTES || !starts_well || !bytes.iter().all(allowed) {
            return Err(InvalidName::Segment);
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for Segment {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        Self::new(&text)
    }
}

impl From<Segment> for String {
    fn from(segment: Segment) -> Self {
        (*segment.0).into()
    }
}

/// The name of a tenant, `tenants/{t}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TenantName(Segment);

impl TenantName {
    /// The pattern of the text form.
    pub const PATTERN: &'static str = "tenants/{tenant}";

    /// Takes the bare id, without `tenants/`.
    pub fn from_id(id: &str) -> Result<Self, InvalidName> {
        Segment::new(id).map(Self)
    }

    /// Returns the bare id, without `tenants/`.
    pub fn id(&self) -> &str {
        &self.0.0
    }

    /// Returns the bare id to be kept elsewhere, without a copy.
    pub fn shared_id(&self) -> &Arc<str> {
        &self.0.0
    }
}

impl FromStr for TenantName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match text.split_once('/') {
            Some(("tenants", id)) => Self::from_id(id),
            _ => Err(InvalidName::Shape { expected: Self::PATTERN }),
        }
    }
}

impl fmt::Display for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tenants/{}", self.0.0)
    }
}

impl fmt::Debug for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The name of a key, `tenants/{t}/keys/{k}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyName {
    tenant: TenantName,
    key: Segment,
}

impl KeyName {
    /// The pattern of the text form.
    pub const PATTERN: &'static str = "tenants/{tenant}/keys/{key}";

    /// Joins a tenant and the bare id of a key.
    pub fn new(tenant: TenantName, key_id: &str) -> Result<Self, InvalidName> {
        Ok(Self { tenant, key: Segment::new(key_id)? })
    }

    /// Returns the tenant.
    pub fn tenant(&self) -> &TenantName {
        &self.tenant
    }

    /// Returns the bare id of the key.
    pub fn key_id(&self) -> &str {
        &self.key.0
    }
}

impl FromStr for KeyName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("tenants"), Some(tenant), Some("keys"), Some(key), None) => {
                Self::new(TenantName::from_id(tenant)?, key)
            }
            _ => Err(InvalidName::Shape { expected: Self::PATTERN }),
        }
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/keys/{}", self.tenant, self.key.0)
    }
}

impl fmt::Debug for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The name of a version, `tenants/{t}/keys/{k}/versions/{n}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VersionName {
    key: KeyName,
    version: KeyVersion,
}

impl VersionName {
    /// The pattern of the text form.
    pub const PATTERN: &'static str = "tenants/{tenant}/keys/{key}/versions/{version}";

    /// Joins a key and a version.
    pub const fn new(key: KeyName, version: KeyVersion) -> Self {
        Self { key, version }
    }

    /// Returns the key.
    pub const fn key(&self) -> &KeyName {
        &self.key
    }

    /// Returns the version.
    pub const fn version(&self) -> KeyVersion {
        self.version
    }
}

impl FromStr for VersionName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let (key, number) =
            text.rsplit_once("/versions/").ok_or(InvalidName::Shape { expected: Self::PATTERN })?;
        let canonical =
            number.bytes().all(|byte| byte.is_ascii_digit()) && !number.starts_with('0');
        let version = number.parse().ok().filter(|_| canonical).and_then(KeyVersion::new);
        Ok(Self { key: key.parse()?, version: version.ok_or(InvalidName::Version)? })
    }
}

impl fmt::Display for VersionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/versions/{}", self.key, self.version)
    }
}

impl fmt::Debug for VersionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The name of a consumer of a key, `tenants/{t}/keys/{k}/consumers/{c}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ConsumerName {
    key: KeyName,
    consumer: Segment,
}

impl ConsumerName {
    /// The pattern of the text form.
    pub const PATTERN: &'static str = "tenants/{tenant}/keys/{key}/consumers/{consumer}";

    /// Joins a key and the bare id of a consumer.
    pub fn new(key: KeyName, consumer_id: &str) -> Result<Self, InvalidName> {
        Ok(Self { key, consumer: Segment::new(consumer_id)? })
    }

    /// Returns the key.
    pub const fn key(&self) -> &KeyName {
        &self.key
    }

    /// Returns the bare id of the consumer.
    pub fn consumer_id(&self) -> &str {
        &self.consumer.0
    }
}

impl FromStr for ConsumerName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let (key, consumer) = text
            .rsplit_once("/consumers/")
            .ok_or(InvalidName::Shape { expected: Self::PATTERN })?;
        Self::new(key.parse()?, consumer)
    }
}

impl fmt::Display for ConsumerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/consumers/{}", self.key, self.consumer.0)
    }
}

impl fmt::Debug for ConsumerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The name of an import job, `tenants/{t}/keys/{k}/importJobs/{j}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ImportJobName {
    key: KeyName,
    job: Segment,
}

impl ImportJobName {
    /// The pattern of the text form.
    pub const PATTERN: &'static str = "tenants/{tenant}/keys/{key}/importJobs/{job}";

    /// Joins a key and the bare id of a job.
    pub fn new(key: KeyName, job_id: &str) -> Result<Self, InvalidName> {
        Ok(Self { key, job: Segment::new(job_id)? })
    }

    /// Returns the key.
    pub const fn key(&self) -> &KeyName {
        &self.key
    }

    /// Returns the bare id of the job.
    pub fn job_id(&self) -> &str {
        &self.job.0
    }
}

impl FromStr for ImportJobName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let (key, job) = text
            .rsplit_once("/importJobs/")
            .ok_or(InvalidName::Shape { expected: Self::PATTERN })?;
        Self::new(key.parse()?, job)
    }
}

impl fmt::Display for ImportJobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/importJobs/{}", self.key, self.job.0)
    }
}

impl fmt::Debug for ImportJobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The name of an alias, `tenants/{t}/aliases/{a}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AliasName {
    tenant: TenantName,
    alias: Segment,
}

impl AliasName {
    /// The pattern of the text form.
    pub const PATTERN: &'static str = "tenants/{tenant}/aliases/{alias}";

    /// Joins a tenant and the bare id of an alias.
    pub fn new(tenant: TenantName, alias_id: &str) -> Result<Self, InvalidName> {
        Ok(Self { tenant, alias: Segment::new(alias_id)? })
    }

    /// Returns the tenant.
    pub const fn tenant(&self) -> &TenantName {
        &self.tenant
    }

    /// Returns the bare id of the alias.
    pub fn alias_id(&self) -> &str {
        &self.alias.0
    }
}

impl FromStr for AliasName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("tenants"), Some(tenant), Some("aliases"), Some(alias), None) => {
                Self::new(TenantName::from_id(tenant)?, alias)
            }
            _ => Err(InvalidName::Shape { expected: Self::PATTERN }),
        }
    }
}

impl fmt::Display for AliasName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/aliases/{}", self.tenant, self.alias.0)
    }
}

impl fmt::Debug for AliasName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Returns whether a text is meant as the name of an alias, well formed or not.
fn is_of_alias(text: &str) -> bool {
    text.split('/').nth(2) == Some("aliases")
}

/// A key by its own name, or through an alias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyOrAlias {
    /// The key itself.
    Key(KeyName),
    /// The key that an alias points to when it is used.
    Alias(AliasName),
}

impl FromStr for KeyOrAlias {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if is_of_alias(text) { text.parse().map(Self::Alias) } else { text.parse().map(Self::Key) }
    }
}

impl fmt::Display for KeyOrAlias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(name) => name.fmt(f),
            Self::Alias(name) => name.fmt(f),
        }
    }
}

/// What a caller may name when protecting: a key, one version of it, or an alias. There is no version behind an alias: which
/// key has that version may change between two calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySelector {
    /// The primary of a key.
    Key(KeyName),
    /// A pinned version.
    Version(VersionName),
    /// The primary of the key that an alias points to.
    Alias(AliasName),
}

impl From<KeyOrAlias> for KeySelector {
    fn from(named: KeyOrAlias) -> Self {
        match named {
            KeyOrAlias::Key(name) => Self::Key(name),
            KeyOrAlias::Alias(name) => Self::Alias(name),
        }
    }
}

impl FromStr for KeySelector {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.contains("/versions/") && !is_of_alias(text) {
            return text.parse().map(Self::Version);
        }
        text.parse::<KeyOrAlias>().map(Into::into)
    }
}

impl fmt::Display for KeySelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(name) => name.fmt(f),
            Self::Version(name) => name.fmt(f),
            Self::Alias(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_as_they_are_written() {
        let name: VersionName = "tenants/t1/keys/db-1/versions/7".parse().unwrap();
        assert_eq!(name.to_string(), "tenants/t1/keys/db-1/versions/7");
        assert_eq!(name.key().tenant().to_string(), "tenants/t1");
        assert_eq!(name.version().get(), 7);
    }

    #[test]
    fn a_consumer_reads_back_and_is_nothing_else() {
        let text = "tenants/t1/keys/db-1/consumers/backup.nightly";
        let name: ConsumerName = text.parse().unwrap();
        assert_eq!((name.to_string().as_str(), name.consumer_id()), (text, "backup.nightly"));
        for wrong in ["tenants/t1/keys/db-1", "tenants/t1/keys/db-1/consumers/", "consumers/a"] {
            assert!(wrong.parse::<ConsumerName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_import_job_reads_back_and_is_nothing_else() {
        let text = "tenants/t1/keys/db-1/importJobs/00ff";
        let name: ImportJobName = text.parse().unwrap();
        assert_eq!((name.to_string().as_str(), name.job_id()), (text, "00ff"));
        for wrong in ["tenants/t1/keys/db-1", "tenants/t1/keys/db-1/importJobs/", "importJobs/a"] {
            assert!(wrong.parse::<ImportJobName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_alias_reads_back_and_has_no_versions() {
        let text = "tenants/t1/aliases/payments";
        let name: AliasName = text.parse().unwrap();
        assert_eq!((name.to_string().as_str(), name.alias_id()), (text, "payments"));
        assert_eq!(text.parse(), Ok(KeyOrAlias::Alias(name.clone())));
        assert_eq!(text.parse(), Ok(KeySelector::Alias(name)));
        for wrong in ["tenants/t1/aliases/", "tenants/t1/aliases/A", "tenants/t1/aliases/a/b"] {
            assert!(wrong.parse::<KeySelector>().is_err(), "{wrong}");
        }
        assert!("tenants/t1/aliases/a/versions/1".parse::<KeySelector>().is_err());
        assert!("tenants/t1/aliases/a".parse::<KeyName>().is_err());
    }

    #[test]
    fn a_selector_is_a_key_or_one_version_of_it() {
        for text in ["tenants/t1/keys/a", "tenants/t1/keys/a/versions/7", "tenants/t1/aliases/a"] {
            assert_eq!(text.parse::<KeySelector>().unwrap().to_string(), text);
        }
        assert!(matches!("tenants/t1/keys/aliases".parse(), Ok(KeySelector::Key(_))));
    }

    #[test]
    fn a_segment_of_63_bytes_is_accepted_and_64_refused() {
        assert!(TenantName::from_id(&"a".repeat(63)).is_ok());
        assert_eq!(TenantName::from_id(&"a".repeat(64)), Err(InvalidName::Segment));
    }

    #[test]
    fn odd_characters_dots_and_confusables_are_refused() {
        for id in ["", ".", "..", "-a", "A", "a b", "a/b", "\u{430}", "a%2e", "a\n", "*", "_a"] {
            assert_eq!(TenantName::from_id(id), Err(InvalidName::Segment), "{id:?}");
        }
        for text in ["tenants/a/keys/b/", "tenants/a//keys/b", "/tenants/a/keys/b", "keys/b", ""] {
            assert!(text.parse::<KeyName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn versions_have_one_text_form() {
        for number in ["0", "01", "+1", "-1", "4294967296", "", "1 "] {
            let text = format!("tenants/a/keys/b/versions/{number}");
            assert_eq!(text.parse::<VersionName>(), Err(InvalidName::Version), "{number:?}");
        }
    }
}
