//! Which keys a list has: read some at a time, verified, and only then asked whether they pass.
//!
//! A page looks at a bounded number of keys, so with a filter it may have fewer than were asked for, or none, and go on all
//! the same. A row that was edited is refused, whatever the filter says: nobody hides a key by spoiling it.

use kms_core::clock::Timestamp;
use kms_core::filter::{Filter, KeyFacts};
use kms_core::key::{KeyRow, Sealed, VersionRow};

use super::describe_key::describe_key;
use super::kms::Inner;
use super::list_keys::{MAX_PAGE_BYTES, join, page_size, split};
use super::trail::Trail;
use super::{KeyDescription, ListKeys, MAX_PAGE_SIZE, Page, RequestContext, ServiceError};
use crate::authz::{self, Target};
use crate::store::{KeyRef, ListBy, ListOrder, ListPlace, ListPosition, StoredKey, VersionChoice};

/// The most keys that one page looks at.
const MAX_LOOKED_AT: u32 = MAX_PAGE_SIZE;
/// The same, when the filter asks when keys were used last: a read for each version.
const MAX_LOOKED_AT_USE: u32 = 100;
/// The most versions of which one page looks at the uses, unless one key has more.
const MAX_VERSIONS_LOOKED_AT: u32 = 1000;
/// Keys that are read at a time where not all will pass.
const STEP: u32 = 100;
/// The most that a key takes on the wire beside its texts and labels: names, numbers, times, tags and lengths.
const KEY_BYTES: usize = 384;
/// What a label takes beside its texts.
const LABEL_BYTES: usize = 8;
/// Stands between the parts of a token's scope: neither a name nor an order has it.
const SEPARATOR: char = '\u{1f}';

/// A list that was understood.
struct Selection {
    filter: Option<Filter>,
    order: ListOrder,
    size: u32,
    scope: String,
}

impl Selection {
    fn of(list: &ListKeys) -> Result<Self, ServiceError> {
        let filter = Filter::parse(&list.filter)
            .map_err(|error| ServiceError::field("filter", error.to_string()))?;
        let order = order(&list.order_by)?;
        let mut scope = list.tenant.to_string();
        // A token is of this list alone: with another filter it would skip keys that nobody has seen.
        if filter.is_some() || order != ListOrder::default() {
            scope = format!("{scope}{SEPARATOR}{order:?}{SEPARATOR}{}", list.filter);
        }
        Ok(Self { filter, order, size: page_size(list.page_size)?, scope })
    }

    fn asks_last_use(&self) -> bool {
        self.filter.as_ref().is_some_and(Filter::asks_last_use)
    }

    /// How many keys may be looked at.
    fn reach(&self) -> u32 {
        match (&self.filter, self.asks_last_use()) {
            (None, _) => self.size,
            (Some(_), false) => MAX_LOOKED_AT,
            (Some(_), true) => MAX_LOOKED_AT_USE,
        }
    }
}

fn order(text: &str) -> Result<ListOrder, ServiceError> {
    let mut words = text.split_ascii_whitespace();
    let by = match words.next() {
        None => return Ok(ListOrder::default()),
        Some("create_time") => ListBy::CreateTime,
        Some("name") => ListBy::KeyId,
        Some(_) => return Err(ServiceError::field("order_by", ORDERS)),
    };
    match (words.next(), words.next()) {
        (None | Some("asc"), None) => Ok(ListOrder { by, descending: false }),
        (Some("desc"), None) => Ok(ListOrder { by, descending: true }),
        _ => Err(ServiceError::field("order_by", ORDERS)),
    }
}

const ORDERS: &str = "must be `create_time` or `name`, with ` desc` for the last first";

/// What a page has so far.
#[derive(Default)]
struct Found {
    items: Vec<KeyDescription>,
    bytes: usize,
    /// The last key that was looked at.
    last: Option<ListPlace>,
    looked_at: u32,
    /// Versions of which the uses were looked at.
    versions: u32,
    /// Whether the list has ended.
    ended: bool,
}

