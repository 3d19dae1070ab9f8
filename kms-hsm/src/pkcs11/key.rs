//! A loaded key: its handle in an epoch, and where to load it from again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use cryptoki::object::ObjectHandle;

use crate::error::HsmError;
use crate::hsm::KeySource;
use crate::pkcs11::inbox::Inbox;
use crate::pkcs11::job::KeeperMessage;

/// The state behind an [`crate::HsmKey`] of this provider.
///
/// Jobs hold a clone, so the last drop comes after the last use; it asks the keeper to destroy the session object.
#[derive(Debug)]
pub(crate) struct KeyState {
    pub(crate) source: KeySource,
    handle: Mutex<Handle>,
    canary: Mutex<Option<Instant>>,
    /// Why it could not be loaded again.
    lost: Mutex<Option<HsmError>>,
    /// Whether the object is a session object, destroyed with the last user.
    session_object: bool,
    keeper: Arc<Inbox>,
    loaded: Arc<AtomicUsize>,
}

/// Epochs count from 1: a handle of this one is never used.
const NO_EPOCH: u64 = 0;

/// A handle and the epoch it is of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handle {
    pub(crate) epoch: u64,
    pub(crate) object: ObjectHandle,
}

impl KeyState {
    pub(crate) fn new(
        source: KeySource,
        handle: Handle,
        keeper: Arc<Inbox>,
        loaded: Arc<AtomicUsize>,
    ) -> Self {
        loaded.fetch_add(1, Ordering::Relaxed);
        let session_object = matches!(source.material, kms_core::key::Material::Wrapped(_));
        let handle = Mutex::new(handle);
        Self {
            source,
            handle,
            canary: Mutex::new(None),
            lost: Mutex::new(None),
            session_object,
            keeper,
            loaded,
        }
    }

    /// Returns the object when its handle is of `epoch`.
    pub(crate) fn object(&self, epoch: u64) -> Option<ObjectHandle> {
        let handle = *self.lock();
        (handle.epoch == epoch).then_some(handle.object)
    }

    /// Puts a newly loaded object in place of one that is gone.
    pub(crate) fn replace(&self, handle: Handle) {
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.give_back(std::mem::replace(&mut *self.lock(), handle));
    }

    /// Notes why the key could not be loaded again, and gives its handle up: until it is loaded again, that is the
    /// answer to whoever uses it.
    pub(crate) fn lose(&self, error: HsmError) {
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        let mut handle = self.lock();
        let given_up = Handle { epoch: NO_EPOCH, ..*handle };
        self.give_back(std::mem::replace(&mut *handle, given_up));
    }

    /// Forgets the handle, as nothing says that it names this key's object: it is not used again, and not given back,
    /// as whatever it names now would be destroyed.
    pub(crate) fn forget(&self) {
        self.lock().epoch = NO_EPOCH;
    }

    /// Returns why the key could not be loaded again.
    pub(crate) fn lost(&self) -> Option<HsmError> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether a canary of this key sang after `since`.
    pub(crate) fn sang_since(&self, since: Instant) -> bool {
        self.canary.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at >= since)
    }

    /// Notes that the canary sang.
    pub(crate) fn sang(&self, at: Instant) {
        *self.canary.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
    }

    /// Has the keeper destroy a session object that this key no longer uses.
    fn give_back(&self, Handle { epoch, object }: Handle) {
        if self.session_object {
            // A keeper that has ended has closed its session, and the object with it.
            self.keeper.send(KeeperMessage::Release { epoch, object });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Handle> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for KeyState {
    fn drop(&mut self) {
        self.loaded.fetch_sub(1, Ordering::Relaxed);
        let handle = *self.lock();
        self.give_back(handle);
    }
}
