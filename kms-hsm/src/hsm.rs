//! The seam: trait [`Hsm`] and what goes through it.
//!
//! Two implementations: PKCS#11 (`pkcs11/`) and a software token for tests (crate kms-hsm-soft). The conformance suite
//! (`suite/`) holds for both.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kms_core::envelope::{Aad, Iv};
use kms_core::id::{KeyUid, KeyVersion, RootGeneration};
use kms_core::import::{ImportCheck, ImportMethod, OaepHash, RsaSize};
use kms_core::key::{CheckBlob, CkaId, Protection, RowMac, WrappedKey};
use kms_core::root::RootPin;
use kms_core::secret::Plaintext;
use smallvec::SmallVec;

use crate::error::HsmError;
pub use crate::pending::Pending;

/// The most random bytes of one call.
pub const MAX_RANDOM_BYTES: usize = 1024;
/// The most strays that are listed: more than a person would look at one by one.
pub const MAX_STRAYS: usize = 1000;
/// The most private keys that are listed: twice as many as there may be import jobs of all tenants together
/// ([`kms_core::import_job::MAX_OPEN_IMPORT_JOBS`]); the rest is for those that nobody knows.
pub const MAX_IMPORT_KEYS: usize = 1000;
/// The most operations of one batch.
pub const MAX_BATCH: usize = 1000;
/// The most keys of one call that wraps them under another root: the loading of keys waits for it.
pub const MAX_REWRAPS: usize = 16;

/// The longest mark.
pub const MAX_MARK_BYTES: usize = 256;
/// The most marks that are listed: there is one, and two after a crash, of each system that shares the token.
pub const MAX_MARKS: usize = 64;

