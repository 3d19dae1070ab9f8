//! CryptoService: wrap, unwrap, rewrap, data keys, random bytes, and what an envelope says.

use std::collections::HashMap;

use bytes::Bytes;
use kms_core::context::EncryptionContext;
use kms_core::id::{KeyUid, KeyVersion};
use kms_core::name::{KeyName, KeyOrAlias, KeySelector, TenantName, VersionName};
use kms_core::secret::Plaintext;
use kms_proto::v1::crypto_service_client::CryptoServiceClient;
use kms_proto::v1::{
    DescribeCiphertextRequest, DescribeCiphertextResponse, GenerateDataKeyRequest,
    GenerateDataKeyResponse, GenerateRandomRequest, GenerateRandomResponse, RewrapRequest,
    RewrapResponse, UnwrapRequest, UnwrapResponse, WrapRequest, WrapResponse,
};
use tonic::transport::Channel;
use zeroize::Zeroize as _;

use super::{Client, ClientError};

/// A wrapped plaintext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrapped {
    /// The envelope.
    pub ciphertext: Vec<u8>,
    /// The version that protects it.
    pub key_version: VersionName,
}

/// An unwrapped plaintext.
#[derive(Debug, PartialEq, Eq)]
pub struct Unwrapped {
    /// The plaintext, wiped on drop.
    pub plaintext: Plaintext,
    /// The version that protected it.
    pub key_version: VersionName,
}

/// A re-protected envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrapped {
    /// The new envelope, or the given one when nothing had to change.
    pub ciphertext: Vec<u8>,
    /// The version that protects it now.
    pub key_version: VersionName,
    /// The version that protected it before.
    pub previous_key_version: VersionName,
    /// False when the envelope came back as it was.
    pub changed: bool,
}

/// A new data key.
#[derive(Debug, PartialEq, Eq)]
pub struct DataKey {
    /// The data key in the clear, when it was asked for; wiped on drop.
    pub plaintext: Option<Plaintext>,
    /// The wrapped copy.
    pub ciphertext: Vec<u8>,
    /// The version that wraps it.
    pub key_version: VersionName,
}

/// What the server says about an envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CiphertextDescription {
    /// The key.
    pub key_uid: KeyUid,
    /// The version.
    pub version: KeyVersion,
    /// The name of the version, when the key is known there and the caller may see it.
    pub key_version: Option<VersionName>,
    /// Length of the plaintext in bytes.
    pub plaintext_length_bytes: usize,
    /// True when rewrapping would change nothing now.
    pub current: bool,
}

impl Rewrapped {
    /// Reads the server's answer.
    pub(super) fn of(answer: RewrapResponse) -> Result<Self, ClientError> {
        let RewrapResponse { ciphertext, key_version, previous_key_version, changed } = answer;
        Ok(Self {
            ciphertext: ciphertext.into(),
            key_version: version(&key_version)?,
            previous_key_version: version(&previous_key_version)?,
            changed,
        })
    }
}

impl Client {
    pub(super) fn crypto(&self) -> CryptoServiceClient<Channel> {
        CryptoServiceClient::new(self.channel())
    }

    /// Wraps a plaintext under a key's primary, or under the version that is pinned; an alias stands for its key.
    pub async fn wrap(
        &self,
        key: &KeySelector,
        plaintext: &Plaintext,
        context: &EncryptionContext,
    ) -> Result<Wrapped, ClientError> {
        let request = WrapRequest {
            key: key.to_string(),
            plaintext: wiped_bytes(plaintext),
            context: pairs(context),
        };
        let send = |request| async { self.crypto().wrap(request).await };
        let WrapResponse { ciphertext, key_version } = self.call(request, send).await?;
        Ok(Wrapped { ciphertext: ciphertext.into(), key_version: version(&key_version)? })
    }

    /// Unwraps an envelope of this key.
    pub async fn unwrap(
        &self,
        key: &KeyName,
        ciphertext: &[u8],
        context: &EncryptionContext,
    ) -> Result<Unwrapped, ClientError> {
        let request = UnwrapRequest {
            key: key.to_string(),
            ciphertext: Bytes::copy_from_slice(ciphertext),
            context: pairs(context),
        };
        let send = |request| async { self.crypto().unwrap(request).await };
        let UnwrapResponse { plaintext, key_version } = self.call(request, send).await?;
        Ok(Unwrapped { plaintext: secret(plaintext), key_version: version(&key_version)? })
    }

