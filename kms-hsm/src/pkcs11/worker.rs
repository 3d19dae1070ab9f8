//! A worker: one thread that owns one session and takes jobs from the shared queue.
//!
//! It never creates or destroys objects, never finds, never logs in: what needs that goes to the keeper.

use std::sync::Arc;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use cryptoki::session::Session;

use crate::error::HsmError;
use crate::pkcs11::ckr::Failure;
use crate::pkcs11::crypt::{self, Bench};
use crate::pkcs11::gate::{Inside, Live, Refused};
use crate::pkcs11::iv::IvPool;
use crate::pkcs11::job::{Answer, Cause, Job, Ticket, Work};
use crate::pkcs11::seat::Seat;
use crate::pkcs11::shared::Shared;
use crate::pkcs11::staff::Place;

/// The most answers that are kept back to be given together: each wake-up of the callers' threads then serves several.
const MAX_HELD: usize = 16;
/// How long the first of them may wait. A device that takes longer for one job is answered job by job.
const HOLD: Duration = Duration::from_micros(100);

/// Serves jobs until told to stop, or until another worker has taken over.
pub(crate) fn run(shared: &Arc<Shared>, seat: &Arc<Seat>) {
    let mut place = Place::new(shared, seat);
    let mut worker =
        Worker { shared, seat, session: None, module_epoch: 0, ivs: IvPool::default(), held: None };
    while let Some(job) = worker.next_job() {
        worker.serve(job);
        worker.give_held();
        if seat.written_off() {
            break;
        }
    }
    place.leave();
    seat.release();
    worker.close();
}

struct Worker<'a> {
    shared: &'a Shared,
    seat: &'a Seat,
    session: Option<Session>,
    /// The module epoch `session` is of.
    module_epoch: u64,
    ivs: IvPool,
    /// When the first of the answers that are kept back was begun with, and how many they are.
    held: Option<(Instant, usize)>,
}

impl Worker<'_> {
    /// Takes the next job; `None` to stop. What is kept back is given before anything is waited for: another worker may have
    /// taken the job that it was kept for.
    fn next_job(&mut self) -> Option<Box<Job>> {
        if self.held.is_some() {
            if let Ok(ticket) = self.shared.queue_out.try_recv() {
                return job_of(ticket);
            }
            self.held = None;
            self.seat.release();
        }
        self.shared.queue_out.recv().ok().and_then(job_of)
    }

    /// Gives what is kept back, unless more is to come at once.
    fn give_held(&mut self) {
        let Some((since, count)) = self.held else { return };
        let more = !self.shared.queue_out.is_empty();
        if !may_wait(count, more, || self.shared.now().saturating_duration_since(since)) {
            self.held = None;
            self.seat.release();
        }
    }

    fn serve(&mut self, mut job: Box<Job>) {
        let expired = job.expired();
        let deadline = job.deadline;
        let shared = self.shared;
        if shared.now() >= deadline {
            return job.fail(expired);
        }
        if let Err(error) = shared.health.check_taken(|| shared.now()) {
            return job.fail(error);
        }
        let inside = match shared.gate.enter(deadline, &*shared.clock) {
            Ok(inside) => inside,
            Err(Refused::Deadline) => return job.fail(expired),
            Err(Refused::NotLive) => {
                shared.trouble("not connected");
                return job.fail(shared.unavailable("not connected"));
            }
        };
        let started = shared.now();
        let alone = matches!(job.work, Work::Crypt(_));
        if !alone {
            // It may take long: those who have their answers do not wait for it.
            self.held = None;
            self.seat.release();
        }
        self.seat.begin(job.reply.take(), deadline, started);
        let bench = Bench {
            shared,
            seat: self.seat,
            queued: started.saturating_duration_since(job.queued_at),
            retried: job.retried,
        };
        let mut result = self.attempt(&inside, &bench, &mut job.work);
        if matches!(result, Err(Failure::Session(_))) {
            self.discard_session(&inside.live);
            result = self.attempt(&inside, &bench, &mut job.work);
        }
        let login = inside.live.login;
        drop(inside);
        let Some(reply) = self.seat.finish() else { return };
        let cause = match result {
            Ok(answer) if alone => {
                let since = self.held.map_or(started, |(since, _)| since);
                self.held = Some((since, self.seat.hold(reply, answer, Some(job))));
                return;
            }
            Ok(answer) => return reply.send(Ok(answer), Some(job)),
            Err(Failure::Stale) if !job.retried => Cause::StaleKey,
            Err(Failure::Object(_)) if !job.retried => Cause::ObjectGone,
            Err(Failure::Login(_)) if !job.retried => Cause::LoginLost,
            Err(failure) => {
                let answer = self.give_up(failure, &mut job.work);
                return reply.send(answer, Some(job));
            }
        };
        job.reply = Some(reply);
        shared.submit_rescue(job, cause, login);
    }

    fn attempt(
        &mut self,
        inside: &Inside<'_>,
        bench: &Bench<'_>,
        work: &mut Work,
    ) -> Result<Answer, Failure> {
        let session = self.session(&inside.live)?;
        // Not held by this call: one that panics must not take it along.
        let session = self.session.insert(session);
        crypt::perform(bench, session, &inside.live, &mut self.ivs, work)
    }

    /// Turns a failure that no one can mend for this job into its answer.
    fn give_up(&mut self, failure: Failure, work: &mut Work) -> Result<Answer, HsmError> {
        let error = match failure {
            Failure::Answer(error) => error,
            Failure::Latch(reason) => {
                self.shared.health.latch(&reason);
                HsmError::Latched { reason }
            }
            // The keeper has mended what it could: this key is not usable, others may be.
            Failure::Object(detail) => self.shared.unavailable(&detail),
            Failure::Stale => self.shared.unavailable("the key could not be loaded again"),
            Failure::Session(detail)
            | Failure::Login(detail)
            | Failure::Module(detail)
            | Failure::Ambiguous(detail)
            | Failure::Device(detail) => {
                self.shared.trouble(&detail);
                self.shared.unavailable(&detail)
            }
        };
        match work {
            // What is done is done; the rest has the same answer.
            Work::Batch { operations, done } if !done.is_empty() => {
                done.resize_with(operations.len(), || Err(error.clone()));
                Ok(Answer::Batch(std::mem::take(done)))
            }
            _ => Err(error),
        }
    }

    /// Takes this worker's session, or one of those the keeper opened; opens one only after a loss.
    fn session(&mut self, live: &Live) -> Result<Session, Failure> {
        if let Some(session) = self.session.take()
            && self.module_epoch == live.module_epoch
        {
            return Ok(session);
        }
        // A session of another module epoch is dropped, not closed: its number may be a live one's by now.
        self.module_epoch = live.module_epoch;
        let spare = live.sessions.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match spare {
            Some(session) => Ok(session),
            None => Ok(live.context.open_rw_session_no_drop(live.slot)?),
        }
    }

    fn discard_session(&mut self, live: &Live) {
        if let Some(session) = self.session.take()
            && self.module_epoch == live.module_epoch
            && let Err(error) = session.close()
        {
            tracing::warn!(%error, "closing a lost session");
        }
    }

    /// Closes the session within its epoch, if that is still the present one.
    fn close(&mut self) {
        let deadline = self.shared.now() + self.shared.config.budgets.close;
        if let Ok(inside) = self.shared.gate.enter(deadline, &*self.shared.clock) {
            self.discard_session(&inside.live);
        }
    }
}

