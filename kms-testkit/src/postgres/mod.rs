//! A real PostgreSQL of the tests' own: a temporary cluster on a free port, with TLS, passwords and fsync as in earnest.
//!
//! It is Debian's package or another's, started by the test itself; the system's own clusters are left alone. Without it
//! a test fails and says how to get it. A cluster never outlives its test by more than moments: also that of a test that
//! was killed is ended and removed, by its keeper.

mod database;
mod find;
mod keeper;

use std::fs;
use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use crate::deadline;
use crate::pki::{Kind, Pki};
use database::Access;
pub use database::Database;
pub use find::BIN_VARIABLE;
use find::User;
use keeper::{Keeper, as_user};

/// Name of the superuser.
const SUPERUSER: &str = "postgres";
/// The group of roles that need a certificate.
const CERTIFIED: &str = "certified";
/// How long a start may take, also one that recovers from a crash.
const START_LIMIT: Duration = Duration::from_mins(1);
/// How often a start is tried: between the look for a free port and its use another process may take the port.
const ATTEMPTS: usize = 5;
/// What the server says of a port that is taken.
const PORT_TAKEN: &str = "could not create any TCP/IP sockets";
const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
max_connections = 200
shared_buffers = '32MB'
ssl = on
ssl_cert_file = 'server.crt'
ssl_key_file = 'server.key'
ssl_ca_file = 'ca.crt'
password_encryption = 'scram-sha-256'
";
/// Passwords everywhere. With and without TLS, so that it is the product that refuses to go without.
const WHO_MAY_CONNECT: &str = "
local   all all        scram-sha-256
hostssl all +certified 127.0.0.1/32 scram-sha-256 clientcert=verify-ca
host    all all        127.0.0.1/32 scram-sha-256
";

/// How a server is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Sessions end, and everything is written: `pg_ctl stop -m fast`.
    Fast,
    /// Like a crash: the next start recovers from the log. `pg_ctl stop -m immediate`.
    Immediate,
}

/// A cluster.
#[derive(Debug)]
pub struct Postgres {
    /// Of this directory everything is removed at the end.
    directory: PathBuf,
    keeper: Mutex<Keeper>,
    pki: Pki,
    access: Access,
    databases: AtomicU64,
}

impl Postgres {
    /// Makes a cluster and starts it. It ends with this value: for tests that stop it, or change what all share.
    ///
    /// # Panics
    /// Without PostgreSQL, with the way to get it.
    pub fn start() -> Self {
        let (bin, user) = (find::programs(), find::user());
        let directory = tempfile::Builder::new().prefix("holdfast-pg-").tempdir();
        // The keeper removes it.
        let directory = directory.expect("make a directory for the cluster").keep();
        for name in ["data", "socket", "pki", "passwords"] {
            make_directory(&directory.join(name), user);
        }
        own(&directory, user);
        // From here on whatever happens to this process, the directory goes.
        let mut keeper = Keeper::start(&bin, &directory, user);
        let pki = Pki::create(&directory.join("pki"));
        let password = random_text();
        make_cluster(&bin, &directory, user, &password);
        trust(&directory, user, &pki);
        let port = start_on_free_port(&mut keeper, &directory);
        let socket_directory = directory.join("socket");
        let access = Access { psql: bin.join("psql"), socket_directory, port, password };
        let made = access.run(SUPERUSER, &[&format!("CREATE ROLE {CERTIFIED} NOLOGIN")]);
        made.expect("make the group of roles that need a certificate");
        let databases = AtomicU64::new(1);
        Self { directory, keeper: Mutex::new(keeper), pki, access, databases }
    }

