//! A file-key service in memory, with real AES-256-GCM and keys derived from names, and helpers around sealed files.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "test helpers, of which each test file uses some"
)]

use std::io::Cursor;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use age_core::format::FileKey;
use age_core::secrecy::ExposeSecret as _;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::digest::{SHA256, digest};
use kms_cli::backup::{
    BackupError, Description, FileKeyService, Recipients, ServiceError, WrappedFileKey,
    file_key_context, open_stream, seal_stream,
};
use kms_cli::client::{ClientError, Refusal};
use kms_core::envelope::{Envelope, Header, Suite};
use kms_core::id::{KeyUid, KeyVersion};
use kms_core::name::KeyName;

/// The key of most tests.
pub(crate) const KEY: &str = "tenants/acme/keys/backup";
/// Another one.
pub(crate) const OTHER_KEY: &str = "tenants/acme/keys/other";
/// A native age key pair, for break-glass.
pub(crate) const NATIVE_IDENTITY: &str =
    "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33";

/// Knows every key, at one primary version. Keys are derived from their names, so that processes agree without talking.
#[derive(Debug)]
pub(crate) struct MemoryKms {
    pub(crate) primary: AtomicU32,
    /// The calls so far.
    pub(crate) calls: Mutex<Vec<&'static str>>,
    /// The call that fails, as if the server were gone.
    pub(crate) fail_on: Option<&'static str>,
    /// True to name no key in descriptions.
    pub(crate) secretive: bool,
    /// True to unwrap what was wrapped last to something else.
    pub(crate) forgetful: bool,
}

impl MemoryKms {
    pub(crate) fn at(primary: u32) -> Self {
        Self {
            primary: AtomicU32::new(primary),
            calls: Mutex::new(Vec::new()),
            fail_on: None,
            secretive: false,
            forgetful: false,
        }
    }

    pub(crate) fn rotate(&self) {
        self.primary.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn primary_version(&self) -> KeyVersion {
        KeyVersion::new(self.primary.load(Ordering::SeqCst)).unwrap()
    }

    pub(crate) fn take_calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    fn call(&self, name: &'static str) -> Result<(), ServiceError> {
        self.calls.lock().unwrap().push(name);
        if self.fail_on == Some(name) {
            return Err(refusal("TEST_UNAVAILABLE"));
        }
        Ok(())
    }
}

pub(crate) fn uid_of(key: &KeyName) -> KeyUid {
    let hash = digest(&SHA256, key.to_string().as_bytes());
    KeyUid::from_bytes(hash.as_ref()[..16].try_into().unwrap())
}

fn cipher(header: &Header) -> LessSafeKey {
    let seed = format!("{}/{}", header.key_uid, header.version.get());
    let material = digest(&SHA256, seed.as_bytes());
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, material.as_ref()).unwrap())
}

pub(crate) fn refusal(reason: &str) -> ServiceError {
    let status = tonic::Status::failed_precondition("refused for a test");
    let refusal = Refusal { reason: reason.to_owned(), ..Refusal::of(&status) };
    ServiceError::Client(ClientError::Refused(Box::new(refusal)))
}

/// Returns the reason of a refusal.
pub(crate) fn reason_of(error: &BackupError) -> &str {
    match error {
        BackupError::Service(ServiceError::Client(ClientError::Refused(refusal))) => {
            &refusal.reason
        }
        _ => "",
    }
}

impl FileKeyService for MemoryKms {
    fn wrap(&self, key: &KeyName, file_key: &FileKey) -> Result<WrappedFileKey, ServiceError> {
        self.call("wrap")?;
        let header = Header {
            suite: Suite::Aes256Gcm,
            key_uid: uid_of(key),
            version: self.primary_version(),
        };
        let mut iv = [0; 12];
        aws_lc_rs::rand::fill(&mut iv).unwrap();
        let mut aad = header.aad(&file_key_context().unwrap());
        let mut sealed = file_key.expose_secret().to_vec();
        let nonce = Nonce::assume_unique_for_key(iv);
        let aad = Aad::from(aad.with_iv(&iv).to_vec());
        cipher(&header).seal_in_place_append_tag(nonce, aad, &mut sealed).unwrap();
        Ok(WrappedFileKey::new(&header.seal(&iv, &sealed)).unwrap())
    }

    fn unwrap(&self, key: &KeyName, wrapped: &WrappedFileKey) -> Result<FileKey, ServiceError> {
        self.call("unwrap")?;
        let envelope = Envelope::decode(wrapped.as_bytes()).unwrap();
        if envelope.header.key_uid != uid_of(key) {
            return Err(refusal("CIPHERTEXT_INVALID"));
        }
        let mut aad = envelope.header.aad(&file_key_context().unwrap());
        let aad = Aad::from(aad.with_iv(&envelope.iv).to_vec());
        let nonce = Nonce::assume_unique_for_key(envelope.iv);
        let mut opened = envelope.ciphertext_and_tag.to_vec();
        let file_key = cipher(&envelope.header)
            .open_in_place(nonce, aad, &mut opened)
            .map_err(|_| refusal("CIPHERTEXT_INVALID"))?;
        let flip = u8::from(self.forgetful && envelope.header.version == self.primary_version());
        Ok(FileKey::init_with_mut(|out| {
            out.copy_from_slice(file_key);
            out[0] ^= flip;
        }))
    }

    fn describe(&self, wrapped: &WrappedFileKey) -> Result<Description, ServiceError> {
        self.call("describe")?;
        let header = wrapped.header();
        let known = [KEY, OTHER_KEY].map(|name| name.parse::<KeyName>().unwrap());
        let key = known.into_iter().find(|name| uid_of(name) == header.key_uid);
        Ok(Description {
            key: key.filter(|_| !self.secretive),
            current: header.version == self.primary_version(),
        })
    }
}

pub(crate) fn key() -> KeyName {
    KEY.parse().unwrap()
}

pub(crate) fn native_identity() -> age::x25519::Identity {
    NATIVE_IDENTITY.parse().unwrap()
}

/// Seals for [`KEY`] and, as most backups are, for a native recipient too.
pub(crate) fn seal(kms: &MemoryKms, plaintext: &[u8]) -> Vec<u8> {
    let recipients = Recipients::new(key(), vec![native_identity().to_public()]).unwrap();
    let mut sealed = Vec::new();
    seal_stream(kms, &recipients, plaintext, &mut sealed).unwrap();
    sealed
}

/// Opens, and returns what was written until the end or the error.
pub(crate) fn open(kms: &MemoryKms, sealed: &[u8]) -> (Result<(), BackupError>, Vec<u8>) {
    let mut plaintext = Vec::new();
    let opened = open_stream(kms, None, Cursor::new(sealed), &mut plaintext);
    (opened.map(|_| ()), plaintext)
}

/// A plaintext of this length that does not repeat with the chunks.
pub(crate) fn plaintext(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| u8::try_from((at + at / 65_536) % 251).unwrap()).collect()
}
