//! A directory with a token, a PKI and a configuration, and the server that runs on them.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, Weak};

use kms_testkit::pki::{Identity, Kind};
use kms_testkit::postgres::Database;
use kms_testkit::process::binary;
use kms_testkit::{Faulty, Pki, Process, SoftHsm, softhsm};
use serde_json::Value;
use tempfile::TempDir;

use super::{ACTIONS, Client, LIMIT, OPERATOR, OTHER_TENANT, STRANGER, TENANT};

/// One entry of the static policy.
#[derive(Clone, Debug)]
pub struct Grant {
    pub principal: String,
    pub tenant: String,
    pub actions: Vec<&'static str>,
}

impl Grant {
    pub fn new(principal: &str, tenant: &str, actions: &[&'static str]) -> Self {
        let (principal, tenant) = (principal.to_owned(), tenant.to_owned());
        Self { principal, tenant, actions: actions.to_vec() }
    }
}

/// Everything that a server needs, while none runs. Tests change it before they start one.
#[derive(Debug)]
pub struct Rig {
    pub module: PathBuf,
    pub token_serial: String,
    pub pin_file: PathBuf,
    pub grants: Vec<Grant>,
    pub log_level: &'static str,
    /// `text` or `json`.
    pub log_format: &'static str,
    /// Whether the admin listener wants TLS with a client certificate.
    pub admin_tls: bool,
    /// Revocation lists.
    pub crls: Vec<PathBuf>,
    /// The directory with the PIN as systemd would hand it over; `None` takes it from `pin_file`.
    pub credentials: Option<PathBuf>,
    /// Address and port of the public listener.
    pub listen: SocketAddr,
    /// How long requests in flight may take after SIGTERM.
    pub drain_ms: u64,
    /// How long a rolled-over version keeps protecting when pinned.
    pub overlap_ms: u64,
    /// The longest deadline of a request.
    pub max_request_ms: u64,
    /// Whether keys may be imported under RSA-OAEP with SHA-1: SoftHSM has nothing better.
    pub allow_sha1: bool,
    /// The keys of `[store.postgres]`; without them the database is a file.
    pub postgres: Option<String>,
    /// Worker threads of the HSM; 0 takes the default.
    pub hsm_workers: usize,
    /// Jobs that may wait for a worker.
    pub queue_capacity: usize,
    pub environment: Vec<(String, String)>,
    /// More of the server's command line.
    pub arguments: Vec<String>,
    /// Put before the server's own command line: `strace`, for example.
    pub wrapper: Vec<String>,
    /// May do everything.
    pub operator: Identity,
    /// Has no grant.
    pub stranger: Identity,
    pub pki: Pki,
    server: Identity,
    home: TempDir,
}

impl Rig {
    /// Has dev mode make token, roots and database, and adds a PKI.
    pub fn new() -> Self {
        Self::made(None)
    }

    /// The same with PostgreSQL as the database.
    pub fn on_postgres(database: &Database) -> Self {
        Self::made(Some(database.toml()))
    }

    fn made(postgres: Option<String>) -> Self {
        let home = tempfile::tempdir().unwrap();
        let dev = home.path().join("dev");
        let mut command = Command::new(binary("kms-server"));
        command.args(["dev", "--listen", "127.0.0.1:0", "--dir"]).arg(&dev);
        command.arg("--module").arg(softhsm::module()).env_remove("SOFTHSM2_CONF");
        if let Some(section) = &postgres {
            let file = home.path().join("postgres.toml");
            std::fs::write(&file, section).unwrap();
            command.arg("--postgres").arg(file);
        }
        let mut process = Process::start(&mut command);
        process.await_file(&dev.join("ready.json"), LIMIT);
        assert_eq!(process.terminate(LIMIT).code(), Some(0));
        let pki = Pki::create(&home.path().join("pki"));
        let (server, _) = pki.usual();
        let read = |name: &str| std::fs::read_to_string(dev.join(name)).unwrap().trim().to_owned();
        let everything = |tenant| Grant::new(OPERATOR, tenant, &ACTIONS);
        Self {
            module: softhsm::module(),
            token_serial: read("token-serial"),
            pin_file: dev.join("user-pin"),
            grants: vec![everything(TENANT), everything(OTHER_TENANT)],
            log_level: "info",
            log_format: "text",
            admin_tls: false,
            crls: vec![],
            credentials: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            drain_ms: 20_000,
            overlap_ms: 600_000,
            max_request_ms: 30_000,
            allow_sha1: true,
            postgres,
            hsm_workers: 0,
            queue_capacity: 2048,
            environment: vec![],
            arguments: vec![],
            wrapper: vec![],
            operator: pki.issue_serial("operator", &Kind::Spiffe(OPERATOR), 100),
            stranger: pki.issue_serial("stranger", &Kind::Spiffe(STRANGER), 101),
            pki,
            server,
            home,
        }
    }

