//! The provider.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use aws_lc_rs::aead::LessSafeKey;
use aws_lc_rs::hmac;
use kms_core::clock::Clock;
use kms_core::domain;
use kms_core::id::RootGeneration;
use kms_core::key::{CheckBlob, CkaId, Material, Protection, RowMac, WrappedKey};
use kms_core::root::RootPin;
use kms_core::secret::{Plaintext, equal_in_constant_time};
use kms_hsm::error::LatchReason;
use kms_hsm::hsm::{CryptoOutput, MAX_BATCH, MAX_MARKS, MAX_RANDOM_BYTES, MAX_REWRAPS};
use kms_hsm::{
    CryptoOp, Finished, GeneratedKey, Hsm, HsmError, HsmHealth, HsmKey, HsmStatus, ImportKeySpec,
    KeyImport, KeySource, KeySpec, Mark, Pending, Timing, TokenKeys,
};

use crate::crypto;
use crate::device::{Objects, Secret, SoftDevice};
use crate::import;

/// A provider on a [`SoftDevice`].
pub struct SoftToken {
    device: SoftDevice,
    clock: Arc<dyn Clock>,
    roots: RwLock<HashMap<RootGeneration, Root>>,
    latch: OnceLock<LatchReason>,
    closed: AtomicBool,
    loaded: Arc<AtomicUsize>,
    unwrapped: AtomicU64,
    /// One root change at a time.
    opening: Mutex<()>,
}

struct Root {
    wrap: Secret,
    mac: hmac::Key,
}

struct Key {
    aead: LessSafeKey,
    loaded: Arc<AtomicUsize>,
}

impl Drop for Key {
    fn drop(&mut self) {
        self.loaded.fetch_sub(1, Ordering::AcqRel);
    }
}

impl SoftToken {
    /// Starts a provider on a device.
    pub fn new(device: SoftDevice, clock: Arc<dyn Clock>) -> Self {
        Self {
            device,
            clock,
            roots: RwLock::default(),
            latch: OnceLock::new(),
            closed: AtomicBool::new(false),
            loaded: Arc::default(),
            unwrapped: AtomicU64::new(0),
            opening: Mutex::default(),
        }
    }

    /// Answers what a real token answers before it takes a job.
    fn admit(&self, deadline: Instant) -> Result<Instant, HsmError> {
        if let Some(reason) = self.latch.get() {
            return Err(HsmError::Latched { reason: reason.clone() });
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(unavailable("closed"));
        }
        let now = self.clock.monotonic();
        if now >= deadline {
            return Err(HsmError::QueueDeadline);
        }
        Ok(now)
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.device.objects()
    }

    fn with_root<T>(
        &self,
        generation: RootGeneration,
        use_it: impl FnOnce(&Root) -> Result<T, HsmError>,
    ) -> Result<T, HsmError> {
        let roots = self.roots.read().unwrap_or_else(PoisonError::into_inner);
        let detail = || unavailable(&format!("root generation {generation} is not open"));
        use_it(roots.get(&generation).ok_or_else(detail)?)
    }

    fn latch<T>(&self, reason: LatchReason) -> Result<T, HsmError> {
        let reason = self.latch.get_or_init(|| reason).clone();
        Err(HsmError::Latched { reason })
    }

    fn make_root(&self, generation: RootGeneration) -> Result<RootPin, HsmError> {
        let (wrap, mac) = (crypto::secret()?, crypto::secret()?);
        let (wrap_id, mac_id) = (random_id()?, random_id()?);
        let pin = RootPin {
            generation,
            token_serial: self.device.serial().to_owned(),
            wrap_id,
            wrap_check: crypto::wrap(&wrap, domain::ROOT_WRAP_CHECK_PATTERN)?,
            mac_id,
            mac_check: crypto::mac(&crypto::mac_key(&mac), domain::ROOT_MAC_CHECK)?.to_vec(),
        };
        let mut objects = self.objects();
        objects.wraps.insert(wrap_id, wrap);
        objects.macs.insert(mac_id, mac);
        Ok(pin)
    }

