//! A provider on the faulty module, with a root and short budgets.

use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use kms_core::clock::{Clock, SystemClock};
use kms_core::envelope::{Aad, Iv};
use kms_core::id::{KeyUid, KeyVersion, RootGeneration};
use kms_core::key::{CkaId, Material, Protection};
use kms_core::root::RootPin;
use kms_core::secret::{Pin, Plaintext};
use kms_hsm::pkcs11::{Budgets, FatalReason, Pkcs11Config, Pkcs11Hsm, TokenSelector};
use kms_hsm::{
    CryptoOp, CryptoOutput, Finished, Hsm, HsmError, HsmHealth, HsmKey, KeySource, KeySpec, Pending,
};
use kms_testkit::softhsm::{TOKEN_LABEL, USER_PIN, token_dir};
use kms_testkit::{Faulty, deadline, faulty};

/// How long anything may take that is not a fault on purpose.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// What is encrypted.
pub(crate) const PLAINTEXT: &[u8; 32] = b"a data key of thirty-two octets.";

/// Budgets that let a test of a hang end soon.
pub(crate) fn short_budgets() -> Budgets {
    Budgets {
        lane_hang: Duration::from_secs(30),
        worker_hang: Duration::from_millis(2500),
        max_written_off: 2,
        keeper_hang: Duration::from_secs(4),
        drain: Duration::from_millis(500),
        close: Duration::from_secs(2),
        probe_first: Duration::from_millis(10),
        probe_max: Duration::from_millis(50),
        canary: Duration::from_secs(1),
    }
}

/// Two workers on the faulty module; what is fatal is told to `fatal` instead of ending the process.
pub(crate) fn config(fatal: mpsc::Sender<FatalReason>) -> Pkcs11Config {
    let token = TokenSelector::Label(TOKEN_LABEL.into());
    let mut config = Pkcs11Config::new(faulty::module(), token);
    config.workers = 2;
    config.token_dir = Some(token_dir());
    config.budgets = short_budgets();
    let fatal = Mutex::new(fatal);
    config.on_fatal = Arc::new(move |reason| {
        // A test that is over no longer listens.
        let _ = fatal.lock().unwrap().send(reason);
    });
    config
}

pub(crate) fn pin() -> Pin {
    Pin::new(USER_PIN.into())
}

/// Returns a deadline that only a real hang misses.
pub(crate) fn soon() -> Instant {
    SystemClock.monotonic() + LIMIT
}

pub(crate) struct Rig {
    pub(crate) hsm: Pkcs11Hsm,
    fatal: Mutex<mpsc::Receiver<FatalReason>>,
    pub(crate) root: RootPin,
}

/// A key of a rig and where it came from.
#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) key: HsmKey,
    pub(crate) source: KeySource,
}

impl Rig {
    /// Starts the provider and opens a new root.
    pub(crate) fn start() -> Self {
        Self::start_with(|_| {})
    }

    pub(crate) fn start_with(change: impl FnOnce(&mut Pkcs11Config)) -> Self {
        Self::start_on(Arc::new(SystemClock), change)
    }

    pub(crate) fn start_on(clock: Arc<dyn Clock>, change: impl FnOnce(&mut Pkcs11Config)) -> Self {
        let (sender, fatal) = mpsc::channel();
        let mut config = config(sender);
        change(&mut config);
        let hsm = Pkcs11Hsm::start(config, pin(), clock).unwrap();
        let root = hsm.create_root(RootGeneration::FIRST, soon()).wait().unwrap();
        hsm.open_roots(vec![root.clone()], soon()).wait().unwrap();
        assert_eq!(hsm.status().health, HsmHealth::Ready);
        Self { hsm, fatal: Mutex::new(fatal), root }
    }

    /// Generates a key, `HSM_WRAPPED`.
    pub(crate) fn key(&self, number: u8) -> Key {
        self.try_key(number, Protection::HsmWrapped).unwrap()
    }

    pub(crate) fn try_key(&self, number: u8, protection: Protection) -> Result<Key, HsmError> {
        let spec = KeySpec {
            key_uid: KeyUid::from_bytes([number; 16]),
            version: KeyVersion::FIRST,
            generation: RootGeneration::FIRST,
            protection,
            resident_id: CkaId([number; 16]),
        };
        let made = self.hsm.generate_key(spec, soon()).wait()?;
        let material = made.wrapped.map_or(Material::Resident(spec.resident_id), Material::Wrapped);
        let KeySpec { key_uid, version, generation, .. } = spec;
        let source = KeySource { key_uid, version, generation, material, check: made.check };
        Ok(Key { key: made.key, source })
    }

