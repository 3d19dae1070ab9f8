//! The state journal, opened when the roots are: its MACs are made with them.

use std::sync::Arc;
use std::time::Duration;

use kms_hsm::{Hsm, HsmError};
use tokio::time::timeout;

use super::error::StartError;
use super::open::Core;
use super::roots::{self, Pinned, waits};
use super::steps::on_a_thread;
use crate::config::Config;
use crate::journal::{ClosedJournal, FileJournal, Gap, JournalStartError, Opening, SharedJournal};
use crate::transport::shutdown::Shutdown;

/// How long to wait before a token that is away is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

impl Core {
    /// Opens the journal, however long the token is away. One of a token that is latched takes nothing: nor does the token, until
    /// the next start.
    ///
    /// # Errors
    /// [`StartError::Journal`] when it is not all that the token knows of.
    pub(super) async fn open_journal(
        &self,
        config: &Config,
        pins: &[Pinned],
        accept: Option<Gap>,
        shutdown: &mut Shutdown,
    ) -> Result<SharedJournal, StartError> {
        let opening = Opening {
            path: config.journal_path(),
            hsm: Arc::clone(&self.hsm.hsm) as Arc<dyn Hsm>,
            clock: Arc::clone(&self.clock),
            generations: roots::oldest(pins)..=roots::newest(pins),
            accept,
            covered: None,
        };
        loop {
            let opening = opening.clone();
            let opened = on_a_thread("journal-open", move || FileJournal::open(opening))?;
            let opened =
                opened.await.map_err(|_| StartError::Bug("the start of a part panicked"))?;
            match opened {
                Ok(journal) => {
                    if let Some(fence) = crate::journal::Journal::fence(&journal) {
                        tracing::warn!(alert = "protect_disabled", %fence, "a gap in the state journal was accepted: keys made before do not protect until they are rotated");
                    }
                    return Ok(Arc::new(journal));
                }
                Err(JournalStartError::Hsm(HsmError::Latched { .. })) => {
                    return Ok(Arc::new(ClosedJournal::default()));
                }
                Err(JournalStartError::Hsm(error)) if waits(&error) => {
                    tracing::warn!(%error, "the state journal cannot be opened yet; trying again");
                    if timeout(RETRY_PAUSE, shutdown.triggered()).await.is_ok() {
                        return Err(error.into());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