    fn open(&self, pins: &[RootPin]) -> Result<(), HsmError> {
        let _one_at_a_time = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let mut opened = Vec::with_capacity(pins.len());
        for pin in pins {
            let generation = pin.generation.get();
            if pin.token_serial != self.device.serial() {
                let found = self.device.serial().to_owned();
                let pinned = pin.token_serial.clone();
                return self.latch(LatchReason::OtherToken { found, pinned });
            }
            let (wrap, mac) = {
                let objects = self.objects();
                let wrap = objects.wraps.get(&pin.wrap_id).cloned();
                (wrap, objects.macs.get(&pin.mac_id).cloned())
            };
            let Some(wrap) = wrap else {
                return self.latch(LatchReason::RootMissing { role: "wrap", generation });
            };
            let Some(mac) = mac else {
                return self.latch(LatchReason::RootMissing { role: "mac", generation });
            };
            let check = crypto::wrap(&wrap, domain::ROOT_WRAP_CHECK_PATTERN)?;
            if !equal_in_constant_time(&check, &pin.wrap_check) {
                return self.latch(LatchReason::RootChanged { role: "wrap", generation });
            }
            let mac = crypto::mac_key(&mac);
            let check = crypto::mac(&mac, domain::ROOT_MAC_CHECK)?;
            if !equal_in_constant_time(&check, &pin.mac_check) {
                return self.latch(LatchReason::RootChanged { role: "mac", generation });
            }
            opened.push((pin.generation, Root { wrap, mac }));
        }
        self.roots.write().unwrap_or_else(PoisonError::into_inner).extend(opened);
        Ok(())
    }

    fn generate(&self, spec: &KeySpec) -> Result<GeneratedKey, HsmError> {
        self.keep(spec, crypto::secret()?)
    }

    fn create_import_key(&self, spec: &ImportKeySpec) -> Result<Vec<u8>, HsmError> {
        let (private, public) = import::key_pair(spec.size)?;
        self.objects().import_keys.insert(spec.id, private);
        Ok(public)
    }

    /// One attempt, whatever comes of it.
    fn import(&self, import: &KeyImport) -> Result<GeneratedKey, HsmError> {
        self.with_root(import.spec.generation, |_| Ok(()))?;
        let private = self.objects().import_keys.remove(&import.job.id);
        let private = private.ok_or(HsmError::ImportKeyMissing)?;
        self.keep(&import.spec, import::open(import, private)?)
    }

    /// Makes a key of a secret.
    fn keep(&self, spec: &KeySpec, secret: Secret) -> Result<GeneratedKey, HsmError> {
        let cipher = crypto::aead(&secret)?;
        let mut aad = CheckBlob::aad(spec.key_uid, spec.version);
        let (iv, ciphertext_and_tag) = crypto::encrypt(&cipher, &mut aad, CheckBlob::PATTERN)?;
        let check = CheckBlob { iv, ciphertext_and_tag: ciphertext_and_tag.into_vec() };
        let wrapped = self.with_root(spec.generation, |root| match spec.protection {
            Protection::HsmWrapped => crypto::wrap(&root.wrap, &secret).map(WrappedKey).map(Some),
            Protection::HsmResident => Ok(None),
        })?;
        if wrapped.is_none() {
            let mut objects = self.objects();
            if objects.residents.contains_key(&spec.resident_id) {
                let detail = "a token object with the key's CKA_ID is there already".into();
                return Err(HsmError::KeyIntegrity { detail });
            }
            objects.residents.insert(spec.resident_id, secret);
        }
        Ok(GeneratedKey { wrapped, check, key: self.loaded(cipher) })
    }

    fn load(&self, source: &KeySource) -> Result<HsmKey, HsmError> {
        let secret = self.with_root(source.generation, |root| match &source.material {
            Material::Wrapped(blob) => self.open_blob(root, blob),
            Material::Resident(id) => {
                self.objects().residents.get(id).cloned().ok_or(HsmError::ResidentMissing)
            }
        })?;
        let cipher = crypto::aead(&secret)?;
        let mut aad = CheckBlob::aad(source.key_uid, source.version);
        let CheckBlob { iv, ciphertext_and_tag } = &source.check;
        match crypto::decrypt(&cipher, &mut aad, iv, ciphertext_and_tag) {
            Ok(pattern) if equal_in_constant_time(pattern.expose(), CheckBlob::PATTERN) => {
                Ok(self.loaded(cipher))
            }
            Ok(_) | Err(HsmError::CiphertextInvalid) => {
                let detail = "the check value does not fit the key".into();
                Err(HsmError::KeyIntegrity { detail })
            }
            Err(error) => Err(error),
        }
    }

    fn rewrap(
        &self,
        sources: &[KeySource],
        to: RootGeneration,
    ) -> Result<Vec<Result<WrappedKey, HsmError>>, HsmError> {
        if sources.len() > MAX_REWRAPS {
            return Err(HsmError::Bug { reason: "re-wraps over their bound" });
        }
        self.with_root(to, |_| Ok(()))?;
        let mut done = Vec::with_capacity(sources.len());
        for source in sources {
            let Material::Wrapped(blob) = &source.material else {
                return Err(HsmError::Bug { reason: "a re-wrap of what is not wrapped" });
            };
            // Verifies the check value.
            let opened = self
                .load(source)
                .and_then(|_| self.with_root(source.generation, |root| self.open_blob(root, blob)));
            done.push(match opened {
                Ok(secret) => self
                    .with_root(to, |root| crypto::wrap(&root.wrap, &secret).map(WrappedKey))
                    .map(Ok)?,
                Err(error @ HsmError::KeyIntegrity { .. }) => Err(error),
                Err(error) => return Err(error),
            });
        }
        Ok(done)
    }

