//! ListKeys and ListKeyVersions: pages by (create_time, uid) and by number.
//!
//! A page token is opaque: a position, when it was given, and a MAC that binds both to the caller and the list.

use data_encoding::BASE64URL_NOPAD;
use kms_core::canonical::CanonicalWriter;
use kms_core::clock::Timestamp;
use kms_core::domain;
use kms_core::id::{KeyUid, KeyVersion};
use kms_core::secret::equal_in_constant_time;
use std::time::Duration;

use super::kms::{Inner, Kms};
use super::trail::Trail;
use super::{
    DEFAULT_PAGE_SIZE, KeyDescription, ListKeyVersions, ListKeys, MAX_PAGE_SIZE, Page,
    RequestContext, ServiceError, VersionDescription,
};
use crate::authz::{self, Target};
use crate::store::VersionChoice;

/// How long a page token lives (peers.md 4.11).
pub const PAGE_TOKEN_LIFE: Duration = Duration::from_hours(1);
/// What the keys of a page may take: a message is at most 4 MiB, and some room is left for what is added to it one day.
pub(super) const MAX_PAGE_BYTES: usize = 3 * 1024 * 1024;
/// Makes tokens recognisable to secret scanners.
const TOKEN_PREFIX: &str = "hft_";
/// Issue time, two numbers or a uid of position, MAC.
const TOKEN_BYTES: usize = 8 + POSITION_BYTES + 32;
/// Create time and uid; a version number takes the first 8 bytes.
const POSITION_BYTES: usize = 8 + 16;

pub(super) type Position = [u8; POSITION_BYTES];

impl Kms {
    /// Lists the keys of a tenant.
    ///
    /// # Errors
    /// `FIELD_VIOLATION`, `PAGE_TOKEN_EXPIRED`, `ACCESS_DENIED`, `KEY_INTEGRITY`.
    pub async fn list_keys(
        &self,
        request: &RequestContext,
        list: ListKeys,
    ) -> Result<Page<KeyDescription>, ServiceError> {
        let inner = &*self.inner;
        let mut trail = Trail::tenant(&list.tenant);
        let result = inner.select_keys(request, &list, &mut trail).await;
        inner.record(request, trail, result).await
    }

    /// Lists the versions of a key.
    ///
    /// # Errors
    /// As for [`Kms::list_keys`], and `KEY_NOT_FOUND`.
    pub async fn list_key_versions(
        &self,
        request: &RequestContext,
        list: ListKeyVersions,
    ) -> Result<Page<VersionDescription>, ServiceError> {
        let inner = &*self.inner;
        let mut trail = Trail::key(&list.key);
        let result = inner.list_versions(request, &list, &mut trail).await;
        inner.record(request, trail, result).await
    }
}

impl Inner {
    async fn list_versions(
        &self,
        request: &RequestContext,
        list: &ListKeyVersions,
        trail: &mut Trail,
    ) -> Result<Page<VersionDescription>, ServiceError> {
        self.permit::<authz::ListKeyVersions>(request, Target::key(&list.key), trail)?;
        let size = page_size(list.page_size)?;
        let scope = list.key.to_string();
        let after = self.open_token(request, &scope, &list.page_token).await?;
        let after = after
            .and_then(|position| u32::try_from(split(&position).0).ok().and_then(KeyVersion::new));
        let key = self.fresh(&list.key, VersionChoice::Primary).await?.key.row;
        trail.key_uid = Some(key.uid);
        let versions = self.store.list_versions(key.uid, after, size + 1).await;
        let mut versions = self.keyring.stored(versions)?;
        let more = versions.len() > size as usize;
        versions.truncate(size as usize);
        self.keyring.verify_rows(&[], &versions, &[]).await?;
        let items = self.describe_versions(&key, &versions).await?;
        let next_page_token = match versions.last().filter(|_| more) {
            Some(end) => {
                let next = join(i64::from(end.row.version.get()), &[0; 16]);
                self.make_token(request, &scope, &next).await?
            }
            None => String::new(),
        };
        Ok(Page { items, next_page_token })
    }

    pub(super) async fn make_token(
        &self,
        request: &RequestContext,
        scope: &str,
        position: &Position,
    ) -> Result<String, ServiceError> {
        let issued = self.clock.now();
        let mac = self.token_mac(request, scope, issued, position).await?;
        let bytes = [&issued.as_unix_ms().to_be_bytes()[..], position, &mac].concat();
        Ok(format!("{TOKEN_PREFIX}{}", BASE64URL_NOPAD.encode(&bytes)))
    }

    pub(super) async fn open_token(
        &self,
        request: &RequestContext,
        scope: &str,
        token: &str,
    ) -> Result<Option<Position>, ServiceError> {
        if token.is_empty() {
            return Ok(None);
        }
        let bad = || ServiceError::field("page_token", "is not one of this list");
        let bytes = token
            .strip_prefix(TOKEN_PREFIX)
            .filter(|text| text.len() <= TOKEN_BYTES * 2)
            .and_then(|text| BASE64URL_NOPAD.decode(text.as_bytes()).ok())
            .ok_or_else(bad)?;
        let (issued, rest) = bytes.split_first_chunk::<8>().ok_or_else(bad)?;
        let (position, mac) = rest.split_first_chunk::<POSITION_BYTES>().ok_or_else(bad)?;
        let issued = Timestamp::from_unix_ms(i64::from_be_bytes(*issued));
        let made = self.token_mac(request, scope, issued, position).await?;
        if !equal_in_constant_time(&made, mac) {
            return Err(bad());
        }
        if issued.after(PAGE_TOKEN_LIFE) <= self.clock.now() {
            return Err(ServiceError::PageTokenExpired);
        }
        Ok(Some(*position))
    }

    async fn token_mac(
        &self,
        request: &RequestContext,
        scope: &str,
        issued: Timestamp,
        position: &Position,
    ) -> Result<[u8; 32], ServiceError> {
        let input = CanonicalWriter::new(domain::PAGE_TOKEN)
            .text(&request.principal.id)
            .text(request.operation)
            .text(scope)
            .signed(issued.as_unix_ms())
            .bytes(position)
            .finish();
        let generation = self.keyring.config().generation;
        Ok(self.keyring.mac(input, generation, request.deadline).await?.0)
    }
}

pub(super) fn page_size(asked: u32) -> Result<u32, ServiceError> {
    match asked {
        0 => Ok(DEFAULT_PAGE_SIZE),
        1..=MAX_PAGE_SIZE => Ok(asked),
        _ => Err(ServiceError::field("page_size", format!("must be at most {MAX_PAGE_SIZE}"))),
    }
}

pub(super) fn join(number: i64, id: &[u8; 16]) -> Position {
    let mut position = [0; POSITION_BYTES];
    let (first, second) = position.split_at_mut(8);
    first.copy_from_slice(&number.to_be_bytes());
    second.copy_from_slice(id);
    position
}

pub(super) fn split(position: &Position) -> (i64, KeyUid) {
    let (mut number, mut id) = ([0; 8], [0; 16]);
    let (first, second) = position.split_at(8);
    number.copy_from_slice(first);
    id.copy_from_slice(second);
    (i64::from_be_bytes(number), KeyUid::from_bytes(id))
}
