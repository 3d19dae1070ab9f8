//! What is wrong with a configuration: all of it, in one go.
//!
//! It reads files and opens nothing else: no token, no database, no socket, so that it can run beside a live server.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use kms_core::clock::Timestamp;

use super::postgres_check;
use super::problem::{Cause, Problem};
use super::secret_source::{SecretKind, SecretPlace, SecretSource};
use super::{Config, Engine, Limits};
use crate::authz::StaticPolicy;
use crate::transport::tls_check;

/// The most threads that serve requests: beyond it they only wait for each other.
pub const MAX_WORKER_THREADS: usize = 256;
/// The most HSM workers.
pub const MAX_HSM_WORKERS: usize = 64;
/// The most jobs that may wait for the HSM.
pub const MAX_HSM_QUEUE: usize = 65_536;
/// The longest time that may be configured: a day.
pub const MAX_SPAN_MS: u64 = 24 * 60 * 60 * 1000;
/// The largest number of anything else: more than one process can have.
pub const MAX_COUNT: usize = 1_000_000;

/// Returns everything that is wrong at `now`; nothing when the configuration is good.
pub fn check(config: &Config, now: Timestamp) -> Vec<Problem> {
    let mut problems = Problems(Vec::new());
    check_listeners(config, &mut problems);
    for (key, error) in tls_check::check(&config.tls.files(), now) {
        problems.add(key, Cause::Tls(error));
    }
    check_hsm(config, &mut problems);
    check_store(config, now, &mut problems);
    check_audit(config, &mut problems);
    if let Err(error) = StaticPolicy::new(&config.authz.grants) {
        problems.add("authz.grants", Cause::Policy(error));
    }
    check_limits(&config.limits, &mut problems);
    problems.0
}

pub(super) struct Problems(Vec<Problem>);

impl Problems {
    pub(super) fn add(&mut self, key: &'static str, cause: Cause) {
        self.0.push(Problem { key, cause });
    }

    pub(super) fn add_unless_within(
        &mut self,
        key: &'static str,
        number: u64,
        least: u64,
        most: u64,
    ) {
        if !(least..=most).contains(&number) {
            self.add(key, Cause::OutOfBounds { least, most });
        }
    }
}

fn check_listeners(config: &Config, problems: &mut Problems) {
    let (listen, admin) = (config.listen.address, &config.admin);
    if overlap(listen, admin.address) {
        problems.add("admin.address", Cause::ListenersOverlap(listen));
    }
    if !admin.tls && !admin.address.ip().is_loopback() {
        problems.add("admin.tls", Cause::PlainTextExposed);
    }
    if admin.allowed_networks.is_empty() {
        problems.add("admin.allowed_networks", Cause::NoNetworks);
    }
}

/// Returns whether two sockets cannot listen side by side. Port 0 is another one each time. `::` takes IPv4 too, unless
/// the system is told otherwise.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let covers = |wide: SocketAddr, narrow: SocketAddr| {
        let (wide, narrow) = (wide.ip(), narrow.ip().to_canonical());
        wide.is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4())
    };
    one.port() == other.port()
        && one.port() != 0
        && (one.ip().to_canonical() == other.ip().to_canonical()
            || covers(one, other)
            || covers(other, one))
}

fn check_hsm(config: &Config, problems: &mut Problems) {
    let hsm = &config.hsm;
    if !hsm.module.is_file() {
        problems.add("hsm.module", Cause::NotAFile(hsm.module.clone()));
    }
    if hsm.token_serial.is_none() && hsm.token_label.is_none() {
        problems.add("hsm.token_serial", Cause::NoToken);
    }
    problems.add_unless_within("hsm.workers", hsm.workers as u64, 0, MAX_HSM_WORKERS as u64);
    let capacity = hsm.queue_capacity as u64;
    problems.add_unless_within("hsm.queue_capacity", capacity, 1, MAX_HSM_QUEUE as u64);
    if let Some(directory) = hsm.token_dir.as_deref().filter(|path| !path.is_dir()) {
        problems.add("hsm.token_dir", Cause::NotADirectory(directory.to_owned()));
    }
    // What it is called tells at once; what it says itself in C_GetInfo is asked at the start, and latches.
    let name = hsm.module.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    if hsm.token_dir.is_none() && name.contains("softhsm") {
        problems.add("hsm.token_dir", Cause::TokenDirNeeded);
    }
    check_secret("hsm.pin", SecretKind::Pin, &hsm.pin, problems);
}

