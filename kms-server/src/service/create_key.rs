//! CreateKey: a key with version 1, ACTIVE and primary.

use std::sync::Arc;

use kms_core::canonical::CanonicalWriter;
use kms_core::id::{KeyUid, KeyVersion, Revision};
use kms_core::key::{CounterRow, KeyRow, Material, Protection, VersionRow};
use kms_core::state::VersionState;
use kms_hsm::{GeneratedKey, KeySpec};

use super::describe_key::describe_key;
use super::fields;
use super::kms::{Inner, Kms};
use super::mutation::{Claim, Claimed, Failure, OpenIntent, RowChanges, Subject, request_hash};
use super::trail::Trail;
use super::{CreateKey, KeyDescription, RequestContext, ServiceError};
use crate::authz::{self, Target};
use crate::store::{IntentKind, KeyRef, NewKey, StoreError, VersionChoice};

impl Kms {
    /// Creates a key. It goes on when the caller goes away; a repeat with the same request id gets the result.
    ///
    /// # Errors
    /// `FIELD_VIOLATION`, `ACCESS_DENIED`, `RESOURCE_EXISTS`, `REQUEST_ID_REUSED`, `OPERATION_IN_PROGRESS`, and what
    /// the layers below cannot do.
    pub async fn create_key(
        &self,
        request: &RequestContext,
        create: CreateKey,
    ) -> Result<KeyDescription, ServiceError> {
        let (inner, request) = (Arc::clone(&self.inner), request.clone());
        super::kms::detached(async move {
            let mut trail = Trail::key(&create.name);
            let result = inner.create_key(&request, create, &mut trail).await;
            inner.record_unless_begun(&request, trail, result).await
        })
        .await
    }
}

impl Inner {
    async fn create_key(
        self: &Arc<Self>,
        request: &RequestContext,
        create: CreateKey,
        trail: &mut Trail,
    ) -> Result<KeyDescription, ServiceError> {
        let target = Target::key(&create.name);
        self.permit::<authz::CreateKey>(request, target, trail)?;
        fields::check_owner(&create.owner)?;
        fields::check_usage(&create.usage)?;
        fields::check_cryptoperiod(create.cryptoperiod)?;
        fields::check_labels(&create.labels)?;
        let hash = request_hash(request.operation, canonical(&create));
        let claim = match self.claim(request, create.request_id, hash).await? {
            Claimed::Repeat(first) => return Ok(first),
            Claimed::Fresh(claim) => claim,
        };
        // Seen early, so that no key is generated in vain; the store decides in the end.
        let by_name = KeyRef::Name(create.name.clone());
        if self.store.key(by_name, VersionChoice::Primary).await?.is_some() {
            return Err(ServiceError::ResourceExists { name: create.name });
        }
        let subject = Subject {
            kind: IntentKind::CreateKey,
            key_name: create.name.clone(),
            key_uid: KeyUid::from_random(self.draw()?),
            version: KeyVersion::FIRST,
            protection: create.protection,
        };
        let open = self.begin(request, subject, trail).await?;
        let result = self.insert_key(request, create, (&open, &claim), trail).await;
        self.conclude(request, open, trail, result).await
    }

    async fn insert_key(
        &self,
        request: &RequestContext,
        create: CreateKey,
        (open, claim): (&OpenIntent, &Claim),
        trail: &mut Trail,
    ) -> Result<KeyDescription, Failure> {
        let (version, counter) = self.generate(request, open, "created").await?;
        let now = version.create_time;
        let key = KeyRow {
            uid: open.intent.key_uid,
            name: create.name.clone(),
            purpose: create.purpose,
            protection: create.protection,
            owner: create.owner,
            sensitivity: create.sensitivity,
            usage: create.usage,
            cryptoperiod: create.cryptoperiod,
            labels: create.labels,
            create_time: now,
            update_time: now,
            revision: Revision::FIRST,
            primary: KeyVersion::FIRST,
            latest: KeyVersion::FIRST,
        };
        let description = describe_key(&key, &version, now);
        let (generation, deadline) = (self.keyring.config().generation, request.deadline);
        let key = self.keyring.seal(key, generation, deadline).await.map_err(ServiceError::from)?;
        let version =
            self.keyring.seal(version, generation, deadline).await.map_err(ServiceError::from)?;
        let counter =
            self.keyring.seal(counter, generation, deadline).await.map_err(ServiceError::from)?;
        let tenant = create.name.tenant();
        let _turn = self.lock_tenant(tenant).await?;
        let rows = RowChanges { added: &[key.mac, version.mac], removed: &[] };
        let ending = (open, Some(claim), &description);
        let closing = self.closing(request, tenant, rows, ending, trail).await?;
        let committed = self.store.create_key(NewKey { key, version, counter }, closing).await;
        match self.settle(open, committed).await {
            Ok(()) => Ok(description),
            Err(super::mutation::Unsettled::NotCommitted(StoreError::NameTaken)) => {
                Err(Failure::Undo(ServiceError::ResourceExists { name: create.name }))
            }
            Err(other) => Err(other.into()),
        }
    }

    /// Generates the key of an intent and makes the rows of its version, ACTIVE, with the check value as first invocation.
    ///
    /// The provider has self-tested the key, so PRE_ACTIVATION ends in the transaction that writes the row.
    pub(super) async fn generate(
        &self,
        request: &RequestContext,
        open: &OpenIntent,
        reason: &str,
    ) -> Result<(VersionRow, CounterRow), ServiceError> {
        let intent = &open.intent;
        let spec = KeySpec {
            key_uid: intent.key_uid,
            version: intent.version,
            generation: self.keyring.config().generation,
            protection: intent.protection,
            resident_id: intent.resident_id,
        };
        let generated = self.hsm.generate_key(spec, request.deadline).await;
        let GeneratedKey { wrapped, check, key: _ } =
            generated.map_err(|error| self.device(error))?;
        let material = match (intent.protection, wrapped) {
            (Protection::HsmWrapped, Some(blob)) => Material::Wrapped(blob),
            (Protection::HsmResident, None) => Material::Resident(intent.resident_id),
            (Protection::HsmWrapped, None) | (Protection::HsmResident, Some(_)) => {
                return Err(ServiceError::Bug { reason: "the hsm gave another protection" });
            }
        };
        let now = self.clock.now();
        let version = VersionRow {
            key_uid: intent.key_uid,
            version: intent.version,
            state: VersionState::Active,
            material,
            check,
            create_time: now,
            state_time: now,
            state_reason: reason.into(),
            state_actor: (&*request.principal.id).into(),
            deactivate_time: None,
            revision: Revision::FIRST,
        };
        let counter = CounterRow {
            key_uid: intent.key_uid,
            version: intent.version,
            leased: 1,
            revision: Revision::FIRST,
        };
        Ok((version, counter))
    }
}

fn canonical(create: &CreateKey) -> CanonicalWriter {
    let CreateKey {
        name,
        purpose,
        protection,
        owner,
        sensitivity,
        usage,
        cryptoperiod,
        labels,
        request_id: _,
    } = create;
    let fixed = CanonicalWriter::new(b"fields")
        .text(&name.to_string())
        .text(purpose.as_str())
        .text(protection.as_str())
        .text(owner)
        .text(sensitivity.as_str())
        .text(usage)
        .number(cryptoperiod.as_secs());
    fields::write_labels(fixed, labels)
}
