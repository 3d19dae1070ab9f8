//! What all use-cases share: the parts, permits, and the audit of what was decided.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kms_core::clock::Clock;
use kms_core::context::EncryptionContext;
use kms_core::envelope::{Envelope, InvalidEnvelope, MAX_ENVELOPE_BYTES};
use kms_core::id::{IntentId, Randomness, RequestId};
use kms_core::name::{KeyName, TenantName};
use kms_hsm::{Hsm, HsmError, Timing};

use super::due::DueCursors;
use super::places::Places;
use super::root_rollover::Progress;
use super::trail::Trail;
use super::{AliasError, RequestContext, ServiceError};
use crate::audit::SharedAuditSink;
use crate::audit::aggregate::Bounds;
use crate::audit::refusals::Refusals;
use crate::authn::{AuthnMethod, Principal};
use crate::authz::{Action, ActionKind, AuthzRequest, Decision, Permit, Policy, Target, authorize};
use crate::journal::SharedJournal;
use crate::keyring::{CachedKey, Counters, Keyring, KeyringConfig};
use crate::store::Store;

/// Where internal requests come from.
pub(super) const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
/// How long something that the server does by itself may take.
pub(super) const INTERNAL_DEADLINE: Duration = Duration::from_secs(30);

/// How many locks the tenants share: two tenants on one lock only wait for each other.
const TENANT_LOCKS: usize = 64;

/// The generator of aws-lc-rs.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandomness;

impl Randomness for SystemRandomness {
    fn draw(&self) -> Option<[u8; 16]> {
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes).ok().map(|()| bytes)
    }
}

/// What a [`Kms`] is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The HSM, with its roots open.
    pub hsm: Arc<dyn Hsm>,
    /// The store.
    pub store: Arc<dyn Store>,
    /// Where records go.
    pub audit: SharedAuditSink,
    /// Where states go that must not come back.
    pub journal: SharedJournal,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Who may do what.
    pub policy: Arc<dyn Policy>,
    /// Randomness for ids.
    pub randomness: Arc<dyn Randomness>,
    /// Bounds of the keyring.
    pub keyring: KeyringConfig,
    /// Whether keys may be imported under RSA-OAEP with SHA-1.
    pub allow_rsa_oaep_sha1: bool,
    /// The most open import jobs of all tenants together; see [`kms_core::import_job::MAX_OPEN_IMPORT_JOBS`].
    pub max_open_import_jobs: u32,
}

/// The service; clones share it.
#[derive(Clone, Debug)]
pub struct Kms {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) hsm: Arc<dyn Hsm>,
    pub(super) store: Arc<dyn Store>,
    pub(super) audit: SharedAuditSink,
    pub(super) journal: SharedJournal,
    pub(super) refusals: Refusals,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) policy: Arc<dyn Policy>,
    pub(super) randomness: Arc<dyn Randomness>,
    pub(super) keyring: Keyring,
    pub(super) allow_rsa_oaep_sha1: bool,
    pub(super) max_open_import_jobs: u32,
    /// Held from the count of all import jobs to the row of one more.
    pub(super) import_job_room: tokio::sync::Mutex<()>,
    /// Requests that change something and are being worked on.
    pub(super) requests: Mutex<HashSet<(Arc<str>, RequestId)>>,
    /// Intents of this process, which the reconciler leaves alone.
    pub(super) intents: Mutex<HashSet<IntentId>>,
    /// Orphans that were reported already, as audit records name them, and how many there are now.
    pub(super) orphans: Mutex<HashSet<String>>,
    /// Abandoned intents that the last run of the reconciler could not close.
    pub(super) stuck_intents: AtomicUsize,
    /// What the last run of the reconciler could not do.
    pub(super) reconcile_failures: AtomicUsize,
    /// Keys that do not protect until they are rotated.
    pub(super) disabled_keys: AtomicU64,
    /// Where the reconciler's lists of what is due go on.
    pub(super) due: DueCursors,
    /// Uses of keys since the start: work in the background makes way for them.
    pub(super) traffic: AtomicU64,
    /// How far the rows are under the newest root.
    pub(super) root_rollover: Progress,
    /// Whether a comparison of the database with the log was begun, and none has ended well. Nothing is reconciled then.
    pub(super) is_doubtful: AtomicBool,
    /// Changes of a tenant's rows, one after another; asynchronous, so waiting blocks no thread.
    tenant_locks: Vec<Arc<tokio::sync::Mutex<()>>>,
    /// Places for mutations.
    pub(super) mutations: Arc<Places>,
    /// The turn to take a backup.
    pub(super) backup: Arc<tokio::sync::Mutex<()>>,
}

