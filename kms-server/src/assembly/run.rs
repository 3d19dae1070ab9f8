//! The life of the server, from configuration to exit.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kms_core::clock::{Clock, SystemClock};
use kms_hsm::Hsm;
use kms_hsm::pkcs11::Pkcs11Hsm;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::interval;

use super::error::StartError;
use super::parts::{self, StartedHsm};
use super::ready::ReadyFile;
use super::refusals::FoldedRefusals;
use super::roots;
use super::signals::{Signals, Wish};
use super::sockets::{address, bind, listen};
use super::steps::{Until, on_a_thread};
use super::threads::serving_threads;
use crate::admin::{self, Gauges, Probes, Readiness};
use crate::audit::{AuditSink, FileSink};
use crate::config::{Config, Problem, check};
use crate::service::{Kms, Parts, SystemRandomness};
use crate::store::Store;
use crate::store::sqlite::SqliteStore;
use crate::telemetry::metrics::RequestMetrics;
use crate::transport::grpc::{Gateway, GatewayParts, GrpcService};
use crate::transport::health::HealthService;
use crate::transport::shutdown::{Shutdown, ShutdownTrigger};
use crate::transport::{Protocols, Security, ServeOptions, TlsFiles, TlsStore, serve, tls_check};

/// Stack of a thread that serves requests: handlers are shallow, buffers are on the heap.
const WORKER_STACK_BYTES: usize = 2 * 1024 * 1024;
/// How long the parts may take to close after the drain, all together.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the HSM may take to close, or to log in first, when the process is to end at once.
const HSM_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
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
    let (tolerable, wrong): (Vec<_>, Vec<_>) =
        check(config, SystemClock.now()).into_iter().partition(Problem::is_tolerable);
    if !wrong.is_empty() {
        return Err(StartError::Config(wrong));
    }
    for problem in tolerable {
        warn_of_dates(problem.key, &problem.cause);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(serving_threads(config.limits.worker_threads))
        .thread_name("serve")
        .thread_stack_size(WORKER_STACK_BYTES)
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .map_err(StartError::system("start the threads"))?;
    let ended = runtime.block_on(async {
        // First of all: a signal must not kill a process that is logging in to its token.
        let mut signals = Signals::install()?;
        let opening = Core::open(config);
        tokio::pin!(opening);
        let core = tokio::select! {
            core = &mut opening => core?,
            // Certificates are read after this, so there is nothing to read again.
            () = signals.stop() => {
                let patience = Until::after(SystemClock.monotonic(), HSM_CLOSE_TIMEOUT);
                if let Some(Ok(core)) = patience.ends(opening).await {
                    close_hsm(core.hsm.hsm).await;
                }
                return Ok(());
            }
        };
        let hsm = Arc::clone(&core.hsm.hsm);
        let ended = core.live(config, mode, started, signals).await;
        close_hsm(hsm).await;
        ended
    });
    // What still runs was given its time, or belongs to a start that was cut short.
    runtime.shutdown_background();
    ended
}