    fn open_blob(&self, root: &Root, blob: &WrappedKey) -> Result<Secret, HsmError> {
        self.unwrapped.fetch_add(1, Ordering::Relaxed);
        crypto::unwrap(&root.wrap, &blob.0)
    }

    fn loaded(&self, aead: LessSafeKey) -> HsmKey {
        self.loaded.fetch_add(1, Ordering::AcqRel);
        HsmKey::new(Arc::new(Key { aead, loaded: Arc::clone(&self.loaded) }))
    }

    fn finished(&self, operation: CryptoOp, started: Instant) -> Result<Finished, HsmError> {
        let output = perform(operation)?;
        let in_hsm = self.clock.monotonic().saturating_duration_since(started);
        Ok(Finished { output, timing: Timing { queued: Duration::ZERO, in_hsm } })
    }

    fn draw(&self, length: usize, deadline: Instant) -> Result<Plaintext, HsmError> {
        if length > MAX_RANDOM_BYTES {
            return Err(HsmError::Bug { reason: "random bytes over their bound" });
        }
        self.admit(deadline)?;
        random(length)
    }

    fn batch(
        &self,
        operations: Vec<CryptoOp>,
        deadline: Instant,
    ) -> Result<Vec<Result<Finished, HsmError>>, HsmError> {
        if operations.len() > MAX_BATCH {
            return Err(HsmError::Bug { reason: "a batch over its bound" });
        }
        let mut started = self.admit(deadline)?;
        let finish = |operation| {
            let finished = self.finished(operation, started);
            if let Ok(finished) = &finished {
                started += finished.timing.in_hsm;
            }
            finished
        };
        Ok(operations.into_iter().map(finish).collect())
    }
}

impl Hsm for SoftToken {
    fn create_root(&self, generation: RootGeneration, deadline: Instant) -> Pending<RootPin> {
        Pending::ready(self.admit(deadline).and_then(|_| self.make_root(generation)))
    }

    fn open_roots(&self, pins: Vec<RootPin>, deadline: Instant) -> Pending<()> {
        Pending::ready(self.admit(deadline).and_then(|_| self.open(&pins)))
    }

    fn mac(
        &self,
        generation: RootGeneration,
        inputs: Vec<Vec<u8>>,
        deadline: Instant,
    ) -> Pending<Vec<RowMac>> {
        Pending::ready(self.admit(deadline).and_then(|_| {
            self.with_root(generation, |root| {
                inputs.iter().map(|input| crypto::mac(&root.mac, input).map(RowMac)).collect()
            })
        }))
    }

    fn generate_key(&self, spec: KeySpec, deadline: Instant) -> Pending<GeneratedKey> {
        Pending::ready(self.admit(deadline).and_then(|_| self.generate(&spec)))
    }

    fn create_import_key(&self, spec: ImportKeySpec, deadline: Instant) -> Pending<Vec<u8>> {
        Pending::ready(self.admit(deadline).and_then(|_| self.create_import_key(&spec)))
    }

    fn import_key(&self, import: KeyImport, deadline: Instant) -> Pending<GeneratedKey> {
        Pending::ready(self.admit(deadline).and_then(|_| self.import(&import)))
    }

    fn destroy_import_key(&self, id: CkaId, deadline: Instant) -> Pending<()> {
        Pending::ready(self.admit(deadline).map(|_| drop(self.objects().import_keys.remove(&id))))
    }

    fn load_key(&self, source: KeySource, deadline: Instant) -> Pending<HsmKey> {
        Pending::ready(self.admit(deadline).and_then(|_| self.load(&source)))
    }

    fn rewrap_keys(
        &self,
        sources: Vec<KeySource>,
        to: RootGeneration,
        deadline: Instant,
    ) -> Pending<Vec<Result<WrappedKey, HsmError>>> {
        Pending::ready(self.admit(deadline).and_then(|_| self.rewrap(&sources, to)))
    }

    fn destroy_resident(&self, id: CkaId, deadline: Instant) -> Pending<()> {
        Pending::ready(self.admit(deadline).map(|_| drop(self.objects().residents.remove(&id))))
    }

    fn list_token_keys(&self, deadline: Instant) -> Pending<TokenKeys> {
        let list = |_| {
            let objects = self.objects();
            TokenKeys {
                residents: objects.residents.keys().copied().collect(),
                import_keys: objects.import_keys.keys().copied().collect(),
                strays: Vec::new(),
            }
        };
        Pending::ready(self.admit(deadline).map(list))
    }

