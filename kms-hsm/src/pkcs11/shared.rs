//! What all threads of the provider share.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, TrySendError};
use kms_core::clock::Clock;

use crate::error::HsmError;
use crate::pkcs11::config::Pkcs11Config;
use crate::pkcs11::gate::Gate;
use crate::pkcs11::health::{Health, closed};
use crate::pkcs11::job::{Job, KeeperMessage, KeeperWork, Reply, SATURATED_RETRY, Ticket};
use crate::pkcs11::seat::Seat;
use crate::pkcs11::worker;

/// See the module's description.
pub(crate) struct Shared {
    pub(crate) config: Pkcs11Config,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) gate: Gate,
    pub(crate) health: Health,
    pub(crate) queue_in: Sender<Ticket>,
    pub(crate) queue_out: Receiver<Ticket>,
    pub(crate) keeper: Sender<KeeperMessage>,
    /// Jobs that wait for the keeper; its channel is unbounded, as releases must never block or be lost.
    pub(crate) keeper_waiting: AtomicUsize,
    pub(crate) keeper_seat: Seat,
    pub(crate) seats: Mutex<Vec<Arc<Seat>>>,
    pub(crate) loaded: Arc<AtomicUsize>,
    pub(crate) workers: AtomicUsize,
    pub(crate) written_off: AtomicUsize,
    pub(crate) reconnects: AtomicU64,
    pub(crate) serial: Mutex<String>,
    /// Told by each worker as it ends, so that closing can wait for the last one.
    pub(crate) ended: Sender<()>,
}

impl Shared {
    pub(crate) fn now(&self) -> Instant {
        self.clock.monotonic()
    }

    /// Queues a job for the workers, or answers it at once.
    pub(crate) fn submit(&self, job: Job) {
        if let Err(error) = self.health.check(|| self.now()) {
            return job.reply.fail(error);
        }
        match self.queue_in.try_send(Ticket::Job(Box::new(job))) {
            Ok(()) => {}
            Err(TrySendError::Full(Ticket::Job(job))) => {
                job.reply.fail(HsmError::Saturated { retry_after: SATURATED_RETRY });
            }
            Err(TrySendError::Disconnected(Ticket::Job(job))) => job.reply.fail(closed()),
            Err(_) => {}
        }
        // Closing may have come between the check and the queue: then no worker is left to answer.
        if self.workers.load(Ordering::Acquire) == 0 {
            self.refuse_waiting();
        }
    }

    /// Queues work for the keeper, or answers it at once.
    pub(crate) fn submit_keeper(&self, work: KeeperWork, reply: Reply, deadline: Instant) {
        if let Err(error) = self.health.check(|| self.now()) {
            return reply.fail(error);
        }
        if self.keeper_waiting.fetch_add(1, Ordering::AcqRel) >= self.config.keeper_capacity {
            self.keeper_waiting.fetch_sub(1, Ordering::AcqRel);
            return reply.fail(HsmError::Saturated { retry_after: SATURATED_RETRY });
        }
        if let Err(error) = self.keeper.send(KeeperMessage::Job { work, reply, deadline })
            && let KeeperMessage::Job { reply, .. } = error.into_inner()
        {
            reply.fail(closed());
        }
    }

    /// Opens the breaker and wakes the prober.
    pub(crate) fn trouble(&self, detail: &str) {
        if self.health.trip(detail) {
            // A keeper that has ended is being closed: there is nothing to probe for.
            let _ = self.keeper.send(KeeperMessage::Trouble);
        }
    }

    /// Returns the error that stands for the state of the breaker or the latch.
    pub(crate) fn unavailable(&self, detail: &str) -> HsmError {
        match self.health.check(|| self.now()) {
            Err(error) => error,
            Ok(()) => {
                HsmError::Unavailable { detail: detail.to_owned(), retry_after: SATURATED_RETRY }
            }
        }
    }

    /// Answers all that wait for a worker when there will be none.
    pub(crate) fn refuse_waiting(&self) {
        while let Ok(ticket) = self.queue_out.try_recv() {
            if let Ticket::Job(job) = ticket {
                job.reply.fail(self.unavailable("no HSM worker is left"));
            }
        }
    }

    /// Starts one more worker.
    pub(crate) fn spawn_worker(self: &Arc<Self>) -> std::io::Result<()> {
        let seat = Arc::new(Seat::default());
        let (shared, own) = (Arc::clone(self), Arc::clone(&seat));
        let ended = self.ended.clone();
        self.workers.fetch_add(1, Ordering::AcqRel);
        let thread = thread::Builder::new().name("hsm-worker".into()).spawn(move || {
            worker::run(&shared, &own);
            // Room for every worker there can be; the one who closes may have stopped waiting.
            let _ = ended.try_send(());
        });
        if let Err(error) = thread {
            self.workers.fetch_sub(1, Ordering::AcqRel);
            return Err(error);
        }
        self.seats.lock().unwrap_or_else(PoisonError::into_inner).push(seat);
        Ok(())
    }
}
