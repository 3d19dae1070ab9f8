//! The root sets: pinned in the database, opened in the HSM, and in dev mode made once.

use std::time::{Duration, Instant};

use kms_core::clock::Clock;
use kms_core::id::RootGeneration;
use kms_core::key::{RowMac, Sealed};
use kms_core::root::{RetiredRoot, RootPin};
use kms_core::secret::equal_in_constant_time;
use kms_hsm::{Hsm, HsmError, TokenKeys};
use tokio::time::timeout;

use super::error::StartError;
use super::missing::MissingRoots;
use super::parts;
use crate::config::Config;
use crate::store::{FIRST_GENERATION, Store};
use crate::transport::shutdown::Shutdown;

/// How long the HSM may take to open or make a root set.
const ROOT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait before a root set is tried again on a token that is away.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Objects of an earlier start that are named in one line; an interrupted one leaves two.
const MAX_NAMED: usize = 8;

/// A pinned root set, with the MAC of its row.
pub(super) type Pinned = (RootPin, RowMac);

/// Leaves out the root sets that are retired.
///
/// # Errors
/// [`StartError::RootPinIntegrity`] when none is left of those that there are: the newest is never retired, and a database without
/// a root is no reason to make one (`a_root_that_was_retired_by_hand_is_refused`).
pub(super) fn in_use(
    pins: Vec<Pinned>,
    retired: &[Sealed<RetiredRoot>],
) -> Result<Vec<Pinned>, StartError> {
    let newest = newest(&pins);
    let is_retired = |pin: &RootPin| retired.iter().any(|root| root.row.retired == pin.generation);
    let there_were = !pins.is_empty();
    let left: Vec<Pinned> = pins.into_iter().filter(|(pin, _)| !is_retired(pin)).collect();
    if there_were && left.is_empty() {
        return Err(StartError::RootPinIntegrity(newest.get()));
    }
    Ok(left)
}

/// Checks the MACs of retired root sets, with roots that are open: whoever takes one out of use takes its rows along.
///
/// # Errors
/// [`StartError::RootPinIntegrity`] when one was edited, or is sealed under a root that is not open.
pub(super) async fn verify_retired(
    hsm: &dyn Hsm,
    clock: &dyn Clock,
    pins: &[Pinned],
    retired: &[Sealed<RetiredRoot>],
) -> Result<(), StartError> {
    for Sealed { row, mac, generation } in retired {
        let wrong = StartError::RootPinIntegrity(row.retired.get());
        // Sealed under one that was retired since: of a chain the newest is what counts.
        let is_open = pins.iter().any(|(pin, _)| pin.generation == *generation);
        let was_open = retired.iter().any(|other| other.row.retired == *generation);
        if !is_open {
            if was_open && *generation > row.retired {
                continue;
            }
            return Err(wrong);
        }
        let macs = hsm.mac(*generation, vec![row.mac_input(*generation)], deadline(clock)).await?;
        if !macs.first().is_some_and(|made| equal_in_constant_time(&made.0, &mac.0)) {
            return Err(wrong);
        }
    }
    Ok(())
}

/// Reads the pins of root sets in use; in dev mode makes the first when there is none.
///
/// # Errors
/// [`StartError::NoRoots`] when there is none and none was to be made, or none could be made.
pub(super) async fn pinned(
    hsm: &dyn Hsm,
    store: &dyn Store,
    clock: &dyn Clock,
    config: &Config,
    create: bool,
) -> Result<Vec<Pinned>, StartError> {
    let pins = in_use(store.root_pins().await?, &store.retired_roots().await?)?;
    if !pins.is_empty() {
        return Ok(pins);
    }
    let token = parts::token(config)?;
    if !create {
        let missing = MissingRoots::pinned(config, token, Some(&hsm.status().health));
        return Err(StartError::NoRoots(Box::new(missing)));
    }
    let made = hsm.create_root(FIRST_GENERATION, deadline(clock)).await;
    let pin = made.map_err(|error| {
        StartError::NoRoots(Box::new(MissingRoots::made(config, token, &error)))
    })?;
    hsm.open_roots(vec![pin.clone()], deadline(clock)).await?;
    let mac = mac_of(hsm, clock, &pin).await?;
    // Until here nothing refers to the new objects: an interrupted start makes others, as nothing says that those which
    // it finds are its own. Their ids are drawn, and no check value of them was kept.
    store.add_root_pin(pin.clone(), mac).await?;
    match hsm.list_token_keys(deadline(clock)).await {
        Ok(left) => tell_of_leftovers(&left),
        // The reconciler looks again, and reports them as orphans.
        Err(error) => tracing::warn!(%error, "whether the token had other keys cannot be seen"),
    }
    Ok(vec![(pin, mac)])
}

