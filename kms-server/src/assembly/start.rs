//! Starting: the admin listener, the roots, the use-cases, recovery, and the public listener last.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kms_core::import_job::MAX_OPEN_IMPORT_JOBS;
use kms_hsm::{Hsm, HsmHealth};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::interval;

use super::compare::compare;
use super::error::StartError;
use super::open::Core;
use super::parts;
use super::refusals::FoldedRefusals;
use super::roots;
use super::run::Mode;
use super::sockets::listen;
use crate::admin::{self, Gauges, Probes, Readiness};
use crate::config::Config;
use crate::service::{Kms, Parts, Reconciled, SystemRandomness};
use crate::telemetry::metrics::RequestMetrics;
use crate::transport::grpc::{Gateway, GatewayParts, GrpcService};
use crate::transport::health::HealthService;
use crate::transport::shutdown::{Shutdown, ShutdownTrigger};
use crate::transport::{Drained, Security, ServeOptions, TlsStore, serve};

/// How often intents, orphans and due deactivations are looked after.
const RECONCILE_INTERVAL: Duration = Duration::from_mins(1);
/// How often folded refusals are written, and failures that were only counted are told.
const FOLDED_TICK: Duration = Duration::from_secs(1);
/// How long scrapes in flight may take at the end.
const ADMIN_DRAIN: Duration = Duration::from_secs(1);

/// The listeners, bound, and the certificates that they show.
pub(super) struct Listeners {
    pub(super) public: TcpSocket,
    pub(super) admin: TcpListener,
    pub(super) public_tls: Arc<TlsStore>,
    /// `None` for an admin listener without TLS.
    pub(super) admin_tls: Option<Arc<TlsStore>>,
}

/// What runs, and how to stop it.
pub(super) struct Running {
    pub(super) rounds: watch::Receiver<Option<bool>>,
    pub(super) reconciler: JoinHandle<()>,
    pub(super) kms: Kms,
    pub(super) gateway: Gateway,
    pub(super) readiness: Arc<Readiness>,
    pub(super) refusals: Arc<FoldedRefusals>,
    pub(super) public: JoinHandle<Drained>,
    pub(super) public_trigger: ShutdownTrigger,
    pub(super) admin: JoinHandle<Drained>,
    pub(super) admin_trigger: ShutdownTrigger,
}

/// What operators ask, and what it is told by.
struct Told {
    health: HealthService,
    readiness: Arc<Readiness>,
    metrics: Arc<RequestMetrics>,
    kms: Arc<OnceLock<Kms>>,
    gateway: Arc<OnceLock<Gateway>>,
}

impl Core {
    pub(super) async fn start(
        &self,
        config: &Config,
        mode: &Mode,
        listeners: Listeners,
    ) -> Result<Running, StartError> {
        let Listeners { public, admin, public_tls, admin_tls } = listeners;
        let told = Told {
            health: HealthService::start().await,
            readiness: Arc::new(Readiness::default()),
            metrics: Arc::new(RequestMetrics::default()),
            kms: Arc::new(OnceLock::new()),
            gateway: Arc::new(OnceLock::new()),
        };
        let mut options = ServeOptions::new(config.limits.connection(), Arc::clone(&self.clock));
        options.drain = config.limits.drain();

        // The admin listener first: it tells why the rest is not ready.
        let (admin_trigger, admin_shutdown) = Shutdown::channel();
        let mut certificates = vec![("public", Arc::clone(&public_tls))];
        certificates.extend(admin_tls.clone().map(|tls| ("admin", tls)));
        let gauges = Gauges {
            hsm: Arc::clone(&self.hsm.hsm) as _,
            kms: Arc::clone(&told.kms),
            readiness: Arc::clone(&told.readiness),
            public: Arc::clone(&options.stats),
            admin: Arc::default(),
            certificates,
        };
        let admin = self.start_admin(config, &told, admin, admin_tls, gauges, &admin_shutdown)?;

        // Asked from now on: why the server waits is told by the parts, not guessed.
        let (public_trigger, public_shutdown) = Shutdown::channel();
        let rounds = self.watch_parts(&told, &public_shutdown);

        let kms = self.recovered(config, mode, &told, admin_shutdown).await?;
        let refusals =
            Arc::new(FoldedRefusals::new(Arc::clone(&self.audit) as _, Arc::clone(&self.clock)));
        let gateway = Gateway::new(GatewayParts {
            kms: kms.clone(),
            clock: Arc::clone(&self.clock),
            max_request: config.limits.max_request(),
            metrics: told.metrics,
            refusals: Arc::clone(&refusals) as _,
        });
        // The only place that sets it.
        let _ = told.gateway.set(gateway.clone());
        let public = tokio::spawn(serve(
            listen(public)?,
            Security::Tls(public_tls),
            GrpcService::new(&gateway, told.health),
            options,
            public_shutdown.clone(),
        ));
        told.readiness.serve();
        let folded =
            Folded { refusals: Arc::clone(&refusals), kms: kms.clone(), gateway: gateway.clone() };
        tokio::spawn(folded.tell(public_shutdown.clone()));
        let background = kms.clone();
        let stop = public_shutdown.into_receiver();
        let reconciler = tokio::spawn(async move {
            let rolling = background.roll_over_root(stop.clone());
            tokio::join!(background.run(RECONCILE_INTERVAL, stop), rolling);
        });
        Ok(Running {
            rounds,
            reconciler,
            kms,
            gateway,
            readiness: told.readiness,
            refusals,
            public,
            public_trigger,
            admin,
            admin_trigger,
        })
    }

