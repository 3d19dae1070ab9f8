//! What the PKCS#11 provider is told: module, token, workers, bounds and budgets.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cryptoki::slot::Limit;

use crate::error::HsmError;
use crate::pkcs11::fatal::{FatalReason, exit_process};

/// The most worker threads: beyond this no token gains, and each holds a session.
pub const MAX_WORKERS: usize = 64;
/// Worker threads when none are asked for: more than one hides wake-ups, more than two make SoftHSM slower.
pub const DEFAULT_WORKERS: usize = 2;
/// The most jobs that may wait: at 10 us a job, about 0.7 s of work.
pub const MAX_QUEUE: usize = 65_536;
/// The most resident keys when nothing else is asked for: SoftHSM reads each object's file on every pass.
pub const MAX_RESIDENTS: usize = 1000;

/// Which token to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSelector {
    /// The token with this serial number.
    Serial(String),
    /// The one token with this label; two of them are refused.
    Label(String),
}

impl fmt::Display for TokenSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serial(serial) => write!(f, "serial `{serial}`"),
            Self::Label(label) => write!(f, "label `{label}`"),
        }
    }
}

/// Called when only a new process helps: see [`FatalReason`].
pub type FatalHook = Arc<dyn Fn(FatalReason) + Send + Sync>;

/// How the provider is set up.
#[derive(Clone)]
pub struct Pkcs11Config {
    /// Path of the PKCS#11 module.
    pub module: PathBuf,
    /// Which token.
    pub token: TokenSelector,
    /// Serial numbers that the token must have, from pins that are known before the roots are opened: another token is
    /// refused before it is shown the PIN.
    pub pinned_serials: Vec<String>,
    /// Worker threads, at most [`MAX_WORKERS`]; 0 takes [`DEFAULT_WORKERS`]. Never more than the token has sessions for,
    /// as one is the keeper's. One is best for SoftHSM's batches, a network HSM wants many.
    pub workers: usize,
    /// Jobs that may wait for a worker, 1 to [`MAX_QUEUE`]; the next one is refused at once.
    pub queue_capacity: usize,
    /// Jobs that may wait for the keeper (creation and loading of keys).
    pub keeper_capacity: usize,
    /// Key objects that may be loaded at once; session objects cost the token memory.
    pub max_loaded_keys: usize,
    /// Resident keys that may be on the token: with so many there, or more, the next one is refused.
    pub max_residents: usize,
    /// AES keys of the token that are looked at for resident keys, other systems' included; each costs SoftHSM 25 us. When
    /// there are more, a resident key that is not found is not called missing.
    pub max_token_keys: usize,
    /// Whether every encryption is decrypted again before it is answered. Data keys and re-encryptions always are.
    pub verify_encrypt: bool,
    /// Directory whose files are fsynced after a token object was made: SoftHSM does not do it itself, and is
    /// latched without.
    pub token_dir: Option<PathBuf>,
    /// How long things may take.
    pub budgets: Budgets,
    /// What to do when only a new process helps; by default the process exits.
    pub on_fatal: FatalHook,
}

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// How long a worker may sit in one call before it is written off and replaced.
    pub worker_hang: Duration,
    /// How many workers may be written off at once; one more is fatal.
    pub max_written_off: usize,
    /// How long the keeper may sit in one job before it is fatal.
    pub keeper_hang: Duration,
    /// How long the lane may generate one RSA key pair before it is fatal: the slowest of SoftHSM's take some ten seconds.
    pub lane_hang: Duration,
    /// How long C_Finalize waits for calls to come back before it is fatal.
    pub drain: Duration,
    /// How long [`crate::Hsm::close`] waits for workers and keeper.
    pub close: Duration,
    /// The first pause of the prober.
    pub probe_first: Duration,
    /// The longest pause of the prober.
    pub probe_max: Duration,
    /// How long a good canary answers for its key.
    pub canary: Duration,
}

