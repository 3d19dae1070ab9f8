//! What all threads of the provider share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never};
use kms_core::clock::Clock;

use crate::error::HsmError;
use crate::hsm::ImportKeySpec;
use crate::pkcs11::config::Pkcs11Config;
use crate::pkcs11::gate::Gate;
use crate::pkcs11::health::Health;
use crate::pkcs11::inbox::Inbox;
use crate::pkcs11::job::{Cause, Job, KeeperMessage, KeeperWork, Reply, SATURATED_RETRY, Ticket};
use crate::pkcs11::lane::{LANE_QUEUE, LaneTicket};
use crate::pkcs11::seat::Seat;

/// When the lane may have made one of the key pairs that wait.
const LANE_RETRY: Duration = Duration::from_secs(1);
/// Between two looks at whether a thread has ended.
const JOIN_PAUSE: Duration = Duration::from_millis(1);

/// See the module's description.
pub(crate) struct Shared {
    pub(crate) config: Pkcs11Config,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) gate: Gate,
    pub(crate) health: Health,
    pub(crate) queue_in: Sender<Ticket>,
    pub(crate) queue_out: Receiver<Ticket>,
    pub(crate) keeper: Arc<Inbox>,
    pub(crate) keeper_ended: AtomicBool,
    /// Jobs that wait for the keeper, and workers' jobs that wait to be rescued; its inbox itself has no bound, as
    /// releases must never block or be lost.
    pub(crate) keeper_waiting: AtomicUsize,
    /// Tickets that were taken from the queue to look at their deadlines, and found no place in it again yet.
    pub(crate) held: Mutex<VecDeque<Ticket>>,
    pub(crate) keeper_seat: Seat,
    pub(crate) lane_in: Sender<LaneTicket>,
    pub(crate) lane_out: Receiver<LaneTicket>,
    pub(crate) lane_seat: Seat,
    pub(crate) seats: Mutex<Vec<Arc<Seat>>>,
    pub(crate) loaded: Arc<AtomicUsize>,
    pub(crate) unwrapped: AtomicU64,
    pub(crate) workers: AtomicUsize,
    pub(crate) written_off: AtomicUsize,
    pub(crate) reconnects: AtomicU64,
    pub(crate) serial: Mutex<String>,
    /// Those of workers and keeper, to be joined at the end.
    pub(crate) threads: Mutex<Vec<JoinHandle<()>>>,
    /// Told by each worker as it ends, so that closing can wait for the last one.
    pub(crate) ended: Sender<()>,
}

impl Shared {
    /// Makes it, with no thread yet.
    pub(crate) fn new(config: Pkcs11Config, clock: Arc<dyn Clock>, ended: Sender<()>) -> Self {
        let (queue_in, queue_out) = bounded(config.queue_capacity);
        let (lane_in, lane_out) = bounded(LANE_QUEUE);
        Self {
            config,
            clock,
            gate: Gate::default(),
            health: Health::starting(),
            queue_in,
            queue_out,
            keeper: Arc::default(),
            keeper_ended: AtomicBool::new(false),
            keeper_waiting: AtomicUsize::new(0),
            held: Mutex::default(),
            keeper_seat: Seat::default(),
            lane_in,
            lane_out,
            lane_seat: Seat::default(),
            seats: Mutex::default(),
            loaded: Arc::default(),
            unwrapped: AtomicU64::new(0),
            workers: AtomicUsize::new(0),
            written_off: AtomicUsize::new(0),
            reconnects: AtomicU64::new(0),
            serial: Mutex::default(),
            threads: Mutex::default(),
            ended,
        }
    }

    pub(crate) fn now(&self) -> Instant {
        self.clock.monotonic()
    }