    /// Returns the cluster of this process, which is started at the first call. Nobody may stop it.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// Makes a database, and a role that owns it.
    pub fn fresh_database(&self) -> Database {
        let name = format!("holdfast_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let password = random_text();
        let made = self.access.run(
            SUPERUSER,
            &[
                &format!("CREATE ROLE {name} LOGIN PASSWORD '{password}'"),
                &format!("CREATE DATABASE {name} OWNER {name}"),
                &format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC"),
            ],
        );
        made.expect("make a database");
        let password_file = self.directory.join("passwords").join(&name);
        fs::write(&password_file, &password).expect("write a password file");
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(&password_file, private).expect("close a password file to others");
        Database {
            user: name.clone(),
            name,
            password,
            password_file,
            host: "127.0.0.1",
            port: self.access.port,
            socket_directory: self.access.socket_directory.clone(),
            ca: self.pki.ca(),
            access: self.access.clone(),
        }
    }

    /// Returns the authority that issued the server's certificate; certificates of clients are checked against it, too.
    pub const fn pki(&self) -> &Pki {
        &self.pki
    }

    /// Returns what the server has logged.
    pub fn log(&self) -> String {
        read_log(&self.directory)
    }

    /// Ends the server; the cluster stays, for [`Postgres::start_again`].
    pub fn stop(&self, how: Stop) {
        let signal = match how {
            Stop::Fast => "INT",
            Stop::Immediate => "QUIT",
        };
        let left = self.keeper.lock().expect("the keeper is whole").tell(signal);
        assert_eq!(left, None, "the server has ended");
    }

    /// Starts the server that was stopped, on the port that it had.
    pub fn start_again(&self) {
        let mut keeper = self.keeper.lock().expect("the keeper is whole");
        let started = start_server(&mut keeper, &self.directory, self.access.port);
        assert!(started, "the port was taken while the server was stopped:\n{}", self.log());
    }
}

fn make_directory(path: &Path, user: Option<User>) {
    fs::create_dir(path).expect("make a directory");
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).expect("close it to others");
    own(path, user);
}

/// Hands a file over to whoever runs the server.
fn own(path: &Path, user: Option<User>) {
    if let Some(User { uid, gid }) = user {
        chown(path, Some(uid), Some(gid)).expect("hand a file over");
    }
}

fn make_cluster(bin: &Path, directory: &Path, user: Option<User>, password: &str) {
    let file = directory.join("passwords/superuser");
    fs::write(&file, password).expect("write the superuser's password");
    own(&file, user);
    let mut command = as_user(&bin.join("initdb"), directory, user);
    // Whether this first state survives a power loss does not matter; what is written from then on does.
    command.args(["--no-sync", "--locale=C", "--encoding=UTF8", "-U", SUPERUSER]);
    command.arg("-D").arg(directory.join("data")).arg("--pwfile").arg(&file);
    let output = command.output().expect("run initdb");
    assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
    let settings = directory.join("data/postgresql.conf");
    let defaults = fs::read_to_string(&settings).expect("read postgresql.conf");
    fs::write(&settings, defaults + SETTINGS).expect("write postgresql.conf");
    fs::write(directory.join("data/pg_hba.conf"), WHO_MAY_CONNECT).expect("write pg_hba.conf");
}

/// Puts the server's certificate where it finds it.
fn trust(directory: &Path, user: Option<User>, pki: &Pki) {
    let server = pki.issue("postgres", &Kind::Server);
    for (from, name) in
        [(&pki.ca(), "ca.crt"), (&server.certificate, "server.crt"), (&server.key, "server.key")]
    {
        let place = directory.join("data").join(name);
        fs::copy(from, &place).expect("copy a certificate");
        own(&place, user);
    }
}

fn start_on_free_port(keeper: &mut Keeper, directory: &Path) -> u16 {
    for _ in 0..ATTEMPTS {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("find a free port");
        let port = listener.local_addr().expect("the port found").port();
        drop(listener);
        if start_server(keeper, directory, port) {
            return port;
        }
    }
    panic!("no port stays free:\n{}", read_log(directory));
}

/// Starts the server and waits until it takes connections. `false` when its port is taken.
fn start_server(keeper: &mut Keeper, directory: &Path, port: u16) -> bool {
    let mark = read_log(directory).len();
    let id = keeper.tell(&format!("start {port}")).expect("a server was started");
    let mut has_ended = false;
    deadline::eventually(START_LIMIT, "the start of PostgreSQL", || {
        has_ended = ended(id);
        has_ended || takes_connections(directory, id)
    });
    if !has_ended {
        return true;
    }
    keeper.tell("INT");
    let log = read_log(directory);
    let said = log.get(mark..).unwrap_or_default();
    assert!(said.contains(PORT_TAKEN), "PostgreSQL does not start:\n{said}");
    false
}

/// Returns whether a process that nobody waited for yet has ended.
fn ended(id: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // The state stands behind the name, which is in parentheses.
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

/// Returns whether the first line of the server's own file names it, and the eighth says that it is ready.
fn takes_connections(directory: &Path, id: u32) -> bool {
    let text = fs::read_to_string(directory.join("data/postmaster.pid")).unwrap_or_default();
    let mut lines = text.lines();
    lines.next() == Some(id.to_string().as_str())
        && lines.nth(6).is_some_and(|status| status.trim() == "ready")
}

fn read_log(directory: &Path) -> String {
    let bytes = fs::read(directory.join("log")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns 128 bits of randomness as hexadecimal digits.
fn random_text() -> String {
    let mut bytes = [0; 16];
    let source = fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    source.expect("read randomness");
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