/// Says what is to be done with keys of a token for which there was no database: they may be all that is left of one.
fn tell_of_leftovers(left: &TokenKeys) {
    let ids = left.residents.iter().map(|id| &id.0[..]);
    let ids: Vec<&[u8]> = ids.chain(left.strays.iter().map(|stray| &stray.id[..])).collect();
    if ids.is_empty() {
        return;
    }
    let named: Vec<String> =
        ids.iter().take(MAX_NAMED).map(|id| data_encoding::HEXLOWER.encode(id)).collect();
    tracing::warn!(
        objects = ids.len(),
        cka_ids = named.join(" "),
        "root keys were made on a token that has other secret keys. Were there a database and an audit log before? Then \
         stop, and bring them back: those are their keys. Is this a first start again that was interrupted? Then they \
         are of no use: remove them (pkcs11-tool --login --delete-object --type secrkey --id CKA_ID), or the whole \
         directory and start anew"
    );
}

/// Opens pinned root sets, however long the token is away, and checks the MACs of the pins.
///
/// # Errors
/// [`StartError::Hsm`] when the module cannot be used, [`StartError::RootPinIntegrity`] when a pin was edited.
pub(super) async fn open(
    hsm: &dyn Hsm,
    clock: &dyn Clock,
    config: &Config,
    pins: &[Pinned],
    shutdown: &mut Shutdown,
) -> Result<(), StartError> {
    let wanted: Vec<RootPin> = pins.iter().map(|(pin, _)| pin.clone()).collect();
    loop {
        match hsm.open_roots(wanted.clone(), deadline(clock)).await {
            Ok(()) => break,
            Err(error) if waits(&error) => {
                tracing::warn!(%error, "root sets cannot be opened yet; trying again");
                if timeout(RETRY_PAUSE, shutdown.triggered()).await.is_ok() {
                    return Err(error.into());
                }
            }
            // The process stays: a service manager that restarts it would have a refused PIN tried again, and locked.
            // The HSM layer refuses everything until then, readiness says no, and the operator reads why.
            Err(HsmError::Latched { reason }) => {
                tracing::error!(
                    %reason,
                    module = %config.hsm.module.display(),
                    token_serial = hsm.status().token_serial,
                    generation = newest(pins).get(),
                    "the hsm is latched: nothing is served until this is mended"
                );
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
    verify_pins(hsm, clock, pins).await
}

/// Checks the MACs of the pins, whose root sets are open.
///
/// # Errors
/// [`StartError::RootPinIntegrity`] when a pin was edited.
pub(super) async fn verify_pins(
    hsm: &dyn Hsm,
    clock: &dyn Clock,
    pins: &[Pinned],
) -> Result<(), StartError> {
    for (pin, mac) in pins {
        let found = mac_of(hsm, clock, pin).await?;
        if !equal_in_constant_time(&found.0, &mac.0) {
            return Err(StartError::RootPinIntegrity(pin.generation.get()));
        }
    }
    Ok(())
}

/// Returns the generation that new rows are sealed with: the highest.
pub(super) fn newest(pins: &[Pinned]) -> RootGeneration {
    pins.iter().map(|(pin, _)| pin.generation).max().unwrap_or(FIRST_GENERATION)
}

/// Returns the oldest generation that is open.
pub(super) fn oldest(pins: &[Pinned]) -> RootGeneration {
    pins.iter().map(|(pin, _)| pin.generation).min().unwrap_or(FIRST_GENERATION)
}

async fn mac_of(hsm: &dyn Hsm, clock: &dyn Clock, pin: &RootPin) -> Result<RowMac, StartError> {
    let inputs = vec![pin.mac_input()];
    let macs = hsm.mac(pin.generation, inputs, deadline(clock)).await?;
    macs.into_iter().next().ok_or(StartError::Bug("the hsm gave no MAC"))
}

pub(super) fn deadline(clock: &dyn Clock) -> Instant {
    clock.monotonic() + ROOT_TIMEOUT
}

/// What passes by itself.
pub(super) const fn waits(error: &HsmError) -> bool {
    matches!(
        error,
        HsmError::Unavailable { .. }
            | HsmError::Saturated { .. }
            | HsmError::QueueDeadline
            | HsmError::CallDeadline
    )
}