/// An HSM: holds keys, uses them, and never gives them away.
///
/// Every method queues a job and returns at once; nothing blocks the caller's thread. A full queue is answered
/// [`HsmError::Saturated`], a job whose `deadline` passes before it is taken is answered [`HsmError::QueueDeadline`]
/// and not done. Dropping the returned [`Pending`] does not undo the job.
///
/// A device that is gone is answered [`HsmError::Unavailable`] until it is back, without a restart of the process; keys
/// loaded before keep working afterwards, because providers resolve handles again by themselves. What only an operator
/// can mend is answered [`HsmError::Latched`].
pub trait Hsm: Send + Sync + fmt::Debug + 'static {
    /// Creates a root set: `wrap` (AES-256) and `mac` (HMAC-SHA-256), as token objects, and returns what to pin.
    ///
    /// The token's files are durable when this answers. It is called by dev mode only; elsewhere a ceremony makes
    /// roots. It does not make the set the open one: call [`Hsm::open_roots`].
    fn create_root(&self, generation: RootGeneration, deadline: Instant) -> Pending<RootPin>;

    /// Opens pinned root sets: finds the objects, checks serial and check values, keeps the handles.
    ///
    /// # Errors
    /// [`HsmError::Latched`] when the serial, an object or a check value is not the pinned one: never
    /// "not found", and never a reason to create a root.
    fn open_roots(&self, pins: Vec<RootPin>, deadline: Instant) -> Pending<()>;

    /// Returns the HMAC-SHA-256 under root `mac` of each input, in order.
    fn mac(
        &self,
        generation: RootGeneration,
        inputs: Vec<Vec<u8>>,
        deadline: Instant,
    ) -> Pending<Vec<RowMac>>;

    /// Generates the key of a version inside the HSM, self-tests it and returns it loaded.
    ///
    /// `HSM_WRAPPED`: generated extractable inside the one job that also wraps it (KWP) and destroys that object; the
    /// returned key is the blob unwrapped again, not extractable. `HSM_RESIDENT`: a token object under
    /// `spec.resident_id`, not extractable from birth, durable on disk when this answers.
    /// Attributes are read back, and forbidden uses tried and found refused, before it answers.
    fn generate_key(&self, spec: KeySpec, deadline: Instant) -> Pending<GeneratedKey>;

    /// Loads the key of a version and verifies its check value.
    ///
    /// The key stays loaded as long as a clone of the [`HsmKey`] lives; a key object is destroyed only when no job uses
    /// it any more.
    ///
    /// # Errors
    /// [`HsmError::KeyIntegrity`] when blob or check value do not fit, [`HsmError::ResidentMissing`] when the token
    /// object is not there although the roots are.
    fn load_key(&self, source: KeySource, deadline: Instant) -> Pending<HsmKey>;

    /// Wraps the keys of versions under root `to`; one result each, in order. At most [`MAX_REWRAPS`].
    ///
    /// Each blob is opened with the root that wraps it, verified by its check value, wrapped, and what that gave is opened
    /// and verified again before it is answered: whoever puts it in the place of the old one loses no key. Between the two
    /// it is an extractable object that exists only inside this job. The check value stays as it is.
    ///
    /// # Errors
    /// Of a key: [`HsmError::KeyIntegrity`] when blob or check value do not fit. Of all: [`HsmError::Bug`] when one is no blob,
    /// [`HsmError::Refused`] when the token does not do it, whose keys go on working.
    fn rewrap_keys(
        &self,
        sources: Vec<KeySource>,
        to: RootGeneration,
        deadline: Instant,
    ) -> Pending<Vec<Result<WrappedKey, HsmError>>>;

    /// Destroys the token object of an `HSM_RESIDENT` key. Destroying what is not there succeeds.
    fn destroy_resident(&self, id: CkaId, deadline: Instant) -> Pending<()>;

    /// Generates the RSA key pair of an import job, tries it, and returns the public key (SubjectPublicKeyInfo, DER).
    ///
    /// The private key is a token object under `spec.id`, durable when this answers, good for unwrapping with this one
    /// mechanism only. It takes seconds, on a lane of its own: what others do does not wait for it.
    ///
    /// # Errors
    /// [`HsmError::MechanismMissing`] when the token has no RSA, or no RSA-OAEP with this hash. Whatever the error, the
    /// object may be there: the caller has it destroyed by [`Hsm::destroy_import_key`].
    fn create_import_key(&self, spec: ImportKeySpec, deadline: Instant) -> Pending<Vec<u8>>;

    /// Opens a sealed key with the key of an import job, inside the HSM, and returns it as [`Hsm::generate_key`] does.
    ///
    /// It is accepted when it is 32 bytes and the client's check value fits. The key of the job is destroyed in any case in
    /// which it was used on the input, before this answers: there is one attempt.
    ///
    /// # Errors
    /// [`HsmError::ImportKeyMissing`], [`HsmError::ImportMaterialInvalid`], [`HsmError::ImportKeyLength`],
    /// [`HsmError::ImportCheckMismatch`]; nothing is left on the token then.
    fn import_key(&self, import: KeyImport, deadline: Instant) -> Pending<GeneratedKey>;

    /// Destroys the private key of an import job. Destroying what is not there succeeds.
    fn destroy_import_key(&self, id: CkaId, deadline: Instant) -> Pending<()>;

    /// Lists every secret key of the token that is not a root which is open, and every private key, for the reconciler. Slow: it looks at all
    /// objects.
    fn list_token_keys(&self, deadline: Instant) -> Pending<TokenKeys>;

    /// Puts a mark in the token, and takes others away: a few bytes that are there after whatever becomes of our files.
    ///
    /// It is a new private data object that cannot be changed, durable and read back before one of `replaced` is destroyed, so
    /// that there is no moment without one. Marks that are not named stay: another system's may be among them. Putting a
    /// mark that is there already, and replacing one that is not, succeeds.
    ///
    /// # Errors
    /// [`HsmError::Bug`] when it is empty or longer than [`MAX_MARK_BYTES`]; [`HsmError::TokenFull`]. Whatever the error, the
    /// new mark may be there, and those before it are unless it is.
    fn put_mark(&self, mark: Mark, replaced: Vec<Mark>, deadline: Instant) -> Pending<()>;

    /// Lists the marks of the token, in no order. Slow: it looks at all objects.
    ///
    /// # Errors
    /// [`HsmError::TokenFull`] when there are more than [`MAX_MARKS`]: none is left out in silence.
    fn marks(&self, deadline: Instant) -> Pending<Vec<Mark>>;

    /// Runs one operation with a loaded key.
    fn crypt(&self, operation: CryptoOp, deadline: Instant) -> Pending<Finished>;

    /// Runs up to [`MAX_BATCH`] operations on one worker; each has a result of its own, in order.
    fn crypt_batch(
        &self,
        operations: Vec<CryptoOp>,
        deadline: Instant,
    ) -> Pending<Vec<Result<Finished, HsmError>>>;

    /// Draws up to [`MAX_RANDOM_BYTES`] from C_GenerateRandom.
    fn random(&self, length: usize, deadline: Instant) -> Pending<Plaintext>;

    /// Returns the health as last seen, without asking the device.
    fn status(&self) -> HsmStatus;

    /// Stops taking jobs, finishes those taken, destroys session objects and closes everything.
    fn close(&self);
}

