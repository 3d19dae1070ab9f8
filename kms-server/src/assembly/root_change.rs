//! `kms-server root`: makes and pins the next root set, and retires an old one, while no server runs.

use std::sync::Arc;

use kms_core::id::RootGeneration;
use kms_core::import_job::MAX_OPEN_IMPORT_JOBS;
use kms_hsm::Hsm;

use super::error::StartError;
use super::open::Core;
use super::run::close_hsm;
use super::{parts, roots};
use crate::audit::{AuditSink as _, SharedAuditSink};
use crate::config::Config;
use crate::service::{Kms, Parts, SystemRandomness};
use crate::transport::shutdown::Shutdown;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootChange {
    /// Make the next root set.
    Stage,
    /// Retire one that nothing depends on.
    Retire {
        /// Which.
        generation: RootGeneration,
        /// Why.
        reason: String,
    },
}

/// Changes the root sets of a configuration; returns the generation that was made or retired. Blocks.
///
/// # Errors
/// As of a start; [`StartError::RootChange`] when nothing was changed.
pub fn change_root(config: &Config, change: &RootChange) -> Result<RootGeneration, StartError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(StartError::system("start the threads"))?;
    runtime.block_on(async {
        let core = Core::open(config).await?;
        let hsm = Arc::clone(&core.hsm.hsm);
        let changed = core.change_root(config, change).await;
        core.store.close().await;
        core.audit.close();
        close_hsm(hsm).await;
        changed
    })
}

impl Core {
    async fn change_root(
        &self,
        config: &Config,
        change: &RootChange,
    ) -> Result<RootGeneration, StartError> {
        let hsm: Arc<dyn Hsm> = Arc::clone(&self.hsm.hsm) as _;
        let pins = roots::pinned(&*hsm, &*self.store, &*self.clock, config, false).await?;
        let wanted = pins.iter().map(|(pin, _)| pin.clone()).collect();
        hsm.open_roots(wanted, roots::deadline(&*self.clock)).await?;
        roots::verify_pins(&*hsm, &*self.clock, &pins).await?;
        let retired = self.store.retired_roots().await?;
        roots::verify_retired(&*hsm, &*self.clock, &pins, &retired).await?;
        let audit: SharedAuditSink = Arc::clone(&self.audit) as _;
        let (_keep, mut shutdown) = Shutdown::channel();
        // Opened by every start: from then on the newest root vouches for all of it, so that an older one can go.
        let journal = self.open_journal(config, &pins, None, &mut shutdown).await?;
        let kms = Kms::new(Parts {
            hsm,
            store: Arc::clone(&self.store),
            audit,
            journal,
            clock: Arc::clone(&self.clock),
            policy: parts::policy(config)?,
            randomness: Arc::new(SystemRandomness),
            keyring: parts::keyring(config, roots::oldest(&pins), roots::newest(&pins)),
            allow_rsa_oaep_sha1: false,
            max_open_import_jobs: MAX_OPEN_IMPORT_JOBS,
        });
        // Of a database that is not the one the log has last seen nothing is changed.
        super::compare::compare(&kms, None, &mut shutdown).await?;
        match change {
            RootChange::Stage => Ok(kms.stage_root().await?),
            RootChange::Retire { generation, reason } => {
                kms.retire_root(*generation, reason).await?;
                Ok(*generation)
            }
        }
    }
}
