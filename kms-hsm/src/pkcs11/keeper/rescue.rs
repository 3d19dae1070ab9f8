//! Rescue: what a worker cannot mend. Each job comes here once at most.

use std::sync::Arc;

use super::Keeper;
use crate::error::HsmError;
use crate::pkcs11::ckr::Failure;
use crate::pkcs11::crypt::keys_of;
use crate::pkcs11::job::{Cause, Job, Work};
use crate::pkcs11::key::KeyState;
use crate::pkcs11::token;

impl Keeper {
    /// Mends what the job needs and queues it again, or answers it.
    pub(super) fn rescue(&mut self, mut job: Box<Job>, cause: Cause, login: u64) {
        let now = self.shared.now();
        if now >= job.deadline {
            // Not "not done": a worker tried it, and part of a batch may be.
            return job.fail(HsmError::CallDeadline);
        }
        if let Err(error) = self.shared.health.check_taken(|| now) {
            return job.fail(error);
        }
        self.shared.keeper_seat.begin(job.reply.take(), job.deadline, now);
        let result = self.prepare(&job.work, cause, login);
        let result = result.map_err(|failure| self.give_up(failure));
        job.reply = self.shared.keeper_seat.finish();
        job.retried = true;
        match result {
            // The watchdog has answered.
            _ if job.reply.is_none() => {}
            Ok(()) => self.shared.requeue(job),
            Err(error) => job.fail(error),
        }
    }

    fn prepare(&mut self, work: &Work, cause: Cause, login: u64) -> Result<(), Failure> {
        // Many jobs may report one lost login: the first of them has it looked at.
        if cause == Cause::LoginLost && login == self.login {
            self.log_in_again()?;
        }
        let operations = match work {
            Work::Crypt(operation) => std::slice::from_ref(operation),
            Work::Batch { operations, .. } => operations,
            Work::Mac { .. } if cause == Cause::ObjectGone => return self.roots_are_there(),
            Work::Mac { .. } | Work::Random(_) => return Ok(()),
        };
        for key in operations.iter().flat_map(keys_of) {
            if let Some(key) = key.state::<KeyState>() {
                match self.reload(&key, cause) {
                    // The fault of this key alone: its operations are answered so, others of the batch go on.
                    Err(Failure::Answer(error)) => key.lose(error),
                    other => other?,
                }
            }
        }
        Ok(())
    }

    /// Loads a key again when its handle is stale or names nothing any more.
    fn reload(&mut self, key: &Arc<KeyState>, cause: Cause) -> Result<(), Failure> {
        if let Some(object) = key.object(self.epoch) {
            if cause != Cause::ObjectGone {
                return Ok(());
            }
            // A job before this one may have loaded it again already.
            if matches!(token::check_fits(self.session()?, object, &key.source), Ok(true)) {
                return Ok(());
            }
            key.forget();
            self.token_is_there().or_else(|failure| self.mended(failure))?;
        }
        let handle = match self.resolve_key(&key.source) {
            Err(
                failure @ (Failure::Object(_)
                | Failure::Login(_)
                | Failure::Session(_)
                | Failure::Module(_)),
            ) => {
                self.mended(failure)?;
                self.resolve_key(&key.source)
            }
            other => other,
        }?;
        self.note_session_object(&key.source, handle);
        key.replace(handle);
        Ok(())
    }

    /// Mends what a failure of the keeper's own job says, when it can. Returns whether to try again.
    pub(super) fn mend(&mut self, failure: &Failure) -> bool {
        match self.mended(failure.clone()) {
            Ok(()) => true,
            Err(
                Failure::Answer(_) | Failure::Ambiguous(_) | Failure::Device(_) | Failure::Stale,
            ) => false,
            Err(other) => {
                self.give_up(other);
                false
            }
        }
    }

    fn mended(&mut self, failure: Failure) -> Result<(), Failure> {
        match failure {
            // The objects of the keeper's session went with it: begin anew.
            Failure::Session(_) | Failure::Module(_) => self.connect(),
            Failure::Login(_) => self.log_in_again(),
            Failure::Object(_) => self.roots_are_there(),
            other => Err(other),
        }
    }

    /// Finds the roots again after a handle named nothing; begins anew when the token itself is gone.
    fn roots_are_there(&mut self) -> Result<(), Failure> {
        match self.token_is_there() {
            Ok(()) => {}
            Err(Failure::Login(_)) => return self.log_in_again(),
            Err(_) => return self.connect(),
        }
        let found = self.index_residents().and_then(|()| self.find_roots(&self.pins));
        // Not the fault of the job that brought us here: no key can be loaded without the roots.
        self.put_roots(found.map_err(Failure::of_connection)?)
    }
}
