//! `kms bench`: a load generator for any server, and the engine that `make bench` uses too.
//!
//! Closed loop: each of `concurrency` tasks has one call in flight and starts the next when it is answered, so latency
//! is the server's and the network's, and throughput is what they give at that concurrency. The engine ([`engine`])
//! knows nothing of Holdfast; [`ops`] makes the calls, [`report`] says what came of it. It uses keys of its own
//! (`bench-0` ...) and never another key.

pub mod cpu;
pub mod engine;
pub mod ops;
pub mod report;

use std::time::Duration;

use kms_core::name::{InvalidName, KeyName, TenantName};

use crate::client::{Client, ClientError, channel};
use crate::context::ResolvedContext;
pub use engine::{Call, Load};
pub use ops::Op;
pub use report::Report;

/// The most connections; more only measure the client's own sockets.
pub const MAX_CONNECTIONS: usize = 256;
/// The most calls in flight.
pub const MAX_CONCURRENCY: usize = 4096;
/// The most keys that are made.
pub const MAX_KEYS: usize = 10_000;
/// The longest run: a soak test's day.
pub const MAX_DURATION: Duration = Duration::from_hours(24);

/// What to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The server, and as whom.
    pub context: ResolvedContext,
    /// Which call.
    pub op: Op,
    /// How many calls, for how long.
    pub load: Load,
    /// How many connections they share.
    pub connections: usize,
    /// How many keys they go over, in turn.
    pub key_count: usize,
    /// The keys are named so, with `-N` after it.
    pub key_prefix: String,
    /// Bytes of each plaintext or data key.
    pub size_bytes: usize,
    /// Items of each batch.
    pub batch_size: usize,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// No connection, or the preparation was refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The prefix makes no key id.
    #[error("the key prefix is refused: {0}")]
    Prefix(#[from] InvalidName),
    /// A key of this name is there, and no bench made it.
    #[error("`{0}` is no key of `kms bench`: its owner is another")]
    ForeignKey(KeyName),
    /// The engine cannot record.
    #[error("latencies cannot be recorded")]
    Recorder,
}

/// Makes the keys that are missing, warms up, measures, and reports.
///
/// # Errors
/// [`BenchError::Client`] for what fails before the measurement; calls that fail in it are counted in the report.
pub async fn run(config: &Config, tenant: &TenantName) -> Result<Report, BenchError> {
    let client = Client::connect(&config.context).await?;
    let targets = ops::prepare(&client, config, tenant).await?;
    let mut calls = Vec::with_capacity(config.connections);
    for _ in 0..config.connections {
        calls.push(ops::Caller::new(channel(&config.context).await?, config, targets.clone()));
    }
    let measured = engine::run(&config.load, calls).await.ok_or(BenchError::Recorder)?;
    Ok(Report::new(config.op.name(), &config.load, config.connections, &measured))
}
