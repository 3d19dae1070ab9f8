//! Audit: no effect leaves the process before its record is durable.
//!
//! Responsible for the seam [`AuditSink`] and its implementations. It must never drop a record it has acknowledged, and
//! never answer before the record is on stable storage.

mod accept_code;
pub mod aggregate;
mod agree;
mod chain;
mod file;
mod files;
mod log;
mod mark;
mod memory;
mod past;
pub mod refusals;
mod scan;
pub mod verify;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use kms_core::audit::{AuditRecord, ManifestStamp};
use kms_core::fault::{Fault, Retry};
use tokio::sync::oneshot;

pub use self::accept_code::{AcceptCode, Comparisons, InvalidAcceptCode};
pub use self::agree::Divergence;
pub use self::chain::{EntryTooLong, Head, LineFault, MAX_ENTRY_BYTES, MAX_LINE_BYTES};
pub use self::file::{FileSink, MAX_WAITING_BYTES, MAX_WAITING_RECORDS, QUEUE};
pub use self::files::{MAX_FILE_NUMBER, ROTATE_BYTES};
pub use self::log::AuditStartError;
pub use self::memory::MemorySink;
pub use self::past::{ACCEPT_STORE, MAX_PENDING, Past};

/// Why a record could not be made durable. The operation it belongs to is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// The log cannot be written: full or read-only disk, I/O error. Recovers by itself when writing works again.
    #[error("the audit log cannot be written: {detail}")]
    Unwritable {
        /// For the operator.
        detail: String,
    },
    /// More records wait than the queue holds.
    #[error("the audit queue is full")]
    Saturated,
    /// The writer is gone: the server is stopping.
    #[error("the audit log is closed")]
    Closed,
}

impl AuditError {
    /// Returns whose fault it is.
    pub const fn fault(&self) -> Fault {
        Fault::Audit
    }

    /// Returns whether trying again may help.
    pub const fn retry(&self) -> Retry {
        Retry::Later
    }
}

/// Where records go.
///
/// Order: records are chained in the order in which `append` was called. One call is one atomic group: a batch is many
/// leaves and one fsync; after a crash either all of its records are there or none was acknowledged. It has at most
/// [`MAX_WAITING_RECORDS`] records of [`MAX_WAITING_BYTES`] in all; one without records is acknowledged too.
pub trait AuditSink: Send + Sync + fmt::Debug + 'static {
    /// Queues records; the answer comes when they are durable.
    fn append(&self, records: Vec<AuditRecord>) -> Appended;

    /// Returns whether the sink could write when it last tried.
    fn healthy(&self) -> bool;

    /// Returns what the log says of the past: of every record that was acknowledged, in this process or before.
    fn past(&self) -> Past;

    /// Returns the last manifest of one tenant that [`AuditSink::past`] would tell of.
    fn last_manifest(&self, tenant: &str) -> Option<ManifestStamp> {
        self.past().stamps().get(tenant).cloned()
    }

    /// Writes what is queued, then stops.
    fn close(&self);
}

/// The answer to [`AuditSink::append`], to be awaited.
#[derive(Debug)]
pub struct Appended(oneshot::Receiver<Result<(), AuditError>>);

impl Appended {
    /// Makes an answer to be given later, and the place to give it.
    pub fn channel() -> (oneshot::Sender<Result<(), AuditError>>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(receiver))
    }

    /// Makes an answer that is already there.
    pub fn ready(result: Result<(), AuditError>) -> Self {
        let (sender, appended) = Self::channel();
        // The receiver is alive: it is in `appended`.
        let _ = sender.send(result);
        appended
    }
}

impl Future for Appended {
    type Output = Result<(), AuditError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or(Err(AuditError::Closed)))
    }
}

/// A shared sink.
pub type SharedAuditSink = Arc<dyn AuditSink>;

#[cfg(test)]
mod file_tests;
#[cfg(test)]
mod suite;

#[cfg(test)]
pub(crate) mod sample {
    //! A record for tests.

    use kms_core::audit::{AuditRecord, Decision, Phase};
    use kms_core::clock::Timestamp;
    use kms_core::id::EventId;

    /// Makes a record that is told apart by `number`.
    pub(crate) fn record(number: u64) -> AuditRecord {
        let mut random = [0; 16];
        random[8..].copy_from_slice(&number.to_be_bytes());
        AuditRecord {
            time: Timestamp::from_unix_ms(1_700_000_000_000),
            event_id: EventId::from_random(random),
            item: None,
            phase: Phase::Complete,
            intent_id: None,
            operation: "kms.v1.CryptoService/Wrap".into(),
            principal: "spiffe://holdfast.test/app".into(),
            authn_method: "mtls".into(),
            source: "192.0.2.1:40000".into(),
            tenant: "t1".into(),
            resource: Some("tenants/t1/keys/k1".into()),
            key_uid: None,
            key_version: None,
            from_version: None,
            context: None,
            decision: Decision::Allow { policies: vec!["static".into()] },
            policy_revision: "1".into(),
            result: "OK".into(),
            reason: None,
            queue_us: 10,
            hsm_us: 20,
            manifest: None,
            counter: None,
            count: None,
        }
    }
}
