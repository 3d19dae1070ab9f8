//! The root set of a generation: what is recorded of it, so that another token or another key is noticed.

use crate::canonical::CanonicalWriter;
use crate::clock::Timestamp;
use crate::domain;
use crate::id::RootGeneration;
use crate::key::CkaId;

/// One root set as it was pinned: which token, which objects, which check values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootPin {
    /// The generation.
    pub generation: RootGeneration,
    /// Serial number of the token (CK_TOKEN_INFO), trimmed.
    pub token_serial: String,
    /// The AES-256 key that wraps keys.
    pub wrap_id: CkaId,
    /// KWP of [`domain::ROOT_WRAP_CHECK_PATTERN`] under `wrap`: deterministic.
    pub wrap_check: Vec<u8>,
    /// The HMAC-SHA-256 key that MACs rows.
    pub mac_id: CkaId,
    /// HMAC of [`domain::ROOT_MAC_CHECK`] under `mac`.
    pub mac_check: Vec<u8>,
}

impl RootPin {
    /// Returns the bytes whose MAC (under this root's own `mac`) is stored beside the pin.
    pub fn mac_input(&self) -> Vec<u8> {
        let Self { generation, token_serial, wrap_id, wrap_check, mac_id, mac_check } = self;
        CanonicalWriter::new(domain::ROW_MAC)
            .text("roots")
            .number(generation.get().into())
            .text(token_serial)
            .bytes(&wrap_id.0)
            .bytes(wrap_check)
            .bytes(&mac_id.0)
            .bytes(mac_check)
            .finish()
    }
}

/// A root set that nothing depends on any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetiredRoot {
    /// The generation that is not opened any more. Its own root is to be destroyed, so a later one seals this row.
    pub retired: RootGeneration,
    /// When.
    pub time: Timestamp,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
}

impl RetiredRoot {
    /// Returns the bytes whose MAC is stored beside the row.
    pub fn mac_input(&self, generation: RootGeneration) -> Vec<u8> {
        let Self { retired, time, actor, reason } = self;
        CanonicalWriter::new(domain::ROW_MAC)
            .text("retired_roots")
            .number(retired.get().into())
            .number(generation.get().into())
            .signed(time.as_unix_ms())
            .text(actor)
            .text(reason)
            .finish()
    }
}