/// The turn to change rows of a tenant.
pub(super) type TenantLock = tokio::sync::OwnedMutexGuard<()>;

impl Kms {
    /// Puts the parts together. Nothing is loaded before it is used.
    pub fn new(parts: Parts) -> Self {
        let Parts {
            hsm,
            store,
            audit,
            journal,
            clock,
            policy,
            randomness,
            keyring,
            allow_rsa_oaep_sha1,
            max_open_import_jobs,
        } = parts;
        let keyring = Keyring::new(
            Arc::clone(&hsm),
            Arc::clone(&store),
            Arc::clone(&audit),
            Arc::clone(&clock),
            Arc::clone(&randomness),
            Arc::clone(&journal),
            keyring,
        );
        let refusals = Refusals::new(Arc::clone(&audit), Arc::clone(&clock), Bounds::AUTHENTICATED);
        let inner = Inner {
            refusals,
            hsm,
            store,
            audit,
            journal,
            clock,
            policy,
            randomness,
            keyring,
            allow_rsa_oaep_sha1,
            max_open_import_jobs,
            import_job_room: tokio::sync::Mutex::default(),
            requests: Mutex::default(),
            intents: Mutex::default(),
            orphans: Mutex::default(),
            stuck_intents: AtomicUsize::new(0),
            reconcile_failures: AtomicUsize::new(0),
            disabled_keys: AtomicU64::new(0),
            due: DueCursors::default(),
            traffic: AtomicU64::new(0),
            root_rollover: Progress::default(),
            is_doubtful: AtomicBool::new(false),
            tenant_locks: std::iter::repeat_with(Default::default).take(TENANT_LOCKS).collect(),
            mutations: Places::new(),
            backup: Arc::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Audits a request that was refused before it came here (decoding, limits), and returns what to answer.
    pub async fn refuse(&self, request: &RequestContext, error: ServiceError) -> ServiceError {
        match self.inner.record(request, Trail::unknown(), Err::<(), _>(error)).await {
            Err(error) => error,
            Ok(()) => ServiceError::Bug { reason: "a refusal became a success" },
        }
    }

    /// Writes what is queued for the state journal, then closes it. Blocks.
    pub fn close_journal(&self) {
        self.inner.journal.close();
    }

    /// Returns the state journal.
    pub fn journal(&self) -> &SharedJournal {
        &self.inner.journal
    }

    /// Returns the counters of the keyring.
    pub fn counters(&self) -> &Arc<Counters> {
        self.inner.keyring.counters()
    }

    /// Returns how many key rows and versions are loaded.
    pub fn loaded(&self) -> (usize, usize) {
        self.inner.keyring.loaded()
    }

    /// Writes the records of folded refusals whose window has ended.
    ///
    /// # Errors
    /// When the log cannot be written; they are counted on then.
    pub async fn write_refusals(&self) -> Result<(), ServiceError> {
        Ok(self.inner.refusals.tick().await?)
    }

    /// Drops all keys, returns the unused rests of leases, and writes what is left of folded refusals. Call it when no
    /// request runs any more.
    ///
    /// # Errors
    /// When a rest could not be returned, which counts as used then and is all that is lost; or the log not written.
    pub async fn drain(&self) -> Result<(), ServiceError> {
        let returned = self.inner.keyring.drain().await;
        self.inner.refusals.finish().await?;
        Ok(returned?)
    }
}

impl Inner {
    /// Asks policy, and notes the decision.
    pub(super) fn permit<'r, A: Action>(
        &self,
        request: &RequestContext,
        target: Target<'r>,
        trail: &mut Trail,
    ) -> Result<Permit<'r, A>, ServiceError> {
        match authorize::<A>(&*self.policy, &request.principal, request.source, target) {
            Ok(permit) => {
                trail.allow(permit.policies(), permit.revision());
                Ok(permit)
            }
            Err(denied) => {
                trail.deny(&denied.policies, &denied.revision);
                if let (None, Some(context)) = (&trail.context, target.context) {
                    trail.name_context(context);
                }
                Err(ServiceError::AccessDenied)
            }
        }
    }

    /// Returns the key of a permitted request, and notes key and context.
    pub(super) async fn key(
        &self,
        request: &RequestContext,
        name: &KeyName,
        context: Option<&EncryptionContext>,
        trail: &mut Trail,
    ) -> Result<Arc<CachedKey>, ServiceError> {
        let key = self.keyring.key(name).await?;
        // Set only by an alias, which is bound to it.
        if trail.key_uid.is_some_and(|uid| uid != key.row.uid) {
            let detail = format!("an alias is not of the key that `{name}` is");
            return Err(self.keyring.integrity(detail).into());
        }
        if let Some(context) = context.filter(|context| !context.is_empty()) {
            trail.context = Some(self.logged(request, &key, context).await?);
        }
        trail.key = Some(Arc::clone(&key));
        Ok(key)
    }