    fn start_admin(
        &self,
        config: &Config,
        told: &Told,
        listener: TcpListener,
        tls: Option<Arc<TlsStore>>,
        gauges: Gauges,
        shutdown: &Shutdown,
    ) -> Result<JoinHandle<Drained>, StartError> {
        let mut options = ServeOptions::new(config.limits.connection(), Arc::clone(&self.clock));
        options.networks = Some(config.admin.allowed_networks.as_slice().into());
        options.http1 = true;
        options.drain = ADMIN_DRAIN;
        options.stats = Arc::clone(&gauges.admin);
        let access = match &tls {
            Some(_) => admin::Access::Authenticated(Arc::clone(&self.clock)),
            None => admin::Access::Everybody,
        };
        let (readiness, metrics) = (Arc::clone(&told.readiness), Arc::clone(&told.metrics));
        let gateway = Arc::clone(&told.gateway);
        let routes = admin::routes(&told.health, readiness, metrics, gauges, access, gateway)
            .map_err(|_| StartError::Bug("the descriptors of the contract cannot be read"))?;
        let security = tls.map_or(Security::Plain, Security::Tls);
        Ok(tokio::spawn(serve(listener, security, routes, options, shutdown.clone())))
    }

    /// Starts the rounds in which the parts are asked whether they are ready.
    fn watch_parts(&self, told: &Told, shutdown: &Shutdown) -> watch::Receiver<Option<bool>> {
        let probes = Probes {
            hsm: Arc::clone(&self.hsm.hsm) as _,
            store: Arc::clone(&self.store),
            audit: Arc::clone(&self.audit) as _,
            clock: Arc::clone(&self.clock),
            kms: Arc::clone(&told.kms),
        };
        let (sender, rounds) = watch::channel(None);
        let (readiness, health) = (Arc::clone(&told.readiness), told.health.clone());
        tokio::spawn(admin::watch(readiness, probes, health, sender, shutdown.clone()));
        rounds
    }

    /// Opens the roots, puts the use-cases together, and has them end what an earlier process left.
    async fn recovered(
        &self,
        config: &Config,
        mode: &Mode,
        told: &Told,
        mut shutdown: Shutdown,
    ) -> Result<Kms, StartError> {
        let hsm: Arc<dyn Hsm> = Arc::clone(&self.hsm.hsm) as _;
        let clock = Arc::clone(&self.clock);
        let pins = roots::pinned(&*hsm, &*self.store, &*clock, config, mode.create_roots).await?;
        roots::open(&*hsm, &*clock, config, &pins, &mut shutdown).await?;
        // Latched, nothing is served before an operator acts, and then all this is looked at again.
        if !matches!(hsm.status().health, HsmHealth::Latched(_)) {
            let retired = self.store.retired_roots().await?;
            roots::verify_retired(&*hsm, &*clock, &pins, &retired).await?;
        }
        let accept = mode.accept_journal_gap;
        let journal = self.open_journal(config, &pins, accept, &mut shutdown).await?;
        let kms = Kms::new(Parts {
            hsm,
            store: Arc::clone(&self.store),
            audit: Arc::clone(&self.audit) as _,
            journal,
            clock,
            policy: parts::policy(config)?,
            randomness: Arc::new(SystemRandomness),
            keyring: parts::keyring(config, roots::oldest(&pins), roots::newest(&pins)),
            allow_rsa_oaep_sha1: config.import.allow_rsa_oaep_sha1,
            max_open_import_jobs: MAX_OPEN_IMPORT_JOBS,
        });
        // The only place that sets it, so it cannot be taken.
        let _ = told.kms.set(kms.clone());
        // Recovery acts on what the database says, so it must be the right one.
        compare(&kms, mode.accept_restored_store, &mut shutdown).await?;
        match kms.recover().await {
            Ok(done) => log_recovered(done),
            // The periodic run tries again; what is not recovered yet is refused or reported, never lost.
            Err(error) => tracing::warn!(%error, "recovery at start failed; it is tried again"),
        }
        Ok(kms)
    }
}

fn log_recovered(done: Reconciled) {
    // What failed was told when it did.
    if done == (Reconciled { failed: done.failed, ..Reconciled::default() }) {
        return;
    }
    // What may be much waits until the server is ready: nothing is rotated, destroyed or forgotten at the start.
    let Reconciled { finished, undone, deactivated, orphans, failed, .. } = done;
    tracing::info!(
        finished,
        undone,
        deactivated,
        orphans,
        failed,
        "recovered what an earlier process left"
    );
}

/// What floods leave: it is counted, and told when the flood is over.
struct Folded {
    refusals: Arc<FoldedRefusals>,
    kms: Kms,
    gateway: Gateway,
}

impl Folded {
    async fn tell(self, mut shutdown: Shutdown) {
        let mut ticks = interval(FOLDED_TICK);
        loop {
            tokio::select! {
                () = shutdown.triggered() => return,
                _ = ticks.tick() => {
                    self.gateway.tell_counted_failures();
                    for written in [
                        self.refusals.tick().await.map_err(Into::into),
                        self.kms.write_refusals().await,
                    ] {
                        if let Err(error) = written {
                            tracing::warn!(%error, "refused calls are counted on");
                        }
                    }
                }
            }
        }
    }
}
