//! CreateAlias, UpdateAlias and DeleteAlias: names that point to a key, and can be moved to another one.
//!
//! What happens to an alias stands in the history of the keys that it points to before and after, with the revisions of the
//! alias. So the rows of those keys are replaced with it; of a destroyed key nothing changes but revision and time.

use kms_core::alias::{AliasRow, MAX_ALIASES_PER_KEY, skeleton};
use kms_core::canonical::CanonicalWriter;
use kms_core::id::{RequestId, Revision};
use kms_core::key::{KeyRow, Sealed};
use kms_core::name::{AliasName, KeyName, TenantName};

use super::change::{Change, Failure, RowChanges};
use super::describe_key::Fresh;
use super::kms::{Inner, Kms};
use super::mutation::{Mutation, Subject, Turn};
use super::trail::Trail;
use super::{
    AliasDescription, AliasError, CreateAlias, DeleteAlias, RequestContext, ServiceError,
    UpdateAlias, fields,
};
use crate::authz::{self, Target};
use crate::store::{AliasChange, AliasEdit, AliasQuery, IntentKind, KeyRef, VersionChoice};

impl Kms {
    /// Makes an alias of a key.
    ///
    /// # Errors
    /// `FIELD_VIOLATION`, `ACCESS_DENIED`, `KEY_NOT_FOUND`, `KEY_DESTROY_SCHEDULED`, `KEY_DESTROYED`, `ALIAS_TARGET`,
    /// `ALIAS_EXISTS`, `ALIAS_CONFUSABLE`, `ALIAS_SHADOWS_KEY`, `ALIASES_FULL`, `REQUEST_ID_REUSED`,
    /// `OPERATION_IN_PROGRESS`, and what the layers below cannot do.
    pub async fn create_alias(
        &self,
        request: &RequestContext,
        create: CreateAlias,
    ) -> Result<AliasDescription, ServiceError> {
        self.mutate(request, create).await
    }

    /// Moves an alias to another key: from the answer on, whoever names it gets that one.
    ///
    /// # Errors
    /// As for [`Kms::create_alias`], with `ALIAS_NOT_FOUND`, `ALIAS_UNMOVED` and `REVISION_MISMATCH`.
    pub async fn update_alias(
        &self,
        request: &RequestContext,
        update: UpdateAlias,
    ) -> Result<AliasDescription, ServiceError> {
        self.mutate(request, update).await
    }

    /// Deletes an alias; returns what it was.
    ///
    /// # Errors
    /// `FIELD_VIOLATION`, `ACCESS_DENIED`, `ALIAS_NOT_FOUND`, `REVISION_MISMATCH`, `REQUEST_ID_REUSED`,
    /// `OPERATION_IN_PROGRESS`, and what the layers below cannot do.
    pub async fn delete_alias(
        &self,
        request: &RequestContext,
        delete: DeleteAlias,
    ) -> Result<AliasDescription, ServiceError> {
        self.mutate(request, delete).await
    }
}

impl Inner {
    /// Refuses an alias whose name is taken, or easily taken for another.
    async fn check_alias_name(&self, name: &AliasName) -> Result<(), ServiceError> {
        let (tenant, id) = (name.tenant(), name.alias_id());
        let query = AliasQuery::Skeleton { tenant: tenant.clone(), skeleton: skeleton(id) };
        let alike = self.keyring.stored(self.store.aliases(query).await)?;
        self.keyring.verify_aliases(&alike).await?;
        if let Some(other) = alike.into_iter().next().map(|alias| alias.row.name) {
            let error = if other == *name {
                AliasError::Exists { name: other }
            } else {
                AliasError::Confusable { other }
            };
            return Err(error.into());
        }
        let key = KeyName::new(tenant.clone(), id)
            .map_err(|_| ServiceError::Bug { reason: "an alias id is no key id" })?;
        let known = self.store.key(KeyRef::Name(key.clone()), VersionChoice::Primary).await;
        if self.keyring.stored(known)?.is_some() {
            return Err(AliasError::ShadowsKey { key }.into());
        }
        Ok(())
    }

