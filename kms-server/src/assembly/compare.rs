//! The database is compared with the audit log before anything is done with it.

use std::time::Duration;

use kms_hsm::HsmError;
use tokio::time::timeout;

use super::error::StartError;
use super::roots::waits;
use crate::audit::AcceptCode;
use crate::keyring::KeyringError;
use crate::service::{CompareError, Compared, Kms};
use crate::transport::shutdown::Shutdown;

/// How long to wait before a token that is away is asked again for MACs.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Compares, however long the token is away.
///
/// # Errors
/// [`StartError::Compare`] when the database is not to be served.
pub(super) async fn compare(
    kms: &Kms,
    accept: Option<AcceptCode>,
    shutdown: &mut Shutdown,
) -> Result<(), StartError> {
    loop {
        match kms.compare_store(accept).await {
            Ok(compared) => {
                tell(compared, accept.is_some());
                return Ok(());
            }
            Err(CompareError::Unverified(KeyringError::Hsm(error))) if waits(&error) => {
                tracing::warn!(%error, "the manifests cannot be verified yet; trying again");
                if timeout(RETRY_PAUSE, shutdown.triggered()).await.is_ok() {
                    return Err(error.into());
                }
            }
            // A latch is lifted by the next start alone, which compares. Until then the HSM layer refuses what needs a key,
            // and nothing is recovered or forgotten, so that no row is acted upon. It comes before any divergence: the end of
            // the process would have a service manager try the refused PIN again, and lock it.
            Err(CompareError::Unverified(KeyringError::Hsm(HsmError::Latched { .. }))) => {
                tracing::warn!("the database is not compared with the log: the hsm is latched");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn tell(compared: Compared, is_code_given: bool) {
    let Compared { agreeing, unknown, accepted } = compared;
    if accepted > 0 {
        tracing::warn!(accepted, "the database was accepted as it is, and the log says so");
        return;
    }
    if unknown > 0 {
        tracing::warn!(
            agreeing,
            unknown,
            "the log has no manifest of some tenants of the database: nothing to compare them with"
        );
    } else {
        tracing::info!(agreeing, "the database is the one that the log has last seen");
    }
    if is_code_given {
        tracing::warn!(
            "--accept-restored-store was not needed, accepted nothing, and can go from the command line"
        );
    }
}
