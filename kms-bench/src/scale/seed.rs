//! Many keys in a dev directory, each made by the service's own CreateKey: real material, real MACs, real records.
//!
//! It runs in the process of a child, on a clock of its own: a tenant remembers 100,000 requests of a day, so a
//! million keys take days. They pass on that clock, and it ends at the present.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kms_core::clock::{Clock, SystemClock, Timestamp};
use kms_core::id::{EventId, Randomness as _, RequestId, RootGeneration};
use kms_core::import_job::MAX_OPEN_IMPORT_JOBS;
use kms_core::key::{Protection, Purpose, Sensitivity};
use kms_core::name::{KeyName, TenantName};
use kms_core::secret::Pin;
use kms_hsm::Hsm;
use kms_hsm::pkcs11::{Pkcs11Config, Pkcs11Hsm, TokenSelector};
use kms_server::audit::FileSink;
use kms_server::authn::{AuthnMethod, Principal};
use kms_server::authz::{ActionKind, GrantConfig, StaticPolicy};
use kms_server::dev::DEV_TENANT;
use kms_server::journal::{FileJournal, Opening};
use kms_server::keyring::KeyringConfig;
use kms_server::service::{CreateKey, Kms, Parts, RequestContext, SystemRandomness};
use kms_server::store::sqlite::SqliteStore;
use kms_server::store::{REQUEST_MEMORY, Store as _};
use tokio::task::JoinSet;

use crate::error::{Error, io};

/// What is made.
#[derive(Clone, Copy, Debug)]
pub struct Seeding {
    /// How many keys.
    pub keys: u32,
    /// Whether all are due for their rotation when it is done.
    pub due: bool,
}

/// Keys are made by so many tasks.
const LANES: u32 = 16;
/// Keys made on one day of the clock, fewer than the requests that are remembered.
const KEYS_A_DAY: u32 = 50_000;
/// From one day of the clock to the next: what was remembered can be forgotten.
const DAY: Duration = Duration::from_hours(25);
/// Requests forgotten in one commit.
const FORGOTTEN: u32 = 10_000;
/// How often keys that are due give way; they were made thrice as long ago, whatever their jitter.
const PERIOD: Duration = Duration::from_hours(1);
/// How long one key may take.
const DEADLINE: Duration = Duration::from_mins(1);
/// Who makes them.
const PRINCIPAL: &str = "spiffe://holdfast.dev/bench/seed";

/// Returns the name of a key that was made.
pub fn name(tenant: &TenantName, number: u32) -> Result<KeyName, Error> {
    KeyName::new(tenant.clone(), &format!("scale-{number:07}"))
        .map_err(|_| Error::Bug("a name of the bench is no key name"))
}

/// The system's clock, some time ago.
#[derive(Debug)]
struct PastClock {
    ago_ms: AtomicI64,
}

impl PastClock {
    fn pass(&self, span: Duration) {
        let span_ms = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        self.ago_ms.fetch_sub(span_ms, Ordering::Relaxed);
    }
}

impl Clock for PastClock {
    fn now(&self) -> Timestamp {
        let now = SystemClock.now().as_unix_ms();
        Timestamp::from_unix_ms(now.saturating_sub(self.ago_ms.load(Ordering::Relaxed)))
    }

    fn monotonic(&self) -> Instant {
        SystemClock.monotonic()
    }
}

/// Makes the keys in a dev directory that no server holds; SoftHSM's configuration stands in the environment.
///
/// # Errors
/// The first key that was not made.
pub fn run(directory: &Path, seeding: Seeding) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(io("start a runtime"))?.block_on(async {
        let days = seeding.keys.saturating_sub(1) / KEYS_A_DAY;
        let ago = DAY * days + if seeding.due { PERIOD * 3 } else { Duration::ZERO };
        let ago_ms = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
        let clock = Arc::new(PastClock { ago_ms: AtomicI64::new(ago_ms) });
        let parts = open(directory, Arc::clone(&clock)).await?;
        let (store, audit, hsm) =
            (Arc::clone(&parts.store), Arc::clone(&parts.audit), Arc::clone(&parts.hsm));
        let kms = Kms::new(parts);
        for first in (0..seeding.keys).step_by(KEYS_A_DAY as usize) {
            if first > 0 {
                clock.pass(DAY);
                forget(&*store, &clock).await?;
            }
            let end = seeding.keys.min(first.saturating_add(KEYS_A_DAY));
            create(&kms, &clock, first..end, seeding.due).await?;
        }
        kms.mutations_done().await;
        kms.drain().await.map_err(failed)?;
        store.close().await;
        audit.close();
        hsm.close();
        Ok(())
    })
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Child { what: "the seeding", detail: error.to_string() }
}

async fn forget(store: &dyn kms_server::store::Store, clock: &PastClock) -> Result<(), Error> {
    let memory_ms = i64::try_from(REQUEST_MEMORY.as_millis()).unwrap_or(i64::MAX);
    let before = Timestamp::from_unix_ms(clock.now().as_unix_ms().saturating_sub(memory_ms));
    while store.forget_requests(before, FORGOTTEN).await.map_err(failed)? > 0 {}
    Ok(())
}