    /// Refuses to give a key an id that an alias has.
    pub(super) async fn check_no_alias(&self, key: &KeyName) -> Result<(), ServiceError> {
        let name = AliasName::new(key.tenant().clone(), key.key_id())
            .map_err(|_| ServiceError::Bug { reason: "a key id is no alias id" })?;
        let found = self.store.aliases(AliasQuery::Name(name.clone())).await;
        if self.keyring.stored(found)?.is_empty() {
            return Ok(());
        }
        Err(AliasError::Exists { name }.into())
    }

    /// Refuses one alias more than a key may have.
    async fn check_room_for_alias(&self, key: &KeyRow) -> Result<(), ServiceError> {
        let query = AliasQuery::Of {
            tenant: key.name.tenant().clone(),
            key_uid: Some(key.uid),
            after: Revision::new(0),
            limit: MAX_ALIASES_PER_KEY,
        };
        let aliases = self.keyring.stored(self.store.aliases(query).await)?;
        let has_room = aliases.len() < MAX_ALIASES_PER_KEY as usize;
        if has_room { Ok(()) } else { Err(AliasError::Full.into()) }
    }

    /// Returns the revision that a change of an alias gets: that of the next manifest. The caller has the turn.
    async fn next_alias_revision(&self, tenant: &TenantName) -> Result<Revision, ServiceError> {
        Ok(self.keyring.manifest(tenant).await?.revision.next())
    }

    /// Reads the alias that a change is based on, fresh. The caller has the turn.
    async fn alias_at(
        &self,
        name: &AliasName,
        revision: Revision,
    ) -> Result<Sealed<AliasRow>, ServiceError> {
        let alias = self.keyring.alias_row(name).await?;
        if alias.row.revision != revision {
            return Err(AliasError::RevisionMismatch.into());
        }
        Ok(alias)
    }

    /// Reads the key that an alias points to, fresh, whatever its state.
    async fn key_of(&self, alias: &AliasRow) -> Result<Fresh, ServiceError> {
        let fresh = self.fresh(&alias.key, VersionChoice::Primary).await?;
        if fresh.key.row.uid != alias.key_uid {
            return Err(self.points_elsewhere(alias));
        }
        Ok(fresh)
    }

    /// Raises the alert of an alias whose key has another uid now: neither ever changes.
    pub(super) fn points_elsewhere(&self, alias: &AliasRow) -> ServiceError {
        let detail = format!("alias `{}` is not of the key that `{}` is", alias.name, alias.key);
        self.keyring.integrity(detail).into()
    }
}

/// What the history of a key says of an alias: where it pointed to, and points to now, at which revision of it.
fn detail(name: &AliasName, old: Option<&AliasRow>, new: Option<(&KeyName, Revision)>) -> String {
    let place = |key: &KeyName, revision: Revision| serde_json::json!({ "key": key.key_id(), "revision": revision.get() });
    let old = old.map(|row| place(&row.key, row.revision));
    let new = new.map(|(key, revision)| place(key, revision));
    serde_json::json!({ format!("aliases/{}", name.alias_id()): [old, new] }).to_string()
}

fn check_tenants(name: &AliasName, key: &KeyName) -> Result<(), ServiceError> {
    if name.tenant() == key.tenant() { Ok(()) } else { Err(AliasError::Target.into()) }
}

fn fields_of(name: &AliasName, reason: &str) -> Result<CanonicalWriter, ServiceError> {
    fields::check_reason(reason, 1)?;
    Ok(CanonicalWriter::new(b"fields").text(&name.to_string()).text(reason))
}

impl Mutation for CreateAlias {
    type Output = AliasDescription;
    type Basis = (Turn, Revision);

    fn trail(&self) -> Trail {
        Trail::alias(&self.name)
    }

    fn request_id(&self) -> Option<RequestId> {
        Some(self.request_id)
    }

    fn reason(&self) -> Option<&str> {
        Some(&self.reason)
    }

    fn permit(
        &self,
        inner: &Inner,
        request: &RequestContext,
        trail: &mut Trail,
    ) -> Result<(), ServiceError> {
        check_tenants(&self.name, &self.key)?;
        inner.permit::<authz::CreateAlias>(request, Target::key(&self.key), trail).map(drop)
    }

