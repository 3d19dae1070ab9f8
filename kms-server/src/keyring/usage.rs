//! Using keys: state check, version choice, AAD, envelope. Each use wants its permit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kms_core::context::EncryptionContext;
use kms_core::envelope::{Envelope, Header, Iv, Suite};
use kms_core::id::KeyVersion;
use kms_core::key::{KeyState, Sensitivity};
use kms_core::name::{KeyName, VersionName};
use kms_core::secret::Plaintext;
use kms_core::state::{Use, Verdict, VersionState};
use kms_hsm::{CryptoOp, HsmKey};

use super::load::LoadedVersion;
use super::use_log::UseKind;
use super::{CachedKey, Keyring, KeyringError, Shared};
use crate::authz::{
    Action, Permit, Protects, Rewrap, RewrapCompromised, Unwrap, UnwrapCompromised, WrapPinned,
};

/// From which share of its cryptoperiod on a version is told of, in percent.
const WARNING_PERCENT: u32 = 80;

/// What the log was told of a period: that it is nearly over, and that it is.
#[derive(Debug, Default)]
pub(super) struct Told {
    near: AtomicBool,
    over: AtomicBool,
}

impl Told {
    /// Returns whether that was not told yet, and notes it. Who was told that it is over need not hear that it is near.
    fn is_new(&self, over: bool) -> bool {
        let stage = if over { &self.over } else { &self.near };
        !stage.swap(true, Ordering::Relaxed)
    }
}

/// A version that may protect, with one invocation counted.
#[derive(Debug)]
pub struct Protecting {
    version: Arc<LoadedVersion>,
    key: HsmKey,
    header: Header,
}

impl Protecting {
    /// Returns the name of the version.
    pub fn name(&self) -> &Arc<str> {
        &self.version.name_text
    }

    /// Returns the number of the version.
    pub fn version(&self) -> KeyVersion {
        self.header.version
    }

    /// Returns the operation that encrypts; it uses up the invocation.
    pub fn encrypt(&self, context: &EncryptionContext, plaintext: Plaintext) -> CryptoOp {
        CryptoOp::Encrypt { key: self.key.clone(), aad: self.header.aad(context), plaintext }
    }

    /// Returns the operation that makes a data key; it uses up the invocation.
    pub fn generate_data_key(
        &self,
        context: &EncryptionContext,
        length_bytes: usize,
        with_plaintext: bool,
    ) -> CryptoOp {
        let aad = self.header.aad(context);
        CryptoOp::GenerateDataKey { key: self.key.clone(), aad, length_bytes, with_plaintext }
    }

    /// Writes the envelope, and hands out the name of the version.
    pub fn seal(self, iv: &Iv, ciphertext_and_tag: &[u8]) -> (Vec<u8>, Arc<str>) {
        (self.header.seal(iv, ciphertext_and_tag), Arc::clone(&self.version.name_text))
    }
}

/// A version that may process.
#[derive(Debug)]
pub struct Processing {
    version: Arc<LoadedVersion>,
    key: HsmKey,
}

impl Processing {
    /// Returns the name of the version.
    pub fn name(&self) -> &Arc<str> {
        &self.version.name_text
    }

    /// Returns the number of the version.
    pub fn version(&self) -> KeyVersion {
        self.version.row.version
    }

    /// Returns the operation that decrypts.
    pub fn decrypt(&self, envelope: &Envelope<'_>, context: &EncryptionContext) -> CryptoOp {
        CryptoOp::Decrypt {
            key: self.key.clone(),
            aad: envelope.header.aad(context),
            iv: envelope.iv,
            ciphertext_and_tag: envelope.ciphertext_and_tag.to_vec(),
        }
    }
}

/// What a rewrap comes to.
#[derive(Debug)]
pub enum Rewrapping {
    /// The envelope is under the primary already.
    Current(Processing),
    /// It has to be encrypted anew.
    Needed {
        /// The version it is under.
        from: Moving,
        /// The primary.
        to: Protecting,
    },
}