    /// Lists what can be resident keys.
    pub(crate) fn residents(&self) -> Result<Vec<CkaId>, HsmError> {
        self.hsm.list_token_keys(soon()).wait().map(|keys| keys.residents)
    }

    pub(crate) fn load(&self, source: &KeySource) -> Result<HsmKey, HsmError> {
        self.hsm.load_key(source.clone(), soon()).wait()
    }

    pub(crate) fn encrypt(&self, key: &HsmKey) -> Result<(Iv, Vec<u8>), HsmError> {
        Ok(sealed(self.submit(key, soon()).wait()?))
    }

    /// Queues an encryption.
    pub(crate) fn submit(&self, key: &HsmKey, deadline: Instant) -> Pending<Finished> {
        let plaintext = Plaintext::new(PLAINTEXT.to_vec());
        let operation = CryptoOp::Encrypt { key: key.clone(), aad: aad(), plaintext };
        self.hsm.crypt(operation, deadline)
    }

    pub(crate) fn decrypt(&self, key: &HsmKey, sealed: &(Iv, Vec<u8>)) -> Result<(), HsmError> {
        let (iv, ciphertext_and_tag) = sealed.clone();
        let operation = CryptoOp::Decrypt { key: key.clone(), aad: aad(), iv, ciphertext_and_tag };
        match self.hsm.crypt(operation, soon()).wait()?.output {
            CryptoOutput::Decrypted(plaintext) => {
                assert_eq!(plaintext.expose(), PLAINTEXT, "a wrong plaintext was given out");
                Ok(())
            }
            other => panic!("unexpected {other:?}"),
        }
    }

    /// Encrypts and decrypts once.
    pub(crate) fn round_trip(&self, key: &HsmKey) -> Result<(), HsmError> {
        let sealed = self.encrypt(key)?;
        self.decrypt(key, &sealed)
    }

    pub(crate) fn health(&self) -> HsmHealth {
        self.hsm.status().health
    }

    /// Waits until the provider is ready and `key` works again.
    pub(crate) fn await_recovery(&self, key: &HsmKey) {
        deadline::eventually(LIMIT, "recovery", || {
            self.health() == HsmHealth::Ready && self.round_trip(key).is_ok()
        });
    }

    /// Waits until something fatal is told.
    pub(crate) fn await_fatal(&self) -> FatalReason {
        self.fatal.lock().unwrap().recv_timeout(LIMIT).unwrap()
    }

    /// Returns what fatal thing was told, if any.
    pub(crate) fn fatal(&self) -> Option<FatalReason> {
        self.fatal.lock().unwrap().try_recv().ok()
    }

    /// Asserts that nothing fatal was noticed.
    pub(crate) fn assert_not_fatal(&self) {
        assert_eq!(self.fatal(), None);
    }

    /// Makes the module lose its state under the next encryption, with `more` faults.
    ///
    /// C_GetTokenInfo fails once too: otherwise a probe that finds everything in order spares the C_Finalize.
    pub(crate) fn lose_module(&self, faulty: &Faulty, key: &HsmKey, more: &[&str]) {
        let mut rules = vec![
            "C_EncryptInit 1 return CKR_CRYPTOKI_NOT_INITIALIZED",
            "C_GetTokenInfo 1 return CKR_CRYPTOKI_NOT_INITIALIZED",
        ];
        rules.extend_from_slice(more);
        faulty.script(&rules);
        let answer = self.encrypt(key);
        assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{answer:?}");
    }
}

pub(crate) fn aad() -> Aad {
    Aad::from_prefix(b"faults".to_vec())
}

pub(crate) fn sealed(finished: Finished) -> (Iv, Vec<u8>) {
    match finished.output {
        CryptoOutput::Encrypted { iv, ciphertext_and_tag } => (iv, ciphertext_and_tag.into_vec()),
        other => panic!("unexpected {other:?}"),
    }
}

/// Runs a body with a rig, in a process of its own.
pub(crate) fn with_rig(test: &str, body: impl FnOnce(&Rig, &Faulty)) {
    kms_testkit::isolated_faulty(test, |_, faulty| {
        let rig = Rig::start();
        body(&rig, faulty);
        faulty.heal();
        rig.hsm.close();
    });
}