    fn fields(&self) -> Result<CanonicalWriter, ServiceError> {
        Ok(fields_of(&self.name, &self.reason)?.text(&self.key.to_string()))
    }

    async fn basis(
        &self,
        inner: &Inner,
        trail: &mut Trail,
    ) -> Result<(Subject, Self::Basis), ServiceError> {
        let turn = inner.turn(&self.key, VersionChoice::Primary).await?;
        let key = &turn.fresh.key.row;
        trail.key_uid = Some(key.uid);
        inner.check_alias_name(&self.name).await?;
        inner.check_room_for_alias(key).await?;
        let revision = inner.next_alias_revision(self.name.tenant()).await?;
        Ok((Subject::of_key(IntentKind::CreateAlias, key), (turn, revision)))
    }

    async fn apply(
        self,
        change: &mut Change<'_>,
        (turn, revision): Self::Basis,
    ) -> Result<AliasDescription, Failure> {
        let now = change.inner.clock.now();
        let row = AliasRow {
            name: self.name,
            key: self.key,
            key_uid: turn.fresh.key.row.uid,
            create_time: now,
            update_time: now,
            actor: (&*change.request.principal.id).into(),
            reason: self.reason,
            revision,
        };
        let edited = Edited {
            detail: detail(&row.name, None, Some((&row.key, revision))),
            reason: row.reason.clone(),
            result: row.clone().into(),
            edit: AliasEdit::Add(change.seal(row).await?),
        };
        change.change_alias(&[&turn.fresh], edited).await
    }
}

impl Mutation for UpdateAlias {
    type Output = AliasDescription;
    type Basis = Moving;

    fn trail(&self) -> Trail {
        Trail::alias(&self.name)
    }

    fn request_id(&self) -> Option<RequestId> {
        Some(self.request_id)
    }

    fn reason(&self) -> Option<&str> {
        Some(&self.reason)
    }

    fn permit(
        &self,
        inner: &Inner,
        request: &RequestContext,
        trail: &mut Trail,
    ) -> Result<(), ServiceError> {
        check_tenants(&self.name, &self.key)?;
        inner.permit::<authz::UpdateAlias>(request, Target::key(&self.key), trail).map(drop)
    }

    fn fields(&self) -> Result<CanonicalWriter, ServiceError> {
        let out = fields_of(&self.name, &self.reason)?;
        Ok(out.text(&self.key.to_string()).number(self.revision.get()))
    }

    async fn basis(
        &self,
        inner: &Inner,
        trail: &mut Trail,
    ) -> Result<(Subject, Moving), ServiceError> {
        let turn = inner.turn(&self.key, VersionChoice::Primary).await?;
        let key = &turn.fresh.key.row;
        trail.key_uid = Some(key.uid);
        let alias = inner.alias_at(&self.name, self.revision).await?;
        if alias.row.key_uid == key.uid {
            return Err(AliasError::Unmoved.into());
        }
        let from = inner.key_of(&alias.row).await?;
        inner.check_room_for_alias(key).await?;
        let revision = inner.next_alias_revision(self.name.tenant()).await?;
        let subject = Subject::of_key(IntentKind::UpdateAlias, key);
        Ok((subject, Moving { turn, from, alias, revision }))
    }

    async fn apply(
        self,
        change: &mut Change<'_>,
        basis: Moving,
    ) -> Result<AliasDescription, Failure> {
        let Moving { turn, from, alias, revision } = basis;
        let row = AliasRow {
            name: self.name,
            key: self.key,
            key_uid: turn.fresh.key.row.uid,
            create_time: alias.row.create_time,
            update_time: change.inner.clock.now(),
            actor: (&*change.request.principal.id).into(),
            reason: self.reason,
            revision,
        };
        let edited = Edited {
            detail: detail(&row.name, Some(&alias.row), Some((&row.key, revision))),
            reason: row.reason.clone(),
            result: row.clone().into(),
            edit: AliasEdit::Move { from: alias, to: change.seal(row).await? },
        };
        change.change_alias(&[&turn.fresh, &from], edited).await
    }
}

