//! The trail of one item: what its audit record will say. Nothing is answered before the record is durable.

use std::sync::Arc;

use kms_core::audit::{AuditRecord, Decision, LoggedContext, ManifestStamp, Phase};
use kms_core::canonical::CanonicalWriter;
use kms_core::context::EncryptionContext;
use kms_core::domain;
use kms_core::id::{IntentId, KeyUid, KeyVersion};
use kms_core::name::{AliasName, ConsumerName, ImportJobName, KeyName, KeyOrAlias, TenantName};
use kms_core::text::Text;
use kms_hsm::Timing;

use super::kms::Inner;
use super::{RequestContext, ServiceError};
use crate::authz::PolicyIds;
use crate::keyring::CachedKey;

/// `result` of the record of an operation that went well.
pub(super) const OK: &str = "OK";
/// `result` of the record of a mutation that is about to happen.
pub(super) const PENDING: &str = "PENDING";

/// The most bytes of names of an encryption context in the record of a denied call.
pub(super) const MAX_DENIED_NAMES_BYTES: usize = 512;

/// What is known so far.
#[derive(Debug)]
pub(super) struct Trail {
    pub(super) tenant: Text,
    /// The key that the caller named; once it is loaded, its own text stands for it.
    pub(super) name: Option<KeyName>,
    pub(super) resource: Option<Text>,
    pub(super) key: Option<Arc<CachedKey>>,
    pub(super) key_uid: Option<KeyUid>,
    pub(super) version: Option<KeyVersion>,
    /// Where a rewrap comes from.
    pub(super) from_version: Option<KeyVersion>,
    pub(super) context: Option<LoggedContext>,
    pub(super) reason: Option<String>,
    pub(super) timing: Timing,
    pub(super) manifest: Option<ManifestStamp>,
    pub(super) intent: Option<IntentId>,
    decision: Decision,
    revision: Option<Arc<str>>,
}

impl Trail {
    /// Starts a trail that knows nothing.
    pub(super) fn unknown() -> Self {
        Self {
            tenant: Text::default(),
            name: None,
            resource: None,
            key: None,
            key_uid: None,
            version: None,
            from_version: None,
            context: None,
            reason: None,
            timing: Timing::default(),
            manifest: None,
            intent: None,
            decision: Decision::NotReached,
            revision: None,
        }
    }

    /// Starts a trail at a tenant.
    pub(super) fn tenant(tenant: &TenantName) -> Self {
        Self { tenant: tenant.shared_id().into(), ..Self::unknown() }
    }

    /// Starts a trail at a key.
    pub(super) fn key(name: &KeyName) -> Self {
        Self { name: Some(name.clone()), ..Self::tenant(name.tenant()) }
    }

    /// Starts a trail at a consumer of a key.
    pub(super) fn consumer(name: &ConsumerName) -> Self {
        Self { resource: Some(name.to_string().into()), ..Self::key(name.key()) }
    }

    /// Starts a trail at an alias.
    pub(super) fn alias(name: &AliasName) -> Self {
        Self { resource: Some(name.to_string().into()), ..Self::tenant(name.tenant()) }
    }

    /// Starts a trail at a key that is named by itself or through an alias.
    pub(super) fn key_or_alias(name: &KeyOrAlias) -> Self {
        match name {
            KeyOrAlias::Key(name) => Self::key(name),
            KeyOrAlias::Alias(name) => Self::alias(name),
        }
    }

    /// Starts a trail at an import job of a key.
    pub(super) fn import_job(name: &ImportJobName) -> Self {
        Self { resource: Some(name.to_string().into()), ..Self::key(name.key()) }
    }

    pub(super) fn allow(&mut self, ids: &PolicyIds, revision: &Arc<str>) {
        let ids = ids.iter().map(Text::from);
        match &mut self.decision {
            Decision::Allow { policies } => policies.extend(ids),
            Decision::Deny { .. } | Decision::NotReached => {
                self.decision = Decision::Allow { policies: ids.collect() };
            }
        }
        self.revision = Some(Arc::clone(revision));
    }

    pub(super) fn deny(&mut self, ids: &PolicyIds, revision: &Arc<str>) {
        let policies = ids.iter().map(Text::from).collect();
        self.decision = Decision::Deny { policies };
        self.revision = Some(Arc::clone(revision));
    }

    /// Notes which names the context of a denied call has, as far as there is room.
    pub(super) fn name_context(&mut self, context: &EncryptionContext) {
        let mut left = MAX_DENIED_NAMES_BYTES;
        let mut names = Vec::new();
        for (name, _) in context.iter() {
            let Some(rest) = left.checked_sub(name.len()) else { break };
            left = rest;
            names.push(name.to_owned());
        }
        self.context = (!names.is_empty()).then_some(LoggedContext::Names(names));
    }

    /// Makes a copy for a record that is not the last of this trail.
    fn snapshot(&self) -> Self {
        Self {
            tenant: self.tenant.clone(),
            name: self.name.clone(),
            resource: self.resource.clone(),
            key: self.key.clone(),
            context: self.context.clone(),
            reason: self.reason.clone(),
            manifest: self.manifest.clone(),
            decision: self.decision.clone(),
            revision: self.revision.clone(),
            ..*self
        }
    }
}