impl Found {
    /// Returns whether the uses of all versions of a key may be looked at too. A page takes one key at least, or the list would
    /// never get past it.
    fn takes_versions(&mut self, key: &KeyRow) -> bool {
        let all = self.versions.saturating_add(key.latest.get());
        if all > MAX_VERSIONS_LOOKED_AT && self.looked_at > 0 {
            return false;
        }
        self.versions = all;
        true
    }
}

impl Inner {
    pub(super) async fn select_keys(
        &self,
        request: &RequestContext,
        list: &ListKeys,
        trail: &mut Trail,
    ) -> Result<Page<KeyDescription>, ServiceError> {
        self.permit::<authz::ListKeys>(request, Target::tenant(&list.tenant), trail)?;
        let selection = Selection::of(list)?;
        let mut found = Found::default();
        if let Some(position) = self.open_token(request, &selection.scope, &list.page_token).await?
        {
            let (time, uid) = split(&position);
            let position = ListPosition { create_time: Timestamp::from_unix_ms(time), uid };
            found.last = Some(self.place(position, selection.order).await?);
        }
        if selection.asks_last_use() {
            // Once: what is used while the page is made may be on the next.
            self.keyring.write_uses().await?;
        }
        while !found.ended && found.looked_at < selection.reach() {
            if !self.look_further(request, list, &selection, &mut found).await? {
                break;
            }
        }
        let Found { items, last, ended, .. } = found;
        let next_page_token = match last.filter(|_| !ended) {
            Some(ListPlace { position: ListPosition { create_time, uid }, .. }) => {
                let next = join(create_time.as_unix_ms(), uid.as_bytes());
                self.make_token(request, &selection.scope, &next).await?
            }
            None => String::new(),
        };
        Ok(Page { items, next_page_token })
    }

    /// Returns the place of the key that a token names.
    async fn place(
        &self,
        position: ListPosition,
        order: ListOrder,
    ) -> Result<ListPlace, ServiceError> {
        if order.by == ListBy::CreateTime {
            return Ok(ListPlace { position, key_id: String::new() });
        }
        let stored = self.store.key(KeyRef::Uid(position.uid), VersionChoice::Primary).await;
        let Some(stored) = self.keyring.stored(stored)? else {
            let detail = format!("key {} of a page token has vanished", position.uid);
            return Err(self.keyring.integrity(detail).into());
        };
        self.keyring.verify_rows(std::slice::from_ref(&stored.key), &[], &[]).await?;
        Ok(ListPlace { position, key_id: stored.key.row.name.key_id().to_owned() })
    }

    /// Looks at the next keys; returns whether the page has room for more.
    async fn look_further(
        &self,
        request: &RequestContext,
        list: &ListKeys,
        selection: &Selection,
        found: &mut Found,
    ) -> Result<bool, ServiceError> {
        let left = selection.reach() - found.looked_at;
        let step = if selection.filter.is_some() { left.min(STEP) } else { left };
        // One more, to see whether the list goes on.
        let (tenant, after) = (list.tenant.clone(), found.last.clone());
        let keys = self.store.list_keys_ordered(tenant, selection.order, after, step + 1).await;
        let mut keys = self.keyring.stored(keys)?;
        let goes_on = keys.len() > step as usize;
        keys.truncate(step as usize);
        let (keys, primaries) = self.with_primaries(keys).await?;
        self.keyring.verify_rows(&keys, &primaries, &[]).await?;
        if keys.iter().any(|key| key.row.name.tenant() != &list.tenant) {
            let detail = format!("the list of `{}` has another tenant's key", list.tenant);
            return Err(self.keyring.integrity(detail).into());
        }
        let now = self.clock.now();
        for (key, primary) in keys.iter().zip(&primaries) {
            if selection.asks_last_use() && !found.takes_versions(&key.row) {
                return Ok(false);
            }
            if self.passes(request, selection, &key.row, &primary.row).await? {
                found.bytes += wire_bytes(&key.row);
                let is_full = found.items.len() >= selection.size as usize
                    || (found.bytes > MAX_PAGE_BYTES && !found.items.is_empty());
                if is_full {
                    return Ok(false);
                }
                found.items.push(describe_key(&key.row, &primary.row, now));
            }
            let position = ListPosition { create_time: key.row.create_time, uid: key.row.uid };
            let key_id = key.row.name.key_id().to_owned();
            found.last = Some(ListPlace { position, key_id });
            found.looked_at += 1;
        }
        found.ended = !goes_on;
        Ok(true)
    }

