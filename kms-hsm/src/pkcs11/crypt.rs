//! What a worker does with its session: operations with loaded keys, MACs, randomness.

use std::time::{Duration, Instant};

use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use kms_core::secret::equal_in_constant_time;

use crate::error::HsmError;
use crate::hsm::{CryptoOp, CryptoOutput, Finished, HsmKey, Sealed, Timing};
use crate::pkcs11::canary::{Tried, settle};
use crate::pkcs11::ckr::Failure;
use crate::pkcs11::gate::Live;
use crate::pkcs11::iv::IvPool;
use crate::pkcs11::job::{Answer, Work};
use crate::pkcs11::key::KeyState;
use crate::pkcs11::seat::Seat;
use crate::pkcs11::shared::Shared;
use crate::pkcs11::token;

/// What stays the same during one job.
pub(crate) struct Bench<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) seat: &'a Seat,
    pub(crate) queued: Duration,
    /// Whether the keeper has tried to mend what it could.
    pub(crate) retried: bool,
}

/// Does the work, or what is left of it.
pub(crate) fn perform(
    bench: &Bench<'_>,
    session: &Session,
    live: &Live,
    ivs: &mut IvPool,
    work: &mut Work,
) -> Result<Answer, Failure> {
    let mut desk = Desk { bench, session, live, ivs, time: bench.shared.now() };
    match work {
        Work::Crypt(operation) => desk.finished(operation).map(Answer::Crypt),
        Work::Batch { operations, done } => {
            desk.batch(operations, done)?;
            Ok(Answer::Batch(std::mem::take(done)))
        }
        Work::Mac { generation, inputs } => {
            let Some(root) = live.roots.get(generation) else {
                let detail = format!("root generation {generation} is not open");
                return Err(Failure::Answer(bench.shared.unavailable(&detail)));
            };
            let mut macs = Vec::with_capacity(inputs.len());
            for input in inputs {
                desk.tick();
                desk.moves()?;
                macs.push(token::mac(session, root.mac, input)?);
            }
            Ok(Answer::Macs(macs))
        }
        Work::Random(length) => {
            token::random(session, &mut desk.ivs.random, *length).map(Answer::Random)
        }
    }
}

struct Desk<'a> {
    bench: &'a Bench<'a>,
    /// When the clock was last read: the end of one operation is the start of the next.
    time: Instant,
    session: &'a Session,
    live: &'a Live,
    ivs: &'a mut IvPool,
}

