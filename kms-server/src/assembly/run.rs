//! The life of the server, from configuration to exit.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kms_core::clock::{Clock, SystemClock};
use kms_hsm::Hsm;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};

use super::error::StartError;
use super::parts::{self, StartedHsm};
use super::ready::ReadyFile;
use super::refusals::FoldedRefusals;
use super::roots;
use crate::admin::{self, Gauges, Probes, Readiness};
use crate::audit::{AuditSink, FileSink};
use crate::config::{Config, check};
use crate::service::{Kms, Parts, SystemRandomness};
use crate::store::Store;
use crate::store::sqlite::SqliteStore;
use crate::telemetry::metrics::RequestMetrics;
use crate::transport::grpc::{Gateway, GatewayParts, GrpcService};
use crate::transport::health::HealthService;
use crate::transport::limits::LISTEN_BACKLOG;
use crate::transport::shutdown::{Shutdown, ShutdownTrigger};
use crate::transport::{Protocols, Security, ServeOptions, TlsStore, serve};

/// Stack of a thread that serves requests: handlers are shallow, buffers are on the heap.
const WORKER_STACK_BYTES: usize = 2 * 1024 * 1024;
/// How long the parts may take to close after the drain.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often intents, orphans and due deactivations are looked after.
const RECONCILE_INTERVAL: Duration = Duration::from_mins(1);
/// How often folded refusals are written.
const REFUSAL_TICK: Duration = Duration::from_secs(1);

/// What differs between a server and a dev server.
pub struct Mode {
    /// Whether the first root set is made when there is none. Dev mode only.
    pub create_roots: bool,
    /// A file to write when ready.
    pub ready_file: Option<ReadyFile>,
    /// Told the addresses of both listeners, gRPC first, when ready; before the ready file is written.
    pub on_ready: Box<dyn Fn(SocketAddr, SocketAddr) -> io::Result<()>>,
}

impl fmt::Debug for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mode").field("create_roots", &self.create_roots).finish_non_exhaustive()
    }
}