    /// Re-protects an envelope under its key's current primary.
    pub async fn rewrap(
        &self,
        key: &KeyName,
        ciphertext: &[u8],
        context: &EncryptionContext,
    ) -> Result<Rewrapped, ClientError> {
        let request = RewrapRequest {
            key: key.to_string(),
            ciphertext: Bytes::copy_from_slice(ciphertext),
            context: pairs(context),
        };
        let send = |request| async { self.crypto().rewrap(request).await };
        Rewrapped::of(self.call(request, send).await?)
    }

    /// Draws a data key in the HSM; `with_plaintext` says whether it comes in the clear too.
    pub async fn generate_data_key(
        &self,
        key: &KeyOrAlias,
        length_bytes: u32,
        context: &EncryptionContext,
        with_plaintext: bool,
    ) -> Result<DataKey, ClientError> {
        let request = GenerateDataKeyRequest {
            key: key.to_string(),
            length_bytes,
            context: pairs(context),
            without_plaintext: !with_plaintext,
        };
        let send = |request| async { self.crypto().generate_data_key(request).await };
        let GenerateDataKeyResponse { plaintext, ciphertext, key_version } =
            self.call(request, send).await?;
        if plaintext.is_empty() == with_plaintext {
            return Err(ClientError::Answer("the data key came in another form than asked for"));
        }
        Ok(DataKey {
            plaintext: with_plaintext.then(|| secret(plaintext)),
            ciphertext: ciphertext.into(),
            key_version: version(&key_version)?,
        })
    }

    /// Draws random bytes in the HSM.
    pub async fn generate_random(
        &self,
        tenant: &TenantName,
        length_bytes: u32,
    ) -> Result<Plaintext, ClientError> {
        let request = GenerateRandomRequest { length_bytes, tenant: tenant.to_string() };
        let send = |request| async { self.crypto().generate_random(request).await };
        let GenerateRandomResponse { random } = self.call(request, send).await?;
        if u32::try_from(random.len()) != Ok(length_bytes) {
            return Err(ClientError::Answer("not as many random bytes as asked for"));
        }
        Ok(secret(random))
    }

    /// Asks which key and version an envelope names.
    pub async fn describe_ciphertext(
        &self,
        ciphertext: &[u8],
    ) -> Result<CiphertextDescription, ClientError> {
        let request = DescribeCiphertextRequest { ciphertext: Bytes::copy_from_slice(ciphertext) };
        let send = |request| async { self.crypto().describe_ciphertext(request).await };
        let DescribeCiphertextResponse {
            format: _,
            suite: _,
            key_uid,
            version: number,
            key_version,
            plaintext_length_bytes,
            current,
        } = self.call(request, send).await?;
        Ok(CiphertextDescription {
            key_uid: key_uid.parse().map_err(|_| ClientError::Answer("the key uid is no UUID"))?,
            version: KeyVersion::new(number).ok_or(ClientError::Answer("the version is 0"))?,
            key_version: if key_version.is_empty() { None } else { Some(version(&key_version)?) },
            plaintext_length_bytes: usize::try_from(plaintext_length_bytes).unwrap_or(usize::MAX),
            current,
        })
    }
}

pub(super) fn pairs(context: &EncryptionContext) -> HashMap<String, String> {
    context.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn version(text: &str) -> Result<VersionName, ClientError> {
    text.parse().map_err(|_| ClientError::Answer("the key version is no name"))
}

/// Copies a secret into bytes that are wiped when their last holder drops them. Copies we cannot wipe: the buffers of
/// HTTP/2 and TLS.
fn wiped_bytes(plaintext: &Plaintext) -> Bytes {
    Bytes::from_owner(zeroize::Zeroizing::new(plaintext.expose().to_vec()))
}

/// Takes a secret out of a message, and wipes the message's copy where nothing else shares its buffer.
fn secret(bytes: Bytes) -> Plaintext {
    let plaintext = Plaintext::new(bytes.to_vec());
    if let Ok(mut buffer) = bytes.try_into_mut() {
        buffer.zeroize();
    }
    plaintext
}