impl Rewrapping {
    /// Returns the version that the envelope is under.
    pub const fn from(&self) -> &Processing {
        match self {
            Self::Current(from) | Self::Needed { from: Moving { from, .. }, .. } => from,
        }
    }
}

/// A version that an envelope is to leave. It is counted as left when that is done; whatever else becomes of it, somebody
/// wanted to open what it protects, and nothing of that is gone.
#[derive(Debug)]
pub struct Moving {
    from: Processing,
    shared: Arc<Shared>,
    is_done: bool,
}

impl Moving {
    /// Says that it is done, and hands out the name of the version.
    pub fn done(mut self) -> Arc<str> {
        self.is_done = true;
        Arc::clone(self.from.name())
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        let kind = if self.is_done { UseKind::Rewrap } else { UseKind::Process };
        self.shared.count(&self.from.version, kind);
    }
}

impl Protecting {
    /// Returns the operation that moves an envelope from `from` to this version; it uses up the invocation, and the
    /// plaintext stays in the HSM worker.
    pub fn reencrypt(
        &self,
        from: &Moving,
        envelope: &Envelope<'_>,
        context: &EncryptionContext,
    ) -> CryptoOp {
        CryptoOp::Reencrypt {
            from: from.from.key.clone(),
            from_aad: envelope.header.aad(context),
            iv: envelope.iv,
            ciphertext_and_tag: envelope.ciphertext_and_tag.to_vec(),
            to: self.key.clone(),
            to_aad: self.header.aad(context),
        }
    }
}

impl Keyring {
    /// Makes the primary, or a pinned version, ready to protect, and counts one invocation.
    ///
    /// # Errors
    /// [`KeyringError::KeyDisabled`], [`KeyringError::KeyDestroyScheduled`], [`KeyringError::KeyDestroyed`];
    /// [`KeyringError::NotPermittedByState`] unless the version is ACTIVE;
    /// [`KeyringError::ProtectDisabled`] when it is older than the last gap of the state journal that was accepted;
    /// [`KeyringError::CryptoperiodExceeded`] for a key of HIGH sensitivity; [`KeyringError::Exhausted`] at 2^32.
    pub async fn protect<A: Protects>(
        &self,
        permit: &Permit<'_, A>,
        key: &Arc<CachedKey>,
        pinned: Option<(KeyVersion, &Permit<'_, WrapPinned>)>,
    ) -> Result<Protecting, KeyringError> {
        fits(permit, &key.row.name)?;
        if let Some((_, permit)) = pinned {
            fits(permit, &key.row.name)?;
        }
        let number = pinned.map_or(key.row.primary, |(number, _)| number);
        self.check_enabled(key, number, permit)?;
        let version = self.version(key, number).await?;
        let state = self.state(&version);
        if state == VersionState::DestroyScheduled {
            return Err(self.wanted(&version, permit));
        }
        match state.permits(Use::Protect) {
            Verdict::Yes | Verdict::PrimaryOrPinned => {}
            Verdict::WithPermission | Verdict::No | Verdict::NoWithAlert | Verdict::Metadata => {
                return Err(KeyringError::NotPermittedByState(state));
            }
        }
        if self.shared.journal.fence().is_some_and(|fence| version.row.create_time <= fence) {
            return Err(KeyringError::ProtectDisabled);
        }
        self.check_cryptoperiod(key, &version)?;
        let hsm_key = loaded(&version)?;
        self.shared.ledger.take(&version.lease).await?;
        self.shared.count(&version, UseKind::Protect);
        let header = Header { suite: Suite::Aes256Gcm, key_uid: key.row.uid, version: number };
        Ok(Protecting { key: hsm_key, header, version })
    }

    /// Makes the version that an envelope names ready to process. `compromised` is asked only when it matters.
    ///
    /// # Errors
    /// [`KeyringError::CiphertextInvalid`] when the envelope is another key's, or names a version that never was;
    /// [`KeyringError::KeyDisabled`], [`KeyringError::KeyDestroyScheduled`], [`KeyringError::KeyDestroyed`];
    /// [`KeyringError::NotPermittedByState`] when the state does not permit it.
    pub async fn process<'p>(
        &self,
        permit: &Permit<'_, Unwrap>,
        key: &Arc<CachedKey>,
        header: &Header,
        compromised: impl FnOnce() -> Option<Permit<'p, UnwrapCompromised>>,
    ) -> Result<Processing, KeyringError> {
        fits(permit, &key.row.name)?;
        let allowed = || compromised().is_some_and(|permit| fits(&permit, &key.row.name).is_ok());
        let from = self.source(permit, key, header, Use::Process, allowed).await?;
        self.shared.count(&from.version, UseKind::Process);
        Ok(from)
    }