/// Runs the server until SIGTERM or SIGINT. Blocks.
pub fn run(config: &Config, mode: &Mode, started: Instant) -> Result<(), StartError> {
    let problems = check(config);
    if !problems.is_empty() {
        return Err(StartError::Config(problems));
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    // Login, database and log do not need each other: the slowest decides how long it takes.
    let (hsm, store, audit) = std::thread::scope(|scope| {
        let hsm = scope.spawn(|| parts::start_hsm(config, &clock));
        let store = parts::open_store(config);
        let audit = parts::open_audit(config);
        (hsm.join(), store, audit)
    });
    let hsm = hsm.map_err(|_| StartError::Bug("the start of the hsm panicked"))??;
    let core = Core { hsm, store: store?, audit: audit?, clock };
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if config.limits.worker_threads > 0 {
        builder.worker_threads(config.limits.worker_threads);
    }
    let runtime = builder
        .thread_name("serve")
        .thread_stack_size(WORKER_STACK_BYTES)
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .map_err(StartError::system("start the threads"))?;
    runtime.block_on(core.live(config, mode, started))
}

/// The parts that are open before anything is served.
struct Core {
    hsm: StartedHsm,
    store: Arc<SqliteStore>,
    audit: Arc<FileSink>,
    clock: Arc<dyn Clock>,
}

/// What runs, and how to stop it.
struct Running {
    reconciler: JoinHandle<()>,
    kms: Kms,
    readiness: Arc<Readiness>,
    refusals: Arc<FoldedRefusals>,
    public: JoinHandle<crate::transport::Drained>,
    public_trigger: ShutdownTrigger,
    admin: JoinHandle<crate::transport::Drained>,
    admin_trigger: ShutdownTrigger,
}

impl Core {
    async fn live(self, config: &Config, mode: &Mode, started: Instant) -> Result<(), StartError> {
        let mut signals = Signals::install()?;
        let public_tls = Arc::new(TlsStore::load(config.tls.files(), Protocols::Http2)?);
        let admin_tls = if config.admin.tls {
            Some(Arc::new(TlsStore::load(config.tls.files(), Protocols::Http1AndHttp2)?))
        } else {
            None
        };
        let public_listener = listen(config.listen.address)?;
        let admin_listener = listen(config.admin.address)?;
        let addresses = (address(&public_listener)?, address(&admin_listener)?);
        // Said before the token is there: this is where to ask why nothing is served yet.
        tracing::info!(admin = %addresses.1, "the admin listener is open");
        let mut reloads = vec![Arc::clone(&public_tls)];
        reloads.extend(admin_tls.clone());

        let running = tokio::select! {
            running = self.start(config, mode, public_listener, admin_listener, public_tls, admin_tls) => running?,
            () = signals.stop() => return Ok(()),
        };
        if running.readiness.report().ready {
            self.tell_ready(mode, addresses, started)?;
        }
        tracing::info!(listen = %addresses.0, admin = %addresses.1, "serving");

        loop {
            match signals.next().await {
                Wish::Stop => break,
                Wish::Reload => reload(&reloads),
            }
        }
        self.stop(config, running).await;
        Ok(())
    }

    /// Tells clients and people where, and that all is ready.
    fn tell_ready(
        &self,
        mode: &Mode,
        addresses: (SocketAddr, SocketAddr),
        started: Instant,
    ) -> Result<(), StartError> {
        let told = (mode.on_ready)(addresses.0, addresses.1);
        told.map_err(StartError::system("write what clients need"))?;
        let Some(file) = &mode.ready_file else { return Ok(()) };
        let ready = parts::since(started, self.clock.as_ref());
        file.write(addresses.0, addresses.1, self.hsm.login, ready)
            .map_err(StartError::system("write the ready file"))
    }

    async fn start(
        &self,
        config: &Config,
        mode: &Mode,
        public_listener: TcpListener,
        admin_listener: TcpListener,
        public_tls: Arc<TlsStore>,
        admin_tls: Option<Arc<TlsStore>>,
    ) -> Result<Running, StartError> {
        let hsm: Arc<dyn Hsm> = Arc::clone(&self.hsm.hsm) as _;
        let clock = Arc::clone(&self.clock);
        let health = HealthService::start().await;
        let readiness = Arc::new(Readiness::default());
        let metrics = Arc::new(RequestMetrics::default());
        let limits = config.limits.connection();
        let mut public_options = ServeOptions::new(limits, Arc::clone(&clock));
        public_options.drain = config.limits.drain();
        let mut admin_options = ServeOptions::new(limits, Arc::clone(&clock));
        admin_options.networks = Some(config.admin.allowed_networks.as_slice().into());
        admin_options.http1 = true;
        admin_options.drain = ADMIN_DRAIN;

        // The admin listener first: it tells why the rest is not ready.
        let (admin_trigger, admin_shutdown) = Shutdown::channel();
        let late_kms = Arc::new(OnceLock::new());
        let gauges = Gauges {
            hsm: Arc::clone(&hsm),
            kms: Arc::clone(&late_kms),
            readiness: Arc::clone(&readiness),
            public: Arc::clone(&public_options.stats),
            admin: Arc::clone(&admin_options.stats),
        };
        let access = match &admin_tls {
            Some(_) => admin::Access::Authenticated(Arc::clone(&clock)),
            None => admin::Access::Everybody,
        };
        let routes =
            admin::routes(&health, Arc::clone(&readiness), Arc::clone(&metrics), gauges, access)
                .map_err(|_| StartError::Bug("the descriptors of the contract cannot be read"))?;
        let security = admin_tls.map_or(Security::Plain, Security::Tls);
        let admin = tokio::spawn(serve(
            admin_listener,
            security,
            routes,
            admin_options,
            admin_shutdown.clone(),
        ));

        let pins = roots::pinned(&*hsm, &*self.store, &*clock, mode.create_roots).await?;
        let mut waiting = admin_shutdown.clone();
        roots::open(&*hsm, &*clock, &pins, &mut waiting).await?;
        let kms = Kms::new(Parts {
            hsm: Arc::clone(&hsm),
            store: Arc::clone(&self.store) as _,
            audit: Arc::clone(&self.audit) as _,
            clock: Arc::clone(&clock),
            policy: parts::policy(config)?,
            randomness: Arc::new(SystemRandomness),
            keyring: parts::keyring(config, roots::newest(&pins)),
        });
        // The only place that sets it, so it cannot be taken.
        let _ = late_kms.set(kms.clone());
        match kms.recover().await {
            Ok(done) => tracing::info!(?done, "recovered what an earlier process left"),
            // The periodic run tries again; what is not recovered yet is refused or reported, never lost.
            Err(error) => tracing::warn!(%error, "recovery at start failed; it is tried again"),
        }
        let refusals =
            Arc::new(FoldedRefusals::new(Arc::clone(&self.audit) as _, Arc::clone(&clock)));
        let gateway = Gateway::new(GatewayParts {
            kms: kms.clone(),
            clock: Arc::clone(&clock),
            max_request: config.limits.max_request(),
            metrics,
            refusals: Arc::clone(&refusals) as _,
        });
        let (public_trigger, public_shutdown) = Shutdown::channel();
        let public = tokio::spawn(serve(
            public_listener,
            Security::Tls(public_tls),
            GrpcService::new(&gateway, health.clone()),
            public_options,
            public_shutdown.clone(),
        ));
        let probes = Probes {
            hsm,
            store: Arc::clone(&self.store) as _,
            audit: Arc::clone(&self.audit) as _,
            clock,
        };
        let (first_done, first) = oneshot::channel();
        tokio::spawn(admin::watch(
            Arc::clone(&readiness),
            probes,
            health,
            first_done,
            public_shutdown.clone(),
        ));
        tokio::spawn(write_refusals(Arc::clone(&refusals), public_shutdown.clone()));
        let reconciling = kms.clone();
        let stop = public_shutdown.into_receiver();
        let reconciler =
            tokio::spawn(async move { reconciling.run(RECONCILE_INTERVAL, stop).await });
        // An error means that the watch ended, which only the signal to stop makes it do.
        let _ = first.await;
        Ok(Running {
            reconciler,
            kms,
            readiness,
            refusals,
            public,
            public_trigger,
            admin,
            admin_trigger,
        })
    }

    /// Stops in the order in which things depend on each other.
    async fn stop(self, config: &Config, running: Running) {
        tracing::info!("stopping: draining");
        running.readiness.drain();
        running.public_trigger.trigger();
        match running.public.await {
            Ok(crate::transport::Drained::Completely) => {}
            Ok(crate::transport::Drained::AtDeadline) | Err(_) => {
                tracing::warn!("the drain was cut off at its deadline");
            }
        }
        if timeout(config.limits.drain(), running.kms.mutations_done()).await.is_err() {
            tracing::warn!("mutations were still running at the deadline of the drain");
        }
        if timeout(CLOSE_TIMEOUT, running.reconciler).await.is_err() {
            tracing::warn!("the reconciler was still running at its deadline");
        }
        match timeout(CLOSE_TIMEOUT, running.kms.drain()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "leases could not be returned"),
            Err(_) => tracing::warn!("leases could not be returned in time"),
        }
        running.refusals.finish();
        running.admin_trigger.trigger();
        // The listener's own drain is bounded; its outcome changes nothing any more.
        let _ = running.admin.await;
        if timeout(CLOSE_TIMEOUT, self.store.close()).await.is_err() {
            tracing::warn!("the store did not close in time");
        }
        // Both block, and nothing else runs on this runtime any more.
        self.audit.close();
        self.hsm.hsm.close();
        tracing::info!("stopped");
    }
}