    /// Reads keys again, each with its primary in one answer: a key of one moment must not be shown with the primary of another.
    async fn with_primaries(
        &self,
        keys: Vec<Sealed<KeyRow>>,
    ) -> Result<(Vec<Sealed<KeyRow>>, Vec<Sealed<VersionRow>>), ServiceError> {
        let (mut rows, mut primaries) = (Vec::with_capacity(keys.len()), Vec::new());
        for Sealed { row: KeyRow { uid, .. }, .. } in keys {
            let stored = self.store.key(KeyRef::Uid(uid), VersionChoice::Primary).await;
            let vanished = || {
                let detail = format!("key {uid}, or its primary, has vanished");
                ServiceError::from(self.keyring.integrity(detail))
            };
            let StoredKey { key, version } = self.keyring.stored(stored)?.ok_or_else(vanished)?;
            let version = version.ok_or_else(vanished)?;
            let fits = key.row.uid == uid
                && (version.row.key_uid, version.row.version) == (uid, key.row.primary);
            if !fits {
                let detail = format!("key {uid}, or its primary, reads as another");
                return Err(self.keyring.integrity(detail).into());
            }
            rows.push(key);
            primaries.push(version);
        }
        Ok((rows, primaries))
    }

    async fn passes(
        &self,
        request: &RequestContext,
        selection: &Selection,
        key: &KeyRow,
        primary: &VersionRow,
    ) -> Result<bool, ServiceError> {
        let Some(filter) = &selection.filter else { return Ok(true) };
        let last_use_time =
            if selection.asks_last_use() { self.last_use(request, key).await? } else { None };
        let name = key.name.to_string();
        Ok(filter.passes(&KeyFacts {
            name: &name,
            state: key.state,
            owner: &key.owner,
            usage: &key.usage,
            sensitivity: key.sensitivity,
            protection: key.protection,
            origin: primary.origin,
            labels: &key.labels,
            create_time: key.create_time,
            update_time: key.update_time,
            next_rotation_time: key.rotation.map(|plan| plan.due),
            last_use_time,
            version_count: key.latest.get(),
            consumer_count: key.consumers,
        }))
    }
}

/// Returns what a key takes on the wire, at most.
fn wire_bytes(row: &KeyRow) -> usize {
    let labels = row.labels.iter().map(|(name, value)| name.len() + value.len() + LABEL_BYTES);
    KEY_BYTES + row.owner.len() + row.usage.len() + labels.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_a_field_and_a_direction() {
        let read = |text| order(text).map(|order| (order.by, order.descending));
        assert_eq!(read(""), Ok((ListBy::CreateTime, false)));
        assert_eq!(read("create_time asc"), Ok((ListBy::CreateTime, false)));
        assert_eq!(read("  create_time   desc "), Ok((ListBy::CreateTime, true)));
        assert_eq!(read("name"), Ok((ListBy::KeyId, false)));
        assert_eq!(read("name desc"), Ok((ListBy::KeyId, true)));
        for wrong in ["owner", "name up", "name desc desc", "name,create_time", "NAME"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn so_many_versions_are_looked_at_in_one_page_and_not_one_more() {
        let key = |latest| {
            let row = crate::store::suite::key_row(1);
            KeyRow { latest: kms_core::id::KeyVersion::new(latest).unwrap(), ..row }
        };
        let mut found = Found::default();
        assert!(found.takes_versions(&key(MAX_VERSIONS_LOOKED_AT + 1)), "one key in any case");
        found = Found { looked_at: 1, ..Found::default() };
        assert!(found.takes_versions(&key(1)));
        assert!(!found.takes_versions(&key(MAX_VERSIONS_LOOKED_AT)));
        assert!(found.takes_versions(&key(MAX_VERSIONS_LOOKED_AT - 1)));
        assert!(!found.takes_versions(&key(1)));
    }
}