    /// Says "denied" instead of "not found" to those who may neither describe nor list keys of the tenant; or import jobs or
    /// aliases, where it is one that is not there.
    pub(super) fn hide(&self, request: &RequestContext, error: ServiceError) -> ServiceError {
        const KEYS: &[ActionKind] = &[ActionKind::DescribeKey, ActionKind::ListKeys];
        const JOBS: &[ActionKind] = &[ActionKind::DescribeImportJob, ActionKind::ListImportJobs];
        const ALIASES: &[ActionKind] = &[
            ActionKind::DescribeAlias,
            ActionKind::ListAliases,
            ActionKind::DescribeKey,
            ActionKind::ListKeys,
        ];
        let (tenant, actions) = match &error {
            ServiceError::KeyNotFound { name } => (name.tenant(), KEYS),
            ServiceError::VersionNotFound { name } => (name.key().tenant(), KEYS),
            ServiceError::ConsumerNotFound { name } => (name.key().tenant(), KEYS),
            ServiceError::Alias(AliasError::NotFound { name }) => (name.tenant(), ALIASES),
            ServiceError::ImportJobNotFound { name } => (name.key().tenant(), JOBS),
            _ => return error,
        };
        let seen = actions.iter().any(|action| self.may(request, *action, Some(tenant)));
        if seen { error } else { ServiceError::AccessDenied }
    }

    /// Asks policy without a permit in mind.
    pub(super) fn may(
        &self,
        request: &RequestContext,
        action: ActionKind,
        tenant: Option<&TenantName>,
    ) -> bool {
        let RequestContext { principal, source, .. } = request;
        let question =
            AuthzRequest { principal, source: *source, action, tenant, key: None, context: None };
        matches!(self.policy.decide(&question), Decision::Allow(_))
    }

    /// Turns an error of the HSM into ours, and raises the alert when a key is not the one recorded.
    pub(super) fn device(&self, error: HsmError) -> ServiceError {
        match error {
            HsmError::KeyIntegrity { detail } => self.keyring.integrity(detail).into(),
            other => other.into(),
        }
    }

    /// Returns the time since `start` as time in the HSM, where the HSM does not say.
    pub(super) fn timing_since(&self, start: Instant) -> Timing {
        let in_hsm = self.clock.monotonic().saturating_duration_since(start);
        Timing { queued: Duration::ZERO, in_hsm }
    }

    pub(super) fn draw(&self) -> Result<[u8; 16], ServiceError> {
        self.randomness.draw().ok_or(ServiceError::Bug { reason: "no randomness for ids" })
    }

    /// Waits for the turn to change rows of a tenant, as long as something begun may take; whoever has not begun bounds it
    /// by the deadline of the request.
    pub(super) async fn lock_tenant(
        &self,
        tenant: &TenantName,
    ) -> Result<TenantLock, ServiceError> {
        let bytes = tenant.id().bytes();
        let slot = bytes
            .fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)))
            % TENANT_LOCKS;
        let lock = self.tenant_locks.get(slot).ok_or(ServiceError::Bug { reason: "no lock" })?;
        let turn = tokio::time::timeout(INTERNAL_DEADLINE, Arc::clone(lock).lock_owned()).await;
        turn.map_err(|_| ServiceError::QueueDeadline)
    }
}

/// Reads an envelope.
pub(super) fn decode(ciphertext: &[u8]) -> Result<Envelope<'_>, ServiceError> {
    if ciphertext.is_empty() || ciphertext.len() > MAX_ENVELOPE_BYTES {
        let text = format!("must be 1 to {MAX_ENVELOPE_BYTES} bytes");
        return Err(ServiceError::field("ciphertext", text));
    }
    Envelope::decode(ciphertext).map_err(|error| {
        let (part, number) = match error {
            InvalidEnvelope::Malformed => return ServiceError::CiphertextInvalid,
            InvalidEnvelope::UnsupportedFormat(number) => ("format", number),
            InvalidEnvelope::UnsupportedSuite(number) => ("suite", number),
        };
        ServiceError::EnvelopeUnsupported { detail: error.to_string(), part, number }
    })
}

/// Who does what the server does by itself.
pub(super) fn internal_principal() -> Principal {
    Principal { id: Arc::from("internal"), method: AuthnMethod::Internal }
}
