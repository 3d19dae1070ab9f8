//! Single flight: many who want the same thing wait for one who fetches it.
//!
//! The work runs as a task of its own, so that a caller who goes away does not take the others' answer along.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::Shared;
use tokio::sync::oneshot;

struct Flight<V> {
    number: u64,
    answer: Shared<oneshot::Receiver<V>>,
}

struct Table<K, V> {
    running: HashMap<K, Flight<V>>,
    next_number: u64,
}

/// The flights of one kind.
pub(super) struct Flights<K, V> {
    table: Arc<Mutex<Table<K, V>>>,
}

impl<K, V> fmt::Debug for Flights<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flights")
    }
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        let table = Table { running: HashMap::new(), next_number: 0 };
        Self { table: Arc::new(Mutex::new(table)) }
    }
}

impl<K, V> Flights<K, V>
where
    K: Eq + Hash + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Joins the flight for `key`, or starts one. `None` when the task died.
    pub(super) async fn join<F>(&self, key: K, start: impl FnOnce() -> F) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let answer = self.board(key, start);
        answer.await.ok()
    }

    fn board<F>(&self, key: K, start: impl FnOnce() -> F) -> Shared<oneshot::Receiver<V>>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = table.running.get(&key) {
            return flight.answer.clone();
        }
        let (sender, receiver) = oneshot::channel();
        let (answer, number) = (receiver.shared(), table.next_number);
        table.next_number += 1;
        table.running.insert(key.clone(), Flight { number, answer: answer.clone() });
        // Dropped when the task ends, however it ends.
        let landing = Landing { table: Arc::clone(&self.table), key, number };
        // A runtime that ends drops the task at once, and the landing takes the lock.
        drop(table);
        let work = start();
        tokio::spawn(async move {
            let value = work.await;
            drop(landing);
            // Nobody waits any more when this fails.
            let _ = sender.send(value);
        });
        answer
    }

    /// Lets later callers start a new flight, because what the running one reads may be old by now.
    pub(super) fn forget(&self, key: &K) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).running.remove(key);
    }
}

struct Landing<K: Eq + Hash, V> {
    table: Arc<Mutex<Table<K, V>>>,
    key: K,
    number: u64,
}

impl<K: Eq + Hash, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.running.get(&self.key).is_some_and(|flight| flight.number == self.number) {
            table.running.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn many_callers_share_one_flight_and_the_next_starts_anew() {
        let (flights, runs) = (Flights::<u8, u32>::default(), Arc::new(AtomicU32::new(0)));
        let fly = || {
            let runs = Arc::clone(&runs);
            async move {
                tokio::task::yield_now().await;
                runs.fetch_add(1, Ordering::SeqCst)
            }
        };
        let all = futures_util::future::join_all((0..10).map(|_| flights.join(1, fly))).await;
        assert_eq!(all, vec![Some(0); 10]);
        assert_eq!(flights.join(1, fly).await, Some(1));
    }

    #[tokio::test]
    async fn a_forgotten_flight_is_not_joined() {
        let flights = Flights::<u8, u32>::default();
        let first = flights.board(1, || async { 1 });
        flights.forget(&1);
        assert_eq!(flights.join(1, || async { 2 }).await, Some(2));
        assert_eq!(first.await, Ok(1));
    }

    #[tokio::test]
    async fn a_caller_who_goes_away_does_not_stop_the_flight() {
        let flights = Flights::<u8, u32>::default();
        let (open, gate) = oneshot::channel::<()>();
        let start = || async move {
            let _ = gate.await;
            7
        };
        drop(flights.board(1, start));
        let second = flights.board(1, || async { 8 });
        open.send(()).unwrap();
        assert_eq!(second.await, Ok(7));
    }
}