/// How long scrapes in flight may take at the end.
const ADMIN_DRAIN: Duration = Duration::from_secs(1);

fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    let failed = |cause| StartError::Listen { address, cause };
    let socket = if address.is_ipv4() {
        tokio::net::TcpSocket::new_v4()
    } else {
        tokio::net::TcpSocket::new_v6()
    };
    let socket = socket.map_err(failed)?;
    // A restart must not wait for the sockets of the process before.
    socket.set_reuseaddr(true).map_err(failed)?;
    socket.bind(address).map_err(failed)?;
    socket.listen(LISTEN_BACKLOG).map_err(failed)
}

fn address(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(StartError::system("ask a socket for its address"))
}

fn reload(stores: &[Arc<TlsStore>]) {
    for store in stores {
        match store.reload() {
            Ok(()) => tracing::info!(epoch = store.epoch(), "certificates reloaded"),
            Err(error) => tracing::error!(%error, "certificates not reloaded; the old ones stay"),
        }
    }
}

async fn write_refusals(refusals: Arc<FoldedRefusals>, mut shutdown: Shutdown) {
    let mut ticks = interval(REFUSAL_TICK);
    loop {
        tokio::select! {
            () = shutdown.triggered() => return,
            _ = ticks.tick() => refusals.tick(),
        }
    }
}

/// What a signal asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    Stop,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn install() -> Result<Self, StartError> {
        let install = |kind| signal(kind).map_err(StartError::system("install a signal handler"));
        Ok(Self {
            terminate: install(SignalKind::terminate())?,
            interrupt: install(SignalKind::interrupt())?,
            hang_up: install(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Stop,
            _ = self.interrupt.recv() => Wish::Stop,
            _ = self.hang_up.recv() => Wish::Reload,
        }
    }

    /// Waits for a wish to stop; others have nothing to act on yet.
    async fn stop(&mut self) {
        while self.next().await != Wish::Stop {}
    }
}
