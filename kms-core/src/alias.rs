//! Aliases: names that point to a key, and can be moved to another one.
//!
//! An alias points to a key, never to an alias: there are no chains and no cycles. It stands for the key when something is
//! protected; a ciphertext names the key itself, so that moving an alias never changes what can be unwrapped.

use crate::clock::Timestamp;
use crate::id::{KeyUid, Revision, RootGeneration};
use crate::key::row;
use crate::name::{AliasName, KeyName};

/// The most aliases that point to one key: a name for each of its uses, and few enough to be read at once.
pub const MAX_ALIASES_PER_KEY: u32 = 50;

/// The row of an alias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AliasRow {
    /// The name.
    pub name: AliasName,
    /// The key that it points to, of the same tenant.
    pub key: KeyName,
    /// Its uid: what the alias is bound to.
    pub key_uid: KeyUid,
    /// When the alias was made.
    pub create_time: Timestamp,
    /// When it was made or moved last.
    pub update_time: Timestamp,
    /// Which principal did that.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// That of the tenant's manifest with this row: it grows with every change, and no two aliases of a tenant ever have
    /// the same, not even one that was deleted and the one that has its name now.
    pub revision: Revision,
}

impl AliasRow {
    /// Returns the bytes whose MAC is stored beside the row.
    pub fn mac_input(&self, generation: RootGeneration) -> Vec<u8> {
        let Self { name, key, key_uid, create_time, update_time, actor, reason, revision } = self;
        let primary_key = name.to_string();
        row("aliases", primary_key.as_bytes(), *revision, generation)
            .text(key.tenant().id())
            .text(key.key_id())
            .bytes(key_uid.as_bytes())
            .signed(create_time.as_unix_ms())
            .signed(update_time.as_unix_ms())
            .text(actor)
            .text(reason)
            .finish()
    }
}

/// Returns what an alias id looks like: two ids with the same skeleton are easily taken for each other.
///
/// Ids are lower-case ASCII, so few characters are left to confuse: `0` and `o`; `1`, `i` and `l`; `-`, `_` and `.`; `rn`
/// and `m`; `vv` and `w` (after Unicode TS 39 §4). It is stored, so changing it is a change of the format.
pub fn skeleton(alias_id: &str) -> String {
    let look = |character: char| match character {
        '0' => 'o',
        '1' | 'i' => 'l',
        '_' | '.' => '-',
        other => other.to_ascii_lowercase(),
    };
    let looks: String = alias_id.chars().map(look).collect();
    looks.replace("rn", "m").replace("vv", "w")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_look_alike_have_one_skeleton() {
        for (one, other) in [
            ("prod0", "prodo"),
            ("db-1", "db-l"),
            ("db-1", "db-i"),
            ("pay-ments", "pay_ments"),
            ("pay-ments", "pay.ments"),
            ("billing", "b1lling"),
            ("modern", "rnodern"),
            ("wal", "vval"),
            ("Prod", "prod"),
        ] {
            assert_eq!(skeleton(one), skeleton(other), "{one} {other}");
        }
    }

    #[test]
    fn ids_that_differ_have_two() {
        for (one, other) in
            [("db-1", "db-2"), ("db-1", "db1"), ("a", "b"), ("run", "rum"), ("s5", "ss")]
        {
            assert_ne!(skeleton(one), skeleton(other), "{one} {other}");
        }
    }

    #[test]
    fn a_skeleton_is_no_longer_than_its_id_and_is_its_own() {
        for id in ["rnrn", "vvv", "a0_i.1", &"0".repeat(63)] {
            let looks = skeleton(id);
            assert!(looks.len() <= id.len());
            assert_eq!(skeleton(&looks), looks);
        }
    }
}
