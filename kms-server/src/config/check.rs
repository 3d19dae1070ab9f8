//! What is wrong with a configuration: all of it, in one go.
//!
//! It reads files and opens nothing else: no token, no database, no socket, so that it can run beside a live server.

use std::fmt;
use std::path::Path;

use super::{Config, Limits, PinPlace};
use crate::authz::StaticPolicy;
use crate::transport::tls::{Protocols, TlsStore};

/// Something an operator must mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key in the file.
    pub key: &'static str,
    /// What is wrong with it.
    pub detail: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.detail)
    }
}

/// The most threads that serve requests: beyond it they only wait for each other.
pub const MAX_WORKER_THREADS: usize = 256;
/// The most HSM workers.
pub const MAX_HSM_WORKERS: usize = 64;
/// The most jobs that may wait for the HSM.
pub const MAX_HSM_QUEUE: usize = 65_536;
/// The longest time that may be configured: a day.
pub const MAX_SPAN_MS: u64 = 24 * 60 * 60 * 1000;

/// Returns everything that is wrong; nothing when the configuration is good.
pub fn check(config: &Config) -> Vec<Problem> {
    let mut problems = Problems(Vec::new());
    check_listeners(config, &mut problems);
    check_tls(config, &mut problems);
    check_hsm(config, &mut problems);
    check_directories(config, &mut problems);
    if let Err(error) = StaticPolicy::new(&config.authz.grants) {
        problems.add("authz.grants", error);
    }
    check_limits(&config.limits, &mut problems);
    problems.0
}

struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, key: &'static str, detail: impl fmt::Display) {
        self.0.push(Problem { key, detail: detail.to_string() });
    }
}

fn check_listeners(config: &Config, problems: &mut Problems) {
    let (listen, admin) = (config.listen.address, &config.admin);
    if listen == admin.address && listen.port() != 0 {
        problems.add("admin.address", "must differ from listen.address");
    }
    if !admin.tls && !admin.address.ip().is_loopback() {
        problems.add("admin.tls", "may be false only when admin.address is a loopback address");
    }
    if admin.allowed_networks.is_empty() {
        problems.add("admin.allowed_networks", "must name a network, else nobody can connect");
    }
}

fn check_tls(config: &Config, problems: &mut Problems) {
    if let Err(error) = TlsStore::load(config.tls.files(), Protocols::Http2) {
        problems.add("tls", error);
    }
}

fn check_hsm(config: &Config, problems: &mut Problems) {
    let hsm = &config.hsm;
    if !hsm.module.is_file() {
        problems.add("hsm.module", format_args!("{} is not a file", hsm.module.display()));
    }
    if hsm.token_serial.is_none() && hsm.token_label.is_none() {
        problems.add("hsm.token_serial", "give the serial number or the label of the token");
    }
    if hsm.workers > MAX_HSM_WORKERS {
        problems.add("hsm.workers", "must be 0 to 64");
    }
    if !(1..=MAX_HSM_QUEUE).contains(&hsm.queue_capacity) {
        problems.add("hsm.queue_capacity", "must be 1 to 65536");
    }
    if let Some(directory) = hsm.token_dir.as_deref().filter(|path| !path.is_dir()) {
        problems.add("hsm.token_dir", format_args!("{} is no directory", directory.display()));
    }
    match &hsm.pin {
        PinPlace::File(path) if !path.is_file() => {
            problems.add("hsm.pin", format_args!("{} is not a file", path.display()));
        }
        PinPlace::Credential(name) if name.is_empty() || name.contains('/') => {
            problems.add("hsm.pin", "the credential must be a plain file name");
        }
        PinPlace::File(_) | PinPlace::Descriptor(_) | PinPlace::Credential(_) => {}
    }
}

fn check_directories(config: &Config, problems: &mut Problems) {
    let parent = config.store.path.parent().filter(|path| path.is_dir());
    if parent.is_none() {
        problems.add("store.path", "its directory does not exist");
    }
    let audit = &config.audit.directory;
    let creatable = audit.is_dir() || audit.parent().is_some_and(Path::is_dir);
    if !creatable {
        problems.add("audit.directory", "neither it nor its parent exists");
    }
}

fn check_limits(limits: &Limits, problems: &mut Problems) {
    let spans = [
        ("limits.handshake_timeout_ms", limits.handshake_timeout_ms),
        ("limits.keepalive_interval_ms", limits.keepalive_interval_ms),
        ("limits.keepalive_timeout_ms", limits.keepalive_timeout_ms),
        ("limits.max_connection_age_ms", limits.max_connection_age_ms),
        ("limits.connection_grace_ms", limits.connection_grace_ms),
        ("limits.max_request_ms", limits.max_request_ms),
        ("limits.drain_ms", limits.drain_ms),
    ];
    for (key, span_ms) in spans {
        if !(1..=MAX_SPAN_MS).contains(&span_ms) {
            problems.add(key, "must be 1 to 86400000 (a day)");
        }
    }
    if limits.overlap_ms > MAX_SPAN_MS {
        problems.add("limits.overlap_ms", "must be 0 to 86400000 (a day)");
    }
    let counts = [
        ("limits.max_connections", limits.max_connections),
        ("limits.max_connections_per_source", limits.max_connections_per_source),
        ("limits.max_handshakes", limits.max_handshakes),
        ("limits.max_loaded_keys", limits.max_loaded_keys),
        ("limits.max_streams", limits.max_streams as usize),
    ];
    for (key, count) in counts {
        if !(1..=1_000_000).contains(&count) {
            problems.add(key, "must be 1 to 1000000");
        }
    }
    if limits.worker_threads > MAX_WORKER_THREADS {
        problems.add("limits.worker_threads", "must be 0 to 256");
    }
}