    /// Makes ready what a rewrap needs, and counts one invocation when it changes something.
    ///
    /// An envelope under the primary is not opened: nothing is said about whether it could be.
    ///
    /// # Errors
    /// As for [`Keyring::process`] on the source, and [`Keyring::protect`] on the primary.
    pub async fn rewrap<'p>(
        &self,
        permit: &Permit<'_, Rewrap>,
        key: &Arc<CachedKey>,
        header: &Header,
        compromised: impl FnOnce() -> Option<Permit<'p, RewrapCompromised>>,
    ) -> Result<Rewrapping, KeyringError> {
        fits(permit, &key.row.name)?;
        let allowed = || compromised().is_some_and(|permit| fits(&permit, &key.row.name).is_ok());
        let from = self.source(permit, key, header, Use::RewrapFrom, allowed).await?;
        if from.version() == key.row.primary && self.state(&from.version) == VersionState::Active {
            return Ok(Rewrapping::Current(from));
        }
        let from = Moving { from, shared: Arc::clone(&self.shared), is_done: false };
        let to = self.protect(permit, key, None).await?;
        Ok(Rewrapping::Needed { from, to })
    }

    async fn source<A: Action>(
        &self,
        permit: &Permit<'_, A>,
        key: &Arc<CachedKey>,
        header: &Header,
        purpose: Use,
        compromised: impl FnOnce() -> bool,
    ) -> Result<Processing, KeyringError> {
        if header.key_uid != key.row.uid {
            return Err(KeyringError::CiphertextInvalid);
        }
        self.check_enabled(key, header.version, permit)?;
        let version = self.version(key, header.version).await.map_err(|error| match error {
            KeyringError::VersionNotFound(_) => KeyringError::CiphertextInvalid,
            other => other,
        })?;
        let state = self.state(&version);
        // Whatever is wanted of it: who depends on it is to be heard.
        if state == VersionState::DestroyScheduled {
            return Err(self.wanted(&version, permit));
        }
        let name = &*version.name_text;
        match state.permits(purpose) {
            Verdict::Yes => {}
            Verdict::WithPermission if compromised() => {
                self.shared.counters.compromised_uses.increment();
                tracing::warn!(alert = "compromised_use", key_version = name, "permitted");
            }
            Verdict::WithPermission
            | Verdict::NoWithAlert
            | Verdict::PrimaryOrPinned
            | Verdict::No
            | Verdict::Metadata => return Err(KeyringError::NotPermittedByState(state)),
        }
        self.check_recipient_usage(key, &version);
        Ok(Processing { key: loaded(&version)?, version })
    }

    /// Refuses a version whose destruction is planned, tells who wanted it, and counts that: of a key of HIGH sensitivity it
    /// holds the destruction.
    fn wanted<A: Action>(&self, version: &LoadedVersion, permit: &Permit<'_, A>) -> KeyringError {
        self.shared.count(version, UseKind::Refused);
        self.tell_wanted(&version.name_text, permit);
        KeyringError::NotPermittedByState(VersionState::DestroyScheduled)
    }

    fn tell_wanted<A: Action>(&self, key_version: &str, permit: &Permit<'_, A>) {
        self.shared.counters.destroy_scheduled_uses.increment();
        tracing::warn!(
            alert = "destroy_scheduled_use",
            key_version,
            principal = &**permit.principal(),
            source = %permit.source(),
            action = A::KIND.as_str(),
            "refused"
        );
    }

    /// Before a version is looked at: what is disabled is not loaded either. That somebody wanted it is counted all the same.
    fn check_enabled<A: Action>(
        &self,
        key: &CachedKey,
        number: KeyVersion,
        permit: &Permit<'_, A>,
    ) -> Result<(), KeyringError> {
        let error = match key.row.state {
            KeyState::Enabled => return Ok(()),
            KeyState::Destroyed => return Err(KeyringError::KeyDestroyed),
            KeyState::Disabled => {
                self.shared.counters.disabled_key_uses.increment();
                KeyringError::KeyDisabled
            }
            KeyState::DestroyScheduled => {
                let name = VersionName::new(key.row.name.clone(), number);
                self.tell_wanted(&name.to_string(), permit);
                KeyringError::KeyDestroyScheduled
            }
        };
        let (id, now) = ((key.row.uid, number), self.shared.clock.now());
        // Nothing can be noted of a version that an envelope names and that never was.
        if number <= key.row.latest && !self.shared.uses.count_refused(id, now) {
            self.shared.counters.uses_not_noted.increment();
        }
        Err(error)
    }

    /// Refuses what is over its cryptoperiod for keys of HIGH sensitivity; others are told of once a load when it nears its end,
    /// and once when it is over.
    fn check_cryptoperiod(
        &self,
        key: &CachedKey,
        version: &LoadedVersion,
    ) -> Result<(), KeyringError> {
        let (row, now) = (&version.row, self.shared.clock.now());
        let (period, name) = (key.row.cryptoperiod, &*version.name_text);
        let warning = period / 100 * WARNING_PERCENT;
        let since = row.in_use_since();
        if now < since.after(warning) {
            return Ok(());
        }
        let over = now >= since.after(period);
        if over && key.row.sensitivity == Sensitivity::High {
            return Err(KeyringError::CryptoperiodExceeded);
        }
        if version.told_of_period.is_new(over) {
            self.shared.counters.cryptoperiod_warnings.increment();
            tracing::warn!(
                alert = "cryptoperiod",
                key_version = name,
                over,
                "protects near or after the end of its cryptoperiod; rotate the key"
            );
        }
        Ok(())
    }

    /// Tells of a version that processes near the end of its recipient-usage period, and of one that does after it, each once a
    /// load. It is never refused: what it protected would be lost.
    fn check_recipient_usage(&self, key: &CachedKey, version: &LoadedVersion) {
        let (row, now) = (&version.row, self.shared.clock.now());
        let (since, period) = (row.in_use_since(), key.row.recipient_usage_period);
        let over = now >= since.after(period);
        if now < since.after(period / 100 * WARNING_PERCENT)
            || !version.told_of_recipients.is_new(over)
        {
            return;
        }
        self.shared.counters.recipient_usage_warnings.increment();
        tracing::warn!(
            alert = "recipient_usage_period",
            key_version = &*version.name_text,
            over,
            "processes near or after the end of its recipient-usage period; rewrap what it protects"
        );
    }

    fn state(&self, version: &LoadedVersion) -> VersionState {
        version.row.state_at(self.shared.clock.now())
    }
}

impl Shared {
    fn count(&self, version: &LoadedVersion, kind: UseKind) {
        if !self.uses.count(&version.uses, kind, self.clock.now()) {
            self.counters.uses_not_noted.increment();
        }
    }
}

/// Invariant: every state that permits a use has its key loaded; see `load_version`.
fn loaded(version: &LoadedVersion) -> Result<HsmKey, KeyringError> {
    version.key.clone().ok_or(KeyringError::Bug { reason: "a usable version is not loaded" })
}

/// A permit for another key is no permit.
fn fits<A: Action>(permit: &Permit<'_, A>, name: &KeyName) -> Result<(), KeyringError> {
    match permit.key() {
        Some(key) if key == name => Ok(()),
        Some(_) | None => Err(KeyringError::Bug { reason: "the permit is for another key" }),
    }
}