/// Invariant: a worker that panics loses no session of the token: the next one has it (test
/// `a_worker_that_panics_is_replaced_wherever_it_was`). It is given back, not closed: no call of the module can hang here.
impl Drop for Worker<'_> {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        // The list is the epoch's own: should the epoch end meanwhile, C_Finalize closes the session, and the list goes.
        if let Some(live) = self.shared.gate.live()
            && self.module_epoch == live.module_epoch
        {
            live.sessions.lock().unwrap_or_else(PoisonError::into_inner).push(session);
        }
    }
}

fn job_of(ticket: Ticket) -> Option<Box<Job>> {
    match ticket {
        Ticket::Job(job) => Some(job),
        Ticket::Stop => None,
    }
}

/// Returns whether so many answers may wait for those of the jobs that are queued.
fn may_wait(count: usize, more: bool, waited: impl FnOnce() -> Duration) -> bool {
    count < MAX_HELD && more && waited() < HOLD
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use crossbeam_channel::bounded;
    use kms_core::clock::SystemClock;

    use super::*;
    use crate::hsm::Pending;
    use crate::pkcs11::config::{Pkcs11Config, TokenSelector};
    use crate::pkcs11::job::Reply;

    /// Longer than any step of a test takes.
    const LIMIT: Duration = Duration::from_secs(20);

    fn shared() -> Shared {
        let config = Pkcs11Config::new("m".into(), TokenSelector::Label("x".into()));
        Shared::new(config, Arc::new(SystemClock), bounded(1).0)
    }

    fn worker<'a>(shared: &'a Shared, seat: &'a Seat) -> Worker<'a> {
        Worker { shared, seat, session: None, module_epoch: 0, ivs: IvPool::default(), held: None }
    }

    fn queue_job(shared: &Shared) {
        let (to, _) = Pending::channel();
        let (work, queued_at) = (Work::Random(1), shared.now());
        let (reply, deadline) = (Some(Reply::Random(to)), queued_at + LIMIT);
        shared.requeue(Box::new(Job { work, reply, deadline, queued_at, retried: false }));
    }

    #[test]
    fn answers_kept_for_a_job_that_another_worker_took_are_given_before_the_wait() {
        let (shared, one_seat, other_seat) = (shared(), Seat::default(), Seat::default());
        let mut one = worker(&shared, &one_seat);
        let (to, pending) = Pending::channel();
        // As if begun with in a while: the bound on the wait must not be what lets it go.
        one.held = Some((shared.now() + LIMIT, one_seat.hold(Reply::Done(to), Answer::Done, None)));
        queue_job(&shared);
        one.give_held();
        assert!(one.held.is_some(), "a job is queued: the answer waits for its own");
        assert!(worker(&shared, &other_seat).next_job().is_some(), "the other takes that job");
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || tell.send(pending.wait()));
            let waits = scope.spawn(move || one.next_job().is_none());
            let answer = told.recv_timeout(LIMIT);
            // Whatever it was, both threads end.
            shared.queue_in.send(Ticket::Stop).unwrap();
            assert!(waits.join().unwrap());
            one_seat.release();
            assert_eq!(answer, Ok(Ok(())), "no job came: it was given before the wait");
        });
    }

    #[test]
    fn answers_wait_only_for_a_queued_job_and_within_their_bounds() {
        let (just, over) = (HOLD.saturating_sub(Duration::from_nanos(1)), HOLD);
        assert!(may_wait(1, true, || Duration::ZERO));
        assert!(!may_wait(1, false, || Duration::ZERO), "nothing is queued");
        assert!(may_wait(MAX_HELD - 1, true, || just));
        assert!(!may_wait(MAX_HELD, true, || just));
        assert!(!may_wait(MAX_HELD - 1, true, || over));
    }
}