/// Refuses a place that has no secret, as far as that can be told.
pub(super) fn check_secret(
    key: &'static str,
    kind: SecretKind,
    place: &SecretPlace,
    problems: &mut Problems,
) {
    match place {
        // Read as at the start, and wiped at once.
        SecretPlace::File(path) => {
            if let Err(error) = SecretSource::File(path.clone()).read(kind) {
                problems.add(key, Cause::Secret(error));
            }
        }
        SecretPlace::Credential(name) if name.is_empty() || name.contains('/') => {
            problems.add(key, Cause::CredentialName);
        }
        // They are there for the service only, and a pipe can be read once.
        SecretPlace::Descriptor(_) | SecretPlace::Credential(_) => {}
    }
}

fn check_store(config: &Config, now: Timestamp, problems: &mut Problems) {
    if config.store.engine == Engine::Postgres {
        // The file of a SQLite database has its directory looked at below, and the journal is beside it.
        match config.journal_path().parent().filter(|path| path.is_dir()) {
            Some(parent) => check_mode("journal.path", parent, problems),
            None => problems.add("journal.path", Cause::NoStoreDirectory),
        }
        return postgres_check::check(&config.store.postgres, now, problems);
    }
    match config.store.path.parent().filter(|path| path.is_dir()) {
        Some(parent) => check_mode("store.path", parent, problems),
        None => problems.add("store.path", Cause::NoStoreDirectory),
    }
}

fn check_audit(config: &Config, problems: &mut Problems) {
    let audit = &config.audit.directory;
    let creatable = audit.is_dir() || audit.parent().is_some_and(Path::is_dir);
    if !creatable {
        problems.add("audit.directory", Cause::NoAuditDirectory);
    }
    check_mode("audit.directory", audit, problems);
}

/// Refuses a directory that others may use. One that is not there yet is made so that they may not.
fn check_mode(key: &'static str, directory: &Path, problems: &mut Problems) {
    let Ok(metadata) = directory.metadata() else { return };
    let mode = metadata.mode() & 0o7777;
    if metadata.is_dir() && mode & 0o077 != 0 {
        problems.add(key, Cause::DirectoryExposed { path: directory.to_owned(), mode });
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
        problems.add_unless_within(key, span_ms, 1, MAX_SPAN_MS);
    }
    problems.add_unless_within("limits.overlap_ms", limits.overlap_ms, 0, MAX_SPAN_MS);
    let counts = [
        ("limits.max_connections", limits.max_connections),
        ("limits.max_connections_per_source", limits.max_connections_per_source),
        ("limits.max_handshakes", limits.max_handshakes),
        ("limits.max_loaded_keys", limits.max_loaded_keys),
        ("limits.max_streams", limits.max_streams as usize),
    ];
    for (key, count) in counts {
        problems.add_unless_within(key, count as u64, 1, MAX_COUNT as u64);
    }
    let threads = limits.worker_threads as u64;
    problems.add_unless_within("limits.worker_threads", threads, 0, MAX_WORKER_THREADS as u64);
}

#[cfg(test)]
mod tests {
    use super::overlap;

    #[test]
    fn listeners_overlap_on_one_port_of_one_address_or_of_all() {
        let both = |one: &str, other: &str| {
            let (one, other) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(overlap(one, other), overlap(other, one), "{one} {other}");
            overlap(one, other)
        };
        for (one, other) in [
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("127.0.0.1:1", "[::ffff:127.0.0.1]:1"),
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("0.0.0.0:1", "0.0.0.0:1"),
            ("[::]:1", "[::1]:1"),
            ("[::]:1", "127.0.0.1:1"),
            ("[::]:1", "0.0.0.0:1"),
        ] {
            assert!(both(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("127.0.0.1:1", "127.0.0.1:2"),
            ("0.0.0.0:1", "127.0.0.1:2"),
            ("127.0.0.1:1", "127.0.0.2:1"),
            ("0.0.0.0:1", "[::1]:1"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("0.0.0.0:0", "127.0.0.1:0"),
        ] {
            assert!(!both(one, other), "{one} {other}");
        }
    }
}