impl Default for Budgets {
    fn default() -> Self {
        Self {
            worker_hang: Duration::from_secs(5),
            max_written_off: 4,
            keeper_hang: Duration::from_secs(30),
            lane_hang: Duration::from_mins(2),
            drain: Duration::from_secs(10),
            close: Duration::from_secs(10),
            probe_first: Duration::from_millis(100),
            probe_max: Duration::from_secs(5),
            canary: Duration::from_secs(1),
        }
    }
}

impl Pkcs11Config {
    /// Makes a configuration with defaults for everything else.
    pub fn new(module: PathBuf, token: TokenSelector) -> Self {
        Self {
            module,
            token,
            pinned_serials: Vec::new(),
            workers: 0,
            queue_capacity: 4096,
            keeper_capacity: 1024,
            max_loaded_keys: 100_000,
            max_residents: MAX_RESIDENTS,
            max_token_keys: 10_000,
            verify_encrypt: false,
            token_dir: None,
            budgets: Budgets::default(),
            on_fatal: Arc::new(exit_process),
        }
    }

    /// Returns how many workers a token of so many sessions bears: the keeper has one of them.
    pub(crate) fn workers_for(&self, sessions: Limit) -> usize {
        let wanted = if self.workers == 0 { DEFAULT_WORKERS } else { self.workers };
        let Limit::Max(most) = sessions else { return wanted };
        let spare = usize::try_from(most.saturating_sub(1)).unwrap_or(usize::MAX);
        wanted.min(spare).max(1)
    }

    /// Refuses what is out of bounds.
    pub(crate) fn check(&self) -> Result<(), HsmError> {
        let bounds = [
            self.workers <= MAX_WORKERS,
            (1..=MAX_QUEUE).contains(&self.queue_capacity),
            (1..=MAX_QUEUE).contains(&self.keeper_capacity),
            self.max_loaded_keys > 0,
            self.max_residents > 0,
        ];
        if bounds.contains(&false) {
            return Err(HsmError::Bug { reason: "pkcs11 configuration is out of bounds" });
        }
        Ok(())
    }
}

impl fmt::Debug for Pkcs11Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pkcs11Config")
            .field("module", &self.module)
            .field("token", &self.token)
            .field("workers", &self.workers)
            .field("queue_capacity", &self.queue_capacity)
            .field("budgets", &self.budgets)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(workers: usize, queue_capacity: usize) -> Pkcs11Config {
        let token = TokenSelector::Label("x".into());
        Pkcs11Config { workers, queue_capacity, ..Pkcs11Config::new("m".into(), token) }
    }

    #[test]
    fn the_keeper_has_one_of_the_sessions() {
        for (workers, sessions, expected) in [
            (0, Limit::Infinite, DEFAULT_WORKERS),
            (0, Limit::Unavailable, DEFAULT_WORKERS),
            (0, Limit::Max(3), 2),
            (0, Limit::Max(2), 1),
            (0, Limit::Max(1), 1),
            (8, Limit::Max(9), 8),
            (8, Limit::Max(8), 7),
            (8, Limit::Infinite, 8),
        ] {
            assert_eq!(
                config(workers, 1).workers_for(sessions),
                expected,
                "{workers} {sessions:?}"
            );
        }
    }

    #[test]
    fn bounds_hold_at_the_limit_and_refuse_one_past_it() {
        assert!(config(1, 1).check().is_ok());
        assert!(config(MAX_WORKERS, MAX_QUEUE).check().is_ok());
        assert!(config(0, 1).check().is_ok());
        assert!(config(MAX_WORKERS + 1, 1).check().is_err());
        assert!(config(1, 0).check().is_err());
        assert!(config(1, MAX_QUEUE + 1).check().is_err());
        for (most, fine) in [(1, true), (0, false)] {
            let loaded = Pkcs11Config { max_loaded_keys: most, ..config(1, 1) };
            let residents = Pkcs11Config { max_residents: most, ..config(1, 1) };
            assert_eq!(loaded.check().is_ok(), fine);
            assert_eq!(residents.check().is_ok(), fine);
        }
    }
}