impl Inner {
    /// Returns how a context stands in records: in clear, or as a keyed hash when the key says so.
    pub(super) async fn logged(
        &self,
        request: &RequestContext,
        key: &CachedKey,
        context: &EncryptionContext,
    ) -> Result<LoggedContext, ServiceError> {
        if !key.context_hashed {
            let pairs = context.iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
            return Ok(LoggedContext::Clear(pairs.collect()));
        }
        let mut canonical = Vec::with_capacity(context.canonical_len());
        context.write_canonical(&mut canonical);
        let input = CanonicalWriter::new(domain::CONTEXT_HASH)
            .bytes(key.row.uid.as_bytes())
            .bytes(&canonical)
            .finish();
        let generation = self.keyring.config().generation;
        let mac = self.keyring.mac(input, generation, request.deadline).await?;
        Ok(LoggedContext::Hashed(data_encoding::HEXLOWER.encode(&mac.0)))
    }

    /// Makes a record.
    pub(super) fn entry(
        &self,
        request: &RequestContext,
        trail: Trail,
        phase: Phase,
        result: &'static str,
    ) -> AuditRecord {
        let known = trail.key.as_ref().map(|key| key.row.uid);
        let resource = trail.resource.or_else(|| match (&trail.key, trail.name) {
            (Some(key), _) => Some((&key.name_text).into()),
            (None, name) => name.map(|name| name.to_string().into()),
        });
        let revision = trail.revision.unwrap_or_else(|| self.policy.revision());
        AuditRecord {
            time: self.clock.now(),
            event_id: request.event_id,
            item: None,
            phase,
            intent_id: trail.intent,
            operation: request.operation.into(),
            principal: (&request.principal.id).into(),
            authn_method: request.principal.method.as_str().into(),
            source: request.source.to_string(),
            tenant: trail.tenant,
            resource,
            key_uid: trail.key_uid.or(known),
            key_version: trail.version,
            from_version: trail.from_version,
            context: trail.context,
            decision: trail.decision,
            policy_revision: revision.into(),
            result: result.into(),
            reason: trail.reason,
            queue_us: micros(trail.timing.queued),
            hsm_us: micros(trail.timing.in_hsm),
            manifest: trail.manifest,
            counter: None,
            count: None,
        }
    }

    /// Writes the one record of an operation, waits until it is durable, and only then lets the result go. A refusal that
    /// is folded is let go at once: it had no effect.
    pub(super) async fn record<T>(
        &self,
        request: &RequestContext,
        trail: Trail,
        result: Result<T, ServiceError>,
    ) -> Result<T, ServiceError> {
        let entry = self.entry(request, trail, Phase::Complete, text(&result));
        if let Some(entry) = self.unless_folded(entry, &result) {
            self.audit.append(vec![entry]).await?;
        }
        result.map_err(|error| self.hide(request, error))
    }

    /// Writes the record of a mutation that came to no intent: refusals and repeats. One with an intent has its own.
    pub(super) async fn record_unless_begun<T>(
        &self,
        request: &RequestContext,
        trail: Trail,
        result: Result<T, ServiceError>,
    ) -> Result<T, ServiceError> {
        if trail.intent.is_some() {
            return result.map_err(|error| self.hide(request, error));
        }
        self.record(request, trail, result).await
    }

    /// Writes one record an item, all in one append; refused items may be folded.
    pub(super) async fn record_batch<T>(
        &self,
        request: &RequestContext,
        items: Vec<(Trail, Result<T, ServiceError>)>,
    ) -> Result<Vec<Result<T, ServiceError>>, ServiceError> {
        let mut entries = Vec::with_capacity(items.len());
        let mut results = Vec::with_capacity(items.len());
        for (number, (trail, result)) in (request.items_before..).zip(items) {
            let entry = self.entry(request, trail, Phase::Complete, text(&result));
            let entry = AuditRecord { item: Some(number), ..entry };
            entries.extend(self.unless_folded(entry, &result));
            results.push(result.map_err(|error| self.hide(request, error)));
        }
        if !entries.is_empty() {
            self.audit.append(entries).await?;
        }
        Ok(results)
    }

    /// Gives back a record that must be appended as it is; others are counted.
    fn unless_folded<T>(
        &self,
        entry: AuditRecord,
        result: &Result<T, ServiceError>,
    ) -> Option<AuditRecord> {
        match result {
            Err(error) if error.is_refusal() => self.refusals.fold(entry),
            Ok(_) | Err(_) => Some(entry),
        }
    }

    /// Writes a record of a mutation that goes on.
    pub(super) async fn record_phase(
        &self,
        request: &RequestContext,
        trail: &Trail,
        phase: Phase,
        result: &'static str,
    ) -> Result<(), ServiceError> {
        let entry = self.entry(request, trail.snapshot(), phase, result);
        Ok(self.audit.append(vec![entry]).await?)
    }
}

/// Returns what a record says of a result.
pub(super) fn text<T>(result: &Result<T, ServiceError>) -> &'static str {
    match result {
        Ok(_) => OK,
        Err(error) => error.reason(),
    }
}

fn micros(span: std::time::Duration) -> u32 {
    u32::try_from(span.as_micros()).unwrap_or(u32::MAX)
}
