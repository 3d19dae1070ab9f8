//! The child processes: echo and server, each alone with its clients.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kms_cli::bench::cpu::cpu_time;
use kms_cli::context::resolve::DEFAULT_TIMEOUT;
use kms_cli::context::{Overrides, ResolvedContext};
use kms_core::clock::{Clock as _, SystemClock};
use kms_testkit::{Pki, SoftHsm};
use serde::Deserialize;

use crate::error::{Error, io};
use crate::serve::LISTENING;

/// How long a server may take to be ready: key generation on a slow disk.
const READY_TIMEOUT: Duration = Duration::from_mins(1);

/// How long a server may take to tell its metrics.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(10);

/// A child process that is killed when it is dropped.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    /// How to reach it.
    pub context: ResolvedContext,
    /// Where it tells its metrics; the echo tells none.
    admin: Option<SocketAddr>,
}

impl Peer {
    /// Starts the echo with certificates of its own, and so many serving threads.
    pub fn echo(directory: &Path, threads: usize) -> Result<Self, Error> {
        let pki = Pki::create(directory);
        let (_, client) = pki.usual();
        let this = std::env::current_exe().map_err(io("find this program"))?;
        let mut command = Command::new(this);
        command.arg("echo").arg(directory).arg(threads.to_string()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(io("start the echo"))?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(io("read from the echo"))?;
        }
        let address = line.trim().strip_prefix(LISTENING);
        let Some(Ok(server)) = address.map(str::parse) else {
            return Err(Error::Child { what: "the echo", detail: line });
        };
        let context = ResolvedContext {
            server,
            ca: pki.ca(),
            cert: client.certificate,
            key: client.key,
            tenant: None,
            timeout: DEFAULT_TIMEOUT,
        };
        Ok(Self { child, context, admin: None })
    }

    /// Starts a dev server on a directory; returns what it says of its start too.
    pub fn server(binary: &Path, directory: &Path) -> Result<(Self, Ready), Error> {
        let ready_file = directory.join("ready.json");
        if ready_file.exists() {
            std::fs::remove_file(&ready_file).map_err(io("remove ready.json"))?;
        }
        let log = std::fs::File::create(directory.with_extension("log"));
        let mut command = Command::new(binary);
        command.arg("dev").arg("--dir").arg(directory);
        command.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
        command.args(["--log-level", "warn"]);
        command.stdout(Stdio::null()).stderr(log.map_err(io("make a log"))?);
        let start = SystemClock.monotonic();
        let mut child = command.spawn().map_err(io("start the server"))?;
        let text = match await_file(&mut child, &ready_file) {
            Ok(text) => text,
            Err(error) => {
                let _ = child.kill();
                return Err(error);
            }
        };
        let detail = |error: serde_json::Error| Error::Child {
            what: "the server",
            detail: error.to_string(),
        };
        let took = SystemClock.monotonic().saturating_duration_since(start);
        let said: ReadyFile = serde_json::from_str(&text).map_err(detail)?;
        let token_login = Duration::from_millis(said.token_login_ms);
        let ready = Ready { without_login: took.saturating_sub(token_login) };
        let config = Some(directory.join("cli.toml"));
        let context = ResolvedContext::resolve(&Overrides { config, ..Overrides::default() })?;
        Ok((Self { child, context, admin: Some(said.admin) }, ready))
    }

    /// Returns the CPU time it has used.
    pub fn cpu(&self) -> Result<Duration, Error> {
        cpu_time(Some(self.child.id())).ok_or(Error::Untold("a process's CPU time"))
    }

    /// Returns its resident memory in MiB.
    pub fn rss_mib(&self) -> Result<f64, Error> {
        self.read_rss_mib().ok_or(Error::Untold("a process's resident memory"))
    }

    fn read_rss_mib(&self) -> Option<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib / 1024.0)
    }

    /// Returns the value of a metric without labels.
    pub fn metric(&self, name: &str) -> Result<f64, Error> {
        let admin = self.admin.ok_or(Error::Untold("metrics of the echo"))?;
        let failed = || io("ask for the metrics");
        let mut stream = TcpStream::connect(admin).map_err(failed())?;
        stream.set_read_timeout(Some(SCRAPE_TIMEOUT)).map_err(failed())?;
        let request =
            format!("GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).map_err(failed())?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map_err(failed())?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.ok_or(Error::Child { what: "the metrics", detail: format!("no `{name}`") })
    }

    /// Stops it with SIGTERM and awaits its end.
    pub fn stop(mut self) -> Result<(), Error> {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)
                .map_err(|error| io("stop a child")(error.into()))?;
        }
        self.child.wait().map_err(io("await a child"))?;
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a dev server started.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// From the start of the process, before it executes itself again, to ready, without the token's login.
    pub without_login: Duration,
}

/// What a dev server says of its start.
#[derive(Clone, Copy, Debug, Deserialize)]
struct ReadyFile {
    /// Where operators ask.
    admin: SocketAddr,
    /// How long the login took; it is the token's, not ours.
    token_login_ms: u64,
}

fn await_file(child: &mut Child, path: &Path) -> Result<String, Error> {
    let mut ended = None;
    kms_testkit::deadline::eventually(READY_TIMEOUT, "ready.json", || {
        ended = child.try_wait().ok().flatten();
        ended.is_some() || path.exists()
    });
    match ended {
        Some(status) => Err(Error::Child { what: "the server", detail: status.to_string() }),
        None => std::fs::read_to_string(path).map_err(io("read ready.json")),
    }
}

/// Finds a binary beside this one.
pub fn binary(name: &str) -> Result<PathBuf, Error> {
    let this = std::env::current_exe().map_err(io("find this program"))?;
    let path = this.with_file_name(name);
    if path.is_file() { Ok(path) } else { Err(Error::Binary(path)) }
}

/// Whose allocator serves the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocator {
    /// The system's: the bare token.
    System,
    /// The server's, which serves the module in it.
    Server,
}

/// Measures the bare token in a process of its own; returns items a second.
pub fn bare_token(directory: &Path, span: Duration, allocator: Allocator) -> Result<f64, Error> {
    let token = SoftHsm::create(directory);
    let mut command = match allocator {
        Allocator::System => Command::new(binary("kms-bench-token")?),
        Allocator::Server => {
            let mut this = Command::new(binary("kms-bench")?);
            this.arg("token");
            this
        }
    };
    command.arg(kms_testkit::softhsm::module()).arg(span.as_millis().to_string());
    command.env("SOFTHSM2_CONF", token.configuration()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(io("start the token's process"))?;
    let mut text = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut text).map_err(io("read from the token's process"))?;
    }
    child.wait().map_err(io("await the token's process"))?;
    let wrong = || Error::Child { what: "the token's process", detail: text.clone() };
    text.trim().parse().map_err(|_| wrong())
}
