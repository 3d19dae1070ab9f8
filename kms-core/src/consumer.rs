//! Consumers: who has said to depend on a key. As long as there is one, no version that was ever in use is destroyed, unless
//! somebody was permitted to decide otherwise.

use crate::clock::Timestamp;
use crate::id::{KeyUid, Revision, RootGeneration};
use crate::key::row;

/// The most consumers of a key: all are listed at once, and fit into a message.
pub const MAX_CONSUMERS: u32 = 1000;
/// The longest description of a consumer, in bytes.
pub const MAX_CONSUMER_DESCRIPTION_BYTES: usize = 256;

/// The row of a consumer. It is never changed: it is made, and taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerRow {
    /// The key.
    pub key_uid: KeyUid,
    /// The bare id, told apart within the key.
    pub consumer_id: String,
    /// Who that is, and whom to ask.
    pub description: String,
    /// When it was registered.
    pub create_time: Timestamp,
    /// Which principal registered it.
    pub actor: String,
    /// Revision of the key's row that it came with.
    pub revision: Revision,
}

impl ConsumerRow {
    /// Returns the bytes whose MAC is stored beside the row.
    pub fn mac_input(&self, generation: RootGeneration) -> Vec<u8> {
        let Self { key_uid, consumer_id, description, create_time, actor, revision } = self;
        let primary_key = [&key_uid.as_bytes()[..], consumer_id.as_bytes()].concat();
        row("consumers", &primary_key, *revision, generation)
            .text(description)
            .signed(create_time.as_unix_ms())
            .text(actor)
            .finish()
    }
}
