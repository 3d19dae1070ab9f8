//! A thread's seat: what it has in hand, so that the watchdog can answer for it when the module hangs.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::HsmError;
use crate::pending::Spent;
use crate::pkcs11::job::{Answer, Reply};

/// The seat of a worker or of the keeper.
#[derive(Debug, Default)]
pub(crate) struct Seat(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    running: Option<Running>,
    /// Answers that are there and wait to be given together with those of the next jobs.
    held: Vec<(Reply, Answer, Spent)>,
    written_off: bool,
}

#[derive(Debug)]
struct Running {
    reply: Option<Reply>,
    deadline: Instant,
    /// When it began, or moved on last.
    moved: Instant,
}

/// What the watchdog found on a seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// Idle, or at work within its budget.
    Fine,
    /// In one call for longer than the budget; reported once.
    Hangs,
}

impl Seat {
    /// Begins a job whose answer is due at `deadline`.
    pub(crate) fn begin(&self, reply: Option<Reply>, deadline: Instant, now: Instant) {
        self.lock().running = Some(Running { reply, deadline, moved: now });
    }

    /// Ends the job and returns where its answer goes; `None` when the watchdog has answered.
    pub(crate) fn finish(&self) -> Option<Reply> {
        self.lock().running.take().and_then(|running| running.reply)
    }

    /// Keeps an answer back, to be given together with those of the next jobs; returns how many are kept.
    pub(crate) fn hold(&self, reply: Reply, answer: Answer, spent: Spent) -> usize {
        let mut state = self.lock();
        state.held.push((reply, answer, spent));
        state.held.len()
    }

    /// Gives all answers that were kept back.
    pub(crate) fn release(&self) {
        // Taken out first: whoever waits is woken outside the lock.
        let held = std::mem::take(&mut self.lock().held);
        for (reply, answer, spent) in held {
            reply.send(Ok(answer), spent);
        }
    }

    /// Notes that the job moves on: it does not hang. Returns whether someone still waits for it.
    pub(crate) fn moves(&self, now: Instant) -> bool {
        self.lock().running.as_mut().is_some_and(|running| {
            running.moved = now;
            running.reply.is_some()
        })
    }

    /// Returns whether another thread has taken over.
    pub(crate) fn written_off(&self) -> bool {
        self.lock().written_off
    }

    /// Answers for a thread that ends, in whatever state it is, and returns whether another has taken over.
    pub(crate) fn vacate(&self) -> bool {
        self.release();
        let mut state = self.lock();
        // From here on the watchdog finds nothing that could hang.
        if let Some(reply) = state.running.take().and_then(|running| running.reply) {
            reply.fail(HsmError::CallDeadline);
        }
        state.written_off
    }

    /// Answers a job whose deadline has passed, and says whether the thread hangs. What it keeps back is given, in case it
    /// does.
    pub(crate) fn inspect(&self, now: Instant, budget: Duration) -> Finding {
        self.release();
        let mut state = self.lock();
        if state.written_off {
            return Finding::Fine;
        }
        let Some(running) = state.running.as_mut() else { return Finding::Fine };
        if now >= running.deadline
            && let Some(reply) = running.reply.take()
        {
            reply.fail(HsmError::CallDeadline);
        }
        if now.saturating_duration_since(running.moved) < budget {
            return Finding::Fine;
        }
        if let Some(reply) = running.reply.take() {
            reply.fail(HsmError::CallDeadline);
        }
        state.written_off = true;
        Finding::Hangs
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use kms_core::clock::{Clock as _, SystemClock};

    use super::*;
    use crate::hsm::Pending;

    const BUDGET: Duration = Duration::from_secs(5);

    #[test]
    fn the_watchdog_answers_at_the_deadline_and_not_before() {
        let (seat, now) = (Seat::default(), SystemClock.monotonic());
        let (sender, pending) = Pending::channel();
        seat.begin(Some(Reply::Done(sender)), now + Duration::from_secs(1), now);
        assert_eq!(seat.inspect(now + Duration::from_millis(999), BUDGET), Finding::Fine);
        assert!(seat.moves(now));
        assert_eq!(seat.inspect(now + Duration::from_secs(1), BUDGET), Finding::Fine);
        assert!(!seat.moves(now), "no one waits any more");
        assert_eq!(pending.wait(), Err(HsmError::CallDeadline));
        assert!(seat.finish().is_none(), "the answer is given once");
    }

    #[test]
    fn a_thread_hangs_from_its_budget_on_and_is_reported_once() {
        let (seat, now) = (Seat::default(), SystemClock.monotonic());
        seat.begin(None, now, now);
        assert_eq!(seat.inspect(now + Duration::from_millis(4999), BUDGET), Finding::Fine);
        assert_eq!(seat.inspect(now + BUDGET, BUDGET), Finding::Hangs);
        assert_eq!(seat.inspect(now + BUDGET, BUDGET), Finding::Fine);
        assert!(seat.written_off());
    }

    #[test]
    fn a_seat_that_is_vacated_leaves_no_one_waiting_and_hangs_no_more() {
        let (seat, now) = (Seat::default(), SystemClock.monotonic());
        let ((held, of_held), (running, of_running)) = (Pending::channel(), Pending::channel());
        seat.hold(Reply::Done(held), Answer::Done, None);
        seat.begin(Some(Reply::Done(running)), now + BUDGET, now);
        assert!(!seat.vacate(), "no one has taken over");
        assert_eq!(of_held.wait(), Ok(()));
        assert_eq!(of_running.wait(), Err(HsmError::CallDeadline));
        assert_eq!(seat.inspect(now + BUDGET, BUDGET), Finding::Fine);
        seat.begin(None, now, now);
        assert_eq!(seat.inspect(now + BUDGET, BUDGET), Finding::Hangs);
        assert!(seat.vacate());
    }

    #[test]
    fn a_job_that_moves_on_does_not_hang() {
        let (seat, now) = (Seat::default(), SystemClock.monotonic());
        seat.begin(None, now, now);
        seat.moves(now + BUDGET);
        assert_eq!(seat.inspect(now + BUDGET, BUDGET), Finding::Fine);
        assert_eq!(seat.inspect(now + BUDGET * 2, BUDGET), Finding::Hangs);
    }

    #[test]
    fn what_a_thread_keeps_back_does_not_wait_for_a_call_that_hangs() {
        let (seat, now) = (Seat::default(), SystemClock.monotonic());
        let ((first, one), (second, two)) = (Pending::channel(), Pending::channel());
        assert_eq!(seat.hold(Reply::Done(first), Answer::Done, None), 1);
        assert_eq!(seat.hold(Reply::Done(second), Answer::Done, None), 2);
        seat.begin(None, now + BUDGET, now);
        assert_eq!(seat.inspect(now, BUDGET), Finding::Fine);
        assert_eq!((one.wait(), two.wait()), (Ok(()), Ok(())));
    }

    #[test]
    fn an_idle_thread_is_never_written_off() {
        let (seat, now) = (Seat::default(), SystemClock.monotonic());
        seat.begin(None, now, now);
        assert!(seat.finish().is_none());
        assert_eq!(seat.inspect(now + BUDGET * 2, BUDGET), Finding::Fine);
        assert!(!seat.written_off());
    }
}
