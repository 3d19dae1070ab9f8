//! What outlives a provider: the objects "on the token".

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::rsa::PrivateDecryptingKey;
use kms_core::key::CkaId;
use kms_hsm::Mark;
use zeroize::Zeroizing;

/// The value of a secret key.
pub(crate) type Secret = Zeroizing<[u8; 32]>;

/// A token's memory. Providers started on clones of one device see the same objects.
#[derive(Clone)]
pub struct SoftDevice(Arc<State>);

struct State {
    serial: String,
    objects: Mutex<Objects>,
}

/// Token objects by kind.
#[derive(Default)]
pub(crate) struct Objects {
    pub(crate) wraps: BTreeMap<CkaId, Secret>,
    pub(crate) macs: BTreeMap<CkaId, Secret>,
    pub(crate) residents: BTreeMap<CkaId, Secret>,
    pub(crate) import_keys: BTreeMap<CkaId, PrivateDecryptingKey>,
    pub(crate) marks: BTreeSet<Mark>,
}

impl SoftDevice {
    /// Makes an empty token with this serial number.
    pub fn new(serial: &str) -> Self {
        Self(Arc::new(State { serial: serial.to_owned(), objects: Mutex::default() }))
    }

    pub(crate) fn serial(&self) -> &str {
        &self.0.serial
    }

    pub(crate) fn objects(&self) -> MutexGuard<'_, Objects> {
        self.0.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SoftDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftDevice").field("serial", &self.0.serial).finish_non_exhaustive()
    }
}
