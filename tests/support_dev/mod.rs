//! A dev server on a directory that the test owns: started, killed, started again.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test support: a failure here is a failed test, and no test file uses all of it"
)]

pub mod random;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kms_proto::v1 as proto;
use kms_testkit::Process;
use kms_testkit::pki::Identity;
use kms_testkit::process::binary;
use serde_json::Value;
use tonic::transport::Channel;

/// How long anything may take on a loaded machine.
pub const LIMIT: Duration = Duration::from_mins(1);
/// The tenant of dev mode.
pub const TENANT: &str = "tenants/dev";
/// Response metadata with the id of the request, as in the audit log.
pub const EVENT_ID: &str = "holdfast-event-id";

/// A running dev server. Killed when dropped.
#[derive(Debug)]
pub struct DevServer {
    pub process: Process,
    pub directory: PathBuf,
    pub listen: SocketAddr,
    pub admin: SocketAddr,
}

/// Returns the command that runs a dev server on `directory`.
pub fn dev_command(directory: &Path) -> Command {
    let mut command = Command::new(binary("kms-server"));
    command.env_remove("SOFTHSM2_CONF");
    command.args(["dev", "--listen", "127.0.0.1:0", "--module"]);
    command.arg(kms_testkit::softhsm::module()).arg("--dir").arg(directory);
    let postgres = postgres_file(directory);
    if postgres.exists() {
        command.arg("--postgres").arg(postgres);
    }
    command
}

/// Returns the file that names the PostgreSQL database of a dev directory; without it the database is in the directory.
pub fn postgres_file(directory: &Path) -> PathBuf {
    directory.with_extension("postgres.toml")
}

/// Starts a dev server without waiting for it.
pub fn spawn(directory: &Path) -> Process {
    forget_ready(directory);
    Process::start(&mut dev_command(directory))
}

/// A killed server leaves its ready file: it would be taken for the next one's.
pub fn forget_ready(directory: &Path) {
    let _ = std::fs::remove_file(directory.join("ready.json"));
}

impl DevServer {
    /// Starts a dev server and waits until it is ready.
    pub fn start(directory: &Path) -> Self {
        Self::ready(spawn(directory), directory)
    }

    /// Waits until a dev server on `directory` is ready.
    pub fn ready(mut process: Process, directory: &Path) -> Self {
        let text = process.await_file(&directory.join("ready.json"), LIMIT);
        let ready: Value = serde_json::from_str(&text).unwrap();
        let address = |name: &str| ready[name].as_str().unwrap().parse().unwrap();
        let (listen, admin) = (address("listen"), address("admin"));
        Self { process, directory: directory.to_owned(), listen, admin }
    }

    /// Connects as the dev client.
    pub async fn connect(&self) -> Channel {
        connect(&self.directory, self.listen).await
    }
}

/// Connects to `address` as the dev client of `directory`.
pub async fn connect(directory: &Path, address: SocketAddr) -> Channel {
    let (ca, identity) = (directory.join("pki/ca.pem"), identity(directory));
    let connecting = kms_testkit::client::connect(address, &ca, Some(&identity));
    kms_testkit::deadline::within(LIMIT, "a connection", connecting).await.unwrap()
}

/// Returns the certificate of the dev client.
pub fn identity(directory: &Path) -> Identity {
    Identity::existing(directory.join("pki/client.pem"), directory.join("pki/client.key"))
}

/// Returns a request for a good key.
pub fn new_key(key_id: &str, protection: proto::Protection) -> proto::CreateKeyRequest {
    proto::CreateKeyRequest {
        parent: TENANT.to_owned(),
        key_id: key_id.to_owned(),
        purpose: proto::Purpose::Wrap.into(),
        protection: protection.into(),
        owner: "tests".to_owned(),
        sensitivity: proto::Sensitivity::Low.into(),
        usage: "crash and durability tests".to_owned(),
        cryptoperiod: Some(prost_types::Duration { seconds: 86_400, nanos: 0 }),
        recipient_usage_period: None,
        labels: std::collections::HashMap::new(),
        request_id: request_id(),
        rotation_period: None,
        acknowledge_no_backup: protection == proto::Protection::HsmResident,
    }
}

/// Returns a request id that this process has not used: a UUID of version 4 by its form.
pub fn request_id() -> String {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    format!("{:08x}-0000-4000-8000-{number:012x}", std::process::id())
}

/// Returns the event id that an answer carries.
pub fn event_id<T>(response: &tonic::Response<T>) -> String {
    response.metadata().get(EVENT_ID).unwrap().to_str().unwrap().to_owned()
}

/// Returns the files of the audit log, oldest first.
pub fn audit_files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory.join("audit")).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort();
    files
}

/// Returns the audit records so far, oldest first. A half-written last line is left out.
pub fn audit_records(directory: &Path) -> Vec<Value> {
    let mut records = vec![];
    for file in audit_files(directory) {
        let text = std::fs::read_to_string(file).unwrap();
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let mut line: Value = serde_json::from_str(line).unwrap();
            records.push(line["entry"]["record"].take());
        }
    }
    records
}