/// A mark in the token. What its bytes mean, who puts it there knows, and whether they are genuine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(pub Vec<u8>);

impl Mark {
    /// Returns whether it is of a length that a token takes.
    pub const fn is_in_bounds(&self) -> bool {
        !self.0.is_empty() && self.0.len() <= MAX_MARK_BYTES
    }
}

/// What to generate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeySpec {
    /// The key; bound into the check value.
    pub key_uid: KeyUid,
    /// The version; bound into the check value.
    pub version: KeyVersion,
    /// The root that wraps it.
    pub generation: RootGeneration,
    /// Where it lives.
    pub protection: Protection,
    /// CKA_ID of the token object; used for `HSM_RESIDENT` only. Derived from the intent and recorded before.
    pub resident_id: CkaId,
}

/// The key pair of an import job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImportKeySpec {
    /// CKA_ID of the private key. Derived from the intent and recorded before.
    pub id: CkaId,
    /// How long its modulus is.
    pub size: RsaSize,
    /// The hash of its RSA-OAEP.
    pub hash: OaepHash,
}

/// A sealed key, and what is to become of it.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyImport {
    /// The version that is to have it.
    pub spec: KeySpec,
    /// The key of the import job.
    pub job: ImportKeySpec,
    /// How it is sealed; of the job's hash.
    pub method: ImportMethod,
    /// The sealed key.
    pub wrapped: Vec<u8>,
    /// Its check value.
    pub check: ImportCheck,
    /// What the check value authenticates.
    pub check_aad: Vec<u8>,
}

impl fmt::Debug for KeyImport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyImport")
            .field("spec", &self.spec)
            .field("job", &self.job)
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

/// The keys of a token, open roots left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenKeys {
    /// CKA_IDs of the objects that can be `HSM_RESIDENT` keys, in order.
    pub residents: Vec<CkaId>,
    /// CKA_IDs of the private keys that can be those of import jobs, in order. At most [`MAX_IMPORT_KEYS`].
    pub import_keys: Vec<CkaId>,
    /// All others: torn by a crash, a root that was never pinned, another system's. At most [`MAX_STRAYS`].
    pub strays: Vec<Stray>,
}

/// A key of the token that nobody here can use.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stray {
    /// CKA_ID; empty when it has none, or none that can be read.
    pub id: Vec<u8>,
}

/// A key that was generated.
#[derive(Debug)]
pub struct GeneratedKey {
    /// The blob; `None` for `HSM_RESIDENT`.
    pub wrapped: Option<WrappedKey>,
    /// The check value to store. Making it was one invocation.
    pub check: CheckBlob,
    /// The key, loaded.
    pub key: HsmKey,
}

/// Where to load a key from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySource {
    /// The key.
    pub key_uid: KeyUid,
    /// The version.
    pub version: KeyVersion,
    /// The root that wraps it.
    pub generation: RootGeneration,
    /// Blob or token object.
    pub material: kms_core::key::Material,
    /// The check value to verify.
    pub check: CheckBlob,
}

/// A loaded key: an opaque, shared handle. The object behind it lives as long as any clone.
#[derive(Clone)]
pub struct HsmKey(Arc<dyn Any + Send + Sync>);