    /// Sets it up as the sample configuration advises: TLS on the admin listener, JSON logs, the PIN from systemd's
    /// credentials directory, a revocation list.
    pub fn production() -> Self {
        let mut rig = Self::new();
        let credentials = rig.home.path().join("credentials");
        std::fs::create_dir(&credentials).unwrap();
        let pin = credentials.join("hsm-pin");
        std::fs::copy(&rig.pin_file, &pin).unwrap();
        // As systemd shows it: the mask of an ACL.
        std::fs::set_permissions(&pin, PermissionsExt::from_mode(0o440)).unwrap();
        // So that it is found nowhere else.
        rig.pin_file = rig.path("no-pin-here");
        rig.credentials = Some(credentials);
        (rig.log_format, rig.admin_tls) = ("json", true);
        rig.crls = vec![rig.pki.revoke("clients", &[])];
        rig
    }

    /// Returns all audit records so far, oldest first. A half-written last line is left out.
    pub fn records(&self) -> Vec<Value> {
        let directory = std::fs::read_dir(self.path("audit")).unwrap();
        let mut files: Vec<_> = directory.map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
        files.sort();
        let mut records = vec![];
        for file in files {
            let text = std::fs::read_to_string(file).unwrap();
            for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
                let mut line: Value = serde_json::from_str(line).unwrap();
                records.push(line["entry"]["record"].take());
            }
        }
        records
    }

    /// Returns a path in the directory that dev mode made.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join("dev").join(name)
    }

    /// Returns the user PIN of the token.
    pub fn pin(&self) -> String {
        std::fs::read_to_string(self.path("user-pin")).unwrap()
    }

    fn configuration(&self) -> String {
        let quoted = |path: &Path| toml_text(path.to_str().unwrap());
        let crls: Vec<_> = self.crls.iter().map(|path| quoted(path)).collect();
        let pin = match &self.credentials {
            Some(_) => "{ credential = \"hsm-pin\" }".to_owned(),
            None => format!("{{ file = {} }}", quoted(&self.pin_file)),
        };
        let mut text = format!(
            "[listen]\naddress = \"{}\"\n\
             [tls]\ncertificate = {}\nprivate_key = {}\nclient_ca = {}\ncrls = [{}]\n\
             [admin]\naddress = \"127.0.0.1:0\"\ntls = {}\n\
             [hsm]\nmodule = {}\ntoken_serial = {}\npin = {pin}\ntoken_dir = {}\nworkers = {}\n\
             queue_capacity = {}\n\
             [store]\npath = {}\n[audit]\ndirectory = {}\n\
             [log]\nformat = {}\nlevel = {}\n\
             [import]\nallow_rsa_oaep_sha1 = {}\n\
             [limits]\ndrain_ms = {}\noverlap_ms = {}\nmax_request_ms = {}\n",
            self.listen,
            quoted(&self.server.certificate),
            quoted(&self.server.key),
            quoted(&self.pki.ca()),
            crls.join(", "),
            self.admin_tls,
            quoted(&self.module),
            toml_text(&self.token_serial),
            quoted(&self.path("tokens")),
            self.hsm_workers,
            self.queue_capacity,
            quoted(&self.path("store.db")),
            quoted(&self.path("audit")),
            toml_text(self.log_format),
            toml_text(self.log_level),
            self.allow_sha1,
            self.drain_ms,
            self.overlap_ms,
            self.max_request_ms,
        );
        if let Some(section) = &self.postgres {
            text = text.replace("[store]\n", "[store]\nengine = \"postgres\"\n");
            write!(text, "[store.postgres]\n{section}").unwrap();
        }
        for Grant { principal, tenant, actions } in &self.grants {
            let (principal, tenant) = (toml_text(principal), toml_text(tenant));
            write!(
                text,
                "[[authz.grants]]\nprincipal = {principal}\ntenant = {tenant}\nactions = {actions:?}\n"
            )
            .unwrap();
        }
        text
    }

    /// Starts the server without waiting for it.
    pub fn spawn(&self) -> Process {
        let mut command = match self.wrapper.split_first() {
            None => Command::new(binary("kms-server")),
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(binary("kms-server"));
                command
            }
        };
        Process::start(self.configure(&mut command).args(&self.arguments))
    }

    /// Has the server check the configuration that it would start with.
    pub fn check_config(&self) -> Output {
        let mut command = Command::new(binary("kms-server"));
        self.configure(command.arg("check-config")).output().unwrap()
    }

    /// Has the database verified, with the result as JSON.
    pub fn verify_store(&self) -> Output {
        let mut command = Command::new(binary("kms-server"));
        self.configure(command.args(["verify-store", "--output", "json"])).output().unwrap()
    }

    /// Returns the arguments that accept the database as it is, which is not the one that the log has last seen.
    pub fn accepting(&self) -> Vec<String> {
        let report: Value = serde_json::from_slice(&self.verify_store().stdout).unwrap();
        let code = report["accept_code"].as_str().unwrap();
        vec!["--accept-restored-store".to_owned(), code.to_owned()]
    }

    /// Gives a command of the server its configuration and environment.
    pub fn configured<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        self.configure(command)
    }

    /// Writes the configuration, and names it and the environment.
    fn configure<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let file = self.path("server.toml");
        std::fs::write(&file, self.configuration()).unwrap();
        command.arg("--config").arg(file).env("SOFTHSM2_CONF", self.path("softhsm2.conf"));
        if let Some(directory) = &self.credentials {
            command.env("CREDENTIALS_DIRECTORY", directory);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)))
    }

    /// Starts the server and waits until it serves.
    pub fn start(self) -> Server {
        let process = self.spawn();
        serving(process, self)
    }

    /// Puts the faulty module between server and token. It forwards everything until it is told otherwise.
    pub fn use_faulty_module(&mut self) -> Faulty {
        let file = |name: &str| self.path(name).to_str().unwrap().to_owned();
        self.environment = vec![
            ("HOLDFAST_FAULTY_REAL".to_owned(), softhsm::module().to_str().unwrap().to_owned()),
            ("HOLDFAST_FAULTY_PLAN".to_owned(), file("faulty.plan")),
            ("HOLDFAST_FAULTY_LOG".to_owned(), file("faulty.log")),
        ];
        self.module = kms_testkit::faulty::module();
        Faulty::of(&SoftHsm::existing(&self.path("")))
    }

    /// Writes a file that only its owner can read, and returns its path.
    pub fn secret_file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&path).unwrap();
        file.write_all(content.as_bytes()).unwrap();
        path
    }
}