impl Desk<'_> {
    /// Does the operations that are not yet done. Stops at what is not an answer, with the ones before kept.
    fn batch(
        &mut self,
        operations: &mut [CryptoOp],
        done: &mut Vec<Result<Finished, HsmError>>,
    ) -> Result<(), Failure> {
        // Stale keys first, so that the keeper mends them all in one go.
        if !self.bench.retried {
            let mut resolved = None;
            for key in operations.iter().flat_map(keys_of) {
                // Most batches are of one key.
                if !resolved.is_some_and(|last| key.same(last)) {
                    self.resolve(key)?;
                    resolved = Some(key);
                }
            }
        }
        while let Some(operation) = operations.get_mut(done.len()) {
            self.moves()?;
            match self.finished(operation) {
                Ok(finished) => done.push(Ok(finished)),
                Err(Failure::Answer(error)) => done.push(Err(error)),
                Err(Failure::Stale | Failure::Object(_)) if self.bench.retried => {
                    let detail = "the key could not be loaded again";
                    done.push(Err(self.bench.shared.unavailable(detail)));
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    /// Tells the watchdog that the job moves on, and ends it when no one waits any more.
    fn moves(&self) -> Result<(), Failure> {
        if self.bench.seat.moves(self.time) {
            return Ok(());
        }
        Err(Failure::Answer(HsmError::CallDeadline))
    }

    /// Reads the clock, and returns when it was last read.
    fn tick(&mut self) -> Instant {
        std::mem::replace(&mut self.time, self.bench.shared.now())
    }

    fn finished(&mut self, operation: &mut CryptoOp) -> Result<Finished, Failure> {
        let output = self.crypt(operation);
        let started = self.tick();
        let output = output?;
        let in_hsm = self.time.saturating_duration_since(started);
        Ok(Finished { output, timing: Timing { queued: self.bench.queued, in_hsm } })
    }

    fn crypt(&mut self, operation: &mut CryptoOp) -> Result<CryptoOutput, Failure> {
        match operation {
            CryptoOp::Encrypt { key, aad, plaintext } => {
                let sealed = if self.bench.shared.config.verify_encrypt {
                    self.encrypt_and_verify(key, aad, plaintext.expose())?
                } else {
                    self.encrypt(key, aad, plaintext.expose())?
                };
                let (iv, ciphertext_and_tag) = sealed;
                Ok(CryptoOutput::Encrypted { iv, ciphertext_and_tag })
            }
            CryptoOp::Decrypt { key, aad, iv, ciphertext_and_tag } => {
                self.decrypt(key, aad, iv, ciphertext_and_tag).map(CryptoOutput::Decrypted)
            }
            CryptoOp::Reencrypt { from, from_aad, iv, ciphertext_and_tag, to, to_aad } => {
                self.resolve(to)?;
                let plaintext = self.decrypt(from, from_aad, iv, ciphertext_and_tag)?;
                let (iv, ciphertext_and_tag) =
                    self.encrypt_and_verify(to, to_aad, plaintext.expose())?;
                Ok(CryptoOutput::Encrypted { iv, ciphertext_and_tag })
            }
            CryptoOp::GenerateDataKey { key, aad, length_bytes, with_plaintext } => {
                let data_key = token::random(self.session, &mut self.ivs.random, *length_bytes)?;
                let (iv, ciphertext_and_tag) =
                    self.encrypt_and_verify(key, aad, data_key.expose())?;
                let plaintext = with_plaintext.then_some(data_key);
                Ok(CryptoOutput::DataKey { plaintext, iv, ciphertext_and_tag })
            }
        }
    }

    fn encrypt(
        &mut self,
        key: &HsmKey,
        aad: &mut kms_core::envelope::Aad,
        plaintext: &[u8],
    ) -> Result<(kms_core::envelope::Iv, Sealed), Failure> {
        let (key, object) = self.resolve(key)?;
        token::encrypt(self.session, self.ivs, object, aad, plaintext).map_err(|failure| {
            settle(self.bench.shared, self.session, key, object, Tried::Encrypt, failure)
        })
    }

    /// Encrypts, and decrypts again what that gave, before anyone relies on it (docs/adr/0009).
    fn encrypt_and_verify(
        &mut self,
        key: &HsmKey,
        aad: &mut kms_core::envelope::Aad,
        plaintext: &[u8],
    ) -> Result<(kms_core::envelope::Iv, Sealed), Failure> {
        let (iv, ciphertext_and_tag) = self.encrypt(key, aad, plaintext)?;
        let fits = match self.decrypt(key, aad, &iv, &ciphertext_and_tag) {
            Ok(opened) => equal_in_constant_time(opened.expose(), plaintext),
            Err(Failure::Answer(HsmError::CiphertextInvalid)) => false,
            Err(failure) => return Err(failure),
        };
        if !fits {
            return Err(Failure::lie("what C_Encrypt gave does not decrypt to what it was given"));
        }
        Ok((iv, ciphertext_and_tag))
    }

    fn decrypt(
        &self,
        key: &HsmKey,
        aad: &mut kms_core::envelope::Aad,
        iv: &kms_core::envelope::Iv,
        ciphertext_and_tag: &[u8],
    ) -> Result<kms_core::secret::Plaintext, Failure> {
        let (key, object) = self.resolve(key)?;
        token::decrypt(self.session, object, aad, iv, ciphertext_and_tag).map_err(|failure| {
            settle(self.bench.shared, self.session, key, object, Tried::Decrypt, failure)
        })
    }

    fn resolve<'k>(&self, key: &'k HsmKey) -> Result<(&'k KeyState, ObjectHandle), Failure> {
        let Some(key) = key.state_ref::<KeyState>() else {
            return Err(Failure::Answer(HsmError::Bug { reason: "a key of another provider" }));
        };
        match key.object(self.live.epoch) {
            Some(object) => Ok((key, object)),
            None if self.bench.retried => Err(key.lost().map_or(Failure::Stale, Failure::Answer)),
            None => Err(Failure::Stale),
        }
    }
}

/// Returns the keys of an operation.
pub(crate) fn keys_of(operation: &CryptoOp) -> impl Iterator<Item = &HsmKey> {
    let (first, second) = match operation {
        CryptoOp::Encrypt { key, .. }
        | CryptoOp::Decrypt { key, .. }
        | CryptoOp::GenerateDataKey { key, .. } => (key, None),
        CryptoOp::Reencrypt { from, to, .. } => (from, Some(to)),
    };
    std::iter::once(first).chain(second)
}
