//! Opening what a server stands on: database, audit log and HSM, beside each other.

use std::sync::Arc;

use kms_core::clock::{Clock, SystemClock};

use super::database::open_store;
use super::error::StartError;
use super::parts::{self, StartedHsm};
use super::roots;
use super::steps::on_a_thread;
use crate::audit::FileSink;
use crate::config::Config;
use crate::store::Store;

/// The parts that are open before anything is served.
pub(super) struct Core {
    pub(super) hsm: StartedHsm,
    pub(super) store: Arc<dyn Store>,
    pub(super) audit: Arc<FileSink>,
    pub(super) clock: Arc<dyn Clock>,
}

impl Core {
    /// Opens the parts. Login, database and log do not need each other: the slowest decides how long it takes.
    pub(super) async fn open(config: &Config) -> Result<Self, StartError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        // The log needs neither of the others: the slower decides how long it takes.
        let audit = {
            let config = config.clone();
            on_a_thread("audit-open", move || parts::open_audit(&config))?
        };
        let panicked = |_| StartError::Bug("the start of a part panicked");
        let store = open_store(config).await?;
        // The PIN goes to no other token than the pinned one, so the pins come first.
        let retired = store.retired_roots().await?;
        let pins = roots::in_use(store.root_pins().await?, &retired)?;
        let serials = pins.into_iter().map(|(pin, _)| pin.token_serial).collect();
        let hsm = {
            let (config, clock) = (config.clone(), Arc::clone(&clock));
            on_a_thread("hsm-start", move || parts::start_hsm(&config, serials, &clock))?
        };
        let (hsm, audit) = tokio::join!(hsm, audit);
        let hsm = hsm.map_err(panicked)??;
        let audit = audit.map_err(panicked)??;
        Ok(Self { hsm, store, audit, clock })
    }
}
