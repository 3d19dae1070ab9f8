//! DescribeAlias and ListAliases; and what an alias stands for when something is protected.

use kms_core::alias::AliasRow;
use kms_core::id::Revision;
use kms_core::key::Sealed;
use kms_core::name::{AliasName, KeyName};

use super::kms::{Inner, Kms};
use super::list_keys::{join, page_size, split};
use super::trail::Trail;
use super::{AliasDescription, KeyDescription, ListAliases, Page, RequestContext, ServiceError};
use crate::authz::{self, Action, Target};
use crate::store::{AliasQuery, VersionChoice};

impl Kms {
    /// Describes an alias, read fresh.
    ///
    /// # Errors
    /// `ACCESS_DENIED`, `ALIAS_NOT_FOUND`, `KEY_INTEGRITY`.
    pub async fn describe_alias(
        &self,
        request: &RequestContext,
        name: &AliasName,
    ) -> Result<AliasDescription, ServiceError> {
        let inner = &*self.inner;
        let mut trail = Trail::alias(name);
        let result = inner.describe_alias(request, name, &mut trail).await;
        inner.record(request, trail, result).await
    }

    /// Lists the aliases of a tenant, or those of one key, by revision: the one that was changed last comes last. One that is
    /// moved while the pages are read may come twice; none that stays is left out.
    ///
    /// # Errors
    /// `FIELD_VIOLATION`, `PAGE_TOKEN_EXPIRED`, `ACCESS_DENIED`, `KEY_NOT_FOUND`, `KEY_INTEGRITY`.
    pub async fn list_aliases(
        &self,
        request: &RequestContext,
        list: ListAliases,
    ) -> Result<Page<AliasDescription>, ServiceError> {
        let inner = &*self.inner;
        let mut trail = Trail::tenant(&list.tenant);
        let result = inner.list_aliases(request, &list, &mut trail).await;
        inner.record(request, trail, result).await
    }

    /// Describes the key that an alias points to.
    ///
    /// # Errors
    /// As for [`Kms::describe_key`], and `ALIAS_NOT_FOUND`.
    pub async fn describe_key_of_alias(
        &self,
        request: &RequestContext,
        name: &AliasName,
    ) -> Result<KeyDescription, ServiceError> {
        let inner = &*self.inner;
        let mut trail = Trail::alias(name);
        let result = inner.describe_key_of_alias(request, name, &mut trail).await;
        inner.record(request, trail, result).await
    }
}

impl Inner {
    /// Returns the key that an alias points to, for a use that is to be decided on that key.
    ///
    /// Whoever may not do it at all in the tenant hears nothing of the alias, and costs no look at the store.
    pub(super) async fn resolve<A: Action>(
        &self,
        request: &RequestContext,
        name: &AliasName,
        trail: &mut Trail,
    ) -> Result<KeyName, ServiceError> {
        if !self.may(request, A::KIND, Some(name.tenant())) {
            self.permit::<A>(request, Target::tenant(name.tenant()), trail)?;
        }
        let alias = self.keyring.alias(name).await?;
        // From here on the record names the key.
        trail.resource = None;
        trail.name = Some(alias.key.clone());
        trail.key_uid = Some(alias.key_uid);
        Ok(alias.key.clone())
    }

    async fn describe_key_of_alias(
        &self,
        request: &RequestContext,
        name: &AliasName,
        trail: &mut Trail,
    ) -> Result<KeyDescription, ServiceError> {
        let key = self.resolve::<authz::DescribeKey>(request, name, trail).await?;
        let uid = trail.key_uid;
        let description = self.describe_key(request, &key, trail).await?;
        if Some(description.uid) != uid {
            let alias = self.keyring.alias(name).await?;
            return Err(self.points_elsewhere(&alias));
        }
        Ok(description)
    }

    async fn describe_alias(
        &self,
        request: &RequestContext,
        name: &AliasName,
        trail: &mut Trail,
    ) -> Result<AliasDescription, ServiceError> {
        self.permit::<authz::DescribeAlias>(request, Target::tenant(name.tenant()), trail)?;
        let Sealed { row, .. } = self.keyring.alias_row(name).await?;
        trail.key_uid = Some(row.key_uid);
        Ok(row.into())
    }

    async fn list_aliases(
        &self,
        request: &RequestContext,
        list: &ListAliases,
        trail: &mut Trail,
    ) -> Result<Page<AliasDescription>, ServiceError> {
        let ListAliases { tenant, key, page_size: asked, page_token } = list;
        self.permit::<authz::ListAliases>(request, Target::tenant(tenant), trail)?;
        let size = page_size(*asked)?;
        if key.as_ref().is_some_and(|key| key.tenant() != tenant) {
            return Err(ServiceError::field("key", "must be a key of the parent"));
        }
        let scope = key.as_ref().map_or_else(|| tenant.to_string(), ToString::to_string);
        let after = self.open_token(request, &scope, page_token).await?;
        let after = after.map_or(0, |position| split(&position).0.unsigned_abs());
        let key_uid = match key {
            Some(key) => {
                let uid = self.fresh(key, VersionChoice::Primary).await?.key.row.uid;
                trail.key_uid = Some(uid);
                Some(uid)
            }
            None => None,
        };
        let query = AliasQuery::Of {
            tenant: tenant.clone(),
            key_uid,
            after: Revision::new(after),
            limit: size + 1,
        };
        let mut aliases = self.keyring.stored(self.store.aliases(query).await)?;
        let more = aliases.len() > size as usize;
        aliases.truncate(size as usize);
        self.keyring.verify_aliases(&aliases).await?;
        let is_other = |alias: &Sealed<AliasRow>| {
            let row = &alias.row;
            row.name.tenant() != tenant || key_uid.is_some_and(|uid| row.key_uid != uid)
        };
        if aliases.iter().any(is_other) {
            return Err(self.keyring.integrity(format!("`{scope}` has another's alias")).into());
        }
        let next_page_token = match aliases.last().filter(|_| more) {
            Some(end) => {
                let revision = i64::try_from(end.row.revision.get()).unwrap_or(i64::MAX);
                self.make_token(request, &scope, &join(revision, &[0; 16])).await?
            }
            None => String::new(),
        };
        let items = aliases.into_iter().map(|alias| alias.row.into()).collect();
        Ok(Page { items, next_page_token })
    }
}