/// Closes the HSM however the server ends; when it is closed already, nothing happens. A process that exits while threads
/// are inside the module crashes in it.
async fn close_hsm(hsm: Arc<Pkcs11Hsm>) {
    let patience = Until::after(SystemClock.monotonic(), HSM_CLOSE_TIMEOUT);
    let closed = match on_a_thread("hsm-close", move || hsm.close()) {
        Ok(closing) => patience.ends(closing).await.is_some(),
        Err(_) => false,
    };
    if !closed {
        tracing::warn!("the hsm did not close in time");
    }
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
    rounds: watch::Receiver<Option<bool>>,
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
    /// Opens the parts. Login, database and log do not need each other: the slowest decides how long it takes.
    async fn open(config: &Config) -> Result<Self, StartError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        // The log needs neither of the others: the slower decides how long it takes.
        let audit = {
            let config = config.clone();
            on_a_thread("audit-open", move || parts::open_audit(&config))?
        };
        let panicked = |_| StartError::Bug("the start of a part panicked");
        let store = {
            let config = config.clone();
            on_a_thread("store-open", move || parts::open_store(&config))?
        };
        let store = store.await.map_err(panicked)??;
        // The PIN goes to no other token than the pinned one, so the pins come first.
        let pins = store.root_pins().await?;
        let serials = pins.into_iter().map(|(pin, _)| pin.token_serial).collect();
        let hsm = {
            let (config, clock) = (config.clone(), Arc::clone(&clock));
            on_a_thread("hsm-start", move || parts::start_hsm(&config, serials, &clock))?
        };
        let (hsm, audit) = tokio::join!(hsm, audit);
        let hsm = hsm.map_err(panicked)??;
        let audit = audit.map_err(panicked)??;
        Ok(Self { hsm, store, audit, clock })
    }

    async fn live(
        self,
        config: &Config,
        mode: &Mode,
        started: Instant,
        mut signals: Signals,
    ) -> Result<(), StartError> {
        let public_tls = Arc::new(TlsStore::load(config.tls.files(), Protocols::Http2)?);
        let admin_tls = if config.admin.tls {
            Some(Arc::new(TlsStore::load(config.tls.files(), Protocols::Http1AndHttp2)?))
        } else {
            None
        };
        // Bound early, so that a wrong address is told at once; it listens when there is somebody to answer.
        let public_socket = bind(config.listen.address)?;
        let admin_listener = listen(bind(config.admin.address)?)?;
        let addresses =
            (address(public_socket.local_addr())?, address(admin_listener.local_addr())?);
        // Said before the token is there: this is where to ask why nothing is served yet.
        tracing::info!(admin = %addresses.1, "the admin listener is open");
        let mut reloads = vec![Arc::clone(&public_tls)];
        reloads.extend(admin_tls.clone());

        let starting =
            self.start(config, mode, public_socket, admin_listener, public_tls, admin_tls);
        tokio::pin!(starting);
        let mut running = loop {
            tokio::select! {
                running = &mut starting => break running?,
                wish = signals.next() => match wish {
                    Wish::Stop => return Ok(()),
                    Wish::Reload => reload(&reloads, &config.tls.files()),
                },
            }
        };
        let (mut said, mut told) = (false, false);
        loop {
            tokio::select! {
                wish = signals.next() => match wish {
                    Wish::Stop => break,
                    Wish::Reload => reload(&reloads, &config.tls.files()),
                },
                Ok(()) = running.rounds.changed(), if !told => {
                    told = *running.rounds.borrow_and_update() == Some(true);
                    if told {
                        self.tell_ready(mode, addresses, started)?;
                    }
                    if !std::mem::replace(&mut said, true) {
                        tracing::info!(listen = %addresses.0, admin = %addresses.1, "serving");
                    }
                }
            }
        }
        tokio::select! {
            () = self.stop(config, running) => {}
            () = signals.stop() => tracing::warn!("told to stop again: ending at once"),
        }
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
        public_socket: TcpSocket,
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

        // Asked from now on: why the server waits is told by the parts, not guessed.
        let (public_trigger, public_shutdown) = Shutdown::channel();
        let probes = Probes {
            hsm: Arc::clone(&hsm),
            store: Arc::clone(&self.store) as _,
            audit: Arc::clone(&self.audit) as _,
            clock: Arc::clone(&clock),
        };
        let (told, rounds) = watch::channel(None);
        tokio::spawn(admin::watch(
            Arc::clone(&readiness),
            probes,
            health.clone(),
            told,
            public_shutdown.clone(),
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
        let public = tokio::spawn(serve(
            listen(public_socket)?,
            Security::Tls(public_tls),
            GrpcService::new(&gateway, health),
            public_options,
            public_shutdown.clone(),
        ));
        readiness.serve();
        tokio::spawn(write_refusals(Arc::clone(&refusals), kms.clone(), public_shutdown.clone()));
        let reconciling = kms.clone();
        let stop = public_shutdown.into_receiver();
        let reconciler =
            tokio::spawn(async move { reconciling.run(RECONCILE_INTERVAL, stop).await });
        Ok(Running {
            rounds,
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

    /// Stops in the order in which things depend on each other. All steps share one deadline.
    async fn stop(&self, config: &Config, running: Running) {
        tracing::info!("stopping: draining");
        let drain = config.limits.drain();
        let now = self.clock.monotonic();
        let drained = Until::after(now, drain);
        let closed = Until::after(now, drain.saturating_add(CLOSE_TIMEOUT));
        running.readiness.drain();
        running.public_trigger.trigger();
        match running.public.await {
            Ok(crate::transport::Drained::Completely) => {}
            Ok(crate::transport::Drained::AtDeadline) | Err(_) => {
                tracing::warn!("the drain was cut off at its deadline");
            }
        }
        if drained.ends(running.kms.mutations_done()).await.is_none() {
            tracing::warn!("mutations were still running at the deadline of the drain");
        }
        if closed.ends(running.reconciler).await.is_none() {
            tracing::warn!("the reconciler was still running at its deadline");
        }
        match closed.ends(running.kms.drain()).await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::warn!(%error, "leases or refused calls could not be written");
            }
            None => tracing::warn!("leases or refused calls could not be written in time"),
        }
        match closed.ends(running.refusals.finish()).await {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::warn!(%error, "refused calls could not be written"),
            None => tracing::warn!("refused calls could not be written in time"),
        }
        running.admin_trigger.trigger();
        // The listener's own drain is bounded; its outcome changes nothing any more.
        let _ = closed.ends(running.admin).await;
        if closed.ends(self.store.close()).await.is_none() {
            tracing::warn!("the store did not close in time");
        }
        let (audit, hsm) = (Arc::clone(&self.audit), Arc::clone(&self.hsm.hsm));
        let closing = on_a_thread("close", move || {
            audit.close();
            hsm.close();
        });
        let ended = match closing {
            Ok(closing) => closed.ends(closing).await.is_some(),
            Err(_) => false,
        };
        if ended {
            tracing::info!("stopped");
        } else {
            tracing::warn!("stopped; the audit log or the hsm did not close in time");
        }
    }
}

/// How long scrapes in flight may take at the end.
const ADMIN_DRAIN: Duration = Duration::from_secs(1);

fn reload(stores: &[Arc<TlsStore>], files: &TlsFiles) {
    for store in stores {
        match store.reload() {
            Ok(()) => tracing::info!(epoch = store.epoch(), "certificates reloaded"),
            Err(error) => tracing::error!(%error, "certificates not reloaded; the old ones stay"),
        }
    }
    for (key, error) in tls_check::dates(files, SystemClock.now()) {
        warn_of_dates(key, &error);
    }
}

fn warn_of_dates(key: &'static str, problem: &dyn fmt::Display) {
    tracing::warn!(alert = "certificate_dates", "{key}: {problem}");
}

async fn write_refusals(refusals: Arc<FoldedRefusals>, kms: Kms, mut shutdown: Shutdown) {
    let mut ticks = interval(REFUSAL_TICK);
    loop {
        tokio::select! {
            () = shutdown.triggered() => return,
            _ = ticks.tick() => {
                for written in [
                    refusals.tick().await.map_err(Into::into),
                    kms.write_refusals().await,
                ] {
                    if let Err(error) = written {
                        tracing::warn!(%error, "refused calls are counted on");
                    }
                }
            }
        }
    }
}
