//! The keeper's queue: in order, never full, and open to those who look for what waits too long.
//!
//! Not a channel: what waits past its deadline is taken out of the middle, and what is left keeps its order.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::pkcs11::job::KeeperMessage;

/// The queue. Its length is bounded by those who send jobs; releases must never block or be lost.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    messages: Mutex<VecDeque<KeeperMessage>>,
    came: Condvar,
}

impl Inbox {
    /// Puts a message at the end.
    pub(crate) fn send(&self, message: KeeperMessage) {
        self.lock().push_back(message);
        self.came.notify_one();
    }

    /// Takes the first message; waits for one until `timeout` is over, or for ever.
    pub(crate) fn receive(&self, timeout: Option<Duration>) -> Option<KeeperMessage> {
        let messages = self.lock();
        let empty = |messages: &mut VecDeque<KeeperMessage>| messages.is_empty();
        let mut messages = match timeout {
            Some(timeout) => {
                let waited = self.came.wait_timeout_while(messages, timeout, empty);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.came.wait_while(messages, empty).unwrap_or_else(PoisonError::into_inner),
        };
        messages.pop_front()
    }

    /// Takes out the messages that `wanted` picks.
    pub(crate) fn take_out(&self, wanted: impl Fn(&KeeperMessage) -> bool) -> Vec<KeeperMessage> {
        let mut messages = self.lock();
        if !messages.iter().any(&wanted) {
            return Vec::new();
        }
        let (out, left): (VecDeque<_>, _) =
            std::mem::take(&mut *messages).into_iter().partition(wanted);
        *messages = left;
        out.into()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<KeeperMessage>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use kms_core::clock::{Clock as _, SystemClock};

    use super::*;
    use crate::hsm::Pending;
    use crate::pkcs11::job::{KeeperWork, Reply};

    fn job(late: bool) -> KeeperMessage {
        let now = SystemClock.monotonic();
        let deadline = if late { now } else { now + Duration::from_secs(9) };
        let reply = Reply::TokenKeys(Pending::channel().0);
        KeeperMessage::Job { work: KeeperWork::ListTokenKeys, reply, deadline }
    }

    #[test]
    fn what_is_left_keeps_its_order() {
        let inbox = Inbox::default();
        inbox.send(KeeperMessage::Trouble);
        inbox.send(job(true));
        inbox.send(job(false));
        inbox.send(job(true));
        let now = SystemClock.monotonic();
        let late = |message: &KeeperMessage| matches!(message, KeeperMessage::Job { deadline, .. } if *deadline <= now);
        assert_eq!(inbox.take_out(late).len(), 2);
        assert!(inbox.take_out(late).is_empty());
        assert!(matches!(inbox.receive(None), Some(KeeperMessage::Trouble)));
        assert!(matches!(inbox.receive(None), Some(KeeperMessage::Job { .. })));
        assert!(inbox.receive(Some(Duration::ZERO)).is_none());
    }

    #[test]
    fn who_waits_is_woken() {
        let inbox = Inbox::default();
        std::thread::scope(|scope| {
            let woken = scope.spawn(|| inbox.receive(None));
            inbox.send(KeeperMessage::Trouble);
            assert!(matches!(woken.join().unwrap(), Some(KeeperMessage::Trouble)));
        });
    }
}