    /// Queues a job for the workers, or answers it at once.
    pub(crate) fn submit(&self, job: Box<Job>) {
        if let Err(error) = self.health.check(|| self.now()) {
            return job.fail(error);
        }
        self.requeue(job);
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
            job.fail(HsmError::Saturated { retry_after: SATURATED_RETRY });
        }
    }

    /// Queues work for the keeper, or answers it at once.
    pub(crate) fn submit_keeper(&self, work: KeeperWork, reply: Reply, deadline: Instant) {
        if let Err(error) = self.health.check(|| self.now()) {
            return reply.fail(error);
        }
        if let Err(error) = self.room_at_keeper() {
            return reply.fail(error);
        }
        self.tell_keeper(KeeperMessage::Job { work, reply, deadline });
    }

    /// Queues a key pair for the lane, or answers it at once.
    pub(crate) fn submit_lane(&self, spec: ImportKeySpec, reply: Reply, deadline: Instant) {
        if let Err(error) = self.health.check(|| self.now()) {
            return reply.fail(error);
        }
        let ticket = LaneTicket::Generate { spec, reply, deadline };
        if let Err(error) = self.lane_in.try_send(ticket)
            && let LaneTicket::Generate { reply, .. } = error.into_inner()
        {
            reply.fail(HsmError::Saturated { retry_after: LANE_RETRY });
        }
    }

    /// Answers all that wait for the lane when it has ended.
    pub(crate) fn refuse_waiting_for_lane(&self) {
        for ticket in self.lane_out.try_iter() {
            if let LaneTicket::Generate { reply, .. } = ticket {
                reply.fail(self.unavailable("the lane has ended"));
            }
        }
    }

    /// Hands a worker's job to the keeper, or answers it at once.
    pub(crate) fn submit_rescue(&self, job: Box<Job>, cause: Cause, login: u64) {
        if let Err(error) = self.room_at_keeper() {
            return job.fail(error);
        }
        self.tell_keeper(KeeperMessage::Rescue { job, cause, login });
    }

    fn room_at_keeper(&self) -> Result<(), HsmError> {
        if self.keeper_waiting.fetch_add(1, Ordering::AcqRel) < self.config.keeper_capacity {
            return Ok(());
        }
        self.keeper_waiting.fetch_sub(1, Ordering::AcqRel);
        Err(HsmError::Saturated { retry_after: SATURATED_RETRY })
    }

    /// Sends to the keeper, or answers for it when it has ended.
    pub(crate) fn tell_keeper(&self, message: KeeperMessage) {
        self.keeper.send(message);
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
    ///
    /// Invariant: what tells a worker to stop stays: one that comes yet, or is left, would wait for ever without it (test
    /// `what_stops_a_worker_outlasts_the_refusal_of_those_who_wait`).
    pub(crate) fn refuse_waiting(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.extend(self.queue_out.try_iter());
        for ticket in std::mem::take(&mut *held) {
            match ticket {
                Ticket::Job(job) => job.fail(self.unavailable("no HSM worker is left")),
                Ticket::Stop => held.push_back(ticket),
            }
        }
        self.put_back(&mut held);
    }

    /// Answers the jobs in the queue whose deadline has passed; what is left keeps its order.
    ///
    /// Invariant: no ticket is lost, and no admitted job refused, when others take the places that became free meanwhile:
    /// what finds none is held until the next time (test `no_ticket_is_lost_when_the_queue_fills_meanwhile`).
    pub(crate) fn expire_waiting(&self, now: Instant) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = self.queue_out.len();
        held.extend(self.queue_out.try_iter().take(waiting));
        for ticket in std::mem::take(&mut *held) {
            match ticket {
                Ticket::Job(job) if now >= job.deadline => {
                    let error = job.expired();
                    job.fail(error);
                }
                ticket => held.push_back(ticket),
            }
        }
        self.put_back(&mut held);
    }

    /// Puts held tickets into the queue again, as far as there are places.
    fn put_back(&self, held: &mut VecDeque<Ticket>) {
        while let Some(ticket) = held.pop_front() {
            if let Err(error) = self.queue_in.try_send(ticket) {
                held.push_front(error.into_inner());
                return;
            }
        }
    }

    /// Answers all that wait for the keeper and are not to be kept: all when it has ended, else those past their deadline.
    pub(crate) fn refuse_waiting_for_keeper(&self, keep: impl Fn(Instant) -> bool) {
        let refused = self.keeper.take_out(|message| match message {
            KeeperMessage::Job { deadline, .. } => !keep(*deadline),
            KeeperMessage::Rescue { job, .. } => !keep(job.deadline),
            KeeperMessage::Release { .. } | KeeperMessage::Trouble | KeeperMessage::Close(_) => {
                false
            }
        });
        for message in refused {
            match message {
                KeeperMessage::Job { reply, .. } => {
                    self.keeper_waiting.fetch_sub(1, Ordering::AcqRel);
                    reply.fail(HsmError::QueueDeadline);
                }
                // It was tried already.
                KeeperMessage::Rescue { job, .. } => {
                    self.keeper_waiting.fetch_sub(1, Ordering::AcqRel);
                    job.fail(HsmError::CallDeadline);
                }
                _ => {}
            }
        }
    }

    /// Keeps a thread that calls the module, to be joined at the end.
    pub(crate) fn keep_thread(&self, thread: JoinHandle<()>) {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
    }

    /// Joins the threads that call the module, as far as they have ended by then.
    ///
    /// Invariant: whoever hears that the HSM is closed may end the process. What a thread leaves behind in the module's
    /// libraries is cleaned up after its last statement, and that beside the process's own clean-up crashes (SIGSEGV seen
    /// with OpenSSL 3 under SoftHSM 2.6.1, once in some thousand ends).
    pub(crate) fn join_threads(&self, until: Instant) {
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            while !thread.is_finished() && self.now() < until {
                let _ = never::<()>().recv_timeout(JOIN_PAUSE);
            }
            // One that hangs in the module is left: it may hang for ever.
            if thread.is_finished() && thread.join().is_err() {
                tracing::error!("a thread of the HSM layer died");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kms_core::clock::SystemClock;
    use kms_core::secret::Plaintext;

    use super::*;
    use crate::hsm::Pending;
    use crate::pkcs11::config::TokenSelector;
    use crate::pkcs11::job::Work;

    /// Two places for those who wait for a worker.
    fn shared() -> Shared {
        let mut config = Pkcs11Config::new("m".into(), TokenSelector::Label("x".into()));
        config.queue_capacity = 2;
        Shared::new(config, Arc::new(SystemClock), bounded(1).0)
    }

    fn job(deadline: Instant, retried: bool) -> (Ticket, Pending<Plaintext>) {
        let (sender, pending) = Pending::channel();
        let (work, reply) = (Work::Random(1), Some(Reply::Random(sender)));
        let job = Job { work, reply, deadline, queued_at: deadline, retried };
        (Ticket::Job(Box::new(job)), pending)
    }

    #[test]
    fn who_waits_is_answered_at_its_deadline_and_told_whether_it_was_tried() {
        let shared = shared();
        let now = shared.now();
        let later = now + Duration::from_millis(1);
        let (untried, of_untried) = job(later, false);
        let (tried, of_tried) = job(later, true);
        shared.queue_in.try_send(untried).unwrap();
        shared.queue_in.try_send(tried).unwrap();
        shared.expire_waiting(now);
        assert_eq!(shared.queue_out.len(), 2, "a moment before");
        shared.expire_waiting(later);
        assert_eq!(of_untried.wait().unwrap_err(), HsmError::QueueDeadline);
        assert_eq!(of_tried.wait().unwrap_err(), HsmError::CallDeadline);
        assert_eq!(shared.queue_out.len(), 0);
    }

    #[test]
    fn no_ticket_is_lost_when_the_queue_fills_meanwhile() {
        let shared = shared();
        let now = shared.now();
        let later = |seconds| job(now + Duration::from_secs(seconds), false).0;
        // Two were taken out for a look, and two others came into their places.
        shared.held.lock().unwrap().extend([Ticket::Stop, later(1)]);
        shared.queue_in.try_send(later(2)).unwrap();
        shared.queue_in.try_send(later(3)).unwrap();
        let mut order = Vec::new();
        for _ in 0..2 {
            shared.expire_waiting(now);
            order.extend(shared.queue_out.try_iter().map(|ticket| match ticket {
                Ticket::Stop => 0,
                Ticket::Job(job) => (job.deadline - now).as_secs(),
            }));
        }
        assert_eq!(order, [0, 1, 2, 3]);
        assert!(shared.held.lock().unwrap().is_empty());
    }

    #[test]
    fn what_stops_a_worker_outlasts_the_refusal_of_those_who_wait() {
        let shared = shared();
        let (ticket, pending) = job(shared.now() + Duration::from_secs(9), false);
        shared.queue_in.try_send(Ticket::Stop).unwrap();
        shared.queue_in.try_send(ticket).unwrap();
        shared.held.lock().unwrap().extend([Ticket::Stop, Ticket::Stop]);
        shared.refuse_waiting();
        assert!(matches!(pending.wait(), Err(HsmError::Unavailable { .. })));
        // Two places in the queue: the third waits until one is free.
        let stops = |shared: &Shared| {
            let tickets = shared.queue_out.try_iter();
            tickets.filter(|ticket| matches!(ticket, Ticket::Stop)).count()
        };
        assert_eq!(stops(&shared), 2);
        shared.expire_waiting(shared.now());
        assert_eq!(stops(&shared), 1);
        assert!(shared.held.lock().unwrap().is_empty());
    }

    #[test]
    fn who_is_held_is_answered_when_no_worker_is_left() {
        let shared = shared();
        let (ticket, pending) = job(shared.now() + Duration::from_secs(9), false);
        shared.held.lock().unwrap().push_back(ticket);
        shared.refuse_waiting();
        assert!(matches!(pending.wait(), Err(HsmError::Unavailable { .. })));
    }
}