impl HsmKey {
    /// Wraps a provider's own state; the provider's `Drop` releases the object.
    pub fn new<T: Any + Send + Sync>(state: Arc<T>) -> Self {
        Self(state)
    }

    /// Returns whether both are clones of one key.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Lends the provider's state, or `None` when the key is another provider's.
    pub fn state_ref<T: Any>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }

    /// Returns the provider's state, or `None` when the key is another provider's.
    pub fn state<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        Arc::clone(&self.0).downcast().ok()
    }
}

impl fmt::Debug for HsmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HsmKey(opaque)")
    }
}

/// One use of a loaded key.
#[derive(Debug)]
pub enum CryptoOp {
    /// AES-256-GCM with an IV drawn by the worker.
    Encrypt {
        /// The key.
        key: HsmKey,
        /// What to authenticate; the worker fills in the IV.
        aad: Aad,
        /// What to encrypt.
        plaintext: Plaintext,
    },
    /// The inverse.
    Decrypt {
        /// The key.
        key: HsmKey,
        /// What was authenticated.
        aad: Aad,
        /// The IV.
        iv: Iv,
        /// Ciphertext and tag.
        ciphertext_and_tag: Vec<u8>,
    },
    /// Decrypts and encrypts again; the plaintext does not leave the worker.
    Reencrypt {
        /// The key that protects it now.
        from: HsmKey,
        /// What was authenticated.
        from_aad: Aad,
        /// The IV.
        iv: Iv,
        /// Ciphertext and tag.
        ciphertext_and_tag: Vec<u8>,
        /// The key to protect it with.
        to: HsmKey,
        /// What to authenticate; the worker fills in the IV.
        to_aad: Aad,
    },
    /// Draws a data key and encrypts it.
    GenerateDataKey {
        /// The key that wraps it.
        key: HsmKey,
        /// What to authenticate; the worker fills in the IV.
        aad: Aad,
        /// Length of the data key, 16 to 1,024 bytes.
        length_bytes: usize,
        /// Whether to hand out the plaintext.
        with_plaintext: bool,
    },
}

/// Ciphertext and tag. Those of a 32-byte key stand in place: what one thread takes from the allocator and another gives
/// back costs more than the copy.
pub type Sealed = SmallVec<[u8; 48]>;

/// What an operation gave.
#[derive(Debug)]
pub enum CryptoOutput {
    /// Of `Encrypt` and `Reencrypt`.
    Encrypted {
        /// The IV that was drawn.
        iv: Iv,
        /// Ciphertext and tag.
        ciphertext_and_tag: Sealed,
    },
    /// Of `Decrypt`.
    Decrypted(Plaintext),
    /// Of `GenerateDataKey`.
    DataKey {
        /// The data key, when it was asked for.
        plaintext: Option<Plaintext>,
        /// The IV that was drawn.
        iv: Iv,
        /// Ciphertext and tag.
        ciphertext_and_tag: Sealed,
    },
}

/// A finished operation and how long it took.
#[derive(Debug)]
pub struct Finished {
    /// What it gave.
    pub output: CryptoOutput,
    /// How long it took.
    pub timing: Timing,
}

/// Where the time of a job went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Waiting in the queue.
    pub queued: Duration,
    /// Inside the HSM.
    pub in_hsm: Duration,
}

/// How the HSM is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HsmHealth {
    /// Logged in, roots open.
    Ready,
    /// Logged in, but no root is open yet.
    NoRoots,
    /// Gone for now; a prober works on it.
    Unavailable(String),
    /// Until an operator acts.
    Latched(crate::error::LatchReason),
}

/// Health and load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HsmStatus {
    /// How the HSM is.
    pub health: HsmHealth,
    /// Serial number of the token.
    pub token_serial: String,
    /// Jobs waiting.
    pub queue_length: usize,
    /// Worker threads alive.
    pub workers: usize,
    /// Key objects loaded.
    pub loaded_keys: usize,
    /// Wrapped keys opened since the start: one for each that is loaded, two for each that is re-wrapped.
    pub unwrapped_keys: u64,
    /// How often the module was initialised anew since the start.
    pub reconnects: u64,
}
