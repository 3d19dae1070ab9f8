//! The concrete parts but the database: PKCS#11 token, audit files, static policy.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kms_core::clock::Clock;
use kms_core::id::RootGeneration;
use kms_hsm::pkcs11::{
    EXIT_HSM_HUNG, Pkcs11Config, Pkcs11Hsm, TokenSelector, exit_at_once, log_fatal,
};

use super::error::StartError;
use crate::audit::FileSink;
use crate::authz::StaticPolicy;
use crate::config::{
    CREDENTIALS_VARIABLE, Cause, Config, Problem, SecretError, SecretPlace, SecretSource,
};
use crate::keyring::KeyringConfig;
use crate::telemetry::log;

/// An HSM that was started, and how long module and login took.
#[derive(Debug)]
pub(super) struct StartedHsm {
    pub(super) hsm: Arc<Pkcs11Hsm>,
    pub(super) login: Duration,
}

/// Starts the HSM layer, on a token of these serial numbers. Blocks until the first login is over.
pub(super) fn start_hsm(
    config: &Config,
    serials: Vec<String>,
    clock: &Arc<dyn Clock>,
) -> Result<StartedHsm, StartError> {
    let section = &config.hsm;
    let pin = source(&section.pin).and_then(|source| source.read_pin());
    let pin = pin.map_err(StartError::Pin)?;
    let mut pkcs11 = Pkcs11Config::new(section.module.clone(), token(config)?);
    pkcs11.pinned_serials = serials;
    pkcs11.workers = section.workers;
    pkcs11.verify_encrypt = section.verify_encrypt;
    pkcs11.queue_capacity = section.queue_capacity;
    pkcs11.token_dir.clone_from(&section.token_dir);
    pkcs11.on_fatal = Arc::new(|reason| {
        log_fatal(reason);
        // The process ends here, and nothing else waits for that line.
        log::finish();
        exit_at_once(EXIT_HSM_HUNG);
    });
    let begun = clock.monotonic();
    let hsm = Pkcs11Hsm::start(pkcs11, pin, Arc::clone(clock))?;
    let login = since(begun, clock.as_ref());
    Ok(StartedHsm { hsm: Arc::new(hsm), login })
}

/// Returns which token is configured.
pub(super) fn token(config: &Config) -> Result<TokenSelector, StartError> {
    match (&config.hsm.token_serial, &config.hsm.token_label) {
        (Some(serial), _) => Ok(TokenSelector::Serial(serial.clone())),
        (None, Some(label)) => Ok(TokenSelector::Label(label.clone())),
        (None, None) => Err(StartError::Bug("a token that nobody named passed the check")),
    }
}

/// Returns where a secret is to be read.
pub(super) fn source(place: &SecretPlace) -> Result<SecretSource, SecretError> {
    place.source(std::env::var_os(CREDENTIALS_VARIABLE).map(PathBuf::from))
}

/// Opens the audit log and verifies its tail. Blocks.
pub(super) fn open_audit(config: &Config) -> Result<Arc<FileSink>, StartError> {
    Ok(Arc::new(FileSink::open(&config.audit.directory)?))
}

/// Makes the policy ready.
pub(super) fn policy(config: &Config) -> Result<Arc<StaticPolicy>, StartError> {
    let wrong = |error: crate::authz::InvalidPolicy| {
        StartError::Config(vec![Problem { key: "authz.grants", cause: Cause::Policy(error) }])
    };
    Ok(Arc::new(StaticPolicy::new(&config.authz.grants).map_err(wrong)?))
}

/// Returns the bounds of the keyring.
pub(super) fn keyring(
    config: &Config,
    oldest: RootGeneration,
    generation: RootGeneration,
) -> KeyringConfig {
    let most = NonZeroUsize::new(config.limits.max_loaded_keys).unwrap_or(NonZeroUsize::MIN);
    KeyringConfig {
        generation,
        oldest,
        max_keys: most,
        max_versions: most,
        overlap: Duration::from_millis(config.limits.overlap_ms),
        ..KeyringConfig::default()
    }
}

/// Returns the time since then.
pub(super) fn since(then: Instant, clock: &dyn Clock) -> Duration {
    clock.monotonic().saturating_duration_since(then)
}