async fn create(
    kms: &Kms,
    clock: &Arc<PastClock>,
    numbers: std::ops::Range<u32>,
    due: bool,
) -> Result<(), Error> {
    let tenant: TenantName = format!("tenants/{DEV_TENANT}")
        .parse()
        .map_err(|_| Error::Bug("the dev tenant has no name"))?;
    let next = Arc::new(AtomicU32::new(numbers.start));
    let mut lanes: JoinSet<Result<(), Error>> = JoinSet::new();
    for _ in 0..LANES {
        let (kms, clock, next) = (kms.clone(), Arc::clone(clock), Arc::clone(&next));
        let (tenant, end) = (tenant.clone(), numbers.end);
        lanes.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= end {
                    return Ok(());
                }
                let create = new_key(name(&tenant, number)?, due)?;
                kms.create_key(&request(&*clock)?, create).await.map_err(failed)?;
            }
        });
    }
    while let Some(lane) = lanes.join_next().await {
        lane.map_err(|_| Error::Bug("a lane died"))??;
    }
    Ok(())
}

fn draw() -> Result<[u8; 16], Error> {
    SystemRandomness.draw().ok_or(Error::Bug("the system gives no randomness"))
}

/// Draws a request id.
pub fn request_id() -> Result<RequestId, Error> {
    Ok(RequestId::from_bytes(draw()?))
}

fn new_key(name: KeyName, due: bool) -> Result<CreateKey, Error> {
    Ok(CreateKey {
        name,
        purpose: Purpose::Wrap,
        protection: Protection::HsmWrapped,
        owner: "kms bench".into(),
        sensitivity: Sensitivity::Low,
        usage: "one of many".into(),
        cryptoperiod: Duration::from_hours(365 * 24),
        recipient_usage_period: None,
        labels: BTreeMap::new(),
        rotation_period: due.then_some(PERIOD),
        acknowledge_no_backup: false,
        request_id: request_id()?,
    })
}

fn request(clock: &dyn Clock) -> Result<RequestContext, Error> {
    let received = clock.monotonic();
    Ok(RequestContext {
        event_id: EventId::from_random(draw()?),
        principal: Principal { id: PRINCIPAL.into(), method: AuthnMethod::Mtls },
        source: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 1),
        deadline: received + DEADLINE,
        received,
        operation: "kms.v1.KeyService/CreateKey",
        items_before: 0,
    })
}

/// Opens what a server of this directory stands on.
async fn open(directory: &Path, clock: Arc<PastClock>) -> Result<Parts, Error> {
    let read = |name: &str| {
        let text = std::fs::read_to_string(directory.join(name));
        text.map(|text| text.trim().to_owned()).map_err(io("read the dev directory"))
    };
    let store = SqliteStore::open(&directory.join("store.db")).map_err(failed)?;
    let audit = FileSink::open(&directory.join("audit")).map_err(failed)?;
    let serial = read("token-serial")?;
    let mut config =
        Pkcs11Config::new(kms_testkit::softhsm::module(), TokenSelector::Serial(serial));
    config.workers = 1;
    config.token_dir = Some(directory.join("tokens"));
    let pin = Pin::new(read("user-pin")?);
    let hsm = Pkcs11Hsm::start(config, pin, Arc::clone(&clock) as _).map_err(failed)?;
    let pins = store.root_pins().await.map_err(failed)?;
    let pins = pins.into_iter().map(|(pin, _)| pin).collect();
    hsm.open_roots(pins, clock.monotonic() + DEADLINE).await.map_err(failed)?;
    let grant = GrantConfig {
        principal: PRINCIPAL.into(),
        tenant: DEV_TENANT.into(),
        actions: ActionKind::ALL.to_vec(),
    };
    let generation = RootGeneration::FIRST;
    let hsm: Arc<dyn Hsm> = Arc::new(hsm);
    let opening = Opening {
        path: directory.join("journal"),
        hsm: Arc::clone(&hsm),
        clock: Arc::clone(&clock) as _,
        generations: generation..=generation,
        accept: None,
        covered: None,
    };
    // It waits for the token, which no thread of a runtime may.
    let opened = std::thread::spawn(move || FileJournal::open(opening)).join();
    let journal = opened.map_err(|_| failed("a panic"))?.map_err(failed)?;
    Ok(Parts {
        hsm,
        store: Arc::new(store),
        audit: Arc::new(audit),
        journal: Arc::new(journal),
        clock,
        policy: Arc::new(StaticPolicy::new(&[grant]).map_err(failed)?),
        randomness: Arc::new(SystemRandomness),
        keyring: KeyringConfig { generation, oldest: generation, ..KeyringConfig::default() },
        allow_rsa_oaep_sha1: false,
        max_open_import_jobs: MAX_OPEN_IMPORT_JOBS,
    })
}
