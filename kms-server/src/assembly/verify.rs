//! `verify-store`: the database, the log and the token of a configuration, for looking at them and nothing else.
//!
//! It refuses while a server holds the database or the log, and keeps servers away as long as it runs. Neither is written
//! to. The token is logged in to, as the MACs are made in it.

use std::sync::Arc;

use kms_core::clock::{Clock, SystemClock};
use kms_core::key::Sealed;
use kms_core::root::RetiredRoot;
use kms_hsm::Hsm as _;
use kms_hsm::pkcs11::Pkcs11Hsm;

use super::error::StartError;
use super::missing::MissingRoots;
use super::run::close_hsm;
use super::{parts, roots};
use crate::audit::verify::hold;
use crate::config::{Config, Engine, check};
use crate::store::sqlite::offline::OfflineStore;
use crate::verify_store::{Report, Seen, VerifyStoreError, verify};

/// Verifies the database of a configuration. Blocks.
///
/// # Errors
/// [`StartError::Store`] and [`StartError::Audit`] when they cannot be read or a server holds them,
/// [`StartError::Unverifiable`] when the token makes no MACs, [`StartError::NotOffline`] when the database is no file. What does not agree is in the report.
pub fn verify_store(config: &Config) -> Result<Report, StartError> {
    // Listeners, certificates and grants are not needed, and may be missing where a copy is looked at.
    let problems: Vec<_> = check(config, SystemClock.now())
        .into_iter()
        .filter(|problem| problem.key.starts_with("hsm."))
        .collect();
    if !problems.is_empty() {
        return Err(StartError::Config(problems));
    }
    if config.store.engine != Engine::Sqlite {
        return Err(StartError::NotOffline(config.store.place()));
    }
    let store = OfflineStore::open(&config.store.path)?;
    let _log_lock = hold(&config.audit.directory)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(StartError::system("start the threads"))?;
    let retired = store.retired_roots()?;
    let pins = roots::in_use(store.root_pins()?, &retired)?;
    if pins.is_empty() {
        let missing = MissingRoots::pinned(config, parts::token(config)?, None);
        return Err(StartError::NoRoots(Box::new(missing)));
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let serials = pins.iter().map(|(pin, _)| pin.token_serial.clone()).collect();
    let hsm = parts::start_hsm(config, serials, &clock)?.hsm;
    let verified = with_token(config, &store, &runtime, &hsm, &clock, (&pins, &retired));
    runtime.block_on(close_hsm(hsm));
    verified
}

fn with_token(
    config: &Config,
    store: &OfflineStore,
    runtime: &tokio::runtime::Runtime,
    hsm: &Arc<Pkcs11Hsm>,
    clock: &Arc<dyn Clock>,
    (pins, retired): (&[roots::Pinned], &[Sealed<RetiredRoot>]),
) -> Result<Report, StartError> {
    runtime.block_on(async {
        let wanted = pins.iter().map(|(pin, _)| pin.clone()).collect();
        let opened = hsm.open_roots(wanted, roots::deadline(&**clock)).await;
        opened.map_err(StartError::Unverifiable)?;
        roots::verify_pins(&**hsm, &**clock, pins).await?;
        roots::verify_retired(&**hsm, &**clock, pins, retired).await
    })?;
    let log = Seen::read(&config.audit.directory);
    let mut macs = |generation, inputs| {
        runtime.block_on(hsm.mac(generation, inputs, roots::deadline(&**clock)))
    };
    let open = roots::oldest(pins)..=roots::newest(pins);
    verify(store, log, open, &mut macs).map_err(|error| match error {
        VerifyStoreError::Store(error) => StartError::Store(error),
        VerifyStoreError::Hsm(error) => StartError::Unverifiable(error),
        VerifyStoreError::Bug(reason) => StartError::Bug(reason),
    })
}
