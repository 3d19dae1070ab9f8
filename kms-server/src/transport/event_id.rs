//! Ids of requests: random, unguessable, and cheap.
//!
//! One call to the generator gives many ids; each is used once.

use std::cell::RefCell;

use kms_core::id::EventId;

/// Ids drawn at once: a page of memory.
const IDS_PER_DRAW: usize = 256;

struct Drawn {
    ids: [[u8; 16]; IDS_PER_DRAW],
    left: usize,
}

thread_local! {
    static DRAWN: RefCell<Drawn> = const { RefCell::new(Drawn { ids: [[0; 16]; IDS_PER_DRAW], left: 0 }) };
}

/// Returns a new id; `None` when the system gives no randomness.
pub fn new_event_id() -> Option<EventId> {
    DRAWN.with_borrow_mut(|drawn| {
        if drawn.left == 0 {
            aws_lc_rs::rand::fill(drawn.ids.as_flattened_mut()).ok()?;
            drawn.left = IDS_PER_DRAW;
        }
        drawn.left -= 1;
        drawn.ids.get(drawn.left).map(|random| EventId::from_random(*random))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_do_not_repeat_within_and_across_draws() {
        let ids: HashSet<_> = (0..3 * IDS_PER_DRAW + 1).map(|_| new_event_id().unwrap()).collect();
        assert_eq!(ids.len(), 3 * IDS_PER_DRAW + 1);
    }

    #[test]
    fn threads_draw_ids_of_their_own() {
        let here = new_event_id().unwrap();
        let there = std::thread::spawn(|| new_event_id().unwrap()).join().unwrap();
        assert_ne!(here, there);
    }
}