/// What a move builds on.
pub(super) struct Moving {
    /// The key that it is to point to.
    turn: Turn,
    /// The key that it points to.
    from: Fresh,
    alias: Sealed<AliasRow>,
    revision: Revision,
}

impl Mutation for DeleteAlias {
    type Output = AliasDescription;
    type Basis = (Turn, Sealed<AliasRow>);

    fn trail(&self) -> Trail {
        Trail::alias(&self.name)
    }

    fn request_id(&self) -> Option<RequestId> {
        Some(self.request_id)
    }

    fn reason(&self) -> Option<&str> {
        Some(&self.reason)
    }

    fn permit(
        &self,
        inner: &Inner,
        request: &RequestContext,
        trail: &mut Trail,
    ) -> Result<(), ServiceError> {
        let target = Target::tenant(self.name.tenant());
        inner.permit::<authz::DeleteAlias>(request, target, trail).map(drop)
    }

    fn fields(&self) -> Result<CanonicalWriter, ServiceError> {
        Ok(fields_of(&self.name, &self.reason)?.number(self.revision.get()))
    }

    async fn basis(
        &self,
        inner: &Inner,
        trail: &mut Trail,
    ) -> Result<(Subject, Self::Basis), ServiceError> {
        // Before the turn, to know whose turn it is: it may be moved meanwhile, and is at another revision then.
        let key = inner.alias_at(&self.name, self.revision).await?.row.key;
        let turn = inner.turn_whatever(&key, VersionChoice::Primary).await?;
        let alias = inner.alias_at(&self.name, self.revision).await?;
        let row = &turn.fresh.key.row;
        trail.key_uid = Some(row.uid);
        if row.uid != alias.row.key_uid {
            return Err(inner.points_elsewhere(&alias.row));
        }
        Ok((Subject::of_key(IntentKind::DeleteAlias, row), (turn, alias)))
    }

    async fn apply(
        self,
        change: &mut Change<'_>,
        (turn, alias): Self::Basis,
    ) -> Result<AliasDescription, Failure> {
        let edited = Edited {
            detail: detail(&self.name, Some(&alias.row), None),
            reason: self.reason,
            result: alias.row.clone().into(),
            edit: AliasEdit::Remove(alias),
        };
        change.change_alias(&[&turn.fresh], edited).await
    }
}

/// An alias that comes, moves or goes.
struct Edited {
    edit: AliasEdit,
    detail: String,
    reason: String,
    result: AliasDescription,
}

impl Change<'_> {
    /// Writes a change of an alias, and of the keys that it pointed to and points to.
    async fn change_alias(
        &mut self,
        touched: &[&Fresh],
        edited: Edited,
    ) -> Result<AliasDescription, Failure> {
        let Edited { edit, detail, reason, result } = edited;
        let (mut added, mut removed) = match &edit {
            AliasEdit::Add(alias) => (vec![alias.mac], vec![]),
            AliasEdit::Move { from, to } => (vec![to.mac], vec![from.mac]),
            AliasEdit::Remove(alias) => (vec![], vec![alias.mac]),
        };
        let (mut keys, mut history) = (Vec::new(), Vec::new());
        for Fresh { key: old, version: _ } in touched {
            let (key, entry) =
                self.key_changed(&old.row, old.row.clone(), detail.clone(), reason.clone());
            let key = self.seal(key).await?;
            added.push(key.mac);
            removed.push(old.mac);
            history.push(entry);
            keys.push((old.row.revision, key));
        }
        let rows = RowChanges { added: &added, removed: &removed, history };
        let closing = self.closing(result.name.tenant(), rows, &result).await?;
        let committed = self.inner.store.change_alias(AliasChange { keys, edit }, closing).await;
        // Whatever became of it: what is not cached is read.
        let keyring = &self.inner.keyring;
        keyring.invalidate_alias(&result.name);
        for Fresh { key, .. } in touched {
            keyring.invalidate(&key.row.name, key.row.uid, &[]);
        }
        self.settle(committed).await?;
        Ok(result)
    }
}