/// Waits until a started server serves, well or not.
pub fn serving(mut process: Process, rig: Rig) -> Server {
    let (listen, admin) = if rig.log_format == "json" {
        let line = process.await_line("\"listen\":", LIMIT);
        let line: Value = serde_json::from_str(&line).unwrap();
        let address = |field: &str| line["fields"][field].as_str().unwrap().parse().unwrap();
        (address("listen"), address("admin"))
    } else {
        let line = process.await_line(" listen=", LIMIT);
        (address(&line, "listen="), address(&line, "admin="))
    };
    Server { process, listen, admin, rig }
}

/// Waits until the admin listener of a started server is open.
pub fn admin_address(process: &mut Process) -> SocketAddr {
    address(&process.await_line("the admin listener is open", LIMIT), "admin=")
}

/// Reads an address out of a log line.
pub fn address(line: &str, field: &str) -> SocketAddr {
    let (_, rest) = line.split_once(field).unwrap();
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

/// Debug text of a str is a TOML basic string as long as it is printable ASCII.
fn toml_text(text: &str) -> String {
    assert!(text.chars().all(|c| c == ' ' || c.is_ascii_graphic()), "{text:?}");
    format!("{text:?}")
}

/// A running server. Killed when dropped.
#[derive(Debug)]
pub struct Server {
    pub process: Process,
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    pub rig: Rig,
}

impl Server {
    /// Starts one for a test that needs nothing special.
    pub fn fresh() -> Self {
        Rig::new().start()
    }

    /// Returns a server that tests of one binary share as long as one of them runs: they use keys of their own.
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap();
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Self::fresh());
            *shared = Arc::downgrade(&server);
            server
        })
    }

    /// Stops it in an orderly way and returns what it ran on.
    ///
    /// Waits on another thread: clients of this runtime must hear that they are to leave.
    pub async fn stop(self) -> Rig {
        let Self { mut process, rig, .. } = self;
        let (told, ended) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let code = process.terminate(LIMIT).code();
            told.send((code, process.stderr())).unwrap();
        });
        let (code, stderr) = ended.await.unwrap();
        assert_eq!(code, Some(0), "{stderr}");
        rig
    }

    /// Connects as `identity`.
    pub async fn client(&self, identity: &Identity) -> Client {
        self.try_client(Some(identity)).await.unwrap()
    }

    /// Connects as one who may do everything.
    pub async fn operator(&self) -> Client {
        self.client(&self.rig.operator).await
    }

    /// Connects with whatever certificate, or none; the refusal may also come with the first call.
    pub async fn try_client(
        &self,
        identity: Option<&Identity>,
    ) -> Result<Client, tonic::transport::Error> {
        let ca = self.rig.pki.ca();
        let connecting = kms_testkit::client::connect(self.listen, &ca, identity);
        let channel = kms_testkit::deadline::within(LIMIT, "a connection", connecting).await?;
        Ok(Client { channel })
    }

    /// Reads the records of the audit log that are there now.
    pub fn records(&self) -> Vec<Value> {
        self.rig.records()
    }

    /// Asks the admin listener over TLS, as the operator; returns the status code and the body.
    pub async fn get_over_tls(&self, path: &str) -> (u16, String) {
        let (ca, operator) = (self.rig.pki.ca(), &self.rig.operator);
        let asking = kms_testkit::client::get(self.admin, &ca, operator, path);
        kms_testkit::deadline::within(LIMIT, "an answer", asking).await.unwrap()
    }

    /// Asks the admin listener; returns the status code and the body.
    pub fn get(&self, path: &str) -> (u16, String) {
        get(self.admin, path)
    }
}

/// A GET over HTTP/1.1.
pub fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, body.to_owned())
}