    fn put_mark(&self, mark: Mark, replaced: Vec<Mark>, deadline: Instant) -> Pending<()> {
        if !mark.is_in_bounds() {
            return Pending::ready(Err(HsmError::Bug { reason: "a mark out of bounds" }));
        }
        Pending::ready(self.admit(deadline).map(|_| {
            let marks = &mut self.objects().marks;
            marks.retain(|there| !replaced.contains(there));
            marks.insert(mark);
        }))
    }

    fn marks(&self, deadline: Instant) -> Pending<Vec<Mark>> {
        let list = |_| {
            let marks: Vec<Mark> = self.objects().marks.iter().cloned().collect();
            if marks.len() <= MAX_MARKS {
                return Ok(marks);
            }
            let detail = format!("more than {MAX_MARKS} marks are on the token");
            Err(HsmError::TokenFull { detail })
        };
        Pending::ready(self.admit(deadline).and_then(list))
    }

    fn crypt(&self, operation: CryptoOp, deadline: Instant) -> Pending<Finished> {
        let result = self.admit(deadline).and_then(|started| self.finished(operation, started));
        Pending::ready(result)
    }

    fn crypt_batch(
        &self,
        operations: Vec<CryptoOp>,
        deadline: Instant,
    ) -> Pending<Vec<Result<Finished, HsmError>>> {
        Pending::ready(self.batch(operations, deadline))
    }

    fn random(&self, length: usize, deadline: Instant) -> Pending<Plaintext> {
        Pending::ready(self.draw(length, deadline))
    }

    fn status(&self) -> HsmStatus {
        let no_roots = self.roots.read().unwrap_or_else(PoisonError::into_inner).is_empty();
        let health = match self.latch.get() {
            Some(reason) => HsmHealth::Latched(reason.clone()),
            None if self.closed.load(Ordering::Acquire) => HsmHealth::Unavailable("closed".into()),
            None if no_roots => HsmHealth::NoRoots,
            None => HsmHealth::Ready,
        };
        HsmStatus {
            health,
            token_serial: self.device.serial().to_owned(),
            queue_length: 0,
            workers: 1,
            loaded_keys: self.loaded.load(Ordering::Acquire),
            unwrapped_keys: self.unwrapped.load(Ordering::Relaxed),
            reconnects: 0,
        }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }
}

impl fmt::Debug for SoftToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftToken").field("device", &self.device).finish_non_exhaustive()
    }
}

fn perform(operation: CryptoOp) -> Result<CryptoOutput, HsmError> {
    match operation {
        CryptoOp::Encrypt { key, mut aad, plaintext } => {
            let key = own(&key)?;
            let (iv, ciphertext_and_tag) =
                crypto::encrypt(&key.aead, &mut aad, plaintext.expose())?;
            Ok(CryptoOutput::Encrypted { iv, ciphertext_and_tag })
        }
        CryptoOp::Decrypt { key, mut aad, iv, ciphertext_and_tag } => {
            crypto::decrypt(&own(&key)?.aead, &mut aad, &iv, &ciphertext_and_tag)
                .map(CryptoOutput::Decrypted)
        }
        CryptoOp::Reencrypt { from, mut from_aad, iv, ciphertext_and_tag, to, mut to_aad } => {
            let (from, to) = (own(&from)?, own(&to)?);
            let plaintext = crypto::decrypt(&from.aead, &mut from_aad, &iv, &ciphertext_and_tag)?;
            let (iv, ciphertext_and_tag) =
                crypto::encrypt(&to.aead, &mut to_aad, plaintext.expose())?;
            Ok(CryptoOutput::Encrypted { iv, ciphertext_and_tag })
        }
        CryptoOp::GenerateDataKey { key, mut aad, length_bytes, with_plaintext } => {
            if !(16..=MAX_RANDOM_BYTES).contains(&length_bytes) {
                return Err(HsmError::Bug { reason: "a data key out of bounds" });
            }
            let data_key = random(length_bytes)?;
            let (iv, ciphertext_and_tag) =
                crypto::encrypt(&own(&key)?.aead, &mut aad, data_key.expose())?;
            let plaintext = with_plaintext.then_some(data_key);
            Ok(CryptoOutput::DataKey { plaintext, iv, ciphertext_and_tag })
        }
    }
}

fn own(key: &HsmKey) -> Result<Arc<Key>, HsmError> {
    key.state().ok_or(HsmError::Bug { reason: "a key of another provider" })
}

fn random(length: usize) -> Result<Plaintext, HsmError> {
    let mut bytes = vec![0; length];
    crypto::fill(&mut bytes)?;
    Ok(Plaintext::new(bytes))
}

fn random_id() -> Result<CkaId, HsmError> {
    let mut id = [0; 16];
    crypto::fill(&mut id)?;
    Ok(CkaId(id))
}

fn unavailable(detail: &str) -> HsmError {
    HsmError::Unavailable { detail: detail.to_owned(), retry_after: Duration::from_millis(100) }
}
