//! What all threads of the provider share.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};
use kms_core::clock::Clock;

use crate::error::HsmError;
use crate::pkcs11::config::Pkcs11Config;
use crate::pkcs11::gate::Gate;
use crate::pkcs11::health::Health;
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
    pub(crate) keeper_out: Receiver<KeeperMessage>,
    pub(crate) keeper_ended: AtomicBool,
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
        self.requeue(Box::new(job));
        // Closing may have come between the check and the queue: then no worker is left to answer.
        if self.workers.load(Ordering::Acquire) == 0 {
            self.refuse_waiting();
        }
    }

    /// Queues a job that was admitted before.
    pub(crate) fn requeue(&self, job: Box<Job>) {
        if let Err(error) = self.queue_in.try_send(Ticket::Job(job))
            && let Ticket::Job(job) = error.into_inner()
        {
            job.reply.fail(HsmError::Saturated { retry_after: SATURATED_RETRY });
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
        self.tell_keeper(KeeperMessage::Job { work, reply, deadline });
    }

    /// Sends to the keeper, or answers for it when it has ended.
    pub(crate) fn tell_keeper(&self, message: KeeperMessage) {
        // The channel is unbounded and its receiver is ours: sending cannot fail.
        let _ = self.keeper.send(message);
        if self.keeper_ended.load(Ordering::Acquire) {
            self.refuse_waiting_for_keeper(|_| false);
        }
    }

    /// Opens the breaker and wakes the prober.
    pub(crate) fn trouble(&self, detail: &str) {
        if self.health.trip(detail) {
            self.tell_keeper(KeeperMessage::Trouble);
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

    /// Answers the jobs in the queue whose deadline has passed, when every worker hangs.
    pub(crate) fn expire_waiting(&self, now: Instant) {
        for _ in 0..self.queue_out.len() {
            match self.queue_out.try_recv() {
                Ok(Ticket::Job(job)) if now >= job.deadline => {
                    job.reply.fail(HsmError::QueueDeadline);
                }
                Ok(Ticket::Job(job)) => self.requeue(job),
                Ok(Ticket::Stop) => drop(self.queue_in.try_send(Ticket::Stop)),
                Err(_) => return,
            }
        }
    }

    /// Answers all that wait for the keeper and are not to be kept, when the keeper hangs or has ended.
    pub(crate) fn refuse_waiting_for_keeper(&self, keep: impl Fn(Instant) -> bool) {
        for _ in 0..self.keeper_out.len() {
            match self.keeper_out.try_recv() {
                Ok(KeeperMessage::Job { reply, deadline, .. }) if !keep(deadline) => {
                    self.keeper_waiting.fetch_sub(1, Ordering::AcqRel);
                    reply.fail(HsmError::QueueDeadline);
                }
                Ok(KeeperMessage::Rescue { job, .. }) if !keep(job.deadline) => {
                    job.reply.fail(HsmError::QueueDeadline);
                }
                Ok(other) => drop(self.keeper.send(other)),
                Err(_) => return,
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
